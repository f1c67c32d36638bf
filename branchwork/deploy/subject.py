"""What is exported or timed: a net and what must be known to use it, and the module with the normalisation inside."""

import dataclasses
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import load_data
from branchwork.errors import ExportError, NetError, first_line
from branchwork.fusing.fuse import fuse
from branchwork.graph.trace import Trace, trace
from branchwork.graph.untouched import eval_copy
from branchwork.language import times
from branchwork.nets.catalogue import NETS
from branchwork.nets.resolve import defaults_of, short_name
from branchwork.training.infer import DTYPES, pick_layout
from branchwork.training.run import MODEL, Model, check_output, holds, load_run

Input = Literal["uint8", "float"]
Shape = tuple[int, int, int]

# Images at a time for which a file is made, where nothing else is said.
BATCH = 8


@dataclass(frozen=True)
class Subject:
    """A float32 net in eval mode, its trace and its model. `folder` is its run's, None for weights that no run made."""

    net: nn.Module
    model: Model
    trace: Trace
    folder: Path | None

    @property
    def name(self) -> str:
        return short_name(self.model.net)

    @property
    def shape(self) -> Shape:
        return (self.model.in_channels, *self.model.image_size)


def names_run(net: str | Path | nn.Module) -> bool:
    """Whether `net` is a run folder, or a folder that can be nothing else."""
    if isinstance(net, nn.Module):
        return False
    return bool(holds(Path(net), MODEL)) or (str(net) not in NETS and os.path.isdir(net))


def find_subject(net: str | Path | nn.Module, *, shape: Shape | None = None, data: DataSet | None = None) -> Subject:
    """What `net` names: a run folder, a name in `NETS`, a script's `file.py:Class`; or a module as it is.

    A net that no run made has weights of seed 0, and the images, the classes and the normalisation of `data`, by
    default of the `sample`; one for images of another `shape`, which is by default its own, has plain numbers in place
    of the two latter. Raises `NetError`, also for a net whose operations depend on the pixels, and `RunError` or
    `WeightsError` for a damaged run.
    """
    if isinstance(net, nn.Module):
        module, model, folder = net, _stand_in(type(net).__name__, shape, data), None
    elif names_run(net):
        trained = load_run(net)
        module, model, folder = trained.net, trained.model, trained.folder
        if shape not in (None, (model.in_channels, *model.image_size)):
            raise NetError(f"{net} was trained on images of {times((model.in_channels, *model.image_size))}: no others")
    else:
        model, folder = _stand_in(str(net), shape, data), None
        with torch.random.fork_rng(devices=[]):
            build = model.builder()
            torch.manual_seed(0)  # after a script was imported, which may set a seed of its own
            module = build()
    twin = eval_copy(module).to("cpu", torch.float32)
    traced = trace(twin, (model.in_channels, *model.image_size))
    if traced.depends_on_pixels:
        raise NetError(
            f"{short_name(model.net)} does other operations for other pixels, and a file holds one graph for all "
            "images: take out what asks for a tensor's values (if, while, .item(), int(tensor))"
        )
    with torch.no_grad():
        output = twin(torch.zeros(2, model.in_channels, *model.image_size))
    if shape is not None and folder is None and isinstance(output, Tensor) and output.dim() == 2:
        model = dataclasses.replace(model, classes=tuple(map(str, range(output.shape[1]))))
    check_output(output, len(model.classes), model.net)
    return Subject(twin, model, traced, folder)


def _stand_in(net: str, shape: Shape | None, data: DataSet | None) -> Model:
    if data is not None:
        return Model.of(net, data, {})
    sample = load_data("sample")
    model = Model.of(net, sample, {})
    design = defaults_of(net)
    shape = shape or (design.input_shape if design else None)
    if shape is None or shape == (sample.channels, *sample.image_size):
        return model
    half, classes = (0.5,) * shape[0], model.classes
    if design:
        classes = tuple(map(str, range(design.num_classes)))
    return dataclasses.replace(model, in_channels=shape[0], image_size=shape[1:], mean=half, std=half, classes=classes)


class Normalise(nn.Module):
    """Images N×C×H×W with pixels from 0 to `white`, as a model's net takes them."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: Model, white: int) -> None:
        super().__init__()
        mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (model.mean, model.std))
        self.register_buffer("mean", white * mean)
        self.register_buffer("scale", 1 / (white * std))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) * self.scale


class Shipped(nn.Module):
    """A net that takes images N×C×H×W as they are, uint8 or floats in [0, 1], and gives logits float32 N×K."""

    def __init__(self, normalise: nn.Module, net: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        self.normalise = normalise
        self.net = net
        self.dtype = dtype
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        normal = self.normalise(images.float())
        logits = self.net(normal.to(self.dtype).contiguous(memory_format=self.layout))
        assert isinstance(logits, Tensor), "find_subject has looked at it"
        return logits.float()


@dataclass(frozen=True)
class Shipping:
    """As written or `fused`; what it is computed in, what its images are, and how many at a time it is fused for."""

    fused: bool
    precision: str = "fp32"
    form: Input = "uint8"
    batch: int = BATCH


def ship(subject: Subject, shipping: Shipping, *, engine: str | None = None) -> Shipped:
    """A copy of the subject's net with the normalisation inside.

    It is for torch, with weights of the precision and images channels_last where the net allows it, which torch
    computes faster; or with `engine` for one that reads float32 and computes in the precision by itself.
    """
    net: nn.Module = eval_copy(subject.net)
    normalise: nn.Module = Normalise(subject.model, white=255 if shipping.form == "uint8" else 1)
    if shipping.fused:
        fused = partial(fuse, batch=shipping.batch, precision=shipping.precision, engine=engine)
        try:
            net = fused(nn.Sequential(normalise, net).eval(), subject.shape).eval()
        except NetError:
            fused(net, subject.shape)  # whose words are about the net itself
            raise
        normalise = nn.Identity()
    kind = torch.contiguous_format if engine else pick_layout(net, subject.model)
    dtype = DTYPES["fp32" if engine else shipping.precision]
    return Shipped(normalise, net.to(dtype).to(memory_format=kind), dtype, kind).eval()  # type: ignore[call-overload]


def example(subject: Subject, form: Input) -> Tensor:
    """Two black images: a batch of one would be taken for the only size there is."""
    return torch.zeros(2, *subject.shape, dtype=torch.uint8 if form == "uint8" else torch.float32)


def program(shipped: Shipped, images: Tensor, name: str) -> torch.export.ExportedProgram:
    """The graph of `shipped` for any number of images. Raises `ExportError` where it serves one number alone."""
    with torch.no_grad(), quiet_torch():
        try:
            made = torch.export.export(
                shipped, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
            )
        except Exception as reason:  # torch's own errors here have no common base
            raise ExportError(
                f"{name} has no graph that serves any number of images: {first_line(reason)} "
                "Write x.size(0) for the number of images, and keep to operations of torch."
            ) from reason
    for node in made.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths and the script of whoever exports do not travel along
    return made


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Without the warnings that torch's exporters give about torch itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        # Weights that are channels_last; what comes back is compared, and is the same.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        yield

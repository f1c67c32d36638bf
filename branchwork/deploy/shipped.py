"""What is exported or timed: a net with its description, and the module that contains its normalisation."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from branchwork.catalogue.resolve import defaults_of
from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import load_data
from branchwork.deploy.engines import Pixels, Precision
from branchwork.errors import ExportError, NetError, nearest
from branchwork.fusing.fuse import fuse
from branchwork.graph.program import Graph
from branchwork.graph.read import read
from branchwork.graph.teach import failure
from branchwork.graph.trace import Trace, trace_graph
from branchwork.graph.untouched import eval_copy
from branchwork.language import times
from branchwork.training.infer import DTYPES, pick_layout
from branchwork.training.run import Model, check_output
from branchwork.training.subject import is_run, resolve

ImageShape = tuple[int, int, int]


@dataclass(frozen=True)
class Deployable:
    """A float32 net in eval mode, its name for tables, and the model that describes it.

    `folder` is the run folder; None for a net without a run.
    """

    net: nn.Module
    name: str
    model: Model
    folder: Path | None

    @property
    def input_shape(self) -> ImageShape:
        return self.model.input_shape

    @cached_property
    def graph(self) -> Graph:
        """The graph of the net as written."""
        return read(self.net, self.input_shape)

    @cached_property
    def trace(self) -> Trace:
        """The operations of the net as written."""
        return trace_graph(self.graph)

    def need_fixed_graph(self) -> None:
        """Raise `NetError` if the operations of the net depend on the pixels."""
        if self.graph.depends_on_pixels:
            raise NetError(
                "{name} has data-dependent control flow, but a file holds one graph for all images: remove what "
                "reads a tensor's values (if, while, .item(), int(tensor))",
                name=self.name,
            )


def find_deployable(
    net: str | Path | nn.Module, *, input_shape: ImageShape | None = None, data: DataSet | None = None
) -> Deployable:
    """Return what `net` names, ready to be exported or timed.

    A net without a run has weights of seed 0, and the images, classes and normalisation of `data`, by default of the
    `sample`. If `input_shape`, by default the net's own, differs from the sample's, the classes are numbers. Raises
    `NetError`, and `RunError` or `WeightsError` for a damaged run.
    """
    model = None if is_run(net) else _stand_in(net, input_shape, data)
    subject = resolve(net) if model is None else resolve(net, model.input_shape, num_classes=len(model.classes))
    if subject.run is not None:
        model = subject.run.model
        if input_shape not in (None, subject.input_shape):
            raise NetError(
                "{net} was trained on images of {input_shape} and accepts no others",
                net=net,
                input_shape=times(subject.input_shape),
            )
    assert model is not None
    twin = eval_copy(subject.net).to("cpu", torch.float32)
    problem = failure(twin, subject.input_shape)
    if problem is not None:
        raise problem
    with torch.no_grad():
        output = twin(torch.zeros(2, *subject.input_shape))
    if input_shape is not None and subject.run is None and isinstance(output, Tensor) and output.dim() == 2:
        model = dataclasses.replace(model, classes=tuple(map(str, range(output.shape[1]))))
    check_output(output, len(model.classes), model.net)
    return Deployable(twin, subject.name, model, subject.run.folder if subject.run else None)


def _stand_in(net: str | Path | nn.Module, input_shape: ImageShape | None, data: DataSet | None) -> Model:
    """Return a model for a net without a run."""
    name = type(net).__name__ if isinstance(net, nn.Module) else str(net)
    if data is not None:
        return Model.of(name, data)
    sample = load_data("sample")
    model = Model.of(name, sample)
    defaults = defaults_of(name)
    shape = input_shape or (defaults.input_shape if defaults else None)
    if shape is None or shape == sample.image_shape:
        return model
    half = (0.5,) * shape[0]
    classes = tuple(map(str, range(defaults.num_classes))) if defaults else model.classes
    return dataclasses.replace(model, in_channels=shape[0], image_size=shape[1:], mean=half, std=half, classes=classes)


class Normalise(nn.Module):
    """Images N×C×H×W with pixels from 0 to `white` in, normalised images for the model's net out."""

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
    """A net that takes raw images N×C×H×W, uint8 or floats in [0, 1], and returns logits float32 N×K."""

    def __init__(
        self, normalise: nn.Module, net: nn.Module, *, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.net = net
        self.dtype = dtype
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        normalised = self.normalise(images.float())
        logits = self.net(normalised.to(self.dtype).contiguous(memory_format=self.layout))
        assert isinstance(logits, Tensor), "find_deployable has checked it"
        return logits.float()


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to write a net into a file. Raises `ExportError` for an impossible value.

    With `fuse`, the file holds an equal net, the cheapest for batches of `batch_size` images. The engine computes in
    `precision`. `pixels` are `uint8`, from 0 to 255, or `float`, from 0 to 1. Only with `force` are existing files
    replaced. `beside` is for a page: the run to show on the same picture.

    For `int8` alone: it is calibrated on `calibration_images`, by default 300 of the run's validation images, and the
    accuracy may fall by `drop`, a fraction, by default 0.01.
    """

    fuse: bool = True
    precision: Precision = "fp32"
    batch_size: int = 8
    pixels: Pixels = "uint8"
    force: bool = False
    beside: str | Path | None = None
    calibration_images: int | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ExportError(
                "batch_size must be at least 1, got {batch_size}: it is the number of images at a time", **vars(self)
            )
        if self.pixels not in get_args(Pixels):
            raise ExportError(
                "pixels cannot be {pixels!r}.{hint}", pixels=self.pixels, hint=nearest(self.pixels, get_args(Pixels))
            )
        if self.precision != "int8" and (self.calibration_images, self.drop) != (None, None):
            raise ExportError("--calibration-images and --drop are for int8: add --precision int8, or leave them out")
        if self.calibration_images is not None and self.calibration_images < 1:
            raise ExportError("calibration_images must be at least 1, got {calibration_images}", **vars(self))
        if self.drop is not None and not 0 <= self.drop < 1:
            raise ExportError("--drop must be at least 0% and below 100%, got {drop:%}", drop=self.drop)

    @property
    def float_precision(self) -> Literal["fp32", "bf16"]:
        """The precision of whatever is not quantised."""
        return "bf16" if self.precision == "bf16" else "fp32"


def ship(subject: Deployable, options: ExportOptions, *, engine: str | None = None) -> Shipped:
    """Return a copy of the subject's net that contains the normalisation.

    Without `engine` it is for torch: weights in the precision, and images channels_last (faster) if the net allows it.
    With `engine` it is for an engine that reads float32 and computes in the precision by itself.
    """
    net: nn.Module = eval_copy(subject.net)
    normalise: nn.Module = Normalise(subject.model, white=255 if options.pixels == "uint8" else 1)
    if options.fuse:
        fuse_for = partial(fuse, batch=options.batch_size, precision=options.float_precision, engine=engine)
        try:
            net = fuse_for(nn.Sequential(normalise, net).eval(), subject.input_shape).eval()
        except NetError:
            subject.need_fixed_graph()
            fuse_for(net, subject.input_shape)  # to raise an error that is about the net itself
            raise
        normalise = nn.Identity()
    layout = torch.contiguous_format if engine else pick_layout(net, subject.model)
    dtype = DTYPES["fp32" if engine else options.float_precision]
    shipped = Shipped(normalise, net.to(dtype).to(memory_format=layout), dtype=dtype, layout=layout)  # type: ignore[call-overload]
    return shipped.eval()

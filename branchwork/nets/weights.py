"""Weights in and out: our files, the lecture's own state dicts, and torchvision's published ones, all strictly."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from branchwork.errors import WeightsError

# Our module paths are branch names; the lecture's are attributes of one flat class.
_LECTURE_NAMES = (
    (r"\.b1\.", ".branch1x1."),
    (r"\.b5\.conv(\d)\.", r".branch5x5_\1."),
    (r"\.b3\.conv(\d)\.", r".branch3x3_\1."),
    (r"\.pool\.conv\.", ".branch_pool."),
    (r"\.residual\.", "."),
)

_TORCHVISION_RESNET = (
    (r"^conv1\.conv\.", "conv1."),
    (r"^conv1\.norm\.", "bn1."),
    (r"^stage(\d)\.block(\d+)\.join\.", lambda match: f"layer{match[1]}.{int(match[2]) - 1}."),
    (r"\.residual\.conv(\d)\.", r".conv\1."),
    (r"\.residual\.norm(\d)\.", r".bn\1."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
)
_TORCHVISION_GOOGLENET = (
    (r"\.norm\.", ".bn."),
    (r"^incep", "inception"),
    (r"\.b1\.", ".branch1."),
    (r"\.b3\.conv(\d)\.", lambda match: f".branch2.{int(match[1]) - 1}."),
    (r"\.b5\.conv(\d)\.", lambda match: f".branch3.{int(match[1]) - 1}."),
    (r"\.pool\.conv\.", ".branch4.1."),
)

PUBLISHED = (
    "\nThe published ones are for three channels and the nets as torchvision has them: googlenet[b5=3x3,stem=large], "
    "resnet18[stem=large]."
)
# Of tensors that are missing, and so on, in one message.
MOST_LINES = 12


# Mean and standard deviation of each channel.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Dialect:
    """Other names for a net's weights, as rules that turn ours into theirs, and what the weights expect.

    `normalisation` are the mean and the standard deviation of the channels that the weights were trained on, and
    `training_only` is how the names begin of tensors that only their training needed.
    """

    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    training_only: tuple[str, ...] = ()
    normalisation: Normalisation | None = None

    def name(self, key: str) -> str:
        for ours, theirs in self.rules:
            key = re.sub(ours, theirs, key)
        return key


OURS, LECTURE = Dialect(), Dialect(_LECTURE_NAMES)
DIALECTS = (
    OURS,
    LECTURE,
    Dialect(_TORCHVISION_RESNET, normalisation=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    # torchvision's GoogLeNet undoes ImageNet's normalisation in its forward, since its weights came from elsewhere.
    Dialect(_TORCHVISION_GOOGLENET, ("aux1.", "aux2."), normalisation=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
)


@dataclass(frozen=True)
class Loaded:
    """The names, ours, of the tensors that were kept, and of those of a new head; and theirs that were dropped.

    `normalisation` is what the weights expect of images, None where that is not known.
    """

    where: str
    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    normalisation: Normalisation | None

    def words(self) -> str:
        said = f"{self.where}: {len(self.kept)} tensors kept"
        for kind, names in (("new", self.new), ("dropped", self.dropped)):
            if names:
                said += f"; {kind}: {', '.join(names if len(names) <= 6 else _by_module(names))}"
        return said


def _by_module(names: Sequence[str]) -> list[str]:
    """The tensors by the outermost modules that hold them, each with their number."""
    counts = Counter(name.split(".")[0] for name in names)
    return [f"{count} of {module}" for module, count in counts.items()]


def lecture_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """The weights of `net` under the names that the lecture's own script gives them.

    `incep1.b5.conv2.weight` is there `incep1.branch5x5_2.weight`. The tensors are those of `net`, not copies.
    """
    return {LECTURE.name(key): tensor for key, tensor in net.state_dict().items()}


def load_weights(net: nn.Module, source: Mapping[str, Tensor] | str | Path, *, new_head: bool = False) -> Loaded:
    """Load weights into `net`: a state dict, a `.safetensors`, `.pth` or `.pt` file, or a run folder.

    The keys are ours, the lecture's, or torchvision's for GoogLeNet (build it with `b5="3x3"`) and the ResNets, whose
    auxiliary heads are dropped. Everything must fit, but with `new_head` the last linear layer keeps its fresh weights
    where its number of classes is another. `WeightsError` names the keys that are missing or surplus and the tensors
    of another shape, and `net` is then left as it was.
    """
    where, weights = read_weights(source)
    ours = net.state_dict()
    # The dialect is the one that knows most of the keys, so that one damaged key does not hide which it was.
    dialect = max(DIALECTS, key=lambda known: len({known.name(key) for key in ours} & weights.keys()))
    names = {dialect.name(key): key for key in ours}
    dropped = [name for name in weights if name not in names and name.startswith(dialect.training_only)]
    new = _head(net, ours, names, weights) if new_head else []
    # Files from before torch counted batches lack the count, which only a batch norm without momentum reads.
    uncounted = [name for name in names if name.endswith(".num_batches_tracked") and name not in weights]
    problems = {
        "missing": [name for name in names if name not in weights and name not in uncounted],
        "surplus": [name for name in weights if name not in names and name not in dropped],
        "shape": [
            f"{name}: found {tuple(weights[name].shape)}, needed {tuple(ours[key].shape)}"
            for name, key in names.items()
            if name in weights and key not in new and weights[name].shape != ours[key].shape
        ],
    }
    lines = [line for kind, found in problems.items() for line in _some(kind, found)]
    if lines:
        raise WeightsError(
            f"the weights in {where} do not belong to this net:\n" + "\n".join(lines) + "\n"
            "Load them into the net that they were saved from, with the same input size and number of classes."
            + (PUBLISHED if dialect.normalisation else "")
        )
    kept = {key: weights[name] for name, key in names.items() if key not in new and name in weights}
    net.load_state_dict(ours | kept, strict=True)
    normalisation = dialect.normalisation or _run_normalisation(source)
    return Loaded(where, tuple(kept), tuple(new), (*dropped, *map(dialect.name, new)), normalisation)


def _run_normalisation(source: Mapping[str, Tensor] | str | Path) -> Normalisation | None:
    """What a run has normalised its images by, where `source` is its folder or weights in it, or in its `top`."""
    if isinstance(source, Mapping):
        return None
    folder = Path(source) if Path(source).is_dir() else Path(source).absolute().parent
    if folder.name == "top" and not (folder / "model.json").exists():
        folder = folder.parent
    try:
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return tuple(map(float, model["mean"])), tuple(map(float, model["std"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _some(kind: str, found: list[str]) -> list[str]:
    """A line for each, as far as one reads on."""
    lines = [f"  {kind:<8}  {words}" for words in found[:MOST_LINES]]
    return [*lines, f"  {kind:<8}  and {len(found) - MOST_LINES} more"] if len(found) > MOST_LINES else lines


def _head(
    net: nn.Module, ours: Mapping[str, Tensor], names: Mapping[str, str], weights: Mapping[str, Tensor]
) -> list[str]:
    """The keys of the last linear layer, where the weights have it for another number of classes."""
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)][-1:]
    theirs = {key: weights[name] for name, key in names.items() if name in weights}
    keys = [f"{path}.{part}" for path in linear for part in ("weight", "bias") if f"{path}.{part}" in ours]
    others = all(key in theirs and theirs[key].shape[1:] == ours[key].shape[1:] for key in keys)
    return keys if others and any(len(theirs[key]) != len(ours[key]) for key in keys) else []


def read_weights(source: Mapping[str, Tensor] | str | Path) -> tuple[str, dict[str, Tensor]]:
    """Where the weights are from, in words, and the tensors. No pickle is executed: files hold tensors only."""
    if isinstance(source, Mapping):
        return "the state dict", _only_tensors("the state dict", source)
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"there are no weights at {path}: give a .safetensors, .pth or .pt file, or a run folder")
    if path.suffix == ".safetensors":
        try:
            return str(path), safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as reason:
            raise WeightsError(
                f"{path} is damaged ({reason}): copy it again from where it came, or train again"
            ) from reason
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:  # torch raises pickle, zip, runtime and end-of-file errors alike
        raise WeightsError(
            f"{path} cannot be read as weights: it is damaged, or holds a whole model and not a state dict. "
            "Save it with torch.save(net.state_dict(), 'weights.pth'): a whole model would have to run code to load."
        ) from reason
    return str(path), _only_tensors(str(path), loaded)


def _only_tensors(where: str, loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise WeightsError(f"{where} holds no state dict, which maps each name to a tensor: save net.state_dict()")
    return dict(loaded)

"""Loading weights strictly: our files, the lecture's state dicts, and torchvision's published weights."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchwork.errors import WeightsError
from branchwork.files import escaped, read_json, reading
from branchwork.language import mark, say
from branchwork.tensors import CHECKSUM, read_tensors

# From our keys, which are paths of branches, to the lecture's, which are attributes of one flat class.
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
_TORCHVISION_DENSENET = (
    (r"^conv1\.(conv|norm)\.", r"features.\g<1>0."),
    (r"^block(\d)\.layer(\d+)\.new\.", r"features.denseblock\1.denselayer\2."),
    (r"^halve(\d)\.", r"features.transition\1."),
    (r"^norm\.", "features.norm5."),
    (r"^fc\.", "classifier."),
)
# As in the published files, which torchvision renames when it loads them.
_OLDER_DENSENET = (*_TORCHVISION_DENSENET, (r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2."))
_TORCHVISION_GOOGLENET = (
    (r"\.norm\.", ".bn."),
    (r"^incep", "inception"),
    (r"\.b1\.", ".branch1."),
    (r"\.b3\.conv(\d)\.", lambda match: f".branch2.{int(match[1]) - 1}."),
    (r"\.b5\.conv(\d)\.", lambda match: f".branch3.{int(match[1]) - 1}."),
    (r"\.pool\.conv\.", ".branch4.1."),
)

_PUBLISHED = mark(
    "\nPublished weights are for three channels and the nets as torchvision has them: googlenet:b5=3x3,stem=large, "
    "resnet18:stem=large, densenet121:stem=large."
)
_AGAIN = mark("copy it again from its source, or train again")
# The most lines of a message about missing tensors, and so on.
MOST_LINES = 12
# The most letters of a key that are shown.
_LONGEST = 100

# Mean and standard deviation of each channel.
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Dialect:
    """A naming scheme for weights: `rules` turn our keys into its keys.

    Tensors whose keys begin with one of `training_only` are dropped. `normalisation` is the one used in
    their training.
    """

    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    training_only: tuple[str, ...] = ()
    normalisation: Normalisation | None = None

    def translate(self, key: str) -> str:
        for ours, theirs in self.rules:
            key = re.sub(ours, theirs, key)
        return key


# The mean and the deviation of ImageNet's training images.
_OF_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OURS, LECTURE = Dialect(), Dialect(_LECTURE_NAMES)
DIALECTS = (
    OURS,
    LECTURE,
    *(
        Dialect(rules, normalisation=_OF_IMAGENET)
        for rules in (_TORCHVISION_RESNET, _TORCHVISION_DENSENET, _OLDER_DENSENET)
    ),
    # torchvision's GoogLeNet undoes ImageNet's normalisation in its forward, because its weights are a port.
    Dialect(_TORCHVISION_GOOGLENET, ("aux1.", "aux2."), normalisation=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
)


@dataclass(frozen=True)
class Loaded:
    """What was loaded from `source`, by keys: `kept` were loaded, `new` are of a fresh head, `dropped` were not used.

    `normalisation` is the one that the weights expect of their images; None if unknown. `checked` is False for a file
    without a checksum of ours, such as published weights: damage of its numbers goes unnoticed.
    """

    source: str
    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    normalisation: Normalisation | None
    checked: bool = True

    def __str__(self) -> str:
        words = [say("{source}: {count} tensors kept", source=self.source, count=len(self.kept))]
        if self.new:
            words.append(say("new: {keys}", keys=_few(self.new)))
        if self.dropped:
            words.append(say("dropped: {keys}", keys=_few(self.dropped)))
        if not self.checked:
            words.append(say("not checked for damage: the file has no checksum"))
        return "; ".join(words)


def _few(keys: tuple[str, ...]) -> str:
    """Return the keys, or how many each module has if they are too many to read."""
    counts = Counter(key.split(".")[0] for key in keys)
    return ", ".join(
        map(_shown, keys)
        if len(keys) <= 6
        else (say("{count} of {module}", count=count, module=_shown(module)) for module, count in counts.items())
    )


def _shown(key: str) -> str:
    """Return a key, of which another program may have made anything, as a short piece of one line."""
    text = escaped(key[:_LONGEST])
    return text if len(key) <= _LONGEST else f"{text}…"


def lecture_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """Return the weights of `net` under the keys of the lecture's script.

    `incep1.b5.conv2.weight` becomes `incep1.branch5x5_2.weight`. The tensors are those of `net`, not copies.
    """
    return {LECTURE.translate(key): tensor for key, tensor in net.state_dict().items()}


def load_weights(net: nn.Module, source: Mapping[str, Tensor] | str | Path, *, new_head: bool = False) -> Loaded:
    """Load weights into `net`: a state dict, a `.safetensors`, `.pth` or `.pt` file, or a run folder.

    The keys are ours, the lecture's, or torchvision's for GoogLeNet (built with `b5="3x3"`; auxiliary heads are
    dropped), the ResNets and the DenseNets. All tensors must match, except that with `new_head` the last linear layer
    keeps its fresh weights if its number of classes differs. Otherwise `net` stays as it is, and `WeightsError` names
    the missing and unexpected keys and the tensors whose shape differs.
    """
    where, weights, checked = read_weights(source)
    state = net.state_dict()
    # The dialect that knows most of the keys, so that one damaged key does not hide which it is.
    dialect = max(DIALECTS, key=lambda candidate: len({candidate.translate(key) for key in state} & weights.keys()))
    keys = {dialect.translate(key): key for key in state}  # from theirs to ours
    dropped = [name for name in weights if name not in keys and name.startswith(dialect.training_only)]
    new = _changed_head(net, {key: weights[name] for name, key in keys.items() if name in weights}) if new_head else []
    lines = _mismatches(weights, state, keys, new=new, dropped=dropped)
    if lines:
        raise WeightsError(
            "the weights in {where} do not belong to this net:\n{lines}\n"
            "Load them into the net that they were saved from, with the same input size and number of classes.{hint}",
            where=where,
            lines="\n".join(lines),
            hint=say(_PUBLISHED) if dialect.normalisation else "",
        )
    kept = {key: weights[name] for name, key in keys.items() if key not in new and name in weights}
    net.load_state_dict(state | kept, strict=True)
    normalisation = dialect.normalisation or _run_normalisation(source)
    return Loaded(where, tuple(kept), tuple(new), (*dropped, *map(dialect.translate, new)), normalisation, checked)


def _mismatches(
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    keys: Mapping[str, str],
    *,
    new: Sequence[str],
    dropped: Sequence[str],
) -> list[str]:
    """Return a line for each of the first `weights` that do not fit `state`; `keys` map from theirs to ours."""
    # Files from before torch counted batches lack the count, which only a batch norm without momentum reads.
    uncounted = [name for name in keys if name.endswith(".num_batches_tracked") and name not in weights]
    pairs = [(name, weights[name], state[key]) for name, key in keys.items() if name in weights and key not in new]
    problems = {
        say("missing"): [name for name in keys if name not in weights and name not in uncounted],
        say("surplus"): [_shown(name) for name in weights if name not in keys and name not in dropped],
        say("shape"): [
            say("{name}: got {got}, needed {needed}", name=name, got=tuple(found.shape), needed=tuple(needed.shape))
            for name, found, needed in pairs
            if found.shape != needed.shape
        ],
        say("type"): [
            say("{name}: got {got}, needed {needed}", name=name, got=found.dtype, needed=needed.dtype)
            for name, found, needed in pairs
            # torch converts other precisions, which is right, and integers, which is not.
            if found.dtype != needed.dtype and needed.is_floating_point() and not found.is_floating_point()
        ],
    }
    return [line for label, entries in problems.items() for line in _first_lines(label, entries)]


def _run_normalisation(source: Mapping[str, Tensor] | str | Path) -> Normalisation | None:
    """Return the normalisation of a run if `source` is its folder, or weights in it or in its `top`.

    Raises `WeightsError` if the run's model.json is damaged.
    """
    if isinstance(source, Mapping):
        return None
    folder = Path(source) if Path(source).is_dir() else Path(source).absolute().parent
    if folder.name == "top" and not (folder / "model.json").exists():
        folder = folder.parent
    path = folder / "model.json"
    if not path.is_file():
        return None
    model = read_json(path, dict[str, Any], error=WeightsError)
    if not Path(source).is_dir() and not {"mean", "std"} & model.keys():  # another program's, beside the weights
        return None
    with reading(path, error=WeightsError):
        return tuple(map(float, model["mean"])), tuple(map(float, model["std"]))


def _first_lines(label: str, entries: list[str]) -> list[str]:
    lines = [f"  {label:<8}  {entry}" for entry in entries[:MOST_LINES]]
    more = say("and {count} more", count=len(entries) - MOST_LINES)
    return [*lines, f"  {label:<8}  {more}"] if len(entries) > MOST_LINES else lines


def _changed_head(net: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of the last linear layer if `weights`, by our keys, have it for another number of classes."""
    state = net.state_dict()
    paths = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)][-1:]
    keys = [key for path in paths for key in (f"{path}.weight", f"{path}.bias") if key in state]
    inputs_match = all(key in weights and weights[key].shape[1:] == state[key].shape[1:] for key in keys)
    return keys if inputs_match and any(len(weights[key]) != len(state[key]) for key in keys) else []


def read_weights(source: Mapping[str, Tensor] | str | Path) -> tuple[str, dict[str, Tensor], bool]:
    """Return a name for `source`, its tensors, and whether they are known to be as they were written.

    No pickle is executed: only tensors are read.
    """
    if isinstance(source, Mapping):
        name = say("the state dict")
        return name, _only_tensors(name, source), True
    path = Path(source)
    if os.path.isdir(path):
        path = path / "model.safetensors"
    with reading(path, error=WeightsError, remedy=_AGAIN):
        if not path.is_file():
            raise WeightsError(
                "there are no weights at {path}: give a .safetensors, .pth or .pt file, or a run folder", path=path
            )
        if path.suffix == ".safetensors":
            tensors, about = read_tensors(path)
            return str(path), tensors, CHECKSUM in about
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except PermissionError:
            raise
        except Exception as reason:  # torch raises pickle, zip, runtime and end-of-file errors alike
            raise WeightsError(
                "{path} cannot be read as weights: it is damaged, or holds a whole model instead of a state dict. "
                "Save it with torch.save(net.state_dict(), 'weights.pth'): loading a whole model would execute code.",
                path=path,
            ) from reason
    return str(path), _only_tensors(str(path), loaded), False


def _only_tensors(where: str, loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in loaded.items()
    ):
        raise WeightsError(
            "{where} holds no state dict, which maps names to tensors: save net.state_dict()", where=where
        )
    for key, tensor in loaded.items():
        layout = None if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")
        kinds = ((tensor.is_nested, "nested"), (tensor.is_quantized, "quantized"), (tensor.is_meta, "meta"))
        kind = next((name for holds, name in kinds if holds), layout)
        if kind is not None:
            raise WeightsError(
                "{key} in {where} is not a plain tensor of numbers ({kind}): save the state dict of the net before it "
                "is converted",
                key=_shown(key),
                where=where,
                kind=kind,
            )
    return dict(loaded)


def weight_rms(weights: Iterable[Tensor]) -> float | None:
    """Return the root mean square of the kernels and matrices among `weights`; None if there are none.

    Biases and the scales of norms, which have one dimension, do not count.
    """
    kernels = [weight.detach().double().flatten() for weight in weights if weight.dim() > 1]
    return float(torch.cat(kernels).square().mean().sqrt()) if kernels else None

"""Weights in and out: our files, and the lecture's own state dicts, both strictly."""

import re
from collections.abc import Mapping
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


def lecture_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """The weights of `net` under the names that the lecture's own script gives them.

    `incep1.b5.conv2.weight` is there `incep1.branch5x5_2.weight`. The tensors are those of `net`, not copies.
    """
    return {_lecture_name(key): tensor for key, tensor in net.state_dict().items()}


def load_weights(net: nn.Module, source: Mapping[str, Tensor] | str | Path) -> None:
    """Load weights into `net`: a state dict, a `.safetensors`, `.pth` or `.pt` file, or a run folder.

    The keys are ours or the lecture's. Everything must fit: `WeightsError` names each key that is missing or
    surplus and each tensor of another shape, and `net` is then left as it was.
    """
    where, weights = read_weights(source)
    ours = net.state_dict()
    lecture = {_lecture_name(key): key for key in ours}
    # The dialect is the one that knows more of the keys, so that one damaged key does not hide which it was.
    in_lecture, in_ours = (len(weights.keys() & known.keys()) for known in (lecture, ours))
    names = lecture if in_lecture > in_ours else {key: key for key in ours}
    problems = [f"  missing   {name}" for name in names if name not in weights]
    problems += [f"  surplus   {name}" for name in weights if name not in names]
    for name, key in names.items():
        if name in weights and weights[name].shape != ours[key].shape:
            found, needed = tuple(weights[name].shape), tuple(ours[key].shape)
            problems.append(f"  shape     {name}: found {found}, needed {needed}")
    if problems:
        raise WeightsError(
            f"the weights in {where} do not belong to this net:\n" + "\n".join(problems) + "\n"
            "Load them into the net that they were saved from, with the same input size and number of classes."
        )
    net.load_state_dict({key: weights[name] for name, key in names.items()}, strict=True)


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


def _lecture_name(key: str) -> str:
    for ours, theirs in _LECTURE_NAMES:
        key = re.sub(ours, theirs, key)
    return key

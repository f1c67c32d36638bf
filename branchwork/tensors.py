"""Files of tensors, which carry a checksum of all that they hold, so that damage is noticed when they are read."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from branchwork.files import write_whole
from branchwork.language import say

CHECKSUM = "checksum"
# Before the checksum, so that a file of ours is known as one even if the name of its checksum is what was damaged. Not
# a text of its own: safetensors writes several in any order, and the same weights must be the same bytes.
_OURS = "branchwork "


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write `tensors`, texts `about` them and a checksum of both to `path`, whole or not at all. Raises `RunError`."""
    # Contiguous copies on the CPU: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    texts = dict(about or {})
    write_whole(path, safetensors.torch.save(tensors, texts | {CHECKSUM: _OURS + _checksum(tensors, texts)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file and the texts about them, with `CHECKSUM` among these if `write_tensors` wrote it.

    Files of other programs have no checksum. Raises `ValueError` if the contents do not match theirs, and `OSError` or
    `SafetensorError` if they cannot be read.
    """
    # safetensors would call a file that may not be read missing.
    with path.open("rb"), safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        # Copies: what is mapped cannot be replaced on Windows, and changes with the file.
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118, it is not a dict
    texts = {key: text for key, text in about.items() if key != CHECKSUM}
    is_ours = CHECKSUM in about or any(text.startswith(_OURS) for text in texts.values())
    if is_ours and about.get(CHECKSUM) != _OURS + _checksum(tensors, texts):
        raise ValueError(say("its checksum does not match its contents"))
    return tensors, about


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Return a checksum of all names, shapes, bytes and texts: a renamed moment, say, would change a training."""
    check = zlib.crc32(json.dumps(dict(sorted(about.items()))).encode())
    for name, tensor in sorted(tensors.items()):
        check = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), check)
        check = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, check)
    return f"{check:08x}"

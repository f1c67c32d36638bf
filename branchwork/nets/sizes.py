"""The nets of the catalogue, with their sizes."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from branchwork.errors import NetError, nearest
from branchwork.files import parse_json


@dataclass(frozen=True)
class NetSize:
    """A net as it was designed: its input C×H×W, its classes, its parameters, and the MACs of one image."""

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    parameters: int
    macs: int


def list_nets(*beginnings: str) -> tuple[NetSize, ...]:
    """The nets of the catalogue whose names begin with one of `beginnings`, by default all, in the catalogue's order.

    Raises `NetError` for a beginning that no net has.
    """
    sizes = known_sizes()
    for beginning in beginnings:
        if not any(size.name.startswith(beginning) for size in sizes):
            names = [size.name for size in sizes]
            raise NetError(f"there is no net whose name begins with {beginning!r}.{nearest(beginning, names)}")
    return tuple(size for size in sizes if not beginnings or size.name.startswith(beginnings))


def known_sizes() -> tuple[NetSize, ...]:
    """What `scripts/measure_nets.py` found by the trace of each net, which together take minutes."""
    text = (resources.files("branchwork") / "nets/sizes.json").read_bytes()
    return parse_json(text, tuple[NetSize, ...], Path("nets/sizes.json"))

"""The verb `nets`: the nets of the catalogue with their sizes, read from a file so that torch is not needed."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from branchwork.errors import NetError, nearest
from branchwork.files import parse_json
from branchwork.shown import Several, Shown


@dataclass(frozen=True)
class NetSize(Shown):
    """A net as it was designed: its input C×H×W, its classes, its parameters, and its MACs per image."""

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    parameters: int
    macs: int


def nets(*prefixes: str) -> Several[NetSize]:
    """List the nets of the catalogue, in its order, whose names begin with one of `prefixes`; by default all.

    The sizes are in `sizes.json`, written by `scripts/measure_nets.py`: tracing every net takes minutes. Raises
    `NetError` for a prefix without a net.
    """
    content = (resources.files("branchwork") / "catalogue/sizes.json").read_bytes()
    every = parse_json(content, tuple[NetSize, ...], Path("catalogue/sizes.json"))
    for prefix in prefixes:
        if not any(net.name.startswith(prefix) for net in every):
            names = [net.name for net in every]
            raise NetError(
                "there is no net whose name begins with {prefix!r}.{hint}", prefix=prefix, hint=nearest(prefix, names)
            )
    return Several(net for net in every if not prefixes or net.name.startswith(prefixes))

"""The MACs that a 1×1 convolution before a larger one saves or costs (Szegedy et al. 2014, section 4)."""

from collections.abc import Iterable
from dataclasses import dataclass

from branchwork.errors import NetError
from branchwork.graph.trace import Trace
from branchwork.shown import Shown


@dataclass(frozen=True)
class Reduction(Shown):
    """The MACs of two ways from `channels` to `out` channels at one output size.

    `direct` is a k×k convolution alone; `first` and `second` are a 1×1 to `through` channels and the k×k after it.
    """

    name: str
    channels: int
    through: int
    out: int
    kernel: tuple[int, int]
    direct: int
    first: int
    second: int

    @property
    def total(self) -> int:
        return self.first + self.second

    @property
    def times(self) -> float:
        """How many times fewer MACs it takes with the 1×1; below 1 if the 1×1 costs work."""
        return self.direct / self.total


def reduction(input_shape: tuple[int, int, int], *, kernel: int, out_channels: int, through: int) -> Reduction:
    """Return how many MACs a 1×1 saves before a convolution that keeps height and width, on an input C×H×W.

    Raises `NetError` if a number is below 1.
    """
    numbers = {"channels": input_shape[0], "height": input_shape[1], "width": input_shape[2]}
    for name, number in (numbers | {"kernel": kernel, "out_channels": out_channels, "through": through}).items():
        if number < 1:
            raise NetError("{name} must be at least 1, got {number}", name=name, number=number)
    channels, height, width = input_shape
    pixels = height * width
    return Reduction(
        name=f"{channels}×{height}×{width}",
        channels=channels,
        through=through,
        out=out_channels,
        kernel=(kernel, kernel),
        direct=pixels * kernel * kernel * channels * out_channels,
        first=pixels * channels * through,
        second=pixels * kernel * kernel * through * out_channels,
    )


def reductions(trace: Trace) -> Iterable[Reduction]:
    """Yield every 1×1 convolution of a net whose output goes into one larger convolution and nowhere else."""
    by_name = {node.name: node for node in trace.operations}
    readers: dict[str, list[str]] = {}
    for node in trace.operations:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.name)
    for node in trace.operations:
        after = [by_name[name] for name in readers.get(node.name, [])]
        while len(after) == 1 and after[0].op in ("relu", "batch_norm"):
            after = [by_name[name] for name in readers.get(after[0].name, [])]
        if node.kernel != (1, 1) or len(after) != 1 or after[0].kernel is None or after[0].kernel == (1, 1):
            continue
        second = after[0]
        if node.groups != 1 or second.groups != 1 or second.kernel is None:
            continue
        through, channels = node.output_shape[0], node.channels
        yield Reduction(
            name=node.name,
            channels=channels,
            through=through,
            out=second.output_shape[0],
            kernel=second.kernel,
            direct=second.macs // through * channels,
            first=node.macs,
            second=second.macs,
        )

"""What `bench` found."""

from dataclasses import dataclass

from branchwork.deploy.engines import Engine


@dataclass(frozen=True)
class Timing:
    """The time that one engine takes for a batch, in milliseconds: the median of `runs` runs and both quartiles.

    `macs_per_second` counts the MACs of the net as written, also where a fused net needs fewer, and `share` is that of
    the machine's ceiling in this precision, a fraction; so a fused net may come to more than 1. `difference` is the
    largest between a logit and the same one of the net as written, in eager float32.
    """

    engine: str
    precision: str
    fused: bool
    batch: int
    milliseconds: float
    quartiles: tuple[float, float]
    runs: int
    images_per_second: float
    macs_per_second: float
    share: float
    difference: float


@dataclass(frozen=True)
class Bench:
    """A net's times on this machine. `macs` are those of the net as written, an image.

    `ceilings` are the most MACs a second of a large matrix product by torch, by precision, measured in the same rounds.
    `engines` has those too that could not be timed, with their problem. `latency` is the fastest at the smallest
    batch size, `throughput` has the most images a second at any.
    """

    net: str
    input_shape: tuple[int, int, int]
    parameters: int
    macs: int
    threads: int
    seconds: float
    loads: int
    engines: tuple[Engine, ...]
    ceilings: dict[str, float]
    rows: tuple[Timing, ...]
    latency: Timing
    throughput: Timing
    machine: str
    versions: dict[str, str]
    commit: str | None

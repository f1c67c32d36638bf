"""The table of what is compared: ways to train, and the goals set for them. Nothing here needs torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Row = Literal["inception", "residual", "public", "best", "step", "inference", "pack"]
# The fewest seeds whose mean may be compared.
SEEDS, PUBLIC_SEEDS = 5, 10


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to train one net.

    `changes` are to Branchwork's `recipe`. `rows` are the rows that it is measured for. `seconds` is what one seed
    takes on two cores, `full_seconds` with `--full`: first estimates of the time left. Only `--full` runs `long` ones.
    """

    method: Literal["script", "memory", "public", "branchwork"]
    net: str
    rows: tuple[Row, ...]
    seeds: int
    seconds: float
    full_seconds: float | None = None
    recipe: str = "fast"
    changes: Mapping[str, Any] = field(default_factory=dict)
    long: bool = False

    @property
    def flags(self) -> str:
        """Return the recipe flags of `branchwork train`; empty for the default."""
        recipe = "" if self.recipe == "fast" else f"--recipe {self.recipe}"
        changes = (f"--{key.replace('_', '-')} {value}" for key, value in self.changes.items())
        return " ".join(filter(None, (recipe, *changes)))


# Seeds × seconds add up to eight minutes; with the probes, to ten.
CANDIDATES = {
    # Branchwork's shortest recipes that reach the accuracies stated in GOALS.
    "inception-target": Candidate(
        method="branchwork", net="inception", rows=("inception",), seeds=SEEDS, seconds=8,
        changes={
            "optimizer": "muon", "schedule": "linear", "epochs": 1, "fraction": 0.7509, "validation": 0,
            "batch_size": 512, "learning_rate": 0.02, "warmup": 0.1,
        },
    ),
    "residual-target": Candidate(
        method="branchwork", net="residual", rows=("residual", "public"), seeds=PUBLIC_SEEDS, seconds=5,
        changes={
            "optimizer": "muon", "schedule": "linear", "epochs": 1, "fraction": 0.65, "validation": 0,
            "batch_size": 256, "learning_rate": 0.04, "momentum": 0.6, "warmup": 0.1,
        },
    ),
    # The default recipe.
    "inception-fast": Candidate(method="branchwork", net="inception", rows=("inception",), seeds=3, seconds=15),
    "residual-fast": Candidate(method="branchwork", net="residual", rows=("residual",), seeds=3, seconds=13),
    "best": Candidate(
        method="branchwork", net="residual[width=32,norm=batch]", rows=("best",), seeds=3, seconds=490,
        recipe="best", long=True,
    ),
    # What they are compared with.
    "inception-script": Candidate(
        method="script", net="inception", rows=("inception",), seeds=SEEDS, seconds=14, full_seconds=500
    ),
    "residual-script": Candidate(
        method="script", net="residual", rows=("residual",), seeds=SEEDS, seconds=8, full_seconds=190
    ),
    "inception-memory": Candidate(
        method="memory", net="inception", rows=("inception",), seeds=3, seconds=11, full_seconds=350
    ),
    "residual-memory": Candidate(
        method="memory", net="residual", rows=("residual",), seeds=3, seconds=6, full_seconds=120
    ),
    "public": Candidate(method="public", net="24-32-256", rows=("public",), seeds=PUBLIC_SEEDS, seconds=13),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Goal:
    """An aim: `quick` is to be at least `ratio` times as fast as `slow`.

    The mean test accuracy of `quick` must reach `accuracy`, over at least `seeds` seeds, and its median training may
    take at most `most_seconds`. For the rows of `PROBES`, `slow` and `quick` are names that the probe returns.
    """

    row: Row
    what: str
    what_zh: str
    quick: str
    slow: str | None = None
    ratio: float | None = None
    accuracy: float | None = None
    most_seconds: float = 86_400
    seeds: int = 0


GOALS = (
    Goal(
        row="inception",
        what="inception to 98.7%, against the script's 10 epochs",
        what_zh="inception 训到 98.7%，对课程脚本的 10 轮",
        quick="inception-target", slow="inception-script", ratio=100, accuracy=0.987, seeds=SEEDS,
    ),
    Goal(
        row="residual",
        what="residual to 99.0%, against the script's 10 epochs",
        what_zh="residual 训到 99.0%，对课程脚本的 10 轮",
        quick="residual-target", slow="residual-script", ratio=40, accuracy=0.99, seeds=SEEDS,
    ),
    Goal(
        row="public",
        what="residual to 99.0%, against train_mnist_fast",
        what_zh="residual 训到 99.0%，对 train_mnist_fast",
        quick="residual-target", slow="public", ratio=2.5, accuracy=0.99, seeds=PUBLIC_SEEDS,
    ),
    Goal(
        row="best",
        what="recipe best, in 10 minutes at most",
        what_zh="best 方案，不超过 10 分钟",
        quick="best", accuracy=0.996, most_seconds=600, seeds=3,
    ),
    Goal(
        row="step",
        what="a collapsed training step of inception, batch 512",
        what_zh="inception 合并后的一步训练，batch 512",
        quick="step collapsed", slow="step written", ratio=4,
    ),
    Goal(
        row="inference",
        what="inception fused, best engine, batch 1",
        what_zh="inception 融合后，最快的引擎，batch 1",
        quick="inception batch 1 fused", slow="inception batch 1 written", ratio=4,
    ),
    Goal(
        row="inference",
        what="inception fused, best engine, batch 256",
        what_zh="inception 融合后，最快的引擎，batch 256",
        quick="inception batch 256 fused", slow="inception batch 256 written", ratio=4,
    ),
    Goal(
        row="inference",
        what="GoogLeNet fused, best engine, batch 1",
        what_zh="GoogLeNet 融合后，最快的引擎，batch 1",
        quick="GoogLeNet batch 1 fused", slow="GoogLeNet batch 1 written", ratio=1,
    ),
    Goal(
        row="pack",
        what="an epoch of images from a pack, against decoding the files",
        what_zh="从 pack 读一轮图片，对逐个解码文件",
        quick="epoch from a pack", slow="epoch decoded", ratio=20,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """A module that times something other than trainings, on the `--device` or always on the CPU."""

    module: str
    seconds: float
    on_device: bool


PROBES: dict[Row, Probe] = {
    "step": Probe("benchmarks.step", 25, on_device=True),
    "inference": Probe("benchmarks.inference", 100, on_device=False),
    "pack": Probe("benchmarks.pack", 12, on_device=False),
}

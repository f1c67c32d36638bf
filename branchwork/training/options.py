"""How to run a training: one frozen dataclass, beside the `Recipe`, which says what to train. It needs no torch."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from branchwork.errors import BranchworkError, RecipeError

Execute = Literal["auto", "written", "collapsed"]
Log = Literal["tensorboard"]
RUN_SCRIPT = "Run your script whole, as Python does, instead of reading only what the net needs."


def _about(text: str) -> Any:
    return {"about": text}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a training. Raises `RecipeError` for an impossible value.

    The same seed gives the same weights, bit for bit, on one machine with the same number of CPU threads. `weights` are
    those that the net starts from: a file, a run folder, or `imagenet` for those that torchvision publishes; if the
    number of classes differs, the head is new. With `freeze`, only the head is trained. With `run_script`, a script of
    the user's is run whole, instead of being read. The defaults of `device` and `threads` depend on the machine: a
    checkpoint holds the values that they had when the training began.
    """

    seed: int = field(default=0, metadata=_about("Seed of weights, split and order; 0 by default."))
    device: str = field(default="auto", metadata=_about("cpu, cuda, mps or auto (the default)."))
    threads: int | None = field(
        default=None, metadata=_about("Threads on the CPU; by default as many as there are cores.")
    )
    execute: Execute = field(
        default="auto",
        metadata=_about("written (layer by layer) or collapsed (merged kernels, same result); auto takes the cheaper."),
    )
    compile: bool = field(
        default=False,
        metadata=_about("Compile training steps with torch.compile, which takes a minute or more; off by default."),
    )
    capture: bool = field(
        default=True,
        metadata=_about("On a GPU, record a training step once and replay it as a CUDA graph; on by default."),
    )
    report: bool = field(default=True, metadata=_about("Draw and measure the net for RUN/report.html; on by default."))
    log: Log | None = field(default=None, metadata=_about("Also log to TensorBoard, in RUN/tensorboard."))
    weights: str | None = field(
        default=None,
        metadata=_about(
            "Start from the weights of a run or a file, or from imagenet: those that torchvision publishes."
        ),
    )
    freeze: bool = field(default=False, metadata=_about("With --weights: train only the head, the last linear layer."))
    run_script: bool = field(default=False, metadata=_about(RUN_SCRIPT))

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise RecipeError("seed must be at least 0 and less than 2^63, got {seed}", seed=self.seed)
        if self.execute not in get_args(Execute):
            raise RecipeError(
                "execute must be one of {choices}, got {execute!r}",
                choices=", ".join(get_args(Execute)),
                execute=self.execute,
            )
        if self.log not in (None, *get_args(Log)):
            raise RecipeError("log must be tensorboard or left out, got {log!r}", log=self.log)
        if self.freeze and self.weights is None:
            raise RecipeError(
                "--freeze trains only the head, but the body has no weights yet: give --weights imagenet or FILE"
            )


def check_threads(count: int | None, error: type[BranchworkError]) -> None:
    """Raise `error` if this machine cannot use `count` threads: with far too many, OpenMP dies without a word."""
    most = 4 * (os.cpu_count() or 1)
    if count is not None and not 1 <= count <= most:
        raise error("threads must be from 1 to {most} on this machine, got {count}", most=most, count=count)

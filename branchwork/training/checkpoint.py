"""All that an exact resume needs, in one file of tensors: `last/state.safetensors`."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from branchwork.errors import RecipeError, RunError
from branchwork.files import read_fields
from branchwork.training.recipe import Recipe
from branchwork.training.run import STATE, write_tensors


@dataclass(frozen=True)
class Plan:
    """What a training is: enough to begin it again in another process.

    `checksum` is that of the training data. `size` and `fit` are what people's own pictures were brought to, and how.
    `weights` is the file whose weights the net began with, `normalisation` the mean and standard deviation that they
    expect where those are not the data's; with `freeze`, only the head is trained.
    """

    net: str
    data: str
    checksum: int
    recipe: dict[str, Any]
    seed: int
    device: str
    threads: int
    precision: str
    execute: str
    compile: bool | None
    log: str | None
    size: tuple[int, int] | None = None
    fit: str | None = None
    weights: str | None = None
    freeze: bool = False
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass
class Position:
    """Where a training stands. `step` counts within the epoch; `losses` are those of the epoch so far.

    `step_seconds` is the part of `seconds` that did not go into validation.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.epoch, self.step, self.best_epoch, self.seconds, self.step_seconds)
        if min(counts) < 0 or self.epoch != len(self.history) or self.best_epoch > self.epoch:
            raise ValueError("its counts do not go together")


def save_state(
    folder: Path,
    plan: Plan,
    position: Position,
    net: nn.Module,
    heads: nn.Module,
    optimizer: Optimizer,
    best: dict[str, Tensor],
    average: nn.Module | None,
) -> None:
    tensors = {f"net.{key}": tensor for key, tensor in net.state_dict().items()}
    tensors |= {f"heads.{key}": tensor for key, tensor in heads.state_dict().items()}
    tensors |= {f"best.{key}": tensor for key, tensor in best.items()}
    if average is not None:
        tensors |= {f"average.{key}": tensor for key, tensor in average.state_dict().items()}
    for index, parameter in enumerate((*net.parameters(), *heads.parameters())):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{key}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if plan.device.startswith("cuda"):
        tensors["random.cuda"] = torch.cuda.get_rng_state(plan.device)
    about = {"plan": json.dumps(asdict(plan)), "position": json.dumps(asdict(position))}
    write_tensors(folder / STATE, tensors, about)


@dataclass(frozen=True)
class SavedState:
    plan: Plan
    position: Position
    tensors: dict[str, Tensor]

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def restore(
        self, net: nn.Module, heads: nn.Module, optimizer: Optimizer, average: nn.Module | None
    ) -> dict[str, Tensor]:
        """Put weights, those of auxiliary `heads` too, their average, optimiser and random state back.

        Gives the best weights so far. Raises `RunError` where `net` is no longer the one that was saved.
        """
        best = self._part("best.")
        try:
            net.load_state_dict(best)
            net.load_state_dict(self._part("net."))
            heads.load_state_dict(self._part("heads."))
            if average is not None:
                average.load_state_dict(self._part("average."))
        except RuntimeError as reason:
            raise RunError(f"{self.plan.net} is no longer the net that this training began with: {reason}") from reason
        for index, parameter in enumerate((*net.parameters(), *heads.parameters())):
            for key, value in self._part(f"optimizer.{index}.").items():
                if value.shape not in (parameter.shape, ()) or not value.is_floating_point():
                    raise RunError(f"the saved state is damaged: {key} of parameter {index} is {tuple(value.shape)}")
                # The fused optimisers read raw memory, so moments must lie as their parameter lies.
                like = parameter if value.shape == parameter.shape else value.to(parameter.device)
                optimizer.state[parameter][key] = torch.empty_like(like).copy_(value)
        torch.set_rng_state(self.tensors["random.cpu"])
        if "random.cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors["random.cuda"], self.plan.device)
        return best


def load_state(folder: Path) -> SavedState:
    """Raises `RunError` where the folder has no state to continue from, or a damaged one."""
    path = folder / STATE
    if not os.path.isfile(path):
        raise RunError(
            f"{folder} cannot be continued: {STATE} is missing. Give a folder that branchwork train has made."
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
        plan = read_fields(Plan, json.loads(about["plan"]))
        Recipe(**plan.recipe)
        position = read_fields(Position, json.loads(about["position"]))
        if tensors["random.cpu"].dtype != torch.uint8 or len(tensors["random.cpu"]) != len(torch.get_rng_state()):
            raise ValueError("its random state is not one")
        return SavedState(plan, position, tensors)
    except (safetensors.SafetensorError, OSError, LookupError, TypeError, ValueError, RecipeError) as reason:
        raise RunError(
            f"{path} is damaged ({reason}): the training must be started again, with another --out"
        ) from reason

"""Everything that an exact resume needs, in one file of tensors: `last/state.safetensors`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from branchwork.errors import RunError
from branchwork.files import parse_json, reading, with_format
from branchwork.language import mark, say
from branchwork.tensors import CHECKSUM, read_tensors, write_tensors
from branchwork.training.plan import Plan
from branchwork.training.run import STATE
from branchwork.training.state import TrainState


@dataclass
class Position:
    """The position of a training. `step` counts within the epoch; `losses` are those of the epoch so far.

    `step_seconds` is the part of `seconds` that was not spent on validation, and `capture_seconds` the part of that in
    which CUDA graphs were recorded. `history` has the figures of each epoch.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    capture_seconds: float = 0.0


def save_state(folder: Path, plan: Plan, position: Position, *, state: TrainState, best: Mapping[str, Tensor]) -> None:
    """Write everything that an exact resume needs; `best` are the best weights so far."""
    tensors = {f"net.{key}": tensor for key, tensor in state.net.state_dict().items()}
    tensors |= {f"heads.{key}": tensor for key, tensor in state.heads.state_dict().items()}
    tensors |= {f"best.{key}": tensor for key, tensor in best.items()}
    if state.average is not None:
        tensors |= {f"average.{key}": tensor for key, tensor in state.average.state_dict().items()}
    for index, parameter in enumerate((*state.net.parameters(), *state.heads.parameters())):
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{key}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if plan.options.device.startswith("cuda"):
        tensors["random.cuda"] = torch.cuda.get_rng_state(plan.options.device)
    about = {"plan": json.dumps(with_format(plan)), "position": json.dumps(with_format(position))}
    write_tensors(folder / STATE, tensors, about)


@dataclass(frozen=True)
class SavedState:
    """What `save_state` wrote."""

    plan: Plan
    position: Position
    tensors: dict[str, Tensor]

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def restore(self, state: TrainState) -> dict[str, Tensor]:
        """Put all tensors back into `state`, and torch's random state too; return the best weights so far.

        Raises `RunError` if the net is no longer the one that was saved.
        """
        best = self._part("best.")
        try:
            state.net.load_state_dict(best)
            state.net.load_state_dict(self._part("net."))
            state.heads.load_state_dict(self._part("heads."))
            if state.average is not None:
                state.average.load_state_dict(self._part("average."))
        except RuntimeError as reason:
            raise RunError(
                "{net} is no longer the net that this training started with: {reason}", net=self.plan.net, reason=reason
            ) from reason
        for index, parameter in enumerate((*state.net.parameters(), *state.heads.parameters())):
            for key, value in self._part(f"optimizer.{index}.").items():
                # The fused optimisers read raw memory, so moments must have the memory layout of their parameter.
                like = parameter if value.shape == parameter.shape else value.to(parameter.device)
                state.optimizer.state[parameter][key] = torch.empty_like(like).copy_(value)
        torch.set_rng_state(self.tensors["random.cpu"])
        if "random.cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors["random.cuda"], self.plan.options.device)
        return best


def load_state(folder: Path) -> SavedState:
    """Load the state of a run folder. Raises `RunError` if it is missing or damaged."""
    path = folder / STATE
    if not os.path.isfile(path):
        raise RunError(
            "{folder} cannot be continued: {state} is missing. Give a run folder made by branchwork train.",
            folder=folder,
            state=STATE,
        )
    with reading(path, remedy=_AGAIN):
        tensors, about = read_tensors(path)
        if not {CHECKSUM, "plan", "position"} <= about.keys():
            raise ValueError(say("it is not the state of a training"))
    plan = parse_json(about["plan"], Plan, path, remedy=_AGAIN)
    return SavedState(plan, parse_json(about["position"], Position, path, remedy=_AGAIN), tensors)


_AGAIN = mark("start the training again, with another --out")

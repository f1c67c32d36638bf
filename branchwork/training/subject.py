"""What a NET argument names, for every verb: a run folder, a net of the catalogue, a user's own net, or a module.

Run folders belong to training, so this file is here; `catalogue.resolve`, a layer below, knows the other kinds.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from branchwork.catalogue.builders import NETS
from branchwork.catalogue.resolve import DEFAULT_INPUT, defaults_of, find_builder, short_name
from branchwork.errors import NetError
from branchwork.graph.program import Shape
from branchwork.graph.untouched import alone
from branchwork.language import times
from branchwork.training.run import MODEL, TrainedNet, holds, load_run


@dataclass(frozen=True)
class Subject:
    """A net, its name for tables, and its input C×H×W. `run` is the run whose weights it has, if any."""

    net: nn.Module
    name: str
    input_shape: Shape
    run: TrainedNet | None = None


def is_run(net: str | Path | nn.Module) -> bool:
    """Return whether `net` is a run folder, or a folder that can be nothing else."""
    if isinstance(net, nn.Module):
        return False
    return bool(holds(Path(net), MODEL)) or (str(net) not in NETS and os.path.isdir(net))


def resolve(
    net: str | Path | nn.Module, input_shape: Shape | None = None, *, num_classes: int | None = None
) -> Subject:
    """Return the net that `net` names: a run's in eval mode, a module as it is, any other with weights from seed 0.

    `input_shape` is C×H×W, or whatever else a user's own net takes, without the batch. By default it is what the run
    was trained on or the net was designed for, else 1×28×28; `num_classes` is by default the net's own. Raises
    `NetError`, or `RunError` or `WeightsError` for a damaged run.
    """
    if isinstance(net, nn.Module):
        return Subject(net, type(net).__name__, input_shape or DEFAULT_INPUT)
    if is_run(net):
        run = load_run(net)
        trained_on = run.model.input_shape
        return Subject(run.net, short_name(run.model.net), input_shape or trained_on, run)
    name = str(net)
    defaults = defaults_of(name)
    shape = input_shape or (defaults.input_shape if defaults else DEFAULT_INPUT)
    if defaults and len(shape) != 3:
        raise NetError(
            "the input of {name} must be channels, height and width, such as 1x28x28, got {shape}",
            name=name,
            shape=times(shape),
        )
    channels, image_size = (shape[0], (shape[1], shape[2])) if len(shape) == 3 else (None, None)
    if defaults is None and input_shape is None:
        channels = None  # a net of the user's own keeps its channels
    with alone():
        build = find_builder(name, in_channels=channels, num_classes=num_classes, image_size=image_size)
        torch.manual_seed(0)  # after a script has been read, which may set a seed of its own
        return Subject(build(), short_name(name), shape)

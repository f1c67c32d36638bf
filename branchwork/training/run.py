"""The run folder: one training's recipe, figures, weights and report. Its files appear whole or not at all."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from branchwork.datasets.load import DataSet
from branchwork.errors import NetError, RunError
from branchwork.files import need_writable, write_json, write_whole
from branchwork.nets.build import build_net
from branchwork.nets.weights import load_weights

RECIPE, METRICS, RESULT = "recipe.toml", "metrics.jsonl", "result.json"
WEIGHTS, MODEL, STATE, REPORT = "model.safetensors", "model.json", "last/state.safetensors", "report.html"
SEEDS = "seeds.json"


@dataclass(frozen=True)
class Model:
    """What must be known to use the weights of a run: the net, its input, its classes. It is `model.json`."""

    net: str
    in_channels: int
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: str
    data: str
    recipe: dict[str, Any]

    @classmethod
    def of(cls, net: str, data: DataSet, recipe: dict[str, Any]) -> "Model":
        return cls(
            net,
            data.channels,
            data.image_size,
            data.classes,
            data.mean,
            data.std,
            data.pictures,
            data.name,
            recipe,
        )

    def build(self) -> nn.Module:
        """The net with fresh weights. Raises `NetError` where it does not give one logit for each class."""
        net = build_net(
            self.net, in_channels=self.in_channels, num_classes=len(self.classes), image_size=self.image_size
        )
        _check_output(net, self)
        return net


@dataclass(frozen=True)
class TrainedNet:
    """A net in eval mode with a run's weights, and what it was trained for."""

    net: nn.Module
    model: Model
    folder: Path


def load_run(folder: str | Path) -> TrainedNet:
    """The trained net of a run folder. Raises `RunError` or `WeightsError` where files are missing or damaged."""
    folder = Path(folder)
    path = folder / MODEL
    if not path.exists():
        raise RunError(
            f"{folder} holds no trained net ({MODEL} is missing): give a folder that branchwork train has made"
            + (f", or finish this one with branchwork train --resume {folder}" if (folder / STATE).exists() else "")
        )
    try:
        fields = json.loads(path.read_text())
        tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        model = Model(**tuples)
    except (ValueError, TypeError, AttributeError, OSError) as reason:
        raise RunError(f"{path} is damaged ({reason}): copy the run again, or train again") from reason
    with torch.random.fork_rng(devices=[]):
        net = model.build()
    load_weights(net, folder)
    return TrainedNet(net.eval(), model, folder)


def write_model(folder: Path, weights: dict[str, Tensor], model: Model) -> None:
    write_json(folder / MODEL, dataclasses.asdict(model))
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    write_whole(folder / WEIGHTS, safetensors.torch.save(contiguous))


def claim_folder(out: str | Path | None, default_name: str) -> Path:
    """A folder for a new run: `out`, or the first free `runs/NAME-1`, `-2` and so on.

    Raises `RunError` where `out` holds a run already or cannot be written.
    """
    folder = _first_free(default_name) if out is None else Path(out)
    held = [name for name in (RECIPE, METRICS, RESULT, WEIGHTS, MODEL, STATE, SEEDS) if (folder / name).exists()]
    if held:
        finished = "" if RESULT in held else f"continue it with branchwork train --resume {folder}, or "
        raise RunError(f"{folder} holds another run ({', '.join(held)}): {finished}choose another --out")
    need_writable(folder)
    return folder


def _first_free(name: str) -> Path:
    """Made at once, so that two trainings that start together do not take the same one."""
    number = 0
    while True:
        number += 1
        folder = Path("runs") / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # need_writable says why
        return folder


def _check_output(net: nn.Module, model: Model) -> None:
    """One image through the net, before any work is built upon it."""
    training = net.training
    image = torch.zeros(1, model.in_channels, *model.image_size)
    size = f"1×{model.in_channels}×{model.image_size[0]}×{model.image_size[1]}"
    try:
        with torch.no_grad():
            output = net.eval()(image)
    except NetError:
        raise
    except Exception as reason:  # a learner's own forward may raise anything
        raise NetError(f"{model.net} cannot take an image of {size}: {type(reason).__name__}: {reason}") from reason
    finally:
        net.train(training)
    needed = (1, len(model.classes))
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != needed:
        raise NetError(
            f"{model.net} gives {found} for one image of {size}, and {needed} is needed: "
            f"one tensor with a logit for each of the {len(model.classes)} classes"
        )

"""The keywords of `train` beside its parameters: every field of a recipe and of the options, as its flag is called."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from branchwork.errors import RecipeError, nearest
from branchwork.language import say
from branchwork.synonyms import meant
from branchwork.training.options import Execute, Log, Options


class Keywords(TypedDict, total=False):
    """What the fields of `Recipe` and `Options` are called, and their types: a test keeps them equal."""

    epochs: int
    batch_size: int | Literal["auto"]
    accumulate: int
    optimizer: Literal["adam", "muon", "sgd"]
    learning_rate: float
    momentum: float
    beta2: float
    weight_decay: float
    clip: float
    schedule: Literal["constant", "linear", "onecycle", "steps"]
    warmup: float
    head_epochs: int
    lowest_rate: float
    label_smoothing: float
    auxiliary: float
    shift: float
    pad: int
    rotation: float
    scaling: float
    elastic: float
    erasing: float
    flip: float
    crop: float
    colour: float
    mixup: float
    refine: float
    ema: float
    validation: float
    fraction: float
    patience: int
    minutes: float
    top: int
    batch_norm: Literal["own", "shared"]
    precision: Literal["auto", "fp32", "bf16", "fp64"]
    seed: int
    device: str
    threads: int | None
    execute: Execute
    compile: bool
    capture: bool
    report: bool
    log: Log | None
    weights: str | None
    freeze: bool
    run_script: bool


_OPTIONS = [field.name for field in dataclasses.fields(Options)]


def divide(keywords: Mapping[str, Any], options: Options | None) -> tuple[dict[str, Any], Options]:
    """Divide the keywords into changes of the recipe and `options` with theirs. Raises `RecipeError` for others."""
    for key in keywords:
        if key not in Keywords.__annotations__:
            name = meant(key, Keywords.__annotations__)
            hint = say(" Did you mean {name}?", name=name) if name else nearest(key, Keywords.__annotations__)
            raise RecipeError("train has no keyword {key}.{hint}", key=key, hint=hint)
    changes = {key: value for key, value in keywords.items() if key not in _OPTIONS}
    chosen = {key: value for key, value in keywords.items() if key in _OPTIONS}
    return changes, dataclasses.replace(options or Options(), **chosen)

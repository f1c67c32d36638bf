"""What to train: one frozen dataclass, from keys or a TOML file. It needs no torch."""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args, get_type_hints

from branchwork.errors import RecipeError, nearest, system_words
from branchwork.language import say

# The keys of a recipe that change training images.
AUGMENTATIONS = ("shift", "pad", "rotation", "scaling", "elastic", "erasing", "flip", "crop", "colour", "mixup")
UNCHANGED: dict[str, float] = dict.fromkeys(AUGMENTATIONS, 0.0) | {"pad": 0}

# The schedules that begin with a warm-up unless the recipe says 0.
_RISING = ("linear", "onecycle")


def _about(text: str, **later: Any) -> Any:
    """Return a field; one that is added later has a `default`, which is what the runs that lack it did."""
    return field(metadata={"about": text}, **later)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train a net with. Raises `RecipeError` for an impossible value, naming it.

    `weight_decay` acts only on weights of two or more dimensions: on a bias, or on the scale of a batch norm, it would
    merely change the layer's output (He et al. 2019, section 3.1). With `accumulate`, each image of a batch weighs the
    same whatever part it is in, so the gradient is that of the whole batch; batch norms see only the parts.
    """

    epochs: int = _about("passes over the training images; the default is higher for fewer than 60,000 images")
    batch_size: int | Literal["auto"] = _about("images per optimiser step; auto measures which size fits and is fast")
    accumulate: int = _about("number of parts to split a batch into, if it does not fit in memory at once")
    optimizer: Literal["adam", "muon", "sgd"] = _about(
        "adam (Kingma and Ba 2014), sgd, or muon (Jordan et al. 2024), which needs fewer steps"
    )
    learning_rate: float = _about("the peak learning rate")
    momentum: float = _about("SGD's and Muon's momentum, and Adam's first beta")
    beta2: float = _about("Adam's second beta, with muon that for biases and norms; 0 with sgd, which has none")
    weight_decay: float = _about(
        "L2 penalty on kernels and matrices, not on biases and norms: added to the gradient; decoupled with muon"
    )
    clip: float = _about("largest norm of the gradient: larger ones are scaled down to it; 0 for no limit")
    schedule: Literal["constant", "linear", "onecycle", "steps"] = _about(
        "the learning rate over a run: constant; rising and falling, in straight lines (linear) or half cosines "
        "(onecycle); or divided by 10 after a half and after three quarters of it (steps)"
    )
    warmup: float = _about("share of a run in which the learning rate rises; 0 with a constant schedule")
    head_epochs: int = _about(
        "epochs at the start that train only the head, by a schedule of their own; needs --weights", default=0
    )
    lowest_rate: float = _about(
        "learning rate of the first layers as a share of the head's; in between, it rises by the same factor per layer",
        default=1.0,
    )
    label_smoothing: float = _about("share of the target spread evenly over all classes")
    auxiliary: float = _about("weight of the losses of auxiliary heads, which only googlenet has; 0 for none")
    shift: float = _about("training images are shifted by up to this many pixels in each direction")
    pad: int = _about(
        "training images are padded by this many black pixels on each side and cropped at random, which shifts them "
        "by whole pixels",
        default=0,
    )
    rotation: float = _about("training images are rotated by up to this many degrees in either direction")
    scaling: float = _about("training images are scaled up or down by up to this share")
    elastic: float = _about("elastic distortion of training images: standard deviation of the displacement, in pixels")
    erasing: float = _about("share of the training images in which a rectangle is erased")
    flip: float = _about("share of the training images that are mirrored left to right")
    crop: float = _about("training images are cropped by up to this share of their area, then enlarged")
    colour: float = _about("brightness, contrast and saturation change by up to this share")
    mixup: float = _about(
        "images and their targets are mixed in pairs, by a share drawn from Beta(mixup, mixup); 0 for none"
    )
    refine: float = _about("share of the run, at its end, that trains on undistorted images; 0 for none", default=0.0)
    ema: float = _about(
        "decay of the moving average of the weights, which the run keeps instead of the weights themselves; 0 for none"
    )
    validation: float = _about(
        "share of the training images held out, unless there is a val folder; 0 trains on all and keeps the last epoch"
    )
    fraction: float = _about("share of the remaining training images to train on, in every class; 1 for all")
    patience: int = _about("stop after this many epochs without a better validation accuracy; 0 for never")
    minutes: float = _about("stop after this many minutes, having lowered the learning rate by then; 0 for no limit")
    top: int = _about("number of best epochs whose weights are also kept in top/; 0 for none")
    batch_norm: Literal["own", "shared"] = _about(
        "statistics of batch norms: from each process's own images, or shared by all processes (GPUs only)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp64"] = _about(
        "precision of convolutions and matrix products; auto takes bf16 where the processor has it"
    )

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name, value in dataclasses.asdict(self).items():
            _check_type(name, value, hints[name])
        self._need(self.epochs >= 1, "epochs", "at least 1")
        self._need(self.accumulate >= 1, "accumulate", "at least 1")
        if self.batch_size != "auto":
            self._need(self.batch_size >= 1, "batch_size", "at least 1")
            most = max(1, self.batch_size // 2)
            self._need(self.accumulate <= most, "accumulate", "from 1 to {most} (a part needs two images)", most=most)
        self._need(self.learning_rate > 0, "learning_rate", "above 0")
        self._need(0 <= self.momentum < 1, "momentum", "at least 0 and below 1")
        self._need(0 <= self.beta2 < 1, "beta2", "at least 0 and below 1")
        self._need(self.optimizer != "sgd" or self.beta2 == 0, "beta2", "0 with sgd, which has no second beta")
        self._need(self.weight_decay >= 0, "weight_decay", "at least 0")
        self._need(self.clip >= 0, "clip", "at least 0")
        self._need(0 <= self.warmup < 1, "warmup", "at least 0 and below 1")
        self._need(self.schedule != "constant" or self.warmup == 0, "warmup", "0 with a constant schedule")
        self._need(0 <= self.head_epochs < self.epochs, "head_epochs", "at least 0 and fewer than all epochs")
        self._need(0 < self.lowest_rate <= 1, "lowest_rate", "above 0 and at most 1, as a share of the head's rate")
        self._need(self.optimizer != "muon" or self.lowest_rate == 1, "lowest_rate", "1 with muon, which has one rate")
        self._need(0 <= self.label_smoothing < 1, "label_smoothing", "at least 0 and below 1")
        self._need(self.auxiliary >= 0, "auxiliary", "at least 0")
        self._need(self.shift >= 0, "shift", "at least 0")
        self._need(self.pad >= 0, "pad", "at least 0")
        self._need(0 <= self.rotation <= 180, "rotation", "from 0 to 180 degrees")
        self._need(0 <= self.scaling < 1, "scaling", "at least 0 and below 1")
        self._need(self.elastic >= 0, "elastic", "at least 0")
        self._need(0 <= self.erasing <= 1, "erasing", "from 0 to 1, as a fraction of the images")
        self._need(0 <= self.flip <= 1, "flip", "from 0 to 1, as a fraction of the images")
        self._need(0 <= self.crop < 1, "crop", "at least 0 and below 1, as a fraction of the area")
        self._need(0 <= self.colour < 1, "colour", "at least 0 and below 1")
        self._need(0 <= self.mixup <= 100, "mixup", "from 0 to 100")
        self._need(0 <= self.refine < 1, "refine", "at least 0 and below 1, as a fraction of the run")
        changes = any(getattr(self, name) for name in AUGMENTATIONS)
        self._need(changes or self.refine == 0, "refine", "0 when no image is augmented")
        self._need(0 <= self.ema < 1, "ema", "at least 0 and below 1")
        self._need(0 <= self.validation < 1, "validation", "at least 0 and below 1, as a fraction of the images")
        self._need(0 < self.fraction <= 1, "fraction", "above 0 and at most 1, as a fraction of the images")
        self._need(self.minutes >= 0, "minutes", "at least 0")
        for name in ("patience", "top"):
            self._need(getattr(self, name) >= 0, name, "at least 0")
            self._need(
                self.validation > 0 or getattr(self, name) == 0, name, "0 when no images are held out for validation"
            )

    def _need(self, holds: bool, name: str, needed: str, **values: object) -> None:
        if not holds:
            words, value = say(needed, **values), getattr(self, name)
            raise RecipeError("{name} must be {needed}, got {value}", name=name, needed=words, value=value)

    @property
    def images_per_step(self) -> int:
        """`batch_size` as a number: `make_plan` replaces `auto`."""
        assert self.batch_size != "auto"
        return self.batch_size

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate after the fraction `progress` (0 to 1) of all steps.

        With a warm-up, it starts at 1/25 of the peak. `onecycle` rises by a half cosine and falls to nearly 0 by
        another (Smith and Topin 2018, as in torch's OneCycleLR); `linear` rises and falls along straight lines, which
        suits short trainings better (Bergsma et al. 2025, "Straight to zero"). `steps` is that of He et al. 2015,
        section 4.2: a tenth from the middle of the run on, and a hundredth in its last quarter. The epochs that train
        only the head, and the others, each have a schedule of their own.
        """
        if self.schedule == "constant":
            return self.learning_rate
        first = self.head_epochs / self.epochs
        progress = progress / first if progress < first else (progress - first) / (1 - first)
        change = _half_cosine if self.schedule == "onecycle" else _line
        if progress < self.warmup:
            return change(self.learning_rate / 25, self.learning_rate, progress / self.warmup)
        if self.schedule == "steps":
            return self.learning_rate / (1 if progress < 0.5 else 10 if progress < 0.75 else 100)
        return change(self.learning_rate, 0, (progress - self.warmup) / (1 - self.warmup))

    def progress(self, share: float, seconds: float) -> float:
        """Return the progress of a training, 0 to 1, after the `share` of its steps and `seconds` of training.

        With `minutes`, it is the larger of the shares of steps and of time, so that the learning rate is down
        when the time is up. Such a training depends on the speed of the machine and cannot be repeated bit for bit.
        """
        return min(1.0, max(share, seconds / (60 * self.minutes))) if self.minutes else share

    def at(self, progress: float) -> Self:
        """Return the recipe that applies after the fraction `progress` of all steps.

        Distorted images differ from those that the net will meet. With only real images in the last part of a run, it
        learns from both (He et al. 2019, "Data Augmentation Revisited", arXiv 1909.09148).
        """
        return self._without_changes if self.refine and progress >= 1 - self.refine else self

    @cached_property  # read at every step
    def _without_changes(self) -> Self:
        return self.but(UNCHANGED | {"refine": 0.0})

    def out_of_time(self, seconds: float) -> bool:
        """Return whether `minutes` are up after `seconds` of training, including validation but not the test."""
        return self.minutes > 0 and seconds >= 60 * self.minutes

    def out_of_patience(self, accuracies: Sequence[float]) -> bool:
        """Return whether none of the last `patience` epochs improved, given each epoch's validation accuracy."""
        if not self.patience or not accuracies:
            return False
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= self.patience

    def ema_at(self, step: int) -> float:
        """Return the decay of the averaged weights after `step` steps: lower at first, to forget the start."""
        return min(self.ema, (1 + step) / (10 + step))

    def but(self, changes: Mapping[str, Any]) -> Self:
        """Return this recipe with `changes`. Raises `RecipeError` for an unknown key.

        A change between sgd and another `optimizer` also sets `beta2` to its usual value, and one between a `schedule`
        that begins with a warm-up and one that does not sets `warmup`, unless they are given as well. Of another
        number of `epochs` the same share trains only the head, but at least one, and one trains all.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                raise RecipeError("a recipe has no key {key!r}.{hint}", key=key, hint=nearest(key, known))
        follow: dict[str, Any] = {}
        optimizer = changes.get("optimizer", self.optimizer)
        if (optimizer == "sgd") != (self.optimizer == "sgd"):
            follow["beta2"] = 0.0 if optimizer == "sgd" else 0.999
        schedule = changes.get("schedule", self.schedule)
        if (schedule in _RISING) != (self.schedule in _RISING):
            follow["warmup"] = 0.3 if schedule in _RISING else 0.0
        epochs = changes.get("epochs", self.epochs)
        if self.head_epochs and isinstance(epochs, int) and epochs > 0:
            alike = round(self.head_epochs * epochs / self.epochs)
            follow["head_epochs"] = min(max(1, alike), epochs - 1)
        return dataclasses.replace(self, **follow | dict(changes))

    def to_toml(self) -> str:
        # JSON's numbers and strings are TOML's as well.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in dataclasses.asdict(self).items())


def read_recipe(path: Path, base: Recipe, flags: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """Return `base` with the keys of the TOML file at `path`, and with `flags`, which override them."""
    try:
        return base.but(tomllib.loads(path.read_text(encoding="utf-8-sig")) | dict(flags))
    except OSError as reason:
        raise RecipeError(
            "cannot read the recipe {path}: {strerror}", path=path, strerror=system_words(reason)
        ) from reason
    except (ValueError, RecursionError) as reason:
        raise RecipeError("{path} is not valid TOML: {reason}", path=path, reason=reason) from reason
    except RecipeError as reason:
        raise RecipeError(
            "{path} and the flags: {reason}" if flags else "{path}: {reason}", path=path, reason=reason
        ) from reason


def _check_type(name: str, value: object, hint: Any) -> None:
    choices = get_args(hint)
    if int in choices:  # or a word
        words = get_args(choices[1])
        if value not in words:
            _check_type(name, value, int)
        return
    if choices:
        if value not in choices:
            raise RecipeError(
                "{name} must be one of {choices}, got {value!r}", name=name, choices=", ".join(choices), value=value
            )
        return
    kinds = (int, float) if hint is float else hint
    finite = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 1e18  # a NaN is not
    if not finite:
        raise RecipeError(
            "{name} must be {kind}, got {value!r}",
            name=name,
            kind=say("an integer") if hint is int else say("a number"),
            value=value,
        )


def _line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

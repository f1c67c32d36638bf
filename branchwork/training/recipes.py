"""The recipes that have a name, and the one that a learner's script has itself. It needs no torch."""

import math
import re
from typing import Any

from branchwork.errors import RecipeError, nearest
from branchwork.training.habits import read_habits
from branchwork.training.recipe import UNCHANGED, Recipe

# The name of the recipe that a script itself has.
OWN = "script"
# The nets of the catalogue that are made for large pictures.
_FOR_IMAGENET = re.compile(r"googlenet|(resnet|plain|preact)(18|34|50|101|152)\b|densenet(121|161|169|201)\b")
# The nets of the catalogue that have norms.
_NORMED = re.compile(r"googlenet|(resnet|plain|preact|densenet)\d+")
# Handwriting varies from hand to hand.
_HANDWRITING: dict[str, Any] = {"shift": 2.0, "rotation": 10.0, "scaling": 0.1, "elastic": 1.0}


def _name(net: str) -> str:
    """Return the name of a net without its options: `residual[norm=batch]` and `residual:norm=batch` are `residual`."""
    return re.split(r"[\[:]", net)[0]


def fast(net: str = "inception", images: int = 60_000) -> Recipe:
    """Return the default recipe: high accuracy in seconds, tuned on validation images.

    See docs/experiments/training.md. With fewer than 60,000 training `images` it takes more epochs, by the square root
    of the ratio.
    """
    return Recipe(
        epochs=max(2, round(2 * math.sqrt(60_000 / images))),
        batch_size=256,
        accumulate=1,
        optimizer="adam",
        learning_rate=0.01 if _name(net) == "residual" else 0.005,
        momentum=0.7,
        beta2=0.9,
        weight_decay=0.0,
        clip=0.0,
        schedule="onecycle",
        warmup=0.2,
        label_smoothing=0.0,
        auxiliary=0.0,
        **UNCHANGED,  # type: ignore[arg-type]  # pad is an integer
        ema=0.0,
        validation=0.1,
        fraction=1.0,
        patience=0,
        minutes=0.0,
        top=0,
        batch_norm="own",
        precision="auto",
    )


def course(net: str = "inception", images: int = 60_000) -> Recipe:
    """Return the lecture's recipe: batch 64, SGD 0.01 with momentum 0.5, ten epochs on all training images."""
    del net, images  # one recipe for both nets and any data
    return fast().but(
        {
            "epochs": 10,
            "batch_size": 64,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "momentum": 0.5,
            "schedule": "constant",
            "validation": 0.0,
            "precision": "fp32",
        }
    )


def best(net: str = "residual", images: int = 60_000) -> Recipe:
    """Return the recipe with the highest accuracy in ten minutes on two cores, tuned on validation images.

    See docs/experiments/training.md. It trains on all images, at the end without augmentation, and keeps the averaged
    weights. It works best with `residual[width=32,norm=batch]`. With fewer than 60,000 training `images` it takes more
    epochs, by the square root of the ratio.
    """
    return fast(net, images).but(
        {
            "epochs": max(2, round(14 * math.sqrt(60_000 / images))),
            "learning_rate": 0.005,
            "momentum": 0.9,
            "beta2": 0.99,
            "schedule": "linear",
            "label_smoothing": 0.1,
            "ema": 0.999,
            "validation": 0.0,
            "refine": 0.3,
            **_HANDWRITING,
        }
    )


def fast_photos(net: str = "resnet20", images: int = 60_000) -> Recipe:
    """Return a recipe for colour pictures and few epochs, tuned on validation images.

    Muon learns more in these epochs than Adam or SGD: see docs/experiments/training.md. The lecture's nets and a user's
    own, which may have no norms, learn at a quarter of the rate. Pictures are mirrored, and for nets for ImageNet
    cropped and coloured as in `photos`, for all others shifted by up to four pixels (He et al. 2015, section 4.2). With
    fewer than 60,000 training `images` it takes more epochs, by the square root of the ratio.
    """
    varied = {"crop": 0.5, "colour": 0.2} if _FOR_IMAGENET.match(net) else {"pad": 4}
    return fast(net, images).but(
        {
            "epochs": max(10, round(10 * math.sqrt(60_000 / images))),
            "batch_size": 128,
            "optimizer": "muon",
            "learning_rate": 0.02 if _NORMED.fullmatch(_name(net)) else 0.005,
            "momentum": 0.9,
            "weight_decay": 0.05,
            "flip": 0.5,
            **varied,
        }
    )


def photos(net: str = "resnet18", images: int = 60_000) -> Recipe:
    """Return a recipe for photographs and nets with batch norms (He et al. 2016, section 4.2; He et al. 2019).

    Flips, crops and colour, smoothed labels, SGD with momentum and weight decay, warm-up and a half cosine. A net
    without norms needs a learning rate ten times lower. With fewer than 60,000 training `images` it takes more epochs,
    by the square root of the ratio. GoogLeNet gets its auxiliary heads, as in its paper. The values are those of the
    papers, not tuned, except for milder crops and colours.
    """
    return fast(net, images).but(
        {
            "epochs": max(10, round(30 * math.sqrt(60_000 / images))),
            "batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "warmup": 0.1,
            "label_smoothing": 0.1,
            "auxiliary": 0.3 if _name(net) == "googlenet" else 0.0,
            "flip": 0.5,
            "crop": 0.5,
            "colour": 0.2,
        }
    )


def digits(net: str = "resnet20", images: int = 60_000) -> Recipe:
    """Return `photos` for digits, letters and signs: images are distorted and shifted as in `best`, never mirrored."""
    unlike = {"flip": 0.0, "crop": 0.0, "colour": 0.0, "label_smoothing": 0.0}
    return photos(net, images).but(unlike | _HANDWRITING)


def finetune(net: str = "resnet18", images: int = 60_000) -> Recipe:
    """Return a recipe for a net that starts from weights trained on other images: first its head, then all of it.

    A new head would send large gradients into a body that is good already, so that it first learns alone (Kumar et al.
    2022, "Fine-Tuning can Distort Pretrained Features", section 3.4). Then lower layers, which are more general, learn
    at lower rates, down to a hundredth (Howard and Ruder 2018, section 3.2; a stage of a ResNet at 1/2.5 of the next,
    there 1/2.6). Each part has a cycle of its own, as in fastai's `fine_tune` (Howard and Gugger 2020, section 3.1).
    SGD with momentum, small batches and smoothed labels, flips, crops and colour. With fewer than 60,000 training
    `images` it takes more epochs, by the square root of the ratio, but fewer than a net from scratch (Kornblith et al.
    2019, section 4.7).
    """
    epochs = max(5, round(2 * math.sqrt(60_000 / images)))
    return photos(net, images).but(
        {
            "epochs": epochs,
            "batch_size": 32,
            "learning_rate": 0.05,
            "weight_decay": 0.0001,
            "warmup": 0.3,
            "head_epochs": max(1, round(epochs / 5)),
            "lowest_rate": 0.01,
            "auxiliary": 0.0,
        }
    )


def own(net: str) -> Recipe:
    """Return what the script of `net` trains with itself: `course`, with what its code says instead.

    Raises `RecipeError` if the script does not say it in numbers, or says what no recipe can do.
    """
    habits = read_habits(net)
    if habits is None:
        raise RecipeError("no optimiser was found in {net}: --recipe script needs a script that trains", net=net)
    if not habits.is_supported:
        raise RecipeError(
            "the script trains with {habits}, but no recipe has {optimizer}: choose --recipe course, and --optimizer "
            "adam or sgd",
            habits=habits,
            optimizer=habits.optimizer,
        )
    if habits.unread:
        raise RecipeError(
            "{arguments} of {optimizer} in {net} cannot be carried into a recipe: choose --recipe course, and set what "
            "you need with flags such as --learning-rate and --momentum",
            net=net,
            optimizer=habits.optimizer,
            arguments=", ".join(habits.unread),
        )
    return course().but(habits.fields)


def named(name: str, net: str, images: int) -> Recipe:
    """Return the recipe called `name` for `net` and a number of training images. Raises `RecipeError`."""
    if name == OWN:
        return own(net)
    if name not in RECIPES:
        hint = nearest(name, (*RECIPES, OWN))
        raise RecipeError("there is no recipe called {recipe!r}.{hint}", recipe=name, hint=hint)
    return RECIPES[name](net, images)


RECIPES = {
    "fast": fast,
    "course": course,
    "best": best,
    "fast-photos": fast_photos,
    "photos": photos,
    "digits": digits,
    "finetune": finetune,
}
# Whose learning rates need a net with norms.
NORMED = ("photos", "digits")

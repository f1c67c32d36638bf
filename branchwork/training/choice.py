"""What to train where the user leaves it open: a net that suits the pictures, and its recipe."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from branchwork.catalogue.published import IMAGENET
from branchwork.catalogue.resolve import find_builder, with_options
from branchwork.datasets.dataset import DataSet
from branchwork.errors import NetError, RecipeError
from branchwork.files import typed
from branchwork.graph.untouched import alone
from branchwork.language import say, times
from branchwork.observer import Observer
from branchwork.training.recipe import AUGMENTATIONS, Recipe, read_recipe
from branchwork.training.recipes import NORMED, digits, finetune, named

# Up to this side, pictures keep their size in the first layers of a net; larger ones are halved twice at once.
SMALL_SIDE = 48
# The net for a user's own pictures that starts from published weights: as for large pictures, since they have its stem.
PRETRAINED = "resnet18:stem=large"
# Of the epochs that would make a better net, the share it trains for if the user has chosen neither net nor recipe.
SHARE = 0.25
# Fewer validation images than this cannot tell one epoch from another: the one that they choose is chosen by chance.
FEW_IMAGES = 200


def choose_net(data: DataSet) -> str:
    """Return the net that suits the size of the pictures; both cost about as much for theirs."""
    return "resnet20" if max(data.image_size) <= SMALL_SIDE else "resnet18:stem=large"


def choose(
    net: str | None,
    recipe: str | Recipe | None,
    data: DataSet,
    *,
    changes: Mapping[str, Any],
    config: Path | None = None,
    weights: str | None = None,
    observer: Observer,
) -> tuple[str, Recipe]:
    """Return the net and the recipe to train, the latter with `changes` and, before them, those of the file `config`.

    A recipe's name stands for that recipe for the net and the number of images. The default is `fast`, on CIFAR-10
    `fast-photos`, or `finetune` for a net that starts from `weights`. Without a net, one is chosen for pictures of the
    user's own; else it is `inception`. `observer` is told of each choice but `fast` and `inception`. Raises
    `RecipeError` if the net cannot be trained by the recipe.
    """
    if net is None and data.path is not None:
        if weights is None:
            return _choose_both(recipe, data, changes=changes, config=config, observer=observer)
        net = PRETRAINED if weights == IMAGENET else choose_net(data)
    net = net or "inception"
    if recipe is None and weights is not None:
        tuning = _changed(_finetuning(net, data), changes, config)
        observer.note(_why_finetune(net, tuning))
        return net, tuning
    is_cifar10 = data.name == "cifar10" and data.path is None
    base = _called(recipe or ("fast-photos" if is_cifar10 else "fast"), net, data)
    chosen = _changed(base, changes, config)
    if recipe is None and is_cifar10:
        observer.note(
            say(
                "CIFAR-10 uses the recipe fast-photos: {epochs} epochs; --recipe fast is shorter",
                epochs=chosen.epochs,
            )
        )
    if isinstance(recipe, str) and recipe in NORMED and chosen.learning_rate == base.learning_rate:
        _check_norms(net, recipe, base.learning_rate, data)
    return net, chosen


def _choose_both(
    recipe: str | Recipe | None,
    data: DataSet,
    *,
    changes: Mapping[str, Any],
    config: Path | None,
    observer: Observer,
) -> tuple[str, Recipe]:
    """Return a net for `data`, with a share of the epochs of a recipe for it unless a `recipe` is given; tell both.

    Where validation images would be few, none are held out.
    """
    net = choose_net(data)
    suits = "fast-photos" if data.channels == 3 else "digits"  # grey pictures may show signs, which are never mirrored
    whole = _called(recipe or suits, net, data)
    longer = whole.epochs if suits == "digits" else round(whole.epochs / SHARE)  # fast-photos is short already
    short, flags = whole.but({"epochs": max(10, round(SHARE * longer))}), ""
    if data.validation is None and whole.validation * len(data.train) < FEW_IMAGES:
        short, flags = short.but({"validation": 0.0}), " --validation 0"
    chosen = _changed(whole if recipe else short, changes, config)
    observer.note(_why(net, chosen, data))
    if recipe is None and chosen.epochs == short.epochs < longer:
        folder = data.report.folder if data.report else data.argument
        flags += f" --epochs {longer}" if longer != whole.epochs else ""
        command = f"branchwork train {net} --data {typed(folder)} --recipe {suits}{flags}"
        observer.note(say("better with more time, {epochs} epochs: {command}", epochs=longer, command=command))
    return net, chosen


def _finetuning(net: str, data: DataSet) -> Recipe:
    """Return the recipe for a net that starts from weights; grey pictures, which may show signs, change as digits."""
    recipe, grey = finetune(net, len(data.train)), digits(net, len(data.train))
    return recipe if data.channels == 3 else recipe.but({name: getattr(grey, name) for name in AUGMENTATIONS})


def _why_finetune(net: str, recipe: Recipe) -> str:
    """Return why a net that starts from weights is trained by another recipe than one from scratch."""
    return say(
        "{net} starts from weights, so it is fine-tuned (--recipe finetune): only the head in the first {head} of "
        "{epochs} epochs, then every layer, the lower ones more slowly"
        if recipe.head_epochs and recipe.lowest_rate < 1
        else "{net} starts from weights, so it is fine-tuned (--recipe finetune)",
        net=net,
        head=recipe.head_epochs,
        epochs=recipe.epochs,
    )


def _called(recipe: str | Recipe, net: str, data: DataSet) -> Recipe:
    return named(recipe, net, len(data.train)) if isinstance(recipe, str) else recipe


def _changed(base: Recipe, changes: Mapping[str, Any], config: Path | None) -> Recipe:
    return base.but(changes) if config is None else read_recipe(config, base, changes)


def _why(net: str, recipe: Recipe, data: DataSet) -> str:
    """Return which net was chosen for `data`, and why."""
    return say(
        "chosen for {images:,} pictures of {shape}: {net}, whose first layers keep the size of small pictures, and "
        "{epochs} epochs"
        if max(data.image_size) <= SMALL_SIDE
        else "chosen for {images:,} pictures of {shape}: {net}, whose first layers halve large pictures twice, and "
        "{epochs} epochs",
        net=net,
        epochs=recipe.epochs,
        shape=times(data.image_shape),
        images=len(data.train),
    )


def _check_norms(net: str, recipe: str, rate: float, data: DataSet) -> None:
    """Raise `RecipeError` if `net` has no norms: at the learning rate of `recipe` its loss would leap."""
    with alone():
        built = find_builder(
            net, in_channels=data.channels, num_classes=len(data.classes), image_size=data.image_size
        )()
    if any("norm" in type(module).__name__.lower() for module in built.modules()):
        return
    fitting = [choose_net(data)]
    with suppress(NetError):
        normed = with_options(net, {"norm": "batch"})
        find_builder(normed, in_channels=None, num_classes=None, image_size=None)
        fitting.insert(0, normed)
    raise RecipeError(
        "the recipe {recipe} needs a net with normalisation layers for its learning rate of {rate:g}, and {net} has "
        "none: take {fitting}, another resnet, a densenet or googlenet; or keep {net} and take another recipe, or "
        "--learning-rate {lower:g}",
        recipe=recipe,
        rate=rate,
        net=net,
        fitting=", ".join(fitting),
        lower=rate / 10,
    )

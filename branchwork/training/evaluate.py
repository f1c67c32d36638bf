"""Evaluate a trained net, class by class, with its most confident mistakes."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from branchwork.catalogue.resolve import short_name
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import is_path, load_data
from branchwork.datasets.sheet import draw_sheet, shorten
from branchwork.errors import DataError, RecipeError
from branchwork.figures import check_drawing, legible
from branchwork.language import say, times
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.shown import Shown
from branchwork.training.calibration import Calibration, calibrate, draw_reliability
from branchwork.training.infer import pick_device, predict_logits
from branchwork.training.run import Model, load_run

WORST = 24
# With more classes than this, the accuracy of the five most probable ones is given too.
FEW_CLASSES, USUAL_TOP = 10, 5
# With more, nobody could read the confusion matrix.
MOST_CLASSES = 100
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class ClassFigures:
    """The figures of one class, as fractions, and its number of images. A ratio of 0/0 is 0, as in scikit-learn."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Mistake:
    """One misclassified test image: its index, both classes, and the probability of the predicted one."""

    index: int
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Evaluation(Shown):
    """The performance of a net on test images. Accuracies are fractions; `interval` is the 95% Wilson interval.

    `confusion` counts images by true class, then by predicted class. `worst` are the most confident mistakes,
    most confident first. `top_accuracy` is the share of images whose class is among the `top` most probable ones; both
    are None if it was not asked for and there are few classes.
    """

    net: str
    data: str
    images: int
    accuracy: float
    interval: tuple[float, float]
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    worst: tuple[Mistake, ...]
    calibration: Calibration
    top: int | None
    top_accuracy: float | None


def evaluate(
    run: str | Path,
    *,
    data: str | None = None,
    top: int | None = None,
    source: Path | None = None,
    draw: Path | None = None,
    progress: bool | Observer = False,
) -> Evaluation:
    """Evaluate the net of a run folder on the test images of `data`, by default of the data it was trained on.

    Classes are matched by name. Also counted is how often the true class is among the `top` most probable ones, by
    default 5 if there are more than ten classes. With `draw`, the most confident mistakes, if any, are drawn into that
    file, beside a diagram of whether its probabilities can be believed. A GPU is used if there is one. Raises
    `DataError` if the classes or the images do not match the net's, `RecipeError` for an impossible `top`, and
    `RunError`, before anything is evaluated, if the picture cannot be written.
    """
    trained = load_run(run)
    if top is not None and not 1 <= top <= len(trained.model.classes):
        raise RecipeError(
            "top must be from 1 to {classes}, the number of classes, got {top}",
            classes=len(trained.model.classes),
            top=top,
        )
    if draw is not None:
        check_drawing(draw)
    data_set = load_for(trained.model, data, source, observer=watch(progress))
    evaluation = evaluate_net(trained.net.to(pick_device("auto")), trained.model, data_set, top=top)
    if draw is not None and evaluation.worst:
        with legible(draw):
            draw_mistakes(draw, evaluation, data_set)
    return evaluation


def load_for(model: Model, data: str | None, source: Path | None, *, observer: Observer) -> DataSet:
    """Load `data`, by default what the net was trained on, with pictures placed as in its training.

    Raises `DataError` if the classes, by name, or the images do not match the net's.
    """
    name = data or model.data
    if is_path(name):
        loaded = load_data(
            name,
            source=source,
            size=model.image_size,
            fit=model.pictures,
            channels=model.in_channels,
            progress=observer,
        )
    else:
        loaded = load_data(name, source=source, progress=observer).expand(model.in_channels)
    check_match(model, loaded)
    return loaded


def evaluate_net(net: nn.Module, model: Model, data: DataSet, *, top: int | None = None) -> Evaluation:
    """Evaluate `net` on the test images of `data`, in float32."""
    if top is None and len(model.classes) > FEW_CLASSES:
        top = USUAL_TOP
    probabilities = predict_logits(net, data.test.images, model).softmax(1)
    confidence, predicted = probabilities.max(1)
    labels = labels_of(data.test, data, model)
    confusion = confusion_matrix(labels, predicted, len(model.classes))
    correct, total = int(confusion.trace()), len(labels)
    return Evaluation(
        net=model.net,
        data=data.name,
        images=total,
        accuracy=correct / total,
        interval=wilson_interval(correct, total),
        classes=per_class(confusion, model.classes),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        worst=_worst(labels, predicted, confidence, classes=model.classes),
        calibration=calibrate(confidence, predicted == labels),
        top=top,
        top_accuracy=None if top is None else _top_accuracy(probabilities, labels, top),
    )


def _top_accuracy(probabilities: Tensor, labels: Tensor, top: int) -> float:
    among = probabilities.topk(top).indices == labels[:, None]
    return float(among.any(1).double().mean())


def draw_mistakes(path: Path, evaluation: Evaluation, data: DataSet) -> None:
    worst = evaluation.worst
    captions = [f"{shorten(m.true, 10)} → {shorten(m.predicted, 10)}\n{m.probability:.0%}" for m in worst]
    title = say(
        "{net} on {data}: most confident mistakes (true → predicted, probability)",
        net=short_name(evaluation.net),
        data=evaluation.data,
    )
    reliability = partial(draw_reliability, calibration=evaluation.calibration)
    draw_sheet(path, data.test.images[[m.index for m in worst]], captions, title=title, beside=reliability)


def _worst(labels: Tensor, predicted: Tensor, confidence: Tensor, *, classes: tuple[str, ...]) -> tuple[Mistake, ...]:
    wrong = (predicted != labels).nonzero()[:, 0]
    first = wrong[confidence[wrong].argsort(descending=True, stable=True)[:WORST]]
    return tuple(
        Mistake(i, classes[int(labels[i])], classes[int(predicted[i])], float(confidence[i])) for i in first.tolist()
    )


def check_match(model: Model, data: DataSet) -> None:
    """Raise `DataError` if the classes, by name, or the images of `data` do not match the net's."""
    if set(data.classes) != set(model.classes):
        only_net, only_data = set(model.classes) - set(data.classes), set(data.classes) - set(model.classes)
        raise DataError(
            "the classes of {name} differ from those that {net} was trained on ({data}):\n"
            "  only in the net: {only_net}\n"
            "  only in {name}: {only_data}\n"
            "Use data with the same class names, or train a net on these.",
            name=data.name,
            net=model.net,
            data=model.data,
            only_net=", ".join(sorted(only_net)) or "–",
            only_data=", ".join(sorted(only_data)) or "–",
        )
    found, needed = data.image_shape, model.input_shape
    if found != needed:
        raise DataError(
            "the images of {name} are {found}, but {net} takes {needed}",
            name=data.name,
            found=times(found),
            net=model.net,
            needed=times(needed),
        )


def labels_of(split: Split, data: DataSet, model: Model) -> Tensor:
    """Return the labels of a split of `data` as indices of the net's classes, by name: their order may differ."""
    return torch.tensor([model.classes.index(name) for name in data.classes])[split.labels]


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95% interval of a proportion (Wilson 1927), which holds near 0 and 1, where ±1.96·SE does not."""
    share, z2 = correct / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # At 0 and 1 the bound is exact, and rounding must not push it past.
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == total else centre + half)


def paired_interval(lost: int, gained: int, total: int) -> tuple[float, float]:
    """Return the 95% interval of (lost − gained) / total, the change of accuracy on the same images.

    `lost` images were right before and are wrong after, `gained` the other way round. After Bonett and Price 2012,
    equation 2: Wald's interval for paired proportions with one image added to both counts, so that it holds for few
    images too, and is not empty where nothing changes.
    """
    total += 2
    down, up = (lost + 1) / total, (gained + 1) / total
    change = down - up
    half = Z_95 * math.sqrt((down + up - change**2) / total)
    return max(-1.0, change - half), min(1.0, change + half)


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Return counts, int64 K×K: rows are true classes, columns predicted ones."""
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)


def per_class(confusion: Tensor, names: tuple[str, ...]) -> tuple[ClassFigures, ...]:
    figures = []
    for index, name in enumerate(names):
        hit = int(confusion[index, index])
        images, claimed = int(confusion[index].sum()), int(confusion[:, index].sum())
        figures.append(
            ClassFigures(
                name,
                images,
                precision=hit / claimed if claimed else 0.0,
                recall=hit / images if images else 0.0,
                f1=2 * hit / (images + claimed) if images + claimed else 0.0,
            )
        )
    return tuple(figures)

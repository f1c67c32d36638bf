"""Evaluate a trained net, class by class, with its most confident mistakes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import is_path, load_data
from branchwork.datasets.sheet import check_sheet, draw_sheet, shorten
from branchwork.errors import DataError
from branchwork.nets.resolve import short_name
from branchwork.observer import Observer
from branchwork.training.infer import predict_logits
from branchwork.training.metrics import ClassFigures, confusion_matrix, per_class, wilson_interval
from branchwork.training.run import Model, load_run

WORST = 24


@dataclass(frozen=True)
class Mistake:
    """One misclassified test image: its index, both classes, and the probability of the predicted one."""

    index: int
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """How well a net does on test images. Accuracies are fractions; `interval` is the 95% Wilson interval.

    `confusion` counts images by true class, then by predicted class. `worst` are the most confident mistakes, the most
    confident first.
    """

    net: str
    data: str
    images: int
    accuracy: float
    interval: tuple[float, float]
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    worst: tuple[Mistake, ...]


def evaluate(
    run: str | Path,
    *,
    data: str | None = None,
    source: Path | None = None,
    picture: Path | None = None,
    observer: Observer | None = None,
) -> Evaluation:
    """Evaluate the net of a run folder on the test images of `data`, by default of the data it was trained on.

    Classes are matched by name. With `picture`, the most confident mistakes, if any, are drawn into that file. Raises
    `DataError` if the classes or the images do not match the net's, and `RunError`, before anything is evaluated, if
    the picture cannot be written.
    """
    trained = load_run(run)
    if picture is not None:
        check_sheet(picture)
    data_set = load_for(trained.model, data, source, observer=observer)
    evaluation = evaluate_net(trained.net, trained.model, data_set)
    if picture is not None and evaluation.worst:
        draw_mistakes(picture, evaluation, data_set)
    return evaluation


def load_for(model: Model, data: str | None, source: Path | None, *, observer: Observer | None) -> DataSet:
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
            observer=observer,
        )
    else:
        loaded = load_data(name, source=source, observer=observer)
    check_match(model, loaded)
    return loaded


def evaluate_net(net: nn.Module, model: Model, data: DataSet) -> Evaluation:
    """Evaluate `net` on the test images of `data`, in float32."""
    probabilities = predict_logits(net, data.test.images, model).softmax(1)
    confidence, predicted = probabilities.max(1)
    # Class numbers of the net, by name: a data set may order its classes differently.
    numbers = torch.tensor([model.classes.index(name) for name in data.classes])
    labels = numbers[data.test.labels]
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
    )


def draw_mistakes(path: Path, evaluation: Evaluation, data: DataSet) -> None:
    worst = evaluation.worst
    captions = [f"{shorten(m.true, 10)} → {shorten(m.predicted, 10)}\n{m.probability:.0%}" for m in worst]
    title = (
        f"{short_name(evaluation.net)} on {evaluation.data}: most confident mistakes (true → predicted, probability)"
    )
    draw_sheet(path, data.test.images[[m.index for m in worst]], captions, title=title)


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
            f"the classes of {data.name} are not those that {model.net} was trained on ({model.data}):\n"
            f"  only in the net: {', '.join(sorted(only_net)) or 'none'}\n"
            f"  only in {data.name}: {', '.join(sorted(only_data)) or 'none'}\n"
            "Take data with the same class names, or train a net on these."
        )
    found, needed = (data.channels, *data.image_size), (model.in_channels, *model.image_size)
    if found != needed:
        raise DataError(
            f"the images of {data.name} are {'×'.join(map(str, found))}, and {model.net} takes "
            f"{'×'.join(map(str, needed))}"
        )

"""Accuracy intervals and per-class figures, as pure functions of counts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Z_95 = 1.959963984540054


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% interval of a proportion (Wilson 1927): it holds near 0 and 1, where ±1.96·SE does not."""
    share, z2 = correct / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # At 0 and 1 the bound is exact, and rounding must not push it past.
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == total else centre + half)


def paired_interval(lost: int, gained: int, total: int) -> tuple[float, float]:
    """The 95% interval of (lost − gained) / total, what accuracy changes by on the same images.

    `lost` images were right before and are wrong after, `gained` the other way round. Bonett and Price 2012, equation
    2: Wald's interval for paired proportions with one image added to both counts, so that it holds for few images too,
    and is not empty where nothing changes.
    """
    total += 2
    down, up = (lost + 1) / total, (gained + 1) / total
    change = down - up
    half = Z_95 * math.sqrt((down + up - change**2) / total)
    return max(-1.0, change - half), min(1.0, change + half)


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """int64 K×K: row by true class, column by predicted class."""
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)


@dataclass(frozen=True)
class ClassFigures:
    """One class: fractions, and how many images it has. A ratio with nothing below it is 0, as in scikit-learn."""

    name: str
    images: int
    precision: float
    recall: float
    f1: float


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

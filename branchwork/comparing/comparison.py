"""The values that `compare` returns."""

from dataclasses import dataclass

from branchwork.comparing.pairs import Pair
from branchwork.shown import Shown


@dataclass(frozen=True)
class Entry:
    """One run, or the runs of several seeds that count as one net.

    `accuracies`, fractions, are in the order of the `seeds`; `accuracy` is their mean. `interval` is its 95% interval:
    Wilson's for one run, for several Student's over the seeds, on the log-odds. `right` counts the images of each class
    that it classifies correctly, as a mean over seeds. `milliseconds` is the median time of one image on this machine,
    as written, in turns with the other nets; `train_seconds` is a mean over seeds, None if a training is not finished.
    """

    label: str
    folder: str
    net: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    accuracy: float
    interval: tuple[float, float]
    right: tuple[float, ...]
    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    milliseconds: float
    train_seconds: float | None


@dataclass(frozen=True)
class Disagreement:
    """A test image that some entries classify correctly and others do not, with the answer of each, by label.

    Of several seeds, it is the answer of most, and the mean of its probability over those.
    """

    index: int
    true: str
    answers: dict[str, str]
    probabilities: dict[str, float]
    read_by: tuple[str, ...]

    def confidence_of_mistake(self) -> float:
        """Return the highest probability of a wrong answer."""
        return max(self.probabilities[label] for label in self.answers if label not in self.read_by)


@dataclass(frozen=True)
class Comparison(Shown):
    """Nets on the same test images: each by itself, in pairs, and the images on which they disagree.

    `disagreements` begin with the most confident mistakes.
    """

    data: str
    images: int
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    disagreements: tuple[Disagreement, ...]
    threads: int
    machine: str

    def only(self, first: str, second: str) -> list[Disagreement]:
        """Return the images that `first` reads and `second` does not."""
        return [each for each in self.disagreements if first in each.read_by and second not in each.read_by]

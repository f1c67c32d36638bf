"""What `select` is asked and what it comes to, as values."""

from dataclasses import asdict, dataclass

from branchwork.errors import RecipeError


@dataclass(frozen=True)
class Tried:
    """The net without one more `group`, and the loss and accuracy on validation images after brief fine-tuning.

    They are None where the loss at once, before any fine-tuning, was already among the higher ones; `loss_at_once` is
    None where it was not needed, since all were fine-tuned.
    """

    group: str
    parameters: int
    macs: int
    loss_at_once: float | None
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class Size:
    """The net at one size: what is `left` in it, and the group that was `removed` last, of those that were `tried`.

    Loss and accuracy are those on the validation images, after the brief fine-tuning. `seconds` and `steps` of the
    optimiser are those since the size before.
    """

    net: str
    left: tuple[str, ...]
    removed: str | None
    parameters: int
    macs: int
    validation_loss: float
    validation_accuracy: float
    seconds: float
    steps: int
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Worth:
    """A group of branches that could be taken out, by two measures: rank 1 is the most worthy.

    `weight_size` is the root mean square of its weights in the whole net, None where it has none. `rank_by_removal`
    goes by how late it was taken out, and for those that are left by the loss without each.
    """

    group: str
    weight_size: float | None
    rank_by_weights: int
    rank_by_removal: int
    kept: bool


@dataclass(frozen=True)
class Figures:
    """A net before or after. Accuracies are fractions, `test_interval` is the 95% Wilson interval."""

    parameters: int
    macs: int
    validation_accuracy: float
    test_accuracy: float
    test_interval: tuple[float, float]


@dataclass(frozen=True)
class Selection:
    """What `select` came to; `selection.json` holds it. `folder` is the run of the smaller net, `net` its argument.

    `missed` says how the smaller net, once trained, fails the goal, and is None where it does not.
    """

    whole: str
    net: str
    data: str
    seed: int
    goal: str
    sizes: tuple[Size, ...]
    worth: tuple[Worth, ...]
    before: Figures
    after: Figures
    missed: str | None
    steps: int
    seconds: float
    folder: str
    report: str


@dataclass(frozen=True)
class Goal:
    """How far to go: so many branches a join, so large a share of the MACs, or so much accuracy lost, a fraction."""

    keep: int | None = None
    macs: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in asdict(self).items() if value is not None]
        if len(given) != 1:
            raise RecipeError(f"{' and '.join(f'--{name}' for name in given)} are several goals: give one of them")
        if self.keep is not None and self.keep < 1:
            raise RecipeError(f"--keep is {self.keep}, and one branch of each join must be left at least")
        if self.macs is not None and not 0 < self.macs < 1:
            raise RecipeError(f"--macs is {self.macs:g}, and it is a share of the net's: above 0 and below 1")
        if self.drop is not None and not 0 <= self.drop < 1:
            raise RecipeError(f"--drop is {self.drop:%}, and it is lost accuracy: from 0% up to but not 100%")

    def words(self) -> str:
        if self.keep is not None:
            return f"keep {self.keep} branch{'es' * (self.keep > 1)} of each join"
        if self.macs is not None:
            return f"at most {self.macs:.0%} of the MACs"
        return f"at most {self.drop:.2%} of validation accuracy lost"

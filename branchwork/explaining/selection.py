"""The goal of `select` and its result, as values."""

from dataclasses import dataclass

from branchwork.errors import RecipeError
from branchwork.language import say
from branchwork.shown import Shown


@dataclass(frozen=True)
class Goal:
    """How far to shrink a net: give exactly one of `keep`, `macs` and `drop`.

    `keep` is the number of branches left in each join, `macs` a share of the net's MACs, `drop` the validation accuracy
    that may be lost, a fraction. Branches of the same name in similar joins are removed together; with `each`, every
    join is decided by itself. Raises `RecipeError` for an impossible goal.
    """

    keep: int | None = None
    macs: float | None = None
    drop: float | None = None
    each: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("keep", "macs", "drop") if getattr(self, name) is not None]
        if not given:
            raise RecipeError("a goal needs one of --keep, --macs and --drop")
        if len(given) > 1:
            raise RecipeError(
                "{given} cannot be combined: give one of them", given=", ".join(f"--{name}" for name in given)
            )
        if self.keep is not None and self.keep < 1:
            raise RecipeError("--keep must be at least 1, got {keep}", keep=self.keep)
        if self.macs is not None and not 0 < self.macs < 1:
            raise RecipeError(
                "--macs must be a share of the net's MACs, above 0 and below 1, got {macs:g}", macs=self.macs
            )
        if self.drop is not None and not 0 <= self.drop < 1:
            raise RecipeError("--drop must be at least 0% and below 100%, got {drop:%}", drop=self.drop)

    def __str__(self) -> str:
        if self.keep is not None:
            return say("branches kept in each join: {keep}", keep=self.keep)
        if self.macs is not None:
            return say("at most {macs:.0%} of the MACs", macs=self.macs)
        return say("at most {drop:.2%} of validation accuracy lost", drop=self.drop)


@dataclass(frozen=True)
class Trial:
    """The net without one more `group`: its cost, and its loss and accuracy on the validation images.

    `loss_at_once` is the loss before any fine-tuning, None if there were so few groups that all were fine-tuned. The
    other two are those after brief fine-tuning, None if `loss_at_once` was already among the higher ones.
    """

    group: str
    parameters: int
    macs: int
    loss_at_once: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None

    @property
    def loss(self) -> float:
        """The latest of the two losses."""
        loss = self.loss_at_once if self.validation_loss is None else self.validation_loss
        assert loss is not None, "every trial is validated at once or after fine-tuning"
        return loss


@dataclass(frozen=True)
class Size:
    """The net at one size: the groups `left` in it, and the one that was `removed` last, out of those `tried`.

    Loss and accuracy are those on the validation images, after brief fine-tuning. `seconds` and optimiser `steps` count
    from the size before.
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
    tried: tuple[Trial, ...]


@dataclass(frozen=True)
class Worth:
    """A group of branches that could be removed, ranked by two measures: rank 1 is the most important.

    `weight_size` is the root mean square of its weights in the whole net, None if it has none. `rank_by_removal` orders
    the removed groups by how late they went, and those that are left by the loss without them.
    """

    group: str
    weight_size: float | None
    rank_by_weights: int
    rank_by_removal: int
    kept: bool


@dataclass(frozen=True)
class Figures:
    """The net before or after. Accuracies are fractions; `test_interval` is the 95% Wilson interval."""

    parameters: int
    macs: int
    validation_accuracy: float
    test_accuracy: float
    test_interval: tuple[float, float]


@dataclass(frozen=True)
class Selection(Shown):
    """The result of `select`, stored as `selection.json`.

    `whole` and `net` are the arguments of the nets before and after, `folder` is the run of the smaller one, and
    `report` the page about the selection. `missed` says how that net, once trained, falls short of the goal, and is
    None if it does not.
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

"""branchwork train"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from cyclopts import Parameter

from branchwork.cli.output import Part, Table, deliver, interval, make_table, result_parts, show
from branchwork.cli.parameters import DATA, Fit, Json, Shortcut, Size, Source, Stem, parse_size
from branchwork.errors import RecipeError
from branchwork.language import say
from branchwork.training.habits import read_habits
from branchwork.training.options import Options
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import RECIPES

if TYPE_CHECKING:
    from branchwork.datasets.dataset import DataSet
    from branchwork.observer import Observer
    from branchwork.training.result import Result
    from branchwork.training.train import FoldsResult, SeedsResult

    RecipeFlags = Any
    OptionFlags = Any
else:
    _MADE = {name: make() for name, make in RECIPES.items()}

    def _recipes_defaults(name: str) -> str:
        """Return what `fast`, the default, sets a field to, and what the others do that differ: `256 · course 64`."""
        recipes: dict[str, list[str]] = {}
        for recipe, made in _MADE.items():
            value = getattr(made, name)
            recipes.setdefault(f"{value:g}" if isinstance(value, float) else str(value), []).append(recipe)
        default, *others = recipes
        return " · ".join((default, *(f"{', '.join(recipes[value])} {value}" for value in others)))

    def _flags(name: str, source: type) -> type:
        """Return a dataclass with a flag for each field of `source`; a flag that is not given is None."""
        hints = get_type_hints(source)
        fields = []
        for field in dataclasses.fields(source):
            negative = () if field.name in ("freeze", "run_script") else None  # there is no --no-freeze
            default = _recipes_defaults(field.name) if source is Recipe else None
            parameter = Parameter(help=field.metadata["about"], negative=negative, show_default=default)
            fields.append((field.name, Annotated[hints[field.name] | None, parameter], None))
        # The module is where cyclopts looks the hints up.
        return dataclasses.make_dataclass(name, fields, namespace={"__module__": __name__})

    RecipeFlags, OptionFlags = _flags("RecipeFlags", Recipe), _flags("OptionFlags", Options)


@dataclass(frozen=True)
class DataFlags:
    """The images that are trained on."""

    data: Annotated[str | None, Parameter(help=f"{DATA} (the default): MNIST if it can be fetched.")] = None
    source: Source = None
    size: Size = None
    fit: Fit = None


@dataclass(frozen=True)
class RecipeFiles:
    """The recipe that the flags of single fields change."""

    recipe: Annotated[
        Literal["fast", "course", "best", "fast-photos", "photos", "digits", "finetune", "script"] | None,
        Parameter(
            help="fast (the default), course (the lecture's), best (takes minutes), fast-photos (colour pictures), "
            "photos or digits (nets with batch norm), finetune (the default with --weights), or script (what your own "
            "script trains with); the flags below change single fields."
        ),
    ] = None
    config: Annotated[Path | None, Parameter(help="A TOML file with fields of the recipe; flags override it.")] = None


@dataclass(frozen=True)
class RunFlags:
    """How many runs, and their files."""

    seeds: Annotated[int | None, Parameter(help="Train with this many seeds, starting at --seed.")] = None
    folds: Annotated[
        int | None,
        Parameter(help="Divide the training images into this many parts; train once for each, and test on that part."),
    ] = None
    out: Annotated[Path | None, Parameter(help="The run folder; by default runs/NET-DATA-1, -2, …")] = None
    resume: Annotated[Path | None, Parameter(help="Continue the training in this run folder.")] = None
    json_file: Json = None


@dataclass(frozen=True)
class BlockFlags:
    """How the blocks of the net are built."""

    shortcut: Shortcut = None
    stem: Stem = None


def train(
    net: Annotated[
        str | None, Parameter(help="A built-in net (see branchwork nets), or one of your own: file.py:Class.")
    ] = None,
    /,
    *,
    images: Annotated[DataFlags, Parameter(name="*")] = DataFlags(),
    start: Annotated[RecipeFiles, Parameter(name="*")] = RecipeFiles(),
    run: Annotated[RunFlags, Parameter(name="*")] = RunFlags(),
    blocks: Annotated[BlockFlags, Parameter(name="*")] = BlockFlags(),
    options: Annotated[OptionFlags, Parameter(name="*", group="How to run")] = None,
    changes: Annotated[RecipeFlags, Parameter(name="*", group="Recipe")] = None,
) -> None:
    """Train a net into a run folder, and test it once at the end.

    Ctrl-C saves, and --resume continues to the same weights, bit for bit.
    """
    recipe_flags, option_flags = _given(changes), _given(options)
    if run.resume is not None:
        others = option_flags | recipe_flags | ({} if net is None else {"NET": net})
        others |= _given(images) | _given(start) | _given(run) | _given(blocks)
        _resume(run, images.source, [name for name in others if name not in ("resume", "source", "json_file")])
        return
    import branchwork
    from branchwork.catalogue.resolve import with_options
    from branchwork.screen import watch
    from branchwork.training.choice import choose
    from branchwork.training.processes import joined

    if net is None:
        _check_choice(images, blocks)
    else:
        net = with_options(net, vars(blocks))
    if run.seeds is not None and run.folds is not None:
        raise RecipeError("--seeds and --folds are two ways to train several times: leave out one of them")
    with joined() as processes:

        def prepare() -> "tuple[DataSet, str, Recipe]":
            data_set = branchwork.load_data(
                images.data or "auto",
                source=images.source,
                size=parse_size(images.size),
                fit=images.fit,
                progress=processes.first,
            )
            observer = watch(processes.first)
            if net is not None and start.recipe is None:
                _tell_habits(net, observer)
            chosen = choose(
                net,
                start.recipe,
                data_set,
                changes=recipe_flags,
                config=start.config,
                weights=option_flags.get("weights"),
                observer=observer,
            )
            return data_set, *chosen

        data_set, name, chosen = processes.together(prepare)
        settings: dict[str, Any] = {
            "data": data_set, "recipe": chosen, "options": Options(**option_flags), "out": run.out, "progress": True,
        }  # fmt: skip
        if run.seeds is not None:
            several = branchwork.train_seeds(name, seeds=run.seeds, **settings)
            deliver(several, run.json_file, lambda: show(*seeds_parts(several)))
            return
        if run.folds is not None:
            folds = branchwork.train_folds(name, folds=run.folds, **settings)
            deliver(folds, run.json_file, lambda: show(*folds_parts(folds)))
            return
        result = branchwork.train(name, **settings)
        if processes.first:
            deliver(result, run.json_file, lambda: show(*result_parts((result,))))


def _check_choice(images: DataFlags, blocks: BlockFlags) -> None:
    """Raise `RecipeError` where no net is named and none can be chosen."""
    from branchwork.datasets.load import is_path

    if not is_path(images.data or "auto"):
        raise RecipeError(
            "name the net to train: branchwork train inception; or a folder of pictures: --data FOLDER; or a run to "
            "continue: --resume RUN"
        )
    if _given(blocks):
        raise RecipeError("--shortcut and --stem change a net that is named: name it too, or leave them out")


def _tell_habits(net: str, observer: "Observer") -> None:
    habits = read_habits(net)
    if habits is not None and habits.is_supported and not habits.unread:
        told = say("your script trains with {habits}: --recipe script does the same", habits=habits)
        if habits.scheduler is not None:
            told = say(
                "your script trains with {habits}: --recipe script does the same, but without its {scheduler}",
                habits=habits,
                scheduler=habits.scheduler,
            )
        observer.note(told)


def _given(flags: Any) -> dict[str, Any]:
    return {} if flags is None else {key: value for key, value in vars(flags).items() if value is not None}


def _resume(run: RunFlags, source: Path | None, others: list[str]) -> None:
    folder = run.resume
    assert folder is not None
    if others:
        names = ", ".join(key if key == "NET" else f"--{key.replace('_', '-')}" for key in others)
        raise RecipeError("--resume takes everything from {folder}: leave out {names}", folder=folder, names=names)

    import branchwork
    from branchwork.training.processes import joined
    from branchwork.training.run import FOLDS, SEEDS, holds

    if holds(folder, FOLDS):
        folds = branchwork.resume_folds(folder, source=source, progress=True)
        deliver(folds, run.json_file, lambda: show(*folds_parts(folds)))
    elif holds(folder, SEEDS):
        several = branchwork.resume_seeds(folder, source=source, progress=True)
        deliver(several, run.json_file, lambda: show(*seeds_parts(several)))
    else:
        with joined() as processes:
            result = branchwork.resume(folder, source=source, progress=True)
            if processes.first:
                deliver(result, run.json_file, lambda: show(*result_parts((result,))))


def seeds_parts(several: "SeedsResult") -> list[Part]:
    from branchwork.catalogue.resolve import short_name

    table = make_table("seed", "validation", "test accuracy", "train s")
    _add_runs(table, {str(result.seed): result for result in several.results}, several)
    deviation = say("{deviation:.2f} points", deviation=100 * several.deviation)
    table.add_row(say("standard deviation"), "", deviation, "")
    words = say(
        "{net} on {data}, {seeds} seeds; runs in {folder}",
        **(vars(several) | {"net": short_name(several.net), "seeds": len(several.seeds)}),
    )
    return [table, words]


def folds_parts(several: "FoldsResult") -> list[Part]:
    from branchwork.catalogue.resolve import short_name

    table = make_table("fold", "validation", "accuracy on the fold", "train s")
    _add_runs(table, {str(number): result for number, result in enumerate(several.results, 1)}, several)
    table.add_row(say("95% interval"), "", interval(several.interval), "")
    words = say(
        "{net} on {data}, {folds} folds of its training images; the test images were not used; runs in {folder}",
        **(vars(several) | {"net": short_name(several.net)}),
    )
    return [table, words]


def _add_runs(table: Table, results: "dict[str, Result]", several: "SeedsResult | FoldsResult") -> None:
    """Add a row for each result, by the name of its row, and one for the means."""
    for name, result in results.items():
        validation = "–" if result.validation_accuracy is None else f"{result.validation_accuracy:.2%}"
        table.add_row(name, validation, f"{result.test_accuracy:.2%}", f"{result.train_seconds:.1f}")
    table.add_section()
    table.add_row(say("mean"), "", f"{several.mean:.2%}", f"{several.mean_train_seconds:.1f}")

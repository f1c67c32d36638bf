"""branchwork train"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from cyclopts import Parameter

from branchwork.cli.output import deliver, make_table, show, show_results
from branchwork.cli.parameters import DATA, Fit, Json, Shortcut, Size, Source, Stem, parse_size
from branchwork.errors import RecipeError
from branchwork.training.options import Options
from branchwork.training.recipe import RECIPES, Recipe, read_recipe

if TYPE_CHECKING:
    from branchwork.datasets.dataset import DataSet
    from branchwork.training.several import SeedsResult

    Changes = Any
else:
    # A flag for each field of a recipe; None keeps the recipe's value.
    Changes = dataclasses.make_dataclass(
        "Changes",
        [
            (
                field.name,
                Annotated[get_type_hints(Recipe)[field.name] | None, Parameter(help=field.metadata["about"])],
                None,
            )
            for field in dataclasses.fields(Recipe)
        ],
        namespace={"__module__": __name__},  # where cyclopts looks the hints up
    )


def train(
    net: Annotated[str | None, Parameter(help="A net of the catalogue, or one of your own: file.py:Class.")] = None,
    /,
    *,
    data: Annotated[str | None, Parameter(help=f"{DATA} (the default): MNIST if it can be fetched.")] = None,
    recipe: Annotated[
        Literal["fast", "course", "best", "photos", "digits"] | None,
        Parameter(
            help="fast (the default), course (the lecture's), best (minutes), or for nets with batch norms photos or "
            "digits; the flags below change single fields."
        ),
    ] = None,
    config: Annotated[Path | None, Parameter(help="A TOML file with fields of the recipe; flags override it.")] = None,
    seed: Annotated[int | None, Parameter(help="Fixes weights, split and order; 0 by default.")] = None,
    seeds: Annotated[int | None, Parameter(help="Train with this many seeds, starting at --seed.")] = None,
    out: Annotated[Path | None, Parameter(help="The run folder; by default runs/NET-DATA-1, -2, …")] = None,
    resume: Annotated[Path | None, Parameter(help="Continue the training in this run folder.")] = None,
    device: Annotated[str | None, Parameter(help="cpu, cuda, mps or auto (the default).")] = None,
    threads: Annotated[int | None, Parameter(help="Threads on the CPU; by default as many as cores.")] = None,
    execute: Annotated[
        Literal["auto", "written", "collapsed"] | None,
        Parameter(help="As written, or with merged kernels, the same computation; auto takes the cheaper one."),
    ] = None,
    compile: Annotated[
        bool | None,
        Parameter(help="Compile the steps with torch.compile, which takes a minute; never by default."),
    ] = None,
    log: Annotated[
        Literal["tensorboard"] | None, Parameter(help="Also write the figures for TensorBoard, into RUN/tensorboard.")
    ] = None,
    shortcut: Shortcut = None,
    stem: Stem = None,
    weights: Annotated[
        Path | None,
        Parameter(help="Start from the weights of a run, or of a file of ours or torchvision's.", group="Net"),
    ] = None,
    freeze: Annotated[
        bool | None, Parameter(negative=(), help="With --weights: train only the head.", group="Net")
    ] = None,
    source: Source = None,
    size: Size = None,
    fit: Fit = None,
    json_file: Json = None,
    changes: Annotated[Changes, Parameter(name="*", group="Recipe")] = None,
) -> None:
    """Train a net into a run folder, and test it once at the end.

    Ctrl-C saves, and --resume continues to the same weights, bit for bit.
    """
    flags = {} if changes is None else {k: v for k, v in dataclasses.asdict(changes).items() if v is not None}
    options: dict[str, Any] = {"seed": seed, "device": device, "threads": threads}
    options |= {
        "weights": None if weights is None else str(weights),
        "freeze": freeze,
        "execute": execute,
        "compile": compile,
        "log": log,
    }
    given = {key: value for key, value in options.items() if value is not None}
    if resume is not None:
        others = {**given, "out": out, **flags, "NET": net, "data": data, "recipe": recipe, "config": config}
        others |= {"seeds": seeds, "shortcut": shortcut, "stem": stem, "size": size, "fit": fit}
        _resume(resume, [key for key, value in others.items() if value is not None], source, json_file)
        return
    if net is None:
        raise RecipeError("name the net to train: branchwork train inception, or a run to continue: --resume RUN")

    import branchwork
    from branchwork.cli.progress import Screen
    from branchwork.nets.resolve import with_options
    from branchwork.observer import Observer
    from branchwork.training.processes import joined

    net = with_options(net, {"shortcut": shortcut, "stem": stem})
    with joined() as processes:
        screen = Screen() if processes.first else Observer()

        def prepare() -> "tuple[DataSet, Recipe]":
            data_set = branchwork.load_data(
                data or "auto", source=source, size=parse_size(size), fit=fit, observer=screen
            )
            chosen = RECIPES[recipe or "fast"](net, len(data_set.train))
            return data_set, chosen.but(flags) if config is None else read_recipe(config, chosen, flags)

        data_set, chosen = processes.together(prepare)
        if seeds is None:
            result = branchwork.train(
                net, data=data_set, recipe=chosen, options=Options(**given), out=out, observer=screen
            )
            if processes.first:
                deliver(result, json_file, lambda: show_results((result,)))
            return
        several = branchwork.train_seeds(
            net, seeds=seeds, data=data_set, recipe=chosen, options=Options(**given), out=out, observer=screen
        )
        deliver(several, json_file, lambda: _show_seeds(several))


def _resume(folder: Path, others: list[str], source: Path | None, json_file: Path | None) -> None:
    if others:
        names = ", ".join(key if key == "NET" else f"--{key.replace('_', '-')}" for key in others)
        raise RecipeError(f"--resume takes everything from {folder}: leave out {names}")

    import branchwork
    from branchwork.cli.progress import Screen
    from branchwork.training.processes import joined
    from branchwork.training.run import SEEDS, holds

    if holds(folder, SEEDS):
        several = branchwork.resume_seeds(folder, source=source, observer=Screen())
        deliver(several, json_file, lambda: _show_seeds(several))
    else:
        with joined() as processes:
            result = branchwork.resume(folder, source=source, observer=Screen() if processes.first else None)
            if processes.first:
                deliver(result, json_file, lambda: show_results((result,)))


def _show_seeds(several: "SeedsResult") -> None:
    from branchwork.nets.resolve import short_name

    table = make_table("seed", "validation", "test accuracy", "train s")
    for result in several.results:
        validation = "–" if result.validation_accuracy is None else f"{result.validation_accuracy:.2%}"
        table.add_row(str(result.seed), validation, f"{result.test_accuracy:.2%}", f"{result.train_seconds:.1f}")
    table.add_section()
    table.add_row("mean", "", f"{several.mean:.2%}", f"{several.mean_train_seconds:.1f}")
    table.add_row("standard deviation", "", f"{100 * several.deviation:.2f} points", "")
    show(table, f"{short_name(several.net)} on {several.data}, {len(several.seeds)} seeds; runs in {several.folder}")

"""The report of a run: one HTML file that opens anywhere, offline, with its pictures inside."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from branchwork.catalogue.resolve import short_name
from branchwork.datasets.batches import normalise
from branchwork.datasets.dataset import DataSet, Split
from branchwork.figures import BAD, GOOD, inline_svg, new_figure, plain_axes, plain_log_ticks
from branchwork.files import typed, write_whole
from branchwork.language import listed, say
from branchwork.pages import (
    cards,
    details,
    facts,
    footer,
    image_grid,
    page,
    paragraph,
    pixels_of,
    section,
    side_by_side,
    table,
)
from branchwork.training.evaluate import MOST_CLASSES, Evaluation
from branchwork.training.net_report import NetSections
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import RECIPES
from branchwork.training.run import REPORT, TrainedNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_report(
    trained: TrainedNet,
    result: dict[str, Any],
    *,
    net: NetSections,
    history: Sequence[dict[str, Any]],
    evaluation: Evaluation,
    data: DataSet,
    batch: Split,
) -> None:
    """Write `report.html` into the run folder. `batch` holds training images as augmented, before they are normalised.

    `net` are the parts about the net itself.
    """
    recipe = trained.model.recipe
    assert recipe is not None, "it was trained by a recipe"
    settings = say(
        "Epochs {epochs}, batch {batch_size}, {optimizer}, seed {seed}, on {machine}",
        epochs=result["epochs"],
        batch_size=recipe.batch_size,
        optimizer=recipe.optimizer,
        seed=result["seed"],
        machine=result["machine"],
    )
    parts = [
        paragraph(settings),
        net.drawing,
        f"<h2>{say('The result')}</h2>",
        cards(*_cards(result, evaluation)),
        section(
            say("Learning"),
            _learning_words(history, result["best_epoch"], evaluation),
            side_by_side(*_learning_curves(history, evaluation)),
        ),
        net.branches,
        net.kernels,
        section(say("Most confident mistakes"), _mistake_words(evaluation), _mistakes(evaluation, data)),
        '<div class="pair"><section>',
        _confusion(evaluation, result["folder"]),
        "</section><section>",
        section(
            say("Class by class"),
            say("Precision: how often a prediction of this class is right. Recall: how many of its images are found."),
            _classes(evaluation),
        ),
        "</section></div>",
        _batch(batch, data),
        details(say("How it was made"), _making(recipe, result, len(data.train))),
        footer(
            say("Made by Branchwork. The figures are also in result.json, and those of each epoch in metrics.jsonl.")
        ),
    ]
    title = say("{net} on {data}", net=short_name(result["net"]), data=data.name)
    write_whole(trained.folder / REPORT, page(title, parts))


def _cards(result: dict[str, Any], evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    low, high = evaluation.interval
    yield (
        say("test accuracy"),
        f"{evaluation.accuracy:.2%}",
        say("{low:.2%} to {high:.2%} (95%)", low=low, high=high),
    )
    validation = result["validation_accuracy"]
    yield (
        say("validation accuracy"),
        "–" if validation is None else f"{validation:.2%}",
        say("no images held out")
        if validation is None
        else say("epoch {best}, whose weights are kept", best=result["best_epoch"]),
    )
    yield (
        say("training"),
        say("{seconds:.1f} s", seconds=result["train_seconds"]),
        say("{rate:,.0f} images per second", rate=result["images_per_second"]),
    )
    yield say("parameters"), f"{result['parameters']:,}", say("weights and biases")
    yield say("MACs per image"), f"{result['macs']:,}", say("multiply-accumulates")
    memory = result["peak_memory_bytes"]
    yield (
        say("peak memory"),
        say("unknown") if memory is None else f"{memory / 1e6:,.0f} MB",
        say("device {device}", device=result["device"]),
    )


def _making(recipe: Recipe, result: dict[str, Any], images: int) -> str:
    """Return how the training can be repeated: first what differs from the named recipe that is nearest to its own."""
    chosen = asdict(recipe)
    named = {name: asdict(make(result["net"], images)) for name, make in RECIPES.items()}
    changed = {name: [key for key in chosen if chosen[key] != usual[key]] for name, usual in named.items()}
    nearest = min(changed, key=lambda name: len(changed[name]))
    rows = [(key, str(chosen[key]), str(named[nearest][key])) for key in changed[nearest]]
    return "\n".join(
        [
            paragraph(say("The recipe {name} with these fields changed:", name=nearest))
            + table((say("field"), say("this run"), nearest), rows)
            if rows
            else paragraph(say("The recipe {name}, unchanged.", name=nearest)),
            paragraph(say("The machine, the data, the software, and the whole recipe:")),
            facts(
                {
                    say("machine"): result["machine"],
                    say("threads"): result["threads"],
                    say("precision used"): result["precision"],
                    say("training images"): f"{result['train_images']:,}",
                    say("data source"): result["data_origin"],
                    **result["versions"],
                    say("commit"): result["commit"] or say("not a git checkout"),
                    **chosen,
                }
            ),
        ]
    )


def _learning_words(history: Sequence[dict[str, Any]], best: int, evaluation: Evaluation) -> str:
    accuracy = history[best - 1]["validation_accuracy"]
    if accuracy is None:
        return say("No images were held out for validation, so the weights of the last epoch were kept.")
    return say(
        "The weights of epoch {best} were kept: {accuracy:.2%} on validation images, which were not trained on. "
        "The test images were read once, at the end: {test:.2%}.",
        best=best,
        accuracy=accuracy,
        test=evaluation.accuracy,
    )


def _learning_curves(history: Sequence[dict[str, Any]], evaluation: Evaluation) -> list[str]:
    from matplotlib.ticker import MaxNLocator

    errors = [1 - epoch["validation_accuracy"] for epoch in history if epoch["validation_accuracy"] is not None]
    curves: list[Callable[[Axes], None]] = [
        lambda axes: _draw_losses(axes, [epoch["loss_curve"] for epoch in history]),
    ]
    if errors:
        curves.append(lambda axes: _draw_errors(axes, errors, evaluation))
    drawings = []
    for draw in curves:
        with new_figure(4.8, 3.1) as figure:
            axes = figure.subplots()
            draw(axes)
            plain_axes(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            drawings.append(inline_svg(figure))
    return drawings


def _draw_losses(axes: "Axes", losses: Sequence[Sequence[float]]) -> None:
    epochs = [index + (point + 0.5) / len(curve) for index, curve in enumerate(losses) for point in range(len(curve))]
    axes.plot(epochs, [loss for curve in losses for loss in curve], color=GOOD, linewidth=1.4)
    axes.set(yscale="log", ylabel=say("training loss"), xlabel=say("epoch"), xlim=(0, len(losses)))
    plain_log_ticks(axes.yaxis)


def _draw_errors(axes: "Axes", errors: Sequence[float], evaluation: Evaluation) -> None:
    low, high = (100 - 100 * bound for bound in evaluation.interval)
    percent = [100 * error for error in errors]
    axes.plot(range(1, len(errors) + 1), percent, "o-", color=GOOD, linewidth=1.4, label=say("validation"))
    axes.axhspan(high, low, color=BAD, alpha=0.15, linewidth=0)
    axes.axhline(100 - 100 * evaluation.accuracy, color=BAD, linewidth=1.2, label=say("test, with its 95% interval"))
    axes.set(ylabel=say("error, percent"), xlabel=say("epoch"), xlim=(0.5, len(errors) + 0.5))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _confusion(evaluation: Evaluation, run: str) -> str:
    title, names = say("Confusion matrix"), [escape(figures.name) for figures in evaluation.classes]
    if len(names) > MOST_CLASSES:
        words = say(
            "With {n:,} classes it is too large to read: branchwork evaluate {run} --json FILE writes it.",
            n=len(names),
            run=typed(run),
        )
        return section(title, words)
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for true, row in enumerate(evaluation.confusion):
        total = max(1, sum(row))
        cells = "".join(_cell(count, count / total, true == answer) for answer, count in enumerate(row))
        rows.append(f"<tr><th>{names[true]}</th>{cells}</tr>")
    return section(
        title,
        say("Rows are the true classes, columns the predicted ones."),
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _cell(count: int, share: float, right: bool) -> str:
    if count == 0:
        return '<td class="none">·</td>'
    # Errors are rare: their colour grows with the square root, so that one in a thousand is still visible.
    strength = 0.55 * share if right else min(0.9, 0.12 + 2.2 * share**0.5)
    colour = f"rgba(var(--{'good' if right else 'bad'}), {strength:.2f})"
    return f'<td style="background: {colour}" title="{share:.2%}">{count}</td>'


def _classes(evaluation: Evaluation) -> str:
    return table(
        (say("class"), say("images"), say("precision"), say("recall"), "F1"),
        [(c.name, f"{c.images:,}", f"{c.precision:.2%}", f"{c.recall:.2%}", f"{c.f1:.2%}") for c in evaluation.classes],
    )


def _mistake_words(evaluation: Evaluation) -> str:
    images, shown = evaluation.images, len(evaluation.worst)
    wrong = round(images * (1 - evaluation.accuracy))
    if not wrong:
        return say("All {images:,} test images were classified correctly.", images=images)
    if wrong == shown:
        return say("{wrong:,} of {images:,} test images were misclassified, all of them shown.",
                   wrong=wrong, images=images)  # fmt: skip
    return say(
        "{wrong:,} of {images:,} test images were misclassified: the {shown} with the highest probability for the "
        "wrong class.",
        wrong=wrong,
        images=images,
        shown=shown,
    )


def _mistakes(evaluation: Evaluation, data: DataSet) -> str:
    return image_grid(
        (
            pixels_of(data.test.images[m.index]),
            say("test image {index}", index=m.index),
            say(
                "{true} predicted as {predicted}",
                true=f"<b>{escape(m.true)}</b>",
                predicted=f"<b>{escape(m.predicted)}</b>",
            )
            + f"<br>{m.probability:.1%}",
        )
        for m in evaluation.worst
    )


def _batch(batch: Split, data: DataSet) -> str:
    """Return the section with the net's input: each pixel's grey is its value after normalising."""
    numbers = normalise(batch.images[:], data.mean, data.std)
    low, high = float(numbers.min()), float(numbers.max())
    images = ((numbers - low) / (high - low) * 255).round().byte()
    return section(
        say("The first batch, as the net receives it"),
        say(
            "The first {count} training images of the first epoch, after normalising with mean {mean} and standard "
            "deviation {deviation}; black is {low:.2f}, white {high:.2f}.",
            count=len(batch),
            mean=listed(data.mean),
            deviation=listed(data.std),
            low=low,
            high=high,
        ),
        image_grid(
            (
                (pixels_of(image), "", escape(data.classes[int(label)]))
                for image, label in zip(images, batch.labels, strict=True)
            ),
            small=True,
        ),
    )

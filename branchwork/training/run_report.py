"""The report of a run: one HTML file that opens anywhere, offline, with its pictures inside."""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from branchwork.datasets.batches import normalise
from branchwork.datasets.dataset import DataSet, Split
from branchwork.figures import BAD, GOOD, inline_svg, new_figure, plain_axes, plain_log_ticks
from branchwork.files import write_whole
from branchwork.language import listed
from branchwork.nets.resolve import short_name
from branchwork.pages import cards, facts, footer, image_grid, page, paragraph, plot, section, table
from branchwork.training.evaluate import Evaluation
from branchwork.training.recipe import Recipe
from branchwork.training.run import REPORT

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_report(
    folder: Path,
    result: dict[str, Any],
    *,
    recipe: Recipe,
    history: Sequence[dict[str, Any]],
    evaluation: Evaluation,
    data: DataSet,
    batch: Split,
) -> None:
    """Write `report.html` into `folder`. `batch` holds training images as augmented, before they are normalised."""
    low, high = evaluation.interval
    parts = [
        paragraph(
            f"{result['epochs']} epoch{'s' * (result['epochs'] > 1)}, batch {recipe.batch_size}, "
            f"{recipe.optimizer}, seed {result['seed']}, on {result['machine']}"
        ),
        cards(
            ("test accuracy", f"{evaluation.accuracy:.2%}", f"{low:.2%} to {high:.2%} (95%)"),
            (
                "training",
                f"{result['train_seconds']:.1f} s",
                f"{result['images_per_second']:,.0f} images per second",
            ),
            ("parameters", f"{result['parameters']:,}", "weights and biases"),
            ("MACs per image", f"{result['macs']:,}", "multiply-accumulates"),
            ("peak memory", _megabytes(result["peak_memory_bytes"]), f"device {result['device']}"),
        ),
        section(
            "Learning",
            _learning_words(history, result["best_epoch"], evaluation),
            plot(_learning_curves(history, evaluation)),
        ),
        '<div class="pair"><section>',
        section("Confusion matrix", "Rows are the true classes, columns the predicted ones.", _confusion(evaluation)),
        "</section><section>",
        section(
            "Class by class",
            "Precision: how often a prediction of this class is right. Recall: how many of its images are found.",
            _classes(evaluation),
        ),
        "</section></div>",
        section("Most confident mistakes", _mistake_words(evaluation), _mistakes(evaluation, data)),
        _batch(batch, data),
        section(
            "How this run was trained",
            "The recipe, the data, the machine, and the versions of the software.",
            facts(
                {
                    **asdict(recipe),
                    "precision used": result["precision"],
                    "training images": f"{result['train_images']:,}",
                    "data source": result["data_origin"],
                    "threads": result["threads"],
                    **result["versions"],
                    "commit": result["commit"] or "not a git checkout",
                }
            ),
        ),
        footer("Made by Branchwork. The figures are also in result.json, and those of each epoch in metrics.jsonl."),
    ]
    write_whole(folder / REPORT, page(f"{short_name(result['net'])} on {data.name}", parts))


def _learning_words(history: Sequence[dict[str, Any]], best: int, evaluation: Evaluation) -> str:
    accuracy = history[best - 1]["validation_accuracy"]
    if accuracy is None:
        return "No images were held out for validation, so the weights of the last epoch were kept."
    return (
        f"The weights of epoch {best} were kept: {accuracy:.2%} on validation images, which were not trained on. "
        f"The test images were read once, at the end: {evaluation.accuracy:.2%}."
    )


def _learning_curves(history: Sequence[dict[str, Any]], evaluation: Evaluation) -> str:
    from matplotlib.ticker import MaxNLocator

    errors = [1 - epoch["validation_accuracy"] for epoch in history if epoch["validation_accuracy"] is not None]
    with new_figure(9.6, 3.1) as figure:
        panels = figure.subplots(1, 2 if errors else 1, squeeze=False)[0]
        _draw_losses(panels[0], [epoch["loss_curve"] for epoch in history])
        if errors:
            _draw_errors(panels[1], errors, evaluation)
        for axes in panels:
            plain_axes(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return inline_svg(figure)


def _draw_losses(axes: "Axes", losses: Sequence[Sequence[float]]) -> None:
    epochs = [index + (point + 0.5) / len(curve) for index, curve in enumerate(losses) for point in range(len(curve))]
    axes.plot(epochs, [loss for curve in losses for loss in curve], color=GOOD, linewidth=1.4)
    axes.set(yscale="log", ylabel="training loss", xlabel="epoch", xlim=(0, len(losses)))
    plain_log_ticks(axes.yaxis)


def _draw_errors(axes: "Axes", errors: Sequence[float], evaluation: Evaluation) -> None:
    low, high = (100 - 100 * bound for bound in evaluation.interval)
    percent = [100 * error for error in errors]
    axes.plot(range(1, len(errors) + 1), percent, "o-", color=GOOD, linewidth=1.4, label="validation")
    axes.axhspan(high, low, color=BAD, alpha=0.15, linewidth=0)
    axes.axhline(100 - 100 * evaluation.accuracy, color=BAD, linewidth=1.2, label="test, with its 95% interval")
    axes.set(ylabel="error, percent", xlabel="epoch", xlim=(0.5, len(errors) + 0.5))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _confusion(evaluation: Evaluation) -> str:
    names = [escape(figures.name) for figures in evaluation.classes]
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for true, row in enumerate(evaluation.confusion):
        total = max(1, sum(row))
        cells = "".join(_cell(count, count / total, true == answer) for answer, count in enumerate(row))
        rows.append(f"<tr><th>{names[true]}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
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
        ("class", "images", "precision", "recall", "F1"),
        [(c.name, f"{c.images:,}", f"{c.precision:.2%}", f"{c.recall:.2%}", f"{c.f1:.2%}") for c in evaluation.classes],
    )


def _mistake_words(evaluation: Evaluation) -> str:
    wrong = round(evaluation.images * (1 - evaluation.accuracy))
    if not wrong:
        return f"All {evaluation.images:,} test images were classified correctly."
    few = wrong <= len(evaluation.worst)
    shown = "All of them" if few else f"The {len(evaluation.worst)} with the highest probability for the wrong class"
    return f"{wrong:,} of {evaluation.images:,} test images were misclassified. {shown}:"


def _mistakes(evaluation: Evaluation, data: DataSet) -> str:
    return image_grid(
        (
            _pixels(data.test.images[m.index]),
            f"test image {m.index}",
            f"<b>{escape(m.true)}</b> predicted as <b>{escape(m.predicted)}</b><br>{m.probability:.1%}",
        )
        for m in evaluation.worst
    )


def _batch(batch: Split, data: DataSet) -> str:
    """Return the section with the net's input: each pixel's grey is its value after normalising."""
    numbers = normalise(batch.images[:], data.mean, data.std)
    low, high = float(numbers.min()), float(numbers.max())
    images = ((numbers - low) / (high - low) * 255).round().byte()
    return section(
        "The first batch, as the net receives it",
        f"The first {len(batch)} training images of the first epoch, after normalising with mean {listed(data.mean)} "
        f"and standard deviation {listed(data.std)}; black is {low:.2f}, white {high:.2f}.",
        image_grid(
            (
                (_pixels(image), "", escape(data.classes[int(label)]))
                for image, label in zip(images, batch.labels, strict=True)
            ),
            small=True,
        ),
    )


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    return (image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)).numpy()


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.0f} MB"

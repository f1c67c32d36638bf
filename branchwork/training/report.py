"""The report of a run: one HTML file that opens anywhere, offline, with its pictures inside."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from branchwork.datasets.batches import normalise
from branchwork.datasets.dataset import DataSet, Images
from branchwork.files import write_whole
from branchwork.language import listed
from branchwork.nets.resolve import short_name
from branchwork.training.evaluate import Evaluation
from branchwork.training.page import BAD, GOOD, cards, drawing, facts, page, plain_axes
from branchwork.training.recipe import Recipe
from branchwork.training.run import REPORT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    folder: Path,
    result: dict[str, Any],
    recipe: Recipe,
    history: Sequence[dict[str, Any]],
    evaluation: Evaluation,
    data: DataSet,
    batch: Tensor,
    labels: Tensor,
) -> None:
    """Write `report.html` into `folder`. `batch` holds training images, not yet normalised, with their `labels`."""
    title = f"{short_name(result['net'])} on {data.name}"
    low, high = evaluation.interval
    darkest, lightest = _range(batch, data)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{result['epochs']} epoch{'s' * (result['epochs'] > 1)}, batch {recipe.batch_size}, "
        f"{escape(recipe.optimizer)}, seed {result['seed']}, on {escape(result['machine'])}</p>",
        cards(
            ("test accuracy", f"{evaluation.accuracy:.2%}", f"{low:.2%} to {high:.2%} (95%)"),
            (
                "training",
                f"{result['train_seconds']:.1f} s",
                f"{result['images_per_second']:,.0f} images a second",
            ),
            ("parameters", f"{result['parameters']:,}", "weights and biases"),
            ("MACs an image", f"{result['macs']:,}", "multiply-accumulates"),
            (
                "peak memory",
                _megabytes(result["peak_memory_bytes"]),
                f"device {escape(result['device'])}",
            ),
        ),
        "<h2>Learning</h2>",
        f"<p>{_learning_words(history, result['best_epoch'], evaluation)}</p>",
        f'<div class="curves">{_curves(history, evaluation)}</div>',
        '<div class="pair"><section>',
        "<h2>Which class it takes for which</h2>",
        "<p>A row for each true class, a column for each answer.</p>",
        _confusion(evaluation),
        "</section><section>",
        "<h2>Class by class</h2>",
        "<p>How often its answer is right, and how often it finds the class.</p>",
        _classes(evaluation),
        "</section></div>",
        "<h2>The surest mistakes</h2>",
        f"<p>{_mistake_words(evaluation)}</p>",
        _mistakes(evaluation, data.test.images),
        "<h2>A batch as the net sees it</h2>",
        f"<p>The first {len(batch)} training images of the first epoch, after normalising with mean "
        f"{listed(data.mean)} and standard deviation {listed(data.std)}; "
        f"black is {darkest:.2f}, white {lightest:.2f}.</p>",
        _batch(batch, labels, data),
        "<h2>How it was made</h2>",
        facts(
            {
                **asdict(recipe),
                "precision used": result["precision"],
                "training images": f"{result['train_images']:,}",
                "data from": result["data_origin"],
                "threads": result["threads"],
                **result["versions"],
                "commit": result["commit"] or "not from a checkout",
            }
        ),
        "<footer>Made by Branchwork. The figures are also in result.json, one line for each epoch in metrics.jsonl."
        "</footer>",
    ]
    write_whole(folder / REPORT, page(title, parts))


def _learning_words(history: Sequence[dict[str, Any]], best: int, evaluation: Evaluation) -> str:
    accuracy = history[best - 1]["validation_accuracy"]
    if accuracy is None:
        return "All training images were trained on, so there is no validation; the last epoch was kept."
    return (
        f"The weights of epoch {best} were kept: {accuracy:.2%} on validation images that were not trained on. "
        f"The test images were read once, at the end: {evaluation.accuracy:.2%}."
    )


def _curves(history: Sequence[dict[str, Any]], evaluation: Evaluation) -> str:
    def paint(figure: "Figure") -> None:
        from matplotlib.ticker import LogFormatter, MaxNLocator

        class PlainNumbers(LogFormatter):  # which writes 6e-01 for 0.6; the usual one sets formulas, for seconds
            def __call__(self, x: float, pos: int | None = None) -> str:
                return f"{x:g}" if super().__call__(x, pos) else ""

        errors = [1 - epoch["validation_accuracy"] for epoch in history if epoch["validation_accuracy"] is not None]
        loss, *others = figure.subplots(1, 2 if errors else 1, squeeze=False)[0]
        epochs, losses = [], []
        for index, epoch in enumerate(history):
            curve = epoch["loss_curve"]
            epochs += [index + (point + 0.5) / len(curve) for point in range(len(curve))]
            losses += curve
        loss.plot(epochs, losses, color=GOOD, linewidth=1.4)
        loss.set(yscale="log", ylabel="training loss", xlabel="epoch", xlim=(0, len(history)))
        # On a log axis of less than a decade, only the minor ticks carry numbers.
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_formatter(PlainNumbers(labelOnlyBase=False))
        for error in others:
            low, high = (100 - 100 * bound for bound in evaluation.interval)
            where = range(1, len(history) + 1)
            error.plot(where, [100 * e for e in errors], "o-", color=GOOD, linewidth=1.4, label="validation")
            error.axhspan(high, low, color=BAD, alpha=0.15, linewidth=0)
            error.axhline(
                100 - 100 * evaluation.accuracy, color=BAD, linewidth=1.2, label="test, with its 95% interval"
            )
            error.set(ylabel="error, percent", xlabel="epoch", xlim=(0.5, len(history) + 0.5))
            error.set_ylim(bottom=0)
            error.legend(frameon=False)
        for axes in (loss, *others):
            plain_axes(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return drawing(paint, 9.6, 3.1)


def _confusion(evaluation: Evaluation) -> str:
    names = [figures.name for figures in evaluation.classes]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for true, row in enumerate(evaluation.confusion):
        total = max(1, sum(row))
        cells = "".join(_cell(count, count / total, true == answer) for answer, count in enumerate(row))
        rows.append(f"<tr><th>{escape(names[true])}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, share: float, right: bool) -> str:
    if count == 0:
        return '<td class="none">·</td>'
    # Errors are rare: their colour grows with the root, so that one in a thousand is still seen.
    strength = 0.55 * share if right else min(0.9, 0.12 + 2.2 * share**0.5)
    colour = f"rgba(var(--{'good' if right else 'bad'}), {strength:.2f})"
    return f'<td style="background: {colour}" title="{share:.2%}">{count}</td>'


def _classes(evaluation: Evaluation) -> str:
    rows = "".join(
        f"<tr><th>{escape(c.name)}</th><td>{c.images:,}</td><td>{c.precision:.2%}</td><td>{c.recall:.2%}</td>"
        f"<td>{c.f1:.2%}</td></tr>"
        for c in evaluation.classes
    )
    head = "<th></th><th>images</th><th>precision</th><th>recall</th><th>F1</th>"
    return f'<table class="classes"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _mistake_words(evaluation: Evaluation) -> str:
    wrong = round(evaluation.images * (1 - evaluation.accuracy))
    if not wrong:
        return f"All {evaluation.images:,} test images were read rightly."
    few = wrong <= len(evaluation.worst)
    shown = "all of them" if few else f"the {len(evaluation.worst)} with the highest probability for the wrong class"
    return f"{wrong:,} of {evaluation.images:,} test images were misread; here are {shown}."


def _mistakes(evaluation: Evaluation, images: Images) -> str:
    figures = "".join(
        f'<figure><img alt="test image {m.index}" src="{_png(images[m.index])}">'
        f"<figcaption><b>{escape(m.true)}</b> taken for <b>{escape(m.predicted)}</b><br>{m.probability:.1%}"
        f"</figcaption></figure>"
        for m in evaluation.worst
    )
    return f'<div class="images">{figures}</div>'


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.0f} MB"


def _range(batch: Tensor, data: DataSet) -> tuple[float, float]:
    pixels = normalise(batch, data.mean, data.std)
    return float(pixels.min()), float(pixels.max())


def _batch(batch: Tensor, labels: Tensor, data: DataSet) -> str:
    low, high = _range(batch, data)
    pixels = ((normalise(batch, data.mean, data.std) - low) / (high - low) * 255).round().byte()
    figures = "".join(
        f'<figure><img alt="" src="{_png(image)}"><figcaption>{escape(data.classes[int(label)])}</figcaption></figure>'
        for image, label in zip(pixels, labels, strict=True)
    )
    return f'<div class="images batch">{figures}</div>'


def _png(image: Tensor) -> str:
    content = io.BytesIO()
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()

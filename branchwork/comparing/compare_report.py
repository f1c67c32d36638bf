"""The page of a comparison: one HTML file that opens anywhere, offline."""

from html import escape

from branchwork.comparing.comparison import Comparison, Disagreement
from branchwork.comparing.pairs import TESTS, verdict
from branchwork.datasets.dataset import DataSet
from branchwork.figures import GOOD, INK, inline_svg, new_figure, plain_axes
from branchwork.language import mark, milliseconds, say
from branchwork.pages import footer, image_grid, page, paragraph, pixels_of, plot, section, table
from branchwork.palette import AMBER
from branchwork.training.statistics import p_words, points_words

# Pictures of a pair that only one reads.
MOST_SHOWN = 24


def comparison_page(comparison: Comparison, data: DataSet) -> str:
    """Return the page of a comparison as HTML; `data` holds its test images."""
    parts = [
        paragraph(say("{images:,} test images of {data}, the same for all; times on {machine}.", **vars(comparison))),
        section(say("Each net"), say(_INTERVALS[_several(comparison)]), _entries(comparison)),
        plot(_intervals(comparison)),
        section(say("In pairs"), _pair_words(comparison), _pairs(comparison)),
        section(
            say("Class by class"),
            say("How many test images of each class are classified correctly; first, where the nets differ most."),
            table(*class_rows(comparison)),
        ),
        *(
            _pictures(comparison, reader, other, data=data)
            for pair in comparison.pairs
            for reader, other in ((pair.first, pair.second), (pair.second, pair.first))
        ),
        footer(say("Made by Branchwork. The figures are also written by --json.")),
    ]
    nets = ", ".join(dict.fromkeys(entry.net for entry in comparison.entries))
    title = say("{nets} on {data}, compared", nets=nets, data=comparison.data)
    return page(title, parts)


def class_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of classes: where the nets differ most first."""
    totals = [of_class.images for of_class in comparison.pairs[0].classes]
    right = list(zip(*(entry.right for entry in comparison.entries), strict=True))
    spread = [(max(counts) - min(counts)) / max(1, total) for counts, total in zip(right, totals, strict=True)]
    order = sorted(range(len(totals)), key=lambda number: -spread[number])
    head = [say("class"), say("images"), *(entry.label for entry in comparison.entries), say("apart")]
    return head, [
        [
            comparison.classes[number],
            f"{totals[number]:,}",
            *(count_words(count) for count in right[number]),
            say("{points:.1f} points", points=100 * spread[number]),
        ]
        for number in order
    ]


def count_words(count: float) -> str:
    """Return a count, or to one digit a mean of counts over seeds."""
    return f"{count:,.0f}" if count == round(count) else f"{count:,.1f}"


_INTERVALS = {
    False: mark("Accuracy on the test images, with the 95% interval of each by itself (Wilson)."),
    True: mark("Mean accuracy over seeds, with the 95% interval for other seeds on the same test images (Student)."),
}


def _several(comparison: Comparison) -> bool:
    return comparison.pairs[0].seeds > 1


def _entries(comparison: Comparison) -> str:
    several = _several(comparison)
    measured = (say("parameters"), say("MACs"), say("ms per image"), say("training, s"))
    return table(
        ("", say("run"), *([say("seeds")] if several else []), say("test accuracy (95%)"), *measured),
        [
            (
                f"{entry.label}  {entry.net}",
                entry.folder,
                *([", ".join(map(str, entry.seeds))] if several else []),
                f"{entry.accuracy:.2%} ({100 * entry.interval[0]:.2f}–{100 * entry.interval[1]:.2f})",
                f"{entry.parameters:,}",
                f"{entry.macs:,}",
                milliseconds(entry.milliseconds),
                "–" if entry.train_seconds is None else f"{entry.train_seconds:.1f}",
            )
            for entry in comparison.entries
        ],
    )


def _intervals(comparison: Comparison) -> str:
    """Draw the accuracy of each net with its interval, and the difference of each pair with its."""
    entries, pairs = comparison.entries, comparison.pairs
    with new_figure(9.6, 0.9 + 0.34 * max(len(entries), len(pairs))) as figure:
        left, right = figure.subplots(1, 2)
        for row, entry in enumerate(entries):
            low, high = (100 * end for end in entry.interval)
            left.plot([low, high], [row, row], color=INK, linewidth=1.4)
            left.plot([100 * value for value in entry.accuracies], [row] * len(entry.accuracies), "|", color=INK)
            left.plot(100 * entry.accuracy, row, "o", color=GOOD)
        for row, pair in enumerate(pairs):
            right.plot([100 * pair.low, 100 * pair.high], [row, row], color=INK, linewidth=1.4)
            right.plot(100 * pair.difference, row, "o", color=AMBER)
        right.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        left.set_yticks(range(len(entries)), [entry.label for entry in entries])
        right.set_yticks(range(len(pairs)), [f"{pair.first} − {pair.second}" for pair in pairs])
        left.set_xlabel(say("test accuracy, %"))
        right.set_xlabel(say("difference, points"))
        for axes, rows in ((left, len(entries)), (right, len(pairs))):
            plain_axes(axes, "x")
            axes.set_ylim(rows - 0.5, -0.5)
        return inline_svg(figure)


def _pair_words(comparison: Comparison) -> str:
    tests = dict.fromkeys(TESTS[pair.test] for pair in comparison.pairs)
    words = [say("{sentence}.", sentence=verdict(pair)) for pair in comparison.pairs]
    words += [say("The test: {test}.", test=say(test)) for test in tests]
    if len(comparison.pairs) > 1:
        words.append(
            say(
                "Intervals, and p after Holm, are corrected for all {count} pairs together.",
                count=len(comparison.pairs),
            )
        )
    return " ".join(words)


def _pairs(comparison: Comparison) -> str:
    several = len(comparison.pairs) > 1
    tested = (say("difference, points (95%)"), say("p value"), *([say("after Holm")] if several else []))
    return table((say("pair"), *tested, say("only the first is right"), say("only the second")), pair_rows(comparison))


def pair_rows(comparison: Comparison) -> list[list[str]]:
    """Return the rows of the table of pairs, with p after Holm if there are several."""
    several = len(comparison.pairs) > 1
    return [
        [
            f"{pair.first} − {pair.second}",
            points_words(pair.difference, pair.low, pair.high),
            p_words(pair.p),
            *([p_words(pair.adjusted)] if several else []),
            count_words(pair.only_first),
            count_words(pair.only_second),
        ]
        for pair in comparison.pairs
    ]


def _pictures(comparison: Comparison, reader: str, other: str, *, data: DataSet) -> str:
    found = comparison.only(reader, other)
    shown = found[:MOST_SHOWN]
    words = say(
        "{count:,} pictures; the answer of {other} below each, with its probability, the most confident first.",
        count=len(found),
        other=other,
    )
    grid = image_grid(
        (pixels_of(data.test.images[each.index]), say("test image {index}", index=each.index), _caption(each, other))
        for each in shown
    )
    return section(say("{reader} gets them right, {other} does not", reader=reader, other=other), words, grid)


def _caption(each: Disagreement, other: str) -> str:
    return f"<b>{escape(each.true)}</b> → {escape(each.answers[other])}<br>{each.probabilities[other]:.0%}"

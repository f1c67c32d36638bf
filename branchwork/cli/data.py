"""branchwork data"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from branchwork.cli.output import Part, deliver, make_table, show, where_drawn
from branchwork.cli.parameters import DATA, Fit, Json, Size, Source, parse_size
from branchwork.language import listed, mark, say, times

if TYPE_CHECKING:
    from branchwork.datasets.dataset import FolderProblem, FolderReport
    from branchwork.datasets.describe import DataSummary
    from branchwork.datasets.pack import Packed

# The most problems shown of each kind; --json has all.
_SHOWN = 5

data = App(name="data", help_format="plaintext")


@data.default
def describe(
    name: Annotated[
        str, Parameter(help=f"{DATA}: MNIST if it can be fetched. All files of a folder are checked.")
    ] = "auto",
    /,
    *,
    draw: Annotated[Path | None, Parameter(help="Draw examples of each class into this file.")] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Fetch a data set or check a folder of images, and describe it."""
    import branchwork

    summary = branchwork.data(name, source=source, draw=draw, progress=True)
    deliver(summary, json_file, lambda: show(*parts(summary, draw)))


@data.command
def pack(
    folder: Annotated[
        Path, Parameter(help="A folder with a sub-folder for each class, or with train, val and test above them.")
    ],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The file; by default NAME.pack in the current folder.")] = None,
    size: Size = None,
    fit: Fit = None,
    json_file: Json = None,
) -> None:
    """Decode a folder of images once, into one file that is read at disk speed and need not fit in memory."""
    import branchwork

    packed = branchwork.pack(folder, out=out, size=parse_size(size), fit=fit, progress=True)
    deliver(packed, json_file, lambda: show(*packed_parts(packed)))


def packed_parts(packed: "Packed") -> list[Part]:
    shape, fit = times(packed.image_shape), packed.pictures
    return [
        *_report_lines(packed.report),
        say("{images:,} images {shape} by --fit {fit}", images=packed.images, shape=shape, fit=fit),
        say("pack: {file} ({size:,.1f} MB)", file=packed.file, size=packed.bytes / 1e6),
    ]


def parts(summary: "DataSummary", draw: Path | None = None) -> list[Part]:
    from branchwork.datasets.dataset import SPLITS

    table = make_table("class", *(split for split in SPLITS if split in summary.counts))
    for name in summary.counts["train"]:
        table.add_row(name, *(f"{counts[name]:,}" for counts in summary.counts.values()))
    table.add_section()
    table.add_row(say("all"), *(f"{sum(counts.values()):,}" for counts in summary.counts.values()))
    return [
        table,
        *([] if summary.report is None else _report_lines(summary.report)),
        say(
            "{name}: images {shape}, mean {mean}, standard deviation {deviation}",
            name=summary.name,
            shape=times(summary.image_shape),
            mean=listed(summary.mean),
            deviation=listed(summary.std),
        ),
        say("source:    {origin}", origin=summary.origin),
        *([say("folder:    {folder}", folder=summary.folder)] if summary.folder else []),
        *(f"  {name}  md5 {md5}" for name, md5 in summary.files.items()),
        *where_drawn("examples:  {file}", draw),
    ]


def _report_lines(report: "FolderReport") -> list[str]:
    from branchwork.datasets.load import held_out_words

    kinds: dict[str, list[FolderProblem]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, problems in kinds.items():
        message = mark("{kind}: {count:,}, left out" if problems[0].left_out else "{kind}: {count:,}")
        lines.append(say(message, kind=say(kind), count=len(problems)))
        lines += [f"  {problem.path}: {problem.message}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(say("  and {count:,} more: see --json FILE", count=len(problems) - _SHOWN))
    for kind, count in report.oddities.items():
        lines.append(say("{kind}: {count:,}, read as 8-bit grey or RGB", kind=say(kind), count=count))
    width, height = (
        say("{low:,} to {high:,} (median {middle:,})", low=low, high=high, middle=middle)
        for low, middle, high in (report.sizes.widths, report.sizes.heights)
    )
    (smallest, fewest), *_, (largest, most) = sorted(report.counts["train"].items(), key=lambda item: item[1])
    lines += [
        say("sizes: width × height {width} × {height}", width=width, height=height),
        say(
            "balance: from {fewest:,} ({smallest}) to {most:,} ({largest}) training images per class",
            fewest=fewest,
            smallest=smallest,
            most=most,
            largest=largest,
        ),
        say(
            "pictures in classes: {files:,}; {left_out:,} of them are left out",
            files=report.files,
            left_out=report.left_out,
        ),
    ]
    if report.held_out:
        lines.append(held_out_words(report))
    return ["\n".join(lines) + "\n"]

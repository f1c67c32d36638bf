"""branchwork data"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from branchwork.cli.output import deliver, make_table, show
from branchwork.cli.parameters import DATA, Fit, Json, Size, Source, parse_size
from branchwork.language import listed, times

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
    deliver(summary, json_file, lambda: _show(summary, draw))


@data.command
def pack(
    folder: Annotated[
        Path, Parameter(help="A folder with a sub-folder for each class, or with train, val and test above them.")
    ],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The file; by default NAME.pack in this folder.")] = None,
    size: Size = None,
    fit: Fit = None,
    json_file: Json = None,
) -> None:
    """Decode a folder of images once, into one file that is read at the speed of the disk and may exceed memory."""
    import branchwork

    packed = branchwork.pack(folder, out=out, size=parse_size(size), fit=fit, progress=True)
    deliver(packed, json_file, lambda: _show_packed(packed))


def _show_packed(packed: "Packed") -> None:
    show(
        *_report_lines(packed.report),
        f"{packed.images:,} images {times(packed.image_shape)} by --fit {packed.pictures}",
        f"pack: {packed.file} ({packed.bytes / 1e6:,.1f} MB)",
    )


def _show(summary: "DataSummary", draw: Path | None) -> None:
    table = make_table("class", *summary.counts)
    for name in summary.counts["train"]:
        table.add_row(name, *(f"{counts[name]:,}" for counts in summary.counts.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(counts.values()):,}" for counts in summary.counts.values()))
    show(
        table,
        *([] if summary.report is None else _report_lines(summary.report)),
        f"{summary.name}: images {times(summary.image_shape)}, "
        f"mean {listed(summary.mean)}, standard deviation {listed(summary.std)}",
        f"source:    {summary.origin}",
        *([f"folder:    {summary.folder}"] if summary.folder else []),
        *(f"  {name}  md5 {md5}" for name, md5 in summary.files.items()),
        *([] if draw is None else [f"examples:  {draw}"]),
    )


def _report_lines(report: "FolderReport") -> list[str]:
    kinds: dict[str, list[FolderProblem]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, problems in kinds.items():
        lines.append(f"{kind}: {len(problems):,}{', left out' if problems[0].left_out else ''}")
        lines += [f"  {problem.path}: {problem.message}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN:,} more: see --json FILE")
    lines += [f"{kind}: {count:,}, read as 8-bit grey or RGB" for kind, count in report.oddities.items()]
    sizes = " × ".join(
        f"{low:,} to {high:,} (median {middle:,})" for low, middle, high in (report.sizes.widths, report.sizes.heights)
    )
    (smallest, fewest), *_, (largest, most) = sorted(report.counts["train"].items(), key=lambda item: item[1])
    lines += [
        f"sizes: width × height {sizes}",
        f"balance: from {fewest:,} ({smallest}) to {most:,} ({largest}) training images per class",
        f"pictures in classes: {report.files:,}; {report.left_out:,} of them are left out",
    ]
    if report.held_out:
        lines.append(f"there is no test folder: {report.held_out:.0%} of each class are held out for testing")
    return ["\n".join(lines) + "\n"]

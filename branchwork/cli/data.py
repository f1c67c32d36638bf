"""branchwork data"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from branchwork.cli.output import DATA, Fit, Json, Size, Source, deliver, make_table, parse_size, show
from branchwork.language import listed, times

if TYPE_CHECKING:
    from branchwork.datasets.dataset import FolderProblem, FolderReport
    from branchwork.datasets.describe import DataSummary
    from branchwork.datasets.pack import Packed

# Of each kind of problem, as many are shown; --json has all.
_SHOWN = 5


data = App(name="data", help_format="plaintext")


@data.default
def describe(
    name: Annotated[
        str, Parameter(help=f"{DATA}: MNIST if it can be had. All files of a folder are checked.")
    ] = "auto",
    /,
    *,
    sheet: Annotated[
        Path | None, Parameter(help="Where examples are drawn; NAME-examples.png in this folder by default.")
    ] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Get a data set, or check a folder of images; say what is there, and draw a sheet of examples."""
    import branchwork
    from branchwork.cli.progress import Screen

    summary = branchwork.data(name, source=source, sheet=sheet or True, observer=Screen())
    deliver(summary, json_file, lambda: _show(summary))


@data.command
def pack(
    folder: Annotated[Path, Parameter(help="A folder with a sub-folder for each class, or train, val and test above.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The file; NAME.pack in this folder by default.")] = None,
    size: Size = None,
    fit: Fit = None,
    json_file: Json = None,
) -> None:
    """Decode a folder of images once, into one file that trains at the speed of the disk and may exceed memory."""
    import branchwork
    from branchwork.cli.progress import Screen

    packed = branchwork.pack(folder, out=out, size=parse_size(size), fit=fit, observer=Screen())
    deliver(packed, json_file, lambda: _show_packed(packed))


def _show_packed(packed: "Packed") -> None:
    show(
        *_checked(packed.report),
        f"{packed.images:,} images {times(packed.image_shape)} by --fit {packed.pictures}",
        f"pack: {packed.file} ({packed.bytes / 1e6:,.1f} MB)",
    )


def _show(summary: "DataSummary") -> None:
    table = make_table("class", *summary.counts)
    for name in summary.counts["train"]:
        table.add_row(name, *(f"{counts[name]:,}" for counts in summary.counts.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(counts.values()):,}" for counts in summary.counts.values()))
    show(
        table,
        *([] if summary.report is None else _checked(summary.report)),
        f"{summary.name}: images {times(summary.image_shape)}, "
        f"mean {listed(summary.mean)}, standard deviation {listed(summary.std)}",
        f"came from: {summary.origin}",
        *([f"kept in:   {summary.folder}"] if summary.folder else []),
        *(f"  {name}  md5 {md5}" for name, md5 in summary.files.items()),
        f"examples:  {summary.sheet}",
    )


def _checked(report: "FolderReport") -> list[str]:
    """What was found in a folder, in lines."""
    kinds: dict[str, list[FolderProblem]] = {}
    for problem in report.problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, problems in kinds.items():
        lines.append(f"{kind}: {len(problems):,}{', left out' * problems[0].left_out}")
        lines += [f"  {problem.path}: {problem.message}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN:,} more, which --json FILE names")
    lines += [f"{kind}: {count:,}, read as 8-bit grey or RGB" for kind, count in report.oddities.items()]
    sizes = " × ".join(
        f"{low:,} to {high:,} (median {middle:,})" for low, middle, high in (report.sizes.widths, report.sizes.heights)
    )
    (smallest, fewest), *_, (largest, most) = sorted(report.counts["train"].items(), key=lambda item: item[1])
    lines += [
        f"sizes: width × height {sizes}",
        f"balance: from {fewest:,} ({smallest}) to {most:,} ({largest}) training images a class",
        f"pictures in classes: {report.files:,}, of which {report.left_out:,} are left out",
    ]
    if report.held_out:
        lines.append(f"there is no test folder: {report.held_out:.0%} of each class are held out to test on")
    return ["\n".join(lines) + "\n"]

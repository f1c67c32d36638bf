"""branchwork data"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import DATA, Json, Source, deliver, make_table, show
from branchwork.language import listed, times

if TYPE_CHECKING:
    from branchwork.datasets.describe import DataSummary


def data(
    name: Annotated[str, Parameter(help=f"{DATA}: MNIST if it can be had.")] = "auto",
    /,
    *,
    sheet: Annotated[
        Path | None, Parameter(help="Where examples are drawn; NAME-examples.png in this folder by default.")
    ] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Get a data set; say what is there and where it came from, and draw a sheet of examples."""
    import branchwork
    from branchwork.cli.progress import Screen

    data_set = branchwork.load_data(name, source=source, observer=Screen())
    sheet = sheet or Path(f"{data_set.name}-examples.png")
    summary = branchwork.data(data_set, sheet=sheet)
    deliver(summary, json_file, lambda: _show(summary, sheet))


def _show(summary: "DataSummary", sheet: Path) -> None:
    table = make_table("class", "train", "test")
    train, test = summary.counts["train"], summary.counts["test"]
    for name in train:
        table.add_row(name, f"{train[name]:,}", f"{test[name]:,}")
    table.add_section()
    table.add_row("all", f"{sum(train.values()):,}", f"{sum(test.values()):,}")
    show(
        table,
        f"{summary.name}: images {times(summary.image_shape)}, "
        f"mean {listed(summary.mean)}, standard deviation {listed(summary.std)}",
        f"came from: {summary.origin}",
        *([f"kept in:   {summary.folder}"] if summary.folder else []),
        *(f"  {name}  md5 {md5}" for name, md5 in summary.files.items()),
        f"examples:  {sheet}",
    )

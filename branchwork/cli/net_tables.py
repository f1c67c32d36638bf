"""The tables of `inspect`: the operations, the branches of each join, and the 1×1 convolutions."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from branchwork.cli.output import Table, bar, fits, make_table
from branchwork.graph.words import brief
from branchwork.language import say, short_count, times
from branchwork.palette import AMBER, BLUE, LIGHT, RESIDUAL, colours_by_join

if TYPE_CHECKING:
    from branchwork.graph.bottlenecks import Reduction
    from branchwork.inspection.table import BranchCost, Inspection, Row

# A join of more branches has one row.
_MOST_BRANCHES = 8


def operations_table(inspection: "Inspection") -> Table:
    """Return a row for each operation or group of operations, with short numbers where a terminal is narrow."""
    table = _operations_table(inspection, lambda count: f"{count:,}")
    return table if fits(table, without=table.spare[:1]) else _operations_table(inspection, short_count)


def _operations_table(inspection: "Inspection", number: Callable[[int], str]) -> Table:
    title = say("{net}, one image of {shape}", net=inspection.net, shape=times(inspection.input_shape))
    table = make_table(
        "name", "operation", "output", "params", "MACs", "", "share", "memory",
        "field", title=title, spare=("memory", "share", "", "params", "output", "operation"),
    )  # fmt: skip
    table.columns[1].justify = table.columns[5].justify = "left"
    table.columns[1].no_wrap = False
    table.padding = (0, 1, 0, 0)
    colours = _colours(inspection.joins)
    most = max((row.share for row in inspection.rows), default=0) or 1
    block, branch = "", None
    for row in inspection.rows:
        name = row.name
        if inspection.by is None:
            top, _, rest = row.name.partition(".")
            if rest and top != block:
                table.add_row(top, inspection.blocks.get(top, ""), style="bold")
            if rest:
                name = f"  {_mark(row, branch)}{rest}"
            block, branch = top, row.branch
        colour = colours.get(row.branch or row.name, "")
        table.add_row(
            Text(name, style=colour),
            brief(row.op, row.detail),
            times(row.output_shape),
            number(row.parameters) if row.parameters else "·",
            number(row.macs) if row.macs else "·",
            Text(bar(row.share / most), style=colour or RESIDUAL),
            f"{row.share:.1%}" if row.macs else "·",
            in_bytes(row.activation_bytes) if row.activation_bytes else "·",
            times(row.receptive_field) if row.receptive_field else "·",
        )
    table.add_section()
    table.add_row(say("all"), "", "", number(inspection.parameters), number(inspection.macs), "", "100%", "", "")
    return table


def _colours(joins: "dict[str, tuple[BranchCost, ...]]") -> dict[str, str]:
    """Return the colour of each branch by its name in the rows: `incep1.cat/b5`."""
    colours = colours_by_join((join, branch.name) for join, branches in joins.items() for branch in branches)
    return {f"{join}/{name}": colour for (join, name), colour in colours.items()}


def _mark(row: "Row", before: str | None) -> str:
    """Return `├` for the first row of a join's branch, `│` for its further rows, `╰` for the join."""
    if row.op in ("cat", "add") and before is not None and row.branch != before:
        return "╰ "
    if row.branch is None:
        return ""
    return "│ " if row.branch == before else "├ "


def branches_table(joins: "dict[str, tuple[BranchCost, ...]]") -> Table:
    """Return a row for each branch of each join: its channels, its MACs, and their share of the net's."""
    title = say("The branches of each join")
    table = make_table("join", "branch", "channels", "MACs", "", "share", title=title, spare=("share", ""))
    table.columns[1].justify = table.columns[4].justify = "left"
    table.columns[1].no_wrap = False
    table.padding = (0, 1, 0, 0)
    colours = _colours(joins)
    most = max((branch.share for branches in joins.values() for branch in branches), default=0) or 1
    for join, branches in joins.items():
        if len(branches) > _MOST_BRANCHES:
            table.add_row(
                join, say("{n} branches", n=len(branches)), f"{sum(b.channels for b in branches):,}", "", "", ""
            )
            continue
        for index, branch in enumerate(branches):
            colour = colours[f"{join}/{branch.name}"]
            table.add_row(
                "" if index else join,
                Text(branch.name, style=colour),
                f"{branch.channels:,}",
                f"{branch.macs:,}" if branch.macs else "·",
                Text(bar(branch.share / most), style=colour),
                f"{branch.share:.1%}" if branch.macs else "·",
            )
    return table


def reductions_table(reductions: "Sequence[Reduction]") -> Table:
    """Return a row for each 1×1 convolution before a larger one: the MACs with it and without, and what it saves."""
    title = say("1×1 convolutions before a larger kernel: MACs with and without them")
    table = make_table(
        "where", "from → to", "before", "with", "without", "saves or costs", title=title,
        spare=("before", "with", "without"),
    )  # fmt: skip
    for saved in reductions:
        change = saved.direct - saved.total
        words = say("saves {n}", n=f"{change:,}") if change > 0 else say("costs {n}", n=f"{-change:,}")
        table.add_row(
            saved.name,
            f"{saved.channels} → {saved.through}",
            times(saved.kernel),
            f"{saved.total:,}",
            f"{saved.direct:,}",
            Text(words, style=LIGHT.good if change > 0 else LIGHT.bad) if change else "·",
        )
    return table


def reduction_table(saved: "Reduction") -> Table:
    """Return both ways to compute one convolution, alone and through a 1×1, with the products that are their MACs."""
    kernel, pixels = times(saved.kernel), saved.first // (saved.channels * saved.through)
    area = saved.kernel[0] * saved.kernel[1]
    title = say("{kernel} on {shape}, to {out} channels", kernel=kernel, shape=saved.name, out=saved.out)
    table = make_table("way", "pixels × kernel × from × to", "MACs", "", title=title, spare=("",))
    table.columns[1].justify = table.columns[3].justify = "left"
    for way, product, macs, colour in (
        (say("{kernel} alone", kernel=kernel), (pixels, area, saved.channels, saved.out), saved.direct, BLUE),
        (
            say("1×1 to {channels}", channels=saved.through),
            (pixels, 1, saved.channels, saved.through),
            saved.first,
            AMBER,
        ),
        (say("{kernel} after it", kernel=kernel), (pixels, area, saved.through, saved.out), saved.second, BLUE),
        (say("both"), (), saved.total, ""),
    ):
        words = " × ".join(f"{factor:,}" for factor in product)
        part = bar(macs / max(saved.direct, saved.total), cells=20)
        table.add_row(way, words, f"{macs:,}", Text(part, style=colour))
    return table


def in_bytes(count: int) -> str:
    """Return a size in megabytes or kilobytes: 389.2 kB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"

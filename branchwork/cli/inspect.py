"""branchwork inspect"""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from branchwork.cli.output import deliver, make_table, show
from branchwork.cli.parameters import STDOUT, Json, Shortcut, Stem, parse_image_shape, parse_sizes
from branchwork.errors import NetError
from branchwork.language import listed, times

if TYPE_CHECKING:
    from rich.table import Table

    from branchwork.graph.bottlenecks import Reduction
    from branchwork.inspection.table import Inspection, Row


@dataclass(frozen=True)
class BuildFlags:
    """How the net is built, and for which images."""

    input: Annotated[
        str | None,
        Parameter(help="Channels, height and width, such as 3x32x32, without the batch; the net's by default."),
    ] = None
    shortcut: Shortcut = None
    stem: Stem = None


@dataclass(frozen=True)
class ConvFlags:
    """One convolution, with a 1×1 convolution before it."""

    conv: Annotated[
        str | None, Parameter(help="Instead of a net: the input of one convolution, such as 192x28x28.")
    ] = None
    kernel: Annotated[int | None, Parameter(help="With --conv: the side of its kernel.")] = None
    out_channels: Annotated[int | None, Parameter(help="With --conv: its output channels.")] = None
    through: Annotated[
        int | None, Parameter(help="With --conv: the output channels of a 1×1 convolution before it.")
    ] = None


def inspect(
    net: Annotated[
        str | None, Parameter(help="A net of the catalogue, one of your own (file.py:Class), or a run folder.")
    ] = None,
    /,
    *,
    build: Annotated[BuildFlags, Parameter(name="*")] = BuildFlags(),
    by: Annotated[
        Literal["block", "branch", "op"] | None, Parameter(help="Sum the rows by block, by branch or by operation.")
    ] = None,
    draw: Annotated[Path | None, Parameter(help="Draw the net into this file, .svg or .png, for a slide.")] = None,
    lint: Annotated[bool, Parameter(negative=(), help="Also show what is probably a mistake, and where.")] = False,
    fix: Annotated[
        bool, Parameter(negative=(), help="Write what mends it, where lines are to be replaced, into file.patch.")
    ] = False,
    one: Annotated[ConvFlags, Parameter(name="*", group="1×1")] = ConvFlags(),
    json_file: Json = None,
) -> None:
    """Show every operation of a net: its shape, parameters, MACs, memory, and receptive field.

    With --conv, --kernel, --out-channels and --through: what a 1×1 convolution before another one saves.
    """
    import branchwork

    kernel, out, through = one.kernel, one.out_channels, one.through
    if one.conv is not None:
        if kernel is None or out is None or through is None or (net, build.input, by) != (None, None, None):
            raise NetError("--conv needs --kernel, --out-channels and --through, all three, and no net")
        shape = parse_image_shape(one.conv, "--conv")
        reduction = branchwork.reduction(shape, kernel=kernel, out_channels=out, through=through)
        deliver(reduction, json_file, lambda: _show_reduction(reduction))
        return
    if net is None or kernel is not None or out is not None or through is not None:
        raise NetError(
            "name a net to inspect, as in branchwork inspect inception, or give --conv, "
            "--kernel, --out-channels and --through"
        )
    from branchwork.nets.resolve import with_options

    net = with_options(net, {"shortcut": build.shortcut, "stem": build.stem})
    size = None if build.input is None else parse_sizes(build.input, "--input")
    with redirect_stdout(sys.stderr):  # a script's output must not mix with the table
        inspection = branchwork.inspect(net, size, by=by, draw=draw, lint=lint, fix=fix)
    deliver(inspection, json_file, lambda: _show(inspection, folded=by is not None))
    if draw is not None and json_file != STDOUT:
        show(f"drawn: {draw}")


def _show(inspection: "Inspection", *, folded: bool) -> None:
    title = f"{inspection.net}, one image of {times(inspection.input_shape)}"
    words = [*_totals(inspection), *_notes(inspection), *_findings(inspection)]
    show(_table(inspection, title, folded), *words)


def _table(inspection: "Inspection", title: str, folded: bool) -> "Table":
    table = make_table("name", "operation", "output", "parameters", "MACs", "share", "memory", "field", title=title)
    table.columns[0].overflow = "fold"
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    table.padding = (0, 1, 0, 0)
    block, branch = "", None
    for row in inspection.rows:
        name = row.name
        if not folded:
            top, _, rest = row.name.partition(".")
            if rest and top != block:
                table.add_row(top, inspection.blocks.get(top, ""), style="bold")
            if rest:
                name = f"  {_mark(row, branch)}{rest}"
            block, branch = top, row.branch
        table.add_row(
            name,
            f"{_OPERATIONS.get(row.op, row.op)} {row.detail}".strip(),
            times(row.output_shape),
            f"{row.parameters:,}" if row.parameters else "·",
            f"{row.macs:,}" if row.macs else "·",
            f"{row.share:.1%}" if row.macs else "·",
            _bytes(row.activation_bytes) if row.activation_bytes else "·",
            times(row.receptive_field) if row.receptive_field else "·",
        )
    table.add_section()
    table.add_row("all", "", "", f"{inspection.parameters:,}", f"{inspection.macs:,}", "100%", "", "")
    return table


_OPERATIONS = {"conv2d": "conv", "max_pool2d": "max-pool", "avg_pool2d": "avg-pool", "batch_norm": "batch norm"}


def _mark(row: "Row", before: str | None) -> str:
    """Return `├` for the first row of a join's branch, `│` for its further rows, `╰` for the join."""
    if row.op in ("cat", "add") and before is not None and row.branch != before:
        return "╰ "
    if row.branch is None:
        return ""
    return "│ " if row.branch == before else "├ "


def _totals(inspection: "Inspection") -> list[str]:
    lines = [
        f"{inspection.parameters:,} parameters ({_bytes(inspection.weight_bytes)}), {inspection.macs:,} MACs per image;"
        f" activations take at most {_bytes(inspection.peak_activation_bytes)} (inference, float32)"
    ]
    if inspection.depends_on_pixels:
        lines.append("its operations depend on the pixels: these are the ones for a black image")
    if inspection.smallest_input is not None:
        lines.append(f"the smallest square image that it accepts: {inspection.smallest_input} pixels")
    if inspection.unreached:
        lines.append(f"parameters that no operation uses: {', '.join(inspection.unreached)}")
    if inspection.classes is not None and inspection.mean is not None and inspection.std is not None:
        mean, std = map(listed, (inspection.mean, inspection.std))
        lines.append(f"classes: {', '.join(inspection.classes)}; pixels normalised with mean {mean}, deviation {std}")
    return lines


def _notes(inspection: "Inspection") -> list[str]:
    """Say what each branch of a join costs, and what each 1×1 convolution before a larger one saves or costs."""
    lines = []
    for name, branches in inspection.joins.items():
        if name.endswith("cat") or ".cat@" in name:
            parts = " · ".join(f"{b.name} {b.channels} channels, {b.share:.1%}" for b in branches)
            lines.append(f"{name} joins {parts} of the MACs")
    for saved in inspection.reductions:
        direction = "down " if saved.through < saved.channels else "up " if saved.through > saved.channels else ""
        change = saved.direct - saved.total
        lines.append(
            f"{saved.name}: 1×1 {direction}from {saved.channels} to {saved.through} channels before a "
            f"{times(saved.kernel)}: {'saves' if change > 0 else 'costs'} {abs(change):,} MACs "
            f"({saved.total:,} with it, {saved.direct:,} without)"
        )
    return lines


def _findings(inspection: "Inspection") -> list[str]:
    if inspection.findings is None:
        return []
    lines = [""]
    for finding in inspection.findings:
        location = f"  ({finding.file}, line {finding.line})" if finding.file is not None else ""
        lines.append(f"{finding.rule}: {finding.message}{location}")
    lines = lines if inspection.findings else ["", "lint: nothing found"]
    return lines if inspection.patch is None else [*lines, "", inspection.patch]


def _show_reduction(saved: "Reduction") -> None:
    kernel = times(saved.kernel)
    pixels = saved.first // (saved.channels * saved.through)
    area = saved.kernel[0] * saved.kernel[1]
    ratio = f"{saved.times:.2f} times fewer" if saved.times >= 1 else f"{1 / saved.times:.2f} times more"
    show(
        f"{kernel} alone:  {pixels:,} pixels × {area} × {saved.channels} × {saved.out} = {saved.direct:,} MACs",
        f"through 1×1:  {pixels:,} × {saved.channels} × {saved.through} = {saved.first:,}",
        f"   and {kernel}:  {pixels:,} × {area} × {saved.through} × {saved.out} = {saved.second:,}",
        f"   together:  {saved.total:,} MACs, {ratio}",
    )


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"

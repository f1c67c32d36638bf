"""branchwork inspect"""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from branchwork.cli.net_tables import (
    branches_table,
    in_bytes,
    operations_table,
    reduction_table,
    reductions_table,
)
from branchwork.cli.output import Part, deliver, show, where_drawn
from branchwork.cli.parameters import NOT_DRAWN, Drawing, Json, Shortcut, Stem, parse_image_shape, parse_sizes
from branchwork.errors import OURS, NetError
from branchwork.language import listed, say
from branchwork.training.options import RUN_SCRIPT

if TYPE_CHECKING:
    from branchwork.graph.bottlenecks import Reduction
    from branchwork.inspection.table import Inspection


@dataclass(frozen=True)
class BuildFlags:
    """How the net is built, and for which images."""

    input: Annotated[
        str | None,
        Parameter(help="Channels, height and width, such as 3x32x32, without the batch; the net's by default."),
    ] = None
    shortcut: Shortcut = None
    stem: Stem = None
    run_script: Annotated[bool, Parameter(negative=(), help=RUN_SCRIPT)] = False


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


@dataclass(frozen=True)
class LintFlags:
    """What is probably a mistake."""

    lint: Annotated[bool, Parameter(negative=(), help="Also show what is probably a mistake, and where.")] = False
    fix: Annotated[
        bool, Parameter(negative=(), help="Write a patch, file.patch, for whatever can be fixed by replacing lines.")
    ] = False


def inspect(
    net: Annotated[
        str | None, Parameter(help="A built-in net, one of your own (file.py:Class), or a run folder.")
    ] = None,
    /,
    *,
    build: Annotated[BuildFlags, Parameter(name="*")] = BuildFlags(),
    by: Annotated[
        Literal["block", "branch", "op"] | None, Parameter(help="Sum the rows by block, by branch or by operation.")
    ] = None,
    drawing: Drawing = NOT_DRAWN,
    mistakes: Annotated[LintFlags, Parameter(name="*")] = LintFlags(),
    one: Annotated[ConvFlags, Parameter(name="*", group="1×1")] = ConvFlags(),
    json_file: Json = None,
) -> None:
    """Show every operation of a net: its shape, parameters, MACs (multiply-accumulates), memory and receptive field.

    With --conv, --kernel, --out-channels and --through: what a 1×1 convolution before another one saves.
    """
    import branchwork

    draw, theme = drawing.draw, drawing.theme
    kernel, out, through = one.kernel, one.out_channels, one.through
    if one.conv is not None:
        if kernel is None or out is None or through is None or (net, build.input, by) != (None, None, None):
            raise NetError("--conv needs --kernel, --out-channels and --through, all three, and no net")
        shape = parse_image_shape(one.conv, "--conv")
        reduction = branchwork.reduction(shape, kernel=kernel, out_channels=out, through=through)
        if draw is not None:
            from branchwork.drawing.reduction_drawing import draw_reduction
            from branchwork.figures import legible

            with legible(draw):
                draw_reduction(reduction, draw, theme)
        deliver(reduction, json_file, lambda: show(*reduction_parts(reduction, draw)))
        return
    if net is None or kernel is not None or out is not None or through is not None:
        raise NetError(
            "name a net to inspect, as in branchwork inspect inception, or give --conv, "
            "--kernel, --out-channels and --through"
        )
    from branchwork.catalogue.resolve import whole_script, with_options

    net = whole_script(with_options(net, {"shortcut": build.shortcut, "stem": build.stem}), run=build.run_script)
    size = None if build.input is None else parse_sizes(build.input, "--input")
    with redirect_stdout(sys.stderr):  # a script's output must not mix with the table
        inspection = branchwork.inspect(net, size, by=by, draw=draw, theme=theme, lint=mistakes.lint, fix=mistakes.fix)
    deliver(inspection, json_file, lambda: show(*parts(inspection, draw)))


def parts(inspection: "Inspection", draw: Path | None = None) -> list[Part]:
    said: list[Part] = [operations_table(inspection), *_totals(inspection)]
    if inspection.joins:
        said += ["", branches_table(inspection.joins)]
    if inspection.reductions:
        said.append(reductions_table(inspection.reductions))
    return [*said, *_findings(inspection), *where_drawn("drawn: {file}", draw)]


def _totals(inspection: "Inspection") -> list[str]:
    lines = [
        say(
            "{parameters:,} parameters ({weights}), {macs:,} MACs per image; activations take at most {activations} "
            "(inference, float32)",
            **vars(inspection),
            weights=in_bytes(inspection.weight_bytes),
            activations=in_bytes(inspection.peak_activation_bytes),
        )
    ]
    if inspection.depends_on_pixels:
        lines.append(say("its operations depend on the pixels: these are the ones for a black image"))
    if inspection.smallest_input is not None:
        lines.append(say("the smallest square image that it accepts: {side} pixels", side=inspection.smallest_input))
    if inspection.unreached:
        lines.append(say("parameters that no operation uses: {names}", names=", ".join(inspection.unreached)))
    if inspection.classes is not None and inspection.mean is not None and inspection.std is not None:
        lines.append(
            say(
                "classes: {classes}; pixels normalised with mean {mean}, standard deviation {std}",
                classes=", ".join(inspection.classes),
                mean=listed(inspection.mean),
                std=listed(inspection.std),
            )
        )
    return lines


def _findings(inspection: "Inspection") -> list[str]:
    if inspection.findings is None:
        return []
    lines = [""]
    for finding in inspection.findings:
        words = finding.message
        if finding.file is not None and not finding.file.startswith(OURS):
            words = say("{message} ({file}, line {line})", message=words, file=finding.file, line=finding.line)
        lines.append(f"{finding.rule}: {words}")
    lines = lines if inspection.findings else ["", say("lint: nothing found")]
    return lines if inspection.patch is None else [*lines, "", inspection.patch]


def reduction_parts(saved: "Reduction", draw: Path | None = None) -> list[Part]:
    fewer, more = saved.times, 1 / saved.times
    words = (
        say("through the 1×1: {macs:,} MACs, {times:.2f} times fewer", macs=saved.total, times=fewer)
        if fewer >= 1
        else say("through the 1×1: {macs:,} MACs, {times:.2f} times more", macs=saved.total, times=more)
    )
    return [reduction_table(saved), words, *where_drawn("drawn: {file}", draw)]

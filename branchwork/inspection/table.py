"""The verb `inspect`: what a net does to an image, what each operation costs, and what its 1×1 convolutions save."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from branchwork.catalogue.input_size import smallest_square
from branchwork.drawing.drawing import MOST_DRAWN, draw_net, inline_drawing
from branchwork.errors import NetError
from branchwork.figures import legible
from branchwork.graph.bottlenecks import Reduction, reductions
from branchwork.graph.folding import fold, innermost_branches
from branchwork.graph.joins import Branch, Join
from branchwork.graph.program import Graph, Shape
from branchwork.graph.read import read
from branchwork.graph.teach import mends_of
from branchwork.graph.trace import Operation, Trace, trace_graph
from branchwork.inspection.evidence import Finding
from branchwork.inspection.fix import write_patches
from branchwork.inspection.lint import lint_graph
from branchwork.language import say
from branchwork.palette import ThemeName
from branchwork.shown import Shown
from branchwork.training.subject import resolve

By = Literal["block", "branch", "op"]


@dataclass(frozen=True)
class Row:
    """One operation, or several that were folded.

    `branch` is the branch of the innermost join that it belongs to, such as `incep1.cat/b5`; None outside of joins.
    `detail` has kernel, stride and padding. `output_shape` and `receptive_field` are those of the last operation.
    `share` is its fraction of the net's MACs.
    """

    name: str
    op: str
    detail: str
    branch: str | None
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    share: float
    activation_bytes: int
    receptive_field: tuple[int, int] | None


@dataclass(frozen=True)
class BranchCost:
    """A branch of a join: the channels that it gives, its MACs, and their fraction of the net's."""

    name: str
    channels: int
    macs: int
    share: float


@dataclass(frozen=True)
class Inspection(Shown):
    """What a net does to one image and what it costs.

    The parameters of `rows` and of `unreached`, which no operation uses, add up to `parameters`. `blocks` has the class
    of each child of the net. `smallest_input` is the side of the smallest square image, up to `input_shape`, that it
    takes as built. `by` is how rows are summed. `classes`, `mean` and `std` are a run's. `patch` says what --fix has
    written.
    """

    net: str
    input_shape: Shape
    parameters: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int
    depends_on_pixels: bool
    smallest_input: int | None
    rows: tuple[Row, ...]
    unreached: tuple[str, ...]
    joins: dict[str, tuple[BranchCost, ...]]
    reductions: tuple[Reduction, ...]
    blocks: dict[str, str]
    findings: tuple[Finding, ...] | None
    by: By | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    patch: str | None = None

    @property
    def drawing(self) -> str:
        """The drawing of the net as SVG, for an HTML page; "" where it has too many operations."""
        trace: Trace | None = self.__dict__.get("_drawn")
        return "" if trace is None or len(trace.operations) > MOST_DRAWN else inline_drawing(trace)


def inspect(
    net: str | Path | nn.Module,
    input_shape: Shape | None = None,
    *,
    by: By | None = None,
    draw: Path | None = None,
    theme: ThemeName = "light",
    lint: bool = False,
    fix: bool = False,
) -> Inspection:
    """Inspect `net`: a name in `NETS`, a script's `file.py:Class`, a run folder, or a module.

    `input_shape` is C, H, W, or whatever else the net takes, without the batch; by default what the net was designed
    for, what a run was trained on, or else 1×28×28. `by` sums the rows by block (the child of the net that contains
    them), by branch, or by kind of operation. With `draw`, the net is drawn into that file, `.svg` or `.png`, with a
    box for each block or branch if `by` says so; the paper of `theme` auto follows the reader's system. With `lint`,
    `findings` are the probable mistakes; otherwise None. Raises `NetError` if the net cannot be built or read.

    With `fix`, mistakes that are mended by replacing lines of the user's file, those that raise `NetError` too, are
    mended in a patch beside the file, and `patch` says what it holds; the file stays as it is.
    """
    try:
        subject = resolve(net, input_shape)
        graph = read(subject.net, subject.input_shape, single=True)
        traced = trace_graph(graph)
        drawn = fold(traced, by) if by == "block" or by == "branch" else traced
        if draw is not None:
            with legible(draw):
                draw_net(drawn, draw, _title(subject.name, traced), theme=theme)
        rows = _rows(traced) if drawn is traced else [replace(row, branch=None) for row in _rows(drawn)]
        rows = _sum_kinds(rows) if by == "op" else rows
        inspection = _inspect(graph, traced, subject.name, rows=rows, by=by, lint=lint or fix)
    except NetError as error:
        if not fix:
            raise
        raise NetError("{error}\n{patch}", error=error, patch=write_patches(mends_of(error))) from error
    if fix:
        found = inspection.findings or ()
        patch = write_patches([finding.mend for finding in found if finding.mend is not None])
        inspection = replace(inspection, patch=patch)
    if subject.run is not None:
        model = subject.run.model
        inspection = replace(inspection, classes=model.classes, mean=model.mean, std=model.std)
    object.__setattr__(inspection, "_drawn", drawn)  # no field: it is no figure, for JSON or to be compared
    return inspection


def _title(name: str, traced: Trace) -> str:
    return say(
        "{net}, {parameters:,} parameters, {macs:,} MACs per image",
        net=name,
        parameters=traced.parameters,
        macs=traced.macs,
    )


def _inspect(graph: Graph, traced: Trace, name: str, *, rows: Sequence[Row], by: By | None, lint: bool) -> Inspection:
    net, shape = graph.net, graph.input_shape
    return Inspection(
        net=name,
        input_shape=shape,
        parameters=traced.parameters,
        macs=traced.macs,
        weight_bytes=traced.weight_bytes,
        peak_activation_bytes=traced.peak_activation_bytes,
        depends_on_pixels=traced.depends_on_pixels,
        smallest_input=smallest_square(net, shape[0], min(shape[1:])) if len(shape) == 3 else None,
        rows=tuple(rows),
        unreached=traced.unreached,
        joins={join.node: tuple(_costs(join, traced)) for join in traced.joins},
        reductions=tuple(reductions(traced)),
        findings=lint_graph(graph, traced) if lint else None,
        by=by,
        blocks={path: name for path, name in traced.classes.items() if path and "." not in path},
    )


def _rows(traced: Trace) -> list[Row]:
    branches = {name: f"{join.node}/{branch.name}" for name, (join, branch) in innermost_branches(traced).items()}
    details: dict[str, str] = {}
    for join in traced.joins:
        details[join.node] = _meeting(next(n for n in traced.operations if n.name == join.node), join.branches)
    total = max(1, traced.macs)
    return [
        Row(
            name=node.name,
            op=node.op,
            detail=details.get(node.name, node.detail),
            branch=branches.get(node.name),
            output_shape=node.output_shape,
            parameters=node.parameters,
            macs=node.macs,
            share=node.macs / total,
            activation_bytes=node.activation_bytes,
            receptive_field=node.receptive_field,
        )
        for node in traced.operations
    ]


def _costs(join: Join, traced: Trace) -> Iterable[BranchCost]:
    macs = {node.name: node.macs for node in traced.operations}
    for branch in join.branches:
        total = sum(macs[name] for name in branch.nodes)
        yield BranchCost(branch.name, branch.channels, total, total / max(1, traced.macs))


def _meeting(node: Operation, branches: Sequence[Branch]) -> str:
    """Return what a join adds up: the channels for a concatenation, the branches for a sum."""
    if node.op == "add":
        return " + ".join(branch.name for branch in branches)
    return " + ".join(str(branch.channels) for branch in branches) + f" = {node.output_shape[0]}"


def _sum_kinds(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each kind of operation."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.op, []).append(row)
    return [
        Row(
            name=name,
            op=name if len(group) == 1 else say("{n} operations", n=len(group)),
            detail=group[0].detail if len(group) == 1 else "",
            branch=None,
            output_shape=group[-1].output_shape,
            parameters=sum(row.parameters for row in group),
            macs=sum(row.macs for row in group),
            share=sum(row.share for row in group),
            activation_bytes=sum(row.activation_bytes for row in group),
            receptive_field=group[-1].receptive_field,
        )
        for name, group in groups.items()
    ]

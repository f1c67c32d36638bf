"""A trace with one operation for each block, or for each branch of a join: for drawings that show less."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Literal

from branchwork.graph.joins import Branch, Join
from branchwork.graph.trace import Operation, Trace
from branchwork.graph.words import brief
from branchwork.language import say

# What a branch or a container is called by leaves these out.
_UNNAMED = ("batch_norm", "dropout", "relu", "cat", "add")
_MOST_NAMED = 4
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")

Key = tuple[str, str]  # the name of what is folded, and that of the join of which it is a branch


def fold(trace: Trace, by: Literal["block", "branch"]) -> Trace:
    """Return `trace` with the operations of each block or branch as one, which has their costs.

    A block is a child of the net. Where a block is left and entered again, what follows is an operation of its own. A
    join is kept where each of its branches still has an operation of its own.
    """
    keys = _branch_keys(trace) if by == "branch" else {op.name: (op.name.split(".")[0], "") for op in trace.operations}
    groups = _groups(trace, keys)
    names = _names([keys[group[0].name][0] for group in groups])
    home = {op.name: name for name, group in zip(names, groups, strict=True) for op in group}
    folded = {
        name: _operation(name, group, home, kind=trace.classes.get(name, "") if by == "block" else "")
        for name, group in zip(names, groups, strict=True)
    }
    order = TopologicalSorter({name: [i for i in op.inputs if i in folded] for name, op in folded.items()})
    alone = {home[group[0].name] for group in groups if len(group) == 1}
    return replace(
        trace,
        operations=tuple(folded[name] for name in order.static_order()),
        joins=tuple(
            replace(join, node=home[join.node])
            for join in trace.joins
            if home[join.node] in alone and len(folded[home[join.node]].inputs) == len(join.branches)
        ),
        outputs=tuple(dict.fromkeys(home.get(name, name) for name in trace.outputs)),
    )


def innermost_branches(trace: Trace) -> dict[str, tuple[Join, Branch]]:
    """Return for each operation in a branch the innermost join to which it belongs, and the branch."""
    branches: dict[str, tuple[Join, Branch]] = {}
    # From the largest join to the smallest, so that the innermost is what remains.
    for join in sorted(trace.joins, key=lambda join: -sum(len(branch.nodes) for branch in join.branches)):
        for branch in join.branches:
            branches |= dict.fromkeys(branch.nodes, (join, branch))
    return branches


def _branch_keys(trace: Trace) -> dict[str, Key]:
    paths = {op.name: op.path for op in trace.operations}
    return {op.name: (op.name, "") for op in trace.operations} | {
        name: (f"{paths[join.node]}.{branch.name}".removeprefix("."), join.node)
        for name, (join, branch) in innermost_branches(trace).items()
    }


def _groups(trace: Trace, keys: Mapping[str, Key]) -> list[list[Operation]]:
    """Return the operations of each key, in more than one group where something else stands between them."""
    groups: list[list[Operation]] = []
    needs: list[set[int]] = []  # the groups that each group reads
    home: dict[str, int] = {}
    latest: dict[Key, int] = {}

    def leads_to(index: int, targets: set[int]) -> bool:
        """Return whether one of `targets` needs the group `index`, directly or not."""
        found, waiting = set(targets), list(targets)
        while waiting:
            fresh = needs[waiting.pop()] - found
            found |= fresh
            waiting += fresh
        return index in found

    for op in trace.operations:
        read = {home[name] for name in op.inputs if name in home}
        index = latest.get(keys[op.name])
        if index is None or leads_to(index, read - {index}):
            index = latest[keys[op.name]] = len(groups)
            groups.append([])
            needs.append(set())
        groups[index].append(op)
        needs[index] |= read - {index}
        home[op.name] = index
    return groups


def _names(names: Sequence[str]) -> list[str]:
    """Return the names, those that were there before with a number: rblock1@2."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}@{seen[name]}")
    return unique


def _operation(name: str, group: Sequence[Operation], home: Mapping[str, str], *, kind: str) -> Operation:
    inputs = dict.fromkeys(home.get(source, source) for op in group for source in op.inputs)
    inputs.pop(name, None)
    last = group[-1]
    if len(group) == 1:
        return replace(last, name=name, inputs=tuple(inputs))
    return replace(
        last,
        name=name,
        path=name.rpartition(".")[0],
        op=_chain(group) if kind in ("", *_CONTAINERS) else kind,
        detail="",
        inputs=tuple(inputs),
        kernel=None,
        parameters=sum(op.parameters for op in group),
        macs=sum(op.macs for op in group),
        activation_bytes=sum(op.activation_bytes for op in group),
    )


def _chain(group: Sequence[Operation]) -> str:
    """Return what a branch does: 1×1 → 3×3 → 3×3."""
    words = [brief(op.op, op.detail, padding=False).removeprefix("conv ") for op in group if op.op not in _UNNAMED]
    if len(words) > _MOST_NAMED:
        words = [*words[:2], "…", words[-1]]
    return " → ".join(words) or say("{n} operations", n=len(group))

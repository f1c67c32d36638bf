"""Probable mistakes in a net that runs: each finding says where, and what to change.

A rule that cannot be sure stays silent: a correct net has no findings.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from branchwork.graph.costs import VIEWS
from branchwork.graph.program import Graph
from branchwork.graph.read import read
from branchwork.graph.trace import Operation, Trace, trace_graph
from branchwork.inspection.evidence import Evidence, Finding, run, within
from branchwork.inspection.segments import affine_chains
from branchwork.language import enumerated, say, sentences


def lint(net: nn.Module, input_shape: Sequence[int]) -> tuple[Finding, ...]:
    """Return the probable mistakes in `net` on images of `input_shape` (C, H, W); none for a correct net.

    `net` is left as it was. Raises `NetError` if its forward cannot be read.
    """
    graph = read(net, input_shape, single=True)
    return lint_graph(graph, trace_graph(graph))


def lint_graph(graph: Graph, trace: Trace) -> tuple[Finding, ...]:
    """Return the probable mistakes in the net of a graph.

    Copies of the net run forward and backward on two images of noise, in eval and in training mode.
    """
    runs = [run(graph.net, graph.input_shape, train=train) for train in (False, True)]
    seen = Evidence(graph, trace, *runs)
    return tuple(_together(finding for rule in _RULES for finding in rule(seen)))


def _together(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield one finding for each cause: the same words about the same line, apart from the numbers in them."""
    causes: dict[object, list[Finding]] = {}
    for finding in findings:
        words = re.sub(r"[\d,.]*\d[a-z]?\b", "#", finding.message)
        causes.setdefault((finding.rule, finding.file, finding.line, words), []).append(finding)
    for first, *others in causes.values():
        if others:
            names = enumerated([f"`{finding.module}`" for finding in (first, *others)], most=4)
            together = {"count": 1 + len(others), "names": names, "message": first.message}
            first = replace(first, message=say("in {count} blocks ({names}): {message}", **together))
        yield first


def _unused_modules(seen: Evidence) -> Iterator[Finding]:
    """Find modules that are defined and never called."""
    parameters = dict(seen.net.named_parameters())
    for module in _largest(set(seen.trace.unreached) - seen.moved, parameters):
        if module not in parameters:
            yield seen.finding(
                "unused-module",
                module,
                say(
                    "`{module}` has {count} parameters and is never called: call it in forward, or remove it.",
                    module=module,
                    count=_count(parameters, module),
                ),
            )


def _unread_layers(seen: Evidence) -> Iterator[Finding]:
    """Find layers that are called, and whose output nobody reads."""
    for unread in seen.unread:
        advice = (
            say("Read it in what follows, or remove the call.")
            if unread.reader is None
            else say(
                "Both read the same input: give `{reader}` what `{layer}` returns, or remove `{layer}`.",
                reader=unread.reader,
                layer=unread.layer,
            )
        )
        file, line = unread.place or (None, None)
        message = sentences((str(unread), advice))
        yield Finding("unread-output", unread.layer.partition("@")[0], file, line, message, unread.mend)


def _no_gradient(seen: Evidence) -> Iterator[Finding]:
    """Find parameters that are used but cannot learn, because no gradient reaches them."""
    if seen.eval is None and seen.train is None:
        return
    parameters = dict(seen.net.named_parameters())
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    in_vain = [name.partition("@")[0] for unread in seen.unread for name in unread.operations]
    frozen |= {name for name in parameters if any(within(name, layer) for layer in in_vain)}
    for module in _largest(set(parameters) - set(seen.trace.unreached) - seen.moved - frozen, parameters):
        yield seen.finding(
            "no-gradient",
            module,
            say(
                "no gradient reaches `{module}`, so its {count} parameters never learn: remove the detach(), "
                "torch.no_grad() or .data after it, or freeze it explicitly with requires_grad_(False).",
                module=module,
                count=_count(parameters, module),
            ),
        )


def _shared_modules(seen: Evidence) -> Iterator[Finding]:
    """Find layers with parameters that read the same tensor in several branches of a join.

    Sharing between different tensors is a design: Siamese nets, recurrent steps, one head for all scales.
    """
    nodes = seen.nodes
    # A module may have several paths: the first stands for all.
    first = {module: path for path, module in seen.net.named_modules()}
    one_path = {path: first[module] for path, module in seen.net.named_modules(remove_duplicate=False)}
    layers = [path for module, path in first.items() if any(True for _ in module.parameters(recurse=False))]
    reported: set[str] = set()
    for join in seen.trace.joins:
        uses: dict[str, list[Operation]] = {}
        branches = [set(branch.nodes) for branch in join.branches]
        for name in sorted(set().union(*branches)):
            layer = one_path.get(name.partition("@")[0], "")
            if layer in layers:
                uses.setdefault(layer, []).append(nodes[name])
        shared = {
            layer for layer, nodes_of in uses.items() if len({_branch_of(node, branches) for node in nodes_of}) > 1
        }
        same = {layer for layer in shared if _read_alike(uses[layer], nodes)}
        for module in _largest(shared, [*layers, join.node]):
            if module not in reported and any(within(layer, module) for layer in same):
                reported.add(module)
                yield seen.finding(
                    "shared-module",
                    module,
                    say(
                        "`{module}` is one module used in several branches that meet in `{join}`, so they share its "
                        "weights. Give each branch its own module.",
                        module=module,
                        join=join.node,
                    ),
                )


def _branch_of(node: Operation, branches: Sequence[Collection[str]]) -> int:
    """Return the index of the first branch that has `node`: a stem that several branches read is in all of them."""
    return next(index for index, branch in enumerate(branches) if node.name in branch)


def _read_alike(uses: Iterable[Operation], nodes: Mapping[str, Operation]) -> bool:
    """Return whether two of these read the same tensor, directly or through a pooling that keeps its shape."""
    read = []
    for use in uses:
        source = use.inputs[0]
        while source in nodes and nodes[source].op in ("avg_pool2d", "max_pool2d") and nodes[source].stride == (1, 1):
            source = nodes[source].inputs[0]
        # The parts of a split have one name in the trace.
        if source not in nodes or nodes[source].op not in ("chunk", "split", "split_with_sizes", "unbind"):
            read.append(source)
    return len(set(read)) < len(read)


def _batch_norm_one(seen: Evidence) -> Iterator[Finding]:
    """Find batch norms of maps of one pixel. After a linear layer they are common and well understood."""
    norms = [n for n in seen.trace.operations if n.op == "batch_norm" and n.output_shape[1:] == (1, 1)]
    if norms:
        others = say(" (and {count} more)", count=len(norms) - 1) if len(norms) > 1 else ""
        yield seen.finding(
            "batch-norm-one",
            norms[0].path,
            say(
                "`{norm}`{others} normalises maps of 1×1: in training, a batch of one image has a single value per "
                "channel and fails. Use batches of at least 2 and drop a smaller last one, or remove the norm.",
                norm=norms[0].path,
                others=others,
            ),
        )


def _softmax_end(seen: Evidence) -> Iterator[Finding]:
    """Find a softmax at the end that also runs in training: probabilities in eval mode only are fine.

    A log_softmax is a habit that goes with nll_loss, and does no harm with cross-entropy: twice is once.
    """
    nodes = seen.nodes
    last = nodes.get(seen.trace.outputs[0]) if len(seen.trace.outputs) == 1 else None
    while last is not None and last.op in VIEWS:
        last = nodes.get(last.inputs[0])
    if last is None or last.op != "softmax":
        return
    output = seen.train.output if seen.train is not None else None
    if isinstance(output, Tensor):
        sums = (output.sum(axis) for axis in range(1, output.dim()))
        if not any(bool((total - 1).abs().max() < 1e-3) for total in sums):  # no probabilities in training
            return
    message = say(
        "the net ends in softmax, but cross-entropy applies log_softmax itself: both together squeeze the gradients. "
        "Return the logits, and apply softmax where probabilities are shown."
    )
    yield Finding("softmax-end", last.path, last.file, last.line, message)


def _output_type(seen: Evidence) -> Iterator[Finding]:
    """Find outputs whose type or structure differs in training."""
    if seen.eval is None or seen.train is None:
        return
    in_eval, in_train = _kind(seen.eval.output), _kind(seen.train.output)
    if in_eval != in_train:
        yield Finding(
            "output-type",
            "",
            *seen.forward(""),
            say(
                "the net returns {in_train} in train mode and {in_eval} in eval mode: return one tensor of logits in "
                "both, and let the training read auxiliary heads by name.",
                in_train=in_train,
                in_eval=in_eval,
            ),
        )


def _kind(output: Any) -> str:
    """Return the type and structure of a value in words."""
    if isinstance(output, Tensor):
        return say("a tensor of {dtype}", dtype=str(output.dtype).removeprefix("torch."))
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"{name}({', '.join(f'{key}: {_kind(value)}' for key, value in output.items())})"
    if isinstance(output, tuple | list):
        return f"{name}({', '.join(map(_kind, output))})"
    return name


def _affine(seen: Evidence) -> Iterator[Finding]:
    """Find layers with no activation between them."""
    for segment in affine_chains(seen.graph, seen.trace):
        blocks = _largest(segment.nodes, seen.nodes)
        names = [f"`{b}`" for b in blocks if any(within(layer, b) for layer in segment.layers)]
        figures = {"macs": segment.macs, "fewer": segment.collapsed_macs, "one": segment.collapsed}
        yield seen.finding(
            "affine",
            names[0].strip("`"),
            sentences(
                (
                    say("{names} is one affine map: there is no activation in between.", names=names[0])
                    if len(names) == 1
                    else say(
                        "{names} and {last} are one affine map: there is no activation in between.",
                        names=", ".join(names[:-1]),
                        last=names[-1],
                    ),
                    say("{macs:,} MACs as written, {fewer:,} as {one}.", **figures)
                    if segment.collapsed_macs < segment.macs
                    else say(
                        "{macs:,} MACs as written, and {fewer:,} as {one}: the few channels in between make it cheaper "
                        "as written.",
                        **figures,
                    ),
                    say(
                        "Put a ReLU after each convolution or linear layer except the net's last, or collapse them "
                        "into one."
                    ),
                )
            ),
        )


def _largest(names: Collection[str], everything: Iterable[str]) -> list[str]:
    """Return `names`, with each block for its names if all of them are there."""
    everything = list(everything)
    others = set(everything) - set(names)
    largest: dict[str, None] = {}
    for name in everything:
        if name in names:
            parts = name.split(".")
            blocks = (".".join(parts[:depth]) for depth in range(1, len(parts)))
            largest[next((b for b in blocks if not any(within(other, b) for other in others)), name)] = None
    return list(largest)


def _count(parameters: Mapping[str, nn.Parameter], module: str) -> str:
    return f"{sum(p.numel() for name, p in parameters.items() if within(name, module)):,}"


_RULES = (
    _unused_modules,
    _unread_layers,
    _shared_modules,
    _affine,
    _no_gradient,
    _batch_norm_one,
    _softmax_end,
    _output_type,
)

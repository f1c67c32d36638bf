"""Probable mistakes in a net that runs: each finding says where, and what to change.

A rule that cannot be sure stays silent: a correct net has no findings.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from branchwork.graph.costs import VIEWS
from branchwork.graph.program import Graph
from branchwork.graph.read import read
from branchwork.graph.trace import Operation, Trace, trace_graph
from branchwork.inspection.segments import affine_chains


@dataclass(frozen=True)
class Finding:
    """One probable mistake: the path of its module, "" for the net itself, and the line in the user's own code."""

    rule: str
    module: str
    file: str | None
    line: int | None
    message: str


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
    runs = [_run(graph.net, graph.input_shape, train=train) for train in (False, True)]
    seen = _Seen(graph, trace, *runs)
    return tuple(finding for rule in _RULES for finding in rule(seen))


@dataclass(frozen=True)
class _ForwardBackward:
    """One forward and backward: the output, and the names of the parameters that a gradient reached."""

    output: Any
    moved: frozenset[str]


@dataclass(frozen=True)
class _Seen:
    """What the rules look at. A run is None if the net fails in that mode or returns no tensor."""

    graph: Graph
    trace: Trace
    eval: _ForwardBackward | None
    train: _ForwardBackward | None

    @property
    def net(self) -> nn.Module:
        return self.graph.net

    @property
    def nodes(self) -> dict[str, Operation]:
        return {node.name: node for node in self.trace.operations}

    @property
    def moved(self) -> set[str]:
        """The parameters that a gradient reaches in at least one mode: auxiliary heads run in training only."""
        return set().union(*(run.moved for run in (self.eval, self.train) if run is not None))

    def finding(self, rule: str, module: str, message: str) -> Finding:
        """Return a finding about a module, at its first operation or at the forward that should have called it."""
        for node in self.trace.operations:
            if node.file is not None and _within(node.name.partition("@")[0], module.partition("@")[0]):
                return Finding(rule, module, node.file, node.line, message)
        return Finding(rule, module, *self._forward(module), message)

    def _forward(self, module: str) -> tuple[str | None, int | None]:
        """Return file and line of the forward of the nearest enclosing module whose class is the user's own."""
        while True:
            module = module.rpartition(".")[0]
            code = getattr(type(self.net.get_submodule(module)).forward, "__code__", None)
            if code is not None and "/torch/" not in code.co_filename:
                return code.co_filename, code.co_firstlineno
            if not module:
                return None, None


def _run(net: nn.Module, input_shape: Sequence[int], *, train: bool) -> _ForwardBackward | None:
    """Run a copy forward and backward. All of its parameters get a gradient, since freezing is not a mistake."""
    twin = copy.deepcopy(net).train(train)
    parameters = {name: p.requires_grad_() for name, p in twin.named_parameters() if p.is_floating_point()}
    weight = next(iter(parameters.values()), torch.zeros(()))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            output = twin(torch.rand(2, *input_shape, dtype=weight.dtype, device=weight.device))
            tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
            ends = [tensor.sum() for tensor in tensors if tensor.requires_grad]
            gradients = torch.autograd.grad(ends, list(parameters.values()), allow_unused=True) if ends else ()
        except Exception:  # the net's own code may raise anything; it is enough that it could be read
            return None
    reached = zip(parameters, gradients, strict=True) if ends else ()
    return _ForwardBackward(output, frozenset(name for name, g in reached if g is not None)) if tensors else None


def _unused_modules(seen: _Seen) -> Iterator[Finding]:
    """Find modules that are defined and never called."""
    parameters = dict(seen.net.named_parameters())
    for module in _largest(set(seen.trace.unreached) - seen.moved, parameters):
        if module not in parameters:
            yield seen.finding(
                "unused-module",
                module,
                f"`{module}` has {_count(parameters, module)} parameters and is never called: call it in forward, "
                "or remove it.",
            )


def _no_gradient(seen: _Seen) -> Iterator[Finding]:
    """Find parameters that are used but cannot learn, because no gradient reaches them."""
    if seen.eval is None and seen.train is None:
        return
    parameters = dict(seen.net.named_parameters())
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    for module in _largest(set(parameters) - set(seen.trace.unreached) - seen.moved - frozen, parameters):
        yield seen.finding(
            "no-gradient",
            module,
            f"no gradient reaches `{module}`, so its {_count(parameters, module)} parameters never learn: remove the "
            "detach(), torch.no_grad() or .data after it, or freeze it explicitly with requires_grad_(False).",
        )


def _shared_modules(seen: _Seen) -> Iterator[Finding]:
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
            if module not in reported and any(_within(layer, module) for layer in same):
                reported.add(module)
                yield seen.finding(
                    "shared-module",
                    module,
                    f"`{module}` is one module used in several branches that meet in `{join.node}`, so they share its "
                    "weights. Give each branch its own module.",
                )


def _branch_of(node: Operation, branches: Sequence[Collection[str]]) -> int:
    """Return the index of the first branch that has `node`: a stem that several branches read is in all of them."""
    return next(index for index, branch in enumerate(branches) if node.name in branch)


def _read_alike(uses: Iterable[Operation], nodes: Mapping[str, Operation]) -> bool:
    """Return whether two of these read the same tensor, directly or through a pooling that keeps its shape."""
    read = []
    for use in uses:
        source = use.inputs[0]
        while source in nodes and _keeps_shape(nodes[source]):
            source = nodes[source].inputs[0]
        # The parts of a split have one name in the trace.
        if source not in nodes or nodes[source].op not in ("chunk", "split", "split_with_sizes", "unbind"):
            read.append(source)
    return len(set(read)) < len(read)


def _keeps_shape(node: Operation) -> bool:
    return node.op in ("avg_pool2d", "max_pool2d") and node.stride == (1, 1)


def _batch_norm_one(seen: _Seen) -> Iterator[Finding]:
    """Find batch norms of maps of one pixel. After a linear layer they are common and well understood."""
    norms = [n for n in seen.trace.operations if n.op == "batch_norm" and n.output_shape[1:] == (1, 1)]
    if norms:
        others = f" (and {len(norms) - 1} more)" if len(norms) > 1 else ""
        yield seen.finding(
            "batch-norm-one",
            norms[0].path,
            f"`{norms[0].path}`{others} normalises maps of 1×1: in training, a batch of one image has a single value "
            "per channel and fails. Use batches of at least 2 and drop a smaller last one, or remove the norm.",
        )


def _softmax_end(seen: _Seen) -> Iterator[Finding]:
    """Find a softmax at the end that also runs in training: probabilities in eval mode only are fine."""
    nodes = seen.nodes
    last = nodes.get(seen.trace.outputs[0]) if len(seen.trace.outputs) == 1 else None
    while last is not None and last.op in VIEWS:
        last = nodes.get(last.inputs[0])
    if last is None or last.op not in ("softmax", "log_softmax"):
        return
    output = seen.train.output if seen.train is not None else None
    if isinstance(output, Tensor) and not _sums_to_one(output.exp() if last.op == "log_softmax" else output):
        return
    harm = "squeezes the gradients" if last.op == "softmax" else "gains nothing"
    message = (
        f"the net ends in {last.op}, but cross-entropy applies log_softmax itself: applying it twice {harm}. Return "
        "the logits, and apply softmax where probabilities are shown."
    )
    yield Finding("softmax-end", last.path, last.file, last.line, message)


def _sums_to_one(output: Tensor) -> bool:
    return any(bool((output.sum(axis) - 1).abs().max() < 1e-3) for axis in range(1, output.dim()))


def _output_type(seen: _Seen) -> Iterator[Finding]:
    """Find outputs whose type or structure differs in training."""
    if seen.eval is None or seen.train is None:
        return
    in_eval, in_train = _kind(seen.eval.output), _kind(seen.train.output)
    if in_eval != in_train:
        yield Finding(
            "output-type",
            "",
            *seen._forward(""),
            f"the net returns {in_train} in train mode and {in_eval} in eval mode: return one tensor of logits in "
            "both, and let the training read auxiliary heads by name.",
        )


def _kind(output: Any) -> str:
    """Return the type and structure of a value in words."""
    if isinstance(output, Tensor):
        return f"a tensor of {str(output.dtype).removeprefix('torch.')}"
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"{name}({', '.join(f'{key}: {_kind(value)}' for key, value in output.items())})"
    if isinstance(output, tuple | list):
        return f"{name}({', '.join(map(_kind, output))})"
    return name


def _affine(seen: _Seen) -> Iterator[Finding]:
    """Find layers with no activation between them."""
    for segment in affine_chains(seen.graph, seen.trace):
        blocks = _largest(segment.nodes, seen.nodes)
        names = [f"`{b}`" for b in blocks if any(_within(layer, b) for layer in segment.layers)]
        title = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
        written, collapsed = f"{segment.macs:,} MACs", f"{segment.collapsed_macs:,}"
        if segment.collapsed_macs < segment.macs:
            cost = f"{written} as written, {collapsed} as {segment.collapsed}"
        else:
            cost = f"{written} as written, and {collapsed} as {segment.collapsed}: the saving comes from a lower rank"
        yield seen.finding(
            "affine",
            names[0].strip("`"),
            f"{title} one affine map: there is no activation in between. {cost}. "
            "Put a ReLU after each convolution or linear layer except the net's last, or collapse them into one.",
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
            largest[next((b for b in blocks if not any(_within(other, b) for other in others)), name)] = None
    return list(largest)


def _within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _count(parameters: Mapping[str, nn.Parameter], module: str) -> str:
    return f"{sum(p.numel() for name, p in parameters.items() if _within(name, module)):,}"


_RULES = (
    _unused_modules,
    _shared_modules,
    _affine,
    _no_gradient,
    _batch_norm_one,
    _softmax_end,
    _output_type,
)

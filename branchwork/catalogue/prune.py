"""A net without some of its branches: they leave their joins, and the layers that read their channels are narrowed."""

import copy
import difflib
from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from branchwork.blocks import Add, Concat
from branchwork.errors import FAILURES, NetError, first_line, nearest, with_line
from branchwork.language import say

# The most joins listed in a message about an unknown one.
MOST_NAMES = 8

Branch = tuple[str, str]
"""The path of a join and the name of one of its branches: `incep1.b5` is ("incep1", "b5")."""


def prune(net: nn.Module, input_shape: tuple[int, ...], branches: Collection[str]) -> nn.Module:
    """Return a copy of `net` without `branches`, for inputs C×H×W, with the net's weights in all that is left.

    A branch is `incep1.b5`, the path of its `Concat` or `Add` and its name, or `b5`: every branch of that name.
    Convolutions, batch norms and linear layers that read the channels of a removed branch of a `Concat` lose those
    inputs; an `Add` sums the branches that are left. In eval mode the logits are those of `net` when its convolutions
    and linear layers read zeros in place of the channels: what the branch's output set to zero would give, except that
    a batch norm in between would shift the zeros.

    Raises `NetError` if there is no such branch, if its join would keep none, or if its channels meet others in any
    other layer.
    """
    removed = find_branches(net, branches)
    probe, pruned = copy.deepcopy(net).to("cpu", torch.float64).eval(), copy.deepcopy(net)
    twins = dict(zip(probe.modules(), pruned.modules(), strict=True))
    image = torch.rand(2, *input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lost, expected = _lost_inputs(probe, image, removed)
    joins = find_joins(pruned)  # before any branch goes, since a join may lie within another's branch
    for path, name in removed:
        delattr(joins[path], name)
    for module, inputs in lost.items():
        _narrow(twins[module], ~inputs)
    _check(pruned, image, expected, removed=removed)
    return pruned


def find_joins(net: nn.Module) -> dict[str, Concat | Add]:
    """Return every `Concat` and `Add` of `net` by its path, which is empty for `net` itself."""
    return {path: module for path, module in net.named_modules() if isinstance(module, Concat | Add)}


def find_branches(net: nn.Module, names: Collection[str]) -> list[Branch]:
    """Return the branches that `names` stand for, each once, in the order of the net.

    Raises `NetError` if a name stands for no branch, or if a join would keep none.
    """
    joins = find_joins(net)
    if not joins:
        raise NetError(
            "{names} cannot be left out: this net has no join with named branches. Write its blocks "
            "as branchwork.Concat(b1=…, b5=…), or branchwork.Add(residual=…, shortcut=…)",
            names=", ".join(names),
        )
    chosen = {branch for name in names for branch in _matching(joins, name)}
    for path, join in joins.items():
        if all((path, name) in chosen for name in join.branches()):
            raise NetError(
                "{path} would lose all of its branches ({branches}): keep one",
                path=path or say("the join"),
                branches=", ".join(join.branches()),
            )
    return [(path, name) for path, join in joins.items() for name in join.branches() if (path, name) in chosen]


def _matching(joins: dict[str, Concat | Add], name: str) -> list[Branch]:
    path, _, branch = name.rpartition(".")
    if not path:
        matches = [(path, branch) for path, join in joins.items() if branch in join.branches()]
        if not matches:
            known = {known for join in joins.values() for known in join.branches()}
            raise NetError("no join has a branch {branch!r}.{hint}", branch=branch, hint=nearest(branch, known))
        return matches
    if path not in joins:
        near = difflib.get_close_matches(path, joins, n=MOST_NAMES, cutoff=0.0)
        raise NetError("there is no join {path!r}.{hint}", path=path, hint=nearest(path, near))
    if branch not in joins[path].branches():
        raise NetError(
            "{path} has no branch {branch!r}.{hint}",
            path=path,
            branch=branch,
            hint=nearest(branch, joins[path].branches()),
        )
    return [(path, branch)]


class _Marked(nn.Module):
    """A branch whose output has the shape of `branch`'s, with NaN for every value."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(self.branch(x), torch.nan)


def _lost_inputs(probe: nn.Module, image: Tensor, removed: list[Branch]) -> tuple[dict[nn.Module, Tensor], Tensor]:
    """Return the inputs that each layer loses, and the logits if convolutions and linear layers read 0 in their place.

    The channels of the branches are marked with NaN, which poolings, activations, views and concatenations carry along.
    """
    lost: dict[nn.Module, Tensor] = {}
    paths = {module: path or say("the net") for path, module in probe.named_modules()}
    joins = find_joins(probe)
    for module in probe.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NetError("{path} is a TorchScript module, whose layers cannot be narrowed", path=paths[module])
        if [*module.parameters(recurse=False)] or isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(partial(_note_lost, lost=lost, paths=paths))
    for path, name in removed:
        join = joins[path]
        if isinstance(join, Add):
            delattr(join, name)
        else:
            setattr(join, name, _Marked(join.branches()[name]))
    try:
        with torch.no_grad():
            logits = probe(image)
    except NetError:
        raise
    except FAILURES as reason:
        raise NetError(
            "the net cannot run on inputs of {shape}: {reason}",
            shape=tuple(image.shape[1:]),
            reason=_describe(reason),
        ) from reason
    return {module: inputs for module, inputs in lost.items() if bool(inputs.any())}, logits


def _note_lost(
    module: nn.Module, args: tuple[Tensor, ...], *, lost: dict[nn.Module, Tensor], paths: dict[nn.Module, str]
) -> tuple[Tensor, ...] | None:
    """Note which inputs of a layer are marked. A convolution or a linear layer then reads zeros in their place."""
    (x, *_), path = args, paths[module]
    marks = x.isnan().transpose(0, -1 if isinstance(module, nn.Linear) else 1).flatten(1)
    inputs = marks.all(1)
    if module in lost and not torch.equal(lost[module], inputs):
        raise NetError("{path} is used more than once, but only one of its uses reads the branch's channels", path=path)
    lost[module] = inputs
    if not bool(marks.any()):
        return None
    if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or getattr(module, "groups", 1) > 1:
        layer = say("grouped convolution") if isinstance(module, nn.Conv2d) else type(module).__name__
        raise NetError(
            "{path} reads the branch's channels, but a {layer} cannot be narrowed to its other inputs",
            path=path,
            layer=layer,
        )
    if bool((marks.any(1) != inputs).any()):
        raise NetError("{path} reads the branch's channels mixed with others: they cannot be separated", path=path)
    if bool(inputs.all()):
        raise NetError("{path} reads only channels of removed branches: keep one of them", path=path)
    return None if isinstance(module, nn.BatchNorm2d) else (x.nan_to_num(nan=0.0),)


def _narrow(module: nn.Module, kept: Tensor) -> None:
    """Keep only the inputs `kept`, a mask, of a layer."""
    indices = kept.nonzero()[:, 0]
    axis = 1
    keys: tuple[str, ...] = ("weight",)
    if isinstance(module, nn.BatchNorm2d):
        module.num_features = len(indices)
        axis, keys = 0, ("running_mean", "running_var", "weight", "bias")
    elif isinstance(module, nn.Conv2d):
        module.in_channels = len(indices)
    else:
        assert isinstance(module, nn.Linear), "_note_lost refuses every other layer"
        module.in_features = len(indices)
    for key in keys:
        tensor: Tensor | None = getattr(module, key)
        if tensor is not None:
            narrow = tensor.detach().index_select(axis, indices.to(tensor.device))
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(module, key, nn.Parameter(narrow, tensor.requires_grad) if is_parameter else narrow)


def _check(pruned: nn.Module, image: Tensor, expected: Tensor, *, removed: list[Branch]) -> None:
    """Raise `NetError` if `pruned` cannot run, or if its logits are not `expected`."""
    names = ", ".join(f"{path}.{name}".lstrip(".") for path, name in removed)
    try:
        with torch.no_grad():
            logits = copy.deepcopy(pruned).to("cpu", torch.float64).eval()(image)
    except FAILURES as reason:
        raise NetError(
            "the net cannot run without {names}: {reason}", names=names, reason=_describe(reason)
        ) from reason
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-9, atol=1e-9):
        raise NetError(
            "the channels of {names} meet others outside convolutions, linear layers and joins, so the net "
            "without them would compute something else: keep them",
            names=names,
        )


def _describe(reason: BaseException) -> str:
    return with_line(str(reason) if isinstance(reason, NetError) else first_line(reason), reason)

"""A net without some of its branches: they are taken out of their joins, and what read their channels is narrowed."""

import copy
import difflib
from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from branchwork.blocks import Add, Concat
from branchwork.errors import NetError, first_line, nearest, own_line

# Of joins, in a message about one that is not there.
MOST_NAMES = 8

Branch = tuple[str, str]
"""The path of a join and the name of one of its branches: `incep1.b5` is ("incep1", "b5")."""


def prune(net: nn.Module, input_shape: tuple[int, ...], branches: Collection[str]) -> nn.Module:
    """A copy of `net` without `branches`, for inputs of C×H×W; the weights of what is left are the net's own.

    A branch is `incep1.b5`, the path of its `Concat` or `Add` and its name, or `b5`, which is every branch of that name
    in the net. Convolutions, batch norms and linear layers that read the channels of a `Concat`'s branch lose these
    inputs. In eval mode the logits are those of `net` where its convolutions and linear layers read zeros in place of
    these channels: the same as with the branch's output set to zero, but where a batch norm lies between, which would
    shift the zeros. An `Add` sums what is left.

    Raises `NetError` where there is no such branch, where it is the last of its join, and where its channels meet
    others in something else than the layers above.
    """
    removed = find_branches(net, branches)
    probe, pruned = copy.deepcopy(net).to("cpu", torch.float64).eval(), copy.deepcopy(net)
    twins = dict(zip(probe.modules(), pruned.modules(), strict=True))
    image = torch.rand(2, *input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lost, expected = _lost_inputs(probe, image, removed)
    joins = find_joins(pruned)  # found before any is taken out, since one may lie within another's branch
    for path, name in removed:
        delattr(joins[path], name)
    for module, inputs in lost.items():
        _narrow(twins[module], ~inputs)
    _check(pruned, image, expected, removed)
    return pruned


def find_joins(net: nn.Module) -> dict[str, Concat | Add]:
    """Every `Concat` and `Add` of `net` by its path, which is empty for `net` itself."""
    return {path: module for path, module in net.named_modules() if isinstance(module, Concat | Add)}


def find_branches(net: nn.Module, names: Collection[str]) -> list[Branch]:
    """The branches of `net` that `names` name, in the order in which they are in it, each once.

    Raises `NetError` where a name is that of no branch, or where a join would keep none.
    """
    joins = find_joins(net)
    if not joins:
        raise NetError(
            f"{', '.join(names)} cannot be left out: this net has no join whose branches have names. Write its blocks "
            "as branchwork.Concat(b1=…, b5=…), or branchwork.Add(residual=…, shortcut=…)"
        )
    chosen = {branch for name in names for branch in _named(joins, name)}
    for path, join in joins.items():
        if all((path, name) in chosen for name in join.branches()):
            raise NetError(
                f"{path or 'the join'} would lose all of its branches ({', '.join(join.branches())}): leave one in"
            )
    return [(path, name) for path, join in joins.items() for name in join.branches() if (path, name) in chosen]


def _named(joins: dict[str, Concat | Add], name: str) -> list[Branch]:
    path, _, branch = name.rpartition(".")
    if not path:
        found = [(where, branch) for where, join in joins.items() if branch in join.branches()]
        if not found:
            known = {known for join in joins.values() for known in join.branches()}
            raise NetError(f"no join has a branch {branch!r}.{nearest(branch, known)}")
        return found
    if path not in joins:
        near = difflib.get_close_matches(path, joins, n=MOST_NAMES, cutoff=0.0)
        raise NetError(f"there is no join {path!r}.{nearest(path, near)}")
    if branch not in joins[path].branches():
        raise NetError(f"{path} has no branch {branch!r}.{nearest(branch, joins[path].branches())}")
    return [(path, branch)]


class _Marked(nn.Module):
    """A branch that gives the channels of `branch`, each value not a number."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(self.branch(x), torch.nan)


def _lost_inputs(probe: nn.Module, image: Tensor, removed: list[Branch]) -> tuple[dict[nn.Module, Tensor], Tensor]:
    """Which inputs each layer of `probe` loses, and the logits where convolutions and linear layers read zeros there.

    The channels of the branches are marked as not a number, which poolings, activations, views and concatenations
    carry along by themselves.
    """
    lost: dict[nn.Module, Tensor] = {}
    paths = {module: path or "the net" for path, module in probe.named_modules()}
    joins = find_joins(probe)
    for module in probe.modules():
        if [*module.parameters(recurse=False)] or isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(partial(_note_lost, lost, paths))
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
    except Exception as reason:  # whatever else a learner's own forward raises
        raise NetError(f"the net cannot be run on inputs of {tuple(image.shape[1:])}: {_words(reason)}") from reason
    return {module: inputs for module, inputs in lost.items() if bool(inputs.any())}, logits


def _note_lost(
    lost: dict[nn.Module, Tensor], paths: dict[nn.Module, str], module: nn.Module, args: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    """Note which inputs of a layer are marked; a convolution or a linear layer then reads zeros in their place."""
    (x, *_), where = args, paths[module]
    marks = x.isnan().transpose(0, -1 if isinstance(module, nn.Linear) else 1).flatten(1)
    inputs = marks.all(1)
    if module in lost and not torch.equal(lost[module], inputs):
        raise NetError(f"{where} is used more than once, and only one of its uses would lose the branch's channels")
    lost[module] = inputs
    if not bool(marks.any()):
        return None
    if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or getattr(module, "groups", 1) > 1:
        kind = "grouped convolution" if isinstance(module, nn.Conv2d) else type(module).__name__
        raise NetError(f"{where} reads the branch's channels and cannot lose some of its inputs: it is a {kind}")
    if bool((marks.any(1) != inputs).any()):
        raise NetError(f"{where} reads the branch's channels mixed with others, and cannot lose them")
    if bool(inputs.all()):
        raise NetError(f"{where} reads nothing but channels of branches that are taken out: leave one in")
    return None if isinstance(module, nn.BatchNorm2d) else (x.nan_to_num(nan=0.0),)


def _narrow(module: nn.Module, kept: Tensor) -> None:
    """Take all inputs but the `kept` from a layer."""
    kept = kept.nonzero()[:, 0]
    assert isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d), "the probe has let no other pass"
    if isinstance(module, nn.BatchNorm2d):
        module.num_features = len(kept)
        for key in ("running_mean", "running_var"):
            if getattr(module, key) is not None:
                setattr(module, key, getattr(module, key)[kept.to(getattr(module, key).device)].clone())
        for key in ("weight", "bias"):
            if getattr(module, key) is not None:
                _replace(module, key, 0, kept)
        return
    if isinstance(module, nn.Conv2d):
        module.in_channels = len(kept)
    else:
        module.in_features = len(kept)
    _replace(module, "weight", 1, kept)


def _replace(module: nn.Module, key: str, axis: int, kept: Tensor) -> None:
    weight: nn.Parameter = getattr(module, key)
    narrow = weight.detach().index_select(axis, kept.to(weight.device))
    setattr(module, key, nn.Parameter(narrow, requires_grad=weight.requires_grad))


def _check(pruned: nn.Module, image: Tensor, expected: Tensor, removed: list[Branch]) -> None:
    """Raises `NetError` where `pruned` cannot be run, or gives other logits than `expected`."""
    names = " and ".join(f"{path}.{name}".lstrip(".") for path, name in removed)
    try:
        with torch.no_grad():
            found = copy.deepcopy(pruned).to("cpu", torch.float64).eval()(image)
    except Exception as reason:
        raise NetError(f"the net cannot be run without {names}: {_words(reason)}") from reason
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
        raise NetError(
            f"the channels of {names} meet others outside of convolutions, linear layers and joins, so that the net "
            "without them would be another one: leave them in"
        )


def _words(reason: Exception) -> str:
    line = own_line(reason)
    return f"{reason if isinstance(reason, NetError) else first_line(reason)}{f' ({line})' if line else ''}"

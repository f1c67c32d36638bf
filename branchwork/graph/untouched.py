"""Running a net to learn about it, and leaving it as it was: mode, attributes, buffers, hooks, random numbers."""

import copy
import logging
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from branchwork.language import say

# Switches and hooks of torch, the attributes of a net, and random numbers belong to all threads.
ONE_AT_A_TIME = threading.RLock()

_TENSORS = {"_parameters", "_buffers", "_modules"}


def eval_copy(net: nn.Module) -> nn.Module:
    """Return a copy of `net` in eval mode that shares its tensors, so that a large net is not held twice."""
    with ONE_AT_A_TIME:
        attributes = (value for module in net.modules() for value in vars(module).values())
        # Computed ones, such as the weight of torch's old weight_norm, cannot be copied.
        shared: dict[int, Any] = {id(value): value.detach() for value in attributes if isinstance(value, Tensor)}
        shared |= {id(b): b.detach() for b in net.buffers()}
        shared |= {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in net.parameters()}
        return copy.deepcopy(net, shared).eval()


def has_script(net: nn.Module) -> bool:
    """Return whether `net` has a part in TorchScript, which cannot be moved to the meta device."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in net.modules())


def blank(net: nn.Module, count: int, shape: Sequence[int]) -> Tensor:
    """Return `count` black images C×H×W with the dtype and on the device of the weights of `net`."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(count, *shape, dtype=like.dtype, device=like.device)


@contextmanager
def alone(device: torch.device | None = None) -> Iterator[None]:
    """Keep other threads out of here, and restore the random numbers of torch, and of a GPU `device`, at the end."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def borrowed(net: nn.Module, *, train: bool = False) -> Iterator[None]:
    """Run `net` in here on copies of its buffers, and without any trace left behind.

    It is in eval mode, or with `train` in the mode that it was in.
    """
    with alone():
        copies = {id(buffer): buffer.detach().clone() for buffer in net.buffers()}
        with mode(net, train=train), untouched(net), holding(net, copies):
            yield


@contextmanager
def mode(net: nn.Module, *, train: bool) -> Iterator[None]:
    """Put every module of `net` in eval mode, or with `train` leave each in its own; then restore the modes."""
    before = {module: module.training for module in net.modules()}
    try:
        for module in () if train else before:
            module.training = False  # not `eval()`: a class may override it to do more
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def untouched(net: nn.Module) -> Iterator[list[str]]:
    """Restore the attributes of all modules of `net`, and the random states of Python and NumPy, at the end.

    The list then names what had changed. Parameters and buffers are left to `holding`.
    """
    changed: list[str] = []
    python_state, numpy_state = random.getstate(), np.random.get_state(legacy=False)
    before = [(path, module, _attributes(module)) for path, module in net.named_modules()]
    try:
        yield changed
    finally:
        for path, module, attributes in before:
            for name in vars(module).keys() - attributes.keys() - _TENSORS:
                delattr(module, name)
                changed.append(f"{path}.{name}".lstrip("."))
            for name, (value, members) in attributes.items():
                if _differs(vars(module).get(name), value) or _members(value) != members:
                    vars(module)[name] = _refilled(value, members)
                    changed.append(f"{path}.{name}".lstrip("."))
        if random.getstate() != python_state:
            changed.append(say("Python's random numbers"))
            random.setstate(python_state)
        if str(np.random.get_state(legacy=False)) != str(numpy_state):
            changed.append(say("NumPy's random numbers"))
            np.random.set_state(numpy_state)


@contextmanager
def holding(net: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[dict[int, Tensor]]:
    """Replace parameters and buffers of `net`, by their `id`, and put them back at the end.

    The dict then has what stood in the place of each, by the same `id`. `torch.func.functional_call` would leave the
    replacements behind where one module has two names.
    """
    slots: list[tuple[dict[str, Any], str, Tensor]] = [
        (registry, name, tensor)
        for module in net.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # which takes no other tensors
        for registry in (module._parameters, module._buffers)
        for name, tensor in registry.items()
        if tensor is not None
    ]
    left: dict[int, Tensor] = {}
    try:
        for registry, name, tensor in slots:
            registry[name] = tensors.get(id(tensor), tensor)
        yield left
    finally:
        for registry, name, tensor in slots:
            left[id(tensor)] = registry[name]
            registry[name] = tensor


@contextmanager
def hushed(name: str) -> Iterator[None]:
    """Silence a library's logger, but for what is critical."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and its members if it is a container that may be changed in place."""
    return {name: (value, _members(value)) for name, value in vars(module).items() if name not in _TENSORS}


class _Identical(list[Any]):
    """Members that are equal only if they are the same objects: tensors cannot be compared with `==`."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identical) and list(map(id, self)) == list(map(id, other))

    __hash__ = None


def _members(value: Any) -> Any:
    if isinstance(value, dict):
        return list(value), _Identical(value.values())
    return _Identical(value) if isinstance(value, list | set) else None


def _refilled(value: Any, members: Any) -> Any:
    if isinstance(value, dict):
        value.clear()
        value.update(zip(*members, strict=True))
    elif isinstance(value, list):
        value[:] = members
    elif isinstance(value, set):
        value.clear()
        value.update(members)
    return value


def _differs(now: Any, before: Any) -> bool:
    if now is before:
        return False
    return not isinstance(now, int | float | str) or not isinstance(before, int | float | str) or now != before

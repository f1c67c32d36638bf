"""Running a net to learn of it, with all that its forward changes put back: attributes, random numbers, buffers."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn


@contextmanager
def untouched(net: nn.Module) -> Iterator[list[str]]:
    """Put the attributes of the modules of `net`, and the random numbers of Python and NumPy, back at the end.

    The list then names what had changed. Parameters and buffers are left alone: whoever reads a net puts others there.
    """
    changed: list[str] = []
    draws, numpys = random.getstate(), np.random.get_state(legacy=False)
    before = [(path, module, _attributes(module)) for path, module in net.named_modules()]
    try:
        yield changed
    finally:
        for path, module, attributes in before:
            for name in vars(module).keys() - attributes.keys() - _TENSORS:
                delattr(module, name)
                changed.append(f"{path}.{name}".lstrip("."))
            for name, (value, members) in attributes.items():
                now = vars(module).get(name)
                if _is_another(now, value) or _members(value) != members:
                    vars(module)[name] = _refilled(value, members)
                    changed.append(f"{path}.{name}".lstrip("."))
        if random.getstate() != draws:
            changed.append("Python's random numbers")
            random.setstate(draws)
        if str(np.random.get_state(legacy=False)) != str(numpys):
            changed.append("NumPy's random numbers")
            np.random.set_state(numpys)


@contextmanager
def holding(net: nn.Module, given: Mapping[int, Tensor]) -> Iterator[dict[int, Tensor]]:
    """Other tensors in the place of those of `net`, by their `id`. What stands there at the end is then in the dict.

    Not by `functional_call`, which leaves them there where one module has two names.
    """
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (own, name, tensor)
        for module in net.modules()
        for own in (module._parameters, module._buffers)
        for name, tensor in own.items()
        if tensor is not None
    ]
    left: dict[int, Tensor] = {}
    try:
        for own, name, tensor in places:
            own[name] = given.get(id(tensor), tensor)
        yield left
    finally:
        for own, name, tensor in places:
            left[id(tensor)] = own[name]
            own[name] = tensor


_TENSORS = {"_parameters", "_buffers", "_modules"}


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute with its members, where it is a container that may be changed in place."""
    return {name: (value, _members(value)) for name, value in vars(module).items() if name not in _TENSORS}


class _Same(list[Any]):
    """Members that are equal where they are the very same: tensors do not say whether they are equal."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and list(map(id, self)) == list(map(id, other))

    __hash__ = None


def _members(value: Any) -> Any:
    if isinstance(value, dict):
        return list(value), _Same(value.values())
    return _Same(value) if isinstance(value, list | set) else None


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


def _is_another(now: Any, value: Any) -> bool:
    if now is value:
        return False
    return not isinstance(now, int | float | str) or not isinstance(value, int | float | str) or now != value

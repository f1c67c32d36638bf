"""Running torch on tensors without numbers, and not importing its compiler, which takes longer than all else."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"


class _StandIn(ModuleType):
    """Stands for torch's compiler as long as torch only tells it which functions it must leave alone.

    Asked for anything else, it makes way for the compiler.
    """

    @staticmethod
    def disable(function: Callable[..., Any], recursive: bool = True, wrapping: bool = True) -> Callable[..., Any]:
        """Return `function` as it is."""
        return function

    def __getattr__(self, name: str) -> Any:
        sys.modules.pop(_COMPILER, None)
        return getattr(importlib.import_module(_COMPILER), name)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Keep torch from importing its compiler in here: its operations on the device `meta` do so to disable it."""
    stand_in = _StandIn(_COMPILER)
    if sys.modules.setdefault(_COMPILER, stand_in) is stand_in:
        try:
            yield
        finally:
            if sys.modules.get(_COMPILER) is stand_in:
                del sys.modules[_COMPILER]
    else:
        yield

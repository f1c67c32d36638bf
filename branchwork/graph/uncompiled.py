"""Use torch without importing its compiler, which takes as long to import as all the rest of torch."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_COMPILER = "torch._dynamo"


class _StandIn(ModuleType):
    """Takes the place of torch's compiler while torch only asks it to leave functions alone.

    If torch asks for anything else, the real compiler is imported.
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
    """Keep torch from importing its compiler, which operations on the device `meta` do only to disable it."""
    stand_in = _StandIn(_COMPILER)
    if sys.modules.setdefault(_COMPILER, stand_in) is stand_in:
        try:
            yield
        finally:
            if sys.modules.get(_COMPILER) is stand_in:
                del sys.modules[_COMPILER]
    else:
        yield


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that does not import torch's compiler. Torch's own does, to keep the compiler out of it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

"""What takes the place of a value that a script needs and that was not made."""

import traceback
from typing import Any

from branchwork.errors import NetError

# What is done to a value, apart from taking its attributes.
_OPERATIONS = (
    "call", "iter", "next", "len", "bool", "index", "int", "float", "contains", "lt", "le", "gt", "ge",
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow",
    "rpow", "neg", "abs", "setitem", "enter", "exit", "mro_entries",
)  # fmt: skip


class StandIn:
    """What a name holds whose value was not made: whatever needs the value raises the `NetError` that says why."""

    def __init__(self, problem: NetError, *, is_import: bool = False) -> None:
        self._problem, self._is_import = problem, is_import

    def complain(self, *_: object) -> Any:
        raise self._problem

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return self._part()

    def _part(self, *_: object) -> "StandIn":
        """Return what an annotation or a longer name takes from a module."""
        return self if self._is_import else self.complain()

    def __instancecheck__(self, instance: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return self is other if self._is_import else self.complain()  # types in annotations are compared

    __hash__ = object.__hash__
    __getitem__ = __or__ = __ror__ = _part


for _operation in _OPERATIONS:
    setattr(StandIn, f"__{_operation}__", StandIn.complain)


def stand_in_of(reason: BaseException) -> StandIn | None:
    """Return a stand-in that code met which then failed: torch does not let its `NetError` through."""
    for frame, _ in traceback.walk_tb(reason.__traceback__):
        for value in (*frame.f_locals.values(), *(frame.f_globals.get(name) for name in frame.f_code.co_names)):
            if type(value) is StandIn:
                return value
    return None

"""Reading the values of a pickle without running anything that it names: only opcodes that stand for data are known.

CIFAR-10's official archive holds pickles. Python's own reader would import and call whatever a file says.
"""

import io
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from branchwork.errors import DataError

# What numpy's arrays, and the bytes of Python 3, name in a pickle. None of it is looked up.
_NAMES = {
    *(f"{module} _reconstruct" for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",
}
# Opcodes whose argument is the value.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_COUNTED = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class Call:
    """What a pickle would have called, with which arguments, and the state that it would have set."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_pickle(content: bytes, name: str) -> Any:
    """Return the value in the pickle `content`: dicts, lists, tuples, numbers and texts, and a `Call` for an object.

    Bytes of Python 2 are texts in latin1. Raises `DataError` for whatever is not data, or damaged; `name` is what it is
    called then.
    """
    try:
        return _run(content)
    except DataError as reason:
        raise DataError("{name} is not read: {reason}", name=name, reason=reason) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as reason:
        raise DataError("{name} is damaged, or no pickle of data: fetch it again", name=name) from reason


def _run(content: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def popped_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    def top(count: int) -> list[Any]:
        if count > len(stack) - (marks[-1] if marks else 0):
            raise IndexError(count)
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (value,) = stack
                return value
            case "MARK":
                marks.append(len(stack))
            case kind if kind in _VALUES:
                stack.append(argument)
            case kind if kind in _CONSTANTS:
                stack.append(_CONSTANTS[kind])
            case kind if kind in _COUNTED:
                stack.append(tuple(top(_COUNTED[kind])))
            case "TUPLE":
                stack.append(tuple(popped_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(popped_mark())
            case "APPEND" | "APPENDS":
                values = top(1) if opcode.name == "APPEND" else popped_mark()
                _expect(stack[-1], list).extend(values)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                stack.append(_pairs(popped_mark()))
            case "SETITEM" | "SETITEMS":
                values = top(2) if opcode.name == "SETITEM" else popped_mark()
                _expect(stack[-1], dict).update(_pairs(values))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(argument))
            case "STACK_GLOBAL":
                stack.append(_known(" ".join(top(2))))
            case "REDUCE":
                called, arguments = top(2)
                stack.append(_call(_expect(called, _Name), _expect(arguments, tuple)))
            case "BUILD":
                (state,) = top(1)
                _expect(stack[-1], Call).state = state
            case kind:
                raise DataError("it holds more than data (the opcode {kind}), and nothing in it is run", kind=kind)
    raise AssertionError("genops ends with STOP, or raises")


class _Name(str):
    """A name in a pickle, which is no text: `REDUCE` takes nothing else."""

    __slots__ = ()


def _known(name: str) -> _Name:
    if name not in _NAMES:
        raise DataError(
            "it would run {name}: a file of a data set has no reason to, and nothing in it is run",
            name=name.replace(" ", "."),
        )
    return _Name(name)


def _call(name: _Name, arguments: tuple[Any, ...]) -> Any:
    if name == "_codecs encode":  # bytes, which protocol 2 of Python 3 writes as a text in latin1
        text, encoding = arguments
        if encoding != "latin1":
            raise ValueError(encoding)
        return _expect(text, str)
    return Call(str(name), arguments)


def _pairs(values: Sequence[Any]) -> dict[str, Any]:
    if len(values) % 2:
        raise ValueError(len(values))
    return {_expect(key, str): value for key, value in list(pairwise(values))[::2]}


def _expect(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(type(value))
    return value

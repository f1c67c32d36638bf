"""Mends: the line of a user's file that would put a mistake right, found in its source, which is not run."""

import ast
import inspect
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

from torch import nn

from branchwork.errors import attribute_meant, is_library, own_frame
from branchwork.files import encoding_of_python


@dataclass(frozen=True)
class Mend:
    """One line of a user's file, as it is and as it should be, without the end of the line."""

    file: str
    line: int
    before: str
    after: str


# Where a line is replaced: from a column to another, both in characters, and what stands there afterwards.
_Edit = tuple[int, int, str]


class Source:
    """A Python file as it is on disk: its lines with their ends, its encoding, and its syntax tree."""

    def __init__(self, file: str) -> None:
        self.file, content = file, Path(file).read_bytes()
        encoding = encoding_of_python(content)
        if encoding is None:
            raise ValueError("neither UTF-8 nor GBK")
        self.encoding = encoding.removesuffix("-sig")  # the mark at the start stays, so that a patch finds its line
        self.lines = io.StringIO(content.decode(self.encoding), newline="").readlines()

    def tree(self) -> ast.Module:
        return ast.parse("".join(self.lines).removeprefix("\ufeff"))

    def mend(self, line: int, edits: list[_Edit]) -> Mend | None:
        before = after = self.lines[line - 1].rstrip("\r\n")
        for start, end, text in sorted(edits, reverse=True):
            after = after[:start] + text + after[end:]
        return Mend(self.file, line, before, after) if after != before else None

    def column(self, line: int, offset: int) -> int:
        """Return the column of an offset in a syntax tree, which counts bytes of UTF-8."""
        return len(self.lines[line - 1].encode()[:offset].decode())


def _source(file: str) -> Source | None:
    """Return a user's file; None if it is a library's, or no Python that can be read."""
    if is_library(file) or not file.endswith(".py"):
        return None
    try:
        source = Source(file)
        source.tree()
    except (OSError, SyntaxError, ValueError):
        return None
    return source


def renamed(file: str, line: int, *, old: str, new: str) -> Mend | None:
    """Return the line with the attribute or method `old` called `new`; None if it has several of the name, or none."""
    source = _source(file)
    places = [*re.finditer(rf"(?:\.|\bdef )({old})\b", source.lines[line - 1])] if source is not None else []
    return source.mend(line, [(*places[0].span(1), new)]) if source is not None and len(places) == 1 else None


def respelt(reason: AttributeError) -> Mend | None:
    """Return the user's line with the attribute that was probably meant in the place of the one that there is not."""
    close, frame = attribute_meant(reason), own_frame(reason)
    if not close or frame is None or frame.lineno is None or reason.name is None:
        return None
    return renamed(frame.filename, frame.lineno, old=reason.name, new=close)


def handed_on(made: tuple[str, int], read: tuple[str, int], layer: str) -> Mend | None:
    """Return the line `read`, where `self.layer(x)` gets what the line `made` assigns; None if that is not so plain."""
    source = _source(read[0]) if made[0] == read[0] else None
    if source is None:
        return None
    nodes = [node for node in ast.walk(source.tree()) if isinstance(node, ast.Assign | ast.Call)]
    targets = [node.targets for node in nodes if isinstance(node, ast.Assign) and node.lineno == made[1]]
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.lineno == read[1]]
    given = [call.args[0] for call in calls if _is_attribute(call.func, layer) and len(call.args) == 1]
    match targets, given:
        case [[ast.Name(id=name)]], [ast.Name() as x] if x.end_col_offset is not None:
            start, end = (source.column(x.lineno, offset) for offset in (x.col_offset, x.end_col_offset))
            return source.mend(x.lineno, [(start, end, name)])
    return None


def with_arguments(net: nn.Module, path: str, **texts: str) -> Mend | None:
    """Return the line that makes the layer at `path`, with other arguments.

    None if it cannot be found, or if a change would reach further: an argument is no number that is written there, or
    the class has several instances, and other inputs or outputs would not suit all of them.
    """
    made = _construction(net, path)
    if made is None:
        return None
    source, made_by, owner = made
    if "padding" not in texts and sum(type(module) is type(owner) for module in net.modules()) > 1:
        return None
    names = [*inspect.signature(type(net.get_submodule(path))).parameters]
    arguments = [*made_by.args, *(keyword.value for keyword in made_by.keywords)]
    given = dict(zip(names, made_by.args, strict=False)) | {word.arg: word.value for word in made_by.keywords}
    if not arguments or None in given or any(isinstance(argument, ast.Starred) for argument in arguments):
        return None
    places = [given.get(name, arguments[-1]) for name in texts]
    lines = {line for place in places for line in (place.lineno, place.end_lineno)}
    if len(lines) > 1 or not all(isinstance(given[name], ast.Constant) for name in texts.keys() & given.keys()):
        return None
    edits: list[_Edit] = []
    for place, (name, text) in zip(places, texts.items(), strict=True):
        assert place.end_col_offset is not None, "parsed from a file"
        start, end = (source.column(place.lineno, offset) for offset in (place.col_offset, place.end_col_offset))
        edits.append((start, end, text) if name in given else (end, end, f", {name}={text}"))
    return source.mend(places[0].lineno, edits)


def _construction(net: nn.Module, path: str) -> tuple[Source, ast.Call, nn.Module] | None:
    """Return the call that makes the module at `path`, with its file and the module whose `__init__` has it."""
    outer, _, name = path.rpartition(".")
    parent = net.get_submodule(outer)
    if isinstance(parent, nn.Sequential | nn.ModuleList) and type(parent).__module__.startswith("torch."):
        made = _construction(net, outer) if outer else None
        if made is None:
            return None
        parts = made[1].args
        if isinstance(parent, nn.ModuleList) and isinstance(parts[0], ast.List):
            parts = parts[0].elts
        call = parts[int(name)] if len(parts) == len(parent) else None
        return (made[0], call, made[2]) if isinstance(call, ast.Call) else None
    for cls in type(parent).__mro__:
        init = vars(cls).get("__init__")
        source = _source(init.__code__.co_filename) if isinstance(init, FunctionType) else None
        if isinstance(init, FunctionType) and source is not None:
            assigned = _assignments(source, init.__code__.co_firstlineno)
            calls = [value for target, value in assigned if _is_attribute(target, name)]
            if calls:
                return (source, calls[-1], parent) if isinstance(calls[-1], ast.Call) else None
    return None


def _assignments(source: Source, line: int) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield what is assigned to what in the function at `line`, also `a, b = 1, 2` part by part."""
    functions = (node for node in ast.walk(source.tree()) if isinstance(node, ast.FunctionDef) and node.lineno == line)
    for node in (node for function in functions for node in ast.walk(function) if isinstance(node, ast.Assign)):
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                yield from zip(target.elts, node.value.elts, strict=False)
            else:
                yield target, node.value


def _is_attribute(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == name

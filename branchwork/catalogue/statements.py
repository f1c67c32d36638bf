"""The statements of a learner's script or notebook: in whatever encoding, and which names each binds and uses."""

import ast
import functools
import io
import json
import linecache
import re
import symtable
import warnings
from collections.abc import Iterator
from pathlib import Path

from branchwork.errors import NetError
from branchwork.files import encoding_of_python

# A statement, and the name of its file, or of its cell.
Node = tuple[ast.stmt, str]

SUFFIXES = (".py", ".ipynb")
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
# Methods that build on what they are called on, as do torch's whose names end in `_`.
_BUILDING = (
    "append", "extend", "insert", "update", "add", "setdefault", "add_module", "register_buffer", "register_parameter",
    "register_module", "apply", "add_argument", "set_defaults",
)  # fmt: skip


def decode(path: Path, content: bytes) -> str:
    """Return the text of a script: in the encoding that it declares, else UTF-8, else GBK."""
    encoding = encoding_of_python(content)
    if encoding is None:
        raise NetError("{path} is neither UTF-8 nor GBK: save it as UTF-8", path=path)
    return io.TextIOWrapper(io.BytesIO(content), encoding).read()


@functools.lru_cache(maxsize=64)
def parse(path: Path, content: bytes) -> tuple[Node, ...]:
    """Return the statements of a script or a notebook. Raises `NetError` with the line of a syntax error."""
    nodes: list[Node] = []
    for name, text in _cells(path, decode(path, content)):
        # So that tracebacks and torch find the lines.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        try:
            with warnings.catch_warnings(action="ignore"):  # about the user's regular expressions
                nodes += [(node, name) for node in ast.parse(text, name).body]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as reason:
            raise NetError(
                "{file}, line {line}: {kind}: {reason}",
                file=name,
                line=getattr(reason, "lineno", None) or 1,
                kind=type(reason).__name__,
                reason=getattr(reason, "msg", reason),
            ) from reason
    return tuple(nodes)


def _cells(path: Path, text: str) -> Iterator[tuple[str, str]]:
    if path.suffix != ".ipynb":
        yield str(path), text
        return
    try:
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    except (ValueError, LookupError, TypeError) as reason:
        raise NetError("{path} is not a notebook ({reason})", path=path, reason=repr(reason)) from reason
    for number, source in enumerate(cells, 1):
        lines = "".join(source).splitlines()
        if lines and re.match(r"%%(?!time|capture)", lines[0]):  # another language, or a file to be written
            continue
        kept = (re.sub(r"^(\s*)([%!?].*|[\w.]+\?+|\w+ *= *[%!].*)$", r"\1pass", line) for line in lines)
        yield f"{path}[cell {number}]", "\n".join(kept) + "\n"


def unguarded(node: Node) -> list[Node]:
    """Return the statements under `if __name__ == "__main__":`, and any other statement as it is."""
    statement, file = node
    if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
        return [(inner, file) for inner in statement.body]
    return [node]


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield `node` and what is in it, except the insides of functions, classes and lambdas."""
    yield node
    if not isinstance(node, SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from executed(child)


def is_print(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("print(")


def built_on(top: ast.AST) -> set[str]:
    """Return the names on whose values a statement builds: `net.fc = …`, `layers.append(…)`, `zeros_(net.bias)`."""
    found = set()
    for node in executed(top):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.add(_root(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Attribute) and (call.func.attr in _BUILDING or call.func.attr.endswith("_")):
                is_init = call.args and ".init." in f".{ast.unparse(call.func)}"
                found.add(_root(call.args[0] if is_init else call.func.value))
    return found - {""}


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def bound(top: ast.AST) -> set[str]:
    """Return the names that a statement binds."""
    found = set()
    for node in executed(top):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
    return found


def used_by(node: ast.AST) -> set[str]:
    """Return the names of the file that a statement uses, those inside its functions included."""

    def read(table: symtable.SymbolTable) -> Iterator[str]:
        for symbol in table.get_symbols():
            is_used = symbol.is_referenced() or symbol.is_declared_global()
            if is_used and (symbol.is_global() or not isinstance(table, symtable.Function)):
                yield symbol.get_name()
        for child in table.get_children():
            yield from read(child)

    with warnings.catch_warnings(action="ignore"):
        return set(read(symtable.symtable(ast.unparse(node), "script", "exec")))


class OnCpu(ast.NodeTransformer):
    """Takes `.cuda()` and `.to(device)` off, but not `.to(torch.float64)`, and leaves functions as they are."""

    def visit_Lambda(self, node: ast.AST) -> ast.AST:
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Attribute):
            return node
        target = ast.unparse(node.args[0]) if node.args else "device"
        moves = node.func.attr == "to" and (target.startswith("torch.device") or not target.startswith("torch."))
        return node.func.value if moves or node.func.attr == "cuda" else node

"""Read a learner's script instead of running it: execute only the statements that one of its names needs.

1. Statements are those at the top level of the file and under `if __name__ == "__main__":`.
2. A name needs every statement that binds it or builds on it (`layers.append(…)`, `net.fc = …`), and all that the names
   in these need. They are executed in the order of the file, and no others: a net uses nothing that loading data,
   training, printing and saving bind.
3. Of these, a statement is left out if it calls anything that is not known to do no more than make a value (`_PURE`,
   `_EFFECT`), or if it is a loop that does more than build. `.cuda()` and `.to(device)` are taken off.
4. A name whose import is missing, or whose statement was left out or failed, holds a `StandIn`, which raises a
   `NetError` about that line once the net really uses it.
5. What the script imports from files that lie beside it is read in the same way.
"""

import __future__

import ast
import builtins
import copy
import itertools
import linecache
import os
import random
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from branchwork.catalogue.stand_in import StandIn
from branchwork.catalogue.statements import (
    SCOPES,
    OnCpu,
    bound,
    built_on,
    executed,
    is_print,
    parse,
    unguarded,
    used_by,
)
from branchwork.errors import FAILURES, NetError, nearest
from branchwork.files import reading
from branchwork.graph.untouched import ONE_AT_A_TIME
from branchwork.language import say

_NUMBERS = itertools.count(1)

# What may be called at the top level of a script: it makes values, and does nothing else.
_PURE = (
    "torch.", "numpy.", "math.", "itertools.", "functools.", "operator.", "collections.", "dataclasses.", "typing.",
    "enum.", "types.", "argparse.", "copy.", "re.", "string.", "random.", "time.", "datetime.", "json.", "pathlib.",
    "os.path.", "os.getenv.", "os.environ.", "os.cpu_count.", "os.getcwd.", "logging.getLogger.", "einops.",
    "torchvision.models.", "torchvision.ops.", "torchvision.transforms.",
)  # fmt: skip
_IMPURE = ("torch.hub.", "torch.utils.", "torch.distributed.", "torch.multiprocessing.", "torch.onnx.")
# Methods and functions that do more than make a value, whatever they belong to.
_EFFECT = re.compile(
    "(load|loadtxt|save|read|write|open|download|fit|train|backward|step|show|plot|fromfile|tofile|genfromtxt|memmap|"
    "mkdir|makedirs|touch|unlink|rename|rmdir|urlopen|urlretrieve)(_|$)"
)
_NO_BUILTINS = ("open", "input", "exec", "eval", "exit", "quit", "breakpoint", "__import__", "compile", "help")


@dataclass(frozen=True)
class _Step:
    """A statement that is executed; with a `problem`, one that is not, so that its names hold stand-ins."""

    node: ast.stmt
    file: str
    problem: NetError | None = None
    nested: bool = False


def places(path: Path) -> Sequence[Path]:
    """Return the folders in which imports of a file are looked up: its own, the next above, and those of packages."""
    count = 2
    while count <= len(path.parents) and (path.parents[count - 1] / "__init__.py").is_file():
        count += 1
    return path.parents[:count]


class Script:
    """One file that is read, and those beside it that it imports. Raises `NetError` if it cannot be read."""

    def __init__(self, path: Path, beside: "dict[Path, Script] | None" = None) -> None:
        self.path, self._beside = path, {} if beside is None else beside
        self._beside[path] = self
        is_folder = path.name == "__init__.py" and not path.is_file()
        with reading(path, error=NetError, remedy=say("check that you may read it")):
            nodes = parse(path, b"" if is_folder else path.read_bytes())
        self.nodes = [inner for node in nodes for inner in unguarded(node)]
        self.module = ModuleType(f"branchwork_script_{next(_NUMBERS)}_{path.stem}")
        vars(self.module).update(__file__=str(path), __getattr__=self._attribute)
        vars(self.module)["__builtins__"] = vars(builtins) | {"__import__": self._import}
        sys.modules[self.module.__name__] = self.module  # where dataclasses and torch look for it
        self._steps: dict[int, list[_Step]] = {}
        self._done: set[_Step] = set()
        self._needed: set[str] = set()
        self.imports: dict[str, tuple[str, int]] = {}
        self._stars: list[tuple[str, int]] = []
        self.definitions: dict[str, ast.FunctionDef | ast.ClassDef] = {}
        self._flags = 0
        self._expected: set[tuple[str, int]] = set()  # lines whose failure the script itself deals with
        for node, file in self.nodes:
            self._note(node, file)
        self.binds = [bound(node) | (built_on(node) - self.imports.keys()) for node, _ in self.nodes]
        self.names = set[str]().union(*self.binds)

    def _note(self, top: ast.stmt, file: str) -> None:
        """Note what a statement imports and defines."""
        for node in executed(top):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    self.imports[alias.asname or whole] = (whole, 0)
            elif isinstance(node, ast.ImportFrom):
                module = f"{node.module}." if node.module else ""
                self.imports |= {a.asname or a.name: (module + a.name, node.level) for a in node.names if a.name != "*"}
                self._stars += [(node.module or "", node.level) for a in node.names if a.name == "*"]
                if module == "__future__.":
                    self._flags |= sum(getattr(__future__, alias.name).compiler_flag for alias in node.names)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.definitions[node.name] = node
        for node in ast.walk(top):
            if isinstance(node, ast.Try) and node.handlers:
                last = node.body[-1].end_lineno or node.lineno
                self._expected |= {(file, line) for line in range(node.lineno, last + 1)}

    def get(self, name: str) -> Any:
        """Execute what `name` needs, and return its value, which may be a `StandIn`. Raises `KeyError` without one."""
        with undisturbed():
            for step in self._close(name):
                if step not in self._done:
                    self._done.add(step)  # before it runs: files may import each other
                    self._run(step, name)
        return vars(self.module)[name]

    def run(self) -> ModuleType:
        """Run the whole file, as python does, and return its module."""
        vars(self.module)["__builtins__"] = builtins
        for node, file in self.nodes:
            exec(compile(ast.Module([node], []), file, "exec", self._flags, dont_inherit=True), vars(self.module))
        return self.module

    def files(self) -> dict[Path, bytes]:
        """Return this file and all beside it that are imported anywhere in them, with what they contain."""
        scripts = [self]
        for script in scripts:
            for node in (inner for top, _ in script.nodes for inner in ast.walk(top)):
                names = node.names if isinstance(node, ast.Import | ast.ImportFrom) else ()
                module, level = (node.module or "", node.level) if isinstance(node, ast.ImportFrom) else ("", 0)
                for alias in names:
                    with suppress(NetError):  # a file that cannot be read is no part of a net that can
                        script.find([*module.split("."), *alias.name.split(".")], level)
            scripts += [script for script in self._beside.values() if script not in scripts]
        paths = {script.path for script in scripts}
        # So that a copy of them is looked through as they are.
        paths |= {folder / "__init__.py" for path in paths for folder in places(path)[:-1]}
        return {path: path.read_bytes() for path in sorted(paths) if path.is_file()}

    def _close(self, name: str) -> list[_Step]:
        """Return the steps that `name` needs, in the order of the file."""
        self._needed.add(name)
        grown = True
        while grown:
            grown = False
            for index, (node, file) in enumerate(self.nodes):
                is_star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and self._unknown()
                if index not in self._steps and (self.binds[index] & self._needed or is_star):
                    steps = self._steps[index] = list(self._admit(node, file))
                    self._needed |= {used for step in steps if step.problem is None for used in used_by(step.node)}
                    grown = True
        return [step for _, steps in sorted(self._steps.items()) for step in steps]

    def _unknown(self) -> set[str]:
        """Return the names that are needed, and that only `from … import *` can provide."""
        return self._needed - self.names - vars(builtins).keys() - vars(self.module).keys()

    def _run(self, step: _Step, wanted: str) -> None:
        values, problem = vars(self.module), step.problem
        if problem is None:
            try:
                code = compile(ast.Module([step.node], []), step.file, "exec", self._flags, dont_inherit=True)
                exec(code, values)
                return
            except NetError as reason:
                problem = reason
            except FAILURES as reason:
                problem = NetError(
                    "{file}, line {line}: {kind}: {reason}",
                    file=step.file,
                    line=step.node.lineno,
                    kind=type(reason).__name__,
                    reason=reason,
                )
                problem.__cause__ = reason
        built = built_on(step.node) - self.imports.keys()
        makes = any(isinstance(part, ast.Call) for part in executed(step.node))
        for name in bound(step.node) | built:
            kept = step.nested and name not in built  # a value stays what it was before a loop
            if name == wanted:  # and a net what it was before it was trained, but not before it got another layer
                kept = step.nested or name not in built or not makes
            if name not in values or not kept:
                values[name] = StandIn(problem)

    def _admit(self, node: ast.stmt, file: str, nested: bool = False) -> Iterator[_Step]:
        """Yield the steps of one statement: first what is left out of it, and then what remains."""
        if isinstance(node, (*SCOPES, ast.Import, ast.ImportFrom)):
            yield _Step(node, file)
            return
        if not bound(node) and not built_on(node) - self.imports.keys():
            return
        node = OnCpu().visit(copy.deepcopy(node))
        obstacle: ast.AST | None = node  # of while and match
        if isinstance(node, ast.If | ast.Try | ast.With):
            heads = [node.test] if isinstance(node, ast.If) else getattr(node, "items", [])
            obstacle = next((found for head in heads if (found := self._obstacle(head))), None)
            if obstacle is None:
                for part in (node, *getattr(node, "handlers", [])):
                    for field in {"body", "orelse", "finalbody"} & set(part._fields):
                        steps = [step for inner in getattr(part, field) for step in self._admit(inner, file, True)]
                        yield from (step for step in steps if step.problem)
                        setattr(part, field, [step.node for step in steps if not step.problem])
                    part.body = part.body or [ast.copy_location(ast.Pass(), part)]
        elif isinstance(node, ast.For):
            inner_steps = [list(self._admit(inner, file)) for inner in node.body if not is_print(inner)]
            builds = all(len(steps) == 1 and steps[0].problem is None for steps in inner_steps)
            obstacle = self._obstacle(node.iter) if builds else node
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr):
            obstacle = self._obstacle(node)
        nested = nested or isinstance(node, ast.For | ast.While)
        problem = None
        if obstacle is not None:
            given = bound(node) or built_on(node)
            problem = NetError(
                "{file}, line {line} would give {names}, but a script is read, not run, and `{code}` is left out. "
                "Write the value into the script, or run it whole: --run-script, or NET:script=run.",
                file=file,
                line=node.lineno,
                names=", ".join(sorted(given & self._needed or given)),
                code=textwrap.shorten(ast.unparse(obstacle).splitlines()[0], 70, placeholder=" …"),
            )
        yield _Step(node, file, problem, nested)

    def _obstacle(self, node: ast.AST, seen: frozenset[str] = frozenset()) -> ast.AST | None:
        """Return the first call in `node` that may do more than make a value."""
        calls = (found for found in executed(node) if isinstance(found, ast.Call))
        return next((call for call in calls if not self._is_pure(call, seen)), None)

    def _is_pure(self, call: ast.Call, seen: frozenset[str]) -> bool:
        base: ast.expr = call.func
        parts: list[str] = []
        while isinstance(base, ast.Attribute):
            parts.insert(0, base.attr)
            base = base.value
        if isinstance(base, ast.Name) and base.id in self.imports:
            name, level = self.imports[base.id]
            found = self.find([*name.split("."), *parts], level)
            if found is not None:
                return len(found[1]) != 1 or found[0]._makes(found[1][0], seen)
            dotted = ".".join((name, *parts)) + "."
            if dotted.startswith("torchvision.models.") and (call.args or call.keywords):
                return False  # it may fetch weights
            allowed = dotted.startswith(_PURE) and not dotted.startswith(_IMPURE)
            return allowed and not _EFFECT.match(dotted.split(".")[-2])
        if parts:
            return not _EFFECT.match(parts[-1])
        return not isinstance(base, ast.Name) or self._makes(base.id, seen)

    def _makes(self, name: str, seen: frozenset[str]) -> bool:
        """Return whether a call of `name` only makes a value; what functions of the script call counts."""
        made = self.definitions.get(name)
        if isinstance(made, ast.FunctionDef):
            return name in seen or all(self._obstacle(node, seen | {name}) is None for node in made.body)
        if made is not None:
            first = ("__init__", "__new__", "__post_init__")
            inits = [node for node in made.body if isinstance(node, ast.FunctionDef) and node.name in first]
            return all(self._obstacle(node, seen) is None for init in inits for node in init.body)
        if name in self.names or not hasattr(builtins, name):
            return name in self.names or all(
                f"{module}.".startswith(_PURE) or self.find(module.split("."), level) for module, level in self._stars
            )
        return name not in _NO_BUILTINS

    def find(self, parts: Sequence[str], level: int) -> "tuple[Script, list[str]] | None":
        """Return the file beside this one that an import of `parts` means, and which of them are names in it."""
        parts = [part for part in parts if part]
        if not level and (not parts or parts[0] in (*sys.stdlib_module_names, "torch", "numpy", "branchwork")):
            return None
        for folder in self.path.parents[level - 1 : level] if level else places(self.path):
            place, rest = folder, list(parts)
            while rest and place.suffix != ".py":
                file, inner = place / f"{rest[0]}.py", place / rest[0]
                if file.is_file() and file != self.path:
                    place = file
                elif inner.is_dir() and any(inner.glob("*.py")):
                    place = inner
                else:
                    break
                del rest[0]
            if place != folder or (level and not parts):
                path = place if place.suffix == ".py" else place / "__init__.py"
                return self._beside.get(path) or Script(path, self._beside), rest
        return None

    def _attribute(self, name: str) -> Any:
        """Return an attribute of this file's module that is not made yet."""
        if name.startswith("__"):
            raise AttributeError(name)
        if self._provides(name):
            return self.get(name)
        found = self.find([name], 1) if self.path.name == "__init__.py" else None
        if found is None:
            raise NetError("{path} has no {name!r}.{hint}", path=self.path, name=name, hint=nearest(name, self.names))
        return found[0].module

    def _provides(self, name: str) -> bool:
        stars = (self.find(module.split("."), level) for module, level in self._stars)
        return name in self.names or any(found and found[0]._provides(name) for found in stars)

    def _import(self, name: str, scope: Any = None, _: Any = None, names: Any = (), level: int = 0) -> Any:
        """Import as `__import__` does, but read files beside this one, and put stand-ins for what is missing."""
        found = self.find(name.split("."), level)
        if found is not None and not found[1]:
            if names == ("*",):
                given = [one for one in self._unknown() if found[0]._provides(one)]
                vars(self.module).update({one: found[0].get(one) for one in given})
                return SimpleNamespace(__all__=())
            top = found if names else self.find(name.split(".")[:1], level)
            return top and top[0].module
        frame, names = sys._getframe(1), names or ()
        file, line = frame.f_code.co_filename, frame.f_lineno
        if level:
            needed = self.path.parents[level - 1].joinpath(*name.split(".")).with_suffix(".py")
            problem = NetError(
                "{file}, line {line}: `{code}` needs {needed}, which is not there: copy it there",
                file=file,
                line=line,
                code=linecache.getline(file, line).strip(),
                needed=needed,
            )
            return StandIn(problem, is_import=True)
        module, lacks = None, list(names)
        try:
            module = builtins.__import__(name, scope, None, names, level)
            lacks = [one for one in names if one != "*" and not hasattr(module, one)]
            if not lacks:
                return module
            raise ImportError(f"{name} has no {', '.join(lacks)}")
        except FAILURES as reason:
            if (file, line) in self._expected:
                raise
            problem = NetError(
                "{file}, line {line}: the net uses what `{code}` imports, which does not work here: {reason}. Install "
                "it into this environment, or do without it in the net.",
                file=file,
                line=line,
                code=linecache.getline(file, line).strip(),
                reason=reason,
            )
        missing = StandIn(problem, is_import=True)
        if "*" in lacks:
            vars(self.module).update(dict.fromkeys(self._unknown(), missing))
        if module is None:
            return missing
        return SimpleNamespace(**{one: missing if one in lacks else getattr(module, one) for one in names})


@contextmanager
def undisturbed(*, on_cpu: bool = True) -> Iterator[None]:
    """Keep what a script may change from everybody else: arguments, folder, random numbers, standard output.

    One thread at a time: all of these belong to the process.
    """
    with ONE_AT_A_TIME:
        numpy: Any = sys.modules.get("numpy")
        cuda: Any = sys.modules["torch"].cuda
        argv, cwd, path, state = sys.argv, os.getcwd(), list(sys.path), random.getstate()
        numbers = numpy and numpy.random.get_state()
        has_gpu, sys.argv = cuda.is_available, sys.argv[:1]
        if on_cpu:  # as the net is when it is built: we move it ourselves
            cuda.is_available = lambda: False
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            cuda.is_available, sys.argv, sys.path[:] = has_gpu, argv, path
            os.chdir(cwd)
            random.setstate(state)
            if numpy:
                numpy.random.set_state(numbers)

"""Nets of the user's own: in a script, notebook or module, which is read and not run, or in an installed package."""

import ast
import copy
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from branchwork.catalogue.reading import Script, undisturbed
from branchwork.catalogue.stand_in import StandIn, stand_in_of
from branchwork.catalogue.statements import SUFFIXES, OnCpu, used_by
from branchwork.errors import FAILURES, NetError, nearest, with_kind, with_line
from branchwork.files import check_permission
from branchwork.graph.untouched import alone
from branchwork.language import say

_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

# How scripts call the sizes that the data decide, and what a net that needs one gets where nothing decides it.
_CLASSES = ("num_classes", "num_class", "n_classes", "n_class", "nclasses", "nb_classes", "class_num", "num_labels")
_CHANNELS = ("in_channels", "in_channel", "in_ch", "in_chans", "input_channels", "img_channels", "image_channels")
_PERHAPS_CHANNELS = ("channels", "num_channels", "n_channels")  # or the width of a net: only where it is 1 or 3
_USUAL = {"in_channels": 1, "num_classes": 10}


def find_own_builder(
    location: str, attribute: str, *, sizes: Mapping[str, int | None], run: bool = False
) -> Callable[[], nn.Module]:
    """Find the net `attribute` of `location`, a file or an installed module, and return the function that builds it.

    `attribute` is a class, a function or a net; if it is "", the only net of the script. `sizes` (`in_channels`,
    `num_classes`) are passed where the code takes them. With `run`, the whole script is run, once. Raises `NetError`,
    and so does the function where the code fails or gives something else than a module.
    """
    if location.endswith(SUFFIXES):
        path = Path(os.path.abspath(location))
        check_permission(path, error=NetError)
        if not path.is_file():
            raise NetError("there is no file {path}", path=location)
        attribute = attribute or _only_net(Script(path), location)
        with alone():
            value = _of_run(path, attribute, location) if run else _of_reading(path, attribute, location)
    else:
        value = _import(location, attribute)
    make = value
    if isinstance(value, nn.Module):
        if run or not location.endswith(SUFFIXES):
            raise NetError(
                "{location}:{attribute} is a net that was built already, so that it cannot begin with fresh weights: "
                "name its class, or a function that returns it",
                location=location,
                attribute=attribute,
            )
        make = functools.partial(_of_reading, path, attribute, location)  # again, for fresh weights
    elif callable(value):
        make = functools.partial(value, **_arguments(value, sizes, f"{location}:{attribute}"))
    else:
        raise NetError(
            "{location}:{attribute} is a {name}: name a class, a function that returns the net, or a net",
            location=location,
            attribute=attribute,
            name=type(value).__name__,
        )
    return functools.partial(_build, make, f"{location}:{attribute}")


def _build(make: Callable[[], object], name: str) -> nn.Module:
    try:
        with undisturbed():
            net = make()
    except NetError:
        raise
    except FAILURES as reason:
        if (stand_in := stand_in_of(reason)) is not None:
            stand_in.complain()
        raise NetError("{name} failed to build: {reason}", name=name, reason=_describe(reason)) from reason
    if not isinstance(net, nn.Module):
        kind = type(net).__name__
        raise NetError("{name} returns a {kind}, not a torch.nn.Module: return the net", name=name, kind=kind)
    _check_modules(net, name)
    return net


def _check_modules(net: nn.Module, name: str) -> None:
    """Raise `NetError` if `net` has a part that holds itself, or one whose size is only known after a first image."""
    for path, module in net.named_modules():
        for attribute, child in module.named_children():
            if module in child.modules():
                raise NetError(
                    "{name} contains itself: `{path}` is, or contains, the module that it is an attribute of. Remove "
                    "it",
                    name=name,
                    path=f"{path}.{attribute}".lstrip("."),
                )
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise NetError(
                "{name}: the size of `{path}` ({kind}) is unknown until it has read an image. Write {layer} with its "
                "size: if it is wrong, the message says what it must be",
                name=name,
                path=path,
                kind=type(module).__name__,
                layer=f"nn.{type(module).__name__.removeprefix('Lazy')}",
            )


def script_files(location: str) -> dict[Path, bytes]:
    """Return the files that a script consists of: itself, and those beside it that it imports."""
    return Script(Path(os.path.abspath(location))).files()


def _of_reading(path: Path, attribute: str, location: str) -> Any:
    script = Script(path)
    if attribute not in script.names and attribute not in script.imports:
        raise _lacks(script, attribute, location)
    value = script.get(attribute)
    return value.complain() if isinstance(value, StandIn) else value


def _of_run(path: Path, attribute: str, location: str) -> Any:
    files = frozenset(script_files(location).items())
    module = _run(path, files)
    if not hasattr(module, attribute):
        raise _lacks(Script(path), attribute, location)
    return getattr(module, attribute)


@functools.lru_cache(maxsize=4)  # a script that trains is not run again while it and its neighbours stay as they are
def _run(path: Path, files: frozenset[tuple[Path, bytes]]) -> ModuleType:
    del files
    script, before, bytecode = Script(path), set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # in a run it would be code that nobody trusted yet
    try:
        with undisturbed(on_cpu=False), alone():
            sys.path.insert(0, str(path.parent))
            return script.run()
    except FAILURES as reason:
        raise NetError("{path} failed: {reason}", path=path, reason=_describe(reason)) from reason
    finally:
        sys.dont_write_bytecode = bytecode
        for name in sys.modules.keys() - before:  # another script may have neighbours with the same names
            if path.parent in Path(getattr(sys.modules[name], "__file__", None) or "").parents:
                del sys.modules[name]
        sys.modules[script.module.__name__] = script.module


def _import(location: str, attribute: str) -> Any:
    try:
        with undisturbed():
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(location)
    except FAILURES as reason:
        raise NetError(
            "{location} cannot be imported: {reason}. A script of your own is file.py:Class.",
            location=location,
            reason=reason if isinstance(reason, ModuleNotFoundError) else _describe(reason),
        ) from reason
    if not hasattr(module, attribute):
        hint = nearest(attribute, [name for name, value in vars(module).items() if inspect.isclass(value)])
        raise NetError("{location} has no {attribute!r}.{hint}", location=location, attribute=attribute, hint=hint)
    return getattr(module, attribute)


def _arguments(value: Any, sizes: Mapping[str, int | None], name: str) -> dict[str, int]:
    """Return the sizes to build with. Raises `NetError` if something else is needed as well."""
    given, missing = {}, []
    for parameter in inspect.signature(value).parameters.values():
        needed = parameter.default is parameter.empty and parameter.kind not in _OPTIONAL
        kind = _size_of(parameter.name, None if needed else parameter.default)
        size = sizes.get(kind) or (_USUAL[kind] if needed else None) if kind else None
        if size is not None and size != parameter.default:
            given[parameter.name] = size
        elif needed:
            missing.append(parameter.name)
    if missing:
        location, _, attribute = name.rpartition(":")
        raise NetError(
            "{name} cannot be built without arguments ({missing}). Write these two lines below it, with your values, "
            "and name {location}:make_net:\n\ndef make_net():\n    return {attribute}({example})",
            name=name,
            missing=", ".join(missing),
            location=location,
            attribute=attribute,
            example=", ".join(f"{key}=…" for key in missing),
        )
    return given


def _size_of(name: str, default: object) -> str | None:
    """Return which size of the data a parameter stands for; `default` is None where it needs a value."""
    if name in _CLASSES:
        return "num_classes"
    is_channels = name in _CHANNELS or (name in _PERHAPS_CHANNELS and default in (None, 1, 3))
    return "in_channels" if is_channels else None


def _lacks(script: Script, attribute: str, location: str) -> NetError:
    known = [*_net_classes(script), *_functions(script), *_instances(script)]
    hint = nearest(attribute, known) if known else say(" It defines no net.")
    return NetError("{location} has no {attribute!r}.{hint}", location=location, attribute=attribute, hint=hint)


def _only_net(script: Script, location: str) -> str:
    """Return the name of the only net of a script that is not a part of another. Raises `NetError` otherwise."""
    classes, functions, instances = _net_classes(script), _functions(script), _instances(script)
    parts = {used for name, node in classes.items() for used in used_by(node) if used != name}
    found = [name for name, node in instances.items() if ast.unparse(node.func).endswith("Sequential")]
    for name, node in classes.items():
        if name in parts:
            continue
        makers = [other for other, call in instances.items() if name in used_by(ast.Expr(call))]
        makers = makers or [other for other, function in functions.items() if name in used_by(function)]
        found += makers if makers and _needs_values(script, node) else [name]
    found = list(dict.fromkeys(found)) or list(functions)
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{location}:{name}" for name in found)
    if known:
        raise NetError("{location} has several nets: name one of {known}", location=location, known=known)
    raise NetError("{location} defines no net: name a function that returns it, {location}:make_net", location=location)


def _net_classes(script: Script) -> dict[str, ast.ClassDef]:
    """Return the classes of a script whose objects may be nets: modules with one input."""
    found = {}
    for name, node in script.definitions.items():
        if isinstance(node, ast.ClassDef) and _is_module(script, node):
            forward = _method(node, "forward")
            if forward is None or len(forward.args.args) - len(forward.args.defaults) == 2:
                found[name] = node
    return found


def _is_module(script: Script, node: ast.ClassDef) -> bool:
    for base in map(ast.unparse, node.bases):
        first, _, rest = base.partition(".")
        above = script.definitions.get(base)
        if isinstance(above, ast.ClassDef) and above is not node and _is_module(script, above):
            return True
        if ".".join((script.imports.get(first, ("", 0))[0], rest)).startswith(("torch.nn.", "torch.nn.modules.")):
            return True
    return bool(node.bases) and _method(node, "forward") is not None


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == name), None)


def _needs_values(script: Script, node: ast.ClassDef) -> bool:
    init = _method(node, "__init__")
    if init is None:
        bases = (script.definitions.get(ast.unparse(base)) for base in node.bases)
        return any(_needs_values(script, base) for base in bases if isinstance(base, ast.ClassDef) and base is not node)
    return any(_size_of(name, None) is None for name in _required(init)[1:])


def _required(function: ast.FunctionDef) -> list[str]:
    names = [argument.arg for argument in function.args.args]
    return names[: len(names) - len(function.args.defaults)]


def _functions(script: Script) -> dict[str, ast.FunctionDef]:
    """Return the functions of a script that may make a net: they need no values, and return what a call makes."""
    return {
        name: node
        for name, node in script.definitions.items()
        if isinstance(node, ast.FunctionDef)
        and all(_size_of(needed, None) for needed in _required(node))
        and any(isinstance(inner, ast.Return) and inner.value is not None for inner in ast.walk(node))
        and _reaches(script, node, {*_net_classes(script), "nn", "Sequential"})
    }


def _reaches(script: Script, node: ast.AST, names: set[str], *, seen: frozenset[str] = frozenset()) -> bool:
    """Return whether `node`, or a function of the script that it uses, uses one of `names`."""
    used = used_by(node)
    inner = {name: script.definitions[name] for name in used - seen if name in script.definitions}
    return bool(used & names) or any(
        _reaches(script, other, names, seen=seen | inner.keys()) for other in inner.values()
    )


def _instances(script: Script) -> dict[str, ast.Call]:
    """Return the calls whose values a script gives a name, and which may be nets."""
    found = {}
    for node, _ in script.nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = OnCpu().visit(copy.deepcopy(node)).value
            nets = {*_net_classes(script), *_functions(script), "Sequential"}
            if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in nets:
                found[node.targets[0].id] = value
    return found


def _describe(reason: BaseException) -> str:
    """Python's message and the line of the user's file that raised it, with a hint for a common mistake."""
    message = with_kind(reason)
    if "before Module.__init__" in message:
        message = say("call super().__init__() first, in __init__")
    return message if isinstance(reason, SyntaxError) else with_line(message, reason)

"""Nets of the user's own: a class or function in a script or an importable module."""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from branchwork.errors import NetError, nearest, own_line
from branchwork.language import say

_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def find_own_builder(location: str, attribute: str) -> Callable[[], nn.Module]:
    """Import `location`, a file or a module, and return the function that builds its net `attribute`.

    Raises `NetError`, and so does the function where the code fails or gives something else than a module.
    """
    make = _find_callable(_import(location), attribute, location)

    def build() -> nn.Module:
        try:
            with redirect_stdout(sys.stderr):  # a script's output must not mix with the command's
                net = make()
        except (Exception, SystemExit) as reason:
            raise NetError(
                "{location}:{attribute} failed to build: {reason}",
                location=location,
                attribute=attribute,
                reason=_describe(reason),
            ) from reason
        if not isinstance(net, nn.Module):
            raise NetError(
                "{location}:{attribute} returns a {name}, not a torch.nn.Module: return the net",
                location=location,
                attribute=attribute,
                name=type(net).__name__,
            )
        return net

    return build


def _import(location: str) -> ModuleType:
    path = Path(location)
    is_script = path.suffix == ".py"
    load: Callable[[], ModuleType] = partial(_run_script if is_script else importlib.import_module, location)
    folder, cwd = str(path.resolve().parent if is_script else Path.cwd()), os.getcwd()
    if is_script and not os.path.isfile(path):
        raise NetError("there is no file {path}", path=path)
    sys.path.insert(0, folder)  # so that a script imports its neighbours, as when it is run
    try:
        with redirect_stdout(sys.stderr):
            return load()
    except ModuleNotFoundError as reason:
        remedy = (
            "Install it into this environment, or leave in the file only what the net needs."
            if is_script
            else "Give a file as path/to/file.py:Class."
        )
        raise NetError(
            "{location} cannot be imported: {reason}. {remedy}", location=location, reason=reason, remedy=remedy
        ) from reason
    except (Exception, SystemExit) as reason:
        raise NetError("{location} failed to import: {reason}", location=location, reason=_describe(reason)) from reason
    finally:
        os.chdir(cwd)  # a script that changes it must not move where runs are written
        with suppress(ValueError):
            sys.path.remove(folder)


def _run_script(location: str) -> ModuleType:
    path = Path(location)
    # A name of its own, so that a script called torch.py or test.py does not shadow what others import.
    spec = importlib.util.spec_from_file_location(f"branchwork_script_{path.stem}", path)
    assert spec and spec.loader, f"a .py file always has a loader: {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _find_callable(module: ModuleType, attribute: str, location: str) -> Callable[[], object]:
    value: Any = getattr(module, attribute, None)
    if value is None:
        nets = [
            name
            for name, member in vars(module).items()
            if isinstance(member, type) and issubclass(member, nn.Module) and member.__module__ == module.__name__
        ]
        raise NetError(
            "{location} has no {attribute!r}.{hint}",
            location=location,
            attribute=attribute,
            hint=nearest(attribute, nets) if nets else say(" It defines no net."),
        )
    if not callable(value):
        raise NetError(
            "{location}:{attribute} is a {name}: name a class, or a function that returns the net",
            location=location,
            attribute=attribute,
            name=type(value).__name__,
        )
    parameters = inspect.signature(value).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in _OPTIONAL]
    if required:
        raise NetError(
            "{location}:{attribute} cannot be built without arguments ({required}): "
            "write a function that builds it and name that, {location}:make_net",
            location=location,
            attribute=attribute,
            required=", ".join(required),
        )
    return lambda: value()


def _describe(reason: BaseException) -> str:
    """Python's message and the line of the user's file that raised it, with a hint for a common mistake."""
    message = f"{type(reason).__name__}: {reason}"
    if "before Module.__init__" in message:
        message = say("call super().__init__() first, in __init__")
    line = own_line(reason)
    return f"{message} ({line})" if line and not isinstance(reason, SyntaxError) else message

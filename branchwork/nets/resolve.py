"""From a net argument to a module: a name in the catalogue, or a learner's own script."""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from torch import nn

from branchwork.errors import NetError, nearest, own_line
from branchwork.language import say
from branchwork.nets.catalogue import NETS
from branchwork.nets.input_size import ImageSize, height_and_width
from branchwork.nets.prune import prune


def build_net(
    net: str,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    image_size: ImageSize | None = None,
) -> nn.Module:
    """Build the net that `net` names; what is not given is the net's own default.

    `net` is a name in `NETS`, with what it is to have otherwise in brackets, as `resnet20[shortcut=conv]`;
    `path/to/file.py:Class`; or `package.module:callable`. The two latter are the user's own code and are called without
    arguments, so that the input and the classes are theirs. Each can be had without some of its branches, as
    `inception[without=b5+incep1.pool]`: see `prune`. Raises `NetError`.
    """
    return find_builder(net, in_channels=in_channels, num_classes=num_classes, image_size=image_size)()


def find_builder(
    net: str, *, in_channels: int | None, num_classes: int | None, image_size: ImageSize | None
) -> Callable[[], nn.Module]:
    """What `build_net` calls: a user's script has been imported once this is back, and draws no more random numbers."""
    sizes = {"in_channels": in_channels, "num_classes": num_classes}
    if any(size is not None and size < 1 for size in sizes.values()):
        raise NetError(f"a net of {in_channels} channels and {num_classes} classes: there must be one at least of each")
    name, options = split_options(net)
    if WITHOUT in options:
        branches = options.pop(WITHOUT).split("+")
        whole = with_options(name, options)
        build = find_builder(whole, in_channels=in_channels, num_classes=num_classes, image_size=image_size)
        design = own_design(whole)
        channels, *sides = design.input_shape if design else UNKNOWN
        shape = (in_channels or channels, *(sides if image_size is None else height_and_width(image_size)))
        return lambda: prune(build(), shape, branches)
    if name in NETS:
        _check_options(name, options)
        given: dict[str, Any] = {**sizes, "image_size": image_size}
        given = {key: value for key, value in given.items() if value is not None} | options
        return partial(NETS[name], **given)
    if net and os.path.isdir(net):
        raise NetError(f"{net} is a folder: name a net, or continue a run with branchwork train --resume {net}")
    if options:
        raise NetError(f"{name} is your own and has no option {next(iter(options))!r}: it has {WITHOUT}")
    where, _, attribute = net.rpartition(":")
    if not where:
        raise NetError(f"there is no net called {name!r}.{nearest(name, NETS)} A net of your own is file.py:Class.")
    builder = _attribute(_module(where), attribute, where)
    return lambda: _build(builder, net)


def split_options(net: str) -> tuple[str, dict[str, str]]:
    """The name, and what is in brackets after it: `resnet20[shortcut=conv]` is resnet20 with shortcut conv."""
    name, bracket, inside = net.partition("[")
    if name not in NETS:  # of the user's own, whose path may have brackets too
        name, bracket, inside = net.rpartition("[")
        if ":" not in name or "=" not in inside:
            return net, {}
    if not bracket:
        return net, {}
    pairs = [part.partition("=") for part in inside.removesuffix("]").split(",")]
    if not inside.endswith("]") or not all(key and value for key, _, value in pairs):
        raise NetError(f"{net!r} is no net with options: write {name}[KEY=VALUE], or {name}[KEY=VALUE,KEY=VALUE]")
    options = {key.strip(): value.strip() for key, _, value in pairs}
    if len(options) < len(pairs):
        raise NetError(f"{net!r} gives an option twice: write it once")
    return name, options


def with_options(net: str, options: Mapping[str, str | None]) -> str:
    """`net` with those of the `options` that are given."""
    name, before = split_options(net)
    found = before | {key: value for key, value in options.items() if value is not None}
    return f"{name}[{','.join(f'{key}={value}' for key, value in found.items())}]" if found else name


@dataclass(frozen=True)
class Design:
    """The input C×H×W and the number of classes that a net of the catalogue was designed for."""

    input_shape: tuple[int, int, int]
    num_classes: int


def own_design(net: str) -> Design | None:
    """None for a net of the user's own."""
    name, _ = split_options(net)
    if name not in NETS:
        return None
    default = {key: parameter.default for key, parameter in inspect.signature(NETS[name]).parameters.items()}
    side = default["image_size"]
    return Design((default["in_channels"], side, side), default["num_classes"])


def _check_options(name: str, options: Mapping[str, str]) -> None:
    builder: Any = NETS[name]
    fixed = builder.keywords if isinstance(builder, partial) else {}
    hints = get_type_hints(builder.func if isinstance(builder, partial) else builder)
    choices = {key: get_args(hint) for key, hint in hints.items() if get_args(hint) and key not in (*fixed, *_SIZES)}
    for key, value in options.items():
        if key not in choices:
            raise NetError(f"{name} has no option {key!r}: it has {', '.join((*choices, WITHOUT))}")
        if value not in choices[key]:
            raise NetError(f"{key} is {value!r}, and for {name} it must be one of {', '.join(choices[key])}")


# The option of every net, and how long its value may be within a short name.
WITHOUT, LONGEST = "without", 48
# The input of a net of the user's own, where nothing is said of it: the lecture's.
UNKNOWN = (1, 28, 28)

_SIZES = ("in_channels", "num_classes", "image_size", "return")


def full_name(net: str) -> str:
    """`net`, with the path of a script made absolute, so that it is found from any folder."""
    where, _, attribute = net.rpartition(":")
    return f"{Path(where).resolve()}:{attribute}" if where.endswith(".py") else net


def short_name(net: str) -> str:
    """`net` for tables and folder names: `some/where/lecture.py:Net` is `lecture-Net`."""
    name, options = split_options(net)
    if WITHOUT in options:
        branches = options.pop(WITHOUT)
        left_out = branches if len(branches) <= LONGEST else f"{branches.count('+') + 1}-branches"
        options[WITHOUT] = f"{WITHOUT}-{left_out.replace('+', '-')}"
    if name in NETS:
        return "-".join((name, *options.values()))
    where, _, attribute = name.rpartition(":")
    short = f"{Path(where).stem if where.endswith('.py') else where}-{attribute}" if where else name
    return "-".join((short, *options.values()))


def _module(name: str) -> ModuleType:
    path = Path(name)
    if path.suffix == ".py":
        if not os.path.isfile(path):
            raise NetError(f"there is no file {path}")
        # A name of its own, so that a script called torch.py or test.py does not shadow what others import.
        spec = importlib.util.spec_from_file_location(f"branchwork_script_{path.stem}", path)
        assert spec and spec.loader, f"a .py file always has a loader: {path}"
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        load: Callable[[], object] = partial(spec.loader.exec_module, module)
        folder = str(path.resolve().parent)
    else:
        load = partial(importlib.import_module, name)
        folder = str(Path.cwd())
    # The script's folder, so that it imports its neighbours as it does when it is run.
    sys.path.insert(0, folder)
    here = os.getcwd()
    try:
        # What a script prints must not mix with what the command shows.
        with redirect_stdout(sys.stderr):
            loaded = load()
    except ModuleNotFoundError as reason:
        remedy = (
            "Install it into this environment, or leave in the file only what the net needs."
            if path.suffix == ".py"
            else "Give a file as path/to/file.py:Class."
        )
        raise NetError(f"{name} cannot be imported: {reason}. {remedy}") from reason
    except (Exception, SystemExit) as reason:
        raise NetError(f"{name} stops while it is imported: {_words(reason)}") from reason
    finally:
        os.chdir(here)  # a script that changes it must not move where runs are written
        with suppress(ValueError):
            sys.path.remove(folder)
    return loaded if isinstance(loaded, ModuleType) else module


def _attribute(module: ModuleType, attribute: str, where: str) -> Callable[[], object]:
    found: Any = getattr(module, attribute, None)
    if found is None:
        own = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
        ]
        raise NetError(f"{where} has no {attribute!r}.{nearest(attribute, own) if own else ' It defines no net.'}")
    if not callable(found):
        raise NetError(
            f"{where}:{attribute} is a {type(found).__name__}: name a class, or a function that makes the net"
        )
    needed = [
        p.name for p in inspect.signature(found).parameters.values() if p.default is p.empty and p.kind not in _OPTIONAL
    ]
    if needed:
        raise NetError(
            f"{where}:{attribute} cannot be built without arguments ({', '.join(needed)}): "
            f"write a function that makes it and name that, {where}:make_net"
        )
    return lambda: found()


_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _build(builder: Callable[[], object], net: str) -> nn.Module:
    try:
        with redirect_stdout(sys.stderr):
            made = builder()
    except (Exception, SystemExit) as reason:
        raise NetError(f"{net} stops while it is built: {_words(reason)}") from reason
    if not isinstance(made, nn.Module):
        raise NetError(f"{net} gives a {type(made).__name__}, and a torch.nn.Module is needed: return the net")
    return made


def _words(reason: BaseException) -> str:
    """What Python says, and in which line of whose file, with a hint where a learner often needs one."""
    words = f"{type(reason).__name__}: {reason}"
    if "before Module.__init__" in words:
        words = say("call super().__init__() first, in __init__", "请在 __init__ 的第一行调用 super().__init__()")
    line = own_line(reason)
    return f"{words} ({line})" if line and not isinstance(reason, SyntaxError) else words

"""From a NET argument to a module: a name in the catalogue or the user's own code, with options in brackets.

A NET argument may also be a run folder. Runs belong to training, so the verbs call `training.subject.resolve`, which
looks for a run first and leaves everything else to this file.
"""

import importlib
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, get_args, get_type_hints

from torch import nn

from branchwork.catalogue.builders import NETS
from branchwork.catalogue.input_size import ImageSize, height_and_width
from branchwork.catalogue.prune import prune
from branchwork.catalogue.script import find_own_builder
from branchwork.catalogue.statements import SUFFIXES
from branchwork.errors import BranchworkError, NetError, is_library, nearest, own_frame
from branchwork.files import typed

# The option that every net has, and how long its value may be within a short name.
WITHOUT, LONGEST = "without", 48
# The option of a user's script that is to be run whole, and not read, and its only value.
SCRIPT, RUN = "script", "run"
# The input assumed for a net of the user's own: the lecture's.
DEFAULT_INPUT = (1, 28, 28)


def build_net(
    net: str,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    image_size: ImageSize | None = None,
) -> nn.Module:
    """Build the net that `net` names. Sizes that are not given take the net's defaults.

    `net` is a name in `NETS`, with options in brackets: `resnet20[shortcut=conv]`; `path/to/file.py:Class`, also of a
    notebook, or `file.py` alone for its only net; or `package.module:callable`. The user's own code gets `in_channels`
    and `num_classes` if it takes them. Every net has the option `without`, which leaves out branches:
    `inception[without=b5+incep1.pool]` (see `prune`); `inception:without=b5` is the same as `inception[without=b5]`.
    Files of the user's are read, not run (see `reading.py`), unless the option `script=run` is set. Raises `NetError`.
    """
    return find_builder(net, in_channels=in_channels, num_classes=num_classes, image_size=image_size)()


def find_builder(
    net: str, *, in_channels: int | None, num_classes: int | None, image_size: ImageSize | None
) -> Callable[[], nn.Module]:
    """Return the function that builds `net` with fresh weights.

    A user's script is read here and not by that function, so that it cannot reset a seed set in between.
    """
    sizes = {"in_channels": in_channels, "num_classes": num_classes}
    for size_name, size in sizes.items():
        if size is not None and size < 1:
            raise NetError("{size_name} must be at least 1, got {size}", size_name=size_name, size=size)
    name, options = split_options(net)
    if WITHOUT in options:
        branches = options.pop(WITHOUT).split("+")
        whole = with_options(name, options)
        build = find_builder(whole, in_channels=in_channels, num_classes=num_classes, image_size=image_size)
        defaults = defaults_of(whole)
        channels, *sides = defaults.input_shape if defaults else DEFAULT_INPUT
        shape = (in_channels or channels, *(sides if image_size is None else height_and_width(image_size)))
        return lambda: prune(build(), shape, branches)
    if name in NETS:
        _check_options(name, options)
        keywords: dict[str, Any] = {**sizes, "image_size": image_size}
        return partial(NETS[name], **{key: size for key, size in keywords.items() if size is not None}, **options)
    if net and os.path.isdir(net):
        raise NetError(
            "{net} is a folder: name a net, or continue a run with branchwork train --resume {net}", net=typed(net)
        )
    location, attribute = split_own(name)
    run = options.pop(SCRIPT, None)
    if options or run not in (None, RUN):
        raise NetError(
            "{name} has no option {option!r}: a net of your own has only {without} and {script}",
            name=name,
            option=next(iter(options), f"{SCRIPT}={run}"),
            without=WITHOUT,
            script=f"{SCRIPT}={RUN}",
        )
    if not location:
        raise NetError(
            "there is no net called {name!r}.{hint} A net of your own is file.py:Class.",
            name=name,
            hint=nearest(name, NETS),
        )
    return find_own_builder(own_script(net) or location, attribute, sizes=sizes, run=run is not None)


def split_options(net: str) -> tuple[str, dict[str, str]]:
    """Split a NET argument into its name and its options: `inception[without=b5]`, or `inception:without=b5`."""
    before, _, after = net.rpartition(":")
    if re.match(r"\w+=", after):  # unlike brackets, every shell takes it as it is
        net = f"{before}[{after}]"
    name, bracket, inside = net.partition("[")
    if name not in NETS:  # the path of a script may contain brackets too
        name, bracket, inside = net.rpartition("[")
        if not split_own(name)[0] or "=" not in inside:
            return net, {}
    if not bracket:
        return net, {}
    pairs = [part.partition("=") for part in inside.removesuffix("]").split(",")]
    if not inside.endswith("]") or not all(key and value for key, _, value in pairs):
        raise NetError(
            "{net!r} is not a valid net: write {name}:KEY=VALUE, or {name}:KEY=VALUE,KEY=VALUE", net=net, name=name
        )
    options = {key.strip(): value.strip() for key, _, value in pairs}
    if len(options) < len(pairs):
        raise NetError("{net!r} repeats an option: write it once", net=net)
    return name, options


def with_options(net: str, options: Mapping[str, str | None]) -> str:
    """Return `net` with `options` added, except those that are None."""
    name, merged = split_options(net)
    merged |= {key: value for key, value in options.items() if value is not None}
    return f"{name}[{','.join(f'{key}={value}' for key, value in merged.items())}]" if merged else name


@dataclass(frozen=True)
class NetDefaults:
    """The input C×H×W and the number of classes that a net of the catalogue was designed for."""

    input_shape: tuple[int, int, int]
    num_classes: int


def defaults_of(net: str) -> NetDefaults | None:
    """Return the input and classes that `net` was designed for; None for a net of the user's own."""
    name, _ = split_options(net)
    if name not in NETS:
        return None
    keywords = {key: parameter.default for key, parameter in inspect.signature(NETS[name]).parameters.items()}
    side = keywords["image_size"]
    return NetDefaults((keywords["in_channels"], side, side), keywords["num_classes"])


def _check_options(name: str, options: Mapping[str, str]) -> None:
    builder: Any = NETS[name]
    # What `partial` fixes is no option: the shortcut of plain nets, the stem of nets for CIFAR.
    fixed = builder.keywords if isinstance(builder, partial) else {}
    hints = get_type_hints(builder.func if isinstance(builder, partial) else builder)
    excluded = ("in_channels", "num_classes", "image_size", "return", *fixed)
    choices = {key: get_args(hint) for key, hint in hints.items() if get_args(hint) and key not in excluded}
    for key, value in options.items():
        if key not in choices:
            raise NetError(
                "{name} has no option {key!r}: it has {choices}",
                name=name,
                key=key,
                choices=", ".join((*choices, WITHOUT)),
            )
        if value not in choices[key]:
            raise NetError(
                "{key} of {name} must be one of {choices}, got {value!r}",
                key=key,
                name=name,
                choices=", ".join(choices[key]),
                value=value,
            )


def is_own_failure(net: str, reason: BaseException) -> bool:
    """Return whether `reason`, raised where `net` ran, is the fault of a user's own net, and not a bug of ours."""
    ours = split_options(net)[0] in NETS or (isinstance(reason, AssertionError) and own_frame(reason) is None)
    return not ours and not isinstance(reason, BranchworkError)


def split_own(name: str) -> tuple[str, str]:
    """Split the name of a user's own net into its file or module and its name there, "" for a script's only net."""
    if name.endswith(SUFFIXES):
        return name, ""
    location, _, attribute = name.rpartition(":")
    if attribute.startswith(("/", "\\")):  # the colon is that of a drive
        return "", name
    return location, attribute


def own_script(net: str) -> str | None:
    """Return the script, notebook or module of the user's that `net` is in; None if it is in none."""
    location, _ = split_own(split_options(net)[0])
    return location if location.endswith(SUFFIXES) else _module_file(location)


def _module_file(module: str) -> str | None:
    """Return the file of an importable module, which is not imported; None for a library's, and if there is none."""
    file, path, parts = "", [os.getcwd(), *sys.path], module.split(".")
    if not all(map(str.isidentifier, parts)):
        return None
    importlib.invalidate_caches()
    for name in itertools.accumulate(parts, "{}.{}".format):
        spec = next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, path))), None)
        if spec is None:
            return None
        file, path = spec.origin or "", [*(spec.submodule_search_locations or ())]
    return file if file.endswith(SUFFIXES) and not is_library(file) else None


def in_script(net: str, path: Path) -> str:
    """Return `net` as a net of the script `path` instead of its own."""
    name, options = split_options(net)
    _, attribute = split_own(name)
    return with_options(f"{path}:{attribute}" if attribute else str(path), options)


def whole_script(net: str, *, run: bool) -> str:
    """Return `net` with the option that has its script run whole, if `run` says so."""
    return with_options(net, {SCRIPT: RUN}) if run else net


def absolute_name(net: str) -> str:
    """Return `net` with the path of a script made absolute, so that it is found from any folder."""
    net = with_options(net, {})  # with its options in brackets
    script = own_script(net)
    return in_script(net, Path(script).resolve()) if script else net


def short_name(net: str) -> str:
    """Return a name for tables and folders: `some/where/lecture.py:Net` becomes `lecture-Net`."""
    name, options = split_options(net)
    if WITHOUT in options:
        branches = options.pop(WITHOUT)
        removed = branches if len(branches) <= LONGEST else f"{branches.count('+') + 1}-branches"
        options[WITHOUT] = f"{WITHOUT}-{removed.replace('+', '-')}"
    options.pop(SCRIPT, None)
    location, attribute = split_own(name)
    if name not in NETS and location:
        # Of Windows, whose paths may stand in a run that is read elsewhere; the others have one stem either way.
        name = PureWindowsPath(location).stem if location.endswith(SUFFIXES) else location
        name = f"{name}-{attribute}" if attribute else name
    return "-".join((name, *options.values()))

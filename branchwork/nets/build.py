"""From a net argument to a module: a name in the catalogue, or a learner's own script."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from branchwork.errors import NetError, nearest
from branchwork.nets import NETS
from branchwork.nets.size import ImageSize


def build_net(net: str, *, in_channels: int = 1, num_classes: int = 10, image_size: ImageSize = 28) -> nn.Module:
    """Build the net that `net` names.

    `net` is a name in `NETS`, `path/to/file.py:Class`, or `package.module:callable`. The two latter are the user's own
    code and are called without arguments, so that the input and the classes are theirs. Raises `NetError`.
    """
    if net in NETS:
        return NETS[net](in_channels=in_channels, num_classes=num_classes, image_size=image_size)
    module_name, _, attribute = net.rpartition(":")
    if Path(net).is_dir():
        raise NetError(f"{net} is a folder: name a net, or continue a run with branchwork train --resume {net}")
    if not module_name:
        raise NetError(f"there is no net called {net!r}.{nearest(net, NETS)} A net of your own is file.py:Class.")
    made = _callable(_module(module_name), attribute, module_name)()
    if not isinstance(made, nn.Module):
        raise NetError(f"{net} gives a {type(made).__name__}, and a torch.nn.Module is needed: return the net")
    return made


def _module(name: str) -> ModuleType:
    path = Path(name)
    if path.suffix != ".py":
        try:
            return importlib.import_module(name)
        except ImportError as reason:
            raise NetError(f"cannot import {name}: {reason}. Give a file as path/to/file.py:Class.") from reason
    if not path.is_file():
        raise NetError(f"there is no file {path}")
    # Own name, so that a script called torch.py or test.py does not shadow what others import.
    spec = importlib.util.spec_from_file_location(f"branchwork_script_{path.stem}", path)
    assert spec and spec.loader, f"a .py file always has a loader: {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as reason:
        raise NetError(f"{path} stops while it is imported: {type(reason).__name__}: {reason}") from reason
    return module


def _callable(module: ModuleType, attribute: str, where: str) -> Callable[[], object]:
    found = getattr(module, attribute, None)
    if found is None:
        own = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
        ]
        raise NetError(f"{where} has no {attribute!r}.{nearest(attribute, own)}")
    if not callable(found):
        raise NetError(
            f"{where}:{attribute} is a {type(found).__name__}: name a class, or a function that makes the net"
        )

    def make() -> object:
        try:
            return found()
        except TypeError as reason:
            raise NetError(
                f"{where}:{attribute} cannot be built without arguments ({reason}): "
                f"write a function that makes it and name that, {where}:make_net"
            ) from reason

    return make

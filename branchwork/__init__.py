"""Branchwork: convolutional networks that branch (Inception) and skip (residual).

Each verb of the command is a function here with the same name; it returns a value and prints nothing. So no package has
the name of a verb: importing it would hide the function.
"""

import sys

# `python -m branchwork` looks for modules in the user's folder first: her random.py would stand for Python's own.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from typing import Any

import lazy_loader

from branchwork import shown
from branchwork.threads import limit_spinning
from branchwork.version import __version__ as __version__

# Each name is imported when it is first used, so that `branchwork --help` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

limit_spinning()  # before torch is imported, which reads it once


def _render(value: Any) -> str:
    from branchwork.cli.notebook import render

    return render(value)


shown.render = _render

"""Branchwork: convolutional networks that branch (Inception) and skip (residual).

Each verb of the command is a function here with the same name; it returns a value and prints nothing.
"""

import lazy_loader

__version__ = "0.1.0"

# Each name is imported when it is first used, so that `branchwork --help` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

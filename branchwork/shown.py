"""Values that show themselves in a notebook as the command shows them.

What a value looks like is said once, for the terminal and for notebooks, in the file of its verb in `cli/`. Values are
made below `cli/` and do not import it: `branchwork/__init__.py`, above all, sets `render` to the function there.
"""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

render: Callable[[Any], str] = repr


class Shown:
    """A value that a verb returns."""

    def _repr_html_(self) -> str:
        return render(self)


class Several(tuple[T, ...], Shown):
    """The values that a verb returns where there are several."""

"""The colours of all that Branchwork shows, in tables, drawings, reports and the page, and which one a branch has.

The colours of branches are of middling lightness, so that they stand out on light and on dark paper alike, and the
colour-blind can tell those of one join apart (tests/test_palette.py). Needs no matplotlib.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

AMBER, BLUE, GREEN, PINK = "#c28000", "#0072b2", "#0a9f69", "#bd70a2"
SKY, VIOLET, OLIVE = "#3292c8", "#7b5cc4", "#8a8a1e"
# The strongest line of a residual net, and what runs beside it.
SHORTCUT, RESIDUAL = "#d81432", "#6f7b87"

# Branches whose names say nothing have these, in order.
IN_ORDER = (AMBER, BLUE, GREEN, PINK, SKY, VIOLET, OLIVE)
_BY_KERNEL = {"1": AMBER, "3": GREEN, "5": BLUE, "7": VIOLET}
_BY_WORD = {"pool": PINK, "residual": RESIDUAL}
_BY_WORD |= dict.fromkeys(("shortcut", "skip", "identity", "downsample"), SHORTCUT)

# `auto` follows the reader's system, or the HTML page around the drawing.
ThemeName = Literal["light", "dark", "auto"]


@dataclass(frozen=True)
class Theme:
    """The colours beside those of branches: of paper, of text and lines, and of values that are good or bad."""

    paper: str
    card: str
    ink: str
    quiet: str
    line: str
    good: str
    bad: str


LIGHT = Theme("#fbfaf7", "#ffffff", "#1d2329", "#5c6670", "#e2e0d9", "#1f6fb2", "#c44536")
DARK = Theme("#14171a", "#1c2024", "#e8e6e1", "#a0a8b0", "#32383e", "#5ca3e0", "#eb7564")


def branch_colours(names: Sequence[str]) -> tuple[str, ...]:
    """Return a colour for each branch of a join: by its name where that says what it is, else the next one in order."""
    known: list[str | None] = []
    for name in names:
        colour = _known(name)
        known.append(None if colour in known else colour)  # of two 3×3, the second is told apart
    spare = [colour for colour in IN_ORDER if colour not in known] or list(IN_ORDER)
    order = (spare[index % len(spare)] for index in range(len(names)))
    return tuple(colour or next(order) for colour in known)


def colours_by_join(branches: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the colour of each branch, which is given by its join and its name."""
    joins: dict[str, list[str]] = {}
    for join, name in branches:
        joins.setdefault(join, []).append(name)
    return {
        (join, name): colour
        for join, names in joins.items()
        for name, colour in zip(names, branch_colours(names), strict=True)
    }


def _known(name: str) -> str | None:
    """Return the colour of `b5` and `branch5x5`, `pool` and `branch_pool`, `shortcut` and `residual`; else None."""
    for word, colour in _BY_WORD.items():
        if word in name:
            return colour
    kernel = re.match(r"b(\d)\b", name) or re.search(r"(\d)x\1(?!\d)", name)
    return _BY_KERNEL.get(kernel[1]) if kernel else None


def css_variables() -> str:
    """Return the palette as variables of CSS, those of `Theme` by the reader's system; good and bad as numbers."""
    branches = {"b1": AMBER, "b3": GREEN, "b5": BLUE, "pool": PINK, "shortcut": SHORTCUT, "residual": RESIDUAL}
    branches |= {f"branch-{number}": colour for number, colour in enumerate(IN_ORDER, 1)}
    always = "; ".join(f"--{name}: {colour}" for name, colour in branches.items())
    light, dark = ("; ".join(f"--{name}: {value}" for name, value in _values(theme)) for theme in (LIGHT, DARK))
    return (
        f":root {{ color-scheme: light dark; {always}; {light}; }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}; }} }}\n"
    )


def _values(theme: Theme) -> list[tuple[str, str]]:
    colours = [(field.name, getattr(theme, field.name)) for field in fields(theme)]
    # As numbers, so that a page can make them transparent: rgba(var(--good), 0.3).
    return [(name, rgb(colour) if name in ("good", "bad") else colour) for name, colour in colours]


def rgb(colour: str) -> str:
    """Return `#1f6fb2` as `31, 111, 178`."""
    return ", ".join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))

"""How things are put into words: in English or Chinese, by `BRANCHWORK_LANG`, else the locale; shapes and numbers."""

import os
from collections.abc import Iterable, Sequence


def say(english: str, chinese: str) -> str:
    """One message in the language of whoever reads it."""
    return chinese if _language().lower().startswith("zh") else english


def _language() -> str:
    # The order in which a POSIX system takes them.
    for name in ("BRANCHWORK_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return os.environ[name]
    return "en"


def times(shape: Iterable[int]) -> str:
    """A shape as people write it: 88×4×4."""
    return "×".join(str(int(n)) for n in shape)


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def enumerated(names: Sequence[str], most: int = 20) -> str:
    """The names, of very many the first three and the last: 0, 1, 2 … 999."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:3])} … {names[-1]}"


def milliseconds(value: float) -> str:
    """A time to three digits that count: 0.0951, 7.20, 53.8, 1,320."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"

"""Messages and numbers for people, in English or Chinese, chosen by `BRANCHWORK_LANG`, else by the locale."""

import os
from collections.abc import Iterable, Sequence


def say(english: str, chinese: str) -> str:
    """Return the message in the user's language."""
    return chinese if _language().lower().startswith("zh") else english


def _language() -> str:
    # In the order in which a POSIX system reads them.
    for name in ("BRANCHWORK_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return os.environ[name]
    return "en"


def times(shape: Iterable[int]) -> str:
    """Return a shape as people write it: 88×4×4."""
    return "×".join(str(int(n)) for n in shape)


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def enumerated(names: Sequence[str], most: int = 20) -> str:
    """Return the names, or if there are more than `most`, the first three and the last: 0, 1, 2 … 999."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:3])} … {names[-1]}"


def milliseconds(value: float) -> str:
    """Return a time with three significant digits: 0.0951, 7.20, 53.8, 1,320."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"

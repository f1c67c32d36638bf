"""Words for people: messages in the user's language, and numbers as people write them.

The code holds English alone. Chinese is in one catalogue, `locale/zh/LC_MESSAGES/branchwork.po`, which
`scripts/messages.py` keeps up with the code.
"""

import functools
import gettext
import locale
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

Text = TypeVar("Text", bound=str)
# Where text may be broken: at spaces, and between Chinese characters, but not before a mark that closes or after one
# that opens.
HAN, CLOSING = "\u2e80-\u9fff\uff00-\uffef", "，。、；：？！）》”"
WORDS = re.compile(rf" *[（《“]*(?:\[[{HAN}]+|[{HAN}]|[^ {HAN}“”]+)[{CLOSING}]*")
LANGUAGES = ("en", "zh")
_SPOKEN: ContextVar[str | None] = ContextVar("spoken", default=None)


def say(message: str, /, **values: object) -> str:
    """Return `message` in the user's language, with `values` in place of their {names}."""
    text = _catalogue(language()).gettext(message) if message else ""
    return text.format(**values) if values else text


def in_language(message: str, language: str) -> str:
    """Return `message` in `language`, `en` or `zh`, for a page that has both."""
    return _catalogue(language).gettext(message)


def mark(message: Text) -> Text:
    """Return `message` itself: it is collected for translation here, and said where it is shown."""
    return message


def language() -> str:
    """Return `zh` if people are to read Chinese, else `en`.

    That is what `BRANCHWORK_LANG` says, which `--lang` sets; else the locale, and on Windows the desktop.
    """
    if (spoken := _SPOKEN.get()) is not None:
        return spoken
    # A POSIX system reads the locale in this order.
    names = ("BRANCHWORK_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    name = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not name and sys.platform == "win32":
        import ctypes

        name = locale.windows_locale.get(ctypes.windll.kernel32.GetUserDefaultUILanguage(), "")
    return "zh" if name.lower().startswith("zh") else "en"


@contextmanager
def speaking(name: str) -> Iterator[None]:
    """Speak the language `name`, whatever the user's is."""
    token = _SPOKEN.set(name)
    try:
        yield
    finally:
        _SPOKEN.reset(token)


@functools.cache
def _catalogue(language: str) -> gettext.NullTranslations:
    folder = Path(__file__).parent / "locale"
    return gettext.NullTranslations() if language == "en" else gettext.translation("branchwork", folder, [language])


def sentences(words: Iterable[str]) -> str:
    """Return whole sentences as one text: Chinese has no space between them."""
    return ("" if language() == "zh" else " ").join(words)


def wrapped(text: str, width: int, pieces: "re.Pattern[str]" = WORDS) -> list[str]:
    """Return `text` in lines of at most `width` cells, of which a Chinese character takes two; a wider piece stays."""
    from rich.cells import cell_len

    lines = [""]
    for piece in pieces.findall(text):
        if lines[-1] and cell_len(lines[-1] + piece) > width:
            lines.append(piece.lstrip())
        else:
            lines[-1] += piece
    return lines


def times(shape: Iterable[int]) -> str:
    """Return a shape as people write it: 88×4×4."""
    return "×".join(str(int(n)) for n in shape)


def listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def short_count(count: int) -> str:
    """Return a large number with three significant digits: 9,999, 44.0k, 1.38M, 118M, 1.81G."""
    if count < 10_000:
        return f"{count:,}"
    size, letter = next(
        (size, letter) for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if count >= 0.9995 * size
    )
    value = count / size
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}{letter}"


def enumerated(names: Sequence[str], most: int = 20) -> str:
    """Return the names, or if there are more than `most`, the first three and the last: 0, 1, 2 … 999."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:3])} … {names[-1]}"


def milliseconds(value: float) -> str:
    """Return a time with three significant digits: 0.0951, 7.20, 53.8, 1,320."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"

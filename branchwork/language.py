"""The language in which people are taught: `BRANCHWORK_LANG`, else that of the locale. English, or Chinese."""

import os


def say(english: str, chinese: str) -> str:
    """One message in the language of whoever reads it."""
    return chinese if _language().lower().startswith("zh") else english


def _language() -> str:
    # The order in which a POSIX system takes them.
    for name in ("BRANCHWORK_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return os.environ[name]
    return "en"

"""The pages of the documentation, and their blocks of code."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# The experiments are kept in English alone.
PAGES = [page for page in sorted(DOCS.glob("*.md")) if not page.name.endswith(".zh.md")]


class Block(NamedTuple):
    language: str
    code: str
    # Why this block is not run with its page, and where it is run instead; else None.
    elsewhere: str | None


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the fenced blocks of a page, or those in some languages."""
    found = re.findall(
        r"^(?:<!-- ((?:not )?run\b.+?) -->\n)?```(\w*)\n(.*?)^```$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    every = [Block(language, code, elsewhere or None) for elsewhere, language, code in found]
    return [block for block in every if not languages or block.language in languages]


def in_chinese(page: Path) -> Path:
    return page.with_suffix(".zh.md")


def without_comments(block: Block) -> Block:
    """Return a block without its comments, which are in the language of the page."""
    return block._replace(code=re.sub(r" *#.*", "", block.code))

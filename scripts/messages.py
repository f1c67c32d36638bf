"""Keep the catalogues up with the code: collect what the package says, merge it into each .po file, compile it to .mo.

    python scripts/messages.py

New messages appear in the .po file with an empty translation, and changed ones as fuzzy: translate them, and run it
again. `make test` fails until all are.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

PACKAGE = Path(__file__).parents[1] / "branchwork"
# Calls whose first argument is a message. Errors say theirs, too.
CALLS = {"say", "mark", "note", "error"}


def collect() -> Catalog:
    """Return all messages of the package, with the files in which they are."""
    catalog = Catalog(project="Branchwork", charset="utf-8")
    for path in sorted(PACKAGE.rglob("*.py")):
        for message in _messages(ast.parse(path.read_text(encoding="utf-8"))):
            catalog.add(message, locations=[(str(path.relative_to(PACKAGE)), None)])
    return catalog


def _messages(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CALLS or name.endswith(("Error", "Interrupted", "Diverged", "TooLarge")):
                yield from _texts(node.args[0]) if node.args else ()


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        yield node.value


def catalogue_files() -> list[Path]:
    return sorted(PACKAGE.glob("locale/*/LC_MESSAGES/*.po"))


def main() -> None:
    messages = collect()
    for path in catalogue_files():
        with path.open("rb") as file:
            catalog = read_po(file, locale=path.parents[1].name)
        catalog.update(messages, no_fuzzy_matching=False)
        with path.open("wb") as file:
            write_po(file, catalog, width=120, sort_output=False, ignore_obsolete=True, omit_header=False)
        with path.with_suffix(".mo").open("wb") as file:
            write_mo(file, catalog)
        missing = [message for message in catalog if message.id and (not message.string or message.fuzzy)]
        print(f"{path}: {len(catalog)} messages, {len(missing)} without a translation")


if __name__ == "__main__":
    main()

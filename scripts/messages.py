"""Keep the catalogues up with the code: collect what the package says, merge it into each .po file, compile it to .mo.

    make messages

A new message appears in the .po file without a translation: write it there, and run this again. The tests fail until
all are translated. The output depends on the code and the translations alone, so that two people's changes merge: where
git finds a conflict, take both sides of the .po file, and run this.
"""

import ast
import io
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from cyclopts import App

from branchwork import errors
from branchwork.cli import app
from branchwork.cli.help import paragraphs

PACKAGE = Path(__file__).parents[1] / "branchwork"
ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.BranchworkError)
}
# Functions that say one of their arguments, and which one.
SAID = {
    **dict.fromkeys((*ERRORS, "say", "mark", "error", "FolderProblem", "check_single_process", "where_drawn"), 0),
    "_need": 2,
}
HEADER = "# Branchwork in Chinese. Kept by scripts/messages.py: translate here, then run `make messages`."


class PlainCatalog(Catalog):
    """A catalogue whose header has neither dates nor versions, which would differ from one run to the next."""

    @property
    def mime_headers(self) -> list[tuple[str, str]]:
        return [("Language", self.locale_identifier or ""), ("Content-Type", "text/plain; charset=utf-8")]


def collect() -> dict[str, list[str]]:
    """Return every message of the package, with the files in which it is."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for message in in_code(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(message, []).append(str(path.relative_to(PACKAGE)))
    for file, message in in_help(app, "cli/__init__.py"):
        found.setdefault(message, []).append(file)
    return {message: sorted(set(files)) for message, files in found.items()}


def in_code(tree: ast.AST) -> Iterator[str]:
    """Yield the messages in the code, in its order."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        for argument in said(call):
            yield from texts(argument)


def said(call: ast.Call) -> list[ast.expr]:
    """Return the arguments of a call that are messages."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    messages = [keyword.value for keyword in call.keywords if keyword.arg == "remedy"]
    if name == "make_table":
        messages += [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    elif name in SAID:
        messages += call.args[SAID[name] :][:1]
    return messages


def texts(node: ast.expr) -> Iterator[str]:
    """Yield the literals that an argument may be."""
    if isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        yield node.value


def in_help(command: App, file: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of the help of a command and of the commands below it, each with a file."""
    for paragraph in paragraphs(command.help):
        yield file, paragraph
    if command.default_command is not None:
        for argument in command.assemble_argument_collection():
            names = [group.name for group in argument.parameter.group]
            for text in filter(None, (argument.parameter.help, *names)):
                yield file, text
    for name in command:
        if name.startswith("-"):
            yield from ((file, paragraph) for paragraph in paragraphs(command[name].help))
        else:
            yield from in_help(command[name], file if command is not app else f"cli/{name}.py")


def catalogue_files() -> list[Path]:
    return sorted(PACKAGE.glob("locale/*/LC_MESSAGES/*.po"))


def translations(path: Path) -> dict[str, str]:
    """Return what `path` has for each message."""
    with path.open("rb") as file:
        return {message.id: message.string for message in read_po(file) if message.id}


def catalog_of(path: Path, messages: dict[str, list[str]]) -> PlainCatalog:
    """Return these messages, each with the files in which it is, with the translations that `path` has for them."""
    known = translations(path)
    catalog = PlainCatalog(locale=path.parents[1].name, header_comment=HEADER, fuzzy=False)
    for message, files in messages.items():
        entry = catalog.add(message, known.get(message, ""), locations=[(file, None) for file in files])
        entry.flags.clear()
    return catalog


def as_text(catalog: Catalog) -> bytes:
    file = io.BytesIO()
    write_po(file, catalog, width=120)
    return file.getvalue()


def compiled(catalog: Catalog) -> bytes:
    file = io.BytesIO()
    write_mo(file, catalog)
    return file.getvalue()


def main() -> None:
    for path in catalogue_files():
        catalog = catalog_of(path, collect())
        path.write_bytes(as_text(catalog))
        path.with_suffix(".mo").write_bytes(compiled(catalog))
        missing = [message for message in catalog if message.id and not message.string]
        print(f"{path}: {len(catalog)} messages, {len(missing)} without a translation")


if __name__ == "__main__":
    main()

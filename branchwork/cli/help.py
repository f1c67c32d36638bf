"""Help, and messages about arguments, in the user's language.

The docstrings of the verbs and the help of their flags stay plain English: they are said when they are shown.
"""

import re
from typing import TYPE_CHECKING, Any

from cyclopts import CycloptsError
from rich.cells import cell_len
from rich.text import Text

from branchwork.language import WORDS, mark, say, sentences

if TYPE_CHECKING:
    from cyclopts.help import ColumnSpec, HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions
    from rich.containers import Lines

# The titles that cyclopts gives.
TITLES = (mark("Arguments"), mark("Commands"), mark("Parameters"))
# What cyclopts says about arguments, sentence by sentence, longer ones first.
SENTENCES = (
    mark('Unknown command "{command}".'),
    mark("Available commands: {commands}, ..."),
    mark("Available commands: {commands}."),
    mark('Did you mean "{name}"?'),
    mark("Did you mean {name} instead of {other}?"),
    mark("Did you mean {name}?"),
    mark('Invalid value "{value}" for {name}. Choose from: {choices}.'),
    mark('Invalid value "{value}" for {name}.'),
    mark('Invalid value for {name}: unable to convert "{value}" into {kind}.'),
    mark('Command "{command}" parameter {name} requires an argument.'),
    mark('Command "{command}" parameter {name} requires at least {count} element. Got {found}.'),
    mark("Parameter {name} requires an argument."),
    mark("Parameter {name} specified multiple times."),
    mark("Cannot supply keyword & non-keyword arguments to {name}."),
    mark("Unused Tokens: {tokens}."),
)
# The types of values.
KINDS = (mark("int"), mark("float"))


class SpokenHelp:
    """Renders help as cyclopts does, but in the user's language."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        from cyclopts.help import DefaultFormatter

        render = DefaultFormatter(column_specs=_command_columns if panel.format == "command" else _flag_columns)
        render(console, options, panel.copy(title=say(str(panel.title))))

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: Any) -> None:
        console.print(say("Usage: {words}", words=str(usage).strip()), style="bold", highlight=False, markup=False)
        console.print()

    def render_description(self, console: "Console", options: "ConsoleOptions", description: Any) -> None:
        for paragraph in paragraphs(plain(description)):
            console.print(Breakable(say(paragraph)))
            console.print()


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a docstring, each on one line: they are the messages of the catalogue."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def usage_error(reason: CycloptsError) -> str:
    """Return what cyclopts says about wrong arguments in the user's language, as far as its sentences are known."""
    rest, said = str(reason).strip(), []
    while rest:
        found = next(((text, match) for text in SENTENCES if (match := _pattern(text).match(rest))), None)
        if found is None:
            said.append(rest)  # what a parser of ours says, in the user's language
            break
        text, match = found
        values = match.groupdict()
        if values.get("kind") in KINDS:
            values["kind"] = say(values["kind"])
        said.append(say(text, **values))
        rest = rest[match.end() :]
    return sentences(said)


def _pattern(message: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(message)) + r"(?:\s+|$)", re.DOTALL)


class Breakable(Text):
    """Text that may break between Chinese characters, where rich breaks only at spaces."""

    def wrap(self, console: "Console", width: int, **settings: Any) -> "Lines":
        offsets, used = [], 0
        for word in WORDS.finditer(self.plain):
            used += cell_len(word[0])
            if used > width and word.start():
                begun = word[0].lstrip()  # the space before it stays behind
                offsets.append(word.end() - len(begun))
                used = cell_len(begun)
        return Text("\n").join(self.divide(offsets)).wrap(console, width, **settings)


def _command_columns(
    console: "Console", options: "ConsoleOptions", entries: list["HelpEntry"]
) -> tuple["ColumnSpec", ...]:
    from cyclopts.help.specs import get_default_command_columns

    return _spoken(get_default_command_columns(console, options, entries))


def _flag_columns(
    console: "Console", options: "ConsoleOptions", entries: list["HelpEntry"]
) -> tuple["ColumnSpec", ...]:
    from cyclopts.help.specs import get_default_parameter_columns

    return _spoken(get_default_parameter_columns(console, options, entries))


def _spoken(columns: tuple["ColumnSpec", ...]) -> tuple["ColumnSpec", ...]:
    *names, description = columns
    return (*names, description.copy(renderer=describe))


def describe(entry: "HelpEntry") -> Text:
    text = Breakable(say(plain(entry.description)))
    remarks = [
        say("[choices: {choices}]", choices=", ".join(entry.choices)) if entry.choices else "",
        say("[default: {value}]", value=entry.default) if entry.default is not None else "",
        say("[required]") if entry.required else "",
    ]
    for remark in filter(None, remarks):
        text.append(f" {remark}", "red" if remark == remarks[-1] else "gray58")
    return text


def plain(description: Any) -> str:
    """Return the text of a description, which cyclopts wraps for rich."""
    return str(getattr(description, "primary_renderable", description) or "")

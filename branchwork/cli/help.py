"""Help, and messages about arguments, in the user's language.

The docstrings of the verbs and the help of their flags stay plain English: they are said when they are shown.
"""

import inspect
import re
from typing import TYPE_CHECKING, Any

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownOptionError
from rich.cells import cell_len
from rich.text import Text

from branchwork.language import WORDS, mark, say, sentences
from branchwork.synonyms import meant

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
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
# Flags of other tools that say in one word what is a flag and its value here.
_VALUES = {"cuda": "cuda", "gpu": "cuda", "cpu": "cpu", "mps": "mps", "bf16": "bf16", "fp32": "fp32"}
# The last lines of each verb's help. Tests parse them all, and run the quick ones.
EXAMPLES = {
    "train": (
        "branchwork train residual --data sample --epochs 1",
        "branchwork train lecture.py:Net --learning-rate 0.003 --seed 7",
    ),
    "evaluate": ("branchwork evaluate runs/first", "branchwork evaluate runs/first --json figures.json"),
    "compare": (
        "branchwork compare runs/first runs/second",
        "branchwork compare runs/first runs/second --out compare.html",
    ),
    "predict": ("branchwork predict runs/first 7.jpg", "branchwork predict runs/first pictures --csv answers.csv"),
    "nets": ("branchwork nets", "branchwork nets resnet dense"),
    "inspect": ("branchwork inspect lecture.py:Net --lint", "branchwork inspect inception:without=b5 --draw net.svg"),
    "explain": ("branchwork explain runs/first --images 1000", "branchwork explain runs/first 7.jpg --draw why.png"),
    "select": ("branchwork select runs/first --keep 2", "branchwork select inception --data sample --drop 0.2%"),
    "ui": ("branchwork ui runs/first", "branchwork ui runs --port 8000"),
    "study": ("branchwork study depth", "branchwork study branches --data sample --seeds 3"),
    "export": ("branchwork export runs/first --to onnx", "branchwork export runs/first --to pt2 --out net.pt2"),
    "bench": ("branchwork bench inception", "branchwork bench runs/first --engines torch onnxruntime"),
    "data": ("branchwork data sample", "branchwork data photos --draw examples.png"),
    "data pack": ("branchwork data pack photos", "branchwork data pack photos --size 64 --out photos-64.pack"),
    "demo": ("branchwork demo", "branchwork demo --data sample"),
    "doctor": ("branchwork doctor", "branchwork doctor --json doctor.json"),
}


class SpokenHelp:
    """Renders help as cyclopts does, but in the user's language."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        from cyclopts.help import DefaultFormatter
        from cyclopts.help.specs import get_default_command_columns, get_default_parameter_columns

        usual = get_default_command_columns if panel.format == "command" else get_default_parameter_columns
        *names, description = usual(console, options, panel.entries)
        render = DefaultFormatter(column_specs=(*names, description.copy(renderer=describe)))
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
    if isinstance(reason, UnknownOptionError):
        return _unknown_flag(reason)
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


def _unknown_flag(reason: UnknownOptionError) -> str:
    """Return the message about an unknown flag: `--lr: did you mean --learning-rate?`"""
    flag = (reason.token.keyword or reason.token.value).partition("=")[0]
    verb = " ".join(("branchwork", *(reason.command_chain or ())))
    word = flag.lstrip("-").replace("-", "_")
    flags = [name for argument in reason.argument_collection for name in argument.names if name.startswith("--")]
    flags += ["--lang", "--trust"]  # which every verb has
    positional = [
        parameter.name
        for parameter in inspect.signature(reason.target or (lambda: None)).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
    ]
    known = {name.removeprefix("--").replace("-", "_"): name for name in flags} | {n: n.upper() for n in positional}
    name = meant(word, known)
    if name in positional:
        written = " ".join((verb, *map(str.upper, positional)))
        return say("{flag}: {name} is written without a flag: {written}", flag=flag, name=known[name], written=written)
    if name:
        value = f" {_VALUES[word]}" if word in _VALUES else ""
        return say("{flag}: did you mean {meant}?", flag=flag, meant=known[name] + value)
    return say("{verb} has no flag {flag}: see {verb} --help", verb=verb, flag=flag)


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


def add_examples(app: App) -> None:
    """End the help of `app`, and of each verb with its examples, in the user's language."""
    language = say("--lang en or --lang zh chooses the language; without it, BRANCHWORK_LANG or the system does.")
    trust = say("--trust allows a run folder made by others to run its own code, now and in future.")
    app.help_epilogue = f"{language}\n{trust}"
    for verb, lines in EXAMPLES.items():
        command = app
        for word in verb.split():
            command = command[word]
        command.help_epilogue = "\n".join((app.help_epilogue, "", say("Examples:"), *(f"  {line}" for line in lines)))

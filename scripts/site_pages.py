"""What the documentation site makes of the pages in docs/, as an extension of Sphinx (docs/conf.py).

The pages are written to be read in the repository as well. Here the link to the other language leads to the other half
of the site, a link to the live page shows it, and a comment such as `<!-- site: commands -->` is replaced by what it
names: the contents, which are the pages listed after it, or a part of the reference.
"""

import gettext
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from rich.console import Console
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

import branchwork
from branchwork import cli
from branchwork.cli.help import EXAMPLES, describe, paragraphs, plain
from branchwork.language import CLOSING, HAN, say, speaking

OTHER_LANGUAGE = re.compile(r"^\[(?:English|中文)\]\(([\w-]+?)(?:\.zh)?\.md\)$", re.MULTILINE)
LIVE = re.compile(r"^\[([^\]]+)\]\((example\.html(?:#step=\d)?)\)$", re.MULTILINE)
LISTED = re.compile(r"^## (.+)$|^(?:- |\| )\[([^\]]+)\]\(([\w/-]+)(?:\.zh)?\.md\)", re.MULTILINE)
# What the theme says and does not translate.
FURO = {
    "Back to top": "回到顶部",
    "Home": "首页",
    "Next": "下一页",
    "On this page": "本页内容",
    "Previous": "上一页",
    "Skip to content": "跳到正文",
}
# Files that are no pages of the site.
NO_PAGES = re.compile(r"\]\((\.\./[A-Z]\w*\.md|digits/README\.md)\)")
GENERATED = re.compile(r"^<!-- site: (\w+) ?(.*?) -->$", re.MULTILINE | re.DOTALL)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_search_language(SearchChinese)
    app.connect("builder-inited", translate_theme)
    app.connect("source-read", complete)
    app.connect("doctree-resolved", open_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def translate_theme(app: Sphinx) -> None:
    if app.tags.has("zh"):
        app.translator.add_fallback(Theme())


class Theme(gettext.NullTranslations):
    def gettext(self, message: str) -> str:
        return FURO.get(message.strip(), message)


def complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Complete the text of a page, in place."""
    language = "zh" if app.tags.has("zh") else "en"
    to_other = "../" if language == "zh" else "zh/"

    def link(found: re.Match[str]) -> str:
        code, name = ("en", "English") if language == "zh" else ("zh-CN", "中文")
        return f'<p class="language"><a href="{to_other}{found[1]}.html" hreflang="{code}" lang="{code}">{name}</a></p>'

    def live(found: re.Match[str]) -> str:
        words, address = found.groups()
        address += f"{'&' if '#' in address else '#'}lang={language}"
        return (
            f'<details class="live"><summary>{words}</summary>'
            f'<iframe src="{address}" title="{words}" loading="lazy"></iframe>'
            f'<p><a href="{address}">{"单独打开" if language == "zh" else "On its own"}</a></p></details>'
        )

    def generated(found: re.Match[str]) -> str:
        if found[1] == "contents":
            return "\n".join(contents(found.string[found.end() :]))
        with speaking(language):
            return "\n".join({"commands": commands, "python": python, "returned": returned}[found[1]](found[2].split()))

    # Where a line of Chinese ends, Markdown would set a space.
    source[0] = re.sub(f"(?<=[{HAN}{CLOSING}])\n *(?=[{HAN}])", "", source[0])
    text = NO_PAGES.sub(r"](path:\1)", OTHER_LANGUAGE.sub(link, source[0], count=1))
    source[0] = GENERATED.sub(generated, LIVE.sub(live, text))


def contents(text: str) -> Iterator[str]:
    """Yield the tables of contents: the pages that `text` lists, by its headings."""
    caption: str | None = None
    pages: dict[str | None, list[str]] = {}
    for heading, title, page in LISTED.findall(text):
        caption = heading or caption
        if page:
            pages.setdefault(caption, []).append(f"{title} <{page}>")
    for caption, listed in pages.items():
        yield from ("```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *listed, "```", "")


def open_files(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Let a browser show the files that a page links to: Sphinx would have it save them."""
    root = "../" * page.count("/")
    for link in list(tree.findall(download_reference)):
        if "filename" in link:
            address = f"{root}_downloads/{link['filename']}"
            link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=True))


# The command line


class Markdown:
    """Renders help as cyclopts does, but as Markdown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def render_usage(self, console: object, options: object, usage: Any) -> None:
        self.lines += ["```text", str(usage).strip().removeprefix("Usage: "), "```", ""]

    def render_description(self, console: object, options: object, description: Any) -> None:
        for paragraph in paragraphs(plain(description)):
            self.lines += [escaped(say(paragraph)), ""]

    def __call__(self, console: object, options: object, panel: Any) -> None:
        entries = [entry for entry in panel.entries if not {"--help", "--version"} & set(entry.names)]
        if entries:
            self.lines += [f"**{say(str(panel.title))}**", ""]
        for entry in entries:
            names = " ".join(f"`{label}`" for label in entry.display_labels_with_metavar)
            self.lines += [f"{names}\n: {escaped(describe(entry).plain)}", ""]


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def commands(_: object) -> Iterator[str]:
    """Yield what each verb's own `--help` says."""
    for verb, examples in EXAMPLES.items():
        help_of = Markdown()
        before, cli.app.help_formatter = cli.app.help_formatter, help_of
        try:
            cli.app.help_print(verb.split(), console=Console(quiet=True))
        finally:
            cli.app.help_formatter = before
        yield from (f"## {verb}", "", *help_of.lines, "```text", *examples, "```", "")


# Python


def python(names: list[str]) -> Iterator[str]:
    """Yield the documentation of public names."""
    for name in names:
        value = getattr(branchwork, name)
        if inspect.isclass(value):
            yield from directive("autoclass", f"branchwork.{name}")
        else:
            yield from directive("autofunction" if callable(value) else "py:data", f"branchwork.{name}")


def returned(_: object) -> Iterator[str]:
    """Yield the documentation of what public functions and these classes mention, and has no public name of its own."""
    public = [getattr(branchwork, name) for name in sorted(branchwork.__all__)]
    found: dict[str, type] = {}
    waiting = [value for value in public if callable(value)]
    while waiting:
        for kind in mentioned(waiting.pop()):
            name = f"{kind.__module__}.{kind.__qualname__}"
            if name.startswith("branchwork.") and kind not in public and name not in found:
                found[name] = kind
                waiting.append(kind)
    for name in sorted(found, key=lambda name: name.rpartition(".")[2]):
        yield from directive("autoclass", name)


def mentioned(value: Any) -> Iterator[type]:
    """Yield the classes in the annotations of a function, or of the fields and public methods of a class."""
    own = vars(value).items() if inspect.isclass(value) else ()
    methods = [getattr(one, "fget", one) for name, one in own if not name.startswith("_")]
    for each in (value, *filter(inspect.isfunction, methods)):
        waiting = list(typing.get_type_hints(each).values())
        while waiting:
            hint = waiting.pop()
            waiting += typing.get_args(hint)
            if inspect.isclass(hint):
                yield hint


def directive(kind: str, name: str) -> Iterator[str]:
    members = ["   :members:"] if kind == "autoclass" else []
    yield from ("```{eval-rst}", f".. {kind}:: {name}", *members, "```", "")


# Search


class SearchChinese(SearchEnglish):
    """Finds Chinese by pairs of neighbouring characters, which needs no dictionary, and other words as English."""

    lang = "zh_CN"
    _word_re = re.compile(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+")
    js_splitter_code = """
function splitQuery(query) {
    const words = query.match(/[\\u4e00-\\u9fff]+|(?:(?![\\u4e00-\\u9fff])[\\p{L}\\p{N}_])+/gu) || [];
    return words.flatMap((word) => !/^[\\u4e00-\\u9fff]{3,}$/.test(word) ? [word]
        : [...word].slice(1).map((last, i) => word[i] + last));
}
"""

    def split(self, input: str) -> list[str]:
        return [part for word in super().split(input) for part in pairs(word)]


def pairs(word: str) -> list[str]:
    """Return the pairs of neighbouring characters of a Chinese word; another is left whole."""
    is_chinese = "\u4e00" <= word[0] <= "\u9fff"
    return [word[i : i + 2] for i in range(len(word) - 1)] if is_chinese and len(word) > 2 else [word]

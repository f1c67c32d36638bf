"""Notebooks: a value shows itself with the words and figures that the command prints, as HTML that nothing breaks."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.folders import two_classes

import branchwork as bw
from branchwork.cli import notebook
from branchwork.files import parse_json
from branchwork.shown import Several, Shown
from branchwork.studies.design import StudyResult
from branchwork.training.result import Result

VOID = {"img", "br", "meta"}


class Page(HTMLParser):
    """The tags and the text of a piece of HTML, which must be well formed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "svg" not in self.open:
            self.texts.append(data)

    @property
    def words(self):
        return " ".join(self.texts).split()


def test_every_value_of_a_verb_has_a_look():
    assert all(getattr(bw, name) for name in bw.__all__)  # so that all of them are imported
    assert {kind.__name__ for kind in Shown.__subclasses__()} - {"Several"} == notebook.PARTS.keys()


def test_a_notebook_shows_what_the_command_prints(run, command):
    shown = {
        "nets res": lambda: bw.nets("res"),
        "inspect residual --lint": lambda: bw.inspect("residual", lint=True),
        "inspect inception --by block": lambda: bw.inspect("inception", by="block"),
        "inspect --conv 192x28x28 --kernel 5 --out-channels 32 --through 16": lambda: bw.reduction(
            (192, 28, 28), kernel=5, out_channels=32, through=16
        ),
        "data sample": lambda: bw.data("sample"),
        f"evaluate {run.folder} --draw m.png": lambda: bw.evaluate(run.folder),
        f"predict {run.folder} {ROOT}/docs/digits": lambda: bw.predict(run.folder, ROOT / "docs/digits"),
    }
    for words, function in shown.items():
        code, out, err = command(*words.split())
        assert code == 0, err
        page = Page(function()._repr_html_())
        printed = re.sub("[─│├╰╭╮╯╴━┃┏┓┗┛┡┩]+", " ", out)
        missing = [word for word in printed.split() if word not in page.words and "m.png" not in word]
        assert not set(missing) - {"the", "most", "confident", "mistakes:"}, (words, missing)


def test_an_inspection_shows_its_drawing_which_is_no_figure_of_it():
    inspection = bw.inspect("residual")
    page = Page(inspection._repr_html_())
    assert "svg" in page.tags and "table" in page.tags
    assert inspection == bw.inspect("residual") and "drawing" not in dataclasses.asdict(inspection)
    assert "svg" not in Page(bw.inspect("densenet121")._repr_html_()).tags  # too many operations


def test_the_styles_of_jupyterlab_do_not_break_cells(browser):
    page = browser.new_page(viewport={"width": 700, "height": 700})
    lab = ".lab td, .lab th { padding: .5em; white-space: normal; vertical-align: middle; }"
    inspection = bw.inspect("inception", by="block")._repr_html_()
    page.set_content(f'<style>{lab}</style><div class="lab">{inspection}</div>')
    looks = "place => { const look = getComputedStyle(place); return [look.whiteSpace, look.verticalAlign]; }"
    assert {page.eval_on_selector(cell, looks)[0] for cell in ("tbody td", "tbody td:nth-child(2)")} == {"nowrap"}
    assert page.eval_on_selector("thead th", looks) == ["normal", "bottom"]


def test_one_row_is_cards_and_several_are_a_table(run):
    one, two = Page(run._repr_html_()), Page(Several((run, run))._repr_html_())
    assert "table" not in one.tags and {"table", "tr"} <= set(two.tags)
    for page in (one, two):
        assert "41,514" in page.words and f"{run.test_accuracy:.2%}" in page.words
    assert Page(Several[Result]()._repr_html_()).words == []


def test_names_cannot_break_the_page():
    folder = two_classes(Path("pets"))
    (folder / "cat").rename(folder / "<b>&amp;'\"")
    page = Page(bw.data("pets")._repr_html_())
    assert "<b>&amp;'\"" in page.words and page.tags.count("b") == 0


@pytest.mark.parametrize("name", ["branches", "depth"])
def test_a_study_shows_its_rows_and_its_answer(name):
    path = next((ROOT / "docs/answers").glob(f"{name}-seed-*.json"))
    result = parse_json(path.read_bytes(), StudyResult, path)
    page = Page(result._repr_html_())
    assert page.tags.count("tr") == len(result.rows) + 1
    assert all(" ".join(finding.words.split()) in " ".join(page.words) for finding in result.findings)


def test_explanations_and_times_show_themselves(run):
    options = bw.BenchOptions(engines=("torch",), precisions=("fp32",), batch_sizes=(1,), seconds=0.01, threads=1)
    times = Page(bw.bench(run.folder, options=options)._repr_html_())
    assert "2,013,184" in times.words and times.tags.count("tr") == 3
    explained = Page(bw.explain(run.folder, images=50)._repr_html_())
    assert "svg" in explained.tags
    assert {"rblock1", "residual", "shortcut"} <= {word.split(".")[0] for word in explained.words}


def test_colours_and_sections_are_those_of_the_table():
    from rich.text import Text

    from branchwork.cli.output import make_table

    table = make_table("a", "b")
    table.add_row(Text("x", style="#ff0000"), "1", end_section=True)
    table.add_row("y <", Text("2", style="bold"))
    (html,) = notebook._html([table])
    Page(html)
    assert "color: #ff0000" in html and '<tr class="end">' in html and "y &lt;" in html and "font-weight: bold" in html

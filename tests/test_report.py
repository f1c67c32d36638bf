"""The report of a training: what it shows, in which order, and that nothing in a net or a name breaks it."""

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import branchwork as bw
from branchwork import pages
from branchwork.cli.output import result_parts, show
from branchwork.training.result import read_result


class Text(str):
    """The words of a page, without its tags and pictures."""

    def __new__(cls, page: str):
        page = re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL)
        return super().__new__(cls, re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))


def test_the_report_is_one_file_that_needs_no_other(run):
    page = Path(run.folder, "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#)', page)
    assert "<script" not in page and "@import" not in page and "url(http" not in page
    assert page.count("<svg") == 3 and page.count("data:image/png;base64,") >= 32
    words = Text(page)
    assert f"{run.test_accuracy:.2%}" in words and f"{run.test_interval[0]:.2%} to {run.test_interval[1]:.2%}" in words
    assert "41,514" in words and "2,013,184" in words and f"{run.train_seconds:.1f} s" in words
    assert "mean 0.1307" in words and "black is -0.42, white 2.82" in words


def test_the_report_begins_with_the_net_and_ends_with_how_it_was_made(run):
    page = Path(run.folder, "report.html").read_text()
    headings = re.findall(r"<(?:h2|summary)>(.*?)</", page)
    assert headings[:6] == [
        "The net", "The result", "Learning", "Which branch matters", "The first kernels", "Most confident mistakes"
    ]  # fmt: skip
    assert headings[-1] == "How it was made" and '<html lang="en">' in page
    # The drawing: a box for each layer, by its path.
    drawing = page[page.index("<svg") : page.index("</svg>")]
    for name in ("conv1", "rblock1", "residual.conv2", "fc"):
        assert f">{name}</text>" in drawing or f".{name}</text>" in drawing, name
    # What differs from the recipe comes before all else.
    made = Text(page[page.index("<details>") :])
    assert made.index("The recipe fast with these fields changed") < made.index("epochs 4 6") < made.index("machine")


def test_the_report_measures_branches_as_explain_does(run):
    page = Path(run.folder, "report.html").read_text()
    found = bw.explain(run.folder)
    section = page[page.index("Which branch matters") : page.index("The first kernels")]
    assert f"on {found.images} validation images" in section
    shown = re.findall(r"<span>(.*?)</span>.*?<b>(.*?)</b>", section)
    assert shown == [(b.branch, f"{100 * b.lost_by_mean:+.1f}".replace("-", "−")) for b in found.branches]
    assert re.findall("<h3>(.*?)</h3>", section) == ["rblock1.add", "rblock2.add"]
    bars = [float(width) for width in re.findall(r'<i style="left: [\d.]+%; width: ([\d.]+)%', section)]
    longest = max(range(4), key=lambda n: abs(found.branches[n].lost_by_mean))
    assert bars[longest] == max(bars) and all(0 <= width <= 100 for width in bars)


def test_the_report_shows_the_first_kernels_before_and_after(run, sample):
    page = Path(run.folder, "report.html").read_text()
    section = page[page.index("The first kernels") : page.index("Most confident mistakes")]
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        for content in re.findall(r"data:image/png;base64,([^\"]+)", section)
    ]
    torch.manual_seed(0)
    before = bw.build_net("residual").conv1.weight.detach()[:, 0].numpy()
    after = bw.load_run(run.folder).net.conv1.weight.detach()[:, 0].numpy()
    most = max(np.abs(before).max(), np.abs(after).max())
    assert len(pictures) == len(after) == 16
    for picture, *kernels in zip(pictures, before, after, strict=True):
        for part, kernel in zip((picture[:5, :, 0], picture[6:, :, 0]), kernels, strict=True):
            assert np.abs(part - 127.5 * (1 + kernel / most)).max() <= 1
        assert picture[5, :, 3].max() == 0


def test_a_net_that_cannot_be_read_or_measured_still_has_its_report(small, monkeypatch):
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.fc = nn.Linear(784, 8), nn.Linear(784, 8), nn.Linear(8, 10)\n"
        "    def forward(self, x):\n"
        "        x = x.flatten(1)\n"
        "        joined = self.a(x) + self.b(x)\n"
        "        return self.fc(joined if float(x.mean()) > 9 else joined.relu())\n"
    )
    recipe = bw.fast("residual").but({"epochs": 1, "batch_size": 100})
    bw.train("net.py:Net", data=small, recipe=recipe, out="run")
    words = Text(Path("run/report.html").read_text())
    assert "The branches cannot be measured: " in words and "control flow that depends on pixels" in words
    assert "The net" in words and "The first kernels" not in words
    monkeypatch.setattr("branchwork.training.net_report.read", lambda *_, **__: 1 / 0)
    bw.train("net.py:Net", data=small, recipe=recipe, out="again")
    assert "The net cannot be drawn: division by zero" in Text(Path("again/report.html").read_text())


def test_a_net_without_joins_has_no_bars_and_the_nearest_recipe_is_named(small, monkeypatch):
    Path("net.py").write_text(
        "from torch import nn\n"
        "def Net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 30, 5, stride=4), nn.Flatten(), nn.Linear(1080, 10))\n"
    )
    bw.train("net.py:Net", data=small, recipe=bw.course().but({"epochs": 1, "validation": 0.1}), out="run")
    words = Text(Path("run/report.html").read_text())
    assert "Which branch matters" not in words and "24 of the 30 kernels of 5×5 in 0" in words
    assert "The recipe course with these fields changed: field this run course epochs 1 10 validation 0.1 0.0" in words
    with monkeypatch.context() as patch:
        patch.setattr("branchwork.training.net_report.MOST_LAYERS", 2)
        bw.train("net.py:Net", data=small, recipe=bw.course().but({"epochs": 1}), out="deep")
    assert "With 3 layers, the net is too large to draw and measure here" in Text(Path("deep/report.html").read_text())
    bw.train("net.py:Net", data=small, recipe=bw.course().but({"epochs": 1}), out="all")
    words = Text(Path("all/report.html").read_text())
    assert "no images held out" in words and "The stronger the colour of a box" in words


def test_a_training_without_a_report_is_whole_all_the_same(small, capsys):
    recipe = bw.fast("residual").but({"epochs": 1})
    with_report = bw.train("residual", data=small, recipe=recipe, out="with")
    result = bw.train("residual", data=small, recipe=recipe, out="without", report=False)
    assert result.report is None and not Path("without/report.html").exists()
    assert Path("with/report.html").exists() and result.test_accuracy == with_report.test_accuracy
    assert read_result(Path("without")) == result
    show(*result_parts((result,)))
    assert "report" not in capsys.readouterr().out


@pytest.mark.parametrize("most", [4, 8, 10, 16])
def test_no_image_is_alone_in_the_last_row_of_a_grid(most):
    for count in range(1, 61):
        columns = pages._columns(count, most)
        assert columns == count if count <= most else most // 2 < columns <= most + 1
        assert count % columns != 1 or columns == 1, count
    assert pages._columns(0, most) == 1 and pages._columns(24, 10) == 8


def test_bars_are_on_one_scale_from_zero():
    rows = [
        pages.Bar("j", "<a>", 0.5, (0.25, 0.75), "50", "red"),
        pages.Bar("j", "b", -0.25, (-0.25, 0.0), "−25", "red"),
    ]
    html = pages.bars(rows)
    assert "&lt;a&gt;" in html and html.count("<h3>j</h3>") == 1
    spans = re.findall(r'<(i|s|em) style="left: ([\d.]+)%; width: ([\d.]+)%', html)
    assert spans[:3] == [("i", "25.00", "50.00"), ("s", "50.00", "50.00"), ("em", "25.00", "0.00")]
    assert spans[3] == ("i", "0.00", "25.00")


def test_a_page_says_which_language_it_is_in(monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", "zh")
    assert '<html lang="zh-Hans">' in pages.page("x", [])


def test_the_report_is_well_formed_and_escapes_names(small):
    import html.parser

    hostile = dataclasses.replace(small, classes=("<b>&\"'", *small.classes[1:]))
    recipe = bw.fast("residual").but({"epochs": 1, "batch_size": 100})
    bw.train("residual", data=hostile, recipe=recipe, out="run")
    page = Path("run/report.html").read_text()
    assert "<b>&\"'" not in page and "&lt;b&gt;&amp;&quot;&#x27;" in page

    class Check(html.parser.HTMLParser):
        empty = ("meta", "img", "br")
        open: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            if tag not in self.empty:
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    check = Check()
    check.feed(page)
    assert check.open == []

"""The documentation site: built without a warning, whole, and the same in both languages."""

import functools
import http.server
import json
import re
import shutil
import threading

import build_docs
import pytest
from conftest import ROOT
from helpers.documents import DOCS, PAGES, blocks, in_chinese, without_comments

import branchwork
from branchwork.cli import app

pytest.importorskip("sphinx")
from site_pages import LISTED, SearchChinese, pairs


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The English half."""
    folder = tmp_path_factory.mktemp("site")
    assert build_docs.sphinx(folder, "en") == 0
    return folder


def test_every_page_is_built_and_no_link_within_the_site_is_broken(site):
    pages = [page.relative_to(DOCS).with_suffix(".html") for page in (*PAGES, *DOCS.glob("experiments/*.md"))]
    assert len(pages) > 25 and [str(page) for page in pages if not (site / page).is_file()] == []
    broken = list(build_docs.broken_links(site))
    chinese = [line for line in broken if re.search(r": zh/[\w-]+\.html leads nowhere$", line)]
    assert len(chinese) == len(PAGES) and set(broken) == set(chinese)


def test_a_broken_link_is_found(site, tmp_path):
    copy = shutil.copytree(site, tmp_path / "site")
    for name, link, other in (
        ("explain", 'href="answers.html"', 'href="answer.html"'),
        ("train", "#two-larger-nets", "#three-larger-nets"),
    ):
        page = copy / f"{name}.html"
        page.write_text(page.read_text(encoding="utf-8").replace(link, other), encoding="utf-8")
    found = set(build_docs.broken_links(copy)) - set(build_docs.broken_links(site))
    assert {line.split(":")[0] for line in found} == {"explain.html", "train.html"}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The first page of another site, which has no other page."""
    (tmp_path / "docs").mkdir()
    for name in ("site.css", "example.html"):
        shutil.copy(DOCS / name, tmp_path / "docs")
    conf = (DOCS / "conf.py").read_text(encoding="utf-8").replace("Path(__file__).parents[1]", f"Path({str(ROOT)!r})")
    (tmp_path / "docs/conf.py").write_text(conf, encoding="utf-8")
    monkeypatch.setattr(build_docs, "ROOT", tmp_path)
    return tmp_path / "docs/index.md"


def test_a_warning_fails(index, tmp_path):
    index.write_text("# A page\n\nThat links to [its file](conf.py).\n")
    assert build_docs.sphinx(tmp_path / "good", "en") == 0
    index.write_text("# A page\n\nThat links to [nothing](nothing.md).\n")
    assert build_docs.sphinx(tmp_path / "bad", "en") == 1


def test_a_link_to_a_site_that_is_gone_fails(index, tmp_path):
    index.write_text("# A page\n\nThat links to [its file](conf.py).\n")
    assert build_docs.sphinx(tmp_path / "good", "en", "linkcheck") == 0
    index.write_text("# A page\n\nThat links to [nobody](http://127.0.0.1:9/).\n")
    assert build_docs.sphinx(tmp_path / "bad", "en", "linkcheck") == 1


def test_the_reference_has_every_command_with_its_flags(site):
    text = (site / "cli.html").read_text(encoding="utf-8")
    verbs = [name for name in app if not name.startswith("-")]
    assert len(verbs) == 15
    assert set(re.findall(r"<h2>([\w ]+)<", text)) == {*verbs, "data pack"}
    for flag in ("--learning-rate FLOAT", "--to CHOICE", "--fuse</span>", "PICTURES", "--batch-size INT"):
        assert flag in text.replace('</span> <span class="pre">', " "), flag
    assert "--help" not in re.sub(r"<p>What.*?</p>", "", text, flags=re.DOTALL)


def test_the_reference_has_every_public_name_once(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in branchwork.__all__:
        if name != "__version__":
            assert text.count(f' id="branchwork.{name}"') == 1, name
    (result,) = re.findall(r'<dt [^>]*id="branchwork.training.result.Result".*?</dt>', text, re.DOTALL)
    assert "test_accuracy: float" in re.sub("<.*?>", "", result)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The site in both languages."""
    folder = tmp_path_factory.mktemp("site")
    assert build_docs.main(["--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_both_halves_are_built_and_lead_to_each_other(whole):
    for page in PAGES:
        one, other = (whole / folder / f"{page.stem}.html" for folder in (".", "zh"))
        assert f'href="zh/{page.stem}.html" hreflang="zh-CN"' in one.read_text(encoding="utf-8")
        assert f'href="../{page.stem}.html" hreflang="en"' in other.read_text(encoding="utf-8")
    chinese = (whole / "zh/cli.html").read_text(encoding="utf-8")
    assert "训练一个网络，把训练结果写入文件夹" in chinese and "Train a net into a run folder" not in chinese


@pytest.fixture(scope="module")
def served(whole):
    """The address of the site on this machine: a browser lets no file read another, as the search does."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(whole))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("梯度消失", "课程的说法，逐条检验"),
        ("1408 从哪里来", "跟着课程走一遍"),
        ("learning rates", "训练与比较"),
        ("量子力学", None),
    ],
)
def test_what_is_searched_in_chinese_is_found(served, browser, words, found):
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(error))
    page.goto(f"{served}/zh/search.html?q={words}")
    page.wait_for_selector("#search-results .search-summary:not(:empty)")  # which is said at the end
    titles = page.locator("#search-results li > a").all_text_contents()
    page.close()
    assert problems == [] and (found in titles if found else titles == [])


# Without building anything


def test_every_page_is_listed_in_both_languages_in_the_same_order():
    for page in (DOCS / "index.md", in_chinese(DOCS / "index.md")):
        text = page.read_text(encoding="utf-8").partition("<!-- site: contents -->")[2]
        listed = [name for _, _, name in LISTED.findall(text) if name]
        assert sorted([*listed, "index"]) == sorted([*(page.stem for page in PAGES), "experiments/README"])
        assert len(re.findall("^## ", text, re.MULTILINE)) == 3
    orders = [
        [name for _, _, name in LISTED.findall(page.read_text(encoding="utf-8")) if name]
        for page in (DOCS / "index.md", in_chinese(DOCS / "index.md"))
    ]
    assert orders[0] == orders[1]


def test_both_languages_have_the_same_pages():
    assert [in_chinese(page).name for page in PAGES] == sorted(page.name for page in DOCS.glob("*.zh.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_both_languages_have_the_same_code_and_structure(page):
    pages = page, in_chinese(page)
    codes = [[without_comments(block) for block in blocks(each, "sh", "python", "bibtex")] for each in pages]
    assert codes[0] == codes[1]
    # What is printed is in the language of the page: tests/test_docs_run.py compares it.
    printed = [[len(block.code.splitlines()) for block in blocks(each, "text")] for each in pages]
    assert printed[0] == printed[1]
    texts = [each.read_text(encoding="utf-8") for each in pages]
    first = [text.splitlines()[2] for text in texts]
    assert first == [f"[中文]({pages[1].name})", f"[English]({pages[0].name})"]
    # Headings, rows of tables, live pages and generated parts.
    parts = re.compile(r"^#+ |^\||\]\(example\.html.*\)$|^<!-- site: .* -->$", re.MULTILINE)
    assert parts.findall(texts[0]) == parts.findall(texts[1])


def test_chinese_is_found_by_pairs_of_characters():
    words = SearchChinese({}).split("感受野是 receptive field，1408 = 88×4×4 的由来")
    assert words[:4] == ["感受", "受野", "野是", "receptive"]
    assert {"field", "1408", "的由", "由来"} <= set(words) and pairs("野") == ["野"] and pairs("net") == ["net"]


def test_each_step_of_the_lecture_that_opens_the_live_page_is_the_question_that_it_names():
    text = (DOCS / "example.html").read_text(encoding="utf-8")
    page = json.loads(re.search(r'id="page-data">(.*?)</script>', text, re.DOTALL)[1])
    for name, language in (("lecture.md", "en"), ("lecture.zh.md", "zh")):
        lecture = (DOCS / name).read_text(encoding="utf-8")
        links = re.findall(r"^\[(?:Live: |现场：)(.+)\]\(example\.html#step=(\d)\)$", lecture, re.MULTILINE)
        assert len(links) == 5
        for question, step in links:
            asked = page["nets"][0]["tour"][int(step) - 1]
            words = page["words"][language][asked["question"]].format(count=asked["values"].get("count"))
            assert words.lower() == question.lower()

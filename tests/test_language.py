"""Chinese everywhere: the catalogue is complete and up to date, and what people see is looked up in it."""

import ast
import ctypes
import os
import re
import string
import sys
from pathlib import Path
from types import SimpleNamespace

import messages
import pytest

import branchwork as bw
from branchwork.cli import app, main
from branchwork.cli.help import Breakable
from branchwork.datasets import describe
from branchwork.figures import chinese_font, new_figure, save
from branchwork.language import language, say
from branchwork.observer import Epoch
from branchwork.screen import watch

ROOT = Path(__file__).parents[1]
(CHINESE,) = (path for path in messages.catalogue_files() if path.parents[1].name == "zh")
VERBS = [(name,) for name in app if not name.startswith("-")] + [("data", "pack"), ()]
# Three words in a row are English. Names of people and flags are not.
ENGLISH = re.compile(r"(?<![\w-])[a-z]{2,} [a-z]{2,} [a-z]{2,}")
CODE = re.compile(r"branchwork( [a-z]+)+|pip install triton|npm pack \S+|return x\b")


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", "zh")


# The catalogue.


def test_every_message_is_translated_with_the_same_values():
    translations = messages.translations(CHINESE)
    collected = messages.collect()
    missing = [message for message in collected if not translations.get(message)]
    assert missing == [], "run `make messages`, translate these in the .po file, and run it again"
    assert translations.keys() - collected.keys() == set(), "nobody says these: run `make messages`"
    assert [message for message, words in translations.items() if fields(message) != fields(words)] == []


def fields(text: str) -> set[tuple[str, str | None, str | None]]:
    """The placeholders of a message, each with its format and its conversion."""
    return {(name, spec, how) for _, name, spec, how in string.Formatter().parse(text) if name is not None}


def test_the_compiled_catalogue_is_that_of_the_translations():
    catalog = messages.catalog_of(CHINESE, {message: [] for message in messages.translations(CHINESE)})
    assert CHINESE.with_suffix(".mo").read_bytes() == messages.compiled(catalog), "run `make messages`"
    header, _, _ = CHINESE.read_text(encoding="utf-8").partition("\n\n")
    assert "fuzzy" not in header and "Date" not in header and "Babel" not in header


def test_the_words_are_those_of_the_glossary():
    unwanted = ["难分高下", "最不碍事", "运行目录", "运行文件夹", "梯度消失掉", "MAC 数", "快捷连接", "跳跃连接"]
    text = CHINESE.read_text(encoding="utf-8")
    assert [word for word in unwanted if word in text] == []
    # Full-width punctuation beside Chinese.
    assert re.findall(r'msgstr "[^"]*[\u4e00-\u9fff][,;:!?][^"]*"', text) == []


# The code.


def faults(tree: ast.AST) -> list[int]:
    """The lines where a text that people see is not looked up: an f-string, or a literal that nobody says."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if any(isinstance(part, ast.JoinedStr | ast.BinOp) for said in messages.said(call) for part in ast.walk(said)):
            lines.append(call.lineno)
        observed = name in ("note", "count", "start") and ast.unparse(call.func).startswith("observer.")
        if (observed or name in ("show", "add_row")) and any(has_words(argument) for argument in call.args):
            lines.append(call.lineno)
    return lines


def has_words(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return has_words(node.body) or has_words(node.orelse)
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return any(isinstance(part, ast.Constant) and re.search("[a-z]{2}", str(part.value)) for part in parts)


def test_all_that_people_see_is_looked_up():
    paths = (ROOT / "branchwork").rglob("*.py")
    assert {str(path): lines for path in paths if (lines := faults(ast.parse(path.read_text(encoding="utf-8"))))} == {}


@pytest.mark.parametrize(
    "code",
    [
        'say(f"{n} images")', 'mark("a" + name)', 'raise NetError(f"{name} is wrong")', 'observer.note("done")',
        'observer.count(f"reading {name}", 1, 2)', 'show(table, f"report: {file}")', 'table.add_row("all", "1")',
        'raise RunError("x" if y else f"{z}")', 'make_table(f"{n} classes")', 'self._need(a, "b", f"at least {c}")',
    ],
)  # fmt: skip
def test_the_check_of_the_code_sees_what_is_not_looked_up(code):
    assert faults(ast.parse(code)) == [1]


def test_every_help_text_and_table_header_is_collected():
    collected = messages.collect()
    for path in sorted((ROOT / "branchwork/cli").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("Parameter", "make_table"):
                texts = [keyword.value for keyword in call.keywords if keyword.arg == "help"] + messages.said(call)
                for text in texts:
                    assert all(literal in collected for literal in messages.texts(text)), (path, call.lineno)
    assert {"Train a net into a run folder, and test it once at the end.", "the peak learning rate"} <= set(collected)


# What people see.


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_each_verb_is_chinese(verb, command, chinese, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, err = command(*verb, "--help")
    assert (code, err) == (0, "") and re.match("用法：branchwork", out)
    assert ENGLISH.findall(CODE.sub("", out)) == []
    assert not re.search(r"\[(default|choices|required)|Usage|Parameters|Arguments|Commands", out)
    text = re.sub(r"[^\u4e00-\u9fff]", "", out)
    assert len(text) > 30


def test_help_breaks_between_chinese_characters_and_keeps_words_and_punctuation(command, chinese, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = command("train", "--help")
    lines = [line.strip("│ ") for line in out.splitlines()]
    assert not any(line.startswith(tuple("，。；：）、")) for line in lines)
    assert "fashion-mnist、cifar10、sample" in out.replace(" ", "").replace("│\n│", "") and max(map(len, lines)) > 24


def test_a_line_is_as_full_as_the_words_allow():
    from rich.console import Console

    console = Console(width=20)
    text = Breakable("用 CPU 训练一个网络，把训练结果（run）写入 folder/of/runs。")
    lines = [line.plain.rstrip() for line in text.wrap(console, 20)]
    assert lines == ["用 CPU 训练一个网", "络，把训练结果（run）", "写入", "folder/of/runs。"] or len(lines) == 4
    assert "".join(lines).replace(" ", "") == text.plain.replace(" ", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "resdual", "--data", "sample"), "没有名为 'resdual' 的网络。是不是想写 'residual'？"),
        (("train", "residual", "--epoch", "2"), "--epoch：是不是想写 --epochs？"),
        (("train", "residual", "--lr", "0.1"), "--lr：是不是想写 --learning-rate？"),
        (("train", "residual", "--language", "zh"), "--language：是不是想写 --lang？"),
        (("train", "residual", "--epochs", "two"), "--epochs 的值无效：“two”不是整数。"),
        (("train", "residual", "--recipe", "fats"), "--recipe 的值“fats”无效，可选："),
        (("train", "residual", "--seed"), "缺少值"),
        (("trian",), "没有命令“trian”。是不是想写“train”？"),
        (("evaluate",), "缺少值"),
        (("evaluate", "gone", "--json", "--picture"), "而 --picture 是选项"),
        (("train", "residual", "--batch-size", "0", "--data", "sample"), "batch_size 必须不小于 1，不能是 0"),
        (("data", "gone.pack"), "没有数据包 gone.pack"),
    ],
)
def test_wrong_arguments_meet_chinese(arguments, words, refused, chinese):
    text = refused(*arguments)
    assert words in text and ENGLISH.findall(CODE.sub("", text)) == []


def test_lang_stands_before_or_after_the_verb_and_wins(command, monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", "en")
    for arguments in (("--lang", "zh", "nets", "google"), ("nets", "google", "--lang=zh"), ("nets", "--lang", "zh")):
        monkeypatch.setenv("BRANCHWORK_LANG", "en")
        code, out, _ = command(*arguments)
        assert code == 0 and "网络" in out and "类别数" in out and "googlenet" in out, arguments
    code, out, _ = command("nets", "google", "--lang", "en")
    assert code == 0 and "classes" in out and "网络" not in out
    monkeypatch.setenv("BRANCHWORK_LANG", "en")
    code, out, err = command("nets", "--lang", "fr")
    assert (code, out) == (2, "") and err == "branchwork: --lang must be en or zh, got 'fr'\n"
    assert main(["nets", "--lang"]) == 2


def test_progress_and_the_table_of_results_are_chinese(command, chinese):
    code, out, err = command("train", "residual", "--data", "sample", "--epochs", 1, "--fraction", "0.1")
    assert code == 0 and "测试准确率" in out and "报告：runs/residual-sample-1/report.html" in out
    lines = err.splitlines()
    assert lines[0] == "residual，数据 sample，种子 0"
    epoch = r"第 1/1 轮  损失 [\d.]+  验证 [\d.]+%  每秒 [\d,]+ 张图  [\d.]+ s"
    assert any(re.fullmatch(epoch, line) for line in lines)
    assert ENGLISH.findall(CODE.sub("", out + err)) == []
    report = Path("runs/residual-sample-1/report.html").read_text(encoding="utf-8")
    _, out, _ = command("inspect", "inception", "--lint")
    assert "。" in report and "。" in out and "。 " not in report + out  # no space between sentences


def test_an_epoch_is_one_chinese_line(capsys, chinese):
    watch(True).epoch(Epoch(2, 3, train_loss=0.25, validation_accuracy=0.5, seconds=1.5, images_per_second=4000))
    assert capsys.readouterr().err == "第 2/3 轮  损失 0.2500  验证 50.00%  每秒 4,000 张图  1.5 s\n"


# Pictures.


@pytest.fixture
def no_font(monkeypatch):
    """A machine without a font for Chinese."""
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: ["DejaVu Sans", "Arial"])
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])


@pytest.fixture
def titles(monkeypatch):
    """The titles of the sheets that are drawn."""
    drawn = []
    monkeypatch.setattr(describe, "draw_sheet", lambda path, *_, title, columns: drawn.append(title))
    return drawn


def test_a_picture_is_english_where_no_font_has_chinese_and_it_is_said(no_font, titles, command, chinese):
    code, out, _ = command("data", "sample", "--draw", "sample.png")
    assert code == 0 and titles == ["sample: the first 10 of each class"]
    assert out.count("没有装中文字体，所以图里是英文。请装一个，如 Noto Sans CJK。") == 1
    _, out, _ = command("data", "sample", "--draw", "sample.svg")  # in the fonts of whoever looks at it
    assert titles[1:] == ["sample：每类前 10 张"] and "没有装中文字体" not in out


@pytest.mark.parametrize("name", ["Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "SimHei", "PingFang SC"])
def test_a_picture_is_chinese_in_a_font_that_has_it(name, titles, command, chinese, monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: ["DejaVu Sans", name, "Noto Sans Mono"])
    assert chinese_font() == [name]
    _, out, _ = command("data", "sample", "--draw", "sample.png")
    assert titles == ["sample：每类前 10 张"] and "字体" not in out


def test_text_in_an_svg_names_the_fonts_of_each_system(no_font, chinese):
    for title in ("网络", "net"):
        with new_figure(2, 1) as figure:
            figure.suptitle(title)
            save(figure, Path("drawing.svg"), title)
        text = Path("drawing.svg").read_text(encoding="utf-8")
        assert ("Microsoft YaHei" in text and "PingFang SC" in text) == (title == "网络") and f">{title}<" in text


# Which language.


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "BRANCHWORK_LANG": "en"}, "en"),
        ({"LC_ALL": "en_US.UTF-8", "BRANCHWORK_LANG": "zh"}, "zh"),
    ],
)
def test_the_language_is_read_in_order(environment, expected, monkeypatch):
    bare(monkeypatch, environment)
    assert language() == expected
    assert (say("parameters") == "参数量") == (expected == "zh")


@pytest.mark.parametrize(("identifier", "expected"), [(0x0804, "zh"), (0x0404, "zh"), (0x0407, "en"), (0xFFFF, "en")])
def test_on_windows_it_is_that_of_the_desktop(identifier, expected, monkeypatch):
    kernel = SimpleNamespace(GetUserDefaultUILanguage=lambda: identifier)
    with monkeypatch.context() as patched:
        bare(patched, {})
        patched.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
        patched.setattr(sys, "platform", "win32")
        assert language() == expected
        patched.setenv("LANG", "en_US.UTF-8")  # Git's terminal sets one
        assert language() == "en"


def bare(monkeypatch, environment):
    for name in ("BRANCHWORK_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_python_speaks_the_language_of_the_variable(monkeypatch):
    monkeypatch.setitem(os.environ, "BRANCHWORK_LANG", "zh")
    with pytest.raises(bw.BranchworkError, match="没有名为 'resdual' 的网络"):
        bw.build_net("resdual")

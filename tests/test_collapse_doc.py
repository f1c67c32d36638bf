"""docs/collapse.md and its Chinese counterpart: their Python is run, and their figures are computed here."""

import re
from typing import get_args

import draw_collapse
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import branchwork
from branchwork.training.options import Execute

TEXTS = {path.name: path.read_text() for path in (ROOT / "docs/collapse.md", ROOT / "docs/collapse.zh.md")}
both = pytest.mark.parametrize("name", list(TEXTS))


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for kind, block in fenced if kind == language]


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def macs(net: nn.Module, images: int = 1) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(images, 1, 28, 28))
    return counter.get_total_flops() // 2


@both
def test_the_python_runs_and_prints_what_is_shown(name, capsys):
    session: dict[str, object] = {}
    torch.manual_seed(0)
    for block in blocks(TEXTS[name], "python"):
        exec(compile(block, name, "exec"), session)
    printed = capsys.readouterr().out
    (shown,) = blocks(TEXTS[name], "")
    assert printed.startswith(shown)
    operations = re.findall(r"target=(?:torch\.ops\.aten\.)?([a-z_]+2d|relu|collapsed)", printed)
    assert ", ".join(operations) == re.search(r"print\(fused\.graph\)  # ([a-z0-9_, ]+)[^a-z0-9_, ]", TEXTS[name])[1]


def test_both_languages_show_the_same_code_and_figures():
    english, chinese = TEXTS.values()
    for language in ("python", "sh", ""):
        pairs = zip(blocks(english, language), blocks(chinese, language), strict=True)
        assert all(re.sub(r"\s+#.*", "", a) == re.sub(r"\s+#.*", "", b) for a, b in pairs)
    tables = [re.findall(r"^\|(.*)\|$", text, re.MULTILINE) for text in (english, chinese)]
    rows = [[re.findall(r"[\d.,]*\d", row) for row in table] for table in tables]
    assert rows[0] == rows[1] and len(rows[0]) > 15
    # Small numbers may be words in one of them, and Chinese counts in 万.
    words = chinese.replace("3000 万", "30 million")
    figures = [set(re.findall(r"\d[\d,]*\d{3}|\d{3,}|\d+\.\d+", prose(text))) for text in (english, words)]
    assert figures[0] == figures[1]
    lists = [re.findall(r"\[−?\d(?:, −?\d)+\]", prose(text)) for text in (english, chinese)]
    assert sorted(set(lists[0])) == sorted(set(lists[1]))


@both
def test_the_figures_are_those_of_the_nets(name):
    text = prose(TEXTS[name])
    net = branchwork.build_net("inception")
    collapsed = branchwork.collapse(net, (1, 28, 28), batch=512)
    fused = branchwork.fuse(net.eval(), (1, 28, 28), batch=256)
    nodes = branchwork.trace(net, (1, 28, 28)).operations
    fourier = 22 * (120 * 160 + 12 * 120 + 8 * 160)
    plain = {"conv1": 24 * 24 * 25 * 10, "first": fourier, "second": 320 * 10}

    def count(field: str, *stretch: str) -> int:
        return sum(getattr(node, field) for node in nodes if node.name.startswith(stretch))

    def handed_on(block: str) -> int:
        return sum(torch.Size(node.output_shape).numel() for node in nodes if node.name.startswith(block))

    one_image, patches = macs(fused), 12 * 12 * 36 * 40
    training = macs(collapsed, 2) - macs(collapsed, 1)
    assert one_image == training - patches + plain["conv1"] == sum(plain.values())
    merging, saved = macs(collapsed) - training, macs(net) - one_image
    shapes = [tuple(buffer.shape) for buffer in fused.buffers()]
    assert (22, 12 * 10, 8 * 20) in shapes and (20, 8, 8) in shapes
    facts = [
        macs(net), one_image, *plain.values(), saved, patches,
        count("macs", "incep1", "conv2"), count("macs", "incep2", "fc"),
        9 * 9 * 10 * 20 * 8 * 8, 66 * 12 * 10 * 8 * 20, handed_on("incep1") + handed_on("incep2"),
        count("parameters", "incep1", "conv2"), nn.Conv2d(10, 20, 9).weight.numel() + 20,
        count("parameters", "incep2", "fc"), 320 * 10 + 10, count("parameters", ""), 22 * 120 * 160, 9 * 12 * 10,
        count("parameters", "conv1") + 16_220 + 3_210, macs(branchwork.build_net("residual").eval()),
        macs(branchwork.fuse(branchwork.build_net("residual").eval(), (1, 28, 28))),
    ]  # fmt: skip
    assert [fact for fact in facts if f"{fact:,}" not in text] == []
    assert 25e6 < merging < 35e6 and ("some 30 million MACs" in text or "大约要 3000 万次乘加" in text)
    assert 5 * saved < merging < 6 * saved and ("Five or six images" in text or "五六张图" in text)
    assert f"{macs(net) / one_image:.1f}" in text
    for a, b, c in ((10, 88, 20), (64, 64, 64), (64, 2, 64)):
        assert f"| {a} → {b} → {c} | {9 * a * b + 9 * b * c:,} | {25 * a * c:,} |" in text
    known = {f"{fact:,}" for fact in facts} | {"23,760", "5,000", "73,728", "102,400", "2,304"}
    assert set(re.findall(r"\d+(?:,\d{3})+", text)) <= known


def convolve(signal: list[int], kernel: list[int]) -> list[int]:
    """With padding 1, by hand."""
    padded = [0, *signal, 0]
    return [sum(w * padded[i + tap] for tap, w in enumerate(kernel)) for i in range(len(signal))]


@both
def test_the_border_example_is_right(name):
    text, x = prose(TEXTS[name]), [3, 1, 4, 1, 5, 9]
    h = convolve(x, [1, 2, 1])
    written = convolve(h, [-1, 0, 1])
    merged = [-1, -2, 0, 2, 1]
    wide = [0, 0, *x, 0, 0]
    naive = [sum(w * wide[i + tap] for tap, w in enumerate(merged)) for i in range(6)]
    assert (h, written) == ([7, 9, 10, 11, 20, 23], [9, 3, 2, 10, 12, -20])
    assert (naive[0], naive[5], naive[1:5]) == (6, -11, written[1:5])
    # What the first kernel would give one step outside.
    assert (0 + 2 * 0 + x[0], x[5] + 2 * 0 + 0) == (3, 9)
    assert draw_collapse.border_numbers() == {"h": h, "written": written, "merged": merged, "naive": naive}
    for words in ("[−1, −2, 0, 2, 1]", "[1, 2, 1]", "[−1, 0, 1]", "−11", "−20"):
        assert words in text
    assert 121 * 11 == 1331 and "121 × 11 = 1331" in text
    assert draw_collapse.merge([1, 1], [1, 2, 1]) == [1, 3, 3, 1]


def test_the_nine_classes_differ_at_the_border_of_the_image_alone():
    changed = {}
    for i, j, change in draw_collapse.class_kernels():
        taps = torch.from_numpy(change)
        inside = ~taps.isnan()
        image = torch.zeros(12, 12, dtype=torch.bool)
        image[[0, -1], :] = image[:, [0, -1]] = True
        rim = torch.zeros(16, 16, dtype=torch.bool)
        rim[2:14, 2:14] = image
        differ = inside & (taps > 1e-12)
        assert not (differ & ~rim[i : i + 9, j : j + 9]).any()
        changed[i, j] = differ
    assert len(changed) == 9 and not changed[3, 3].any()
    assert all(differ.any() for at, differ in changed.items() if at != (3, 3))
    assert len({tuple(differ.flatten().tolist()) for differ in changed.values()}) == 9


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    draw_collapse.main(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in draw_collapse.FOLDER.glob("*.svg"))
    for picture in drawn:
        assert words((tmp_path / picture).read_text()) == words((draw_collapse.FOLDER / picture).read_text())


@both
def test_the_commands_name_ways_that_there_are(name):
    (commands,) = blocks(TEXTS[name], "sh")
    ways = re.findall(r"--execute (\w+)", commands)
    assert ways == ["written", "collapsed"] and set(ways) < set(get_args(Execute))


@both
def test_what_is_linked_is_there(name):
    links = re.findall(r"\]\(([^)]+)\)", TEXTS[name])
    assert len(re.findall(r"!\[", TEXTS[name])) == len(draw_collapse.PICTURES)
    for link in links:
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link


def test_every_share_is_as_wide_as_the_text_says():
    shares: dict[str, Tensor] = draw_collapse.merged_by_branch(*draw_collapse.fresh())
    widths = {name: int((share[0, 0, 4] != 0).sum()) for name, share in shares.items()}
    assert widths == {"b1": 5, "b5": 9, "b3": 9, "pool": 7}

"""How operations and numbers are written short."""

import pytest

from branchwork.cli.output import bar, lines_of
from branchwork.graph.words import brief
from branchwork.language import short_count


@pytest.mark.parametrize(
    ("op", "detail", "words"),
    [
        ("conv2d", "5×5, pad 2", "conv 5×5 p2"),
        ("conv2d", "3×3, stride 2, pad 1", "conv 3×3 /2 p1"),
        ("conv2d", "3×3, stride 2×1, pad same, dilation 2, groups 8", "conv 3×3 /2×1 same d2 g8"),
        ("max_pool2d", "2×2", "max 2×2 /2"),
        ("max_pool2d", "3×2", "max 3×2 /3×2"),
        ("max_pool2d", "3×3, stride 2, pad 1", "max 3×3 /2 p1"),
        ("avg_pool2d", "3×3, stride 1, pad 1", "avg 3×3 p1"),
        ("adaptive_avg_pool2d", "", "adaptive avg"),
        ("cat", "16 + 24 + 24 + 24 = 88", "16+24+24+24 = 88"),
        ("cat", "64 + 32 + 32 + 32 + 32 + 32 = 224", "6 branches = 224"),
        ("add", "residual + shortcut", "add"),
        ("flatten", "88×4×4 = 1408", "88×4×4 = 1408"),
        ("view", "", "view"),
        ("batch_norm", "", "batch norm"),
    ],
)
def test_an_operation_in_few_letters(op, detail, words):
    assert brief(op, detail) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"), (9_999, "9,999"), (10_000, "10.0k"), (44_020, "44.0k"), (99_949, "99.9k"), (99_951, "100k"),
        (999_499, "999k"), (999_501, "1.00M"), (1_382_400, "1.38M"), (118_013_952, "118M"),
        (1_814_073_344, "1.81G"), (999_700_000, "1.00G"),
    ],
)  # fmt: skip
def test_a_large_number_keeps_three_digits(count, words):
    assert short_count(count) == words


def test_a_bar_in_eighths():
    assert [bar(part) for part in (0, 1e-9, 1 / 48, 0.5, 0.53, 1)] == ["", "▏", "▏", "▇▇▇", "▇▇▇▏", "▇" * 6]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("the whole of it", 9, ["the whole", "of it"]),
        ("  by mean: where it is 0", 12, ["  by mean:", "  where it", "  is 0"]),
        ("report: runs/a-very-long/path.html", 12, ["report:", "runs/a-very-long/path.html"]),
        ("网络的参数一共有 97,298 个。", 10, ["网络的参数", "一共有", "97,298", "个。"]),
        ("", 10, [""]),
    ],
)
def test_lines_break_between_words(text, width, lines):
    assert list(lines_of(text, width)) == lines

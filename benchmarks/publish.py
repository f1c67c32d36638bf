"""python -m benchmarks.publish [FILE]: write the tables of docs/benchmarks from a file of results."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT
from benchmarks.results import Results, read
from benchmarks.summary import Outlook, Summary, compare_with_goals, summarise
from benchmarks.tables import asked, percent, seconds, times

BLOCK = re.compile(r"<!-- results of (\S+) -->\n.*?<!-- end of results -->\n", re.DOTALL)


@dataclass(frozen=True)
class Words:
    """The words of one page's results table."""

    methods: dict[str, str]
    default: str
    training_head: tuple[str, ...]
    goal_head: tuple[str, ...]
    estimated: str
    seeds: str
    few: str
    not_measured: str
    met: dict[bool | None, str]
    comma: str
    caption: str
    caption_estimated: str
    zh: bool


WORDS = {
    "docs/benchmarks.md": Words(
        methods={
            "script": "the lecture's script",
            "memory": "the same, data in memory",
            "public": "[train_mnist_fast](https://github.com/tuomaso/train_mnist_fast)",
            "branchwork": "**Branchwork**",
        },
        default="default recipe",
        training_head=("network", "method", "training", "times as fast", "whole command", "MNIST, test", "peak memory"),
        goal_head=("goal: times as fast, and accuracy", "aim", "reached"),
        estimated=" (estimated)",
        seeds=" ({} seeds)",
        few="{} of {} seeds",
        not_measured="not measured",
        met={True: "yes", False: "no", None: ""},
        comma=", ",
        caption=(
            "Medians over seeds; all methods alternated within one run of `{command}` on {machine} (torch {torch}). "
            "Training time excludes evaluation, test accuracy is mean ± standard deviation, memory is peak memory."
        ),
        caption_estimated=" *Estimated*: extrapolated from {steps} measured steps of the script.",
        zh=False,
    ),
    "docs/benchmarks.zh.md": Words(
        methods={
            "script": "课程脚本",
            "memory": "课程脚本，数据放进内存",
            "public": "[train_mnist_fast](https://github.com/tuomaso/train_mnist_fast)",
            "branchwork": "**Branchwork**",
        },
        default="默认设置",
        training_head=("网络", "方法", "训练用时", "快多少倍", "整条命令", "MNIST 测试集", "内存峰值"),
        goal_head=("指标：快多少倍，准确率多少", "目标", "实测"),
        estimated="（估算）",
        seeds="（{} 个种子）",
        few="{} / {} 个种子",
        not_measured="未测",
        met={True: "达到", False: "未达到", None: ""},
        comma="，",
        caption=(
            "各种子的中位数；所有方法在一次 `{command}` 里轮流运行，机器是 {machine}（torch {torch}）；"
            "训练用时不含评估，准确率是均值 ± 标准差，内存是整个进程的峰值。"
        ),
        caption_estimated="*估算*：课程脚本只测了 {steps} 步，按步数折算。",
        zh=True,
    ),
}


def block(results: Results, name: str, words: Words) -> str:
    """Return the block with its two markers; `name` is the file of results."""
    trainings = [_training(summary, words) for summary in summarise(results.measurements)]
    goals = [_goal(outlook, words) for outlook in compare_with_goals(results.measurements, results.timings)]
    caption = words.caption.format(
        command=results.command, machine=results.place["machine"], torch=results.place["versions"]["torch"]
    )
    if results.steps is not None:
        caption += words.caption_estimated.format(steps=results.steps)
    parts = (
        f"<!-- results of {name} -->",
        *_table(words.training_head, trainings, 2),
        "",
        *_table(words.goal_head, goals, 1),
        "",
        caption,
        "<!-- end of results -->",
    )
    return "".join(f"{part}\n" for part in parts)


def source(page: str) -> str:
    """Return the file of results that a page names."""
    (name,) = BLOCK.findall(page)
    return str(name)


def replace_block(page: str, made: str) -> str:
    return BLOCK.sub(lambda _: made, page, count=1)


def _training(summary: Summary, words: Words) -> list[str]:
    method = words.methods[summary.method]
    if summary.method == "branchwork":
        method += f" `{summary.flags}`" if summary.flags else f"{words.comma}{words.default}"
    accuracy = "–"
    if summary.accuracy is not None:
        accuracy = f"{percent(summary.accuracy, summary.deviation)}%{words.seeds.format(summary.seeds)}"
    return [
        summary.net,
        method,
        f"{seconds(summary.train_seconds.median)} s" + words.estimated * summary.estimated,
        times(summary.times_as_fast),
        f"{seconds(summary.total_seconds.median)} s" + words.estimated * summary.estimated,
        accuracy,
        f"{summary.peak_memory_bytes / 1e6:.0f} MB",
    ]


def _goal(outlook: Outlook, words: Words) -> list[str]:
    goal, reached = outlook.goal, words.not_measured
    if outlook.ratio is not None or outlook.accuracy is not None:
        ratio = "" if goal.ratio is None else times(outlook.ratio) + words.estimated * outlook.estimated
        accuracy = "" if outlook.accuracy is None else f"{percent(outlook.accuracy, None)}%"
        few = words.few.format(outlook.seeds, goal.seeds) if outlook.seeds < goal.seeds else ""
        reached = words.comma.join(filter(None, (ratio, accuracy, few, words.met[outlook.met])))
    return [goal.what_zh if words.zh else goal.what, asked(goal), reached]


def _table(head: tuple[str, ...], rows: list[list[str]], left: int) -> list[str]:
    """Return the lines of a Markdown table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def main() -> None:
    for page, words in WORDS.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        name = Path(sys.argv[1]).resolve().relative_to(ROOT).as_posix() if len(sys.argv) > 1 else source(text)
        path.write_text(replace_block(text, block(read(ROOT / name), name, words)), encoding="utf-8")
        print(f"{page}: from {name}")


if __name__ == "__main__":
    main()

"""Figures as words, in English and Chinese: an error with its interval, a difference, a verdict."""

from typing import Literal

from branchwork.language import say
from branchwork.studies.design import Finding, Verdict
from branchwork.studies.records import Records, measure_name
from branchwork.studies.statistics import Comparison, Mean

Judgement = Literal["more", "less", "same"]


def verdict_name(verdict: Verdict) -> str:
    chinese = {"yes": "是", "no": "否", "too close to call": "难分高下"}
    return say(verdict, chinese[verdict])


def percent(mean: Mean | None) -> str:
    """An error with its interval: 17.57% (16.20–18.94)."""
    if mean is None:
        return say("diverged", "发散")
    bounds = "" if mean.low is None or mean.high is None else f" ({100 * mean.low:.2f}–{100 * mean.high:.2f})"
    return f"{mean.mean:.2%}{bounds}"


def points(value: float) -> str:
    """A difference of errors: +3.20."""
    return f"{100 * value:+.2f}"


def p_words(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def compared(
    records: Records,
    comparison: Comparison | None,
    pair: tuple[str, str],
    measure: str,
    question: str,
    margin: float,
    yes: tuple[Judgement, ...],
) -> Finding:
    """The finding on `question` that the comparison of `pair` allows: yes where the judgement is one of `yes`."""
    first, second = (records.mean(label, measure) for label in pair)
    words = f"{measure_name(measure)}: {pair[0]} {percent(first)}, {pair[1]} {percent(second)}"
    words += _lost(records, pair)
    if comparison is None:
        return Finding(question, "too close to call", words + say("; no two to compare.", "；没有可比的两次训练。"))
    if comparison.low is None or comparison.high is None or comparison.adjusted is None:
        more = say(
            "; one seed gives no interval: take --seeds 3 or more.",
            "；只有一个种子，得不出区间：请用 --seeds 3 或更多。",
        )
        return Finding(question, "too close to call", words + more)
    low, high, p = points(comparison.low), points(comparison.high), p_words(comparison.adjusted)
    words += say(
        f"; on the same seeds the difference is {points(comparison.difference)} points ({low} to {high}), {p}",
        f"；相同种子下相差 {points(comparison.difference)} 个百分点（{low} 到 {high}），{p}",
    )
    judgement = comparison.judge(margin)
    if judgement == "same":
        words += say(
            f". That is equal within the margin of ±{100 * margin:g} points",
            f"。在 ±{100 * margin:g} 个百分点的界限内可视为相等",
        )
    assert first is not None and second is not None, "what was compared has means"
    if judgement in ("more", "less"):
        words += (
            say(". The intervals overlap all the same", "。不过两个区间有重叠")
            if first.overlaps(second)
            else say(". The intervals do not overlap", "。两个区间不重叠")
        )
    if judgement == "open":
        return Finding(question, "too close to call", words + say(".", "。"))
    return Finding(question, "yes" if judgement in yes else "no", words + say(".", "。"))


def _lost(records: Records, labels: tuple[str, ...]) -> str:
    """How many trainings of each net diverged, where any did."""
    lost = {label: records.diverged(label) for label in labels if records.diverged(label)}
    total = len(records.seeds)
    return "".join(
        say(f"; {count} of {total} trainings of {label} diverged", f"；{label} 的 {total} 次训练中有 {count} 次发散")
        for label, count in lost.items()
    )

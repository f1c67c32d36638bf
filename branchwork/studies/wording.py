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


def mean_words(measure: str, mean: Mean | None) -> str:
    """A mean with its interval: 17.57% (16.20–18.94), or 12.3 s (11.8–12.8)."""
    if mean is None:
        return say("diverged", "发散")
    digits, factor, unit = (1, 1, " s") if measure == "seconds" else (2, 100, "%")
    bounds = ""
    if mean.low is not None and mean.high is not None:
        bounds = f" ({factor * mean.low:.{digits}f}–{factor * mean.high:.{digits}f})"
    return f"{factor * mean.mean:.{digits}f}{unit}{bounds}"


def difference_words(measure: str, value: float) -> str:
    """A difference without its unit: +3.20 points of error, or +1.3 seconds."""
    return f"{value:+.1f}" if measure == "seconds" else f"{100 * value:+.2f}"


def margin_words(measure: str, margin: float) -> str:
    if measure == "seconds":
        return say(f"±{margin:.2g} s", f"±{margin:.2g} 秒")
    return say(f"±{100 * margin:g} points", f"±{100 * margin:g} 个百分点")


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
    figures = [f"{label} {mean_words(measure, mean)}" for label, mean in zip(pair, (first, second), strict=True)]
    words = measure_name(measure) + say(": ", "：") + say(", ", "，").join(figures)
    words += _lost(records, pair)
    if comparison is None:
        return Finding(question, "too close to call", words + say("; no two to compare.", "；没有可比的两次训练。"))
    if comparison.low is None or comparison.high is None or comparison.adjusted is None:
        more = say(
            "; one seed gives no interval: take --seeds 3 or more.",
            "；只有一个种子，得不出区间：请用 --seeds 3 或更多。",
        )
        return Finding(question, "too close to call", words + more)
    found, low, high = (
        difference_words(measure, value) for value in (comparison.difference, comparison.low, comparison.high)
    )
    unit = say("s", "秒") if measure == "seconds" else say("points", "个百分点")
    p = p_words(comparison.adjusted)
    words += say(
        f"; on the same seeds the difference is {found} {unit} ({low} to {high}), {p}",
        f"；相同种子下相差 {found} {unit}（{low} 到 {high}），{p}",
    )
    judgement = comparison.judge(margin)
    # What diverged is in none of these figures: it can only confirm that its net is the worse one.
    if any(records.diverged(label) and judgement != worse for label, worse in zip(pair, ("more", "less"), strict=True)):
        judgement = "open"
    if judgement == "same":
        words += say(
            f". That is equal within the margin of {margin_words(measure, margin)}",
            f"。在 {margin_words(measure, margin)} 的界限内可视为相等",
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


def dots_words() -> str:
    """What stands above pictures of dots."""
    return say(
        "Means over the seeds with their 95% intervals; the least is coloured.", "各种子的均值和 95% 区间；最小的着色。"
    )

"""`study branches`: every set of branches that the lecture's Inception modules can have, and what each is worth."""

import statistics
from functools import partial
from itertools import combinations

from branchwork.explaining.ranks import spearman
from branchwork.language import say
from branchwork.studies.design import Answer, Arm, Finding, Picture, Preset, Setting, Study, Table
from branchwork.studies.records import Records, percent_name
from branchwork.studies.statistics import ALPHA, Comparison, holm, mean_interval, paired
from branchwork.studies.study_plots import cost_and_error, gain_bars
from branchwork.studies.wording import compared, difference_words, dots_words, mean_words
from branchwork.training.recipe import course, fast

BRANCHES_OF = ("b1", "b5", "b3", "pool")
SUBSETS = tuple(chosen for size in range(1, 5) for chosen in combinations(BRANCHES_OF, size))
EVERY = "+".join(BRANCHES_OF)
# Errors that differ by no more than this count as equal.
MARGIN = 0.002
IMAGES = 20_000


def arms(preset: Preset) -> tuple[Arm, ...]:
    del preset
    return tuple(Arm("+".join(chosen), _net(chosen), {"branches": chosen}) for chosen in SUBSETS)


def _net(chosen: tuple[str, ...]) -> str:
    left_out = [name for name in BRANCHES_OF if name not in chosen]
    return "inception" + (f"[without={'+'.join(left_out)}]" if left_out else "")


def setting(preset: Preset, images: int) -> Setting:
    changes = {"validation": 0.1, "precision": "fp32"}
    if preset == "full":
        return Setting(course("inception", images).but(changes), seeds=10)
    return Setting(fast("inception", min(images, IMAGES)).but(changes), seeds=3, images=IMAGES, side=28)


def gains(records: Records, measure: str) -> dict[str, dict[int, float]]:
    """For each branch and seed, the error that it takes away: the mean over the seven nets without it of what its
    coming brings. A seed is left out where one of the trainings diverged.
    """
    errors = {arm.facts["branches"]: records.values(arm.label, measure) for arm in records.arms}
    whole = [seed for seed in records.seeds if all(seed in values for values in errors.values())]
    found: dict[str, dict[int, float]] = {}
    for branch in BRANCHES_OF:
        pairs = [
            (chosen, tuple(name for name in BRANCHES_OF if name in (*chosen, branch)))
            for chosen in SUBSETS
            if branch not in chosen
        ]
        found[branch] = {
            seed: statistics.mean(errors[without][seed] - errors[having][seed] for without, having in pairs)
            for seed in whole
        }
    return found


def answer(records: Records) -> Answer:
    alone = [arm.label for arm in records.arms if len(arm.facts["branches"]) == 1]
    best = min(alone, key=lambda label: _validation(records, label))  # so that testing it is fair
    pair = (EVERY, best)
    smaller = [(arm.label, EVERY) for arm in records.arms if len(arm.facts["branches"]) == 3]
    (against_best,) = records.compare([pair], "test_error")
    against_all = records.compare(smaller, "test_error")
    question = say("Are all four branches better than the best one alone?", "四条分支一起比最好的单条分支更好吗？")
    worth = gains(records, "test_error")
    contests, most = _contests(worth)
    findings = (
        compared(records, against_best, pair, "test_error", question, MARGIN, yes=("less",)),
        _winner(worth, contests, most),
        _weights(records, worth, contests, most),
        _superfluous(against_all),
    )
    both = [c for c in (against_best, *against_all, *contests) if c is not None]
    return Answer(findings, tuple(both), _pictures(records, worth), (_worth(records, worth),))


def _validation(records: Records, label: str) -> float:
    mean = records.mean(label, "validation_error")
    return 1.0 if mean is None else mean.mean


def _contests(worth: dict[str, dict[int, float]]) -> tuple[list[Comparison | None], str]:
    """The branch with the greatest gain against each other one, and its name."""
    most = max(worth, key=lambda branch: statistics.mean(worth[branch].values() or [0.0]))
    others = [branch for branch in BRANCHES_OF if branch != most]
    return holm([paired(worth[most], worth[other], (most, other), "gain") for other in others]), most


def _lost(contest: Comparison | None) -> bool:
    """Whether the branch with the greatest gain is worth more than the other one of this contest."""
    return contest is not None and contest.adjusted is not None and contest.adjusted < ALPHA


def _beats_all(contests: list[Comparison | None]) -> bool:
    return all(map(_lost, contests))


def _winner(worth: dict[str, dict[int, float]], contests: list[Comparison | None], most: str) -> Finding:
    question = say("Is one branch worth more than every other?", "有没有一条分支比其他每一条都更有用？")
    shown = ", ".join(f"{branch} {_gain(values)}" for branch, values in worth.items())
    words = say(
        f"The error that a branch takes away, the mean over the seven nets without it, in points: {shown}. ",
        f"加上一条分支平均减少的误差（对不含它的七个网络取平均），百分点：{shown}。",
    )
    if _beats_all(contests):
        return Finding(
            question, "yes", words + say(f"{most} is worth most, against each other one.", f"{most} 胜过其他每一条。")
        )
    return Finding(
        question,
        "too close to call",
        words + say(f"{most} leads, but not against each other one.", f"{most} 领先，但并非明显胜过其他每一条。"),
    )


def _gain(values: dict[int, float]) -> str:
    if not values:
        return say("unknown", "未知")
    mean = mean_interval(values.values())
    return _points(mean.mean, mean.low, mean.high)


def _points(value: float, low: float | None, high: float | None) -> str:
    """A difference of errors with its interval: +3.20 (+1.00 to +5.40)."""
    shown = difference_words("gain", value)
    if low is None or high is None:
        return shown
    return f"{shown} ({difference_words('gain', low)} {say('to', '到')} {difference_words('gain', high)})"


def weights(records: Records) -> dict[str, float]:
    """The root mean square of each branch's kernels in the net with all four, over its modules and the seeds."""
    sizes = [module for record in records.of(EVERY) for module in record["branches"].values()]
    return {branch: statistics.mean(module[branch] for module in sizes) for branch in BRANCHES_OF} if sizes else {}


def _weights(
    records: Records, worth: dict[str, dict[int, float]], contests: list[Comparison | None], most: str
) -> Finding:
    question = say("Does the best kernel end up with the largest weights?", "最好的卷积核最后权重最大吗？")
    sizes = weights(records)
    if not sizes or not worth[most]:
        return Finding(question, "too close to call", say("The trainings diverged.", "训练发散了。"))
    order = [statistics.mean(worth[branch].values()) for branch in BRANCHES_OF]
    correlation = spearman(order, [sizes[branch] for branch in BRANCHES_OF])
    largest = max(sizes, key=lambda branch: sizes[branch])
    shown = ", ".join(f"{branch} {size:.3f}" for branch, size in sizes.items())
    rank = "–" if correlation is None else f"{correlation:+.2f}"
    words = say(
        f"Root mean square of the kernels in the net with all four: {shown}. Those of {largest} are the "
        f"largest, {most} is worth most; rank correlation of weights and worth over the four: {rank}. ",
        f"四条分支都在的网络里，卷积核的均方根：{shown}。权重最大的是 {largest}，最有用的是 {most}；"
        f"权重与作用的秩相关（四条分支）：{rank}。",
    )
    # The best need not be known for a no: it is enough that the heaviest is worth less than another.
    if any(contest.second == largest and _lost(contest) for contest in contests if contest is not None):
        return Finding(question, "no", words + say(f"{largest} is worth less than {most}.", f"{largest} 不如 {most}。"))
    if largest == most and _beats_all(contests):
        return Finding(question, "yes", words.strip())
    return Finding(question, "too close to call", words + say("Which is best is not settled.", "哪条最好还没有定论。"))


def _superfluous(comparisons: list[Comparison | None]) -> Finding:
    question = say("Can a branch be left out for nothing?", "能不能白白去掉一条分支？")
    known = [c for c in comparisons if c is not None]
    judged = {c.first: c.judge(MARGIN) for c in known}
    shown = ", ".join(f"{c.first} {_points(c.difference, c.low, c.high)}" for c in known)
    words = say(
        f"Test error of three branches against all four, in points: {shown}; equal means within ±{100 * MARGIN:g}.",
        f"三条分支与四条分支的测试误差之差（百分点）：{shown}；相差在 ±{100 * MARGIN:g} 以内视为相等。",
    )
    spare = [label for label, judgement in judged.items() if judgement in ("same", "less")]
    if spare:
        shown = ", ".join(spare)
        return Finding(question, "yes", words + say(f" No worse: {shown}.", f"不比四条差的：{shown}。"))
    worse = len(known) == len(comparisons) and all(judgement == "more" for judgement in judged.values())
    return Finding(question, "no" if worse else "too close to call", words)


def _pictures(records: Records, worth: dict[str, dict[int, float]]) -> tuple[Picture, ...]:
    points = [
        (arm.label, records.any_of(arm.label)["macs"], records.mean(arm.label, "test_error")) for arm in records.arms
    ]
    cost = say("MACs an image, millions", "每张图的 MAC 数（百万）")
    intervals = say("Means over the seeds with their 95% intervals.", "各种子的均值和 95% 区间。")
    pictures = [
        Picture(
            say("All fifteen sets of branches", "全部十五种分支组合"),
            dots_words(),
            partial(cost_and_error, points, (cost, 1e6), percent_name("test_error")),
        )
    ]
    rows = [(branch, mean_interval(values.values())) for branch, values in worth.items() if values]
    if rows:
        beside = say("error that it takes away, points", "减少的误差，百分点")
        pictures.append(
            Picture(say("What each branch is worth", "每条分支的作用"), intervals, partial(gain_bars, rows, beside))
        )
    return tuple(pictures)


def _worth(records: Records, worth: dict[str, dict[int, float]]) -> Table:
    sizes = weights(records)
    rows = [
        (
            branch,
            _gain(values),
            f"{sizes[branch]:.4f}" if sizes else "–",
            mean_words("test_error", records.mean(branch, "test_error")),
            f"{records.any_of(branch)['macs']:,}",
        )
        for branch, values in worth.items()
    ]
    return Table(
        say("Branch by branch", "逐条分支"),
        say(
            "Its gain is the mean over the seven nets without it, its weights those of the net with all four.",
            "作用是对不含它的七个网络取的平均；权重取自四条分支都在的网络。",
        ),
        (
            say("branch", "分支"),
            say("gain, points", "作用（百分点）"),
            say("size of its weights", "权重大小"),
            say("test error alone", "单独的测试误差"),
            say("MACs alone", "单独的 MAC 数"),
        ),
        tuple(rows),
    )


def _claim() -> str:
    return say(
        "The lecture: which kernel is best is hard to say, so an Inception module tries several, and the good one "
        "ends up with the larger weights.",
        "课上说：选多大的卷积核很难定，所以 Inception 模块把几种都试一遍，好用的那个最后权重会变大。",
    )


def _question() -> str:
    return say("Which branch earns its place?", "哪条分支值得保留？")


BRANCHES = Study(
    name="branches",
    data="auto",
    claim=_claim,
    question=_question,
    arms=arms,
    setting=setting,
    measures=("test_error", "validation_error", "train_error", "seconds"),
    answer=answer,
)

"""`study branches`: all sets of branches of the lecture's Inception modules, and what each branch is worth."""

import statistics
from functools import partial
from itertools import combinations

from branchwork.explaining.ranks import spearman
from branchwork.language import say
from branchwork.studies.design import Answer, Arm, Conclusion, Plot, Preset, Records, Setting, Study, Table, compared
from branchwork.studies.statistics import (
    ALPHA,
    PairedDifference,
    holm,
    mean_interval,
    mean_words,
    paired,
    percent_name,
    points_words,
)
from branchwork.studies.study_plots import cost_and_error, dots_words, gain_bars
from branchwork.training.recipe import course, fast

BRANCHES_OF = ("b1", "b5", "b3", "pool")
SUBSETS = tuple(subset for size in range(1, 5) for subset in combinations(BRANCHES_OF, size))
EVERY = "+".join(BRANCHES_OF)
# Errors that differ by no more than this count as equal.
MARGIN = 0.002
IMAGES = 20_000

Gains = dict[str, dict[int, float]]


def arms(preset: Preset) -> tuple[Arm, ...]:
    return tuple(Arm("+".join(subset), _net(subset), {"branches": subset}) for subset in SUBSETS)


def _net(subset: tuple[str, ...]) -> str:
    left_out = [name for name in BRANCHES_OF if name not in subset]
    return "inception" + (f"[without={'+'.join(left_out)}]" if left_out else "")


def setting(preset: Preset, images: int) -> Setting:
    changes = {"validation": 0.1, "precision": "fp32"}
    if preset == "full":
        return Setting(course("inception", images).but(changes), seeds=10)
    return Setting(fast("inception", min(images, IMAGES)).but(changes), seeds=3, images=IMAGES, side=28)


def gains(records: Records, measure: str) -> Gains:
    """Return the gain of each branch by seed: how much adding it reduces the error, over the seven nets without it.

    Seeds for which one of the trainings diverged are left out.
    """
    errors = {arm.facts["branches"]: records.values(arm.label, measure) for arm in records.arms}
    seeds = [seed for seed in records.seeds if all(seed in values for values in errors.values())]
    result: Gains = {}
    for branch in BRANCHES_OF:
        pairs = [
            (subset, tuple(name for name in BRANCHES_OF if name in (*subset, branch)))
            for subset in SUBSETS
            if branch not in subset
        ]
        result[branch] = {
            seed: statistics.mean(errors[without][seed] - errors[having][seed] for without, having in pairs)
            for seed in seeds
        }
    return result


def weights(records: Records) -> dict[str, float]:
    """Return the root mean square of each branch's kernels in the net with all four, over its modules and the seeds."""
    modules = [module for record in records.trained(EVERY).values() for module in (record.branches or {}).values()]
    sizes = {branch: [module[branch] for module in modules if branch in module] for branch in BRANCHES_OF}
    return {branch: statistics.mean(values) for branch, values in sizes.items()} if all(sizes.values()) else {}


def answer(records: Records) -> Answer:
    single = [arm.label for arm in records.arms if len(arm.facts["branches"]) == 1]
    best = min(single, key=lambda label: _validation(records, label))  # by validation, so that testing it is fair
    smaller = [(arm.label, EVERY) for arm in records.arms if len(arm.facts["branches"]) == 3]
    (all_against_best,) = records.compare([(EVERY, best)], "test_error")
    three_against_all = records.compare(smaller, "test_error")
    by_branch = gains(records, "test_error")
    leader, contests = _contests(by_branch)
    findings = (
        compared(
            records,
            (EVERY, best),
            all_against_best,
            measure="test_error",
            question=say(
                "Are all four branches better than the best one alone?",
                "四条分支一起比最好的单条分支更好吗？",
            ),
            margin=MARGIN,
            yes="less",
        ),
        _winner(by_branch, leader, contests),
        _heaviest(records, by_branch, leader=leader, contests=contests),
        _superfluous(three_against_all),
    )
    differences = tuple(d for d in (all_against_best, *three_against_all, *contests) if d is not None)
    return Answer(findings, differences, _plots(records, by_branch), (_table(records, by_branch),))


def _validation(records: Records, label: str) -> float:
    mean = records.mean(label, "validation_error")
    return 1.0 if mean is None else mean.mean


def _contests(by_branch: Gains) -> tuple[str, list[PairedDifference | None]]:
    """Return the branch with the greatest gain, and its comparison with each other branch."""
    leader = max(by_branch, key=lambda branch: statistics.mean(by_branch[branch].values() or [0.0]))
    others = [branch for branch in BRANCHES_OF if branch != leader]
    return leader, holm([paired(by_branch[leader], by_branch[o], names=(leader, o), measure="gain") for o in others])


def _lost(contest: PairedDifference | None) -> bool:
    """Return whether the second branch of a contest gains significantly less than the leader."""
    return contest is not None and contest.adjusted is not None and contest.adjusted < ALPHA


def _gain_words(values: dict[int, float]) -> str:
    if not values:
        return say("unknown", "未知")
    mean = mean_interval(values.values())
    return points_words(mean.mean, mean.low, mean.high)


def _winner(by_branch: Gains, leader: str, contests: list[PairedDifference | None]) -> Conclusion:
    question = say("Is one branch worth more than every other?", "有没有一条分支比其他每一条都更有用？")
    values = ", ".join(f"{branch} {_gain_words(values)}" for branch, values in by_branch.items())
    words = say(
        f"How much adding a branch reduces the error, averaged over the seven nets without it, in points: {values}. ",
        f"加上一条分支后误差平均减少多少（对不含它的七个网络取平均，单位为百分点）：{values}。",
    )
    if all(map(_lost, contests)):
        words += say(f"{leader} is worth more than each of the others.", f"{leader} 胜过其他每一条。")
        return Conclusion(question, "yes", words)
    words += say(
        f"{leader} leads, but not significantly over every other branch.",
        f"{leader} 领先，但并非比其他每一条都显著更好。",
    )
    return Conclusion(question, "too close to call", words)


def _heaviest(
    records: Records, by_branch: Gains, *, leader: str, contests: list[PairedDifference | None]
) -> Conclusion:
    question = say("Does the best kernel end up with the largest weights?", "最好的卷积核最后权重最大吗？")
    sizes = weights(records)
    if not sizes or not by_branch[leader]:
        return Conclusion(question, "too close to call", say("The trainings diverged.", "训练发散了。"))
    order = [statistics.mean(by_branch[branch].values()) for branch in BRANCHES_OF]
    correlation = spearman(order, [sizes[branch] for branch in BRANCHES_OF])
    rank = "–" if correlation is None else f"{correlation:+.2f}"
    heaviest = max(sizes, key=lambda branch: sizes[branch])
    values = ", ".join(f"{branch} {size:.3f}" for branch, size in sizes.items())
    words = say(
        f"Root mean square of the kernels in the net with all four: {values}. The weights of {heaviest} are the "
        f"largest, and {leader} is worth most; rank correlation of weights and worth over the four: {rank}. ",
        f"四条分支俱全的网络里，卷积核权重的均方根：{values}。权重最大的是 {heaviest}，最有用的是 {leader}；"
        f"权重与作用的秩相关（四条分支）：{rank}。",
    )
    # A "no" does not need the best branch: it is enough that the heaviest is worth less than another.
    if any(contest.second == heaviest and _lost(contest) for contest in contests if contest is not None):
        words += say(f"{heaviest} is worth less than {leader}.", f"{heaviest} 不如 {leader}。")
        return Conclusion(question, "no", words)
    if heaviest == leader and all(map(_lost, contests)):
        return Conclusion(question, "yes", words.strip())
    words += say("Which branch is best is not settled.", "哪条最好还没有定论。")
    return Conclusion(question, "too close to call", words)


def _superfluous(differences: list[PairedDifference | None]) -> Conclusion:
    question = say("Can a branch be left out at no cost?", "能不能无代价地去掉一条分支？")
    known = [d for d in differences if d is not None]
    judgements = {d.first: d.judge(MARGIN) for d in known}
    values = ", ".join(f"{d.first} {points_words(d.difference, d.low, d.high)}" for d in known)
    words = say(
        f"Test error of three branches minus that of all four, in points: {values}; "
        f"equal means within ±{100 * MARGIN:g}.",
        f"三条分支与四条分支的测试误差之差（百分点）：{values}；相差在 ±{100 * MARGIN:g} 以内视为相等。",
    )
    spare = ", ".join(label for label, judgement in judgements.items() if judgement in ("same", "less"))
    if spare:
        return Conclusion(
            question, "yes", words + say(f" No worse than all four: {spare}.", f"不比四条差的：{spare}。")
        )
    worse = len(known) == len(differences) and all(judgement == "more" for judgement in judgements.values())
    return Conclusion(question, "no" if worse else "too close to call", words)


def _plots(records: Records, by_branch: Gains) -> tuple[Plot, ...]:
    sets = Plot(
        say("All fifteen sets of branches", "全部十五种分支组合"),
        dots_words(),
        partial(cost_and_error, records.costs_and_errors(), percent_name("test_error")),
    )
    rows = [(branch, mean_interval(values.values())) for branch, values in by_branch.items() if values]
    if not rows:
        return (sets,)
    worth = Plot(
        say("What each branch is worth", "每条分支的作用"),
        say("Means over the seeds with their 95% intervals.", "各种子的均值和 95% 区间。"),
        partial(gain_bars, rows, say("error reduction, points", "误差减少量（百分点）")),
    )
    return sets, worth


def _table(records: Records, by_branch: Gains) -> Table:
    sizes = weights(records)
    return Table(
        say("Branch by branch", "逐条分支"),
        say(
            "The gain is the mean over the seven nets without the branch; the weights are those of the net with all "
            "four.",
            "作用是对不含该分支的七个网络取的平均值；权重取自四条分支俱全的网络。",
        ),
        (
            say("branch", "分支"),
            say("gain, points", "作用（百分点）"),
            say("weights (root mean square)", "权重（均方根）"),
            say("test error as the only branch", "只有它时的测试误差"),
            say("MACs as the only branch", "只有它时的乘加次数 (MACs)"),
        ),
        tuple(
            (
                branch,
                _gain_words(values),
                f"{sizes[branch]:.4f}" if sizes else "–",
                mean_words("test_error", records.mean(branch, "test_error")),
                f"{records.first(branch).macs:,}",
            )
            for branch, values in by_branch.items()
        ),
    )


BRANCHES = Study(
    name="branches",
    data="auto",
    claim=(
        "The lecture: it is hard to say which kernel is best, so an Inception module tries several, and the good one "
        "ends up with the larger weights.",
        "课上说：选多大的卷积核很难定，所以 Inception 模块把几种都试一遍，好用的那个最后权重会变大。",
    ),
    question=("Which branch earns its place?", "哪条分支值得保留？"),
    arms=arms,
    setting=setting,
    measures=("test_error", "validation_error", "train_error", "seconds"),
    answer=answer,
)

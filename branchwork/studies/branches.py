"""`study branches`: all sets of branches of the lecture's Inception modules, and what each branch is worth."""

import statistics
from functools import partial
from itertools import combinations

from branchwork.explaining.ranks import spearman
from branchwork.language import mark, say, sentences
from branchwork.studies.design import Answer, Arm, Conclusion, Plot, Preset, Records, Setting, Study, Table, compared
from branchwork.studies.study_plots import cost_and_error, dots_words, gain_bars
from branchwork.training.recipes import course, fast
from branchwork.training.statistics import (
    ALPHA,
    PairedDifference,
    holm,
    mean_interval,
    mean_words,
    paired,
    percent_name,
    points_words,
)

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
            question=say("Are all four branches better than the best one alone?"),
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
        return say("unknown")
    mean = mean_interval(values.values())
    return points_words(mean.mean, mean.low, mean.high)


def _winner(by_branch: Gains, leader: str, contests: list[PairedDifference | None]) -> Conclusion:
    question = say("Is one branch worth more than every other?")
    values = ", ".join(f"{branch} {_gain_words(values)}" for branch, values in by_branch.items())
    words = say(
        "How much adding a branch reduces the error, averaged over the seven nets without it, in points: {values}.",
        values=values,
    )
    if all(map(_lost, contests)):
        won = say("{leader} is worth more than each of the others.", leader=leader)
        return Conclusion(question, "yes", sentences((words, won)))
    led = say("{leader} leads, but not significantly over every other branch.", leader=leader)
    return Conclusion(question, "too close to call", sentences((words, led)))


def _heaviest(
    records: Records, by_branch: Gains, *, leader: str, contests: list[PairedDifference | None]
) -> Conclusion:
    question = say("Does the best kernel end up with the largest weights?")
    sizes = weights(records)
    if not sizes or not by_branch[leader]:
        return Conclusion(question, "too close to call", say("The trainings diverged."))
    order = [statistics.mean(by_branch[branch].values()) for branch in BRANCHES_OF]
    correlation = spearman(order, [sizes[branch] for branch in BRANCHES_OF])
    rank = "–" if correlation is None else f"{correlation:+.2f}"
    heaviest = max(sizes, key=lambda branch: sizes[branch])
    values = ", ".join(f"{branch} {size:.3f}" for branch, size in sizes.items())
    words = say(
        "Root mean square of the kernels in the net with all four: {values}. The weights of {heaviest} are the "
        "largest, and {leader} is worth most; rank correlation of weights and worth over the four: {rank}.",
        values=values,
        heaviest=heaviest,
        leader=leader,
        rank=rank,
    )
    # A "no" does not need the best branch: it is enough that the heaviest is worth less than another.
    if any(contest.second == heaviest and _lost(contest) for contest in contests if contest is not None):
        less = say("{heaviest} is worth less than {leader}.", heaviest=heaviest, leader=leader)
        return Conclusion(question, "no", sentences((words, less)))
    if heaviest == leader and all(map(_lost, contests)):
        return Conclusion(question, "yes", words)
    return Conclusion(question, "too close to call", sentences((words, say("Which branch is best is not settled."))))


def _superfluous(differences: list[PairedDifference | None]) -> Conclusion:
    question = say("Can a branch be left out at no cost?")
    known = [d for d in differences if d is not None]
    judgements = {d.first: d.judge(MARGIN) for d in known}
    values = ", ".join(f"{d.first} {points_words(d.difference, d.low, d.high)}" for d in known)
    words = say(
        "Test error of three branches minus that of all four, in points: {values}; equal means within ±{margin:g}.",
        values=values,
        margin=100 * MARGIN,
    )
    spare = ", ".join(label for label, judgement in judgements.items() if judgement in ("same", "less"))
    if spare:
        return Conclusion(question, "yes", sentences((words, say("No worse than all four: {spare}.", spare=spare))))
    worse = len(known) == len(differences) and all(judgement == "more" for judgement in judgements.values())
    return Conclusion(question, "no" if worse else "too close to call", words)


def _plots(records: Records, by_branch: Gains) -> tuple[Plot, ...]:
    sets = Plot(
        say("All fifteen sets of branches"),
        dots_words(),
        partial(cost_and_error, records.costs_and_errors(), percent_name("test_error")),
    )
    rows = [(branch, mean_interval(values.values())) for branch, values in by_branch.items() if values]
    if not rows:
        return (sets,)
    worth = Plot(
        say("What each branch is worth"),
        say("Means over the seeds with their 95% intervals."),
        partial(gain_bars, rows, say("error reduction, points")),
    )
    return sets, worth


def _table(records: Records, by_branch: Gains) -> Table:
    sizes = weights(records)
    return Table(
        say("Branch by branch"),
        say(
            "The gain is the mean over the seven nets without the branch; the weights are those of the net with all "
            "four."
        ),
        (
            say("branch"),
            say("gain, points"),
            say("weights (root mean square)"),
            say("test error as the only branch"),
            say("MACs as the only branch"),
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
    claim=mark(
        "The lecture: it is hard to say which kernel is best, so an Inception module tries several, and the good one "
        "ends up with the larger weights."
    ),
    question=mark("Which branch earns its place?"),
    arms=arms,
    setting=setting,
    measures=("test_error", "validation_error", "train_error", "seconds"),
    answer=answer,
)

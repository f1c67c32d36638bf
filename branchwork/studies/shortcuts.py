"""`study shortcuts`: the variants of He et al. 2016, "Identity Mappings in Deep Residual Networks" (exercise 11-1)."""

from functools import partial

from branchwork.language import mark, say
from branchwork.studies.depth import WARM_UP, paper_recipe
from branchwork.studies.design import Answer, Arm, Plot, Preset, Records, Setting, Study, compared
from branchwork.studies.study_plots import dots_words, error_dots
from branchwork.training.statistics import percent_name

DEPTHS: dict[Preset, int] = {"quick": 32, "full": 110}
IDENTITY, PREACT = "identity", mark("pre-activation")
VARIANTS = (IDENTITY, "scale", "conv", "gated", "gate-only", "dropout", "none")
# Errors that differ by no more than this count as equal.
MARGIN = 0.005


def arms(preset: Preset) -> tuple[Arm, ...]:
    depth, narrow = DEPTHS[preset], ["width=8"] * (preset == "quick")
    variants = [Arm(variant, f"resnet{depth}[{','.join([f'shortcut={variant}', *narrow])}]") for variant in VARIANTS]
    return (*variants, Arm(PREACT, f"preact{depth}" + (f"[{narrow[0]}]" if narrow else "")))


def setting(preset: Preset, images: int) -> Setting:
    if preset == "full":
        return Setting(paper_recipe(preset).but(WARM_UP), seeds=5, execute="written")
    return Setting(paper_recipe(preset), seeds=4, images=4000, side=14, execute="written")


def answer(records: Records) -> Answer:
    pairs = [(arm.label, IDENTITY) for arm in records.arms if arm.label != IDENTITY and records.has(IDENTITY)]
    testing, training = (records.compare(pairs, measure) for measure in ("test_error", "train_error"))
    findings = [
        compared(
            records, pair, difference, measure="test_error", question=_question_on(pair[0]), margin=MARGIN,
            yes="less" if pair[0] == PREACT else "more",
        )
        for pair, difference in zip(pairs, testing, strict=True)
    ]  # fmt: skip
    labels = [arm.label for arm in records.arms]
    columns = [(percent_name(m), [records.mean(label, m) for label in labels]) for m in ("test_error", "train_error")]
    plot = Plot(
        say("Error by shortcut"),
        dots_words(),
        partial(error_dots, labels, columns),
    )
    differences = tuple(difference for difference in (*testing, *training) if difference is not None)
    return Answer(tuple(findings), differences, (plot,))


def _question_on(variant: str) -> str:
    return {
        PREACT: say("Is pre-activation better than the 2015 order of the layers?"),
        "scale": say("Is scaling by 0.5 worse than the identity?"),
        "conv": say("Is a 1×1 convolution on the shortcut worse than the identity?"),
        "gated": say("Is an exclusive gate worse than the identity?"),
        "gate-only": say("Is a gate on the shortcut alone worse than the identity?"),
        "dropout": say("Is dropout on the shortcut worse than the identity?"),
        "none": say("Is a net without shortcuts worse than the identity?"),
    }[variant]


SHORTCUTS = Study(
    name="shortcuts",
    data="fashion-mnist",
    claim=mark(
        "The lecture leaves an exercise: read Identity Mappings in Deep Residual Networks (He et al. 2016), and try "
        "constant scaling and a 1×1 convolution on the shortcut. The paper finds the identity best, and pre-activation "
        "better still: the error of ResNet-110 on CIFAR-10 is 6.61% with the identity, 12.22% with a convolution and "
        "12.86% with a gate on the shortcut."
    ),
    question=mark("Which shortcut is best?"),
    arms=arms,
    setting=setting,
    measures=("test_error", "train_error", "seconds"),
    answer=answer,
    divisible=True,
)

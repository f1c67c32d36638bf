"""`study shortcuts`: the variants of He et al. 2016, "Identity Mappings in Deep Residual Networks" (exercise 11-1)."""

from functools import partial

from branchwork.language import say
from branchwork.studies.depth import paper_recipe
from branchwork.studies.design import Answer, Arm, Picture, Preset, Setting, Study
from branchwork.studies.records import Records, percent_name
from branchwork.studies.study_plots import dots
from branchwork.studies.wording import compared, dots_words

DEPTHS: dict[Preset, int] = {"quick": 32, "full": 110}
IDENTITY, PREACT = "identity", "pre-activation"
VARIANTS = (IDENTITY, "scale", "conv", "gated", "gate-only", "dropout", "none")
MARGIN = 0.005


def arms(preset: Preset) -> tuple[Arm, ...]:
    depth, narrow = DEPTHS[preset], ["width=8"] * (preset == "quick")
    variants = [Arm(variant, f"resnet{depth}[{','.join([f'shortcut={variant}', *narrow])}]") for variant in VARIANTS]
    return (*variants, Arm(PREACT, f"preact{depth}" + (f"[{narrow[0]}]" if narrow else "")))


def setting(preset: Preset, images: int) -> Setting:
    del images
    if preset == "full":
        return Setting(paper_recipe(preset), seeds=5, execute="written")
    return Setting(paper_recipe(preset), seeds=4, images=4000, side=14, execute="written")


def answer(records: Records) -> Answer:
    pairs = [(arm.label, IDENTITY) for arm in records.arms if arm.label != IDENTITY]
    testing = records.compare(pairs, "test_error")
    training = records.compare(pairs, "train_error")
    findings = []
    for pair, comparison in zip(pairs, testing, strict=True):
        better = pair[0] == PREACT
        question = (
            say("Is pre-activation better than the order of 2015?", "预激活比 2015 年的顺序更好吗？")
            if better
            else say(f"Is {_name(pair[0])} worse than the identity?", f"{_name(pair[0])}比恒等捷径更差吗？")
        )
        findings.append(
            compared(records, comparison, pair, "test_error", question, MARGIN, yes=("less",) if better else ("more",))
        )
    both = [comparison for comparison in (*testing, *training) if comparison is not None]
    labels = [arm.label for arm in records.arms]
    columns = [(percent_name(m), [records.mean(label, m) for label in labels]) for m in ("test_error", "train_error")]
    title = say("Error by shortcut", "各种捷径的误差")
    return Answer(tuple(findings), tuple(both), (Picture(title, dots_words(), partial(dots, labels, columns)),))


def _name(variant: str) -> str:
    english = {
        "scale": "scaling by 0.5",
        "conv": "a 1×1 convolution on the shortcut",
        "gated": "an exclusive gate",
        "gate-only": "a gate on the shortcut alone",
        "dropout": "dropout on the shortcut",
        "none": "a net without shortcuts",
    }
    chinese = {
        "scale": "乘 0.5 的捷径",
        "conv": "捷径上的 1×1 卷积",
        "gated": "互斥门控",
        "gate-only": "仅捷径门控",
        "dropout": "捷径上的随机失活（dropout）",
        "none": "没有捷径的网络",
    }
    return say(english[variant], chinese[variant])


def _claim() -> str:
    return say(
        "The lecture leaves an exercise: from Identity Mappings in Deep Residual Networks (He et al. 2016), try "
        "constant scaling and a 1×1 convolution on the shortcut. The paper finds the identity best, and pre-activation "
        "better still: ResNet-110 on CIFAR-10 errs by 6.61% with the identity, by 12.22% with a convolution, by 12.86% "
        "with a gate on the shortcut.",
        "课后练习：读《Identity Mappings in Deep Residual Networks》（何恺明等，2016），"
        "试试在捷径上乘常数、加 1×1 卷积。论文的结论：恒等捷径最好，预激活更好；"
        "ResNet-110 在 CIFAR-10 上的误差，恒等 6.61%，卷积 12.22%，捷径门控 12.86%。",
    )


def _question() -> str:
    return say("Which shortcut is best?", "哪种捷径最好？")


SHORTCUTS = Study(
    name="shortcuts",
    data="fashion-mnist",
    claim=_claim,
    question=_question,
    arms=arms,
    setting=setting,
    measures=("test_error", "train_error", "seconds"),
    answer=answer,
)

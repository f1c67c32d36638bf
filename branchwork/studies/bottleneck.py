"""`study bottleneck`: what the 1×1 convolution before larger kernels saves, and what it costs."""

from functools import partial

from branchwork.language import say
from branchwork.nets.googlenet import MODULES
from branchwork.studies.design import Answer, Arm, Finding, Picture, Preset, Setting, Study, Table
from branchwork.studies.records import Records, percent_name
from branchwork.studies.study_plots import cost_and_error
from branchwork.studies.wording import compared, dots_words
from branchwork.training.recipe import course, fast

LECTURE, DIRECT, NARROW = "1×1 to 16", "no 1×1", "1×1 to 4"
NETS = {LECTURE: "16", DIRECT: "none", "1×1 to 8": "8", NARROW: "4"}
# Test errors that differ by no more than this count as equal, and training times by this share.
MARGIN, TIME_MARGIN = 0.002, 0.03
IMAGES = 12_000

# The slide's own: 192 channels to 32 by a 5×5 at 28×28, directly and through 16 channels.
SLIDE = (192, 16, 32, 5, 28 * 28)


def arms(preset: Preset) -> tuple[Arm, ...]:
    del preset
    return tuple(Arm(label, f"inception[bottleneck={channels}]") for label, channels in NETS.items())


def setting(preset: Preset, images: int) -> Setting:
    """The nets run as they are written: merged kernels would cost the same with and without the 1×1."""
    changes = {"validation": 0.0, "precision": "fp32"}
    if preset == "full":
        return Setting(course("inception", images).but(changes), seeds=10, execute="written")
    recipe = fast("inception", min(images, IMAGES)).but(changes)
    return Setting(recipe, seeds=4, images=IMAGES, side=28, execute="written")


def macs(in_channels: int, reduced: int, out_channels: int, kernel: int, pixels: int) -> tuple[int, int]:
    """MACs of a convolution that keeps its `pixels`: directly, and through a 1×1 to `reduced` channels first."""
    direct = pixels * kernel**2 * in_channels * out_channels
    return direct, pixels * (in_channels * reduced + kernel**2 * reduced * out_channels)


def answer(records: Records) -> Answer:
    pairs = [(LECTURE, DIRECT), (NARROW, DIRECT)]
    testing, timing = (records.compare(pairs, measure) for measure in ("test_error", "seconds"))
    directly = records.mean(DIRECT, "seconds")
    margin = TIME_MARGIN * directly.mean if directly else 0.0
    questions = (
        say(
            "In the lecture's net, does the 1×1 to 16 make training faster?",
            "在课上的网络里，压到 16 通道的 1×1 让训练更快吗？",
        ),
        say("Does a 1×1 to 4 make training faster?", "压到 4 通道的 1×1 让训练更快吗？"),
    )
    faster = [
        compared(records, comparison, pair, "seconds", question, margin, yes=("less",))
        for pair, comparison, question in zip(pairs, timing, questions, strict=True)
    ]
    questions = (
        say("Does the 1×1 to 16 cost accuracy?", "压到 16 通道的 1×1 会损失准确率吗？"),
        say("Does the 1×1 to 4 cost accuracy?", "压到 4 通道的 1×1 会损失准确率吗？"),
    )
    dearer = [
        compared(records, comparison, pair, "test_error", question, MARGIN, yes=("more",))
        for pair, comparison, question in zip(pairs, testing, questions, strict=True)
    ]
    findings = (
        _slide(),
        _saves(
            records,
            LECTURE,
            say("In the lecture's own net, does the 1×1 save work?", "在课上的网络里，1×1 省计算量吗？"),
        ),
        _saves(records, NARROW, say("Does it where it reduces, to 4 channels?", "真正压缩到 4 个通道时呢？")),
        *faster,
        *dearer,
    )
    points = [
        (arm.label, records.any_of(arm.label)["macs"], records.mean(arm.label, "test_error")) for arm in records.arms
    ]
    cost = say("MACs an image, millions", "每张图的 MAC 数（百万）")
    picture = Picture(
        say("Test error by cost", "测试误差与计算量"),
        dots_words(),
        partial(cost_and_error, points, (cost, 1e6), percent_name("test_error")),
    )
    both = [comparison for comparison in (*testing, *timing) if comparison is not None]
    return Answer(findings, tuple(both), (picture,), (_layers(),))


def _slide() -> Finding:
    direct, through = macs(*SLIDE)
    question = say("On the slide's layer, does the 1×1 save work?", "在课件上的那一层，1×1 省计算量吗？")
    words = say(
        f"192 to 32 channels by a 5×5 at 28×28: {direct:,} MACs directly, {through:,} through a 1×1 to 16, "
        f"{direct / through:.2f} times fewer. (The slide prints 12,433,648, which is a slip.)",
        f"28×28 上用 5×5 从 192 到 32 通道：直接做要 {direct:,} 次乘加，先经 1×1 压到 16 通道只要 {through:,} 次，"
        f"少到 1/{direct / through:.2f}。（课件上写的 12,433,648 是笔误。）",
    )
    return Finding(question, "yes" if through < direct else "no", words)


def _saves(records: Records, label: str, question: str) -> Finding:
    with_it, without = (records.any_of(name)["macs"] for name in (label, DIRECT))
    change = with_it / without - 1
    words = say(
        f"{label}: {with_it:,} MACs an image; {DIRECT}: {without:,}. With it, {abs(change):.1%} "
        + ("fewer." if change < 0 else "more: a 1×1 from 10 up to 16 channels makes the next kernel dearer."),
        f"{label}：每张图 {with_it:,} 次乘加；{DIRECT}：{without:,} 次。有 1×1 时"
        + (
            f"少 {abs(change):.1%}。"
            if change < 0
            else f"多 {abs(change):.1%}：从 10 通道升到 16 通道，后面的卷积核反而更贵。"
        ),
    )
    return Finding(question, "yes" if change < 0 else "no", words)


def _layers() -> Table:
    """Where the 1×1 pays, layer by layer: it does where it has fewer channels to give than it gets."""
    rows = {
        say("the slide", "课件"): SLIDE,
        "inception incep1.b5": (10, 16, 24, 5, 12 * 12),
        "inception incep1.b3": (10, 16, 24, 3, 12 * 12),
        "inception incep2.b5": (20, 16, 24, 5, 4 * 4),
        "inception incep2.b3": (20, 16, 24, 3, 4 * 4),
    }
    width = 192
    for name, (b1, b3, b5, pool) in MODULES.items():
        pixels = {"3": 28, "4": 14, "5": 7}[name[0]] ** 2
        if name in ("3a", "5b"):
            rows[f"googlenet incep{name}.b3"] = (width, *b3, 3, pixels)
            rows[f"googlenet incep{name}.b5"] = (width, *b5, 5, pixels)
        width = b1 + b3[1] + b5[1] + pool
    cells = []
    for name, layer in rows.items():
        direct, through = macs(*layer)
        into, reduced, out, kernel, _ = layer
        cells.append(
            (
                name,
                f"{into}→{reduced}→{out}",
                f"{kernel}×{kernel}",
                f"{direct:,}",
                f"{through:,}",
                f"{direct / through:.2f}×",
            )
        )
    return Table(
        say("Layer by layer", "逐层来看"),
        say(
            "MACs of one kernel directly, and through the 1×1 before it. Less than 1.00× means that it costs work.",
            "直接卷积与先经 1×1 的乘加次数。小于 1.00× 表示反而更费。",
        ),
        (
            say("layer", "层"),
            say("channels", "通道"),
            say("kernel", "核"),
            say("directly", "直接"),
            say("through the 1×1", "经 1×1"),
            say("saving", "节省"),
        ),
        tuple(cells),
    )


def _claim() -> str:
    return say(
        "The lecture: a 1×1 convolution before a large kernel brings the channels down and so saves most of the work.",
        "课上说：在大卷积核之前用 1×1 卷积减少通道数，可以省下大部分计算量。",
    )


def _question() -> str:
    return say("Does the 1×1 convolution save work, and what does it cost?", "1×1 卷积省计算量吗？代价是什么？")


BOTTLENECK = Study(
    name="bottleneck",
    data="auto",
    claim=_claim,
    question=_question,
    arms=arms,
    setting=setting,
    measures=("test_error", "train_error", "seconds"),
    answer=answer,
)

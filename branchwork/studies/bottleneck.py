"""`study bottleneck`: what the 1×1 convolution before larger kernels saves, and what it costs."""

from functools import partial

from branchwork.catalogue.googlenet import MODULES
from branchwork.graph.bottlenecks import reduction
from branchwork.language import mark, say, sentences, times
from branchwork.studies.design import Answer, Arm, Conclusion, Plot, Preset, Records, Setting, Study, Table, compared
from branchwork.studies.study_plots import cost_and_error, dots_words
from branchwork.training.recipes import course, fast
from branchwork.training.statistics import percent_name

LECTURE, DIRECT, NARROW = mark("1×1 to 16"), mark("no 1×1"), mark("1×1 to 4")
NETS = {LECTURE: "16", DIRECT: "none", mark("1×1 to 8"): "8", NARROW: "4"}
# Test errors that differ by no more than this count as equal, and training times by this fraction.
MARGIN, TIME_MARGIN = 0.002, 0.03
IMAGES = 12_000


# The layer on the slide: 192 channels to 32 by a 5×5 at 28×28, directly or through 16 channels.
SLIDE = reduction((192, 28, 28), kernel=5, out_channels=32, through=16)


def arms(preset: Preset) -> tuple[Arm, ...]:
    return tuple(Arm(label, f"inception[bottleneck={channels}]") for label, channels in NETS.items())


def setting(preset: Preset, images: int) -> Setting:
    """Return the setting. Nets run as written: with merged kernels, the 1×1 would cost and save nothing."""
    changes = {"validation": 0.0, "precision": "fp32"}
    if preset == "full":
        return Setting(course("inception", images).but(changes), seeds=10, execute="written")
    recipe = fast("inception", min(images, IMAGES)).but(changes)
    return Setting(recipe, seeds=4, images=IMAGES, side=28, execute="written")


def answer(records: Records) -> Answer:
    pairs = [(LECTURE, DIRECT), (NARROW, DIRECT)]
    testing, timing = (records.compare(pairs, measure) for measure in ("test_error", "seconds"))
    direct_seconds = records.mean(DIRECT, "seconds")
    time_margin = TIME_MARGIN * direct_seconds.mean if direct_seconds else 0.0
    faster = (
        say("In the lecture's net, does the 1×1 to 16 make training faster?"),
        say("Does a 1×1 to 4 make training faster?"),
    )
    less_accurate = (
        say("Does the 1×1 to 16 cost accuracy?"),
        say("Does the 1×1 to 4 cost accuracy?"),
    )
    findings = (
        _saving_on_slide(),
        _saving(
            records,
            LECTURE,
            say("In the lecture's own net, does the 1×1 save work?"),
        ),
        _saving(
            records,
            NARROW,
            say("Does a 1×1 that reduces the channels to 4 save work?"),
        ),
        *(
            compared(records, pair, time, measure="seconds", question=question, margin=time_margin, yes="less")
            for pair, time, question in zip(pairs, timing, faster, strict=True)
        ),
        *(
            compared(records, pair, error, measure="test_error", question=question, margin=MARGIN, yes="more")
            for pair, error, question in zip(pairs, testing, less_accurate, strict=True)
        ),
    )
    plot = Plot(
        say("Test error by cost"),
        dots_words(),
        partial(cost_and_error, records.costs_and_errors(), percent_name("test_error")),
    )
    differences = tuple(difference for difference in (*testing, *timing) if difference is not None)
    return Answer(findings, differences, (plot,), (_layers(),))


def _saving_on_slide() -> Conclusion:
    direct, through = SLIDE.direct, SLIDE.total
    question = say("On the slide's layer, does the 1×1 save work?")
    words = say(
        "From 192 to 32 channels by a 5×5 at 28×28: {direct:,} MACs directly, {through:,} through a 1×1 to 16, "
        "{ratio:.2f} times fewer. (The slide prints 12,433,648, which is a typo.)",
        direct=direct,
        through=through,
        ratio=direct / through,
    )
    return Conclusion(question, "yes" if through < direct else "no", words)


def _saving(records: Records, label: str, question: str) -> Conclusion:
    reduced, direct = (records.first(arm).macs for arm in (label, DIRECT))
    change = reduced / direct - 1
    words = say(
        "{label}: {reduced:,} MACs per image; {without}: {direct:,}.",
        label=say(label),
        reduced=reduced,
        without=say(DIRECT),
        direct=direct,
    )
    effect = say(
        "With the 1×1, {change:.1%} fewer."
        if change < 0
        else "With the 1×1, {change:.1%} more: a 1×1 from 10 up to 16 channels makes the next kernel more expensive.",
        change=abs(change),
    )
    return Conclusion(question, "yes" if change < 0 else "no", sentences((words, effect)))


def _layers() -> Table:
    """Return the saving layer by layer: the 1×1 saves work if it reduces the channels enough."""
    layers = {
        say("the slide"): SLIDE,
        "inception incep1.b5": reduction((10, 12, 12), kernel=5, out_channels=24, through=16),
        "inception incep1.b3": reduction((10, 12, 12), kernel=3, out_channels=24, through=16),
        "inception incep2.b5": reduction((20, 4, 4), kernel=5, out_channels=24, through=16),
        "inception incep2.b3": reduction((20, 4, 4), kernel=3, out_channels=24, through=16),
    }
    width = 192
    for name, (b1, b3, b5, pool) in MODULES.items():
        side = {"3": 28, "4": 14, "5": 7}[name[0]]
        if name in ("3a", "5b"):
            for branch, kernel, (through, out) in (("b3", 3, b3), ("b5", 5, b5)):
                layer = reduction((width, side, side), kernel=kernel, out_channels=out, through=through)
                layers[f"googlenet incep{name}.{branch}"] = layer
        width = b1 + b3[1] + b5[1] + pool
    rows = []
    for name, layer in layers.items():
        channels = f"{layer.channels}→{layer.through}→{layer.out}"
        rows.append(
            (name, channels, times(layer.kernel), f"{layer.direct:,}", f"{layer.total:,}", f"{layer.times:.2f}×")
        )
    return Table(
        say("Layer by layer"),
        say("MACs of each kernel directly, and through the 1×1 before it. Below 1.00×, the 1×1 adds work."),
        (
            say("layer"),
            say("channels"),
            say("kernel"),
            say("directly"),
            say("through the 1×1"),
            say("saving"),
        ),
        tuple(rows),
    )


BOTTLENECK = Study(
    name="bottleneck",
    data="auto",
    claim=mark(
        "The lecture: a 1×1 convolution before a large kernel reduces the channels and so saves most of the work."
    ),
    question=mark("Does the 1×1 convolution save work, and what does it cost?"),
    arms=arms,
    setting=setting,
    measures=("test_error", "train_error", "seconds"),
    answer=answer,
)

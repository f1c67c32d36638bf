"""`study depth`: does a deeper plain net train worse, is it the gradient that vanishes, and does a shortcut mend it?"""

import math
from functools import partial
from typing import Any

from branchwork.language import say
from branchwork.studies.design import Answer, Arm, Finding, Picture, Preset, Setting, Study, Verdict
from branchwork.studies.records import Records, measure_name
from branchwork.studies.statistics import Mean, mean_interval
from branchwork.studies.study_plots import Line, Panel, error_lines, norm_lines
from branchwork.studies.trainings import GRADIENT_IMAGES
from branchwork.studies.wording import compared
from branchwork.training.recipe import Recipe, fast

# The lecture's "20 layers beat 50", in the sizes that the nets for CIFAR come in.
SHALLOW, DEEP = 20, 56
DEPTHS: dict[Preset, tuple[int, ...]] = {"quick": (8, 20, 56), "full": (8, 14, 20, 32, 44, 56, 110)}
UNNORMED = (8, 20, 56)
# Errors that differ by no more than this count as equal.
MARGIN = 0.005
# A gradient has vanished that is this many decades smaller than in the shallowest net; above the second, it has not.
VANISHED, LEFT = -2.0, -1.0
SMALLEST = 1e-45  # float32 has nothing below

KINDS = {"plain": "plain", "residual": "resnet"}
NORMS = {"batch": "", "torch": "norm=none", "he": "norm=none init=he"}


def arms(preset: Preset) -> tuple[Arm, ...]:
    found = []
    for norm in NORMS:
        for depth in DEPTHS[preset] if norm == "batch" else UNNORMED:
            for kind in KINDS:
                if norm != "he" or preset == "full" or (kind == "plain" and depth in (SHALLOW, DEEP)):
                    found.append(_arm(kind, depth, norm, preset))
    return tuple(found)


def label(kind: str, depth: int, norm: str = "batch") -> str:
    return f"{kind}-{depth} {NORMS[norm]}".strip()


def _arm(kind: str, depth: int, norm: str, preset: Preset) -> Arm:
    options = {"batch": [], "torch": ["norm=none", "init=torch"], "he": ["norm=none"]}[norm]
    options = options + ["width=8"] * (preset == "quick")
    net = f"{KINDS[kind]}{depth}" + (f"[{','.join(options)}]" if options else "")
    # Without norms, the learning rate of the papers is far too high.
    changes = {} if norm == "batch" else {"learning_rate": 0.02}
    return Arm(label(kind, depth, norm), net, {"kind": kind, "depth": depth, "norm": norm}, changes)


def paper_recipe(preset: Preset) -> Recipe:
    """He et al. 2015, section 4.2, with a half cosine in place of the steps of its learning rate; shorter for quick."""
    changes = {
        "epochs": 164,
        "batch_size": 128,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup": 0.1,
        "clip": 1.0,  # or nets without norms diverge at their first steps
        "flip": 0.5,
        "shift": 4.0,
        "validation": 0.0,
        "precision": "fp32",
    }
    if preset == "quick":
        changes |= {"epochs": 5, "batch_size": 64, "flip": 0.0, "shift": 0.0}
    return fast().but(changes)


def setting(preset: Preset, images: int) -> Setting:
    del images
    recipe = paper_recipe(preset)
    if preset == "full":
        return Setting(recipe, seeds=5, execute="written", gradients=True)
    return Setting(recipe, seeds=3, images=4000, side=14, execute="written", gradients=True)


def answer(records: Records) -> Answer:
    pairs = [
        (label("plain", DEEP), label("plain", SHALLOW)),
        (label("residual", DEEP), label("residual", SHALLOW)),
        (label("plain", DEEP), label("residual", DEEP)),
        (label("plain", DEEP, "torch"), label("residual", DEEP, "torch")),
    ]
    training = records.compare(pairs, "train_error")
    testing = records.compare(pairs, "test_error")
    worse, residual_worse, helps, helps_bare = (
        compared(records, comparison, pair, "train_error", question, MARGIN, yes=("more",))
        for comparison, pair, question in zip(training, pairs, _questions(), strict=True)
    )
    findings = (
        worse,
        _vanishing(
            records, "batch", say("With batch norm, do its gradients vanish?", "有批归一化时，它的梯度会消失吗？")
        ),
        residual_worse,
        helps,
        _vanishing(
            records,
            "torch",
            say(
                "Without norms, from PyTorch's own initial weights, do they vanish?",
                "没有归一化、用 PyTorch 默认初始权重时，梯度会消失吗？",
            ),
        ),
        _vanishing(
            records,
            "he",
            say("Without norms, from He's initial weights, do they?", "没有归一化、用何恺明初始化时呢？"),
        ),
        helps_bare,
    )
    both = [comparison for comparison in (*training, *testing) if comparison is not None]
    return Answer(findings, tuple(both), _pictures(records))


def _questions() -> tuple[str, ...]:
    return (
        say(
            f"Does the plain net of {DEEP} layers train worse than that of {SHALLOW}?",
            f"{DEEP} 层的普通网络比 {SHALLOW} 层的训练得更差吗？",
        ),
        say(
            f"Does the residual net of {DEEP} layers train worse than that of {SHALLOW}?",
            f"{DEEP} 层的残差网络比 {SHALLOW} 层的训练得更差吗？",
        ),
        say(
            f"At {DEEP} layers, does the plain net train worse than the residual one?",
            f"同为 {DEEP} 层，普通网络比残差网络训练得更差吗？",
        ),
        say(
            f"Without norms at {DEEP} layers, does the plain net train worse than the residual one?",
            f"没有归一化、同为 {DEEP} 层时，普通网络比残差网络训练得更差吗？",
        ),
    )


def first_norms(records: Records, name: str) -> dict[int, float]:
    """By seed, the norm of the first layer's gradient at the start; where it is infinite, there is none."""
    found = {seed: records.found[name, seed]["gradients"][0]["norms"] for seed in records.seeds}
    first = {seed: next(iter(norms.values())) for seed, norms in found.items()}
    return {seed: norm for seed, norm in first.items() if norm is not None}


def _vanishing(records: Records, norm: str, question: str) -> Finding:
    """Whether the first layer's gradient at the start is far smaller in the deep plain net than in a shallow one."""
    depths = [arm.facts["depth"] for arm in records.arms if arm.facts["norm"] == norm and arm.facts["kind"] == "plain"]
    shallow, deep = (first_norms(records, label("plain", depth, norm)) for depth in (min(depths), DEEP))
    ratios = [
        math.log10(max(deep[seed], SMALLEST) / max(shallow[seed], SMALLEST)) for seed in deep.keys() & shallow.keys()
    ]
    if not ratios:
        return Finding(question, "too close to call", say("They are infinite.", "它们是无穷大。"))
    mean = mean_interval(ratios)
    words = say(
        f"At the start, the gradient of the first layer is {_factor(mean.mean)} times as large with {DEEP} layers as "
        f"with {min(depths)}{_range(mean)}; vanished means less than a hundredth.",
        f"训练开始时，第一层的梯度在 {DEEP} 层网络中是 {min(depths)} 层网络中的 {_factor(mean.mean)} 倍{_range(mean)}；"
        "小于百分之一才算消失。",
    )
    return Finding(question, _verdict(mean), words)


def _verdict(decades: Mean) -> Verdict:
    if decades.low is None or decades.high is None:
        return "too close to call"
    return "yes" if decades.high < VANISHED else "no" if decades.low > LEFT else "too close to call"


def _range(decades: Mean) -> str:
    if decades.low is None or decades.high is None:
        return say(" (one seed, no interval)", "（只有一个种子，没有区间）")
    low, high = _factor(decades.low), _factor(decades.high)
    return say(f" ({low} to {high})", f"（{low} 到 {high}）")


def _factor(decades: float) -> str:
    factor = 10**decades
    return f"{factor:,.0f}" if 100 <= factor < 1e6 else f"{factor:.2g}"


def _pictures(records: Records) -> tuple[Picture, ...]:
    errors = say(
        "Means over the seeds with their 95% intervals. A training error that grows with depth would be degradation; "
        "if only the test error grew, it would be overfitting.",
        "各种子的均值和 95% 区间。训练误差随深度上升才是退化；若只有测试误差上升，则是过拟合。",
    )
    below = say("layers", "层数")
    titles = {
        "batch": say("Error by depth, with batch norm", "误差与深度（有批归一化）"),
        "torch": say(
            "Error by depth, without norms, from PyTorch's initial weights",
            "误差与深度（无归一化，PyTorch 默认初始权重）",
        ),
    }
    pictures = [
        Picture(
            title,
            errors,
            partial(error_lines, [_panel(records, norm, m) for m in ("train_error", "test_error")], below),
        )
        for norm, title in titles.items()
    ]
    gradients = say(
        f"Plain and residual nets of {DEEP} layers: the norm of each layer's gradient on the same {GRADIENT_IMAGES} "
        "images, the first seed; where a line is missing, it is 0 or infinite, or the training has diverged.",
        f"{DEEP} 层的普通网络与残差网络：同样 {GRADIENT_IMAGES} 张图上每一层梯度的范数，第一个种子；"
        "没有线的地方为 0 或无穷，或训练已发散。",
    )
    moments = sorted({moment["epoch"] for arm in _deep(records) for moment in _gradients(records, arm)})
    # The start, halfway and the end of what was measured.
    panels = [(_moment(epoch), _norms(records, epoch)) for epoch in dict.fromkeys((0, *moments[-2:]))]
    title = say("Gradient by layer, at the start and during training", "每一层的梯度：训练开始时和训练之中")
    return (*pictures, Picture(title, gradients, partial(norm_lines, panels)))


def _deep(records: Records) -> list[Arm]:
    """The deepest nets with batch norm, and those without norms from PyTorch's weights."""
    return [arm for arm in records.arms if arm.facts["depth"] == DEEP and arm.facts["norm"] in ("batch", "torch")]


def _gradients(records: Records, arm: Arm) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = records.any_of(arm.label)["gradients"]
    return found


def _panel(records: Records, norm: str, measure: str) -> Panel:
    lines = []
    for kind in KINDS:
        of_kind = [arm for arm in records.arms if arm.facts["norm"] == norm and arm.facts["kind"] == kind]
        points = {arm.facts["depth"]: records.mean(arm.label, measure) for arm in of_kind}
        lines.append(Line(_kind(kind), points, good=kind == "residual"))
    return Panel(measure_name(measure), tuple(lines))


def _kind(kind: str) -> str:
    return say(kind, {"plain": "普通", "residual": "残差"}[kind])


def _moment(epoch: int) -> str:
    return say(f"after {epoch} epochs", f"训练 {epoch} 轮后") if epoch else say("at the start", "开始时")


def _norms(records: Records, epoch: int) -> list[tuple[Line, list[float]]]:
    lines = []
    for arm in _deep(records):
        kind, norm = arm.facts["kind"], arm.facts["norm"]
        words = say("batch norm", "批归一化") if norm == "batch" else say("no norm", "无归一化")
        line = Line(f"{_kind(kind)}{say(', ', '，')}{words}", {}, good=kind == "residual", dashed=norm == "torch")
        of_epoch = (moment["norms"].values() for moment in _gradients(records, arm) if moment["epoch"] == epoch)
        lines.append((line, [value or 0.0 for value in next(of_epoch, ())]))
    return lines


def _claim() -> str:
    return say(
        "The lecture: nets cannot be stacked without end; 20 layers do better than 50, since the gradients vanish, and "
        "a shortcut, H(x) = F(x) + x, mends it.",
        "课上说：网络不能无限加深，20 层比 50 层好，因为梯度消失；加上捷径 H(x) = F(x) + x 就能解决。",
    )


def _question() -> str:
    return say("Does a deeper net get worse, and why?", "网络更深会更差吗？为什么？")


DEPTH = Study(
    name="depth",
    data="fashion-mnist",
    claim=_claim,
    question=_question,
    arms=arms,
    setting=setting,
    measures=("train_error", "test_error", "seconds"),
    answer=answer,
)

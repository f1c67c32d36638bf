"""`study depth`: does a deeper plain net train worse, do its gradients vanish, and does a shortcut help?"""

import math
from functools import partial

from branchwork.language import mark, say
from branchwork.studies.design import Answer, Arm, Conclusion, Plot, Preset, Records, Setting, Study, Verdict, compared
from branchwork.studies.records import GRADIENT_IMAGES, GradientNorms
from branchwork.studies.study_plots import Curve, error_curves, norm_curves
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import fast
from branchwork.training.statistics import Mean, mean_interval, measure_name

# The lecture says that 20 layers beat 50; these are the nearest sizes of nets for CIFAR.
SHALLOW, DEEP = 20, 56
DEPTHS: dict[Preset, tuple[int, ...]] = {"quick": (8, 20, 56), "full": (8, 14, 20, 32, 44, 56, 110)}
UNNORMED = (8, 20, 56)
# Nets of so many layers begin at a low learning rate for about 400 of 64,000 steps (He et al. 2015, section 4.2).
LONG_WAY, WARM_UP = 110, {"warmup": 0.01}
# Errors that differ by no more than this count as equal.
MARGIN = 0.005
# The gradient relative to the shallowest net, in decades: below the first it has vanished, above the second it has not.
VANISHED, LEFT = -2.0, -1.0
SMALLEST = 1e-45  # the smallest positive float32

KINDS = {"plain": "plain", "residual": "resnet"}
NORMS = {"batch": "", "torch": "norm=none", "he": "norm=none init=he"}


def arms(preset: Preset) -> tuple[Arm, ...]:
    return tuple(
        _arm(kind, depth, norm, preset=preset)
        for norm in NORMS
        for depth in (DEPTHS[preset] if norm == "batch" else UNNORMED)
        for kind in KINDS
        if norm != "he" or preset == "full" or (kind == "plain" and depth in (SHALLOW, DEEP))
    )


def label(kind: str, depth: int, norm: str = "batch") -> str:
    return f"{kind}-{depth} {NORMS[norm]}".strip()


def _arm(kind: str, depth: int, norm: str, *, preset: Preset) -> Arm:
    options = {"batch": [], "torch": ["norm=none", "init=torch"], "he": ["norm=none"]}[norm]
    options = options + ["width=8"] * (preset == "quick")
    net = f"{KINDS[kind]}{depth}" + (f"[{','.join(options)}]" if options else "")
    changes: dict[str, float] = {}
    if norm != "batch":  # the learning rate of the papers is far too high, and the first steps diverge unclipped
        changes = {"learning_rate": 0.02} | ({"clip": 1.0} if preset == "full" else {})
    elif depth >= LONG_WAY:
        changes = dict(WARM_UP)
    if norm == "he" and preset == "quick":  # only its gradients at the start are asked for
        changes["epochs"] = 1
    return Arm(label(kind, depth, norm), net, {"kind": kind, "depth": depth, "norm": norm}, changes)


def paper_recipe(preset: Preset) -> Recipe:
    """Return the recipe of He et al. 2015, section 4.2; for `quick` a short one, with a half cosine as its schedule."""
    changes = {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "validation": 0.0,
        "precision": "fp32",
    }
    if preset == "quick":
        # Unclipped, nets without norms diverge in their first steps.
        return fast().but(changes | {"epochs": 5, "batch_size": 64, "warmup": 0.1, "clip": 1.0})
    # 164 passes over 50,000 images in batches of 128 are 64,000 steps.
    return fast().but(changes | {"epochs": 164, "batch_size": 128, "schedule": "steps", "flip": 0.5, "pad": 4})


def setting(preset: Preset, images: int) -> Setting:
    recipe = paper_recipe(preset)
    if preset == "full":
        return Setting(recipe, seeds=5, execute="written", gradients=True)
    # With three seeds, plain 56 against plain 20 is often too close to call (docs/experiments/studies.md).
    return Setting(recipe, seeds=5, images=4000, side=14, execute="written", gradients=True)


def answer(records: Records) -> Answer:
    questions = {
        (label("plain", DEEP), label("plain", SHALLOW)): say(
            "Does the plain net of {deep} layers train worse than that of {shallow}?", deep=DEEP, shallow=SHALLOW
        ),
        (label("residual", DEEP), label("residual", SHALLOW)): say(
            "Does the residual net of {deep} layers train worse than that of {shallow}?", deep=DEEP, shallow=SHALLOW
        ),
        (label("plain", DEEP), label("residual", DEEP)): say(
            "At {deep} layers, does the plain net train worse than the residual one?", deep=DEEP
        ),
        (label("plain", DEEP, "torch"), label("residual", DEEP, "torch")): say(
            "Without norms at {deep} layers, does the plain net train worse than the residual one?", deep=DEEP
        ),
    }
    pairs = [pair for pair in questions if records.has(*pair)]
    training, testing = (records.compare(pairs, measure) for measure in ("train_error", "test_error"))
    findings = {
        pair: compared(
            records, pair, difference, measure="train_error", question=questions[pair], margin=MARGIN, yes="more"
        )
        for pair, difference in zip(pairs, training, strict=True)
    }
    worse, residual_worse, helps, helps_unnormed = map(findings.get, questions)
    vanishing, vanishing_torch, vanishing_he = (
        _vanishing(records, norm, question)
        for norm, question in {
            "batch": say("With batch norm, do its gradients vanish?"),
            "torch": say("Without norms and with PyTorch's default initialisation, do they vanish?"),
            "he": say("Without norms and with He initialisation, do they vanish?"),
        }.items()
    )
    every = (worse, vanishing, residual_worse, helps, vanishing_torch, vanishing_he, helps_unnormed)
    return Answer(
        tuple(finding for finding in every if finding is not None),
        tuple(difference for difference in (*training, *testing) if difference is not None),
        _plots(records),
    )


def _vanishing(records: Records, norm: str, question: str) -> Conclusion | None:
    """Answer whether the first layer's gradient at the start vanishes in the deep plain net.

    None if that net or a shallower one to compare it with does not belong to the study.
    """
    depths = [arm.facts["depth"] for arm in records.arms if arm.facts["norm"] == norm and arm.facts["kind"] == "plain"]
    if DEEP not in depths or min(depths) == DEEP:
        return None
    shallow, deep = (_first_norms(records, label("plain", depth, norm)) for depth in (min(depths), DEEP))
    ratios = [
        math.log10(max(deep[seed], SMALLEST) / max(shallow[seed], SMALLEST)) for seed in deep.keys() & shallow.keys()
    ]
    if not ratios:
        return Conclusion(question, "too close to call", say("The gradients are infinite."))
    mean = mean_interval(ratios)
    words = say(
        "At the start, the gradient of the first layer is {factor} times as large with {deep} layers as with "
        "{shallow} ({range}); less than a hundredth counts as vanished.",
        factor=_factor(mean.mean),
        deep=DEEP,
        shallow=min(depths),
        range=_range(mean),
    )
    return Conclusion(question, _verdict(mean), words)


def _first_norms(records: Records, label: str) -> dict[int, float]:
    """Return, by seed, the norm of the first layer's gradient at the start, if finite."""
    norms = {seed: records.by_training[label, seed].gradients[0].norms for seed in records.seeds}
    first = {seed: next(iter(by_layer.values())) for seed, by_layer in norms.items()}
    return {seed: norm for seed, norm in first.items() if norm is not None}


def _verdict(decades: Mean) -> Verdict:
    if decades.low is None or decades.high is None:
        return "too close to call"
    return "yes" if decades.high < VANISHED else "no" if decades.low > LEFT else "too close to call"


def _range(decades: Mean) -> str:
    if decades.low is None or decades.high is None:
        return say("one seed, no interval")
    return say("{low} to {high}", low=_factor(decades.low), high=_factor(decades.high))


def _factor(decades: float) -> str:
    factor = 10 ** min(decades, 300)
    return f"{factor:,.0f}" if 100 <= factor < 1e6 else f"{factor:.2g}"


def _plots(records: Records) -> tuple[Plot, ...]:
    words = say(
        "Means over the seeds with their 95% intervals. A training error that grows with depth is degradation; "
        "if only the test error grew, it would be overfitting."
    )
    titles = {
        "batch": say("Error by depth, with batch norm"),
        "torch": say("Error by depth, without norms, PyTorch's default initialisation"),
    }
    errors = [
        Plot(
            title,
            words,
            partial(
                error_curves,
                [(measure_name(m), _error_curves(records, norm, m)) for m in ("train_error", "test_error")],
                say("layers"),
            ),
        )
        for norm, title in titles.items()
        if any(arm.facts["norm"] == norm for arm in records.arms)
    ]
    if not _deep(records):
        return tuple(errors)
    epochs = sorted({moment.epoch for arm in _deep(records) for moment in records.first(arm.label).gradients})
    # The start, the middle and the end of what was measured.
    panels = [
        (
            say("after {epoch} epochs", epoch=epoch) if epoch else say("at the start"),
            [_norm_curve(arm, records.first(arm.label).gradients, epoch) for arm in _deep(records)],
        )
        for epoch in dict.fromkeys((0, *epochs[-2:]))
    ]
    gradients = Plot(
        say("Gradient by layer, at the start and during training"),
        say(
            "Nets of {deep} layers: the norm of each layer's gradient on the same "
            "{images} images, for the first seed. Lines have gaps where the norm is 0 or infinite, and end "
            "where a training has diverged.",
            deep=DEEP,
            images=GRADIENT_IMAGES,
        ),
        partial(norm_curves, panels),
    )
    return (*errors, gradients)


def _deep(records: Records) -> list[Arm]:
    """Return the deep nets with batch norm, and those without norms and with PyTorch's initialisation."""
    return [arm for arm in records.arms if arm.facts["depth"] == DEEP and arm.facts["norm"] in ("batch", "torch")]


def _error_curves(records: Records, norm: str, measure: str) -> list[Curve]:
    curves = []
    for kind in KINDS:
        same = [arm for arm in records.arms if arm.facts["norm"] == norm and arm.facts["kind"] == kind]
        points = {arm.facts["depth"]: records.mean(arm.label, measure) for arm in same}
        if points:
            curves.append(Curve(_kind_name(kind), points, good=kind == "residual"))
    return curves


def _norm_curve(arm: Arm, gradients: tuple[GradientNorms, ...], epoch: int) -> Curve:
    kind, norm = arm.facts["kind"], arm.facts["norm"]
    name = say("{kind}, batch norm" if norm == "batch" else "{kind}, no norm", kind=_kind_name(kind))
    norms = next((list(moment.norms.values()) for moment in gradients if moment.epoch == epoch), [])
    points = {layer: Mean(1, value, None, None) if value else None for layer, value in enumerate(norms, 1)}
    return Curve(name, points, good=kind == "residual", dashed=norm == "torch")


def _kind_name(kind: str) -> str:
    return say("plain") if kind == "plain" else say("residual")


DEPTH = Study(
    name="depth",
    data="fashion-mnist",
    claim=mark(
        "The lecture: nets cannot be stacked indefinitely; 20 layers do better than 50 because the gradients vanish, "
        "and a shortcut, H(x) = F(x) + x, fixes it."
    ),
    question=mark("Does a deeper net get worse, and why?"),
    arms=arms,
    setting=setting,
    measures=("train_error", "test_error", "seconds"),
    answer=answer,
    divisible=True,
)

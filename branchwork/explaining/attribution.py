"""The verb `explain` for pictures: what supports a class, over the pixels and over the branches of each join."""

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from branchwork.datasets.batches import normalise
from branchwork.datasets.reading import find_pictures
from branchwork.errors import ExplainError, nearest
from branchwork.explaining.explain_plots import draw_evidence
from branchwork.explaining.results import BranchEvidence, JoinEvidence, PictureExplanation
from branchwork.figures import check_drawing, legible
from branchwork.files import printable
from branchwork.graph.branching import BranchedNet, read_branches
from branchwork.graph.program import shape_of
from branchwork.palette import ThemeName
from branchwork.shown import Several
from branchwork.training.predict import read_image
from branchwork.training.run import Model, load_run

# Integrated gradients take more steps until they add up to within this share of the difference, or of one logit.
TOLERANCE = 0.01
FEWEST_STEPS, MOST_STEPS = 64, 1024
# Steps, or occluded pictures, that run at once.
_AT_ONCE = 32

# By branch, the tensors with which it enters a join.
Sides = dict[str, list[Tensor]]


def explain_pictures(
    run: str | Path,
    pictures: str | Path | Iterable[str | Path],
    *,
    target: str | None = None,
    draw: Path | None = None,
    theme: ThemeName = "light",
) -> Several[PictureExplanation]:
    """Explain what in each of `pictures`, files or folders, makes the net of a run folder choose a class.

    The class is `target`, by default the predicted one. The reference is a black picture. Heat maps and branches are
    drawn into `draw`, an `.svg` or `.png`, if given, on the paper of `theme`. Raises `ImageError` for a picture that
    cannot be read, and `ExplainError` for a class that the net lacks or if captum is not installed.
    """
    if importlib.util.find_spec("captum") is None:
        raise ExplainError('explaining pictures needs the extra `explain`: pip install "branchwork[explain]"')
    trained = load_run(run)
    if draw is not None:
        check_drawing(draw, ExplainError)
    model = trained.model
    if target is not None and target not in model.classes:
        raise ExplainError(
            "{net} has no class {target!r}.{hint}", net=model.net, target=target, hint=nearest(target, model.classes)
        )
    paths = find_pictures(pictures)
    images = [read_image(path, model) for path in paths]
    branched = read_branches(trained.net, model.input_shape)
    explanations = Several(
        _explain(branched, model, image, name=printable(path), target=target)
        for image, path in zip(images, paths, strict=True)
    )
    if draw is not None:
        with legible(draw):
            draw_evidence(explanations, list(zip(paths, images, strict=True)), draw, theme=theme)
    return explanations


def _explain(
    branched: BranchedNet, model: Model, image: Tensor, *, name: str, target: str | None
) -> PictureExplanation:
    x, black = normalise(torch.stack([image, torch.zeros_like(image)]), model.mean, model.std).chunk(2)
    with torch.no_grad():
        (logits,), (black_logits,) = branched.logits(x), branched.logits(black)
    predicted = int(logits.argmax())
    index = predicted if target is None else model.classes.index(target)
    spatial, (layer, cam) = _last_spatial(branched), grad_cam(branched, x, index)
    gradients, error, steps = integrated_gradients(branched.logits, (x,), (black,), index=index)
    window, occlusion = occlude(branched.logits, x, black=black, index=index)
    return PictureExplanation(
        image=name,
        predicted=model.classes[predicted],
        target=model.classes[index],
        probability=float(logits.softmax(0)[index]),
        logit=float(logits[index]),
        black_logit=float(black_logits[index]),
        layer=layer,
        cells=None if spatial is None else (shape_of(spatial)[1], shape_of(spatial)[2]),
        cam=None if cam is None else _rows(cam),
        gradients=_rows(gradients[0][0].sum(0)),
        error=error,
        steps=steps,
        complete=_is_complete(error, float(logits[index] - black_logits[index])),
        window=window,
        occlusion=_rows(occlusion),
        joins=explain_joins(branched, x=x, black=black, index=index),
    )


def grad_cam(branched: BranchedNet, x: Tensor, index: int) -> tuple[str | None, Tensor | None]:
    """Return the last operation with height and width, and Grad-CAM H×W there, for class `index` of an image 1×C×H×W.

    Channels are weighted by the mean of their gradient over positions (Selvaraju et al. 2017, equations 1 and 2), and
    the map is scaled to the image. None and None if no operation has height and width.
    """
    graph, node = branched.graph, _last_spatial(branched)
    if node is None:
        return None, None
    with torch.no_grad():
        (maps,) = graph.run(x, wanted=[node])
    maps.requires_grad_()
    with torch.enable_grad():
        (logits,) = graph.run(x, given={node: maps})
        (gradient,) = torch.autograd.grad(logits[0, index], maps)
    cam = (gradient.mean((2, 3), keepdim=True) * maps.detach()).sum(1, keepdim=True).relu()
    return graph.names[node], F.interpolate(cam, tuple(x.shape[2:]), mode="bilinear")[0, 0]


def _last_spatial(branched: BranchedNet) -> fx.Node | None:
    """Return the last operation with height and width."""
    graph = branched.graph
    tensors = [node for node in graph.names if node in graph.image_nodes and isinstance(node.meta["val"], Tensor)]
    spatial = [node for node in tensors if len(shape_of(node)) == 3 and min(shape_of(node)[1:]) > 1]
    return spatial[-1] if spatial else None


def integrated_gradients(
    run: Callable[..., Tensor], inputs: tuple[Tensor, ...], baselines: tuple[Tensor, ...], *, index: int
) -> tuple[list[Tensor], float, int]:
    """Return integrated gradients of logit `index`, one tensor per input; their error; and the number of steps.

    `run` takes the inputs, each with a batch of one or more. The gradients should add up to what the logit changes by
    from the `baselines` (Sundararajan et al. 2017, proposition 1); the error is by how much they do not. Steps are
    doubled until it is within `TOLERANCE`, or there are `MOST_STEPS`.
    """
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(run)
    with torch.no_grad():
        difference = float(run(*inputs)[0, index] - run(*baselines)[0, index])
    steps = FEWEST_STEPS
    while True:
        parts = method.attribute(
            inputs, baselines, target=index, n_steps=steps, method="riemann_middle", internal_batch_size=_AT_ONCE
        )
        error = sum(float(part.double().sum()) for part in parts) - difference
        if _is_complete(error, difference) or steps == MOST_STEPS:
            return [part.detach() for part in parts], error, steps
        steps *= 2


def _is_complete(error: float, difference: float) -> bool:
    return abs(error) <= TOLERANCE * max(1.0, abs(difference))


def occlude(run: Callable[[Tensor], Tensor], x: Tensor, *, black: Tensor, index: int) -> tuple[tuple[int, int], Tensor]:
    """Return height and width of a black window, a sixth of the picture, and by how much it lowers the logit, H×W."""
    from captum.attr import Occlusion

    channels, *size = x.shape[1:]
    height, width = (max(1, round(side / 6)) for side in size)
    with torch.no_grad():
        lost = Occlusion(run).attribute(
            x,
            (channels, height, width),
            strides=(channels, max(1, height // 2), max(1, width // 2)),
            baselines=black,
            target=index,
            perturbations_per_eval=_AT_ONCE,
        )
    return (height, width), lost[0, 0]


def explain_joins(branched: BranchedNet, *, x: Tensor, black: Tensor, index: int) -> tuple[JoinEvidence, ...]:
    """Return the evidence of each branch of each join for class `index` of an image 1×C×H×W, against a `black` one."""
    with torch.no_grad():
        (logits, entering), (_, entering_black) = branched.run_to_joins(x), branched.run_to_joins(black)
    evidence = []
    for join, branches in entering.items():

        def class_logits(sides: Sides, count: int = 1, join: str = join) -> Tensor:
            return branched.run_from_join(join, sides, x.expand(count, *x.shape[1:]))

        evidence.append(
            _explain_join(join, class_logits, logits, sides=branches, black=entering_black[join], index=index)
        )
    return tuple(evidence)


def _explain_join(
    join: str, run: Callable[..., Tensor], logits: Tensor, *, sides: Sides, black: Sides, index: int
) -> JoinEvidence:
    """Explain one join, from what enters it for the image (`sides`) and for the `black` picture.

    `run` takes such tensors, and by default 1 as the number of images, and returns logits.
    """
    names = [branch for branch, tensors in sides.items() for _ in tensors]

    def run_tensors(*tensors: Tensor) -> Tensor:
        grouped: Sides = {name: [] for name in names}
        for name, tensor in zip(names, tensors, strict=True):
            grouped[name].append(tensor)
        return run(grouped, len(tensors[0]))

    inputs, baselines = (tuple(tensor for tensors in each.values() for tensor in tensors) for each in (sides, black))
    parts, error, steps = integrated_gradients(run_tensors, inputs, baselines, index=index)
    shares = dict.fromkeys(sides, 0.0)
    for name, part in zip(names, parts, strict=True):
        shares[name] += float(part.double().sum())
    branches = []
    with torch.no_grad():
        difference = float(logits[0, index] - run(black)[0, index])
        for branch, tensors in sides.items():
            as_black = run(sides | {branch: black[branch]})[0]
            zeroed = run(sides | {branch: list(map(torch.zeros_like, tensors))})[0]
            branches.append(
                BranchEvidence(
                    branch=branch,
                    share=shares[branch],
                    lost_blind=float(logits[0, index] - as_black[index]),
                    lost_by_zero=float(logits[0, index] - zeroed[index]),
                    probability_blind=float(as_black.softmax(0)[index]),
                )
            )
    return JoinEvidence(join, tuple(branches), difference, error, steps, _is_complete(error, difference))


def _rows(numbers: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in numbers.tolist())

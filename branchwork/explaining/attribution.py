"""The verb `explain` for pictures: what speaks for a class, over the pixels and over the branches of each join."""

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from branchwork.datasets.batches import normalise
from branchwork.datasets.reading import find_pictures
from branchwork.errors import ExplainError, ImageError, nearest
from branchwork.explaining.ablation import Joined, after_join, before_joins, copy_graph, read_joins
from branchwork.explaining.explain_plots import draw_evidence
from branchwork.explaining.figures import Evidence, JoinEvidence, PictureExplanation
from branchwork.figures import check_ending
from branchwork.files import printable
from branchwork.graph.program import shape_of
from branchwork.training.predict import read_image
from branchwork.training.run import Model, load_run

# Integrated gradients take more steps until they add up to within this part of the difference, or of one logit.
TOLERANCE = 0.01
FEWEST_STEPS, MOST_STEPS = 64, 1024
# Steps, or occluded pictures, that run at once.
_AT_ONCE = 32

Map = tuple[tuple[float, ...], ...]


def explain_pictures(
    run: str | Path,
    pictures: str | Path | Iterable[str | Path],
    *,
    target: str | None = None,
    picture: Path | None = None,
) -> tuple[PictureExplanation, ...]:
    """What in each of `pictures`, files or folders, speaks for a class, by the net of a run folder.

    The class is `target`, by default the one that the net takes the picture for. What a net would say to a black
    picture is what all is compared with. The maps are captum's, over the net's graph, in which no module is used twice.
    With `picture`, maps and branches are drawn into that file, `.svg` or `.png`. Raises `ImageError` for a picture that
    cannot be read, and `ExplainError` for a class that the net lacks and where captum is not installed.
    """
    if importlib.util.find_spec("captum") is None:
        raise ExplainError("explaining pictures needs the extra `explain`: pip install 'branchwork[explain]'")
    if picture is not None:
        check_ending(picture, ExplainError)
    trained = load_run(run)
    model = trained.model
    if target is not None and target not in model.classes:
        raise ExplainError(f"{model.net} has no class {target!r}.{nearest(target, model.classes)}")
    paths = find_pictures(map(Path, [pictures] if isinstance(pictures, str | Path) else pictures))
    if not paths:
        raise ImageError("no pictures are named: give files, or a folder of them")
    images = [read_image(path, model) for path in paths]
    joined = read_joins(trained.net, (model.in_channels, *model.image_size))
    after = {join: after_join(joined, join) for join in joined.operands}
    found = tuple(
        _explain(joined, after, model, image, printable(path), target)
        for image, path in zip(images, paths, strict=True)
    )
    if picture is not None:
        draw_evidence(found, torch.stack(images), picture)
    return found


def _explain(
    joined: Joined, after: dict[str, fx.GraphModule], model: Model, image: Tensor, name: str, target: str | None
) -> PictureExplanation:
    x, black = normalise(torch.stack([image, torch.zeros_like(image)]), model.mean, model.std).chunk(2)
    with torch.no_grad():
        (logits,), (unseen,) = joined.program(x), joined.program(black)
    predicted = int(logits.argmax())
    index = predicted if target is None else model.classes.index(target)
    layer, cam = grad_cam(joined, x, index)
    gradients, error, steps = integrated_gradients(joined.program, (x,), (black,), index)
    window, occlusion = occlude(joined.program, x, black, index)
    return PictureExplanation(
        image=name,
        predicted=model.classes[predicted],
        target=model.classes[index],
        probability=float(logits.softmax(0)[index]),
        logit=float(logits[index]),
        black_logit=float(unseen[index]),
        layer=layer,
        cam=None if cam is None else _rows(cam),
        gradients=_rows(gradients[0][0].sum(0)),
        error=error,
        steps=steps,
        complete=_is_complete(error, float(logits[index] - unseen[index])),
        window=window,
        occlusion=_rows(occlusion),
        joins=join_evidence(joined, after, x, black, index),
    )


def grad_cam(joined: Joined, x: Tensor, index: int) -> tuple[str | None, Tensor | None]:
    """Grad-CAM H×W of class `index` for an image 1×C×H×W, and the operation it is taken at: the last with positions.

    None and None where no operation has height and width.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    graph, copies = copy_graph(joined.program.graph)
    tensors = [node for node in joined.names if node in joined.images and isinstance(node.meta["val"], Tensor)]
    spatial = [node for node in tensors if len(shape_of(node)) == 3 and min(shape_of(node)[1:]) > 1]
    if not spatial:
        return None, None
    # captum hooks modules, and the operations of a graph are none.
    module = fx.GraphModule(joined.program, graph)
    module.add_module("seen", nn.Identity())
    node = copies[spatial[-1]]
    with graph.inserting_after(node):
        seen = graph.call_module("seen", (node,))
    node.replace_all_uses_with(seen, delete_user_cb=lambda user: user is not seen)
    module.recompile()
    cam = LayerGradCam(module, module.seen).attribute(_with_gradient(x), target=index, relu_attributions=True)
    whole = LayerAttribution.interpolate(cam.detach(), tuple(x.shape[2:]), "bilinear")
    return joined.names[spatial[-1]], whole[0, 0]


def integrated_gradients(
    run: Callable[..., Tensor], given: tuple[Tensor, ...], baselines: tuple[Tensor, ...], index: int, *more: Tensor
) -> tuple[list[Tensor], float, int]:
    """Integrated gradients of logit `index`, one tensor for each of `given`, and by how much they do not add up.

    `run` takes what is `given`, each with a batch of one, and `more`. They should add up to what the logit changes by
    from the `baselines` (Sundararajan et al. 2017, proposition 1). The steps, the third, are doubled until they do, to
    within `TOLERANCE`, or there are `MOST_STEPS`.
    """
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(run)
    with torch.no_grad():
        difference = float(run(*given, *more)[0, index] - run(*baselines, *more)[0, index])
    steps = FEWEST_STEPS
    while True:
        parts = method.attribute(
            given,
            baselines,
            target=index,
            additional_forward_args=more or None,
            n_steps=steps,
            method="riemann_middle",
            internal_batch_size=_AT_ONCE,
        )
        error = sum(float(part.double().sum()) for part in parts) - difference
        if _is_complete(error, difference) or steps == MOST_STEPS:
            return [part.detach() for part in parts], error, steps
        steps *= 2


def _is_complete(error: float, difference: float) -> bool:
    return abs(error) <= TOLERANCE * max(1.0, abs(difference))


def occlude(run: nn.Module, x: Tensor, black: Tensor, index: int) -> tuple[tuple[int, int], Tensor]:
    """Height and width of the window that is made black, a sixth of the picture, and what the logit falls by, H×W."""
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


def join_evidence(
    joined: Joined, after: dict[str, fx.GraphModule], x: Tensor, black: Tensor, index: int
) -> tuple[JoinEvidence, ...]:
    """What each branch of each join says for class `index` of an image 1×C×H×W, compared with a `black` one."""
    before = before_joins(joined)
    with torch.no_grad():
        (logits, entering), (_, blind) = before(x), before(black)
    found = []
    for join, run in after.items():
        own, unseen = entering[join], blind[join]
        parts, error, steps = integrated_gradients(run, _flat(own), _flat(unseen), index, x)
        shares = iter(float(part.double().sum()) for part in parts)
        branches = []
        with torch.no_grad():
            difference = float(logits[0, index] - run(*_flat(unseen), x)[0, index])
            for branch, tensors in own.items():
                blinded = run(*_flat(own | {branch: unseen[branch]}), x)[0]
                zeroed = run(*_flat(own | {branch: [torch.zeros_like(tensor) for tensor in tensors]}), x)[0]
                branches.append(
                    Evidence(
                        branch=branch,
                        share=sum(next(shares) for _ in tensors),
                        lost_blind=float(logits[0, index] - blinded[index]),
                        lost_by_zero=float(logits[0, index] - zeroed[index]),
                        probability_blind=float(blinded.softmax(0)[index]),
                    )
                )
        complete = _is_complete(error, difference)
        found.append(JoinEvidence(join, tuple(branches), difference, error, steps, complete))
    return tuple(found)


def _flat(entering: dict[str, list[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(tensor for tensors in entering.values() for tensor in tensors)


def _with_gradient(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()  # a frozen net has no other


def _rows(numbers: Tensor) -> Map:
    return tuple(tuple(row) for row in numbers.tolist())

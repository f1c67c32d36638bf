"""What the page knows of one run: its net's operations and weights, how to draw it, and what its branches are worth."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from torch import Tensor

from branchwork.catalogue.resolve import short_name
from branchwork.datasets.batches import normalise
from branchwork.datasets.dataset import DataSet
from branchwork.drawing.block_boxes import fold_blocks
from branchwork.drawing.boxes import boxes_of
from branchwork.drawing.layout import TITLE, Picture, layout_boxes
from branchwork.explaining.worth import choose_images
from branchwork.graph.affine import find_segments, is_affine
from branchwork.graph.branching import BranchedNet, Replacement, read_branches
from branchwork.graph.costs import op_name
from branchwork.graph.program import parents, shape_of
from branchwork.observer import Observer
from branchwork.page.spec import encode, image_operations, operations_as_json, sampled_outputs
from branchwork.page.tour import steps_of
from branchwork.palette import SHORTCUT, branch_colours
from branchwork.training.evaluate import Evaluation
from branchwork.training.infer import pick_layout
from branchwork.training.measure import lost_accuracy, observe, remove_each
from branchwork.training.run import TrainedNet

# Boxes are so large that maps of channels fit into them, in inches.
_BOX = (0.92, 1.05)
# A picture of more boxes than this has one for each block, which opens.
_MOST_BOXES = 30
# Images that each branch is measured on.
_MEASURED = 2000
# Weights beyond this many bytes are written in half precision.
_HALF_ABOVE = 8_000_000


def content_of(
    trained: TrainedNet, data: DataSet, evaluation: Evaluation, *, image: Tensor, observer: Observer
) -> dict[str, Any]:
    """Return what the page knows of a run. `image`, uint8 C×H×W, is the one by which the page checks itself.

    Raises `ExportError` for a net with operations that the page cannot compute.
    """
    model = trained.model
    pick_layout(trained.net, model)
    branched = read_branches(trained.net, model.input_shape)
    operations, weights = operations_as_json(branched.graph, model.net)
    half = 4 * sum(weight.numel() for weight in weights) > _HALF_ABOVE
    encoded = encode(weights, np.float16 if half else np.float32)
    joins, tail = _joins(branched, trained, data, observer), _affine_tail(branched)
    for join in joins:
        join["affine"] = tail is not None and join["node"] in tail["nodes"]
    normalised = normalise(image[None], model.mean, model.std)[0]
    digest = hashlib.sha256((json.dumps(operations) + encoded["data"]).encode()).hexdigest()
    return {
        "title": short_name(model.net),
        "digest": digest[:8],
        "facts": {
            "accuracy": f"{evaluation.accuracy:.2%}",
            "images": f"{evaluation.images:,}",
            "low": f"{evaluation.interval[0]:.2%}",
            "high": f"{evaluation.interval[1]:.2%}",
            "parameters": f"{branched.trace.parameters:,}",
            "macs": f"{branched.trace.macs:,}",
        },
        "macs": branched.trace.macs,
        "mean": model.mean,
        "std": model.std,
        "nodes": operations,
        "weights": encoded,
        "half": half,
        "golden": {"image": as_base64(image), "nodes": sampled_outputs(branched.graph, normalised)},
        **_pictures(branched, operations),
        "joins": joins,
        "tail": tail,
        "tour": list(steps_of(operations, weights, joins, tail)),
    }


def as_base64(images: Tensor) -> str:
    """Return uint8 images as text."""
    return base64.b64encode(images.contiguous().numpy().tobytes()).decode()


def _joins(branched: BranchedNet, trained: TrainedNet, data: DataSet, observer: Observer) -> list[dict[str, Any]]:
    """Return the joins: by branch the positions of its tensors among those that the join reads, its means, and what
    accuracy is lost without it, with its interval, on the images that `explain` takes.
    """
    if not branched.entries:
        return []
    _, images = choose_images(trained, data, is_own_data=True, count=_MEASURED)
    numbers = {node: index for index, node in enumerate(image_operations(branched.graph))}
    observed = observe(branched, trained.model, images)
    without = remove_each(branched, trained.model, images, observed=observed, observer=observer)

    def lost(*branch: str) -> dict[str, list[float]]:
        found = {by: lost_accuracy(observed.correct, without[*branch, by]) for by in get_args(Replacement)}
        return {by: [mean, *interval] for by, (mean, interval) in found.items()}

    joins = []
    for join, branches in branched.entries.items():
        node = branched.graph.nodes[join]
        colours = dict(zip(branches, branch_colours(list(branches)), strict=True))
        read: Any = node.args[0] if op_name(node) == "cat" else node.args[:2]
        joins.append(
            {
                "node": numbers[node],
                "branches": [
                    {
                        "name": branch,
                        "colour": colours[branch],
                        "slots": [slot for slot, entry in enumerate(read) if entry in entries],
                        "channels": branched.branch(join, branch).channels,
                        "means": [float(mean) for tensor in observed.means[join, branch] for mean in tensor.flatten()],
                        "lost": lost(join, branch),
                    }
                    for branch, entries in branches.items()
                ],
            }
        )
    return joins


def _affine_tail(branched: BranchedNet) -> dict[str, Any] | None:
    """Return the affine part that ends in the logits, if it reads one tensor: there all that follows is one matrix."""
    graph = branched.graph
    images = graph.image_nodes
    members = {node for node in graph.module.graph.nodes if is_affine(node, images)}
    segment = next((nodes for nodes in find_segments(graph.module.graph, members) if nodes[-1] in graph.outputs), [])
    entries = {parent for node in segment for parent in parents(node, images)} - {*segment}
    if len(entries) != 1:
        return None
    (entry,) = entries
    numbers = {node: index for index, node in enumerate(image_operations(graph))}
    names = {graph.name(node) for node in segment}
    return {
        "entry": numbers[entry],
        "nodes": [numbers[node] for node in segment],
        "convolutions": sum(op_name(node) == "conv2d" for node in segment),
        "macs": sum(operation.macs for operation in branched.trace.operations if operation.name in names),
        "inputs": math.prod(shape_of(entry)),
    }


def _pictures(branched: BranchedNet, operations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the picture of the net, and by the name of each box that stands for a block, a picture of the block."""
    boxes = boxes_of(branched.trace, brief=True, least=_BOX)
    boxes, blocks = fold_blocks(boxes) if len(boxes) > _MOST_BOXES else (boxes, {})
    pictures = {name: layout_boxes(inside, outputs=[name]) for name, inside in blocks.items()}
    return {
        "picture": _geometry(layout_boxes(boxes, outputs=branched.trace.outputs), operations),
        "blocks": {name: _geometry(picture, operations) for name, picture in pictures.items()},
    }


def _geometry(picture: Picture, operations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a picture as plain values, without room for a title."""
    last = {operation["name"]: index for index, operation in enumerate(operations)}
    boxes = {box.id: box for box in picture.boxes}
    return {
        "width": picture.width,
        "height": picture.height - TITLE,
        "boxes": [
            {
                "id": box.id,
                "kind": box.kind,
                "nodes": [last[name] for name in (box.nodes or ("input",))],
                "label": box.label,
                "name": box.name if box.name != box.label else "",
                "bands": box.bands,
                "channels": box.channels,
                "x": box.x,
                "top": box.top - TITLE,
                "width": box.right - box.x,
                "shape": box.shape,
                "height": box.height,
                "colour": box.colour,
                "colours": box.colours,
            }
            for box in picture.boxes
        ],
        "lines": [
            {
                "points": [(x, y - TITLE) for x, y in line.points],
                "colour": line.colour,
                # What a shortcut carries is shown on its line.
                "carries": last[boxes[edge.source].nodes[-1]]
                if line.colour == SHORTCUT and boxes[edge.source].nodes
                else None,
            }
            for edge in picture.edges
            for line in edge.lines
        ],
        "captions": [{"text": caption.text, "x": caption.x, "y": caption.y - TITLE} for caption in picture.captions],
    }

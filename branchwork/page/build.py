"""Build the page of a run: one HTML file in which its net runs on what one draws, without any network."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from branchwork.catalogue.resolve import short_name
from branchwork.datasets.batches import normalise
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.placing import RULES
from branchwork.drawing.layout import Picture, layout
from branchwork.errors import ExportError
from branchwork.explaining.worth import choose_images
from branchwork.files import write_whole
from branchwork.graph.branching import BranchedNet, Replacement, read_branches
from branchwork.graph.costs import op_name
from branchwork.language import in_language, language
from branchwork.observer import Observer
from branchwork.page.spec import encode, image_operations, operations_as_json, sampled_outputs
from branchwork.page.words import WORDS
from branchwork.palette import branch_colours
from branchwork.screen import watch
from branchwork.training.evaluate import Evaluation, evaluate_net, load_for
from branchwork.training.infer import pick_layout
from branchwork.training.measure import lost_accuracy, observe, remove_each
from branchwork.training.run import TrainedNet, load_run

# Each after those that it imports.
_MODULES = ("kernels", "net", "place", "state", "pad", "lanes", "pixel", "branches", "layer", "tour", "app")
# Boxes are so large that maps of channels fit into them, in inches.
_BOX = (0.92, 1.05)
_EXAMPLES, _WRONG = 20, 5
# Images that each branch is measured on.
_MEASURED = 2000
# Weights beyond this many bytes are written in half precision.
_HALF_ABOVE = 8_000_000


@dataclass(frozen=True)
class ExportedPage:
    """The page of a run as one file: its path and size."""

    net: str
    to: Literal["html"]
    file: str
    bytes: int


def export_page(
    run: str | Path,
    out: Path | None,
    *,
    force: bool = False,
    source: Path | None = None,
    progress: bool | Observer = False,
) -> ExportedPage:
    """Write the page of a run to `out`, by default `page.html` in the run folder.

    Raises `ExportError` if the file exists already, unless `force` is given, and what `build_page` raises.
    """
    path = Path(run) / "page.html" if out is None else out
    if path.suffix != ".html":
        raise ExportError("{path} cannot be written: its name must end in .html", path=path)
    if path.exists() and not force:
        raise ExportError("{path} already exists: choose another --out, or add --force", path=path)
    content = build_page(run, source=source, progress=progress)
    write_whole(path, content, error=ExportError)
    return ExportedPage(short_name(load_run(run).model.net), "html", str(path), len(content.encode()))


def build_page(run: str | Path, *, source: Path | None = None, progress: bool | Observer = False) -> str:
    """Return the page of a run as HTML.

    Raises `ExportError` for a net with operations that the page cannot compute, and what `load_run` raises.
    """
    trained, observer = load_run(run), watch(progress)
    data = load_for(trained.model, None, source, observer=observer)
    content = _content(trained, data, observer)
    return _assemble(content, f"{content['facts']['net']} · {trained.model.data}")


def _content(trained: TrainedNet, data: DataSet, observer: Observer) -> dict[str, Any]:
    model = trained.model
    shape = (model.in_channels, *model.image_size)
    pick_layout(trained.net, model)
    branched = read_branches(trained.net, shape)
    graph, trace = branched.graph, branched.trace
    operations, weights = operations_as_json(graph, model.net)
    half = 4 * sum(weight.numel() for weight in weights) > _HALF_ABOVE
    evaluation = evaluate_net(trained.net, model, data)
    chosen = _examples(data.test, evaluation)
    images = data.test.images[chosen]
    labels = [model.classes.index(data.classes[int(label)]) for label in data.test.labels[chosen]]
    picture = layout(trace, least=_BOX)
    joins = _joins(branched, trained, data, observer)
    rule = RULES.get(model.pictures)
    golden = normalise(images[:1], model.mean, model.std)[0]
    return {
        "title": short_name(model.net),
        "language": language(),
        "words": {name: {key: in_language(text, name) for key, text in WORDS.items()} for name in ("en", "zh")},
        "facts": {
            "net": short_name(model.net),
            "accuracy": f"{evaluation.accuracy:.2%}",
            "images": f"{evaluation.images:,}",
            "low": f"{evaluation.interval[0]:.2%}",
            "high": f"{evaluation.interval[1]:.2%}",
            "parameters": f"{trace.parameters:,}",
            "macs": f"{trace.macs:,}",
        },
        "classes": model.classes,
        "mean": model.mean,
        "std": model.std,
        "shape": shape,
        "rule": rule and {"side": rule.longer_side, "mass": rule.by_mass},
        "nodes": operations,
        "weights": encode(weights, np.float16 if half else np.float32),
        "half": half,
        "golden": {"image": _base64(images[0]), "nodes": sampled_outputs(graph, golden)},
        "samples": {
            "images": _base64(images),
            "labels": labels,
            "wrong": [index in {mistake.index for mistake in evaluation.worst} for index in chosen],
        },
        "picture": _geometry(picture, operations),
        "joins": joins,
        "tour": _tour(operations, joins),
    }


def _examples(test: Split, evaluation: Evaluation) -> list[int]:
    """Return the test images to offer: an image of each class in turn, and the most confident mistakes."""
    wrong = [mistake.index for mistake in evaluation.worst[:_WRONG]]
    by_class = [(test.labels == label).nonzero()[:, 0].tolist() for label in range(len(evaluation.classes))]
    others = (group[turn] for turn in range(_EXAMPLES) for group in by_class if turn < len(group))
    return [*(index for index, _ in zip(others, range(_EXAMPLES - len(wrong)), strict=False)), *wrong]


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


def _geometry(picture: Picture, operations: list[dict[str, Any]]) -> dict[str, Any]:
    last = {operation["name"]: index for index, operation in enumerate(operations)}
    return {
        "width": picture.width,
        "height": picture.height,
        "boxes": [
            {
                "kind": box.kind,
                "nodes": [last[name] for name in (box.nodes or ("input",))],
                "label": box.label,
                "name": box.name if box.name != box.label else "",
                "bands": box.bands,
                "channels": box.channels,
                "x": box.x,
                "top": box.top,
                "width": box.right - box.x,
                "shape": box.shape,
                "height": box.height,
                "colour": box.colour,
                "colours": box.colours,
            }
            for box in picture.boxes
        ],
        "lines": [{"points": line.points, "colour": line.colour} for edge in picture.edges for line in edge.lines],
        "captions": [{"text": caption.text, "x": caption.x, "y": caption.y} for caption in picture.captions],
    }


def _tour(operations: list[dict[str, Any]], joins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps that suit this net: a question, the layer that answers it, and the figures in its words."""
    stacked = [join for join in joins if operations[join["node"]]["op"] == "cat"]
    sums = [join for join in joins if operations[join["node"]]["op"] == "add"]
    flat = next((i for i, op in enumerate(operations) if op["op"] == "view" and len(op["shape"]) == 1), None)
    steps: list[dict[str, Any]] = []
    if stacked:
        channels, side, _ = operations[stacked[0]["node"]]["shape"]
        steps.append(_step("size", stacked[0]["node"], channels=channels, side=side))
    if flat is not None:
        before = operations[operations[flat]["args"][0]["n"]]["shape"]
        steps.append(_step("flat", flat, shape="×".join(map(str, before)), count=operations[flat]["shape"][0]))
    one = next((i for i, op in enumerate(operations) if ".conv1" in op["name"] or op["name"].endswith(".b1")), None)
    if stacked and one is not None:
        steps.append(_step("one", one))
    if joins:
        steps.append(_step("branch", joins[-1]["node"]))
    if sums:
        steps.append(_step("shortcut", sums[-1]["node"]))
    if stacked and {op["op"] for op in operations[stacked[-1]["node"] + 1 :]} <= {"view", "linear"}:
        steps.append(_step("affine", stacked[-1]["node"]))
    return steps


def _step(name: str, node: int, **values: object) -> dict[str, Any]:
    return {"question": f"tour-{name}", "words": f"tour-{name}-words", "node": node, "values": values}


def _base64(images: Tensor) -> str:
    return base64.b64encode(images.contiguous().numpy().tobytes()).decode()


def _assemble(content: dict[str, Any], title: str) -> str:
    assets = resources.files("branchwork") / "page/assets"
    style = (assets / "style.css").read_text(encoding="utf-8")
    script = "\n".join(_as_function(name, (assets / f"{name}.js").read_text(encoding="utf-8")) for name in _MODULES)
    body = (assets / "body.html").read_text(encoding="utf-8").replace("TITLE", escape(title))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n{body}\n"
        f'<script type="application/json" id="page-data">{data}</script>\n<script>{script}</script></body></html>\n'
    )


def _as_function(name: str, source: str) -> str:
    """Return a module as a constant of its exports: scripts within a file cannot import each other."""
    source = re.sub(r'^import \* as (\w+) from "\./(\w+)\.js";$', r"const \1 = $\2;", source, flags=re.M)
    source = re.sub(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', r"const \1 = $\2;", source, flags=re.M)
    names = re.findall(r"^export (?:async )?(?:function|const) ([\w$]+)", source, flags=re.M)
    source = re.sub(r"^export (?=async|function|const)", "", source, flags=re.M)
    return f'const ${name} = (() => {{ "use strict";\n{source}\nreturn {{ {", ".join(names)} }};\n}})();'

"""Build the page of a run: one HTML file in which its net runs on what one draws, without an internet connection."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from branchwork.datasets.dataset import DataSet
from branchwork.datasets.placing import RULES
from branchwork.errors import ExportError
from branchwork.files import write_whole
from branchwork.language import in_language, language
from branchwork.observer import Observer
from branchwork.page.content import as_base64, content_of
from branchwork.page.words import WORDS
from branchwork.screen import watch
from branchwork.training.evaluate import Evaluation, evaluate_net, load_for
from branchwork.training.run import Model, TrainedNet, load_run

# Each after those that it imports.
_MODULES = (
    "kernels", "net", "place", "state", "pad", "lanes", "pixel", "branches", "layer", "address", "tour", "save", "app",
)  # fmt: skip
_EXAMPLES, _WRONG = 20, 5


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
    beside: str | Path | None = None,
    force: bool = False,
    source: Path | None = None,
    progress: bool | Observer = False,
) -> ExportedPage:
    """Write the page of a run, with that of `beside` on the same picture, to `out`: by default `page.html` in the run.

    Raises `ExportError` if the file exists already, unless `force` is given, and what `build_page` raises.
    """
    path = Path(run) / "page.html" if out is None else out
    if path.suffix != ".html":
        raise ExportError("{path} cannot be written: its name must end in .html", path=path)
    if path.exists() and not force:
        raise ExportError("{path} already exists: choose another --out, or add --force", path=path)
    title, html = build_page(run, beside=beside, source=source, progress=progress)
    write_whole(path, html, error=ExportError)
    return ExportedPage(title, "html", str(path), len(html.encode()))


def build_page(
    run: str | Path,
    *,
    beside: str | Path | None = None,
    source: Path | None = None,
    progress: bool | Observer = False,
) -> tuple[str, str]:
    """Return the title and the HTML of the page of a run, or of two on the same picture.

    Raises `ExportError` for a net with operations that the page cannot compute and for two runs that take different
    pictures, and what `load_run` raises.
    """
    observer = watch(progress)
    runs = [load_run(each) for each in (run, beside) if each is not None]
    model, takes = runs[0].model, [_takes(each) for each in runs]
    if takes[0] != takes[-1]:
        raise ExportError(
            "{run} and {beside} cannot share a page: one takes {pictures}, the other {others}",
            run=run,
            beside=beside,
            pictures=takes[0],
            others=takes[-1],
        )
    data = load_for(model, None, source, observer=observer)
    evaluations = [evaluate_net(each.net, each.model, data) for each in runs]
    samples, image = _samples(model, data, evaluations[0])
    nets = [
        content_of(each, data, evaluation, image=image, observer=observer)
        for each, evaluation in zip(runs, evaluations, strict=True)
    ]
    if len({net["title"] for net in nets}) < len(nets):  # two runs of one net
        for net, each in zip(nets, runs, strict=True):
            net["title"] += f" ({each.folder.name})"
    rule = RULES.get(model.pictures)
    content = {
        "language": language(),
        "words": {name: {key: in_language(text, name) for key, text in WORDS.items()} for name in ("en", "zh")},
        "classes": model.classes,
        "shape": model.input_shape,
        "rule": rule and {"side": rule.longer_side, "mass": rule.by_mass},
        "fit": model.pictures,
        "samples": samples,
        "nets": nets,
    }
    title = f"{' | '.join(net['title'] for net in nets)} · {Path(model.data).name}"
    return title, _assemble(content, title)


def _takes(run: TrainedNet) -> str:
    """What pictures a run takes, in words that are equal for runs that can share a page."""
    model = run.model
    return f"{model.in_channels}×{model.image_size[0]}×{model.image_size[1]} ({', '.join(model.classes)})"


def _samples(model: Model, data: DataSet, evaluation: Evaluation) -> tuple[dict[str, Any], Tensor]:
    """Return the test images to offer, of each class in turn and the most confident mistakes, and the first of them."""
    wrong = [mistake.index for mistake in evaluation.worst[:_WRONG]]
    labels = data.test.labels
    is_free = torch.ones(len(labels), dtype=torch.bool)
    is_free[wrong] = False
    by_class = [((labels == label) & is_free).nonzero()[:, 0].tolist() for label in range(len(evaluation.classes))]
    others = (group[turn] for turn in range(_EXAMPLES) for group in by_class if turn < len(group))
    chosen = [*(index for index, _ in zip(others, range(_EXAMPLES - len(wrong)), strict=False)), *wrong]
    images = data.test.images[chosen]
    samples = {
        "images": as_base64(images),
        "labels": [model.classes.index(data.classes[int(label)]) for label in labels[chosen]],
        "wrong": [index in {mistake.index for mistake in evaluation.worst} for index in chosen],
    }
    return samples, images[0]


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
    names = re.findall(r"^export (?:async )?(?:function\*?|const) ([\w$]+)", source, flags=re.M)
    source = re.sub(r"^export (?=async|function|const)", "", source, flags=re.M)
    return f'const ${name} = (() => {{ "use strict";\n{source}\nreturn {{ {", ".join(names)} }};\n}})();'

"""The verb `export`: a net as one file for an inference engine, tried on real images before it is there."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data
from branchwork.deploy.engines import OPENVINO_PRECISION, load, need_engine
from branchwork.deploy.formats import FORMS, Form, write
from branchwork.deploy.subject import BATCH, Input, Shipping, Subject, find_subject, names_run
from branchwork.deploy.verify import Comparison, compare, run_in_batches
from branchwork.errors import ExportError, first_line, nearest
from branchwork.files import folder_beside, move_together
from branchwork.language import enumerated, listed, times
from branchwork.observer import Observer
from branchwork.training.evaluate import load_for
from branchwork.training.infer import predict_logits
from branchwork.training.machine import versions
from branchwork.training.run import Model

IMAGES = 1000


@dataclass(frozen=True)
class Exported:
    """A file that `engine` runs, and how it compares with the net as written in float32 on `images` images of `data`.

    `files` are paths, last the one to open, and `bytes` the size of all. `difference` is the largest between two
    logits, and `tolerance` the most that may be; `largest_logit` is the size of the largest. `differing` counts the
    images whose class is another one, and `clearly_differing` those of them that the net as written holds apart by more
    than the tolerance; `clearly_allowed` is the most of these that may be. `trained` is False for weights that no run
    made. `metadata` is what the file itself says.
    """

    net: str
    to: str
    files: tuple[str, ...]
    bytes: int
    engine: str
    engine_version: str
    precision: str
    input: str
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    fused: bool
    trained: bool
    data: str
    images: int
    difference: float
    tolerance: float
    largest_logit: float
    differing: int
    clearly_differing: int
    clearly_allowed: int
    metadata: dict[str, str]


def export(
    net: str | Path | nn.Module,
    *,
    to: Literal["onnx", "openvino", "pt2"] = "onnx",
    out: str | Path | None = None,
    fuse: bool = True,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch: int = BATCH,
    input: Input = "uint8",
    data: str | None = None,
    source: Path | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> Exported:
    """Write `net`, a run folder, a name in `NETS`, a script's `file.py:Class` or a module, for an inference engine.

    The file takes any number of images N×C×H×W, `uint8` or `float` in [0, 1], normalises them itself, and gives logits
    float32 N×K; classes and input are in its metadata. `out` is by default `model` in the run folder, or the net's
    name, with the ending of the form (`.onnx`; `.xml`, beside a `.bin`; `.pt2`); a file that is there is replaced only
    with `force`. With `fuse`, it holds an equal net, the cheapest for `batch` images at a time. A net that no run made
    has weights of seed 0, if it is no module, and the images, the classes and the normalisation of `data`.

    The file is run by its engine on 1,000 test images of `data`, by default what the net was trained for, or else the
    digits of the sample in the net's own size. It appears only if it gives what the net as written gives. Raises
    `ExportError` where not, and for a file that cannot be written; `EngineError` for an engine that is missing;
    `NetError` for a net whose operations depend on the pixels.
    """
    observer = observer or Observer()
    if to not in FORMS:
        raise ExportError(f"there is no form of file called {to!r}.{nearest(to, FORMS)}")
    if batch < 1:
        raise ExportError(f"batch is {batch}, and it must be at least 1: how many images come at a time")
    if input not in ("uint8", "float"):
        raise ExportError(f"there is no input {input!r}.{nearest(input, ('uint8', 'float'))}")
    form = FORMS[to]
    engine = need_engine(form.engine, precision)
    if out is not None:
        _check_place(Path(out), form, force)
    given = None if data is None or names_run(net) else load_data(data, source=source, observer=observer)
    subject = find_subject(net, data=given)
    path = _default_place(subject, form) if out is None else Path(out)
    _check_place(path, form, force)
    model = subject.model
    if subject.folder is None:
        weights = "its own weights" if isinstance(net, nn.Module) else "weights of seed 0, untrained"
        normal = f"mean {listed(model.mean)}, deviation {listed(model.std)}"
        observer.note(f"{subject.name}: {weights}; {normal}; classes {enumerated(model.classes)}")
        data_set = given or _sample_as(model, source)
    else:
        data_set = load_for(model, data, source, observer)
    shipping = Shipping(fuse, precision, input, batch)
    about = _about(subject, data_set, shipping)
    if to == "openvino":
        about["compile_with"] = json.dumps(OPENVINO_PRECISION[precision])
    with folder_beside(path, error=ExportError) as folder:
        part = folder / path.name
        write(to, part, subject, shipping, about)
        compared = _try(part, form, subject, data_set, precision, input, path)
        moves = [(part.with_suffix(suffix), path.with_suffix(suffix)) for suffix in form.suffixes]
        move_together(moves, error=ExportError)
    return Exported(
        net=model.net,
        to=to,
        files=tuple(str(path) for _, path in moves),
        bytes=sum(path.stat().st_size for _, path in moves),
        engine=engine.name,
        engine_version=str(engine.version),
        precision=precision,
        input=input,
        input_shape=subject.shape,
        classes=model.classes,
        fused=fuse,
        trained=subject.folder is not None,
        data=data_set.name,
        images=compared.images,
        difference=compared.difference,
        tolerance=compared.tolerance,
        largest_logit=compared.largest,
        differing=compared.differing,
        clearly_differing=compared.clearly,
        clearly_allowed=compared.allowed,
        metadata=about,
    )


def _default_place(subject: Subject, form: Form) -> Path:
    folder, name = (Path(), subject.name) if subject.folder is None else (subject.folder, "model")
    return folder / f"{name}{form.suffixes[-1]}"


def _check_place(path: Path, form: Form, force: bool) -> None:
    suffix = form.suffixes[-1]
    if path.suffix != suffix or os.path.isdir(path):
        raise ExportError(f"{path} cannot be the file: name one that ends in {suffix}, such as {path.stem}{suffix}")
    there = [str(path.with_suffix(s)) for s in form.suffixes if os.path.lexists(path.with_suffix(s))]
    if there and not force:
        raise ExportError(f"{' and '.join(there)} would be replaced: choose another --out, or say --force")


def _sample_as(model: Model, source: Path | None) -> DataSet:
    """The sample with test images of the size and the channels that the net takes."""
    sample = load_data("sample", source=source)
    images = functional.interpolate(sample.test.images[:IMAGES].float(), model.image_size, mode="bilinear")
    images = images.round().to(torch.uint8).expand(-1, model.in_channels, -1, -1).contiguous()
    return replace(sample, test=Split(images, sample.test.labels[:IMAGES]))


def _try(
    part: Path, form: Form, subject: Subject, data: DataSet, precision: str, kind: Input, path: Path
) -> Comparison:
    """Run the file by its engine. Raises `ExportError` where it does not give what the net gives."""
    images = data.test.images[:IMAGES]
    expected = predict_logits(subject.net, images, subject.model)
    try:
        logits = run_in_batches(load(form.engine, part, precision), images, kind)
    except Exception as reason:  # each engine has errors of its own
        raise ExportError(f"{path} is not written, since {form.engine} cannot run it: {first_line(reason)}") from reason
    compared = compare(logits, expected, precision)
    if not compared.good:
        remedy = "--precision fp32 is nearer" if precision == "bf16" else "--no-fuse is nearer, if it is fused"
        raise ExportError(
            f"{path} is not written: {form.engine} gives other logits for it than {subject.name} as written. On "
            f"{compared.images:,} test images of {data.name} they differ by up to {compared.difference:.2g}, and "
            f"{compared.tolerance:.2g} may be; {compared.clearly} classes clearly differ, and {compared.allowed} may. "
            f"Take another engine with --to; {remedy}."
        )
    return compared


def _about(subject: Subject, data: DataSet, shipping: Shipping) -> dict[str, str]:
    """The metadata, as text, which is all that every form can hold; lists are JSON."""
    model, kind = subject.model, shipping.form
    what = "uint8, 0 to 255" if kind == "uint8" else "float32, 0 to 1"
    return {
        "net": subject.name,
        "classes": json.dumps(model.classes, ensure_ascii=False),
        "input": f"images N×{times(subject.shape)}, {what}; the normalisation is inside",
        "input_type": "uint8" if kind == "uint8" else "float32",
        "input_shape": json.dumps(subject.shape),
        "output": f"logits N×{len(model.classes)}, float32, in the order of the classes",
        "mean": json.dumps(model.mean),
        "std": json.dumps(model.std),
        "pictures": model.pictures,
        "precision": shipping.precision,
        "fused": json.dumps(shipping.fused),
        "fused_for": f"{shipping.batch} at a time" if shipping.fused else "",
        "trained_on": model.data if subject.folder is not None else "",
        "compared_on": data.name,
        "versions": json.dumps(versions()),
    }

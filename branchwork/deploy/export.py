"""The verb `export`: a net as a file for an inference engine, tried on real images before it appears."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, overload

import torch
from torch import nn
from torch.nn import functional

from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data
from branchwork.deploy.engines import (
    OPENVINO_PRECISION,
    Comparison,
    compare,
    load,
    need_engine,
    need_package,
    run_in_batches,
)
from branchwork.deploy.formats import FORMATS, Format, write
from branchwork.deploy.quantise import Quantised, accuracy, write_int8
from branchwork.deploy.shipped import Deployable, ExportOptions, find_deployable
from branchwork.errors import ExportError, first_line, nearest
from branchwork.files import folder_beside, move_together, remove_remains
from branchwork.language import enumerated, listed, say, times
from branchwork.observer import Observer
from branchwork.page.build import ExportedPage, export_page
from branchwork.screen import watch
from branchwork.shown import Shown
from branchwork.training.evaluate import labels_of, load_for
from branchwork.training.infer import predict_logits
from branchwork.training.machine import versions
from branchwork.training.measure import sample_images
from branchwork.training.run import Model
from branchwork.training.subject import is_run

# A file is tried on at most this many test images.
IMAGES = 1000


@dataclass(frozen=True)
class Exported(Shown):
    """A file for `engine`, and how it compares with the net as written in float32 on `images` images of `data`.

    `files` are paths, the last of which is the one to open, and `bytes` is their total size. `difference` is the
    largest between two logits, at most `tolerance`, and `largest_logit` the largest absolute logit. `differing` counts
    the images that get another class; `clearly_differing`, at most `clearly_allowed`, counts those for which the net as
    written separates the two classes by more than the tolerance. `trained` is False for a net without a run. `metadata`
    is stored in the file.

    `test_accuracies` are those of the net as written and of the file on these images, as fractions; None without a run.
    In int8 there is no tolerance, and `int8` says what decided.
    """

    net: str
    to: Literal["onnx", "openvino", "pt2"]
    files: tuple[str, ...]
    bytes: int
    engine: str
    engine_version: str
    precision: str
    pixels: str
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    fused: bool
    trained: bool
    data: str
    images: int
    difference: float
    tolerance: float | None
    largest_logit: float
    differing: int
    clearly_differing: int
    clearly_allowed: int | None
    test_accuracies: tuple[float, float] | None
    int8: Quantised | None
    metadata: dict[str, str]


@overload
def export(
    net: str | Path | nn.Module,
    *,
    to: Literal["html"],
    out: str | Path | None = None,
    options: ExportOptions | None = None,
    data: str | None = None,
    source: Path | None = None,
    progress: bool | Observer = False,
) -> ExportedPage: ...


@overload
def export(
    net: str | Path | nn.Module,
    *,
    to: Literal["onnx", "openvino", "pt2"] = "onnx",
    out: str | Path | None = None,
    options: ExportOptions | None = None,
    data: str | None = None,
    source: Path | None = None,
    progress: bool | Observer = False,
) -> Exported: ...


def export(
    net: str | Path | nn.Module,
    *,
    to: Literal["onnx", "openvino", "pt2", "html"] = "onnx",
    out: str | Path | None = None,
    options: ExportOptions | None = None,
    data: str | None = None,
    source: Path | None = None,
    progress: bool | Observer = False,
) -> Exported | ExportedPage:
    """Export `net`: a run folder, a name in `NETS`, a script's `file.py:Class` or a module, for an inference engine.

    The file takes any number of raw images N×C×H×W, `uint8` or `float` in [0, 1], and returns logits float32 N×K; its
    metadata describe classes and input. `out` is by default `model` in the run folder, or the net's name, with the
    suffix of the format (`.onnx`; `.xml`, beside a `.bin`; `.pt2`). A net without a run has weights of seed 0, unless
    it is a module, and the images, classes and normalisation of `data`.

    The engine runs the file on 1,000 test images of `data`, by default what the run was trained on, otherwise the
    sample's digits in the net's input size. It appears only if its logits are those of the net as written; in int8,
    which needs a run, if it loses no more accuracy on validation images than `options.drop`. Raises `ExportError` if
    not, or if it cannot be written; `EngineError` for a missing engine; `NetError` for a net whose operations depend on
    the pixels.

    With `to="html"`, the net of a run is written as a page that runs it in a browser, by default `page.html` in the run
    folder: see `page.build`. Of `options` it heeds `force` and `beside`.
    """
    options, observer, path = options or ExportOptions(), watch(progress), None if out is None else Path(out)
    if to == "html":
        if data is not None:
            raise ExportError("a page shows the data that its run was trained on: leave out --data")
        return _export_page(net, path, options, source=source, observer=observer)
    if options.beside is not None:
        raise ExportError("--beside is for a page: add --to html")
    if to not in FORMATS:
        raise ExportError("there is no format called {to!r}.{hint}", to=to, hint=nearest(to, (*FORMATS, "html")))
    file_format = FORMATS[to]
    engine = need_engine(file_format.engine, options.precision)
    if options.precision == "int8":
        assert file_format.quantiser is not None, "need_engine has refused engines without int8"
        need_package(file_format.quantiser)
        if not is_run(net):
            raise ExportError("int8 needs a run, whose validation images calibrate and judge it: train the net first")
    if path is not None:
        _check_path(path, file_format, options.force)
    named_data = None if data is None or is_run(net) else load_data(data, source=source, progress=observer)
    subject = find_deployable(net, data=named_data)
    if path is None:
        folder, stem = (Path(), subject.name) if subject.folder is None else (subject.folder, "model")
        path = folder / f"{stem}{file_format.suffixes[-1]}"
    _check_path(path, file_format, options.force)
    model = subject.model
    if subject.folder is None:
        observer.note(
            say(
                "{name}: its own weights; mean {mean}, standard deviation {deviation}; classes {classes}"
                if isinstance(net, nn.Module)
                else "{name}: weights of seed 0, untrained; mean {mean}, standard deviation {deviation}; "
                "classes {classes}",
                name=subject.name,
                mean=listed(model.mean),
                deviation=listed(model.std),
                classes=enumerated(model.classes),
            )
        )
        data_set = named_data or _resized_sample(model, source)
    else:
        data_set = load_for(model, data, source, observer=observer)
    metadata = _describe(subject, data_set, options)
    if to == "openvino":
        metadata["compile_with"] = json.dumps(OPENVINO_PRECISION[options.precision])
    with folder_beside(path, error=ExportError) as folder:
        part, quantised = folder / path.name, None
        if options.precision != "int8":
            write(part, subject, to=to, options=options, metadata=metadata)
        try:
            if options.precision == "int8":
                quantised, metadata = write_int8(
                    part, subject, data_set, to=to, options=options, metadata=metadata, most=IMAGES
                )
            comparison, accuracies = _try(part, subject, data_set, to=to, options=options)
        except ExportError as reason:
            raise ExportError("{path} was not written: {reason}", path=path, reason=reason) from reason
        moves = [(part.with_suffix(suffix), path.with_suffix(suffix)) for suffix in file_format.suffixes]
        move_together(moves, error=ExportError)
    return Exported(
        net=model.net,
        to=to,
        files=tuple(str(target) for _, target in moves),
        bytes=sum(target.stat().st_size for _, target in moves),
        engine=engine.name,
        engine_version=str(engine.version),
        precision=options.precision,
        pixels=options.pixels,
        input_shape=subject.input_shape,
        classes=model.classes,
        fused=options.fuse,
        trained=subject.folder is not None,
        data=data_set.name,
        images=comparison.images,
        difference=comparison.difference,
        tolerance=comparison.tolerance,
        largest_logit=comparison.largest,
        differing=comparison.differing,
        clearly_differing=comparison.clearly,
        clearly_allowed=comparison.allowed,
        test_accuracies=accuracies,
        int8=quantised,
        metadata=metadata,
    )


def _export_page(
    net: str | Path | nn.Module, out: Path | None, options: ExportOptions, *, source: Path | None, observer: Observer
) -> ExportedPage:
    if isinstance(net, nn.Module) or not is_run(net):
        raise ExportError("a page needs a run, which has weights and test images: train the net first")
    if options != ExportOptions(force=options.force, beside=options.beside):
        raise ExportError(
            "a page has no --no-fuse, --precision, --batch-size, --pixels, --calibration-images or --drop: leave them "
            "out"
        )
    return export_page(net, out, beside=options.beside, force=options.force, source=source, progress=observer)


def _check_path(path: Path, file_format: Format, force: bool) -> None:
    suffix = file_format.suffixes[-1]
    if path.suffix != suffix or os.path.isdir(path):
        raise ExportError(
            "{path} cannot be written: its name must end in {suffix}, such as {stem}{suffix}",
            path=path,
            suffix=suffix,
            stem=path.stem,
        )
    existing = [str(path.with_suffix(s)) for s in file_format.suffixes if os.path.lexists(path.with_suffix(s))]
    if existing and not force:
        remove_remains(path)
        raise ExportError(
            "{existing} already exists: choose another --out, or add --force", existing=", ".join(existing)
        )


def _resized_sample(model: Model, source: Path | None) -> DataSet:
    """Return the sample with test images of the net's size and channels."""
    sample = load_data("sample", source=source)
    images = functional.interpolate(sample.test.images[:IMAGES].float(), model.image_size, mode="bilinear")
    images = images.round().to(torch.uint8).expand(-1, model.in_channels, -1, -1).contiguous()
    return replace(sample, test=Split(images, sample.test.labels[:IMAGES]))


def _try(
    part: Path, subject: Deployable, data: DataSet, *, to: str, options: ExportOptions
) -> tuple[Comparison, tuple[float, float] | None]:
    """Run the file in its engine, and return also the accuracy of a run's net before and after.

    Raises `ExportError` if the logits are not those of the net as written; in int8, only if they are no numbers.
    """
    engine = FORMATS[to].engine
    test = sample_images(data.test, IMAGES)
    images = test.images[:]
    expected = predict_logits(subject.net, images, subject.model)
    try:
        logits = run_in_batches(load(engine, part, options.precision), images, options.pixels)
    except Exception as reason:  # each engine has its own errors
        raise ExportError("{engine} cannot run it: {reason}", engine=engine, reason=first_line(reason)) from reason
    comparison = compare(logits, expected, options.precision)
    if not comparison.good and options.precision == "int8":
        raise ExportError("in {engine} its logits are infinite or NaN. Try --no-fuse.", engine=engine)
    if not comparison.good:
        remedy = "--precision fp32" if options.precision == "bf16" else "--no-fuse"
        raise ExportError(
            "in {engine} its logits are not those of {name} as written. On {images:,} test images "
            "of {data} they differ by up to {difference:.2g}, where at most "
            "{tolerance:.2g} is allowed; {clearly} classes clearly differ, where "
            "{allowed} may. Choose another engine with --to; {remedy} is more exact.",
            engine=engine,
            name=subject.name,
            data=data.name,
            remedy=remedy,
            **vars(comparison),
        )
    if subject.folder is None:
        return comparison, None
    labels = labels_of(test, data, subject.model)
    return comparison, (accuracy(expected, labels), accuracy(logits, labels))


def _describe(subject: Deployable, data: DataSet, options: ExportOptions) -> dict[str, str]:
    """Return the metadata as text, the one type that every format can hold; lists are JSON."""
    model, is_uint8 = subject.model, options.pixels == "uint8"
    pixels = "uint8, 0 to 255" if is_uint8 else "float32, 0 to 1"
    return {
        "net": subject.name,
        "classes": json.dumps(model.classes, ensure_ascii=False),
        "input": f"images N×{times(subject.input_shape)}, {pixels}; the normalisation is inside",
        "input_type": "uint8" if is_uint8 else "float32",
        "input_shape": json.dumps(subject.input_shape),
        "output": f"logits N×{len(model.classes)}, float32, in the order of the classes",
        "mean": json.dumps(model.mean),
        "std": json.dumps(model.std),
        "pictures": model.pictures,
        "precision": options.precision,
        "fused": json.dumps(options.fuse),
        "fused_for": f"{options.batch_size} at a time" if options.fuse else "",
        "trained_on": model.data if subject.folder is not None else "",
        "compared_on": data.name,
        "versions": json.dumps(versions()),
    }

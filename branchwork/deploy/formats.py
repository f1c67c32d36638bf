"""The forms of a file: how each is written, its metadata, and the engine that runs it."""

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from branchwork.deploy.engines import import_openvino, need_package
from branchwork.deploy.subject import Shipping, Subject, example, program, quiet_torch, ship
from branchwork.errors import ExportError, first_line
from branchwork.files import write_whole

# The name under which a .pt2 file and an OpenVINO model keep the metadata.
ABOUT = "branchwork"


@dataclass(frozen=True)
class Form:
    """`suffixes` are those of its files; the last is the one that a reader opens. `packages` are needed to write it.

    `write` puts a subject's net with `about` into a path with the last suffix.
    """

    name: str
    engine: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[Path, Subject, Shipping, dict[str, str]], None]


def _write_pt2(path: Path, subject: Subject, shipping: Shipping, about: dict[str, str]) -> None:
    made = program(ship(subject, shipping), example(subject, shipping.form), subject.name)
    content = io.BytesIO()
    with quiet_torch():
        torch.export.save(made, content, extra_files={ABOUT: json.dumps(about, ensure_ascii=False)})
    write_whole(path, content.getvalue(), error=ExportError)


def _write_onnx(
    path: Path, subject: Subject, shipping: Shipping, about: dict[str, str], engine: str = "onnxruntime"
) -> None:
    shipped = ship(subject, shipping, engine=engine)
    # Not the module: where no graph serves any number of images, this exporter silently takes one that serves two.
    graph = program(shipped, example(subject, shipping.form), subject.name)
    with quiet_torch(), _quiet_onnx():
        try:
            made = torch.onnx.export(
                graph, external_data=False, verbose=False, input_names=["images"], output_names=["logits"]
            )
        except Exception as reason:  # the exporter's errors have no common base
            cause: BaseException = reason  # of which the last names the operation
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ExportError(
                f"{subject.name} has an operation that ONNX does not: {first_line(cause)}. Take --to pt2, or write it "
                "with other operations."
            ) from reason
    assert made is not None, "the exporter of programs gives one"
    made.optimize()  # as the exporter has done already, whose rounds are too few for all that meets in a fused net
    model = made.model_proto
    _name_batch(model.graph)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    write_whole(path, model.SerializeToString(), error=ExportError)


def _name_batch(graph: Any) -> None:
    """Call the size that is open `batch`, which torch has given a number, and take out what torch notes for itself."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:  # which may also be some times the symbol: equal names must be equal numbers
                size.dim_param = re.sub(rf"\b{symbol}\b", "batch", size.dim_param)
    for node in graph.node:
        del node.metadata_props[:]


def _write_openvino(path: Path, subject: Subject, shipping: Shipping, about: dict[str, str]) -> None:
    openvino = import_openvino()
    # Through ONNX, since OpenVINO's reader of torch's programs is a tool apart.
    middle = path.with_suffix(".onnx")
    _write_onnx(middle, subject, shipping, {}, "openvino")
    model = openvino.Core().read_model(middle)
    for key, value in about.items():
        model.set_rt_info(value, [ABOUT, key])
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except (OSError, RuntimeError) as reason:
        raise ExportError(f"cannot write {path}: {reason}. Free some space, or choose another place.") from reason
    middle.unlink()


FORMS = {
    form.name: form
    for form in (
        Form("onnx", "onnxruntime", (".onnx",), ("onnx", "onnxscript"), _write_onnx),
        Form("openvino", "openvino", (".bin", ".xml"), ("onnx", "onnxscript"), _write_openvino),
        Form("pt2", "torch", (".pt2",), (), _write_pt2),
    )
}


def write(name: str, path: Path, subject: Subject, shipping: Shipping, about: dict[str, str]) -> None:
    """Write the file of form `name` to `path`. Raises `EngineError` or `ExportError`."""
    for package in FORMS[name].packages:
        need_package(package)
    FORMS[name].write(path, subject, shipping, about)


@contextmanager
def _quiet_onnx() -> Iterator[None]:
    """Without the lines in which torch's exporter misses torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):  # what a library prints must not mix with what the command shows
            yield
    finally:
        logger.setLevel(level)

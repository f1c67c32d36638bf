"""The file formats: how each is written, its metadata, and the engine that runs it. Only here is a net exported."""

import io
import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from branchwork.deploy.engines import import_openvino, need_package, quiet_torch
from branchwork.deploy.shipped import Deployable, ExportOptions, ship
from branchwork.errors import ExportError, first_line
from branchwork.files import write_whole
from branchwork.graph.untouched import hushed

# The key under which a .pt2 file and an OpenVINO model hold the metadata.
METADATA = "branchwork"


@dataclass(frozen=True)
class Format:
    """A file format. The file to open has the last of the `suffixes`; `writer` writes it, and needs `packages`.

    `quantiser` is the package that makes int8 of it; None if there is no int8.
    """

    name: str
    engine: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    writer: Callable[..., None]
    quantiser: str | None = None


def write(path: Path, subject: Deployable, *, to: str, options: ExportOptions, metadata: dict[str, str]) -> None:
    """Write a file of the format `to`; `path` must end in its last suffix. Raises `EngineError` or `ExportError`."""
    for package in FORMATS[to].packages:
        need_package(package)
    FORMATS[to].writer(path, subject, options=options, metadata=metadata)


def _write_pt2(path: Path, subject: Deployable, *, options: ExportOptions, metadata: dict[str, str]) -> None:
    program = _export_program(ship(subject, options), subject, options)
    content = io.BytesIO()
    with quiet_torch():
        torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
    write_whole(path, content.getvalue(), error=ExportError)


def _write_onnx(
    path: Path,
    subject: Deployable,
    *,
    options: ExportOptions,
    metadata: dict[str, str],
    engine: str = "onnxruntime",
) -> None:
    # Not the module: without a graph for any number of images, this exporter silently makes one for two.
    program = _export_program(ship(subject, options, engine=engine), subject, options)
    # The exporter warns that torchvision is missing, and what it prints must not mix with the command's output.
    with quiet_torch(), hushed("torch.onnx"), redirect_stdout(sys.stderr):
        try:
            exported = torch.onnx.export(
                program, external_data=False, verbose=False, input_names=["images"], output_names=["logits"]
            )
        except Exception as reason:  # the exporter's errors have no common base
            cause: BaseException = reason  # the last one names the operation
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ExportError(
                "{name} has an operation that ONNX lacks: {reason}. Use --to pt2, or write it with other operations.",
                name=subject.name,
                reason=first_line(cause),
            ) from reason
    assert exported is not None, "the exporter of programs returns one"
    exported.optimize()  # again: the exporter's own rounds are too few for a fused net
    model = exported.model_proto
    _name_batch(model.graph)
    save_onnx(model, path, metadata)


def save_onnx(model: Any, path: Path, metadata: dict[str, str]) -> None:
    """Write an ONNX model with `metadata` and no other."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    write_whole(path, model.SerializeToString(), error=ExportError)


def _name_batch(graph: Any) -> None:
    """Name the open size `batch` instead of torch's symbol, and remove torch's own notes."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:  # possibly a multiple of the symbol: equal names must mean equal numbers
                size.dim_param = re.sub(rf"\b{symbol}\b", "batch", size.dim_param)
    for node in graph.node:
        del node.metadata_props[:]


def _write_openvino(path: Path, subject: Deployable, *, options: ExportOptions, metadata: dict[str, str]) -> None:
    openvino = import_openvino()
    # By way of ONNX, since OpenVINO reads torch's programs with a separate tool.
    onnx_file = path.with_suffix(".onnx")
    _write_onnx(onnx_file, subject, options=options, metadata={}, engine="openvino")
    save_openvino(openvino.Core().read_model(onnx_file), path, metadata)
    onnx_file.unlink()


def save_openvino(model: Any, path: Path, metadata: dict[str, str]) -> None:
    """Write a model of OpenVINO with `metadata`."""
    openvino = import_openvino()
    for key, value in metadata.items():
        model.set_rt_info(value, [METADATA, key])
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except (OSError, RuntimeError) as reason:
        raise ExportError(
            "cannot write {path}: {reason}. Free some space, or choose another folder.", path=path, reason=reason
        ) from reason


FORMATS = {
    entry.name: entry
    for entry in (
        Format("onnx", "onnxruntime", (".onnx",), ("onnx", "onnxscript"), _write_onnx, "onnxruntime"),
        Format("openvino", "openvino", (".bin", ".xml"), ("onnx", "onnxscript"), _write_openvino, "nncf"),
        Format("pt2", "torch", (".pt2",), (), _write_pt2),
    )
}
BY_ENGINE = {entry.engine: entry for entry in FORMATS.values()}


def _export_program(shipped: nn.Module, subject: Deployable, options: ExportOptions) -> torch.export.ExportedProgram:
    """Return the graph of `shipped` for any number of images. Raises `ExportError` if there is none."""
    # Two black images: torch would take a batch of one for a constant.
    dtype = torch.uint8 if options.pixels == "uint8" else torch.float32
    images = torch.zeros(2, *subject.input_shape, dtype=dtype)
    with torch.no_grad(), quiet_torch():
        try:
            program = torch.export.export(
                shipped, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
            )
        except Exception as reason:  # torch's errors here have no common base
            subject.need_fixed_graph()
            raise ExportError(
                "{name} has no single graph for any number of images: {reason} "
                "Write x.size(0) for the number of images, and use only torch's operations.",
                name=subject.name,
                reason=first_line(reason),
            ) from reason
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which holds paths of this machine
    return program

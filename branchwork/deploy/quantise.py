"""int8: the weights, and the numbers between operations, in eight bits, by the quantiser that each engine has itself.

Only ranges are chosen, from what the net computes for some images; no weight is trained again.
"""

import io
import json
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from branchwork.datasets.dataset import DataSet, SplitName
from branchwork.deploy.engines import Pixels, import_openvino, load, need_package, quiet_torch, run_in_batches
from branchwork.deploy.formats import FORMATS, save_onnx, save_openvino, write
from branchwork.deploy.shipped import Deployable, ExportOptions
from branchwork.errors import ExportError, first_line
from branchwork.language import say
from branchwork.training.evaluate import labels_of
from branchwork.training.infer import predict_logits
from branchwork.training.measure import sample_images
from branchwork.training.run import TrainedNet
from branchwork.training.splits import splits_of

# As many as NNCF takes by itself.
CALIBRATION_IMAGES = 300
DROP = 0.01


@dataclass(frozen=True)
class Quantised:
    """How an int8 file was made, and what it costs. Accuracies are fractions.

    Its ranges are those of `calibration_images` images of `calibration_split`. `before` is the accuracy of the net as
    written in float32, and `after` that of the file, on `images` images of `split`: at most `drop` may be lost.
    `float_bytes` is the size of the file in float32.
    """

    calibration_split: SplitName
    calibration_images: int
    split: SplitName
    images: int
    before: float
    after: float
    drop: float
    float_bytes: int


def write_int8(
    path: Path,
    subject: Deployable,
    data: DataSet,
    *,
    to: str,
    options: ExportOptions,
    metadata: dict[str, str],
    most: int,
) -> tuple[Quantised, dict[str, str]]:
    """Write an int8 file of the format `to`; return what it costs, and its metadata, of which that is a part.

    Validation images of the run calibrate it, and at most `most` of them judge it; always the same ones. If the run
    held out none, training images calibrate and test images judge: they choose nothing else, so that they are still
    read once, at the end. Raises `ExportError` if it loses more accuracy than is allowed, or if the quantiser fails;
    `EngineError` if it is missing; `RunError` if the run is not finished.
    """
    assert subject.folder is not None, "export refuses a net without a run"
    train, validation = splits_of(TrainedNet(subject.net, subject.model, subject.folder), data)
    held_out = len(validation) > 0
    calibration = sample_images(validation if held_out else train, options.calibration_images or CALIBRATION_IMAGES)
    judging = sample_images(validation if held_out else data.test, most)
    float_file, trial = path.with_stem("float"), path.with_stem("trial")
    write(float_file, subject, to=to, options=options, metadata={})
    model = quantise(float_file, to=to, images=calibration.images[:], pixels=options.pixels)
    save_int8(model, trial, to=to, metadata={})
    judged, labels = judging.images[:], labels_of(judging, data, subject.model)
    before = accuracy(predict_logits(subject.net, judged, subject.model), labels)
    after = accuracy(run_in_batches(load(FORMATS[to].engine, trial, "int8"), judged, options.pixels), labels)
    quantised = Quantised(
        calibration_split="validation" if held_out else "train",
        calibration_images=len(calibration),
        split="validation" if held_out else "test",
        images=len(labels),
        before=before,
        after=after,
        drop=DROP if options.drop is None else options.drop,
        float_bytes=sum(float_file.with_suffix(suffix).stat().st_size for suffix in FORMATS[to].suffixes),
    )
    if round((before - after) * len(labels)) > quantised.drop * len(labels):
        raise ExportError(
            "int8 loses {lost:.2%} of accuracy on {images:,} {split} images, {before:.2%} before and {after:.2%} "
            "after, more than the {drop:.2%} allowed. Allow more with --drop, calibrate on more images with "
            "--calibration-images, or leave out --precision int8.",
            lost=before - after,
            **(vars(quantised) | {"split": say(quantised.split)}),
        )
    metadata = {
        **metadata,
        "calibrated_on": f"{quantised.calibration_images} {quantised.calibration_split} images",
        "accuracy": json.dumps(
            {"split": quantised.split, "images": quantised.images, "float32": before, "int8": after}
        ),
    }
    save_int8(model, path, to=to, metadata=metadata)
    return quantised, metadata


def quantise(path: Path, *, to: str, images: Tensor, pixels: Pixels = "uint8") -> Any:
    """Return the float32 file at `path` in int8, as its quantiser's model, calibrated on uint8 `images` N×C×H×W.

    Raises `EngineError` if the quantiser is missing, and `ExportError` if it fails.
    """
    quantiser = FORMATS[to].quantiser
    assert quantiser is not None, "need_engine refuses int8 where there is none"
    need_package(quantiser)
    given = images if pixels == "uint8" else images.float() / 255
    # One by one: both measure the same ranges in any batches, and this takes the least memory.
    single = [given[at : at + 1].numpy() for at in range(len(given))]
    try:
        with quiet_torch(), redirect_stdout(io.StringIO()):  # NNCF's bars
            return _QUANTISERS[quantiser](path, single)
    except Exception as reason:  # the quantisers' errors have no common base
        raise ExportError(
            "{quantiser} cannot convert the net to int8: {reason}. With --no-fuse it gets the net as written.",
            quantiser=quantiser,
            reason=first_line(reason),
        ) from reason


def save_int8(model: Any, path: Path, *, to: str, metadata: dict[str, str]) -> None:
    """Write what `quantise` has returned. Raises `ExportError`."""
    (save_onnx if to == "onnx" else save_openvino)(model, path, metadata)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _by_onnxruntime(path: Path, images: list[Any]) -> Any:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, result = path.with_stem("prepared"), path.with_stem("int8")
    quant_pre_process(str(path), str(prepared))
    feeds = iter([{"images": image} for image in images])
    quantize_static(
        str(prepared),
        str(result),
        SimpleNamespace(get_next=lambda: next(feeds, None)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        # Weights of seven bits: processors without VNNI add two products in 16 bits, which eight would overflow there,
        # so that the accuracy measured on one machine would not be that of another.
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(result)


def _by_nncf(path: Path, images: list[Any]) -> Any:
    nncf = import_openvino("nncf")
    nncf.set_log_level(logging.ERROR)
    core = import_openvino().Core()
    core.set_property({"ENABLE_MMAP": False})  # Windows removes no file that is mapped
    return nncf.quantize(core.read_model(path), nncf.Dataset(images), subset_size=len(images))


_QUANTISERS: dict[str, Callable[[Path, list[Any]], Any]] = {"onnxruntime": _by_onnxruntime, "nncf": _by_nncf}

"""The inference engines: which are installed, their precisions, and a net run and compared in one of them."""

import ctypes
import importlib
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from branchwork.errors import EngineError, first_line, nearest
from branchwork.language import say
from branchwork.training.infer import pick_precision
from branchwork.training.machine import compiler_problem

Pixels = Literal["uint8", "float"]
Precision = Literal["fp32", "bf16", "int8"]

# The oldest versions that the tests were run with, as in the extra `deploy` of pyproject.toml.
FLOORS = {"onnx": "1.20", "onnxscript": "0.6", "onnxruntime": "1.23", "openvino": "2025.4", "nncf": "3.4"}
INSTALL = 'pip install "branchwork[deploy]"'  # in double quotes: cmd.exe knows no others

# Always set: by default OpenVINO computes in bf16 wherever the processor has it. In an int8 file it is for whatever is
# not quantised.
OPENVINO_PRECISION = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8": {"INFERENCE_PRECISION_HINT": "f32"},
}

# The tolerance of float32 logits is absolute. Above 33 it grows with them: the order of additions alone changed the
# logits of trained nets by up to 1.4 millionths of the largest.
FP32_LOGITS = 1e-4
FP32_RELATIVE = 3e-6
# bf16 has eight bits of mantissa, so that each operation rounds by up to 1/512. Measured were differences of up to half
# a hundredth of the largest logit in trained nets, and one hundredth in fresh ones.
BF16_RELATIVE = 0.03
BF16_PREDICTIONS = 0.01
# Batches of several sizes reveal a file that serves one size only.
SIZES = (1, 2, 97, 400)
# The most pixels in such a batch, but always 3 images: ResNet-50 took 6.7 GB for 400 images of 224×224.
PIXELS = 400 * 28 * 28


@dataclass(frozen=True)
class Runner:
    """A net in an engine: uint8 or float32 images N×C×H×W in, logits float32 N×K out.

    `take` converts images to the engine's own form, which shares their memory: they must stay alive. `run` computes
    logits in the engine's form; the next run with the same images may overwrite them. Only `run` is the engine's work:
    torch's tensors add 12 microseconds (docs/experiments/inference.md).
    """

    take: Callable[[Tensor], Any]
    run: Callable[[Any], Any]

    def __call__(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.run(self.take(images))).clone()


@dataclass(frozen=True)
class Engine:
    """An engine on this machine; `version` is None if it is not installed.

    `precisions` are those that it computes in here; `problem` says why it cannot be used, and is None if it can.
    """

    name: str
    version: str | None
    precisions: tuple[Precision, ...]
    problem: str | None


def find_engines() -> tuple[Engine, ...]:
    """Return every known engine, with a `problem` if it cannot be used."""
    return tuple(map(find_engine, _LOADERS))


def find_engine(name: str) -> Engine:
    """Return the engine `name`, with a `problem` if it cannot be used. Raises `EngineError` for an unknown name."""
    if name not in _LOADERS:
        raise EngineError("there is no engine called {name!r}.{hint}", name=name, hint=nearest(name, _LOADERS))
    native: tuple[Precision, ...] = (
        ("fp32", "bf16") if pick_precision("auto", torch.device("cpu")) == "bf16" else ("fp32",)
    )
    if name == "torch":
        return Engine(name, torch.__version__, native, None)
    if name == "torch.compile":
        return Engine(name, torch.__version__, native, compiler_problem(torch.device("cpu")))
    version, problem = find_package(name)
    # ONNX Runtime has no bf16 convolution on a CPU.
    return Engine(name, version, (*(("fp32",) if name == "onnxruntime" else native), "int8"), problem)


def need_engine(name: str, precision: str) -> Engine:
    """Return the engine `name`. Raises `EngineError` if it cannot compute in `precision` here."""
    engine = find_engine(name)
    if engine.problem is not None:
        raise EngineError(engine.problem)
    if precision not in get_args(Precision):
        raise EngineError(
            "there is no precision {precision!r}.{hint}",
            precision=precision,
            hint=nearest(precision, get_args(Precision)),
        )
    if precision == "int8" and "int8" not in engine.precisions:
        raise EngineError(
            "{name} has no int8 here: onnxruntime (--to onnx) and openvino (--to openvino) have, each with a quantiser "
            "of its own",
            name=name,
        )
    if precision not in engine.precisions:
        reason = (
            say("this processor has no bf16 arithmetic: use fp32")
            if "bf16" not in find_engine("torch").precisions
            else say("on a CPU, {name} computes in fp32 only: use fp32, or another engine", name=name)
        )
        raise EngineError(
            "{name} cannot compute in {precision} here: {reason}", name=name, precision=precision, reason=reason
        )
    return engine


def find_package(name: str) -> tuple[str | None, str | None]:
    """Return the version of a package of the extra `deploy`, and why it cannot be used; either may be None."""
    try:
        with quiet_torch():  # onnxscript imports torch's exporter
            if name in ("openvino", "nncf"):
                package = import_openvino(name)
            else:
                # Unless it is told before the import, ONNX Runtime keeps an identifier in the home folder, to report.
                os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
                package = importlib.import_module(name)
            version = str(package.__version__)
    except Exception as reason:  # a library that does not fit this system may raise anything
        if isinstance(reason, ModuleNotFoundError) and reason.name == name:
            return None, say("{name} is not installed: {command}", name=name, command=INSTALL)
        return None, say(
            "{name} failed to import ({reason}): install it again, {command}", name=name, reason=reason, command=INSTALL
        )
    if _version_numbers(version) < _version_numbers(FLOORS[name]):
        return version, say(
            "{name} must be at least {oldest}, got {version}: {command}",
            name=name,
            oldest=FLOORS[name],
            version=version,
            command=INSTALL,
        )
    return version, None


def import_openvino(name: str = "openvino") -> ModuleType:
    """Import OpenVINO, or its quantiser `nncf`, without their telemetry.

    It would report each import and keep an identifier in the home folder. If the telemetry package cannot be imported,
    they use an empty substitute.
    """
    if name not in sys.modules:
        cast(dict[str, ModuleType | None], sys.modules).setdefault("openvino_telemetry", None)
    return importlib.import_module(name)


def need_package(name: str) -> None:
    """Raise `EngineError` if a package of the extra `deploy` is missing or too old."""
    _, problem = find_package(name)
    if problem is not None:
        raise EngineError(problem)


def load(name: str, net: Path | nn.Module, precision: str) -> Runner:
    """Load a net into the engine `name`, to run with as many threads as torch has.

    `net` is an .onnx file for `onnxruntime`, an .xml file for `openvino`, and for torch's engines a .pt2 file or a
    module that is already in `precision`. Raises `EngineError` if the engine is missing or rejects the net.
    """
    need_engine(name, precision)
    try:
        with quiet_torch():
            return _LOADERS[name](net, precision)
    except Exception as reason:  # each engine has its own errors; OpenVINO's are RuntimeErrors
        source = type(net).__name__ if isinstance(net, nn.Module) else net
        raise EngineError(
            "{name} cannot load {source}: {reason}", name=name, source=source, reason=first_line(reason)
        ) from reason


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Suppress the warnings that torch's exporters give about torch itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        # Weights that are channels_last: their copies are compared and are the same.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        yield


def _load_torch(net: Path | nn.Module, precision: str) -> Runner:
    return _torch_runner(_module(net))


def _load_torch_compile(net: Path | nn.Module, precision: str) -> Runner:
    module = _module(net)

    def forward(images: Tensor) -> Any:
        return module(images)

    # torch caches compiled code by the code object of a function, a few versions of each, and beyond them silently
    # stops compiling. So each net gets a copy of the code object.
    forward.__code__ = forward.__code__.replace()
    return _torch_runner(torch.compile(forward, dynamic=True))


def _module(net: Path | nn.Module) -> nn.Module:
    return net if isinstance(net, nn.Module) else torch.export.load(net).module()


def _torch_runner(net: Callable[[Tensor], Any]) -> Runner:
    def run(images: Tensor) -> Any:
        with torch.inference_mode():
            return net(images)

    return Runner(lambda images: images, run)


def _load_onnxruntime(net: Path | nn.Module, precision: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only, which are raised as well
    session = onnxruntime.InferenceSession(str(net), options, providers=["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()

    def take(images: Tensor) -> Any:
        # Bound once: looking names up and allocating logits takes four microseconds a run.
        binding, logits = session.io_binding(), np.empty((len(images), *target.shape[1:]), np.float32)
        binding.bind_ortvalue_input(source.name, onnxruntime.OrtValue.ortvalue_from_numpy(images.numpy()))
        binding.bind_output(target.name, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return binding, logits

    def run(bound: Any) -> Any:
        binding, logits = bound
        session.run_with_iobinding(binding)
        return logits

    return Runner(take, run)


def _load_openvino(net: Path | nn.Module, precision: str) -> Runner:
    openvino = import_openvino()
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    with _keeping_signal_stack():
        compiled = openvino.Core().compile_model(str(net), "CPU", {**threads, **OPENVINO_PRECISION[precision]})

    def take(images: Tensor) -> Any:
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(images.numpy(), shared_memory=True))
        return request

    def run(request: Any) -> Any:
        # Not infer(inputs): its dictionaries cost OpenVINO's Python some 50 microseconds.
        request.infer()
        return request.get_output_tensor().data

    return Runner(take, run)


class _SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _keeping_signal_stack() -> Iterator[None]:
    """Restore the stack for signal handlers. OpenVINO's own is freed with the model: the next Ctrl-C would crash."""
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


_LOADERS: dict[str, Callable[[Path | nn.Module, str], Runner]] = {
    "torch": _load_torch,
    "torch.compile": _load_torch_compile,
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
}


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


@dataclass(frozen=True)
class Comparison:
    """An engine's logits compared with those of the net as written, in eager float32, on the same images.

    `difference` is the largest between two logits, and `largest` the size of the largest logit. `differing` counts the
    images with another class, and `clearly` those whose two classes the net as written separates by more than
    `tolerance`: closer ones may fall either way. `tolerance` and `allowed` bound `difference` and `clearly`; they are
    None in int8, which is judged by its accuracy.
    """

    images: int
    difference: float
    largest: float
    tolerance: float | None
    differing: int
    clearly: int
    allowed: int | None

    @property
    def good(self) -> bool:
        if self.tolerance is None or self.allowed is None:
            return math.isfinite(self.difference)
        # Not the reverse: a difference of NaN is not good.
        return self.difference <= self.tolerance and self.clearly <= self.allowed


def compare(logits: Tensor, expected: Tensor, precision: str) -> Comparison:
    """Compare logits N×K of the same shape. The constants at the top of this file define the tolerances."""
    largest = expected.abs().max().item()
    tolerance: float | None
    allowed: int | None
    if precision == "int8":
        tolerance = allowed = None
    elif precision == "bf16":
        tolerance, allowed = BF16_RELATIVE * largest, int(BF16_PREDICTIONS * len(expected))
    else:
        tolerance, allowed = max(FP32_LOGITS, FP32_RELATIVE * largest), 0
    classes, expected_classes = logits.argmax(1, keepdim=True), expected.argmax(1, keepdim=True)
    differing = (classes != expected_classes)[:, 0]
    margin = (expected.gather(1, expected_classes) - expected.gather(1, classes))[:, 0]
    return Comparison(
        images=len(expected),
        difference=(logits - expected).abs().max().item(),
        largest=largest,
        tolerance=tolerance,
        differing=int(differing.sum()),
        clearly=int((differing & (margin > (tolerance or 0.0))).sum()),
        allowed=allowed,
    )


def run_in_batches(runner: Runner, images: Tensor, pixels: Pixels) -> Tensor:
    """Return logits N×K of uint8 images N×C×H×W, run in batches of several sizes."""
    most = max(3, PIXELS // math.prod(images.shape[2:]))
    sizes: list[int] = []
    while (left := len(images) - sum(sizes)) > 0:
        sizes.append(min(left, most, SIZES[min(len(sizes), len(SIZES) - 1)]))
    batches = torch.split(images, sizes)
    return torch.cat([runner(batch if pixels == "uint8" else batch.float() / 255) for batch in batches])

"""The inference engines: which are on this machine, what they offer, and a net run by one of them."""

import ctypes
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from branchwork.deploy.subject import quiet_torch
from branchwork.errors import EngineError, first_line, nearest
from branchwork.training.infer import pick_precision
from branchwork.training.machine import compiler_problem

# The oldest versions that the tests were run with; pyproject.toml's extra `deploy` says the same.
FLOORS = {"onnx": "1.20", "onnxscript": "0.6", "onnxruntime": "1.23", "openvino": "2025.4"}
INSTALL = "pip install 'branchwork[deploy]'"

# What OpenVINO is told in any case: by itself it takes bf16 wherever the processor has it, and not only where asked.
OPENVINO_PRECISION = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}}


@dataclass(frozen=True)
class Runner:
    """A net in an engine: images uint8 or float32 N×C×H×W, as it was made to take them, to logits float32 N×K.

    `take` gives images the engine's own form, which shares their memory: they must live as long. `run` has them in it,
    and gives logits in it, which may lie where the next run with the same images puts its own. That alone is the
    engine's work: torch's tensors take 12 microseconds more (LOG.md).
    """

    take: Callable[[Tensor], Any]
    run: Callable[[Any], Any]

    def __call__(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.run(self.take(images))).clone()


@dataclass(frozen=True)
class Engine:
    """An engine on this machine. `version` is None where it is not installed.

    `precisions` are those that it computes in here; `problem` says why it cannot be used, and is None where it can.
    """

    name: str
    version: str | None
    precisions: tuple[str, ...]
    problem: str | None


def find_engines() -> tuple[Engine, ...]:
    return tuple(map(find_engine, _LOADERS))


def find_engine(name: str) -> Engine:
    """The engine called `name`, which may have a `problem`. Raises `EngineError` for a name that no engine has."""
    if name not in _LOADERS:
        raise EngineError(f"there is no engine called {name!r}.{nearest(name, _LOADERS)}")
    native = ("fp32", "bf16") if pick_precision("auto", torch.device("cpu")) == "bf16" else ("fp32",)
    if name == "torch":
        return Engine(name, torch.__version__, native, None)
    if name == "torch.compile":
        return Engine(name, torch.__version__, native, compiler_problem(torch.device("cpu")))
    version, problem = find_package(name)
    # ONNX Runtime has no bf16 convolution on a CPU.
    return Engine(name, version, ("fp32",) if name == "onnxruntime" else native, problem)


def need_engine(name: str, precision: str) -> Engine:
    """The engine called `name`. Raises `EngineError` where it cannot compute in `precision` here."""
    engine = find_engine(name)
    if engine.problem is not None:
        raise EngineError(engine.problem)
    if precision not in ("fp32", "bf16"):
        raise EngineError(f"there is no precision {precision!r}.{nearest(precision, ('fp32', 'bf16'))}")
    if precision not in engine.precisions:
        why = (
            "this processor multiplies no bf16 by itself: take fp32"
            if "bf16" not in find_engine("torch").precisions
            else f"{name} computes in fp32 alone on a processor: take fp32, or another engine"
        )
        raise EngineError(f"{precision} cannot be had with {name} here: {why}")
    return engine


def find_package(name: str) -> tuple[str | None, str | None]:
    """The version of a package of the extra `deploy`, and what is wrong with it; each None where there is none."""
    try:
        with quiet_torch():  # onnxscript imports torch's exporter
            version = str((import_openvino() if name == "openvino" else importlib.import_module(name)).__version__)
    except ModuleNotFoundError as reason:
        if reason.name == name:
            return None, f"{name} is not installed: {INSTALL}"
        return None, f"{name} cannot be imported ({reason}): install it again, {INSTALL}"
    except Exception as reason:  # a library that does not fit this system may raise anything
        return None, f"{name} cannot be imported ({reason}): install it again, {INSTALL}"
    if _numbers(version) < _numbers(FLOORS[name]):
        return version, f"{name} {version} is too old, and {FLOORS[name]} is the oldest that serves: {INSTALL}"
    return version, None


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which would tell a web service of each import and leave a number in the home.

    Where its package cannot be imported, OpenVINO has an empty stand-in for it, and does not miss it.
    """
    if "openvino" not in sys.modules:
        cast(dict[str, ModuleType | None], sys.modules).setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


def need_package(name: str) -> None:
    """Raises `EngineError` where a package of the extra `deploy` is missing or too old."""
    _, problem = find_package(name)
    if problem is not None:
        raise EngineError(problem)


def load(name: str, what: Path | nn.Module, precision: str) -> Runner:
    """A net in the engine `name`, ready to run with as many threads as torch has.

    `what` is an .onnx file for `onnxruntime`, an .xml one for `openvino`, and for torch's engines a .pt2 file or a
    module that is in `precision` already. Raises `EngineError` where the engine is missing or does not take it.
    """
    need_engine(name, precision)
    try:
        with quiet_torch():
            return _LOADERS[name](what, precision)
    except Exception as reason:  # each engine has errors of its own, and OpenVINO's are RuntimeErrors
        raise EngineError(f"{name} cannot load {_called(what)}: {first_line(reason)}") from reason


def _torch(what: Path | nn.Module, precision: str) -> Runner:
    return _in_torch(_module(what))


def _torch_compile(what: Path | nn.Module, precision: str) -> Runner:
    net = _module(what)

    def forward(images: Tensor) -> Any:
        return net(images)

    # torch keeps what it has compiled by the code of a function, a few versions of each, and past them gives up
    # silently. So each net gets a copy of the code.
    forward.__code__ = forward.__code__.replace()
    return _in_torch(torch.compile(forward, dynamic=True))


def _module(what: Path | nn.Module) -> nn.Module:
    return what if isinstance(what, nn.Module) else torch.export.load(what).module()


def _in_torch(net: Callable[[Tensor], Any]) -> Runner:
    def run(images: Tensor) -> Any:
        with torch.inference_mode():
            return net(images)

    return Runner(lambda images: images, run)


def _onnxruntime(what: Path | nn.Module, precision: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors alone, which are raised as well
    session = onnxruntime.InferenceSession(str(what), options, providers=["CPUExecutionProvider"])
    (entry,), (answer,) = session.get_inputs(), session.get_outputs()

    def take(images: Tensor) -> Any:
        # Bound beforehand: to look names up and make new logits for each run takes four microseconds.
        binding, logits = session.io_binding(), np.empty((len(images), *answer.shape[1:]), np.float32)
        binding.bind_ortvalue_input(entry.name, onnxruntime.OrtValue.ortvalue_from_numpy(images.numpy()))
        binding.bind_output(answer.name, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        return binding, logits

    def run(given: Any) -> Any:
        binding, logits = given
        session.run_with_iobinding(binding)
        return logits

    return Runner(take, run)


def _openvino(what: Path | nn.Module, precision: str) -> Runner:
    openvino = import_openvino()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        **OPENVINO_PRECISION[precision],
    }
    with _own_signal_stack():
        compiled = openvino.Core().compile_model(str(what), "CPU", settings)

    def take(images: Tensor) -> Any:
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(images.numpy(), shared_memory=True))
        return request

    def run(request: Any) -> Any:
        # Not infer(inputs), whose dictionaries take OpenVINO's Python some 50 microseconds.
        request.infer()
        return request.get_output_tensor().data

    return Runner(take, run)


class _SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Leave the stack on which signals are handled as it is.

    OpenVINO puts one of its own in its place, which goes with the model: the next Ctrl-C would be a crash.
    """
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
    "torch": _torch,
    "torch.compile": _torch_compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _called(what: Path | nn.Module) -> str:
    return type(what).__name__ if isinstance(what, nn.Module) else str(what)

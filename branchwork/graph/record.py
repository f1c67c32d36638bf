"""Recording a net while it runs: every torch operation, the module that calls it, and the user's line of code."""

import linecache
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from branchwork.errors import is_library

# Code that is never the user's own: torch's, and this reader's.
_NOT_THE_USERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent}{os.sep}")


def call(net: nn.Module, images: Tensor) -> Any:
    """Call `net`: the frame at which `users_line` stops."""
    return net(images)


def users_line() -> tuple[str, int] | None:
    """Return file and line of the innermost call within `call` that is the user's, or a library's if none is.

    None if there is only torch and this reader: all modules are torch's own, as in a `Sequential` of layers.
    """
    frame, librarys = sys._getframe(1), None
    while frame is not None and frame.f_code is not call.__code__:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if not file.startswith(_NOT_THE_USERS) and linecache.getline(file, line):
            if not is_library(file):
                return file, line
            librarys = librarys or (file, line)
        frame = frame.f_back  # type: ignore[assignment]
    return librarys


@contextmanager
def module_calls(
    net: nn.Module, enter: Callable[[str, tuple[Any, ...]], None], leave: Callable[[], None]
) -> Iterator[None]:
    """Call `enter` with path and arguments before each call of a module of `net` in here, and `leave` after it."""

    def entering(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, arguments: enter(path, arguments)

    hooks = []
    try:
        for path, module in net.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                continue
            hooks.append(module.register_forward_pre_hook(entering(path)))
            hooks.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(eq=False)  # tensors cannot be compared with `==`
class RecordedCall:
    """One operation as it ran: the module that called it, its name, its arguments and output; None if it failed.

    `arguments` are those given by position, then those given by name; `named` holds the latter by name.
    """

    path: str
    op: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    output: Tensor | None = None
    line: tuple[str, int] | None = None

    def argument(self, name: str, position: int) -> Any:
        """Return the argument called `name`, or that at `position`; None if neither was given."""
        positional = self.arguments[: len(self.arguments) - len(self.named)]
        return self.named.get(name, positional[position] if position < len(positional) else None)

    def weight(self) -> Tensor:
        weight = self.arguments[1]
        assert isinstance(weight, Tensor), f"{self.op} has a weight"
        return weight


class Recorder(TorchFunctionMode):
    """Records every operation of a net while it runs.

    `running` are the paths of the modules being called. `passed` is a module's path and the name of a module that was
    passed to it instead of a tensor.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.calls: list[RecordedCall] = []
        self.running: list[str] = []
        self.passed: tuple[str, str] | None = None
        self._paths = {module: path for path, module in net.named_modules()}
        self._hooks = module_calls(net, self._enter, self._leave)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        self._hooks.__exit__(None, None, None)

    def _enter(self, path: str, arguments: tuple[Any, ...]) -> None:
        self.running.append(path)
        for argument in arguments:
            if isinstance(argument, nn.Module):
                self.passed = (path, self._paths.get(argument, type(argument).__name__))

    def _leave(self) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func)).strip("_")
        path = self.running[-1] if self.running else ""
        call = RecordedCall(path, _NAMES.get(name, name), (*args, *kwargs.values()), kwargs, line=users_line())
        self.calls.append(call)
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and name not in ("get", "set"):
            call.output = output
        else:
            self.calls.remove(call)  # a question, such as x.size(0), and no operation
        return output

    @property
    def failed(self) -> RecordedCall | None:
        return self.calls[-1] if self.calls and self.calls[-1].output is None else None

    def maker(self, tensor: Any) -> RecordedCall | None:
        """Return the operation that gave `tensor`."""
        return next((call for call in reversed(self.calls) if call.output is tensor), None)


# Python's operators, and several names of torch for one operation.
_NAMES = {
    "radd": "add", "iadd": "add", "isub": "sub", "imul": "mul", "rmul": "mul", "itruediv": "div", "truediv": "div",
    "concat": "cat", "reshape": "view", "matmul": "linear",
}  # fmt: skip


def record_graph(net: nn.Module, image: Tensor) -> fx.GraphModule:
    """Run `net` on `image`, and return the operations that it ran in the form of a graph, which itself cannot run."""
    with torch.no_grad(), Recorder(net) as recorder:
        output = call(net, image)
    graph = fx.Graph()
    tensors: dict[str, Tensor] = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    nodes = {id(image): graph.placeholder("input")}
    nodes[id(image)].meta["val"] = image.to("meta")

    def hold(tensor: Tensor, name: str) -> None:
        nodes[id(tensor)] = graph.get_attr(name)
        nodes[id(tensor)].meta["val"] = tensor.to("meta")

    for name, tensor in tensors.items():
        hold(tensor, name)

    def translate(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [translate(item) for item in value]
        if isinstance(value, Tensor) and id(value) not in nodes:
            name = f"constant_{len(tensors)}"
            tensors[name] = value
            hold(value, name)
        return nodes[id(value)] if isinstance(value, Tensor) else value

    for recorded in recorder.calls:
        assert recorded.output is not None, "the run did not fail"
        node = graph.call_function(_Recorded(recorded.op), tuple(map(translate, recorded.arguments)))
        node.meta = {"val": recorded.output.to("meta"), "path": recorded.path}
        if recorded.line is not None:
            node.meta["line"] = recorded.line
        nodes[id(recorded.output)] = node
    graph.output(tuple(nodes[id(part)] for part in pytree.tree_leaves(output) if id(part) in nodes))
    return fx.GraphModule(tensors, graph)


@dataclass(frozen=True)
class _Recorded:
    """Stands in a graph for an operation of torch, by its name."""

    name: str

    def __call__(self) -> None:
        raise NotImplementedError("a recorded graph is read, not run")

    def __str__(self) -> str:
        return f"aten.{self.name}.default"

    @property
    def __name__(self) -> str:  # what fx calls a node by
        return self.name

"""What a net does while it really runs: every operation of torch, and the module that calls it."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


@dataclass(eq=False)  # to compare tensors is no question of yes or no
class Step:
    """One operation: the module that ran it, its name, what went in, and what came out: None where it failed."""

    path: str
    op: str
    arguments: tuple[Any, ...]
    output: Tensor | None = None
    stack: str = ""

    def weight(self) -> Tensor:
        weight = self.arguments[1]
        assert isinstance(weight, Tensor), f"{self.op} has a weight"
        return weight


class Recorder(TorchFunctionMode):
    """Sees every operation of a net while it runs, and which module runs it.

    `words` are torch's own about the failure.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.running: list[str] = []
        self.words = ""
        self.passed: tuple[str, str] | None = None
        paths = {module: path for path, module in net.named_modules()}
        for path, module in net.named_modules():
            module.register_forward_pre_hook(self._enter(path, paths))
            module.register_forward_hook(lambda *_: self.running.pop() and None)

    def _enter(self, path: str, paths: dict[nn.Module, str]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.running.append(path)
            for argument in arguments:
                if isinstance(argument, nn.Module):
                    self.passed = (path, paths.get(argument, type(argument).__name__))

        return enter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func)).strip("_")
        path = self.running[-1] if self.running else ""
        stack = "".join(traceback.format_list(traceback.extract_stack()[:-1]))
        step = Step(path, _NAMES.get(name, name), (*args, *kwargs.values()), stack=stack)
        self.steps.append(step)
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and name not in ("get", "set"):
            step.output = output
        else:
            self.steps.remove(step)  # a question, such as x.size(0), and no operation
        return output

    @property
    def failed(self) -> Step | None:
        return self.steps[-1] if self.steps and self.steps[-1].output is None else None

    def maker(self, tensor: Any) -> Step | None:
        """The operation that gave `tensor`."""
        return next((step for step in reversed(self.steps) if step.output is tensor), None)


# Python's operators, and several names of torch for one operation.
_NAMES = {
    "radd": "add", "iadd": "add", "isub": "sub", "imul": "mul", "rmul": "mul", "itruediv": "div", "truediv": "div",
    "concat": "cat", "reshape": "view", "matmul": "linear",
}  # fmt: skip


def recorded_graph(twin: nn.Module, image: Tensor) -> tuple[fx.Graph, dict[str, str], set[str]]:
    """The graph of one run of `twin`, in the form that torch.export gives, and which of its inputs are parameters.

    The third is the other inputs that are no images: buffers and constants.
    """
    recorder = Recorder(twin)
    with recorder:
        output = twin(image)
    graph = fx.Graph()
    known: dict[int, fx.Node] = {}
    weights: dict[str, str] = {}

    def enter(tensor: Tensor, name: str) -> fx.Node:
        node = graph.placeholder(name)
        node.meta["val"] = tensor.to("meta")
        known[id(tensor)] = node
        return node

    enter(image, "image")
    for name, parameter in twin.named_parameters():
        weights[enter(parameter, "p_" + name.replace(".", "_")).name] = name
    others = {enter(buffer, "b_" + name.replace(".", "_")).name for name, buffer in twin.named_buffers()}

    def translate(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [translate(item) for item in value]
        if isinstance(value, Tensor) and id(value) not in known:
            others.add(enter(value, "constant").name)
        return known[id(value)] if isinstance(value, Tensor) else value

    for step in recorder.steps:
        node = graph.call_function(_Operation(step.op), tuple(translate(argument) for argument in step.arguments))
        node.meta = {"val": step.output.to("meta") if step.output is not None else None, "stack_trace": step.stack}
        node.meta["nn_module_stack"] = {step.path: (step.path, "")}
        known[id(step.output)] = node
    graph.output(tuple(known[id(part)] for part in pytree.tree_leaves(output) if id(part) in known))
    return graph, weights, others


@dataclass(frozen=True)
class _Operation:
    """Stands in a graph for an operation of torch, by its name."""

    name: str

    def __call__(self) -> None:
        raise NotImplementedError("a recorded graph is read, not run")

    def __str__(self) -> str:
        return f"aten.{self.name}.default"

    @property
    def __name__(self) -> str:  # what fx calls a node by
        return self.name

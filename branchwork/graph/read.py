"""Read a net as a graph: torch's operations on images, over the net's own weights, with the user's lines of code.

`read` is the only way to do it: it runs the net on tensors without numbers and records its operations.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from branchwork.errors import FAILURES, NetError, first_line
from branchwork.graph.affine import DROPOUTS
from branchwork.graph.costs import VIEWS, argument, op_name
from branchwork.graph.merge import Reading, merge
from branchwork.graph.program import Graph, Shape, image_nodes, name_nodes
from branchwork.graph.record import call, module_calls, record_graph, users_line
from branchwork.graph.teach import failure
from branchwork.graph.untouched import alone, blank, borrowed, holding, hushed, mode, untouched
from branchwork.language import enumerated, say

# A net is read with few images and with many. A number that differs between the two is the number of images, or a
# multiple of it; a net that does something different for many has no single graph. MANY is a prime that no image side
# or number of channels is likely to be.
FEW, MANY = 2, 1009


@alone()  # from its first line: other threads may have put other tensors into the net
def read(net: nn.Module, input_shape: Sequence[int], *, train: bool = False, single: bool = False) -> Graph:
    """Return the graph of `net` for images C×H×W, in eval mode, or with `train` in the mode that each module is in.

    `net` is left as it was. It runs twice on tensors without numbers, with few images and with many, and once more if
    it works only with one image. With `single`, which is enough for rows and takes half the time, it runs once, with
    one. A net whose operations depend on the pixels actually runs, on one black image. Raises `NetError` if its forward
    fails.
    """
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    shape, reasons = tuple(input_shape), list[BaseException]()
    # Without the traceback that torch logs where shapes do not fit: our error says more.
    with hushed("torch._subclasses.fake_tensor"), mode(net, train=train):
        attempts = [(1,)] if single else [(FEW, MANY), (1,)]
        for counts in attempts:
            try:
                reader = _Reader(net, tensors, shape)
                readings = [Reading(count, reader.read(count)) for count in counts]
                graph, held = merge(readings[0], readings[-1], tensors)
                break
            except FAILURES as reason:  # the net's own, or what reads it
                reasons.append(reason)
        recorded = len(reasons) == len(attempts)
        problem = failure(net, shape, train=train) if reasons else None
        if recorded and problem is not None:
            raise problem from reasons[0]
        obstacle = str(problem or _not_for_any_number(net, reasons[0])) if reasons else None
        if recorded:
            module = _recorded(net, shape, train=train, obstacle=str(obstacle))
    if not recorded:
        learns = train and net.training
        obstacle = obstacle or _make_functional(graph, learns)
        if learns and reader.changed:
            obstacle = obstacle or say(
                "the forward of {net} changes {names}, but its graph would not: train it with --execute written",
                net=type(net).__name__,
                names=enumerated(reader.changed),
            )
        module = fx.GraphModule(held, graph)
    return Graph(
        net=net,
        input_shape=shape,
        module=module,
        names=name_nodes(net, module.graph),
        images=1 if single or reasons else MANY,
        depends_on_pixels=recorded,
        changed=() if recorded else tuple(reader.changed),
        obstacle=obstacle,
    )


def _not_for_any_number(net: nn.Module, reason: BaseException) -> str:
    return say(
        "{net} does not run the same operations on every batch of images, so its graph cannot be read ({message}): "
        "remove control flow that depends on pixels from its forward, and write x.size(0) for the number of images",
        net=type(net).__name__,
        message=first_line(reason),
    )


def _recorded(net: nn.Module, shape: Shape, *, train: bool, obstacle: str) -> fx.GraphModule:
    """Return what `net` does on one black image. Raises `NetError` with the `obstacle` if it fails."""
    try:
        with borrowed(net, train=train):
            module = record_graph(net, blank(net, 1, shape))
    except FAILURES as reason:  # it needs two images, such as a batch norm of one pixel in training
        raise NetError(obstacle) from reason
    for node in module.graph.nodes:
        value = node.meta.get("val")
        node.meta["shape"] = tuple(value.shape) if value is not None else None
    return module


class _Reader(TorchFunctionMode):
    """Runs a net on tensors without numbers; each operation knows the modules and the line of code that called it.

    `changed` are the names of what the forward changed in the net's attributes, as `untouched` has them.
    """

    def __init__(self, net: nn.Module, tensors: Mapping[str, Tensor], input_shape: Shape) -> None:
        super().__init__()
        self.net = net
        self.input_shape = input_shape
        self.changed: list[str] = []
        self.running: list[str] = []
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.ids = [id(tensor) for tensor in tensors.values()]
        self.weights = [self.mode.from_tensor(tensor, static_shapes=True) for tensor in tensors.values()]

    def read(self, count: int) -> fx.GraphModule:
        """Return the graph for `count` images: it takes the weights, in their order, and the images."""
        with self.mode:
            images = blank(self.net, count, self.input_shape)

        def run(weights: Sequence[Tensor], images: Tensor) -> Any:
            with holding(self.net, dict(zip(self.ids, weights, strict=True))), self:
                return call(self.net, images)

        calls = module_calls(self.net, self._enter, self._leave)
        with untouched(self.net) as changed, calls, traceback.preserve_node_meta():
            program = make_fx(run, pre_dispatch=True)(self.weights, images)
        self.changed = changed
        return program

    def _enter(self, path: str, _: object) -> None:
        self.running.append(path)
        self._tell()

    def _leave(self) -> None:
        self.running.pop()
        self._tell()

    def _tell(self) -> None:
        """Tell torch what to note with the operations that follow."""
        traceback.get_current_meta()["nn_module_stack"] = {path: (path, "") for path in self.running}
        self._tell_line()

    def _tell_line(self) -> None:
        line = users_line()
        traceback.get_current_meta()["stack_trace"] = "" if line is None else f"{line[0]}:{line[1]}"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._tell_line()
        return func(*args, **(kwargs or {}))


def _make_functional(graph: fx.Graph, learns: bool) -> str | None:
    """Replace in-place operations on images, such as `relu_`, by functional ones; return why if that is impossible.

    `view`, which refuses tensors whose channels lie last in memory, becomes `reshape`. If the net does not learn, the
    switches of `no_grad` in it are removed: the last one would enable gradients for the caller of the graph.
    """
    obstacle = None
    images = image_nodes(graph)
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        target: Any = node.target
        if target is torch._C._set_grad_enabled and not learns:
            graph.erase_node(node)
        elif target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
        elif node in images and node.op == "call_function" and hasattr(target, "_schema") and target._schema.is_mutable:
            changed = node.args[0]
            name, overload = str(target).removeprefix("aten.").split(".")
            functional = getattr(torch.ops.aten, name.rstrip("_"), None)
            shared = changed not in images or _is_view(changed) or any(map(_is_view, changed.users))
            shared = shared and (op_name(node) not in DROPOUTS or argument(node, 2, True))  # in eval it changes nothing
            if functional is None or not name.endswith("_") or shared:
                obstacle = say(
                    "{name} changes a tensor in place that others see: write it without the underscore", name=name
                )
                continue
            node.target = getattr(functional, overload)
            later = {user for user in changed.users if order[user] > order[node]}
            changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    return obstacle


def _is_view(node: fx.Node) -> bool:
    """Return whether a node gives other tensors' memory: a view, or one part of a split."""
    return node.target is operator.getitem or (node.op == "call_function" and op_name(node) in VIEWS)

"""Read a net as a graph: torch's operations on images, over the net's own weights, with the user's lines of code.

`read` is the only way to do it: it runs the net on tensors without numbers and records its operations.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from branchwork.errors import FAILURES, NetError, first_line
from branchwork.graph.affine import DROPOUTS
from branchwork.graph.costs import VIEWS, argument, op_name
from branchwork.graph.merge import Reading, merge
from branchwork.graph.program import Graph, Shape, image_nodes, name_nodes
from branchwork.graph.record import call, module_calls, record_graph, users_line
from branchwork.graph.teach import failure
from branchwork.graph.uncompiled import DispatchMode, uncompiled
from branchwork.graph.untouched import alone, blank, borrowed, holding, mode, untouched
from branchwork.language import enumerated, say

# A net is read with few images and with many. A number that differs between the two is the number of images, or a
# multiple of it; a net that does something different for many has no single graph. MANY is a prime that no image side
# or number of channels is likely to be.
FEW, MANY = 2, 1009
# A constant with more numbers than this is not computed while a net is read.
LARGE = 1_000_000


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
    with mode(net, train=train), uncompiled():
        attempts = [(1,)] if single else [(FEW, MANY), (1,)]
        for counts in attempts:
            try:
                reader = _Reader(net, tensors, shape)
                readings = [reader.read(count) for count in counts]
                graph = merge(readings[0], readings[-1])
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
        module = fx.GraphModule(dict(readings[0].tensors), graph)
    if module.graph.output_node().args[0] in (None, ()):
        raise NetError("{net}: forward returns nothing: end it with `return x`", net=type(net).__name__)
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
    """Runs a net on tensors without numbers; each operation knows the module and the line of code that called it.

    `changed` are the names of what the forward changed in the net's attributes, as `untouched` has them.
    """

    def __init__(self, net: nn.Module, tensors: Mapping[str, Tensor], input_shape: Shape) -> None:
        super().__init__()
        self.net = net
        self.tensors = tensors
        self.input_shape = input_shape
        self.changed: list[str] = []
        self.running: list[str] = []

    def read(self, count: int) -> Reading:
        """Return what the net does with `count` images."""
        like = blank(self.net, 0, self.input_shape)
        self.writer = _Writer(like.device, self.tensors)
        calls = module_calls(self.net, self._enter, self._leave)
        # Without autograd, torch hands over whole operations, such as a convolution with padding, instead of parts.
        with torch._C._AutoDispatchBelowAutograd(), untouched(self.net) as changed, calls:
            images, weights = self.writer.stand_ins(like.new_empty(count, *self.input_shape, device="meta"))
            # A net may ask whether gradients are enabled.
            with holding(self.net, weights), torch.enable_grad(), self, self.writer:
                output = call(self.net, images)
        self.changed = changed
        self.writer.graph.output(pytree.tree_map_only(Tensor, self.writer.node, output))
        return Reading(count, self.writer.graph, self.writer.tensors)

    def _enter(self, path: str, _: object) -> None:
        self.running.append(path)
        self._tell()

    def _leave(self) -> None:
        self.running.pop()
        self._tell()

    def _tell(self) -> None:
        """Tell the writer who calls the operations that follow."""
        self.writer.path = self.running[-1] if self.running else ""
        self.writer.line = users_line()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._tell()
        if func is torch._C._set_grad_enabled:
            self.writer.graph.call_function(func, args)
        elif func == Tensor.device.__get__:  # a net may ask for it, and must not hear `meta`
            return self.writer.device
        return func(*args, **(kwargs or {}))


class _Writer(DispatchMode):
    """Writes each operation into `graph`, called by the module `path` from `line`, and runs it without numbers.

    The net is told that its tensors are on `device`, while they are on `meta`.
    """

    def __init__(self, device: torch.device, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.tensors = dict(tensors)
        self.graph = fx.Graph()
        self.path = ""
        self.line: tuple[str, int] | None = None
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the id of one of them

    def stand_ins(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Return `images` without numbers, and, by their `id`, what stands for the weights."""
        weights = {}
        for name, tensor in self.tensors.items():
            stand_in = torch.empty_like(tensor, device="meta", requires_grad=False)
            if isinstance(tensor, nn.Parameter):
                stand_in = nn.Parameter(stand_in, tensor.requires_grad)
            weights[id(tensor)] = stand_in
            self._note(self.graph.get_attr(name), stand_in)
        self._note(self.graph.placeholder("input"), images)
        return images, weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = (args, kwargs or {})
        node = self.graph.call_function(func, *pytree.tree_map_only((Tensor, torch.device), self._argument, called))
        output = _run(func, *called)
        self._note(node, output)
        return output

    def _note(self, node: fx.Node, output: Any) -> None:
        """Note that `node` gives `output`."""
        node.meta = {"path": self.path, "line": self.line, "val": pytree.tree_map_only(Tensor, _snapshot, output)}
        if isinstance(output, Tensor):
            self._nodes[id(output)] = node
            self._alive.append(output)
        elif isinstance(output, list | tuple):
            for index, part in enumerate(output):
                self._note(self.graph.call_function(operator.getitem, (node, index)), part)

    def _argument(self, value: Any) -> Any:
        """Return the node that gives a tensor, or the device that the net means where it says `meta`."""
        return self.node(value) if isinstance(value, Tensor) else self.device if value.type == "meta" else value

    def node(self, tensor: Tensor) -> fx.Node:
        """Return the node that gives `tensor`; one that the forward makes or keeps outside of its buffers is held."""
        if id(tensor) not in self._nodes:
            names = {id(held): name for name, held in self.tensors.items()}
            name = names.get(id(tensor), f"constant_{len(names)}")
            self.tensors.setdefault(name, tensor)
            self._note(self.graph.get_attr(name), tensor)
        return self._nodes[id(tensor)]


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation gives: a tensor without numbers if it reads one, or if the result would be large.

    A net may ask for the numbers of other tensors. Tensors that it keeps are never changed in place.
    """
    tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    fixed = not func._schema.is_mutable and not any(tensor.is_meta for tensor in tensors)
    if fixed and tensors:
        return func(*args, **kwargs)
    if func is torch.ops.aten._convolution.default:  # of traced modules; torch 2.11 cannot run it without numbers
        func, args = torch.ops.aten.convolution.default, args[:9]
    blank_args, blank_kwargs = pytree.tree_map_only((Tensor, torch.device), _without_numbers, (args, kwargs))
    output = pytree.tree_map_only(Tensor, _without_numbers, func(*blank_args, **blank_kwargs))
    small = fixed and all(value.numel() <= LARGE for value in pytree.tree_leaves(output) if isinstance(value, Tensor))
    return func(*args, **kwargs) if small else output


def _without_numbers(value: Any) -> Any:
    """Return a tensor, or a device, on `meta`."""
    return torch.device("meta") if isinstance(value, torch.device) else value if value.is_meta else value.to("meta")


def _snapshot(tensor: Tensor) -> Tensor:
    """Return a tensor without numbers as it is now: an operation in place may change its shape or type."""
    return (tensor if tensor.is_meta else tensor.to("meta")).detach()


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
            if name == "bernoulli_":  # in place it has another signature
                overload, node.args = "p", (changed, argument(node, 1, 0.5))
            functional = getattr(getattr(torch.ops.aten, name.rstrip("_"), None), overload, None)
            shared = changed not in images or _is_view(changed) or any(map(_is_view, changed.users))
            shared = shared and (op_name(node) not in DROPOUTS or argument(node, 2, True))  # in eval it changes nothing
            if functional is None or not name.endswith("_") or shared:
                obstacle = say(
                    "{name} changes a tensor in place that others see: write it without the underscore", name=name
                )
                continue
            node.target = functional
            later = {user for user in changed.users if order[user] > order[node]}
            changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    return obstacle


def _is_view(node: fx.Node) -> bool:
    """Return whether a node gives other tensors' memory: a view, or one part of a split."""
    return node.target is operator.getitem or (node.op == "call_function" and op_name(node) in VIEWS)

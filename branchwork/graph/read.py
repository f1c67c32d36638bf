"""A net as a graph that can be rewritten: torch's operations on images, with the weights of the net itself."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from branchwork.errors import NetError
from branchwork.graph.costs import VIEWS, operation
from branchwork.graph.teach import failure
from branchwork.graph.trace import quiet
from branchwork.graph.twin import blank
from branchwork.graph.untouched import holding, untouched
from branchwork.language import enumerated

SymSize = torch.ops.aten.sym_size.int

# A net is read with few images and with many. A number that differs between the two is the number of images, or some
# times that; a net that does something else for many has no one graph.
FEW, MANY = 2, 1009


def read_program(net: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """The graph of `net` in its present mode, for any number of images C×H×W, over the parameters of `net` themselves.

    The net is run twice on tensors without numbers. The first time in a process that takes less than half as long as
    `torch.export` with a dynamic shape, and saves most of a second of trainings that take eight (LOG.md). Raises
    `NetError` where the net fails on such images, or where its operations cannot be told beforehand.
    """
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.random.fork_rng(devices=[]), quiet():
        try:
            (few, changed), (many, _) = (_read(net, held, input_shape, count) for count in (FEW, MANY))
            outputs = len(pytree.tree_leaves(few.graph.output_node().args))
            module = _for_any_number(few, many, held)
        except Exception as reason:  # the net's own forward may raise anything, and so may what reads it
            raise failure(net, input_shape) or _unreadable(net, reason) from reason
    if outputs != 1:
        raise NetError(f"{type(net).__name__} gives {outputs} tensors, and one is needed: the logits")
    if net.training and changed:
        raise NetError(
            f"the forward of {type(net).__name__} changes {enumerated(changed)}, which its graph would not: train it "
            "with --execute written"
        )
    if not net.training:  # without `no_grad` within, of which the end would switch gradients on for whoever runs it
        for node in module.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled):
            module.graph.erase_node(node)
    _make_functional(module.graph)
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.view.default:  # which refuses what lies in memory with the channels last
            node.target = torch.ops.aten.reshape.default
    return module


def _read(
    net: nn.Module, held: Mapping[str, Tensor], input_shape: Sequence[int], count: int
) -> tuple[fx.GraphModule, list[str]]:
    """The graph of `net` for so many images, which takes what is `held`, in this order, and them.

    Also the names of what the forward changes of its own, as `untouched` has them.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    given = [mode.from_tensor(tensor, static_shapes=True) for tensor in held.values()]
    with mode:
        images = blank(net, count, input_shape)

    def run(given: Sequence[Tensor], images: Tensor) -> Any:
        with holding(net, dict(zip(map(id, held.values()), given, strict=True))):
            return net(images)

    with untouched(net) as changed, _knowing_modules(net):
        program = make_fx(run, pre_dispatch=True)(given, images)
    return program, changed


@contextmanager
def _knowing_modules(net: nn.Module) -> Iterator[None]:
    """Each operation that is read of `net` in here knows the modules that ran it, as `nn_module_stack`."""
    running: list[str] = []

    def tell() -> None:
        traceback.get_current_meta()["nn_module_stack"] = {path: (path, "") for path in running}

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            running.append(path)
            tell()

        return hook

    def leave(*_: Any) -> None:
        running.pop()
        tell()

    hooks = []
    for path, module in net.named_modules():
        hooks += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        with traceback.preserve_node_meta():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _for_any_number(few: fx.GraphModule, many: fx.GraphModule, held: Mapping[str, Tensor]) -> fx.GraphModule:
    """The one graph that both are of, over what is `held`. Raises `ValueError` where they are of two."""
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    partners = dict(zip(few.graph.nodes, many.graph.nodes, strict=False))
    constants = [dict(module.named_buffers()) for module in (few, many)]
    *weights, images = few.graph.find_nodes(op="placeholder")
    for weight, name in zip(weights, held, strict=True):
        known[weight] = graph.get_attr(name)
    known[images] = graph.placeholder("input")
    batch = graph.call_function(SymSize, (known[images], 0))

    def both(one: Any, other: Any) -> Any:
        """What is `one` with few images and `other` with many."""
        if isinstance(one, fx.Node) and partners[one] is other:
            return known[one]
        if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
            return [both(*pair) for pair in zip(one, other, strict=True)]
        if type(one) is type(other) and one == other:
            return one
        times = one // FEW if type(one) is type(other) is int else 0
        if not times or (one, other) != (times * FEW, times * MANY):
            raise ValueError(f"{one} with {FEW} images, {other} with {MANY}")
        return batch if times == 1 else graph.call_function(operator.mul, (batch, times))

    for one, other in partners.items():
        if one.op != other.op or str(one.target) != str(other.target) or one.kwargs.keys() != other.kwargs.keys():
            raise ValueError(f"{one.target} with {FEW} images, {other.target} with {MANY}")
        if one.op == "output":
            graph.output(known[pytree.tree_leaves(one.args)[0]])
        elif one.op == "get_attr":
            if not torch.equal(*(own[str(one.target)] for own in constants)):
                raise ValueError(f"another constant with {FEW} images than with {MANY}")
            known[one] = graph.get_attr(str(one.target))
        elif one.op != "placeholder":
            keywords = {key: both(value, other.kwargs[key]) for key, value in one.kwargs.items()}
            known[one] = graph.call_function(one.target, tuple(both(one.args, other.args)), keywords)
        if one in known:
            known[one].meta = other.meta  # no channels or pixels are so many, and taken for images
    if not batch.users:
        graph.erase_node(batch)
    return fx.GraphModule({**held, **constants[0]}, graph)


def _unreadable(net: nn.Module, reason: object) -> NetError:
    words = str(reason).strip().split("\n")[0]
    return NetError(
        f"{type(net).__name__} does not run the same operations on every batch of images, so its graph cannot be read "
        f"({words}): take branches on pixels out of its forward, and write x.size(0) for the number of images"
    )


def image_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose tensors hold something for each image, and not weights."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_tensor(node) and (node.op == "placeholder" or any(parent in found for parent in node.all_input_nodes)):
            found.add(node)
    return found


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """C×H×W or F of an image node: the shape without the batch."""
    return tuple(int(n) for n in node.meta["val"].shape[1:])


def size_of(node: fx.Node) -> tuple[int, int]:
    """Height and width; a vector is an image of one pixel."""
    shape = shape_of(node)
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)


def elements(node: fx.Node) -> int:
    return prod(shape_of(node))


def parents(node: fx.Node, images: set[fx.Node]) -> Iterator[fx.Node]:
    return (parent for parent in node.all_input_nodes if parent in images)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _make_functional(graph: fx.Graph) -> None:
    """Operations in place on images, such as `relu_`, become those that give a new tensor."""
    images = image_nodes(graph)
    for node in list(graph.nodes):
        target: Any = node.target
        if node not in images or node.op != "call_function" or not target._schema.is_mutable:
            continue
        changed = node.args[0]
        name = str(target).removeprefix("aten.").split(".")
        functional = getattr(torch.ops.aten, name[0].rstrip("_"), None)
        shared = changed not in images or _is_view(changed) or any(map(_is_view, changed.users))
        if functional is None or not name[0].endswith("_") or shared:
            raise NetError(f"{name[0]} changes a tensor in place that others see: write it without the underscore")
        node.target = getattr(functional, name[1])
        order = {other: index for index, other in enumerate(graph.nodes)}
        later = {user for user in changed.users if order[user] > order[node]}
        changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _is_view(node: fx.Node) -> bool:
    """Whether `node` gives other tensors' memory: a view, or one part of a split."""
    return node.target is operator.getitem or (node.op == "call_function" and operation(node) in VIEWS)

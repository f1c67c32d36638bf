"""Layers whose output nobody reads, such as `y = relu(conv1(x)); y = conv2(x)`: they run and train for nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from branchwork.errors import NetError
from branchwork.graph.affine import LAYERS, connected
from branchwork.graph.costs import argument, op_name
from branchwork.graph.mend import Mend, handed_on
from branchwork.graph.program import Graph, Shape, parents, shape_of
from branchwork.graph.read import read
from branchwork.language import say


@dataclass(frozen=True)
class Unread:
    """A layer whose output nobody reads, and the later one that was probably meant to, if any, by their names.

    `operations` are the names of all that runs in vain with it, and `place` is the user's line to look at, which `mend`
    puts right.
    """

    layer: str
    reader: str | None
    operations: tuple[str, ...]
    place: tuple[str, int] | None
    mend: Mend | None

    def __str__(self) -> str:
        if self.reader is None:
            return say("`{layer}`'s output is never used.", layer=self.layer)
        return say(
            "`{layer}`'s output is never used; did `{reader}` mean to read it?", layer=self.layer, reader=self.reader
        )


def unread_layers(graph: Graph) -> Iterator[Unread]:
    """Yield the layers of a net whose output nobody reads.

    There are none where that is in doubt: in a net that keeps something in its attributes, which may be the output,
    that changes tensors in place, or whose operations depend on the pixels.
    """
    if graph.obstacle is not None or graph.changed:
        return
    images, read = graph.image_nodes, set(graph.outputs)
    for node in reversed(graph.module.graph.nodes):
        if node in read:
            read.update(node.all_input_nodes)
    order = {node: index for index, node in enumerate(graph.module.graph.nodes)}
    unread = {node: None for node in graph.names if node in images and node not in read}
    for nodes in connected({node, *node.all_input_nodes} & unread.keys() for node in unread):
        part = sorted(nodes, key=order.__getitem__)
        layers = [node for node in part if op_name(node) in LAYERS]
        if not layers:
            continue
        end = part[-1]
        ahead = [parent for node in part for parent in parents(node, images) if parent in read]
        readers: list[fx.Node] = []
        for source in ahead:  # which grows
            for user in source.users:
                if user in read and op_name(user) in LAYERS:
                    readers.append(user)
                elif user in read and len([*parents(user, images)]) == 1:
                    ahead.append(user)
        fitting = [node for node in readers if order[node] > order[end] and _inputs(node) == _outputs(end)]
        reader = min(fitting, key=order.__getitem__, default=None)
        name = None if reader is None else graph.names[reader]
        made, place = end.meta.get("line"), (reader or layers[-1]).meta.get("line")
        yield Unread(
            layer=graph.names[layers[-1]],
            reader=name,
            operations=tuple(graph.names[node] for node in part),
            place=place,
            mend=handed_on(made, place, name.rpartition(".")[2]) if made and place and name else None,
        )


def unread_warnings(net: nn.Module, input_shape: Shape) -> list[str]:
    """Return a line for each of the user's lines that leaves an output unread when `net` trains on images C×H×W."""
    try:
        found = [*unread_layers(read(net, input_shape, train=True))]
    except NetError:  # it runs, as far as a training needs, but cannot be read
        return []
    lines = {unread.place or unread.layer: unread for unread in reversed(found)}  # the first of each line
    return [
        say("{message} ({file}, line {line})", message=unread, file=unread.place[0], line=unread.place[1])
        if unread.place
        else str(unread)
        for unread in reversed(lines.values())
    ]


def _inputs(layer: fx.Node) -> tuple[str, int]:
    weight: Any = layer.args[1]
    groups = argument(layer, 6, 1) if op_name(layer) == "conv2d" else 1
    return op_name(layer), int(weight.meta["val"].shape[1]) * groups


def _outputs(node: fx.Node) -> tuple[str, int]:
    """Return the kind of layer that could read a node, and how many inputs it would have."""
    shape = shape_of(node)
    return ("conv2d", shape[0]) if len(shape) == 3 else ("linear", shape[-1] if shape else 0)

"""Joins: where the branches of a net meet, in a concatenation or a sum, and what each branch consists of."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from torch import fx

from branchwork.graph.costs import op_name
from branchwork.graph.program import Graph, module_of


@dataclass(frozen=True)
class Branch:
    """One way into a join, by a name that no other branch of the join has.

    `nodes` are the names of its operations in order; a shortcut has none. `entries` are the nodes of the graph through
    which it enters the join: one, or several parts of one split tensor.
    """

    name: str
    nodes: tuple[str, ...]
    channels: int
    entries: tuple[fx.Node, ...] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Join:
    """A concatenation or a sum, by the name of its node, where branches that read the same input meet."""

    node: str
    branches: tuple[Branch, ...]


def joins_of(graph: Graph) -> Iterator[Join]:
    """Yield the joins of a net in order. What two branches share, such as the stem of two heads, belongs to neither.

    At least two of what meets depends on the images: a sum of images and a learned position is no join.
    """
    order = {name: index for index, name in enumerate(graph.nodes)}
    ancestors: dict[str, set[str]] = {"input": {"input"}}
    for name, node in list(graph.nodes.items())[1:]:
        entries: dict[str, list[fx.Node]] = {}
        for parent in node.all_input_nodes:
            source = graph.name(parent)
            if source is not None:
                entries.setdefault(source, []).append(parent)
        ancestors[name] = {name}.union(*(ancestors[source] for source in entries))
        of_images = [ancestors[source] for source in entries if "input" in ancestors[source]]
        if op_name(node) not in ("cat", "add") or len(of_images) < 2:
            continue
        shared = set.intersection(*of_images)
        branches: list[Branch] = []
        for source, nodes in entries.items():
            names = sorted(ancestors[source] - shared, key=order.__getitem__)
            label = _label(module_of(graph.net, node)[0], names, beside_shortcut=bool(shared & entries.keys()))
            same = sum(branch.name.partition("@")[0] == label for branch in branches)
            label = f"{label}@{same + 1}" if same else label
            shape = nodes[0].meta["shape"][1:]
            branches.append(Branch(label, tuple(names), shape[0] if shape else 0, tuple(nodes)))
        yield Join(name, tuple(branches))


def _label(path: str, names: Sequence[str], *, beside_shortcut: bool) -> str:
    """Return what the names of a branch have in common, as seen from the block at `path` that joins it.

    `b5` for `incep1.b5.conv1` and `incep1.b5.conv2`; `branch5x5` for `incep1.branch5x5_1` and `incep1.branch5x5_2`. If
    they have nothing in common, `residual` beside a shortcut, and elsewhere the last of them.
    """
    if not names:
        return "shortcut"
    parts = [name.removeprefix(f"{path}.").split(".") for name in names]

    def shared(sequences: Iterable[Sequence[str]]) -> list[str]:
        """Return what all of them begin with."""
        return [same[0] for same in takewhile(lambda same: len(set(same)) == 1, zip(*sequences, strict=False))]

    if modules := shared(parts):
        return ".".join(modules)
    firsts = [part[0] for part in parts]
    return "".join(shared(firsts)).rstrip("_") or ("residual" if beside_shortcut else firsts[-1])

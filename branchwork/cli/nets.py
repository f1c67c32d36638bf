"""branchwork nets"""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import deliver, make_table, show
from branchwork.cli.parameters import Json
from branchwork.language import say, times

if TYPE_CHECKING:
    from branchwork.nets.sizes import NetSize


def nets(
    *names: Annotated[str, Parameter(help="How the names begin, such as resnet or dense; by default all nets.")],
    json_file: Json = None,
) -> None:
    """List the nets of the catalogue with their parameters and MACs, each for the input that it was designed for."""
    import branchwork

    sizes = branchwork.list_nets(*names)
    deliver(sizes, json_file, lambda: _show(sizes))


def _show(sizes: "tuple[NetSize, ...]") -> None:
    table = make_table("net", "input", "classes", "parameters", "MACs per image")
    for size in sizes:
        table.add_row(
            size.name, times(size.input_shape), f"{size.num_classes:,}", f"{size.parameters:,}", f"{size.macs:,}"
        )
    show(
        table,
        say("Each net also accepts other image sizes and numbers of classes."),
        say("--stem small    for images of up to 96 pixels, where it is the default"),
        say("NET:norm=none,init=torch,width=8     nets for 32×32: no batch norm, PyTorch's initial weights, narrower"),
        say("residual:norm=batch,width=32         with batch norms, wider"),
        say("--shortcut …    identity, scale, conv, gated, gate-only, dropout or none, in resnet and preact nets"),
    )

"""branchwork nets"""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import Part, deliver, make_table, show
from branchwork.cli.parameters import Json
from branchwork.language import say, times

if TYPE_CHECKING:
    from branchwork.catalogue.sizes import NetSize


def nets(
    *names: Annotated[str, Parameter(help="How the names begin, such as resnet or dense; by default all nets.")],
    json_file: Json = None,
) -> None:
    """List the built-in nets with their parameters and MACs, each for the input that it was designed for."""
    import branchwork

    sizes = branchwork.nets(*names)
    deliver(sizes, json_file, lambda: show(*parts(sizes)))


def parts(sizes: "tuple[NetSize, ...]") -> list[Part]:
    table = make_table("net", "input", "classes", "parameters", "MACs per image", spare=("classes", "input"))
    for size in sizes:
        table.add_row(
            size.name, times(size.input_shape), f"{size.num_classes:,}", f"{size.parameters:,}", f"{size.macs:,}"
        )
    options = make_table("option", "what it does")
    options.columns[1].justify, options.columns[1].no_wrap = "left", False
    for option, words in (
        ("--stem small", say("for images of up to 96 pixels, where it is the default")),
        ("NET:norm=none", say("nets for 32×32: no batch norm")),
        ("NET:init=torch", say("nets for 32×32: PyTorch's initial weights")),
        ("NET:width=32", say("nets for 32×32: 4, 8, 16, 32 or 64 channels in the first stage")),
        ("residual:norm=batch,width=32", say("with batch norms, wider")),
        (
            "--shortcut …",
            say("identity, scale, conv, gated, gate-only, dropout or none, in resnet and preact nets"),
        ),
        (
            "--weights imagenet",
            say("published weights, for googlenet:b5=3x3, resnet18 to resnet152 and densenet121 to densenet201"),
        ),
    ):
        options.add_row(option, words)
    return [
        table,
        say("Each net also accepts other image sizes and numbers of classes."),
        options,
    ]

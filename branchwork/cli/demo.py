"""branchwork demo"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from branchwork.cli.output import deliver, result_parts, show
from branchwork.cli.parameters import DATA, Json


def demo(
    *,
    data: Annotated[str, Parameter(help=f"{DATA}: MNIST if it can be fetched.")] = "auto",
    out: Annotated[Path, Parameter(help="The folder of the runs.")] = Path("runs/demo"),
    json_file: Json = None,
) -> None:
    """Train both of the lecture's nets with the default recipe and compare them."""
    import branchwork

    results = branchwork.demo(data, out=out, progress=True)
    deliver(results, json_file, lambda: show(*result_parts(results)))

"""branchwork ui"""

import time
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from branchwork.cli.output import show
from branchwork.cli.parameters import Source
from branchwork.language import say


def ui(
    run: Annotated[Path, Parameter(help="A run folder made by branchwork train, or a folder of runs.")],
    beside: Annotated[Path | None, Parameter(help="A second run, shown beside the first on the same picture.")] = None,
    /,
    *,
    port: Annotated[int, Parameter(help="The port on this machine; by default one that is free.")] = 0,
    browser: Annotated[bool, Parameter(help="Open the page in the browser.")] = True,
    source: Source = None,
) -> None:
    """Open the page of a run: draw a digit, and watch it run through every branch of the net. Ctrl-C ends it.

    Only this machine can open it. branchwork export RUN --to html writes the same page as one file.
    """
    import branchwork

    with branchwork.ui(run, beside, port=port, source=source, progress=True) as server:
        show(say("the page of {run} is at {address} (Ctrl-C ends it)", run=run, address=server.address))
        if browser:
            webbrowser.open(server.address)
        while True:
            time.sleep(3600)  # on Windows, Ctrl-C would not interrupt a wait

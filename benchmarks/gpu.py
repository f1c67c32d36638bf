"""python -m benchmarks gpu --json FILE: all that is to be measured on a GPU, the most important first.

Each row is a process of its own that has a time limit and writes each figure as it comes. What could not be measured is
in the file with the reason and its traceback. benchmarks/gpu_rows.py says what the rows do.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from benchmarks.measure import ROOT, place
from branchwork.cli.output import Table, show
from branchwork.files import write_json

# What each row measures, and its share of the time that is left to it and the rows after it: with 12 minutes, its share
# in seconds is the least that it gets. The second row tells what is broken, if something is, before the long ones.
ROWS = {
    "residual": ("G1: residual to 99.0% on MNIST", 80),
    "tests": ("G7: the tests that need a GPU", 110),
    "inception": ("G2: inception to 98.7% on MNIST", 60),
    "resnet50": ("G3: ResNet-50 at 224, batch 256, against best practice in torch", 130),
    "googlenet": ("G3: GoogLeNet at 224, batch 256, against best practice in torch", 130),
    "cifar": ("G4: CIFAR-10, against airbench94", 100),
    "pack": ("G5: ResNet-18 at 224 from a pack, against images in memory", 60),
    "verbs": ("G6: evaluate and explain, against the CPU", 50),
}
GpuRow = Literal["residual", "tests", "inception", "resnet50", "googlenet", "cifar", "pack", "verbs"]
OUT_OF_TIME = "out of time"
# How many of the last lines that a failed row printed are kept.
KEPT_LINES = 80


def measure_row(words: list[str], seconds: float, keep: Any) -> dict[str, Any]:
    """Run a row in a process of its own for at most `seconds`, and return its figures; `keep` is given them meanwhile.

    If it fails or runs out of time, the figures that it had until then are returned with the reason and, as `printed`,
    the last lines of its output: the traceback, or where it stood.
    """
    began, found = monotonic(), dict[str, Any](figures=[], notes=[])
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output,
    ):
        path = Path(folder) / "figures.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_rows", *words, "--folder", folder, "--json", str(path)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        left = seconds
        try:
            while process.returncode is None and left > 0:
                left = began + seconds - monotonic()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, min(2.0, left)))
                if path.exists():
                    found = json.loads(path.read_text(encoding="utf-8"))
                keep(found)
            if process.returncode is None:
                process.send_signal(signal.SIGUSR1)  # by which it says where it stands
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
        if process.returncode:
            output.seek(0)
            lines = output.read().strip().splitlines()[-KEPT_LINES:]
            reason = lines[-1] if lines else f"exit code {process.returncode}"
            late = f"{OUT_OF_TIME} after {seconds:.0f} s"
            return found | {"failed": late if left <= 0 else reason, "printed": lines}
    return found


def is_met(figure: Mapping[str, Any]) -> bool | None:
    """Return whether a figure reaches its aim; None if it has none."""
    least, most, value = figure.get("at_least"), figure.get("at_most"), figure["value"]
    if least is None and most is None:
        return None
    return (least is None or value >= least) and (most is None or value <= most)


def table(results: Mapping[str, Any]) -> Table:
    shown = Table("measured", "figure", "unit", "aim", "met", title=results["place"]["machine"], title_justify="left")
    for row in results["rows"].values():
        shown.add_section()
        shown.add_row(row["what"])
        for figure in row.get("figures", ()):
            aims = [f"{sign} {figure[key]:g}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if key in figure]
            met = {True: "yes", False: "no", None: ""}[None if results["tiny"] else is_met(figure)]
            shown.add_row(f"  {figure['name']}", f"{figure['value']:,.4g}", figure["unit"], " ".join(aims), met)
        for note in row.get("notes", ()):
            first = note.partition("\n")[0]
            shown.add_row(f"  {first[:200]}")
        if "failed" in row:
            shown.add_row(f"  not measured, or not to the end: {row['failed']}")
    return shown


def gpu(
    *,
    json_file: Annotated[Path, Parameter(name="--json", help="The file of results, written after each figure.")],
    minutes: Annotated[float, Parameter(validator=Number(gt=0), help="Stop after this time.")] = 12.0,
    only: Annotated[tuple[GpuRow, ...], Parameter(negative="", help="Only this row; may be given several times.")] = (),
    cifar: Annotated[
        Path | None, Parameter(help="CIFAR-10 as pictures: a folder with train/ and test/, or a .tar.* of them.")
    ] = None,
    tiny: Annotated[
        bool, Parameter(negative="", help="Try every row on the CPU, with tiny nets and data: no figure counts.")
    ] = False,
) -> int:
    """Measure on a GPU: trainings to an accuracy, steps at 224 pixels, CIFAR-10, packs, and the tests that need one."""
    began, console = monotonic(), Console(stderr=True, highlight=False, soft_wrap=True)
    where = place()
    if where["gpu"] is None and not tiny:
        console.print("torch finds no GPU here, so there is nothing to measure. --tiny tries the rows on the CPU.")
        return 2
    results: dict[str, Any] = {
        "command": f"python -m benchmarks {' '.join(sys.argv[1:])}", "place": where, "tiny": tiny,
        "started": datetime.now(UTC).isoformat(timespec="seconds"), "rows": {},
    }  # fmt: skip
    names = list(only or ROWS)
    for number, name in enumerate(names):
        what, share = ROWS[name]
        row = results["rows"][name] = {"what": what}
        started = monotonic()
        left = 60 * minutes - (started - began)
        most = left * share / sum(ROWS[each][1] for each in names[number:])
        words = [name, *(["--tiny"] if tiny else []), *(["--cifar", str(cifar.resolve())] if cifar else [])]

        def keep(found: Mapping[str, Any], row: dict[str, Any] = row) -> None:
            if any(row.get(key) != value for key, value in found.items()):
                row.update(found)
                write_json(json_file, results)

        with console.status(f"{what}, at most {most:.0f} s"):
            found = measure_row(words, most, keep) if left > 0 else {"failed": OUT_OF_TIME}
        keep(found | {"seconds": round(monotonic() - started, 1)})
        console.print(f"{what}: {found.get('failed', 'measured')}", markup=False)
    show(table(results), f"results: {json_file}")
    return 0

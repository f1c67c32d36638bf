"""branchwork bench"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from branchwork.cli.output import Part, deliver, drawn_beside, make_table, show, where_drawn
from branchwork.cli.parameters import SEVERAL, AnyNet, Json, Threads, parse_image_shape
from branchwork.language import milliseconds, say

if TYPE_CHECKING:
    from branchwork.deploy.bench_result import Bench, Timing


@dataclass(frozen=True)
class OptionFlags:
    """The flags of `BenchOptions`."""

    batch_sizes: Annotated[
        tuple[int, ...],
        SEVERAL,
        Parameter(help="Batch sizes, such as --batch-sizes 1 32."),
    ] = (1, 32, 256)
    engines: Annotated[
        tuple[str, ...] | None,
        SEVERAL,
        Parameter(help="Some of torch, torch.compile, onnxruntime and openvino; by default all that are installed."),
    ] = None
    precisions: Annotated[
        tuple[Literal["fp32", "bf16", "int8"], ...] | None,
        SEVERAL,
        Parameter(help="Some of fp32, bf16 and int8; by default fp32, and bf16 if the processor has it."),
    ] = None
    seconds: Annotated[
        float, Parameter(help="Time for each engine, precision and batch size, as written and fused.")
    ] = 1.0
    loads: Annotated[
        int,
        Parameter(
            help="How many times each engine loads the net: its place in memory changes the time by a few percent."
        ),
    ] = 1
    threads: Threads = None


def bench(
    net: AnyNet,
    /,
    *,
    options: Annotated[OptionFlags, Parameter(name="*")] = OptionFlags(),
    input_size: Annotated[
        str | None, Parameter(name="--input", help="Channels, height and width, such as 3x32x32; by default the run's.")
    ] = None,
    draw: Annotated[
        Path | None, Parameter(help="Draw the times into this file, .svg or .png; for a run, by default RUN/bench.svg.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Time a net in each inference engine on this machine, as written and fused, in each precision and batch size."""
    import branchwork
    from branchwork.deploy.bench import BenchOptions

    draw, left_out = (draw, []) if draw else drawn_beside(Path(net), "bench.svg")
    result = branchwork.bench(
        net,
        options=BenchOptions(**vars(options)),
        input_shape=None if input_size is None else parse_image_shape(input_size, "--input"),
        draw=draw,
        progress=True,
    )
    deliver(result, json_file, lambda: show(*parts(result, draw), *left_out))


def parts(result: "Bench", draw: Path | None = None) -> list[Part]:
    from branchwork.deploy.bench_result import bench_title, engine_words

    table = make_table(
        "engine", "", "net", "batch", "ms", "quartiles", "images/s", "GMAC/s", "of peak", "off by", "kB",
        title=bench_title(result), spare=("of peak", "GMAC/s", "kB", "off by", "quartiles"),
    )  # fmt: skip
    table.columns[1].justify = table.columns[2].justify = "left"
    for size in dict.fromkeys(row.batch for row in result.rows):
        for row in result.rows:
            if row.batch == size:
                table.add_row(*_cells(row))
        table.add_section()
    ceilings = ", ".join(f"{kind} {speed / 1e9:,.1f} GMAC/s" for kind, speed in result.ceilings.items())
    untimed = {engine.name: engine.problem for engine in result.engines if engine.problem is not None}
    fast, wide = result.latency, result.throughput
    return [
        table,
        say(
            "peak of this machine (a large product): {ceilings}; MACs are those of the net as written, even if it is "
            "fused",
            ceilings=ceilings,
        ),
        *(say("{engine} is not timed: {problem}", engine=name, problem=problem) for name, problem in untimed.items()),
        say(
            "for latency, {batch} at a time: {engine}, {milliseconds} ms",
            batch=fast.batch,
            engine=engine_words(fast.engine, fast.precision, fused=fast.fused),
            milliseconds=milliseconds(fast.milliseconds),
        ),
        say(
            "for throughput: {engine}, {batch:,} at a time, {rate:,.0f} images/s",
            batch=wide.batch,
            engine=engine_words(wide.engine, wide.precision, fused=wide.fused),
            rate=wide.images_per_second,
        ),
        *where_drawn("drawn: {file}", draw),
    ]


def _cells(row: "Timing") -> tuple[str, ...]:
    return (
        row.engine,
        row.precision,
        say("fused") if row.fused else say("as written"),
        f"{row.batch:,}",
        milliseconds(row.milliseconds),
        "–".join(map(milliseconds, row.quartiles)),
        f"{row.images_per_second:,.0f}",
        f"{row.macs_per_second / 1e9:,.1f}",
        "" if row.share is None else f"{row.share:.0%}",
        f"{row.difference:.1g}",
        "" if row.bytes is None else f"{row.bytes / 1000:,.0f}",
    )

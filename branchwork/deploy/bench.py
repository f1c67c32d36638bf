"""The verb `bench`: how fast each engine runs a net on this machine, as written and fused."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from branchwork.deploy.bench_result import Bench, Timing, draw_bench, engine_words
from branchwork.deploy.engines import Engine, Precision, Runner, compare, find_engines, find_package, load, need_engine
from branchwork.deploy.formats import BY_ENGINE, write
from branchwork.deploy.quantise import quantise, save_int8
from branchwork.deploy.shipped import Deployable, ExportOptions, ImageShape, find_deployable, ship
from branchwork.errors import EngineError, first_line
from branchwork.figures import check_drawing, legible
from branchwork.files import temporary_folder
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.training.infer import DTYPES, predict_logits
from branchwork.training.machine import commit, machine, using_threads, versions
from branchwork.training.options import check_threads

Key = TypeVar("Key")

ROUNDS = 5
# The threads of an engine spin for some milliseconds after a run and would slow down the next engine.
SETTLE = 0.01
# The most images of noise that calibrate int8.
CALIBRATION = 16
# The side of the matrices that measure the machine's ceiling: large enough for the processor's full speed.
SIDE = 1024


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What `bench` times, and for how long. Raises `EngineError` for an impossible value.

    `engines` and `precisions` are by default all that this machine has, but for `int8`, which takes the longest to
    prepare; `threads` is by default torch's number. Each combination is timed for `seconds`, shared by `loads` loads of
    the net: where a net lies in memory changes its time by a few hundredths.
    """

    batch_sizes: Sequence[int] = (1, 32, 256)
    engines: Sequence[str] | None = None
    precisions: Sequence[Precision] | None = None
    seconds: float = 1.0
    loads: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        counts = (*self.batch_sizes, self.loads, 1 if self.threads is None else self.threads)
        if not self.batch_sizes or min(counts) < 1 or not self.seconds > 0:
            raise EngineError("batch sizes, loads and threads must be at least 1, and seconds above 0")
        check_threads(self.threads, EngineError)


@dataclass(frozen=True)
class Contender:
    """One way to run the net."""

    engine: str
    precision: Precision
    fused: bool

    def __str__(self) -> str:
        return engine_words(self.engine, self.precision, fused=self.fused)


def bench(
    net: str | Path | nn.Module,
    *,
    options: BenchOptions | None = None,
    input_shape: ImageShape | None = None,
    draw: Path | None = None,
    progress: bool | Observer = False,
) -> Bench:
    """Time `net` on this machine: each engine, precision and batch size, as written and fused, in turns.

    `net` is a run folder, a name in `NETS`, a script's `file.py:Class` or a module. Images are uint8 noise of
    `input_shape`, by default that of the run or the net, or 1×28×28. With `draw`, the times are drawn into that
    file.

    Raises `EngineError` if a named engine or precision is missing, and if an engine's float32 logits are not those of
    the net as written.
    """
    options, observer = options or BenchOptions(), watch(progress)
    chosen, kinds = _choose(options)
    subject = find_deployable(net, input_shape=input_shape)
    if draw is not None:
        check_drawing(draw, EngineError)
    subject.need_fixed_graph()
    contenders = [
        Contender(engine.name, precision, fused)
        for engine in chosen
        if engine.problem is None
        for precision in engine.precisions
        if precision in kinds
        for fused in (False, True)
    ]
    with using_threads(options.threads or torch.get_num_threads()):
        rows, ceilings = _measure(subject, contenders, options=options, observer=observer)
        smallest = min(options.batch_sizes)
        result = Bench(
            net=subject.name,
            input_shape=subject.input_shape,
            parameters=subject.trace.parameters,
            macs=subject.trace.macs,
            threads=torch.get_num_threads(),
            seconds=options.seconds,
            loads=options.loads,
            engines=chosen,
            ceilings=ceilings,
            rows=rows,
            latency=min((row for row in rows if row.batch == smallest), key=lambda row: row.milliseconds),
            throughput=max(rows, key=lambda row: row.images_per_second),
            machine=machine(),
            versions=versions(),
            commit=commit(),
        )
    if draw is not None:
        with legible(draw):
            draw_bench(result, draw)
    return result


def _choose(options: BenchOptions) -> tuple[tuple[Engine, ...], tuple[str, ...]]:
    """Return the engines and the precisions. Unusable engines are included unless engines are named."""
    names, precisions = options.engines, options.precisions
    if names is None:
        engines = tuple(map(_with_exporter, find_engines()))
    else:
        engines = tuple(_with_exporter(need_engine(name, "fp32")) for name in dict.fromkeys(names))
        for problem in (engine.problem for engine in engines if engine.problem is not None):
            raise EngineError(problem)
    if not engines or (precisions is not None and not precisions):
        raise EngineError("no engine or no precision is given: leave the flag out to time all that are installed")
    for precision in precisions or ():
        if not any(precision in engine.precisions for engine in engines if engine.problem is None):
            need_engine(engines[0].name, precision)  # raises the reason
    return engines, tuple(precisions or DTYPES)  # int8 only where it is asked for


def _with_exporter(engine: Engine) -> Engine:
    """Add the problem that the packages which write the engine's files have, if any."""
    packages = BY_ENGINE[engine.name].packages if engine.name in BY_ENGINE else ()
    problems = [problem for problem in (find_package(package)[1] for package in packages) if problem is not None]
    return dataclasses.replace(engine, problem=engine.problem or problems[0]) if problems else engine


def _measure(
    subject: Deployable, contenders: Sequence[Contender], *, options: BenchOptions, observer: Observer
) -> tuple[tuple[Timing, ...], dict[str, float]]:
    """Return a row for each contender and batch size, and the ceilings."""
    sizes = tuple(dict.fromkeys(options.batch_sizes))
    shape = (max(sizes), *subject.input_shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = predict_logits(subject.net, images, subject.model)
    runs: dict[tuple[Contender, int, int] | str, Callable[[], object]] = {}
    differences, file_bytes = {}, {}
    with temporary_folder() as folder:
        for contender in contenders:
            observer.note(say("preparing {contender}", contender=contender))
            runners: list[Runner] = []
            for size in sizes:
                if not runners or contender.fused:  # which fused net is cheapest depends on the batch size
                    prepared = _prepare(contender, subject, folder, batch=size, images=images[:CALIBRATION])
                    runners = [load(contender.engine, prepared, contender.precision) for _ in range(options.loads)]
                file_bytes[contender, size] = _size(contender, prepared)
                differences[contender, size] = _check(contender, runners[0], images[:size], expected=expected[:size])
                for number, runner in enumerate(runners):
                    runs[contender, size, number] = partial(runner.run, runner.take(images[:size]))
        kinds = dict.fromkeys(contender.precision for contender in contenders if contender.precision in DTYPES)
        products = {kind: matrix_product(DTYPES[kind]) for kind in kinds}
        runs |= {kind: product for kind, (product, _) in products.items()}
        observer.note(
            say(
                "timing {differences} combinations, {seconds:g} s each",
                differences=len(differences),
                seconds=options.seconds,
            )
        )
        times = take_turns(runs, options.seconds / options.loads)
    # The best run, not the median: a ceiling is what the machine can do undisturbed.
    ceilings: dict[str, float] = {kind: macs / min(times[kind]) for kind, (_, macs) in products.items()}
    rows = []
    for contender, size in differences:
        of_loads = list(chain.from_iterable(times[contender, size, number] for number in range(options.loads)))
        lower, median, upper = statistics.quantiles(of_loads, n=4, method="inclusive")
        speed = size * subject.trace.macs / median
        rows.append(
            Timing(
                **vars(contender),
                batch=size,
                milliseconds=1e3 * median,
                quartiles=(1e3 * lower, 1e3 * upper),
                runs=len(of_loads),
                images_per_second=size / median,
                macs_per_second=speed,
                share=speed / ceilings[contender.precision] if contender.precision in ceilings else None,
                difference=differences[contender, size],
                bytes=file_bytes[contender, size],
            )
        )
    return tuple(rows), ceilings


def _prepare(
    contender: Contender, subject: Deployable, folder: Path, *, batch: int, images: Tensor
) -> Path | nn.Module:
    """Return what `export` would write for such batches; for torch's engines, the module itself.

    int8 is calibrated on `images`: which they are changes the logits, but not the time.
    """
    options = ExportOptions(fuse=contender.fused, precision=contender.precision, batch_size=batch)
    file_format = BY_ENGINE.get(contender.engine)
    if file_format is None or not file_format.packages:
        return ship(subject, options)
    # Only a fused file depends on the precision: engines read float32.
    stem = f"{options.float_precision}-{batch}" if contender.fused else "written"
    path = folder / f"{contender.engine}-{stem}{file_format.suffixes[-1]}"
    if not path.exists():
        write(path, subject, to=file_format.name, options=options, metadata={})
    if contender.precision != "int8":
        return path
    model = quantise(path, to=file_format.name, images=images)
    path = path.with_stem(f"{path.stem}-int8")
    save_int8(model, path, to=file_format.name, metadata={})
    return path


def _size(contender: Contender, prepared: Path | nn.Module) -> int | None:
    """Return the bytes of a file, and of the one that belongs to it; None for a module."""
    if isinstance(prepared, nn.Module):
        return None
    return sum(prepared.with_suffix(suffix).stat().st_size for suffix in BY_ENGINE[contender.engine].suffixes)


def _check(contender: Contender, runner: Runner, images: Tensor, *, expected: Tensor) -> float:
    """Return the largest difference of a logit. Raises `EngineError` if the engine fails or is wrong in float32."""
    try:
        logits = runner(images)
    except Exception as reason:  # each engine has its own errors
        raise EngineError(
            "{contender} fails with {images} images ({reason}): leave this engine out, with --engines",
            contender=contender,
            images=len(images),
            reason=first_line(reason),
        ) from reason
    comparison = compare(logits, expected, contender.precision)
    if contender.precision == "fp32" and not comparison.good:
        raise EngineError(
            "{contender}: its logits differ from those of the net as written by up to {difference:.2g} on "
            "{images} images, but at most {tolerance:.2g} is allowed. Leave this engine "
            "out, with --engines",
            contender=contender,
            difference=comparison.difference,
            images=len(images),
            tolerance=comparison.tolerance,
        )
    return comparison.difference


def take_turns(contenders: Mapping[Key, Callable[[], object]], seconds: float) -> dict[Key, list[float]]:
    """Return the seconds of each run of each contender.

    Candidates take turns in `ROUNDS` rounds, forwards and backwards, so that a machine whose speed drifts treats all
    alike. Each runs for `seconds` in all, and at least once per round. The first runs of a turn do not count, unless a
    single one takes longer than the turn.
    """
    times: dict[Key, list[float]] = {key: [] for key in contenders}
    order: Sequence[Key] = list(contenders)
    for _ in range(ROUNDS):
        for key in order:
            times[key] += _turn(contenders[key], seconds / ROUNDS)
        order = order[::-1]
    return times


def _turn(run: Callable[[], object], seconds: float) -> list[float]:
    first = _time(run)
    if first > max(seconds, SETTLE):
        return [first]
    settled = first
    while settled < SETTLE:
        settled += _time(run)
    times: list[float] = []
    began = time.perf_counter()
    while not times or time.perf_counter() - began < seconds:
        times.append(_time(run))
    return times


def _time(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """Return a product of two square matrices, which measures the machine's ceiling, and its MACs."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out), SIDE**3

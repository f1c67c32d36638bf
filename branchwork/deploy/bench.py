"""The verb `bench`: how fast each engine runs a net on this machine, as written and fused."""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from branchwork.deploy.draw import check_picture, draw_bench
from branchwork.deploy.engines import Engine, Runner, find_engines, find_package, load, need_engine
from branchwork.deploy.figures import Bench, Timing
from branchwork.deploy.formats import FORMS, write
from branchwork.deploy.subject import Shape, Shipping, Subject, find_subject, ship
from branchwork.deploy.timing import matrix_product, take_turns
from branchwork.deploy.verify import compare
from branchwork.errors import EngineError, first_line
from branchwork.observer import Observer
from branchwork.training.infer import DTYPES, predict_logits
from branchwork.training.machine import check_threads, commit, machine, using_threads, versions


@dataclass(frozen=True)
class Candidate:
    """One way to run the net."""

    engine: str
    precision: str
    fused: bool

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}, {'fused' if self.fused else 'as written'}"


def bench(
    net: str | Path | nn.Module,
    *,
    batch_sizes: Sequence[int] = (1, 32, 256),
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    seconds: float = 1.0,
    loads: int = 1,
    threads: int | None = None,
    input_shape: Shape | None = None,
    picture: Path | None = None,
    observer: Observer | None = None,
) -> Bench:
    """Time `net` on this machine: each engine, precision and batch size, as written and fused, in turns.

    `net` is a run folder, a name in `NETS`, a script's `file.py:Class` or a module; images are uint8 noise of
    `input_shape`, by default what a run was trained on, or 1×28×28. `engines` and `precisions` are by default all that
    are here. Each is timed for `seconds` at each batch size, with `threads`, by default as many as torch has; an engine
    loads the net `loads` times, which share the seconds, since where a net lies in memory makes some hundredths of its
    time. With `picture`, the times are drawn into that file, `.svg` or `.png`. Raises `EngineError` for an engine or a
    precision that is asked for and not here, and for an engine that gives other logits in float32 than the net as
    written.
    """
    observer = observer or Observer()
    sizes = tuple(dict.fromkeys(batch_sizes))
    if not sizes or min(sizes) < 1 or not seconds > 0 or loads < 1 or (threads is not None and threads < 1):
        raise EngineError("there must be one batch size at least, and batch sizes, seconds, loads and threads above 0")
    check_threads(threads, EngineError)
    if picture is not None:
        check_picture(picture)
    found, kinds = _choose(engines, precisions)
    subject = find_subject(net, shape=input_shape)
    with using_threads(threads or torch.get_num_threads()):
        rows, ceilings = _rows(subject, _candidates(found, kinds), sizes, seconds, loads, observer)
        result = Bench(
            net=subject.name,
            input_shape=subject.shape,
            parameters=subject.trace.parameters,
            macs=subject.trace.macs,
            threads=torch.get_num_threads(),
            seconds=seconds,
            loads=loads,
            engines=found,
            ceilings=ceilings,
            rows=rows,
            latency=min((row for row in rows if row.batch == min(sizes)), key=lambda row: row.milliseconds),
            throughput=max(rows, key=lambda row: row.images_per_second),
            machine=machine(),
            versions=versions(),
            commit=commit(),
        )
    if picture is not None:
        draw_bench(result, picture)
    return result


def _choose(
    names: Sequence[str] | None, precisions: Sequence[str] | None
) -> tuple[tuple[Engine, ...], tuple[str, ...]]:
    """The engines, with those too that cannot be used where none was asked for by name, and the precisions."""
    if names is None:
        engines = tuple(map(_with_exporter, find_engines()))
    else:
        engines = tuple(_with_exporter(need_engine(name, "fp32")) for name in dict.fromkeys(names))
        for problem in (engine.problem for engine in engines if engine.problem is not None):
            raise EngineError(problem)
    if not engines or (precisions is not None and not precisions):
        raise EngineError("no engine or no precision is named: leave the flag out to time all that are here")
    for precision in precisions or ():
        if not any(precision in engine.precisions for engine in engines if engine.problem is None):
            need_engine(engines[0].name, precision)  # says why
    return engines, tuple(precisions or DTYPES)


def _with_exporter(engine: Engine) -> Engine:
    """An engine that reads files is of no use here without what writes them."""
    packages = next((form.packages for form in FORMS.values() if form.engine == engine.name), ())
    problems = [problem for problem in (find_package(package)[1] for package in packages) if problem is not None]
    return dataclasses.replace(engine, problem=engine.problem or problems[0]) if problems else engine


def _candidates(engines: Sequence[Engine], precisions: Sequence[str]) -> list[Candidate]:
    return [
        Candidate(engine.name, precision, fused)
        for engine in engines
        if engine.problem is None
        for precision in engine.precisions
        if precision in precisions
        for fused in (False, True)
    ]


def _rows(
    subject: Subject,
    candidates: Sequence[Candidate],
    sizes: Sequence[int],
    seconds: float,
    loads: int,
    observer: Observer,
) -> tuple[tuple[Timing, ...], dict[str, float]]:
    """A row for each candidate and batch size, and the ceilings."""
    shape = (max(sizes), *subject.shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = predict_logits(subject.net, images, subject.model)
    turns: dict[tuple[Candidate, int, int], Callable[[], object]] = {}
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        for candidate in candidates:
            observer.note(f"preparing {candidate}")
            runners: list[Runner] = []
            for size in sizes:
                if not runners or candidate.fused:  # what is cheapest depends on how many images there are
                    what = _prepare(candidate, size, subject, Path(folder))
                    runners = [load(candidate.engine, what, candidate.precision) for _ in range(loads)]
                differences[candidate, size] = _check(candidate, runners[0], images[:size], expected[:size])
                for number, runner in enumerate(runners):
                    turns[candidate, size, number] = partial(runner.run, runner.take(images[:size]))
        products = {kind: matrix_product(DTYPES[kind]) for kind in dict.fromkeys(c.precision for c in candidates)}
        observer.note(f"timing {len(differences)} combinations, {seconds:g} s each")
        times = take_turns({**turns, **{kind: product for kind, (product, _) in products.items()}}, seconds / loads)
    # The best run and not the median: a ceiling is what the machine can do when nothing holds it up.
    ceilings = {kind: macs / min(times[kind]) for kind, (_, macs) in products.items()}
    rows = tuple(
        _timing(
            candidate,
            size,
            list(chain.from_iterable(times[candidate, size, number] for number in range(loads))),
            subject.trace.macs,
            ceilings,
            differences[candidate, size],
        )
        for candidate in candidates
        for size in sizes
    )
    return rows, ceilings


def _prepare(candidate: Candidate, batch: int, subject: Subject, folder: Path) -> Path | nn.Module:
    """What `export` would give the engine for such batches; torch's own get the module itself."""
    shipping = Shipping(candidate.fused, candidate.precision, batch=batch)
    form = next((form for form in FORMS.values() if form.engine == candidate.engine), None)
    if form is None or not form.packages:
        return ship(subject, shipping)
    # Only a fused file depends on the precision: engines read float32.
    kind = f"{candidate.precision}-{batch}" if candidate.fused else "written"
    path = folder / f"{candidate.engine}-{kind}{form.suffixes[-1]}"
    if not path.exists():
        write(form.name, path, subject, shipping, about={})
    return path


def _check(candidate: Candidate, runner: Runner, images: Tensor, expected: Tensor) -> float:
    """The largest difference of a logit. What is fast and wrong is not timed."""
    try:
        logits = runner(images)
    except Exception as reason:  # each engine has errors of its own
        raise EngineError(
            f"{candidate} fails with {len(images)} images ({first_line(reason)}): leave this engine out, with --engines"
        ) from reason
    compared = compare(logits, expected, candidate.precision)
    if candidate.precision == "fp32" and not compared.good:
        raise EngineError(
            f"{candidate} gives other logits than the net as written: with {len(images)} images they differ by up to "
            f"{compared.difference:.2g}, and {compared.tolerance:.2g} may be. Leave this engine out, with --engines"
        )
    return compared.difference


def _timing(
    candidate: Candidate,
    batch: int,
    times: Sequence[float],
    macs: int,
    ceilings: Mapping[str, float],
    difference: float,
) -> Timing:
    lower, middle, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(
        engine=candidate.engine,
        precision=candidate.precision,
        fused=candidate.fused,
        batch=batch,
        milliseconds=1e3 * middle,
        quartiles=(1e3 * lower, 1e3 * upper),
        runs=len(times),
        images_per_second=batch / middle,
        macs_per_second=batch * macs / middle,
        share=batch * macs / middle / ceilings[candidate.precision],
        difference=difference,
    )

"""What `make bench` compares with, and its arithmetic. Nothing here measures time."""

import json
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, in_a_process
from PIL import Image
from rich.console import Console
from torch import nn

import branchwork
from benchmarks import __main__ as bench
from benchmarks import gpu, gpu_rows, inference, lecture, public, publish, results, step, tables
from benchmarks.measure import Measurement, MeasuringError, Settings, run_process, words_of
from benchmarks.process import Outcome
from benchmarks.rows import CANDIDATES, GOALS, PROBES
from benchmarks.summary import Spread, compare_with_goals, summarise
from branchwork.datasets.batches import normalise
from branchwork.graph.costs import count_parameters

CPU = torch.device("cpu")


def measurement(candidate="residual-target", seed=0, seconds=4.0, accuracy=0.991, **others):
    about = CANDIDATES[candidate]
    fields = {
        "candidate": candidate, "method": about.method, "net": about.net, "flags": about.flags, "seed": seed,
        "train_seconds": seconds, "total_seconds": seconds + 3, "test_accuracy": accuracy,
        "peak_memory_bytes": 400_000_000, "estimated": False, "command": "python …",
    }  # fmt: skip
    return Measurement(**fields | others)


def made_up(steps=150) -> results.Results:
    place = {
        "machine": "AMD EPYC 9R14, 2 threads, Linux, x86_64", "cores": 2, "threads": 2,
        "versions": {"branchwork": "0.1.0", "python": "3.11.7", "torch": "2.13.0"}, "commit": "c0ffee",
    }  # fmt: skip
    return results.Results("python -m benchmarks", "mnist", "cpu", steps, place, started="2026-11-25T10:00:00+00:00")


# The script


def test_each_image_becomes_what_the_package_makes_of_it(sample):
    images = lecture.Images(sample.train)
    memory = lecture.InMemory(sample.train, shuffle=False)
    whole = normalise(sample.train.images[:70], sample.mean, sample.std)
    for index in (0, 1, 17, 69):
        image, label = images[index]
        assert image.shape == (1, 28, 28) and image.dtype == torch.float32 and type(label) is int
        assert label == sample.train.labels[index]
        torch.testing.assert_close(image, whole[index], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(memory.images[index], whole[index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["script", "memory"])
def test_an_epoch_has_every_image_once_in_another_order_each_time(method, small):
    batches = lecture.make_batches(method, small.train, shuffle=True)
    torch.manual_seed(0)
    first, second = ([labels for _, labels in batches] for _ in range(2))
    assert len(batches) == len(first) == 24 and [len(labels) for labels in first] == [64] * 23 + [28]
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first).sort().values, small.train.labels.sort().values)
    plain = lecture.make_batches(method, small.test, shuffle=False)
    assert torch.equal(torch.cat([labels for _, labels in plain]), small.test.labels)


@pytest.mark.parametrize("net", ["inception", "residual"])
def test_the_script_trains_the_same_net_as_branchwork(net):
    theirs, ours = lecture.make_net(net).double(), branchwork.build_net(net).double()
    assert "branchwork." not in type(theirs).__module__
    branchwork.load_weights(ours, theirs.state_dict())
    images = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-12, atol=1e-13)


def test_the_script_is_trained_to_its_end_and_learns(small, monkeypatch):
    monkeypatch.setattr(lecture, "EPOCHS", 3)
    torch.manual_seed(0)
    net = lecture.make_net("residual")
    feeds = (
        lecture.make_batches("script", split, shuffle) for split, shuffle in ((small.train, True), (small.test, False))
    )
    outcome = lecture.train(net, *feeds, CPU)
    assert not outcome.estimated and outcome.extra_seconds == 0 and outcome.test_accuracy > 0.5


@pytest.mark.parametrize(("asked", "taken"), [(6, 6), (500, 22)])
def test_an_estimate_multiplies_the_steps_after_the_warm_up(asked, taken, small, monkeypatch):
    steps_of = []

    def timed(device, work):
        work()
        return 1.0 + len(steps_of)

    def train_on(net, optimizer, batches, device):
        steps_of.append(len(list(batches)))

    monkeypatch.setattr(lecture, "timed", timed)
    monkeypatch.setattr(lecture, "train_on", train_on)
    monkeypatch.setattr(lecture, "WARM_UP", 2)
    monkeypatch.setattr(lecture, "TEST_BATCHES", 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    feeds = lecture.InMemory(small.train, True), lecture.InMemory(small.test, False)
    outcome = lecture.estimate(net, *feeds, CPU, asked)
    assert steps_of == [2, taken]
    # 2 s warmed up, 3 s for some of 24 steps an epoch, 3 s for 4 of 5 batches of the test set; ten epochs.
    train, test = 3 / taken * 24 * 10, 3 / 4 * 5 * 10
    assert outcome == Outcome(train, None, estimated=True, extra_seconds=pytest.approx(train + test - 8))


# The public recipe


def test_the_public_net_has_the_size_that_its_layers_give():
    by_hand = (24 * 1 * 5 * 5 + 24) + (32 * 24 * 3 * 3 + 32) + (800 * 256 + 256) + (256 * 10 + 10)
    assert count_parameters(public.make_net()) == by_hand == 215_194


def test_the_public_recipe_shuffles_nothing_but_once(sample):
    images, labels = public.saved(sample.train)
    again, _ = public.saved(sample.train)
    assert torch.equal(images, again)
    assert not torch.equal(labels, sample.train.labels)
    assert torch.equal(labels.sort().values, sample.train.labels.sort().values)


def test_the_public_recipe_takes_one_pass_with_a_rate_that_rises_for_three_tenths(sample, monkeypatch):
    rates = []

    class Schedule(public.OneCycleLR):
        def step(self, *arguments):
            super().step(*arguments)
            rates.append(self.get_last_lr()[0])

    monkeypatch.setattr(public, "OneCycleLR", Schedule)
    outcome = public.run(sample, 0, CPU)
    assert outcome.test_accuracy > 0.9
    *rates, last = rates[:-1]  # the first is set, and the one after the last step is not used
    assert len(rates) + 1 == 24
    assert rates[0] == pytest.approx(0.01 / 25) and last < 1e-5
    assert max(rates) == pytest.approx(0.01, rel=0.01) and rates.index(max(rates)) == pytest.approx(0.3 * 24 - 1, abs=1)


# The other nets and steps


def test_steps_take_turns_and_the_warm_up_is_not_counted(monkeypatch):
    clock = iter(range(100))
    order = []
    monkeypatch.setattr(step, "timed", lambda device, work: work() or float(next(clock)))
    steps = {name: lambda name=name: order.append(name) for name in ("written", "collapsed")}
    assert step.in_turn(steps, CPU, 1, 3) == {"written": [2, 4, 6], "collapsed": [3, 5, 7]}
    assert order == ["written", "collapsed"] * 4


def test_the_step_is_timed_as_written_and_collapsed(tmp_path, monkeypatch):
    for name, value in (("BATCH_SIZE", 64), ("WARM_UP", 0), ("PAIRS", 2)):
        monkeypatch.setattr(step, name, value)
    step.main(json_file=tmp_path / "seconds.json")
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert {name: len(times) for name, times in seconds.items()} == {"step written": 2, "step collapsed": 2}


def engine_row(engine, precision, fused, batch, milliseconds):
    return SimpleNamespace(engine=engine, precision=precision, fused=fused, batch=batch, milliseconds=milliseconds)


def test_the_best_engine_is_chosen_for_each_form_and_batch_size():
    rows = [
        engine_row("torch", "fp32", False, 1, 9.0),
        engine_row("openvino", "bf16", False, 1, 2.0),
        engine_row("onnxruntime", "fp32", False, 1, 4.0),
        engine_row("openvino", "bf16", True, 1, 3.0),
        engine_row("openvino", "bf16", True, 256, 70.0),
    ]
    seconds = inference.timings("inception", SimpleNamespace(rows=rows))
    assert seconds["inception batch 1 written"] == 0.002 and seconds["inception batch 1 fused"] == 0.003
    assert seconds["inception batch 256 fused"] == 0.07 and seconds["inception batch 1 written torch fp32"] == 0.009
    assert len(seconds) == 3 + 5


def test_the_times_of_both_nets_are_of_several_loads(tmp_path, monkeypatch):
    asked = {}

    def bench(net, *, options):
        asked[net] = options.loads
        return SimpleNamespace(rows=[engine_row("torch", "fp32", True, 1, 2.0 * len(asked))])

    monkeypatch.setattr(inference.branchwork, "bench", bench)
    inference.main(json_file=tmp_path / "seconds.json")
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert asked == {"inception": 3, "googlenet": 6}
    assert seconds["inception batch 1 fused"] == [0.002]
    assert seconds["GoogLeNet batch 1 fused"] == seconds["GoogLeNet batch 1 fused torch fp32"] == [0.004]


# What is measured, and in which order


def test_candidates_take_turns_and_the_probes_come_last():
    turns = bench.plan((), None, False)
    assert [seed for name, seed in turns if name == "public"] == list(range(10))
    seeds = [seed for name, seed in turns if name in CANDIDATES]
    assert seeds == sorted(seeds)
    assert [name for name, _ in turns[-len(PROBES) :]] == list(PROBES)
    assert "best" not in dict(turns) and "best" in dict(bench.plan((), None, True))
    assert bench.plan(("best",), None, False) == [("best", seed) for seed in range(3)]
    assert bench.plan(("public",), 2, False) == [
        ("residual-target", 0),
        ("public", 0),
        ("residual-target", 1),
        ("public", 1),
    ]
    assert bench.plan(("step",), 2, False) == [("step", 0)]


def test_the_default_takes_ten_minutes_on_two_cores():
    assert 500 < bench.time_left(bench.plan((), None, False), {}, False) <= 610


def test_the_time_left_is_that_of_their_like_or_what_is_expected_at_the_pace_so_far():
    turns = [("public", 1), ("residual-fast", 0)]
    known = {"public": [2 * CANDIDATES["public"].seconds]}
    assert bench.time_left(turns, known, False) == 2 * (
        CANDIDATES["public"].seconds + CANDIDATES["residual-fast"].seconds
    )
    assert bench.time_left([("inception-script", 0)], {}, True) == CANDIDATES["inception-script"].full_seconds


def test_every_goal_compares_what_is_measured():
    timed = {"step": ("step ",), "inference": ("inception ", "GoogLeNet "), "pack": ("epoch ",)}
    for goal in GOALS:
        for name in filter(None, (goal.quick, goal.slow)):
            if goal.row in PROBES:
                assert name.startswith(timed[goal.row])
            else:
                assert goal.row in CANDIDATES[name].rows and CANDIDATES[name].seeds >= goal.seeds


@pytest.mark.parametrize("name", [name for name, candidate in CANDIDATES.items() if candidate.method == "branchwork"])
def test_the_command_trains_by_the_recipe_of_the_table(name, command, monkeypatch):
    if CANDIDATES[name].recipe not in branchwork.training.recipes.RECIPES:
        pytest.skip("there is no such recipe yet")
    seen = {}

    def train(net, **given):
        seen.update(given, net=net)
        raise branchwork.BranchworkError("enough")

    monkeypatch.setattr(branchwork, "train", train)
    words = words_of(CANDIDATES[name], 3, Settings(data="sample"))
    assert words[:2] == ["-m", "branchwork"]
    assert command(*words[2:])[0] == 2
    base = branchwork.training.recipes.RECIPES[CANDIDATES[name].recipe](CANDIDATES[name].net, 6000)
    assert seen["recipe"] == base.but(CANDIDATES[name].changes)
    assert seen["net"] == CANDIDATES[name].net
    assert (seen["options"].seed, seen["options"].device) == (3, "cpu")


def test_a_run_measures_and_writes_and_shows(tmp_path):
    """The whole thing on the sample: two processes that train."""
    out = tmp_path / "figures.json"
    words = (sys.executable, "-m", "benchmarks", "--data", "sample", "--only", "public", "--seeds", "1", "--out", out)
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2/2 24-32-256: train_mnist_fast, seed 0: " in done.stderr and "0:00 left" in done.stderr
    assert "1 of 10 seeds" in done.stdout and str(out) in done.stdout
    found = results.read(out)
    assert [m.candidate for m in found.measurements] == ["residual-target", "public"]
    for m in found.measurements:
        assert 0.5 < m.test_accuracy < 1 and not m.estimated
        assert 0 < m.train_seconds < m.total_seconds and 100e6 < m.peak_memory_bytes < 4e9
    assert found.place["threads"] >= 1 and found.place["commit"]
    written = json.loads(out.read_text())
    assert [outlook["ratio"] is not None for outlook in written["goals"]] == [goal.row == "public" for goal in GOALS]


def test_a_failure_is_noted_with_its_reason_and_not_tried_again(tmp_path, monkeypatch):
    def fail_once(name, candidate, seed, settings):
        if name == "public":
            raise MeasuringError("no such thing")
        return measurement(name, seed)

    monkeypatch.setattr(bench, "measure", fail_once)
    found, path = made_up(), tmp_path / "figures.json"
    with (tmp_path / "log").open("w") as log:
        bench.take_turns(bench.plan(("public",), 3, False), Settings(), found, path, Console(file=log, width=200))
    assert found.failures == {"public": "failed: no such thing"}
    assert [m.seed for m in results.read(path).measurements] == [0, 1, 2]
    assert (tmp_path / "log").read_text().count("no such thing") == 1


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    def stop(name, candidate, seed, settings):
        if seed == 1:
            raise KeyboardInterrupt
        return measurement(name, seed)

    monkeypatch.setattr(bench, "measure", stop)
    monkeypatch.setattr(bench, "place", lambda: made_up().place)
    assert bench.main(only=("public",), out=tmp_path / "figures.json") == 130
    assert len(results.read(tmp_path / "figures.json").measurements) == 2
    assert "interrupted" in capsys.readouterr().err


def test_a_process_that_fails_gives_its_last_words():
    with pytest.raises(MeasuringError, match=r"^ZeroDivisionError: "):
        run_process(["-c", "1 / 0"])


def test_the_memory_of_a_process_is_its_own():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.measure import run_process
done = run_process(["-c", "x = bytes(b'x' * 900_000_000); print('done')"])
print(done.output, done.peak_memory_bytes)
"""
    # Measured from a small process, as `make bench` does: Linux counts from the size of the one that starts another.
    said, peak = in_a_process("-c", code, words=(sys.executable,)).stdout.split()
    assert said == "done" and 900e6 < int(peak) < 1_100e6


def test_the_measuring_process_loads_no_torch():
    done = in_a_process(
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import benchmarks.__main__; sys.exit('torch' in sys.modules)",
        words=(sys.executable,),
    )
    assert done.returncode == 0, done.stderr


# Arithmetic


def test_seeds_are_summarised_by_median_extremes_mean_and_sample_deviation():
    (one,) = summarise(
        [measurement(seed=s, seconds=t, accuracy=a) for s, (t, a) in enumerate([(4, 0.99), (9, 0.98), (5, 0.994)])]
    )
    assert one.train_seconds == Spread(5, 4, 9) and one.total_seconds == Spread(8, 7, 12)
    assert one.accuracy == pytest.approx(0.988) and one.deviation == pytest.approx(
        ((0.002**2 + 0.008**2 + 0.006**2) / 2) ** 0.5
    )
    assert (one.seeds, one.estimated, one.times_as_fast) == (3, False, None)


def test_times_as_fast_is_against_the_script_on_the_same_net_and_an_estimate_is_marked():
    found = [
        measurement("inception-script", seconds=900, accuracy=None, estimated=True),
        measurement("residual-script", seconds=200, accuracy=None, estimated=True),
        measurement("residual-target", seconds=4),
        measurement("public", seconds=10),
    ]
    summaries = {s.candidate: s for s in summarise(found)}
    assert summaries["residual-target"].times_as_fast == 50 and summaries["residual-script"].times_as_fast == 1
    assert summaries["public"].times_as_fast is None
    assert summaries["residual-script"].accuracy is None and summaries["residual-script"].estimated
    shown = Console(width=100, file=None)
    with shown.capture() as text:
        shown.print(tables.trainings(summarise(found)), tables.goals(compare_with_goals(found, {})))
    lines = text.get().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("script, estimated" in line for line in lines) == 2
    assert any("50.0× estimated" in line for line in lines)
    # What Branchwork was told stands below the table, and not in a column that it would widen.
    assert any("Branchwork (1)" in line for line in lines)
    assert f"(1) {CANDIDATES['residual-target'].flags}" in " ".join(text.get().split())


def seeded(candidate, count, **others):
    return [measurement(candidate, seed, **others) for seed in range(count)]


@pytest.mark.parametrize(
    ("slow", "quick", "accuracy", "seeds", "met"),
    [
        (200, 4, 0.991, 5, True),
        (200, 5, 0.99, 5, True),
        (199, 5, 0.991, 5, False),
        (200, 4, 0.9899, 5, False),
        (200, 4, 0.991, 4, None),
    ],
)
def test_a_goal_needs_the_ratio_the_accuracy_and_the_seeds(slow, quick, accuracy, seeds, met):
    found = seeded("residual-script", 5, seconds=slow, accuracy=None) + seeded(
        "residual-target", seeds, seconds=quick, accuracy=accuracy
    )
    (outlook,) = (outlook for outlook in compare_with_goals(found, {}) if outlook.goal.row == "residual")
    assert outlook.met is met and outlook.ratio == slow / quick and not outlook.estimated
    assert ("4 of 5 seeds" in tables.reached(outlook)) is (seeds == 4)


def test_goals_of_the_probes_compare_medians_and_the_rest_is_not_measured():
    timings = {"step written": [8.0, 9.0, 100.0], "step collapsed": [2.0, 2.0, 3.0]}
    for outlook in compare_with_goals([], timings):
        assert (outlook.met, outlook.ratio) == ((True, 4.5) if outlook.goal.row == "step" else (None, None))
        assert tables.reached(outlook) == ("4.50×" if outlook.goal.row == "step" else "not measured")


def test_accuracy_alone_can_be_asked():
    for seconds, met in ((600, True), (601, False)):
        found = seeded("best", 3, accuracy=0.9961, seconds=seconds)
        (outlook,) = (outlook for outlook in compare_with_goals(found, {}) if outlook.goal.row == "best")
        assert outlook.met is met and tables.reached(outlook) == "99.61%" and tables.asked(outlook.goal) == "99.60%"


# Files and pages


def test_results_are_read_as_they_were_written(tmp_path):
    found = made_up()
    found.measurements += [measurement(), measurement("public")]
    found.timings["step written"] = [1.0]
    found.failures["best"] = "failed: no such recipe"
    found.write(tmp_path / "figures.json")
    assert results.read(tmp_path / "figures.json") == found


def test_a_file_of_results_is_named_by_date_and_machine_and_never_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    path = made_up().free_path()
    assert path == tmp_path / "2026-11-25-amd-epyc-9r14-2-threads-cpu.json"
    path.touch()
    assert made_up().free_path().name == "2026-11-25-amd-epyc-9r14-2-threads-cpu-2.json"
    assert made_up(steps=None).free_path().name == "2026-11-25-amd-epyc-9r14-2-threads-cpu-full.json"


@pytest.mark.parametrize("name", publish.WORDS)
def test_the_published_results_are_those_of_their_file(name):
    text = (ROOT / name).read_text()
    source = publish.source(text)
    assert source == publish.source((ROOT / "docs/benchmarks.md").read_text())
    assert publish.replace_block(text, publish.block(results.read(ROOT / source), source, publish.WORDS[name])) == text


def test_the_published_results_are_those_of_the_recipes_in_the_table():
    found = results.read(ROOT / publish.source((ROOT / "docs/benchmarks.md").read_text()))
    assert {m.candidate: m.flags for m in found.measurements} == {
        m.candidate: CANDIDATES[m.candidate].flags for m in found.measurements
    }


@pytest.mark.parametrize("name", publish.WORDS)
def test_an_estimate_is_marked_where_it_is_published(name):
    words, mark = publish.WORDS[name], publish.WORDS[name].estimated
    found = made_up()
    found.measurements += seeded("residual-script", 5, seconds=168.4, accuracy=None, estimated=True)
    found.measurements += seeded("residual-target", 5, seconds=4)
    text = publish.block(found, "some.json", words)
    assert f"| 168 s{mark} | 1.00× | 171 s{mark} | – | 400 MB |" in text
    assert f"| 4.0 s | 42.1× | 7.0 s | 99.10 ± 0.00%{words.seeds.format(5)} | 400 MB |" in text
    assert f"42.1×{mark}" in text and "150" in text.splitlines()[-2]
    assert publish.source(text) == "some.json" and publish.replace_block(text, text) == text
    real = made_up(steps=None)
    real.measurements += [replace(m, estimated=False) for m in found.measurements]
    assert mark not in publish.block(real, "some.json", words)


# On a GPU, of which there is none here


QUICK = ("residual",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in gpu.ROWS]
)
def test_each_row_for_a_gpu_runs_at_a_tiny_size_on_the_cpu(name, tmp_path):
    for number in range(50):
        folder = tmp_path / "pictures" / ("test" if number < 10 else "train") / f"class-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 5 * number, 0)).save(folder / f"{number}.jpg")
    with tarfile.open(tmp_path / "pictures.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "pictures", "cifar10")
    words = [name, "--tiny", "--cifar", str(tmp_path / "pictures.tar.xz")]
    seen = []
    found = gpu.measure_row(words, 300, seen.append)
    assert "failed" not in found and found["figures"] == seen[-1]["figures"] != []
    assert len({figure["name"] for figure in found["figures"]}) == len(found["figures"])
    assert all(figure["value"] >= 0 for figure in found["figures"])
    assert any("at_least" in figure or "at_most" in figure for figure in found["figures"])
    results = {"place": {"machine": "a machine"}, "tiny": False, "rows": {name: {"what": "what", **found}}}
    shown = Console(width=160, file=None)
    with shown.capture() as text:
        shown.print(gpu.table(results))
    said = text.get()
    assert found["figures"][0]["name"] in said and ("≥" in said or "≤" in said)


def test_a_row_that_fails_or_takes_too_long_keeps_what_it_had_and_says_why():
    assert gpu.measure_row(["residual", "--tiny"], 0.2, lambda found: None)["failed"] == "out of time after 0 s"
    found = gpu.measure_row(["no such row"], 100, lambda found: None)
    assert "KeyError" in found["failed"] and found["printed"][-1] == found["failed"]
    assert any(line.startswith("Traceback") for line in found["printed"])
    assert any("gpu_rows.py" in line for line in found["printed"])


def test_a_row_that_is_late_says_where_it_stands(monkeypatch):
    code = (
        "import faulthandler, signal, sys, time; faulthandler.register(signal.SIGUSR1)\n"
        "def stands_here(): time.sleep(100)\n"
        "stands_here()\n"
    )
    start = gpu.subprocess.Popen
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda words, **others: start([sys.executable, "-c", code], **others))
    found = gpu.measure_row(["any"], 3, lambda found: None)
    assert found["failed"] == "out of time after 3 s" and "stands_here" in "\n".join(found["printed"])


def test_each_row_has_its_share_of_the_time_and_all_shares_are_twelve_minutes():
    assert sum(share for _, share in gpu.ROWS.values()) == 12 * 60
    assert list(gpu.ROWS)[:2] == ["residual", "tests"]


def test_failures_of_tests_are_written_as_they_come(tmp_path):
    tests = gpu_rows.Tests(gpu_rows.Row(tmp_path / "figures.json", tmp_path, False, None))
    seen = [("setup", "passed"), ("call", "passed"), ("call", "failed"), ("teardown", "passed"), ("setup", "skipped")]
    for when, outcome in seen:
        place = ("test_gpu.py", 1, "test")
        report = pytest.TestReport("test_gpu.py::test", place, {}, outcome, "assert 1 == 2", when)
        tests.pytest_runtest_logreport(report)
    tests.pytest_warning_recorded(warnings.WarningMessage("streams differ", UserWarning, "net.py", 1))
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {figure["name"]: figure["value"] for figure in found["figures"]} == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["notes"] == ["test_gpu.py::test\nassert 1 == 2", "UserWarning: streams differ"]


def test_without_a_gpu_there_is_one_message_and_no_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "place", lambda: {"machine": "a machine", "gpu": None})
    assert bench.app(["gpu", "--json", str(tmp_path / "figures.json")]) == 2
    assert not (tmp_path / "figures.json").exists()
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_figures_are_written_as_they_come_and_the_time_is_kept(tmp_path, capsys, monkeypatch):
    path = tmp_path / "figures.json"
    monkeypatch.setattr(gpu, "place", lambda: {"machine": "one H200", "gpu": {"name": "H200"}})
    clock, given, found = iter(range(0, 10_000, 50)), [], {"figures": [], "notes": []}
    monkeypatch.setattr(gpu, "monotonic", lambda: next(clock))

    def measure_row(words, seconds, keep):
        given.append((words[0], seconds))
        found["figures"] = [{"name": f"rate of {words[0]}", "value": 2.0, "unit": "s", "at_most": 1.0}]
        keep(found)
        assert words[0] in json.loads(path.read_text())["rows"]
        return found | ({"failed": "ValueError: odd"} if words[0] == "inception" else {})

    monkeypatch.setattr(gpu, "measure_row", measure_row)
    assert bench.app(["gpu", "--json", str(path), "--minutes", "6"]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert list(rows) == list(gpu.ROWS) and rows["inception"]["failed"] == "ValueError: odd"
    # Of six minutes, 50 seconds have gone, and as many go between two rows.
    shares = [share for _, share in gpu.ROWS.values()]
    for number, (name, seconds) in enumerate(given):
        assert name == list(gpu.ROWS)[number]
        assert seconds == pytest.approx((310 - 100 * number) * shares[number] / sum(shares[number:]))
    assert 0 < len(given) < len(rows)
    assert rows["verbs"]["failed"] == "out of time"
    out = capsys.readouterr().out
    assert "rate of residual" in out and "≤ 1" in out and "no" in out and "ValueError: odd" in out

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LINUX, ROOT
from helpers.tiny_study import ARMS, RECIPE, TINY, Watcher, records, what_counts
from torch import nn

import branchwork
from branchwork.blocks import Concat
from branchwork.datasets.load import load_data
from branchwork.errors import DataError, Interrupted, NetError, RecipeError, StudyError
from branchwork.graph.costs import count_macs
from branchwork.observer import Observer
from branchwork.studies import study, trainings
from branchwork.studies.design import Arm, Setting
from branchwork.studies.records import Job, read_record
from branchwork.studies.study import StudyOptions
from branchwork.studies.trainings import branch_sizes, gradient_norms, process_pool, reduce_data, shrinking, train_job
from branchwork.training.processes import interruptible


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(study.STUDIES, "tiny", TINY)


def test_the_pool_gives_what_this_process_gives_bit_for_bit(alone, tiny, tmp_path):
    result = branchwork.study("tiny", out=tmp_path / "pool", options=StudyOptions(workers=2))
    assert result.trained == 6
    assert what_counts(tmp_path / "pool") == what_counts(alone)


def test_any_executor_will_do_and_threads_take_turns(alone, tiny, tmp_path):
    # torch's random numbers are the process's: two trainings at once in it would draw each other's.
    with ThreadPoolExecutor(3) as executor:
        branchwork.study("tiny", out=tmp_path / "threads", options=StudyOptions(workers=executor), seeds=2)
    found = what_counts(tmp_path / "threads")
    assert len(found) == 4 and found.items() <= what_counts(alone).items()


def test_a_training_is_that_of_train(alone, tmp_path):
    record = next(r for r in records(alone).values() if r["job"]["seed"] == 1 and "dropout" in r["job"]["net"])
    job = Job(**record["job"] | {"gradients": False})
    data = reduce_data(load_data("sample"), job)
    assert len(data.train) == 96 == record["train_images"] and data.image_size == (7, 7)
    result = branchwork.train(
        job.net,
        data=data,
        recipe=RECIPE,
        options=branchwork.Options(seed=1, threads=1, device="cpu"),
        out=tmp_path / "run",
    )
    assert 1 - result.test_accuracy == record["test_error"]
    run = branchwork.load_run(tmp_path / "run")
    with torch.no_grad():
        pixels = (data.train.images.float() / 255 - 0.1307) / 0.3081
        logits = run.net(pixels)
    wrong = float((logits.argmax(1) != data.train.labels).float().mean())
    assert wrong == pytest.approx(record["train_error"], abs=1e-6)
    assert float(nn.functional.cross_entropy(logits, data.train.labels)) == pytest.approx(
        record["train_loss"], rel=1e-5
    )
    # The first gradients are those of the weights that the seed gives, the last those of the finished net.
    first, *_, last = record["gradients"]
    assert [moment["epoch"] for moment in record["gradients"]] == [0, 1, 2] and last["epoch"] == RECIPE.epochs
    torch.manual_seed(1)
    fresh = branchwork.build_net(job.net, in_channels=1, num_classes=10, image_size=7)
    assert gradient_norms(fresh, pixels, data.train.labels).keys() == first["norms"].keys()
    torch.manual_seed(0)  # the dropout's own
    plain = branchwork.build_net("plain8[width=4]", in_channels=1, num_classes=10, image_size=7)
    other = next(r for r in records(alone).values() if r["job"]["seed"] == 0 and "plain8" in r["job"]["net"])
    few = reduce_data(load_data("sample"), Job(**other["job"]))
    pixels = (few.train.images.float() / 255 - 0.1307) / 0.3081
    norms = gradient_norms(plain, pixels, few.train.labels)
    assert norms == pytest.approx(other["gradients"][0]["norms"], rel=1e-4)


def test_images_are_averaged_and_drawn_by_the_seed():
    job = Job("plain8", "sample", 0, None, None, {}, 3, 1, "cpu", "auto", 50, 14, False)
    data = load_data("sample")
    small, again, other = (reduce_data(data, replace(job, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(small.train.images, again.train.images) and len(small.test) == len(data.test)
    assert not torch.equal(small.train.images, other.train.images)
    by_hand = data.test.images.view(-1, 1, 14, 2, 14, 2).float().mean((3, 5))
    assert float((small.test.images.float() - by_hand).abs().max()) <= 0.5
    assert [shrinking(size, 14) for size in ((28, 28), (32, 32), (64, 48), (14, 14), (9, 9), (224, 224))] == [
        2,
        2,
        3,
        1,
        1,
        16,
    ]
    whole = reduce_data(data, replace(job, images=None, side=None))
    assert whole.train is data.train


def test_gradients_are_those_of_autograd_and_none_where_infinite():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.randn(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    share = net(images).softmax(1) - nn.functional.one_hot(labels, 3)
    by_hand = (share.T @ images.flatten(1) / 5).norm().detach()
    assert gradient_norms(net, images, labels) == {"1.weight": pytest.approx(float(by_hand), rel=1e-5)}
    # Vanished, and not yet nothing: squares of such numbers are 0 in float32.
    assert 0 < gradient_norms(net, images * 1e-30, labels)["1.weight"] < 1e-29
    assert gradient_norms(net, images * float("inf"), labels) == {"1.weight": None}


def test_sizes_of_branches():
    net = nn.Sequential(Concat(a=nn.Conv2d(1, 2, 1), b=nn.Identity()))
    nn.init.constant_(net[0].a.weight, -3.0)
    assert branch_sizes(net) == {"0": {"a": pytest.approx(3.0), "b": 0.0}}


def test_a_killed_study_goes_on_without_repeating(alone, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, ROOT / "tests/helpers/tiny_study.py", folder, "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline().strip() != "2":
        assert process.poll() is None
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "trainings").glob("*.json")}
    assert 2 <= len(kept) < 6 and not (folder / "report.html").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(len(kept))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert what_counts(folder) == what_counts(alone)
    assert (folder / "report.html").exists()


@LINUX
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_what_is_finished_and_ends_the_workers(workers, tmp_path):
    command = [sys.executable, ROOT / "tests/helpers/tiny_study.py", tmp_path / "stopped", workers]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.stdout.readline().strip() != "1":
        assert process.poll() is None
    children = _children(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Interrupted: stopped: " in err and "of 6 trainings are kept" in err and "same command" in err
    assert records(tmp_path / "stopped")
    _wait_for_the_end(children)


@LINUX
def test_a_stop_ends_workers_in_the_middle_of_a_training(tmp_path):
    started = tmp_path / "started"
    with pytest.raises(KeyboardInterrupt), process_pool(1) as pool:
        pool.submit(_train_for_minutes, started)
        while not started.exists():
            time.sleep(0.05)
        (worker,) = multiprocessing.active_children()
        raise KeyboardInterrupt
    # Not by `worker.join`: the pool's own thread may collect the process first, and join then takes it for alive.
    _wait_for_the_end([worker.pid])


def _train_for_minutes(started: Path) -> None:
    with interruptible():
        started.touch()
        time.sleep(100)


@LINUX
def test_workers_do_not_outlive_a_killed_study(tmp_path):
    command = [sys.executable, ROOT / "tests/helpers/tiny_study.py", tmp_path / "killed", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.stdout.readline().strip() != "1":
        assert process.poll() is None
    children = _children(process.pid)
    assert len(children) >= 2
    process.kill()
    process.communicate()
    _wait_for_the_end(children)


def _wait_for_the_end(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_more_seeds_train_only_those(alone, tiny, tmp_path):
    result = branchwork.study("tiny", out=alone, options=StudyOptions(workers=1), seeds=2)
    assert (result.trainings, result.trained, result.seeds) == (4, 0, (0, 1))
    assert json.loads((alone / "answer.json").read_text())["seeds"] == [0, 1]


def test_some_nets_with_other_epochs_are_trained_alone(tiny, tmp_path):
    options = StudyOptions(arms=("plain",), epochs=1, precision="fp64", workers=1)
    result = branchwork.study("tiny", out=tmp_path / "some", seeds=1, options=options)
    (record,) = records(tmp_path / "some").values()
    assert record["job"]["net"] == "plain8[width=4]" and len(record["epochs"]) == 1 and record["precision"] == "fp64"
    assert [row.label for row in result.rows] == ["plain"] and result.findings == ()
    page = (tmp_path / "some/report.html").read_text(encoding="utf-8")
    assert "--arms plain --epochs 1 --precision fp64" in page
    # The same study has the same command; another is refused its folder.
    with pytest.raises(StudyError, match="holds another study"):
        branchwork.study("tiny", out=tmp_path / "some", seeds=1, options=replace(options, epochs=2))
    with pytest.raises(RecipeError, match="epochs must be at least 1, got 0"):
        branchwork.study("tiny", seeds=1, options=replace(options, epochs=0))


def test_full_is_the_recipe_of_the_paper():
    recipe = study.STUDIES["depth"].setting("full", 50_000).recipe
    images = 50_000
    assert 63_000 < recipe.epochs * images / recipe.batch_size < 65_000 and recipe.schedule == "steps"
    assert (recipe.optimizer, recipe.learning_rate, recipe.momentum) == ("sgd", 0.1, 0.9)
    assert (recipe.weight_decay, recipe.pad, recipe.flip, recipe.shift) == (1e-4, 4, 0.5, 0)
    changes = {arm.label: dict(arm.changes) for arm in study.STUDIES["depth"].arms("full")}
    assert changes["plain-56"] == {} and changes["residual-110"] == {"warmup": 0.01}
    assert changes["plain-56 norm=none"] == {"learning_rate": 0.02, "clip": 1.0}


def test_one_seed_gives_no_interval_and_says_so(alone, tiny):
    result = branchwork.study("tiny", out=alone, options=StudyOptions(workers=1), seeds=1)
    (finding,) = result.findings
    assert finding.verdict == "too close to call" and "One seed gives no interval: use --seeds 3" in finding.words
    assert all(mean.low is None for row in result.rows for mean in row.means.values())
    assert "settles nothing" in (alone / "report.html").read_text()


def test_a_training_that_diverges_is_an_outcome(tiny, monkeypatch, tmp_path):
    wild = Arm("plain", "plain8[norm=none,width=4]", {}, {"learning_rate": 1e12, "optimizer": "sgd", "clip": 0.0})
    monkeypatch.setitem(study.STUDIES, "tiny", replace(TINY, arms=lambda preset: (ARMS[0], wild)))
    result = branchwork.study("tiny", out=tmp_path / "wild", options=StudyOptions(workers=1), seeds=2)
    assert [row.diverged for row in result.rows] == [0, 2] and result.rows[1].means["test_error"] is None
    assert result.findings[0].verdict == "too close to call" and result.comparisons == ()
    assert "2 of 2 trainings of plain diverged" in result.findings[0].words
    assert "(2 diverged)" in (tmp_path / "wild/report.html").read_text()
    again = branchwork.study("tiny", out=tmp_path / "wild", options=StudyOptions(workers=1), seeds=2)
    assert again.trained == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dept"}, "no study called 'dept'. Did you mean 'depth'? Known: bottleneck, branches, depth, short"),
        ({"seeds": 0}, "seeds must be from 1 to 1000, got 0"),
        ({"seeds": 1001}, "seeds must be from 1 to 1000, got 1001"),
        ({"seed": -1}, "seed must be at least 0 and less than 2^63 - 1000, got -1"),
        ({"preset": "fast"}, "preset must be one of quick, full, got 'fast'"),
        ({"arms": ("plain-8", "plain-9")}, "the study depth has no arm 'plain-9' with --preset quick: name some of pl"),
        ({"name": "branches", "arms": ("b1",)}, "the answer of the study branches needs all of its nets"),
        ({"threads": 0}, "threads"),
        ({"workers": 0}, "workers must be at least 1 (1 trains in this process), got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, message, tmp_path):
    with pytest.raises(StudyError, match=re.escape(message)):
        arguments = {"name": "depth", "data": "sample", "out": tmp_path / "study"} | options
        fields = {name: arguments.pop(name) for name in ("arms", "seed", "threads", "workers") if name in arguments}
        branchwork.study(**arguments, options=StudyOptions(**fields))
    assert not (tmp_path / "study").exists()


def test_images_too_small_for_the_nets_are_refused_before_anything_is_written(tmp_path):
    from PIL import Image

    pixels = iter(torch.randint(0, 256, (16, 12, 12), dtype=torch.uint8).numpy())
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(next(pixels)).save(tmp_path / "images" / split / label / f"{number}.png")
    with pytest.raises(NetError, match="at least 16×16 pixels, got 12×12"):
        branchwork.study("bottleneck", data=str(tmp_path / "images"), out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_folder_that_holds_another_study_is_refused(alone, tiny, tmp_path, run, monkeypatch):
    with pytest.raises(StudyError, match=r"holds another study \(its study is tiny, not depth"):
        branchwork.study("depth", data="sample", out=alone)
    with pytest.raises(StudyError, match="its threads is 1, not 2"):
        branchwork.study("tiny", out=alone, options=StudyOptions(threads=2))
    other = replace(TINY, setting=lambda preset, images: Setting(RECIPE.but({"epochs": 3}), seeds=1))
    monkeypatch.setitem(study.STUDIES, "tiny", other)
    with pytest.raises(StudyError, match="its setting differs"):
        branchwork.study("tiny", out=alone)
    with pytest.raises(branchwork.BranchworkError, match="holds another run"):
        branchwork.study("tiny", out=run.folder)


def test_a_damaged_record_is_named(alone, tiny, tmp_path):
    shutil.copytree(alone, tmp_path / "copy")
    path = next((tmp_path / "copy/trainings").glob("*.json"))
    path.write_text('{"outcome": "tra')
    with pytest.raises(StudyError, match=re.escape(f"{path} is damaged")):
        branchwork.study("tiny", out=tmp_path / "copy", options=StudyOptions(workers=1))
    (tmp_path / "copy/study.json").write_text("[]")
    with pytest.raises(StudyError, match=r"study\.json is damaged"):
        branchwork.study("tiny", out=tmp_path / "copy", options=StudyOptions(workers=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("whole_seconds"), "missing required field `whole_seconds`"),
        (lambda r: r.update(whole_seconds="long"), r"`float`, got `str` - at `\$.whole_seconds`"),
        (lambda r: r.update(macs=10**30), "macs"),
        (lambda r: r.update(surplus=1), "unknown field `surplus`"),
        (lambda r: r.update(outcome="lost"), "outcome"),
        (lambda r: r["job"].update(seed=7), "the record of another training"),
        (lambda r: r.update(test_error=1.5), "test_error must be from 0 to 1, got 1.5"),
        (lambda r: r.update(train_error=None), "train_error must be from 0 to 1, got None"),
        (lambda r: r.update(seconds=None), "no seconds"),
        (lambda r: r.update(gradients=[]), "no gradients"),
        (lambda r: r["gradients"][0].update(norms={}), "no gradients"),
    ],
)
def test_a_record_with_impossible_values_is_damaged(change, words, alone, tmp_path):
    record = next(iter(records(alone).values()))
    job = Job(**record["job"])
    (tmp_path / "whole.json").write_text(json.dumps(record))
    assert read_record(tmp_path / "whole.json", job).whole_seconds == record["whole_seconds"]
    change(record)
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(
        StudyError, match=rf"record\.json is damaged \((.*{words}.*)\): delete it, and this training will"
    ):
        read_record(tmp_path / "record.json", job)


def test_a_record_that_cannot_be_read_is_one_error(alone, tmp_path):
    job = Job(**next(iter(records(alone).values()))["job"])
    assert read_record(tmp_path / "none.json", job) is None
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "folder.json").mkdir()
    for name in ("deep", "folder"):
        with pytest.raises(StudyError, match=f"{name}.json .*delete it"):
            read_record(tmp_path / f"{name}.json", job)


def test_other_data_where_a_training_runs_are_refused(alone):
    job = Job(**next(iter(records(alone).values()))["job"])
    with pytest.raises(DataError, match="here differ from those where the study was started"):
        train_job(replace(job, checksum=1))


def test_a_worker_that_dies_is_told(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "train_job", _die)
    with pytest.raises(StudyError, match=r"the executor lost a training .*smaller --workers"):
        branchwork.study("tiny", out=tmp_path / "died", options=StudyOptions(workers=2))


def _die(job):
    os._exit(1)


def test_a_worker_with_other_versions_is_refused(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(trainings, "train_job", lambda job: replace(train_job(job), versions=OTHER))
    message = r"a worker on .* has other versions \(torch 2\.9\.0\) than this process \(.*torch 2\..*Install the same"
    with ThreadPoolExecutor(1) as pool, pytest.raises(StudyError, match=message):
        branchwork.study("tiny", out=tmp_path / "study", options=StudyOptions(workers=pool))
    assert not list((tmp_path / "study").rglob("*-seed-*.json"))


OTHER = {"torch": "2.9.0"}


def test_two_at_once_are_refused(alone, tiny):
    from filelock import FileLock

    with FileLock(alone / ".lock"), pytest.raises(StudyError, match="another process is working on the study"):
        branchwork.study("tiny", out=alone)


def test_an_interrupted_training_interrupts_the_study(tiny, tmp_path, monkeypatch):
    def stopped(job):
        raise Interrupted("stopped, and saved. Continue with: branchwork train --resume /tmp/gone")

    monkeypatch.setattr(trainings, "train_job", stopped)
    with pytest.raises(Interrupted, match="0 of 6 trainings are kept") as raised:
        branchwork.study("tiny", out=tmp_path / "stopped", options=StudyOptions(workers=1))
    assert "--resume" not in str(raised.value)


def test_the_command_shows_the_answer_in_both_languages(alone, tiny, command, monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", "en")
    code, out, _ = command("study", "tiny", "--out", alone, "--workers", 1)
    assert code == 0 and "Is it worse?" in out and "dropout" in out and "report.html" in out
    code, out, _ = command("study", "tiny", "--out", alone, "--workers", 1, "--lang", "zh", "--json", "-")
    assert code == 0
    shown = json.loads(out)
    assert (
        shown["trainings"] == 6
        and shown["trained"] == 0
        and {row["label"] for row in shown["rows"]} == set(("dropout", "plain"))
    )
    assert "测试误差" in shown["findings"][0]["words"]
    assert '<html lang="zh-Hans">' in (alone / "report.html").read_text()


def test_progress_is_told(alone, tiny, capsys):
    branchwork.study("tiny", out=alone, options=StudyOptions(workers=1), progress=Watcher())
    assert capsys.readouterr().out == ""  # nothing was left to train

    class Told(Observer):
        def __init__(self):
            self.notes = []

        def note(self, message):
            self.notes.append(message)

    path = next((alone / "trainings").glob("plain8*"))
    path.unlink()
    told = Told()
    assert branchwork.study("tiny", out=alone, options=StudyOptions(workers=1), progress=told).trained == 1
    assert any("5 of 6 trainings are already done" in note for note in told.notes)
    assert any(
        re.search(r"6/6  plain8\[width=4\], seed \d: training error \d+\.\d\d%, test error", note)
        for note in told.notes
    )


def test_arms_are_nets_that_can_be_built_and_cost_what_they_say():
    for name, size in (("depth", 14), ("shortcuts", 14), ("branches", 28), ("bottleneck", 28)):
        arms = study.STUDIES[name].arms("quick")
        assert len({arm.label for arm in arms}) == len({arm.net for arm in arms}) == len(arms)
        for arm in arms[:: max(1, len(arms) // 5)]:
            net = branchwork.build_net(arm.net, in_channels=1, num_classes=4, image_size=size).eval()
            assert net(torch.zeros(2, 1, size, size)).shape == (2, 4)
        for preset in ("quick", "full"):
            setting = study.STUDIES[name].setting(preset, 60_000)
            for arm in study.STUDIES[name].arms(preset):
                setting.recipe.but(arm.changes)
    assert count_macs(branchwork.build_net("inception[bottleneck=none]"), (1, 28, 28)) == 5_310_080

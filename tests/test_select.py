"""Branches that earn their cost: what `select` removes, what it writes, and what it refuses."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from branchwork import Add, Concat, build_net
from branchwork.catalogue.prune import find_joins
from branchwork.datasets.batches import train_and_validation
from branchwork.errors import BranchworkError, DataError, Interrupted, NetError, RecipeError, RunError
from branchwork.explaining import select as module
from branchwork.explaining.candidates import Tuner, find_groups, weight_size
from branchwork.explaining.select import select
from branchwork.explaining.selection import Goal
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.observer import Observer
from branchwork.training.infer import DTYPES, pick_precision, predict_logits
from branchwork.training.options import Options
from branchwork.training.recipes import fast
from branchwork.training.run import load_run
from branchwork.training.train import train

TINY = fast("inception", 60_000).but({"epochs": 1, "batch_size": 100})

TWO_MODULES = """
from torch import nn
from branchwork import Concat
from branchwork.blocks import chain

def module(channels):
    pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(channels, 4, 1))
    return Concat(b1=nn.Conv2d(channels, 2, 1), b3=nn.Conv2d(channels, 4, 3, padding=1), pool=pool)

def Net():
    return chain(conv1=nn.Conv2d(1, 4, 4, 4), relu1=nn.ReLU(), incep1=module(4), relu2=nn.ReLU(), incep2=module(10),
                 relu3=nn.ReLU(), flatten=nn.Flatten(), fc=nn.Linear(490, 10))
"""
LOUD = """
from torch import nn
from branchwork import Concat
from branchwork.blocks import chain

def Net():
    # Only `loud` can tell the classes apart: the other branches read a single pixel.
    blind, dim = nn.Conv2d(1, 2, 1, stride=28), nn.Conv2d(1, 3, 1, stride=28)
    loud = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(1), nn.Linear(49, 64), nn.Unflatten(1, (64, 1, 1)))
    return chain(join=Concat(blind=blind, loud=loud, dim=dim), flatten=nn.Flatten(), fc=nn.Linear(69, 10))
"""


PROFILES = """
from torch import nn
from branchwork import Concat
from branchwork.blocks import chain

def profile(window):
    return nn.Sequential(nn.AvgPool2d(window), nn.Flatten(1), nn.Linear(28, 28), nn.Unflatten(1, (28, 1, 1)))

def Net():
    join = Concat(rows=profile((1, 28)), columns=profile((28, 1)))
    return chain(join=join, flatten=nn.Flatten(), fc=nn.Linear(56, 10))
"""


NESTED = """
from torch import nn
from branchwork import Add, Concat
from branchwork.blocks import chain

def Net():
    inner = Concat(a=nn.Conv2d(1, 2, 3, padding=1), b=nn.Conv2d(1, 2, 3, padding=1))
    outer = Concat(wide=chain(inner=inner, out=nn.Conv2d(4, 2, 1)), thin=nn.Conv2d(1, 2, 1))
    fixed = Add(residual=Concat(c=nn.Conv2d(4, 2, 1), d=nn.Conv2d(4, 2, 1)), shortcut=nn.Identity())
    return chain(fixed=chain(up=nn.Conv2d(1, 4, 4, 4), add=fixed, down=nn.Conv2d(4, 1, 1)), outer=outer,
                 flatten=nn.Flatten(), fc=nn.Linear(196, 10))
"""


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    script = folder.parent / "two.py"
    script.write_text(TWO_MODULES)
    return small, train(f"{script}:Net", data=small, recipe=TINY, out=folder).folder


@pytest.fixture(scope="module")
def selected(run, tmp_path_factory):
    data, folder = run
    out = tmp_path_factory.mktemp("selected") / "run"
    return select(folder, data=data, goal=Goal(keep=1), out=out)


def test_what_it_writes_is_a_run_of_the_net_without_the_branches(run, selected):
    data, folder = run
    last = selected.sizes[-1]
    assert [len(size.left) for size in selected.sizes] == [3, 2, 1]
    gone = [size.removed for size in selected.sizes[1:]]
    assert sorted([*gone, *last.left]) == ["b1", "b3", "pool"]
    assert selected.net == last.net and set(last.net[:-1].partition("[without=")[2].split("+")) == set(gone)
    trained = load_run(selected.folder)
    assert all([*join.branches()] == [*last.left] for join in find_joins(trained.net).values())
    for size in selected.sizes:
        net = build_net(size.net)
        assert (size.parameters, size.macs) == (count_parameters(net), count_macs(net, (1, 28, 28)))
    assert (selected.after.parameters, selected.after.macs) == (last.parameters, last.macs)
    kept = json.loads((trained.folder / "selection.json").read_text())
    assert kept["net"] == last.net and kept["before"]["test_accuracy"] == accuracy_of(folder, data)
    assert kept["after"]["test_accuracy"] == accuracy_of(trained.folder, data)


def accuracy_of(folder, data) -> float:
    trained = load_run(folder)
    logits = predict_logits(trained.net, data.test.images, trained.model)
    return float((logits.argmax(1) == data.test.labels).double().mean())


def test_its_report_is_about_the_selection(selected):
    page = Path(selected.report).read_text()
    assert selected.report.endswith("selection.html") and Path(selected.folder, "report.html").is_file()
    assert 'href="report.html"' in page and "<script" not in page
    drawing = page[page.index("<svg") : page.index("</svg>")]
    labels = re.findall(r">− (\w+)</text>", drawing)
    assert labels == [size.removed for size in selected.sizes[1:]]
    for figure in (
        f"{selected.after.macs:,}",
        f"{selected.after.test_accuracy:.2%}",
        f"{selected.before.test_accuracy:.2%}",
    ):
        assert figure in page


def test_each_step_removes_the_least_important_branch(run, selected):
    data, folder = run
    _, validation = train_and_validation(data, 0.1, 0)
    whole = load_run(folder)
    precision = DTYPES[pick_precision("auto", torch.device("cpu"))]  # what `select` trains and measures in here
    logits = predict_logits(whole.net, validation.images, whole.model, precision=precision)
    assert math.isclose(
        selected.sizes[0].validation_loss, float(torch.nn.functional.cross_entropy(logits, validation.labels)),
        rel_tol=1e-6,
    )  # fmt: skip
    for before, size in zip(selected.sizes, selected.sizes[1:], strict=False):
        losses = {tried.group: tried.validation_loss for tried in size.tried}
        assert set(losses) == set(before.left) and min(losses, key=losses.get) == size.removed
    # By removal: what is left comes first, what went first comes last; by weights: the root mean square.
    order = [branch.group for branch in sorted(selected.worth, key=lambda branch: branch.rank_by_removal)]
    assert order == [*selected.sizes[-1].left, *(size.removed for size in reversed(selected.sizes[1:]))]
    sizes = {branch.group: branch.weight_size for branch in selected.worth}
    weights = [whole.net.get_submodule(f"incep{n}.b1").weight.detach().double().flatten() for n in (1, 2)]
    assert math.isclose(sizes["b1"], float(torch.cat(weights).square().mean().sqrt()), rel_tol=1e-5)
    ranks = {branch.group: branch.rank_by_weights for branch in selected.worth}
    assert sorted(ranks, key=ranks.get) == sorted(sizes, key=lambda name: -sizes[name])


def test_the_only_useful_branch_is_kept(small, tmp_path):
    (tmp_path / "mine.py").write_text(LOUD)
    recipe = TINY.but({"epochs": 4, "batch_size": 50})
    folder = train("mine.py:Net", data=small, recipe=recipe, out="run").folder
    smaller = select(folder, data=small, goal=Goal(keep=1), out="smaller")
    assert smaller.sizes[-1].left == ("join.loud",) and smaller.net.endswith("mine.py:Net[without=blind+dim]")
    assert smaller.after.validation_accuracy > 0.8
    (tmp_path / "mine.py").unlink()  # the run has kept it
    assert load_run("smaller").net.fc.in_features == 64


def test_goals_by_macs_and_join_by_join(run, tmp_path):
    data, folder = run
    smaller = select(folder, data=data, goal=Goal(macs=0.8, each=True), out="smaller")
    assert smaller.after.macs <= 0.8 * smaller.before.macs < smaller.sizes[-2].macs
    assert all("." in name for name in smaller.sizes[0].left) and len(smaller.sizes[0].left) == 6
    # More than four could go: those whose loss at once was higher were not fine-tuned.
    first = smaller.sizes[1].tried
    assert sum(tried.validation_loss is not None for tried in first) == 4 < len(first) == 6
    before = smaller.sizes[0]
    lost = {tried.group: tried.loss_at_once - before.validation_loss for tried in first}
    spared = {tried.group: before.macs - tried.macs for tried in first}
    saved = {name: lost[name] / spared[name] if lost[name] > 0 else -spared[name] for name in lost}
    tuned = {tried.group for tried in first if tried.validation_loss is not None}
    assert max(saved[name] for name in tuned) <= min(saved[name] for name in saved if name not in tuned)
    # The smaller net can be made smaller again.
    again = select("smaller", data=data, goal=Goal(keep=1), out="again")
    assert again.whole == smaller.net and again.after.macs < smaller.after.macs
    with pytest.raises(NetError, match=r"until each join has one leaves 0\.\d+ of its MACs: ask for more"):
        select(folder, data=data, goal=Goal(macs=0.01), out="impossible")


def test_goal_by_lost_accuracy(run):
    data, folder = run
    smaller = select(folder, data=data, goal=Goal(drop=0.03), out="some")
    assert all(size.validation_accuracy >= smaller.before.validation_accuracy - 0.03 for size in smaller.sizes)


def test_a_branch_that_costs_too_much_accuracy_gives_way_to_the_next(run, monkeypatch):
    data, folder = run
    validate, calls = Tuner.validate, []

    def counted(self, net):
        loss, _ = validate(self, net)
        calls.append(loss)
        # The whole, three candidates, then those that were settled: the first is bad, the second good, all others bad.
        return loss, {0: 1.0, 5: 0.99}.get(len(calls) - 1, 0.5)

    monkeypatch.setattr(Tuner, "validate", counted)
    smaller = select(folder, data=data, goal=Goal(drop=0.02), out="next")
    first = smaller.sizes[1]
    cost = {
        tried.group: (tried.validation_loss - calls[0]) / (smaller.before.macs - tried.macs) for tried in first.tried
    }
    by_cost = sorted(cost, key=cost.get)
    assert first.removed == by_cost[1] and len(smaller.sizes) == 2
    assert re.match(
        r"once trained, the net loses \d+\.\d\d% of validation accuracy, more than the 2\.00%", smaller.missed
    )


def test_a_join_inside_a_branch_is_removed_with_it_and_what_cannot_be_removed_stays(small, tmp_path, monkeypatch):
    (tmp_path / "nested.py").write_text(NESTED)
    folder = train("nested.py:Net", data=small, recipe=TINY, out="run").folder
    validate = Tuner.validate
    # As if the net did best without `wide`, which holds a join.
    monkeypatch.setattr(
        Tuner, "validate", lambda self, net: (float(hasattr(net.outer, "wide")), validate(self, net)[1])
    )
    observer = StopAt("never")
    smaller = select(folder, data=small, goal=Goal(keep=1), out="smaller", progress=observer)
    assert {"outer.wide", "outer.wide.inner.a", "outer.wide.inner.b"} <= {*smaller.sizes[0].left}
    assert smaller.sizes[1].removed == "outer.wide" and not any("inner" in name for name in smaller.sizes[1].left)
    assert smaller.net.endswith("nested.py:Net[without=residual+wide]") and smaller.missed is None
    stays = [line for line in observer.notes if " stays: " in line]
    assert [line.split()[0] for line in stays] == ["fixed.add.residual.c", "fixed.add.residual.d"]
    assert load_run("smaller").net.fc.in_features == 98


def test_no_branch_can_be_removed_at_that_price(small, tmp_path):
    (tmp_path / "mine.py").write_text(PROFILES)
    folder = train("mine.py:Net", data=small, recipe=TINY.but({"epochs": 4, "batch_size": 50}), out="run").folder
    message = r"least important branches of mine-Net loses more than 1\.00% of validation accuracy: allow a larger"
    with pytest.raises(NetError, match=message):
        select(folder, data=small, goal=Goal(drop=0.01), out="never")
    with pytest.raises(RecipeError, match=r"--keep must be less than 2, .* got 2"):
        select(folder, data=small, out="never")


def test_groups():
    net = torch.nn.Sequential(
        Concat(a=torch.nn.Identity(), b=torch.nn.Identity(), c=torch.nn.Identity()),
        Concat(a=torch.nn.Identity(), b=torch.nn.Identity(), c=torch.nn.Identity()),
        Add(residual=torch.nn.Conv2d(9, 9, 1), shortcut=torch.nn.Identity()),
        Concat(a=torch.nn.Identity(), b=torch.nn.Identity(), d=torch.nn.Identity()),
        Concat(only=torch.nn.Identity()),
    )
    assert [group.name for group in find_groups(net, False)] == [
        "0.a+1.a", "0.b+1.b", "c", "2.residual", "2.shortcut", "3.a", "3.b", "3.d",
    ]  # fmt: skip
    assert len(find_groups(net, True)) == 11
    assert weight_size(net, find_groups(net, False)[0]) is None


class StopAt(Observer):
    """Presses Ctrl-C at the first note that begins with `words`."""

    def __init__(self, words: str) -> None:
        self.words, self.notes = words, []

    def note(self, message: str) -> None:
        self.notes.append(message)
        if message.startswith(self.words):
            raise KeyboardInterrupt


@pytest.mark.parametrize("words", ["2 left", "epoch"])
def test_a_selection_that_was_stopped_goes_on(run, selected, words, tmp_path, monkeypatch):
    data, folder = run
    stop = StopAt(words)
    if words == "epoch":
        monkeypatch.setattr(stop, "epoch", lambda epoch: stop.note("epoch"))
    with pytest.raises(Interrupted, match="repeat the command with --out half"):
        select(folder, data=data, goal=Goal(keep=1), out="half", progress=stop)
    if words != "epoch":  # after an epoch, the folder holds a trained net
        with pytest.raises(RunError, match="an interrupted selection: run branchwork select again with --out half"):
            load_run("half")
    with pytest.raises(RunError, match="the steps of another selection"):
        select(folder, data=data, goal=Goal(keep=2), out="half")
    on = StopAt("never")
    again = select(folder, data=data, goal=Goal(keep=1), out="half", progress=on)
    first = min(i for i, line in enumerate(on.notes) if " left: " in line)
    assert on.notes[first].startswith(words if words != "epoch" else "1 left")
    times = {"seconds": 0.0, "folder": "", "report": ""}
    plain = [
        replace(selection, **times, sizes=tuple(replace(s, seconds=0.0) for s in selection.sizes))
        for selection in (again, selected)
    ]
    assert plain[0] == plain[1]
    with pytest.raises(RunError, match="holds a finished selection"):
        select(folder, data=data, goal=Goal(keep=1), out="half")
    Path("half/selection.json").unlink()  # as if it had been killed before the last file
    assert replace(select(folder, data=data, goal=Goal(keep=1), out="half"), sizes=(), **times) == replace(
        plain[0], sizes=()
    )
    assert Path("half/selection.json").is_file() and not Path("half/.selecting").exists()


def test_a_selection_does_not_go_on_with_a_script_that_was_edited(small, monkeypatch):
    Path("two.py").write_text(TWO_MODULES)
    with pytest.raises(Interrupted):
        select("two.py:Net", data=small, goal=Goal(keep=1), epochs=1, out="half", progress=StopAt("2 left"))
    Path("two.py").write_text(TWO_MODULES.replace("ReLU", "GELU"))
    with pytest.raises(RunError, match=r"half.script holds another script: choose another --out"):
        select("two.py:Net", data=small, goal=Goal(keep=1), epochs=1, out="half")


def test_steps_that_name_another_net_are_damaged(run):
    data, folder = run
    with pytest.raises(Interrupted):
        select(folder, data=data, goal=Goal(keep=1), out="half", progress=StopAt("2 left"))
    steps = json.loads(Path("half/steps.json").read_text())
    steps["sizes"][-1]["net"] = "evil:run"
    Path("half/steps.json").write_text(json.dumps(steps))
    with pytest.raises(RunError, match=r"steps\.json is damaged \(its sizes are not all of one net"):
        select(folder, data=data, goal=Goal(keep=1), out="half")


def test_a_net_without_a_recipe_is_one_message(run, tmp_path):
    data, folder = run
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = json.loads((copy / "model.json").read_text())
    del model["recipe"]
    (copy / "model.json").write_text(json.dumps(model))
    with pytest.raises(RunError, match="copy holds no recipe: select from a run made by branchwork train"):
        select(copy, data=data, out="never")


def test_steps_belong_to_the_weights_they_started_from(run, tmp_path):
    data, folder = run
    stop = StopAt("2 left")
    with pytest.raises(Interrupted):
        select(folder, data=data, goal=Goal(keep=1), out="half", progress=stop)
    other = shutil.copytree(folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, other / "model.safetensors")
    with pytest.raises(RunError, match="the steps of another selection"):
        select(other, data=data, goal=Goal(keep=1), out="half")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"goal": Goal(keep=3)}, RecipeError, "--keep must be less than 3, .* got 3"),
        ({"options": Options(seed=3)}, RecipeError, "leave out --seed"),
        ({"options": Options(weights="RUN")}, RecipeError, "weights cannot be combined"),
        ({"out": "RUN"}, RunError, "holds another run"),
    ],
)
def test_what_is_refused(run, arguments, error, message):
    data, folder = run
    arguments = {key: folder if value == "RUN" else value for key, value in arguments.items()}
    with pytest.raises(error, match=message):
        select(folder, data=data, **{"out": "never", **arguments})


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"each": True}, "a goal needs one of --keep, --macs and --drop"),
        ({"keep": 2, "macs": 0.5}, "--keep, --macs cannot be combined"),
        ({"keep": 0}, "--keep must be at least 1, got 0"),
        ({"macs": 1.0}, "--macs must be .*, above 0 and below 1, got 1"),
        ({"macs": 0.0}, "--macs must be .*, got 0"),
        ({"macs": float("nan")}, "--macs must be .*, got nan"),
        ({"drop": 1.5}, "--drop must be .* below 100%, got 150"),
    ],
)
def test_impossible_goals(goal, message):
    with pytest.raises(RecipeError, match=message):
        Goal(**goal)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("plain20", "no join with named branches, so there is nothing to select"),
        ("inception[without=b1+b3+b5]", "has only one branch, which must stay"),
        ("inceptoin", "no net called"),
    ],
)
def test_nets_without_a_choice(small, net, message):
    with pytest.raises(NetError, match=message):
        select(net, data=small, goal=Goal(keep=1))


def test_data_of_other_classes_and_runs_without_validation(run, small):
    data, folder = run
    with pytest.raises(DataError, match="only in the net: 9"):
        select(folder, data=replace(data, classes=(*data.classes[:9], "nine")), out="never")
    with pytest.raises(DataError, match="in another order"):
        select(folder, data=replace(data, classes=data.classes[::-1]), out="never")
    Path("two.py").write_text(TWO_MODULES)
    other = train("two.py:Net", data=data, recipe=TINY.but({"validation": 0.0}), out="all").folder
    with pytest.raises(RecipeError, match="none are left to validate on"):
        select(other, data=data, out="never")


def test_the_command(small, command, refused, monkeypatch):
    Path("two.py").write_text(TWO_MODULES)
    monkeypatch.setattr(module, "load_data", lambda *a, **k: small)
    words = ("--epochs", 1, "--keep", 2, "--out", "run", "--json", "figures.json")
    code, out, err = command("select", "two.py:Net", *words)
    assert code == 0 and "rank by weights" in out and "branches kept in each join: 2" in out, err
    figures = json.loads(Path("figures.json").read_text())
    assert figures["after"]["macs"] < figures["before"]["macs"] and len(figures["sizes"]) == 2
    assert load_run("run/whole").model.net.endswith("two.py:Net")
    assert "--drop must be a percentage of accuracy, such as 0.2%" in refused("select", "run", "--drop", "0.2")
    assert "leave out --seed" in refused("select", "run", "--seed", "0")
    assert "is a folder" in refused("select", ".")
    assert issubclass(RecipeError, BranchworkError) and str(Goal(drop=0.002)).startswith("at most 0.20%")


def test_a_run_that_is_not_finished(run, tmp_path):
    data, folder = run
    shutil.copytree(folder, tmp_path / "begun")
    (tmp_path / "begun/result.json").unlink()
    with pytest.raises(RunError, match="is not finished: continue it with branchwork train --resume begun"):
        select("begun", data=data, out="never")

"""Steps by torch.compile: equal to those as written, and kept within a training where they are faster."""

import pytest
import torch
from test_loop import EXACT, SMALL, last
from test_train import same

import branchwork as bw
from branchwork.errors import RecipeError
from branchwork.observer import Observer
from branchwork.training import compiling, train
from branchwork.training.compiling import READINGS, REST, SECONDS_A_LAYER, Compilable, Trial
from branchwork.training.distributed import Processes


class Notes(Observer):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def small_trial() -> tuple[Compilable, Trial]:
    step = Compilable(bw.build_net(SMALL), {64})  # four layers
    return step, Trial(step, Processes())


def give(trial: Trial, seconds: float, left: float) -> list[str]:
    """What a trial tells that is given `seconds` each time, after a first time that is not to count."""
    return [told for one in (9.0, *[seconds] * READINGS) if (told := trial.read(one, left)) is not None]


@pytest.mark.parametrize(("compiled", "kept"), [(0.02, True), (0.04, False)])
def test_the_faster_steps_are_kept(compiled, kept):
    step, trial = small_trial()
    assert give(trial, 0.03, 1e4) == [] and step.compiled and trial.running
    [told] = give(trial, compiled, 1e4)
    assert f"take {1e3 * compiled:g} ms in place of 30, and are {'kept' if kept else 'left'}" in told
    assert step.compiled == kept and not trial.running


def test_nothing_is_tried_where_too_little_of_the_training_is_left():
    for left, tried in ((REST * SECONDS_A_LAYER * 4 - 1, False), (REST * SECONDS_A_LAYER * 4 + 1, True)):
        step, trial = small_trial()
        assert give(trial, 0.03, left) == []
        assert step.compiled == trial.running == tried


def test_processes_decide_by_the_mean_of_their_clocks(monkeypatch):
    """One that thinks that enough is left, and another that does not, do the same."""
    border = REST * SECONDS_A_LAYER * 4
    monkeypatch.setattr(Processes, "sum", lambda self, numbers: [numbers[0] + 0.05, numbers[1] + border - 10])
    for left, tried in ((border + 9, False), (border + 11, True)):
        step = Compilable(bw.build_net(SMALL), {64})
        trial = Trial(step, Processes(count=2))
        assert give(trial, 0.03, left) == [] and step.compiled == tried
    assert "in place of 40" in give(trial, 0.01, left)[0]


def test_a_step_that_failed_on_trial_is_taken_as_it_is_and_no_other_is_tried():
    step, trial = small_trial()
    assert not trial.give_up()  # nothing compiled has failed yet
    give(trial, 0.03, 1e4)
    assert trial.give_up() and not step.compiled
    assert not trial.give_up()
    assert give(trial, 0.01, 1e4) == ["torch.compile could not compile the steps: they stay as they are"]
    assert not step.compiled and not trial.running


def test_batches_of_another_size_are_run_as_they_are(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: lambda images: "compiled")
    step, _ = small_trial()
    full, rest = torch.zeros(64, 1, 28, 28), torch.zeros(6, 1, 28, 28)
    assert step(full).shape == (64, 10)
    step.compiled = True
    assert step(full) == "compiled" and step(rest).shape == (6, 10)


@pytest.fixture
def on_trial(monkeypatch):
    """Trials on this processor, in a training of seconds."""
    monkeypatch.setattr(train, "may_compile", lambda plan: plan.compile is not False)
    monkeypatch.setattr(compiling, "SECONDS_A_LAYER", 0.0)


# torch warns of its own old calls when it loads the compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_steps_give_the_weights_of_those_as_written_in_float64(small, tmp_path, on_trial):
    observer, ran = Notes(), []
    compilable = Compilable.forward
    bw.train(SMALL, data=small, recipe=EXACT, out=tmp_path / "written", compile=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compilable, "forward", lambda self, x: (ran.append(self.compiled), compilable(self, x))[1])
        bw.train(SMALL, data=small, recipe=EXACT, out=tmp_path / "tried", observer=observer)
    assert ran[: READINGS + 1] == [False] * (READINGS + 1) and all(ran[READINGS + 1 : 2 * READINGS + 2])
    [told] = [note for note in observer.told if "compiled" in note]
    assert all(ran[2 * READINGS + 2 :]) if "are kept" in told else not any(ran[2 * READINGS + 2 :])
    for key, weight in last(tmp_path / "tried").items():
        torch.testing.assert_close(weight, last(tmp_path / "written")[key], rtol=1e-10, atol=1e-12)


@pytest.fixture
def no_compiler(monkeypatch):
    def fails(net, dynamic):
        def run(images):
            raise torch._dynamo.exc.Unsupported("no kernel for this")

        return run

    monkeypatch.setattr(torch, "compile", fails)


def test_a_net_that_cannot_be_compiled_is_trained_as_it_is(small, tmp_path, on_trial, no_compiler):
    observer = Notes()
    bw.train(SMALL, data=small, recipe=EXACT, out=tmp_path / "written", compile=False)
    bw.train(SMALL, data=small, recipe=EXACT, out=tmp_path / "tried", observer=observer)
    assert any("could not compile" in note for note in observer.told)
    assert same(tmp_path / "tried", tmp_path / "written")


def test_what_was_to_be_compiled_and_cannot_be_is_told(small, no_compiler):
    with pytest.raises(RecipeError, match=r"cannot compile steps of .*Small \(no kernel.*\): leave out --compile"):
        bw.train(SMALL, data=small, recipe=EXACT, compile=True)

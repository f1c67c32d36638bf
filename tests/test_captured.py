"""Steps that are recorded and replayed give the weights of steps as usual. A stand-in records, since no GPU is here."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count

import pytest
import torch
from helpers import recording
from helpers.training import NORMED, SGD, SMALL, Small, StopAt, last, same
from torch import nn

import branchwork as bw
from branchwork.errors import Interrupted
from branchwork.fusing import collapse
from branchwork.fusing.tiles import Tiles
from branchwork.observer import Observer
from branchwork.training import captured, training_run
from branchwork.training.optimizers import make_optimizer
from branchwork.training.recipe import Recipe
from branchwork.training.result import Result
from branchwork.training.step import update_average

AUGMENTED = {"shift": 2, "rotation": 5.0, "erasing": 0.5, "flip": 0.5, "colour": 0.3, "crop": 0.2, "elastic": 1.0}
# A rate that float32 holds exactly, as the recording does. Of 22 batches an epoch, the last has 6 images.
CONSTANT = SGD.but({"learning_rate": 2**-5, "precision": "fp64"})


class Captures(Observer):
    """Whether steps are recorded, what records them, and what it said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[captured.CapturedStep] = []
        self.on = True

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def captures(monkeypatch):
    """Let trainings on the CPU record and replay their steps, by a stand-in for CUDA graphs."""
    captures = Captures()

    def captured_step(state, options, *, position, observer):
        if not captures.on:
            return None
        captures.steps.append(captured.CapturedStep(position, captures.note))
        return captures.steps[-1]

    monkeypatch.setattr(captured, "record_graph", recording.record)
    monkeypatch.setattr(training_run, "captured_step", captured_step)
    return captures


def train(net: str, data, recipe: Recipe, out: str, *, weights: str | None = None, **others: object) -> Result:
    options = bw.Options(report=False, weights=weights)
    return bw.train(net, data=data, recipe=recipe, options=options, out=out, **others)


def both_ways(net: str, data, recipe: Recipe, captures: Captures, **others: str) -> Result:
    """Train into `replayed` and `usual`; gives the result of the first."""
    captures.on = True
    result = train(net, data, recipe, "replayed", **others)
    captures.on = False
    assert train(net, data, recipe, "usual", **others).capture_seconds == 0
    return result


class Dropping(Small):
    def __init__(self):
        super().__init__()
        self.insert(3, nn.Dropout(0.3))


@pytest.mark.parametrize(
    ("net", "changes", "recordings"),
    [
        (SMALL, {"weight_decay": 0.01}, 1),
        (f"{__name__}:Dropping", {"optimizer": "adam", "learning_rate": 2**-8}, 1),
        (NORMED, {**AUGMENTED, "accumulate": 3, "clip": 1.0, "label_smoothing": 0.1, "ema": 0.9}, 1),
        (NORMED, {"shift": 2.0, "mixup": 0.2, "refine": 0.4, "momentum": 0.0}, 2),
        ("residual", {"optimizer": "adam", "learning_rate": 2**-8, "epochs": 1}, 1),
        ("inception", {"epochs": 1, "fraction": 0.3}, 1),
    ],
)
def test_replayed_steps_give_the_weights_of_steps_as_usual_bit_for_bit(small, captures, net, changes, recordings):
    result = both_ways(net, small, CONSTANT.but(changes), captures)
    (steps,) = captures.steps
    assert len(steps.recordings) == recordings and captures.notes == []
    assert 0 < result.capture_seconds < result.train_seconds
    assert same("usual", "replayed")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_of_the_head_alone_are_recorded_apart_from_those_of_all_layers(small, captures, optimizer):
    captures.on = False
    train(NORMED, small, CONSTANT.but({"epochs": 1}), "first")
    recipe = CONSTANT.but({"optimizer": optimizer, "epochs": 2, "head_epochs": 1, "lowest_rate": 0.25})
    both_ways(NORMED, small, recipe, captures, weights="first")
    (steps,) = captures.steps
    assert len(steps.recordings) == 2 and captures.notes == []
    # The shares of the rate are rounded to float32.
    for key, tensor in last("usual").items():
        torch.testing.assert_close(last("replayed")[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adam"}, {"optimizer": "muon", "weight_decay": 0.1}])
def test_a_rate_and_a_decay_that_change_reach_each_replayed_step(small, captures, changes):
    recipe = CONSTANT.but({"schedule": "linear", "warmup": 0.3, "ema": 0.99, "learning_rate": 0.01, **changes})
    both_ways(NORMED, small, recipe, captures)
    assert captures.notes == []
    # The rate is rounded to float32, and the weights of one epoch differ by about a thirtieth.
    for key, tensor in last("usual").items():
        torch.testing.assert_close(last("replayed")[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_optimisers_take_a_rate_in_a_tensor_as_they_take_a_number(optimizer, decay):
    recipe = bw.fast().but({"optimizer": optimizer, "momentum": 0.6, "weight_decay": decay})
    nets = []
    for kind in (float, torch.tensor):
        torch.manual_seed(0)
        net = Small().double()
        made = make_optimizer([*net.parameters()], recipe)
        average = Small().double()
        average.load_state_dict(net.state_dict())
        for step in range(8):
            net.zero_grad()
            net(torch.randn(16, 1, 28, 28, dtype=torch.float64)).square().mean().backward()
            for group in made.param_groups:
                group["lr"] = kind(2.0 ** -(5 + step))
            made.step()
            rate = 1 - 1 / (2 + step)
            update_average(average, net, rate if kind is float else torch.tensor(rate, dtype=torch.float64))
        nets.append({**net.state_dict(), **{f"average.{key}": value for key, value in average.state_dict().items()}})
    for key, tensor in nets[0].items():
        torch.testing.assert_close(nets[1][key], tensor, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("at", [(1, 5), (2, 1), (2, 15)])
def test_replayed_steps_resume_bit_for_bit(small, captures, at):
    recipe = CONSTANT.but({"shift": 2.0, "refine": 0.4, "ema": 0.9, "schedule": "linear", "precision": "fp32"})
    train(f"{__name__}:Dropping", small, recipe, "whole")
    with pytest.raises(Interrupted):
        train(f"{__name__}:Dropping", small, recipe, "parts", progress=StopAt(*at))
    result = bw.resume("parts", data=small)
    assert same("whole", "parts") and captures.notes == []
    assert result.capture_seconds > captures.steps[-1].position.capture_seconds - 1e-9


# What a recording would lose is not recorded.


class Counts(Small):
    seen = 0

    def forward(self, x):
        self.seen += 1
        return super().forward(x) * (1 + self.seen)


class Draws(Small):
    def forward(self, x):
        return super().forward(x) * random.uniform(0.5, 2)


class Replaces(Small):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(10))

    def forward(self, x):
        x = super().forward(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Reads(Small):
    def forward(self, x):
        x = super().forward(x)
        return x / 2 if x.detach().abs().max() > 1 else x


CALLS = count()


class ReadsTheWorld(Small):
    def forward(self, x):
        return super().forward(x) * (1 + next(CALLS) % 5 if self.training else 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counts, "a step of the net changes seen"),
        (Draws, "a step of the net changes Python's random numbers"),
        (Replaces, "a step of the net replaces a buffer"),
        (Reads, "operation not permitted when stream is capturing"),
    ],
)
def test_a_net_that_a_recording_would_change_is_trained_as_usual_and_told_why(small, captures, kind, reason):
    random.seed(1)
    captures.on = True
    train(f"{__name__}:{kind.__name__}", small, CONSTANT, "replayed")
    random.seed(1)
    captures.on = False
    train(f"{__name__}:{kind.__name__}", small, CONSTANT, "usual")
    (note,) = captures.notes
    assert note.startswith("training steps are not recorded as a CUDA graph") and reason in note
    assert same("usual", "replayed")


def test_a_net_whose_steps_differ_from_time_to_time_is_not_recorded(small, captures):
    train(f"{__name__}:ReadsTheWorld", small, CONSTANT, "replayed")
    (note,) = captures.notes
    assert "the recorded step differs from an ordinary step" in note


def does_nothing(work: Callable[[], torch.Tensor]):
    return lambda: None, work()


def takes_two(work: Callable[[], torch.Tensor]):
    replay, loss = recording.record(work)
    return lambda: [replay(), replay()], loss


def spoils_statistics(work: Callable[[], torch.Tensor]):
    """As a recording would that lost the kernels of the batch norms' statistics."""
    with recording.Recorder() as recorder:
        loss = work()
    recorder.calls = [call for call in recorder.calls if "native_batch_norm" not in str(call[0])]
    return recorder.replay, loss


def cannot(work: Callable[[], torch.Tensor]):
    work()
    raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore lines")


@pytest.mark.parametrize("record", [does_nothing, takes_two, spoils_statistics, cannot])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_a_recording_that_computes_something_else_is_not_used(small, captures, monkeypatch, record, optimizer):
    monkeypatch.setattr(captured, "record_graph", record)
    recipe = CONSTANT.but({"optimizer": optimizer, "epochs": 1, "ema": 0.9})
    both_ways(NORMED, small, recipe, captures)
    (note,) = captures.notes
    assert (
        "previous error during capture" if record is cannot else "the recorded step differs from an ordinary step"
    ) in note
    assert "more lines" not in note
    assert same("usual", "replayed")


class Wide(nn.Module):
    """Collapsed, its border has kernels of its own: two convolutions in a row, each of which pads its image."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.Conv2d(8, 2, 3, padding=1)
        self.head = nn.Linear(2, 10)

    def forward(self, x):
        return self.head(self.conv2(self.conv1(x)).relu().mean((2, 3)))


def test_a_collapsed_net_of_tiles_is_recorded(small, captures, monkeypatch):
    def whole(planner: collapse.Planner, written: object) -> frozenset:  # type: ignore[type-arg]
        found = frozenset(planner.segment[-1:])
        return found if planner.cost(found) < float("inf") else frozenset(planner.segment)

    monkeypatch.setattr(collapse, "FORMS", (Tiles,))
    monkeypatch.setattr(collapse, "GAIN", -float("inf"))
    monkeypatch.setattr(collapse.Planner, "descend", whole)
    result = both_ways(f"{__name__}:Wide", small, CONSTANT.but({"epochs": 1, "fraction": 0.2}), captures)
    assert result.execution == "collapsed" and captures.notes == []
    assert same("usual", "replayed")


class Views(nn.Module):
    """Its weights are moved to channels_last and back whenever somebody looks whether that would be faster."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 4, 5, stride=4), nn.Linear(100, 10)

    def forward(self, x):
        return self.head(self.conv2(self.conv1(x).relu()).view(len(x), -1))


def test_tensors_that_were_moved_after_the_recording_are_noticed(small, captures):
    both_ways(f"{__name__}:Views", small, CONSTANT, captures)
    (note,) = captures.notes
    assert "the tensors of the net were moved in memory" in note
    assert same("usual", "replayed")


# What torch does for a recording, if that fails.


class Stream:
    """A stream of a GPU, as far as others wait for it."""

    device = torch.device("cuda", 0)

    def __init__(self, name: str, waits: list[tuple[str, str]]) -> None:
        self.name, self.waits = name, waits

    def wait_stream(self, other: "Stream") -> None:
        self.waits.append((self.name, other.name))


def test_a_step_that_fails_beside_is_waited_for_before_numbers_are_restored(monkeypatch):
    waits: list[tuple[str, str]] = []
    main, beside = Stream("main", waits), Stream("beside", waits)
    monkeypatch.setattr(captured, "_other_stream", lambda device: beside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    with pytest.raises(RuntimeError, match="a synchronizing operation"), captured._beside(main.device):
        raise RuntimeError("a synchronizing operation")
    assert waits == [("beside", "main"), ("main", "beside")]


@pytest.mark.parametrize("left_open", [True, False])
def test_a_recording_that_fails_ends_what_torch_keeps_open_for_it(monkeypatch, left_open):
    """torch 2.11 goes on to give out the memory of a recording that failed; later versions do not."""
    ended: list[tuple[str, object]] = []
    main, pool, state = Stream("main", []), (0, 7), object()

    class Generator:
        def clone_state(self):
            return state

        def graphsafe_set_state(self, given):
            ended.append(("random numbers", given))

    class Graph:
        replay = None

    def end(number: int, given: object) -> None:
        if not left_open:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        ended.append(("memory", (number, given)))

    for name, value in {
        "current_stream": lambda: main, "CUDAGraph": Graph, "graph_pool_handle": lambda: pool,
        "graph": lambda graph, given: nullcontext() if given == pool else None, "default_generators": (Generator(),),
        "set_stream": lambda stream: ended.append(("stream", stream)),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    release = lambda number, given: ended.append(("pool", (number, given)))  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)

    def fails() -> torch.Tensor:
        raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError, match="previous error during capture"):
        captured.record_graph(fails)
    memory = [("memory", (0, pool)), ("pool", (0, pool))] if left_open else []
    assert ended == [("stream", main), ("random numbers", state), *memory]


# Whether to record at all.


def test_only_a_gpu_records_and_only_if_it_is_allowed_to(small, monkeypatch):
    class State:
        """A net in training on a GPU, as far as the question goes."""

        class net:
            parameters = staticmethod(lambda: iter([FakeWeight]))

        class processes:
            count = 1

    class FakeWeight:
        device = torch.device("cuda")

    notes = Captures()

    def asked(**options: object) -> object:
        return captured.captured_step(State, bw.Options(**options), position=None, observer=notes)

    assert isinstance(asked(), captured.CapturedStep) and asked(capture=False) is None and notes.notes == []
    assert asked(compile=True) is None and "torch.compile runs them" in notes.notes.pop()
    State.processes.count = 2
    assert asked() is None and "several processes" in notes.notes.pop()
    FakeWeight.device = torch.device("cpu")
    assert asked() is None and notes.notes == []


def test_the_stand_in_refuses_what_waits_and_keeps_python_out():
    numbers = torch.arange(3.0)
    for waits in (lambda: numbers.sum().item(), lambda: torch.tensor([1.0]) + numbers, lambda: numbers[numbers > 1]):
        with pytest.raises(RuntimeError, match="not permitted"):
            recording.record(waits)
    factor = [2.0]
    replay, doubled = recording.record(lambda: numbers * factor[0])
    numbers += 1
    factor[0] = 5.0
    replay()
    assert doubled.tolist() == [2.0, 4.0, 6.0]

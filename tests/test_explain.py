import copy
import dataclasses
import html
import importlib.util
import json
import re
import shutil
import statistics
import sys
from functools import cache
from itertools import permutations
from math import comb
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import lecture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

import branchwork as bw
from branchwork.blocks import Add, Concat, chain
from branchwork.catalogue.densenet import DenseDesign, densenet
from branchwork.cli.explain import verdict_lines
from branchwork.datasets.dataset import Split
from branchwork.explaining import attribution
from branchwork.explaining.attribution import TOLERANCE, explain_joins, grad_cam, integrated_gradients, occlude
from branchwork.explaining.explain_plots import draw_contributions
from branchwork.explaining.ranks import FEWEST, rank_interval, spearman, verdict_of
from branchwork.explaining.results import Contribution, Explanation
from branchwork.explaining.worth import relations
from branchwork.graph.branching import BranchedNet, read_branches
from branchwork.observer import Observer
from branchwork.palette import LIGHT
from branchwork.training import measure
from branchwork.training.evaluate import evaluate, paired_interval
from branchwork.training.measure import observe, remove_each, shortcut_of, time_branches
from branchwork.training.run import Model, keep_script, write_model

SHAPE = (1, 28, 28)
LECTURE = str(Path(lecture.__file__).resolve())


def made(build, *arguments, **options) -> nn.Module:
    torch.manual_seed(0)
    return build(*arguments, **options).eval()


def images(count: int = 5, shape=SHAPE) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def model_of(net: str, shape=SHAPE, classes: int = 10) -> Model:
    names = tuple(map(str, range(classes)))
    half = (0.5,) * shape[0]
    return Model(net, shape[0], shape[1:], names, half, half, "crop", "sample")


def split_of(count: int, shape=SHAPE) -> Split:
    random = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=random)
    return Split(pixels, torch.randint(0, 10, (count,), generator=random))


class Replaced(nn.Module):
    """A branch whose output is replaced by its mean over the batch and all positions, or by zeros: by hand."""

    def __init__(self, branch: nn.Module, by: str) -> None:
        super().__init__()
        self.branch, self.by = branch, by

    def forward(self, x):
        output = self.branch(x)
        return output.mean((0, 2, 3), keepdim=True).expand_as(output) if self.by == "mean" else torch.zeros_like(output)


def by_hand(net: nn.Module, join: str, branch: str, by: str) -> nn.Module:
    changed = copy.deepcopy(net)
    block = changed.get_submodule(join)
    branch = "input" if branch == "shortcut" and isinstance(block, Concat) else branch
    setattr(block, branch, Replaced(getattr(block, branch), by))
    return changed


def without(branched: BranchedNet, x: torch.Tensor, join: str, branch: str, by: str) -> torch.Tensor:
    """The logits without a branch, whose mean is that of `x`."""
    _, entering = branched.run_to_joins(x)
    tensors = entering[join][branch]
    if by == "mean":
        dims = [(0, *range(2, tensor.dim())) for tensor in tensors]
        replaced = [t.mean(d, keepdim=True).expand_as(t) for t, d in zip(tensors, dims, strict=True)]
    else:
        replaced = list(map(torch.zeros_like, tensors))
    return branched.run_from_join(join, entering[join] | {branch: replaced}, x)


SMALL_DENSE = {"in_channels": 1, "num_classes": 10, "image_size": 28, "stem": "small"}
NETS = {
    "inception": (lambda: bw.NETS["inception"](), SHAPE),
    "residual": (lambda: bw.NETS["residual"](), SHAPE),
    "resnet20": (lambda: bw.NETS["resnet20"](), (3, 32, 32)),
    "densenet": (lambda: densenet("dense", DenseDesign((2, 2), 4, 8), **SMALL_DENSE), SHAPE),
    "googlenet": (lambda: small_googlenet(), (3, 32, 32)),
}


def small_googlenet() -> nn.Module:
    """With two of its modules, and few channels."""
    modules = {"3a": (8, (4, 8), (4, 8), 8), "3b": (8, (4, 8), (4, 8), 8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["branchwork.catalogue.googlenet"], "MODULES", modules)
        return bw.NETS["googlenet"](num_classes=10, image_size=32)


@cache
def read(name: str) -> tuple[nn.Module, BranchedNet, tuple[int, ...]]:
    """A net of random weights, in float64, whose joins take a while to be read."""
    build, shape = NETS[name]
    net = made(build).double()
    return net, read_branches(net, shape), shape


@pytest.mark.parametrize("name", NETS)
def test_a_net_without_a_branch_is_the_net_computed_anew_without_it(name):
    net, branched, shape = read(name)
    x = images(4, shape).double()
    # The first and the last join are enough of a deep net.
    for join in {next(iter(branched.entries)): 0, list(branched.entries)[-1]: 0}:
        block = join.rpartition(".")[0]
        for branch in branched.entries[join]:
            for by in ("zero", "mean"):
                with torch.no_grad():
                    expected = by_hand(net, block, branch, by)(x)
                    assert not torch.allclose(net(x), expected, atol=1e-5)
                    torch.testing.assert_close(without(branched, x, join, branch, by), expected)


def test_every_join_of_a_net_is_found():
    counts = {name: len(read(name)[1].entries) for name in NETS}
    assert counts == {"inception": 2, "residual": 2, "resnet20": 9, "densenet": 4, "googlenet": 2}


@pytest.mark.parametrize("by", ["zero", "mean"])
def test_branches_of_a_learners_own_script_are_removed(by):
    net, x = made(lecture.InceptionNet), images()
    branched = read_branches(net, SHAPE)

    def replaced(output):
        return output.mean((0, 2, 3), keepdim=True).expand_as(output) if by == "mean" else 0 * output

    with torch.no_grad():
        # incep2 without its double 3×3, from the facts of the lecture.
        y = F.relu(net.mp(net.conv2(net.incep1(F.relu(net.mp(net.conv1(x)))))))
        block = net.incep2
        parts = [
            block.branch1x1(y),
            block.branch5x5_2(block.branch5x5_1(y)),
            replaced(block.branch3x3_3(block.branch3x3_2(block.branch3x3_1(y)))),
            block.branch_pool(F.avg_pool2d(y, 3, 1, 1)),
        ]
        expected = net.fc(torch.cat(parts, 1).flatten(1))
        actual = without(branched, x, "incep2.cat", "branch3x3", by)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)

    net = made(lecture.ResidualNet)
    branched = read_branches(net, SHAPE)
    with torch.no_grad():
        y = net.mp(F.relu(net.conv2(net.rblock1(net.mp(F.relu(net.conv1(x)))))))
        block = net.rblock2
        expected = net.fc(F.relu(replaced(y) + block.conv2(F.relu(block.conv1(y)))).flatten(1))
        actual = without(branched, x, "rblock2.add", "shortcut", by)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """Joins as learners and papers write them: parts of a split, a learned position, one layer in two branches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 5, stride=4)
        self.place = nn.Parameter(torch.randn(1, 4, 6, 6))
        self.own, self.shared = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.stem(x) + self.place * 2
        one, two = x.chunk(2, dim=1)
        x = self.relu(torch.cat([one, two, self.own(two)], 1))
        x = torch.cat([self.shared(x), self.shared(self.relu(-x))], 1)
        return self.head(self.relu(x).mean((2, 3)))


def test_parts_of_a_split_constants_and_shared_layers():
    net, x = made(Odd), images()
    branched = read_branches(net, SHAPE)
    assert [list(branches) for branches in branched.entries.values()] == [["shortcut", "own"], ["shared", "shared@2"]]
    first, _ = branched.entries
    split, _ = branched.entries[first]
    with torch.no_grad():
        y = net.stem(x) + 2 * net.place
        whole = torch.cat([y.mean((0, 2, 3), keepdim=True).expand_as(y), net.own(y[:, 2:])], 1).relu()
        whole = torch.cat([net.shared(whole), net.shared((-whole).relu())], 1)
        expected = net.head(whole.relu().mean((2, 3)))
        torch.testing.assert_close(without(branched, x, first, split, "mean"), expected)
    observed = observe(branched, model_of("odd"), split_of(5))
    assert [tuple(mean.shape) for mean in observed.means[first, split]] == [(1, 2, 1, 1)] * 2
    assert observed.rms.keys() == observed.means.keys()


def test_what_is_observed_and_lost_is_what_the_whole_nets_give(monkeypatch):
    net, model, split = made(NETS["inception"][0]), model_of("inception"), split_of(60)
    branched = read_branches(net, SHAPE)
    observed = observe(branched, model, split)
    removed = remove_each(branched, model, split, observed=observed, observer=Observer())
    x = (split.images / 255 - 0.5) / 0.5
    with torch.no_grad():
        assert torch.equal(observed.correct, net(x).argmax(1) == split.labels)
        for (join, branch, by), correct in removed.items():
            logits = by_hand(net, join.rpartition(".")[0], branch, by)(x)
            assert torch.equal(correct, logits.argmax(1) == split.labels)
    # How the images are parted into batches changes nothing.
    monkeypatch.setattr(measure, "evaluation_batch", lambda *_: 7)
    again = observe(branched, model, split)
    for key, means in observed.means.items():
        torch.testing.assert_close(again.means[key], means)
        assert again.rms[key] == pytest.approx(observed.rms[key], rel=1e-6)


def test_sizes_at_the_join_are_those_of_its_modules():
    net, model, split = made(NETS["residual"][0]), model_of("residual"), split_of(30)
    inputs = []
    net.rblock1.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        net((split.images / 255 - 0.5) / 0.5)
        residual = net.rblock1.residual(inputs[0])
    net = made(NETS["residual"][0])
    observed = observe(read_branches(net, SHAPE), model, split)
    ratios = residual.flatten(1).norm(dim=1) / inputs[0].flatten(1).norm(dim=1)
    assert observed.residuals["rblock1.add"] == pytest.approx(float(ratios.mean()), rel=1e-5)
    assert observed.rms["rblock1.add", "residual"] == pytest.approx(float(residual.square().mean().sqrt()), rel=1e-5)
    means = residual.mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(observed.means["rblock1.add", "residual"][0], means, rtol=1e-5, atol=1e-6)


def test_the_shortcut_is_known_by_its_name_or_its_length():
    projection = chain(a=nn.Conv2d(1, 4, 1), b=nn.Identity())
    body = {"residual": chain(a=nn.Conv2d(1, 4, 3, padding=1), b=nn.ReLU(), c=nn.Conv2d(4, 4, 1))}
    for name in ("shortcut", "short"):
        net = made(
            lambda n=name: chain(block=Add(**body, **{n: projection}), flat=nn.Flatten(), fc=nn.Linear(3136, 10))
        )
        pair = shortcut_of(read_branches(net, SHAPE), "block.add")
        assert pair is not None and pair.residual == "residual" and pair.shortcut.startswith("short")
    same = chain(block=Add(a=nn.Conv2d(1, 4, 1), b=nn.Conv2d(1, 4, 1)), flat=nn.Flatten(), fc=nn.Linear(3136, 10))
    assert shortcut_of(read_branches(same.eval(), SHAPE), "block.add") is None


def test_a_branch_is_timed_and_a_shortcut_takes_no_time():
    times = time_branches(read_branches(made(NETS["residual"][0]), SHAPE), model_of("residual"))
    assert {key: time > 0 for key, time in times.items()} == {
        (f"rblock{n}.add", branch): branch == "residual" for n in (1, 2) for branch in ("residual", "shortcut")
    }


# Intervals and ranks.


def test_the_paired_interval_is_that_of_the_paper_and_covers():
    # Bonett and Price 2012, equation 2, by hand.
    lost, gained, total = 9, 2, 60
    down, up = 10 / 62, 3 / 62
    half = scipy.stats.norm.ppf(0.975) * np.sqrt((down + up - (down - up) ** 2) / 62)
    assert paired_interval(lost, gained, total) == pytest.approx((down - up - half, down - up + half), rel=1e-9)
    assert paired_interval(0, 0, 50)[0] < 0 < paired_interval(0, 0, 50)[1]
    assert paired_interval(3, 0, 3)[1] == 1.0
    for p, q, n in ((0.1, 0.02, 60), (0.02, 0.02, 60), (0.3, 0.1, 40)):
        covered = sum(
            comb(n, b) * comb(n - b, c) * p**b * q**c * (1 - p - q) ** (n - b - c)
            for b in range(n + 1)
            for c in range(n + 1 - b)
            if paired_interval(b, c, n)[0] <= p - q <= paired_interval(b, c, n)[1]
        )
        assert covered > 0.94


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
def test_rank_correlations_are_those_of_their_definitions(pairs):
    one, other = zip(*pairs, strict=True)
    if len(set(one)) < 2 or len(set(other)) < 2:
        assert spearman(one, other) is None
        return
    ranks = [[sum(w < v for w in values) + sum(w == v for w in values) / 2 for v in values] for values in (one, other)]
    assert spearman(one, other) == pytest.approx(statistics.correlation(*ranks), abs=1e-12)


@pytest.mark.parametrize("count", [5, 6, 7])
def test_yes_is_said_only_where_chance_says_it_rarely(count):
    """Against the exact distribution over all orders."""
    every = [spearman(range(count), order) for order in permutations(range(count))]
    said = [rho for rho in every if verdict_of(count, rank_interval(rho, count)) == "yes"]
    assert max(every) in said and len(said) / len(every) < 0.025 and min(said) > 0


def test_all_four_answers_can_be_given():
    assert verdict_of(FEWEST - 1, rank_interval(1.0, FEWEST - 1)) == "too few branches to tell"
    assert verdict_of(9, rank_interval(0.9, 9)) == "yes"
    assert verdict_of(9, rank_interval(0.2, 9)) == "too close to call"
    assert verdict_of(9, rank_interval(-0.6, 9)) == "no"
    assert verdict_of(200, rank_interval(0.0, 200)) == "no"
    assert verdict_of(120, rank_interval(0.2, 120)) == "no"  # surely above 0, and as surely weak
    assert verdict_of(9, None) == "too close to call"
    # Bonett and Wright 2000: Fisher's z, with a standard error of √((1 + ρ²/2) / (n − 3)).
    half = 1.959964 * np.sqrt(1.125 / 17)
    assert rank_interval(0.5, 20) == pytest.approx((np.tanh(np.arctanh(0.5) - half), np.tanh(np.arctanh(0.5) + half)))


def contribution(join: str, branch: str, lost: float, size: float | None, half: float = 0.01) -> Contribution:
    bounds = (lost - half, lost + half)
    return Contribution(join, branch, lost, bounds, lost, bounds, size, size, 1.0, 1, 1, 0.0)


def test_the_verdict_is_over_the_branches_that_have_weights():
    branches = [contribution(f"j{n // 4}", f"b{n}", n / 10, float(n)) for n in range(8)]
    shortcut = contribution("j0", "shortcut", 0.9, None)
    found = {(r.measure, r.join): r for r in relations([*branches, shortcut])}
    assert found["weight_rms", None].count == 8 and found["weight_rms", None].verdict == "yes"
    assert found["weight_rms", "j1"].verdict == "too few branches to tell" and found["weight_rms", "j1"].spearman == 1
    assert found["macs", None].count == 9 and found["macs", None].spearman is None
    assert found["macs", None].verdict == "too close to call"
    # An order among losses that cannot be told from none says nothing.
    noise = [dataclasses.replace(b, lost_by_mean_interval=(-1.0, 1.0)) for b in branches]
    assert {r.verdict for r in relations(noise) if r.join is None} == {"too close to call"}


# Over a picture.


class Reused(nn.Module):
    """One ReLU and one pooling, each used twice, as learners write it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 5)
        self.relu, self.mp = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        x = self.relu(self.mp(self.conv1(x)))
        x = self.relu(self.mp(self.conv2(x)))
        return self.fc(x.view(x.size(0), -1))


def unshared(net: Reused) -> nn.Sequential:
    layers = {"conv1": net.conv1, "mp1": nn.MaxPool2d(2), "relu1": nn.ReLU(), "conv2": net.conv2}
    return chain(**layers, mp2=nn.MaxPool2d(2), relu2=nn.ReLU(), flat=nn.Flatten(), fc=net.fc)


@pytest.fixture
def maps():
    """Of a net with reused modules, and of the same net without: the three maps."""
    net = made(Reused)
    branched = read_branches(net, SHAPE)
    x, black = images(1), torch.full((1, *SHAPE), -0.4)
    gradients, error, steps = integrated_gradients(branched.logits, (x,), (black,), index=3)
    return (
        unshared(net),
        x,
        black,
        (grad_cam(branched, x, 3), gradients[0], error, steps, occlude(branched.logits, x, black=black, index=3)),
    )


def test_maps_of_a_net_with_reused_modules_are_captums_own_of_one_without(maps):
    from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion

    plain, x, black, ((layer, cam), gradients, _, steps, ((height, width), occlusion)) = maps
    assert layer == "relu@2" and (height, width) == (5, 5)
    expected = LayerGradCam(plain, plain.relu2).attribute(x, 3, relu_attributions=True)
    torch.testing.assert_close(cam, LayerAttribution.interpolate(expected, (28, 28), "bilinear")[0, 0].detach())
    expected = IntegratedGradients(plain).attribute(x, black, 3, n_steps=steps, method="riemann_middle")
    torch.testing.assert_close(gradients, expected.float(), rtol=1e-3, atol=1e-5)
    expected = Occlusion(plain).attribute(x, (1, 5, 5), strides=(1, 2, 2), baselines=black, target=3)
    torch.testing.assert_close(occlusion, expected[0, 0], rtol=1e-4, atol=1e-5)


def test_maps_are_what_their_definitions_say(maps):
    plain, x, black, ((_, cam), gradients, error, _, (_, occlusion)) = maps
    # Grad-CAM by autograd (Selvaraju et al. 2017, equations 1 and 2).
    features = plain[:6](x).detach().requires_grad_()
    plain[6:](features)[0, 3].backward()
    expected = (features.grad.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu()
    torch.testing.assert_close(cam, F.interpolate(expected, (28, 28), mode="bilinear")[0, 0])
    # Completeness, and that it is asked of the right difference.
    with torch.no_grad():
        difference = float(plain(x)[0, 3] - plain(black)[0, 3])
        changed = x.clone()
        changed[..., :5, :5] = black[..., :5, :5]
        lost = plain(x)[0, 3] - plain(changed)[0, 3]
    assert float(gradients.sum()) == pytest.approx(difference + error, abs=1e-4)
    assert abs(error) <= TOLERANCE * max(1, abs(difference))
    assert float(occlusion[0, 0]) == pytest.approx(float(lost), abs=1e-5)


def test_steps_are_added_until_it_adds_up_and_a_failure_is_told(monkeypatch):
    monkeypatch.setattr("branchwork.explaining.attribution.FEWEST_STEPS", 2)
    given, blank = (torch.full((1, *SHAPE), 3.0),), (torch.zeros(1, *SHAPE),)
    _, error, steps = integrated_gradients(lambda x: x.flatten(1) ** 5, given, blank, index=0)
    assert 2 < steps < 1024 and 0 < abs(error) <= TOLERANCE * 3**5
    # A jump has no gradient that could add up.
    (part,), error, steps = integrated_gradients(lambda x: x.flatten(1) + (x.flatten(1) > 1), given, blank, index=0)
    assert steps == 1024 and error == pytest.approx(-1) and float(part.sum()) == pytest.approx(3)


@pytest.mark.parametrize("name", NETS)
def test_shares_of_branches_add_up_at_every_join(name):
    net, branched, shape = read(name)
    kept = {join: branched.entries[join] for join in (next(iter(branched.entries)), list(branched.entries)[-1])}
    x, black = images(1, shape).double(), torch.full((1, *shape), -0.4).double()
    evidence = explain_joins(dataclasses.replace(branched, entries=kept), x=x, black=black, index=3)
    with torch.no_grad():
        whole = float(net(x)[0, 3] - net(black)[0, 3])
    for join in evidence:
        assert join.complete
        assert sum(branch.share for branch in join.branches) == pytest.approx(join.difference + join.error, abs=1e-4)
        # Nothing goes past these joins, so that blinding all branches is showing the black picture.
        assert join.difference == pytest.approx(whole, abs=1e-4)


def test_a_blind_branch_gives_what_it_gives_for_black():
    net = made(NETS["inception"][0])
    x, black = images(1), torch.zeros(1, *SHAPE)
    (first, _) = explain_joins(read_branches(net, SHAPE), x=x, black=black, index=3)
    given = []
    net.incep1.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        whole = net(x)
        net(black)
        unseen = net.incep1.b5(given[1])
        blind = copy.deepcopy(net)
        blind.incep1.b5.register_forward_hook(lambda *_: unseen)
        logits = blind(x)[0]
    assert first.branches[1].lost_blind == pytest.approx(float(whole[0, 3] - logits[3]), abs=1e-5)
    assert first.branches[1].probability_blind == pytest.approx(float(logits.softmax(0)[3]), abs=1e-5)
    with torch.no_grad():
        zero = by_hand(net, "incep1", "b5", "zero")(x)[0]
    assert first.branches[1].lost_by_zero == pytest.approx(float(whole[0, 3] - zero[3]), abs=1e-5)


# The verb.


@pytest.fixture
def digits(sample, tmp_path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        Image.fromarray(sample.test.images[index, 0].numpy()).resize((84, 84)).save(path)
    return paths


@pytest.fixture
def folder(sample, tmp_path):
    """Make a run folder of a net with fresh weights: of a script, or of a module."""

    def make(net: str, module: nn.Module | None = None) -> Path:
        model = Model.of(net, sample)
        torch.manual_seed(0)
        write_model(tmp_path / "fresh", (module or model.builder()()).state_dict(), model)
        keep_script(tmp_path / "fresh", net)
        return tmp_path / "fresh"

    return make


def test_randomising_the_weights_changes_the_maps(run, folder, digits):
    """The sanity check of Adebayo et al. 2018, section 3: a map that stays would be one of the picture alone."""
    trained, again = (bw.explain_pictures(run.folder, digits) for _ in range(2))
    fresh = bw.explain_pictures(folder("residual"), digits)

    def alike(name: str, others) -> float:
        """Where both maps say something: gradients that are multiplied by pixels say nothing of black ones."""
        found = []
        for one, other in zip(trained, others, strict=True):
            first, second = (np.ravel(getattr(each, name)) for each in (one, other))
            told = (first != 0) & (second != 0)
            found.append(scipy.stats.spearmanr(first[told], second[told]).statistic)
        return float(np.mean(found))

    for name in ("cam", "gradients", "occlusion"):
        assert alike(name, again) == pytest.approx(1.0)
        assert alike(name, fresh) < 0.5, name


def test_a_run_is_explained_on_the_images_that_it_validated_on(run):
    found = bw.explain(run.folder)
    assert found.split == "validation" and found.images == 600 and found.data == "sample"
    assert found.accuracy == run.validation_accuracy
    assert [(b.join, b.branch) for b in found.branches] == [
        (f"rblock{n}.add", branch) for n in (1, 2) for branch in ("residual", "shortcut")
    ]
    residual, shortcut = found.branches[:2]
    weights = bw.load_run(run.folder).net.rblock1.residual
    kernels = torch.cat([weights.conv1.weight.flatten(), weights.conv2.weight.flatten()]).detach()
    assert residual.weight_rms == pytest.approx(float(kernels.square().mean().sqrt()), rel=1e-5)
    assert residual.weight_norm == pytest.approx(float(kernels.norm()), rel=1e-5)
    assert residual.parameters == 4640 and residual.macs == 663552
    assert shortcut.weight_rms is None and shortcut.parameters == shortcut.macs == shortcut.milliseconds == 0
    for branch in found.branches:
        assert branch.lost_by_mean_interval[0] <= branch.lost_by_mean <= branch.lost_by_mean_interval[1]
    assert found.residuals.keys() == {"rblock1.add", "rblock2.add"}
    assert all(relation.verdict == "too few branches to tell" for relation in found.relations)


def test_other_data_are_taken_from_their_test_images(run, folder):
    found = bw.explain(run.folder, data="sample")
    assert found.split == "test" and found.accuracy == evaluate(run.folder).accuracy
    some, again = (bw.explain(run.folder, data="sample", images=50) for _ in range(2))
    assert some.images == 50 and [b.lost_by_mean for b in some.branches] == [b.lost_by_mean for b in again.branches]
    # Weights that no training of ours has made have no validation images.
    assert bw.explain(folder(f"{LECTURE}:InceptionNet"), images=30).split == "test"


def test_the_command_shows_a_table_the_verdict_and_a_picture(folder, command):
    where = folder(f"{LECTURE}:InceptionNet")
    code, out, _ = command("explain", where, "--images", 40, "--draw", "b.png", "--json", "b.json")
    assert code == 0 and max(map(len, out.splitlines())) <= 120
    assert "accuracy lost without it" in out and "(replaced by its mean)" in out and "milliseconds" in out
    for words in ("incep1.cat", "branch5x5", "40 test images of sample", "(n = 8, ρ = ", "drawn: b.png"):
        assert words in out
    value = json.loads(Path("b.json").read_text())
    assert [b["branch"] for b in value["branches"][:4]] == ["branch1x1", "branch5x5", "branch3x3", "branch_pool"]
    assert value["branches"][1]["macs"] == 10 * 16 * 144 + 16 * 24 * 25 * 144
    with Image.open("b.png") as picture:
        assert (
            picture.width > 900 and np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).shape[0] > 20
        )


def test_the_verdict_in_words_and_a_drawing_for_light_and_dark(monkeypatch):
    branches = tuple(contribution(f"j{n // 4}", f"b{n}", n / 10, float(n)) for n in range(8))
    figures = {
        "accuracy": 0.9,
        "interval": (0.8, 1.0),
        "macs": 8,
        "residuals": {},
        "single": (),
        "threads": 1,
        "machine": "here",
    }
    found = Explanation(
        "net", "d", "test", 9, branches=branches, relations=relations(branches), timed_batch=1, **figures
    )
    assert "by the mean size of its weights: yes" in verdict_lines(found)[1]
    few = dataclasses.replace(found, branches=branches[:4], relations=relations(branches[:4]))
    assert verdict_lines(few) == ["too few branches to tell: with fewer than five, any order may be chance"]
    monkeypatch.setenv("BRANCHWORK_LANG", "zh")
    assert "权重真的更大吗" in verdict_lines(found)[0] and "是的" in verdict_lines(found)[1]
    draw_contributions(found, Path("b.svg"))
    drawing = Path("b.svg").read_text()
    assert drawing.index(f"fill: {LIGHT.card}") < drawing.index(LIGHT.ink) and "currentColor" not in drawing
    assert all(f">{words}</text>" in drawing for words in ("j0", "j1", "b0", "b7"))


def test_the_command_explains_pictures(run, digits, command, sample):
    labels = [str(int(label)) for label in sample.test.labels[:4]]
    code, out, _ = command("explain", run.folder, *digits, "--draw", "p.png", "--json", "p.json")
    assert code == 0 and max(map(len, out.splitlines())) <= 120
    assert [f"{digits[n]}: the net reads '{labels[n]}'" in out for n in range(4)] == [True] * 4
    for words in ("adds to the", "sees a black picture", "add up to that within"):
        assert words in out
    value = json.loads(Path("p.json").read_text())
    answers = bw.predict(run.folder, digits)
    for one, answer in zip(value, answers, strict=True):
        assert one["predicted"] == one["target"] == answer.guesses[0].name
        assert one["probability"] == pytest.approx(answer.guesses[0].probability, abs=1e-5)
        assert np.shape(one["cam"]) == np.shape(one["gradients"]) == np.shape(one["occlusion"]) == (28, 28)
        assert np.sum(one["gradients"]) == pytest.approx(one["logit"] - one["black_logit"] + one["error"], abs=1e-3)
        assert (
            one["layer"] == "rblock2.relu"
            and one["cells"] == [4, 4]
            and one["complete"]
            and all(join["complete"] for join in one["joins"])
        )
    with Image.open("p.png") as picture:
        assert picture.width > 900 and picture.height > 900
    code, out, _ = command("explain", run.folder, digits[0], "--class", "8", "--json", "-")
    (one,) = json.loads(out)
    assert one["target"] == "8" and one["predicted"] == labels[0] and one["probability"] < 0.5


def test_each_panel_asks_a_question(run, digits, monkeypatch):
    (one,) = bw.explain_pictures(run.folder, digits[0], draw=Path("p.svg"))
    texts = re.findall("<text[^>]*>(.*?)</text>", Path("p.svg").read_text())
    words = html.unescape(" ".join(texts))
    target = one.target
    for question in (
        "your picture 0.png, 84×84 pixels",
        f"what the net got of it, 28×28 pixels: it reads '{target}'",
        f"hide a 5×5 patch: how much does the score of '{target}' fall?",
        f"which pixels raise the score of '{target}' (red), which lower it (blue)?",
        f"where does rblock2.relu find '{target}'? Coarse, only 4×4 cells (Grad-CAM)",
        f"how much does each branch add to the score of '{target}'?",
    ):
        assert question in words
    # A map that is 0 everywhere is left out, and not drawn as if it said something.
    grad_cam = attribution.grad_cam
    monkeypatch.setattr(attribution, "grad_cam", lambda *a: (grad_cam(*a)[0], torch.zeros(28, 28)))
    bw.explain_pictures(run.folder, digits[0], draw=Path("z.svg"))
    words = html.unescape(" ".join(re.findall("<text[^>]*>(.*?)</text>", Path("z.svg").read_text())))
    assert "Grad-CAM is left out: none of the 4×4 cells of rblock2.relu" in words


def test_what_does_not_add_up_is_said(run, digits, command, monkeypatch):
    monkeypatch.setattr("branchwork.explaining.attribution.TOLERANCE", 1e-9)
    monkeypatch.setattr("branchwork.explaining.attribution.MOST_STEPS", 64)
    _, out, _ = command("explain", run.folder, digits[0])
    assert "The parts of its pixels are off by" in out and "The parts of the branches of rblock1.add are off by" in out


class Straight(nn.Module):
    """Without joins; and with one that has a single branch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(2704, 10)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))


class Alone(Straight):
    def forward(self, x):
        return self.fc(torch.cat([self.conv(x)], dim=1).flatten(1))


class Flat(nn.Module):
    """Two branches of vectors, and nothing that has height and width."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(784, 4), nn.Linear(784, 3), nn.Linear(7, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.fc(torch.cat([self.one(x), self.two(x)], 1))


def test_bad_input_gets_one_message(run, folder, refused, digits, tmp_path, monkeypatch):
    for name, words in (("Straight", "no operation joins branches"), ("Alone", "cat joins one branch alone")):
        where = folder(f"{Path(__file__).resolve()}:{name}")
        assert words in refused("explain", where)
        shutil.rmtree(where)
    assert "holds no trained net" in refused("explain", tmp_path)
    assert "only in fashion: boot" in refused_for_classes(run, refused, monkeypatch)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert "bad.png is not a picture" in refused("explain", run.folder, digits[0], tmp_path / "bad.png")
    assert "there is no file" in refused("explain", run.folder, tmp_path / "none.png")
    assert "has no class 'nine'" in refused("explain", run.folder, digits[0], "--class", "nine")
    assert "--class goes with pictures" in refused("explain", run.folder, "--class", "9")
    assert "leave out the pictures" in refused("explain", run.folder, digits[0], "--data", "sample")
    assert "--images must be at least 1, got 0" in refused("explain", run.folder, "--images", 0)
    for arguments in ((), (digits[0],)):
        assert "Use .svg, .png, .jpg or .pdf" in refused("explain", run.folder, *arguments, "--draw", "e.gif")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "captum" else find(name, *more)
    )
    assert 'pip install "branchwork[explain]"' in refused("explain", run.folder, digits[0])


def refused_for_classes(run, refused, monkeypatch) -> str:
    from branchwork.datasets.load import load_data

    other = dataclasses.replace(load_data("sample"), name="fashion", classes=(*"012345678", "boot"))
    with monkeypatch.context() as patch:
        patch.setattr("branchwork.training.evaluate.load_data", lambda *a, **k: other)
        return refused("explain", run.folder, "--data", "fashion")


def test_pictures_are_explained_without_joins_and_without_positions(folder, digits, command):
    where = folder(f"{Path(__file__).resolve()}:Straight")
    code, out, _ = command("explain", where, digits[0], "--draw", "s.png")
    assert code == 0 and "no joins" in out
    shutil.rmtree(where)
    (one,) = bw.explain_pictures(folder(f"{Path(__file__).resolve()}:Flat"), digits[0], draw=Path("f.svg"))
    assert one.layer == "input" or one.cam is None
    assert one.joins[0].complete and len(one.joins[0].branches) == 2

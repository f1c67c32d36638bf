"""Nets without some of their branches, against the whole net with zeros in their place."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import branchwork
from branchwork import Add, Concat, build_net
from branchwork.catalogue.densenet import DenseDesign, densenet
from branchwork.catalogue.prune import find_branches, prune
from branchwork.catalogue.resolve import absolute_name, defaults_of, short_name, split_options, with_options
from branchwork.errors import NetError
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.training.recipes import fast, photos


def hostile(net: nn.Module) -> nn.Module:
    """In float64 and eval mode, with statistics of batch norms that are not those of a fresh net."""
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 4)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.randn(module.num_features, generator=generator))
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) / 4)
    return net.double().eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def with_zeros(net: nn.Module, branches: list[str], x: torch.Tensor) -> torch.Tensor:
    """The logits where the outputs of these branches, each `path.name`, are replaced by zeros."""
    handles = [net.get_submodule(path).register_forward_hook(lambda m, i, out: 0 * out) for path in branches]
    with torch.no_grad():
        logits = net(x)
    for handle in handles:
        handle.remove()
    return logits


def assert_equal(pruned: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> None:
    with torch.no_grad():
        found = pruned(x)
    assert float((found - expected).abs().max()) < 1e-10 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "size", "branches"),
    [
        ("inception", 28, ["incep1.b5", "incep2.b5"]),
        ("inception", 33, ["incep1.b1", "incep1.pool", "incep2.b3", "incep2.pool", "incep2.b1"]),
        ("googlenet", 32, ["incep3a.b5", "incep4a.pool", "incep4b.b1", "incep5b.b3"]),
    ],
)
def test_without_a_branch_is_with_zeros_in_its_place(name, size, branches):
    torch.manual_seed(0)
    net = hostile(build_net(name, in_channels=2, image_size=size, num_classes=5))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    pruned = prune(net, (2, size, size), branches)
    x = images(2, size, size)
    assert_equal(pruned, x, with_zeros(net, branches, x))
    assert not any(key.startswith(tuple(f"{branch}." for branch in branches)) for key in pruned.state_dict())
    assert count_parameters(pruned) < count_parameters(net) and count_macs(pruned.float(), (2, size, size))
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_a_batch_norm_behind_the_join_goes_with_the_channels():
    # Zeros before a norm would come out of it as a constant, which a net without these channels does not have.
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "num_classes": 5, "image_size": 20}
    net = hostile(densenet("tiny", DenseDesign((3, 2), 4, 8), **sizes, stem="small"))
    pruned = prune(net, (1, 20, 20), ["block1.layer2.new", "block2.layer1.new"])
    zeroed = hostile(densenet("tiny", DenseDesign((3, 2), 4, 8), **sizes, stem="small"))
    zeroed.load_state_dict(net.state_dict())
    # The channels of block1: 8 of the stem and 4 of each layer; those of layer 2 are 12 to 16. Halved to 10, plus 8.
    zeroed.block1.layer3.new.conv1.weight.data[:, 12:16] = 0
    zeroed.halve1.conv.weight.data[:, 12:16] = 0
    zeroed.block2.layer2.new.conv1.weight.data[:, 10:14] = 0
    zeroed.fc.weight.data[:, 10:14] = 0
    x = images(1, 20, 20)
    assert_equal(pruned, x, zeroed(x).detach())
    assert pruned.norm.num_features == net.norm.num_features - 4 == len(pruned.norm.running_var)


@pytest.mark.parametrize("branch", ["residual", "shortcut"])
def test_what_is_left_of_a_sum(branch):
    torch.manual_seed(0)
    net = hostile(build_net("residual"))
    x = images(1, 28, 28)
    pruned = prune(net, (1, 28, 28), [f"rblock1.{branch}"])
    assert_equal(pruned, x, with_zeros(net, [f"rblock1.{branch}"], x))
    saved = count_parameters(net) - count_parameters(pruned)
    assert saved == (2 * (9 * 16 * 16 + 16) if branch == "residual" else 0)


class Random(nn.Module):
    """Joins within joins and one after the other, by a view and a linear layer at the end."""

    def __init__(self, widths: list[int], nested: bool) -> None:
        super().__init__()
        first = Concat(**{f"a{i}": nn.Conv2d(2, width, 3, padding=1) for i, width in enumerate(widths)})
        inner = Concat(c0=nn.Identity(), c1=nn.Conv2d(sum(widths), 2, 1, bias=False))
        total = sum(widths)
        second = Concat(b0=inner if nested else nn.Identity(), b1=nn.Conv2d(total, 3, 5, padding=2))
        self.first, self.second = first, second
        self.norm = nn.BatchNorm2d(total + 3 + (2 if nested else 0), affine=False)
        self.head = nn.Linear(self.norm.num_features * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(nn.functional.max_pool2d(torch.relu(self.first(x)), 2))
        return self.head(torch.tanh(self.norm(x)).view(x.size(0), -1))


@settings(max_examples=20)
@given(widths=st.lists(st.integers(1, 4), min_size=2, max_size=4), nested=st.booleans(), data=st.data())
def test_random_nets(widths, nested, data):
    torch.manual_seed(0)
    net = Random(widths, nested).double().eval()  # the fresh norm leaves zeros where they are
    joins = [[f"first.a{i}" for i in range(len(widths))], ["second.b1"], ["second.b0.c1"] if nested else []]
    chosen = [name for join in joins for name in join if data.draw(st.booleans(), label=name)]
    if not chosen or set(joins[0]) <= set(chosen):
        chosen = ["first.a0"]
    x = images(2, 6, 6)
    assert_equal(prune(net, (2, 6, 6), chosen), x, with_zeros(net, chosen, x))


def test_a_bare_name_is_every_branch_of_that_name():
    net = build_net("inception")
    both = [("incep1", "b5"), ("incep2", "b5")]
    assert find_branches(net, ["b5"]) == both == find_branches(net, ["incep2.b5", "b5"])
    torch.manual_seed(0)
    named = build_net("inception[without=b5]")
    torch.manual_seed(0)
    listed = build_net("inception[without=incep2.b5+incep1.b5]")
    assert all(map(torch.equal, named.state_dict().values(), listed.state_dict().values()))
    # The lecture's table of layers, without one of its lines.
    assert (
        count_macs(named, (1, 28, 28)) == 6_019_200 - 144 * (160 + 9600) - 64 * 25 * 24 * 20 - 16 * (320 + 9600) - 3840
    )
    generator = torch.random.get_rng_state()
    prune(net, (1, 28, 28), ["b5"])
    assert torch.equal(generator, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("inception:without=b5", "inception[without=b5]"),
        ("inception:without=b5+incep1.b3,stem=small", "inception[without=b5+incep1.b3,stem=small]"),
        ("a/net.py:Net:without=b5", "a/net.py:Net[without=b5]"),
        ("package.module:make:without=b5", "package.module:make[without=b5]"),
        ("C:\\nets\\a=b.py:Net", "C:\\nets\\a=b.py:Net"),
        ("net.py:Net", "net.py:Net"),
    ],
)
def test_a_colon_says_the_same_as_brackets_and_needs_no_quotes_in_a_shell(typed, means):
    assert split_options(typed) == split_options(means) and short_name(typed) == short_name(means)
    assert with_options(typed, {}) == means and absolute_name(typed) == absolute_name(means)
    assert fast(typed) == fast(means)
    for shell in filter(shutil.which, ("bash", "zsh", "sh")):
        said = subprocess.run([shell, "-c", f"echo {typed}"], capture_output=True, text=True)
        assert said.stdout == f"{typed}\n" or "\\" in typed, said.stderr


def test_the_recipe_of_a_net_does_not_depend_on_how_its_options_are_written():
    assert fast("residual:norm=batch") == fast("residual[norm=batch]") == fast("residual")
    assert photos("googlenet:b5=3x3").auxiliary == photos("googlenet").auxiliary > 0


def test_names():
    assert split_options("inception[without=b5+b1]") == ("inception", {"without": "b5+b1"})
    assert split_options("a[1]/net.py:Net[without=b5]") == ("a[1]/net.py:Net", {"without": "b5"})
    assert split_options("a[b=1].py:Net") == ("a[b=1].py:Net", {})
    assert short_name("inception[without=b5+b1]") == "inception-without-b5-b1"
    assert short_name("resnet18[stem=small,without=shortcut]") == "resnet18-small-without-shortcut"
    assert short_name("a/net.py:Net[without=b5]") == "net-Net-without-b5"
    many = "+".join(f"incep{n}.b5" for n in range(9))
    assert short_name(f"googlenet[without={many}]") == "googlenet-without-9-branches"
    assert defaults_of("inception[without=b5]").input_shape == (1, 28, 28)
    assert fast("residual[without=rblock1.residual]") == fast("residual")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inception[without=b6]", "no join has a branch 'b6'. Did you mean 'b5'? Known: b1, b3, b5, pool."),
        ("inception[without=incep3.b5]", "no join 'incep3'. Did you mean"),
        ("inception[without=incep1.b6]", "incep1 has no branch 'b6'. Did you mean 'b5'?"),
        ("inception[without=b1+b3+b5+pool]", "incep1 would lose all of its branches (b1, b5, b3, pool): keep one"),
        ("residual[without=rblock2.residual+shortcut]", "rblock2 would lose all"),
        ("plain20[without=b5]", "no join with named branches. Write its blocks as branchwork.Concat"),
        ("inception[without=b5,without=b1]", "repeats an option"),
        ("inception[without]", "write inception:KEY=VALUE"),
        ("net.py:Net[with=b5]", "no option 'with': a net of your own has only without"),
        ("net.py:Net[without=b5", "is not a valid net"),
    ],
)
def test_what_cannot_be_left_out(name, message):
    with pytest.raises(NetError, match=re.escape(message)):
        build_net(name)


class Behind(nn.Module):
    """A join of 2 + 4 channels and whatever comes behind it."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.join = Concat(a=nn.Conv2d(1, 2, 1), b=nn.Conv2d(1, 4, 1))
        self.behind = behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.join(x)).flatten(1)


class Summed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1)


class Typed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 6 * 16)


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (
            nn.Conv2d(6, 6, 1, groups=3),
            "behind reads the branch's channels, but a grouped .* cannot be narrowed",
        ),
        (nn.GroupNorm(1, 6), "behind reads .* a GroupNorm cannot be narrowed"),
        (Add(residual=nn.Conv2d(6, 6, 1), shortcut=nn.Identity()), "cannot run without join.b: .*of this Add"),
        (Summed(), "the channels of join.b meet others outside convolutions"),
        (nn.Sequential(nn.Softmax(1), nn.Conv2d(6, 2, 1)), "behind.1 reads only channels|mixed with others"),
        (nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (3, 32)), nn.Conv1d(3, 1, 1)), "a Conv1d cannot be narrowed"),
        (Typed(), r"cannot run without join.b: .*test_prune.py, line|meet others"),
    ],
)
def test_channels_that_cannot_be_told_apart(behind, message):
    with pytest.raises(NetError, match=message):
        prune(Behind(behind), (1, 4, 4), ["join.b"])


def test_a_layer_in_two_places_of_which_one_loses_channels():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.join, self.conv = Concat(a=nn.Identity(), b=nn.Conv2d(1, 1, 1)), nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(self.join(x))).flatten(1)

    with pytest.raises(NetError, match="conv is used more than once"):
        prune(Twice(), (1, 4, 4), ["b"])


def test_every_verb_takes_such_a_net(small, command, tmp_path):
    net = "inception[without=b5+incep2.pool]"
    recipe = ["--epochs", "1", "--batch-size", "500"]
    code, out, err = command("train", net, "--data", "sample", *recipe, "--out", "run")
    assert code == 0 and "inception-without-b5-incep2.pool" in out, err
    code, out, _ = command("inspect", "run", "--json", "-")
    inspection = json.loads(out)
    assert inspection["parameters"] == count_parameters(build_net(net)) and len(inspection["joins"]) == 2
    assert command("inspect", net)[0] == command("evaluate", "run")[0] == 0
    assert branchwork.load_weights(build_net(net), "run").kept
    # A script of one's own, found again by its run.
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom branchwork import Concat\n"
        "def Net():\n"
        "    join = Concat(b1=nn.Conv2d(1, 2, 3, padding=1, stride=4), b5=nn.Conv2d(1, 3, 5, padding=2, stride=4))\n"
        "    return nn.Sequential(join, nn.Flatten(), nn.Linear(5 * 49, 10))\n"
    )
    result = branchwork.train("mine.py:Net[without=b5]", data=small, recipe=fast(images=60_000).but({"epochs": 1}))
    assert result.folder == "runs/mine-Net-without-b5-sample-1"
    (tmp_path / "mine.py").unlink()
    assert branchwork.load_run(result.folder).net[2].in_features == 2 * 49


@pytest.mark.filterwarnings("ignore")  # torch warns of scripts
def test_a_part_in_torchscript_is_told_that_it_cannot_be_narrowed():
    behind = torch.jit.script(nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU()))
    net = nn.Sequential(Concat(a=nn.Conv2d(1, 4, 1), b=nn.Conv2d(1, 4, 1)), behind)
    with pytest.raises(NetError, match="1 is a TorchScript module, whose layers cannot be narrowed"):
        prune(net, (1, 8, 8), ["b"])

import pytest
import torch
from conftest import ROOT
from torch import nn

import branchwork as bw
from branchwork.errors import NetError, RecipeError
from branchwork.training.infer import pick_layout
from branchwork.training.run import Model
from branchwork.training.state import pick_execution

LECTURE = f"{ROOT}/tests/helpers/lecture.py"
RECIPE = bw.fast("inception").but({"epochs": 1, "batch_size": 256, "precision": "fp32"})


def model(net: str = "inception") -> Model:
    return Model(net, 1, (28, 28), tuple("0123456789"), (0.13,), (0.31,), "digits", "sample")


@pytest.mark.parametrize("net", ["inception", f"{LECTURE}:InceptionNet"])
def test_a_training_is_the_same_as_written_and_collapsed(net, small, tmp_path):
    # In fp32, Adam makes of a gradient near zero a whole step one way or the other, as the rounding has it.
    few = RECIPE.but({"fraction": 0.5, "precision": "fp64"})
    ways = {
        how: bw.train(net, data=small, recipe=few, out=tmp_path / how, options=bw.Options(execute=how))
        for how in ("written", "collapsed", "auto")
    }
    assert [ways[how].execution for how in ways] == ["written", "collapsed", "collapsed"]
    weights = {how: bw.load_run(tmp_path / how).net.state_dict() for how in ways}
    for key, written in weights["written"].items():
        torch.testing.assert_close(weights["collapsed"][key], written, rtol=1e-5, atol=1e-6)
        assert torch.equal(weights["auto"][key], weights["collapsed"][key])
    assert ways["written"].macs == ways["collapsed"].macs == 6_019_200


def test_both_modes_of_a_net_run_over_its_own_parameters():
    net = bw.build_net("inception")
    execution = pick_execution(net, model(), "auto", batch=256)
    own = {id(parameter) for parameter in net.parameters()}
    for part in (execution.step, execution.validate):
        assert part is not net and {id(parameter) for parameter in part.parameters()} <= own
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        net.fc.bias += 1
        torch.testing.assert_close(execution.validate(x), net(x), rtol=1e-3, atol=1e-4)


class Nothing(nn.Sequential):
    """No two affine layers meet, and no pooling follows an activation."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))


class Mode(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(144, 10)
        )


def test_a_net_with_nothing_to_collapse_is_run_as_written_and_refused_if_asked():
    net = Nothing()
    assert pick_execution(net, model("nothing"), "auto", batch=256).step is net
    with pytest.raises(NetError, match=r"nothing to collapse in batches of 256.*--execute written"):
        pick_execution(net, model("nothing"), "collapsed", batch=256)


def test_batch_norm_learns_its_statistics_in_a_collapsed_net():
    torch.manual_seed(0)
    net = Mode()
    execution = pick_execution(net, model("mode"), "auto", batch=256)
    assert execution.name == "collapsed" and net.training
    execution.step(torch.rand(8, 1, 28, 28))
    assert net[1].num_batches_tracked == 1 and float(net[1].running_mean.abs().max()) > 0
    net.eval()
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(execution.validate(x), net(x), rtol=1e-3, atol=1e-4)


def test_a_net_that_cannot_be_read_is_trained_as_written():
    net = bw.build_net(f"{LECTURE}:Depends")
    assert pick_execution(net, model("depends"), "auto", batch=256).name == "written"
    with pytest.raises(NetError, match="same operations on every batch"):
        pick_execution(net, model("depends"), "collapsed", batch=256)


def test_an_unknown_way_and_a_missing_compiler_are_told(small, monkeypatch):
    with pytest.raises(RecipeError, match="execute must be one of auto, written, collapsed, got 'fast'"):
        bw.train("residual", data=small, options=bw.Options(execute="fast"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RecipeError, match="needs a C\\+\\+ compiler"):
        bw.train("residual", data=small, options=bw.Options(compile=True))


class DependsInEval(nn.Module):
    """What can be collapsed in training, and in eval mode does one thing or another by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 5), nn.Conv2d(8, 8, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 10)
        )

    def forward(self, x):
        return self.layers(x if self.training or x.sum() > 0 else -x)


def test_a_net_that_can_be_read_in_training_alone_is_validated_as_written():
    net = DependsInEval()
    execution = pick_execution(net, model("depends"), "auto", batch=256)
    assert execution.name == "collapsed" and execution.validate is net and net.training


class ViewsInTraining(nn.Module):
    """Views in its training alone what lies in memory with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 5, stride=3), nn.Linear(256, 10)

    def forward(self, x):
        x = self.body(x).relu()
        return self.head(x.view(-1, 256) if self.training else x.flatten(1))


def test_a_net_that_views_in_training_alone_keeps_its_layout(small, tmp_path):
    assert pick_execution(ViewsInTraining(), model("views"), "written", batch=256).layout == torch.contiguous_format
    bw.train(f"{__name__}:ViewsInTraining", data=small, recipe=RECIPE, out=tmp_path / "run")


def test_looking_for_a_layout_leaves_the_net_as_it_is():
    net = Mode()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    assert pick_layout(net, model("mode")) == torch.channels_last
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and net.training

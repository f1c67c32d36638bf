"""GoogLeNet's auxiliary heads: what they read, what they add to the gradient, and that nothing of them is kept."""

from dataclasses import replace

import pytest
import torch
from helpers.training import StopAt, same, weights
from torch.nn import functional as F

import branchwork as bw
from branchwork.catalogue.builders import NETS
from branchwork.datasets.batches import epoch_order
from branchwork.errors import Interrupted, RecipeError
from branchwork.training import auxiliary
from branchwork.training.auxiliary import make_heads
from branchwork.training.run import Model

RECIPE = bw.course().but({"epochs": 2, "batch_size": 50, "precision": "fp64", "auxiliary": 0.3})


@pytest.fixture
def read(monkeypatch) -> None:
    """As if `residual` had auxiliary heads, since GoogLeNet would take a while."""
    monkeypatch.setitem(auxiliary.READ, "residual", ("rblock1", "rblock2"))


def model(size: int, channels: int) -> Model:
    return Model("googlenet", channels, (size, size), tuple("0123456789"), *[(0.5,) * channels] * 2, "crop", "sample")


def test_the_heads_are_those_of_the_paper():
    net = NETS["googlenet"](num_classes=10)
    heads = make_heads(net, model(224, 3), RECIPE)
    assert list(heads) == ["incep4a", "incep4d"]
    for head, channels in zip(heads.values(), (512, 528), strict=True):
        # "4×4×512 for the (4a), and 4×4×528 for the (4d)", a 1×1 to 128, 1,024 units and 70% dropout.
        pooled = head.pool(torch.zeros(1, channels, 14, 14))
        assert pooled.shape == (1, channels, 4, 4)
        assert head.conv.conv.weight.shape == (128, channels, 1, 1)
        assert head.fc1.weight.shape == (1024, 128 * 4 * 4)
        assert head.dropout.p == 0.7
    assert not make_heads(net, model(224, 3), RECIPE.but({"auxiliary": 0.0}))


@pytest.mark.parametrize("size", [28, 33, 96])
def test_heads_fit_small_images_too(size):
    net = NETS["googlenet"](in_channels=1, num_classes=10, image_size=size)
    heads = make_heads(net, model(size, 1), RECIPE)
    for tap, head in heads.items():
        net.get_submodule(tap).register_forward_hook(lambda _, inputs, output, head=head: others.append(head(output)))
    others = []
    net(torch.rand(2, 1, size, size))
    assert [tuple(logits.shape) for logits in others] == [(2, 10), (2, 10)]


def test_their_training_equals_plain_torch_written_out(small, read):
    bw.train("residual", data=small, recipe=RECIPE.but({"weight_decay": 0.01}), options=bw.Options(seed=3), out="run")
    torch.manual_seed(3)
    net = NETS["residual"]()
    heads = make_heads(net, replace(model(28, 1), net="residual"), RECIPE).double()
    net.double()
    for tap, head in heads.items():
        net.get_submodule(tap).register_forward_hook(lambda _, inputs, output, head=head: others.append(head(output)))
    parameters = [*net.parameters(), *heads.parameters()]
    groups = [
        {"params": [p for p in parameters if (p.dim() > 1) == many], "weight_decay": many / 100} for many in (0, 1)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.5)
    for epoch in range(2):
        for chosen in epoch_order(1500, 3, epoch).split(50):
            labels, others = small.train.labels[chosen], []
            main = net((small.train.images[chosen].double() / 255 - 0.1307) / 0.3081)
            loss = F.cross_entropy(main, labels) + 0.3 * sum(F.cross_entropy(logits, labels) for logits in others)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    state = weights("run", "last/state.safetensors")
    expected = {f"net.{key}": value for key, value in net.state_dict().items()}
    expected |= {f"heads.{key}": value for key, value in heads.state_dict().items()}
    assert len(expected) == len(net.state_dict()) + 2 * 10
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-6)


def test_what_is_kept_is_the_net_alone(small, read):
    result = bw.train("residual", data=small, recipe=RECIPE.but({"epochs": 1}), out="run")
    assert weights("run").keys() == NETS["residual"]().state_dict().keys()
    assert (result.parameters, result.execution) == (41_514, "written")


def test_they_resume_bit_for_bit(small, read):
    recipe = RECIPE.but({"precision": "fp32", "batch_size": 100})
    bw.train("residual", data=small, recipe=recipe, out="whole")
    with pytest.raises(Interrupted):
        bw.train("residual", data=small, recipe=recipe, out="stopped", progress=StopAt(1, 7))
    bw.resume("stopped", data=small)
    assert same("whole", "stopped")


def test_they_are_refused_where_they_cannot_be(small, tmp_path):
    with pytest.raises(
        RecipeError, match=r"auxiliary is 0\.3, but resnet20 has no auxiliary heads; only googlenet has them"
    ):
        bw.train("resnet20", data=small, recipe=RECIPE)
    with pytest.raises(RecipeError, match=r"read layers that a collapsed net no longer has: .* --auxiliary 0"):
        bw.train("googlenet", data=small, recipe=RECIPE, options=bw.Options(execute="collapsed"))
    with pytest.raises(RecipeError, match="with --freeze there is nothing for its heads to train"):
        bw.train("googlenet", data=small, recipe=RECIPE, options=bw.Options(freeze=True, weights=tmp_path / "some.pth"))
    assert bw.photos("googlenet[b5=3x3]").auxiliary == 0.3 and bw.photos("resnet18").auxiliary == 0

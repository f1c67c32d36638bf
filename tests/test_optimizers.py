"""What a step of each optimiser does, against closed forms and against torch's own."""

import pytest
import torch
from helpers.training import EXACT, SMALL, StopAt, last, same
from torch import nn
from torch.nn import functional as F

import branchwork as bw
from branchwork.datasets.batches import epoch_order
from branchwork.errors import Interrupted
from branchwork.training.optimizers import POLYNOMIAL, Muon, make_optimizer, orthogonalised

MUON = {"optimizer": "muon", "beta2": 0.9, "momentum": 0.6, "learning_rate": 0.02}


def test_recipes_set_the_optimiser():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    adam = make_optimizer([*net.parameters()], bw.fast().but({"momentum": 0.6, "beta2": 0.8, "weight_decay": 0.1}))
    assert isinstance(adam, torch.optim.Adam)
    assert adam.defaults["betas"] == (0.6, 0.8)
    sgd = make_optimizer([*net.parameters()], bw.course().but({"weight_decay": 0.2}))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.01, 0.5)
    for optimizer, decay in ((adam, 0.1), (sgd, 0.2)):
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        # Kernel and bias, scale and bias, matrix and bias.
        assert [decays[id(p)] for p in net.parameters()] == [decay, 0, 0, 0, decay, 0]


def exact(matrix: torch.Tensor) -> torch.Tensor:
    """The polynomial of Jordan et al. on the singular values themselves."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = POLYNOMIAL[0] * s + POLYNOMIAL[1] * s**3 + POLYNOMIAL[2] * s**5
    return u * s @ v


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_matrices_of_any_shape_are_made_orthogonal_together(dtype, most):
    torch.manual_seed(0)
    shapes = [(10, 25), (24, 216), (20, 2200), (10, 1408), (40, 40), (65, 8), (1, 7), (7, 1)]
    matrices = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for matrix, found in zip(matrices, orthogonalised([matrix.to(dtype) for matrix in matrices]), strict=True):
        assert found.dtype == dtype and (found - exact(matrix)).abs().max() < most
        singular = torch.linalg.svdvals(found)
        if matrix.shape[0] != matrix.shape[1]:  # a square one of noise has singular values near 0
            assert singular.min() > 0.65 and singular.max() < 1.21


def test_what_is_zero_or_of_low_rank_or_of_any_size_gives_no_nan():
    column = torch.randn(30, 1)
    zero, low, tiny, large = orthogonalised(
        [torch.zeros(3, 4), column @ column.T, 1e-12 * torch.eye(5), 1e12 * torch.eye(5)]
    )
    assert torch.equal(zero, torch.zeros(3, 4))
    torch.testing.assert_close(torch.linalg.svdvals(low)[0], torch.linalg.svdvals(exact(column @ column.T))[0])
    torch.testing.assert_close(tiny, large)


def test_muon_equals_plain_torch_written_out(small):
    recipe = EXACT.but(MUON | {"validation": 0.0, "weight_decay": 0.1})
    bw.train(SMALL, data=small, recipe=recipe, options=bw.Options(seed=5), out="run")
    torch.manual_seed(5)
    net = bw.build_net(SMALL).double()
    matrices, vectors = ([p for p in net.parameters() if (p.dim() >= 2) is wanted] for wanted in (True, False))
    adam = torch.optim.Adam(vectors, lr=0.02, betas=(0.6, 0.9))
    momenta = [torch.zeros_like(matrix) for matrix in matrices]
    for epoch in range(2):
        for chosen in epoch_order(1500, 5, epoch).split(64):
            images = (small.train.images[chosen].double() / 255 - 0.1307) / 0.3081
            net.zero_grad()
            F.cross_entropy(net(images), small.train.labels[chosen]).backward()
            adam.step()
            with torch.no_grad():
                for matrix, momentum in zip(matrices, momenta, strict=True):
                    momentum.mul_(0.6).add_(matrix.grad)
                    ahead = matrix.grad + 0.6 * momentum
                    wide = ahead.flatten(1)
                    step = 0.2 * max(wide.shape) ** 0.5 * exact(wide)
                    matrix.mul_(1 - 0.02 * 0.1).sub_(0.02 * step.view_as(matrix))
    for key, weight in last("run").items():
        torch.testing.assert_close(weight, net.state_dict()[key], rtol=1e-6, atol=1e-7)


def test_muon_resumes_bit_for_bit_and_trains_a_part_of_the_images(small):
    recipe = EXACT.but(MUON | {"precision": "fp32", "fraction": 0.5})
    result = bw.train(SMALL, data=small, recipe=recipe, out="whole")
    assert 673 <= result.train_images <= 677 and result.epochs == 2  # half of 1,350, class by class
    with pytest.raises(Interrupted):
        bw.train(SMALL, data=small, recipe=recipe, out="parts", progress=StopAt(2, 3))
    bw.resume("parts", data=small)
    assert same("whole", "parts")


def test_frozen_weights_and_nets_without_biases_are_left_in_peace():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(8, 2, bias=False))
    net[0].requires_grad_(False)
    before = [parameter.clone() for parameter in net.parameters()]
    optimizer = make_optimizer([*net.parameters()], bw.fast().but(MUON))
    assert isinstance(optimizer, Muon)
    net(torch.randn(4, 1, 4, 4)).square().sum().backward()
    optimizer.step()
    assert torch.equal(net[0].weight, before[0]) and not torch.equal(net[2].weight, before[1])

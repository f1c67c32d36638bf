"""The optimisers: torch's Adam and SGD, and Muon, which needs about half as many steps."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from branchwork.training.recipe import Recipe

# Newton-Schulz: the polynomial of Jordan et al. 2024, and how many times it is applied. It maps singular values between
# 0.0015 and 1 to values between 0.68 and 1.21, which train as well as exactly 1.
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
APPLIED = 5
# Gram matrices are padded with zeros to a multiple of this, so that those of a small net go through in one batch.
BLOCK = 32
# What a group of parameters calls its share of the learning rate.
_SHARE = "share"


def make_optimizer(
    parameters: Sequence[nn.Parameter], recipe: Recipe, shares: Sequence[float] | None = None
) -> Optimizer:
    """Return the recipe's optimiser. Each parameter learns at its share of the learning rate; by default all at 1.

    The first group of parameters has the highest rate.
    """
    if recipe.optimizer == "muon":
        decayed, others = _by_decay(parameters)
        return Muon(decayed, others, recipe)
    shares = shares or [1.0] * len(parameters)
    groups: list[dict[str, Any]] = []
    for share in sorted(set(shares), reverse=True):
        decayed, others = _by_decay([each for each, own in zip(parameters, shares, strict=True) if own == share])
        groups.append({"params": decayed, "weight_decay": recipe.weight_decay, _SHARE: share})
        groups.append({"params": others, "weight_decay": 0.0, _SHARE: share})
    if recipe.optimizer == "adam":
        return _adam(groups, recipe, on_gpu=parameters[0].is_cuda)
    sgd = _SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True)
    if recipe.momentum:  # torch refuses a step in which only some parameters have theirs, as after --head-epochs
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _by_decay(parameters: Sequence[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that weight decay acts on, and the others."""
    return [each for each in parameters if each.dim() >= 2], [each for each in parameters if each.dim() < 2]


def set_rate(optimizer: Optimizer, rate: float | Tensor) -> None:
    """Set the learning rate of each group of parameters to its share of `rate`."""
    for group in optimizer.param_groups:
        share = group.get(_SHARE, 1.0)
        group["lr"] = rate if share == 1 else share * rate


def layer_shares(net: nn.Module, lowest: float) -> list[float]:
    """Return the share of the learning rate for each parameter of `net`, from `lowest` in the first layers to 1.

    Layers are the modules that the net itself lists, such as stages or blocks, in that order; a module that holds all
    of them is looked into. Each learns at the same ratio to the next (Howard and Ruder 2018, section 3.2), and the last
    linear layer, the head, at 1.
    """
    paths = [path.split(".") for path, _ in net.named_parameters()]
    depth = 0
    while all(len(path) > depth + 2 and path[depth] == paths[0][depth] for path in paths):
        depth += 1
    layers = list(dict.fromkeys(path[depth] for path in paths))
    last = max(1, len(layers) - 1)
    shares = {layer: lowest ** ((last - place) / last) for place, layer in enumerate(layers)}
    if len(layers) == 1:
        shares = dict.fromkeys(layers, 1.0)
    heads = [module for module in net.modules() if isinstance(module, nn.Linear)][-1:]
    of_head = {id(parameter) for head in heads for parameter in head.parameters()}
    return [
        1.0 if id(parameter) in of_head else shares[path[depth]]
        for path, parameter in zip(paths, net.parameters(), strict=True)
    ]


def _adam(parameters: Sequence[Any], recipe: Recipe, *, on_gpu: bool) -> Optimizer:
    betas = (recipe.momentum, recipe.beta2)
    # A fused step is the same whether it is `capturable` or not, but in a CUDA graph torch insists on it.
    return _Adam(parameters, lr=recipe.learning_rate, betas=betas, fused=True, capturable=on_gpu)


class _Uncompiled(Optimizer):
    """An optimiser that does not import torch's compiler. Torch's own do, for two seconds, only to disable it."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class _SGD(_Uncompiled, SGD):
    step = torch.no_grad()(inspect.unwrap(SGD.step))


class _Adam(_Uncompiled, Adam):
    step = torch.no_grad()(inspect.unwrap(Adam.step))


class Muon(_Uncompiled):
    """Muon (Jordan et al. 2024): steps equally far along all directions of a weight; Adam for biases and norms.

    The gradient of a weight O×I×H×W, seen as a matrix O×(I·H·W), has a few large singular values, and a step along it
    changes little else. Here its Nesterov momentum is orthogonalised, which makes all singular values equal, and scaled
    to the size of Adam's steps (Liu et al. 2025, section 2.2), so that both can share one learning rate. Weight decay
    is decoupled.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], vectors: Sequence[nn.Parameter], recipe: Recipe) -> None:
        self._decay = recipe.weight_decay
        self._momentum = recipe.momentum
        super().__init__([*matrices, *vectors], {"lr": recipe.learning_rate})
        self._matrices = matrices
        self._adam = _adam(vectors, recipe, on_gpu=vectors[0].is_cuda) if vectors else None
        if self._adam is not None:
            self._adam.state = self.state  # one state, saved and restored like that of any other optimiser

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step. Parameters without a gradient stay as they are."""
        (group,) = self.param_groups
        if self._adam is not None:
            self._adam.param_groups[0]["lr"] = group["lr"]
            self._adam.step()
        moved = [matrix for matrix in self._matrices if matrix.grad is not None]
        gradients = [cast(Tensor, matrix.grad) for matrix in moved]
        for matrix in moved:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in moved]
        torch._foreach_mul_(buffers, self._momentum)
        torch._foreach_add_(buffers, gradients)
        ahead = torch._foreach_add(gradients, buffers, alpha=self._momentum)
        for matrix, step in zip(moved, orthogonalised([tensor.flatten(1) for tensor in ahead]), strict=True):
            size = 0.2 * math.sqrt(max(step.shape))
            rate, step = group["lr"], step.reshape(matrix.shape)
            if isinstance(rate, Tensor):  # as a number it would be read from the GPU
                matrix.addcmul_(matrix, rate, value=-self._decay).addcmul_(step, rate, value=-size)
            else:
                matrix.mul_(1 - rate * self._decay).add_(step, alpha=-rate * size)


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return each matrix U·S·V with singular values S of about 1, by Newton-Schulz iteration.

    An odd polynomial of a matrix X is a polynomial of its Gram matrix, times X. Gram matrices are small, and those of
    many weights are multiplied at once.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    alike: dict[int, list[int]] = {}
    for index, matrix in enumerate(wide):
        alike.setdefault(-(-len(matrix) // BLOCK) * BLOCK, []).append(index)
    found: dict[int, Tensor] = {}
    for size, chosen in alike.items():
        grams = wide[chosen[0]].new_zeros(len(chosen), size, size)
        for gram, index in zip(grams, chosen, strict=True):
            rows = len(wide[index])
            gram[:rows, :rows] = wide[index] @ wide[index].T
        for factor, index in zip(_polar_factors(grams), chosen, strict=True):
            rows = len(wide[index])
            found[index] = factor[:rows, :rows] @ wide[index]
    return [found[index] if wide[index] is matrix else found[index].T for index, matrix in enumerate(matrices)]


def _polar_factors(grams: Tensor) -> Tensor:
    """Return B×N×N: the factors by which to multiply, from the left, the matrices that have these Gram matrices."""
    squared = grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp_min(torch.finfo(grams.dtype).tiny)
    first, third, fifth = POLYNOMIAL
    gram, factors = grams / squared, None
    for _ in range(APPLIED):
        factor = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        factor.diagonal(dim1=1, dim2=2).add_(first)
        factors = factor if factors is None else factor @ factors
        gram = factor @ gram @ factor
    assert factors is not None
    return factors * squared.rsqrt()

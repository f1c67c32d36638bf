"""Whether a net that was read trains as the one that was written: what its gradients and buffers become in a step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from branchwork.errors import NetError
from branchwork.graph.read import FEW
from branchwork.graph.untouched import holding, untouched

# Of the norms of a tensor's gradient and of all. Another order of the same sums differs by a millionth in float32, and
# by more where it moves a number across a ReLU's zero; a gradient that is stopped, turned or scaled differs wholly.
OF_ITS_OWN, OF_ALL = 0.05, 1e-5


def need_same_training(net: nn.Module, other: nn.Module, input_shape: Sequence[int]) -> None:
    """Raises `NetError` where a step of `other`, over the parameters of `net`, gives other gradients or buffers.

    A graph knows operations alone, and neither `no_grad` around them, nor functions and hooks with gradients of their
    own, nor a buffer that becomes another tensor.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    if not weights or weights[0].is_meta:  # there is nothing to learn, or there are no numbers
        return
    written, read = (_step(run, weights, buffers, input_shape) for run in (net, other))
    everything = torch.stack([gradient.norm() for gradient in written[: len(weights)]]).norm()
    for index, (one, two) in enumerate(zip(written, read, strict=True)):
        least = OF_ALL * everything if index < len(weights) else 1e-6
        if one.shape != two.shape or not bool((one - two).norm() <= OF_ITS_OWN * one.norm() + least):
            raise NetError(
                f"{type(net).__name__} trains otherwise than its operations say, as with no_grad, a function or a hook "
                "that has a gradient of its own, or a buffer that becomes another tensor: train it with --execute "
                "written"
            )


def _step(run: nn.Module, weights: list[nn.Parameter], buffers: list[Tensor], shape: Sequence[int]) -> list[Tensor]:
    """The gradients of the weights and then what becomes of the buffers in one step, which leaves both as they are."""
    device = weights[0].device
    # Both draw the same images, and the same for dropout: each begins where the other did.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), untouched(run):
        images = torch.randn(FEW, *shape).to(weights[0])
        clones = {id(buffer): buffer.detach().clone() for buffer in run.buffers()}
        with torch.enable_grad(), holding(run, clones) as left:
            logits = run(images)
            total = (logits * torch.randn(logits.shape).to(logits)).sum()
            learns = [*weights] if total.requires_grad else []
            given = [*torch.autograd.grad(total, learns, allow_unused=True)] if learns else [None] * len(weights)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, given, strict=True)]
    return [*gradients, *(left.get(id(buffer), buffer).detach() for buffer in buffers)]

"""`fuse` rewrites a trained net into an equal one that costs less; `collapse` does so for training."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from branchwork.errors import NetError, nearest
from branchwork.fusing.collapse import collapse_segments
from branchwork.fusing.constants import fold_constants, norm_before_concat, norm_into_groups
from branchwork.fusing.passes import fill_blocks, merge_siblings, pool_before_relu, relu_before_pool
from branchwork.fusing.pieces import Merge
from branchwork.fusing.pooling import pool_products
from branchwork.fusing.target import ENGINES, Target
from branchwork.graph.read import FEW, read
from branchwork.graph.uncompiled import uncompiled
from branchwork.graph.untouched import alone, holding, untouched


@uncompiled()
def fuse(
    net: nn.Module,
    input_shape: Sequence[int],
    *,
    batch: int = 8,
    precision: str = "fp32",
    engine: str | None = None,
) -> fx.GraphModule:
    """Return an equal but cheaper net for images N×C×H×W, in eval mode. `net` is left as it was.

    Batch norm is folded into the layer before it, convolutions that read the same tensor become one, and every affine
    segment takes its cheapest equal form, by an estimate for batches of `batch` images computed in `precision` (fp32 or
    bf16) by torch, or by an `engine` (onnxruntime or openvino). The weights keep their dtype. Raises `NetError` for a
    net in training mode, whose batch norm and dropout cannot be folded, and for a net with data-dependent control flow.
    """
    if batch < 1 or precision not in ("fp32", "bf16"):
        raise NetError(
            "batch must be at least 1 and precision fp32 or bf16, got {batch} and {precision!r}",
            batch=batch,
            precision=precision,
        )
    if engine not in (None, *ENGINES):
        raise NetError(
            "there is no engine called {engine!r}.{hint} None means torch.",
            engine=engine,
            hint=nearest(str(engine), ENGINES),
        )
    if any(module.training for module in net.modules()):
        raise NetError("only a net in eval mode can be fused: call net.eval() first")
    target = Target(batch, precision == "bf16", engine)
    module = read(net, input_shape).rewritable()
    pool_before_relu(module.graph)
    norm_before_concat(module.graph)
    module = collapse_segments(module, target, merges=0)
    norm_into_groups(module.graph)
    if engine:
        relu_before_pool(module.graph)
    fold_constants(module)
    merge_siblings(module, target)
    if engine == "onnxruntime":
        fill_blocks(module.graph)
    fold_constants(module)
    return fx.GraphModule(module, module.graph)  # which holds only what its graph uses, and no weights from before


@uncompiled()
def collapse(net: nn.Module, input_shape: Sequence[int], *, batch: int) -> fx.GraphModule | None:
    """Return an equal net in the same mode, over the parameters of `net` themselves, for batches of `batch` images.

    Its kernels are merged from those parameters each time it runs, so that gradients reach them unchanged. Returns None
    if nothing would be cheaper by the estimate. Raises `NetError` if the graph of `net` cannot be read, or if `net`
    does more in training than its graph says: has its own gradients, keeps what it computes, or draws random numbers in
    Python.
    """
    if batch < 1:
        raise NetError("batch, the number of images in a step, must be at least 1, got {batch}", batch=batch)
    written = read(net, input_shape, train=True).rewritable()
    pooled = pool_before_relu(written.graph)
    # Kernels are merged once forward, and in training twice backward.
    module = collapse_segments(written, Target(batch), merges=3 if net.training else 1)
    merged = merge_siblings(module, Target(batch))
    multiplied = pool_products(module)
    collapsed = any(isinstance(part, Merge) for part in module.modules())
    if not (pooled or collapsed or merged or multiplied):
        return None
    if net.training:
        _require_same_training(net, module, input_shape)
    return module


# Shares of the norm of a tensor's gradient, and of that of all gradients. Another order of the same sums differs by a
# millionth in float32, and by more where it moves a number across a ReLU's zero; a gradient that is stopped, turned or
# scaled differs wholly.
OF_ITS_OWN, OF_ALL = 0.05, 1e-5


def _require_same_training(net: nn.Module, other: nn.Module, input_shape: Sequence[int]) -> None:
    """Raise `NetError` if a step of `other`, over the parameters of `net`, gives other gradients or buffers.

    A graph holds only operations: neither `no_grad` around them, nor functions and hooks with their own gradients, nor
    a replaced buffer.
    """
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    if not weights or weights[0].is_meta:  # there is nothing to learn, or there are no numbers
        return
    written, read = (_step(run, weights, buffers, shape=input_shape) for run in (net, other))
    everything = torch.stack([gradient.norm() for gradient in written[: len(weights)]]).norm()
    for index, (one, two) in enumerate(zip(written, read, strict=True)):
        least = OF_ALL * everything if index < len(weights) else 1e-6
        if one.shape != two.shape or not bool((one - two).norm() <= OF_ITS_OWN * one.norm() + least):
            raise NetError(
                "{name} trains differently from what its graph says: it may use no_grad, a function or "
                "a hook with its own gradient, or replace a buffer: train it with --execute written",
                name=type(net).__name__,
            )


def _step(run: nn.Module, weights: list[nn.Parameter], buffers: list[Tensor], *, shape: Sequence[int]) -> list[Tensor]:
    """Return the gradients of the weights and the new buffers of one step, which leaves both as they are."""
    device = weights[0].device
    # Each run begins with the same random numbers, for the same images and the same dropout.
    with alone(device), untouched(run):
        images = torch.randn(FEW, *shape).to(weights[0])
        clones = {id(buffer): buffer.detach().clone() for buffer in run.buffers()}
        with torch.enable_grad(), holding(run, clones) as left:
            logits = run(images)
            total = (logits * torch.randn(logits.shape).to(logits)).sum()
            learns = [*weights] if total.requires_grad else []
            gradients = [*torch.autograd.grad(total, learns, allow_unused=True)] if learns else [None] * len(weights)
    to_weights = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]
    return [*to_weights, *(left.get(id(buffer), buffer).detach() for buffer in buffers)]

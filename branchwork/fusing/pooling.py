"""The first convolution of a net for grey images, with its max pooling and ReLU, as products of patches.

Such a convolution writes far more numbers than it reads, and torch loops over its few channels. Here the images are the
last dimension, so every loop is long: a matrix times a patch gives all outputs of one pooling window as slabs, and
their elementwise maximum is kept.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from branchwork.blocks import pair
from branchwork.fusing.rules import pooling_window
from branchwork.graph.costs import argument, op_name
from branchwork.graph.program import shape_of


def pool_products(module: fx.GraphModule) -> bool:
    """Rewrite such layers of a net on a CPU, in the graph of `module`. Returns whether anything changed.

    One channel and ten outputs take three quarters of the time so. torch's own layers are as fast where the outputs
    fill vectors of eight numbers, and faster where three channels are read (docs/experiments/collapse.md).
    """
    if any(tensor.device.type != "cpu" for tensor in (*module.parameters(), *module.buffers())):
        return False
    graph, pools = module.graph, [node for node in module.graph.nodes if _is_pooled_convolution(node)]
    for number, pool in enumerate(pools):
        convolution: Any = pool.args[0]
        (reader, *others), name = pool.users, f"pooled{number}"
        relu = not others and reader.op == "call_function" and op_name(reader) == "relu"
        padding, window = pair(argument(convolution, 4, 0)), pair(pool.args[1])
        module.add_submodule(name, PooledConvolution(padding, window, relu=relu))
        with graph.inserting_before(pool):
            product = graph.call_module(name, (*convolution.args[:2], argument(convolution, 2, None)))
        product.meta["val"] = pool.meta["val"]
        (reader if relu else pool).replace_all_uses_with(product)
    graph.eliminate_dead_code()
    module.recompile()
    return bool(pools)


def _is_pooled_convolution(node: fx.Node) -> bool:
    if pooling_window(node) is None:
        return False
    before: Any = node.args[0]
    return before.op == "call_function" and op_name(before) == "conv2d" and _is_narrow(before)


def _is_narrow(convolution: fx.Node) -> bool:
    source: Any = convolution.args[0]
    strides, padding, dilation = (argument(convolution, index, default) for index, default in ((3, 1), (4, 0), (5, 1)))
    dense = pair(strides) == pair(dilation) == (1, 1) and not isinstance(padding, str)
    narrow = shape_of(source)[0] == 1 and shape_of(convolution)[0] % 8 != 0
    return dense and narrow and source.op == "placeholder" and len(convolution.users) == 1


class PooledConvolution(nn.Module):
    """max-pool(conv(x)), or ReLU of it with `relu`, for pooling windows that lie side by side.

    It takes one matrix product for each pooled pixel: its patch (k+p−1)×(l+q−1) times the kernel k×l in p·q places.
    """

    def __init__(self, padding: tuple[int, int], pool: tuple[int, int], *, relu: bool = False) -> None:
        super().__init__()
        self.padding, self.pool, self.relu = padding, pool, relu

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map N×C×H×W to N×O×P×Q with `weight` O×C×k×l. The images still lie last in memory."""
        if x.requires_grad:  # only explanations want gradients of images, which torch's layers give
            pooled = F.max_pool2d(F.conv2d(x, weight, bias, padding=self.padding), self.pool)
            return pooled.relu() if self.relu else pooled
        (p, q), outputs = self.pool, len(weight)
        shifts = [(j, q - 1 - j, i, p - 1 - i) for i in range(p) for j in range(q)]
        kernels = torch.cat([F.pad(weight, shift) for shift in shifts])
        patches = self._patches(x, kernels.shape[2:])
        pixels = patches.shape[:2]
        matrix, patches = kernels.flatten(1).to(patches.dtype), patches.flatten(2, 4).flatten(0, 1)
        y: Tensor = _LargestProducts.apply(matrix, patches, bias, p * q, self.relu)  # type: ignore[no-untyped-call]
        return y.view(*pixels, outputs, len(x)).permute(3, 2, 0, 1)

    def _patches(self, x: Tensor, window: torch.Size) -> Tensor:
        """Return the patch of each pooled pixel: P×Q×C×k×l×N."""
        (height, width), (p, q) = self.padding, self.pool
        if height or width:  # else padding would be a copy
            x = F.pad(x, (width, width, height, height))
        last = x.permute(1, 2, 3, 0).contiguous()
        if torch.is_autocast_enabled(x.device.type):  # patches are nine times as many numbers
            last = last.to(torch.get_autocast_dtype(x.device.type))
        return last.unfold(1, window[0], p).unfold(2, window[1], q).permute(1, 2, 0, 4, 5, 3)


class _LargestProducts(torch.autograd.Function):
    """The elementwise maximum of `count` stacked matrices times patches M×K×N, with `bias` and ReLU: M×O×N.

    A gradient goes to the first matrix that gives the maximum, as in torch's pooling.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, patches: Tensor, bias: Tensor | None, count: int, relu: bool) -> Tensor:
        products = torch.bmm(matrix.expand(len(patches), *matrix.shape), patches)
        *earlier, largest = products.chunk(count, 1)
        # Each product is overwritten by whether a later one exceeds it, which is all that backward needs: the time goes
        # into memory traffic.
        for slab in reversed(earlier):
            larger = torch.maximum(slab, largest)
            slab.lt_(largest)
            largest = larger
        if bias is not None:
            largest.add_(bias[:, None].to(largest.dtype))
        if relu:
            largest.relu_()
        ctx.count, ctx.relu, ctx.bias_dtype = count, relu, None if bias is None else bias.dtype
        ctx.save_for_backward(patches, products, largest if relu else None)
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        patches, exceeded, output = ctx.saved_tensors
        # The gradient that reaches any matrix, then any but the first, and so on.
        reaching = torch.empty_like(exceeded)
        first, *others = reaching.chunk(ctx.count, 1)
        if ctx.relu:
            torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=first)
        else:
            first.copy_(gradient)
        to_bias = None if ctx.bias_dtype is None else first.sum((0, 2), dtype=ctx.bias_dtype)
        for later, slab in zip(others, exceeded.chunk(ctx.count, 1), strict=False):
            torch.mul(first, slab, out=later)
            first = later
        sums = torch.bmm(reaching, patches.mT).sum(0).view(ctx.count, -1, patches.shape[1])
        by_matrix = -sums.diff(dim=0, append=torch.zeros_like(sums[:1]))
        return by_matrix.flatten(0, 1), None, to_bias, None, None

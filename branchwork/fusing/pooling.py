"""The first convolution of a net for grey images, with the max pooling and ReLU behind it, as products of patches.

Such a convolution gives far more numbers than it reads, and its loops and those of the pooling run over a handful of
channels. Here the images lie along the last dimension, so that every loop is long: a matrix times a patch gives all
outputs that one pooling chooses from, in slabs whose largest numbers are kept.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from branchwork.graph.costs import argument, operation, pair
from branchwork.graph.program import shape_of


def pool_products(module: fx.GraphModule) -> bool:
    """Rewrite such layers in the graph of `module`, which is to run on a CPU. Says whether anything changed.

    One channel and ten outputs take three quarters of the time so. torch's own layers are as fast where the outputs
    fill its vectors of eight numbers, and faster where three channels are read (LOG.md).
    """
    graph, pools = module.graph, [node for node in module.graph.nodes if _is_pooled_convolution(node)]
    for number, pool in enumerate(pools):
        convolution: Any = pool.args[0]
        (reader, *others), name = pool.users, f"pooled{number}"
        relu = not others and reader.op == "call_function" and operation(reader) == "relu"
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
    if pooled_window(node) is None:
        return False
    before: Any = node.args[0]
    return before.op == "call_function" and operation(before) == "conv2d" and _is_narrow(before)


def pooled_window(node: fx.Node) -> tuple[int, int] | None:
    """The window of a max pooling whose windows lie side by side, and None for all other nodes."""
    if node.op != "call_function" or operation(node) != "max_pool2d":
        return None
    window = pair(node.args[1])
    strides, padding = pair(argument(node, 2, None) or window), pair(argument(node, 3, 0))
    dilation, rounds_up = pair(argument(node, 4, 1)), argument(node, 5, False)
    plain = (1, 1) != window == strides and padding == (0, 0) and dilation == (1, 1) and not rounds_up
    return window if plain else None


def _is_narrow(convolution: fx.Node) -> bool:
    source: Any = convolution.args[0]
    strides, padding, dilation = (argument(convolution, place, default) for place, default in ((3, 1), (4, 0), (5, 1)))
    dense = pair(strides) == pair(dilation) == (1, 1) and not isinstance(padding, str)
    narrow = shape_of(source)[0] == 1 and shape_of(convolution)[0] % 8 != 0
    on_images = source.op == "placeholder" and source.meta["val"].device.type == "cpu"
    return dense and narrow and on_images and len(convolution.users) == 1


class PooledConvolution(nn.Module):
    """max-pool(conv(x)) for a pooling whose windows lie side by side: p×q numbers give one. With `relu`, ReLU of it.

    One matrix product for each pooled pixel: of its patch (k+p−1)×(l+q−1) with the kernel k×l in p·q places.
    """

    def __init__(self, padding: tuple[int, int], pool: tuple[int, int], *, relu: bool = False) -> None:
        super().__init__()
        self.padding, self.pool, self.relu = padding, pool, relu

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """N×C×H×W to N×O×P×Q with `weight` O×C×k×l. In memory the images still lie last: the next layer copies them."""
        if x.requires_grad:  # gradients of images, which only explanations want, are not worth a second way
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
        """P×Q×C×k×l×N."""
        (height, width), (p, q) = self.padding, self.pool
        if height or width:  # else padding would be a copy
            x = F.pad(x, (width, width, height, height))
        last = x.permute(1, 2, 3, 0).contiguous()
        if torch.is_autocast_enabled(x.device.type):  # patches are nine times as many numbers
            last = last.to(torch.get_autocast_dtype(x.device.type))
        return last.unfold(1, window[0], p).unfold(2, window[1], q).permute(1, 2, 0, 4, 5, 3)


class _LargestProducts(torch.autograd.Function):
    """Of `count` matrices below each other, times patches M×K×N, the largest of what they give: M×O×N.

    Then come `bias` and, with `relu`, ReLU. A gradient goes to the first matrix that gives the largest, as in torch's
    pooling.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, patches: Tensor, bias: Tensor | None, count: int, relu: bool) -> Tensor:
        products = torch.bmm(matrix.expand(len(patches), *matrix.shape), patches)
        *earlier, largest = products.chunk(count, 1)
        # What is left in place of a product is whether a later one exceeds it, which is all that is asked on the way
        # back: numbers go through memory as seldom as can be.
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
        patches, exceeded, given = ctx.saved_tensors
        # First the gradient of all matrices together, then of all but the first, and so on.
        reaching = torch.empty_like(exceeded)
        first, *others = reaching.chunk(ctx.count, 1)
        if ctx.relu:
            torch.ops.aten.threshold_backward.grad_input(gradient, given, 0, grad_input=first)
        else:
            first.copy_(gradient)
        to_bias = None if ctx.bias_dtype is None else first.sum((0, 2), dtype=ctx.bias_dtype)
        for later, slab in zip(others, exceeded.chunk(ctx.count, 1), strict=False):
            torch.mul(first, slab, out=later)
            first = later
        sums = torch.bmm(reaching, patches.mT).sum(0).view(ctx.count, -1, patches.shape[1])
        own = -sums.diff(dim=0, append=torch.zeros_like(sums[:1]))
        return own.flatten(0, 1), None, to_bias, None, None

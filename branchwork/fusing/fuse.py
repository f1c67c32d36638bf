"""`fuse`: a net as it was trained, rewritten into an equal one that costs less. `collapse`: the same, in training."""

from collections.abc import Sequence

from torch import fx, nn

from branchwork.errors import NetError, nearest
from branchwork.fusing.blocks import fill_blocks
from branchwork.fusing.collapse import collapse_segments
from branchwork.fusing.constants import fold_constants
from branchwork.fusing.merging import Merge
from branchwork.fusing.norms import norm_before_concat, norm_into_groups
from branchwork.fusing.pooling import pool_products
from branchwork.fusing.reorder import pool_before_relu, relu_before_pool
from branchwork.fusing.same import need_same_training
from branchwork.fusing.siblings import merge_siblings
from branchwork.fusing.target import ENGINES, Target
from branchwork.graph.read import read


def fuse(
    net: nn.Module,
    input_shape: Sequence[int],
    *,
    batch: int = 8,
    precision: str = "fp32",
    engine: str | None = None,
) -> fx.GraphModule:
    """An equal net for images N×C×H×W, in eval mode, that costs less. `net` is left as it was.

    Batch norm is folded into the layer before it, convolutions that read one tensor become one, and every affine
    segment becomes the cheapest equal form, as an estimate has it for batches of `batch` images that are computed in
    `precision`, fp32 or bf16, by torch or an `engine`, onnxruntime or openvino. Its weights have the type of those of
    `net` in any case. Raises `NetError` for a net in training mode, where batch norm and dropout do what cannot be
    folded, and for one whose operations depend on the pixels.
    """
    if batch < 1 or precision not in ("fp32", "bf16"):
        raise NetError(f"batch is {batch} and precision {precision!r}: it must be 1 or more, and fp32 or bf16")
    if engine not in (None, *ENGINES):
        raise NetError(f"nets are fused for no engine called {engine!r}.{nearest(str(engine), ENGINES)} None is torch.")
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
    return fx.GraphModule(module, module.graph)  # which holds what its graph uses, and no weights from before


def collapse(net: nn.Module, input_shape: Sequence[int], *, batch: int) -> fx.GraphModule | None:
    """An equal net in the same mode over the parameters of `net` themselves, for batches of `batch` images.

    Its kernels are merged from those parameters each time it runs, so that gradients reach them unchanged. None where
    the estimate finds nothing that pays. Raises `NetError` where the graph of `net` cannot be read, or where in
    training `net` does more than it says: has gradients of its own, keeps what it computes, or draws random numbers in
    Python.
    """
    if batch < 1:
        raise NetError(f"batch is {batch}, and it must be at least 1: how many images a step has")
    written = read(net, input_shape, train=True).rewritable()
    pooled = pool_before_relu(written.graph)
    # Kernels are merged once forward, and in training twice back.
    module = collapse_segments(written, Target(batch), merges=3 if net.training else 1)
    merged = merge_siblings(module, Target(batch))
    multiplied = pool_products(module)
    collapsed = any(isinstance(part, Merge) for part in module.modules())
    if not (pooled or collapsed or merged or multiplied):
        return None
    if net.training:
        need_same_training(net, module, input_shape)
    return module

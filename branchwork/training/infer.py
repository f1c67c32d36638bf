"""Inference with a net: devices, precision, memory layout, and logits in large batches."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from branchwork.catalogue.resolve import is_own_failure
from branchwork.datasets.batches import normalise
from branchwork.datasets.dataset import Images
from branchwork.errors import FAILURES, NetError, RecipeError, WeightsError, with_kind, with_line
from branchwork.graph.untouched import alone, holding, untouched
from branchwork.training.run import Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRAINING_DTYPES = {**DTYPES, "fp64": torch.float64}

# Pixels evaluated at once, 256 images of 28×28 or 4 of 224×224: overheads vanish, and activations stay within the
# caches and tens of megabytes. With more, the system clears new memory for each operation.
EVALUATION_PIXELS = 256 * 28 * 28
# A GPU gains nothing from caches, and much from larger batches.
EVALUATION_PIXELS_GPU = 16 * EVALUATION_PIXELS


def pick_device(name: str) -> torch.device:
    """Return the device; `auto` is CUDA if there is one, else the CPU. Raises `RecipeError` if it is missing.

    MPS is used only where it is named: fastai chose it by itself, and took that back (fastai#3769).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type in ("cpu", "cuda", "mps"):
            return device
        reason = None
    except (RuntimeError, AssertionError, ImportError) as fault:
        reason = fault
    raise RecipeError("device {name!r} is not available here: use cpu, or auto", name=name) from reason


def pick_precision(name: str, device: torch.device) -> str:
    """Return the precision; `auto` is bf16 on hardware with bf16 instructions, else fp32.

    Raises `RecipeError` for bf16 on a device that would emulate it, slowly, and for fp64 on one without it. Gains are
    in docs/experiments/training.md.
    """
    native = _has_bf16(device)
    if name == "bf16" and not native:
        raise RecipeError("precision is bf16, but this {type} has no bf16 instructions: use fp32", type=device.type)
    if name == "fp64" and device.type == "mps":
        raise RecipeError("precision is fp64, which mps does not support: use fp32, or --device cpu")
    if name != "auto":
        return name
    return "bf16" if native else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=precision, enabled=precision == torch.bfloat16)


def weight_dtype(precision: torch.dtype) -> torch.dtype:
    """Return the dtype of weights, normalised images and losses: with bf16, only convolutions and products use it."""
    return torch.float64 if precision == torch.float64 else torch.float32


def pick_layout(net: nn.Module, model: Model) -> torch.memory_format:
    """Move `net` to `channels_last` (faster), unless it calls `.view` on a tensor that this makes non-contiguous.

    Returns the layout. It is tried in eval mode, and also in training mode if `net` is in it.
    """
    # A fused net may have only buffers.
    weight = next(tensor for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point())
    images = torch.zeros(2, *model.input_shape, device=weight.device, dtype=weight.dtype)
    images = images.to(memory_format=torch.channels_last)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
    training = net.training
    clones = {id(buffer): buffer.clone() for buffer in net.buffers()}  # a batch norm counts what it sees
    try:
        with torch.no_grad(), alone(), untouched(net), holding(net, clones):
            for mode in {False, training}:
                net.train(mode)(images)
        return torch.channels_last
    except FAILURES:
        net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return torch.contiguous_format
    finally:
        net.train(training)


def evaluation_batch(model: Model, device: torch.device) -> int:
    """Return how many of the model's images are evaluated at once."""
    height, width = model.image_size
    pixels = EVALUATION_PIXELS if device.type == "cpu" else EVALUATION_PIXELS_GPU
    return max(1, pixels // (height * width))


def predict_logits(net: nn.Module, images: Images, model: Model, *, precision: torch.dtype = torch.float32) -> Tensor:
    """Return logits float32 N×K on the CPU for uint8 images N×C×H×W. Puts `net` in eval mode and back.

    Its weights stay in the layout of `pick_layout`. Raises `NetError` where a user's own net fails, and `WeightsError`
    if a logit is not finite.
    """
    device, dtype, layout = next(net.parameters()).device, weight_dtype(precision), pick_layout(net, model)
    size = evaluation_batch(model, device)
    training = net.training
    net.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            logits = [
                net(normalise(batch.to(device), model.mean, model.std).to(dtype, memory_format=layout)).float().cpu()
                for batch in (images[at : at + size] for at in range(0, len(images), size))
            ]
    except FAILURES as reason:
        if not is_own_failure(model.net, reason):
            raise
        raise NetError(
            "{net} failed on {count} images, in eval mode: {reason}",
            net=model.net,
            count=len(images),
            reason=with_line(with_kind(reason), reason),
        ) from reason
    finally:
        net.train(training)
    result = torch.cat(logits)
    if not bool(result.isfinite().all()):
        raise WeightsError("{net} returns infinite or NaN logits: its weights are damaged", net=model.net)
    return result

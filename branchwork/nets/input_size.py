"""What sizes a net gives and takes, mostly found on the `meta` device: shapes are computed, pixels are not."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from branchwork.errors import NetError

ImageSize = int | tuple[int, int]

# Smaller images are computed sooner than torch loads what `meta` takes, which is a second.
FEW_PIXELS = 256 * 256


def height_and_width(image_size: ImageSize) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise NetError(f"an image of {height}×{width} has no pixels: give image_size a positive height and width")
    return height, width


def flat_features(body: nn.Module, in_channels: int, image_size: ImageSize, name: str) -> int:
    """How many numbers `body` gives for one image: the channels × height × width that a `Linear` must take.

    Raises `NetError` with the smallest square image that works where `image_size` is too small for the `body` of
    the net called `name`.
    """
    height, width = height_and_width(image_size)
    tried = _on_meta(body) if height * width > FEW_PIXELS else copy.deepcopy(body).eval()
    count = _features(tried, in_channels, height, width)
    if count is None:
        smallest = _smallest_side(_on_meta(body), in_channels)
        raise NetError(
            f"{name} needs images of at least {smallest}×{smallest} pixels, and these are {height}×{width}: "
            "enlarge the images, or take a net with fewer poolings"
        )
    return count


def layer_shape(net: nn.Module, layer: str, in_channels: int, image_size: ImageSize) -> tuple[int, ...]:
    """What the layer at the path `layer` gives for one image: its shape without the batch."""
    shapes, found = _on_meta(net), []
    shapes.get_submodule(layer).register_forward_hook(lambda module, inputs, output: found.append(output.shape[1:]))
    with torch.no_grad():
        shapes(torch.empty(1, in_channels, *height_and_width(image_size), device="meta"))
    return tuple(found[0])


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def weight_rms(weights: Iterable[Tensor]) -> float | None:
    """The root of the mean square of all kernels and matrices among `weights`; None where there are none.

    Biases and the scales of norms, of one dimension, are left out.
    """
    kernels = [weight.detach().double().flatten() for weight in weights if weight.dim() > 1]
    return float(torch.cat(kernels).square().mean().sqrt()) if kernels else None


def count_macs(net: nn.Module, in_channels: int, image_size: ImageSize) -> int:
    """Multiply-accumulates of one image through `net`: convolutions and matrix products, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, in_channels, *height_and_width(image_size))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(net).cpu().eval()(image)
    return int(counter.get_total_flops()) // 2


def _on_meta(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).to("meta").eval()


def smallest_square(net: nn.Module, in_channels: int, limit: int) -> int | None:
    """The side of the smallest square image that `net` takes as it is built; None where it does not take `limit`."""
    shapes = _on_meta(net)
    return _bisect(shapes, in_channels, 0, limit) if _features(shapes, in_channels, limit, limit) else None


def _features(shapes: nn.Module, in_channels: int, height: int, width: int) -> int | None:
    try:
        device = next(shapes.parameters()).device
        with torch.no_grad():
            output = shapes(torch.zeros(1, in_channels, height, width, device=device))
        return int(output.numel()) or None
    except Exception:  # an image smaller than a kernel, or whatever else a learner's own forward raises
        return None


def _smallest_side(shapes: nn.Module, in_channels: int) -> int:
    low, high = 0, 1
    while _features(shapes, in_channels, high, high) is None:
        low, high = high, high * 2
        assert high <= 1 << 16, "no image size works: the body is broken, not the image"
    return _bisect(shapes, in_channels, low, high)


def _bisect(shapes: nn.Module, in_channels: int, low: int, high: int) -> int:
    """The smallest side that works, where `low` does not and `high` does: between them, larger images always work."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _features(shapes, in_channels, middle, middle) else (middle, high)
    return high

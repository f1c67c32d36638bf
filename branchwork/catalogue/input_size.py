"""The image sizes that a net accepts, and the shapes of its layers, mostly on the `meta` device, without pixels."""

import torch
from torch import nn

from branchwork.errors import FAILURES, NetError
from branchwork.graph.untouched import eval_copy, has_script

ImageSize = int | tuple[int, int]

# Up to this size, computing the image is faster than the second that torch needs to load what `meta` takes.
FEW_PIXELS = 256 * 256


def height_and_width(image_size: ImageSize) -> tuple[int, int]:
    """Return height and width, which may be given as one side. Raises `NetError` if either is below 1."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise NetError("image_size must be at least 1×1, got {height}×{width}", height=height, width=width)
    return height, width


def flat_features(body: nn.Module, in_channels: int, image_size: ImageSize, *, name: str) -> int:
    """Return channels × height × width of the output of `body` for one image: the inputs of a `Linear` behind it.

    Raises `NetError`, naming the net `name` and the smallest square image that works, if `image_size` is too small.
    """
    height, width = height_and_width(image_size)
    probe = _on_meta(body) if height * width > FEW_PIXELS else eval_copy(body)
    count = _features(probe, in_channels, (height, width))
    if count is None:
        smallest = _smallest_side(_on_meta(body), in_channels)
        raise NetError(
            "{name} needs images of at least {smallest}×{smallest} pixels, got {height}×{width}: "
            "enlarge the images, or choose a net with fewer poolings",
            name=name,
            smallest=smallest,
            height=height,
            width=width,
        )
    return count


def layer_shape(net: nn.Module, layer: str, *, in_channels: int, image_size: ImageSize) -> tuple[int, ...]:
    """Return the output shape of the layer at the path `layer`, without the batch."""
    probe, shapes = _on_meta(net), []
    probe.get_submodule(layer).register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1:]))
    with torch.no_grad():
        probe(torch.empty(1, in_channels, *height_and_width(image_size), device="meta"))
    return tuple(shapes[0])


def _on_meta(net: nn.Module) -> nn.Module:
    return eval_copy(net).to("meta")


def smallest_square(net: nn.Module, in_channels: int, limit: int) -> int | None:
    """Return the side of the smallest square image that `net` takes as built.

    None if it does not take `limit`, or has a part in TorchScript.
    """
    if has_script(net):
        return None
    probe = _on_meta(net)
    return _bisect(probe, in_channels, low=0, high=limit) if _features(probe, in_channels, (limit, limit)) else None


def _features(probe: nn.Module, in_channels: int, image_size: tuple[int, int]) -> int | None:
    """Return the number of outputs for one image; None if there are none or the forward fails."""
    try:
        device = next(probe.parameters()).device
        with torch.no_grad():
            output = probe(torch.zeros(1, in_channels, *image_size, device=device))
        return int(output.numel()) or None
    except FAILURES:  # an image smaller than a kernel, or what a user's own forward raises
        return None


def _smallest_side(probe: nn.Module, in_channels: int) -> int:
    low, high = 0, 1
    while _features(probe, in_channels, (high, high)) is None:
        low, high = high, high * 2
        assert high <= 1 << 16, "no image size works: the body is broken"
    return _bisect(probe, in_channels, low=low, high=high)


def _bisect(probe: nn.Module, in_channels: int, *, low: int, high: int) -> int:
    """Return the smallest side that works, given that `low` does not, `high` does, and larger images always work."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _features(probe, in_channels, (middle, middle)) else (middle, high)
    return high

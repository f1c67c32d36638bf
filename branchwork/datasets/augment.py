"""Augmentation of whole batches: pure functions, with random numbers that are a function of (seed, epoch, step).

The numbers are drawn on the CPU, so that a training sees the same images on every device. Images are uint8 N×C×H×W
and stay so: rounding to whole grey values leaves unmoved pixels as they were, bit for bit.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from branchwork.datasets.batches import generator_of

# The Gaussian that smooths an elastic distortion, as a share of the side: Simard et al. 2003 take 4 of 29 pixels.
SMOOTHNESS = 1 / 7
# Zhong et al. 2017, section 4.3: the share of the area that is erased, and the most that a side outgrows the other.
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = 1 / 0.3


def augment(
    images: Tensor,
    seed: int,
    epoch: int,
    step: int,
    *,
    shift: float = 0.0,
    rotation: float = 0.0,
    scaling: float = 0.0,
    elastic: float = 0.0,
    erasing: float = 0.0,
) -> Tensor:
    """A batch uint8 N×C×H×W, each image of it moved and erased at random: a function of its arguments alone.

    Each image is shifted by up to `shift` pixels both ways, rotated by up to `rotation` degrees, enlarged or reduced
    by up to the share `scaling`, distorted by `elastic` pixels (the standard deviation of a smooth random field,
    Simard et al. 2003), and with probability `erasing` loses a rectangle (Zhong et al. 2017). Where all are 0 it is
    the batch itself.
    """
    generator = generator_of(seed, "augment", epoch, step)
    count, _, height, width = images.shape
    if shift or rotation or scaling or elastic:
        shifts = shift * _uniform((count, 2), generator)
        angles = rotation * _uniform((count,), generator)
        scales = (1 + scaling) ** _uniform((count,), generator)
        field = elastic * smooth_noise(count, height, width, generator) if elastic else None
        images = warp(images, shifts, angles, scales, field)
    if erasing:
        images = erase(images, random_rectangles(count, height, width, erasing, generator))
    return images


def warp(images: Tensor, shifts: Tensor, angles: Tensor, scales: Tensor, field: Tensor | None = None) -> Tensor:
    """Each image uint8 C×H×W scaled, then rotated about its centre, then shifted; bilinear, with 0 outside.

    `shifts` N×2 are pixels to the right and down, `angles` N are degrees, clockwise as one sees the image, `scales` N
    are factors above 0. `field` N×2×H×W says how many pixels further right and down each output pixel is taken from.
    """
    count, _, height, width = images.shape
    radians = angles * (math.pi / 180)
    cosines, sines = torch.cos(radians) / scales, torch.sin(radians) / scales
    inverse = torch.stack([cosines, sines, -sines, cosines], 1).view(count, 2, 2)
    matrices = torch.cat([inverse, -inverse @ shifts.unsqueeze(2)], 2)
    # Sources N×2×HW, in pixels from the centre.
    sources = matrices.to(images.device) @ _positions(height, width, images.device)
    if field is not None:
        sources = sources + field.flatten(2).to(images.device)
    # grid_sample counts in halves of a side.
    halves = torch.tensor([[width / 2], [height / 2]], device=images.device)
    grid = (sources / halves).view(count, 2, height, width).permute(0, 2, 3, 1)
    return F.grid_sample(images.float(), grid, align_corners=False).round_().to(torch.uint8)


@lru_cache(maxsize=8)
def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """3×HW: each pixel's x and y from the image's centre, and 1."""
    y = torch.arange(height, device=device) - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    return torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones(height * width, device=device)])


def smooth_noise(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random fields N×2×H×W of mean 0 and standard deviation 1, smoothed by a Gaussian (see SMOOTHNESS)."""
    rows, columns = _smoothing(height), _smoothing(width)
    noise = torch.randn((count, 2, rows.shape[1], columns.shape[1]), generator=generator)
    return rows @ noise @ columns.T


@lru_cache(maxsize=8)
def _smoothing(side: int) -> Tensor:
    """What makes `side` smooth values of independent ones that lie as far apart as the Gaussian is wide.

    Nearer ones would be smoothed to the same; these are few, and cheap to draw.
    """
    spread = SMOOTHNESS * side
    reach = math.ceil(side / 2 / spread) + 2  # what lies two widths outside is hardly felt
    nodes = spread * torch.arange(-reach, reach + 1) + (side - 1) / 2
    weights = torch.exp(-(((torch.arange(side)[:, None] - nodes) / spread) ** 2) / 2)
    return F.normalize(weights, dim=1)


def erase(images: Tensor, rectangles: Tensor) -> Tensor:
    """The images with 0 in `rectangles`, int64 N×4: top, left, bottom, right, the last two not included."""
    height, width = images.shape[2:]
    top, left, bottom, right = rectangles.to(images.device).view(-1, 4, 1).unbind(1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((y >= top) & (y < bottom)).unsqueeze(2) & ((x >= left) & (x < right)).unsqueeze(1)
    return images * ~inside.unsqueeze(1)


def random_rectangles(count: int, height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """Rectangles int64 N×4 (see `erase`) within the image, which are empty but for a `share` of the images.

    Area and aspect are drawn as Zhong et al. 2017 draw them; a side that outgrows the image is cut to it, where
    they draw again.
    """
    hit = torch.rand(count, generator=generator) < share
    least, most = ERASED_AREA
    areas = height * width * (least + (most - least) * torch.rand(count, generator=generator))
    aspects = ERASED_ASPECT ** _uniform((count,), generator)
    tall = (areas * aspects).sqrt().round().clamp(1, height) * hit
    wide = (areas / aspects).sqrt().round().clamp(1, width) * hit
    top = (torch.rand(count, generator=generator) * (height - tall + 1)).floor()
    left = (torch.rand(count, generator=generator) * (width - wide + 1)).floor()
    return torch.stack([top, left, top + tall, left + wide], 1).long()


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers from −1 to 1."""
    return 2 * torch.rand(shape, generator=generator) - 1

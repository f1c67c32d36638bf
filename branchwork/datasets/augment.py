"""Augmentation of whole batches: pure functions, with random numbers that are a function of (seed, epoch, step).

The numbers are drawn on the CPU, so that a training sees the same images on every device. Images are uint8 N×C×H×W
and stay so: rounding to whole grey values leaves unmoved pixels as they were, bit for bit.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from branchwork.datasets.batches import generator_of

# The Gaussian that smooths an elastic distortion, as a share of the side: Simard et al. 2003 take 4 of 29 pixels.
SMOOTHNESS = 1 / 7
# Zhong et al. 2017, section 4.3: the share of the area that is erased, and the most that a side outgrows the other.
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = 1 / 0.3
# The most that a side of a crop outgrows the other (Szegedy et al. 2014, section 6), and torchvision's draws for one.
CROP_ASPECT = 4 / 3
CROP_TRIES = 10
# How bright red, green and blue are to the eye: ITU-R BT.601.
LUMA = [0.299, 0.587, 0.114]
ALL_ROWS = slice(None)


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
    flip: float = 0.0,
    crop: float = 0.0,
    colour: float = 0.0,
    rows: slice = ALL_ROWS,
    whole: int | None = None,
) -> Tensor:
    """A batch uint8 N×C×H×W, each image of it changed at random: a function of its arguments alone.

    Each image is shifted by up to `shift` pixels both ways, rotated by up to `rotation` degrees, enlarged or reduced
    by up to the share `scaling`, distorted by `elastic` pixels (the standard deviation of a smooth random field,
    Simard et al. 2003), and with probability `erasing` loses a rectangle (Zhong et al. 2017). With probability `flip`
    it is mirrored left to right; `crop` above 0 cuts out a part that lacks up to this share of its area and enlarges
    it to the whole (see `random_crops`); `colour` draws its brightness, contrast and saturation, each as a factor
    from 1 − `colour` to 1 + `colour` (see `recolour`). What moves an image is one resampling. Where all are 0 the
    batch is given back itself.

    `images` may be only the `rows` of a batch of `whole` images: each is then changed as it is in the whole batch.
    """
    generator = generator_of(seed, "augment", epoch, step)
    height, width = images.shape[2:]
    count = len(images) if whole is None else whole
    if shift or rotation or scaling or elastic or crop:
        shifts = shift * _uniform((count, 2), generator)[rows]
        angles = rotation * _uniform((count,), generator)[rows]
        scales = (1 + scaling) ** _uniform((count,), generator)[rows]
        field = elastic * smooth_noise(count, height, width, generator, rows) if elastic else None
        centres = None
        if crop:
            boxes = random_crops(count, height, width, crop, generator)[rows]
            scales = scales.unsqueeze(1) * torch.tensor([width, height]) / boxes[:, 2:]
            centres = boxes[:, :2] + (boxes[:, 2:] - torch.tensor([width, height])) / 2
        images = warp(images, shifts, angles, scales, field, centres)
    if erasing:
        images = erase(images, random_rectangles(count, height, width, erasing, generator)[rows])
    # Drawn last, so that the images of a recipe without them stay what they were.
    if flip:
        mirrored = (torch.rand(count, generator=generator)[rows] < flip).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if colour:
        images = recolour(images, 1 + colour * _uniform((count, 3), generator)[rows])
    return images


def warp(
    images: Tensor,
    shifts: Tensor,
    angles: Tensor,
    scales: Tensor,
    field: Tensor | None = None,
    centres: Tensor | None = None,
) -> Tensor:
    """Each image uint8 C×H×W scaled, then rotated about its centre, then shifted; bilinear, with 0 outside.

    `shifts` N×2 are pixels to the right and down, `angles` N are degrees, clockwise as one sees the image, `scales` N
    are factors above 0, or N×2 for width and height. `field` N×2×H×W says how many pixels further right and down each
    output pixel is taken from. `centres` N×2 are places in pixels right of and below the image's own centre, which
    take its part in all this; outside is then not 0 but the nearest pixel, since a part of a photograph has no
    background.
    """
    count, _, height, width = images.shape
    radians = angles * (math.pi / 180)
    cosines, sines = torch.cos(radians), torch.sin(radians)
    inverse = torch.stack([cosines, sines, -sines, cosines], 1).view(count, 2, 2) / scales.view(count, scales.dim(), 1)
    offsets = -inverse @ shifts.unsqueeze(2)
    if centres is not None:
        offsets = offsets + centres.unsqueeze(2)
    matrices = torch.cat([inverse, offsets], 2)
    # Sources N×2×HW, in pixels from the centre.
    sources = matrices.to(images.device) @ _positions(height, width, images.device)
    if field is not None:
        sources = sources + field.flatten(2).to(images.device)
    # grid_sample counts in halves of a side.
    halves = torch.tensor([[width / 2], [height / 2]], device=images.device)
    grid = (sources / halves).view(count, 2, height, width).permute(0, 2, 3, 1)
    outside = "zeros" if centres is None else "border"
    moved = F.grid_sample(images.float(), grid, padding_mode=outside, align_corners=False)
    return moved.round_().to(torch.uint8)


@lru_cache(maxsize=8)
def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """3×HW: each pixel's x and y from the image's centre, and 1."""
    y = torch.arange(height, device=device) - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    return torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones(height * width, device=device)])


def smooth_noise(count: int, height: int, width: int, generator: torch.Generator, wanted: slice = ALL_ROWS) -> Tensor:
    """Random fields N×2×H×W of mean 0 and standard deviation 1, smoothed by a Gaussian (see SMOOTHNESS).

    Those that are `wanted` of `count`, which are all drawn.
    """
    rows, columns = _smoothing(height), _smoothing(width)
    noise = torch.randn((count, 2, rows.shape[1], columns.shape[1]), generator=generator)[wanted]
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


def random_crops(count: int, height: int, width: int, lost: float, generator: torch.Generator) -> Tensor:
    """Boxes float N×4 within the image: left, top, width, height, in pixels.

    Area and aspect are drawn as Szegedy et al. 2014 (section 6) draw them, which torchvision calls RandomResizedCrop:
    the area even from 1 − `lost` of the image to all of it, the ratio of width to height even in its logarithm within
    CROP_ASPECT, again while the box does not fit. After ten that do not, it is the greatest box in the middle whose
    ratio is allowed. Nothing is rounded to whole pixels, as one resampling needs none.
    """
    draws = torch.rand((count, CROP_TRIES, 2), generator=generator)
    areas = height * width * (1 - lost * draws[..., 0])
    aspects = CROP_ASPECT ** (2 * draws[..., 1] - 1)
    wide, tall = (areas * aspects).sqrt(), (areas / aspects).sqrt()
    fits = (wide <= width) & (tall <= height)
    first = fits.int().argmax(1, keepdim=True)
    sizes = torch.stack([wide.gather(1, first), tall.gather(1, first)], 2)[:, 0]
    greatest = torch.tensor([min(width, height * CROP_ASPECT), min(height, width * CROP_ASPECT)])
    sizes = torch.where(fits.any(1, keepdim=True), sizes, greatest)
    places = torch.rand((count, 2), generator=generator)
    places = torch.where(fits.any(1, keepdim=True), places, 0.5)
    return torch.cat([places * (torch.tensor([width, height]) - sizes), sizes], 1)


def recolour(images: Tensor, factors: Tensor) -> Tensor:
    """The images uint8 with brightness, contrast and saturation multiplied by `factors` N×3.

    As in Krizhevsky 2012 and torchvision's ColorJitter, contrast is about the image's mean grey and saturation about
    each pixel's own; in this order, and cut to 0…255 once, at the end. Grey is ITU-R 601's in three channels, else the
    channels' mean, so that saturation changes nothing in one.
    """
    channels = images.shape[1]
    weights = torch.tensor(LUMA if channels == 3 else [1 / channels] * channels, device=images.device)
    brightness, contrast, saturation = factors.to(images.device).view(-1, 3, 1, 1, 1).unbind(1)
    bright = images * brightness
    means = (bright * weights.view(-1, 1, 1)).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    contrasted = torch.lerp(means, bright, contrast)
    grey = (contrasted * weights.view(-1, 1, 1)).sum(1, keepdim=True)
    return torch.lerp(grey, contrasted, saturation).round_().clamp_(0, 255).to(torch.uint8)


def mixup_weights(count: int, alpha: float, seed: int, epoch: int, step: int) -> Tensor:
    """How much of itself each of `count` images keeps, float N, the rest being its neighbour's: see `mix`.

    From Beta(`alpha`, `alpha`), one draw for each pair (Zhang et al. 2018, section 2). An image without a neighbour, at
    the end of an odd batch, keeps itself.
    """
    words = torch.randint(2**32, (4,), generator=generator_of(seed, "mixup", epoch, step)).tolist()
    draws = torch.from_numpy(np.random.default_rng(words).beta(alpha, alpha, -(-count // 2))).float()
    weights = torch.stack([draws, draws], 1).flatten()[:count]
    if count % 2:
        weights[-1] = 1
    return weights


def mix(values: Tensor, weights: Tensor) -> Tensor:
    """Each row of `values` N×… by its weight plus its neighbour by the rest: first with second, third with fourth.

    The order of a batch is random, so that the neighbour is a random partner; that the pairs lie side by side lets a
    batch be mixed in parts of even length. The sum is float32.
    """
    partners = torch.arange(len(values), device=values.device) ^ 1
    partners[partners == len(values)] = len(values) - 1
    shares = weights.to(values.device).view(-1, *[1] * (values.dim() - 1))
    return shares * values + (1 - shares) * values[partners]


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers from −1 to 1."""
    return 2 * torch.rand(shape, generator=generator) - 1

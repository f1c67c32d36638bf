"""Augmentation of whole batches: pure functions, whose random numbers are a function of (seed, epoch, step).

The numbers are drawn on the CPU, so that a training sees the same images on every device. Images are uint8 N×C×H×W
and stay so: rounding to whole grey levels leaves unmoved pixels as they were, bit for bit.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from branchwork.datasets.batches import constant, generator_of, send

# The Gaussian that smooths an elastic distortion, as a fraction of the side: Simard et al. 2003 take 4 of 29 pixels.
SMOOTHNESS = 1 / 7
# Zhong et al. 2017, section 4.3: the fraction of the area that is erased, and the largest ratio of its sides.
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = 1 / 0.3
# The largest ratio of a crop's sides (Szegedy et al. 2014, section 6), and torchvision's number of draws for one.
CROP_ASPECT = 4 / 3
CROP_TRIES = 10
# How bright red, green and blue appear: ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Augmentation:
    """How strongly each image is changed; all 0 changes nothing.

    An image is shifted by up to `shift` pixels along both axes, rotated by up to `rotation` degrees, enlarged or
    reduced by up to the fraction `scaling`, and distorted by `elastic` pixels (the standard deviation of a smooth
    random field, Simard et al. 2003). With `pad`, it moves by up to as many whole pixels (He et al. 2015, section
    4.2). With probability `erasing` it loses a rectangle (Zhong et al. 2017), with probability `flip` it is mirrored
    left to right. A `crop` above 0 cuts out a part that lacks up to this fraction of the area and enlarges it to the
    whole (see `random_crops`). `colour` multiplies brightness, contrast and saturation by factors from 1 − `colour` to
    1 + `colour` (see `recolour`).
    """

    shift: float = 0.0
    rotation: float = 0.0
    scaling: float = 0.0
    elastic: float = 0.0
    erasing: float = 0.0
    flip: float = 0.0
    crop: float = 0.0
    colour: float = 0.0
    pad: int = 0


def augment(
    images: Tensor,
    strength: Augmentation,
    at: tuple[int, int, int],
    *,
    rows: slice = ALL_ROWS,
    whole: int | None = None,
) -> Tensor:
    """Return a batch uint8 N×C×H×W, each image of it changed at random: a function of the arguments alone.

    `at` is (seed, epoch, step). Everything that moves pixels is one resampling. `images` may be only the `rows` of a
    batch of `whole` images: each is then changed as it is in the whole batch.
    """
    seed, epoch, step = at
    generator = generator_of(seed, "augment", epoch, step)
    height, width = images.shape[2:]
    count = len(images) if whole is None else whole
    if strength.shift or strength.rotation or strength.scaling or strength.elastic or strength.crop:
        shifts = strength.shift * _uniform((count, 2), generator)[rows]
        angles = strength.rotation * _uniform((count,), generator)[rows]
        scales = (1 + strength.scaling) ** _uniform((count,), generator)[rows]
        field, centres = None, None
        if strength.elastic:
            field = strength.elastic * smooth_noise(count, (height, width), generator, wanted=rows)
        if strength.crop:
            boxes = random_crops(count, (height, width), generator, lost=strength.crop)[rows]
            scales = scales.unsqueeze(1) * torch.tensor([width, height]) / boxes[:, 2:]
            centres = boxes[:, :2] + (boxes[:, 2:] - torch.tensor([width, height])) / 2
        images = warp(images, shifts=shifts, angles=angles, scales=scales, field=field, centres=centres)
    if strength.erasing:
        images = erase(images, random_rectangles(count, (height, width), generator, probability=strength.erasing)[rows])
    # Drawn last, so that the images of a recipe without them stay what they were.
    if strength.pad:
        corners = torch.randint(0, 2 * strength.pad + 1, (count, 2), generator=generator)[rows]
        images = pad_and_crop(images, strength.pad, corners)
    if strength.flip:
        mirrored = send(torch.rand(count, generator=generator)[rows] < strength.flip, images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if strength.colour:
        images = recolour(images, 1 + strength.colour * _uniform((count, 3), generator)[rows])
    return images


def warp(
    images: Tensor,
    *,
    shifts: Tensor,
    angles: Tensor,
    scales: Tensor,
    field: Tensor | None = None,
    centres: Tensor | None = None,
) -> Tensor:
    """Scale each image uint8 C×H×W, rotate it about its centre, then shift it; bilinear, with 0 outside.

    `shifts` N×2 are pixels to the right and down, `angles` N are degrees, clockwise as one sees the image, `scales` N
    are factors above 0, or N×2 for width and height. `field` N×2×H×W is how many pixels further right and down each
    output pixel is taken from. `centres` N×2 are points in pixels right of and below the image's centre, which
    replace it in all this; outside is then not 0 but the nearest pixel, since a part of a photograph has no
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
    sources = send(matrices, images.device) @ _positions(height, width, images.device)
    if field is not None:
        sources = sources + send(field.flatten(2), images.device)
    # grid_sample counts in halves of a side.
    halves = constant((width / 2, height / 2), images.device).unsqueeze(1)
    grid = (sources / halves).view(count, 2, height, width).permute(0, 2, 3, 1)
    outside = "zeros" if centres is None else "border"
    moved = F.grid_sample(images.float(), grid, padding_mode=outside, align_corners=False)
    return moved.round_().to(torch.uint8)


@lru_cache(maxsize=8)
def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return 3×HW: each pixel's x and y from the image's centre, and 1."""
    y = torch.arange(height, device=device) - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    return torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones(height * width, device=device)])


def smooth_noise(count: int, size: tuple[int, int], generator: torch.Generator, *, wanted: slice = ALL_ROWS) -> Tensor:
    """Return random fields N×2×H×W of mean 0 and standard deviation 1, smoothed by a Gaussian (see SMOOTHNESS).

    All `count` fields are drawn, and the `wanted` ones returned.
    """
    rows, columns = (_smoothing(side) for side in size)
    noise = torch.randn((count, 2, rows.shape[1], columns.shape[1]), generator=generator)[wanted]
    return rows @ noise @ columns.T


@lru_cache(maxsize=8)
def _smoothing(side: int) -> Tensor:
    """Return the matrix S×K that turns K independent normal numbers into S = `side` smooth ones.

    Its columns are Gaussians of width σ = `SMOOTHNESS`·S, centred on nodes σ apart: more nodes would make no other
    values. Its rows have length 1, so that the standard deviation stays 1.
    """
    spread = SMOOTHNESS * side
    reach = math.ceil(side / 2 / spread) + 2  # two widths outside there is hardly any effect
    nodes = spread * torch.arange(-reach, reach + 1) + (side - 1) / 2
    weights = torch.exp(-(((torch.arange(side)[:, None] - nodes) / spread) ** 2) / 2)
    return F.normalize(weights, dim=1)


def pad_and_crop(images: Tensor, pad: int, corners: Tensor) -> Tensor:
    """Surround images N×C×H×W by `pad` black pixels, and cut H×W out of each at its corner (top, left) of N×2."""
    height, width = images.shape[2:]
    top, left = send(corners, images.device).view(-1, 2, 1).unbind(1)
    y, x = top + torch.arange(height, device=images.device), left + torch.arange(width, device=images.device)
    each = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    return padded[each, y.unsqueeze(2), x.unsqueeze(1)].permute(0, 3, 1, 2).contiguous()


def erase(images: Tensor, rectangles: Tensor) -> Tensor:
    """Set the pixels in `rectangles`, int64 N×4, to 0: top, left, bottom, right, the last two not included."""
    height, width = images.shape[2:]
    top, left, bottom, right = send(rectangles, images.device).view(-1, 4, 1).unbind(1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((y >= top) & (y < bottom)).unsqueeze(2) & ((x >= left) & (x < right)).unsqueeze(1)
    return images * ~inside.unsqueeze(1)


def random_rectangles(count: int, size: tuple[int, int], generator: torch.Generator, *, probability: float) -> Tensor:
    """Return rectangles int64 N×4 (see `erase`) within images of `size`; all but the fraction `probability` are empty.

    Area and aspect are drawn as by Zhong et al. 2017, except that a side longer than the image is cut to it, where
    they draw again.
    """
    height, width = size
    hit = torch.rand(count, generator=generator) < probability
    least, most = ERASED_AREA
    areas = height * width * (least + (most - least) * torch.rand(count, generator=generator))
    aspects = ERASED_ASPECT ** _uniform((count,), generator)
    tall = (areas * aspects).sqrt().round().clamp(1, height) * hit
    wide = (areas / aspects).sqrt().round().clamp(1, width) * hit
    top = (torch.rand(count, generator=generator) * (height - tall + 1)).floor()
    left = (torch.rand(count, generator=generator) * (width - wide + 1)).floor()
    return torch.stack([top, left, top + tall, left + wide], 1).long()


def random_crops(count: int, size: tuple[int, int], generator: torch.Generator, *, lost: float) -> Tensor:
    """Return boxes float N×4 within images of `size` (height, width): left, top, width, height, in pixels.

    Area and aspect are drawn as by Szegedy et al. 2014 (section 6), which torchvision calls RandomResizedCrop: the
    area uniform from 1 − `lost` of the image to all of it, the ratio of width to height uniform in its logarithm within
    CROP_ASPECT, until the box fits; after ten failures, it is the largest central box with an allowed ratio. Nothing is
    rounded to whole pixels, since the one resampling needs none.
    """
    height, width = size
    draws = torch.rand((count, CROP_TRIES, 2), generator=generator)
    areas = height * width * (1 - lost * draws[..., 0])
    aspects = CROP_ASPECT ** (2 * draws[..., 1] - 1)
    wide, tall = (areas * aspects).sqrt(), (areas / aspects).sqrt()
    fits = (wide <= width) & (tall <= height)
    first = fits.int().argmax(1, keepdim=True)
    sizes = torch.stack([wide.gather(1, first), tall.gather(1, first)], 2)[:, 0]
    largest = torch.tensor([min(width, height * CROP_ASPECT), min(height, width * CROP_ASPECT)])
    sizes = torch.where(fits.any(1, keepdim=True), sizes, largest)
    positions = torch.rand((count, 2), generator=generator)
    positions = torch.where(fits.any(1, keepdim=True), positions, 0.5)
    return torch.cat([positions * (torch.tensor([width, height]) - sizes), sizes], 1)


def recolour(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply brightness, contrast and saturation of uint8 images by `factors` N×3.

    As in Krizhevsky 2012 and torchvision's ColorJitter, contrast is about the image's mean grey and saturation about
    each pixel's own; in this order, and clipped to 0…255 once, at the end. Grey is ITU-R 601's for three channels, else
    the channels' mean, so that saturation changes nothing in one.
    """
    channels = images.shape[1]
    weights = constant(LUMA if channels == 3 else (1 / channels,) * channels, images.device)
    brightness, contrast, saturation = send(factors, images.device).view(-1, 3, 1, 1, 1).unbind(1)
    bright = images * brightness
    means = (bright * weights.view(-1, 1, 1)).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    contrasted = torch.lerp(means, bright, contrast)
    grey = (contrasted * weights.view(-1, 1, 1)).sum(1, keepdim=True)
    return torch.lerp(grey, contrasted, saturation).round_().clamp_(0, 255).to(torch.uint8)


def mixup_weights(count: int, alpha: float, at: tuple[int, int, int]) -> Tensor:
    """Return the weight of each of `count` images in its mixture with its neighbour, float N: see `mix`.

    They are drawn at (seed, epoch, step) from Beta(`alpha`, `alpha`), one for each pair (Zhang et al. 2018, section 2).
    The last image of an odd batch has no neighbour and stays as it is.
    """
    seed, epoch, step = at
    words = torch.randint(2**32, (4,), generator=generator_of(seed, "mixup", epoch, step)).tolist()
    draws = torch.from_numpy(np.random.default_rng(words).beta(alpha, alpha, -(-count // 2))).float()
    weights = torch.stack([draws, draws], 1).flatten()[:count]
    if count % 2:
        weights[-1] = 1
    return weights


def mix(values: Tensor, weights: Tensor) -> Tensor:
    """Add to each row of `values` N×…, times its weight, its neighbour times the rest: first and second, and so on.

    The order of a batch is random, so that a neighbour is a random partner; since pairs lie side by side, a batch can
    be mixed in parts of even length. The sum is float32.
    """
    partners = (torch.arange(len(values), device=values.device) ^ 1).clamp_(max=len(values) - 1)
    shares = send(weights, values.device).view(-1, *[1] * (values.dim() - 1))
    return shares * values + (1 - shares) * values[partners]


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return numbers from −1 to 1."""
    return 2 * torch.rand(shape, generator=generator) - 1

import math
from collections import Counter

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from branchwork.datasets import augment as module
from branchwork.datasets.augment import (
    ERASED_AREA,
    ERASED_ASPECT,
    Augmentation,
    augment,
    erase,
    mix,
    mixup_weights,
    random_crops,
    random_rectangles,
    recolour,
    smooth_noise,
    warp,
)

ALL = Augmentation(
    pad=1, shift=2.0, rotation=10.0, scaling=0.1, elastic=1.0, erasing=0.5, flip=0.5, crop=0.5, colour=0.3
)
START = (0, 0, 0)
sides = st.integers(3, 40)


def noise(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 5), st.integers(1, 3), sides, sides)
def test_a_warp_that_moves_nothing_leaves_the_batch_bit_equal(count, channels, height, width):
    images, zeros = noise(count, channels, height, width), torch.zeros(count)
    field = torch.zeros(count, 2, height, width)
    assert torch.equal(warp(images, shifts=torch.zeros(count, 2), angles=zeros, scales=zeros + 1), images)
    assert torch.equal(warp(images, shifts=torch.zeros(count, 2), angles=zeros, scales=zeros + 1, field=field), images)


@given(sides, sides, st.integers(-4, 4), st.integers(-4, 4))
def test_a_shift_by_whole_pixels_moves_them_and_lets_zeros_in(height, width, right, down):
    images, zeros = noise(2, 3, height, width), torch.zeros(2)
    expected = torch.zeros_like(images)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                expected[..., y, x] = images[..., y - down, x - right]
    shifts = torch.tensor([[right, down]] * 2, dtype=torch.float32)
    assert torch.equal(warp(images, shifts=shifts, angles=zeros, scales=zeros + 1), expected)
    by_field = torch.tensor([-right, -down], dtype=torch.float32).view(1, 2, 1, 1).expand(2, 2, height, width)
    assert torch.equal(warp(images, shifts=torch.zeros(2, 2), angles=zeros, scales=zeros + 1, field=by_field), expected)


def test_a_quarter_turn_is_clockwise():
    images = noise(3, 2, 9, 9)
    turned = warp(images, shifts=torch.zeros(3, 2), angles=torch.tensor([90.0, 180.0, -90.0]), scales=torch.ones(3))
    for image, result, quarters in zip(images, turned, (1, 2, -1), strict=True):
        assert torch.equal(result, torch.rot90(image, -quarters, (1, 2)))


def test_a_factor_of_two_enlarges_and_of_a_half_reduces():
    images = torch.zeros(2, 1, 12, 12, dtype=torch.uint8)
    images[..., 4:8, 4:8] = 200
    larger, smaller = warp(images, shifts=torch.zeros(2, 2), angles=torch.zeros(2), scales=torch.tensor([2.0, 0.5]))
    assert larger[0, 3:9, 3:9].eq(200).all() and larger.float().sum() == pytest.approx(200 * 64, rel=0.01)
    assert smaller[0, 5:7, 5:7].eq(200).all() and smaller.float().sum() == pytest.approx(200 * 4, rel=0.01)


@given(st.integers(0, 2**30), sides, sides)
def test_a_warp_is_scipys_map_of_coordinates(seed, height, width):
    random = np.random.default_rng(seed)
    image = noise(1, 2, height, width, seed)
    right, down = random.uniform(-5, 5, 2)
    angle, scale = random.uniform(-90, 90), random.uniform(0.5, 2)
    field = random.uniform(-2, 2, (1, 2, height, width))
    ours = warp(
        image,
        shifts=torch.tensor([[right, down]]).float(),
        angles=torch.tensor([angle]).float(),
        scales=torch.tensor([scale]).float(),
        field=torch.from_numpy(field).float(),
    )
    # Rows and columns as numpy has them: a turn clockwise takes the right-hand pixel down.
    turn = np.deg2rad(angle)
    forward = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centre = np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2
    places = np.indices((height, width)) - centre - np.array([down, right]).reshape(2, 1, 1)
    sources = np.einsum("ij,jhw->ihw", np.linalg.inv(forward), places) + centre + field[0, ::-1]
    for channel in range(2):
        theirs = scipy.ndimage.map_coordinates(
            image[0, channel].double().numpy(), sources, order=1, mode="grid-constant", cval=0
        )
        assert np.abs(ours[0, channel].double().numpy() - theirs).max() < 0.52  # rounding, and float32


def test_smooth_noise_has_the_spread_and_the_width_that_it_says():
    fields = smooth_noise(20_000, (28, 21), seeded())
    assert fields.shape == (20_000, 2, 28, 21)
    assert fields.mean((0, 1)).abs().max() < 0.02
    assert (fields.std((0, 1)) - 1).abs().max() < 0.03
    # White noise that a Gaussian has smoothed is correlated as a Gaussian √2 times as wide.
    for distance in (2, 4, 8):
        below = (fields[:, :, 8 + distance, 10] * fields[:, :, 8, 10]).mean()
        beside = (fields[:, :, 14, 6 + distance] * fields[:, :, 14, 6]).mean()
        assert float(below) == pytest.approx(math.exp(-((distance / (28 / 7)) ** 2) / 4), abs=0.03)
        assert float(beside) == pytest.approx(math.exp(-((distance / (21 / 7)) ** 2) / 4), abs=0.03)
    assert (fields[:, 0] * fields[:, 1]).mean().abs() < 0.01


@given(sides, sides, st.integers(0, 100))
def test_erasing_clears_the_rectangle_and_nothing_else(height, width, seed):
    images = noise(4, 2, height, width, seed).clamp_min(1)
    rectangles = random_rectangles(4, (height, width), seeded(seed), probability=0.7)
    erased = erase(images, rectangles)
    for image, result, (top, left, bottom, right) in zip(images, erased, rectangles.tolist(), strict=True):
        assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
        expected = image.clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(result, expected)
    assert erased.dtype == torch.uint8


def test_rectangles_have_the_areas_aspects_and_places_of_the_paper():
    top, left, bottom, right = random_rectangles(50_000, (200, 200), seeded(), probability=0.4).double().unbind(1)
    tall, wide = bottom - top, right - left
    hit = tall > 0
    assert torch.equal(hit, wide > 0) and float(hit.double().mean()) == pytest.approx(0.4, abs=0.01)
    whole = hit & (tall < 200) & (wide < 200)  # these were not cut to the image
    areas, aspects = (tall * wide / 200**2)[whole], (tall / wide)[whole]
    assert areas.min() > ERASED_AREA[0] * 0.9 and areas.max() < ERASED_AREA[1] * 1.02
    assert areas.min() < 0.03 and areas.max() > 0.38
    assert aspects.log().abs().max() < math.log(ERASED_ASPECT) * 1.1 and float(aspects.log().mean()) == pytest.approx(
        0, abs=0.02
    )
    for start, side in ((top, tall), (left, wide)):
        share = (start / (200 - side).clamp_min(1))[whole]
        assert share.min() < 0.02 and share.max() > 0.98 and float(share.mean()) == pytest.approx(0.5, abs=0.01)


def test_draws_lie_in_their_ranges_and_fill_them(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "warp", lambda images, **maps: (calls.append(maps), images)[1])
    strength = Augmentation(shift=3.0, rotation=20.0, scaling=0.25, elastic=1.5)
    augment(noise(20_000, 1, 8, 8), strength, START)
    (maps,) = calls
    shifts, angles, scales, field = (maps[name] for name in ("shifts", "angles", "scales", "field"))
    for draws, low, high in ((shifts[:, 0], -3, 3), (shifts[:, 1], -3, 3), (angles, -20, 20), (scales, 0.8, 1.25)):
        assert low <= draws.min() < low + 0.01 * (high - low) and high >= draws.max() > high - 0.01 * (high - low)
        # As many are below 0, or reduced, as above.
        assert float((draws > (low + high) / 2).double().mean()) == pytest.approx(0.5, abs=0.07)
    assert float((scales > 1).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(field.std()) == pytest.approx(1.5, rel=0.02)
    assert (
        np.corrcoef(torch.cat([shifts, angles[:, None], scales[:, None]], 1).T).round(1).tolist() == np.eye(4).tolist()
    )


def test_each_kind_alone_does_only_its_own():
    images = noise(50, 1, 28, 28).clamp_min(1)
    assert augment(images, Augmentation(), START) is images
    erased = augment(images, Augmentation(erasing=1.0), START)
    assert ((erased == images) | (erased == 0)).all() and (erased == 0).flatten(1).any(1).all()
    for kind in ("shift", "rotation", "scaling", "elastic"):
        moved = augment(images, Augmentation(**{kind: getattr(ALL, kind)}), START)
        assert (moved != images).flatten(1).any(1).all(), kind


def test_a_batch_is_a_function_of_seed_epoch_and_step_alone():
    images = noise(20, 3, 28, 28)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = {at: augment(images, ALL, at) for at in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]}
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    for at, batch in batches.items():
        assert batch.dtype == torch.uint8 and batch.shape == images.shape
        assert torch.equal(batch, augment(images, ALL, at))
    assert len({batch.numpy().tobytes() for batch in batches.values()}) == len(batches)


@given(st.integers(1, 12), st.integers(0, 11), st.integers(1, 12))
def test_a_part_of_a_batch_is_changed_as_in_the_whole(count, first, second):
    images = noise(count, 3, 12, 9, count)
    rows = slice(min(first, count - 1), first + second)
    whole = augment(images, ALL, (0, 1, 2))
    assert torch.equal(augment(images[rows], ALL, (0, 1, 2), rows=rows, whole=count), whole[rows])


def test_padding_and_cropping_moves_by_whole_pixels_as_often_by_each():
    image = noise(1, 3, 5, 7).clamp_min(1)
    surrounded = np.pad(image[0].numpy(), ((0, 0), (2, 2), (2, 2)))
    windows = {surrounded[:, y : y + 5, x : x + 7].tobytes(): (y, x) for y in range(5) for x in range(5)}
    moved = augment(image.repeat(5000, 1, 1, 1), Augmentation(pad=2), START)
    assert moved.dtype == torch.uint8 and moved.is_contiguous()
    counts = Counter(windows[one.numpy().tobytes()] for one in moved)
    assert len(counts) == 25 and all(140 < count < 260 for count in counts.values())


def test_mirroring_is_left_to_right_in_the_share_that_is_asked():
    images = noise(5_000, 2, 3, 5)
    mirrored = augment(images, Augmentation(flip=0.3), START)
    as_it_was = (mirrored == images).flatten(1).all(1)
    assert torch.equal(mirrored[~as_it_was], images[~as_it_was].flip(3))
    assert float((~as_it_was).double().mean()) == pytest.approx(0.3, abs=0.03)


def boxes_by_loop(count: int, height: int, width: int, lost: float) -> np.ndarray:
    """torchvision's RandomResizedCrop as its documentation says it, one box after the other."""
    random = np.random.default_rng(0)
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * random.uniform(1 - lost, 1)
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if w <= width and h <= height:
                boxes.append((random.uniform(0, width - w), random.uniform(0, height - h), w, h))
                break
        else:
            w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
            boxes.append(((width - w) / 2, (height - h) / 2, w, h))
    return np.array(boxes)


@pytest.mark.parametrize(("height", "width", "lost"), [(30, 30, 0.92), (20, 40, 0.3), (40, 20, 0.3), (30, 30, 0.01)])
def test_crops_are_drawn_as_torchvision_draws_them(height, width, lost):
    ours = random_crops(20_000, (height, width), seeded(), lost=lost).double().numpy()
    theirs = boxes_by_loop(20_000, height, width, lost)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= width + 1e-4).all() and (ours[:, 1] + ours[:, 3] <= height + 1e-4).all()
    for part in range(4):
        # Both have many equal values where the greatest box is taken; the test takes them, rounded, as they are.
        assert scipy.stats.ks_2samp(ours[:, part].round(3), theirs[:, part].round(3)).pvalue > 1e-4


@given(st.integers(0, 2**20), st.integers(4, 30), st.integers(4, 30))
def test_a_crop_is_the_part_resized(seed, height, width):
    random = np.random.default_rng(seed)
    image = noise(1, 2, height, width, seed)
    h, w = int(random.integers(2, height + 1)), int(random.integers(2, width + 1))
    top, left = int(random.integers(0, height - h + 1)), int(random.integers(0, width - w + 1))
    part = image[..., top : top + h, left : left + w].double()
    centre = torch.tensor([[left + (w - width) / 2, top + (h - height) / 2]])
    scales = torch.tensor([[width / w, height / h]])
    ours = warp(image, shifts=torch.zeros(1, 2), angles=torch.zeros(1), scales=scales, centres=centre)
    theirs = torch.nn.functional.interpolate(part, (height, width), mode="bilinear", align_corners=False)
    # At its border the part knows nothing of its neighbours, and ours does.
    inner = (..., slice(height // h + 1, -(height // h) - 1), slice(width // w + 1, -(width // w) - 1))
    difference = (ours.double() - theirs)[inner].abs()
    assert difference.numel() == 0 or difference.max() < 0.52


def test_a_crop_of_everything_is_the_image_and_crops_have_no_dark_border():
    images = noise(20, 3, 17, 23)
    sizes, zeros = torch.ones(20, 2), torch.zeros(20)
    unmoved = warp(images, shifts=torch.zeros(20, 2), angles=zeros, scales=sizes, centres=torch.zeros(20, 2))
    assert torch.equal(unmoved, images)
    white = torch.full((50, 1, 17, 23), 255, dtype=torch.uint8)
    assert torch.equal(augment(white, Augmentation(crop=0.9), START), white)


@given(st.integers(0, 2**20), st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.floats(0.5, 1.5))
def test_colours_change_as_in_pillow(seed, brightness, contrast, saturation):
    image = noise(1, 3, 8, 9, seed)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    for column, (enhance, factor) in enumerate(
        ((ImageEnhance.Brightness, brightness), (ImageEnhance.Contrast, contrast), (ImageEnhance.Color, saturation))
    ):
        factors = torch.ones(1, 3)
        factors[0, column] = factor
        theirs = torch.from_numpy(np.array(enhance(picture).enhance(factor))).permute(2, 0, 1)
        # Pillow rounds the grey to a whole number and cuts the fraction of the result off.
        assert (recolour(image, factors)[0].int() - theirs.int()).abs().max() <= 2


def test_colours_in_turn_are_the_formula_and_grey_images_have_no_saturation():
    image, (b, c, s) = noise(1, 3, 8, 9).clamp(90, 120), (1.1, 0.8, 1.4)
    by_hand = image[0].double() * b
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    by_hand = c * by_hand + (1 - c) * torch.einsum("chw,c->hw", by_hand, luma).mean()
    by_hand = s * by_hand + (1 - s) * torch.einsum("chw,c->hw", by_hand, luma)
    assert (recolour(image, torch.tensor([[b, c, s]]))[0].double() - by_hand).abs().max() < 0.501
    one = noise(2, 1, 5, 5)
    assert torch.equal(recolour(one, torch.tensor([[1, 1, 0.1], [1, 1, 1.9]])), one)


def test_shares_of_mixup_are_beta_by_pairs():
    weights = mixup_weights(20_001, 0.4, START)
    assert torch.equal(weights[:-1:2], weights[1::2]) and weights[-1] == 1
    assert scipy.stats.kstest(weights[:-1:2].numpy(), scipy.stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert torch.equal(weights, mixup_weights(20_001, 0.4, START))
    for at in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(weights, mixup_weights(20_001, 0.4, at))


@given(st.integers(1, 9), st.integers(0, 4))
def test_neighbours_are_mixed_in_the_whole_and_in_parts_of_pairs(count, pairs):
    values = noise(count, 2, 3, 4, count)
    weights = mixup_weights(count, 1.0, (count, 0, 0))
    mixed = mix(values, weights)
    for i in range(count):
        other = i + 1 if i % 2 == 0 else i - 1
        partner = values[other] if other < count else values[i]
        expected = weights[i] * values[i] + (1 - weights[i]) * partner
        torch.testing.assert_close(mixed[i], expected)
    cut = min(2 * pairs, count)
    assert torch.equal(torch.cat([mix(values[:cut], weights[:cut]), mix(values[cut:], weights[cut:])]), mixed)

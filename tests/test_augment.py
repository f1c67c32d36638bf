import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

from branchwork.datasets import augment as module
from branchwork.datasets.augment import (
    ERASED_AREA,
    ERASED_ASPECT,
    augment,
    erase,
    random_rectangles,
    smooth_noise,
    warp,
)

ALL = {"shift": 2.0, "rotation": 10.0, "scaling": 0.1, "elastic": 1.0, "erasing": 0.5}
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
    assert torch.equal(warp(images, torch.zeros(count, 2), zeros, zeros + 1), images)
    assert torch.equal(warp(images, torch.zeros(count, 2), zeros, zeros + 1, field), images)


@given(sides, sides, st.integers(-4, 4), st.integers(-4, 4))
def test_a_shift_by_whole_pixels_moves_them_and_lets_zeros_in(height, width, right, down):
    images, zeros = noise(2, 3, height, width), torch.zeros(2)
    expected = torch.zeros_like(images)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                expected[..., y, x] = images[..., y - down, x - right]
    shifts = torch.tensor([[right, down]] * 2, dtype=torch.float32)
    assert torch.equal(warp(images, shifts, zeros, zeros + 1), expected)
    by_field = torch.tensor([-right, -down], dtype=torch.float32).view(1, 2, 1, 1).expand(2, 2, height, width)
    assert torch.equal(warp(images, torch.zeros(2, 2), zeros, zeros + 1, by_field), expected)


def test_a_quarter_turn_is_clockwise():
    images = noise(3, 2, 9, 9)
    turned = warp(images, torch.zeros(3, 2), torch.tensor([90.0, 180.0, -90.0]), torch.ones(3))
    for image, result, quarters in zip(images, turned, (1, 2, -1), strict=True):
        assert torch.equal(result, torch.rot90(image, -quarters, (1, 2)))


def test_a_factor_of_two_enlarges_and_of_a_half_reduces():
    images = torch.zeros(2, 1, 12, 12, dtype=torch.uint8)
    images[..., 4:8, 4:8] = 200
    larger, smaller = warp(images, torch.zeros(2, 2), torch.zeros(2), torch.tensor([2.0, 0.5]))
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
        image, torch.tensor([[right, down]]).float(), torch.tensor([angle]).float(), torch.tensor([scale]).float(),
        torch.from_numpy(field).float(),
    )  # fmt: skip
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
    fields = smooth_noise(20_000, 28, 21, seeded())
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
    rectangles = random_rectangles(4, height, width, 0.7, seeded(seed))
    erased = erase(images, rectangles)
    for image, result, (top, left, bottom, right) in zip(images, erased, rectangles.tolist(), strict=True):
        assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
        expected = image.clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(result, expected)
    assert erased.dtype == torch.uint8


def test_rectangles_have_the_areas_aspects_and_places_of_the_paper():
    top, left, bottom, right = random_rectangles(50_000, 200, 200, 0.4, seeded()).double().unbind(1)
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
    monkeypatch.setattr(module, "warp", lambda images, *rest: (calls.append(rest), images)[1])
    augment(noise(20_000, 1, 8, 8), 0, 0, 0, shift=3.0, rotation=20.0, scaling=0.25, elastic=1.5)
    ((shifts, angles, scales, field),) = calls
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
    assert augment(images, 0, 0, 0) is images
    erased = augment(images, 0, 0, 0, erasing=1.0)
    assert ((erased == images) | (erased == 0)).all() and (erased == 0).flatten(1).any(1).all()
    for kind in ("shift", "rotation", "scaling", "elastic"):
        moved = augment(images, 0, 0, 0, **{kind: ALL[kind]})
        assert (moved != images).flatten(1).any(1).all(), kind


def test_a_batch_is_a_function_of_seed_epoch_and_step_alone():
    images = noise(20, 3, 28, 28)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = {
        place: augment(images, *place, **ALL) for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]
    }
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    for place, batch in batches.items():
        assert batch.dtype == torch.uint8 and batch.shape == images.shape
        assert torch.equal(batch, augment(images, *place, **ALL))
    assert len({batch.numpy().tobytes() for batch in batches.values()}) == len(batches)

"""Draw docs/digits: digits of the sample's test set as a person would photograph them.

Run it as `python scripts/make_photos.py`. It writes the same pictures each time.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from branchwork.datasets.load import load_data

FOLDER = Path(__file__).parents[1] / "docs/digits"
SEED = 3


def photo(digit: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """Turn a digit, uint8 28×28, light on black, into dark ink on paper: large, off-centre, unevenly lit, noisy."""
    height, width = 420, 560
    scale = generator.uniform(5, 11)
    side = round(28 * scale)
    ink = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC), np.float64) / 255
    sheet = np.zeros((height, width))
    top, left = generator.integers(0, height - side), generator.integers(0, width - side)
    sheet[top : top + side, left : left + side] = ink
    slope = generator.uniform(-40, 40, 2)
    light = 205 + slope[0] * np.linspace(-0.5, 0.5, height)[:, None] + slope[1] * np.linspace(-0.5, 0.5, width)
    pixels = light * (1 - sheet * generator.uniform(0.6, 0.85)) + generator.normal(0, 4, (height, width))
    colours = np.stack([pixels, pixels * 0.97, pixels * 0.88], -1)
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))


def main(folder: Path = FOLDER) -> None:
    test = load_data("sample").test
    generator = np.random.default_rng(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    for digit in (2, 3, 5, 7, 8):
        index = int((test.labels == digit).nonzero()[3])
        photo(test.images[index, 0].numpy(), generator).save(folder / f"{digit}.jpg", quality=70)


if __name__ == "__main__":
    main()

"""People's own pictures: what they are brought to, and what is refused."""

import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import bomb
from make_photos import photo
from PIL import Image, ImageDraw, ImageFilter

from branchwork.datasets import describe, reading
from branchwork.datasets.placing import RULES, place_figure, to_image
from branchwork.datasets.reading import find_pictures, read_picture
from branchwork.datasets.sheet import draw_sheet
from branchwork.errors import ImageError
from branchwork.observer import Observer
from branchwork.training import evaluate


def place_digit(picture: Image.Image) -> np.ndarray:
    return place_figure(picture, (28, 28), RULES["digits"])


def grey(array) -> Image.Image:
    return Image.fromarray(np.asarray(array, np.uint8))


def centre_of_mass(image: np.ndarray) -> tuple[float, float]:
    mass = image / image.sum()
    return float(mass.sum(1) @ np.arange(len(mass))), float(mass.sum(0) @ np.arange(len(mass[0])))


def test_an_image_of_the_data_set_keeps_every_pixel_and_so_does_its_negative(sample):
    kept = 0
    for image in sample.test.images[:200, 0].numpy():
        kept += np.array_equal(place_digit(grey(image)), image)
        assert np.array_equal(place_digit(grey(255 - image)), place_digit(grey(image)))
    # A few digits of MNIST are not placed by its own rule, within a pixel.
    assert kept >= 190


@pytest.mark.parametrize("dark_on_light", [True, False])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_any_size_colour_and_polarity_end_in_the_same_place(dark_on_light, mode):
    picture = Image.new("L", (300, 200), 230 if dark_on_light else 15)
    ink = 20 if dark_on_light else 240
    ImageDraw.Draw(picture).rectangle((220, 30, 239, 129), fill=ink)  # a 1, far from the middle: 20 wide, 100 high
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 200)
        file = io.BytesIO()
        picture.save(file, "PNG")
    else:
        file = io.BytesIO()
        picture.convert(mode).save(file, "PNG")
    path = "picture.png"
    with open(path, "wb") as out:
        out.write(file.getvalue())
    image = to_image(read_picture(path), channels=1, size=(28, 28), method="digits")[0].numpy()
    rows, columns = np.nonzero(image > 128)
    assert np.ptp(rows) + 1 in (19, 20, 21) and np.ptp(columns) + 1 in (3, 4, 5)
    assert image[0, 0] == 0 and image.max() == 255
    down, right = centre_of_mass(image)
    assert abs(down - 14) <= 1 and abs(right - 14) <= 1


# Ink and ground; the last two are equally light.
COLOURS = {
    "black on white": ((0, 0, 0), (255, 255, 255)),
    "white on black": ((255, 255, 255), (0, 0, 0)),
    "red on blue": ((220, 20, 20), (20, 20, 220)),
    "blue on red": ((20, 20, 220), (220, 20, 20)),
    "yellow on white": ((255, 255, 0), (255, 255, 255)),
    "green on magenta": ((0, 150, 0), (213, 0, 213)),
    "magenta on green": ((213, 0, 213), (0, 150, 0)),
}


def coloured(digit: np.ndarray, ink: tuple[int, int, int], ground: tuple[int, int, int]) -> Image.Image:
    """A digit, uint8 28×28, enlarged on a larger sheet, in two colours and the mixtures between them."""
    large = grey(digit).resize((140, 140), Image.Resampling.BICUBIC)
    share = np.pad(np.asarray(large, np.float64) / 255, ((30, 50), (60, 20)))[..., None]
    return grey((share * ink + (1 - share) * ground).round())


def test_ink_and_ground_of_any_colours_are_read_alike(run, sample):
    digits = sample.test.images[::20, 0].numpy()
    answers = {
        name: read_by(run, [place_digit(coloured(digit, *colours)) for digit in digits])
        for name, colours in COLOURS.items()
    }
    for name, answer in answers.items():
        assert torch.equal(answer, answers["black on white"]), name
    images = np.asarray([coloured(digits[0], *COLOURS["green on magenta"]).convert("L")])
    assert np.ptp(images) <= 1  # of no use by its luminance
    assert float((answer == sample.test.labels[::20]).float().mean()) > 0.9


def test_a_small_coloured_image_in_its_place_keeps_its_place(sample):
    digit = sample.test.images[3, 0].numpy()
    red = np.stack([digit, np.zeros_like(digit), np.zeros_like(digit)], -1)
    assert np.array_equal(place_digit(grey(red)), place_digit(grey(digit)))


def test_a_picture_without_colours_is_what_it_was(sample):
    generator = np.random.default_rng(4)
    for digit in sample.test.images[:10, 0].numpy():
        picture = photo(digit, generator)
        assert np.array_equal(place_digit(picture), place_digit(picture.convert("L")))


def test_transparency_is_laid_on_what_the_ink_stands_out_from():
    for ink in (0, 255):
        picture = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
        ImageDraw.Draw(picture).rectangle((45, 10, 55, 90), fill=(ink, ink, ink, 255))
        picture.save("clear.png")
        image = to_image(read_picture("clear.png"), channels=1, size=(28, 28), method="digits")
        assert image.max() == 255 and 40 < (image > 128).sum() < 120


def test_exif_turns_the_picture_upright():
    picture = Image.new("L", (200, 100), 255)
    ImageDraw.Draw(picture).rectangle((20, 45, 180, 55), fill=0)  # a bar lying down, which EXIF says was standing
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save("turned.jpg", exif=exif, quality=95)
    image = to_image(read_picture("turned.jpg"), channels=1, size=(28, 28), method="digits")[0].numpy()
    rows, columns = np.nonzero(image > 128)
    assert np.ptp(rows) > 3 * np.ptp(columns)


def test_thin_pens_are_thickened_to_about_what_mnist_has():
    picture = Image.new("L", (500, 500), 255)
    ImageDraw.Draw(picture).line((250, 50, 250, 450), fill=0, width=3)
    image = place_digit(picture)
    # Scaled as it is, the line would be 0.15 pixels wide; MNIST's strokes are 2 to 3.
    assert 2 * 19 <= (image > 96).sum() <= 3 * 21 and image.max() == 255


def test_garments_fill_the_image_and_are_centred_by_their_box():
    picture = Image.new("L", (400, 400), 255)
    ImageDraw.Draw(picture).rectangle((100, 20, 199, 219), fill=60)
    image = place_figure(picture, (28, 28), RULES["garments"])
    rows, columns = np.nonzero(image > 128)
    assert np.ptp(rows) + 1 == 28 and 12 <= np.ptp(columns) + 1 <= 16
    assert abs((columns.min() + columns.max()) / 2 - 13.5) <= 1


def test_more_channels_repeat_the_grey_one():
    picture = Image.new("L", (60, 60), 255)
    ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), outline=0, width=6)
    image = to_image(picture, channels=3, size=(32, 40), method="digits")
    assert image.shape == (3, 32, 40) and torch.equal(image[0], image[2]) and image.dtype == torch.uint8


@pytest.mark.parametrize(
    "picture", [Image.new("L", (50, 50), 255), Image.new("L", (50, 50), 0), Image.new("L", (1, 1), 9)]
)
def test_a_picture_of_nothing_is_refused(picture):
    with pytest.raises(ImageError, match="nothing to recognise"):
        place_digit(picture)


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (2, 2), (3, 5), (5000, 3)])
def test_odd_shapes_give_an_image_or_one_clear_error(size):
    generator = np.random.default_rng(0)
    picture = grey(generator.integers(0, 256, (size[1], size[0])))
    try:
        image = place_digit(picture)
    except ImageError:
        return
    assert image.shape == (28, 28) and image.dtype == np.uint8


def whole_png() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (80, 80), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a picture that can be read"),
        (b"hello", "is not a picture that can be read"),
        (whole_png()[:2000], "is damaged or truncated"),
        (whole_png()[:20], "damaged or truncated"),
        (bomb(40_000, 40_000), "unpacks to more than 100,000,000 pixels"),
        (bomb(15_000, 10_000), "unpacks to more than 100,000,000 pixels"),
        (bomb(200, 200), "is damaged or truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture that can be read"),
    ],
)
def test_what_is_not_a_sound_picture_is_one_clear_error(content, words, tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_picture(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_folder_gives_its_pictures_in_order_and_an_empty_one_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    found = find_pictures([tmp_path / "z.png", tmp_path / "in"])
    assert [path.name for path in found] == ["z.png", "a.jpg", "b.PNG"]
    with pytest.raises(ImageError, match="contains no pictures"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(ImageError, match="there is no file"):
        read_picture(tmp_path / "z.png")


def read_by(run, images: list[np.ndarray]) -> torch.Tensor:
    from branchwork import load_run
    from branchwork.training.infer import predict_logits

    trained = load_run(run.folder)
    stacked = torch.from_numpy(np.stack(images)).unsqueeze(1)
    return predict_logits(trained.net, stacked, trained.model).argmax(1)


def test_photographs_of_digits_are_read_nearly_as_well_as_the_digits(run, sample):
    generator = np.random.default_rng(1)
    digits, labels = sample.test.images[::4, 0].numpy(), sample.test.labels[::4]
    original = float((read_by(run, list(digits)) == labels).float().mean())
    photos = [place_digit(photo(digit, generator)) for digit in digits]
    photographed = float((read_by(run, photos) == labels).float().mean())
    assert original > 0.95 and photographed > original - 0.03, (original, photographed)


def test_a_soft_pencil_and_a_blurred_camera_are_read_too(run, sample):
    generator = np.random.default_rng(2)
    digits, labels = sample.test.images[1:400:4, 0].numpy(), sample.test.labels[1:400:4]
    soft = [photo(digit, generator).filter(ImageFilter.GaussianBlur(4)) for digit in digits]
    right = float((read_by(run, [place_digit(picture) for picture in soft]) == labels).float().mean())
    assert right > 0.93, right


@pytest.mark.parametrize("size", [(40, 80), (30, 10), (1, 1)])
def test_a_sheet_has_each_image_in_its_own_proportions(size, tmp_path):
    path = tmp_path / "sheet.png"
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(-1, -1, *size)
    draw_sheet(
        path, images, ["$1\n99%", "a long one that must be cut", "猫", "", "e"], title="five: $ and _", columns=3
    )
    sheet = np.asarray(Image.open(path).convert("RGB"))
    seen = [np.nonzero((sheet == colour.numpy()).all(-1)) for colour in colours]
    heights, widths = ({int(np.ptp(at[axis])) + 1 for at in seen} for axis in (0, 1))
    assert max(heights) - min(heights) <= 1 and max(widths) - min(widths) <= 1
    assert max(heights) / max(widths) == pytest.approx(size[0] / size[1], rel=0.05)
    middles = [(at[0].mean(), at[1].mean()) for at in seen]
    assert middles[0][0] == pytest.approx(middles[2][0], abs=1) and middles[0][1] == pytest.approx(middles[3][1], abs=1)
    assert middles[0][1] < middles[1][1] < middles[2][1] and middles[0][0] < middles[3][0]


@pytest.mark.parametrize("caption", ["W" * 24, "很长的中文类名很长的中文类名很长的中文类名长"])
def test_captions_of_wide_letters_stand_apart(caption, tmp_path):
    draw_sheet(
        tmp_path / "sheet.png", torch.full((2, 1, 8, 8), 255, dtype=torch.uint8), [caption] * 2, title="", columns=2
    )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    inked = np.nonzero((sheet[:-5] < 128).any(0))[0]
    assert np.diff(inked).max() > 10  # pixels, of 130 an inch
    assert inked[0] > 3 and inked[-1] < sheet.shape[1] - 3


def test_a_picture_that_cannot_be_written_is_told_before_the_work(run, refused, monkeypatch):
    def works(*arguments, **options):
        raise AssertionError("it has begun")

    for work in ("predict_logits", "load_for"):
        monkeypatch.setattr(evaluate, work, works)
    monkeypatch.setattr(describe, "verify_pack", works)
    Path("file").write_text("")
    for target, words in (
        ("file/x.png", "file is a file"),
        (".", "is a folder"),
        ("x.txt", "figures cannot be written as .txt"),
    ):
        assert words in refused("evaluate", run.folder, "--draw", target)
        assert words in refused("predict", run.folder, "gone.png", "--draw", target)
        assert words in refused("data", "sample", "--draw", target)
    assert Path("file").read_text() == "" and not Path("x.txt").exists()


CEILING = """
import resource, sys
from pathlib import Path
from PIL import Image
from branchwork.datasets.reading import ImageFormat, read_files
from branchwork.observer import Observer

def record(path):
    ((record, _),) = read_files([Path(path)], ImageFormat(3, (8, 8), "crop"), title="", observer=Observer())
    return record

record(sys.argv[1])  # what threads and libraries take is taken now
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(record(sys.argv[2]).error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's figures of memory")
@pytest.mark.parametrize(
    ("mode", "per_pixel", "error"),
    [("RGBA", 14, None), ("I;16", 11, None), ("RGBA", 2, "takes more memory to decode than is free: shrink it")],
)
def test_a_small_file_of_many_pixels_takes_little_memory_or_is_refused(mode, per_pixel, error, tmp_path):
    for name, side in (("small", 8), ("large", 4000)):
        Image.new(mode, (side, side)).save(tmp_path / f"{name}.png")
    words = [sys.executable, "-c", CEILING, tmp_path / "small.png", tmp_path / "large.png", per_pixel * 4000**2]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=100)
    assert done.stdout.strip().endswith(str(error)), done.stderr


def test_together_pictures_take_no_more_than_half_of_the_memory(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.new("L", (100, 100)).save(path)
    Image.new("L", (300, 300)).save(tmp_path / "large.png")
    decoding, most = 0, 0
    lock, convert = threading.Lock(), reading._to_eight_bits

    def watched(picture: Image.Image) -> Image.Image:
        nonlocal decoding, most
        with lock:
            decoding += 1
            most = max(most, decoding)
        time.sleep(0.02)
        with lock:
            decoding -= 1
        return convert(picture)

    monkeypatch.setattr(reading, "_to_eight_bits", watched)
    monkeypatch.setattr(reading.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(reading, "available_memory", lambda: 2 * 2 * 100 * 100 * reading._BYTES_PER_PIXEL)
    image_format = reading.ImageFormat(1, (8, 8), "crop")
    paths.insert(3, tmp_path / "large.png")
    records = [record for record, _ in reading.read_files(paths, image_format, title="", observer=Observer())]
    assert most == 2
    assert [path.name for path, record in zip(paths, records, strict=True) if record.error] == ["large.png"]
    with pytest.raises(ImageError, match=r"large\.png takes more memory to decode than is free"):
        read_picture(tmp_path / "large.png")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),  # as Windows says it
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
    ids=["python", "linux", "windows", "gpu"],
)
def test_too_little_memory_is_one_message(error, refused, monkeypatch):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(describe, "load_data", fails)
    assert "there is not enough memory: close other programs" in refused("data", "sample")

"""Folders of people's own images: what is found in them, what is refused, and what a net is given."""

import json
import os
import shutil
import signal
import unicodedata
from pathlib import Path

import make_folder
import numpy as np
import pytest
import torch
from helpers.folders import GENERATOR, SHORT, fill, noise, train, two_classes
from PIL import Image

import branchwork as bw
from branchwork.datasets import describe
from branchwork.datasets.checking import choose_size
from branchwork.datasets.placing import to_image
from branchwork.datasets.reading import PictureHeader, read_picture
from branchwork.errors import DataError, ImageError, Interrupted
from branchwork.observer import Observer
from branchwork.training.recipes import fast


def kinds(report) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in report.problems:
        found.setdefault(problem.kind, []).append(problem.path)
    return found


def test_a_plain_folder_holds_a_fifth_of_each_class_out_and_reads_every_pixel(tmp_path):
    root = two_classes(tmp_path / "pets")
    data = bw.load_data(str(root))
    assert data.classes == ("cat", "dog") and data.pictures == "crop" and data.name == "pets"
    assert (len(data.train), len(data.test)) == (16, 4) and data.validation is None
    assert torch.bincount(data.test.labels).tolist() == [2, 2]
    files = {np.asarray(Image.open(path)).tobytes(): path.parent.name for path in root.glob("*/*.png")}
    for split in (data.train, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert files.pop(image.permute(1, 2, 0).numpy().tobytes()) == data.classes[label]
    assert not files
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_what_is_held_out_is_the_same_whatever_files_are_called_and_stays_where_others_come(tmp_path):
    root = two_classes(tmp_path / "pets")
    before = {image.numpy().tobytes() for image in bw.load_data(str(root)).test.images}
    for path in sorted(root.glob("*/*.png")):
        path.rename(path.with_name(f"z{9 - int(path.stem)}.png"))
    after = bw.load_data(str(root)).test.images
    assert {image.numpy().tobytes() for image in after} == before
    for index in range(5):
        noise().save(root / "cat" / f"new{index}.png")
    kept = before & {image.numpy().tobytes() for image in bw.load_data(str(root)).test.images}
    assert len(kept) >= 3


def test_the_sheet_of_a_folder_has_training_images_and_each_picture_once(tmp_path, monkeypatch):
    root = two_classes(tmp_path / "pets")
    for index in range(12):
        shutil.copy(root / "cat/0.png", root / "cat" / f"a copy {index}.png")
    drawn = []
    monkeypatch.setattr(describe, "draw_sheet", lambda path, images, captions, **_: drawn.append((images, captions)))
    bw.data(str(root), draw=tmp_path / "sheet.png")
    ((images, captions),) = drawn
    train = bw.load_data(str(root)).train.images
    assert captions == ["cat"] * 8 + ["dog"] * 8
    assert {image.numpy().tobytes() for image in images} == {image.numpy().tobytes() for image in train}
    assert len(images) == len(train) == 16


def test_splits_of_their_own_are_used_as_they_are(tmp_path, command):
    root = tmp_path / "pets"
    for part, count in (("train", 12), ("val", 4), ("Test", 3)):
        for name in ("dog", "cat"):
            fill(root / part / name, count)
    data = bw.load_data(str(root))
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 8, 6)
    result = train(data=data, recipe=fast("residual", 24).but({**SHORT, "validation": 0.3}), out="run")
    assert result.train_images == 24 and result.validation_accuracy in [n / 8 for n in range(9)]
    none = train(data=data, recipe=fast("residual", 24).but(SHORT), out="none")
    assert none.train_images == 24 and none.validation_accuracy is None
    assert bw.evaluate("run").images == 6


@pytest.fixture
def ugly(tmp_path) -> Path:
    root = two_classes(tmp_path / "ugly")
    for number, (name, damage) in enumerate(make_folder.BAD.items()):
        place = root / ("cat", "dog")[number % 2]
        suffix = name[-4:]
        noise(40, 40).save(tmp_path / f"sound{suffix}")
        (place / f"bad-{name}").write_bytes(damage((tmp_path / f"sound{suffix}").read_bytes()))
    return root


def test_damaged_files_are_each_named_counted_and_left_out(ugly):
    report = bw.data(str(ugly)).report
    assert len(make_folder.BAD) == 12
    assert {Path(path).name for path in kinds(report)["unreadable"]} == {f"bad-{name}" for name in make_folder.BAD}
    assert (report.files, report.left_out) == (32, 12)
    assert all(str(ugly) not in problem.message for problem in report.problems)
    data = bw.load_data(str(ugly))
    assert len(data.train) + len(data.test) == 20


def test_flipped_bytes_are_read_or_refused_and_nothing_else(tmp_path):
    for suffix, options in ((".png", {}), (".jpg", {}), (".gif", {}), (".tif", {}), (".webp", {}), (".bmp", {})):
        path = tmp_path / f"a{suffix}"
        noise(16, 16).save(path, **options)
        whole = path.read_bytes()
        for _ in range(60):
            broken = bytearray(whole[: GENERATOR.integers(1, len(whole) + 1)])
            for place in GENERATOR.integers(0, len(broken), 3):
                broken[place] = GENERATOR.integers(0, 256)
            path.write_bytes(broken)
            try:
                assert read_picture(path).mode in ("L", "RGB")
            except ImageError:
                continue


def test_copies_are_found_in_any_format_and_across_splits(tmp_path):
    root = tmp_path / "pets"
    for part in ("train", "test"):
        two_classes(root / part)
    twin = Image.open(root / "train/cat/0.png")
    twin.save(root / "train/cat/again.bmp")  # the same class and part
    Image.open(root / "test/dog/3.png").save(root / "train/dog/leak.tif")  # tested on as well
    Image.open(root / "train/cat/5.png").save(root / "train/dog/which.png")  # one of the two must be wrong
    found = kinds(bw.data(str(root)).report)
    assert found == {
        "copy": ["train/cat/again.bmp"],
        "copy across splits": ["train/dog/leak.tif"],
        "copy in two classes": ["train/cat/5.png", "train/dog/which.png"],
    }
    data = bw.load_data(str(root))
    assert len(data.test) == 20 and len(data.train) == 19


def test_odd_modes_are_read_and_counted(tmp_path):
    root = two_classes(tmp_path / "pets")
    place = root / "cat"
    noise().convert("CMYK").save(place / "cmyk.jpg")
    noise().quantize(16).save(place / "palette.png")
    noise(channels=4).save(place / "alpha.png")
    Image.fromarray(GENERATOR.integers(0, 65536, (20, 20), dtype=np.uint16)).save(place / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(20, 30).save(place / "turned.jpg", exif=exif)
    noise().save(place / "moving.gif", save_all=True, append_images=[noise()])
    report = bw.data(str(root)).report
    assert report.oddities == {
        "CMYK": 1, "palette": 2, "transparency": 1, "16-bit": 1, "EXIF rotation": 1, "several frames": 1,
    }  # fmt: skip
    assert report.left_out == 0 and report.sizes.heights[2] == 30 and report.sizes.widths[2] == 20


def test_hidden_and_empty_folders_and_other_files_are_named_and_left_out(tmp_path):
    root = two_classes(tmp_path / "pets")
    fill(root / ".cache")
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("x")
    (root / "cat/.DS_Store").write_text("x")
    (root / "cat/photo.heic").write_bytes(b"x")
    fill(root / "dog/2024/spring", 3)  # pictures further down are the class's own
    data = bw.data(str(root))
    assert list(data.counts["train"]) == ["cat", "dog"] and sum(data.counts["train"].values()) == 18
    assert kinds(data.report) == {
        "hidden": [".cache", "cat/.DS_Store"],
        "outside of a class": ["notes.txt"],
        "no picture": ["cat/photo.heic"],
        "empty folder": ["empty"],
    }


def test_links_that_lead_back_end(tmp_path):
    root = two_classes(tmp_path / "pets")
    (root / "cat/up").symlink_to(root)
    (root / "cat/self").symlink_to(root / "cat")
    (root / "dog/loop").symlink_to("loop")
    (root / "dog/gone.png").symlink_to("nowhere.png")
    fill(tmp_path / "elsewhere", 2)
    (root / "dog/more").symlink_to(tmp_path / "elsewhere")
    for name, target in (("itself", "."), ("above", ".."), ("kitten", "cat")):  # in the places of classes
        (root / name).symlink_to(target)
    (root / "dog/self.png").symlink_to("self.png")
    report = bw.data(str(root)).report
    assert kinds(report) == {
        "unreadable": ["dog/gone.png", "dog/self.png", "dog/loop"],
        "loop": ["above", "itself", "kitten", "cat/up", "cat/self"],
    }
    assert all("link leads back" in p.message for p in report.problems if p.kind == "loop")
    assert all("link that leads nowhere" in p.message for p in report.problems if p.kind == "unreadable")
    assert report.files == 24


@pytest.mark.parametrize(
    "names", [("猫", "собака"), ("a" * 255, "b" * 255), ("قط", "🐕"), ("[red]x[bold]", "$x^2$ %s {}")]
)
def test_names_in_any_script_and_of_any_length(tmp_path, names, command):
    root = tmp_path / names[0]
    for name in names:
        fill(root / name, 6, channels=1)
        noise().convert("L").save(root / name / (name[:2] + "x" * (251 - len(name[:2].encode())) + ".png"))
    code, out, err = command("data", root, "--json", "report.json")
    assert code == 0, err
    assert set(json.loads(Path("report.json").read_text())["counts"]["train"]) == set(names)
    code, out, err = command(
        "train",
        "residual",
        "--data",
        root,
        "--epochs",
        1,
        "--batch-size",
        4,
        "--validation",
        0,
        "--out",
        "r",
        "--threads",
        1,
    )
    assert code == 0, err
    assert bw.load_run("r").model.classes == tuple(sorted(names))
    code, out, err = command("evaluate", "r")
    assert code == 0 and "of 2 test images" in out, err


def test_names_that_are_no_text_and_two_ways_to_write_one(tmp_path):
    root = two_classes(tmp_path / "pets")
    fill(Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")))
    assert bw.load_data(str(root)).classes == ("\\xff\\xfe", "cat", "dog")
    for form in ("NFC", "NFD"):
        fill(root / unicodedata.normalize(form, "é"), 2)
    with pytest.raises(DataError, match="two folders for the class 'é'"):
        bw.load_data(str(root))


def lay(root: Path, *places: str) -> None:
    for place in places:
        fill(root / place, 3)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ((), "has no sub-folder with pictures, but at least two classes are needed"),
        ((".",), "has 3 pictures and no sub-folders: make a sub-folder for each class"),
        (("cat",), "has one class with pictures, 'cat', but at least two classes are needed"),
        (("train/cat", "train/dog", "val/cat", "val/dgo"), "class 'dgo' that .*train has no pictures of.*mean 'dog'"),
        (("val/cat", "test/cat"), "has test, val, but no train"),
        (("train/cat", "train/dog", "val/cat", "valid/cat"), "has both val and valid"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_what_to_change(tmp_path, places, words):
    root = tmp_path / "pets"
    root.mkdir()
    lay(root, *places)
    for ask in (bw.load_data, bw.data):
        with pytest.raises(DataError, match=words):
            ask(str(root))


def test_a_class_of_which_nothing_can_be_read(tmp_path):
    root = two_classes(tmp_path / "pets")
    (root / "eel").mkdir()
    (root / "eel/x.png").write_bytes(b"x")
    data = bw.data(str(root))
    assert list(data.counts["train"]) == ["cat", "dog"] and kinds(data.report)["class lost"] == ["eel"]
    for path in root.glob("dog/*"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"only the class 'cat' has a picture .* 11 of 21 files are left out"):
        bw.data(str(root))


def test_the_command_refuses_in_one_message(tmp_path, refused):
    root = two_classes(tmp_path / "pets")
    assert "there is no folder gone/pets" in refused("train", "residual", "--data", "gone/pets")
    assert "must be one side, or height and width" in refused("train", "residual", "--data", root, "--size", "1x2x3")
    assert "from 1 to 4096" in refused("train", "residual", "--data", root, "--size", "0")
    assert "leave out --size and --fit" in refused("train", "residual", "--data", "sample", "--fit", "pad")
    assert "--fit" in refused("train", "residual", "--data", root, "--fit", "squeeze")
    assert "leave out --source" in refused("train", "residual", "--data", root, "--source", root)
    assert "class cat has 8 images, too few to hold out 1%" in refused(
        "train", "residual", "--data", root, "--validation", 0.01, "--batch-size", 4
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("way", ["crop", "pad", "stretch"])
def test_a_picture_of_the_right_size_keeps_every_pixel(way, channels):
    picture = noise(24, 18, channels)
    pixels = torch.from_numpy(np.array(picture)).reshape(24, 18, channels).permute(2, 0, 1)
    assert torch.equal(to_image(picture, channels=channels, size=(24, 18), method=way), pixels)


def test_the_three_ways_cut_fill_or_distort():
    # White, 30 high and 60 wide, with a black bar of 15 at each end.
    pixels = np.full((30, 60), 255, np.uint8)
    pixels[:, :15] = pixels[:, 45:] = 0
    picture = Image.fromarray(pixels)
    crop, pad, stretch = (
        to_image(picture, channels=1, size=(30, 30), method=way)[0].float() for way in ("crop", "pad", "stretch")
    )
    assert bool((crop == 255).all())  # the middle, in which there is no bar
    assert pad[:7].sum() == 0 and pad[23:].sum() == 0 and pad[15, 15] == 255 and pad[15, 2] == 0
    assert stretch[:, 12:18].min() == 255 and stretch[:, :5].max() == 0
    colour = to_image(picture, channels=3, size=(30, 30), method="stretch")
    assert colour.shape == (3, 30, 30) and torch.equal(colour[0], colour[2])


def test_sizes_are_chosen_by_the_files():
    def chosen(*sizes: tuple[int, int]) -> tuple[int, int]:
        return choose_size([PictureHeader(width, height, True) for width, height in sizes])

    assert chosen((40, 30), (40, 30)) == (30, 40)  # height first, as in a shape
    assert chosen((4000, 3000)) == (128, 128)
    assert chosen((40, 30), (30, 50), (33, 60)) == (24, 24)
    assert chosen((5, 9), (8, 8)) == (16, 16)


def test_what_was_chosen_and_left_out_is_said(ugly):
    notes: list[str] = []
    observer = Observer()
    observer.note = notes.append
    bw.load_data(str(ugly), fit="pad", progress=observer)
    (note,) = notes
    assert "as 3×16×16 by --size 16x16 --fit pad (--size chosen automatically)" in note
    assert "left out: unreadable 12; branchwork data" in note and "20% of each class are held out" in note


def test_predict_and_evaluate_place_pictures_as_the_training_did(tmp_path, command):
    root = two_classes(tmp_path / "pets", height=20, width=40)
    recipe = fast("residual", 16).but(SHORT)
    data = bw.load_data(str(root), size=(16, 24), fit="pad")
    result = train(data=data, recipe=recipe, out="run")
    trained = bw.load_run("run")
    assert trained.model.pictures == "pad" and trained.model.image_size == (16, 24)
    assert bw.evaluate("run").accuracy == result.test_accuracy
    image = to_image(read_picture(root / "cat/1.png"), channels=3, size=(16, 24), method="pad")
    logits = trained.net((image[None] / 255
                          - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1))  # fmt: skip
    (prediction,) = bw.predict("run", root / "cat/1.png", top=2)
    assert {g.name: g.probability for g in prediction.guesses} == pytest.approx(
        dict(zip(data.classes, logits.softmax(1)[0].tolist(), strict=True)), abs=1e-5
    )
    # Grey files, and fewer classes in another order, for a net of colours.
    other = two_classes(tmp_path / "other", channels=1)
    assert bw.evaluate("run", data=str(other)).images == 4
    fill(other / "eel")
    with pytest.raises(DataError, match="only in other: eel"):
        bw.evaluate("run", data=str(other))


def test_a_stopped_training_goes_on_with_the_same_images(tmp_path, small):
    root = two_classes(tmp_path / "pets")
    data = bw.load_data(str(root), size=18, fit="stretch")
    recipe = fast("residual", 16).but({**SHORT, "epochs": 2})
    whole = train(data=data, recipe=recipe, out="whole")

    class Stop(Observer):
        def epoch(self, epoch):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(data=data, recipe=recipe, out="stopped", progress=Stop())
    resumed = bw.resume("stopped")
    assert resumed.test_accuracy == whole.test_accuracy
    for one, other in zip(bw.load_run("whole").net.parameters(), bw.load_run("stopped").net.parameters(), strict=True):
        assert torch.equal(one, other)

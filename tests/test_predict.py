import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import branchwork as bw
from branchwork.datasets.placing import to_image
from branchwork.errors import ImageError, RecipeError
from branchwork.training.doubts import Guess, answer_doubts, place_and_doubt
from branchwork.training.familiar import Reader, familiar_digits, read_by_last


@pytest.fixture
def digits(sample, tmp_path):
    """A folder with three digits of the test set as files, dark on light and enlarged."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for index in (0, 1, 2):
        picture = Image.fromarray(255 - sample.test.images[index, 0].numpy())
        picture.resize((140, 140)).save(folder / f"{index}.png")
    return folder


def labels(sample, count: int) -> list[str]:
    return [str(int(label)) for label in sample.test.labels[:count]]


def test_files_and_folders_are_read_and_probabilities_fall(run, digits, sample):
    predictions = bw.predict(run.folder, [digits, digits / "0.png"])
    assert [p.image for p in predictions] == [str(digits / f"{i}.png") for i in (0, 1, 2, 0)]
    assert [p.guesses[0].name for p in predictions[:3]] == labels(sample, 3)
    for prediction in predictions:
        probabilities = [guess.probability for guess in prediction.guesses]
        assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
        assert 0 <= sum(probabilities) <= 1 + 1e-6
    assert sum(g.probability for g in bw.predict(run.folder, [digits / "0.png"], top=99)[0].guesses) == pytest.approx(1)


def test_a_digit_as_a_file_gets_the_logits_that_training_would_give(run, sample, tmp_path):
    Image.fromarray(sample.test.images[7, 0].numpy()).save(tmp_path / "7.png")
    (prediction,) = bw.predict(run.folder, [tmp_path / "7.png"])
    trained = bw.load_run(run.folder)
    probabilities = trained.net((sample.test.images[7:8] / 255 - 0.1307) / 0.3081).softmax(1)[0]
    assert prediction.guesses[0].probability == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(run, digits):
    (digits / "1.png").write_bytes(b"no picture")
    first, second, third = bw.predict(run.folder, [digits])
    assert first.guesses and third.guesses and not second.guesses
    assert second.error is not None and "is not a picture" in second.error and first.error is None


def test_show_draws_what_the_net_got(run, digits, tmp_path):
    bw.predict(run.folder, [digits], draw=tmp_path / "got.png")
    with Image.open(tmp_path / "got.png") as picture:
        assert picture.width > 300


def sheet_of(*digits: np.ndarray, gap: int = 4) -> Image.Image:
    """Digits, uint8 28×28 light on black, in a row on white paper, enlarged."""
    cut = [digit[:, np.flatnonzero(digit.any(0))[0] : np.flatnonzero(digit.any(0))[-1] + 1] for digit in digits]
    row = np.concatenate([np.pad(digit, ((6, 6), (gap, gap))) for digit in cut], 1)
    picture = Image.fromarray(255 - np.pad(row, ((0, 0), (8, 8))))
    return picture.resize((5 * picture.width, 5 * picture.height), Image.Resampling.BICUBIC)


def kinds(run, picture: Image.Image) -> set[str]:
    """What a picture shows besides one digit."""
    image, doubts = place_and_doubt(picture, bw.load_run(run.folder).model)
    assert torch.equal(image, to_image(picture, channels=1, size=(28, 28), method="digits"))
    return {doubt.kind for doubt in doubts}


def test_several_figures_are_counted_and_one_is_not_doubted(run, sample):
    images = sample.test.images[:, 0].numpy()
    alone = [kinds(run, sheet_of(image)) for image in images[:40]]
    assert sum(map(bool, alone)) <= 1
    found = [kinds(run, sheet_of(images[i], images[i + 1])) for i in range(0, 40, 2)]
    assert sum("several" in kind for kind in found) >= 19
    sheet_of(*images[:5]).save("five.png")
    (prediction,) = bw.predict(run.folder, ["five.png"])
    assert "5 figures were read as one" in prediction.warnings[0].message


@pytest.mark.parametrize("paper", ["a drawn frame", "a circle", "paper on a table", "a table as dark as the ink"])
def test_what_surrounds_a_figure_is_told(paper, run, sample):
    picture = sheet_of(sample.test.images[0, 0].numpy()).convert("L")
    drawing = Image.new("L", (picture.width + 120, picture.height + 120), 255)
    if paper.startswith("a table") or paper == "paper on a table":
        drawing.paste(0 if paper.startswith("a table") else 90, (0, 0, *drawing.size))
    drawing.paste(picture, (60, 60))
    draw, box = ImageDraw.Draw(drawing), (30, 30, drawing.width - 30, drawing.height - 30)
    if paper == "a drawn frame":
        draw.rectangle(box, outline=20, width=6)
    elif paper == "a circle":
        draw.ellipse(box, outline=20, width=6)
    assert "frame" in kinds(run, drawing)


def test_a_blot_and_a_lifted_pen_are_no_second_figure(run):
    picture = Image.new("L", (300, 300), 255)
    draw = ImageDraw.Draw(picture)
    draw.line([(110, 90), (105, 150), (170, 150), (175, 215), (105, 220)], fill=0, width=16)
    draw.line([(125, 88), (185, 88)], fill=0, width=16)  # the bar of a 5, beside its body
    draw.ellipse((30, 30, 38, 38), fill=0)
    assert not kinds(run, picture)


def test_specks_are_no_figure(run):
    generator = np.random.default_rng(0)
    noise = np.full((300, 300), 240, np.uint8)
    noise[generator.integers(0, 100, 60) * 3, generator.integers(0, 100, 60) * 3] = 0
    picture = Image.fromarray(noise).resize((900, 900), Image.Resampling.NEAREST)
    assert "scraps" in kinds(run, picture)


def test_two_classes_that_are_nearly_as_probable_are_told():
    def guesses(*shares):
        return [Guess(str(index), share) for index, share in enumerate(shares)]

    (doubt,) = answer_doubts(guesses(0.5, 0.41))
    assert doubt.kind == "close" and "0 (50%) and 1 (41%) are almost equally probable" in doubt.message
    assert answer_doubts(guesses(0.6, 0.39)) == answer_doubts(guesses(1.0)) == []


@pytest.fixture(scope="module")
def familiar(run):
    return familiar_digits(bw.load_run(run.folder))


def test_letters_and_photographs_are_unlike_digits_and_digits_are_not(run, sample, familiar):
    trained = bw.load_run(run.folder)
    digits = sample.test.images[:300]
    assert sum(familiar.is_unlike(read_by_last(trained, digits))) <= 9
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 1, 28, 28), dtype=np.uint8))
    assert sum(familiar.is_unlike(read_by_last(trained, noise))) >= 40
    letters = []
    for letter in "AEFHKMNRWXk":
        picture = Image.new("L", (200, 200), 255)
        ImageDraw.Draw(picture).text((100, 100), letter, font=ImageFont.load_default(140), fill=0, anchor="mm")
        letters.append(to_image(picture, channels=1, size=(28, 28), method="digits"))
    assert sum(familiar.is_unlike(read_by_last(trained, torch.stack(letters)))) >= 5


def test_the_limit_leaves_out_one_test_digit_in_a_hundred(run, sample, familiar):
    """By another way: the angles in float64, all digits at once, from a hook on the net's own last layer."""
    trained = bw.load_run(run.folder)
    read = {}
    for name, split in (("train", sample.train), ("test", sample.test)):
        seen = []
        hook = trained.net.fc.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0]))
        with torch.inference_mode():
            trained.net((split.images / 255 - 0.1307) / 0.3081)
        hook.remove()
        read[name] = torch.nn.functional.normalize(seen[0].double())
    distances = (1 - read["test"] @ read["train"].T).amin(1)
    assert int((distances > familiar.limit).sum()) == 10
    assert familiar.is_unlike(read["test"].float()) == (distances > familiar.limit).tolist()


def test_a_net_whose_last_operation_is_no_matrix_is_asked_by_its_logits():
    reader = Reader(nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()))
    assert reader(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    deep = Reader(nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10)))
    assert deep(torch.rand(3, 1, 28, 28)).shape == (3, 20)
    assert not any(module._forward_pre_hooks for module in deep.modules())


def test_doubts_stand_beside_the_answer(run, sample, command):
    images = sample.test.images[:, 0].numpy()
    sheet_of(images[0], images[1]).save("two.png")
    sheet_of(images[0]).save("one.png")
    code, out, _ = command("predict", run.folder, "one.png", "two.png", "--json", "p.json", "--csv", "p.csv")
    assert code == 0
    (row,) = [line for line in out.splitlines() if line.strip().startswith("two.png ")]
    assert "several figures" in row and "two.png: 2 figures were read as one" in out
    assert json.loads(Path("p.json").read_text())[0]["warnings"] == []
    rows = list(csv.DictReader(io.StringIO(Path("p.csv").read_text())))
    assert ["figures" in row["warnings"] for row in rows] == [False] * 3 + [True] * 3


def test_photographs_are_not_searched_for_figures(run, sample):
    model = dataclasses.replace(bw.load_run(run.folder).model, pictures="crop")
    picture = sheet_of(*sample.test.images[:2, 0].numpy())
    assert place_and_doubt(picture, model)[1] == []


def test_nothing_to_read_is_refused(run, tmp_path):
    with pytest.raises(ImageError, match="no pictures were given"):
        bw.predict(run.folder, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="contains no pictures"):
        bw.predict(run.folder, [tmp_path / "empty"])
    with pytest.raises(RecipeError, match="top must be at least 1, got 0"):
        bw.predict(run.folder, [tmp_path], top=0)


def test_the_command_shows_a_table_csv_and_json(run, digits, command, sample, tmp_path):
    code, out, err = command("predict", run.folder, digits)
    assert code == 0 and err == ""
    for index, label in enumerate(labels(sample, 3)):
        (line,) = [line for line in out.splitlines() if f"{index}.png" in line]
        assert line.split()[1] == label and line.count("%") == 3

    code, out, _ = command("predict", run.folder, digits, "--csv", "-")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(rows) == 9 and [row["class"] for row in rows if row["rank"] == "1"] == labels(sample, 3)

    code, out, _ = command("predict", run.folder, digits, "--json", "-", "--top", 1)
    assert [prediction["guesses"][0]["name"] for prediction in json.loads(out)] == labels(sample, 3)

    code, out, _ = command("predict", run.folder, digits, "--csv", "-", "--json", "p.json")
    assert code == 0 and out.startswith("image,rank,") and "picture" not in out
    code, out, _ = command("predict", run.folder, digits, "--json", "p.json", "--csv", "p.csv")
    assert code == 0 and "picture" in out
    assert (
        len(json.loads((tmp_path / "p.json").read_text())) == 3 and len((tmp_path / "p.csv").read_text().split()) == 10
    )


def test_two_formats_do_not_mix_on_the_standard_output(run, digits, refused):
    assert "write one of them to a file" in refused("predict", run.folder, digits, "--json", "-", "--csv", "-")


def test_a_sheet_in_no_format_is_refused(run, digits, refused):
    assert "figures cannot be written as .txt" in refused("predict", run.folder, digits, "--draw", "got.txt")


def test_the_command_names_each_bad_picture_and_exits_2_with_the_others_answered(run, digits, command):
    (digits / "1.png").write_bytes(b"no picture")
    code, out, err = command("predict", run.folder, digits, "missing.png")
    assert code == 2 and "0.png" in out and "2.png" in out
    assert len(err.strip().splitlines()) == 2
    assert "1.png is not a picture" in err and "there is no file missing.png" in err

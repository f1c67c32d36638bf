import csv
import io
import json

import pytest
from PIL import Image

import branchwork as bw
from branchwork.errors import ImageError, RecipeError


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

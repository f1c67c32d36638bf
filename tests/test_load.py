import lzma

import numpy as np
import pytest
import torch
from conftest import ROOT
from make_sample import draw, to_idx

import branchwork
from branchwork.datasets import load, sources
from branchwork.datasets.load import load_data
from branchwork.errors import DataError
from branchwork.observer import Observer


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_the_sample_is_even_over_the_classes(sample):
    assert sample.train.images.shape == (6000, 1, 28, 28) and sample.test.images.shape == (1000, 1, 28, 28)
    assert sample.train.images.dtype == torch.uint8 and sample.train.labels.dtype == torch.int64
    assert torch.bincount(sample.train.labels).tolist() == [600] * 10
    assert torch.bincount(sample.test.labels).tolist() == [100] * 10


def test_the_sample_has_no_picture_twice(sample):
    everything = torch.cat([sample.train.images, sample.test.images]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 7000


def test_the_script_that_is_kept_draws_evenly_and_the_same_each_time():
    labels = np.repeat(np.arange(10), 20)
    first, second = (draw(labels, 5, np.random.Generator(np.random.PCG64(11))) for _ in range(2))
    assert np.array_equal(first, second) and np.all(np.diff(first) > 0)
    assert np.bincount(labels[first]).tolist() == [5] * 10


def test_normalisation_is_the_lectures_and_mnists_own(sample):
    assert sample.mean == (0.1307,) and sample.std == (0.3081,)
    pixels = sample.train.images.double() / 255
    # Even classes shift the figures of the whole of MNIST a little.
    assert abs(pixels.mean() - 0.1307) < 0.003 and abs(pixels.std() - 0.3081) < 0.003


def test_auto_falls_back_on_the_sample_and_says_so(monkeypatch):
    def nothing(*arguments):
        raise DataError("mnist is not available. Tried:\n  here")

    monkeypatch.setattr(load, "fetch", nothing)
    notes = Notes()
    assert load_data("auto", progress=notes).name == "sample"
    (note,) = notes.notes
    assert "built-in digits" in note and "Tried:" in note
    with pytest.raises(DataError, match="is not available"):
        load_data("mnist")
    with pytest.raises(DataError, match="is not available"):
        load_data("auto", source=ROOT)  # a folder that the user names is not passed over


def test_a_misspelt_data_set_is_told_its_neighbour():
    with pytest.raises(DataError, match="Did you mean 'fashion-mnist'"):
        load_data("fashion-mnits")
    with pytest.raises(DataError, match="leave out --source"):
        load_data("sample", source=ROOT)


def make_mnist(monkeypatch) -> None:
    files = {
        "train-images-idx3-ubyte": np.zeros((4, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": np.arange(4, dtype=np.uint8),
        "t10k-images-idx3-ubyte": np.zeros((2, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(2, dtype=np.uint8),
    }
    monkeypatch.setattr(load, "fetch", lambda *_: ({name: to_idx(array) for name, array in files.items()}, "a test"))


def test_loading_is_told_with_where_it_came_from(monkeypatch):
    make_mnist(monkeypatch)
    notes = Notes()
    data = load_data("auto", progress=notes)
    assert data.name == "mnist" and data.origin == "a test"
    assert notes.notes == ["data: MNIST, from a test"]
    assert data.classes == tuple("0123456789") and data.image_size == (28, 28) and data.channels == 1


def test_fashion_mnist_has_its_garments(monkeypatch):
    make_mnist(monkeypatch)
    data = load_data("fashion-mnist")
    assert data.classes[0] == "T-shirt/top" and len(data.classes) == 10 and data.pictures == "garments"


def test_data_tells_what_is_there_and_draws_a_sheet(tmp_path):
    summary = branchwork.data("sample", draw=tmp_path / "sheet.png")
    assert summary.counts == {"train": {str(d): 600 for d in range(10)}, "test": {str(d): 100 for d in range(10)}}
    assert summary.image_shape == (1, 28, 28) and summary.folder is None and summary.origin == "the package itself"
    from PIL import Image

    with Image.open(tmp_path / "sheet.png") as picture:
        assert min(picture.size) > 1000


def test_the_embedded_files_are_plain_xz():
    for name in sources.MNIST.md5:
        assert lzma.decompress((ROOT / f"branchwork/datasets/sample/{name}.xz").read_bytes())[:3] == b"\0\0\x08"

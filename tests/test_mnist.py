"""The one place where the tests use the real MNIST files. They are fetched once and kept between runs."""

import json
import lzma
import os

import make_sample
import platformdirs
import pytest
from conftest import in_a_process

import branchwork as bw
from branchwork.datasets.dataset import DataSet
from branchwork.datasets.sources import MNIST
from branchwork.errors import DataError


@pytest.fixture
def mnist(monkeypatch) -> DataSet:
    monkeypatch.setenv("BRANCHWORK_DATA", platformdirs.user_cache_dir("branchwork-tests"))
    try:
        return bw.load_data("mnist")
    except DataError as reason:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no source answers: {reason}")


def test_the_files_are_mnist(mnist):
    assert mnist.train.images.shape == (60_000, 1, 28, 28) and mnist.test.images.shape == (10_000, 1, 28, 28)
    assert mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as every tutorial shows them
    pixels = mnist.train.images.double() / 255
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == (0.1307, 0.3081)


def test_the_sample_is_drawn_from_the_files_by_the_script(mnist, tmp_path):
    make_sample.main(tmp_path)
    for name in MNIST.md5:
        made, kept = (lzma.decompress((at / f"{name}.xz").read_bytes()) for at in (tmp_path, make_sample.FOLDER))
        assert made == kept, name


@pytest.mark.parametrize(("net", "floor"), [("inception", 0.975)])
def test_one_epoch_reaches_its_floor_within_its_memory(mnist, net, floor):
    done = in_a_process("train", net, "--data", "mnist", "--epochs", 1, "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["train_images"] == 54_001 and result["test_interval"][1] - result["test_interval"][0] < 0.01
    assert result["test_accuracy"] > floor
    assert result["peak_memory_bytes"] < 1.5e9

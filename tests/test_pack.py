"""Packs: the same data set as the folder's, mapped, and whole or not at all."""

import json
import mmap
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers.folders import GENERATOR, SHORT, fill, train, two_classes
from PIL import Image

import branchwork as bw
from branchwork.datasets.dataset import MappedImages, Split
from branchwork.errors import DataError
from branchwork.observer import Observer
from branchwork.training.recipes import fast
from branchwork.training.step import Moment, batch_of


@pytest.fixture
def pets(tmp_path) -> Path:
    """Folders with every kind of row: used, damaged, and copied."""
    root = two_classes(tmp_path / "pets")
    (root / "cat/bad.png").write_bytes(b"x")
    shutil.copy(root / "dog/1.png", root / "dog/again.png")
    return root


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".pack")


def test_a_pack_is_the_data_set_of_its_folder(pets, tmp_path):
    packed = bw.pack(pets, size=(16, 24), fit="pad")
    plain, mapped = bw.load_data(str(pets), size=(16, 24), fit="pad"), bw.load_data("pets.pack")
    assert packed.file == "pets.pack" and packed.images == 20 and left(tmp_path) == ["pets.pack"]
    for field in ("name", "classes", "mean", "std", "pictures", "report", "channels", "image_size"):
        assert getattr(plain, field) == getattr(mapped, field), field
    for one, other in ((plain.train, mapped.train), (plain.test, mapped.test)):
        assert isinstance(other.images, MappedImages) and other.images.shape == one.images.shape
        assert torch.equal(one.labels, other.labels) and torch.equal(one.images, other.images[:])
    assert mapped.validation is None


def test_a_pack_keeps_the_splits_of_its_folder(tmp_path):
    for part, count in (("train", 6), ("val", 4), ("test", 2)):
        fill(tmp_path / "pets" / part / "cat", count)
        fill(tmp_path / "pets" / part / "dog", count)
    bw.pack("pets", out="own.pack")
    data = bw.load_data("own.pack")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 8, 4]
    assert bw.data("own.pack").counts["validation"] == {"cat": 4, "dog": 4}


def test_mapped_images_are_indexed_as_a_tensor_is():
    base = np.random.default_rng(0).integers(0, 256, (9, 3, 4, 5), dtype=np.uint8)
    rows = torch.tensor([7, 2, 2, 0, 8])
    mapped, tensor = MappedImages(base, rows, 1), torch.from_numpy(base)[rows]
    for index in (
        torch.tensor([4, 0, 0, 3]),
        slice(1, 4),
        slice(None),
        slice(2, 2),
        [1, 0],
        torch.tensor([], dtype=int),
    ):
        assert torch.equal(mapped[index], tensor[index])
        assert mapped[index].dtype == torch.uint8
    assert torch.equal(mapped[3], tensor[3]) and len(mapped) == 5 and mapped.shape == tensor.shape
    assert torch.equal(mapped.pick(torch.tensor([4, 1]))[:], tensor[[4, 1]])
    mapped[:][:] = 0
    assert base.any()  # what was read is a copy


def test_a_batch_of_mapped_images_is_picked_on_the_cpu_and_arrives_on_the_device():
    images, labels = torch.zeros(9, 1, 8, 8, dtype=torch.uint8), torch.arange(9)
    mapped = MappedImages(images.numpy(), torch.arange(9), 0)
    device, state = torch.device("meta"), SimpleNamespace(model=SimpleNamespace(classes=("cat", "dog")))
    for kind, place in ((mapped, "cpu"), (images, "meta")):
        data = Split(kind.to(device), labels.to(device))
        assert data.index_device.type == place
        chosen = torch.tensor([4, 0]).to(data.index_device)
        batch = batch_of(state, data, chosen, recipe=fast("residual"), moment=Moment(0, 0, 0))
        for tensor in batch(slice(None)):
            assert tensor.is_meta and len(tensor) == 2


@pytest.mark.parametrize(("side", "most"), [(7, 1), (200, 40)])
def test_what_a_batch_needs_is_announced_and_little_else(side, most):
    class Disk:
        def __len__(self):
            return base.nbytes

        def madvise(self, advice, start, length):
            assert start % mmap.PAGESIZE == 0 and start + length <= base.nbytes
            announced[start : start + length] = True
            calls.append(length)

    base = np.zeros((500, 1, side, side), np.uint8)
    announced, calls = np.zeros(base.nbytes, bool), []
    rows = torch.from_numpy(GENERATOR.permutation(500)[:40])
    MappedImages(base, rows, 0, Disk())[:]
    for row in rows.tolist():
        assert announced[row * side**2 : (row + 1) * side**2].all()
    assert announced.sum() <= 40 * (side**2 + 2 * mmap.PAGESIZE)
    assert len(calls) <= most


def test_training_from_a_pack_is_training_from_its_folder_bit_for_bit(pets):
    bw.pack(pets)
    recipe = fast("residual", 16).but({**SHORT, "validation": 0.25})
    whole, mapped = (train(data=data, recipe=recipe, out=out) for data, out in ((str(pets), "a"), ("pets.pack", "b")))
    assert (whole.test_accuracy, whole.validation_accuracy) == (mapped.test_accuracy, mapped.validation_accuracy)
    for one, other in zip(bw.load_run("a").net.parameters(), bw.load_run("b").net.parameters(), strict=True):
        assert torch.equal(one, other)
    assert bw.evaluate("b").accuracy == mapped.test_accuracy
    assert bw.evaluate("b", data=str(pets)).accuracy == mapped.test_accuracy


def test_a_training_of_a_pack_larger_than_memory_reads_only_its_batches(tmp_path, monkeypatch):
    class Counting(np.ndarray):
        read = 0

        def __getitem__(self, index):
            found = super().__getitem__(index)
            if self.ndim == 4:
                assert found.ndim == 3, "one image at a time"
                Counting.read += 1
            return found

    two_classes(tmp_path / "pets")
    bw.pack("pets")
    data = bw.load_data("pets.pack")
    base = data.train.images.base.view(Counting)
    for split in (data.train, data.test):
        object.__setattr__(split.images, "base", base)
    train(data=data, recipe=fast("residual", 16).but(SHORT), out="run")
    # An epoch of 16, the test of 4, and for the report the batch, the mistakes, and the 4 to measure its branches on.
    assert 20 <= Counting.read <= 20 + 8 + 4 + 2 * 4


def test_a_stopped_pack_leaves_nothing(pets, tmp_path):
    class Stop(Observer):
        def count(self, title, done, total):
            if title.startswith("reading") and done == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bw.pack(pets, progress=Stop())
    assert left(tmp_path) == []
    assert bw.pack(pets).images == 20 and left(tmp_path) == ["pets.pack"]


def test_a_pack_is_the_same_to_the_byte_each_time(pets):
    bw.pack(pets, out="a.pack")
    Path(".b.pack.part").write_bytes(b"x" * 100_000)  # left by a process that was killed
    bw.pack(pets, out="b.pack")
    assert Path("b.pack").read_bytes().replace(b'"b"', b'"a"') == Path("a.pack").read_bytes()


@pytest.fixture
def packed(pets) -> Path:
    bw.pack(pets)
    return Path("pets.pack")


def test_a_broken_pack_is_named_and_says_what_to_do(packed, refused):
    whole = packed.read_bytes()
    header = int.from_bytes(whole[-20:-12], "little")
    start = len(whole) - 20 - header
    for content, words in (
        (b"", "is not a pack, or was cut off"),
        (whole[:-1], "is not a pack, or was cut off"),
        (b"x" * 500, "is not a pack, or was cut off"),
        (whole[100:], "is damaged"),
        (whole[: start - 5] + b"\x07" + whole[start - 4 :], "the checksum of its labels is wrong"),
        (whole.replace(b'"cat"', b'"cot"'), "the checksum of its header is wrong"),
        (whole[:-20] + (10**12).to_bytes(8, "little") + whole[-12:], "is damaged"),
    ):
        packed.write_bytes(content)
        assert words in refused("train", "residual", "--data", packed), words
        assert words in refused("data", packed), words


def test_a_flipped_pixel_is_found_by_the_check(packed, refused):
    content = bytearray(packed.read_bytes())
    content[1234] ^= 1
    packed.write_bytes(content)
    assert "its images are not those that were packed" in refused("data", packed)


def test_too_little_space_is_said_before_anything_is_written(pets, tmp_path, refused, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert "takes 1 MB, but only 0 MB are free" in refused("data", "pack", pets)
    assert left(tmp_path) == []


def test_a_full_disk_is_one_message_and_leaves_nothing(pets, tmp_path, refused, limit_files):
    limit_files(15_000)  # of 26 kB
    assert "cannot write pets.pack: File too large" in refused("data", "pack", pets)
    assert left(tmp_path) == []


def test_the_command_refuses_in_one_message(pets, packed, refused):
    assert "already exists" in refused("data", "pack", pets)
    assert "must end in .pack" in refused("data", "pack", pets, "--out", "x.bin")
    assert "there is no folder gone" in refused("data", "pack", "gone")
    assert "was packed with --size 20x20, and 16x16 is needed" in refused(
        "train", "residual", "--data", packed, "--size", 16
    )
    assert "was packed with --fit crop, and pad is needed" in refused(
        "train", "residual", "--data", packed, "--fit", "pad"
    )


def test_a_grey_pack_serves_a_net_for_colour_and_not_the_other_way_round(packed, tmp_path):
    two_classes(tmp_path / "grey")
    for path in (tmp_path / "grey").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    bw.pack("grey", size=20)
    plain, mapped = bw.load_data("grey", size=20, channels=3), bw.load_data("grey.pack", channels=3)
    assert bw.load_data("grey.pack").channels == 1 and mapped.channels == 3
    assert mapped.mean == plain.mean and mapped.std == plain.std
    assert torch.equal(mapped.test.images[:], plain.test.images) and torch.equal(
        mapped.train.images[3], plain.train.images[3]
    )
    with pytest.raises(DataError, match=r"has colour images, but grey ones are needed: name .*pets itself"):
        bw.load_data(packed, channels=1)


def test_a_folder_that_memory_cannot_hold_is_sent_to_a_pack(pets, refused, monkeypatch):
    monkeypatch.setattr("branchwork.datasets.load.available_memory", lambda: 1000)
    assert "make a pack with branchwork data pack" in refused("train", "residual", "--data", pets)


def test_two_processes_do_not_write_one_pack(pets):
    with FileLock(".pets.pack.lock"), pytest.raises(DataError, match=r"another process is writing pets\.pack"):
        bw.pack(pets)


def test_the_command_shows_what_was_packed(pets, command):
    code, out, err = command("data", "pack", pets, "--json", "p.json")
    assert code == 0 and "20 images 3×20×20 by --fit crop" in out and "unreadable: 1, left out" in out, err
    assert json.loads(Path("p.json").read_text())["report"]["left_out"] == 2
    code, out, err = command("data", "pets.pack")
    assert code == 0 and "copy: 1, left out" in out and "source:    the pack pets.pack" in out

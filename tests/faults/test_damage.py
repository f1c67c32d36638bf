"""Every file that is read back, damaged in many ways: the outcome is success or one clear error, never a traceback."""

import io
import json
import math
import random
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faults import fresh, many
from helpers.folders import SHORT, noise, two_classes
from helpers.tiny_study import TINY
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

import branchwork as bw
from branchwork.catalogue.weights import read_weights
from branchwork.cli.data import parts
from branchwork.datasets.placing import to_image
from branchwork.datasets.reading import read_picture
from branchwork.errors import BranchworkError, ImageError, Interrupted
from branchwork.observer import Observer
from branchwork.studies import study as studies
from branchwork.training.checkpoint import load_state
from branchwork.training.recipe import read_recipe
from branchwork.training.recipes import fast

SCRIPT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(torch.cat([self.one(x), self.two(x)], 1)).relu()
        return self.fc(x.mean((2, 3)))
"""


class Stop(Observer):
    """Ctrl-C at the end of one epoch, counted over all trainings."""

    def __init__(self, after: int):
        self.left = after

    def epoch(self, epoch):
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A folder with a pack, a finished run, and a run, several seeds and a selection that were stopped."""
    root = tmp_path_factory.mktemp("originals")
    (root / "script.py").write_text(SCRIPT)
    two_classes(root / "pets", height=8, width=8)
    (root / "packs").mkdir()
    bw.pack(root / "pets", out=root / "packs/pets.pack")
    recipe = fast("residual", 16).but({**SHORT, "epochs": 2, "validation": 0.25, "top": 1})
    options = {
        "data": str(root / "packs/pets.pack"),
        "recipe": recipe,
        "options": bw.Options(threads=1, execute="written"),
    }
    net = f"{root}/script.py:Net"
    bw.train(net, out=root / "run", **options)
    bw.train("resnet8[width=4]", out=root / "whole", **options)
    with pytest.raises(Interrupted):
        bw.train(net, out=root / "stopped", progress=Stop(1), **options)
    with pytest.raises(Interrupted):
        bw.train_seeds(net, seeds=2, out=root / "seeds", progress=Stop(3), **options)
    with pytest.raises(Interrupted):
        bw.select(
            root / "whole",
            goal=bw.Goal(keep=1),
            out=root / "selection",
            options=bw.Options(threads=1),
            progress=Stop(1),
        )
    return root


Draw = Callable[[st.SearchStrategy[Any]], Any]
DEEP = "[" * 2000 + "]" * 2000
WRONG = [None, True, -1, 0, 10**30, 1.5, 1e300, "", "x", [], [[]], {}, {"a": 1}, ["x"] * 3]


def damage_file(draw: Draw, path: Path) -> None:
    content = path.read_bytes()
    damage = draw(st.sampled_from(["fields", "fields", "fields", "flip", "cut", "empty", "text", "folder", "gone"]))
    if damage == "fields" and path.suffix in (".json", ".jsonl"):
        lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
        number = draw(st.integers(0, len(lines) - 1))
        lines[number] = damage_json(draw, lines[number])
        path.write_text("\n".join(lines))
    elif damage == "fields" and path.suffix == ".safetensors":
        path.write_bytes(damage_tensors(draw, content))
    elif damage == "cut":
        path.write_bytes(content[: draw(st.integers(0, len(content) - 1))])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"\xff\xfe<html>not found</html>")
    elif damage in ("folder", "gone"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    elif path.suffix != ".py":  # a changed script may be a sound one
        flipped = bytearray(content)
        flipped[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        path.write_bytes(flipped)


def damage_json(draw: Draw, text: str) -> str:
    """Drop, rename or replace one value, however deep."""
    whole = json.loads(text)
    values: list[tuple[Any, Any]] = []

    def collect(parent: Any) -> None:
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            values.append((parent, key))
            if isinstance(parent[key], dict | list):
                collect(parent[key])

    collect(whole)
    if not values:
        return "{"
    parent, key = draw(st.sampled_from(values))
    damage = draw(st.sampled_from(["drop", "rename", "replace", "replace", "deep", "NaN"]))
    if damage == "rename" and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif damage in ("drop", "rename"):
        del parent[key]
    else:
        parent[key] = draw(st.sampled_from(WRONG)) if damage == "replace" else "MARK"
    return json.dumps(whole).replace('"MARK"', DEEP if damage == "deep" else "NaN")


def damage_tensors(draw: Draw, content: bytes) -> bytes:
    """Damage the header of a file of tensors: the JSON texts in its metadata, or a tensor's name, type or shape."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    texts = header.get("__metadata__", {})
    if texts and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(texts)))
        texts[name] = damage_json(draw, texts[name]) if texts[name][:1] in "[{" else "0"
    elif draw(st.booleans()):
        name = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
        header[f"{name}_"] = header.pop(name)
    else:
        header = json.loads(damage_json(draw, json.dumps(header)).replace(DEEP, "[]"))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def damaged(few: int, all_of_them: int) -> Callable[..., Any]:
    """Run a test with so many damages, drawn by hypothesis; a failure is counted, and does not end the search."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    configure = settings(
        max_examples=many(few, all_of_them),
        suppress_health_check=health,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    return lambda test: configure(given(data=st.data())(test))


@pytest.fixture
def damage(tmp_path, tries):
    def use_damaged(data: st.DataObject, original: Path, use: Callable[[Path], object], files: str = "**/*.*") -> None:
        """Copy a folder, damage one of its `files` and use it: that must be refused, or end well."""
        copy = fresh(original, tmp_path / original.name)
        paths = sorted(path for path in copy.glob(files) if path.is_file() and path.suffix not in (".html", ".svg"))
        path = data.draw(st.sampled_from(paths), label="file")
        damage_file(data.draw, path)
        with tries.one(f"try {tries.count}, {path.name}"), suppress(BranchworkError):
            use(copy)

    return use_damaged


@damaged(60, 3000)
def test_a_damaged_pack_is_refused(originals, damage, data):
    def use(folder: Path) -> None:
        bw.load_data(str(folder / "pets.pack"))
        bw.data(str(folder / "pets.pack"))
        raise AssertionError("its checksums find whatever was changed")

    damage(data, originals / "packs", use)


@damaged(60, 6000)
def test_a_pack_with_nonsense_and_checksums_that_match(originals, tmp_path, data):
    content = (originals / "packs/pets.pack").read_bytes()
    (length,) = struct.unpack("<Q", content[-20:-12])
    header = content[-20 - length : -20]
    count, *shape = json.loads(header)["shape"]
    images, index = content[: math.prod((count, *shape))], content[math.prod((count, *shape)) : -20 - length]
    if data.draw(st.booleans()):
        rows = np.frombuffer(index, np.int32).copy()
        rows[data.draw(st.integers(0, len(rows) - 1))] = data.draw(st.sampled_from([-(2**31), -2, -1, 2, 3, 2**31 - 1]))
        header = header.replace(b"%d" % zlib.crc32(index), b"%d" % zlib.crc32(rows.tobytes()))
        index = rows.tobytes()
    else:
        header = damage_json(data.draw, header.decode()).encode()
    end = struct.pack("<QI8s", len(header), zlib.crc32(header), content[-8:])
    (tmp_path / "odd.pack").write_bytes(images + index + header + end)
    try:
        data_set = bw.load_data("odd.pack")
        parts(bw.data("odd.pack"))
    except BranchworkError:
        return
    for split in (data_set.train, data_set.test):
        assert len(split) > 0 and set(split.labels.tolist()) <= set(range(len(data_set.classes)))
    assert len(data_set.mean) == len(data_set.std) == data_set.channels and min(data_set.std) > 0


@damaged(30, 3000)
def test_a_damaged_run_is_refused_or_used(originals, damage, data):
    def use(folder: Path) -> None:
        bw.load_run(folder)
        bw.evaluate(folder)

    damage(data, originals / "run", use)


@pytest.fixture(scope="module")
def continued(originals, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights in which the stopped training ends."""
    folder = fresh(originals / "stopped", tmp_path_factory.mktemp("continued") / "stopped")
    bw.resume(folder)
    return load_file(folder / "model.safetensors")


@damaged(8, 1000)
def test_a_stopped_training_ends_as_it_would_have_or_is_refused(originals, continued, damage, data):
    def use(folder: Path) -> None:
        bw.resume(folder)
        weights = load_file(folder / "model.safetensors")
        assert all(torch.equal(weights[key], tensor) for key, tensor in continued.items()), "a damaged state went on"

    damage(data, originals / "stopped", use)


@damaged(10, 500)
def test_damaged_seeds_go_on_or_are_refused(originals, damage, data):
    damage(data, originals / "seeds", bw.resume_seeds, "seeds.json")


@damaged(4, 200)
def test_a_damaged_selection_goes_on_or_is_refused(originals, damage, data):
    select = partial(bw.select, originals / "whole", goal=bw.Goal(keep=1), options=bw.Options(threads=1))
    damage(data, originals / "selection", lambda folder: select(out=folder), "s*.*")


@damaged(5, 200)
def test_a_damaged_study_goes_on_or_is_refused(alone, damage, data, monkeypatch):
    monkeypatch.setitem(studies.STUDIES, "tiny", TINY)
    damage(data, alone, lambda folder: studies.study("tiny", out=folder, options=studies.StudyOptions(workers=1)))


@pytest.mark.parametrize(
    ("folder", "file", "load"),
    [
        ("run", "model.safetensors", lambda path: read_weights(path.parent)),
        ("run", "top/epoch-*.safetensors", read_weights),
        ("selection", "size-0.safetensors", read_weights),
        ("stopped", "last/state.safetensors", lambda path: load_state(path.parents[1])),
    ],
)
def test_a_flipped_bit_in_a_file_of_tensors_is_noticed(originals, tmp_path, folder, file, load):
    shutil.copytree(originals / folder, tmp_path / folder)
    (path,) = (tmp_path / folder).glob(file)
    load(path)
    whole, place = path.read_bytes(), random.Random(29)
    ends = [0, 8 * len(whole) - 1]  # the first bit and the last
    header = range(8 * (8 + int.from_bytes(whole[:8], "little")))
    for bit in [*ends, *place.sample(header, 60), *place.sample(range(8 * len(whole)), 60)]:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(BranchworkError, match=r"is damaged \("):
            load(path)


@damaged(50, 3000)
def test_a_damaged_recipe_is_refused_or_read(originals, damage, data):
    damage(data, originals / "run", lambda folder: read_recipe(folder / "recipe.toml", bw.fast()), "recipe.toml")


PICTURES = {"L": ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"), "RGBA": ("PNG", "TIFF", "WEBP")}


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """One of each format and kind, with the Exif data that cameras write."""
    every = []
    for mode, formats in PICTURES.items():
        for name in formats:
            file, exif = io.BytesIO(), Image.Exif()
            exif[0x0112] = 6
            noise(20, 30, 3).convert(mode).save(file, name, **({"exif": exif} if name in ("PNG", "JPEG") else {}))
            every.append(file.getvalue())
    return every


@damaged(150, 60_000)
def test_a_damaged_picture_is_refused_or_placed(pictures, tries, data):
    content = bytearray(data.draw(st.sampled_from(pictures)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        content = content or bytearray(b"x")
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    Path("picture.png").write_bytes(content)
    with tries.one(f"try {tries.count}"), suppress(ImageError):
        image = to_image(read_picture(Path("picture.png")), channels=3, size=(28, 28), method="crop")
        assert image.shape == (3, 28, 28)


@damaged(20, 2000)
def test_a_folder_with_a_damaged_picture_is_loaded_without_it_or_with_it(originals, damage, data):
    def use(folder: Path) -> None:
        loaded = bw.load_data(str(folder))
        assert len(loaded.train) + len(loaded.test) in (19, 20)

    damage(data, originals / "pets", use)

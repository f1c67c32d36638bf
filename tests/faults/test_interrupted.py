"""Commands that are killed, stopped by a signal, or left without room or memory, and what comes after."""

import json
import os
import random
import signal
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import LINUX
from helpers import faults
from helpers.faults import commands, fresh, many, one_message, some
from helpers.folders import bomb, two_classes
from helpers.training import same

from branchwork.datasets.load import load_data

pytestmark = LINUX

TRAIN = (
    *("train", "resnet8[width=4]", "--data", "pets.pack", "--epochs", 2, "--batch-size", 8, "--validation", 0.25),
    *("--top", 1, "--execute", "written", "--threads", 1, "--no-report"),
)


@dataclass(frozen=True)
class Verb:
    """A command, how it is continued, and what it writes."""

    words: tuple[object, ...]
    again: tuple[object, ...]
    made: str


SELECT = ("select", "run", "--keep", 1, "--out", "new")
PACK = ("data", "pack", "pets", "--out", "new.pack")
EXPORT = ("export", "run", "--to", "pt2")
VERBS = {
    "train": Verb((*TRAIN, "--out", "new"), ("train", "--resume", "new"), "new"),
    "seeds": Verb((*TRAIN, "--seeds", 2, "--out", "new"), ("train", "--resume", "new"), "new"),
    "pack": Verb(PACK, PACK, "new.pack"),
}
if faults.every:
    VERBS |= {"select": Verb(SELECT, SELECT, "new"), "export": Verb(EXPORT, EXPORT, "run/model.pt2")}


@dataclass(frozen=True)
class Undisturbed:
    """Where the commands begin, and a folder for each in which it ran without a fault."""

    run: Callable[..., dict[str, Any]]
    start: Path
    folders: dict[str, Path]

    def operations(self, name: str, folder: Path) -> int:
        """Return how many file operations a command takes."""
        found = self.run(fresh(self.start, folder), *VERBS[name].words)
        assert found["code"] == 0, found["err"]
        return found["operations"]

    def go_on(self, name: str, folder: Path) -> None:
        """Continue as a user would, and compare with what was made without a fault."""
        verb = VERBS[name]
        done = self.run(folder, *verb.again)
        if "cannot be continued" in done["err"]:  # it had not begun
            done = self.run(folder, *verb.words)
        finished = any(words in done["err"] for words in ("is finished", "holds a finished", "already exists"))
        assert done["code"] == 0 or finished, done["err"]
        made, whole = folder / verb.made, self.folders[name] / verb.made
        assert alike(made, whole)
        assert list(folder.rglob("*.part")) == []


def alike(made: Path, whole: Path) -> bool:
    """Whether two commands wrote the same: files to the byte, the states of runs but for their seconds."""
    if whole.suffix == ".pack":  # it also names its folder
        ours, theirs = load_data(str(made)), load_data(str(whole))
        return all(getattr(ours, part).checksum() == getattr(theirs, part).checksum() for part in ("train", "test"))
    if whole.is_file():
        return made.read_bytes() == whole.read_bytes()
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert files
    return all(
        same(made / file.parents[1], whole / file.parents[1])
        if file.name == "state.safetensors"
        else (made / file).read_bytes() == (whole / file).read_bytes()
        for file in files
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    two_classes(root / "start/pets", height=8, width=8)
    with commands() as run:
        for words in (("data", "pack", "pets"), (*TRAIN, "--out", "run")):
            assert run(root / "start", *words, here=True)["code"] == 0
        for name, verb in VERBS.items():
            assert run(fresh(root / "start", root / name), *verb.words, here=True)["code"] == 0
        yield Undisturbed(run, root / "start", {name: root / name for name in VERBS})


@pytest.mark.parametrize("name", VERBS)
def test_killed_before_any_file_operation_it_goes_on_to_the_same_bytes(name, undisturbed, tries, tmp_path):
    folder = tmp_path / "folder"
    operations = undisturbed.operations(name, folder)
    for at in some(range(1, operations + 1), 8 if name == "train" else 4):
        with tries.one(f"{name} killed at {at} of {operations}"):
            killed = undisturbed.run(fresh(undisturbed.start, folder), *VERBS[name].words, kill=at)
            assert killed["code"] == -signal.SIGKILL, killed["err"]
            undisturbed.go_on(name, folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", VERBS)
def test_stopped_by_a_signal_it_goes_on_to_the_same_bytes(name, number, undisturbed, tries, tmp_path):
    folder = tmp_path / "folder"
    operations = undisturbed.operations(name, folder)
    for at in some(range(1, operations + 1), 2):
        with tries.one(f"{name} told {number.name} at {at} of {operations}"):
            stopped = undisturbed.run(fresh(undisturbed.start, folder), *VERBS[name].words, signal=number, at=at)
            assert stopped["code"] in (0, 130), stopped["err"]
            assert "Traceback" not in stopped["err"]
            undisturbed.go_on(name, folder)


@pytest.mark.parametrize("name", VERBS)
def test_a_file_that_may_not_grow_is_one_message_and_it_goes_on(name, undisturbed, tries, tmp_path):
    folder, random_room = tmp_path / "folder", random.Random(name)
    made = undisturbed.folders[name] / VERBS[name].made
    sizes = sorted({path.stat().st_size for path in ([made] if made.is_file() else made.rglob("*.*"))})
    for _ in range(many(2, 30)):
        room = random_room.randrange(random_room.choice(sizes))
        with tries.one(f"{name} with {room} bytes a file"):
            full = undisturbed.run(fresh(undisturbed.start, folder), *VERBS[name].words, room=room)
            assert one_message(full), full
            undisturbed.go_on(name, folder)


@pytest.fixture
def disk(tmp_path):
    """A disk in memory of which the size can be set; only root may have one."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(*options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder]
        return subprocess.run(words, capture_output=True).returncode == 0

    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not resize("size=1m"):
        pytest.skip("only root can mount a small disk, and not in every container")
    yield folder, resize
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", VERBS)
def test_a_disk_that_is_full_is_one_message_and_with_room_it_goes_on(name, undisturbed, disk, tries):
    mounted, resize = disk
    folder, random_room = mounted / "folder", random.Random(name)
    taken = [
        sum(path.stat().st_size + 4096 for path in of.rglob("*"))
        for of in (undisturbed.start, undisturbed.folders[name])
    ]
    for _ in range(many(2, 30)):
        room = random_room.randint(*taken)
        with tries.one(f"{name} on a disk of {room} bytes"):
            assert resize("remount", "size=100m")
            fresh(undisturbed.start, folder)
            assert resize("remount", f"size={room}")
            full = undisturbed.run(folder, *VERBS[name].words)
            assert one_message(full) or full["code"] == 0, full
            assert resize("remount", "size=100m")
            undisturbed.go_on(name, folder)


def claim_pixels(folder: Path, size: int) -> tuple[object, ...]:
    side = min(int(size**0.5), 2**31 - 1)
    (folder / "pets/cat/claim.png").write_bytes(bomb(side, side))
    return "data", "pets"


def claim_images(folder: Path, size: int) -> tuple[object, ...]:
    pack = folder / "pets.pack"
    whole = pack.read_bytes()
    pack.write_bytes(whole[:-20] + size.to_bytes(8, "little") + whole[-12:])
    return "data", "pets.pack"


def claim_header(folder: Path, size: int) -> tuple[object, ...]:
    weights = folder / "run/model.safetensors"
    weights.write_bytes(struct.pack("<Q", size) + weights.read_bytes()[8:])
    return "evaluate", "run"


def claim_weights(folder: Path, size: int) -> tuple[object, ...]:
    shape = {"fc.weight": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}
    header = json.dumps(shape).encode()
    (folder / "run/model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4096))
    return "evaluate", "run"


@pytest.mark.parametrize("claim", [claim_pixels, claim_images, claim_header, claim_weights])
def test_a_file_that_claims_to_be_huge_takes_no_memory(claim, undisturbed, tries, tmp_path):
    for size in (10**power for power in range(9, many(11, 19))):
        folder = fresh(undisturbed.start, tmp_path / "folder")
        with tries.one(f"{claim.__name__} of {size}"):
            told = undisturbed.run(folder, *claim(folder, size), memory=256 * 2**20)
            # A folder is used without its damaged picture.
            assert one_message(told) or (claim is claim_pixels and told["code"] == 0), told

import json
import os
import re
import shlex
import stat
import tempfile
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from conftest import POSIX

from branchwork import files
from branchwork.errors import DataError, RunError
from branchwork.files import (
    check_writable,
    folder_beside,
    hold_lock,
    parse_json,
    read_json,
    reading,
    temporary_folder,
    typed,
    write_json,
    write_whole,
)


def test_a_file_is_written_with_its_folders_and_read_by_others(tmp_path):
    path = tmp_path / "a/b/c.txt"
    write_whole(path, "多分支")
    assert path.read_text() == "多分支"
    assert os.name != "posix" or stat.S_IMODE(path.stat().st_mode) == 0o644
    write_json(path, {"x": 1})
    assert path.read_text() == '{\n  "x": 1\n}\n'


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "kept"
    path.write_text("old")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RunError, match=r"cannot write .*kept \(3 bytes\): No space left on device. Free some space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["kept"]


@POSIX
def test_a_link_is_followed_and_a_device_is_written_to(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(fifo, "through")
    assert os.read(reader, 100) == b"through" and fifo.is_fifo()
    os.close(reader)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file, and a folder is needed"):
        write_whole(tmp_path / "file/x", "y", error=DataError)
    with pytest.raises(RunError, match="file is a file, and a folder is needed"):
        check_writable(tmp_path / "file/a")


def test_new_folders_are_synced_into_those_above_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "_sync_folder", synced.append)
    write_whole(tmp_path / "a/b/c.txt", "whole")
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a/b"}


def test_a_folder_that_turns_read_only_is_told_and_hides_no_other_error(tmp_path, monkeypatch):
    def refuse(*given, **options):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch, pytest.raises(RunError, match="Read-only file system"):
        patch.setattr(os, "unlink", refuse)
        patch.setattr(os, "replace", refuse)
        write_whole(tmp_path / "a", "")
    happened = pytest.raises(RunError, match="what happened")
    with monkeypatch.context() as patch, happened, hold_lock(tmp_path / ".lock", "is busy"):
        patch.setattr(os, "unlink", refuse)
        raise RunError("what happened")


def test_what_a_killed_process_left_is_removed_and_a_living_one_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for left in (".file.part", "branchwork-dead"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").write_text("")
    (tmp_path / "branchwork-dead.lock").write_text("")
    with temporary_folder() as living, temporary_folder() as other, folder_beside(tmp_path / "file") as folder:
        assert living.is_dir() and other.is_dir() and list(folder.iterdir()) == []
        assert not list(tmp_path.glob("branchwork-dead*"))
        with pytest.raises(RunError, match="another process is writing"), folder_beside(tmp_path / "file"):
            pass
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    check_writable(tmp_path / "new/folder/a")
    assert os.listdir(tmp_path / "new/folder") == []


def test_parts_of_killed_processes_are_removed_with_the_next_writing(tmp_path):
    old, young, other = (
        tmp_path / name for name in (".a[1].json.abcd1234.part", ".a[1].json.abcd1235.part", ".b.x.part")
    )
    for part in (old, young, other):
        part.write_text("half")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    write_whole(tmp_path / "a[1].json", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(("a[1].json", young.name, other.name))


@dataclass(frozen=True)
class Part:
    sides: tuple[int, int]
    pairs: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Whole:
    part: Part
    batch_size: int | Literal["auto"]
    split: Literal["train", "test"]

    def __post_init__(self):
        if self.batch_size == 0:
            raise ValueError("batch_size must be at least 1, got 0")


FIELDS = {"part": {"sides": [3, 4], "pairs": [[0.5], [0.25, 1]]}, "batch_size": "auto", "split": "test"}


def test_what_was_written_is_read_back(tmp_path):
    whole = Whole(Part((3, 4), ((0.5,), (0.25, 1.0)), {"a": [1, None]}), 8, "train")
    write_json(tmp_path / "a.json", [asdict(whole)])
    assert read_json(tmp_path / "a.json", list[Whole]) == [whole]
    assert parse_json(json.dumps(FIELDS), Whole, tmp_path / "b") == Whole(
        Part((3, 4), ((0.5,), (0.25, 1.0))), "auto", "test"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"split": None}, "Expected `str`, got `null` - at `$.split`"),
        ({"split": "all"}, "Invalid enum value 'all' - at `$.split`"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 10**30}, "Integer beyond 64 bits - at `$.batch_size`"),
        ({"batch_size": True}, "Expected `int | str`, got `bool` - at `$.batch_size`"),
        ({"part": {}}, "Object missing required field `sides` - at `$.part`"),
        ({"part": {"sides": [3]}}, "Expected `array` of length 2, got 1 - at `$.part.sides`"),
        ({"part": {"sides": [3, 4.0]}}, "Expected `int`, got `float` - at `$.part.sides[1]`"),
        ({"part": {"sides": [3, 4], "pears": None}}, "Object contains unknown field `pears` - at `$.part`"),
        ({"part": {"sides": [3, 4], "more": {"a": [-(10**30)]}}}, "Integer beyond 64 bits - at `$.part.more.a[0]`"),
        ({"part": {"sides": [3, 4], "pairs": [["a"], [1]]}}, "Expected `float`, got `str` - at `$.part.pairs[0][0]`"),
        ({"whole": 1}, "Object contains unknown field `whole`"),
    ],
)
def test_what_is_not_as_it_was_written_is_told_with_its_position(changes, reason, tmp_path):
    write_json(tmp_path / "a.json", FIELDS | changes)
    with pytest.raises(DataError, match=re.escape(f"a.json is damaged ({reason}") + r".*\): fetch it again$"):
        read_json(tmp_path / "a.json", Whole, error=DataError, remedy="fetch it again")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (json.dumps(FIELDS).encode()[:-1], "truncated"),
        (json.dumps(FIELDS).encode("utf-16"), "malformed"),
        (json.dumps(FIELDS).encode().replace(b"auto", b"\xff"), "Invalid UTF-8"),
        (json.dumps(FIELDS).encode().replace(b"0.5", b"NaN"), "malformed"),
        (json.dumps(FIELDS).encode().replace(b"0.5", b"1e999"), "Number out of range"),
        (json.dumps(FIELDS).encode().replace(b"0.5", b"7" * 5000), "out of range"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_json_is_told(content, reason, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RunError, match=rf"a\.json is damaged \(.*{reason}.*\): copy the run again, or train again$"):
        read_json(tmp_path / "a.json", Whole)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(RunError, match=r"a\.json is missing: copy the run again"):
        read_json(tmp_path / "a.json", Whole)
    (tmp_path / "a.json").mkdir()
    with pytest.raises(RunError, match=r"a\.json cannot be read \(Is a directory\): copy the run again"):
        read_json(tmp_path / "a.json", Whole)
    with pytest.raises(RunError, match="cannot be read \\(Permission denied\\)"), reading(tmp_path / "b"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(RunError, match=r"^another net$"), reading(tmp_path / "b"):
        raise RunError("another net")
    with pytest.raises(DataError, match=r"b is damaged \(another net\)"), reading(tmp_path / "b", error=DataError):
        raise RunError("another net")


@pytest.mark.parametrize(
    ("line", "top", "names", "kept"),
    [
        ("0::/box/job", "", ("memory.max", "memory.current"), "inactive_file"),
        ("4:cpu,memory:/box/job", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_a_control_group_and_those_above_it_limit_the_memory(line, top, names, kept, tmp_path):
    groups = tmp_path / "sys/fs/cgroup" / top
    for path, most, taken, cached in (("box", 3000, 2500, 100), ("box/job", 2000, 700, 50)):
        (groups / path).mkdir(parents=True)
        (groups / path / names[0]).write_text(f"{most}\n")
        (groups / path / names[1]).write_text(f"{taken}\n")
        (groups / path / "memory.stat").write_text(f"anon 1\n{kept} {cached}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"7:pids:/box\n{line}\n")
    assert list(files._left_in_groups(tmp_path)) == [600, 1350]
    (groups / "box" / names[0]).write_text("max\n")
    assert list(files._left_in_groups(tmp_path)) == [1350]
    assert list(files._left_in_groups(tmp_path / "no such system")) == []


@pytest.mark.parametrize("path", ["runs/first", "my runs/1", "it's/100%", "数字/1", "a$b;c"])
def test_a_command_that_is_told_can_be_typed(path):
    words = shlex.split(f"branchwork train --resume {typed(path)}")
    assert words == ["branchwork", "train", "--resume", path]


@pytest.mark.parametrize(("path", "words"), [("C:\\runs\\1", "C:\\runs\\1"), ("C:\\Li Ming\\1", '"C:\\Li Ming\\1"')])
def test_on_windows_paths_are_quoted_as_its_shells_want_it(path, words, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(files.os, "name", "nt")
        told = typed(path)
    assert told == words

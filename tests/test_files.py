import os
import stat
from dataclasses import dataclass

import pytest

from branchwork import files
from branchwork.errors import DataError, RunError
from branchwork.files import need_place, read_fields, write_json, write_whole


def test_a_file_is_written_with_its_folders_and_read_by_others(tmp_path):
    path = tmp_path / "a/b/c.txt"
    write_whole(path, "多分支")
    assert path.read_text() == "多分支"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
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
        need_place(tmp_path / "file/a")


def test_need_place_makes_the_folder_and_leaves_it_empty(tmp_path):
    need_place(tmp_path / "new/folder/a")
    assert os.listdir(tmp_path / "new/folder") == []


def test_tuples_come_back_from_json_however_deep():
    @dataclass
    class Deep:
        pairs: tuple[tuple[float, ...], tuple[float, ...]] | None
        sides: tuple[int, int]

    fields = {"pairs": [[0.5], [0.25, 1]], "sides": [3, 4]}
    assert read_fields(Deep, fields) == Deep(((0.5,), (0.25, 1)), (3, 4))
    assert read_fields(Deep, fields | {"pairs": None}) == Deep(None, (3, 4))
    for wrong in ({"pairs": [[0.5]]}, {"pairs": [["a"], [1]]}, {"sides": [3]}, {"sides": [3, 4, 5]}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} is"):
            read_fields(Deep, fields | wrong)


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

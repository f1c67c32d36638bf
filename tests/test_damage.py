"""Every file that is read back, damaged in many ways: the outcome is success or one clear error, never a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.folders import two_classes
from helpers.tiny_study import TINY
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import branchwork as bw
from branchwork.errors import BranchworkError
from branchwork.studies import study as studies


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("packs")
    two_classes(root / "pets", height=8, width=8)
    (root / "packs").mkdir()
    bw.pack(root / "pets", out=root / "packs/pets.pack")
    return root / "packs"


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


def damaged(examples: int) -> Callable[..., Any]:
    """Run a test with this many folders of which one file is damaged, made by the fixture `damage`."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    configure = settings(max_examples=examples, suppress_health_check=health, derandomize=True, phases=[Phase.generate])
    return lambda test: configure(given(data=st.data())(test))


@pytest.fixture
def damage(tmp_path):
    def use_damaged(
        data: st.DataObject, original: Path, use: Callable[[Path], object], files: str = "**/*.*"
    ) -> Path | None:
        """Copy a folder, damage one of its `files` and use it: gives the copy, or None if it was refused."""
        copy = tmp_path / original.name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        paths = sorted(path for path in copy.glob(files) if path.is_file() and path.suffix not in (".html", ".svg"))
        damage_file(data.draw, data.draw(st.sampled_from(paths), label="file"))
        try:
            use(copy)
        except BranchworkError:
            return None
        return copy

    return use_damaged


@damaged(60)
def test_a_damaged_pack(packs, damage, data):
    def use(folder: Path) -> None:
        bw.load_data(str(folder / "pets.pack"))
        bw.data(str(folder / "pets.pack"))

    # Its checksums find whatever was changed.
    assert damage(data, packs, use) is None


@damaged(15)
def test_a_damaged_study(alone, damage, data, monkeypatch):
    monkeypatch.setitem(studies.STUDIES, "tiny", TINY)
    damage(data, alone, lambda folder: studies.study("tiny", out=folder, options=studies.StudyOptions(workers=1)))

"""`doctor` tells what is there and what is missing, and touches nothing."""

import json
import os
import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import branchwork as bw
from branchwork.cli import app

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
# Each package of an extra, with that extra.
PACKAGES = {
    re.match(r"[\w-]+", requirement)[0]: extra
    for extra, requirements in EXTRAS.items()
    if extra not in ("dev", "docs")  # which no verb needs
    for requirement in requirements
}


def test_it_tells_versions_and_every_package_of_an_extra_and_leaves_nothing_behind():
    found = bw.doctor()
    assert found.versions["python"] == platform.python_version() and found.versions["torch"] == torch.__version__
    packages = {package.name: package for package in found.requirements}
    assert packages.keys() - {"torch.compile"} == PACKAGES.keys()
    for name in PACKAGES:
        assert packages[name].version.startswith(metadata.version(name)) and packages[name].problem is None
    assert {place.problem for place in found.places} == {None} and min(p.free_bytes for p in found.places) > 0
    assert os.listdir() == []


def test_what_needs_a_package_is_a_command():
    for package in bw.doctor().requirements:
        for use in package.needed_for:
            verb, *words = use.split()
            if not use.startswith("StudyOptions("):
                flags = {name for argument in app[verb].assemble_argument_collection() for name in argument.names}
                assert {word for word in words if word.startswith("--")} <= flags, use


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(metadata, "version", absent)
    found = bw.doctor()
    for name, extra in PACKAGES.items():
        assert f'{name} is not installed: pip install "branchwork[{extra}]"' in found.problems


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(monkeypatch, command):
    Path("file").touch()
    monkeypatch.setenv("BRANCHWORK_DATA", str(Path("file/cache").absolute()))
    problem, *_ = bw.doctor().problems
    assert re.search(r"file.cache cannot be written to: .+\. Set BRANCHWORK_DATA to a folder that you may", problem)
    code, out, _ = command("doctor")
    assert code == 0 and problem in out and "nothing is missing" not in out
    assert os.listdir() == ["file"]


def test_mps_is_shown_but_not_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = bw.doctor()
    assert found.device == "cpu" and [device.name for device in found.devices][:: len(found.devices) - 1] == [
        "cpu",
        "mps",
    ]
    assert found.devices[-1].description == "used only with --device mps"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_command_shows_it_and_writes_it_as_json(language, command, monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", language)
    code, out, _ = command("doctor", "--json", "doctor.json")
    written = json.loads(Path("doctor.json").read_text(encoding="utf-8"))
    assert code == 0 and written["versions"]["torch"] == torch.__version__
    for package in written["requirements"]:
        assert re.search(rf"^ {re.escape(package['name'])} ", out, re.MULTILINE)
    assert ("needed for" in out) == (language == "en") and ("用于" in out) == (language == "zh")
    html = bw.doctor()._repr_html_()
    assert "captum" in html and ("用于" in html) == (language == "zh")

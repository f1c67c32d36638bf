"""The page where it is used without a checkout: in a notebook, and from the wheel that is released."""

import json
import os
import shutil
import subprocess
import sys
from html import unescape
from importlib import metadata

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

import branchwork as bw


def test_a_notebook_shows_the_page_in_a_frame(run, tmp_path):
    notebook = nbformat.v4.new_notebook()
    code = f"import branchwork\nbranchwork.show({str(run.folder)!r}, height=700)"
    notebook.cells = [nbformat.v4.new_code_cell(code)]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = [each for each in notebook.cells[0].outputs if each.output_type == "execute_result"]
    shown = output.data["text/html"]
    assert shown.startswith('<iframe sandbox="allow-scripts allow-downloads"') and "height: 700px" in shown
    page = unescape(shown.split('srcdoc="')[1].removesuffix('"></iframe>'))
    assert page == bw.show(run.folder).html and "default-src 'none'" in page


def test_the_wheel_holds_the_page_and_all_else_that_it_reads(run, tmp_path):
    checkout = tmp_path / "checkout"  # a build leaves files beside what it reads
    shutil.copytree(ROOT / "branchwork", checkout / "branchwork", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs the setuptools of pyproject.toml, since this test uses no network")
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheel", checkout], check=True
    )
    (wheel,) = (tmp_path / "wheel").glob("branchwork-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    script = (
        "import branchwork, json, sys\n"
        "page = branchwork.export(sys.argv[1], to='html', out='net.html')\n"
        "print(json.dumps([branchwork.__file__, page.bytes]))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", script, run.folder], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, size = json.loads(done.stdout)
    assert where.startswith(str(tmp_path / "site"))
    assert (tmp_path / "net.html").stat().st_size == size > 100_000
    assert (tmp_path / "net.html").read_text(encoding="utf-8") == bw.show(run.folder).html  # which test_ui.py opens

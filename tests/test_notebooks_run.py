"""The notebooks run from top to bottom, offline, in a folder of their own, and both languages have the same code."""

import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from branchwork.language import in_language

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ENGLISH = [path for path in NOTEBOOKS if ".zh" not in path.name]
# What the text of each promises its reader to see.
SEEN = {"1": "12,443,648", "2": "lint: nothing found", "3": "incep1.cat", "4": "plain56"}


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_says(path, tmp_path):
    (work := tmp_path / "work").mkdir()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=380, resources={"metadata": {"path": str(work)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # no warning
    assert len(outputs) < 20 and all(len(output.get("text", "").splitlines()) < 30 for output in outputs)
    shown = "".join(str(output.get("data", output.get("text"))) for output in outputs)
    assert in_language(SEEN[path.name[0]], "zh" if ".zh" in path.name else "en") in shown
    assert {file.name for file in work.iterdir()} <= {"runs", "mine.py", "seven.png"}
    assert not (tmp_path / "cache").exists()  # nothing was downloaded


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_installs_first(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert "if importlib.util.find_spec" in code[0].source and "    %pip install -q branchwork" in code[0].source


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_both_languages_have_the_same_code(path):
    codes = [
        [re.sub(r'\s*#.*|""".*"""|"(en|zh)"', "", cell.source) for cell in cells(each, "code")]
        for each in (path, path.with_suffix(".zh.ipynb"))
    ]
    assert codes[0] == codes[1]
    headings = [
        re.findall(r"^#+ \d*", "\n".join(cell.source for cell in cells(each, "markdown")), re.MULTILINE)
        for each in (path, path.with_suffix(".zh.ipynb"))
    ]
    assert headings[0] == headings[1]


def test_links_lead_to_notebooks_of_the_same_language():
    assert len(NOTEBOOKS) == 8
    for path in NOTEBOOKS:
        links = re.findall(r"\]\(([^)]+)\)", "\n".join(cell.source for cell in cells(path, "markdown")))
        for link in links:
            assert (path.parent / link).is_file() and (".zh" in link) == (".zh" in path.name)

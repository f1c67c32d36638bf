"""Rules that the repository keeps: tests do not import each other, and every page links to what exists."""

import ast
import re

import pytest
from conftest import ROOT

from branchwork import __version__

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def imported(path):
    """The top-level names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_no_test_module_imports_another():
    learners = ROOT / "tests/scripts"
    modules = [path for path in sorted((ROOT / "tests").rglob("*.py")) if learners not in path.parents]
    imports = {path.name: [name for name in imported(path) if name.startswith("test_")] for path in modules}
    assert {module: names for module, names in imports.items() if names} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_exists(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_lock_has_the_versions_of_the_constraints_and_hashes_for_all():
    pin = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {(name.lower().replace("_", "-").replace(".", "-"), version) for name, version in pin.findall(lock)}
    pins = pin.findall((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {(name.lower().replace("_", "-").replace(".", "-"), version) for name, version in pins} - locked == set()
    entries = re.split(r"^(?=[\w.-]+==)", lock, flags=re.MULTILINE)[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


def test_every_file_that_tells_the_version_tells_the_same():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert __version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_actions_are_pinned_to_commits_and_get_no_rights_by_default():
    for workflow in sorted((ROOT / ".github/workflows").glob("*.yml")):
        text = workflow.read_text(encoding="utf-8")
        assert "\npermissions: {}\n" in text
        used = re.findall(r"uses: (.+)", text)
        assert used and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v[\d.]+", action) for action in used)

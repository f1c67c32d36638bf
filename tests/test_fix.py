"""`inspect --fix` writes patches that git and patch apply, and after which the net runs; the file stays as it was."""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import mistakes

HEAD = """import torch
from torch import nn
from torch.nn import functional as F


"""
NET = (
    HEAD
    + '''class Net(nn.Module):
    """图像 1×28×28 的网络"""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, kernel_size=5, padding=2)
        self.norm = nn.BatchNorm2d(20)  # 归一化
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(720, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.norm(self.conv2(x))))
        return self.fc(x.view(x.size(0), -1))
'''
)
RESIDUAL = (
    HEAD
    + """class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        y = F.relu(self.conv1(x))
        y = self.conv2(x)
        return F.relu(x + y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 5)
        self.block1 = Block(8)
        self.block2 = Block(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.block2(self.block1(F.relu(self.conv(x))))
        return self.fc(x.mean((2, 3)))
"""
)
INCEPTION = (
    HEAD
    + """class Inception(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.b1 = nn.Conv2d(c, 16, 1)
        self.b5 = nn.Sequential(nn.Conv2d(c, 16, 1), nn.Conv2d(16, 24, 5), nn.ReLU())
        self.b3 = nn.Conv2d(c, 24, 3, padding=1)

    def forward(self, x):
        return F.relu(torch.cat([self.b1(x), self.b5(x), self.b3(x)], 1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = Inception(1), Inception(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.two(self.one(x)).mean((2, 3)))
"""
)
FORGOTTEN = (
    HEAD
    + """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.b1, self.b5_1 = nn.Conv2d(1, 16, 1), nn.Conv2d(1, 16, 1)
        self.b5_2 = nn.Conv2d(16, 24, 5, padding=2)
        self.fc = nn.Linear(40, 10)

    def forward(self, x):
        five = F.relu(self.b5_1(x))
        five = self.b5_2(five)
        return self.fc(F.relu(torch.cat([self.b1(x), five], 1)).mean((2, 3)))
"""
)

# What is written in the place of what, and what it should be.
BROKEN = {
    "features": (NET, "nn.Linear(720, 10)", "nn.Linear(320, 10)"),
    "channels": (NET, "nn.Conv2d(10, 20, kernel_size", "nn.Conv2d(16, 20, kernel_size"),
    "attribute": (NET, "self.norm(self", "self.nrom(self"),
    "method": (NET, "x.view", "x.veiw"),
    "forward": (NET, "def forward", "def forwad"),
    "init": (NET, "def __init__", "def __int__"),
    "base": (NET, "nn.Module", "nn.Moudel"),
    "padding": (INCEPTION, "nn.Conv2d(16, 24, 5, padding=2)", "nn.Conv2d(16, 24, 5)"),
    "forgotten": (FORGOTTEN, "self.b5_2(five)", "self.b5_2(x)"),
    "unread": (RESIDUAL, "y = self.conv2(y)", "y = self.conv2(x)"),
}
APPLY = {"git": ("git", "apply"), "patch": ("patch", "-p1", "--binary", "-i")}


@pytest.mark.parametrize("tool", APPLY)
@pytest.mark.parametrize("name", BROKEN)
def test_a_patch_applies_and_puts_the_net_right(name, tool, command):
    text, right, wrong = BROKEN[name]
    file = Path("my net.py")
    file.write_text(text.replace(right, wrong, 1), encoding="utf-8")
    before = file.read_bytes()
    code, out, err = command("inspect", f"{file}:Net", "--lint", "--fix")
    said = out if name == "unread" else err
    assert code == (0 if name == "unread" else 2) and file.read_bytes() == before
    assert "my net.patch:\n" in said and "git apply my net.patch" in said, said
    number = 1 + before.decode().split("\n").index(next(n for n in before.decode().split("\n") if wrong in n))
    assert f"  {number}: {before.decode().splitlines()[number - 1].strip()}\n" in said
    if shutil.which(APPLY[tool][0]) is None:
        pytest.skip(f"{tool} is not installed")
    subprocess.run([*APPLY[tool], "my net.patch"], check=True, capture_output=True)
    assert "\n".join(file.read_text(encoding="utf-8").splitlines()) == text.replace(wrong, right, 1).rstrip("\n")
    code, out, err = command("inspect", f"{file}:Net", "--lint", "--fix")
    assert code == 0 and "No patch was written" in out, out + err


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize(
    ("coding", "first"), [("gbk", "# -*- coding: gbk -*-\n"), ("gbk", "# 网络\n"), ("utf-8-sig", "")]
)
@pytest.mark.parametrize("last", ["", "  # 完"])
def test_a_patch_has_the_bytes_of_the_file(end, coding, first, last, refused):
    text = first + NET.replace("Linear(720", "Linear(300")
    text = (text.rstrip() + last).replace("\n", end)  # without an end of the last line
    Path("网络.py").write_bytes(text.encode(coding))
    refused("inspect", "网络.py:Net", "--fix")
    subprocess.run(["git", "apply", "网络.patch"], check=True, capture_output=True)
    assert Path("网络.py").read_bytes() == text.replace("300", "720").encode(coding)


def test_a_patch_is_applied_in_a_folder_of_a_repository(refused):
    Path("repository/deep").mkdir(parents=True)
    file = Path("repository/deep/net.py")
    file.write_text(NET.replace("Linear(720", "Linear(300"), encoding="utf-8")
    subprocess.run(["git", "init", "-q", "repository"], check=True)
    refused("inspect", f"{file}:Net", "--fix")
    subprocess.run(["git", "apply", "net.patch"], cwd=file.parent, check=True, capture_output=True)
    assert file.read_text(encoding="utf-8") == NET


def test_what_no_line_mends_is_said_and_nothing_is_written(command, refused):
    said = refused("inspect", f"{mistakes.__file__}:NotFlattened", "--fix")
    assert "flatten it first" in said and "No patch was written" in said
    assert "No patch was written" in refused("inspect", f"{mistakes.__file__}:ColourFirst", "--fix")
    code, out, _ = command("inspect", "residual", "--fix")
    assert code == 0 and "lint: nothing found" in out and "No patch was written" in out
    assert not Path(mistakes.__file__).with_suffix(".patch").exists()


def test_a_number_that_several_layers_share_is_no_mend(refused):
    twice = INCEPTION.replace("nn.Conv2d(c, 16, 1)", "nn.Conv2d(16, 16, 1)", 1)
    for text in (twice, NET.replace("nn.Linear(720", "nn.Linear(7 * 7 * 16")):
        Path("net.py").write_text(text, encoding="utf-8")
        assert "No patch was written" in refused("inspect", "net.py:Net", "--fix")


def test_a_patch_of_somebody_else_is_left_alone(refused):
    Path("net.py").write_text(NET.replace("Linear(720", "Linear(300"), encoding="utf-8")
    Path("net.patch").write_text("mine")
    assert "net.patch already exists" in refused("inspect", "net.py:Net", "--fix")
    assert Path("net.patch").read_text() == "mine"
    Path("net.patch").unlink()
    for _ in range(2):  # its own is written again
        refused("inspect", "net.py:Net", "--fix")

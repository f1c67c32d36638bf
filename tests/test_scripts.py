"""Scripts as learners write them are read, not run: against the same scripts, run with Python."""

import gzip
import io
import json
import os
import random
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.reference import torch_macs
from helpers.stand_ins import stand_ins
from helpers.training import StopAt

import branchwork as bw
from branchwork.catalogue.reading import Script
from branchwork.catalogue.resolve import find_builder
from branchwork.errors import Interrupted, NetError, RecipeError, RunError
from branchwork.training.habits import read_habits
from branchwork.training.recipes import own
from branchwork.training.run import keep_script, kept_files, kept_net

SCRIPTS = ROOT / "tests/scripts"
DIGIT, COLOUR = (1, 28, 28), (3, 32, 32)
# Each script, the names of nets in it ("" for the only one), and their input.
CASES = [
    ("lecture_inception.py", ("Net", "model", ""), DIGIT),
    ("lecture_residual.py", ("ResNet", "net", ""), DIGIT),
    ("first_cnn.py", ("ConvNet", "model", ""), DIGIT),
    ("卷积网络.py", ("网络", "模型", ""), DIGIT),
    ("gbk_without_a_line.py", ("Net", ""), DIGIT),
    ("gbk_with_a_line.py", ("LeNet", ""), DIGIT),
    ("bom_and_crlf.py", ("Net", ""), DIGIT),
    ("tabs.py", ("AlexLike", "net", ""), DIGIT),
    ("two_files/train.py", ("Net", "net", ""), DIGIT),
    ("package/net.py", ("SmallNet", ""), COLOUR),
    ("base_class/net.py", ("MyNet", "net", ""), DIGIT),
    ("inside_main.py", ("Net", "net", ""), DIGIT),
    ("argparse_options.py", ("Classifier", "net", ""), DIGIT),
    ("dataclass_config.py", ("Net", ""), DIGIT),
    ("lambda_layers.py", ("model", ""), DIGIT),
    ("global_in_forward.py", ("Net", "net", ""), DIGIT),
    ("d2l_lenet.py", ("lenet", ""), DIGIT),
    ("d2l_resnet.py", ("net",), DIGIT),
    ("factory.py", ("get_net", ""), DIGIT),
    ("resnet_with_arguments.py", ("model", ""), COLOUR),
    ("notebook.ipynb", ("Net", "net", ""), DIGIT),
    ("star_imports.py", ("Net", ""), DIGIT),
    ("one_line_imports.py", ("net", ""), DIGIT),
    ("shadowed_class.py", ("Net", ""), DIGIT),
    ("defined_twice.py", ("Net", ""), DIGIT),
    ("conditional_class.py", ("Net", ""), DIGIT),
    ("annotations.py", ("Net", ""), DIGIT),
    ("tried_imports.py", ("Net", "net", ""), DIGIT),
    ("loads_a_checkpoint.py", ("CNN", "cnn", ""), DIGIT),
    ("deleted_names.py", ("Net", "net", ""), DIGIT),
    ("classes_and_dataset.py", ("Net", ""), COLOUR),
    ("layers_in_a_loop.py", ("model", ""), DIGIT),
    ("changed_afterwards.py", ("net",), DIGIT),
    ("old_style.py", ("Net", "model", ""), DIGIT),
    ("tensorboard_and_summary.py", ("Net", "net", ""), DIGIT),
    ("sizes_as_arguments.py", ("Net", ""), COLOUR),
    ("reads_gzip.py", ("Net", ""), DIGIT),
    ("multi_branch_loop.py", ("Wide", ""), DIGIT),
]


@pytest.fixture
def scripts(tmp_path) -> Path:
    """A copy of all scripts, with what a user has lying beside them."""
    folder = tmp_path / "她的 脚本"
    shutil.copytree(SCRIPTS, folder)
    (folder / "model.ckpt").write_bytes(b"weeks of work")
    return folder


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run_by_python(path: Path) -> dict[str, object]:
    """The names of a script that Python ran, with stand-ins for the packages that are not here."""
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
        kept = [line if line.strip()[:1] not in ("%", "!") else "    pass" * line.startswith(" ") for line in lines]
        text = "\n".join(line for line in kept if not line.endswith("?") and line[:2] not in ("ls", "rm", "fi"))
        path = path.with_suffix(".py")
        path.write_text(text)
    if path.stem == "gbk_without_a_line":  # which Python refuses
        path.write_text(path.read_text("gbk"), "utf-8")
    (path.parent / "model.ckpt").unlink(missing_ok=True)
    (path.parent / "train.gz").write_bytes(gzip.compress(bytes(28 * 28)))
    name = f"{path.parent.name}.{path.stem}"
    with stand_ins(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        patch.setattr(sys, "argv", [str(path)])
        patch.syspath_prepend(str(path.parent.parent if name == "package.net" else path.parent))
        before = set(sys.modules)
        try:
            return runpy.run_module(name) if name == "package.net" else runpy.run_path(str(path), run_name="__main__")
        finally:
            for new in sys.modules.keys() - before:
                if str(path.parent) in str(getattr(sys.modules[new], "__file__", "")):
                    del sys.modules[new]


@pytest.mark.filterwarnings("ignore")  # of the scripts
@pytest.mark.parametrize(("file", "names", "shape"), CASES, ids=[file for file, _, _ in CASES])
def test_a_script_is_read_and_gives_the_net_that_python_gives(scripts, capsys, file, names, shape):
    path, before = scripts / file, contents(scripts)
    modules, folder, search = set(sys.modules), os.getcwd(), list(sys.path)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    found = {}
    for name in names:
        net = f"{path}:{name}" if name else str(path)
        found[name] = bw.inspect(net, shape)
        assert isinstance(bw.build_net(net), torch.nn.Module)
    assert capsys.readouterr().out == ""
    assert contents(scripts) == before
    assert (os.getcwd(), sys.path) == (folder, search)
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    left = {name for name in sys.modules.keys() - modules if not name.startswith("branchwork_script_")}
    assert not {name for name in left if str(scripts) in str(getattr(sys.modules[name], "__file__", ""))}
    ran = run_by_python(path)
    for name in names:
        theirs = ran[name or names[0]]
        theirs = theirs if isinstance(theirs, torch.nn.Module) else theirs()
        theirs = getattr(theirs, "module", theirs).eval()  # DataParallel
        assert found[name].macs == torch_macs(theirs, shape)
        assert found[name].parameters == sum(parameter.numel() for parameter in theirs.parameters())
    for left_open in (value for value in ran.values() if isinstance(value, io.IOBase)):
        left_open.close()


REFUSED = [
    ("needs_torchvision.py:Net", r"line 1: the net uses what `from torchvision import models` imports.*Install it"),
    ("needs_torchvision.py:net", r"line 1: the net uses what `from torchvision import models` imports"),
    ("uses_a_layer_of_torchvision.py:Net", r"line 2: the net uses what `from torchvision\.ops import Squeeze"),
    ("missing_decorator.py:Net", r"line 2: the net uses what `from mmengine\.registry import MODELS` imports"),
    (
        "classes_of_the_data.py:Net",
        r"line 4 would give train_set, but .* `datasets\.ImageFolder\('data/train'\)` is",
    ),
    ("labels_from_a_file.py:Net", r"line 3 would give labels, but .*`open\('labels\.txt'\)` is left out.*--run-script"),
    ("not_a_training.py:net", r"line 4 would give .*size, but .*`open\('sizes\.txt'\)` is left out"),
    ("hub.py:net", r"line 3 would give net, but .*`torch\.hub\.load\(.*\)` is left out"),
    ("syntax_error.py:Net", r"syntax_error\.py, line 3: SyntaxError: expected ':'"),
    ("typing_slip.py:Net", r"line 4: AttributeError: module 'torch\.nn' has no attribute 'Modul'"),
    ("needs_arguments.py:Net", r"\(hidden, depth\).*\n\ndef make_net\(\):\n    return Net\(hidden=…, depth=…\)"),
    ("two_nets.py", r"has several nets: name one of two_nets\.py:big, two_nets\.py:Small, two_nets\.py:Large"),
    ("two_nets.py:Smal", "Did you mean 'Small'"),
    ("hub.py:torch", "is a module: name a class, a function that returns the net, or a net"),
]


@pytest.mark.parametrize(("net", "words"), REFUSED, ids=[net for net, _ in REFUSED])
def test_what_cannot_be_read_is_told_with_the_line_that_stands_in_the_way(scripts, monkeypatch, capsys, net, words):
    monkeypatch.chdir(scripts / "refused")
    before = contents(scripts)
    with pytest.raises(NetError, match=f"(?s){words}"):
        bw.build_net(net)
    assert contents(scripts) == before and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["net", "factory"])
def test_a_net_that_the_script_built_begins_with_fresh_weights_of_the_seed(name):
    text = "import torch\nfrom torch import nn\ntorch.manual_seed(3)\nnet = nn.Sequential(nn.Linear(4, 4))\n"
    Path("mine.py").write_text(text + "net[0].weight.data.fill_(7)\nfactory = lambda: nn.Linear(4, 4)\n")
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(bw.build_net(f"mine.py:{name}").state_dict())
    first, again, other = (torch.cat([tensor.flatten() for tensor in state.values()]) for state in states)
    assert torch.equal(first, again) and not torch.equal(first, other)
    if name == "net":
        assert (states[0]["0.weight"] == 7).all()  # as the script has it
    before = torch.get_rng_state()
    build = find_builder(f"mine.py:{name}", in_channels=None, num_classes=None, image_size=None)
    assert torch.equal(torch.get_rng_state(), before)
    nets = [build(), build()]
    biases = [list(net.parameters())[1] for net in nets]
    assert nets[0] is not nets[1] and not torch.equal(*biases)


def test_sizes_are_passed_only_where_the_code_takes_them_and_the_data_need_them(small):
    Path("mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n    def __init__(self, n_classes=10, in_ch=1, channels=16):\n"
        "        super().__init__()\n        self.got = n_classes, in_ch, channels\n"
        "def make(num_class, n_channels=3):\n    return Net(num_class, n_channels)\n"
        "net = Net()\n"
    )
    assert bw.build_net("mine.py:Net").got == (10, 1, 16)
    assert bw.build_net("mine.py:Net", in_channels=3, num_classes=2).got == (2, 3, 16)
    assert bw.build_net("mine.py:make").got == (10, 3, 16)
    assert bw.build_net("mine.py:make", in_channels=1, num_classes=4).got == (4, 1, 16)
    assert bw.build_net("mine.py:net", in_channels=3, num_classes=2).got == (10, 1, 16)


def test_a_script_that_is_run_is_run_whole_and_once(scripts, capsys):
    Path("mine.py").write_text(
        "from pathlib import Path\nfrom neighbour import width\nfrom torch import nn\n"
        "print('running')\nPath('trained').touch(exist_ok=False)\nclasses = int(Path('size').read_text())\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(width, classes)\n"
        "    def forward(self, x):\n        return self.fc(x.flatten(1))\n"
        "net = Net()\n"
    )
    Path("neighbour.py").write_text("width = 784\n")
    Path("size").write_text("10\n")
    words = r"line 6 would give classes, but .*`Path\('size'\)\.read_text\(\)` is left out"
    with pytest.raises(NetError, match=words):
        bw.build_net("mine.py:Net")
    for _ in range(2):
        assert bw.inspect("mine.py:Net[script=run]").parameters == 7850
    assert capsys.readouterr().out == "" and Path("trained").exists() and "neighbour" not in sys.modules
    with pytest.raises(NetError, match="was built already"):
        bw.build_net("mine.py:net[script=run]")
    with pytest.raises(NetError, match="no option 'script=read': a net of your own has only without and script=run"):
        bw.build_net("mine.py:Net[script=read]")
    Path("size").unlink()
    Path("mine.py").write_text("import torch\n1 / 0\n")
    with pytest.raises(NetError, match=r"failed: ZeroDivisionError: division by zero \(.*mine\.py, line 2\)"):
        bw.build_net("mine.py:Net[script=run]")


def test_a_long_script_is_read_in_no_time_and_a_name_is_looked_up_where_python_does():
    functions = "".join(f"def f{n}(x, y=w{n}):\n    z = x + w{n}\n    return z\n\nw{n} = {n}\n" for n in range(600))
    text = f"import torch\nfrom torch import nn\n{functions.replace('y=w', 'y=')}"
    Path("long.py").write_text(
        text + "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(f7(1), f599(0))\n"
        "x = open('nothing')\nz = torch.load('nothing')\n"
    )
    assert len(Path("long.py").read_text().splitlines()) > 3000
    net = bw.build_net("long.py:Net")
    assert (net.in_features, net.out_features) == (8, 599)
    script = Script(Path("long.py").absolute())
    script.get("Net")
    made = {name for name in vars(script.module) if not name.startswith("__")}
    assert made == {"nn", "Net", "f7", "f599", "w7", "w599"}


def test_a_name_that_was_left_out_stands_in_the_way_only_where_it_is_used():
    Path("mine.py").write_text(
        "import torch\nfrom torch import nn\ndata = torch.load('data.pt')\nlr = 1\nfor lr in open('x'):\n    pass\n"
        "sizes = []\nfor size in (1, 2):\n    sizes.append(size)\n    torch.save(sizes, 'sizes.pt')\n"
        "class Net(nn.Module):\n    def __init__(self, use=False, all=False):\n        super().__init__()\n"
        "        self.fc = nn.Linear(784, 10 + len(data if use else ()) + (sum(sizes) if all else 0))\n"
        "    def forward(self, x):\n        return self.fc(x.flatten(1) * lr)\n"
        "def uses():\n    return Net(True)\n"
        "def sums():\n    return Net(all=True)\n"
    )
    assert bw.inspect("mine.py:Net").parameters == 7850
    with pytest.raises(NetError, match=r"line 3 would give data, but .*`torch\.load\('data\.pt'\)` is left out"):
        bw.build_net("mine.py:uses")
    with pytest.raises(NetError, match=r"line 8 would give size.*`for size in \(1, 2\):` is left out"):
        bw.build_net("mine.py:sums")


def test_files_that_import_each_other_and_files_that_are_called_like_packages_are_read(tmp_path):
    Path("one.py").write_text(
        "from two import *\nimport torch.nn as nn, random, two\nWIDTH = 5\n"
        "class Net(Base):\n    def __init__(self):\n        super().__init__()\n        self.two = two.Part()\n"
    )
    Path("two.py").write_text(
        "import one\nfrom torch import nn\n"
        "class Base(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(one.WIDTH, 1)\n"
        "class Part(nn.Module):\n    pass\n"
    )
    Path("random.py").write_text("1 / 0\n")
    Path("torch.py").write_text("1 / 0\n")
    net = bw.build_net("one.py:Net")
    assert net.fc.in_features == 5 and type(net.two).__name__ == "Part"
    with pytest.raises(NetError, match=r"two\.py has no 'Parts'.*Did you mean 'Part'"):
        Path("one.py").write_text("from two import Parts\nclass Net(Parts):\n    pass\n")
        bw.build_net("one.py:Net")


TINY = bw.course().but({"epochs": 1, "batch_size": 500, "validation": 0.1})


def test_a_run_keeps_its_script_and_its_neighbours_and_works_from_any_folder(scripts, small, tmp_path, monkeypatch):
    result = bw.train(f"{scripts}/two_files/train.py", data=small, recipe=TINY, out=tmp_path / "run")
    assert result.folder == str(tmp_path / "run") and result.parameters == 2_158
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run/script").rglob("*.py")}
    assert kept == {name: (SCRIPTS / "two_files" / name).read_bytes() for name in ("train.py", "model.py", "utils.py")}
    (scripts / "two_files/model.py").write_text("WIDTH = 13\n")  # the run keeps the net that it trained
    assert bw.load_run(tmp_path / "run").net.head.in_features == 12
    shutil.rmtree(scripts)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert bw.inspect(tmp_path / "moved").parameters == 2_158
    assert bw.evaluate(tmp_path / "moved", data="sample").accuracy > 0


def test_files_of_a_package_are_kept_where_the_script_finds_them(scripts, tmp_path):
    files = kept_files(f"{scripts}/package/net.py")
    inside = {"__init__.py", "net.py", "layers.py", "ops/__init__.py", "ops/pooling.py", "ops/padding.py"}
    assert {path.as_posix() for path in files} == {f"package/{name}" for name in inside}
    for folder in ("models", "models/models"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "models/net.py").write_text("from .models import net\nfrom ..net import Net\n")
    (tmp_path / "models/models/net.py").write_text("one = 1\n")
    (tmp_path / "net.py").write_text("from torch import nn\nNet = nn.Flatten\n")
    (tmp_path / "run").mkdir()
    keep_script(tmp_path / "run", f"{tmp_path}/models/net.py:Net[without=b5]")
    (tmp_path / "net.py").write_text("")
    assert kept_net(tmp_path / "run", f"{tmp_path}/models/net.py:Net[without=b5]") == (
        f"{tmp_path}/run/script/{tmp_path.name}/models/net.py:Net[without=b5]"
    )


def test_what_lies_in_the_folder_already_is_neither_used_nor_overwritten(scripts, small):
    trap = "from torch import nn\ndef Net():\n    raise ZeroDivisionError\n"
    Path("run/script").mkdir(parents=True)
    for name in ("run/net.py", "run/torchvision.py", "run/gbk_with_a_line.py"):
        Path(name).write_text(trap)
    net = f"{scripts}/gbk_with_a_line.py:LeNet"
    bw.train(net, data=small, recipe=TINY, out="run")
    assert bw.load_run("run").net.fc.in_features == 8 * 14 * 14
    assert Path("run/net.py").read_text() == Path("run/gbk_with_a_line.py").read_text() == trap
    Path("other/script/scripts").mkdir(parents=True)
    Path("other/script/scripts/gbk_with_a_line.py").write_text(trap)
    with pytest.raises(RunError, match=r"other.script holds another script: choose another --out"):
        bw.train(net, data=small, recipe=TINY, out="other")
    assert [path.name for path in Path("other").rglob("*") if path.is_file()] == ["gbk_with_a_line.py"]
    bw.train("residual", data=small, recipe=TINY, out="catalogue")
    Path("catalogue/script").mkdir()
    for name in ("net.py", "script/net.py", "script/residual.py"):
        Path("catalogue", name).write_text("1 / 0\n")
    assert bw.load_run("catalogue")


def test_a_start_that_failed_can_be_repeated_in_its_folder(scripts, small):
    net = f"{scripts}/two_files/train.py"
    keep_script(Path("run"), net)
    Path("run/script/two_files/model.py").unlink()  # it was killed before it wrote this
    assert bw.train(net, data=small, recipe=TINY, out="run").parameters == 2_158


def test_a_file_beside_the_copies_is_never_imported(small, tmp_path):
    write_package(tmp_path / "lesson", width=12)
    bw.train("lesson/net.py:Net", data=small, recipe=TINY, out="run")
    shutil.rmtree("lesson")
    assert bw.load_run("run").net[1].out_features == 12
    Path("run/script/lesson/net.py").write_text("import helper\n" + Path("run/script/lesson/net.py").read_text())
    Path("run/helper.py").write_text("1 / 0\n")
    Path("run/script/__init__.py").touch()  # which makes a package of the copies, so that imports look above it
    with pytest.raises(
        RunError, match=r"run.helper\.py does not belong to this run, but the run's script would import it: move it"
    ):
        bw.load_run("run", trust=True)


def write_package(folder: Path, width: int) -> None:
    """A package whose files name each other from the top, in a sub-package too."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "parts/__init__.py"):
        (folder / name).touch()
    (folder / "sizes.py").write_text(f"WIDTH = {width}\n")
    top = folder.name
    (folder / "parts/head.py").write_text(
        f"from torch import nn\nfrom {top}.sizes import WIDTH\n"
        "def head():\n    return nn.Linear(784, WIDTH), nn.Linear(WIDTH, 10)\n"
    )
    (folder / "net.py").write_text(
        f"from torch import nn\nfrom {top}.parts.head import head\n"
        "class Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(nn.Flatten(), *head())\n"
    )


@pytest.mark.parametrize("change", ["edited", "moved", "deleted"])
def test_a_run_of_a_module_does_not_change_with_it(small, tmp_path, change):
    write_package(tmp_path / "lesson", width=12)
    result = bw.train("lesson.net:Net", data=small, recipe=TINY, out="run")
    assert result.parameters == 9_550 and "lesson" not in sys.modules
    if change == "edited":
        write_package(tmp_path / "lesson", width=13)
        assert bw.build_net("lesson.net:Net")[1].out_features == 13  # as the file is now
    elif change == "moved":
        shutil.move("lesson", "lessons")
    else:
        shutil.rmtree("lesson")
    assert bw.load_run("run").net[1].out_features == 12
    shutil.move("run", "elsewhere")
    assert bw.load_run("elsewhere").net[1].out_features == 12


def test_seeds_that_are_continued_are_trained_with_the_script_that_they_began_with(small, tmp_path):
    write_package(tmp_path / "lesson", width=12)
    with pytest.raises(Interrupted):
        bw.train_seeds("lesson/net.py:Net", seeds=2, data=small, recipe=TINY, out="seeds", progress=StopAt(1, 1))
    write_package(tmp_path / "lesson", width=13)
    assert [result.parameters for result in bw.resume_seeds("seeds", data=small).results] == [9_550, 9_550]


HABITS = [
    ("lecture_inception.py", "SGD 0.01, momentum 0.5, batch 64, 10 epochs"),
    ("lecture_residual.py", "SGD 0.01, momentum 0.5, batch 32, 2 epochs"),
    ("first_cnn.py", "Adam 0.001, batch 100, 5 epochs"),
    ("argparse_options.py", "Adam 0.0002, batch 32, 3 epochs"),
    ("layers_in_a_loop.py", "SGD 0.05, momentum 0.9, weight decay 0.0005"),
    ("one_line_imports.py", "Adam 0.02, batch 16"),
    ("tabs.py", "RMSprop 0.0003, one epoch"),
    ("gbk_with_a_line.py", None),
]


@pytest.mark.parametrize(("file", "words"), HABITS, ids=[file for file, _ in HABITS])
def test_what_a_script_trains_with_is_read(file, words):
    habits = read_habits(f"{SCRIPTS}/{file}:Net[without=b5]")
    assert (None if habits is None else str(habits)) == words
    assert read_habits("inception") is None and read_habits("no/such.py:Net") is None


def test_numbers_are_followed_to_where_they_are_given():
    Path("mine.py").write_text(
        "import torch\nconfig = {'lr': 1e-3 * 2, 'epochs': 4}\nclass C:\n    momentum: float = 0.8\n"
        "bs = 2 ** 5\ndef main(args):\n    opt = torch.optim.SGD(net.parameters(), config['lr'], C.momentum)\n"
        "    sched = torch.optim.lr_scheduler.StepLR(opt, 3)\n"
        "    test = DataLoader(data, batch_size=1000)\n    train = DataLoader(data, bs, shuffle=True)\n"
        "    for epoch in tqdm(range(1, config['epochs'] + 1)):\n        pass\n"
    )
    habits = read_habits("mine.py")
    assert habits.fields == {
        "optimizer": "sgd", "learning_rate": 0.002, "momentum": 0.8, "weight_decay": 0.0, "batch_size": 32, "epochs": 4,
    }  # fmt: skip
    assert habits.scheduler == "StepLR"


@pytest.mark.parametrize(
    ("call", "fields", "unread"),
    [
        ("SGD(p)", {"learning_rate": 0.001, "momentum": 0.0, "weight_decay": 0.0}, ()),
        ("Adam(p, betas=[0.5, 0.99])", {"learning_rate": 0.001, "momentum": 0.5, "beta2": 0.99, "weight_decay": 0}, ()),
        ("Adam(p, 1, (0.5, 0.99))", {"learning_rate": 1, "momentum": 0.5, "beta2": 0.99, "weight_decay": 0}, ()),
        ("SGD(p, lr=rates[k], momentum=cfg.m)", {"weight_decay": 0.0}, ("lr", "momentum")),
        ("Adam(p, 1, betas=pair)", {"learning_rate": 1, "weight_decay": 0}, ("betas",)),
        ("SGD(p, 1, **more)", {"learning_rate": 1, "momentum": 0, "weight_decay": 0}, ("**more",)),
        ("SGD(p, 1, 0.9, nesterov=True)", {"learning_rate": 1, "momentum": 0.9, "weight_decay": 0}, ("nesterov=True",)),
        ("RMSprop(p)", {}, ()),
    ],
)
def test_only_numbers_that_the_script_shows_are_read(call, fields, unread):
    Path("mine.py").write_text(f"opt = torch.optim.{call}\n")
    habits = read_habits("mine.py:Net")
    assert habits.unread == unread
    assert {name: value for name, value in habits.fields.items() if name != "optimizer"} == fields
    if unread:
        with pytest.raises(RecipeError, match=re.escape(f"{', '.join(unread)} of ")):
            own("mine.py:Net")


def test_train_tells_what_the_script_trains_with_and_the_recipe_script_does_the_same(scripts, command, refused):
    net = scripts / "lecture_residual.py"
    words = ("--data", "sample", "--threads", 1)
    code, _, err = command("train", net, *words, "--epochs", 1, "--batch-size", 600, "--out", "a")
    assert code == 0
    told = "your script trains with SGD 0.01, momentum 0.5, batch 32, 2 epochs: --recipe script does the same"
    assert told in err
    code, _, err = command("train", net, *words, "--recipe", "script", "--epochs", 1, "--fraction", 0.1, "--out", "b")
    assert code == 0 and told not in err
    theirs = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.5, "batch_size": 32, "epochs": 1}
    assert bw.load_run("b").model.recipe == bw.course().but({**theirs, "fraction": 0.1})
    text = refused("train", scripts / "tabs.py", *words, "--recipe", "script")
    assert "the script trains with RMSprop 0.0003, one epoch, but no recipe has RMSprop" in text
    text = refused("train", "residual", *words, "--recipe", "script")
    assert "no optimiser was found in residual" in text


def test_a_script_is_run_whole_where_it_is_asked_for(scripts, command, refused, small):
    Path("mine.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nwidth = Path(__file__).read_text() and 784; print('running')\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(width, 10)\n    def forward(self, x):\n        return self.fc(x.flatten(1))\n"
    )
    assert "line 3 would give width" in refused("inspect", "mine.py:Net")
    code, out, err = command("inspect", "mine.py:Net", "--run-script")
    assert code == 0 and "7,850" in out and "running" not in out and err.count("running") == 1
    result = bw.train("mine.py:Net", data=small, recipe=TINY, out="run", run_script=True)
    assert result.parameters == bw.inspect("run").parameters == 7850
    assert result.net.endswith("mine.py:Net[script=run]")


def test_a_script_is_read_as_on_a_machine_without_a_gpu(monkeypatch):
    Path("mine.py").write_text(
        "import torch\nfrom torch import nn\nuse = torch.cuda.is_available()\n"
        "device = torch.device('cuda' if use else 'cpu')\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(784, 10).to('cuda' if torch.cuda.is_available() else 'cpu')\n"
        "    def forward(self, x):\n        return self.fc(x.to(device).flatten(1))\n"
        "net = Net().cuda().to(device)\n"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("Net", "net"):
        assert bw.inspect(f"mine.py:{name}").parameters == 7850
    assert torch.cuda.is_available()


def test_what_a_script_calls_is_followed_into_its_functions_and_neighbours(scripts):
    with pytest.raises(NetError, match=r"line \d+ would give trained, but .*`train\(get_net\(\)\)` is left out"):
        bw.build_net(f"{scripts}/factory.py:trained")
    with pytest.raises(NetError, match=r"line \d+ would give train_loader, but .*`load_data\('mnist', .*` is left out"):
        bw.build_net(f"{scripts}/two_files/train.py:train_loader")


def test_what_forward_lacks_is_told_when_it_runs():
    Path("mine.py").write_text(
        "from torch import nn\nfrom torchvision import ops\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc = nn.Linear(784, 10)\n"
        "    def forward(self, x):\n        return self.fc(ops.drop_block2d(x, 0.1, 3).flatten(1))\n"
    )
    with pytest.raises(NetError, match=r"line 2: the net uses what `from torchvision import ops` imports"):
        bw.inspect("mine.py:Net")
    with pytest.raises(NetError, match=r"line 2: the net uses what `from torchvision import ops` imports"):
        bw.train("mine.py:Net", data="sample", epochs=1)
    assert not Path("runs").exists()


def test_a_net_that_was_changed_after_it_was_made_is_never_another_without_a_word():
    text = (
        "import torch\nfrom torch import nn\ndata = torch.load('data.pt')\nnet = nn.Sequential(nn.Linear(4, 4))\n"
        "net.classes = data\nnet = torch.load('net.pt')\nfor epoch in range(3):\n    net.epoch = int(data[epoch])\n"
    )
    Path("mine.py").write_text(text)
    assert bw.build_net("mine.py:net")[0].out_features == 4
    Path("mine.py").write_text(text + "net[0] = nn.Linear(4, len(data))\n")
    with pytest.raises(NetError, match=r"line 3 would give data, but .*`torch\.load\('data\.pt'\)` is left out"):
        bw.build_net("mine.py:net")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_script_that_may_not_be_read_is_one_message():
    Path("mine.py").write_text("")
    Path("mine.py").chmod(0)
    with pytest.raises(NetError, match=r"mine\.py cannot be read"):
        bw.build_net("mine.py:Net")

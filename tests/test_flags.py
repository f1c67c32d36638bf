"""Flags: one name for one act over all verbs, hints for those of other tools, examples, defaults, completion."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.folders import two_classes

from branchwork.cli import app
from branchwork.cli.help import EXAMPLES
from branchwork.training.recipes import RECIPES


def verbs(command=app, words=()):
    """Each verb's words, `data pack` too, and its App."""
    for name in command:
        if not name.startswith("-"):
            yield (*words, name), command[name]
            yield from verbs(command[name], (*words, name))


def flags(verb):
    """A verb's flags, with the type and the help of each."""
    return {
        name: argument
        for argument in verb.assemble_argument_collection(parse_docstring=True)
        for name in argument.names
        if name.startswith("--")
    }


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("train residual --lr 0.1", "--lr: did you mean --learning-rate?"),
        ("train residual --bs 64", "--bs: did you mean --batch-size?"),
        ("train residual --batch=64", "--batch: did you mean --batch-size?"),
        ("train residual --epoch 2", "--epoch: did you mean --epochs?"),
        ("train residual --opt sgd", "--opt: did you mean --optimizer?"),
        ("train residual --wd 0.1", "--wd: did you mean --weight-decay?"),
        ("train residual --dataset mnist", "--dataset: did you mean --data?"),
        ("train residual --gpu", "--gpu: did you mean --device cuda?"),
        ("train residual --cuda", "--cuda: did you mean --device cuda?"),
        ("train residual --output there", "--output: did you mean --out?"),
        ("train residual --save there", "--save: did you mean --out?"),
        ("train residual --pretrained", "--pretrained: did you mean --weights?"),
        ("train residual --lerning-rate 1", "--lerning-rate: did you mean --learning-rate?"),
        ("train --net residual", "--net: NET is written without a flag: branchwork train NET"),
        ("evaluate --model runs/first", "--model: RUN is written without a flag: branchwork evaluate RUN"),
        (
            "predict runs/first --images a",
            "--images: PICTURES is written without a flag: branchwork predict RUN PICTURES",
        ),
        ("bench residual --batch-size 3", "--batch-size: did you mean --batch-sizes?"),
        ("inspect residual --plot net.svg", "--plot: did you mean --draw?"),
        ("inspect residual --input-size 3x8x8", "--input-size: did you mean --input?"),
        ("data pack there --output x.pack", "--output: did you mean --out?"),
        ("train residual --qqq", "branchwork train has no flag --qqq: see branchwork train --help"),
    ],
)
def test_a_flag_of_another_tool_is_told_ours(typed, words, refused):
    assert refused(*typed.split()) == words
    assert not Path("runs").exists()


def test_every_verb_has_two_examples_and_all_of_them_parse():
    assert set(EXAMPLES) == {" ".join(words) for words, _ in verbs()}
    for verb, examples in EXAMPLES.items():
        assert len(examples) == 2
        for example in examples:
            name, *words = example.split()
            assert name == "branchwork" and example.startswith(f"branchwork {verb}") and len(example) <= 76
            app.parse_args(words, exit_on_error=False, print_error=False)


def test_help_ends_with_the_examples(command):
    for verb, examples in EXAMPLES.items():
        code, out, _ = command(*verb.split(), "--help")
        assert code == 0 and out.rstrip().endswith("\n".join(f"  {example}" for example in examples)), out[-300:]


def test_examples_that_take_no_time_run_and_drop_nothing_unasked(run, command):
    Path("runs").mkdir()
    Path("runs/first").symlink_to(run.folder)
    shutil.copy(ROOT / "docs/digits/7.jpg", "7.jpg")
    shutil.copytree(ROOT / "docs/digits", "pictures", ignore=shutil.ignore_patterns("*.md"))
    shutil.copy(ROOT / "tests/helpers/lecture.py", "lecture.py")
    two_classes(Path("photos"))
    before = set(os.listdir())
    asked: set[str] = set()
    for verb in ("nets", "inspect", "data", "data pack", "predict", "evaluate"):
        for example in EXAMPLES[verb]:
            words = example.replace("lecture.py:Net", "lecture.py:ResidualNet").split()[1:]
            code, _, err = command(*words)
            assert code == 0, (example, err)
            asked |= {word for word in words if Path(word).suffix in (".json", ".png", ".csv", ".svg", ".pack")}
    assert set(os.listdir()) - before - {"cache"} == asked | {"photos.pack"}


def test_a_flag_is_of_one_type_in_every_verb():
    types: dict[str, set[str]] = {}
    for _, verb in verbs():
        for name, argument in flags(verb).items():
            kind = re.search("Path|int|float|bool|str|Literal", str(argument.hint))
            types.setdefault(name, set()).add(kind[0])
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}


def test_help_shows_the_default_of_every_recipe(command):
    _, out, _ = command("train", "--help")
    told = {
        flag: default
        for flag, default in re.findall(r"(--[\w-]+) (?:(?!--).)*?\[default: (.*?)\]", re.sub(r"[\s│]+", " ", out))
    }
    assert told["--batch-size"] == "256 · course 64 · fast-photos, photos, digits 128 · finetune 32"
    assert told["--accumulate"] == "1"  # where all agree
    default, *others = told["--learning-rate"].split(" · ")
    differing = {name: part.split()[-1] for part in others for name in re.findall("[a-z-]+", part)}
    assert dict.fromkeys(RECIPES, default) | differing == {
        name: f"{make().learning_rate:g}" for name, make in RECIPES.items()
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_each_shell_gets_a_script_that_completes_every_verb(shell, command):
    code, _, err = command("--install-completion", "--shell", shell, "--output", "script")
    script = Path("script").read_text(encoding="utf-8")
    assert code == 0 and all(re.search(rf"\b{words[-1]}\b", script) for words, _ in verbs()), err
    assert "learning-rate" in script
    if os.name == "posix" and shell != "powershell" and shutil.which(shell):
        assert subprocess.run([shell, "-n", "script"]).returncode == 0

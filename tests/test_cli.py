import copy
import dataclasses
import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from conftest import POSIX, WORDS, in_a_process
from helpers.folders import two_classes
from helpers.training import SGD, SMALL
from rich.console import Console
from rich.measure import Measurement

import branchwork as bw
from branchwork import cli, screen, threads
from branchwork.cli import output
from branchwork.cli.output import make_table, show
from branchwork.cli.parameters import STDOUT
from branchwork.errors import BranchworkError

QUICK = ("--data", "sample", "--fraction", 0.1, "--epochs", 1)


def test_help_does_not_import_torch_and_says_each_verb():
    names = (
        "import sys; from branchwork.cli import main; main(['--help']); main(['train', '--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = in_a_process("-c", names, words=(sys.executable,))
    assert done.returncode == 0, "--help imports torch"
    for verb in ("train", "evaluate", "predict", "export", "bench", "data", "demo"):
        assert re.search(rf"^│ {verb} ", done.stdout, re.MULTILINE)
    for flag in ("--learning-rate", "--batch-size", "--label-smoothing", "--resume", "--seeds", "--config"):
        assert flag in done.stdout


def test_the_module_is_the_command():
    script = Path(sys.executable).with_name("branchwork")
    assert in_a_process("--help").stdout == in_a_process("--help", words=(str(script),)).stdout
    assert in_a_process("--version").stdout.strip() == "0.1.0"


def test_a_checkout_trains_without_being_installed(tmp_path):
    hidden = """
import importlib.metadata, runpy, sys
whole = importlib.metadata.Distribution.from_name.__func__
def from_name(cls, name):
    if name.lower() == "branchwork":
        raise importlib.metadata.PackageNotFoundError(name)
    return whole(cls, name)
importlib.metadata.Distribution.from_name = classmethod(from_name)
sys.argv[0] = "branchwork"
runpy.run_module("branchwork", run_name="__main__")
"""
    done = in_a_process("-c", hidden, "train", "residual", *QUICK, "--out", tmp_path / "run", words=(sys.executable,))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["versions"]["branchwork"] == bw.__version__


def test_importing_the_package_imports_nothing_heavy_and_each_name_is_there():
    code = "import sys, branchwork; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'requests')))"
    assert in_a_process("-c", code, words=(sys.executable,)).returncode == 0
    for name in bw.__all__:
        assert getattr(bw, name) is not None
    assert set(bw.__all__) <= set(dir(bw))
    with pytest.raises(AttributeError, match="attribute nothing"):
        bw.nothing  # noqa: B018


def test_predicting_does_not_import_the_compiler_of_torch(run):
    """Which takes a second, and shapes on the device `meta` need it."""
    code = "import sys; from branchwork.cli import main; sys.exit(main(sys.argv[1:]) or 'sympy' in sys.modules)"
    picture = Path(__file__).parent.parent / "docs/digits/7.jpg"
    done = in_a_process("-c", code, "predict", run.folder, picture, words=(sys.executable,))
    assert done.returncode == 0, done.stderr


def test_training_shows_a_table_and_writes_the_same_as_json(command):
    code, out, err = command("train", "residual", *QUICK, "--seed", 2, "--json", "r.json")
    assert code == 0
    result = json.loads(Path("r.json").read_text())
    assert result | {"format": 1} == json.loads(Path("runs/residual-sample-1/result.json").read_text())
    (row,) = [line for line in out.splitlines() if line.strip().startswith("residual")]
    assert row.split()[:4] == ["residual", "41,514", "2,013,184", "1"]
    assert f"{result['test_accuracy']:.2%}" in row and f"–{100 * result['test_interval'][1]:.2f})" in row
    assert "report: runs/residual-sample-1/report.html" in out
    lines = err.splitlines()
    assert lines[0] == "residual on sample, seed 2"
    assert re.fullmatch(r"epoch 1/1  loss \d\.\d{4}  validation \d\d\.\d\d%  [\d,]+ images/s  [\d.]+ s", lines[1])


def test_the_table_fits_a_terminal_of_80_columns(run, monkeypatch, capsys):
    from branchwork.cli import output

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("TERM", "dumb")
    output.show(
        *output.result_parts((dataclasses.replace(run, net="inception", macs=6_019_200, train_seconds=1234.5),))
    )
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "inception" in line]
    assert "6,019,200" in row and f"{run.test_accuracy:.2%} (" in row and row.rstrip().endswith(")")


def test_json_alone_goes_to_the_standard_output(command):
    code, out, _ = command("train", "residual", *QUICK, "--json", "-")
    assert code == 0 and json.loads(out)["net"] == "residual"


def test_recipe_flags_and_files_are_taken_in_order(command):
    Path("r.toml").write_text("epochs = 3\nbatch_size = 128\n")
    code, _, err = command("train", "residual", "--data", "sample", "--config", "r.toml", "--epochs", 1, "--out", "run")
    assert code == 0, err
    recipe = Path("run/recipe.toml").read_text()
    assert "epochs = 1\n" in recipe and "batch_size = 128\n" in recipe and 'optimizer = "adam"' in recipe


def test_several_seeds_show_each_and_the_mean(command):
    code, out, _ = command("train", "residual", *QUICK, "--seeds", 2, "--out", "seeds", "--json", "s.json")
    assert code == 0
    summary = json.loads(Path("s.json").read_text())
    assert f"{summary['mean']:.2%}" in out and f"{100 * summary['deviation']:.2f} points" in out
    assert [line.split()[0] for line in out.splitlines() if re.match(r" [01] ", line)] == ["0", "1"]
    code, again, _ = command("train", "--resume", "seeds")
    assert code == 0 and again == out


def test_evaluate_shows_classes_confusion_and_the_picture(run, command, tmp_path):
    code, out, _ = command("evaluate", run.folder, "--draw", "worst.png", "--json", "e.json")
    assert code == 0 and Path("worst.png").exists()
    evaluation = json.loads(Path("e.json").read_text())
    assert f"{evaluation['accuracy']:.2%} of 1,000 test images" in out and "most confident mistakes: worst.png" in out
    assert len(re.findall(r"^ \d +100 ", out, re.MULTILINE)) == 10
    command("evaluate", run.folder)
    assert Path(run.folder, "mistakes.png").exists()
    Path(run.folder, "mistakes.png").unlink()


def test_data_says_what_is_there_and_draws_it(command):
    code, out, _ = command("data", "sample", "--draw", "d.png", "--json", "d.json")
    assert code == 0 and Path("d.png").stat().st_size > 10_000
    assert re.search(r"^ all +6,000 +1,000", out, re.MULTILINE) and "source:    the package itself" in out
    assert json.loads(Path("d.json").read_text())["counts"]["test"]["9"] == 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "resdual", "--data", "sample"], "there is no net called 'resdual'. Did you mean 'residual'?"),
        (["train"], "name the net to train"),
        (["train", "residual", "--data", "mnits"], "there is no data set called 'mnits'. Did you mean 'mnist'?"),
        (["train", "residual", "--batch-size", "0", "--data", "sample"], "batch_size must be at least 1, got 0"),
        (["train", "residual", "--epochs", "two"], "epochs"),
        (["train", "residual", "--epoch", "2"], "--epochs"),
        (["train", "residual", "--recipe", "fats"], "fast"),
        (["train", "residual", "--config", "none.toml", "--data", "sample"], "cannot read the recipe none.toml"),
        (["train", "residual", "--device", "cuda:9", "--data", "sample"], "device 'cuda:9' is not available here"),
        (
            ["train", "residual", "--seeds", "1", "--data", "sample"],
            "seeds must be from 2 (for a deviation) to 1000, got 1",
        ),
        (["train", "--resume", "gone"], "gone cannot be continued"),
        (["train", "residual", "--resume", "gone", "--seed", "1"], "leave out --seed, NET"),
        (["train", "--resume", "gone", "--learning-rate", "1"], "leave out --learning-rate"),
        (["evaluate", "gone", "--json", "--draw"], "--draw is a flag"),
        (["evaluate", "gone"], "gone holds no trained net"),
        (["predict", "gone", "x.png"], "gone holds no trained net"),
        (["inspect", "."], ". holds no trained net"),
        (["inspect", "residual", "--input", "28x28"], "must be channels, height and width, such as 1x28x28, got 28×28"),
        (["inspect", "--conv", "192x28x28", "--kernel", "5"], "--conv needs --kernel, --out-channels and --through"),
        (["evalaute", "gone"], "evaluate"),
        (["data", "cifar"], "there is no data set called 'cifar'"),
        (["data", "mnist", "--source", "gone"], "there is no such folder"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, words, refused):
    assert words in refused(*arguments)
    assert os.listdir(".") in ([], ["cache"])


def test_an_unknown_recipe_key_in_a_file_is_refused(refused):
    Path("r.toml").write_text("epoch = 3\n")
    assert "r.toml: a recipe has no key 'epoch'. Did you mean 'epochs'?" in refused(
        "train", "residual", "--data", "sample", "--config", "r.toml"
    )


def test_an_output_folder_that_cannot_be_used_is_refused_and_untouched(refused, run):
    before = sorted(path.name for path in Path(run.folder).iterdir())
    assert "holds another run" in refused("train", "residual", *QUICK, "--out", run.folder)
    assert sorted(path.name for path in Path(run.folder).iterdir()) == before
    Path("file").write_text("")
    assert "file is a file, and a folder is needed" in refused("train", "residual", *QUICK, "--out", "file")
    assert "file is a file, and a folder is needed" in refused("train", "residual", *QUICK, "--out", "file/run")


@POSIX
def test_an_unwritable_folder_is_refused(refused):
    if os.geteuid() == 0:
        folder = Path("/proc/branchwork")  # where not even root can make one
    else:
        Path("locked").mkdir(mode=0o500)
        folder = Path("locked/run")
    assert f"cannot write {folder}" in refused("train", "residual", *QUICK, "--out", folder)


def test_a_disk_that_is_full_is_one_message_and_leaves_no_part(refused, limit_files):
    limit_files(50_000)
    message = refused("train", "residual", *QUICK, "--out", "run")
    assert re.match(r"cannot write run/last/state.safetensors \([\d,]+ bytes\)", message)
    assert [path for path in Path("run").rglob("*") if path.is_file()] == []


STOPPED = {
    "select": ("select", "inception", "--data", "sample", "--epochs", 1),
    "pack": ("data", "pack", "pictures", "--out", "a.pack"),
    "export": ("export", "inception", "--to", "pt2", "--out", "a.pt2"),
    "study": ("study", "bottleneck", "--data", "sample", "--preset", "quick", "--workers", 1, "--out", "study"),
}


@pytest.mark.parametrize("name", [name for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)])
@pytest.mark.parametrize("verb", STOPPED)
def test_a_scheduler_and_the_end_of_the_terminal_stop_every_verb_as_ctrl_c_does(verb, name, command, monkeypatch):
    def told(self, *given, **options):
        signal.raise_signal(getattr(signal, name))

    two_classes(Path("pictures"))
    monkeypatch.setattr(screen.Lines, "line", told)
    monkeypatch.setattr(screen.Lines, "count", told)
    code, out, err = command(*STOPPED[verb])
    assert (code, out) == (130, "") and "Traceback" not in err
    assert list(Path().rglob("*.part")) == [] and signal.getsignal(getattr(signal, name)) == signal.SIG_DFL


def test_json_and_csv_are_utf_8_whatever_the_terminal_can_show(monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", "zh")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict"))
    print("before")
    assert cli.main(["data", "sample", "--json", "-"]) == 0
    first, _, rest = sys.stdout.buffer.getvalue().decode("utf-8").partition("\n")
    assert first == "before" and json.loads(rest)["origin"] == "安装包自带"
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setenv("BRANCHWORK_LANG", "en")
    with pytest.raises(BranchworkError, match="standard output is closed"):
        output.write_text("答案,\n", STDOUT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("arguments", ["nets", "--help", "nets --json -"])
def test_a_full_standard_output_is_one_message(arguments):
    done = in_a_process("-c", f"{' '.join(WORDS)} {arguments} > /dev/full", words=("bash",))
    assert done.returncode == 2
    assert done.stderr == "branchwork: cannot write to the standard output: No space left on device\n"


@pytest.mark.parametrize("reason", [OSError(28, "full"), BrokenPipeError(32, "broken"), ValueError("closed")])
@pytest.mark.parametrize("tty", [False, True])
def test_a_standard_error_that_takes_nothing_ends_no_training(reason, tty, monkeypatch, small):
    class Broken(io.StringIO):
        def write(self, text=""):
            raise reason

        flush = write

        def isatty(self):
            return tty

    monkeypatch.setattr(sys, "stderr", Broken())
    recipe = SGD.but({"epochs": 1, "batch_size": 100})
    bw.train(SMALL, data=small, recipe=recipe, out="run", options=bw.Options(report=False), progress=True)
    assert cli.main(["nets", "nonsense"]) == 2


@POSIX
def test_a_reader_that_has_enough_is_no_error():
    done = in_a_process(
        "-c", f"{' '.join(WORDS)} data sample --json - | head -1; exit ${{PIPESTATUS[0]}}", words=("bash",)
    )
    assert done.stdout == "{\n" and "Traceback" not in done.stderr and done.returncode in (0, 141)


@pytest.mark.parametrize(
    ("stat", "turns"),
    [("cpu 1 2\nprocs_running 1\nprocs_blocked 0\n", "10000"), ("procs_running 3\n", "1000"), ("", "1000")],
)
def test_threads_wait_long_only_where_nothing_else_runs(stat, turns, monkeypatch, tmp_path):
    (tmp_path / "stat").write_text(stat)
    monkeypatch.setattr(threads, "RUNNING", tmp_path / "stat")
    assert threads.spin_count() == turns
    (tmp_path / "stat").unlink()
    assert threads.spin_count() == "1000"


def test_importing_the_package_says_how_long_threads_wait(monkeypatch):
    shown = ("-c", "import os, branchwork; print(os.environ['GOMP_SPINCOUNT'])")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert in_a_process(*shown, words=[sys.executable]).stdout == "7\n"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert in_a_process(*shown, words=[sys.executable]).stdout in ("1000\n", "10000\n")


def test_a_terminal_that_is_too_narrow_for_a_table_is_told_what_it_misses(monkeypatch, capsys):
    table = make_table("branch", "lost by mean", "params", "MACs")
    table.add_row("incep1.b5", "0.65", "10,024", "1,382,400")
    for columns, missed in ((80, []), (40, []), (30, ["MACs"]), (22, ["params", "MACs"])):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        show(copy.deepcopy(table))
        out = capsys.readouterr().out
        (head,) = (line for line in out.splitlines() if "branch" in line)
        assert [name for name in ("params", "MACs") if name not in head] == missed, out
        said = "this terminal is too narrow for: " + ", ".join(missed)
        assert (said in " ".join(out.split())) == bool(missed)


@pytest.mark.parametrize("columns", [None, 60, 80])
def test_no_number_of_a_large_table_is_cut(columns, monkeypatch, capsys):
    """A confusion matrix of 60 classes: into a file whole, on a terminal as much as there is room for."""
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
    table = make_table("true class", *map(str, range(60)))
    table.padding = (0, 1, 0, 0)
    for row in range(60):
        table.add_row(f"{row} :cat: [b]", *(f"{1000 + column:,}" for column in range(60)))
    endless = Console(width=1000, emoji=False, markup=False)
    assert output._width(table) == Measurement.get(endless, endless.options, table).maximum
    show(table)
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    rows = [line.split() for line in out.splitlines() if ":cat:" in line]
    shown = len(rows[0]) - 3
    assert len(rows) == 60 and all(row[2] == "[b]" for row in rows)
    assert all(row[3:] == [f"{1000 + column:,}" for column in range(shown)] for row in rows)
    assert shown == 60 if columns is None else 3 < shown < 14 and f"too narrow for: {60 - shown} more columns" in out


@pytest.mark.parametrize("name", ["random", "typing", "copy"])
def test_it_runs_beside_a_file_with_the_name_of_a_module_of_pythons(name):
    Path(f"{name}.py").write_text("raise SystemExit('the wrong file')\n")
    done = in_a_process("nets", "--json", "nets.json")
    assert done.returncode == 0 and Path("nets.json").exists(), done.stderr

import importlib.metadata
import re
import sys
import tomllib
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, in_a_process
from torch import nn

from branchwork.deploy import engines
from branchwork.deploy.engines import FLOORS, find_engine, find_engines, find_package, load, need_engine
from branchwork.errors import EngineError
from branchwork.training import machine


def test_every_engine_is_here_with_its_version_and_precisions(monkeypatch):
    found = {engine.name: engine for engine in find_engines()}
    assert list(found) == ["torch", "torch.compile", "onnxruntime", "openvino"]
    assert found["torch"].version == torch.__version__ and found["torch"].problem is None
    for name in ("onnxruntime", "openvino"):
        installed = importlib.metadata.version(name)
        assert found[name].version.startswith(installed) and found[name].problem is None
    assert found["onnxruntime"].precisions == ("fp32", "int8")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert find_engine("torch").precisions == ("fp32", "bf16")
    assert find_engine("openvino").precisions == ("fp32", "bf16", "int8")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert {engine.precisions for engine in find_engines()} == {("fp32",), ("fp32", "int8")}


def test_the_floors_are_those_of_the_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["deploy"]
    assert dict(entry.split(">=") for entry in extra) == FLOORS
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert FLOORS.keys() <= pins.keys()


@pytest.mark.parametrize("name", FLOORS)
def test_a_package_that_is_missing_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    version, problem = find_package(name)
    assert version is None and problem.startswith(name) and 'pip install "branchwork[deploy]"' in problem


def test_a_package_that_is_too_old_or_broken_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.9.3"))
    with pytest.raises(EngineError, match=r"onnxruntime must be at least 1\.23, got 1\.9\.3"):
        need_engine("onnxruntime", "fp32")
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.100.0"))
    assert find_package("onnxruntime") == ("1.100.0", None)

    def broken(name):
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(engines.importlib, "import_module", broken)
    with pytest.raises(EngineError, match=r"failed to import \(libgomp"):
        need_engine("onnxruntime", "fp32")


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    with pytest.raises(EngineError, match=r"torch.compile needs a C\+\+ compiler"):
        need_engine("torch.compile", "fp32")


def test_precisions_and_names_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(EngineError, match="on a CPU, onnxruntime computes in fp32 only"):
        need_engine("onnxruntime", "bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(EngineError, match="this processor has no bf16 arithmetic: use fp32"):
        need_engine("openvino", "bf16")
    with pytest.raises(EngineError, match="no precision 'fp16'"):
        need_engine("torch", "fp16")
    with pytest.raises(EngineError, match="Did you mean 'openvino'"):
        find_engine("openvion")


@pytest.mark.parametrize(("name", "file"), [("torch", "m.pt2"), ("onnxruntime", "m.onnx"), ("openvino", "m.xml")])
def test_a_file_that_is_none_is_refused_by_name(name, file, tmp_path):
    (tmp_path / file).write_bytes(b"nothing")
    # And not where in its own source an engine stands, with which OpenVINO begins.
    with pytest.raises(EngineError, match=f"{name} cannot load .*{file}: (?!Exception from)"):
        load(name, tmp_path / file, "fp32")


def test_torch_compile_keeps_nets_of_one_class_apart():
    """torch caches what it compiled by the code of a function; past a limit it would run uncompiled, with a warning."""
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(4, width)) for width in (2, 3, 5)]
    images = torch.rand(3, 1, 2, 2)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for net in nets:
            run = load("torch.compile", net, "fp32")
            torch.testing.assert_close(run(images), net(images).detach())


@pytest.fixture(scope="module")
def after_openvino(tmp_path_factory):
    """What a process says and leaves that has exported and timed with ONNX Runtime and OpenVINO."""
    code = """
import gc, os, signal, sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") else None)
import torch
from torch import nn
import branchwork

net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
branchwork.export(net, to="onnx", out=os.path.join(os.environ["HOME"], "net.onnx"))
branchwork.export(net, to="openvino", out=os.path.join(os.environ["HOME"], "net.xml"))
assert "openvino" in sys.modules
branchwork.bench(net, options=branchwork.BenchOptions(batch_sizes=(2,), engines=("openvino",), seconds=0.02))
print(seen)
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        done = in_a_process("-c", code, words=(sys.executable,))
    return done, sorted(path.name for path in home.iterdir())


def test_the_engines_tell_nobody_that_they_were_used(after_openvino):
    """Nor do they keep what identifies a machine, as OpenVINO does in `intel`, and ONNX Runtime in `.cache`."""
    done, left = after_openvino
    assert done.stdout.splitlines()[0] == "[]" and left == ["net.bin", "net.onnx", "net.xml"], done.stderr


def test_ctrl_c_is_no_crash_after_openvino_has_run_and_is_gone(after_openvino):
    done, _ = after_openvino
    assert done.returncode == 0 and done.stdout.splitlines()[1] == "interrupted", done.stderr

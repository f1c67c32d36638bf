"""Steps by torch.compile: equal to those as written, and taken only if asked."""

import pytest
import torch
from helpers.training import EXACT, SMALL, last

import branchwork as bw
from branchwork.errors import RecipeError
from branchwork.training.state import Compilable


def test_batches_of_another_size_are_run_as_they_are(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: lambda images: "compiled")
    step = Compilable(bw.build_net(SMALL), {64})
    full, rest = torch.zeros(64, 1, 28, 28), torch.zeros(6, 1, 28, 28)
    assert step(full) == "compiled" and step(rest).shape == (6, 10)


# torch warns of its own old calls when it loads the compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_steps_give_the_weights_of_those_as_written_in_float64(small, tmp_path):
    """And are compiled only if asked: the two trainings differ in their last bits, or the compiler is not called."""
    compiled = []
    with pytest.MonkeyPatch.context() as patch:
        compiler = torch.compile
        patch.setattr(torch, "compile", lambda net, **options: (compiled.append(net), compiler(net, **options))[1])
        bw.train(SMALL, data=small, recipe=EXACT, out=tmp_path / "written")
        assert not compiled
        bw.train(SMALL, data=small, recipe=EXACT, options=bw.Options(compile=True), out=tmp_path / "compiled")
        assert len(compiled) == 1
    for key, weight in last(tmp_path / "compiled").items():
        torch.testing.assert_close(weight, last(tmp_path / "written")[key], rtol=1e-10, atol=1e-12)


def test_what_was_to_be_compiled_and_cannot_be_is_told(small, monkeypatch):
    def fails(net, dynamic):
        def run(images):
            raise torch._dynamo.exc.Unsupported("no kernel for this")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(RecipeError, match=r"cannot compile steps of .*Small \(no kernel.*\): leave out --compile"):
        bw.train(SMALL, data=small, recipe=EXACT, options=bw.Options(compile=True))

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import branchwork as bw
from branchwork.catalogue.weights import DIALECTS
from branchwork.errors import NetError, RecipeError, WeightsError
from branchwork.observer import Observer
from branchwork.training.state import freeze_body

QUICK = bw.fast().but({"epochs": 1, "batch_size": 20, "validation": 0.0})


def few(classes: int = 10, count: int = 60):
    """A few digits of the first classes."""
    data = bw.load_data("sample")

    def pick(split):
        return split.pick((split.labels < classes).nonzero()[:count, 0])

    names = data.classes[:classes]
    return dataclasses.replace(data, name="few", train=pick(data.train), test=pick(data.test), classes=names)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of a small net with batch norm."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    bw.train("resnet20", data=few(), recipe=QUICK, out=folder)
    return folder


def test_a_frozen_body_stays_bit_for_bit_and_a_new_head_is_trained(begun, tmp_path):
    bw.train(
        "resnet20", data=few(4), recipe=QUICK, options=bw.Options(weights=begun, freeze=True), out=tmp_path / "run"
    )
    before, after = load_file(begun / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    assert after["fc.weight"].shape == (4, 64)
    assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith("fc."))
    torch.manual_seed(0)
    fresh = bw.build_net("resnet20", in_channels=1, num_classes=4, image_size=28)
    assert not torch.equal(after["fc.weight"], fresh.fc.weight)


class Vectors(nn.Sequential):
    """With a batch norm over vectors."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


def test_the_statistics_of_any_batch_norm_are_frozen_with_the_body(tmp_path):
    net = f"{__name__}:Vectors"
    bw.train(net, data=few(), recipe=QUICK, out=tmp_path / "base")
    bw.train(
        net, data=few(), recipe=QUICK, options=bw.Options(weights=tmp_path / "base", freeze=True), out=tmp_path / "run"
    )
    before, after = (load_file(tmp_path / run / "model.safetensors") for run in ("base", "run"))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"4.weight", "4.bias"} and before["2.running_mean"].any()


def test_without_freeze_all_of_it_is_trained_from_there(begun, tmp_path):
    recipe = QUICK.but({"learning_rate": 1e-4})
    bw.train(
        "resnet20",
        data=few(),
        recipe=recipe,
        options=bw.Options(weights=begun / "model.safetensors"),
        out=tmp_path / "run",
    )
    before, after = load_file(begun / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    moved = {key: float((before[key] - after[key]).abs().max()) for key in before if before[key].is_floating_point()}
    # Three steps of Adam at 1e-4 move no weight further than that; fresh weights would lie elsewhere.
    assert all(0 < far < 1e-3 for key, far in moved.items() if "running" not in key)


def test_it_resumes_with_its_weights_gone(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "base")
    whole = tmp_path / "whole"
    recipe = QUICK.but({"epochs": 2})
    bw.train(
        "resnet20", data=few(), recipe=recipe, options=bw.Options(weights=tmp_path / "base", freeze=True), out=whole
    )

    class Stop(Observer):
        def epoch(self, epoch):
            if epoch.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bw.train(
            "resnet20",
            data=few(),
            recipe=recipe,
            options=bw.Options(weights=tmp_path / "base", freeze=True),
            out=tmp_path / "cut",
            progress=Stop(),
        )
    shutil.rmtree(tmp_path / "base")
    bw.resume(tmp_path / "cut", data=few())
    one, other = load_file(whole / "model.safetensors"), load_file(tmp_path / "cut/model.safetensors")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_published_weights_bring_their_normalisation(tmp_path):
    data = few(3)

    def coloured(split):
        return dataclasses.replace(split, images=split.images.expand(-1, 3, -1, -1).contiguous())

    data = dataclasses.replace(
        data, train=coloured(data.train), test=coloured(data.test), mean=(0.1,) * 3, std=(0.3,) * 3
    )
    net = bw.build_net("resnet18[stem=large]", image_size=28)
    rules = next(d for d in DIALECTS if d.normalisation and not d.training_only)
    torch.save({rules.translate(key): tensor for key, tensor in net.state_dict().items()}, tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match="resnet18:stem=large"):  # the small stem has another first convolution
        bw.train(
            "resnet18",
            data=data,
            recipe=QUICK,
            options=bw.Options(weights=tmp_path / "resnet18.pth"),
            out=tmp_path / "run",
        )
    options = bw.Options(weights=tmp_path / "resnet18.pth", freeze=True)
    bw.train("resnet18[stem=large]", data=data, recipe=QUICK, options=options, out=tmp_path / "run")
    model = json.loads((tmp_path / "run/model.json").read_text())
    assert model["mean"] == [0.485, 0.456, 0.406] and model["std"] == [0.229, 0.224, 0.225]
    # What the report shows is what the net was given.
    assert "normalising with mean 0.485, 0.456, 0.406" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize("file", [".", "model.safetensors", "top/epoch-1.safetensors"])
def test_a_run_goes_on_with_its_own_normalisation(begun, tmp_path, file):
    expected = json.loads((begun / "model.json").read_text())
    if file.startswith("top"):  # as `--top` keeps them
        (begun / "top").mkdir()
        shutil.copy(begun / "model.safetensors", begun / file)
    data = dataclasses.replace(few(3), mean=(0.4,), std=(0.6,))
    bw.train(expected["net"], data=data, recipe=QUICK, options=bw.Options(weights=begun / file), out=tmp_path / "run")
    model = json.loads((tmp_path / "run/model.json").read_text())
    assert (model["mean"], model["std"]) == (expected["mean"], expected["std"])
    assert expected["mean"] != [0.4]


def test_the_weights_of_a_damaged_run_are_an_error_and_other_json_beside_them_is_not(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "copy")
    net, model = bw.load_run(folder).net, folder / "model.json"
    for damage in ('{"mean": [0.', '{"mean": [0.1]}', '{"mean": [null], "std": [1.0]}'):
        model.write_text(damage)
        with pytest.raises(WeightsError, match=r"model\.json is damaged"):
            bw.load_weights(net, folder)
    model.write_text('{"model": "another program\'s"}')
    assert bw.load_weights(net, folder / "model.safetensors").normalisation is None
    model.unlink()
    assert bw.load_weights(net, folder).normalisation is None


def test_freeze_needs_weights_and_a_head(begun, tmp_path):
    with pytest.raises(RecipeError, match="give --weights imagenet or FILE"):
        bw.train("residual", data=few(), recipe=QUICK, options=bw.Options(freeze=True), out=tmp_path / "run")
    with pytest.raises(WeightsError, match="do not belong to this net"):
        bw.train("residual", data=few(), recipe=QUICK, options=bw.Options(weights=begun), out=tmp_path / "run")
    with pytest.raises(NetError, match="no linear layer"):
        freeze_body(torch.nn.Conv2d(1, 1, 1))
    assert not (tmp_path / "run").exists()

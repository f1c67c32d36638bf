import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

import branchwork as bw
from branchwork.deploy import export as module
from branchwork.deploy.engines import Runner, compare, find_engine, import_openvino, run_in_batches
from branchwork.errors import DataError, EngineError, ExportError, NetError, RunError, WeightsError
from branchwork.language import enumerated
from branchwork.observer import Observer

ABOUT = ("net", "classes", "input", "input_type", "input_shape", "output", "mean", "std", "precision", "fused")
needs_bf16 = pytest.mark.skipif("bf16" not in find_engine("torch").precisions, reason="this processor has no bf16")


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return shutil.copytree(run.folder, tmp_path / "copy")


def in_float64(folder, images) -> np.ndarray:
    """The run's own net as written, on uint8 images, with nothing of what is tested."""
    trained = bw.load_run(folder)
    pixels = (images.double() / 255 - trained.model.mean[0]) / trained.model.std[0]
    with torch.no_grad():
        return trained.net.double()(pixels).numpy()


def onnx_logits(path, images) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def openvino_logits(path, images) -> np.ndarray:
    core = import_openvino().Core()
    return core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]


def pt2_logits(path, images) -> np.ndarray:
    net = torch.export.load(path).module()
    with torch.no_grad():
        return net(torch.from_numpy(images)).numpy()


FORMS = {
    "onnx": ("model.onnx", onnx_logits), "openvino": ("model.xml", openvino_logits), "pt2": ("model.pt2", pt2_logits),
}  # fmt: skip


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_a_file_gives_the_logits_of_the_net_in_float64_for_any_number_of_images(copy, sample, to, kind):
    exported = bw.export(copy, to=to, options=bw.ExportOptions(pixels=kind, fuse=kind == "uint8"))
    name, logits = FORMS[to]
    assert exported.files[-1] == str(copy / name)
    images = sample.test.images[500:650]
    expected = in_float64(copy, images)
    given = images.numpy() if kind == "uint8" else (images.float() / 255).numpy()
    for size in (1, 3, 150):
        assert np.abs(logits(copy / name, given[:size]) - expected[:size]).max() < 1e-4
    assert exported.images == 1000 and exported.data == "sample" and exported.trained
    assert 0 < exported.difference < 1e-4 == exported.tolerance and exported.differing == 0
    assert exported.bytes == sum(os.path.getsize(file) for file in exported.files) > 4 * 41_514
    assert not list(copy.glob(".*.part"))


@pytest.mark.parametrize("to", FORMS)
def test_a_net_of_which_fusing_leaves_no_parameter(tmp_path, to):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(26), nn.Flatten())
    net.append(nn.Linear(4, 10)).eval()
    assert not [*bw.fuse(net, (1, 28, 28)).parameters()]
    name, logits = FORMS[to]
    exported = bw.export(net, to=to, out=tmp_path / name)
    assert exported.differing == 0 and logits(tmp_path / name, np.zeros((3, 1, 28, 28), np.uint8)).shape == (3, 10)


def onnx_about(path) -> dict[str, str]:
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_sizes_of_one_name_are_equal_in_a_file(tmp_path):
    import onnx

    bw.export("inception", out=tmp_path / "inception.onnx")
    values = onnx.load(tmp_path / "inception.onnx").graph.value_info
    names = {size.dim_param for value in values for size in value.type.tensor_type.shape.dim}
    # Of the transform: 12 columns of 10 channels of each image, and 8 of 20, are one dimension.
    assert {"batch", "120*batch", "160*batch"} <= names


def test_a_fused_file_has_no_operation_that_the_net_has_not(tmp_path):
    """A kernel of one pixel has strides that say two things, and torch's exporter made five operations of one."""
    import onnx

    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)])
    bw.export(net.eval(), out=tmp_path / "net.onnx")
    operations = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert operations == {"Cast", "Conv", "Relu", "ReduceMean", "Reshape", "Gemm"}


def test_onnxruntime_pools_inception_in_blocks_of_channels(tmp_path):
    """What ONNX Runtime itself makes of the file: nothing is brought into plain order before the pooling."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    bw.export("inception", out=tmp_path / "inception.onnx", options=bw.ExportOptions(batch_size=1))
    onnxruntime.InferenceSession(str(tmp_path / "inception.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    if "ReorderOutput" not in nodes:
        pytest.skip("on this processor ONNX Runtime has no blocks")
    assert nodes[:5] == ["Cast", "Conv", "MaxPool", "ReorderOutput", "Slice"] and "Transpose" not in nodes
    assert nodes[-5:] == ["Add", "MaxPool", "Relu", "Reshape", "Gemm"]  # no order but the one in which it is computed


def test_a_file_is_fused_for_as_many_images_as_are_said(tmp_path):
    net, about = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 10)), []
    for batch in (1, 256):
        bw.export(net, out=tmp_path / f"{batch}.onnx", options=bw.ExportOptions(batch_size=batch))
        about.append(onnx_about(tmp_path / f"{batch}.onnx")["fused_for"])
    assert about == ["1 at a time", "256 at a time"]
    bw.export(net, out=tmp_path / "plain.onnx", options=bw.ExportOptions(fuse=False))
    assert onnx_about(tmp_path / "plain.onnx")["fused_for"] == ""
    with pytest.raises(ExportError, match="batch_size must be at least 1, got 0"):
        bw.export(net, out=tmp_path / "none.onnx", options=bw.ExportOptions(batch_size=0))


def openvino_about(path) -> dict[str, str]:
    model = import_openvino().Core().read_model(path)
    return {key: model.get_rt_info(["branchwork", key]).astype(str) for key in ABOUT}


def pt2_about(path) -> dict[str, str]:
    files = {"branchwork": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["branchwork"])


@pytest.mark.parametrize(("to", "read"), [("onnx", onnx_about), ("openvino", openvino_about), ("pt2", pt2_about)])
def test_the_metadata_says_the_classes_and_what_the_input_is(copy, to, read):
    model = json.loads((copy / "model.json").read_text())
    names = ["零", *"123456789"]
    (copy / "model.json").write_text(json.dumps(model | {"classes": names}))
    with pytest.raises(DataError, match="classes of sample differ from those"):
        bw.export(copy, to=to)
    (copy / "model.json").write_text(json.dumps(model))
    exported = bw.export(copy, to=to, options=bw.ExportOptions(pixels="float"))
    about = read(copy / FORMS[to][0])
    assert {key: about[key] for key in ABOUT} == {key: exported.metadata[key] for key in ABOUT}
    assert json.loads(about["classes"]) == list("0123456789") and json.loads(about["input_shape"]) == [1, 28, 28]
    assert about["input_type"] == "float32" and "N×1×28×28" in about["input"] and about["precision"] == "fp32"
    assert (json.loads(about["mean"]), json.loads(about["std"])) == ([0.1307], [0.3081])


def test_an_onnx_file_names_its_input_and_holds_no_path_of_this_machine(copy):
    import onnx

    bw.export(copy)
    model = onnx.load(copy / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for value, name, shape in ((images, "images", ["batch", 1, 28, 28]), (logits, "logits", ["batch", 10])):
        assert value.name == name
        assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == shape
    bw.export(copy, to="pt2")
    for file in ("model.onnx", "model.pt2"):
        assert str(ROOT).encode() not in (copy / file).read_bytes()


@needs_bf16
@pytest.mark.parametrize("to", ["openvino", "pt2"])
def test_bf16_is_compared_with_float32_and_its_bar_is_said(copy, sample, to):
    exported = bw.export(copy, to=to, options=bw.ExportOptions(precision="bf16"))
    largest = np.abs(in_float64(copy, sample.test.images)).max()
    assert exported.largest_logit == pytest.approx(largest, rel=1e-5)
    assert exported.tolerance == pytest.approx(0.03 * largest, rel=1e-5)
    assert 1e-3 < exported.difference < exported.tolerance, "bf16 is coarser than float32"
    assert exported.clearly_differing <= exported.clearly_allowed == 10 and exported.metadata["precision"] == "bf16"


def test_a_net_without_a_run_has_weights_of_seed_0_and_says_so(sample):
    seen = []

    class Notes(Observer):
        def note(self, message):
            seen.append(message)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    exported = bw.export("inception", progress=Notes())
    assert torch.equal(torch.get_rng_state(), before)
    (note,) = seen
    assert "seed 0" in note and "0.1307" in note and not exported.trained and exported.files == ("inception.onnx",)
    torch.manual_seed(0)
    net = bw.build_net("inception").eval()
    with torch.no_grad():
        expected = net((sample.test.images[:64] / 255 - 0.1307) / 0.3081).numpy()
    found = onnx_logits("inception.onnx", sample.test.images[:64].numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_module_is_exported_as_it_is_and_left_so(sample):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    bw.export(net, to="pt2", out="mine.pt2")
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with torch.no_grad():
        expected = net.eval()((sample.test.images[:5] / 255 - 0.1307) / 0.3081).numpy()
    np.testing.assert_allclose(pt2_logits("mine.pt2", sample.test.images[:5].numpy()), expected, atol=1e-5)


def scaled_by_one_hundredth(write):
    """What a wrong export does: the weights that reach the file are not those of the net."""

    def wrong(path, subject, **arguments):
        net = dataclasses.replace(subject, net=bw.load_run("copy").net)
        with torch.no_grad():
            net.net.fc.weight.mul_(1.01)
        write(path, net, **arguments)

    return wrong


@pytest.mark.parametrize(
    ("to", "precision"),
    [("onnx", "fp32"), ("openvino", "fp32"), ("pt2", "fp32"), pytest.param("pt2", "bf16", marks=needs_bf16)],
)
def test_a_file_with_wrong_weights_never_gets_its_name(copy, monkeypatch, to, precision):
    monkeypatch.setattr(module, "write", scaled_by_one_hundredth(module.write))
    before = sorted(os.listdir(copy))
    if precision == "bf16":  # one part in a hundred is within the bar of bf16; a lost bias is not
        monkeypatch.setattr(module, "compare", lambda *_: compare(torch.zeros(1, 2), torch.ones(1, 2), "bf16"))
    with pytest.raises(ExportError, match=r"was not written: .* logits are not those of"):
        bw.export(copy, to=to, options=bw.ExportOptions(precision=precision))
    assert sorted(os.listdir(copy)) == before
    monkeypatch.undo()


def test_a_file_damaged_before_it_is_tried_never_gets_its_name(copy, monkeypatch):
    import onnx

    def damage(path, *arguments, **options):
        write(path, *arguments, **options)
        model = onnx.load(path)
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == "net.fc.bias")
        weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) + 0.001).tobytes()
        onnx.save(model, path)

    write = module.write
    monkeypatch.setattr(module, "write", damage)
    (copy / "model.onnx").write_text("an older file")
    with pytest.raises(ExportError, match=r"differ by up to 0\.001, where at most 0\.0001 is allowed"):
        bw.export(copy, options=bw.ExportOptions(fuse=False, force=True))
    assert (copy / "model.onnx").read_text() == "an older file"


@pytest.mark.parametrize(
    ("side", "sizes"), [(28, [1, 2, 97, 400, 400, 100]), (224, [1, 2, *[6] * 166, 1]), (999, None)]
)
def test_a_file_is_tried_in_batches_of_several_sizes_that_memory_has_room_for(side, sizes):
    seen = []
    images = torch.arange(1000, dtype=torch.float32)[:, None, None, None].expand(-1, 1, side, side)
    runner = Runner(lambda batch: seen.append(len(batch)) or batch, lambda batch: batch[:, 0, 0, :1].numpy())
    found = run_in_batches(runner, images, "uint8")
    assert torch.equal(found[:, 0], images[:, 0, 0, 0])
    assert seen == (sizes or [1, 2, *[3] * 332, 1]) and sum(seen) == 1000


def test_logits_that_are_no_numbers_are_not_good():
    good = torch.eye(3)
    assert compare(good, good, "fp32").good
    for bad in (float("nan"), float("inf")):
        for precision in ("fp32", "bf16"):
            wrong = good.clone()
            wrong[1, 1] = bad
            assert not compare(wrong, good, precision).good


def test_classes_that_nearly_tie_may_fall_either_way_in_bf16_and_others_may_not():
    expected = torch.zeros(1000, 2)
    expected[:, 0] = 1.0
    near = expected.clone()
    near[:100] = torch.tensor([1.0, 0.99])
    flipped = near.clone()
    flipped[:100] = torch.tensor([0.99, 1.0])
    found = compare(flipped, near, "bf16")
    assert (found.differing, found.clearly) == (100, 0) and found.good
    far = expected.clone()
    far[:100] = torch.tensor([1.0, 0.96])
    flipped[:100] = torch.tensor([0.975, 0.985])
    found = compare(flipped, far, "bf16")
    assert found.difference < found.tolerance and found.clearly == 100 and not found.good


def test_the_bar_of_float32_is_absolute_but_for_large_logits():
    assert compare(torch.ones(2, 3), torch.ones(2, 3), "fp32").tolerance == 1e-4
    assert compare(torch.ones(2, 3), torch.full((2, 3), 1000.0), "fp32").tolerance == pytest.approx(3e-3)


def test_a_file_in_the_way_is_left_unless_forced(run, command, refused):
    code, out, _ = command("export", run.folder, "--to", "openvino", "--out", "a.xml", "--json", "e.json")
    figures = json.loads(Path("e.json").read_text())
    assert code == 0 and out.split()[:2] == ["a.bin", "a.xml"] == figures["files"]
    assert 'compile it with {"INFERENCE_PRECISION_HINT": "f32"}' in out
    assert f"{figures['bytes']:,} bytes for openvino" in out and "1,000 test images of sample" in out
    for there in ("a.xml", "a.bin"):
        before = Path(there).read_bytes()
        message = refused("export", run.folder, "--to", "openvino", "--out", "a.xml")
        assert there in message and "--force" in message and Path(there).read_bytes() == before
    Path("a.xml").unlink()
    assert "a.bin already exists" in refused("export", run.folder, "--to", "openvino", "--out", "a.xml")
    Path("a.bin").write_text("old")
    code, _, _ = command("export", run.folder, "--to", "openvino", "--out", "a.xml", "--force")
    assert code == 0 and sorted(os.listdir()) == ["a.bin", "a.xml", "e.json"] and Path("a.bin").stat().st_size > 1000


def test_a_link_is_followed(run):
    Path("real").mkdir()
    Path("link.pt2").symlink_to("real/file.pt2")
    bw.export(run.folder, to="pt2", out="link.pt2", options=bw.ExportOptions(force=True))
    assert Path("link.pt2").is_symlink() and Path("real/file.pt2").stat().st_size > 1000


def test_places_that_cannot_be_the_file(run, refused):
    Path("file").write_text("")
    Path("folder.onnx").mkdir()
    assert "must end in .onnx, such as a.onnx" in refused("export", run.folder, "--out", "a.txt")
    assert "must end in .xml" in refused("export", run.folder, "--to", "openvino", "--out", "a.bin")
    assert "folder.onnx cannot be written" in refused("export", run.folder, "--out", "folder.onnx")
    assert "file is a file, and a folder is needed" in refused("export", run.folder, "--out", "file/a.onnx")
    if os.name == "posix":
        where = "/proc/a.onnx" if os.geteuid() == 0 else "/a.onnx"  # where not even root can write
        assert f"cannot write {where}" in refused("export", run.folder, "--out", where)
    assert sorted(os.listdir()) == ["file", "folder.onnx"]


def test_options_that_are_not_there(run, refused):
    with pytest.raises(ExportError, match=r"no format called 'onx'\. Did you mean 'onnx'"):
        bw.export(run.folder, to="onx")
    with pytest.raises(ExportError, match="pixels cannot be 'int8'"):
        bw.export(run.folder, options=bw.ExportOptions(pixels="int8"))
    assert "onnx" in refused("export", run.folder, "--to", "onx")
    assert "onnxruntime cannot compute in bf16 here" in refused("export", run.folder, "--precision", "bf16")
    assert os.listdir() == []


def test_an_engine_or_exporter_that_is_missing_is_named_before_anything_is_done(run, refused, monkeypatch):
    for name, to in (("onnxruntime", "onnx"), ("openvino", "openvino"), ("onnxscript", "onnx")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            message = refused("export", run.folder, "--to", to, "--out", f"a.{'xml' if to == 'openvino' else to}")
            assert message == f'{name} is not installed: pip install "branchwork[deploy]"'
    assert os.listdir() == []


def test_damaged_runs_are_refused(copy):
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="is damaged"):
        bw.export(copy)
    (copy / "model.json").write_text("{}")
    with pytest.raises(RunError, match=r"model\.json is damaged"):
        bw.export(copy)
    (copy / "model.json").unlink()
    with pytest.raises(RunError, match="holds no trained net"):
        bw.export(copy)
    with pytest.raises(NetError, match="there is no net called 'gone'"):
        bw.export("gone")


class AsksThePixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.fc(x if x.sum().item() > 0 else -x)


class TwoAtATime(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        rows = x.flatten(1)
        return self.fc(rows) if x.shape[0] == 2 else self.fc(rows * 2)


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 4)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_nets_that_no_file_can_hold_are_refused(refused):
    with pytest.raises(NetError, match="has data-dependent control flow"):
        bw.export(AsksThePixels())
    with pytest.raises(NetError, match="returns 4 numbers per image, but 10 are needed"):
        bw.export(Narrow())
    for to in ("onnx", "pt2"):
        with pytest.raises(ExportError, match="TwoAtATime has no single graph for any number of images"):
            bw.export(TwoAtATime(), to=to, options=bw.ExportOptions(fuse=False))
    with pytest.raises(NetError, match="TwoAtATime does not run the same operations on every batch of images"):
        bw.export(TwoAtATime())
    assert "has data-dependent control flow" in refused("export", f"{__file__}:AsksThePixels")
    assert os.listdir() == []


def test_weights_that_are_no_numbers_are_refused(copy):
    import safetensors.torch

    weights = safetensors.torch.load_file(copy / "model.safetensors")
    weights["fc.bias"][:] = float("nan")
    safetensors.torch.save_file(weights, copy / "model.safetensors")
    with pytest.raises(WeightsError, match="infinite or NaN logits"):
        bw.export(copy)
    assert not (copy / "model.onnx").exists()


def test_a_disk_that_is_full_is_one_message_and_leaves_nothing(copy, refused, limit_files):
    before = sorted(os.listdir(copy))
    limit_files(50_000)
    assert refused("export", copy).startswith("cannot write")
    assert sorted(os.listdir(copy)) == before


def test_a_file_that_openvino_cannot_write_is_one_message_and_leaves_nothing(copy, monkeypatch):
    def full(model, path, **options):
        Path(path).write_text("half a model")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(import_openvino(), "save_model", full)
    before = sorted(os.listdir(copy))
    with pytest.raises(ExportError, match=r"cannot write .*model\.xml: No space left"):
        bw.export(copy, to="openvino")
    assert sorted(os.listdir(copy)) == before


def test_the_data_can_be_named(copy):
    with pytest.raises(EngineError):
        bw.export(copy, options=bw.ExportOptions(precision="bf16"))
    with pytest.raises(DataError, match="there is no data set called 'digits'"):
        bw.export(copy, data="digits")
    assert bw.export(copy, to="pt2", data="sample").data == "sample"


def test_a_net_for_larger_pictures_is_tried_on_the_sample_in_its_size(command):
    code, out, err = command("export", "resnet8", "--to", "pt2", "--out", "a.pt2", "--json", "e.json")
    exported = json.loads(Path("e.json").read_text())
    assert code == 0 and exported["input_shape"] == [3, 32, 32] and not exported["trained"]
    assert "10 classes: 0, 1, 2, 3" in out and "seed 0, untrained" in err and "mean 0.5, 0.5, 0.5" in err
    assert exported["images"] == 1000 and exported["data"] == "sample" and 0 < exported["difference"] < 1e-4
    assert enumerated(list(map(str, range(1000)))) == "0, 1, 2 … 999"


def test_a_net_of_no_run_has_the_images_and_the_classes_of_the_data_that_is_named(tmp_path):
    for label, name in enumerate(("猫", "dog", "bird")):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(10 * label + number).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    exported = bw.export(net, out="pets.onnx", data=str(tmp_path / "pets"))
    assert sorted(exported.classes) == ["bird", "dog", "猫"] and exported.data == "pets" and exported.images == 6
    assert exported.input_shape == (3, 20, 20) and not exported.trained

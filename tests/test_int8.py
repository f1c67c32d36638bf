"""`export --precision int8`: what the file holds, what it was calibrated on, and when it is refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_a_process
from helpers import folders
from PIL import Image
from torch import nn

import branchwork as bw
from branchwork.datasets.batches import train_and_validation
from branchwork.deploy import quantise as module
from branchwork.deploy.engines import import_openvino
from branchwork.errors import EngineError, ExportError, RunError
from branchwork.tensors import read_tensors, write_tensors
from branchwork.training.splits import splits_of

INT8 = bw.ExportOptions(precision="int8")


@pytest.fixture(scope="module")
def nncf():
    return pytest.importorskip("nncf", reason='pip install "branchwork[deploy]" brings nncf')


def by_onnxruntime(path, images) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images.numpy()})[0]


def right(logits, labels) -> float:
    return float((logits.argmax(1) == labels.numpy()).mean())


@pytest.fixture(scope="module")
def quantised(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "net.onnx"
    return bw.export(run.folder, out=path, options=INT8), path


def test_the_weights_of_an_onnx_file_are_int8_and_those_of_the_net(run, quantised, tmp_path):
    import onnx
    from onnx import numpy_helper

    exported, path = quantised
    bw.export(run.folder, out=tmp_path / "float.onnx")
    model, whole = onnx.load(path), onnx.load(tmp_path / "float.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    kernels = {name: kernel for name, kernel in floats.items() if kernel.ndim > 1}
    assert len(kernels) == 7 and sum(kernel.size for kernel in kernels.values()) > 40_000
    for name, kernel in kernels.items():
        found = arrays[f"{name}_quantized"]
        scale = arrays[f"{name}_scale"].reshape(-1, *[1] * (kernel.ndim - 1))
        assert found.dtype == np.int8 and np.abs(found).max() <= 64 and len(scale) == len(kernel)
        assert (np.abs(found * scale - kernel) <= 0.51 * scale).all()
    assert all(array.size < 200 for array in arrays.values() if array.dtype == np.float32)
    # The file is the smaller one, and both sizes are said.
    assert exported.bytes == path.stat().st_size < 0.4 * (tmp_path / "float.onnx").stat().st_size
    assert exported.int8.float_bytes == pytest.approx((tmp_path / "float.onnx").stat().st_size, rel=0.01)


def test_input_and_output_are_those_of_the_float_file(quantised):
    import onnx

    _, path = quantised
    graph = onnx.load(path).graph
    (images,), (logits,) = graph.input, graph.output
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for value, name, shape in ((images, "images", ["batch", 1, 28, 28]), (logits, "logits", ["batch", 10])):
        assert value.name == name
        assert [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] == shape


def test_the_accuracies_are_those_that_onnxruntime_and_torch_have_by_themselves(run, quantised, sample):
    import onnx

    exported, path = quantised
    trained, about = bw.load_run(run.folder), exported.int8
    _, held_out = train_and_validation(sample, trained.model.recipe.validation, run.seed)

    def as_written(images):
        with torch.no_grad():
            return trained.net.double()((images.double() / 255 - 0.1307) / 0.3081).numpy()

    assert (about.calibration_split, about.calibration_images) == ("validation", 300)
    assert (about.split, about.images, about.drop) == ("validation", len(held_out), 0.01)
    assert about.before == pytest.approx(right(as_written(held_out.images), held_out.labels))
    assert about.after == pytest.approx(right(by_onnxruntime(path, held_out.images), held_out.labels))
    assert about.before - about.after <= 0.01
    test, logits = sample.test, by_onnxruntime(path, sample.test.images)
    expected = as_written(test.images)
    before, after = right(expected, test.labels), right(logits, test.labels)
    assert exported.test_accuracies == pytest.approx((before, after)) and before - after <= 0.01
    assert exported.difference == pytest.approx(np.abs(logits - expected).max(), rel=1e-3)
    assert exported.differing == (logits.argmax(1) != expected.argmax(1)).sum() and exported.tolerance is None
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert stored == exported.metadata and stored["precision"] == "int8"
    assert stored["calibrated_on"] == "300 validation images" and json.loads(stored["classes"]) == list("0123456789")
    assert json.loads(stored["accuracy"]) == {
        "split": "validation", "images": about.images, "float32": about.before, "int8": about.after,
    }  # fmt: skip


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("pixels", ["uint8", "float"])
def test_an_openvino_file_in_int8_is_openvino_s_own(run, sample, nncf, fuse, pixels, capfd):
    options = bw.ExportOptions(precision="int8", fuse=fuse, pixels=pixels, calibration_images=50)
    exported = bw.export(run.folder, to="openvino", out="net.xml", options=options)
    assert capfd.readouterr().out == ""
    core = import_openvino().Core()
    model = core.read_model("net.xml")
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    sizes = dict.fromkeys(("i8", "f32", "i64", "i32"), 0)
    for node in constants:
        sizes[node.get_element_type().get_type_name()] += int(np.prod(node.get_output_shape(0)))
    assert sizes["i8"] > 40_000 > 10_000 > sizes["f32"]
    test = sample.test
    given = test.images if pixels == "uint8" else test.images.float() / 255
    logits = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given.numpy())[0]
    before, after = exported.test_accuracies
    assert right(logits, test.labels) == pytest.approx(after) and before - after <= 0.01
    assert exported.bytes < exported.int8.float_bytes and exported.int8.calibration_images == 50
    assert model.get_rt_info(["branchwork", "precision"]).astype(str) == "int8"
    assert json.loads(model.get_rt_info(["branchwork", "accuracy"]).astype(str))["int8"] == exported.int8.after
    assert sorted(os.listdir()) == ["net.bin", "net.xml"]


def test_the_same_command_writes_the_same_bytes_in_openvino(run, nncf):
    for name in ("a.xml", "b.xml"):  # in processes of their own: OpenVINO counts its operations
        flags = ("--precision", "int8", "--calibration-images", 20, "--out", name)
        assert in_a_process("export", run.folder, "--to", "openvino", *flags).returncode == 0
    for suffix in ("xml", "bin"):
        assert Path(f"a.{suffix}").read_bytes() == Path(f"b.{suffix}").read_bytes()


def test_the_calibration_images_are_held_out_ones_and_the_same_each_time_as_are_the_files(run, sample, monkeypatch):
    def noted(path, **given):
        seen.append(given["images"])
        return quantise(path, **given)

    seen, quantise = [], module.quantise
    monkeypatch.setattr(module, "quantise", noted)
    for name in ("a.onnx", "b.onnx"):
        bw.export(run.folder, out=name, options=bw.ExportOptions(precision="int8", calibration_images=40))
    assert torch.equal(*seen) and len(seen[0]) == 40
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    _, held_out = train_and_validation(sample, bw.load_run(run.folder).model.recipe.validation, run.seed)
    kept = {image.numpy().tobytes() for image in held_out.images}
    assert {image.numpy().tobytes() for image in seen[0]} <= kept


def pictures(root: Path, *, extreme: tuple[str, ...] = ()) -> Path:
    """Dark and light pictures of 20×20, in train, val and test; those of the splits `extreme` are black and white."""
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for label, level in (("dark", 60), ("light", 140)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                random = np.random.default_rng([count, level, number, len(split)])
                pixels = (
                    random.integers(0, 2, (20, 20, 3)) * 255
                    if split in extreme
                    else random.integers(50, size=(20, 20, 3)) + level
                )
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run on a folder of colour pictures that has validation images of its own."""
    place = tmp_path_factory.mktemp("photos")
    data = str(pictures(place / "plain/photos"))
    return folders.train(data=data, out=place / "run", **{**folders.SHORT, "validation": 0.2, "epochs": 3})


def test_what_is_calibrated_depends_on_validation_images_and_on_no_others(photos, tmp_path):
    """Test and training pictures that go to extremes leave the file as it was; validation pictures do not."""
    contents = []
    for name, extreme in (("plain", ()), ("others", ("train", "test")), ("own", ("val",))):
        folder = pictures(tmp_path / name / "photos", extreme=extreme)
        options = bw.ExportOptions(precision="int8", drop=0.99)
        exported = bw.export(photos.folder, data=str(folder), out=f"{name}.onnx", options=options)
        assert exported.int8.calibration_images == 16 == exported.int8.images
        contents.append(Path(exported.files[0]).read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_a_run_that_held_out_nothing_is_calibrated_on_training_images_and_says_so(tmp_path, command):
    data = folders.two_classes(tmp_path / "few")
    run = folders.train(data=str(data), out=tmp_path / "run", **folders.SHORT)
    code, out, err = command("export", run.folder, "--precision", "int8", "--drop", "50%", "--json", "e.json")
    assert code == 0, err
    about = json.loads(Path("e.json").read_text())["int8"]
    assert (about["calibration_split"], about["split"]) == ("train", "test") and about["drop"] == 0.5
    assert about["calibration_images"] == run.train_images and "calibrated on 16 train images" in out
    assert "accuracy on 4 test images" in out and "(a loss of up to 50.00% is allowed)" in out


def test_the_images_of_a_fold_calibrate_nothing(tmp_path):
    data = bw.load_data(str(folders.two_classes(tmp_path / "folds")))
    short = {**folders.SHORT, "batch_size": 4, "validation": 0.5, "options": bw.Options(threads=1, execute="written")}
    result = bw.train_folds("residual", folds=2, data=data, out=tmp_path / "run", **short)
    every, tested = {image.numpy().tobytes() for image in data.train.images}, []
    for one in result.results:
        train, validation = splits_of(bw.load_run(one.folder), data)
        used = {image.numpy().tobytes() for split in (train, validation) for image in split.images}
        assert (len(train), len(validation), len(used)) == (one.train_images, 4, 8)
        tested.append(every - used)
    assert not tested[0] & tested[1] and tested[0] | tested[1] == every


@pytest.fixture
def losing(run, tmp_path) -> Path:
    """The run with an equal net: from its second convolution on, one of 32 channels is 10,000 times as large."""
    copy = shutil.copytree(run.folder, tmp_path / "losing")
    tensors, _ = read_tensors(copy / "model.safetensors")
    for writer in ("conv2", "rblock2.residual.conv2"):
        tensors[f"{writer}.weight"][0] *= 1e4
        tensors[f"{writer}.bias"][0] *= 1e4
    tensors["rblock2.residual.conv1.weight"][:, 0] /= 1e4
    tensors["fc.weight"][:, :16] /= 1e4
    write_tensors(copy / "model.safetensors", tensors)
    assert bw.evaluate(copy).accuracy == pytest.approx(bw.evaluate(run.folder).accuracy, abs=0.002)
    return copy


def test_nothing_is_written_where_too_much_is_lost_unless_that_is_allowed(losing, command, refused):
    before = sorted(os.listdir(losing))
    message = refused("export", losing, "--precision", "int8")
    assert "model.onnx was not written: int8 loses" in message and "more than the 1.00% allowed" in message
    assert "--drop" in message and sorted(os.listdir(losing)) == before
    code, out, _ = command(
        "export", losing, "--precision", "int8", "--drop", "99.9%", "--out", "a.onnx", "--json", "e.json"
    )
    about = json.loads(Path("e.json").read_text())
    assert code == 0 and about["int8"]["before"] - about["int8"]["after"] > 0.01
    stored = json.loads(about["metadata"]["accuracy"])
    assert (stored["float32"], stored["int8"]) == (about["int8"]["before"], about["int8"]["after"])
    assert f"{about['int8']['after']:.2%} in int8" in out and about["differing"] > 10


def test_a_loss_of_just_what_is_allowed_is_allowed(run, monkeypatch):
    """Six of 600 images are 1%, though 594/600 − 588/600 is a little more than 0.01 in floats."""

    def six_fewer(logits, labels):
        monkeypatch.setattr(module, "accuracy", lambda *_: 588 / 600)
        return 594 / 600

    monkeypatch.setattr(module, "accuracy", six_fewer)
    assert 594 / 600 - 588 / 600 > 0.01
    assert bw.export(run.folder, out="a.onnx", options=INT8).int8.after == 0.98
    monkeypatch.setattr(
        module, "accuracy", lambda *_: monkeypatch.setattr(module, "accuracy", lambda *_: 587 / 600) or 0.99
    )
    with pytest.raises(ExportError, match=r"int8 loses 1\.17% of accuracy on 600 validation images"):
        bw.export(run.folder, out="b.onnx", options=INT8)
    assert os.listdir() == ["a.onnx"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError("no such operation")])
def test_whatever_stops_the_quantiser_leaves_the_older_file(run, monkeypatch, fault):
    def stopped(path, images):
        assert path.is_file()
        raise fault

    monkeypatch.setitem(module._QUANTISERS, "onnxruntime", stopped)
    Path("net.onnx").write_text("an older file")
    with pytest.raises((KeyboardInterrupt, ExportError)) as caught:
        bw.export(run.folder, out="net.onnx", options=bw.ExportOptions(precision="int8", force=True))
    if fault is not KeyboardInterrupt:
        assert "onnxruntime cannot convert the net to int8: no such operation. With --no-fuse" in str(caught.value)
    assert os.listdir() == ["net.onnx"] and Path("net.onnx").read_text() == "an older file"


def test_what_int8_is_not_for(run, refused, command, tmp_path, monkeypatch):
    int8 = ("--precision", "int8")
    both = "torch has no int8 here: onnxruntime (--to onnx) and openvino (--to openvino) have"
    assert both in refused("export", run.folder, "--to", "pt2", *int8)
    assert "a page has no --no-fuse, --precision" in refused("export", run.folder, "--to", "html", *int8)
    assert "int8 needs a run" in refused("export", "residual", *int8)
    with pytest.raises(ExportError, match="int8 needs a run"):
        bw.export(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), out="a.onnx", options=INT8)
    for flags in (("--drop", "1%"), ("--calibration-images", 5)):
        assert "are for int8: add --precision int8" in refused("export", run.folder, *flags)
    assert "calibration_images must be at least 1, got 0" in refused(
        "export", run.folder, *int8, "--calibration-images", 0
    )
    assert "below 100%, got 100" in refused("export", run.folder, *int8, "--drop", "100%")
    for text in ("1", "x%", "-1%"):
        assert "--drop must be a percentage of accuracy" in refused("export", run.folder, *int8, f"--drop={text}")
    with pytest.raises(ExportError, match="--drop must be at least 0%"):
        bw.ExportOptions(precision="int8", drop=-0.01)
    with pytest.raises(EngineError, match="no precision 'int4'"):
        bw.export(run.folder, options=bw.ExportOptions(precision="int4"))
    begun = shutil.copytree(run.folder, tmp_path / "begun")
    (begun / "result.json").unlink()
    with pytest.raises(RunError, match="is not finished: continue it with branchwork train --resume"):
        bw.export(begun, out="a.onnx", options=INT8)
    monkeypatch.setitem(sys.modules, "nncf", None)
    message = refused("export", run.folder, "--to", "openvino", *int8, "--out", "a.xml")
    assert message == 'nncf is not installed: pip install "branchwork[deploy]"'
    assert os.listdir() == ["begun"]


def test_bench_times_int8_beside_float_where_it_is_asked_for():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(784, 10)

        def forward(self, x):
            return self.fc(x.flatten(1))

    options = {"engines": ("onnxruntime", "torch"), "batch_sizes": (2,), "seconds": 0.01}
    result = bw.bench(Small(), options=bw.BenchOptions(precisions=("fp32", "int8"), **options))
    rows = {(row.engine, row.precision, row.fused): row for row in result.rows}
    assert {key[:2] for key in rows} == {("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")}
    for fused in (False, True):
        whole, small = rows["onnxruntime", "fp32", fused], rows["onnxruntime", "int8", fused]
        assert small.bytes < 0.35 * whole.bytes and small.share is None and whole.share > 0
        assert 1e-4 < small.difference < 0.2 and rows["torch", "fp32", fused].bytes is None
    assert {row.precision for row in bw.bench(Small(), options=bw.BenchOptions(**options)).rows} <= {"fp32", "bf16"}
    with pytest.raises(EngineError, match="torch has no int8 here"):
        bw.bench(Small(), options=bw.BenchOptions(engines=("torch",), precisions=("int8",)))

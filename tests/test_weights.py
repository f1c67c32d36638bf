import re

import pytest
import torch
from helpers.lecture import InceptionNet, ResidualNet
from helpers.torchvision_files import TORCHVISION, filled, logits_image, torchvisions
from safetensors.torch import save_file
from torch import Tensor

from branchwork import NETS, lecture_state_dict, load_weights
from branchwork.catalogue.weights import Loaded
from branchwork.errors import WeightsError
from branchwork.tensors import write_tensors

LECTURE = {"inception": InceptionNet, "residual": ResidualNet}
nets = pytest.mark.parametrize("name", LECTURE)


def same(a, b) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@nets
def test_the_lectures_state_dict_goes_in_and_out_without_loss(name):
    theirs, ours = LECTURE[name](), NETS[name]()
    load_weights(ours, theirs.state_dict())
    written = lecture_state_dict(ours)
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in theirs.state_dict().items())
    again = LECTURE[name]()
    again.load_state_dict(written, strict=True)


@nets
@pytest.mark.parametrize("names", ["ours", "the lecture's"])
@pytest.mark.parametrize("file", ["w.pth", "w.pt", "w.safetensors"])
def test_files_of_each_kind_load(name, names, file, tmp_path):
    source, target = NETS[name](), NETS[name]()
    weights = source.state_dict() if names == "ours" else lecture_state_dict(source)
    if file.endswith("safetensors"):
        save_file(dict(weights), tmp_path / file)
    else:
        torch.save(weights, tmp_path / file)
    load_weights(target, tmp_path / file)
    assert same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("names", ["ours", "the lecture's"])
def test_missing_surplus_and_misshapen_keys_are_each_named_and_nothing_is_loaded(names):
    net = NETS["inception"]()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    weights = dict(net.state_dict() if names == "ours" else lecture_state_dict(net))
    weights = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    gone = "incep1.b5.conv2.weight" if names == "ours" else "incep1.branch5x5_2.weight"
    del weights[gone]
    weights["extra.bias"] = torch.zeros(3)
    weights["fc.weight"] = torch.zeros(10, 1400)
    with pytest.raises(WeightsError) as caught:
        load_weights(net, weights)
    text = str(caught.value)
    assert f"missing   {gone}" in text and "surplus   extra.bias" in text
    assert "fc.weight: got (10, 1400), needed (10, 1408)" in text
    assert same(before, net.state_dict())


def test_weights_of_the_other_net_are_refused():
    with pytest.raises(WeightsError, match=r"missing   incep1\.b1\.weight"):
        load_weights(NETS["inception"](), ResidualNet().state_dict())


def test_no_pickle_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_weights(NETS["residual"](), tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_missing_damaged_or_no_weights_are_refused(tmp_path):
    net = NETS["residual"]()
    with pytest.raises(WeightsError, match="there are no weights"):
        load_weights(net, tmp_path / "none.pth")
    torch.save(net.state_dict(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(net, tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(net, tmp_path / "cut.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        load_weights(net, tmp_path / "list.pth")


@pytest.mark.parametrize("name", TORCHVISION)
def test_published_weights_give_the_logits_that_torchvision_gives(name):
    net = torchvisions(name)
    loaded = load_weights(net, filled(name))
    image = logits_image()
    if name == "googlenet":  # what torchvision hides in its forward: from ImageNet's normalisation to the weights' own
        assert loaded.normalisation == ((0.5,) * 3, (0.5,) * 3)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)[..., None, None]
        image = (image * std + mean - 0.5) / 0.5
        assert len(loaded.dropped) == 20 and all(key.startswith(("aux1.", "aux2.")) for key in loaded.dropped)
    else:
        assert loaded.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) and not loaded.dropped
    assert len(loaded.kept) == len(net.state_dict()) and not loaded.new
    expected = torch.tensor(TORCHVISION[name]["logits"], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(image)[0, :8], expected, rtol=1e-9, atol=0)


def test_the_older_names_of_published_densenets_load_as_torchvision_renames_them():
    weights = filled("densenet121")
    older = {
        # What torchvision looks for in `densenet._load_state_dict`, the other way round.
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])(?=\.)", r"\1.\2", key): tensor
        for key, tensor in weights.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older and "features.norm0.weight" in older
    first, second = torchvisions("densenet121"), torchvisions("densenet121", classes=3)
    load_weights(first, weights)
    loaded = load_weights(second, older, new_head=True)
    assert loaded.dropped == ("classifier.weight", "classifier.bias") and loaded.normalisation[0][0] == 0.485
    kept = {key: tensor for key, tensor in second.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(tensor, first.state_dict()[key]) for key, tensor in kept.items())


def test_another_number_of_classes_keeps_the_body_and_makes_a_new_head(tmp_path):
    net, weights = torchvisions("resnet18", classes=7), filled("resnet18")
    torch.save(weights, tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match=r"fc.weight: got \(1000, 512\), needed \(7, 512\)"):
        load_weights(net, tmp_path / "resnet18.pth")
    before = net.fc.weight.clone()
    loaded = load_weights(net, tmp_path / "resnet18.pth", new_head=True)
    assert loaded.new == loaded.dropped == ("fc.weight", "fc.bias") and len(loaded.kept) == 120
    assert torch.equal(net.fc.weight, before) and torch.equal(net.conv1.conv.weight, weights["conv1.weight"])
    assert "120 tensors kept; new: fc.weight, fc.bias; dropped: fc.weight, fc.bias" in str(loaded)
    # Files from before torch counted batches have no counts.
    old = {key: tensor for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
    assert len(load_weights(torchvisions("resnet18"), old).kept) == 102
    # A head is new, and nothing else is.
    with pytest.raises(WeightsError, match=r"shape     conv1.weight: got \(64, 3, 7, 7\), needed \(64, 1, 7, 7\)"):
        load_weights(NETS["resnet18"](in_channels=1, num_classes=7, stem="large"), weights, new_head=True)


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(WeightsError, match="do not belong to this net") as refused:
        load_weights(torchvisions("resnet50", classes=7), filled("resnet18"), new_head=True)
    assert "missing   layer1.0.conv3.weight" in str(refused.value)
    with pytest.raises(WeightsError, match=r"surplus   layer1.0.conv1.weight\n(.*\n)*  surplus   and \d+ more"):
        load_weights(torchvisions("googlenet"), filled("resnet18"), new_head=True)


def test_many_tensors_are_told_by_the_modules_that_hold_them():
    dropped = [*(f"aux{n}.{part}" for n in (1, 2) for part in ("conv.weight", "fc.weight", "fc.bias")), "fc.weight"]
    loaded = Loaded("x.pth", ("a",), ("fc.weight",), tuple(dropped), None)
    assert str(loaded) == "x.pth: 1 tensors kept; new: fc.weight; dropped: 3 of aux1, 3 of aux2, 1 of fc"


def test_only_files_with_a_checksum_are_called_checked(tmp_path):
    net = NETS["residual"]()
    write_tensors(tmp_path / "ours.safetensors", net.state_dict())
    save_file(net.state_dict(), tmp_path / "theirs.safetensors")
    torch.save(net.state_dict(), tmp_path / "theirs.pth")
    assert load_weights(net, tmp_path / "ours.safetensors").checked and load_weights(net, net.state_dict()).checked
    for theirs in ("theirs.safetensors", "theirs.pth"):
        assert str(load_weights(net, tmp_path / theirs)).endswith(
            "tensors kept; not checked for damage: the file has no checksum"
        )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (3, lambda weight: weight, "holds no state dict"),
        (("a", 1), lambda weight: weight, "holds no state dict"),
        ("fc.weight", lambda weight: {"a": weight}, "holds no state dict"),
        ("fc.weight", Tensor.to_sparse, "fc.weight in .* is not a plain tensor of numbers \\(sparse_coo\\)"),
        ("fc.weight", lambda weight: weight.to("meta"), "\\(meta\\)"),
        ("fc.weight", lambda weight: torch.nested.nested_tensor([weight[0], weight[1, :9]]), "\\(nested\\)"),
        ("fc.weight", Tensor.char, "type +fc.weight: got torch.int8, needed torch.float32"),
        ("fc.weight", Tensor.bool, "type +fc.weight: got torch.bool, needed torch.float32"),
        ("fc.weight", lambda weight: weight + 1j, "type +fc.weight: got torch.complex64, needed torch.float32"),
        ("\x1b[31m\n\ud800", lambda weight: weight, r"surplus +\\x1b\[31m\\n\\ud800$"),
        ("x" * 10**6, lambda weight: weight, "surplus +x{100}…$"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch calls some of these kinds prototypes
def test_a_foreign_file_with_odd_contents_is_refused_and_nothing_is_loaded(name, change, words, tmp_path):
    net = NETS["residual"]()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    weights = {key: tensor + 1 for key, tensor in before.items()} | {name: change(before["fc.weight"])}
    torch.save(weights, tmp_path / "w.pth")
    for source in (weights, tmp_path / "w.pth"):
        with pytest.raises(WeightsError) as caught:
            load_weights(net, source)
        assert re.search(words, str(caught.value), re.MULTILINE), caught.value
        assert same(before, net.state_dict())


def test_quantized_weights_are_refused(tmp_path):
    with pytest.warns():
        weights = {"fc.weight": torch.quantize_per_tensor(torch.zeros(3, 4), 0.1, 0, torch.qint8)}
    with pytest.raises(WeightsError, match="not a plain tensor of numbers \\(quantized\\)"):
        load_weights(NETS["residual"](), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(dtype):
    net, weights = NETS["resnet8"](), NETS["resnet8"]().state_dict()
    load_weights(net, {key: tensor.to(dtype) for key, tensor in weights.items()})  # counts of batches too
    for key, tensor in net.state_dict().items():
        assert tensor.dtype == weights[key].dtype and torch.equal(tensor, weights[key].to(dtype).to(tensor.dtype))

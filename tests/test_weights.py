import pytest
import torch
from lecture import InceptionNet, ResidualNet

from branchwork import NETS, lecture_state_dict, load_weights
from branchwork.errors import WeightsError

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
    from safetensors.torch import save_file

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
    assert "fc.weight: found (10, 1400), needed (10, 1408)" in text
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

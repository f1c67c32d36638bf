import sys

import pytest
import torch
from conftest import ROOT
from helpers.lecture import InceptionNet, ResidualNet
from torch import nn

import branchwork
from branchwork import NETS, build_net
from branchwork.catalogue.resolve import absolute_name, short_name
from branchwork.errors import NetError
from branchwork.graph.costs import count_macs, count_parameters

LECTURE = {"inception": InceptionNet, "residual": ResidualNet}
nets = pytest.mark.parametrize("name", LECTURE)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"), [("inception", 97_298, 6_019_200), ("residual", 41_514, 2_013_184)]
)
def test_sizes_are_those_of_the_lecture(name, parameters, macs):
    net = NETS[name]()
    assert count_parameters(net) == parameters == count_parameters(LECTURE[name]())
    assert count_macs(net, (1, 28, 28)) == macs == count_macs(LECTURE[name](), (1, 28, 28))


@nets
def test_outputs_and_gradients_equal_the_lecture_in_float64(name):
    theirs = LECTURE[name]().double()
    ours = NETS[name]().double()
    branchwork.load_weights(ours, theirs.state_dict())
    x = torch.randn(5, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-13)
    labels = torch.arange(5)
    (mine,) = torch.autograd.grad(nn.functional.cross_entropy(ours(x), labels), x)
    (other,) = torch.autograd.grad(nn.functional.cross_entropy(theirs(x), labels), x)
    torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-14)


@nets
@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 10, 28), (3, 7, 32), (2, 2, (20, 45)), (4, 100, 64)])
def test_any_input_and_any_number_of_classes(name, channels, classes, size):
    net = NETS[name](in_channels=channels, num_classes=classes, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(3, channels, height, width)
    for mode in (True, False):
        assert net.train(mode)(x).shape == (3, classes)


@nets
def test_the_flattened_size_is_derived(name):
    expected = {"inception": 1408, "residual": 512}[name]
    assert NETS[name]().fc.in_features == expected
    assert NETS[name](image_size=32).fc.in_features == expected // 16 * 25


@nets
def test_an_image_too_small_is_refused_with_the_smallest_that_works(name):
    with pytest.raises(NetError, match=r"at least 16×16 pixels, got 15×15"):
        NETS[name](image_size=15)
    assert NETS[name](image_size=16)(torch.zeros(1, 1, 16, 16)).shape == (1, 10)
    with pytest.raises(NetError, match="at least 1×1, got 0×0"):
        NETS[name](image_size=0)


@nets
def test_building_leaves_the_body_on_the_cpu_and_draws_weights_by_the_seed(name):
    torch.manual_seed(3)
    first = NETS[name]()
    torch.manual_seed(3)
    second = NETS[name]()
    assert all(parameter.device.type == "cpu" for parameter in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_catalogue_is_found_by_name_and_a_typing_slip_is_told():
    assert count_parameters(build_net("residual", num_classes=7)) == 41_514 - 3 * 513
    with pytest.raises(NetError, match="Did you mean 'residual'"):
        build_net("residal")


def script(attribute: str) -> str:
    return f"{ROOT}/tests/helpers/lecture.py:{attribute}"


@pytest.mark.parametrize("attribute", ["ResidualNet", "make_residual"])
def test_a_learners_own_script_is_built_unchanged(attribute):
    assert count_parameters(build_net(script(attribute))) == 41_514


def test_a_callable_of_an_importable_module_is_built():
    assert count_parameters(build_net("branchwork.catalogue.lecture:inception")) == 97_298


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (script("ResidualNett"), "Did you mean 'ResidualNet'"),
        (script("NeedsAnArgument"), "cannot be built without arguments"),
        (script("make_nothing"), "returns a NoneType, not a torch.nn.Module"),
        (script("torch"), "is a module"),
        (script("FailsInside"), "failed to build: ZeroDivisionError: integer division"),
        (script("TypeErrorInside"), "failed to build: TypeError"),
        (str(ROOT), "is a folder: name a net, or continue a run"),
        ("missing.py:Net", "there is no file missing.py"),
        ("no.such.module:Net", "no.such.module cannot be imported: No module named 'no'"),
    ],
)
def test_a_script_that_gives_no_net_is_refused(net, words):
    with pytest.raises(NetError, match=words.replace("(", r"\(")):
        build_net(net)


def test_a_script_with_a_mistake_says_what_python_says(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import torch\nNet = undefined\n")
    with pytest.raises(NetError, match=r"mine\.py, line 2: NameError: name 'undefined'"):
        build_net(f"{file}:Net")
    file.write_text("def broken(:\n")
    with pytest.raises(NetError, match=r"mine\.py, line 1: SyntaxError"):
        build_net(f"{file}:Net")
    file.write_text("import no_such_package\nexit()\nx = 1\n")
    with pytest.raises(NetError, match=r"has no 'Net'\. It defines no net\."):
        build_net(f"{file}:Net")


def test_a_script_imports_its_neighbours(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/my_parts.py").write_text("from torch import nn\nPart = nn.Flatten\n")
    (tmp_path / "mine/net.py").write_text("from my_parts import Part\nclass Net(Part): pass\n")
    before = list(sys.path)
    assert isinstance(build_net(f"{tmp_path}/mine/net.py:Net"), nn.Flatten)
    assert sys.path == before


def test_names_of_scripts_are_short_for_people_and_full_for_programs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_name("mine/net.py:Net") == f"{tmp_path}/mine/net.py:Net" and absolute_name("residual") == "residual"
    assert short_name("/some/where/lecture.py:Net") == "lecture-Net"
    assert short_name("package.module:make") == "package.module-make" and short_name("residual") == "residual"

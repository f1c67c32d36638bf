"""The graph of a net: what it computes, its names and lines, whatever the net's forward does; and parts of it run."""

import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, in_a_process
from helpers.lecture import InceptionNet
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from branchwork import NETS
from branchwork.errors import NetError
from branchwork.graph.joins import joins_of
from branchwork.graph.read import read
from branchwork.graph.trace import trace, trace_graph
from branchwork.graph.untouched import alone, holding


class Net(nn.Module):
    """Named modules, and a function of them and the images as the forward."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function, self.calls, self.log = forward, 0, []
        self.register_buffer("seen", torch.zeros(1))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def linear() -> nn.Linear:
    return nn.Linear(64, 3)


def on_pixels(self, x):
    x = self.fc(x.flatten(1))
    return x.relu() if x.sum() > -1e9 else x


def changing(self, x):
    self.calls += 1
    self.log.append(random.random())
    self.seen = self.seen + x.mean()
    return self.fc(x.flatten(1)) + self.seen


def several(self, x):
    x = self.fc(x.flatten(1))
    return {"logits": x, "more": (x.relu(), None)}


def without_grad(self, x):
    with torch.no_grad():
        x = x.flatten(1) * 2
    return self.fc(x)


def split(self, x):
    first, second = self.conv(x).chunk(2, 1)
    return torch.cat([F.relu(first), second, first], 1).mean((2, 3))


NETS_OF_ANY_NUMBER = {
    "changing": lambda: Net(changing, fc=linear()),
    "several": lambda: Net(several, fc=linear()),
    "no_grad": lambda: Net(without_grad, fc=linear()),
    "split": lambda: Net(split, conv=nn.Conv2d(1, 4, 3)),
    "constant": lambda: Net(lambda self, x: self.fc(x.flatten(1)) + torch.tensor([1.0, 2, 3]), fc=linear()),
    "hook": lambda: hooked(linear()),
    "script": lambda: Net(lambda self, x: self.fc(x), fc=torch.jit.script(nn.Sequential(nn.Flatten(), linear()))),
    "lstm": lambda: Net(lambda self, x: self.lstm(x[:, 0])[0][:, -1], lstm=nn.LSTM(8, 3, batch_first=True)),
    "parametrised": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)),
        nn.Flatten(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(72, 3)),
    ),
    "in place": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout()),
    "number": lambda: Net(lambda self, x: self.fc(x.flatten(1)) * torch.linspace(0, 1, 5).tolist()[3], fc=linear()),
    "mapped": lambda: Net(lambda self, x: torch.vmap(lambda row: row * 2)(self.fc(x.flatten(1))), fc=linear()),
    "device": lambda: Net(lambda self, x: self.fc(x.flatten(1)) + torch.ones(3, device=x.device), fc=linear()),
    "tokens": lambda: Net(
        lambda self, x: self.block(x[:, 0]).mean(1), block=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ),
}


def hooked(layer: nn.Linear) -> nn.Module:
    layer.register_forward_hook(lambda module, arguments, output: output * 2)
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize("name", NETS_OF_ANY_NUMBER)
@pytest.mark.filterwarnings("ignore")  # torch warns of scripts and of nested tensors
def test_a_graph_computes_what_the_net_computes_and_leaves_it_alone(name):
    net = NETS_OF_ANY_NUMBER[name]()
    before = [{key: id(value) for key, value in vars(module).items()} for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    draws = torch.get_rng_state(), random.getstate()
    graph = read(net, (1, 8, 8))
    assert torch.equal(draws[0], torch.get_rng_state()) and draws[1] == random.getstate()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert before == [{key: id(value) for key, value in vars(module).items()} for module in net.modules()]
    assert graph.images > 1 and not graph.depends_on_pixels and graph.obstacle is None
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        values = graph.run(images)
        expected = [leaf for leaf in pytree.tree_leaves(net.eval()(images)) if leaf is not None]
    for value, wanted in zip(values, expected, strict=True):
        torch.testing.assert_close(value, wanted)
    rows = trace_graph(graph)
    assert rows.unreached == () and rows.operations[-1].output_shape == expected[-1].shape[1:]


def test_pixels_a_single_image_and_tensors_changed_for_others_are_told():
    graph = read(Net(on_pixels, fc=linear()), (1, 8, 8))
    assert graph.depends_on_pixels and graph.images == 1
    assert [row.name for row in trace_graph(graph).operations] == ["flatten", "fc", "sum", "gt", "relu"]
    with pytest.raises(NetError, match="does not run the same operations on every batch"):
        graph.run(torch.zeros(1, 1, 8, 8))
    one = read(Net(lambda self, x: self.fc(x.view(1, 64)), fc=linear()), (1, 8, 8))
    assert one.images == 1 and not one.depends_on_pixels and trace_graph(one).macs == 192
    with pytest.raises(NetError, match="sizes in this view do not match"):
        one.rewritable()

    def in_a_view(self, x):
        x = x.flatten(1) * 2
        x[:, :4].add_(1)
        return self.fc(x)

    shared = read(Net(in_a_view, fc=linear()), (1, 8, 8))
    assert shared.images > 1 and [row.op for row in trace_graph(shared).operations][-2:] == ["add", "linear"]
    with pytest.raises(NetError, match="add_ changes a tensor in place that others see"):
        shared.rewritable()
    with pytest.raises(NetError, match="returns 2 tensors, but one is needed"):
        read(Net(several, fc=linear()), (1, 8, 8)).rewritable()


def test_training_is_read_in_the_mode_of_each_module_and_eval_mode_leaves_it():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Dropout())
    net[1].eval()

    def trains(graph):
        return [node.args[5] for node in graph.names if "batch_norm" in str(node.target)]

    assert trains(read(net, (1, 8, 8), train=True)) == [False, True] and trains(read(net, (1, 8, 8))) == [False, False]
    assert net.training and not net[1].training and net[2].training
    with pytest.raises(NetError, match="changes calls, log, Python's random numbers"):
        read(Net(changing, fc=linear()), (1, 8, 8), train=True).rewritable()


def test_a_module_with_two_names_has_two_rows_and_its_weights_once():
    net = Net(lambda self, x: torch.cat([self.a(x), self.b(x)], 1), a=(conv := nn.Conv2d(1, 1, 3)), b=conv)
    rows = trace_graph(read(net, (1, 8, 8)))
    assert [(row.name, row.parameters) for row in rows.operations] == [("a", 10), ("a@2", 0), ("cat", 0)]


def test_each_operation_has_the_users_line():
    graph = read(InceptionNet(), (1, 28, 28))
    source = (ROOT / "tests/helpers/lecture.py").read_text().splitlines()
    lines = {name: source[node.meta["line"][1] - 1].strip() for node, name in graph.names.items()}
    assert (
        lines["conv1"] == "x = F.relu(self.mp(self.conv1(x)))"
        and lines["incep1.branch1x1"] == "one = self.branch1x1(x)"
    )
    torchs = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())  # no line of it is the user's
    assert [node.meta["line"] for node in read(torchs, (1, 8, 8)).names] == [None, None]


def test_parts_of_a_net_are_run_with_given_values():
    net = NETS["inception"]().eval()
    graph = read(net, (1, 28, 28))
    images = torch.randn(4, 1, 28, 28)
    first, _ = joins_of(graph)
    join = graph.nodes[first.node]
    entries = [node for branch in first.branches for node in branch.entries]
    with torch.inference_mode():
        logits, *values = graph.run(images, wanted=[*graph.outputs, *entries])
        assert torch.equal(logits, net(images)) and torch.equal(torch.cat(values, 1), *graph.run(images, wanted=[join]))
        given = dict(zip(entries, values, strict=True))
        assert torch.equal(*graph.run(given=given), logits)  # the images serve nothing after the join
        (given[entries[0]],) = (torch.zeros_like(given[entries[0]]),)
        for parameter in net.incep1.b1.parameters():
            parameter.zero_()
        assert torch.equal(*graph.run(given=given), net(images))
        source = graph.nodes["relu1"]
        (seen,) = graph.run(images, wanted=[source])
        inner = net.incep1.b5
        assert torch.equal(*graph.run(given={source: seen}, wanted=[entries[1]]), inner(seen))


def test_a_net_into_which_another_thread_has_put_other_tensors_is_read_afterwards():
    net, shape = NETS["resnet8"](), (3, 32, 32)
    expected, held, begun = trace(net, shape), threading.Event(), threading.Event()

    def hold() -> None:
        others = {id(tensor): torch.zeros(1) for tensor in net.state_dict(keep_vars=True).values()}
        with alone(), holding(net, others):
            held.set()
            assert begun.wait(60)
            time.sleep(0.3)  # in which the other thread waits, or reads what is wrong

    with ThreadPoolExecutor(2) as pool:
        holder = pool.submit(hold)
        assert held.wait(60)
        found = pool.submit(lambda: (begun.set(), trace(net, shape))[1])
        holder.result()
        assert found.result() == expected


def test_a_path_that_is_dropped_in_training_is_read():
    def dropped(self, x):
        x = self.fc(x.flatten(1))
        return x * x.new_empty(len(x), 1).bernoulli_(0.5).div_(0.5)

    net = Net(dropped, fc=linear())
    graph = read(net, (1, 8, 8), train=True)
    assert graph.obstacle is None and not graph.depends_on_pixels
    images = torch.randn(400, 1, 8, 8)
    (rows,) = graph.run(images)
    kept = rows.abs().amax(1) > 0
    torch.testing.assert_close(rows[kept], 2 * net.fc(images.flatten(1))[kept])
    assert 140 < kept.sum() < 260  # six standard deviations around 200


def test_reading_and_training_leave_torchs_compiler_alone_until_it_is_asked_for():
    done = in_a_process(
        "-c",
        """if True:
        import sys, torch
        from branchwork import NETS, fast
        from branchwork.graph.read import read
        from branchwork.training.optimizers import make_optimizer

        for net in (NETS["inception"](), NETS["residual"]()):
            read(net, (1, 28, 28)), read(net, (1, 28, 28), train=True)
            for optimizer in ("adam", "sgd", "muon"):
                chosen = make_optimizer(list(net.parameters()), fast().but({"optimizer": optimizer}))
                chosen.zero_grad()
                net(torch.zeros(2, 1, 28, 28)).sum().backward()
                chosen.step()
        assert "torch._dynamo" not in sys.modules
        print(torch.compile(lambda x: x.relu() + 1, backend="aot_eager")(torch.zeros(2)).tolist())
        """,
        words=[sys.executable],
    )
    assert done.stdout == "[1.0, 1.0]\n", done.stderr


def test_torchs_compiler_makes_its_way_while_it_is_kept_out():
    done = in_a_process(
        "-c",
        """if True:
        import torch
        from branchwork.graph.uncompiled import uncompiled

        with uncompiled():
            import torch._dynamo.config

            print(torch.compile(lambda x: x.relu() + 1, backend="eager")(torch.zeros(2)).tolist())
        """,
        words=[sys.executable],
    )
    assert done.stdout == "[1.0, 1.0]\n", done.stderr

"""What the report of a training says of the net: its drawing, what each branch is worth, and its first kernels."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from branchwork.datasets.dataset import Split
from branchwork.drawing.drawing import inline_drawing
from branchwork.errors import FAILURES, first_line
from branchwork.files import typed
from branchwork.graph.branching import BranchedNet, branches_of
from branchwork.graph.read import read
from branchwork.graph.trace import Trace, trace_graph
from branchwork.language import say, sentences, times
from branchwork.observer import Observer
from branchwork.pages import Bar, bars, image_grid, paragraph, plot, section
from branchwork.palette import branch_colours
from branchwork.training.infer import pick_layout
from branchwork.training.measure import lost_accuracy, observe, remove_each, sample_images
from branchwork.training.run import TrainedNet

# A report must not keep a training waiting. To read and draw more layers takes seconds, and nobody reads it on a page.
MOST_LAYERS = 150
# On two cores, so many MACs take about half a second. With fewer images an accuracy would say little.
MOST_MACS, MOST_IMAGES, FEWEST_IMAGES = 10_000_000_000, 1000, 100
MOST_KERNELS = 24


@dataclass(frozen=True)
class Kernels:
    """The weights O×I×H×W of the convolution at `path`."""

    path: str
    weights: Tensor


def first_kernels(net: nn.Module, channels: int) -> Kernels | None:
    """Return a copy of the kernels of the first convolution that can read images of so many channels."""
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            return Kernels(path, module.weight.detach().float().cpu().clone())
    return None


@dataclass(frozen=True)
class NetSections:
    """Parts of the report, as HTML; `branches` and `kernels` are empty where the net has none."""

    drawing: str
    branches: str
    kernels: str


def describe_net(trained: TrainedNet, measured_on: Split, *, held_out: bool, before: Kernels | None) -> NetSections:
    """Describe a trained net; `before` are its first kernels before the training.

    Its branches are measured on some of the images `measured_on`, which were `held_out` for validation or are for the
    test. What cannot be read, drawn or measured is said instead: no training may be lost to its report.
    """
    after = first_kernels(trained.net, trained.model.in_channels)
    kernels = "" if before is None or after is None else _kernels(before, after)
    layers = sum(not list(module.children()) for module in trained.net.modules())
    if layers > MOST_LAYERS:
        words = say(
            "With {layers} layers, the net is too large to draw and measure here: use branchwork inspect {run} and "
            "branchwork explain {run}.",
            layers=layers,
            run=typed(trained.folder),
        )
        return NetSections(section(say("The net"), words), "", kernels)
    try:
        net = copy.deepcopy(trained.net).cpu().float().eval()
        pick_layout(net, trained.model)
        graph = read(net, trained.model.input_shape, train=True)
        trace = trace_graph(graph)
        drawing = _drawing(trace, trained.folder)
    except FAILURES as reason:  # a learner's net may do anything
        return NetSections(paragraph(say("The net cannot be drawn: {reason}", reason=first_line(reason))), "", kernels)
    try:
        branches = _branches(branches_of(graph, trace), trained, measured_on, held_out=held_out) if trace.joins else ""
    except FAILURES as reason:
        branches = paragraph(say("The branches cannot be measured: {reason}", reason=first_line(reason)))
    return NetSections(drawing, branches, kernels)


def _drawing(trace: Trace, folder: Path) -> str:
    heaviest = sorted(trace.operations, key=lambda operation: operation.macs, reverse=True)[:3]
    shares = ", ".join(f"{each.name} {each.macs / max(1, trace.macs):.0%}" for each in heaviest if each.macs)
    words = say(
        "The stronger the colour of a box, the more of the {macs:,} MACs per image it takes: {shares}.",
        macs=trace.macs,
        shares=shares,
    )
    draw = say(
        "branchwork ui {run} opens a page: draw a picture there, and watch it run through every branch.",
        run=typed(folder),
    )
    return section(say("The net"), sentences((words, draw)), plot(inline_drawing(trace)))


def _branches(branched: BranchedNet, trained: TrainedNet, images: Split, *, held_out: bool) -> str:
    title = say("Which branch matters")
    count = min(len(images), MOST_IMAGES, MOST_MACS // max(1, _macs_per_image(branched)))
    if count < min(len(images), FEWEST_IMAGES):
        return section(
            title,
            say(
                "Measuring this net without each branch takes too long for a report: use branchwork explain {run}.",
                run=typed(trained.folder),
            ),
        )
    images = sample_images(images, count)
    observed = observe(branched, trained.model, images)
    without = remove_each(branched, trained.model, images, observed=observed, observer=Observer(), by=("mean",))
    rows = []
    for join, names in branched.entries.items():
        for name, colour in zip(names, branch_colours(list(names)), strict=True):
            lost, interval = lost_accuracy(observed.correct, without[join, name, "mean"])
            words = f"{100 * lost:+.1f}".replace("-", "−")
            rows.append(Bar(join, name, lost, interval, words, colour))
    words = (
        say("Points of accuracy lost on {count:,} validation images if a branch is replaced by its mean.", count=count)
        if held_out
        else say("Points of accuracy lost on {count:,} test images if a branch is replaced by its mean.", count=count)
    )
    more = say("The thin lines are 95% intervals; branchwork explain {run} measures more.", run=typed(trained.folder))
    return section(title, sentences((words, more)), bars(rows))


def _macs_per_image(branched: BranchedNet) -> int:
    """Return what it takes to run the net twice, and then from each join on without each of its branches."""
    operations = branched.trace.operations
    position = {operation.name: index for index, operation in enumerate(operations)}
    after = {
        join: len(names) * sum(operation.macs for operation in operations[position[join] :])
        for join, names in branched.entries.items()
    }
    return 2 * branched.trace.macs + sum(after.values())


def _kernels(before: Kernels, after: Kernels) -> str:
    count, _, *size = after.weights.shape
    most = float(torch.stack([before.weights, after.weights]).abs().max()) or 1.0
    pictures = [
        (
            np.concatenate([_grey(one, most), np.zeros((1, size[1], 4), np.uint8), _grey(other, most)]),
            say("kernel {number}", number=number),
            str(number),
        )
        for number, (one, other) in enumerate(zip(before.weights, after.weights, strict=True), 1)
    ]
    values = {"path": after.path, "size": times(size), "count": count, "shown": MOST_KERNELS}
    words = (
        say("{count} kernels of {size} in {path}, before the training (above) and after it (below).", **values)
        if count <= MOST_KERNELS
        else say(
            "{shown} of the {count} kernels of {size} in {path}, before the training (above) and after it (below).",
            **values,
        )
    )
    scale = say("Black is {low:.2f}, mid-grey 0, and white {high:.2f}.", low=-most, high=most)
    return section(say("The first kernels"), sentences((words, scale)), image_grid(pictures[:MOST_KERNELS], small=True))


def _grey(kernel: Tensor, most: float) -> NDArray[np.uint8]:
    """Return a kernel I×H×W as pixels H×W×4: three channels as colours, others as the grey of their mean."""
    colours = kernel if len(kernel) == 3 else kernel.mean(0, keepdim=True).expand(3, -1, -1)
    pixels = (127.5 + 127.5 * colours / most).round().clamp(0, 255).byte()
    opaque = torch.full_like(pixels[:1], 255)
    return torch.cat([pixels, opaque]).permute(1, 2, 0).numpy()

"""The catalogue: a plain dict from a net's name to its builder.

A builder takes keywords only: `in_channels`, `num_classes`, `image_size` (one side, or height and width), and the
options of its net, such as `stem` or `shortcut`. It returns an ordinary module: N×C×H×W in, logits N×K out, in train
and in eval mode.
"""

from collections.abc import Callable

from torch import nn

from branchwork.catalogue.densenet import dense_nets
from branchwork.catalogue.googlenet import googlenet
from branchwork.catalogue.lecture import inception, residual
from branchwork.catalogue.resnet import residual_nets

NETS: dict[str, Callable[..., nn.Module]] = {
    "inception": inception,
    "residual": residual,
    "googlenet": googlenet,
    **residual_nets(),
    **dense_nets(),
}

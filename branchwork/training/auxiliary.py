"""Auxiliary heads: classifiers that read the middle of a net, so that gradients reach its first layers in training.

They are not part of the net (Szegedy et al. 2014, section 5), which is tested, kept and shipped without them.
"""

import math

import torch
from torch import Tensor, nn

from branchwork.blocks import chain
from branchwork.catalogue.googlenet import EPS, TAPS
from branchwork.catalogue.input_size import layer_shape
from branchwork.catalogue.layers import conv_norm_relu
from branchwork.catalogue.resolve import split_options
from branchwork.errors import RecipeError
from branchwork.language import say
from branchwork.training.options import Options
from branchwork.training.recipe import Recipe
from branchwork.training.run import Model

# By the name of the net, the layers that heads read.
READ = {"googlenet": TAPS}


class WithHeads(nn.Module):
    """A chain of layers with a head at some of them: N×C×H×W in, logits (1 + heads)×N×K out, the net's own first."""

    def __init__(self, net: nn.Module, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.net, self.heads = net, heads

    def forward(self, x: Tensor) -> Tensor:
        read = []
        for name, layer in self.net.named_children():
            x = layer(x)
            if name in self.heads:
                read.append(self.heads[name](x))
        return torch.stack([x, *read])


def check_heads(net: str, recipe: Recipe, options: Options) -> None:
    """Raise `RecipeError` if the recipe has auxiliary heads and `net`, run with these options, cannot have them."""
    if not recipe.auxiliary:
        return
    name, _ = split_options(net)
    if name not in READ:
        problem = say("{net} has no auxiliary heads; only {names} has them", net=net, names=", ".join(READ))
    elif options.freeze:
        problem = say("with --freeze there is nothing for its heads to train")
    elif options.execute == "collapsed":
        problem = say("its heads read layers that a collapsed net no longer has")
    else:
        return
    raise RecipeError(
        "auxiliary is {auxiliary:g}, but {problem}: train with --auxiliary 0",
        auxiliary=recipe.auxiliary,
        problem=problem,
    )


def make_heads(net: nn.Module, model: Model, recipe: Recipe) -> nn.ModuleDict:
    """Return the heads of `net` by the layer that each reads; none if their weight in the recipe is 0."""
    name, _ = split_options(model.net)
    taps = READ[name] if recipe.auxiliary else ()
    shapes = {tap: layer_shape(net, tap, in_channels=model.in_channels, image_size=model.image_size) for tap in taps}
    return nn.ModuleDict({tap: _head(shape, len(model.classes)) for tap, shape in shapes.items()})


def _head(shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """5×5 average pool of stride 3, 1×1 to 128, 1,024 units, 70% dropout, linear, for inputs C×H×W of `shape`.

    The pool is smaller if the input is smaller than 5×5.
    """
    channels, *sides = shape
    window = [min(5, side) for side in sides]
    pixels = math.prod((side - size) // 3 + 1 for side, size in zip(sides, window, strict=True))
    return chain(
        pool=nn.AvgPool2d((window[0], window[1]), 3),
        conv=conv_norm_relu(channels, 128, 1, eps=EPS),
        flatten=nn.Flatten(),
        fc1=nn.Linear(128 * pixels, 1024),
        relu=nn.ReLU(),
        dropout=nn.Dropout(0.7),
        fc2=nn.Linear(1024, num_classes),
    )

"""The catalogue: a plain dict from a net's name to its builder.

A builder takes keywords only, `in_channels`, `num_classes` and `image_size` (one side, or height and width), and
returns an ordinary module: N×C×H×W in, logits N×K out, in train and in eval mode.
"""

from branchwork.nets.lecture import inception, residual

NETS = {"inception": inception, "residual": residual}

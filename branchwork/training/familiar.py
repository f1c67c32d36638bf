"""How near an image is to the digits that a net was trained on, as the net itself sees them.

Measured where the net's last matrix reads: by the angle between what it reads for the image and for the nearest of the
6,000 training digits that come with the package. Of what was tried, this tells letters and photographs apart best
(docs/experiments/data.md).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from branchwork.datasets.load import load_data
from branchwork.graph.costs import count_macs
from branchwork.training.infer import predict_logits
from branchwork.training.run import TrainedNet

# The share of test digits that are called unlike the training digits.
FALSE_ALARMS = 0.01
# MACs that may be spent on the digits to compare with, and the least share of them: about a second on a core.
_MACS, _LEAST = 4e10, 1 / 7


@dataclass(frozen=True)
class Familiar:
    """What a net reads for training digits, N×F of length 1, and the largest cosine distance that is usual."""

    digits: Tensor
    limit: float

    def is_unlike(self, read: Tensor) -> list[bool]:
        """Return for each row of `read`, N×F, whether it is further from all training digits than is usual."""
        return (_distance(read, self.digits) > self.limit).tolist()


class Reader(nn.Module):
    """A net that returns what its last matrix reads, N×F; without a matrix, the logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        read: list[Tensor] = []
        with _hooked(self.net, read):
            logits: Tensor = self.net(images)
        return nn.functional.normalize((read[-1] if read else logits).flatten(1).float())


@contextmanager
def _hooked(net: nn.Module, read: list[Tensor]) -> Iterator[None]:
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        for module in net.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def familiar_digits(trained: TrainedNet) -> Familiar:
    """Return what is usual for the net of a run: only `FALSE_ALARMS` of the sample's test digits are further away.

    A large net is shown every second digit, or every third, and so on.
    """
    sample, model = load_data("sample"), trained.model
    macs = count_macs(trained.net, model.input_shape)
    images = len(sample.train) + len(sample.test)
    step = math.ceil(1 / max(_LEAST, min(1.0, _MACS / (macs * images))))
    digits, usual = (read_by_last(trained, split.images[::step]) for split in (sample.train, sample.test))
    return Familiar(digits, float(_distance(usual, digits).quantile(1 - FALSE_ALARMS)))


def read_by_last(trained: TrainedNet, images: Tensor) -> Tensor:
    """Return what the net's last matrix reads for uint8 images N×C×H×W, scaled to length 1."""
    return predict_logits(Reader(trained.net), images, trained.model)


def _distance(read: Tensor, digits: Tensor) -> Tensor:
    return 1 - (read @ digits.T).amax(1)

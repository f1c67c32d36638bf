"""Whether an engine gives for real images what the net gives as it was written."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from branchwork.deploy.engines import Runner
from branchwork.deploy.subject import Input

# The bar of float32 is absolute. Only for logits above 33 it grows with them, since the order of additions alone was
# found to change the logits of trained nets by up to 1.4 millionths of the largest.
FP32_LOGITS = 1e-4
FP32_RELATIVE = 3e-6
# bf16 has eight bits of mantissa, so that each operation rounds by up to 1/512. Found were differences of up to half a
# hundredth of the largest logit in trained nets, and one hundredth in fresh ones.
BF16_RELATIVE = 0.03
BF16_PREDICTIONS = 0.01
# Several sizes, so that a file that serves one batch size alone is found.
SIZES = (1, 2, 97, 400)
# No more at once than these, nor fewer than 3: engines took 6.7 GB for 400 images of 224×224 in ResNet-50.
PIXELS = 400 * 28 * 28


@dataclass(frozen=True)
class Comparison:
    """An engine's logits against those of the net as written, in eager float32, on the same images.

    `difference` is the largest between two logits, `largest` the size of the largest logit. `differing` counts the
    images whose class is another one, and `clearly` those of them that the net as written holds apart by more than
    the tolerance: nearer ones may fall either way. `tolerance` and `allowed` are the most of `difference` and
    `clearly` that may be.
    """

    images: int
    difference: float
    largest: float
    tolerance: float
    differing: int
    clearly: int
    allowed: int

    @property
    def good(self) -> bool:
        # Not the reverse: a difference that is no number is not good.
        return self.difference <= self.tolerance and self.clearly <= self.allowed


def compare(logits: Tensor, expected: Tensor, precision: str) -> Comparison:
    """Compare logits N×K, which are to be of one shape. The bars of each precision stand at the top of this file."""
    largest = expected.abs().max().item()
    if precision == "bf16":
        tolerance, allowed = BF16_RELATIVE * largest, int(BF16_PREDICTIONS * len(expected))
    else:
        tolerance, allowed = max(FP32_LOGITS, FP32_RELATIVE * largest), 0
    found, wanted = logits.argmax(1, keepdim=True), expected.argmax(1, keepdim=True)
    differing = (found != wanted)[:, 0]
    apart = (expected.gather(1, wanted) - expected.gather(1, found))[:, 0]
    return Comparison(
        images=len(expected),
        difference=(logits - expected).abs().max().item(),
        largest=largest,
        tolerance=tolerance,
        differing=int(differing.sum()),
        clearly=int((differing & (apart > tolerance)).sum()),
        allowed=allowed,
    )


def run_in_batches(runner: Runner, images: Tensor, form: Input) -> Tensor:
    """Logits N×K of uint8 images N×C×H×W, in batches of several sizes."""
    most = max(3, PIXELS // math.prod(images.shape[2:]))
    sizes: list[int] = []
    while (left := len(images) - sum(sizes)) > 0:
        sizes.append(min(left, most, SIZES[min(len(sizes), len(SIZES) - 1)]))
    batches = torch.split(images, sizes)
    return torch.cat([runner(batch if form == "uint8" else batch.float() / 255) for batch in batches])

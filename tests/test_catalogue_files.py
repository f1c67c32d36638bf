"""The catalogue written for each engine and run by it: minutes, so that `make test-slow` has it."""

import pytest
import torch

from branchwork.deploy.engines import compare, load
from branchwork.deploy.formats import FORMATS, write
from branchwork.deploy.shipped import ExportOptions, find_deployable

SHAPE = (1, 28, 28)
# The smallest of every family: the others are longer rows of the same tables.
SMALLEST = (
    "inception", "residual", "googlenet", "resnet18", "resnet50", "plain18", "preact18", "resnet20", "plain20",
    "preact20", "resnet20[shortcut=gated]", "densenet121", "densenet100",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_file_for_each_engine_gives_what_the_net_gives(name, tmp_path):
    subject = find_deployable(name, input_shape=SHAPE)
    images = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = (images / 255 - subject.model.mean[0]) / subject.model.std[0]
    with torch.no_grad():
        subject.net.train()(pixels)  # fresh running statistics would let the logits of a deep net grow without bounds
        expected = subject.net.eval()(pixels)
    for to in FORMATS:
        path = tmp_path / f"net{FORMATS[to].suffixes[-1]}"
        write(path, subject, to=to, options=ExportOptions(), metadata={})
        logits = load(FORMATS[to].engine, path, "fp32")(images)
        compared = compare(logits, expected, "fp32")
        assert compared.good, f"{to}: {compared}"

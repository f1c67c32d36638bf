"""What a server calls from many threads at once gives what one call after the other gives."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from helpers.faults import many

import branchwork as bw

SCRIPT = f"{ROOT}/tests/helpers/lecture.py:ResidualNet"
NETS = ("inception", "residual", "resnet8[width=4]", SCRIPT)


@pytest.fixture
def predict(small):
    run = bw.train("residual", data=small, epochs=1, fraction=0.1, batch_size=32, report=False)
    pictures = sorted(Path(ROOT, "docs/digits").glob("*.jpg"))
    return lambda index: repr(bw.predict(run.folder, pictures[index % len(pictures)])[0])


@pytest.fixture
def build():
    def weights(index: int) -> object:
        net = bw.build_net(NETS[index % len(NETS)], in_channels=1, num_classes=10, image_size=(28, 28))
        return {key: tensor.shape for key, tensor in net.state_dict().items()}

    return weights


def settings() -> tuple[object, ...]:
    """What threads share, and what a call must leave as it was."""
    return sys.stdout, sys.stderr, torch.get_num_threads(), torch.is_grad_enabled(), torch.backends.mkldnn.enabled


@pytest.mark.parametrize("work", ["build", "predict"])
def test_eight_threads_give_what_one_gives(work, request, tries):
    do, before = request.getfixturevalue(work), settings()
    expected = [do(index) for index in range(8)]
    start = threading.Barrier(8)

    def at_once(index: int) -> object:
        start.wait()
        return do(index)

    with ThreadPoolExecutor(8) as pool:
        for turn in range(many(1, 25)):
            found = [pool.submit(at_once, index) for index in range(8)]
            for index, future in enumerate(found):
                with tries.one(f"{work} in turn {turn}, thread {index}"):
                    assert future.result() == expected[index]
            with tries.one(f"settings of the process after {work}"):
                assert settings() == before

"""Verbs that eight threads call at once give what one gives, and leave the process as it was."""

import itertools
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.faults import many
from PIL import Image

import branchwork as bw

THREADS = 8
SCRIPT = f"{ROOT}/tests/scripts/first_cnn.py:ConvNet"


def settings() -> list[Any]:
    """What belongs to the whole process, but for torch's random numbers."""
    return [
        sys.stdout, sys.argv, list(sys.path), str(Path.cwd()), torch.backends.mkldnn.enabled, torch.is_grad_enabled(),
        torch.cuda.is_available, random.getstate(), str(np.random.get_state()),
    ]  # fmt: skip


def together(work: Callable[[], Any]) -> list[Any]:
    """What `work` returns each time, begun by all threads at the same moment and switched between very often."""
    count = THREADS * many(1, 25)
    gate = threading.Barrier(THREADS)
    before, interval = settings(), sys.getswitchinterval()
    sys.setswitchinterval(1e-4)

    def begin() -> Any:
        gate.wait(timeout=120)
        return work()

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            results = [future.result() for future in [pool.submit(begin) for _ in range(count)]]
    finally:
        sys.setswitchinterval(interval)
    assert settings() == before
    return results


@pytest.mark.parametrize("net", ["inception", SCRIPT])
def test_nets_are_built(net):
    keys = list(bw.build_net(net).state_dict())
    assert all(list(each.state_dict()) == keys for each in together(lambda: bw.build_net(net)))


def test_one_net_and_several_are_traced():
    nets = [bw.build_net("inception") for _ in range(2)]
    expected, state, numbers = bw.trace(nets[0], (1, 28, 28)), torch.get_rng_state(), itertools.count()
    assert together(lambda: bw.trace(nets[next(numbers) % 2], (1, 28, 28))) == THREADS * many(1, 25) * [expected]
    assert torch.equal(torch.get_rng_state(), state)


def test_one_net_is_linted():
    net = bw.build_net("residual")
    expected = str(bw.inspect(net, lint=True).findings)
    assert {str(each.findings) for each in together(lambda: bw.inspect(net, lint=True))} == {expected}


def test_one_net_is_fused():
    net, images = bw.build_net("resnet8").eval(), torch.rand(2, 3, 32, 32)
    state = torch.get_rng_state()
    with torch.no_grad():
        expected = bw.fuse(net, (3, 32, 32))(images)
        fused = together(lambda: bw.fuse(net, (3, 32, 32)))
        assert all(torch.equal(each(images), expected) for each in fused)
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_are_classified(run):
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save("slash.png")
    expected, state = bw.predict(run.folder, "slash.png"), torch.get_rng_state()
    assert together(lambda: bw.predict(run.folder, "slash.png")) == THREADS * many(1, 25) * [expected]
    assert torch.equal(torch.get_rng_state(), state)

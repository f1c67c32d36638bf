"""The same seed gives the same weights, bit for bit, as the code of November 2026 gave: a change of them is noticed.

The hashes were made by commit d0a0439. Another version of torch, or other instructions of the processor, round in
another way: where none of the hashes is known, the tests are skipped.
"""

import hashlib
from pathlib import Path

import pytest
import torch

import branchwork as bw

# By torch's version and the processor's capability: of `residual` as written and of `inception` collapsed.
GOLDEN = {
    ("2.13.0+cpu", "AVX2"): {
        "residual": "7cf4c994c14ac9657dbc50f6e145112521261cff58db7738af321f085e204260",
        "inception": "1872d96a71035e86e2b452f670f304c7b05bc7bc6f83a7699de8ea2a40167ce5",
    },
}
KEY = (str(torch.__version__), torch.backends.cpu.get_cpu_capability())


@pytest.mark.skipif(KEY not in GOLDEN, reason=f"no hash is known for torch {KEY[0]} with {KEY[1]}")
@pytest.mark.parametrize(("net", "execute"), [("residual", "written"), ("inception", "collapsed")])
def test_the_same_seed_gives_the_weights_that_it_always_gave(small, net, execute):
    recipe = bw.fast(net).but({"epochs": 2, "batch_size": 250, "precision": "fp32", "shift": 2.0, "ema": 0.9})
    options = bw.Options(device="cpu", threads=1, execute=execute)
    bw.train(net, data=small, recipe=recipe, options=options, out="run")
    assert hashlib.sha256(Path("run/model.safetensors").read_bytes()).hexdigest() == GOLDEN[KEY][net]

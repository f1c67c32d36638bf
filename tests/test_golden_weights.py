"""The same seed gives the same weights, bit for bit, as the code of November 2026 gave: a change of them is noticed.

The hashes are those of the tensors of commit d0a0439, by name. Another version of torch, or other instructions of the
processor, round in another way: where none of the hashes is known, the tests are skipped.
"""

import hashlib

import pytest
import torch
from helpers.training import weights

import branchwork as bw

# By torch's version and the processor's capability: of `residual` as written and of `inception` collapsed.
GOLDEN = {
    ("2.13.0+cpu", "AVX2"): {
        "residual": "044d5bce7fd9aa2802180ab56f5f66a3770f4ffc07e6bffef0ab3d9bbdee4031",
        "inception": "8d6eb09360e0ac9536226b256c533909d08bdea8d229ba9876b2f31e478d0b4d",
    },
}
KEY = (str(torch.__version__), torch.backends.cpu.get_cpu_capability())


@pytest.mark.skipif(KEY not in GOLDEN, reason=f"no hash is known for torch {KEY[0]} with {KEY[1]}")
@pytest.mark.parametrize(("net", "execute"), [("residual", "written"), ("inception", "collapsed")])
def test_the_same_seed_gives_the_weights_that_it_always_gave(small, net, execute):
    recipe = bw.fast(net).but({"epochs": 2, "batch_size": 250, "precision": "fp32", "shift": 2.0, "ema": 0.9})
    options = bw.Options(device="cpu", threads=1, execute=execute)
    bw.train(net, data=small, recipe=recipe, options=options, out="run")
    digest = hashlib.sha256()
    for name, tensor in sorted(weights("run").items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == GOLDEN[KEY][net]

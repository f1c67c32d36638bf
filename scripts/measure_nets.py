"""Trace every net of the catalogue and write its size into branchwork/catalogue/sizes.json for `branchwork nets`."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

import branchwork
from branchwork.catalogue.resolve import defaults_of
from branchwork.catalogue.sizes import NetSize
from branchwork.files import write_whole
from branchwork.graph.trace import trace

SIZES = Path(branchwork.__file__).parent / "catalogue/sizes.json"


def measure(name: str) -> NetSize:
    design = defaults_of(name)
    assert design is not None, f"{name} is in the catalogue"
    with torch.device("meta"):
        net = branchwork.NETS[name]()
        traced = trace(net, design.input_shape)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return NetSize(
        name, design.input_shape, design.num_classes, parameters, sum(node.macs for node in traced.operations)
    )


if __name__ == "__main__":
    lines = (json.dumps(asdict(measure(name))) for name in branchwork.NETS)
    write_whole(SIZES, "[\n  " + ",\n  ".join(lines) + "\n]\n")

"""Time training at 224 pixels, batch 16: torchvision's model in a plain fp32 loop, and ours, alternating.

    python -m benchmarks.photos --json FILE --torchvision FOLDER

torchvision is not a dependency, and its wheel does not fit every build of torch: install it with
`pip install --no-deps --target FOLDER torchvision`. Its models run once the operators of its compiled part are
declared. Figures are seconds per step: forward, backward and optimiser.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cyclopts import App
from torch import nn
from torch.nn import functional as F

import branchwork
from benchmarks.process import JsonFile
from branchwork.datasets.dataset import DataSet, Split
from branchwork.files import write_json

SIZE, BATCH_SIZE, CLASSES = 224, 16, 10
# By our names: GoogLeNet with 3×3 in place of 5×5, as in torchvision.
NETS = {"googlenet[b5=3x3]": "googlenet", "resnet18": "resnet18", "resnet50": "resnet50"}

app = App(result_action="return_value")


def import_models(folder: Path) -> Any:
    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    sys.path.insert(0, str(folder))
    import torchvision

    return torchvision.models


def plain(model: nn.Module, data: Split) -> None:
    """Train an epoch as tutorials do."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for images, labels in zip(data.images.split(BATCH_SIZE), data.labels.split(BATCH_SIZE), strict=True):
        loss = F.cross_entropy(model(images.float() / 255), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@app.default
def main(*, json_file: JsonFile, torchvision: Path, steps: int = 6, turns: int = 3) -> None:
    models = import_models(torchvision)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH_SIZE * steps, 3, SIZE, SIZE), dtype=torch.uint8)
    split = Split(images, torch.arange(len(images)) % CLASSES)
    classes = tuple("abcdefghij")
    data = DataSet("noise", split, split.pick(torch.arange(2)), classes, (0.5,) * 3, (0.25,) * 3, "crop", "random")
    seconds: dict[str, list[float]] = {}  # seconds per step
    for ours, theirs in NETS.items():
        options = {"aux_logits": False, "transform_input": False} if theirs == "googlenet" else {}
        recipe = branchwork.photos(theirs).but(
            {"epochs": 1, "batch_size": BATCH_SIZE, "learning_rate": 0.01, "validation": 0.0}
            | {"auxiliary": 0.0, "flip": 0.0, "crop": 0.0, "colour": 0.0}
        )
        for _ in range(turns):
            model = (
                models.get_model(theirs, num_classes=CLASSES, init_weights=True, **options)
                if options
                else (models.get_model(theirs, num_classes=CLASSES))
            )
            began = time.perf_counter()
            plain(model, split)
            seconds.setdefault(f"{theirs} torchvision", []).append((time.perf_counter() - began) / steps)
            with tempfile.TemporaryDirectory() as folder:
                result = branchwork.train(ours, data=data, recipe=recipe, out=Path(folder) / "run")
            seconds.setdefault(f"{theirs} branchwork", []).append(BATCH_SIZE / result.images_per_second)
            write_json(json_file, seconds)


if __name__ == "__main__":
    app()

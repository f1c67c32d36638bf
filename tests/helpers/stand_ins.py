"""Just enough of the packages that learners' scripts import to run the scripts: tiny data, and no work."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import torch
import torch._dynamo  # noqa: F401  # optimisers import it, and it asks for packages that are stood in for here


class Images(torch.utils.data.Dataset):
    """Eight black pictures; like torchvision's, it makes a folder."""

    classes = "0123456789"

    def __init__(self, root, *args, **options):
        Path(root).mkdir(parents=True, exist_ok=True)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return torch.zeros(1, 28, 28), index


def module(name: str, **values: object) -> ModuleType:
    made = MagicMock(name=name)
    made.__spec__ = made.__path__ = None
    made.__all__ = [key for key in values]
    for key, value in values.items():
        setattr(made, key, value)
    return made


@contextmanager
def stand_ins() -> Iterator[None]:
    """Put them where scripts import them from."""
    datasets = module("datasets", MNIST=Images, FashionMNIST=Images, CIFAR10=Images)
    torchvision = module("torchvision", datasets=datasets)
    # Without these, as a script would find out.
    torchvision.ops.SqueezeExcitation = torchvision.models.ResNet = torchvision.tv_tensors.Image = type("Other", (), {})
    given = {
        "torchvision": torchvision, "torchvision.datasets": datasets, "torchvision.transforms": torchvision.transforms,
        "torchvision.models": torchvision.models, "torchvision.ops": torchvision.ops, "d2l": module("d2l"),
        "torchsummary": module("torchsummary"), "wandb": module("wandb"), "requests": MagicMock(),
        "pandas": module("pandas"), "fastai": module("fastai"), "fastai.vision": module("vision"),
        "fastai.vision.all": module("all", **dict.fromkeys(
            ("untar_data", "URLs", "ImageDataLoaders", "Learner"), MagicMock())),
        "jaxtyping": module("jaxtyping"), "torch.utils.tensorboard": module("tensorboard"),
    }  # fmt: skip
    given["d2l"].torch = given["d2l.torch"] = module("d2l.torch", try_gpu=lambda: torch.device("cpu"))
    given["d2l"].torch.load_data_fashion_mnist = lambda *_, **__: ([], [])
    given["requests"].get.return_value.content = b"content"
    before = {name: sys.modules.get(name) for name in given}
    sys.modules.update(given)
    try:
        yield
    finally:
        for name, old in before.items():
            sys.modules.pop(name)
            if old is not None:
                sys.modules[name] = old

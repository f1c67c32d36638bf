"""Branchwork: convolutional networks that branch (Inception) and skip (residual).

Each verb of the command is a function here with the same name, returns a value and prints nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from branchwork.blocks import Add as Add
    from branchwork.blocks import Concat as Concat
    from branchwork.blocks import InceptionA as InceptionA
    from branchwork.blocks import ResidualBlock as ResidualBlock
    from branchwork.catalogue import list_nets as list_nets
    from branchwork.datasets.describe import data as data
    from branchwork.datasets.load import load_data as load_data
    from branchwork.datasets.pack import pack as pack
    from branchwork.deploy.bench import bench as bench
    from branchwork.deploy.export import export as export
    from branchwork.errors import BranchworkError as BranchworkError
    from branchwork.explaining.attribution import explain_pictures as explain_pictures
    from branchwork.explaining.contributions import explain as explain
    from branchwork.explaining.select import select as select
    from branchwork.fusing.fuse import collapse as collapse
    from branchwork.fusing.fuse import fuse as fuse
    from branchwork.graph.trace import trace as trace
    from branchwork.inspection.bottlenecks import reduction as reduction
    from branchwork.inspection.lint import lint as lint
    from branchwork.inspection.table import inspect as inspect
    from branchwork.nets import NETS as NETS
    from branchwork.nets.build import build_net as build_net
    from branchwork.nets.weights import lecture_state_dict as lecture_state_dict
    from branchwork.nets.weights import load_weights as load_weights
    from branchwork.studies.study import study as study
    from branchwork.training.demo import demo as demo
    from branchwork.training.evaluate import evaluate as evaluate
    from branchwork.training.predict import predict as predict
    from branchwork.training.recipe import Recipe as Recipe
    from branchwork.training.recipe import best as best
    from branchwork.training.recipe import course as course
    from branchwork.training.recipe import digits as digits
    from branchwork.training.recipe import fast as fast
    from branchwork.training.recipe import photos as photos
    from branchwork.training.run import load_run as load_run
    from branchwork.training.seeds import resume_seeds as resume_seeds
    from branchwork.training.seeds import train_seeds as train_seeds
    from branchwork.training.train import resume as resume
    from branchwork.training.train import train as train

# Imported when first asked for, so that `branchwork --help` need not wait for torch.
_HOMES = {
    "Add": "blocks",
    "BranchworkError": "errors",
    "Concat": "blocks",
    "InceptionA": "blocks",
    "NETS": "nets",
    "Recipe": "training.recipe",
    "ResidualBlock": "blocks",
    "bench": "deploy.bench",
    "best": "training.recipe",
    "build_net": "nets.build",
    "collapse": "fusing.fuse",
    "course": "training.recipe",
    "digits": "training.recipe",
    "data": "datasets.describe",
    "demo": "training.demo",
    "evaluate": "training.evaluate",
    "explain": "explaining.contributions",
    "explain_pictures": "explaining.attribution",
    "export": "deploy.export",
    "fast": "training.recipe",
    "fuse": "fusing.fuse",
    "inspect": "inspection.table",
    "lecture_state_dict": "nets.weights",
    "list_nets": "catalogue",
    "lint": "inspection.lint",
    "load_data": "datasets.load",
    "load_run": "training.run",
    "load_weights": "nets.weights",
    "pack": "datasets.pack",
    "photos": "training.recipe",
    "predict": "training.predict",
    "resume": "training.train",
    "resume_seeds": "training.seeds",
    "reduction": "inspection.bottlenecks",
    "select": "explaining.select",
    "study": "studies.study",
    "trace": "graph.trace",
    "train": "training.train",
    "train_seeds": "training.seeds",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'branchwork' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"branchwork.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

# The public names and their homes: `__init__.py` reads this file, and so do type checkers.

from .blocks import Add as Add
from .blocks import Concat as Concat
from .blocks import InceptionA as InceptionA
from .blocks import ResidualBlock as ResidualBlock
from .comparing.compare import compare as compare
from .datasets.describe import data as data
from .datasets.load import load_data as load_data
from .datasets.pack import pack as pack
from .deploy.bench import BenchOptions as BenchOptions
from .deploy.bench import bench as bench
from .deploy.export import export as export
from .deploy.shipped import ExportOptions as ExportOptions
from .errors import BranchworkError as BranchworkError
from .explaining.attribution import explain_pictures as explain_pictures
from .explaining.select import select as select
from .explaining.selection import Goal as Goal
from .explaining.worth import explain as explain
from .fusing.fuse import collapse as collapse
from .fusing.fuse import fuse as fuse
from .graph.bottlenecks import reduction as reduction
from .graph.trace import trace as trace
from .inspection.lint import lint as lint
from .inspection.table import inspect as inspect
from .catalogue.builders import NETS as NETS
from .catalogue.resolve import build_net as build_net
from .catalogue.sizes import nets as nets
from .catalogue.weights import lecture_state_dict as lecture_state_dict
from .catalogue.weights import load_weights as load_weights
from .observer import Observer as Observer
from .page.serve import ui as ui
from .studies.study import StudyOptions as StudyOptions
from .studies.study import study as study
from .training.evaluate import evaluate as evaluate
from .training.options import Options as Options
from .training.predict import predict as predict
from .training.recipe import (
    Recipe as Recipe,
)
from .training.recipe import (
    best as best,
)
from .training.recipe import (
    course as course,
)
from .training.recipe import (
    digits as digits,
)
from .training.recipe import (
    fast as fast,
)
from .training.recipe import (
    photos as photos,
)
from .training.run import load_run as load_run
from .training.train import (
    demo as demo,
)
from .training.train import (
    resume as resume,
)
from .training.train import (
    resume_seeds as resume_seeds,
)
from .training.train import (
    train as train,
)
from .training.train import (
    train_seeds as train_seeds,
)

__version__: str

"""The plan of a training: everything that it depends on, checked before anything is written."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from branchwork.catalogue.published import CHANNELS, IMAGENET, published_for
from branchwork.catalogue.resolve import absolute_name, whole_script
from branchwork.catalogue.weights import Normalisation
from branchwork.datasets.batches import train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.folder import check_unicode
from branchwork.errors import DataError, RecipeError, WeightsError
from branchwork.graph.untouched import alone
from branchwork.language import say
from branchwork.observer import Observer, need_tensorboard
from branchwork.training.auxiliary import check_heads
from branchwork.training.batch_size import fitting_batch, images_per_second
from branchwork.training.infer import pick_device, pick_precision
from branchwork.training.machine import compiler_problem, process_settings
from branchwork.training.options import Options, check_threads
from branchwork.training.pretrained import load_start
from branchwork.training.processes import Processes
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import fast
from branchwork.training.run import Model, check_net
from branchwork.training.state import freeze_body, make_state


@dataclass(frozen=True)
class Plan:
    """Everything that a training depends on, enough to start it again in another process.

    `checksum` is that of the training data. `size` and `fit` say to what size the user's own pictures were brought, and
    how. `normalisation` is the mean and standard deviation expected by the weights it starts from, if not the data's;
    grey images get as many equal channels as it has. `fold` is which fold of the training data it is tested on, of how
    many; None if it is tested on the test data.
    """

    net: str
    data: str
    checksum: int
    recipe: Recipe
    options: Options
    precision: str
    size: tuple[int, int] | None = None
    fit: str | None = None
    normalisation: Normalisation | None = None
    fold: tuple[int, int] | None = None

    def name_of(self, data: DataSet) -> str:
        """Return the name of the test data: that of the data set, or `DATA, fold 2 of 5`."""
        if self.fold is None:
            return data.name
        fold, folds = self.fold
        return say("{data}, fold {fold} of {folds}", data=data.name, fold=fold, folds=folds)


def make_plan(
    net: str,
    data: DataSet,
    *,
    recipe: Recipe | None = None,
    options: Options | None = None,
    processes: Processes | None = None,
    observer: Observer | None = None,
) -> Plan:
    """Check a training before anything is written, and return its plan, with a number for every `auto`.

    Published weights that it starts from are downloaded, of which `observer` is told. Raises `RecipeError`,
    `DataError`, `NetError` or `WeightsError` for what cannot be trained.
    """
    recipe, options = recipe or fast(net, len(data.train)), options or Options()
    check_threads(options.threads, RecipeError)
    if options.log:
        need_tensorboard()
    check_unicode(data.argument, DataError)
    check_heads(net, recipe, options)
    if recipe.head_epochs and options.weights is None:
        raise RecipeError(
            "the recipe trains only the head in the first {count} epochs, but the body has no weights yet: give "
            "--weights imagenet, or a run or a file; or --head-epochs 0",
            count=recipe.head_epochs,
        )
    device = pick_device(options.device)
    if recipe.batch_norm == "shared" and device.type != "cuda":
        raise RecipeError("batch_norm = shared needs GPUs, but the device is {device}: leave it out", device=device)
    train, _ = train_and_validation(data, recipe.validation, options.seed, used=recipe.fraction)
    if recipe.batch_size != "auto" and recipe.batch_size > len(train):
        raise RecipeError(
            "batch_size must be at most {train}, the number of training images, got {batch_size}",
            train=len(train),
            batch_size=recipe.batch_size,
        )
    plan = Plan(
        net=absolute_name(whole_script(net, run=options.run_script)),
        data=data.argument,
        checksum=data.train.checksum(),
        recipe=recipe,
        options=replace(
            options,
            device=str(device),  # without the number of a GPU: of several processes, each has another
            threads=options.threads or torch.get_num_threads(),
            weights=options.weights if options.weights in (None, IMAGENET) else str(Path(options.weights).resolve()),
        ),
        precision=pick_precision(recipe.precision, device),
        size=data.image_size if data.path else None,
        fit=data.pictures if data.path else None,
    )
    problem = compiler_problem(device)
    if options.compile and problem is not None:
        raise RecipeError("{problem}, or leave out --compile", problem=problem)
    # Built here only to be checked, before a folder is made: the training builds it again, from its seed.
    if options.weights is None:
        model, built = _build(plan, data)
    else:
        model, built, normalisation = _start(plan, data, observer or Observer())
        plan = replace(plan, normalisation=normalisation)
    if options.freeze:
        freeze_body(built)
    return (
        plan
        if recipe.batch_size != "auto"
        else _measure_batch_size(plan, model, built, train=train, processes=processes)
    )


def _build(plan: Plan, data: DataSet) -> tuple[Model, nn.Module]:
    model = Model.of(plan.net, data, plan.recipe)
    with alone():
        built = model.builder()()
        check_net(built, model)
    return model, built


def _start(plan: Plan, data: DataSet, observer: Observer) -> tuple[Model, nn.Module, Normalisation | None]:
    """Return the net with the weights that the training starts from, and the normalisation that they expect.

    If they do not fit grey images, but three equal channels, these are meant. Raises `WeightsError`.
    """
    weights, problem = plan.options.weights, None
    assert weights is not None
    if weights == IMAGENET:
        published_for(plan.net, data.image_size)  # before a net without any is built
    for channels in dict.fromkeys((CHANNELS,) if weights == IMAGENET else (data.channels, CHANNELS)):
        images = data.expand(channels)
        model, built = _build(plan, images)
        try:
            loaded, _ = load_start(built, model, weights, observer=observer)
        except WeightsError as reason:
            problem = problem or reason
            continue
        repeated = (images.mean, images.std) if images.channels != data.channels else None
        return model, built, loaded.normalisation or repeated
    assert problem is not None
    raise problem


def _measure_batch_size(plan: Plan, model: Model, net: nn.Module, *, train: Split, processes: Processes | None) -> Plan:
    """Return `plan` with the batch size that steps of `net` show to be best; the steps leave `net` useless."""
    recipe, options, processes = plan.recipe, plan.options, processes or Processes()
    device, pieces = processes.device(options.device), recipe.accumulate * processes.count
    most = max(2, len(train) // pieces)
    trial = recipe.but({"batch_size": most, "accumulate": 1})
    few = train.pick(torch.arange(min(len(train), 64))).expand(model.in_channels)
    with process_settings(options.threads, device):
        state = make_state(net, model, recipe=trial, options=options, precision=plan.precision)
        images = Split(few.images.to(device), few.labels.to(device))
        rate_of = partial(images_per_second, state=state, images=images, recipe=trial)
        fitting = fitting_batch(rate_of, most, device)
    return replace(plan, recipe=recipe.but({"batch_size": min(len(train), fitting * pieces)}))

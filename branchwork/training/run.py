"""The run folder: a training's recipe, figures, weights and report. Each file appears whole or not at all."""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchwork.catalogue.builders import NETS
from branchwork.catalogue.reading import places
from branchwork.catalogue.resolve import find_builder, in_script, own_script, split_options
from branchwork.catalogue.script import script_files
from branchwork.catalogue.statements import SUFFIXES
from branchwork.catalogue.weights import load_weights
from branchwork.datasets.dataset import DataSet
from branchwork.datasets.folder import check_unicode
from branchwork.datasets.placing import METHODS
from branchwork.errors import FAILURES, NetError, RunError, first_line, system_words, with_kind, with_line
from branchwork.files import (
    check_permission,
    check_writable,
    make_folder,
    printable,
    read_json,
    reading,
    typed,
    with_format,
    write_json,
    write_whole,
)
from branchwork.graph.teach import failure
from branchwork.graph.untouched import alone
from branchwork.language import say, times
from branchwork.tensors import write_tensors
from branchwork.training.recipe import Recipe
from branchwork.training.trust import TRUSTING, is_trusted, remember

RECIPE, METRICS, RESULT = "recipe.toml", "metrics.jsonl", "result.json"
WEIGHTS, MODEL, STATE, REPORT = "model.safetensors", "model.json", "last/state.safetensors", "report.html"
TOP = "top/epochs.json"
FILES = (RECIPE, METRICS, RESULT, WEIGHTS, MODEL, STATE, REPORT, TOP)
SEEDS, FOLDS, STEPS, SCRIPTS = "seeds.json", "folds.json", "steps.json", "script"


@dataclass(frozen=True)
class Model:
    """What is needed to use the weights of a run: the net, its input, its classes; stored as `model.json`.

    `recipe` is the one that the net was trained with; None for a net that was not trained by Branchwork.
    """

    net: str
    in_channels: int
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: str
    data: str
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        whole = self.in_channels >= 1 and min(self.image_size) >= 1
        if not whole or len(self.mean) != self.in_channels or len(self.std) != self.in_channels or min(self.std) <= 0:
            raise ValueError(say("its image size, channels, mean and standard deviation do not match"))
        if not self.classes or len(set(self.classes)) < len(self.classes) or self.pictures not in METHODS:
            raise ValueError(say("its class names are missing or repeated, or its way of placing pictures is unknown"))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one image that the net takes, C×H×W."""
        return (self.in_channels, *self.image_size)

    @classmethod
    def of(cls, net: str, data: DataSet, recipe: Recipe | None = None) -> "Model":
        return cls(
            net,
            data.channels,
            data.image_size,
            data.classes,
            data.mean,
            data.std,
            data.pictures,
            data.argument,
            recipe,
        )

    def builder(self) -> Callable[[], nn.Module]:
        """Return a function that builds the net with fresh weights. Raises `NetError`."""
        return find_builder(
            self.net, in_channels=self.in_channels, num_classes=len(self.classes), image_size=self.image_size
        )


@dataclass(frozen=True)
class TrainedNet:
    """A net in eval mode with the weights of a run, its description, and its folder."""

    net: nn.Module
    model: Model
    folder: Path


def load_run(folder: str | Path, *, trust: bool = False) -> TrainedNet:
    """Load the trained net of a run folder.

    The folder may hold code: a net of somebody's own. It is run only if this user trained it here, or trusts it by
    `trust`, once. Raises `RunError` if not, and `RunError` or `WeightsError` if files are missing or damaged.
    """
    folder = Path(folder)
    path = folder / MODEL
    check_permission(folder)
    if not os.path.exists(path):
        for several, first in ((SEEDS, "seed-0"), (FOLDS, "fold-1")):
            if holds(folder, several):
                raise RunError(
                    "{folder} holds several runs: name one of them, such as {folder}/{first}",
                    folder=folder,
                    first=first,
                )
        if holds(folder, STEPS):
            raise RunError(
                "{folder} holds an interrupted selection: run branchwork select again with --out {folder}",
                folder=typed(folder),
            )
        raise RunError(
            "{folder} holds no trained net ({model} is missing): give a run folder made by branchwork train, or finish "
            "this one with branchwork train --resume {folder}"
            if holds(folder, STATE)
            else "{folder} holds no trained net ({model} is missing): give a run folder made by branchwork train",
            folder=typed(folder),
            model=MODEL,
        )
    model = read_json(path, Model)
    check_code(folder, model.net, trust=trust)
    with alone():
        net = dataclasses.replace(model, net=kept_net(folder, model.net)).builder()()
        load_weights(net, folder)
        check_net(net, model)
    return TrainedNet(net.eval(), model, folder)


def write_model(folder: Path, weights: Mapping[str, Tensor], model: Model) -> None:
    write_json(folder / MODEL, with_format(model))
    write_tensors(folder / WEIGHTS, weights)


def write_top(folder: Path, history: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], *, count: int) -> None:
    """Keep the `count` best epochs of `history` as `top/epoch-N.safetensors`, and their figures in `top/epochs.json`.

    `weights` are those of the last epoch. The best epoch has the highest validation accuracy; of equal ones, the later.
    """
    best = sorted(history, key=lambda epoch: (epoch["validation_accuracy"], epoch["epoch"]), reverse=True)[:count]
    names = {epoch["epoch"]: f"epoch-{epoch['epoch']}.safetensors" for epoch in best}
    last = history[-1]["epoch"]
    if last in names:
        write_tensors(folder / "top" / names[last], weights)
    figures = ("epoch", "validation_accuracy", "train_loss")
    write_json(
        folder / TOP, [{"file": names[epoch["epoch"]], **{key: epoch[key] for key in figures}} for epoch in best]
    )
    for file in (folder / "top").glob("epoch-*.safetensors"):
        if file.name not in names.values():
            try:
                file.unlink()
            except OSError as reason:
                raise RunError(
                    "cannot remove {file}: {strerror}. Remove it yourself.", file=file, strerror=system_words(reason)
                ) from reason


def keep_script(folder: Path, net: str) -> None:
    """Keep a learner's script in `folder/script`, with the files beside it that it imports, and trust it.

    The weights belong to this version of it. Raises `RunError` if something else lies there already.
    """
    script = own_script(net)
    files = {} if script is None else kept_files(script)
    kept = _contents(folder / SCRIPTS) if files else {}
    if not kept.items() <= files.items():  # a start that failed may have left some of them
        raise RunError("{folder} holds another script: choose another --out", folder=folder / SCRIPTS)
    for name in files.keys() - kept.keys():
        write_whole(folder / SCRIPTS / name, files[name])
    if _has_code(net):
        remember(net, files)


def check_code(folder: Path, net: str, *, trust: bool = False) -> None:
    """Trust the code that the run `folder` needs to build `net`, with `trust` or inside `trusting`.

    Raises `RunError` for code that this user neither trained here nor trusts.
    """
    if not _has_code(net):
        return
    script = own_script(net)
    kept = {} if script is None else _contents(folder / SCRIPTS)
    files = kept or ({} if script is None else script_files(script))
    if trust or TRUSTING.get():
        remember(net, files)
    elif not is_trusted(net, files):
        paths = sorted(folder / SCRIPTS / path if kept else path for path in files)
        raise RunError(
            "{folder} was not trained here, and its net is code, which would be run: {code}. Code can do anything that "
            "you can, so read it first. If you trust it, add --trust to the command, or call branchwork.load_run("
            "{name!r}, trust=True) in Python; once is enough",
            folder=folder,
            name=str(folder),
            code=", ".join(map(printable, [net, *map(str, paths)])),
        )


def _has_code(net: str) -> bool:
    return split_options(net)[0] not in NETS


def kept_net(folder: Path, net: str) -> str:
    """Return the net argument of a run: with the script itself if it is unchanged, else with the run's copy.

    Raises `RunError` if that would import files beside the copies.
    """
    script, kept = own_script(net), _contents(folder / SCRIPTS)
    if script is None or not kept:
        return net
    with suppress(NetError, OSError):  # it was lost, or broken
        if kept_files(script) == kept:
            return net
    copy = folder / SCRIPTS / _main(script, kept)
    strangers = [path for path in script_files(str(copy)) if (folder / SCRIPTS).absolute() not in path.parents]
    if strangers:
        raise RunError(
            "{file} does not belong to this run, but the run's script would import it: move it elsewhere",
            file=printable(strangers[0]),
        )
    return in_script(net, copy)


def kept_files(script: str) -> dict[Path, bytes]:
    """Return what is kept of a script, by its path in the run's folder."""
    contents = script_files(script)
    root = Path(os.path.commonpath([places(path)[-1] for path in contents]))
    while True:
        files = {path.relative_to(root): content for path, content in contents.items()}
        if root / _main(script, files) == Path(os.path.abspath(script)):
            return files
        root = root.parent  # where one file's path ends like another's


def _main(script: str, names: Iterable[Path]) -> Path:
    """Return which of the files kept in a run is the script: the longest that its path ends with."""
    foreign = PureWindowsPath(script)  # of a run that comes from there
    parts = foreign.parts if foreign.is_absolute() else Path(os.path.abspath(script)).parts
    ends = [name for name in names if parts[-len(name.parts) :] == name.parts]
    if not ends:
        raise RunError("the run holds no copy of {script}: copy the run again, or train again", script=script)
    return max(ends, key=lambda name: len(name.parts))


def _contents(folder: Path) -> dict[Path, bytes]:
    """Return all files of a folder, by their paths in it: Python also runs others than those that end in .py."""
    contents = {}
    for path in folder.rglob("*"):
        is_place = path.is_dir() and not path.is_symlink() and path.suffix not in SUFFIXES
        if not is_place:
            with reading(path):
                contents[path.relative_to(folder)] = path.read_bytes()
    return contents


def holds(folder: Path, *names: str) -> list[str]:
    """Return which of `names` exist in `folder`."""
    return [name for name in names if os.path.exists(folder / name)]


def claim_folder(out: str | Path | None, default_name: str) -> Path:
    """Return a folder for a new run: `out`, or the first free one of `runs/NAME-1`, `-2` and so on.

    Raises `RunError` if `out` already holds a run or cannot be written.
    """
    folder = _first_free(default_name) if out is None else Path(out)
    check_unicode(folder, RunError)
    held = holds(folder, *FILES, SEEDS, FOLDS)
    if held:
        raise RunError(
            "{folder} holds another run ({held}): choose another --out"
            if RESULT in held
            else "{folder} holds another run ({held}): continue it with branchwork train --resume {folder}, or choose "
            "another --out",
            folder=typed(folder),
            held=", ".join(held),
        )
    check_writable(folder / RESULT)
    return folder


def _first_free(name: str) -> Path:
    """Return the first free folder of `runs/NAME-1`, `-2`, …

    It is created at once, so that two trainings started together do not share it.
    """
    number = 0
    while True:
        number += 1
        folder = Path("runs") / f"{name}-{number}"
        try:
            make_folder(folder, exist_ok=False)
        except FileExistsError:
            continue
        except OSError:
            pass  # check_writable says why
        return folder


def check_net(net: nn.Module, model: Model) -> None:
    """Raise `NetError` unless `net` returns one logit per class and image, in train and eval mode, and can be trained.

    A copy of it runs forward once in each mode, since a learner's net can fail in either, and backward once.
    """
    shape = model.input_shape
    _check_state(net, model.net)
    for mode in (True, False):
        # Two images: a batch norm in train mode refuses one, and with two a view that mixes images is noticed.
        try:
            twin = copy.deepcopy(net).train(mode)
        except FAILURES as reason:
            raise NetError(
                "{net} cannot be copied: {reason}. Do not keep computed tensors as attributes, and "
                "use weight_norm and spectral_norm of torch.nn.utils.parametrizations, not of torch.nn.utils",
                net=model.net,
                reason=first_line(reason),
            ) from reason
        try:
            with torch.set_grad_enabled(mode):
                output = twin(torch.zeros(2, *shape))
        except FAILURES as reason:
            mine = NetError(
                "{net} cannot take images of {shape}: {reason}",
                net=model.net,
                shape=times(shape),
                reason=with_line(with_kind(reason), reason),
            )
            raise failure(net, shape) or mine from reason
        check_output(output, len(model.classes), model.net)
        if mode:
            _check_learning(twin, output, model.net)


def _check_state(net: nn.Module, name: str) -> None:
    """Raise `NetError` if a run cannot hold what `net` keeps, or if its weights have a precision of their own."""
    for path, value in net.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise NetError(
                "{name} keeps `{path}` with its weights, which a run cannot store ({kind}): register it with "
                "persistent=False, or leave out get_extra_state",
                name=name,
                path=path,
                kind=f"{value.layout}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__,
            )
    for path, parameter in net.named_parameters():
        if parameter.dtype != torch.float32:
            raise NetError(
                "`{path}` of {name} is {dtype}: leave out .half() and .double(); --precision says what numbers a "
                "training computes in",
                name=name,
                path=path,
                dtype=str(parameter.dtype).removeprefix("torch."),
            )


def _check_learning(net: nn.Module, logits: Tensor, name: str) -> None:
    """Run one backward pass: a net whose logits have no gradient can be run but not trained."""
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise NetError(
            "{name} has no parameter to train: give it layers, and do not switch off requires_grad", name=name
        )
    try:
        F.cross_entropy(logits.float(), torch.zeros(2, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
    except FAILURES as reason:
        raise NetError(
            "{name} cannot be trained: no gradient flows back from its logits ({reason}). Look for no_grad, detach(), "
            ".item() or an in-place operation",
            name=name,
            reason=reason,
        ) from reason


def check_output(output: object, classes: int, net: str) -> None:
    """Raise `NetError` unless `output` is what a net must return for two images: one logit per class and image."""
    if output is None:
        raise NetError("{net}: forward returns nothing: end it with `return x`", net=net)
    if not isinstance(output, Tensor):
        found = type(output).__name__
        raise NetError(
            "{net} returns a {found}, but one tensor of logits is needed: return only the logits", net=net, found=found
        )
    if tuple(output.shape) == (2, classes):
        return
    rows = output.shape[0] if output.dim() else 0
    if output.dim() == 2 and rows != 2:
        raise NetError(
            "{net} turns 2 images into {rows} rows: a view mixes them; write x.view(x.size(0), -1)", net=net, rows=rows
        )
    found = times(tuple(output.shape[1:]))
    raise NetError(
        "{net} returns {found} numbers per image, but {classes} are needed: one logit per class",
        net=net,
        found=found,
        classes=classes,
    )

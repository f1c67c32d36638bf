"""Weights that a training or a prediction starts from: the published ones, which are fetched, or a file or run."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from branchwork.catalogue.published import (
    CHANNELS,
    IMAGENET,
    MIRRORS,
    PUBLISHED,
    SIDE,
    Published,
    imagenet_classes,
    published_for,
)
from branchwork.catalogue.resolve import find_builder
from branchwork.catalogue.weights import Loaded, load_weights
from branchwork.datasets.download import checksum_problem
from branchwork.datasets.sources import cache_folder
from branchwork.datasets.weight_files import fetch_weights
from branchwork.errors import WeightsError
from branchwork.graph.untouched import alone
from branchwork.language import say, times
from branchwork.observer import Observer
from branchwork.training.run import Model, TrainedNet


def load_start(net: nn.Module, model: Model, weights: str, *, observer: Observer) -> tuple[Loaded, tuple[str, ...]]:
    """Load `weights` into `net`: `imagenet`, a file or a run folder; the head is new if it has other classes.

    `model` describes the net. Also returns what to tell the user: of published weights their file, what was kept, and
    the images that they expect; of others, what was kept. Raises `WeightsError`.
    """
    published = published_for(model.net, model.image_size) if weights == IMAGENET else _published_as(weights)
    if published is None:
        loaded = load_weights(net, weights, new_head=True)
        return loaded, (str(loaded),)
    path, origin = _find(published, weights, observer)
    loaded = replace(load_weights(net, path, new_head=True), source=published.file, checked=True)
    return loaded, (_where_from(published, origin), str(loaded), _what_images(loaded, model))


def _published_as(weights: str) -> Published | None:
    """Return which published weights the file is, by its name; None if it is none of them."""
    return next((each for each in PUBLISHED.values() if each.file == Path(weights).name), None)


def _find(published: Published, weights: str, observer: Observer) -> tuple[Path, str]:
    """Return the checked file of published weights, and where it came from.

    If `weights` are `imagenet`, it is downloaded unless a cache has it: our own or torch's, where torchvision keeps the
    same files. Else `weights` is that file. Raises `WeightsError`.
    """
    if weights == IMAGENET:
        return fetch_weights(
            published.file,
            published.digits,
            mirrors=MIRRORS,
            places=(cache_folder() / "weights", Path(torch.hub.get_dir()) / "checkpoints"),
            megabytes=published.megabytes,
            observer=observer,
        )
    problem = checksum_problem(Path(weights), weights, "sha256", published.digits)
    if problem is not None:
        raise WeightsError(
            "{problem}. Download it again from {url}", problem=problem, url=f"{MIRRORS[0]}{published.file}"
        )
    return Path(weights), str(Path(weights).parent)


def _where_from(published: Published, origin: str) -> str:
    return say(
        "weights: {file} of torchvision, {accuracy:.1%} on ImageNet; from {origin}; its SHA-256 begins with {digits}, "
        "as its name says",
        file=published.file,
        accuracy=published.accuracy,
        origin=origin,
        digits=published.digits,
    )


def _what_images(loaded: Loaded, model: Model) -> str:
    """Return how images are normalised, and whether they have the size that the weights were trained on."""
    assert loaded.normalisation is not None
    mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in loaded.normalisation)
    return say(
        "images are normalised as these weights expect: mean {mean}, standard deviation {std}; they were trained on "
        "images of {side}×{side}"
        if model.image_size == (SIDE, SIDE)
        else "images are normalised as these weights expect: mean {mean}, standard deviation {std}; they were trained "
        "on images of {side}×{side}, and yours are {shape}: --size {side} is usually more accurate, and slower",
        mean=mean,
        std=std,
        side=SIDE,
        shape=times(model.image_size),
    )


def load_pretrained(net: str, weights: str, observer: Observer) -> TrainedNet:
    """Return a net of the catalogue with the weights that torchvision publishes for it, as they were tested.

    `weights` are `imagenet`, or such a file. Its classes are those of ImageNet. Raises `WeightsError`.
    """
    published, path = published_for(net), Path(weights)
    if weights == IMAGENET or path.name == published.file:
        path, origin = _find(published, weights, observer)
        observer.note(_where_from(published, origin))
    with alone():
        classes = imagenet_classes()
        built = find_builder(net, in_channels=CHANNELS, num_classes=len(classes), image_size=SIDE)()
    loaded = load_weights(built, path)
    if loaded.normalisation is None or path.is_dir():
        raise WeightsError(
            "{path} was not published by torchvision, so the names of its classes are unknown: give its run folder "
            "instead of {net}, or --weights imagenet",
            path=path,
            net=net,
        )
    mean, std = loaded.normalisation
    # Older files of a net have other names, and were all tested on pictures of 256 pixels.
    pictures = published.pictures if path.name == published.file else "centre-256"
    model = Model(net, CHANNELS, (SIDE, SIDE), classes, mean, std, pictures, IMAGENET)
    return TrainedNet(built.eval(), model, path.parent)

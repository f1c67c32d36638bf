"""Starting from published weights: a server on this machine publishes files in torchvision's names and shapes."""

import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import fill, two_classes
from helpers.torchvision_files import GOLDEN, NARROW, Publisher, named, narrow, picture, publishing
from helpers.training import StopAt, same, weights
from torch import nn

import branchwork as bw
from branchwork.catalogue import published
from branchwork.catalogue.builders import NETS
from branchwork.catalogue.published import PUBLISHED, imagenet_classes, published_for
from branchwork.catalogue.resnet import DESIGNS, ResidualDesign, _for_imagenet
from branchwork.datasets import download
from branchwork.datasets.batches import epoch_order, normalise
from branchwork.datasets.placing import to_image
from branchwork.datasets.sources import cache_folder
from branchwork.datasets.weight_files import fetch_weights
from branchwork.errors import Interrupted, RecipeError, WeightsError
from branchwork.observer import Observer
from branchwork.training import pretrained
from branchwork.training.choice import choose
from branchwork.training.recipe import AUGMENTATIONS

CONTENT = bytes(np.random.default_rng(7).integers(0, 256, 2**19, dtype=np.uint8))
FILE = named("toy", CONTENT)
RESNET = narrow("resnet18")
SHORT = {"epochs": 2, "head_epochs": 1, "batch_size": 8, "validation": 0.0, "report": False, "threads": 1}


class Watch(Observer):
    def __init__(self):
        self.said, self.seen = [], []

    def note(self, message):
        self.said.append(message)

    def download(self, name, done, total):
        self.seen.append((done, total))


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server with the toy file, and with weights for a narrow ResNet-18 where `--weights imagenet` looks."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with publishing() as address:
        Publisher.files |= {FILE: CONTENT, named("resnet18", RESNET): RESNET}
        monkeypatch.setattr(pretrained, "MIRRORS", (address,))
        own = dataclasses.replace(PUBLISHED["resnet18"], file=named("resnet18", RESNET))
        monkeypatch.setitem(published.PUBLISHED, "resnet18", own)
        design = ResidualDesign(DESIGNS[18].blocks, DESIGNS[18].width // NARROW)
        monkeypatch.setitem(NETS, "resnet18", _for_imagenet("resnet18", design))
        yield address


@pytest.fixture
def fetch(server, tmp_path):
    def call(observer: Observer | None = None, megabytes: int = 1):
        return fetch_weights(
            FILE,
            FILE[-12:-4],
            mirrors=[server],
            places=[cache_folder() / "weights", tmp_path / "torch/hub/checkpoints"],
            megabytes=megabytes,
            observer=observer or Observer(),
        )

    return call


def cached() -> set[str]:
    return {path.name for path in (cache_folder() / "weights").iterdir()} - {".lock"}


def asked() -> list[str | None]:
    return [ranges for _, ranges in Publisher.asked]


def test_a_file_is_downloaded_once_and_then_found(fetch, server):
    watch = Watch()
    path, origin = fetch(watch)
    assert path.read_bytes() == CONTENT and origin == server + FILE and cached() == {FILE}
    assert watch.seen[-1] == (2**19, 2**19) and all(done <= total == 2**19 for done, total in watch.seen)
    assert fetch() == (path, str(path.parent)) and len(Publisher.asked) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403", "the server answered 403"),
        ("503", "the server answered 503"),
        ("wrong", f"{FILE} is damaged or another file: expected sha256 "),
        ("page", r"expected sha256 \w{8}, found \w{8} \(26 bytes\)"),
        ("endless", "is larger than 1,048,576 bytes"),
    ],
)
def test_a_server_that_fails_is_told_with_what_to_do_and_leaves_nothing(fetch, server, fault, words):
    Publisher.faults = [fault]
    with pytest.raises(WeightsError, match=words) as caught:
        fetch()
    lines = str(caught.value).splitlines()
    assert lines[0] == f"the weights {FILE} are not available. Tried:"
    assert lines[1] == f"  {cache_folder() / 'weights'}: {FILE} is not there" and lines[3].startswith(f"  {server}: ")
    assert lines[4] == (
        f"Download {server}{FILE} (1 MB) by other means, and put it into {cache_folder() / 'weights'}, or name the "
        "file: --weights FILE."
    )
    assert cached() == set()
    assert fetch()[0].read_bytes() == CONTENT


def test_what_a_server_withholds_is_asked_for_again(fetch):
    Publisher.faults = ["half", "half", "half"]
    watch = Watch()
    assert fetch(watch)[0].read_bytes() == CONTENT and cached() == {FILE}
    assert asked() == [None, "bytes=262144-", "bytes=393216-", "bytes=458752-"]
    assert watch.seen[-1] == (2**19, 2**19)


def test_a_download_that_stays_cut_off_is_resumed_by_the_next_command(fetch, monkeypatch):
    monkeypatch.setattr(download, "_SILENCE", 0.2)
    Publisher.faults = ["half", "silent"]
    with pytest.raises(WeightsError, match=r"no answer \((ReadTimeout|ConnectionError)\)"):
        fetch()
    assert cached() == {f".{FILE}.part"}
    monkeypatch.setattr(download, "_SILENCE", 10.0)
    assert fetch()[0].read_bytes() == CONTENT and cached() == {FILE}
    assert asked() == [None, "bytes=262144-", "bytes=262144-"]


def test_a_server_that_stalls_is_given_up_and_one_that_is_only_slow_is_not(fetch, monkeypatch):
    monkeypatch.setattr(download, "_SILENCE", 0.3)
    Publisher.faults = ["stalls", "silent"]
    with pytest.raises(WeightsError, match="no answer"):
        fetch()
    Publisher.faults = ["slow"]
    assert fetch()[0].read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["no ranges", "416", "another version", "too long"])
def test_a_beginning_that_cannot_be_continued_is_dropped(fetch, fault):
    begun = {"another version": CONTENT[::-1][:1000], "too long": CONTENT + b"more"}.get(fault, CONTENT[:1000])
    (cache_folder() / "weights").mkdir(parents=True)
    (cache_folder() / f"weights/.{FILE}.part").write_bytes(begun)
    Publisher.faults = [fault] if fault in ("no ranges", "416") else []
    assert fetch()[0].read_bytes() == CONTENT and cached() == {FILE}
    assert asked()[0] == f"bytes={len(begun)}-"


def test_a_proxy_that_the_environment_names_is_asked(server, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server)
    there = "http://weights.invalid/models/"
    path, origin = fetch_weights(
        FILE, FILE[-12:-4], mirrors=[there], places=[cache_folder() / "weights"], megabytes=1, observer=Observer()
    )
    assert path.read_bytes() == CONTENT and origin == there + FILE
    assert Publisher.asked == [(there + FILE, None)]


def test_the_file_that_torchvision_has_fetched_is_taken(fetch, tmp_path):
    place = tmp_path / "torch/hub/checkpoints"
    place.mkdir(parents=True)
    (place / FILE).write_bytes(CONTENT)
    assert fetch() == (place / FILE, str(place)) and Publisher.asked == []


def test_a_damaged_file_in_the_cache_is_fetched_again(fetch):
    path, _ = fetch()
    path.write_bytes(CONTENT[:-1])
    assert fetch()[0].read_bytes() == CONTENT and asked() == [None, None]


def test_the_table_says_what_torchvision_says():
    for net, theirs in GOLDEN["published"].items():
        ours = published_for("googlenet:b5=3x3" if net == "googlenet" else net)
        assert ours.file == theirs["url"].rpartition("/")[2] and published.MIRRORS[0] + ours.file == theirs["url"]
        assert ours.accuracy * 100 == pytest.approx(theirs["accuracy"]) and ours.resized == theirs["resized"]
        assert 0 <= ours.megabytes - theirs["megabytes"] < 1 and theirs["cropped"] == published.SIDE
        assert re.fullmatch("[0-9a-f]{8}", ours.digits)
    assert len(PUBLISHED) == len(GOLDEN["published"])
    classes = imagenet_classes()
    assert hashlib.sha256("\n".join(classes).encode()).hexdigest() == GOLDEN["categories"]
    assert (classes[0], classes[281], classes[999], len(set(classes))) == ("tench", "tabby", "toilet tissue", 1000)


@pytest.mark.parametrize("net", GOLDEN["placed"])
def test_pictures_are_placed_as_the_weights_were_tested(net):
    image = to_image(picture(), channels=3, size=(224, 224), method=published_for(net).pictures)
    theirs = GOLDEN["published"][net]
    ours = normalise(image[None], theirs["mean"], theirs["std"])[0, :, ::32, ::32].reshape(3, -1)
    assert (ours - torch.tensor(GOLDEN["placed"][net])).abs().max() < 0.018  # one level of 255


def test_a_training_starts_from_published_weights_and_says_so_in_three_lines(server, command):
    two_classes(Path("pics"))
    flags = [word for key, value in SHORT.items() if key != "report" for word in (f"--{key.replace('_', '-')}", value)]
    order = ("train", "resnet18:stem=large", "--data", "pics", "--weights", "imagenet", *flags, "--no-report")
    code, _, err = command(*order, "--out", "run")
    assert code == 0, err
    own = named("resnet18", RESNET)
    told = [
        line
        for line in err.splitlines()
        if not line.startswith("fetching") and (own in line or "images are normalised" in line)
    ]
    assert told[0] == (
        f"weights: {own} of torchvision, 69.8% on ImageNet; from {cache_folder() / 'weights'}; its SHA-256 begins with "
        f"{own[-12:-4]}, as its name says"
    )
    assert told[1] == f"{own}: 120 tensors kept; new: fc.weight, fc.bias; dropped: fc.weight, fc.bias"
    assert "mean 0.485, 0.456, 0.406, standard deviation 0.229, 0.224, 0.225" in told[2]
    assert "yours are 20×20" in told[2]
    assert "resnet18[stem=large] starts from weights, so it is fine-tuned (--recipe finetune)" in err
    model = json.loads(Path("run/model.json").read_text())
    assert model["mean"] == [0.485, 0.456, 0.406] and model["recipe"]["lowest_rate"] == 0.01
    # In few steps at a hundredth of the rate, the first kernels hardly move.
    theirs, ours = torch.load(cache_folder() / "weights" / own)["conv1.weight"], weights("run")["conv1.conv.weight"]
    assert 0 < (ours - theirs).norm() < 0.05 * theirs.norm()

    # The same file, named, and with its cache gone.
    shutil.move(cache_folder() / "weights" / own, own)
    Publisher.files.clear()
    code, _, err = command(*(own if word == "imagenet" else word for word in order), "--out", "named")
    assert code == 0 and f"weights: {own} of torchvision" in err and same("run", "named")
    Path(own).write_bytes(RESNET[:-1])
    code, _, err = command(*(own if word == "imagenet" else word for word in order), "--out", "damaged")
    assert code == 2 and f"{own} is damaged or another file" in err and f"Download it again from {server}{own}" in err
    assert not Path("damaged").exists()


def test_a_folder_without_a_net_gets_one_that_has_weights(server, command):
    two_classes(Path("pics"))
    code, _, err = command("train", "--data", "pics", "--weights", "imagenet", "--epochs", 1, "--batch-size", 8,
                           "--validation", 0, "--no-report", "--out", "run")  # fmt: skip
    assert code == 0, err
    assert json.loads(Path("run/result.json").read_text())["net"] == "resnet18[stem=large]"
    recipe = tomllib.loads(Path("run/recipe.toml").read_text())
    assert (recipe["head_epochs"], recipe["epochs"], recipe["lowest_rate"]) == (0, 1, 0.01)


def test_what_is_chosen_with_weights(small):
    two_classes(Path("pics"))
    data, notes = bw.load_data("pics"), Watch()
    assert choose(None, None, data, changes={}, weights="runs/first", observer=notes)[0] == "resnet20"
    assert choose(None, None, data, changes={}, weights="imagenet", observer=notes)[0] == "resnet18:stem=large"
    net, recipe = choose("residual", None, small, changes={"epochs": 4}, weights="runs/first", observer=notes)
    grey = {name: getattr(bw.digits(), name) for name in AUGMENTATIONS}
    assert (net, recipe) == ("residual", bw.finetune("residual", 1500).but(grey | {"epochs": 4, "head_epochs": 1}))
    assert "fine-tuned (--recipe finetune): only the head in the first 1 of 4 epochs" in notes.said[-1]
    own = choose("residual", "course", small, changes={}, weights="runs/first", observer=notes)[1]
    assert own == bw.course() and len(notes.said) == 3


def test_grey_pictures_get_three_equal_channels_in_training_and_after_it(server):
    fill(Path("pics/cat"), channels=1)
    fill(Path("pics/dog"), channels=1)
    data = bw.load_data("pics")
    assert data.channels == 1
    watch = Watch()
    bw.train("resnet18:stem=large", data=data, weights="imagenet", out="run", progress=watch, **SHORT)
    assert "grey images get 3 equal channels, as the weights expect" in watch.said
    model = bw.load_run("run").model
    assert model.in_channels == 3 and model.mean == (0.485, 0.456, 0.406) and model.recipe.flip == 0
    evaluation = bw.evaluate("run")
    guesses = bw.predict("run", ["pics/cat", "pics/dog"])
    assert evaluation.images == 4 and len(guesses) == 20
    # The same pictures in colour are the same training.
    coloured = bw.load_data("pics", channels=3)
    recipe = model.recipe
    bw.train("resnet18:stem=large", data=coloured, recipe=recipe, weights="imagenet", out="colour", report=False,
             threads=1)  # fmt: skip
    ours, theirs = weights("run"), weights("colour")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_grey_packs_and_runs_on_colour_pictures_go_together(server):
    fill(Path("grey/cat"), channels=1)
    fill(Path("grey/dog"), channels=1)
    two_classes(Path("colour"))
    bw.train("resnet8", data="colour", recipe=bw.fast().but({"epochs": 1, "batch_size": 8, "validation": 0.0}),
             out="base", report=False, threads=1)  # fmt: skip
    bw.pack("grey", out="grey.pack")
    result = bw.train("resnet8", data="grey.pack", weights="base", out="run", **SHORT)
    assert bw.load_run("run").model.in_channels == 3 and bw.load_run("run").model.mean == bw.load_run("base").model.mean
    assert bw.evaluate("run").accuracy == result.test_accuracy
    few = SHORT | {"batch_size": 60, "fraction": 0.02}
    result = bw.train("resnet8", data="sample", weights="base", out="digits", **few)
    assert bw.load_run("digits").model.in_channels == 3 and bw.evaluate("digits").accuracy == result.test_accuracy
    with pytest.raises(WeightsError, match=r"conv1.conv.weight: got \(16, 3, 3, 3\), needed \(8, 1, 3, 3\)"):
        bw.train("resnet8:width=8", data="grey", weights="base", out="none", **SHORT)


def test_a_training_from_published_weights_resumes_bit_for_bit_without_them(server):
    two_classes(Path("pics"))
    whole = {"data": bw.load_data("pics"), "weights": "imagenet", **SHORT, "epochs": 3}
    bw.train("resnet18:stem=large", out="whole", **whole)
    for number, (epoch, step) in enumerate(((1, 1), (1, 2), (2, 1))):
        with pytest.raises(Interrupted):
            bw.train("resnet18:stem=large", out=f"cut-{number}", progress=StopAt(epoch, step), **whole)
    shutil.rmtree(cache_folder())
    Publisher.files.clear()
    for number in range(3):
        bw.resume(f"cut-{number}")
        assert same("whole", f"cut-{number}")


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("resnet18", r"published weights of resnet18 are for its large stem, but images of 20×20 get the small one: "
         r"name it resnet18:stem=large, or take larger images, such as --size 224"),
        ("googlenet:stem=large", r"for googlenet\[stem=large\], but there are for googlenet:b5=3x3,stem=large: use"),
        ("resnet18:shortcut=scale,stem=large", r"but there are for resnet18:stem=large: use that"),
        ("resnet18:without=stage2.block2.join.residual,stem=large", r"but there are for resnet18:stem=large: use that"),
        ("preact18:stem=large", r"but there are for googlenet:b5=3x3,stem=large, .*densenet201:stem=large"),
        ("resnet20", r"no published weights for resnet20, but there are for googlenet"),
        ("mine.py:Net", r"no published weights for .*mine.py:Net, but there are for googlenet"),
    ],
)  # fmt: skip
def test_a_net_without_published_weights_is_told_which_net_has_some(server, net, words):
    two_classes(Path("pics"))
    Path("mine.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(1200, 2))\n"
    )
    with pytest.raises(WeightsError, match=words):
        bw.train(net, data="pics", weights="imagenet", out="run", **SHORT)
    assert not Path("run").exists() and Publisher.asked == []


def test_predict_answers_with_the_names_of_imagenet(server, command):
    picture().save("photo.png")
    (answer,) = bw.predict("resnet18", "photo.png", weights="imagenet", top=5)
    net = bw.build_net("resnet18")
    bw.load_weights(net, cache_folder() / "weights" / named("resnet18", RESNET))
    image = to_image(picture(), channels=3, size=(224, 224), method="centre-256")
    with torch.no_grad():
        logits = net.eval()(normalise(image[None], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    probable = logits.softmax(1)[0].topk(5)
    assert [guess.name for guess in answer.guesses] == [imagenet_classes()[index] for index in probable.indices]
    assert [guess.probability for guess in answer.guesses] == pytest.approx(probable.values.tolist(), rel=1e-4)
    code, out, err = command("predict", "resnet18", "--weights", "imagenet", "photo.png")
    assert code == 0 and answer.guesses[0].name.split()[0] in out and "of torchvision, 69.8% on ImageNet" in err
    # A file that torchvision published under another name is read as such; a run is not.
    (cache_folder() / "weights" / named("resnet18", RESNET)).rename("older.pth")
    assert bw.predict("resnet18", "photo.png", weights="older.pth", top=5)[0].guesses == answer.guesses
    torch.save(net.state_dict(), "own.pth")
    with pytest.raises(WeightsError, match=r"own.pth was not published by torchvision, so the names of its classes"):
        bw.predict("resnet18", "photo.png", weights="own.pth")
    with pytest.raises(WeightsError, match="no published weights for resnet20"):
        bw.predict("resnet20", "photo.png", weights="imagenet")


def test_a_head_is_not_trained_on_a_body_without_weights(small):
    with pytest.raises(RecipeError, match=r"only the head in the first \d+ epochs, but the body has no weights yet"):
        bw.train("resnet8", data=small, recipe="finetune", out="run")
    assert not Path("run").exists()


class Head(nn.Sequential):
    """Two convolutions with a batch norm, and a head, all within one module."""

    def __init__(self):
        body = nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU())
        super().__init__(nn.Sequential(body, nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)))


HEAD = f"{__name__}:Head"


def test_finetuning_equals_plain_torch_written_out(small):
    recipe = bw.course().but(
        {"epochs": 3, "batch_size": 300, "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01}
        | {"schedule": "linear", "warmup": 0.2, "head_epochs": 1, "lowest_rate": 0.04, "precision": "fp64"}
    )
    base = bw.train(HEAD, data=small, recipe=bw.course().but({"epochs": 1}), out="base", report=False)
    bw.train(HEAD, data=small, recipe=recipe, seed=3, weights=base.folder, out="run", report=False)

    net = bw.build_net(HEAD)
    bw.load_weights(net, "base")
    net = net.double()
    body, second, head = net[0][0], net[0][1], net[0][4]
    # Three layers: the rates are in a geometric row from a 25th to 1. Biases and norms do not decay.
    layers = [(0.04, body), (0.2, second), (1.0, head)]
    groups = [
        {"params": [p for p in layer.parameters() if (p.dim() > 1) is decays], "weight_decay": 0.01 * decays,
         "lr": 1.0, "share": share}
        for share, layer in layers for decays in (True, False)
    ]  # fmt: skip
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for epoch in range(3):
        net.train()
        body[1].train(epoch > 0)
        for part in (body, second):
            part.requires_grad_(epoch > 0)
        for step, chosen in enumerate(epoch_order(1500, 3, epoch).split(300)):
            share = step / 5 if epoch == 0 else ((epoch - 1) * 5 + step) / 10
            rise = share / 0.2 if share < 0.2 else None
            rate = 0.05 * (1 / 25 + (1 - 1 / 25) * rise) if rise is not None else 0.05 * (1 - (share - 0.2) / 0.8)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            optimizer.zero_grad()
            images = (small.train.images[chosen].double() / 255 - 0.1307) / 0.3081
            nn.functional.cross_entropy(net(images), small.train.labels[chosen]).backward()
            optimizer.step()
    ours = bw.load_run("run").net.state_dict()
    for key, expected in net.state_dict().items():
        torch.testing.assert_close(ours[key], expected.to(ours[key].dtype), rtol=1e-5, atol=1e-6)


def test_one_rate_for_all_layers_after_the_head_has_learned_alone(small):
    bw.train(HEAD, data=small, epochs=1, out="base", report=False)
    recipe = bw.course().but({"epochs": 2, "head_epochs": 1, "momentum": 0.9, "precision": "fp64", "validation": 0.0})
    bw.train(HEAD, data=small, recipe=recipe, weights="base", out="run", report=False)
    before, after = weights("base"), weights("run")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved | {"0.0.0.bias"} == set(before)  # the norm after it takes any bias away


def test_the_body_rests_while_the_head_learns_and_then_all_of_it_learns(small):
    kept = []

    class Keep(Observer):
        def epoch(self, epoch):
            kept.append({key: tensor.clone() for key, tensor in epoch.weights.items()})

    bw.train(HEAD, data=small, epochs=1, out="base", report=False)
    recipe = bw.finetune("x", 1500).but({"epochs": 4, "head_epochs": 2, "flip": 0.0, "crop": 0.0, "colour": 0.0})
    bw.train(HEAD, data=small, recipe=recipe, weights="base", out="run", report=False, progress=Keep())
    kept.insert(0, bw.load_run("base").net.state_dict())
    moved = [
        {key for key in before if not torch.equal(before[key], after[key])}
        for before, after in itertools.pairwise(kept)
    ]
    head = {"0.4.weight", "0.4.bias"}
    assert moved[0] == moved[1] == head
    # The norm after the first layer takes any bias away: its gradient is 0 but for rounding.
    assert moved[2] | {"0.0.0.bias"} == moved[3] | {"0.0.0.bias"} == set(kept[0])
    assert tomllib.loads(Path("run/recipe.toml").read_text()) == dataclasses.asdict(recipe)


def test_seeds_folds_and_selections_take_the_recipe(small):
    small = dataclasses.replace(small, train=small.train.pick(torch.arange(300)))
    base = bw.train("inception", data=small, epochs=1, batch_size=100, out="base", report=False).folder
    short = {"recipe": "finetune", "weights": base, "epochs": 2, "batch_size": 50, "report": False, "threads": 1}
    plain = {"flip": 0.0, "crop": 0.0, "colour": 0.0, "fraction": 0.5}
    several = bw.train_seeds("inception", seeds=2, data=small, out="seeds", **short, **plain)
    assert [result.epochs for result in several.results] == [2, 2]
    folds = bw.train_folds("inception", folds=2, data=small, out="folds", **short, **plain, validation=0.0)
    assert len(folds.results) == 2
    selection = bw.select("seeds/seed-0", data=small, goal=bw.Goal(keep=3), out="selected", epochs=1)
    assert selection.steps and bw.load_run("selected").model.recipe.head_epochs == 0

"""The weights that torchvision publishes for nets of the catalogue, trained on ImageNet."""

from dataclasses import dataclass
from importlib import resources

from branchwork.catalogue.input_size import ImageSize, height_and_width
from branchwork.catalogue.layers import takes_small_stem
from branchwork.catalogue.resolve import split_options, with_options
from branchwork.errors import WeightsError
from branchwork.language import times

# What `--weights` calls them. A file or folder of this name is `./imagenet`.
IMAGENET = "imagenet"
# Where torchvision has them; each file is named after its net and the first eight digits of its SHA-256.
MIRRORS = ("https://download.pytorch.org/models/",)
# Height and width of the images that all of them were trained on, and the channels.
SIDE, CHANNELS = 224, 3


@dataclass(frozen=True)
class Published:
    """A file of weights for `net`, as torchvision has it.

    `megabytes` is its size, rounded up, in units of 2^20 bytes. `accuracy` is the share of the validation images of
    ImageNet whose class it finds, by torchvision's documentation, on pictures whose shorter side was made `resized`
    pixels long before their middle was cut out.
    """

    net: str
    file: str
    megabytes: int
    accuracy: float
    resized: int

    @property
    def digits(self) -> str:
        """The first eight digits of the file's SHA-256."""
        return self.file.removesuffix(".pth")[-8:]

    @property
    def pictures(self) -> str:
        """The way of placing pictures, one of `placing.METHODS`, for which the accuracy holds."""
        return f"centre-{self.resized}"


# From torchvision 0.29. Where it has two files for a net, this is its default, `IMAGENET1K_V2`: it is more accurate by
# 4 to 5 points, and what others get who write `weights="DEFAULT"`. The older ones are named as files.
PUBLISHED = {
    published.net: published
    for published in (
        Published("googlenet[b5=3x3]", "googlenet-1378be20.pth", 50, 0.69778, 256),
        Published("resnet18", "resnet18-f37072fd.pth", 45, 0.69758, 256),
        Published("resnet34", "resnet34-b627a593.pth", 84, 0.73314, 256),
        Published("resnet50", "resnet50-11ad3fa6.pth", 98, 0.80858, 232),
        Published("resnet101", "resnet101-cd907fc2.pth", 171, 0.81886, 232),
        Published("resnet152", "resnet152-f82ba261.pth", 231, 0.82284, 232),
        Published("densenet121", "densenet121-a639ec97.pth", 31, 0.74434, 256),
        Published("densenet161", "densenet161-8d451a50.pth", 111, 0.77138, 256),
        Published("densenet169", "densenet169-b2777c0a.pth", 55, 0.75600, 256),
        Published("densenet201", "densenet201-c1103571.pth", 78, 0.76896, 256),
    )
}


def published_for(net: str, image_size: ImageSize = SIDE) -> Published:
    """Return the published weights of `net`, as it is built for images of this size.

    Raises `WeightsError`, which names the net that has some, if this one has none.
    """
    name, options = split_options(net)
    stem = options.pop("stem", "auto")
    found = PUBLISHED.get(with_options(name, options))
    if found is not None and not takes_small_stem(stem, image_size):  # type: ignore[arg-type]  # the builder checks it
        return found
    if found is not None:
        raise WeightsError(
            "the published weights of {net} are for its large stem, but images of {shape} get the small one: name it "
            "{large}, or take larger images, such as --size {side}",
            net=name,
            shape=times(height_and_width(image_size)),
            large=_shown(found.net),
            side=SIDE,
        )
    near = [known for known in PUBLISHED if split_options(known)[0] == name]
    raise WeightsError(
        "there are no published weights for {net}, but there are for {near}: use that"
        if near
        else "there are no published weights for {net}, but there are for {near}",
        net=net,
        near=", ".join(map(_shown, near or PUBLISHED)),
    )


def _shown(net: str) -> str:
    """Return `net` with its large stem, written so that every shell takes it: `googlenet:b5=3x3,stem=large`."""
    name, options = split_options(net)
    return f"{name}:{','.join(f'{key}={value}' for key, value in (*options.items(), ('stem', 'large')))}"


def imagenet_classes() -> tuple[str, ...]:
    """Return the names of the 1,000 classes, in the order of the logits."""
    text = (resources.files("branchwork") / "catalogue/imagenet/classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())

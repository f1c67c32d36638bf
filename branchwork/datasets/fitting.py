"""Any picture as an image of one size, in the way that the user chose; training and predicting come through here."""

from PIL import Image, ImageOps

FITS = ("crop", "pad", "stretch")


def fit(picture: Image.Image, size: tuple[int, int], way: str) -> Image.Image:
    """The picture in `size` (height, width), in its own mode; one that has this size keeps every pixel.

    `crop` keeps the proportions and cuts off what is too long, evenly on both sides; `pad` keeps all of the picture
    and fills up with black; `stretch` changes the proportions.
    """
    assert way in FITS, way
    height, width = size
    if way == "crop":
        return ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    if way == "pad":
        return ImageOps.pad(picture, (width, height), Image.Resampling.BICUBIC)
    return picture.resize((width, height), Image.Resampling.BICUBIC)

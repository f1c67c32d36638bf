"""Time an epoch of images from a pack and from the files it was made of, alternating in one process.

    python -m benchmarks.pack --json FILE

2,000 digits, half of them PNG and half JPEG. Both yield the same batches in the same order. Files are decoded on all
cores, as `branchwork data pack` does. Everything is in the system's cache, so neither waits for the disk.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from cyclopts import App
from PIL import Image
from torch import Tensor

import branchwork
from benchmarks.process import JsonFile, timed
from branchwork.datasets.batches import batches, epoch_order
from branchwork.datasets.checking import survey
from branchwork.datasets.placing import to_image
from branchwork.datasets.reading import decode, quiet_decoders
from branchwork.files import write_json
from branchwork.observer import Observer

IMAGES, BATCH_SIZE, TURNS = 2000, 256, 5

app = App(result_action="return_value")


def write_files(folder: Path) -> None:
    train = branchwork.load_data("sample").train
    for index in range(IMAGES):
        class_folder = folder / str(int(train.labels[index]))
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.images[index, 0].numpy()).save(class_folder / f"{index}{('.png', '.jpg')[index % 2]}")


@app.default
def main(*, json_file: JsonFile) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder, file = Path(temporary) / "digits", Path(temporary) / "digits.pack"
        write_files(folder)
        branchwork.pack(folder, out=file)
        images = branchwork.load_data(str(file)).train.images
        layout, image_format = survey(folder, Observer())
        # As many files as the pack has training images.
        paths = [file.path for file in layout.files][: len(images)]

        def decode_file(index: int) -> Tensor:
            picture = decode(paths[index]).image
            return to_image(picture, channels=image_format.channels, size=image_format.size, method=image_format.method)

        def decode_all(epoch: int) -> None:
            with quiet_decoders(), ThreadPoolExecutor() as pool:
                for chosen in batches(epoch_order(len(paths), 0, epoch), BATCH_SIZE):
                    torch.stack(list(pool.map(decode_file, chosen.tolist())))

        def read(epoch: int) -> None:
            for chosen in batches(epoch_order(len(images), 0, epoch), BATCH_SIZE):
                images[chosen]

        seconds: dict[str, list[float]] = {"epoch decoded": [], "epoch from a pack": []}
        for turn in range(TURNS):
            seconds["epoch decoded"].append(timed(torch.device("cpu"), lambda turn=turn: decode_all(turn)))
            seconds["epoch from a pack"].append(timed(torch.device("cpu"), lambda turn=turn: read(turn)))
    write_json(json_file, seconds)


if __name__ == "__main__":
    app()

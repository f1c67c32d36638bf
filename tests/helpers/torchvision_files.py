"""Files of weights as torchvision writes them, and a server that publishes them, well or badly.

`goldens/torchvision.json` was written with torchvision 0.28 itself: the names and shapes of the tensors of its models;
the first logits in float64 of those filled by `filled`, for the image of `logits_image` (GoogLeNet has auxiliary heads
and its input transform there); what it says of the weights that it publishes; and what its transforms make of
`picture`. No build of torchvision fits the torch that the tests run with.
"""

import hashlib
import http.server
import io
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from branchwork import NETS

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/torchvision.json").read_text())
TORCHVISION = GOLDEN["nets"]


def filled(name: str) -> dict[str, torch.Tensor]:
    """A state dict in torchvision's names, each tensor made from its name and its places alone."""
    made = {}
    for key, words in TORCHVISION[name]["shapes"].items():
        shape = [int(n) for n in words.split("x") if n]
        wave = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.7 + sum(key.encode())).reshape(shape)
        if key.endswith("num_batches_tracked"):
            made[key] = torch.tensor(0)
        elif key.endswith("running_var"):
            made[key] = 1 + wave / 2
        elif len(shape) > 1:
            made[key] = wave * math.sqrt(2 / math.prod(shape[1:]))
        else:
            made[key] = wave / 4 + key.endswith("weight")
    return made


def logits_image() -> torch.Tensor:
    return torch.sin(torch.arange(3 * 64 * 64, dtype=torch.float64) * 0.01).reshape(1, 3, 64, 64)


def torchvisions(name: str, classes: int = 1000) -> torch.nn.Module:
    """Our net of that name, as torchvision has it."""
    given = {"b5": "3x3"} if name == "googlenet" else {}
    return NETS[name](num_classes=classes, stem="large", **given).double().eval()


def picture() -> Image.Image:
    y, x = np.mgrid[0:300, 0:400]
    waves = (np.sin(x / 23), np.sin(y / 31), np.sin((x + y) / 19))
    return Image.fromarray(np.stack([127 + 120 * wave for wave in waves], -1).round().astype(np.uint8))


# What the nets of `narrow` have for each channel of torchvision's, so that they train in no time.
NARROW = 8


def narrow(name: str) -> bytes:
    """A file of random weights in torchvision's names, for a ResNet with fewer channels."""
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save({key: _random(key, words) for key, words in TORCHVISION[name]["shapes"].items()}, file)
    return file.getvalue()


def _random(key: str, words: str) -> torch.Tensor:
    shape = [n if n < 64 or n == 1000 else n // NARROW for n in map(int, filter(None, words.split("x")))]
    if not shape:
        return torch.tensor(0)
    if len(shape) > 1:
        return torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:]))
    return torch.full(shape, float(key.endswith(("weight", "running_var"))))


def named(net: str, content: bytes) -> str:
    """The file's name, as torchvision gives it."""
    return f"{net}-{hashlib.sha256(content).hexdigest()[:8]}.pth"


class Publisher(http.server.BaseHTTPRequestHandler):
    """Serves `files` by name; `faults` are done in turn, one for each GET, and after them it serves well.

    It is a proxy as well: what it is asked for may be a whole address.
    """

    files: ClassVar[dict[str, bytes]] = {}
    faults: ClassVar[list[str]] = []
    asked: ClassVar[list[tuple[str, str | None]]] = []
    enough = threading.Event()

    def do_HEAD(self):
        self.send_error(404)

    def do_GET(self):
        asked = self.headers["Range"]
        Publisher.asked.append((self.path, asked))
        fault = Publisher.faults.pop(0) if Publisher.faults else ""
        whole = Publisher.files[self.path.rpartition("/")[2]]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault != "no ranges" else 0
        if fault.isdecimal():
            self.send_error(int(fault))
            return
        if start >= len(whole):
            self.send_error(416)
            return
        body = b"?" + whole[start + 1 :] if fault == "wrong" else whole[start:]
        if fault == "page":
            body = b"<html>please log in</html>"
        if fault == "endless":
            body += bytes(5 * 2**20)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "silent":
            Publisher.enough.wait(20)
        elif fault == "stalls":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            Publisher.enough.wait(20)
        elif fault == "slow":
            for at in range(0, len(body), max(1, len(body) // 20)):
                self.wfile.write(body[at : at + max(1, len(body) // 20)])
                self.wfile.flush()
                Publisher.enough.wait(0.02)
        else:
            self.wfile.write(body[: len(body) // 2] if fault == "half" else body)

    def log_message(self, *arguments):
        pass


@contextmanager
def publishing() -> Iterator[str]:
    """Serve on this machine, and give the address."""
    Publisher.files, Publisher.faults, Publisher.asked, Publisher.enough = {}, [], [], threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    Publisher.enough.set()
    server.shutdown()
    thread.join()
    server.server_close()

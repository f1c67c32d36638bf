"""The page about serving: its files are run as they stand there, where Branchwork cannot be imported."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import POSIX, ROOT
from helpers import folders
from PIL import Image

import branchwork as bw
from branchwork.cli import main
from branchwork.deploy.engines import import_openvino

PAGES = ("serving.md", "serving.zh.md")
# What a server has is not what this environment has.
BLOCKED = """
import runpy, sys
sys.modules.update(dict.fromkeys(("branchwork", "torch")))
sys.path.insert(0, "")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def files(page: str) -> dict[str, str]:
    """The files of a page: each has its name at the end of the line before it."""
    found = re.findall(
        r"`([\w.]+)`[^`\n]*\n\n(?:<!-- [^\n]+ -->\n)?```\w+\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL
    )
    return dict(found)


def python(*arguments: object, **options) -> str:
    """What a script of the page prints, in a process that can import neither Branchwork nor torch."""
    environment = {**os.environ, "no_proxy": "127.0.0.1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-X", "utf8", "-c", BLOCKED, *map(str, arguments)],
        env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(out: str) -> dict[str, dict[str, float]]:
    return {path: json.loads(answer) for path, answer in (line.split(" ", 1) for line in out.splitlines())}


def ordinary_pictures(folder: Path) -> list[str]:
    """PNG and JPEG files of several sizes, coloured and grey, with a palette, and one that lies on its side."""
    random = np.random.default_rng(2)

    def blocks(height: int, width: int, channels: int) -> Image.Image:
        small = random.integers(0, 256, (6, 5, channels), dtype=np.uint8)
        picture = Image.fromarray(small if channels > 1 else small[..., 0])
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    folder.mkdir()
    blocks(90, 61, 3).save(folder / "upright.png")
    blocks(61, 90, 3).save(folder / "photo.jpg", quality=80)
    blocks(32, 24, 3).save(folder / "same-size.png")
    blocks(80, 80, 1).save(folder / "grey.jpeg")
    blocks(50, 70, 3).convert("P").save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    blocks(70, 40, 3).save(folder / "on-its-side.jpg", exif=exif)
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on colour pictures and one on the same pictures in grey, both of 32×24 pixels."""
    place = tmp_path_factory.mktemp("serving")
    folder = folders.two_classes(place / "photos", height=40, width=30)
    (place / "photos/cat").rename(place / "photos/猫")
    trained = {}
    for channels in (3, 1):
        data = bw.load_data(str(folder), size=(32, 24), channels=channels)
        trained[channels] = folders.train(data=data, out=place / f"run-{channels}", **folders.SHORT).folder
    return trained


@pytest.fixture(scope="module")
def shipped(runs, tmp_path_factory):
    """A folder with the files of the page, the run that it speaks of, and what its first command writes."""
    place = tmp_path_factory.mktemp("shipped")
    for name, content in files(PAGES[0]).items():
        (place / name).write_text(content, encoding="utf-8")
    shutil.copytree(runs[3], place / "runs/mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        program, *arguments = shlex.split(shell_lines()[0])
        assert program == "branchwork" and main(arguments) == 0
    return place


@pytest.fixture
def place(shipped, tmp_path):
    """A copy of it, to work in."""
    return shutil.copytree(shipped, tmp_path, dirs_exist_ok=True)


def shell_lines() -> list[str]:
    (block,) = re.findall(r"^```sh\n(.*?)^```$", text(PAGES[0]), re.MULTILINE | re.DOTALL)
    return block.splitlines()


def predicted(run, paths) -> dict[str, dict[str, float]]:
    return {
        one.image: {guess.name: guess.probability for guess in one.guesses} for one in bw.predict(run, paths, top=2)
    }


def check(found, expected) -> None:
    assert found.keys() == expected.keys() and len(found) == 6
    for path, odds in found.items():
        assert odds == pytest.approx(expected[path], abs=2e-6), path
    assert len({round(odds["dog"], 5) for odds in found.values()}) > 3, "the pictures are told apart"


@pytest.mark.parametrize(("channels", "rule"), [(3, "crop"), (1, "pad"), (3, "stretch")])
def test_the_script_answers_as_predict_does_without_branchwork(runs, tmp_path, channels, rule):
    run = Path(shutil.copytree(runs[channels], tmp_path / "run"))
    about = json.loads((run / "model.json").read_text(encoding="utf-8"))
    (run / "model.json").write_text(json.dumps(about | {"pictures": rule}), encoding="utf-8")
    bw.export(run, out="model.onnx", data=about["data"])
    Path("classify.py").write_text(files(PAGES[0])["classify.py"], encoding="utf-8")
    paths = ordinary_pictures(tmp_path / "pictures")
    check(answers(python("classify.py", "model.onnx", *paths)), predicted(run, paths))


def test_the_first_commands_work_as_they_stand(place):
    for folder, name in (("cat", "1.jpg"), ("dog", "2.png")):
        Path("photos", folder).mkdir(parents=True)
        folders.noise().save(Path("photos", folder, name))
    _, second = shell_lines()
    program, *arguments = shlex.split(second)
    assert program == "python"
    found = answers(python(*arguments))
    assert list(found) == ["photos/cat/1.jpg", "photos/dog/2.png"] and all(
        odds.keys() == {"猫", "dog"} for odds in found.values()
    )


class Protocol(BaseHTTPRequestHandler):
    """A server of the V2 protocol, as its specification says, that answers with ONNX Runtime."""

    def do_POST(self):
        import onnxruntime

        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (tensor,) = request["inputs"]
        assert self.path == "/v2/models/mine/infer" and self.headers["Content-Type"] == "application/json"
        assert tensor.keys() == {"name", "shape", "datatype", "data"} and tensor["datatype"] == "UINT8"
        images = np.array(tensor["data"]).reshape(tensor["shape"])
        assert images.shape == (1, 3, 32, 24) and images.min() >= 0 and images.max() <= 255
        session = onnxruntime.InferenceSession("models/mine/1/model.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {tensor["name"]: images.astype(np.uint8)})
        data = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
        content = json.dumps({"model_name": "mine", "model_version": "1", "outputs": [data]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_the_client_of_the_three_servers_asks_by_the_protocol(place):
    python("repository.py")
    paths = ordinary_pictures(place / "pictures")
    server = HTTPServer(("127.0.0.1", 0), Protocol)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = answers(python("ask.py", f"http://127.0.0.1:{server.server_port}", *paths))
    finally:
        server.shutdown()
        server.server_close()
    check(found, predicted("runs/mine", paths))


def test_triton_s_folder_says_what_the_file_takes_and_gives(place):
    import onnxruntime

    python("repository.py")
    assert Path("models/mine/1/model.onnx").read_bytes() == Path("model.onnx").read_bytes()
    session = onnxruntime.InferenceSession("models/mine/1/model.onnx", providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    config = Path("models/mine/config.pbtxt").read_text()
    found = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[([\d, ]+)\]', config)
    assert found == [("images", "UINT8", "3, 32, 24"), ("logits", "FP32", "2")]
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 3, 32, 24])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 2])
    labels = Path("models/mine/labels.txt").read_text(encoding="utf-8").split()
    assert labels == json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["dog", "猫"]


def test_triton_s_configuration_is_one(place):
    """Parsed by Triton's own definition of it."""
    pytest.importorskip("tritonclient", reason="pip install tritonclient protobuf runs it")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    python("repository.py")
    config = text_format.Parse(Path("models/mine/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("mine", "onnxruntime", 64)
    assert config.HasField("dynamic_batching") and config.output[0].label_filename == "labels.txt"
    assert [*config.input[0].dims] == [3, 32, 24] and [*config.output[0].dims] == [2]
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8


def test_openvino_reads_both_formats_with_the_settings_of_its_server(place):
    (model,) = json.loads(Path("config.json").read_text())["model_config_list"]
    settings = model["config"]["plugin_config"]
    assert Path(model["config"]["base_path"]) == Path("/models/mine")
    exported = bw.export("runs/mine", to="openvino", out="model.xml")
    assert json.loads(exported.metadata["compile_with"]) == settings
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 24), dtype=np.uint8)
    core = import_openvino().Core()
    both = [
        core.compile_model(core.read_model(file), "CPU", settings)(images)[0] for file in ("model.onnx", "model.xml")
    ]
    np.testing.assert_allclose(*both, atol=1e-4)


def test_the_service_of_kserve_is_yaml_and_has_what_v2_needs(place):
    service = yaml.safe_load(Path("mine.yaml").read_text())
    model = service["spec"]["predictor"]["model"]
    assert (service["kind"], service["metadata"]["name"], model["protocolVersion"]) == (
        "InferenceService",
        "mine",
        "v2",
    )
    assert model["modelFormat"] == {"name": "onnx"} and model["storageUri"].endswith("/models")


def test_the_image_has_the_files_of_the_page():
    docker = files(PAGES[0])["Dockerfile"]
    (copied,) = re.findall(r"^COPY (.*) \./$", docker, re.MULTILINE)
    assert set(copied.split()) == {"classify.py", "server.py", "model.onnx"}
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    versions = dict(re.findall(r"(\w+)==([\d.]+)", docker))
    assert {name: versions[name] for name in ("onnxruntime", "pillow")} == {
        name: tested[name] for name in ("onnxruntime", "pillow")
    }
    for page in PAGES:
        assert all(version in text(page).replace(docker, "") for version in versions.values())


@POSIX
@pytest.mark.skipif(importlib.util.find_spec("litserve") is None, reason="pip install litserve runs it")
def test_litserve_answers_its_own_client_as_predict_does(place):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("server.py").write_text(Path("server.py").read_text().replace("port=8000", f"port={port}"))
    # The client of the page is the one that LitServe writes, but for the picture.
    Path("theirs").mkdir()
    made = subprocess.run(
        [sys.executable, "-c", f"import litserve; litserve.LitServer.generate_client_file(port={port})"],
        cwd="theirs", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    theirs = Path("theirs/client.py").read_text()
    call = f'response = requests.post("http://127.0.0.1:{port}/predict", json={{"input": 4.0}})'
    assert call in theirs
    ours = files(PAGES[0])["client.py"].replace("8000", str(port))
    assert call.replace("4.0", "picture") in ours
    Path("client.py").write_text(ours)
    server = subprocess.Popen(
        [sys.executable, "server.py"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not _ready(port):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        paths = ordinary_pictures(place / "pictures")
        found = {}
        for path in paths:
            status, _, answer = python("client.py", path).partition("\n")
            assert status == "Status: 200"
            found[path] = json.loads(answer.removeprefix("Response:\n"))
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its workers too, which would outlive it
        server.wait(60)
    check(found, predicted("runs/mine", paths))


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_both_languages_have_the_same_files_and_tables():
    assert files(PAGES[0]) == files(PAGES[1]) and len(files(PAGES[0])) == 8
    for pattern in (r"^```(.*?)^```$", r"^\|", r"^#+ "):
        counts = [len(re.findall(pattern, text(page), re.MULTILINE | re.DOTALL)) for page in PAGES]
        assert counts[0] == counts[1] > 4


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(page)):
        assert "://" in target or (ROOT / "docs" / target).exists(), target

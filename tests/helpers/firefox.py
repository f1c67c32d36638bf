"""Firefox without a screen, driven by its own protocol (Marionette): enough to open a page and ask it something."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any


class Firefox:
    """A running Firefox with a profile in `folder`. Use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        folder.mkdir()
        (folder / "user.js").write_text(f'user_pref("marionette.port", {self.port});\n')
        program = shutil.which("firefox-esr") or shutil.which("firefox")
        assert program is not None
        self.process = subprocess.Popen(
            [program, "--headless", "--marionette", "--profile", str(folder), "--no-remote"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> "Firefox":
        for _ in range(600):
            try:
                self.socket = socket.create_connection(("127.0.0.1", self.port))
                break
            except OSError:
                time.sleep(0.1)
        self._receive()
        self.ask("WebDriver:NewSession")
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()

    def ask(self, command: str, **values: Any) -> Any:
        message = json.dumps([0, 1, command, values]).encode()
        self.socket.sendall(b"%d:%s" % (len(message), message))
        _, _, error, result = self._receive()
        assert error is None, error
        return result

    def run(self, script: str) -> Any:
        return self.ask("WebDriver:ExecuteScript", script=script, args=[])["value"]

    def _receive(self) -> Any:
        size = b""
        while not size.endswith(b":"):
            size += self.socket.recv(1)
        text = b""
        while len(text) < int(size[:-1]):
            text += self.socket.recv(int(size[:-1]) - len(text))
        return json.loads(text)

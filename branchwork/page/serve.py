"""The verb `ui`: serve the pages of runs to a browser on this machine, and to nobody else."""

import contextvars
import errno
import http.server
import threading
from collections.abc import Callable
from html import escape
from pathlib import Path
from urllib.parse import quote, unquote

from branchwork.errors import BranchworkError, RunError
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.page.build import build_page
from branchwork.pages import page
from branchwork.screen import watch
from branchwork.training.run import MODEL, holds


class PageServer:
    """Serves pages from a thread, at `address`, until `close`. Use it as a context manager."""

    def __init__(self, server: http.server.ThreadingHTTPServer) -> None:
        self._server = server
        self.address = f"http://127.0.0.1:{server.server_address[1]}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "PageServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ui(
    run: str | Path,
    beside: str | Path | None = None,
    *,
    port: int = 0,
    source: Path | None = None,
    progress: bool | Observer = False,
) -> PageServer:
    """Serve the page of a run folder, with that of `beside` on the same picture, or of every run below a folder.

    It listens on 127.0.0.1, by default at a `port` that is free. Requests under another host name are refused, so that
    no website can read the pages through the browser. Raises `RunError` if there is no run or the port is taken, and
    whatever `build_page` raises if there is one run.
    """
    folder, observer = Path(run), watch(progress)
    runs = {str(path.parent.relative_to(folder)): path.parent for path in sorted(folder.glob(f"**/{MODEL}"))}
    if not runs:
        raise RunError(
            "{folder} holds no run: give a run folder made by branchwork train, or a folder of runs", folder=run
        )
    if beside is not None and not holds(folder, MODEL):
        raise RunError("{folder} holds several runs: name one run to show beside {beside}", folder=run, beside=beside)
    built: dict[str, str] = {}
    lock = threading.Lock()
    context = contextvars.copy_context()  # a thread of the server trusts the code that this one does

    def page_of(name: str) -> str:
        with lock:
            if name not in built:
                run = runs[name]
                _, built[name] = context.run(build_page, run, beside=beside, source=source, progress=observer)
            return built[name]

    if holds(folder, MODEL):
        page_of(".")  # what is wrong with it is told now, and not in the browser
    try:
        return PageServer(http.server.ThreadingHTTPServer(("127.0.0.1", port), _handler(runs, page_of)))
    except (OSError, OverflowError) as reason:
        if isinstance(reason, OSError) and reason.errno != errno.EADDRINUSE:
            raise RunError("cannot listen on port {port}: {reason}", port=port, reason=reason) from reason
        raise RunError("port {port} is taken, or not a port: choose another --port", port=port) from reason


def _handler(runs: dict[str, Path], page_of: Callable[[str], str]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host, _, port = self.headers.get("Host", "").rpartition(":")
            if host not in ("127.0.0.1", "localhost") or port != str(self.connection.getsockname()[1]):
                return self._answer(403, say("this page is served to this machine only"))
            name = unquote(self.path.partition("?")[0].strip("/")) or "."
            if name in runs:
                try:
                    return self._answer(200, page_of(name))
                except BranchworkError as reason:
                    return self._answer(500, page(say("This run has no page"), [f"<p>{escape(str(reason))}</p>"]))
            if name == ".":
                return self._answer(200, _list_of(runs))
            return self._answer(404, say("there is no such run"))

        def _answer(self, code: int, text: str) -> None:
            content = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: only the command prints."""

    return Handler


def _list_of(runs: dict[str, Path]) -> str:
    links = "".join(f'<li><a href="/{quote(name)}">{escape(name)}</a></li>' for name in runs)
    return page(say("Runs"), [f"<ul>{links}</ul>"])

"""The verb `show`: the page of a run inside a notebook."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from branchwork.observer import Observer
from branchwork.page.build import build_page


@dataclass(frozen=True)
class RunPage:
    """The page of a run: a notebook shows it in a frame of `height` pixels."""

    title: str
    html: str
    height: int

    def _repr_html_(self) -> str:
        frame = f'style="width: 100%; height: {self.height}px; border: 0" title="{escape(self.title)}"'
        return f'<iframe sandbox="allow-scripts allow-downloads" {frame} srcdoc="{escape(self.html)}"></iframe>'


def show(
    run: str | Path,
    beside: str | Path | None = None,
    *,
    height: int = 900,
    source: Path | None = None,
    progress: bool | Observer = False,
) -> RunPage:
    """Return the page of a run folder, with that of `beside` on the same picture, to be shown in a notebook.

    It runs in the notebook's own browser and needs no server. Raises whatever `build_page` raises.
    """
    title, html = build_page(run, beside=beside, source=source, progress=progress)
    return RunPage(title, html, height)

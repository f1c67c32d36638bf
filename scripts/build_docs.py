"""Build the documentation site in English and Chinese, with warnings as errors, and follow every link within it.

`python scripts/build_docs.py` writes build/site: English at its top, Chinese in zh/. `--external` also asks the network
whether the pages that are linked elsewhere still exist.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
FOLDERS = {"en": ".", "zh": "zh"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/site")
    parser.add_argument("--external", action="store_true", help="only check the links to other sites, by the network")
    given = parser.parse_args(arguments)
    for language, folder in FOLDERS.items():
        if code := sphinx(given.out / folder, language, "linkcheck" if given.external else "html"):
            return code
    lost = [] if given.external else list(broken_links(given.out))
    print(*lost, sep="\n", file=sys.stderr, end="\n" if lost else "")
    return 1 if lost else 0


def sphinx(out: Path, language: str, builder: str = "html") -> int:
    """Build the site of one language into `out`. Returns the exit code of Sphinx, which is not 0 after a warning."""
    strict = ["--fail-on-warning", "--keep-going", "--quiet"]
    words = [sys.executable, "-m", "sphinx", "--builder", builder, "--tag", language, *strict]
    with tempfile.TemporaryDirectory() as read:
        folders = ["--doctree-dir", read, str(ROOT / "docs"), str(out)]
        return subprocess.run([*words, *folders], cwd=ROOT, check=False).returncode


class Page(HTMLParser):
    """The addresses that a page links to, and the places in it that can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name == "id":
                self.places.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """Yield each link within the site that leads nowhere."""
    pages = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (file.parent / unquote(address.path)).resolve() if address.path else file.resolve()
            place = unquote(address.fragment)
            # The addresses of the live page (example.html#step=3) are its own.
            if not target.is_file() or (place and "=" not in place and place not in pages[target].places):
                yield f"{file.relative_to(site)}: {link} leads nowhere"


if __name__ == "__main__":
    sys.exit(main())

"""Photograph the interactive page for the documentation, in English and Chinese.

Run it as `python scripts/draw_pages.py INCEPTION RESIDUAL`, with the folders of two runs on MNIST; it needs Playwright
and Chromium. It writes docs/page.png, docs/page-shortcut.png and docs/pictures/page-compare.png, and beside each one
the same in Chinese, as .zh.png.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

import branchwork
from branchwork import ExportOptions

DOCS = Path(__file__).parents[1] / "docs"
SIZE = {"width": 1300, "height": 1010}
# Strokes on the drawing pad, in shares of its side.
SEVEN = [(0.24, 0.25), (0.72, 0.22), (0.45, 0.83)]
THREE = [(0.29, 0.2), (0.62, 0.2), (0.67, 0.33), (0.46, 0.5), (0.7, 0.62), (0.62, 0.8), (0.29, 0.8)]


def draw(page: Any, stroke: Sequence[tuple[float, float]]) -> None:
    pad = page.locator("#pad").bounding_box()
    for number, (x, y) in enumerate(stroke):
        page.mouse.move(pad["x"] + x * pad["width"], pad["y"] + y * pad["height"], steps=20)
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_timeout(1000)


def pick(page: Any, layer: str) -> None:
    page.locator(f"svg g[aria-label='{layer}']").first.dispatch_event("click")
    page.wait_for_timeout(1000)


def inception(page: Any) -> None:
    draw(page, SEVEN)
    pick(page, "incep1.b5.conv2")
    page.evaluate("scrollTo(0, 0)")


def shortcut(page: Any) -> None:
    draw(page, THREE)
    page.locator(".primary").first.click()
    for _ in range(4):
        page.wait_for_timeout(500)
        page.locator("#tour .primary").click()
    page.wait_for_timeout(2000)


def two_nets(page: Any) -> None:
    draw(page, THREE)


def main(first: str, second: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        pages = {run: Path(folder, f"{number}.html") for number, run in enumerate((first, second, "both"))}
        branchwork.export(first, to="html", out=pages[first])
        branchwork.export(second, to="html", out=pages[second])
        branchwork.export(first, to="html", out=pages["both"], options=ExportOptions(beside=second))
        browser = driver.chromium.launch(executable_path=chromium)
        for name, run, scheme, act in (
            ("page", first, "light", inception),
            ("page-shortcut", second, "dark", shortcut),
            ("pictures/page-compare", "both", "light", two_nets),
        ):
            for locale, ending in (("en-US", ".png"), ("zh-CN", ".zh.png")):
                page = browser.new_page(viewport=SIZE, locale=locale, color_scheme=scheme)
                page.goto(pages[run].as_uri())
                page.wait_for_selector("#samples button")
                act(page)
                page.screenshot(path=DOCS / f"{name}{ending}", full_page=act is two_nets)


if __name__ == "__main__":
    main(*sys.argv[1:])

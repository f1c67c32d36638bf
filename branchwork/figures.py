"""The one set-up for figures by matplotlib, and the palette that they share."""

from html import escape

# Okabe and Ito's colours, which the colour-blind can tell apart, as fills so light that ink is legible on them.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
# matplotlib knows no style sheet: this stands for the ink of the page, and is replaced in the finished drawing.
INK = "#010203"
PAPER_INK, PAPER = "#1c1c1c", "#ffffff"
_STYLE = ".branchwork{color:#1c1c1c}@media(prefers-color-scheme:dark){.branchwork{color:#e8e8e8}}"


def with_ink_of_page(drawing: bytes, title: str) -> bytes:
    """An SVG by matplotlib whose `INK` becomes the ink of the page, dark on light or light on dark."""
    text = drawing.decode().replace(INK, "currentColor")
    return (
        text[text.index("<svg") :]
        .replace("<svg ", f'<svg class="branchwork" role="img" aria-label="{escape(title)}" ', 1)
        .replace("<defs>", f"<style>{_STYLE}</style>\n <defs>", 1)
        .encode()
    )

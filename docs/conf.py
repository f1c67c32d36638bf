"""The documentation site, in one language: `make docs` builds it in both (scripts/build_docs.py)."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from branchwork.version import __version__  # noqa: E402, found by the line above

is_chinese = tags.has("zh")  # noqa: F821, Sphinx defines it

project = "Branchwork"
author = "The Branchwork maintainers"
version = release = __version__
language = "zh_CN" if is_chinese else "en"
extensions = ["myst_parser", "sphinx.ext.autodoc", "site_pages"]

# A page is X.md in English and X.zh.md in Chinese: each language has the same pages under the same names.
# The experiments are kept in English alone.
if is_chinese:
    source_suffix = {".zh.md": "markdown"}
    include_patterns = ["**.zh.md", "experiments/*.md"]
else:
    source_suffix = {".md": "markdown"}
    exclude_patterns = ["**.zh.md", "digits/*"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
smartquotes = False  # it would make one dash of the two of a flag
highlight_language = "none"

# Every name that is referred to is on some page, but for those of other packages and what is beneath our own.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!branchwork\.).*|branchwork\.shown\..*")]

default_role = "literal"  # `name` in a docstring
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 60
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Branchwork"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path = ["example.html"]
html_copy_source = False
html_show_copyright = False
html_use_index = False

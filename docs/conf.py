"""Configure the site of `make docs`, which builds offline."""

import sys
from pathlib import Path

from adapt import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "adapt"
version = release = __version__
html_title = f"adapt {version}"
html_theme = "furo"
html_show_copyright = False  # the licence is on the first page
html_css_files = ["adapt.css"]
html_js_files = [("versions.js", {"defer": "defer"})]
html_static_path = ["static"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "sphinx_design"]
extensions += ["settings_table"]  # our own, in this folder
default_role = "code"  # docstrings write `name`
highlight_language = "text"  # indented blocks hold commands and their output
smartquotes = False  # or else --option becomes a dash
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_mock_imports = [
    "fastapi",
    "prometheus_client",
    "python_multipart",
    "starlette",
    "threadpoolctl",
]  # of an extra that the site does not need
myst_enable_extensions = ["colon_fence"]  # cards inside a grid
myst_heading_anchors = 3
nitpick_ignore_regex = [("py:.*", ".*")]  # types of torch and of private modules are named in signatures, and not here

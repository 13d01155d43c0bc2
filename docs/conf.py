"""The site of `make docs`. It builds offline."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = html_title = "adapt"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "settings_table"]
default_role = "code"  # docstrings write `name`
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
myst_heading_anchors = 3
nitpick_ignore_regex = [("py:.*", ".*")]  # types of torch and of private modules are named in signatures, and not here

"""Sphinx configuration: MyST pages, furo theme, API pages from docstrings; warnings are errors."""

from burnish import __version__

project = "burnish"
author = "The burnish maintainers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "burnish"
html_static_path: list[str] = []
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_mock_imports: list[str] = []
nitpicky = False

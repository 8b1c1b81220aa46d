"""Sphinx settings: MyST Markdown, mathematics, and the settings page made from the code."""

import dal_dense

project = "dal_dense"
author = "the dal_dense authors"
release = dal_dense.__version__
extensions = ["myst_parser", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Deep active learning for dense prediction", "page_width": "70rem"}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["toc.empty_glob"]  # benchmarks are added when they have been run

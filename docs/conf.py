"""The docs site, built by `sphinx-build -W -b html docs docs/_build`."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = author = "pyclassify"
project_copyright = "The pyclassify developers"
release = version = importlib.metadata.version("pyclassify")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "repository_pages",
    "reference",
    "mermaid",
]
exclude_patterns = ["_build"]
smartquotes = False  # would make a dash of the two hyphens of an option
default_role = "literal"  # docstrings mark code as Markdown does
suppress_warnings = ["misc.highlighting_failure"]  # of JSON with "..."; it is still highlighted

myst_heading_anchors = 6  # the anchors that GitHub gives to headings
myst_fence_as_directive = ["mermaid"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False  # those of Lightning have its links and its markup
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"  # an example's prompts and output

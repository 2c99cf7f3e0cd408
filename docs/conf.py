"""How Sphinx makes the documentation: ``make docs`` puts it into build/docs, and a warning is an error."""

from __future__ import annotations

import dicomtwist

project = "dicomtwist"
author = "the dicomtwist developers"
copyright = f"{author}, MIT license"
version = release = dicomtwist.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]

# The pages are written to be read on their own as well, so links are those of Markdown, headings their targets.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# One type on a line where a signature is longer than that.
maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"dicomtwist {release}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

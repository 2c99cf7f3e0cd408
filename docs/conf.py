"""How Sphinx makes the documentation: ``make docs`` puts it into build/docs, and a warning is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

import dicomtwist

project = "dicomtwist"
author = "the dicomtwist developers"
copyright = f"{author}, MIT license"
version = release = dicomtwist.__version__

sys.path.insert(0, str(Path(__file__).parent))

extensions = ["myst_parser", "sphinx.ext.autodoc", "cross_references"]
# A reference in a docstring to a name that does not exist is a warning, so an error.
nitpicky = True
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
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"navigation_with_keys": True}


def add_unreleased_changes(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the fragments of changelog.d, rendered by towncrier, above the released changes on the page of the changelog."""
    if name == "changelog":
        command = ["towncrier", "build", "--draft", "--version", "Unreleased", "--date", "changelog.d"]
        draft = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        source[0] += draft.stdout.replace("](docs/", "](")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_unreleased_changes)
    # The page changes with the fragments, which Sphinx does not watch.
    app.connect("env-get-outdated", lambda *args: ["changelog"])

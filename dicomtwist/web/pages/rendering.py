"""
The templates of the pages, and the files that they need.

This is the only module that imports Jinja2, which is the extra ``page``. Every value is escaped: names of patients are what
a peer sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dicomtwist.web.pages import charts, words
from dicomtwist.web.pages.files import path_of

__all__ = ["render"]

_FOLDER: Final = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for name in words.__all__:
        made.filters[name] = getattr(words, name)
    made.filters["path"] = lambda text: quote(str(text), safe="")
    made.filters["latest"] = charts.latest
    made.filters["peak"] = charts.peak
    made.globals["static"] = path_of
    # The paths of a chart have numbers alone.
    made.globals["area"] = lambda *values: Markup(charts.area(*values))
    return made


def render(template: str, values: Mapping[str, Any]) -> bytes:
    """Return a page as UTF-8."""
    return _environment().get_template(template).render(values).encode("utf-8", "replace")

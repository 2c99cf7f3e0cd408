"""
Rendered resources: images for display (PS3.18 10.4.1.1.3).
"""

from __future__ import annotations

from typing import Final

from dicomtwist.web.routes import Route

__all__ = ["ROUTES"]

ROUTES: Final[tuple[Route, ...]] = ()

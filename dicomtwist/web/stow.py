"""
STOW-RS: storage of instances (PS3.18 10.5).
"""

from __future__ import annotations

from typing import Final

from dicomtwist.web.routes import Route

__all__ = ["ROUTES"]

ROUTES: Final[tuple[Route, ...]] = ()

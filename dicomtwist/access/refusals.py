"""
Refusals by the access rules: their number, and their reports to listeners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import time

from dicomtwist.runtime.figures.counts import Counts

__all__ = ["Refusal", "Refusals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """
    A peer that was refused.

    :ivar protocol: ``"dimse"`` or ``"http"``.
    :ivar what: ``"association"``, ``"user"`` or ``"operation"``.
    :ivar peer: its AE title, or its user; ``""`` if neither is known.
    :ivar address: its address.
    :ivar request: the service or the method that was refused, ``""`` for an association or a user.
    :ivar words: the reason, with the rules that do not match.
    :ivar at: when, in seconds since 1970.
    """

    protocol: str
    what: str
    peer: str
    address: str
    request: str = ""
    words: str
    at: float = field(default_factory=time)


class Refusals(Counts):
    """
    The refusals of a server by protocol and by what was refused.

    Each refusal is counted. Of the refused operations of one association only the first of its kind is reported, as in the log.

    :ivar listeners: functions that are called with each report. They do not fail.
    """

    __slots__ = ("listeners",)

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[Callable[[Refusal], object]] = []

    def report(self, refusal: Refusal) -> None:
        """Call the listeners."""
        for listener in self.listeners:
            listener(refusal)

"""Looks for secrets in places where they must not be: in log events, and in the representations of objects."""

from __future__ import annotations

from typing import Any

from twisted.logger import ILogObserver, LogEvent, eventAsJSON, eventAsText
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(ILogObserver)
class Leaks:
    """
    An observer of ``twisted.logger`` that finds secrets.

    :param secrets: the secrets.

    :ivar found: the texts that contain a secret.
    :ivar looked_at: the number of log events and objects that were searched.
    """

    def __init__(self, *secrets: bytes) -> None:
        self._secrets = secrets
        self.found: list[str] = []
        self.looked_at = 0

    def __call__(self, event: LogEvent) -> None:
        """Search a log event: as a line, as JSON, and each value in it."""
        self._look(eventAsText(event, includeTraceback=True))
        self._look(eventAsJSON(event))
        for value in event.values():
            self.look_at(value)

    def look_at(self, *things: Any) -> None:
        """Search the representations of objects."""
        for thing in things:
            self._look(f"{thing!r} {thing}")
            if isinstance(thing, Failure):
                self._look(thing.getTraceback(detail="verbose"))

    def _look(self, text: str) -> None:
        self.looked_at += 1
        for secret in self._secrets:
            word = secret.decode("ascii")
            if any(form in text for form in (word, secret.hex(), secret.hex(" "), repr(list(secret))[1:-1])):
                self.found.append(text)

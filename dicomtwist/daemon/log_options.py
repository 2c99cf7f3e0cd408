"""
The log of ``twist dicom``: its format, and its bound for each peer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

from twisted.logger import LogEvent

from dicomtwist.logs import JSONLog, LimitedByPeer, TextLog

__all__ = ["DEFAULT_LOG_RATE", "FORMATS", "set_log"]

#: The formats of the log, by their names.
FORMATS: Final = {"text": TextLog, "json": JSONLog}
#: Matches Twisted's own lines about ports.
_ABOUT_PORTS: Final = re.compile(r" starting on \S+\Z|\A\(.* Closed\)\Z")
#: The most lines about one peer in a minute, unless the option says otherwise.
DEFAULT_LOG_RATE: Final = 300


def set_log(twist: MutableMapping[str, Any] | None, chosen: str | None, most: int | None) -> None:
    """
    Have ``twist`` write its log with the observers of this library.

    :param twist: the options of ``twist`` itself, of which its runner makes the observer; ``None`` without ``twist``.
    :param chosen: ``"text"`` or ``"json"``; ``None`` for what ``twist`` has chosen, by its own ``--log-format`` or because its
        output is a terminal or not.
    :param most: the most lines about one peer in a minute, ``None`` for any number.
    """
    if twist is None:
        return
    # Worker processes get the format from here.
    name = twist["logFormat"] = chosen or _format_of(twist)

    def make(file: TextIO) -> LimitedByPeer:
        return _ServerLog(FORMATS[name](file), most)

    twist["fileLogObserverFactory"] = make


class _ServerLog(LimitedByPeer):
    """Leaves out Twisted's own lines about ports: dicomtwist says in its own words where it listens."""

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace") != "log_legacy" or not _ABOUT_PORTS.search(str(event.get("log_text", ""))):
            super().__call__(event)


def _format_of(twist: MutableMapping[str, Any]) -> str:
    """
    Return the format that ``twist`` has chosen.

    It looks at its standard output before it knows of ``--log-file``, so that a file would have the format of the terminal.
    """
    name = str(twist["logFormat"])
    file: TextIO = twist.get("logFile", sys.stdout)
    if name == "text" and sys.stdout.isatty() and not file.isatty():
        given = any(argument.startswith("--log-fo") for argument in sys.argv)  # options may be abbreviated
        return name if given else "json"
    return name

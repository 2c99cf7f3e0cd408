"""
The log of ``twist dicom``: its format, its bound for each peer, and its file.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

from twisted.logger import LogEvent, Logger

from dicomtwist.logs import JSONLog, LimitedByPeer, TextLog

__all__ = ["DEFAULT_LOG_RATE", "FORMATS", "LogFile", "set_log"]

#: The formats of the log, by their names.
FORMATS: Final = {"text": TextLog, "json": JSONLog}
#: Matches Twisted's own lines about ports.
_ABOUT_PORTS: Final = re.compile(r" starting on \S+\Z|\A\(.* Closed\)\Z")
#: The most lines about one peer in a minute, unless the option says otherwise.
DEFAULT_LOG_RATE: Final = 300


class LogFile:
    """
    The file that the log is written to.

    :param file: the file; a stream such as standard output never is opened again.
    """

    log = Logger()

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def reopen(self) -> None:
        """
        Open the file again by its name, as after a rotation: another program has renamed it.

        If that fails, the log goes on in the renamed file, and says why.
        """
        name = getattr(self._file, "name", None)
        if not isinstance(name, str) or self._file in (sys.__stdout__, sys.__stderr__):
            return
        try:
            number = self._file.fileno()
            # A pipe that is opened again would wait for its reader.
            if not stat.S_ISREG(os.fstat(number).st_mode):
                return
            new = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            self.log.error("the log goes on in the old file, {path} cannot be opened: {error}", path=name, error=error)
            return
        try:
            if not os.path.sameopenfile(number, new):
                self._file.flush()
                # All that write to the file hold its descriptor, which leads to the new file from here on.
                os.dup2(new, number, inheritable=False)
                self.log.info("opened the log file {path} again", path=name)
        finally:
            os.close(new)


def set_log(twist: MutableMapping[str, Any] | None, chosen: str | None, most: int | None) -> LogFile | None:
    """
    Have ``twist`` write its log with the observers of this library.

    :param twist: the options of ``twist`` itself, of which its runner makes the observer; ``None`` without ``twist``.
    :param chosen: ``"text"`` or ``"json"``; ``None`` for what ``twist`` has chosen, by its own ``--log-format`` or because its
        output is a terminal or not.
    :param most: the most lines about one peer in a minute, ``None`` for any number.
    :returns: the file of the log, ``None`` without ``twist``.
    """
    if twist is None:
        return None
    # Worker processes get the format from here.
    name = twist["logFormat"] = chosen or _format_of(twist)

    def make(file: TextIO) -> LimitedByPeer:
        return _ServerLog(FORMATS[name](file), most)

    twist["fileLogObserverFactory"] = make
    return LogFile(twist.get("logFile", sys.stdout))


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

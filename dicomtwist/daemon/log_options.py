"""
The log of ``twist dicom``: its format, its bound for each peer, and its file.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TextIO, cast

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel

from dicomtwist.logs import JSONLog, LimitedByPeer, TextLog

__all__ = ["DEFAULT_LOG_RATE", "FORMATS", "LEVELS", "LogFile", "set_log"]

#: The formats of the log, by their names.
FORMATS: Final = {"text": TextLog, "json": JSONLog}
#: The levels of the log, by their names.
LEVELS: Final = {level.name: level for level in LogLevel.iterconstants()}
#: Matches Twisted's own lines about ports.
_ABOUT_PORTS: Final = re.compile(r" starting on \S+\Z|\A\(.* Closed\)\Z")
#: The most lines about one peer in a minute, unless the option says otherwise.
DEFAULT_LOG_RATE: Final = 300


@dataclass(frozen=True)
class LogChoice:
    """
    The format, the level and the bound of the log.

    :ivar format: the name of its format.
    :ivar level: the lowest level of events that it has.
    :ivar most: the most lines about one peer in a minute, ``None`` for any number.
    """

    format: str = "text"
    level: Any = LogLevel.info
    most: int | None = None


class LogFile:
    """
    The file that the log is written to.

    :param file: the file; a stream such as standard output never is opened again.
    :param given: the format and the level that hold unless an option of the server says otherwise.
    """

    log = Logger()

    def __init__(self, file: TextIO, given: LogChoice | None = None) -> None:
        self._file = file
        self.given = given or LogChoice()
        self._choice = self.given
        self._observer: _ServerLog | None = None

    def observe(self, file: TextIO) -> LimitedByPeer:
        """Return the observer that writes to *file*: a factory for ``twist``."""
        self._observer = _ServerLog(file, self._choice)
        return self._observer

    def change(self, chosen: str | None, level: str | None, most: int | None) -> LogChoice:
        """
        Change format, level and bound from the next event on.

        :param chosen: the name of the format, and *level* that of the level; ``None`` for what was given at the start.
        :param most: as in :class:`LogChoice`.
        :returns: what holds.
        """
        given = self.given
        self._choice = LogChoice(chosen or given.format, given.level if level is None else LEVELS[level], most)
        if self._observer is not None:
            self._observer.change(self._choice)
        return self._choice

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
                # The new file gets the rest of what a full disk has not taken.
                with suppress(OSError):
                    self._file.flush()
                # All that write to the file hold its descriptor, which leads to the new file from here on.
                os.dup2(new, number, inheritable=False)
                self.log.info("opened the log file {path} again", path=name)
        finally:
            os.close(new)


def set_log(
    twist: MutableMapping[str, Any] | None, chosen: str | None, most: int | None, level: str | None = None
) -> LogFile | None:
    """
    Have ``twist`` write its log with the observers of this library.

    :param twist: the options of ``twist`` itself, of which its runner makes the observer; ``None`` without ``twist``.
    :param chosen: ``"text"`` or ``"json"``; ``None`` for what ``twist`` has chosen, by its own ``--log-format`` or because its
        output is a terminal or not.
    :param most: the most lines about one peer in a minute, ``None`` for any number.
    :param level: the name of the lowest level; ``None`` for the one that ``twist`` has.
    :returns: the file of the log, ``None`` without ``twist``.
    """
    if twist is None:
        return None
    given = LogChoice(_format_of(twist), twist.get("logLevel", LogLevel.info))
    file = LogFile(twist.get("logFile", sys.stdout), given)
    twist["logFormat"] = file.change(chosen, level, most).format
    # A reload may lower the level, so the runner must not leave out anything itself.
    twist["logLevel"] = LogLevel.debug
    twist["fileLogObserverFactory"] = file.observe
    return file


class _ServerLog(LimitedByPeer):
    """
    The log of a server. Twisted's own lines about ports are left out: dicomtwist says in its own words where it listens.

    :param file: the file.
    :param choice: its format, level and bound.
    """

    def __init__(self, file: TextIO, choice: LogChoice) -> None:
        self._log_file = file
        self._formatter: Any = None
        super().__init__(cast("ILogObserver", self._write), choice.most)
        self.change(choice)

    def _write(self, event: LogEvent) -> None:
        self._formatter(event)

    def change(self, choice: LogChoice) -> None:
        """Change them, from the next event on."""
        self.most = choice.most
        self._level = choice.level
        made = FORMATS[choice.format]
        if type(self._formatter) is not made:
            self._formatter = made(self._log_file)

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level")
        if level is None or level < self._level:
            return
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

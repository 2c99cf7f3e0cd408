"""
The output of the command: results go to standard output, everything else to standard error.

Text from peers and file names is escaped first: no escape sequence reaches the terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO, cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner

from dicomtwist import AE, evt
from dicomtwist.logs import text_lines
from dicomtwist.tools.display.text_table import column_widths, fitted, row_lines, terminal_width, word_lines
from dicomtwist.trace import TRACE, trace

#: The levels of verbosity: ``-q``, the default, ``-v``, ``-vv``.
QUIET, NORMAL, VERBOSE, DEBUG = -1, 0, 1, 2


def printable(text: object) -> str:
    """Return *text* as one line, with all characters escaped that are not printable."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def table(rows: Iterable[Sequence[object]], indent: str = "") -> list[str]:
    """Return *rows* as lines with aligned columns that fit the terminal of standard output, if it is one."""
    cells = [[printable(cell) for cell in row] for row in rows]
    natural = column_widths(cells)
    limit = terminal_width(sys.stdout)
    widths = fitted(natural, limit - len(indent) if limit is not None else None)
    return [
        (indent + line).rstrip()
        for row in cells
        for line in row_lines(row, widths or natural, wraps=limit is not None and widths is not None)
    ]


def plural(count: int, noun: str) -> str:
    """Return *count* with *noun* in the singular or plural."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class Output:
    """
    The two output streams of a subcommand.

    :param verbosity: one of the constants of this module.
    :param as_json: print one JSON document to standard output and nothing else.
    :param traces: print a trace of the associations to standard error, as ``-vv`` does.

    :ivar outside_progress: called with a function that writes to standard error; a progress bar hides itself meanwhile.
    :ivar reader_gone: whether the reader of standard output has closed it, as ``head`` does after its last line.
    """

    def __init__(self, verbosity: int = NORMAL, *, as_json: bool = False, traces: bool = False) -> None:
        self.verbosity = verbosity
        self.traces = traces or verbosity >= DEBUG
        self.as_json = as_json
        self.outside_progress: Callable[[Callable[[], None]], None] | None = None
        self.reader_gone = False
        for stream in (sys.stdout, sys.stderr):
            # A file name or title that the locale cannot encode must not end the program.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    # --- standard output

    def result(self, *lines: str) -> None:
        """Print *lines* of the result, unless the output is JSON or quiet."""
        if not self.as_json and self.verbosity > QUIET:
            self._print(sys.stdout, lines)

    def sentences(self, *sentences: str) -> None:
        """Print sentences of the result as :meth:`result` does, wrapped if standard output is a terminal."""
        limit = terminal_width(sys.stdout)
        self.result(*(line for text in sentences for line in word_lines(printable(text), limit)))

    def data(self, *lines: str) -> None:
        """Print *lines* that the user has asked for, such as matches, with ``-q`` too; nothing if the output is JSON."""
        if not self.as_json:
            self._print(sys.stdout, lines)

    def document(self, document: dict[str, Any]) -> None:
        """Print *document* if the output is JSON."""
        if self.as_json:
            self._print(sys.stdout, [json.dumps(document)], clean=False)

    def piece(self, text: str) -> None:
        """Print *text* unchanged, as a piece of a long JSON document, if the output is JSON."""
        if self.as_json:
            self._print(sys.stdout, [text], clean=False, end="")

    # --- standard error

    def error(self, text: str) -> None:
        """Print an error, with ``-q`` too."""
        self._note([f"dicomtwist: {text}"])

    def note(self, text: str, level: int = NORMAL) -> None:
        """Print a message if the verbosity is at least *level*."""
        if self.verbosity >= level:
            self._note([text])

    def _note(self, lines: Sequence[str]) -> None:
        if self.outside_progress is None:
            self._print(sys.stderr, lines)
        else:
            self.outside_progress(lambda: self._print(sys.stderr, lines))

    def _print(self, stream: TextIO, lines: Iterable[str], *, clean: bool = True, end: str = "\n") -> None:
        try:
            for line in lines:
                print(printable(line) if clean else line, file=stream, end=end)
            stream.flush()
        except BrokenPipeError:
            # The reader, such as "head", has closed the pipe. The null device replaces it, so that no flush at exit fails.
            self.reader_gone = self.reader_gone or stream is sys.stdout
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    # --- logs and events

    def begin_logging(self) -> None:
        """Print the log of Twisted and dicomtwist to standard error, one line for each event."""
        globalLogBeginner.beginLoggingTo(
            [cast(ILogObserver, self._logged)], discardBuffer=True, redirectStandardIO=False
        )

    def _logged(self, event: LogEvent) -> None:
        level = event.get("log_level", LogLevel.info)
        if event.get("log_namespace") == TRACE:
            moment = datetime.fromtimestamp(event["log_time"])
            self._note([f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03} {line}" for line in text_lines(event)])
            return
        wanted = NORMAL if level >= LogLevel.error else VERBOSE if level >= LogLevel.warn else DEBUG
        if self.verbosity < wanted:
            return
        text = formatEvent(event)
        failure = event.get("log_failure")
        if failure is not None:
            text = f"{text}: {failure.type.__name__}: {failure.getErrorMessage()}"
            if self.verbosity >= DEBUG:
                self._note([text, *failure.getTraceback().splitlines()])
                return
        self._note([text])

    def log_associations(self, ae: AE) -> None:
        """
        Print the events of the associations of *ae*: with ``-v`` their beginning and end, with ``-vv`` or ``--trace`` a trace.
        """
        if self.traces:
            trace(ae, every_context=self.verbosity > DEBUG)
        elif self.verbosity >= VERBOSE:
            for event, describe in _EVENTS.items():
                ae.bind(event, self._log_event, [describe, VERBOSE])

    def _log_event(self, event: evt.Event, describe: Callable[[Any], str], level: int) -> None:
        text = describe(event)
        if text:
            self.note(text, level)


def _accepted(event: Any) -> str:
    contexts = event.pdu.presentation_contexts
    accepted = sum(context.result == 0 for context in contexts)
    return f"association accepted, {accepted} of {plural(len(contexts), 'presentation context')}"


_EVENTS: dict[evt.EventType, Callable[[Any], str]] = {
    evt.EVT_CONN_OPEN: lambda event: f"connected to {event.address[0]} {event.address[1] or ''}".rstrip(),
    evt.EVT_REQUESTED: lambda event: f"association requested as {event.assoc.requestor.ae_title}",
    evt.EVT_ACCEPTED: _accepted,
    evt.EVT_REJECTED: lambda event: "association rejected",
    evt.EVT_RELEASED: lambda event: "association released",
    evt.EVT_ABORTED: lambda event: f"association ended: {event.reason}",
}

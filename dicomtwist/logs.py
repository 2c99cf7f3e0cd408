"""
Observers for Twisted's log: one JSON object for each event, or lines of text, in which no text of a peer can pretend to be
something else.

Each event of this library names its association and its peer. :class:`LimitedByPeer` bounds the number of lines about one
peer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, TextIO
from unicodedata import east_asian_width

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from dicomtwist.association.association import Association
from dicomtwist.errors import loggable
from dicomtwist.runtime.networks import host_of

__all__ = ["JSONLog", "LimitedByPeer", "TextLog"]

#: The longest message, in characters.
MAX_MESSAGE: Final = 2000
#: The longest text in another field of a JSON object, in characters.
MAX_FIELD: Final = 500
#: The most items of a list or object in a field, and the deepest nesting of fields.
MAX_ITEMS: Final = 128
_MAX_DEPTH: Final = 3
#: The most lines of a traceback, and the most characters of one of them. The last lines are kept.
MAX_TRACEBACK: Final = 60
#: The narrowest lines that are made for a terminal, and those for one that does not tell its width, in columns.
_NARROWEST: Final = 16
_USUAL_WIDTH: Final = 80

#: The keys of a JSON object that no field of an event replaces.
_KEYS: Final = frozenset(
    ("time", "level", "logger", "process", "association", "peer", "address", "message", "traceback")
)
#: The keys that Twisted's older log adds to an event; the message has their content.
_OLDER_KEYS: Final = frozenset(
    ("isError", "failure", "why", "format", "system", "warning", "category", "filename", "lineno")
)


def one_line(text: str, most: int = MAX_MESSAGE) -> str:
    """
    Return *text* as one line of printable characters; each other character is escaped, such as ``\\n``.

    :param most: the greatest length, in characters; the length of a text that is cut is at its end.
    """
    cut = text[:most]
    line = cut if cut.isprintable() else "".join(map(_escaped, cut))
    if len(text) <= most and len(line) <= most:
        return line
    return f"{line[:most]}... ({len(text)} characters)"


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def association_of(event: LogEvent) -> Association | None:
    """Return the association that *event* is about, ``None`` if there is none."""
    source = event.get("log_source")
    for candidate in (event.get("association"), source, getattr(source, "assoc", None)):
        if isinstance(candidate, Association):
            return candidate
    return None


def peer_of(event: LogEvent) -> tuple[str | None, str | None]:
    """Return the AE title and the address of the peer that *event* is about, as far as they are known."""
    association = association_of(event)
    title, address = event.get("peer"), event.get("address")
    if association is not None:
        title = title or association.remote.ae_title
        address = association.remote.address or address
    return _text_or_none(title), _text_or_none(address)


def _text_or_none(value: Any) -> str | None:
    return one_line(value, MAX_FIELD) if isinstance(value, str) and value else None


def _level(event: LogEvent) -> str:
    level = event.get("log_level", LogLevel.info)
    return str(getattr(level, "name", "info"))


def _message(event: LogEvent) -> str:
    """Return the text of *event*, without the traceback that Twisted's older log puts behind it."""
    text = formatEvent(event)
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        text = text.partition("\n")[0]
        error = f"{failure.type.__name__}: {failure.getErrorMessage()}" if failure.type is not None else ""
        text = f"{text}: {error}" if text else error
    return one_line(text)


def _traceback(event: LogEvent) -> list[str]:
    failure = event.get("log_failure")
    if not isinstance(failure, Failure):
        return []
    try:
        lines = failure.getTraceback().rstrip("\n").splitlines()
    except Exception:
        return ["the traceback cannot be shown"]
    return [one_line(line, MAX_FIELD) for line in lines[-MAX_TRACEBACK:]]


def _value(value: Any, depth: int = 0) -> Any:
    """Return *value* as JSON can have it, bounded."""
    if value is None or isinstance(value, bool):
        return value
    if type(value) is int or (isinstance(value, int) and not isinstance(value, str)):
        return int(value)
    if isinstance(value, float) and value - value == 0:  # neither infinite nor not a number
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            items = list(value.items())[:MAX_ITEMS]
            return {one_line(str(key), MAX_FIELD): _value(one, depth + 1) for key, one in items}
        if isinstance(value, list | tuple | set | frozenset):
            return [_value(one, depth + 1) for one in list(value)[:MAX_ITEMS]]
    try:
        return one_line(value if isinstance(value, str) else str(value), MAX_FIELD)
    except Exception:
        return type(value).__name__


def json_line(event: LogEvent) -> str:
    """
    Return *event* as a JSON object in ASCII, on one line.

    It has ``time`` (ISO 8601 in UTC), ``level``, ``logger``, ``process`` (the process ID), ``association`` (its number in this
    process), ``peer`` (AE title), ``address``, and ``message``; the three about a peer are null if the event is about none.
    The other fields of the event follow, and ``traceback``, a list of lines, if there is one.
    """
    association = association_of(event)
    title, address = peer_of(event)
    moment = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    found: dict[str, Any] = {
        "time": moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z",
        "level": _level(event),
        "logger": one_line(str(event.get("log_namespace", "")), MAX_FIELD),
        "process": os.getpid(),
        "association": None if association is None else association.number,
        "peer": title,
        "address": address,
        "message": _message(event),
    }
    for key, value in event.items():
        if not key.startswith("log_") and key not in _KEYS and key not in _OLDER_KEYS:
            found[one_line(key, MAX_FIELD)] = _value(value)
    lines = _traceback(event)
    if lines:
        found["traceback"] = lines
    return json.dumps(found)


def text_lines(event: LogEvent) -> list[str]:
    """Return *event* as text: its message without the time, then the lines of its traceback."""
    level, logger = _level(event), str(event.get("log_namespace", ""))
    association = association_of(event)
    parts = [] if level == "info" else [f"{level}:"]
    if not logger.startswith(("dicomtwist", "log_legacy")):
        parts.append(f"{one_line(logger.partition('.')[0], MAX_FIELD)}:")
    if association is not None:
        parts.append(f"#{association.number}")
    return [" ".join([*parts, _message(event)]), *(f"  {line}" for line in _traceback(event))]


# --- writing


@implementer(ILogObserver)
class _FileLog:
    """
    An observer that writes to *file*; a character that its encoding does not have is escaped.

    While the file cannot be written, for want of room, say, events are counted; their number is logged when it can be written
    again.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._failure: OSError | None = None
        self._lost = 0
        reconfigure: Callable[..., None] | None = getattr(file, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def __call__(self, event: LogEvent) -> None:
        """Write *event*."""
        if self._failure is not None:
            try:
                self._file.flush()  # the event that could not be written is in its buffer
            except OSError as error:
                self._failure = error
                self._lost += 1
                return
        events = [self._about_lost(event), event] if self._lost else [event]
        self._failure, self._lost = None, 0
        try:
            self._file.write("".join(f"{line}\n" for one in events for line in self._lines(one)))
            self._file.flush()
        except OSError as error:
            self._failure = error

    def _about_lost(self, event: LogEvent) -> LogEvent:
        return {
            "log_level": LogLevel.error,
            "log_namespace": __name__,
            "log_time": event.get("log_time", 0.0),
            "log_format": "the log could not be written: {why}; events that are missing before this line: {count}",
            "why": loggable(self._failure),
            "count": self._lost,
        }

    def _lines(self, event: LogEvent) -> Iterator[str]:
        raise NotImplementedError


class JSONLog(_FileLog):
    """
    An observer that writes each event as one JSON object on one line, without control characters, see :func:`json_line`.

    :param file: a text file.
    """

    def _lines(self, event: LogEvent) -> Iterator[str]:
        yield json_line(event)


class TextLog(_FileLog):
    """
    An observer that writes lines of text: the time, the level unless it is info, the number of the association, the message.

    On a terminal the time has no date, and longer lines are wrapped at its width. In a file an event is one line, but for its
    traceback.

    :param file: a text file.
    """

    def _lines(self, event: LogEvent) -> Iterator[str]:
        lines = text_lines(event)
        width = terminal_width(self._file)
        moment = datetime.fromtimestamp(event.get("log_time", 0.0)).astimezone()
        if width is None:
            lines[0] = f"{moment.isoformat(timespec='milliseconds')} {lines[0]}"
            yield from lines
            return
        lines[0] = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03} {lines[0]}"
        for line in lines:
            yield from wrapped(line, width)


def terminal_width(file: TextIO) -> int | None:
    """Return the width of the terminal that *file* writes to, in columns; ``None`` if it is no terminal."""
    try:
        if not file.isatty():
            return None
    except (ValueError, AttributeError):
        return None  # it is closed, or no file at all
    named = os.environ.get("COLUMNS", "")
    columns = int(named) if named.isdecimal() and len(named) < 6 else 0
    if not columns:
        with suppress(OSError):
            columns = os.get_terminal_size(file.fileno()).columns
    return max(columns, _NARROWEST) if columns else _USUAL_WIDTH


def wrapped(line: str, width: int) -> Iterator[str]:
    """Yield *line* as lines of at most *width* columns, broken at spaces where that is possible; later ones are indented."""
    indent = "  " if not line.startswith("  ") else "    "
    current, columns = "", 0
    for word in _words(line, width - len(indent)):
        length = _columns(word)
        if current.strip() and columns + len(word) - len(word.lstrip(" ")) and columns + length > width:
            yield current.rstrip()
            word = word.lstrip(" ")
            current, columns, length = indent, len(indent), _columns(word)
        current += word
        columns += length
    yield current.rstrip()


def _words(line: str, longest: int) -> Iterator[str]:
    """Yield the words of *line*, each with the spaces before it; words of more columns than *longest* in pieces."""
    start = 0
    while start < len(line):
        end = start
        while end < len(line) and line[end] == " ":
            end += 1
        columns = end - start
        while end < len(line) and line[end] != " ":
            columns += _columns(line[end])
            if columns > longest and end > start:
                break
            end += 1
        yield line[start:end]
        start = end


def _columns(text: str) -> int:
    return len(text) if text.isascii() else sum(2 if east_asian_width(one) in "WF" else 1 for one in text)


# --- bounds


@implementer(ILogObserver)
class LimitedByPeer:
    """
    An observer that hands events on to another one, and leaves out those about a peer that has had its share.

    A peer is an address, for IPv6 a network of 64 bits, which one host has for itself. When it has had *most* events in a
    minute, one line says that further ones are left out, and another one, with the first event after that minute, says how
    many they were. Events with a true ``log_always``, such as those of a trace and those about replaced instances, are always
    handed on.

    :param observer: the other observer.
    :param most: the most events about one peer in a minute; ``None`` for any number.
    """

    #: The most addresses that are counted; those beyond it share one count.
    MAX_ADDRESSES: Final = 10_000

    def __init__(self, observer: ILogObserver, most: int | None) -> None:
        self._observer = observer
        self.most = most
        self._minute = -1
        # By host: the number of events, and an address of it.
        self._counts: dict[str, tuple[int, str]] = {}

    def __call__(self, event: LogEvent) -> None:
        """Hand *event* on, or leave it out."""
        moment = event.get("log_time", 0.0)
        minute = int(moment // 60)
        if minute != self._minute:
            self._minute = minute
            counts, self._counts = self._counts, {}
            self._report(counts.values(), moment)
        address = None if self.most is None or event.get("log_always") else peer_of(event)[1]
        if self.most is None or address is None:
            self._observer(event)
            return
        host = host_of(address)
        if host not in self._counts and len(self._counts) >= self.MAX_ADDRESSES:
            host = address = "other addresses"
        count, first = self._counts.get(host, (0, address))
        count += 1
        self._counts[host] = count, first
        if count <= self.most:
            self._observer(event)
        elif count == self.most + 1:
            self._tell(
                moment,
                "{address}: more than {most} lines in a minute; further ones of this minute are left out",
                address=address,
                most=self.most,
            )

    def _report(self, counts: Iterable[tuple[int, str]], moment: float) -> None:
        """Tell how many events were left out in the minute that is over."""
        most = self.most
        if most is None:
            return
        left_out = sorted(((count - most, address) for count, address in counts if count > most), reverse=True)
        for count, address in left_out[:MAX_ITEMS]:
            self._tell(moment, "{address}: {left_out} lines of a minute were left out", address=address, left_out=count)

    def _tell(self, moment: float, message: str, **fields: object) -> None:
        self._observer(
            {
                "log_time": moment,
                "log_level": LogLevel.warn,
                "log_namespace": __name__,
                "log_format": message,
                **fields,
            }
        )

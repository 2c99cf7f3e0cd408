"""
Bodies of media type multipart/related (RFC 2046 5.1, RFC 2387, PS3.18 8.6.1.2): cut into parts as they arrive, and written.

The cutter is fed with pieces of any size, and passes on the content of parts as memoryviews on these, so nothing is copied.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "Event",
    "MultipartCutter",
    "MultipartError",
    "MultipartTooLarge",
    "MultipartWriter",
    "PartBegins",
    "PartData",
    "PartEnds",
    "boundary_of",
    "new_boundary",
]

#: The longest header of one part, in bytes. Those of DICOMweb have about 200.
MAX_HEADER_LENGTH: Final = 8 * 1024
#: The most parts of a body, by default.
MAX_PARTS: Final = 100_000
#: The most bytes before the first boundary, which have no meaning.
MAX_PREAMBLE: Final = 64 * 1024
#: The longest boundary, and the most spaces and tabs behind one. RFC 2046 5.1.1 has 70 characters, and Orthanc sends 73.
MAX_BOUNDARY: Final = 200
MAX_PADDING: Final = 256

_BOUNDARY: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BLANK: Final = re.compile(rb"\r?\n\r?\n")


class MultipartError(ValueError):
    """A body is not multipart in the way that its Content-Type says; the text says where. A server answers 400."""


class MultipartTooLarge(MultipartError):
    """A body exceeds one of the limits on its form. A server answers 413."""


class PartBegins(NamedTuple):
    """
    The header of a part is complete.

    :ivar headers: its fields, by their names in lower case; the first counts if a name is repeated.
    """

    headers: dict[str, str]


class PartData(NamedTuple):
    """
    A piece of the content of a part.

    :ivar data: the bytes, which keep alive the piece of the body that they came in.
    """

    data: memoryview


class PartEnds(NamedTuple):
    """The part is complete, with the boundary behind it."""


Event: TypeAlias = PartBegins | PartData | PartEnds

_ENDS: Final = PartEnds()


def boundary_of(parameter: str) -> bytes:
    """
    Return the boundary of a Content-Type.

    :param parameter: its parameter ``boundary``.
    :raises MultipartError: it is missing, is longer than :data:`MAX_BOUNDARY`, or has other characters than printable ASCII.
    """
    if not parameter:
        raise MultipartError("the Content-Type has no boundary")
    if len(parameter) > MAX_BOUNDARY or not _BOUNDARY.fullmatch(parameter):
        raise MultipartError("the Content-Type has an invalid boundary")
    return parameter.encode("ascii")


class _State:
    """The states of the cutter: the part of the body that the next byte belongs to."""

    PREAMBLE: Final = 0
    BOUNDARY_LINE: Final = 1
    HEADER: Final = 2
    CONTENT: Final = 3
    EPILOGUE: Final = 4


class MultipartCutter:
    """
    Cuts a multipart body into its parts.

    Lines may end in LF alone, if that of the first boundary does. A part needs no header field, not even Content-Disposition.
    A multipart body in a part is its content. The memory that it needs is that of one header.

    :param boundary: the boundary, from :func:`boundary_of`.
    :param max_parts: the most parts.
    :param max_header_length: the longest header of a part, in bytes.

    :ivar parts: the number of parts that have begun.
    :ivar closed: whether the closing boundary has arrived; whatever follows has no meaning.
    """

    __slots__ = (
        "_delimiter",
        "_failed",
        "_header",
        "_held",
        "_line_end",
        "_max_header",
        "_max_parts",
        "_open",
        "_passed",
        "_state",
        "_unsent",
        "closed",
        "parts",
    )

    def __init__(
        self, boundary: bytes, *, max_parts: int = MAX_PARTS, max_header_length: int = MAX_HEADER_LENGTH
    ) -> None:
        self.parts = 0
        self.closed = False
        self._max_parts = max_parts
        self._max_header = max_header_length
        self._line_end = b""  # that of the first boundary
        self._delimiter = b"\n--" + boundary
        self._state = _State.PREAMBLE
        self._open = False  # whether a part has begun and has not ended
        # Bytes at the end of a piece that may begin a delimiter. The first delimiter needs no line end before it.
        self._held = b"\n"
        self._unsent = 1  # how many of the held bytes are no content: the line end before the content
        self._header = bytearray()
        self._passed = 0
        self._failed: MultipartError | None = None

    def feed(self, data: bytes) -> list[Event]:
        """
        Cut the next piece of the body.

        :param data: the piece; the events refer to it, it is not copied.
        :returns: the parts, and pieces of parts, that it has completed.
        :raises MultipartError: the body is malformed; every later call raises it again. Parts before that are whole, but
            those that ended in this piece are not returned.
        """
        if self._failed is not None:
            raise self._failed
        events: list[Event] = []
        try:
            self._cut(data, memoryview(data), events)
        except MultipartError as error:
            self._failed = error
            raise
        return events

    def finish(self) -> None:
        """
        End the body.

        :raises MultipartError: its closing boundary is missing, so that the last part may be cut off.
        """
        if self._failed is not None:
            raise self._failed
        if not self.closed:
            where = (
                "before the first boundary",
                "in a boundary",
                "in the header of a part",
                "in the content of a part",
            )
            raise MultipartError(f"the body ends {where[self._state]}, without a closing boundary")

    @property
    def in_part(self) -> bool:
        """Whether a part has begun and has not ended."""
        return self._open

    def _cut(self, data: bytes, view: memoryview, events: list[Event]) -> None:
        pos, size = 0, len(data)
        while pos < size:
            state = self._state
            if state == _State.CONTENT or state == _State.PREAMBLE:
                pos = self._search(data, view, pos, events)
            elif state == _State.BOUNDARY_LINE:
                pos = self._boundary_line(data, pos, events)
            elif state == _State.HEADER:
                pos = self._read_header(data, pos, events)
            else:
                return

    def _search(self, data: bytes, view: memoryview, pos: int, events: list[Event]) -> int:
        """Pass on content up to the next delimiter; return the position behind it, or the end."""
        delimiter = self._delimiter
        held = self._held
        if held:
            # A delimiter has one line end, at its beginning, so what is held begins one or is content as a whole.
            rest = delimiter[len(held) :]
            if data.startswith(rest, pos):
                return self._delimited(pos + len(rest))
            if rest.startswith(data[pos : pos + len(rest)]):
                self._held = held + data[pos:]
                return len(data)
            self._content(memoryview(held)[self._unsent :], events)
            self._held, self._unsent = b"", 0
        found = data.find(delimiter, pos)
        if found >= 0:
            self._content(view[pos:found], events)
            return self._delimited(found + len(delimiter))
        end = len(data)
        start = data.rfind(delimiter[:1], max(pos, end - len(delimiter) + 1))
        if start >= 0 and delimiter.startswith(data[start:]):
            self._held = data[start:]
            end = start
        self._content(view[pos:end], events)
        return len(data)

    def _delimited(self, pos: int) -> int:
        self._held = b""
        self._header.clear()
        self._state = _State.BOUNDARY_LINE
        return pos

    def _content(self, content: memoryview, events: list[Event]) -> None:
        if not content:
            return
        if self._open:
            events.append(PartData(content))
            return
        self._passed += len(content)
        if self._passed > MAX_PREAMBLE:
            raise MultipartTooLarge(f"no boundary in the first {MAX_PREAMBLE} bytes of the body")

    def _boundary_line(self, data: bytes, pos: int, events: list[Event]) -> int:
        """Read what follows a delimiter: two hyphens, or a line end; otherwise it is no delimiter but content."""
        rest = self._header
        before = len(rest)
        rest += data[pos : pos + MAX_PADDING - before]
        if rest[:2] == b"--":
            self._end_part(events)
            self.closed = True
            self._state = _State.EPILOGUE
            return len(data)
        padding = len(rest) - len(rest.lstrip(b" \t"))
        line_end = bytes(rest[padding : padding + 2])
        if line_end[:1] == b"\n":
            line_end = b"\n"
        if line_end in (b"\n", b"\r\n"):
            self._end_part(events)
            if not self._line_end:
                self._line_end = line_end
                if line_end == b"\r\n":
                    self._delimiter = b"\r" + self._delimiter
            if self.parts == self._max_parts:
                raise MultipartTooLarge(f"a body of more than {self._max_parts} parts")
            rest.clear()
            self._unsent = 0
            self._state = _State.HEADER
            return pos + padding + len(line_end) - before
        if rest == b"-" or (line_end in (b"", b"\r") and len(rest) < MAX_PADDING):
            return len(data)
        # No delimiter: another boundary that begins with this one, or content that happens to have these bytes.
        self._state = _State.CONTENT if self._open else _State.PREAMBLE
        self._content(memoryview(self._delimiter + bytes(rest[:before]))[self._unsent :], events)
        self._unsent = 0
        rest.clear()
        return pos

    def _end_part(self, events: list[Event]) -> None:
        if self._open:
            self._open = False
            events.append(_ENDS)

    def _read_header(self, data: bytes, pos: int, events: list[Event]) -> int:
        header = self._header
        before = len(header)
        header += data[pos : pos + self._max_header + 4 - before]
        if header[:1] == b"\n" or header[:2] == b"\r\n":
            end, start = 0, header.index(b"\n") + 1
        else:
            blank = _BLANK.search(header, max(0, before - 3))
            if blank is None:
                if len(header) > self._max_header:
                    raise MultipartTooLarge(f"the header of a part has more than {self._max_header} bytes")
                return len(data)
            end, start = blank.span()
        fields = _fields(bytes(header[:end]), self._delimiter.lstrip())
        header.clear()
        self.parts += 1
        self._open = True
        self._state = _State.CONTENT
        # Some writers give a part without content no line end of its own before the delimiter.
        self._held = self._line_end
        self._unsent = len(self._held)
        events.append(PartBegins(fields))
        return pos + start - before


def _fields(header: bytes, delimiter: bytes) -> dict[str, str]:
    """
    Parse the header of a part.

    :param delimiter: the boundary with its hyphens: a line that begins with it means that the header has no end.
    """
    fields: dict[str, str] = {}
    lines = header.replace(b"\r\n", b"\n").split(b"\n")
    unfolded: list[bytes] = []
    for line in lines:
        if line.startswith(delimiter):
            raise MultipartError("a boundary in the header of a part")
        if line[:1] in (b" ", b"\t") and unfolded:
            unfolded[-1] += b" " + line.strip()
        elif line:
            unfolded.append(line)
    for line in unfolded:
        name, colon, value = line.partition(b":")
        name = name.rstrip(b" \t")
        if not colon or not _FIELD_NAME.fullmatch(name):
            raise MultipartError("the header of a part has a line that is no field")
        fields.setdefault(name.decode("ascii").lower(), value.strip().decode("latin-1"))
    return fields


def new_boundary() -> str:
    """Return a boundary of 128 random bits, which no content has."""
    return secrets.token_hex(16)


class MultipartWriter:
    """
    Writes what is around the contents of a multipart body, so that these need not be in memory.

    :param boundary: the boundary; by default a new one.

    :ivar boundary: the parameter ``boundary`` of the Content-Type.
    """

    __slots__ = ("_between", "boundary")

    def __init__(self, boundary: str = "") -> None:
        self.boundary = boundary or new_boundary()
        self._between = b"--" + boundary_of(self.boundary) + b"\r\n"

    def begin(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """
        Return what is before the content of the next part.

        :param headers: names and values of its header fields.
        :raises ValueError: a name or a value has a line end.
        """
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        for line in lines:
            if "\n" in line[:-2] or "\r" in line[:-2]:
                raise ValueError("a header field has a line end")
        between = self._between
        if between[:1] == b"-":
            self._between = b"\r\n" + between
        return between + "".join(lines).encode("latin-1") + b"\r\n"

    def end(self) -> bytes:
        """Return what is behind the last part; a body without parts has it alone."""
        between = self._between
        return between[:-2] + b"--\r\n"

    @classmethod
    def length(cls, boundary: str, parts: Iterable[tuple[Iterable[tuple[str, str]], int]]) -> int:
        """
        Return the length of a body in bytes, its Content-Length.

        :param parts: the header fields of each part, and the length of its content in bytes.
        """
        writer = cls(boundary)
        total = sum(len(writer.begin(headers)) + content for headers, content in parts)
        return total + len(writer.end())

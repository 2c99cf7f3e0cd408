"""
A body with instances: it is cut into parts as it arrives, and read no faster than these are stored.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dicomtwist.archive.index.record import Sender
from dicomtwist.archive.ingest import Ingest
from dicomtwist.dicomweb.media_types import DICOM, OCTET_STREAM, MediaType, MediaTypeError
from dicomtwist.dicomweb.multipart import Event, MultipartCutter, MultipartError, PartBegins, PartData, PartEnds
from dicomtwist.web.http.body import Body
from dicomtwist.web.stow.part import IncomingPart, UnsupportedPart

__all__ = ["CutOff", "IncomingBody", "SinglePart"]

#: The most instances of one body that are received and not stored yet.
MAX_IN_FLIGHT: Final = 32


class CutOff(Exception):
    """The part that the body was cut off in; it is neither stored nor reported."""


class SinglePart:
    """Stands for the cutter of a body that is one instance."""

    def __init__(self) -> None:
        self._has_begun = False

    def feed(self, data: bytes) -> list[Event]:
        """Return *data* as content of the one part."""
        first: list[Event] = [] if self._has_begun else [PartBegins({})]
        self._has_begun = True
        return [*first, PartData(memoryview(data))]

    def finish(self) -> list[Event]:
        """Return the end of the part."""
        return [PartEnds()] if self._has_begun else []


class IncomingBody:
    """
    The sink of a body.

    :param body: the body, which is paused while too much waits.
    :param cutter: cuts it into parts.
    :param ingest: receives the instances.
    :param sender: the sender.
    :param study: the Study Instance UID that all instances must have; ``""`` for any.
    :param maximum: the most bytes of one instance; ``None`` for no limit.

    :ivar parts: the parts, in their order; those that were cut off are left out at the end.
    :ivar failure: why the rest of the body is not read: it is malformed, too long, or the connection is lost.
    :ivar done: fires with ``None`` when the body has ended and the outcome of each part is known.
    :ivar size: the bytes of the body.
    """

    def __init__(
        self,
        body: Body,
        cutter: MultipartCutter | SinglePart,
        ingest: Ingest,
        sender: Sender,
        study: str = "",
        maximum: int | None = None,
    ) -> None:
        self.parts: list[IncomingPart] = []
        self.failure: BaseException | None = None
        self.done: Deferred[None] = Deferred()
        self.size = 0
        self._body = body
        self._cutter = cutter
        self._ingest = ingest
        self._sender = sender
        self._study = study
        self._maximum = maximum
        self._events: deque[Event] = deque()
        self._current: IncomingPart | None = None
        self._in_flight = 0
        self._paused_by: set[IncomingPart] = set()
        self._has_ended = self._is_pumping = self._is_finished = False

    # --- the sink

    def data(self, data: bytes) -> None:
        """Take the next piece."""
        if self._has_ended:
            return
        self.size += len(data)
        try:
            self._events += self._cutter.feed(data)
        except MultipartError as error:
            self._pump()
            self.fail(Failure(error))
            return
        self._pump()
        self._control_flow()

    def end(self) -> None:
        """The body is complete."""
        if not self._has_ended:
            self._has_ended = True
            self._pump()

    def fail(self, reason: Failure) -> None:
        """The rest of the body will never arrive, or is not wanted."""
        if not self._has_ended:
            self._has_ended = True
            self.failure = reason.value
            self._pump()

    # --- parts

    def _pump(self) -> None:
        """Handle what has arrived, as far as there is room for further instances."""
        if self._is_pumping:
            return
        self._is_pumping = True
        events = self._events
        while events and (self._in_flight < MAX_IN_FLIGHT or not isinstance(events[0], PartBegins)):
            self._handle(events.popleft())
        self._is_pumping = False
        if self._has_ended and not events:
            self._finish()

    def _handle(self, event: Event) -> None:
        part = self._current
        if isinstance(event, PartData):
            if part is not None:
                part.write(event.data, is_last=bool(self._events) and isinstance(self._events[0], PartEnds))
        elif isinstance(event, PartBegins):
            self._begin(event.headers)
        elif part is not None:
            self._current = None
            part.finish()

    def _begin(self, headers: dict[str, str]) -> None:
        self._in_flight += 1
        error: Exception | None = None
        syntax = ""
        try:
            media_type = MediaType.parse(headers.get("content-type", DICOM))
            syntax = media_type.transfer_syntax
            if media_type.name not in (DICOM, OCTET_STREAM):
                error = UnsupportedPart("a part whose media type is not application/dicom")
        except MediaTypeError as reason:
            error = UnsupportedPart(str(reason))
        part = self._current = IncomingPart(self, self._ingest, self._sender, self._study, syntax, self._maximum)
        self.parts.append(part)
        if error is not None:
            part.refuse(error)

    def _finish(self) -> None:
        """End the body, once all events are handled."""
        if not self._is_finished:
            self._is_finished = True
            if self.failure is None:
                try:
                    if isinstance(self._cutter, SinglePart):
                        for event in self._cutter.finish():
                            self._handle(event)
                    else:
                        self._cutter.finish()
                except MultipartError as error:
                    self.failure = error
            part, self._current = self._current, None
            if part is not None:
                self.parts.remove(part)
                part.fail(Failure(CutOff()))
        if not self._in_flight and not self.done.called:
            self.done.callback(None)

    def part_done(self, part: IncomingPart) -> None:
        """The outcome of a part is known."""
        self._in_flight -= 1
        self._paused_by.discard(part)
        self._pump()
        self._control_flow()

    # --- flow control

    def pause_part(self, part: IncomingPart) -> None:
        """Stop reading: enough of a part waits to be written."""
        self._paused_by.add(part)
        self._control_flow()

    def resume_part(self, part: IncomingPart) -> None:
        """Read on, unless something else waits."""
        self._paused_by.discard(part)
        self._control_flow()

    def _control_flow(self) -> None:
        if (self._events or self._paused_by) and not self._has_ended:
            self._body.pause()
        else:
            self._body.resume()

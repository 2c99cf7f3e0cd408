"""
One part of a body: an instance in the form of a PS3.10 file on its way into the archive.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final, Protocol

from twisted.python.failure import Failure

from dicomtwist.archive.index.record import Sender
from dicomtwist.archive.ingest import IncomingInstance, Ingest
from dicomtwist.datasets.identity import IDENTITY_LENGTH, instance_uids
from dicomtwist.part10 import NO_TRANSFER_SYNTAX, FileMeta, NotDicomFile, read_file_meta
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["IncomingPart", "InstanceTooLong", "NotAnInstance", "UnsupportedPart"]

#: The most bytes at the front of a part in which the File Meta Information and the UIDs are looked for.
MAX_FRONT: Final = 256 * 1024
#: The bytes that are parsed at first; most instances have their UIDs in them.
FIRST_FRONT: Final = 2048


class NotAnInstance(Exception):
    """A part is not an instance that can be stored: no PS3.10 file, or without the UIDs of an instance."""


class UnsupportedPart(NotAnInstance):
    """A part has another media type than application/dicom."""


class InstanceTooLong(NotAnInstance):
    """An instance is longer than the limit on one."""


class _Owner(Protocol):
    """The body of the part."""

    def pause_part(self, part: IncomingPart) -> None:
        """Stop reading: enough of the part waits to be written."""

    def resume_part(self, part: IncomingPart) -> None:
        """Read on."""

    def part_done(self, part: IncomingPart) -> None:
        """The outcome of the part is known."""


class IncomingPart:
    """
    A part that is being received. It is the flow control of its instance, too.

    :param owner: the body.
    :param ingest: receives the instance.
    :param sender: the sender of the instance; ``None`` for one that may replace others without a line in the log.
    :param study: the Study Instance UID that the instance must have; ``""`` for any.
    :param transfer_syntax: the transfer syntax in the header of the part, for a file that does not say.
    :param maximum: the most bytes; ``None`` for no limit.

    :ivar sop_class: the SOP Class UID; ``""`` if it is not known.
    :ivar sop_instance: the SOP Instance UID, likewise.
    :ivar study: the Study Instance UID, once the instance is stored.
    :ivar series: the Series Instance UID, likewise.
    :ivar error: why the instance is not stored; ``None`` if it is, or as long as that is not known.
    :ivar size: the bytes of the part so far.
    """

    __slots__ = (
        *("_front", "_incoming", "_ingest", "_maximum", "_needed", "_owner", "_sender", "_syntax"),
        *("_is_last", "_is_too_long", "error", "is_done", "series", "size", "sop_class", "sop_instance", "study"),
    )

    def __init__(
        self,
        owner: _Owner,
        ingest: Ingest,
        sender: Sender | None,
        study: str = "",
        transfer_syntax: str = "",
        maximum: int | None = None,
    ) -> None:
        self._owner = owner
        self._ingest = ingest
        self._sender = sender
        self._syntax = transfer_syntax
        self._maximum = maximum
        self._front: bytearray | None = bytearray()
        self._needed = FIRST_FRONT
        self._incoming: IncomingInstance | None = None
        self.sop_class = self.sop_instance = self.series = ""
        self.study = study
        self.error: BaseException | None = None
        self.is_done = self._is_last = self._is_too_long = False
        self.size = 0

    # --- the content

    def write(self, data: memoryview, *, is_last: bool = False) -> None:
        """
        Take the next piece of the content.

        :param is_last: whether :meth:`finish` is called next.
        """
        self.size += len(data)
        self._is_last = is_last
        if self._maximum is not None and self.size > self._maximum:
            if not self.is_done and not self._is_too_long:
                self._is_too_long = True
                self.fail(Failure(InstanceTooLong(f"an instance of more than {self._maximum} bytes")))
        elif self._incoming is not None:
            self._incoming.write(data, is_last=is_last)
        elif self._front is not None:
            if not self._front and len(data) >= self._needed:
                # Nothing is copied but the front, in the usual case.
                if self._begin(data, False):
                    return
            self._front += data
            if len(self._front) >= self._needed:
                self._begin(memoryview(bytes(self._front)), False)

    def finish(self) -> None:
        """The part is complete."""
        self._is_last = True
        if self._incoming is None and self._front is not None:
            self._begin(memoryview(bytes(self._front)), True)
        if self._incoming is not None and not self._is_too_long:
            self._incoming.finish()

    def fail(self, reason: Failure) -> None:
        """The rest of the part will never arrive."""
        self._front = None
        if self._incoming is not None:
            self._incoming.fail(reason)
        else:
            assert reason.value is not None
            self.refuse(reason.value)

    def refuse(self, error: BaseException) -> None:
        """Refuse the part; the rest of its content is ignored."""
        self._front = None
        self._done(error)

    # --- its front

    def _begin(self, data: memoryview, is_whole: bool) -> bool:
        """
        Begin the instance, if *data*, all of the part so far, has its File Meta Information and UIDs.

        :param is_whole: whether the part is complete.
        :returns: whether nothing more is needed of the front.
        """
        front = data[: self._needed]
        is_whole = is_whole and len(front) == len(data)
        is_last = is_whole or len(front) >= MAX_FRONT
        file = BytesIO(front)
        try:
            meta, start = read_file_meta(file)
        except NotDicomFile as error:
            if is_last or (len(front) >= 132 and bytes(front[128:132]) != b"DICM"):
                self.refuse(NotAnInstance(str(error)))
                return True
            return self._need_more(data)
        if start + 12 > len(front) and not is_last:
            return self._need_more(data)
        syntax = meta.transfer_syntax_uid or self._syntax
        if not syntax:
            self.refuse(NotAnInstance(NO_TRANSFER_SYNTAX))
            return True
        # The UIDs of the data set count, as with files that are imported; those in front of it may be old.
        sop_class, sop_instance = instance_uids(front[start : start + IDENTITY_LENGTH], syntax)
        if not (sop_class and sop_instance) and not is_last and len(front) < start + IDENTITY_LENGTH:
            return self._need_more(data)
        self.sop_class = sop_class or meta.media_storage_sop_class_uid
        self.sop_instance = sop_instance or meta.media_storage_sop_instance_uid
        own = FileMeta(
            *(self.sop_class, self.sop_instance, syntax, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME),
        )
        self._front = None
        incoming = self._incoming = self._ingest.begin(own, self, self._sender, self.study)
        incoming.result.addCallbacks(self._stored, self._lost)
        incoming.write(data[start:], is_last=self._is_last)
        return True

    def _need_more(self, data: memoryview) -> bool:
        """Look again when there is twice as much; now, if there is already."""
        self._needed = min(2 * self._needed, MAX_FRONT)
        return len(data) >= self._needed and self._begin(data, False)

    # --- the outcome

    def _stored(self, error: BaseException | None) -> None:
        incoming = self._incoming
        assert incoming is not None
        if error is None:
            self.study, self.series = incoming.study_uid, incoming.series_uid
        self._done(error)

    def _lost(self, reason: Failure) -> None:
        self._done(reason.value)

    def _done(self, error: BaseException | None) -> None:
        if not self.is_done:
            self.is_done = True
            self.error = error
            self._incoming = self._sender = None
            self._owner.part_done(self)

    # --- the flow control of the instance

    def pause(self) -> None:
        """Stop reading: enough of the instance waits to be written."""
        self._owner.pause_part(self)

    def resume(self) -> None:
        """Read on."""
        self._owner.resume_part(self)

"""
One segment of the inbox: a file that frames are written to, and the state that its store keeps of it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from dicomtwist.archive.inbox.frames import ALIGNMENT, Frame, begin_of, encode, void
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem

__all__ = ["Batch", "Place", "Segment"]

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_ZEROS: Final = bytes(1024 * 1024)


class Place(NamedTuple):
    """
    Where the content of a frame lies.

    :ivar segment: the number of its segment.
    :ivar offset: its first byte in the segment.
    :ivar length: its length in bytes.
    """

    segment: int
    offset: int
    length: int


class Batch(NamedTuple):
    """
    Frames that are written together.

    :ivar buffers: the bytes to write.
    :ivar places: where the contents lie then.
    :ivar begins: where the frames begin.
    :ivar end: where the last of them ends.
    """

    buffers: list[Buffer]
    places: list[Place]
    begins: list[int]
    end: int


class Segment:
    """
    A segment of a store.

    :param number: its place in the order of use.
    :param generation: identifies this use of it.
    :param path: its path.
    :param fd: its file descriptor, open for reading and writing.
    :param file_system: the system calls to use.
    :param syncs: whether what is written is flushed to the medium.

    :ivar end: where the next frame begins.
    :ivar live: the number of frames that are not done.
    :ivar sealed: whether nothing is appended any more.
    :ivar distrusted: whether a call failed that leaves its state unknown, so that it is not used again.
    """

    __slots__ = (
        "_fs",
        "_syncing",
        "_syncs",
        "distrusted",
        "end",
        "fd",
        "generation",
        "live",
        "number",
        "path",
        "sealed",
    )

    def __init__(
        self, number: int, generation: bytes, path: str, fd: int, file_system: FileSystem, *, syncs: bool
    ) -> None:
        self.number = number
        self.generation = generation
        self.path = path
        self.fd = fd
        self.end = 0
        self.live = 0
        self.sealed = False
        self.distrusted = False
        self._fs = file_system
        self._syncs = syncs
        # A sync that fails tells one caller: nobody else has written meanwhile, and takes the next success for its own.
        self._syncing = threading.Lock()

    def fill(self, size: int) -> None:
        """
        Fill the segment with zeros and flush it to the medium, so that later writes change no metadata.

        :raises OSError: as it came, errno intact.
        """
        for offset in range(0, size, len(_ZEROS)):
            self._write_all([_ZEROS[: size - offset]], offset)
        self._fs.fsync(self.fd)

    def encode(self, frames: Sequence[Frame]) -> Batch:
        """
        Encode frames for the end of the segment; nothing is written.

        :raises FrameRefused: one of them cannot be encoded.
        """
        buffers: list[Buffer] = []
        places: list[Place] = []
        begins: list[int] = []
        end = self.end
        synced = end if self._syncs else 0
        for frame in frames:
            begins.append(end)
            encoded, content, length, end = encode(frame, self.generation, end, synced)
            buffers += encoded
            places.append(Place(self.number, content, length))
        return Batch(buffers, places, begins, end)

    def write(self, batch: Batch) -> None:
        """
        Write frames at the end of the segment and flush them to the medium, if that is asked for; :attr:`end` stays.

        :raises OSError: as it came, errno intact. The heads of the frames have been wiped out, so that no start finds them;
            if that failed too, or the sync did, the segment is :attr:`distrusted`.
        """
        with self._syncing:
            self._write(batch)

    def _write(self, batch: Batch) -> None:
        written = [0]
        whole = False
        try:
            self._write_all(batch.buffers, self.end, written)
            whole = True
            if self._syncs:
                self._fs.fdatasync(self.fd)
        except BaseException:
            reached = self.end + written[0]
            wiped = self._wipe([begin for begin in batch.begins if begin < reached])
            # After a failed sync the pages count as clean though they are not on the medium.
            self.distrusted = self.distrusted or whole or not wiped
            raise

    def read(self, place: Place) -> bytes:
        """
        Return a content.

        :raises OSError: it cannot be read.
        """
        content = b""
        while len(content) < place.length:
            piece = self._fs.pread(self.fd, place.length - len(content), place.offset + len(content))
            if not piece:
                raise OSError(errno.EIO, "a segment of the inbox is shorter than it was", self.path)
            content = content + piece if content else piece
        return content

    def void(self, places: Iterable[Place]) -> None:
        """
        Change the heads of frames so that they do not count any more, and flush that to the medium, if that is asked for.

        :raises OSError: as it came, errno intact.
        """
        with self._syncing:
            for place in places:
                begin = begin_of(place.offset)
                head = void(self._fs.pread(self.fd, ALIGNMENT, begin), begin, self.generation)
                if head is not None:
                    self._write_all([head], begin)
            if self._syncs:
                self._fs.fdatasync(self.fd)

    def _wipe(self, begins: list[int]) -> bool:
        """Overwrite the heads of frames with zeros; return whether that succeeded."""
        try:
            for begin in begins:
                self._write_all([_ZEROS[:ALIGNMENT]], begin)
            if begins and self._syncs:
                self._fs.fdatasync(self.fd)
        except OSError:
            return False
        return True

    def _write_all(self, buffers: list[Buffer], offset: int, written: list[int] | None = None) -> None:
        """Write every byte of *buffers* at *offset*, and count the bytes in *written* meanwhile."""
        count = [0] if written is None else written
        left = sum(map(len, buffers))
        while left:
            length = self._fs.pwritev(self.fd, buffers[:_IOV_MAX], offset + count[0])
            if not length:
                raise OSError(errno.EIO, "writing to the inbox makes no progress")
            count[0] += length
            left -= length
            if not left:
                return
            index = 0
            while index < len(buffers) and length >= len(buffers[index]):
                length -= len(buffers[index])
                index += 1
            buffers = buffers[index:]
            if length:
                buffers[0] = memoryview(buffers[0])[length:]

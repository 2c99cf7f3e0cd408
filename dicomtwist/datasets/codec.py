"""
Data sets as pydicom's Datasets and as bytes, and streams of those that arrive.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable
from io import BytesIO
from typing import Protocol

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from dicomtwist.datasets.chunk_buffer import Pieces
from dicomtwist.datasets.nesting import check_nesting
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import FileMeta

#: How much of a file is read at once, in bytes, and how much of a stream waits for a slow reader.
CHUNK = 1024 * 1024

#: The most that a deflated data set may inflate to for :func:`decode_dataset`, in bytes.
MAX_INFLATED = 1024 * 1024 * 1024

#: Between these a data set can be converted, since they differ in how elements are written only (PS3.5 A.1 to A.5).
UNCOMPRESSED = frozenset(
    (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
)


# --- encoding and decoding


def decode_dataset(data: bytes, transfer_syntax: str) -> Dataset:
    """
    Decode a whole data set.

    :param data: the bytes as they come over the network, without File Meta Information.
    :param transfer_syntax: the UID of the transfer syntax that they are in.
    :raises DataSetError: they cannot be decoded, end inside an element, inflate to more than :data:`MAX_INFLATED`, or have
        sequences nested deeper than :data:`~dicomtwist.datasets.nesting.MAX_NESTED`.
    """
    syntax = UID(transfer_syntax)
    try:
        if syntax == DeflatedExplicitVRLittleEndian:
            data = _inflate(data)
        file = _Watched(data)
        dataset = read_dataset(
            file, syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian, bytelength=len(data)
        )
    except DataSetError:
        raise
    except Exception as error:
        raise DataSetError(f"the data set cannot be decoded as {syntax.name}: {error}") from error
    if file.cut_off or file.tell() != len(data):
        raise DataSetError(f"the data set cannot be decoded as {syntax.name}: it ends inside an element")
    check_nesting(dataset)
    return dataset


class _Watched(BytesIO):
    """
    Knows whether it ended too early for who reads it: pydicom takes half a value, and half a sequence, for the whole.

    :ivar cut_off: whether the last read gave less than was asked for, and was not taken back.
    """

    cut_off = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.cut_off = size is not None and len(data) < size
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.cut_off = False
        return super().seek(offset, whence)


def _inflate(data: bytes) -> bytes:
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = decompressor.decompress(data, MAX_INFLATED)
    if decompressor.unconsumed_tail:
        raise DataSetError(f"the deflated data set inflates to more than {MAX_INFLATED} bytes")
    if not decompressor.eof:
        raise DataSetError("the deflated data set ends too early")
    return inflated


def encode_dataset(dataset: Dataset, transfer_syntax: str) -> bytes:
    """
    Encode *dataset* for the network, without File Meta Information and command set elements.

    :param transfer_syntax: the UID of the transfer syntax to encode in. Pixel data is not compressed or
        decompressed; its bytes are swapped where the byte order changes.
    :raises DataSetError: an element cannot be encoded.
    """
    syntax = UID(transfer_syntax)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = syntax == ImplicitVRLittleEndian
    buffer.is_little_endian = syntax != ExplicitVRBigEndian
    try:
        was_little_endian = dataset.original_encoding[1]
        source = dataset
        if was_little_endian is not None and was_little_endian != buffer.is_little_endian:
            source = _swapped(dataset)
        elif dataset.original_encoding[0] not in (None, buffer.is_implicit_VR):
            _decode_all(dataset)
        write_dataset(buffer, Dataset({tag: source.get_item(tag) for tag in list(source.keys()) if tag.group > 2}))
    except Exception as error:
        raise DataSetError(f"the data set cannot be encoded as {syntax.name}: {error}") from error
    encoded = buffer.getvalue()
    if syntax == DeflatedExplicitVRLittleEndian:
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        encoded = compressor.compress(encoded) + compressor.flush()
        if len(encoded) & 1:
            encoded += b"\0"
    return encoded


def _decode_all(dataset: Dataset) -> None:
    """Make every element's value known, so that none is written as the raw bytes that were read."""
    for _ in dataset.iterall():
        pass


#: How many bytes a unit of these VRs has: they are numbers that pydicom keeps as bytes (PS3.5 7.3).
_UNIT_CODES = {"OW": "H", "OF": "I", "OL": "I", "OD": "Q", "OV": "Q"}


def _swapped(dataset: Dataset) -> Dataset:
    """Return a copy of *dataset* with the bytes of each number that pydicom keeps as bytes swapped."""
    import copy

    _decode_all(dataset)
    swapped = copy.deepcopy(dataset)
    for element in swapped.iterall():
        code = _UNIT_CODES.get(element.VR)
        if code is not None and isinstance(element.value, bytes):
            units = array(code, element.value)
            units.byteswap()
            element.value = units.tobytes()
    return swapped


def file_meta_dataset(meta: FileMeta) -> FileMetaDataset:
    """Return *meta* as pydicom's File Meta Information."""
    dataset = FileMetaDataset()
    dataset.MediaStorageSOPClassUID = UID(meta.media_storage_sop_class_uid)
    dataset.MediaStorageSOPInstanceUID = UID(meta.media_storage_sop_instance_uid)
    dataset.TransferSyntaxUID = UID(meta.transfer_syntax_uid)
    if meta.implementation_class_uid:
        dataset.ImplementationClassUID = UID(meta.implementation_class_uid)
    if meta.implementation_version_name:
        dataset.ImplementationVersionName = meta.implementation_version_name
    if meta.source_ae_title:
        dataset.SourceApplicationEntityTitle = meta.source_ae_title
    return dataset


# --- receiving


class DataSetSink(Protocol):
    """Who takes a data set as it arrives, see :meth:`DataSetStream.deliver_to`."""

    def write(self, data: memoryview) -> None:
        """Take the next piece; the view may be kept, it pins the read that it came in."""

    def finish(self) -> None:
        """The data set is complete."""

    def fail(self, reason: Failure) -> None:
        """The data set will not be complete: the association ended, or a limit was passed."""


class StreamPauser(Protocol):
    """Who can stop reading from the peer while a sink is busy."""

    def pause_reading(self) -> None:
        """Stop for now."""

    def resume_reading(self) -> None:
        """Go on."""


class DataSetStream:
    """
    A data set that is arriving.

    Read it in one of three ways: ``async for chunk in stream``, :meth:`deliver_to` a sink, or :meth:`read` all of it. Until
    one is chosen, and whenever a reader is behind by more than :data:`CHUNK`, the peer is not read from, so what waits
    here is bounded.

    :ivar received: how many bytes have come so far.
    """

    __slots__ = ("_buffer", "_failure", "_finished", "_paused", "_pauser", "_sink", "_waiting", "received")

    def __init__(self, pauser: StreamPauser) -> None:
        self._pauser = pauser
        self._sink: DataSetSink | None = None
        self._buffer = Pieces()
        self._finished = False
        self._failure: Failure | None = None
        self._paused = False
        self._waiting: Deferred[memoryview | None] | None = None
        self.received = 0

    # --- for the reader

    def deliver_to(self, sink: DataSetSink) -> None:
        """
        Give all of the data set to *sink*, what has come already at once.

        The sink calls :meth:`pause` and :meth:`resume` where it cannot keep up.

        :raises RuntimeError: the stream has a reader already.
        """
        if self._sink is not None:
            raise RuntimeError("this data set is delivered to a sink already")
        self._sink = sink
        while self._buffer.length:
            sink.write(self._buffer.pop())
        if self._failure is not None:
            sink.fail(self._failure)
        elif self._finished:
            sink.finish()
        else:
            self.resume()

    def read(self) -> Deferred[bytes]:
        """
        Read the whole data set into memory.

        :returns: a Deferred with its bytes; it fails with the reason where the data set stays incomplete.
        """
        sink = CollectingSink()
        self.deliver_to(sink)
        return sink.done

    def __aiter__(self) -> DataSetStream:
        return self

    async def __anext__(self) -> memoryview:
        data = await self._next()
        if data is None:
            raise StopAsyncIteration
        return data

    def _next(self) -> Deferred[memoryview | None]:
        if self._buffer.length:
            data = self._buffer.pop()
            if self._buffer.length < CHUNK:
                self.resume()
            return succeed(data)
        waiting: Deferred[memoryview | None] = Deferred()
        if self._failure is not None:
            waiting.errback(self._failure)
        elif self._finished:
            waiting.callback(None)
        else:
            self._waiting = waiting
            self.resume()
        return waiting

    def pause(self) -> None:
        """Stop reading from the peer; what has been read already may still come."""
        if not self._paused and not self._finished:
            self._paused = True
            self._pauser.pause_reading()

    def resume(self) -> None:
        """Go on reading from the peer."""
        if self._paused:
            self._paused = False
            self._pauser.resume_reading()

    # --- for the association

    def feed(self, data: memoryview) -> None:
        """Take the next piece."""
        self.received += len(data)
        if self._sink is not None:
            self._sink.write(data)
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(data)
        else:
            self._buffer.append(data)
            if self._buffer.length >= CHUNK:
                self.pause()

    def end(self) -> None:
        """The data set is complete."""
        self.resume()
        self._finished = True
        if self._sink is not None:
            self._sink.finish()
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    def fail(self, reason: Failure) -> None:
        """The data set will not be complete."""
        if self._finished:
            return
        self._paused = False  # there is nothing left to resume
        self._finished = True
        self._failure = reason
        if self._sink is not None:
            self._sink.fail(reason)
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(reason)

    def discard(self, then: Callable[[], None]) -> None:
        """
        Let go of what has come and of what comes; call *then* when the data set has ended.

        Who reads it still is told that nothing more comes.
        """
        self._buffer.clear()
        if self._failure is not None:
            return
        if self._finished:
            then()
            return
        sink, self._sink = self._sink, _Nowhere(then)
        waiting, self._waiting = self._waiting, None
        if sink is not None:
            sink.fail(_unwanted())
        if waiting is not None:
            waiting.errback(_unwanted())
        self.resume()


def _unwanted() -> Failure:
    return Failure(DataSetError("the request was answered before the data set had come, the rest of it is dropped"))


class CollectingSink:
    """
    Collects a data set in memory.

    :ivar done: fires with the bytes.
    """

    __slots__ = ("_pieces", "done")

    def __init__(self) -> None:
        self._pieces = Pieces()
        self.done: Deferred[bytes] = Deferred()

    def write(self, data: memoryview) -> None:
        """Keep *data*."""
        self._pieces.append(data)

    def finish(self) -> None:
        """Join it."""
        self.done.callback(self._pieces.take())

    def fail(self, reason: Failure) -> None:
        """Pass the reason on."""
        self._pieces.clear()
        self.done.errback(reason)


class _Nowhere:
    """Where a data set goes that nobody wants."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def write(self, data: memoryview) -> None:
        """Forget *data*."""

    def finish(self) -> None:
        """Tell that it is over."""
        self._then()

    def fail(self, reason: Failure) -> None:
        """Nobody waits for it."""

"""
An instance to send by C-STORE: opened from a path, bytes, an open file or a Dataset, and encoded for its peer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any, BinaryIO, Final, Protocol, TypeAlias, cast

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import Deferred, fail, succeed

from dicomtwist.datasets.codec import UNCOMPRESSED, encode_dataset
from dicomtwist.datasets.conversion.files import open_converted
from dicomtwist.datasets.identity import identify
from dicomtwist.datasets.sources import BytesSource, DataSetSource, FileSource, spool
from dicomtwist.datasets.stream import CHUNK
from dicomtwist.dimse.messages import CStoreRQ
from dicomtwist.errors import DataSetError, NoPresentationContext
from dicomtwist.part10 import NO_TRANSFER_SYNTAX, FileMeta, NotDicomFile, read_file_meta
from dicomtwist.presentation import PresentationContextTuple
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.regular_files import check_regular

#: An instance as callers give it: the path of a Part 10 file, the bytes of one, an open one, or a Dataset.
InstanceLike: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Dataset"

#: The longest UID of a Dataset that is sent, in characters: far more than the 64 of PS3.5 9.1, far less than a command set.
MAX_UID_LENGTH: Final = 1024


class Transcoder(Protocol):
    """Converts images to other transfer syntaxes, also compressed ones: a :class:`~dicomtwist.pixels.pool.Pixels`."""

    def targets(self, source: str) -> Sequence[str]:
        """Return the UIDs of the transfer syntaxes that images in *source* can be converted to, the preferred first."""

    async def transcode(self, instance: str | os.PathLike[str], syntax: str, /, *, peer: str = "") -> DataSetSource:
        """
        Convert the image in a Part 10 file.

        :param peer: the name of the host that it is for; the hosts take turns.
        :raises DataSetError: it cannot be converted.
        """


class OutgoingInstance:
    """
    An instance on its way to a peer. It has three stages:

    1. **opened**, by :func:`open_instance`: its UIDs are known, and the data set of a file can be read;
    2. **prepared** for one association, by ``exchange.store_request``: ``context`` and ``request`` are set, and ``source``
       is in the transfer syntax of the context;
    3. **closed**: by the association that it was sent on, whatever came of it, or by :meth:`close`.

    :param original: the path or the Dataset that the data set can be encoded from; ``None`` if it can be read only once.

    :ivar meta: its File Meta Information, with the SOP Class and SOP Instance UID of its data set if they disagree. That of a
        Dataset has the UIDs of SOP Class, SOP Instance and transfer syntax.
    :ivar source: its data set. A Dataset has none before :meth:`convert`.
    :ivar held: the number of bytes of a file that are in memory.
    :ivar context: the presentation context that it is sent in, once it is prepared.
    :ivar request: its C-STORE request, once it is prepared.
    """

    __slots__ = ("_original", "context", "held", "meta", "request", "source")

    source: DataSetSource
    context: PresentationContextTuple
    request: CStoreRQ

    def __init__(
        self,
        meta: FileMeta,
        source: DataSetSource | None,
        held: int,
        original: str | os.PathLike[str] | Dataset | None = None,
    ) -> None:
        self.meta = meta
        self.held = held
        self._original = original
        if source is not None:
            self.source = source

    @property
    def sop_class_uid(self) -> str:
        """Its SOP Class UID."""
        return self.meta.media_storage_sop_class_uid

    @property
    def sop_instance_uid(self) -> str:
        """Its SOP Instance UID."""
        return self.meta.media_storage_sop_instance_uid

    @property
    def transfer_syntax(self) -> str:
        """The UID of the transfer syntax that it was opened in."""
        return self.meta.transfer_syntax_uid

    def is_in(self, transfer_syntax: str) -> bool:
        """Return whether the data set is encoded in *transfer_syntax*. A Dataset is encoded in none yet."""
        return self.meta.transfer_syntax_uid == transfer_syntax and not isinstance(self._original, Dataset)

    async def convert(
        self, transfer_syntax: str, executor: Executor, transcoder: Transcoder | None = None, peer: str = ""
    ) -> None:
        """
        Encode the data set in *transfer_syntax*, which it is not in.

        :param executor: the executor to encode it in, if neither transfer syntax is compressed.
        :param transcoder: converts it if one is.
        :param peer: the name of the peer's host.
        :raises DataSetError: it cannot be encoded.
        :raises NoPresentationContext: it came from an open file or bytes, so that it cannot be read again.
        """
        original = self._original
        if isinstance(original, Dataset):
            self.source = BytesSource(encode_dataset(original, transfer_syntax))
            return
        self.source.close()
        if original is None:
            raise NoPresentationContext(
                f"the file is in {self.transfer_syntax} and only {transfer_syntax} was accepted:"
                " give a path or a Dataset, which can be converted"
            )
        if transcoder is not None and not UNCOMPRESSED.issuperset((self.transfer_syntax, transfer_syntax)):
            source = await transcoder.transcode(original, transfer_syntax, peer=peer)
            if getattr(source, "length", 0) is None:
                # There are further pieces, one of which may fail: that would end the association with all that follows.
                file, size = await spool(source, executor)
                first = await executor.run_admitted(file.read, min(CHUNK, size))
                source = FileSource(file, executor, first, size - len(first))
            self.source = source
        else:
            self.source = await executor.run(open_converted, original, transfer_syntax, executor)

    def close(self) -> None:
        """Close the file of an instance that is not sent."""
        if not isinstance(self._original, Dataset):
            self.source.close()


def open_instance(instance: InstanceLike, executor: Executor) -> Deferred[OutgoingInstance]:
    """
    Open *instance* for sending. A file is opened in a thread; a small one is read whole, of a larger one the first chunk.

    :param instance: the path of a Part 10 file, the ``bytes`` of one, an open one (see :func:`open_file_like`), or a Dataset.
    :param executor: the executor to read the file in.
    :returns: a Deferred with the :class:`OutgoingInstance`; it fails with

        * ``OSError`` if the file cannot be read,
        * :class:`~dicomtwist.part10.NotDicomFile` if it is not a Part 10 file,
        * :class:`~dicomtwist.errors.DataSetError` if a Dataset has no SOP Class UID or no SOP Instance UID,
        * ``TypeError`` if *instance* is something else.
    """
    if isinstance(instance, str | os.PathLike):
        return executor.run(open_path, instance, executor)
    if isinstance(instance, bytes):
        return open_file_like(BytesIO(instance), executor)
    if isinstance(instance, Dataset):
        try:
            return succeed(_of_dataset(instance))
        except DataSetError as error:
            return fail(error)
    if hasattr(instance, "read"):
        return open_file_like(instance, executor)
    return fail(TypeError(f"a path, a Dataset or a binary file can be sent, not {type(instance).__name__}"))


def open_path(path: str | os.PathLike[str], executor: Executor) -> OutgoingInstance:
    """
    Open the Part 10 file at *path*, as :func:`open_instance` does, in the calling thread. Blocks.

    :param executor: the executor to read the rest of a large file in.
    :raises OSError: the file cannot be read, or it is not a regular file.
    :raises NotDicomFile: it is not a Part 10 file.
    """
    # O_NONBLOCK, which has no effect on a regular file: the open of a FIFO would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        check_regular(status, path)
        size = status.st_size
        # A read of more than the size would allocate memory for the rest and free it each time.
        head = os.read(descriptor, min(CHUNK, size))
        meta, first = _split(head)
        if size > len(head):
            # Without a buffer, since the reads are large.
            file = open(descriptor, "rb", buffering=0)
            descriptor = -1
            source = _file_source(file, executor, first, size - len(head) + len(first))
            return OutgoingInstance(meta, source, len(first), path)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return OutgoingInstance(meta, BytesSource(first), len(head), path)


def open_paths(
    paths: Sequence[str | os.PathLike[str]], executor: Executor, enough: int
) -> list[OutgoingInstance | Exception]:
    """
    Open Part 10 files one after the other in the calling thread. Blocks.

    :param executor: the executor to read the rest of a large file in.
    :param enough: stop after the file that makes the bytes in memory as many as this; the other paths are not opened.
    :returns: for each path that was tried, in order, the instance or the exception of :func:`open_path`.
    """
    results: list[OutgoingInstance | Exception] = []
    held = 0
    for path in paths:
        try:
            instance = open_path(path, executor)
        except Exception as error:
            results.append(error)
            continue
        results.append(instance)
        held += instance.held
        if held >= enough:
            break
    return results


def open_file_like(file: BinaryIO, executor: Executor) -> Deferred[OutgoingInstance]:
    """
    Open a Part 10 file that an object with ``read(count)`` gives from its current position. The object is left open.

    :returns: a Deferred as that of :func:`open_instance`.
    """

    def start() -> OutgoingInstance:
        unclosed = _Unclosed(file)
        head = unclosed.read(CHUNK)
        meta, first = _split(head)
        if len(head) < CHUNK:
            return OutgoingInstance(meta, BytesSource(first), len(head))
        source = _file_source(cast("BinaryIO", unclosed), executor, first, None)
        return OutgoingInstance(meta, source, len(first))

    return executor.run(start)


def _split(head: bytes) -> tuple[FileMeta, memoryview]:
    """
    Return the File Meta Information, with the UIDs of the data set, and the beginning of the data set.

    :param head: the beginning of a file.
    :raises NotDicomFile: it is not that of a Part 10 file, or does not say how its data set is encoded.
    """
    meta, offset = read_file_meta(BytesIO(head))
    if not meta.transfer_syntax_uid:
        raise NotDicomFile(NO_TRANSFER_SYNTAX)
    first = memoryview(head)[offset:]
    return identify(meta, first), first


class _Unclosed:
    """A file-like object that the caller has opened and closes."""

    __slots__ = ("_file",)

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        # A raw file may give less than was asked for. FileSource takes a short read for the end of the file: only the last
        # chunk may be of odd length.
        parts: list[bytes] = []
        while count:
            part = self._file.read(count)
            # Only the object of a user breaks these rules; without the checks an instance would be cut off, or read for ever.
            if part is None:
                raise BlockingIOError("read() of the file gave None: a file that does not block cannot be sent")
            if not isinstance(part, bytes | bytearray | memoryview):
                raise TypeError(f"read() of the file gave {type(part).__name__}, not bytes: open it in binary mode")
            if not part:
                break
            if len(part) > count:
                raise ValueError(f"read({count}) of the file gave {len(part)} bytes")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        pass


def _file_source(file: BinaryIO, executor: Executor, first: memoryview, length: int | None) -> FileSource:
    """
    Return the source of a file that is read while it is sent.

    :param first: the part of the data set that was read already.
    :param length: the length of the data set in bytes, ``None`` if it is not known.
    """
    try:
        if len(first) & 1:
            first = memoryview(bytes(first) + file.read(1))
    except BaseException:
        file.close()
        raise
    return FileSource(file, executor, first, None if length is None else length - len(first))


def check_identity(dataset: Dataset) -> tuple[str, str]:
    """
    Return the SOP Class and SOP Instance UID of a Dataset that a user passes.

    Texts that only break the rules for UIDs are left to the peer: instances of real devices have such ones.

    :raises DataSetError: one is missing, has several values, or is no text that a command set can carry.
    """
    sop_class, sop_instance = dataset.get("SOPClassUID"), dataset.get("SOPInstanceUID")
    if not sop_class or not sop_instance:
        raise DataSetError("the Dataset has no SOPClassUID or no SOPInstanceUID, which C-STORE needs")
    for keyword, uid in (("SOPClassUID", sop_class), ("SOPInstanceUID", sop_instance)):
        if not isinstance(uid, str) or not uid.isascii():
            raise DataSetError(f"the {keyword} of the Dataset is {uid!r}, which is not one UID")
        if len(uid) > MAX_UID_LENGTH:
            raise DataSetError(
                f"the {keyword} of the Dataset has {len(uid)} characters, a UID has at most 64 (PS3.5 9.1)"
            )
    return str(sop_class), str(sop_instance)


def _of_dataset(dataset: Dataset) -> OutgoingInstance:
    sop_class, sop_instance = check_identity(dataset)
    return OutgoingInstance(FileMeta(sop_class, sop_instance, _syntax_of(dataset)), None, 0, dataset)


def _syntax_of(dataset: Dataset) -> str:
    """Return the transfer syntax of *dataset*, from its File Meta Information or from the way it was read."""
    meta: Any = getattr(dataset, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID"):
        return str(meta.TransferSyntaxUID)
    # Without one, nothing says that its pixels are compressed, so that any uncompressed syntax will do.
    return str(ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian)

"""
Instances that are opened for sending, with the header that their rule gives them. The functions block, and run in threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from pydicom import Dataset
from twisted.internet.defer import Deferred

from dicomtwist.datasets.element_headers import DEFLATED
from dicomtwist.datasets.outgoing_instance import OutgoingInstance, Transcoder, open_path
from dicomtwist.datasets.sources import BytesSource, Chunk, DataSetSource, FileSource
from dicomtwist.datasets.stream import CHUNK
from dicomtwist.dicomweb.client.storing import Outgoing, StoredInstance, prepare
from dicomtwist.errors import DataSetError
from dicomtwist.forwarding.coercion import Coercion
from dicomtwist.forwarding.delivery.interfaces import Delivery, InstanceSource, SentUIDs
from dicomtwist.forwarding.delivery.results import Result, of_error
from dicomtwist.forwarding.header import Splice, rewritten_meta
from dicomtwist.part10 import NO_TRANSFER_SYNTAX, FileMeta, NotDicomFile, encode_preamble_and_meta, read_file_meta
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.regular_files import open_regular

__all__ = ["open_each", "open_for_association", "open_for_request"]

_Path = str | os.PathLike[str]


def open_each(
    deliveries: Sequence[Delivery],
    source: InstanceSource,
    open_one: Callable[[Delivery, _Path], object],
    enough: int,
) -> list[Result | None]:
    """
    Open instances one after the other, until enough bytes of them are in memory.

    :param open_one: opens an instance, whose file is at the path.
    :param enough: the bytes from which on no more are opened.
    :returns: for each a failure, or ``None``; fewer if enough bytes are in memory.
    """
    results: list[Result | None] = []
    held = 0
    for delivery in deliveries:
        task = delivery.task
        try:
            open_one(delivery, source.locate(task.study, task.series, task.instance))
        except Exception as error:
            results.append(of_error(error))
            continue
        results.append(None)
        held += delivery.held
        if held >= enough:
            break
    return results


class _NotingEdit:
    """A coercion that notes the UIDs of the study and the series afterwards."""

    __slots__ = ("coercion", "series", "study")

    def __init__(self, coercion: Coercion) -> None:
        self.coercion = coercion
        self.study = self.series = ""

    def __call__(self, dataset: Dataset) -> None:
        self.coercion(dataset)
        self.study = str(dataset.get("StudyInstanceUID") or "")
        self.series = str(dataset.get("SeriesInstanceUID") or "")

    def splice(self, transfer_syntax: str) -> Splice:
        return Splice(transfer_syntax, self, drop_tail=self.coercion.deidentify is not None)


class SplicedSource:
    """
    A data set whose header is changed while it is sent.

    :param source: the data set.
    :param splice: changes it.
    :param pieces: the bytes that *splice* has given already.
    :param executor: changes the header, if that has not been done, and deflates.
    """

    def __init__(self, source: DataSetSource, splice: Splice, pieces: Sequence[Any], executor: Executor) -> None:
        self._source = source
        self._splice = splice
        self._pieces = list(pieces)
        self._executor = executor
        self._works = False
        self._last = False

    def deflates(self, transfer_syntax: str) -> None:
        """Note the transfer syntax: one that is deflated is work for a thread."""
        self._works = transfer_syntax in DEFLATED

    async def begin(self, transfer_syntax: str) -> None:
        """
        Read until the header is changed.

        :raises DataSetError: it cannot be changed.
        """
        self.deflates(transfer_syntax)
        while self._splice.rewritten is None and not self._last:
            chunk = self._source.read()
            data, self._last = await chunk if isinstance(chunk, Deferred) else chunk
            self._pieces += await self._executor.run(_fed, self._splice, data, self._last)

    def read(self) -> Chunk | Deferred[Chunk]:
        """Return the next chunk."""
        if self._last or sum(map(len, self._pieces)) > 1:
            return self._chunk()
        chunk = self._source.read()
        return chunk.addCallback(self._feed) if isinstance(chunk, Deferred) else self._feed(chunk)

    def _feed(self, chunk: Chunk) -> Any:
        data, self._last = chunk
        if self._works:
            return self._executor.run_admitted(_fed, self._splice, data, self._last).addCallback(self._have)
        return self._have(_fed(self._splice, data, self._last))

    def _have(self, pieces: list[Any]) -> Any:
        self._pieces += pieces
        return self._chunk() if self._last or sum(map(len, self._pieces)) > 1 else self.read()

    def _chunk(self) -> Chunk:
        pieces, self._pieces = self._pieces, []
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(data) & 1 and not self._last:
            # Only the last chunk may be of odd length.
            data = memoryview(data)
            self._pieces = [bytes(data[-1:])]
            data = data[:-1]
        return data, self._last

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _fed(splice: Splice, data: Any, is_last: bool) -> list[Any]:
    pieces = splice.feed(data)
    return [*pieces, *splice.finish()] if is_last else pieces


class _ChangedInstance(OutgoingInstance):
    """An instance whose header is changed on the way, also if it is converted to another transfer syntax."""

    __slots__ = ("_edit",)

    def __init__(self, meta: FileMeta, source: DataSetSource, held: int, path: _Path, edit: _NotingEdit) -> None:
        super().__init__(meta, source, held, path)
        self._edit = edit

    async def convert(
        self, transfer_syntax: str, executor: Executor, transcoder: Transcoder | None = None, peer: str = ""
    ) -> None:
        """Encode the data set in *transfer_syntax*, and change its header."""
        await super().convert(transfer_syntax, executor, transcoder, peer)
        spliced = SplicedSource(self.source, self._edit.splice(transfer_syntax), (), executor)
        self.source = spliced
        await spliced.begin(transfer_syntax)


@dataclass(slots=True)
class _Changed:
    """
    A file whose header is changed.

    :ivar file: the file, behind what was read of it.
    :ivar left: the bytes that were not read.
    """

    file: BinaryIO
    meta: FileMeta
    edit: _NotingEdit
    splice: Splice
    pieces: list[Any]
    left: int

    @property
    def uids(self) -> SentUIDs:
        rewritten = self.splice.rewritten
        assert rewritten is not None
        return SentUIDs(self.edit.study, self.edit.series, rewritten.sop_class_uid, rewritten.sop_instance_uid)

    @property
    def size(self) -> int:
        """The size of the data set in bytes, as far as it is known."""
        return sum(map(len, self.pieces)) + self.left


def _change(path: _Path, coercion: Coercion) -> _Changed:
    """Open a file and change its header; a file that was read to its end is closed."""
    file = open_regular(os.fspath(path), buffering=0)
    try:
        left = os.fstat(file.fileno()).st_size
        head = file.read(min(CHUNK, left))
        left -= len(head)
        meta, offset = read_file_meta(BytesIO(head))
        if not meta.transfer_syntax_uid:
            raise NotDicomFile(NO_TRANSFER_SYNTAX)
        edit = _NotingEdit(coercion)
        splice = edit.splice(meta.transfer_syntax_uid)
        pieces = splice.feed(memoryview(head)[offset:])
        while splice.rewritten is None and left:
            data = file.read(min(CHUNK, left))
            if not data:
                raise DataSetError(f"the file ended {left} bytes before its size said")
            left -= len(data)
            pieces += splice.feed(data)
        if not left:
            pieces += splice.finish()
            file.close()
        rewritten = splice.rewritten
        assert rewritten is not None, "the end of the data set ends its header"
        meta = rewritten_meta(meta, rewritten, anonymous=coercion.deidentify is not None)
        return _Changed(file, meta, edit, splice, list(pieces), left)
    except BaseException:
        file.close()
        raise


# --- for associations


def open_for_association(delivery: Delivery, path: _Path, executor: Executor) -> None:
    """
    Open an instance that is sent by C-STORE.

    :param executor: reads the rest of a large file.
    :raises OSError: the file cannot be read.
    :raises NotDicomFile: it is not a Part 10 file.
    :raises DataSetError: its header cannot be changed.
    """
    coercion = delivery.rule.coercion
    if not coercion:
        instance = open_path(path, executor)
        delivery.size = instance.held if isinstance(instance.source, BytesSource) else os.stat(path).st_size
        task = delivery.task
        delivery.uids = SentUIDs(task.study, task.series, instance.sop_class_uid, instance.sop_instance_uid)
    else:
        changed = _change(path, coercion)
        source: DataSetSource
        if not changed.left:
            data = b"".join(changed.pieces)
            source, held = BytesSource(data), len(data)
        else:
            held = sum(map(len, changed.pieces))
            rest = FileSource(changed.file, executor, b"", changed.left)
            spliced = SplicedSource(rest, changed.splice, changed.pieces, executor)
            spliced.deflates(changed.meta.transfer_syntax_uid)
            source = spliced
        instance = _ChangedInstance(changed.meta, source, held, path, changed.edit)
        delivery.size, delivery.uids = changed.size, changed.uids
    delivery.held = instance.held
    delivery.parcel = instance
    delivery.close = instance.close


# --- for requests


class _Joined:
    """A reader of bytes in memory and a part of a file behind them."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = memoryview(head)
        self._file = file

    def read(self, count: int) -> bytes:
        if self._head:
            data, self._head = bytes(self._head[:count]), self._head[count:]
            return data
        return self._file.read(count)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _Joined:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(slots=True)
class _ChangedOutgoing(Outgoing):
    """
    An instance for a request, whose header is changed.

    :ivar head: the bytes before those of the file.
    :ivar offset: the position in the file of the bytes that follow; the file is *spooled* or that of the source.
    """

    head: bytes = b""
    offset: int = 0
    spooled: BinaryIO | None = None

    def open(self) -> BinaryIO:
        """Open it at its beginning."""
        if self.spooled is not None:
            file: BinaryIO = os.fdopen(os.dup(self.spooled.fileno()), "rb", buffering=0)
        else:
            assert isinstance(self.source, str | os.PathLike)
            file = open_regular(os.fspath(self.source), buffering=0)
            if os.fstat(file.fileno()).st_size != self.offset + self.size - len(self.head):
                file.close()
                raise OSError("the file has changed while it was being sent")
        file.seek(self.offset)
        return cast("BinaryIO", _Joined(self.head, file))


def open_for_request(delivery: Delivery, path: _Path) -> None:
    """
    Open an instance that is sent by STOW-RS, see :func:`open_for_association`.

    :raises ValueError: it has no UIDs.
    """
    coercion = delivery.rule.coercion
    task = delivery.task
    if not coercion:
        outgoing = prepare(path)
        if isinstance(outgoing, StoredInstance):
            os.stat(path)  # says that the file is missing, if it is
            raise DataSetError(outgoing.words)
        meta = outgoing.meta
        uids = (meta.media_storage_sop_class_uid, meta.media_storage_sop_instance_uid)
        delivery.uids = SentUIDs(task.study, task.series, *uids)
    else:
        changed = _change(path, coercion)
        delivery.uids = changed.uids
        try:
            outgoing = _changed_outgoing(changed, path, coercion)
        finally:
            changed.file.close()
    delivery.size, delivery.parcel = outgoing.size, outgoing
    delivery.held = len(outgoing.content or b"")
    if isinstance(outgoing, _ChangedOutgoing):
        delivery.held = len(outgoing.head)
        if outgoing.spooled is not None:
            delivery.close = outgoing.spooled.close


def _changed_outgoing(changed: _Changed, path: _Path, coercion: Coercion) -> Outgoing:
    try:
        head = b"".join([encode_preamble_and_meta(changed.meta), *changed.pieces])
    except ValueError as error:
        raise DataSetError("the File Meta Information has a value that is not valid") from error
    if not changed.left:
        return Outgoing(path, changed.meta, len(head), head)
    if changed.meta.transfer_syntax_uid not in DEFLATED and coercion.deidentify is None:
        size = os.fstat(changed.file.fileno()).st_size
        return _ChangedOutgoing(
            path, changed.meta, len(head) + changed.left, None, head=head, offset=size - changed.left
        )
    # How much of the rest is dropped, or how long it is when it is deflated, shows at its end.
    spooled: BinaryIO = TemporaryFile()
    try:
        size, left = len(head), changed.left
        while left:
            data = changed.file.read(min(CHUNK, left))
            if not data:
                raise DataSetError(f"the file ended {left} bytes before its size said")
            left -= len(data)
            for piece in _fed(changed.splice, data, not left):
                spooled.write(piece)
                size += len(piece)
        spooled.flush()
    except BaseException:
        spooled.close()
        raise
    return _ChangedOutgoing(path, changed.meta, size, None, head=head, spooled=spooled)

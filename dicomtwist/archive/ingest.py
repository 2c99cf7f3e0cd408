"""
Ingest: the way of an instance from its first byte to its acknowledgement, for every protocol.

A small instance is collected in memory, then scanned and written in a worker thread, together with other small instances
that were completed meanwhile. A large instance is written to a temporary file piece by piece, one write at a time; the
peer is not read from while too much waits to be written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import get_ident
from typing import Final, Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.index.record import MAX_VALUE_LENGTH, WANTED, Sender, make_record, scanner_for
from dicomtwist.archive.instance import Deliver, Notes, ReceivedInstance, TaskMaker
from dicomtwist.archive.move_schedule import Movable, MoveSchedule
from dicomtwist.archive.storage.interfaces import ReceivingStorage, Writer
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Durability, InstanceUIDs, StoreError, Written
from dicomtwist.datasets.chunk_buffer import ChunkBuffer
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.datasets.layout_cache import Layouts
from dicomtwist.errors import ExecutorFull
from dicomtwist.part10 import FileMeta, decode_uid, encode_preamble_and_meta
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.figures.counts import Counts

#: An instance below this size, in bytes, is written at once when it is complete; a larger one is written while it arrives.
FIRST_WRITE: Final = 64 * 1024
#: The largest single write of a large instance, in bytes: each write is twice the one before, up to this size, so that little
#: is left to write when the last byte has arrived.
WRITE_SIZE: Final = 1024 * 1024
#: The maximum number of small instances that are written together.
BATCH: Final = 64
#: The number of threads that write small instances. With durability full one thread computes while the other waits for the
#: medium; with durability none no thread waits. More threads only compete with each other.
WRITERS: Final = {Durability.FULL: 2, Durability.NONE: 1}
#: The number of bytes of one instance that may wait to be written before its peer is not read from any more.
MAX_UNWRITTEN: Final = 4 * 1024 * 1024

_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_UIDS: Final = (_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES)
_WANTED: Final = frozenset(_UIDS)
_UNKNOWN: Final = Requestor("", "")


#: An instance, and the error for which the archive refused it; ``None`` if it was stored.
_Outcome: TypeAlias = "tuple[IncomingInstance, BaseException | None]"


class InvalidMeta(StoreError):
    """The UIDs that the sender states for an instance cannot become File Meta Information."""


class DataSetMismatch(StoreError):
    """The data set is not the instance that the sender announced, or lacks a UID that the storage needs."""


class Flow(Protocol):
    """The flow control of the connection that a data set arrives on."""

    def pause(self) -> None:
        """Stop reading: enough data waits."""

    def resume(self) -> None:
        """Read on."""


class Keeper(Movable, Protocol):
    """The receiver of complete instances: an :class:`~dicomtwist.archive.archive.Archive`, or a folder without an index."""

    @property
    def store(self) -> ReceivingStorage:
        """The storage of the instances."""

    @property
    def tasks(self) -> TaskMaker | None:
        """Makes tasks of what is received, ``None`` if there are none."""

    def keep_all(self, instances: Sequence[ReceivedInstance], deliver: Deliver) -> None:
        """Store complete instances, see :meth:`dicomtwist.archive.archive.Archive.keep_all`."""


class Ingest:
    """
    Receives the data sets that peers send, and hands the instances to an archive.

    :param archive: the archive, open.
    :param executor: the threads that write files; the caller holds it while the object is used.
    :param default_charset: the character set of text without one, see :class:`dicomtwist.archive.archive.Archive`.

    :ivar outcomes: the number of instances, by ``"stored"`` or the class of the error for which they were refused.
    :ivar on_received: called with the Study Instance UID of each instance that is stored, and with its sender; in the reactor
        thread, or ``None``.
    :ivar listeners: functions that are called with the Study and Series Instance UIDs of each instance that is stored, in the
        reactor thread. They do not fail.
    """

    log = Logger()

    def __init__(self, archive: Keeper, executor: Executor, default_charset: str = "") -> None:
        self.archive = archive
        self.executor = executor
        self.default_charset = default_charset
        self.listeners: list[Callable[[str, str], None]] = []
        self.on_received: Callable[[str, Requestor], None] | None = None
        self._layouts = (frozenset[int](), Layouts(WANTED, MAX_VALUE_LENGTH))
        self._moves = MoveSchedule(archive, executor)
        self.outcomes = Counts()
        self._whole: deque[IncomingInstance] = deque()
        self._writers = 0
        self._max_writers = WRITERS[archive.store.durability]
        self._told: deque[_Outcome] = deque()
        self._is_telling = False

    def begin(self, meta: FileMeta, flow: Flow, sender: Sender | None = None, study: str = "") -> IncomingInstance:
        """
        Begin to receive an instance.

        :param meta: the File Meta Information that the sender's request leads to; the file begins with it.
        :param flow: the flow control of the connection; it is paused while much data waits to be written.
        :param sender: the sender, for what it may replace and for the log.
        :param study: the Study Instance UID that the instance must have; ``""`` for any.
        :returns: the sink for the data set.
        """
        tasks = self.archive.tasks
        if sender is None or (tasks is None and self.on_received is None):
            return IncomingInstance(self, meta, flow, sender, study)
        # The rules and the facts about the sender of this moment apply, even if both change before the last byte has arrived.
        notes = None if tasks is None else tasks.notes
        return IncomingInstance(self, meta, flow, sender, study, notes, sender.requestor)

    def layouts_for(self, notes: Notes | None) -> Layouts:
        """Return the layouts of recent data sets, with the attributes that *notes* looks at."""
        tags = frozenset[int]() if notes is None else notes.tags
        known, layouts = self._layouts
        if tags != known:
            # The rules have changed, and the layouts are learned again. Another thread may still use the earlier ones.
            layouts = Layouts(WANTED | tags, MAX_VALUE_LENGTH)
            self._layouts = tags, layouts
        return layouts

    # --- small instances

    def keep_small(self, incoming: IncomingInstance) -> None:
        """Store a small instance that is complete; its :meth:`IncomingInstance.kept` is called with the result."""
        bound = self.executor.bounds.max_queued
        if len(self._whole) > bound:  # one more than the bound, since a thread is about to take the first
            incoming.kept(ExecutorFull(self.executor.name, bound))
            return
        self._whole.append(incoming)
        self._write_whole()

    def _write_whole(self) -> None:
        if self._whole and self._writers < self._max_writers:
            self._writers += 1
            self.executor.call(self._keep_whole, self._wrote, self._not_written)

    def _wrote(self, _: None) -> None:
        self._writers -= 1
        self.deliver()
        self._write_whole()  # instances may have arrived after the thread had looked for the last time

    def _not_written(self, reason: Failure) -> None:
        """Log a defect of this program that nothing else has caught; the next instances are written all the same."""
        self._writers -= 1
        self.log.failure("instances were not written", reason)
        self.deliver()
        self._write_whole()

    # --- in worker threads

    def _keep_whole(self) -> None:
        """Store small instances in batches until none waits."""
        while self._whole:
            self._wake()  # the outcomes of the batch before do not wait for this one
            instances: dict[ReceivedInstance, IncomingInstance] = {}
            while self._whole and len(instances) < BATCH:
                try:
                    incoming = self._whole.popleft()
                except IndexError:
                    break  # another thread has taken it
                try:
                    instances[incoming.small()] = incoming
                except BaseException as error:
                    self._told.append((incoming, error))
            if instances:
                self.keep(instances)

    def keep(self, left: dict[ReceivedInstance, IncomingInstance]) -> None:
        """
        Store instances; their outcomes are passed to the reactor thread, in one list for each batch.

        :param left: the instances; each is removed when its outcome is known.
        """
        thread, told = get_ident(), self._told

        def deliver(outcomes: Sequence[tuple[ReceivedInstance, BaseException | None]], more: bool) -> None:
            for instance, error in outcomes:
                incoming = left.pop(instance, None)
                if incoming is not None:
                    told.append((incoming, error))
            if more or get_ident() != thread:
                self._wake()  # another thread has committed them, such as that of an import, whose result nobody waits for here

        try:
            self.archive.keep_all([*left], deliver)
        except BaseException as error:
            # A defect of this program: no sender waits for ever.
            self._told.extend((incoming, error) for incoming in left.values())

    def _wake(self) -> None:
        """
        Let the reactor thread deliver the outcomes that have collected, in one call.

        The last batch of a thread needs no call: its outcomes are delivered with the result of the thread's work.
        """
        if self._told and not self._is_telling:
            self._is_telling = True
            self.executor.call_in_reactor(self.deliver)

    # --- in the reactor thread again

    def deliver(self, _: None = None) -> None:
        """Deliver the outcomes that have collected."""
        self._is_telling = False
        stored = 0
        while self._told:
            incoming, error = self._told.popleft()
            incoming.kept(error)
            if error is None:
                stored += 1
                if self.on_received is not None:
                    self.on_received(incoming.study_uid, incoming.requestor)
                for listener in self.listeners:
                    listener(incoming.study_uid, incoming.series_uid)
        if stored:
            self._moves.came(stored)

    def stop(self) -> None:
        """Make no further files and rows; closing the archive does so."""
        self._moves.stop()


class IncomingInstance:
    """
    One instance that is being received; a :class:`~dicomtwist.datasets.stream.DataSetSink`.

    :param ingest: the ingest that it belongs to.
    :param meta: see :meth:`Ingest.begin`.
    :param flow: see :meth:`Ingest.begin`.
    :param sender: see :meth:`Ingest.begin`.
    :param study: see :meth:`Ingest.begin`.
    :param notes: the rules for tasks, if there are any.
    :param requestor: the sender as these see it.

    :ivar study_uid: its Study Instance UID, ``""`` until that is known.
    :ivar series_uid: its Series Instance UID, likewise.
    :ivar result: fires with ``None`` when the instance is stored (:meth:`dicomtwist.archive.archive.Archive.keep`). It fires
        with an exception if the instance is refused: :class:`InvalidMeta`, :class:`DataSetMismatch`,
        :class:`~dicomtwist.datasets.header_scanner.HeaderError`, :class:`~dicomtwist.errors.ExecutorFull`, or an error of
        the archive. It fails with the reason if the data set stays incomplete. In both cases nothing is left of the instance.
    """

    # Thousands of these are made in a second.
    __slots__ = (
        *("_description", "_enough", "_finished", "_flow", "_ingest", "_notes", "_refusal", "_requestor", "_scanner"),
        *("_sender", "_study", "_syntax", "_unwritten", "_values", "_waiting", "_writer", "_writing"),
        *("result", "series_uid", "study_uid"),
    )

    def __init__(
        self,
        ingest: Ingest,
        meta: FileMeta,
        flow: Flow,
        sender: Sender | None = None,
        study: str = "",
        notes: Notes | None = None,
        requestor: Requestor | None = None,
    ) -> None:
        self._notes = notes
        self._requestor = requestor
        self._sender = sender
        self._study = study
        self._ingest = ingest
        self._description = meta
        self._flow = flow
        self._syntax = meta.transfer_syntax_uid
        self._scanner: HeaderScanner | None = None
        self._writer: Writer | None = None
        self._waiting = ChunkBuffer()
        self._unwritten = 0
        self._enough = FIRST_WRITE
        self._writing = False
        self._finished = False
        self._values: Mapping[int, bytes] | None = None
        self._refusal: Failure | None = None
        self.study_uid = self.series_uid = ""
        self.result: Deferred[BaseException | None] = Deferred()

    @property
    def requestor(self) -> Requestor:
        """The sender as rules see it; without names and address if that is not known."""
        return self._requestor or _UNKNOWN

    # --- the sink, in the reactor thread

    def write(self, data: memoryview, *, is_last: bool = False) -> None:
        """
        Take the next piece.

        :param is_last: whether :meth:`finish` is called next: the piece is written then, in one step with all that follows.
        """
        if self._refusal is not None:
            return
        self._waiting.append(data)
        self._unwritten += len(data)
        if self._unwritten >= self._enough and not self._writing and not is_last:
            self._write()
        if self._unwritten > MAX_UNWRITTEN and self._refusal is None:
            self._flow.pause()

    def finish(self) -> None:
        """Store the instance: its last byte has arrived."""
        if self._refusal is not None:
            return  # a part could not be written, and the peer is being told
        self._finished = True
        if not self._writing:
            self._commit()

    def fail(self, reason: Failure) -> None:
        """Remove the instance: its last byte will never arrive."""
        if self._refusal is not None:
            return  # the instance was refused already, and the rest of it does not matter
        self._refusal = reason
        self._waiting.clear()
        if not self._writing:
            self._discard()

    def _write(self) -> None:
        waiting = self._waiting.take_chunks()
        size = self._unwritten
        self._enough = min(2 * self._enough, WRITE_SIZE)
        self._writing = True

        def written(_: None) -> None:
            self._writing = False
            self._unwritten -= size
            if self._refusal is not None:
                self._discard()
            elif self._finished:
                self._commit()
            else:
                if self._unwritten >= self._enough:
                    self._write()
                if self._unwritten <= MAX_UNWRITTEN:
                    self._flow.resume()

        def failed(reason: Failure) -> None:
            self._writing = False
            self._refuse(reason)

        executor = self._ingest.executor
        # An instance that has begun is completed however long the queue is: an association receives one at a time.
        run = executor.run if self._writer is None else executor.run_admitted
        run(self._write_some, waiting).addCallbacks(written, failed)

    def _commit(self) -> None:
        if self._writer is None and self._unwritten < FIRST_WRITE:
            self._ingest.keep_small(self)
            return
        waiting = self._waiting.take_chunks()
        executor = self._ingest.executor
        run = executor.run if self._writer is None else executor.run_admitted
        run(self._finish_writing, waiting).addErrback(self._refuse).addCallback(self._ingest.deliver)

    def kept(self, error: BaseException | None) -> None:
        """Report the result of the archive: stored, or refused for *error*."""
        if error is None:
            self._ingest.outcomes.add(("stored",))
            self.result.callback(None)
        else:
            self._refuse(Failure(error))

    def _refuse(self, reason: Failure) -> None:
        """Remove the file, then report *reason* to the peer, unless the peer is gone."""
        gone = self._refusal is not None
        self._refusal = reason
        self._ingest.outcomes.add((type(reason.value).__name__,))
        self._waiting.clear()
        self._flow.resume()
        if gone:
            self._discard()
            return
        self._ingest.executor.run_admitted(self._discard_file).addBoth(lambda _: self.result.callback(reason.value))

    def _discard(self) -> None:
        """Remove the file, then fail the result: the peer is gone."""
        reason = self._refusal
        assert reason is not None
        self._ingest.executor.run_admitted(self._discard_file).addBoth(lambda _: self.result.errback(reason))

    # --- in a worker thread

    def _write_some(self, buffers: list[memoryview | bytearray]) -> None:
        if self._writer is None:
            meta = self._meta()
            self._writer = self._ingest.archive.store.create()
            self._writer.write([meta, *buffers])
        else:
            self._writer.write(buffers)
        self._scan(buffers)

    def small(self) -> ReceivedInstance:
        """
        Return a small instance that is complete.

        :raises Exception: the instance is refused, see :attr:`result`.
        """
        data = self._waiting.take()
        values = self._found_in(data)
        uids = self._checked_uids(values)
        return self._instance(uids, [self._meta(), data], values)

    def _finish_writing(self, buffers: list[memoryview | bytearray]) -> None:
        """Hand a large instance to the archive."""
        self._write_some(buffers)
        assert self._writer is not None
        values = self._found()
        uids = self._checked_uids(values)
        instance = self._instance(uids, self._writer.seal(), values)
        self._ingest.keep({instance: self})

    def _meta(self) -> bytes:
        try:
            return encode_preamble_and_meta(self._description)
        except ValueError as error:
            raise InvalidMeta("the request has a UID that is not valid") from error

    def _discard_file(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    @property
    def _wanted(self) -> frozenset[int]:
        return WANTED if self._notes is None else WANTED | self._notes.tags

    def _scan(self, buffers: Sequence[Buffer]) -> None:
        """Look for the indexed attributes in the next pieces of a large instance."""
        layouts, syntax = self._ingest.layouts_for(self._notes), self._syntax
        scanner = self._scanner
        if scanner is None:
            self._values = layouts.values(buffers[0], syntax, whole=False)
            scanner = self._scanner = scanner_for(syntax, self._wanted)
        if self._values is not None:
            return
        try:
            for number, data in enumerate(buffers):
                if scanner.feed(data):
                    self._values = scanner.values
                    if not number and scanner.values.keys() >= _WANTED:
                        layouts.learn(data, syntax, scanner.values)
                    return
        except HeaderError as error:
            self._values = _enough(scanner, error)

    def _found(self) -> Mapping[int, bytes]:
        """Return the indexed attributes of a large instance that is complete."""
        scanner = self._scanner
        assert scanner is not None
        if self._values is None:
            try:
                scanner.finish()
            except HeaderError as error:
                return _enough(scanner, error)
            self._values = scanner.values
        return self._values

    def _found_in(self, data: bytes) -> Mapping[int, bytes]:
        """Return the indexed attributes of a small instance."""
        layouts, syntax = self._ingest.layouts_for(self._notes), self._syntax
        values = layouts.values(data, syntax)
        if values is None:
            scanner = scanner_for(syntax, self._wanted)
            try:
                if not scanner.feed(data):
                    scanner.finish()
            except HeaderError as error:
                return _enough(scanner, error)
            values = scanner.values
            if values.keys() >= _WANTED:
                # Without them the scan has looked behind the front that a layout has.
                layouts.learn(data, syntax, values)
        return values

    def _checked_uids(self, values: Mapping[int, bytes]) -> InstanceUIDs:
        """
        Return the UIDs of study, series and instance.

        :raises DataSetMismatch: they contradict the request, or one is missing.
        """
        get, description = values.get, self._description
        sop_class, instance, study, series = [decode_uid(get(tag, b"")) for tag in _UIDS]
        if sop_class != description.media_storage_sop_class_uid or not sop_class:
            raise _mismatch("SOP Class UID", sop_class)
        if instance != description.media_storage_sop_instance_uid or not instance:
            raise _mismatch("SOP Instance UID", instance)
        if not study:
            raise _mismatch("Study Instance UID")
        if not series:
            raise _mismatch("Series Instance UID")
        if self._study and self._study != study:
            raise _mismatch("Study Instance UID", study)
        self.study_uid, self.series_uid = study, series
        return study, series, instance

    def _instance(
        self, uids: InstanceUIDs, content: Sequence[Buffer] | Written, values: Mapping[int, bytes]
    ) -> ReceivedInstance:
        syntax = self._syntax
        held = sum(map(len, values.values()))
        describe = partial(make_record, values, syntax, self._ingest.default_charset)
        instance = ReceivedInstance(uids, syntax, content, describe, held, self._sender)
        if self._notes is not None and self._requestor is not None:
            instance.note = self._notes.note(values, syntax, self._requestor)
        return instance


def _mismatch(name: str, found: str = "") -> DataSetMismatch:
    return DataSetMismatch(
        f"the data set has another {name} than the request" if found else f"the data set has no {name}"
    )


def _enough(scanner: HeaderScanner, error: HeaderError) -> Mapping[int, bytes]:
    """
    Return the attributes found in a data set that cannot be read to the last indexed one, if its UIDs are among them.

    Such an instance is stored all the same.

    :raises HeaderError: a UID is missing.
    """
    if not scanner.values.keys() >= _WANTED:
        raise error
    return scanner.values

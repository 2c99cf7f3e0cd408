"""
From a data set that arrives to an instance that is kept, whatever protocol brings it.

A small instance is collected, then scanned and written in a thread, together with the small ones of others that are whole
meanwhile. A large one goes to a temporary file in pieces, one write under way at a time, and reading from the peer pauses
while too much waits to be written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import get_ident
from typing import Final, Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.archive.index.record import MAX_VALUE_LENGTH, WANTED, make_record, scanner_for
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.storage.interfaces import ReceivingStorage, Writer
from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.types import Durability, InstanceUIDs, StoreError, Written
from dicomtwist.datasets.chunk_buffer import ChunkBuffer
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.datasets.layout_cache import Layouts
from dicomtwist.errors import ExecutorFull, loggable
from dicomtwist.part10 import FileMeta, decode_uid, encode_preamble_and_meta
from dicomtwist.runtime.executors import Executor

#: An instance below so many bytes is written in one go, when it is whole; a larger one is written while the rest of it comes.
FIRST_WRITE: Final = 64 * 1024
#: What is written at once of a larger one, in bytes: each write is four times the one before, up to this.
WRITE_SIZE: Final = 1024 * 1024
#: How many small instances are written together at the most.
BATCH: Final = 32
#: In how many threads: one computes while the other waits for the medium, where anything is waited for. More are in the
#: way of each other.
WRITERS: Final = {Durability.FULL: 2, Durability.NONE: 1}
#: For how long nothing has come when the index catches up, in seconds (with durability none).
PAUSE: Final = 0.05
#: How much of one instance may wait to be written before its peer is not read from, in bytes.
MAX_UNWRITTEN: Final = 4 * 1024 * 1024

_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_WANTED: Final = frozenset((_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES))


#: An instance, and what its archive refused it for; ``None`` if it is kept.
_Outcome: TypeAlias = "tuple[IncomingInstance, BaseException | None]"


class InvalidMeta(StoreError):
    """What the sender says of an instance cannot be its File Meta Information."""


class DataSetMismatch(StoreError):
    """The data set is not the instance that the sender says, or lacks a UID that it is filed under."""


class Flow(Protocol):
    """What a data set comes through."""

    def pause(self) -> None:
        """Stop for now: enough waits."""

    def resume(self) -> None:
        """Go on."""


class Keeper(Protocol):
    """Where instances are kept: an :class:`~dicomtwist.archive.archive.Archive`, or a folder without an index."""

    @property
    def store(self) -> ReceivingStorage:
        """The storage of the instances."""

    def keep_all(
        self,
        instances: Sequence[tuple[ReceivedInstance, Callable[[BaseException | None], None]]],
        on_batch_done: Callable[[], None] | None = None,
    ) -> None:
        """Keep instances that are whole, see :meth:`dicomtwist.archive.archive.Archive.keep_all`."""

    @property
    def unindexed(self) -> int:
        """How many instances are kept and not in the index yet."""

    def catch_up(self) -> None:
        """Have the index know all that is kept, see :meth:`dicomtwist.archive.archive.Archive.catch_up`."""


class Ingest:
    """
    Takes data sets that peers send, and has an archive keep them.

    :param archive: where instances are kept; open.
    :param executor: where files are written; the caller holds it while this is used.

    :ivar layouts: how the data sets are laid out that came lately.
    """

    log = Logger()

    def __init__(self, archive: Keeper, executor: Executor) -> None:
        self.archive = archive
        self.executor = executor
        self.layouts = Layouts(WANTED, MAX_VALUE_LENGTH)
        self._came = 0
        self._waiting: IDelayedCall | None = None
        self._whole: deque[IncomingInstance] = deque()
        self._writers = 0
        self._max_writers = WRITERS[archive.store.durability]
        self._told: deque[_Outcome] = deque()
        self._is_telling = False

    def begin(self, meta: FileMeta, flow: Flow) -> IncomingInstance:
        """
        Begin an instance.

        :param meta: what the sender says of it; its file begins with this.
        :param flow: what its data set comes through, to be paused while much waits to be written.
        :returns: the sink for the data set.
        """
        return IncomingInstance(self, meta, flow)

    # --- small instances

    def keep_small(self, incoming: IncomingInstance) -> None:
        """Keep a small instance that is whole; it is told of it."""
        bound = self.executor.bounds.max_queued
        if len(self._whole) > bound:  # the first one is about to be taken
            incoming.kept(ExecutorFull(self.executor.name, bound))
            return
        self._whole.append(incoming)
        self._write_whole()

    def _write_whole(self) -> None:
        if self._whole and self._writers < self._max_writers:
            self._writers += 1
            self.executor.run_admitted(self._keep_whole).addCallbacks(self._wrote, self._not_written)

    def _wrote(self, outcomes: list[_Outcome]) -> None:
        self._writers -= 1
        for incoming, error in outcomes:
            incoming.kept(error)
        self._write_whole()  # what came after the thread had looked

    def _not_written(self, reason: Failure) -> None:
        """A mistake of ours that nothing else has caught: the next ones are written all the same."""
        self._writers -= 1
        self.log.failure("instances were not written", reason)
        self._write_whole()

    def _keep_whole(self) -> list[_Outcome]:
        """
        In a worker thread: keep what is whole, until nothing is.

        :returns: those that were kept last, or not, and what went wrong; of others the reactor thread was told before.
        """
        outcomes: list[_Outcome] = []
        while self._whole:
            for incoming, error in outcomes:
                self.tell(incoming, error)
            outcomes = self._keep_some()
        return outcomes

    def _keep_some(self) -> list[_Outcome]:
        instances: list[tuple[IncomingInstance, ReceivedInstance]] = []
        outcomes: list[_Outcome] = []
        for _ in range(BATCH):
            try:
                incoming = self._whole.popleft()
            except IndexError:
                break
            try:
                instances.append((incoming, incoming.small()))
            except BaseException as error:
                outcomes.append((incoming, error))
        return outcomes + self.keep(instances) if instances else outcomes

    # --- in worker threads

    def keep(self, instances: Sequence[tuple[IncomingInstance, ReceivedInstance]]) -> list[_Outcome]:
        """
        Keep instances.

        :returns: those that were kept, or not, and what went wrong; of others the reactor thread was told, or will be.
        """
        thread = get_ident()
        outcomes: list[_Outcome] = []
        left = {incoming for incoming, _ in instances}

        def on_result(incoming: IncomingInstance, error: BaseException | None) -> None:
            left.discard(incoming)
            if get_ident() == thread:
                outcomes.append((incoming, error))
            else:
                self.tell(incoming, error)  # another thread is at it, and has committed this one as well

        def on_batch_done() -> None:
            # Nobody waits for what others brought.
            while outcomes:
                self.tell(*outcomes.pop())

        try:
            self.archive.keep_all(
                [(instance, partial(on_result, incoming)) for incoming, instance in instances], on_batch_done
            )
        except BaseException as error:
            # A mistake of ours: nobody waits for ever.
            outcomes += [(incoming, error) for incoming in left]
        return outcomes

    def tell(self, incoming: IncomingInstance, error: BaseException | None) -> None:
        """Have the reactor thread tell *incoming* how it went, with what else it is to tell."""
        self._told.append((incoming, error))
        if not self._is_telling:
            self._is_telling = True
            self.executor.call_in_reactor(self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        while self._told:
            incoming, error = self._told.popleft()
            incoming.kept(error)

    # --- the index

    def index_later(self) -> None:
        """Have the index catch up, where it is behind, once nothing has come for a moment: so it is in nobody's way."""
        self._came += 1
        if self._waiting is None and self.archive.unindexed:
            self._wait()

    def stop(self) -> None:
        """Wait for nothing any more; what is not indexed is when the archive is closed."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _wait(self) -> None:
        self._waiting = self.executor.call_later(PAUSE, self._waited, self._came)

    def _waited(self, came: int) -> None:
        if came != self._came:
            self._wait()
            return
        self._waiting = None
        self.executor.run(self.archive.catch_up).addErrback(self._not_caught_up)

    def _not_caught_up(self, reason: Failure) -> None:
        # The next instance, and who asks the index, tries again.
        self.log.error("instances that are stored are not indexed yet: {reason}", reason=loggable(reason.value))


class IncomingInstance:
    """
    One instance on its way to disk; a :class:`~dicomtwist.datasets.stream.DataSetSink`.

    :param ingest: where it goes.
    :param meta: see :meth:`Ingest.begin`.
    :param flow: see :meth:`Ingest.begin`.

    :ivar result: fires with ``None`` when the instance is kept (:meth:`dicomtwist.archive.archive.Archive.keep`), or with the
        exception for which it is not: :class:`InvalidMeta`, :class:`DataSetMismatch`,
        :class:`~dicomtwist.datasets.header_scanner.HeaderError`, :class:`~dicomtwist.errors.ExecutorFull`, or what
        the archive says. It fails with the reason if the data set stays incomplete. In each case nothing is left of it.
    """

    def __init__(self, ingest: Ingest, meta: FileMeta, flow: Flow) -> None:
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
        self.result: Deferred[BaseException | None] = Deferred()

    # --- the sink, in the reactor thread

    def write(self, data: memoryview) -> None:
        """Take the next piece."""
        if self._refusal is not None:
            return
        self._waiting.append(data)
        self._unwritten += len(data)
        if self._unwritten >= self._enough and not self._writing:
            self._write()
        if self._unwritten > MAX_UNWRITTEN and self._refusal is None:
            self._flow.pause()

    def finish(self) -> None:
        """The instance is whole."""
        if self._refusal is not None:
            return  # a part of it could not be written, which is being told
        self._finished = True
        if not self._writing:
            self._commit()

    def fail(self, reason: Failure) -> None:
        """The instance will not be whole: nothing of it is kept."""
        if self._refusal is not None:
            return  # it was refused already, and the rest was not wanted
        self._refusal = reason
        self._waiting.clear()
        if not self._writing:
            self._discard()

    def _write(self) -> None:
        waiting = self._waiting.take_chunks()
        size = self._unwritten
        self._enough = min(4 * self._enough, WRITE_SIZE)
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
        # An instance that has begun is carried through, however much waits: an association receives one at a time.
        run = executor.run if self._writer is None else executor.run_admitted
        run(self._write_some, waiting).addCallbacks(written, failed)

    def _commit(self) -> None:
        if self._writer is None:
            self._ingest.keep_small(self)
            return
        waiting = self._waiting.take_chunks()
        self._ingest.executor.run_admitted(self._finish_writing, waiting).addCallbacks(
            self._finished_writing, self._refuse
        )

    def _finished_writing(self, outcomes: list[_Outcome]) -> None:
        for _, error in outcomes:
            self.kept(error)

    def kept(self, error: BaseException | None) -> None:
        """The archive has it, or has not for *error*."""
        if error is None:
            self.result.callback(None)
            self._ingest.index_later()
        else:
            self._refuse(Failure(error))

    def _refuse(self, reason: Failure) -> None:
        """Nothing is kept; the peer is told why, unless it is gone."""
        gone = self._refusal is not None
        self._refusal = reason
        self._waiting.clear()
        self._flow.resume()
        if gone:
            self._discard()
            return
        self._ingest.executor.run_admitted(self._discard_file).addBoth(lambda _: self.result.callback(reason.value))

    def _discard(self) -> None:
        """The peer is gone."""
        reason = self._refusal
        assert reason is not None
        self._ingest.executor.run_admitted(self._discard_file).addBoth(lambda _: self.result.errback(reason))

    # --- in a worker thread

    def _write_some(self, buffers: list[memoryview | bytearray]) -> None:
        writer = self._writer
        if writer is None:
            writer = self._writer = self._ingest.archive.store.create()
            writer.write([self._meta()])
        writer.write(buffers)
        self._scan(buffers)

    def small(self) -> ReceivedInstance:
        """
        Return a small instance that is whole.

        :raises Exception: it is not to be kept, see :attr:`result`.
        """
        syntax = self._syntax
        data = self._waiting.take()
        values = self._found_in(data)
        uids = self._checked_uids(values)
        return _instance(uids, syntax, [self._meta(), data], values)

    def _finish_writing(self, buffers: list[memoryview | bytearray]) -> list[_Outcome]:
        """Hand a large instance to the archive; return how that went, unless another thread tells."""
        self._write_some(buffers)
        assert self._writer is not None
        values = self._found()
        uids = self._checked_uids(values)
        instance = _instance(uids, self._syntax, self._writer.seal(), values)
        return self._ingest.keep([(self, instance)])

    def _meta(self) -> bytes:
        try:
            return encode_preamble_and_meta(self._description)
        except ValueError as error:
            raise InvalidMeta("the request has a UID that is not valid") from error

    def _discard_file(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _scan(self, buffers: Sequence[Buffer]) -> None:
        """Look for what the index wants in the next pieces of a large instance."""
        layouts, syntax = self._ingest.layouts, self._syntax
        scanner = self._scanner
        if scanner is None:
            self._values = layouts.values(buffers[0], syntax, whole=False)
            scanner = self._scanner = scanner_for(syntax)
        if self._values is not None:
            return
        try:
            for number, data in enumerate(buffers):
                if scanner.feed(data):
                    self._values = scanner.values
                    if not number:
                        layouts.learn(data, syntax, scanner.values)
                    return
        except HeaderError as error:
            self._values = _enough(scanner, error)

    def _found(self) -> Mapping[int, bytes]:
        """Return what the index wants of a large instance that is whole."""
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
        """Return what the index wants of a small instance."""
        layouts, syntax = self._ingest.layouts, self._syntax
        values = layouts.values(data, syntax)
        if values is None:
            scanner = scanner_for(syntax)
            try:
                if not scanner.feed(data):
                    scanner.finish()
            except HeaderError as error:
                return _enough(scanner, error)
            values = scanner.values
            layouts.learn(data, syntax, values)
        return values

    def _checked_uids(self, values: Mapping[int, bytes]) -> InstanceUIDs:
        """Return the UIDs of study, series and instance, which agree with what the sender says."""
        found = {tag: decode_uid(values.get(tag, b"")) for tag in _WANTED}
        description = self._description
        for tag, expected, name in (
            (_SOP_CLASS, description.media_storage_sop_class_uid, "SOP Class UID"),
            (_SOP_INSTANCE, description.media_storage_sop_instance_uid, "SOP Instance UID"),
        ):
            if found[tag] != expected:
                raise DataSetMismatch(f"the data set has another {name} than the request")
        for tag, name in ((_STUDY, "Study Instance UID"), (_SERIES, "Series Instance UID")):
            if not found[tag]:
                raise DataSetMismatch(f"the data set has no {name}")
        return found[_STUDY], found[_SERIES], found[_SOP_INSTANCE]


def _instance(
    uids: InstanceUIDs, syntax: str, content: Sequence[Buffer] | Written, values: Mapping[int, bytes]
) -> ReceivedInstance:
    return ReceivedInstance(uids, syntax, content, lambda: make_record(values, syntax), sum(map(len, values.values())))


def _enough(scanner: HeaderScanner, error: HeaderError) -> Mapping[int, bytes]:
    """
    Return what was found of a data set that cannot be read to the end of what is indexed: it is kept if it can be filed.

    :raises HeaderError: it cannot.
    """
    if not scanner.values.keys() >= _WANTED:
        raise error
    return scanner.values

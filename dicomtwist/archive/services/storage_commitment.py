"""
Storage commitment, push model: on request the archive verifies that it holds instances, and reports (PS3.4 Annex J).

A request is written to a file before it is acknowledged, and stays there until its report has been sent. The report goes out on
the association of the request if that is still open, otherwise on a new association to the requestor. It is retried until it
succeeds or the request is too old.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import time
from typing import Any, Final

from pydicom import Dataset
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.ae.ae import AE
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.index import IndexFailed
from dicomtwist.archive.integrity import CHECKED_AT_ONCE, Reference, verify
from dicomtwist.archive.services.commitment_journal import Transaction, Transactions, TransactionUnreadable
from dicomtwist.archive.services.no_room import NoRoomLog, refusal_words
from dicomtwist.archive.storage.types import InvalidUID, check_uids
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.dimse import status as codes
from dicomtwist.dimse.status import Status
from dicomtwist.errors import (
    DataSetError,
    DataSetTooLong,
    DICOMError,
    ExecutorFull,
    NoPresentationContext,
    Refused,
    loggable,
)
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.presentation import build_context, build_role
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.networks import host_of
from dicomtwist.scp.dispatch import Route
from dicomtwist.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from dicomtwist.transport.peer_directory import Peers

__all__ = ["StorageCommitment"]

#: Failure Reason (0008,1197): the Transaction UID is that of another request (PS3.3 C.14.1.1).
DUPLICATE_TRANSACTION_UID: Final = 0x0131

#: The maximum number of transactions between request and report.
MAX_TRANSACTIONS: Final = 10_000
#: The maximum number of instances in a transaction.
MAX_REFERENCES: Final = 100_000
#: The number of transactions that are checked at the same time, and that are reported on new associations at the same time.
MAX_CHECKING: Final = 2
MAX_REPORTING: Final = 4

#: The time that a requestor has to release the association before the report goes out on it, in seconds. A requestor that
#: releases as soon as the request is acknowledged does not expect the report there.
PAUSE: Final = 1.0
#: The first and the longest time between two attempts to report, in seconds; it doubles after each attempt.
FIRST_DELAY: Final = 10.0
LONGEST_DELAY: Final = 600.0
_BACKOFF: Final = Backoff(FIRST_DELAY, LONGEST_DELAY)
#: The time for which a report is attempted, in seconds.
REPORT_FOR: Final = 24 * 3600.0


@dataclass(slots=True, eq=False)
class _Pending:
    """A transaction between request and report, without its instances, which are in its file."""

    uid: str
    requestor: str
    received: float
    digest: bytes
    name: str = ""
    assoc: AssociationInterface | None = None
    task: Deferred[None] | None = None
    waiting: Any = None


class StorageCommitment:
    """
    An SCP of the SOP Class Storage Commitment Push Model.

    :param archive: the archive, open while the service runs.
    :param executor: the threads that read and write files; the caller holds it while the object is used.
    :param ae: the AE that requests associations for reports.
    :param peers: the addresses of the requestors.
    :param takes_up: whether to report the transactions that the previous run of the program left unreported. Of several
        processes that share an archive one does; each process reports the requests that it received itself.
    :param clock: returns the time, in seconds since 1970.
    :param no_room: the log of what is refused without room, if the service shares one with others.

    :ivar routes: the requests that it performs.
    """

    log = Logger()

    def __init__(
        self,
        archive: Archive,
        executor: Executor,
        ae: AE,
        peers: Peers,
        *,
        takes_up: bool = True,
        clock: Callable[[], float] = time,
        no_room: NoRoomLog | None = None,
    ) -> None:
        self._archive = archive
        self._executor = executor
        self._no_room = no_room or NoRoomLog(archive.store, executor)
        self._ae = ae
        self._peers = peers
        self._takes_up = takes_up
        self._clock = clock
        self._transactions = Transactions(archive.store)
        self._pending: dict[str, _Pending] = {}
        self._conflicting: set[_Pending] = set()
        self._running = False
        self._checking = DeferredSemaphore(MAX_CHECKING)
        self._reporting = DeferredSemaphore(MAX_REPORTING)
        self.routes = (Route(evt.EVT_N_ACTION, StorageCommitmentPushModel, self.handle_action),)

    def start(self) -> None:
        """Load the transactions that the previous run left unreported, and continue them. It blocks while it reads files."""
        self._running = True
        for name in self._transactions.names() if self._takes_up else ():
            try:
                transaction = self._transactions.load(name)
            except TransactionUnreadable as error:
                self.log.error("a storage commitment cannot be continued: {error}", error=loggable(error))
                continue
            pending = _Pending(
                transaction.uid, transaction.requestor, transaction.received, transaction.digest, transaction.name
            )
            self._note(pending)
            self._begin(pending)

    def stop(self) -> Deferred[None]:
        """Stop reporting; the next start continues with the transactions that are not reported."""
        self._running = False
        tasks = [pending.task for pending in self._all() if pending.task is not None]
        for task in tasks:
            task.cancel()
        self._pending.clear()
        self._conflicting.clear()
        return DeferredList(tasks).addCallback(lambda _: None)

    @property
    def unreported(self) -> int:
        """The number of transactions between request and report."""
        return len(self._pending) + len(self._conflicting)

    # --- the request

    @evt.decoding
    async def handle_action(self, event: evt.ActionEvent) -> Status:
        """
        Accept a request for commitment.

        :returns: a coroutine with the status: success after the request is stored, and the report follows; 0x0123 if the
            Action Type is not 1, 0x0112 if the SOP Instance is not the well-known one, 0x0115 if UIDs are missing or invalid,
            0x0213 if there are too many instances or requests or no room, 0x0110 if the storage refuses.
        """
        try:
            await self._accept(event)
        except Refused as error:
            self._log_refused(event, error)
            return error.status
        except ExecutorFull as error:
            self._log_refused(event, error)
            return Status(codes.RESOURCE_LIMITATION, "N-ACTION", "too many requests wait")
        except OSError as error:
            if self._no_room.takes(error, "storage commitment"):
                return Status(codes.RESOURCE_LIMITATION, "N-ACTION", refusal_words(error))
            self._log_refused(event, error)
            return Status(codes.PROCESSING_FAILURE, "N-ACTION", refusal_words(error))
        return Status.SUCCESS

    def _log_refused(self, event: evt.ActionEvent, error: BaseException) -> None:
        event.assoc.log_refusal(
            self.log.info if isinstance(error, Refused) else self.log.error,
            "a storage commitment of {peer!r} was refused: {error}",
            peer=event.assoc.remote.ae_title,
            error=loggable(error),
        )

    async def _accept(self, event: evt.ActionEvent) -> None:
        if event.action_type != 1:
            raise Refused(codes.NO_SUCH_ACTION, "the Action Type ID is not 1", "N-ACTION")
        if event.sop_instance_uid != StorageCommitmentPushModelInstance:
            raise Refused(codes.NO_SUCH_SOP_INSTANCE, "not the well-known SOP Instance", "N-ACTION")
        if self.unreported >= MAX_TRANSACTIONS:
            raise Refused(codes.RESOURCE_LIMITATION, "too many storage commitments are under way", "N-ACTION")
        requestor = event.assoc.requestor.ae_title
        transaction, digest = await self._executor.share(host_of(event.assoc.remote.address)).run(
            _parse, event, requestor, self._clock()
        )
        pending = _Pending(transaction.uid, requestor, transaction.received, digest, assoc=event.assoc)
        same = self._pending.get(transaction.uid)
        if same is not None and same.digest == digest:
            # The requestor repeats a request that is not reported yet, perhaps because it did not get the response.
            same.assoc = event.assoc
            if same.waiting is not None and same.waiting.active():
                same.waiting.reset(PAUSE)
            return
        if same is not None:
            transaction = transaction.checked([DUPLICATE_TRANSACTION_UID] * len(transaction.references))
        self._note(pending)
        try:
            pending.name = (await self._executor.run(self._transactions.save, transaction)).name
        except BaseException:
            self._forget(pending)
            raise
        if self._running:
            self._begin(pending)

    # --- the transactions between request and report

    def _all(self) -> list[_Pending]:
        return [*self._pending.values(), *self._conflicting]

    def _note(self, pending: _Pending) -> None:
        if self._pending.setdefault(pending.uid, pending) is not pending:
            self._conflicting.add(pending)

    def _forget(self, pending: _Pending) -> None:
        self._conflicting.discard(pending)
        if self._pending.get(pending.uid) is pending:
            del self._pending[pending.uid]

    def _begin(self, pending: _Pending) -> None:
        pending.task = Deferred.fromCoroutine(self._complete(pending))
        pending.task.addErrback(self._log_defect, pending)

    def _log_defect(self, why: Failure, pending: _Pending) -> None:
        if not why.check(CancelledError):
            self.log.failure(
                "in the storage commitment {uid} of {peer!r}", why, uid=pending.uid, peer=pending.requestor
            )

    async def _complete(self, pending: _Pending) -> None:
        """Check a transaction and report it; repeat the report until it succeeds or the transaction is too old."""
        # The file has the time of the wall clock, which outlives this process; within it, a step of that clock changes nothing.
        seconds = self._ae.reactor.seconds
        received = seconds() - max(0.0, self._clock() - pending.received)
        await self._wait(pending, PAUSE)
        failures = 0
        while True:
            try:
                await self._verify_instances(pending)
                if await self._report(pending):
                    break
            except TransactionUnreadable as error:
                self.log.error(
                    "the storage commitment {uid} of {peer!r} is given up: {error}",
                    uid=pending.uid,
                    peer=pending.requestor,
                    error=loggable(error),
                )
                self._forget(pending)
                return
            except (OSError, IndexFailed, ExecutorFull) as error:
                if not self._no_room.takes(error, "storage commitment check"):
                    self.log.error(
                        "the storage commitment {uid} of {peer!r} is tried again later: {error}",
                        uid=pending.uid,
                        peer=pending.requestor,
                        error=loggable(error),
                    )
            if seconds() - received > REPORT_FOR:
                self.log.error(
                    "the storage commitment {uid} is given up: it could not be reported to {peer!r}",
                    uid=pending.uid,
                    peer=pending.requestor,
                )
                break
            failures += 1
            await self._wait(pending, _BACKOFF(failures))
        await self._executor.run_admitted(self._transactions.remove, pending.name)
        self._forget(pending)

    async def _wait(self, pending: _Pending, seconds: float) -> None:
        """Wait *seconds*; a repeated request of the requestor shortens that to :data:`PAUSE`."""
        over: Deferred[None] = Deferred(lambda _: call.cancel())
        call = pending.waiting = self._ae.reactor.callLater(seconds, over.callback, None)
        await over

    # --- the check

    async def _verify_instances(self, pending: _Pending) -> None:
        """Verify the instances of a transaction and write the result to its file, unless it is there already."""
        await self._checking.acquire()
        try:
            transaction = await self._executor.run(self._transactions.load, pending.name)
            if transaction.reasons is not None:
                return
            reasons: list[int] = []
            damaged: list[str] = []
            for start in range(0, len(transaction.references), CHECKED_AT_ONCE):
                some = transaction.references[start : start + CHECKED_AT_ONCE]
                reasons += await self._executor.run(verify, self._archive, some, damaged)
                while damaged:
                    self.log.error("an instance of the archive is damaged: {which}", which=damaged.pop())
            await self._executor.run(self._transactions.save, transaction.checked(reasons))
        finally:
            self._checking.release()
        self.log.info(
            "storage commitment {uid} of {peer!r}: {held} instances are held, {failed} are not",
            uid=pending.uid,
            peer=pending.requestor,
            held=reasons.count(0),
            failed=len(reasons) - reasons.count(0),
        )

    # --- the report

    async def _report(self, pending: _Pending) -> bool:
        """Report once, on the association of the request or on a new one; return whether the requestor accepted it."""
        assoc, pending.assoc = pending.assoc, None
        if assoc is not None and assoc.is_established:
            try:
                if await self._send(assoc, pending):
                    return True
            except DICOMError as error:
                self._log_unreported(pending, error)
        destination = self._peers.destination(pending.requestor)
        if destination is None:
            self._log_unreported(pending, "its address is not known: name it with --peer")
            return False
        await self._reporting.acquire()
        try:
            return await self._report_to(destination if isinstance(destination, tuple) else (destination,), pending)
        finally:
            self._reporting.release()

    async def _report_to(self, address: tuple[object, ...], pending: _Pending) -> bool:
        taken = False
        try:
            assoc = await self._ae.associate(
                *address,  # type: ignore[arg-type]
                ae_title=pending.requestor,
                contexts=[build_context(StorageCommitmentPushModel)],
                ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
            )
            async with assoc:
                taken = await self._send(assoc, pending)
        except (CancelledError, TransactionUnreadable):
            raise
        except Exception as error:
            # An endpoint may fail with any exception: of the network, of name resolution, of TLS.
            if not taken:
                self._log_unreported(pending, error)
        return taken

    async def _send(self, assoc: AssociationInterface, pending: _Pending) -> bool:
        uid = str(StorageCommitmentPushModel)
        try:
            context = assoc.context_for(uid, as_scu=False)
        except NoPresentationContext:
            # Some peers do not negotiate roles and accept the report all the same.
            context = assoc.context_for(uid)
        syntax = str(context.transfer_syntax)
        event_type, encoded = await self._executor.run(self._information, pending.name, syntax)
        status, _ = await assoc.send_n_event_report(
            encoded, event_type, uid, StorageCommitmentPushModelInstance, any_role=True
        )
        if status.is_success or status.is_warning:
            return True
        self._log_unreported(pending, f"it answered 0x{int(status):04X} {status.meaning}")
        return False

    def _log_unreported(self, pending: _Pending, why: object) -> None:
        self.log.warn(
            "the storage commitment {uid} could not be reported to {peer!r}: {why}",
            uid=pending.uid,
            peer=pending.requestor,
            why=loggable(why) if isinstance(why, BaseException) else why,
        )

    def _information(self, name: str, transfer_syntax: str) -> tuple[int, bytes]:
        """In a thread: return the Event Type ID and the encoded Event Information (PS3.4 tables J.3-2 and J.3-3)."""
        transaction = self._transactions.load(name)
        reasons = transaction.reasons or ()
        information = Dataset()
        information.TransactionUID = transaction.uid
        held = [_item(one) for one, reason in zip(transaction.references, reasons, strict=True) if not reason]
        failed = [
            _item(one, FailureReason=reason)
            for one, reason in zip(transaction.references, reasons, strict=True)
            if reason
        ]
        if held:
            information.RetrieveAETitle = self._ae.ae_title
            information.ReferencedSOPSequence = held
        if failed:
            information.FailedSOPSequence = failed
        return 2 if failed else 1, encode_identifier(information, transfer_syntax)


def _item(reference: Reference, **more: int) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def _parse(event: evt.ActionEvent, requestor: str, received: float) -> tuple[Transaction, bytes]:
    """
    In a thread: return the requested transaction and its digest.

    :raises Refused: the request is invalid.
    """
    try:
        information = event.action_information
        uid = str(information.get("TransactionUID") or "")
        items: Sequence[Dataset] = information.get("ReferencedSOPSequence") or ()
        if len(items) > MAX_REFERENCES:
            raise Refused(codes.RESOURCE_LIMITATION, f"more than {MAX_REFERENCES} instances", "N-ACTION")
        references = tuple(
            Reference(str(item.get("ReferencedSOPClassUID") or ""), str(item.get("ReferencedSOPInstanceUID") or ""))
            for item in items
        )
    except DataSetTooLong as error:
        raise Refused(codes.RESOURCE_LIMITATION, str(error), "N-ACTION") from error
    except DataSetError as error:
        raise Refused(codes.PROCESSING_FAILURE, "the Action Information cannot be read", "N-ACTION") from error
    if not references:
        raise Refused(codes.INVALID_ARGUMENT_VALUE, "the Referenced SOP Sequence is missing or empty", "N-ACTION")
    try:
        check_uids(uid)
        for reference in references:
            check_uids(*reference)
    except InvalidUID as error:
        raise Refused(codes.INVALID_ARGUMENT_VALUE, "a UID is missing or invalid", "N-ACTION") from error
    transaction = Transaction(uid, requestor, received, references)
    return transaction, transaction.digest

"""
``dicomtwist commit``: request storage commitment (PS3.4 Annex J) and report its result.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import generate_uid
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import CannotListenError

from dicomtwist import Association, AssociationError, NotEstablished, Server, Status, build_context, evt
from dicomtwist.datasets.identity import read_identity
from dicomtwist.dimse.status import INVALID_ARGUMENT_VALUE, failure_reason
from dicomtwist.errors import DataSetError, NoPresentationContext
from dicomtwist.part10 import NotDicomFile
from dicomtwist.runtime.regular_files import open_regular
from dicomtwist.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance, check_uid
from dicomtwist.tools.client import ClientAssociation
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import VERBOSE, Output, plural
from dicomtwist.tools.display.result_table import JSONWriter
from dicomtwist.tools.files.file_scanner import DICOMDIR, Unreadable, walk
from dicomtwist.tools.interrupts import NO_LONGER_WAITING, Interrupts

#: The most instances in one transaction; more instances take several transactions, one after the other.
MAX_REFERENCES: Final = 1000
#: How long the peer may take to release its associations at the end, in seconds.
GRACE: Final = 5.0
#: The longest line of a file of UIDs, in characters.
MAX_LINE: Final = 4096


@dataclass(slots=True)
class ReferenceBatch:
    """
    The instances of one transaction.

    :ivar references: the SOP Class UID and the file of each instance, by SOP Instance UID.
    :ivar wrong: the sources that name no instance, each with the reason.
    :ivar skipped: the number of files that are not DICOM instances.
    """

    references: dict[str, tuple[str, str]] = field(default_factory=dict)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0

    def add(self, sop_class: str, sop_instance: str, source: str) -> None:
        """Add an instance, to the wrong ones if a UID is not valid."""
        try:
            check_uid(sop_class, "the SOP Class UID")
            check_uid(sop_instance, "the SOP Instance UID")
        except ValueError as error:
            self.wrong.append((source, str(error)))
        else:
            self.references[sop_instance] = (sop_class, source)


class References:
    """
    The instances to request commitment for, batch by batch. Blocks, so it belongs into a worker thread.

    :param paths: files and folders; ``-`` reads their names from standard input, one on each line.
    :param uids: a file whose lines have a SOP Class and a SOP Instance UID, ``-`` for standard input.
    """

    def __init__(self, paths: Iterable[str], uids: str | None) -> None:
        self._files = walk(_names(paths)) if uids is None else iter(())
        self._lines = iter(()) if uids is None else _lines(uids)

    def next_batch(self) -> ReferenceBatch | None:
        """Return the next instances, ``None`` if there are no more."""
        batch = ReferenceBatch()
        taken = 0
        for file in islice(self._files, MAX_REFERENCES):
            taken += 1
            if isinstance(file, Unreadable):
                batch.wrong.append((file.path, file.reason))
            else:
                _read(os.fspath(file), batch)
        for number, line in islice(self._lines, MAX_REFERENCES - taken):
            taken += 1
            words = re.split(r"[,\s]+", line.strip())
            if len(words) == 2:
                batch.add(words[0], words[1], "")
            else:
                batch.wrong.append((f"line {number}", "the line must have a SOP Class UID and a SOP Instance UID"))
        return batch if taken else None


def _names(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield path


def _lines(path: str) -> Iterator[tuple[int, str]]:
    with sys.stdin if path == "-" else open(path, encoding="utf-8", errors="replace") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            # The first line of the output of "find --csv" is the line of headings.
            if line.strip() and not line.startswith(("#", "SOPClassUID,")):
                yield number, line


def _read(path: str, batch: ReferenceBatch) -> None:
    try:
        with open_regular(path, buffering=0) as file:
            meta = read_identity(file)
    except NotDicomFile:
        batch.skipped += 1
    except OSError as error:
        batch.wrong.append((path, error.strerror or str(error)))
    else:
        if meta.media_storage_sop_class_uid == DICOMDIR:
            batch.skipped += 1
        else:
            batch.add(meta.media_storage_sop_class_uid, meta.media_storage_sop_instance_uid, path)


class Commit:
    """
    One run of the subcommand.

    :param references: the instances to request commitment for.
    :param listen: where to listen for the reports of the peer, ``None`` to expect them on the association of the request.
    :param wait: how long to wait for each report, in seconds; ``None`` for no limit.

    :ivar committed: the number of instances that the peer has committed to.
    :ivar failed: the number of instances that it has not.
    :ivar skipped: the number of files that are not DICOM instances.
    """

    def __init__(
        self, connection: Connection, output: Output, references: References, listen: str | None, wait: float | None
    ) -> None:
        self._connection = connection
        self._output = output
        self._references = references
        self._listen = listen
        self._wait = wait
        self._reports: dict[str, Deferred[Dataset]] = {}
        self._items: JSONWriter | None = None
        self.committed = 0
        self.failed = 0
        self.skipped = 0

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        output = self._output
        if output.as_json:
            self._items = JSONWriter(output, {"command": "commit", "peer": str(self._connection.peer)}, "instances")
        client = ClientAssociation(self._connection, reactor, output, interrupts, NO_LONGER_WAITING)
        ae = client.ae
        # The peer sends nothing while it checks its storage.
        if ae.network_timeout is not None:
            ae.network_timeout = None if self._wait is None else max(ae.network_timeout, self._wait + 1)
        ae.executors.acquire()
        server: Server | None = None
        try:
            if self._listen is not None:
                context = build_context(StorageCommitmentPushModel)
                context.scu_role = context.scp_role = True
                server = await ae.start_server(
                    self._listen, contexts=[context], evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._reported)]
                )
                output.note(f"listening at {self._listen} as {self._connection.calling}", VERBOSE)
            await self._request_all(client, reactor)
            await client.release()
        except CannotListenError as error:
            client.error = f"--listen {self._listen}: {error.socketError}"
        finally:
            if server is not None:
                await server.shutdown(0 if client.interrupted else GRACE)
            await ae.shutdown()
            ae.executors.release()
        return self._print_result(client)

    async def _request_all(self, client: ClientAssociation, reactor: Any) -> None:
        while not client.interrupted and not client.error:
            batch: ReferenceBatch | None = await client.ae.executors.retrieval.run(self._references.next_batch)
            if batch is None:
                return
            self.skipped += batch.skipped
            for source, reason in batch.wrong:
                self._add_outcome(False, "", source, reason)
            if batch.references and not await self._request(client, batch, reactor):
                return

    async def _request(self, client: ClientAssociation, batch: ReferenceBatch, reactor: Any) -> bool:
        """Request commitment for *batch* and print the outcome; return whether to continue."""
        association = client.association
        if association is None or not association.is_established:
            handlers: list[evt.HandlerTuple] = [(evt.EVT_N_EVENT_REPORT, self._reported)]
            association = await client.associate([build_context(StorageCommitmentPushModel)], handlers)
            if association is None:
                return False
        try:
            report = await self._transaction(client, association, batch, reactor)
        except (AssociationError, NotEstablished, NoPresentationContext, DataSetError) as error:
            client.error = str(error)
        except DeferredTimeoutError:
            peer = self._connection.peer
            client.error = f"{peer} sent no report within {self._wait:g} seconds: try a longer --wait, or --listen"
        except CancelledError:
            pass
        else:
            self._evaluate_report(batch, report)
            return True
        for uid, (_, source) in batch.references.items():
            self._add_outcome(False, uid, source, "no report")
        return False

    async def _transaction(
        self, client: ClientAssociation, association: Association, batch: ReferenceBatch, reactor: Any
    ) -> Dataset | Status:
        """Return the report of the peer, or the status with which it refuses the request."""
        uid = generate_uid(prefix=None)
        request = Dataset()
        request.TransactionUID = uid
        request.ReferencedSOPSequence = [_reference(instance, of[0]) for instance, of in batch.references.items()]
        # The report may arrive before the response to the request.
        waiting = self._reports[str(uid)] = Deferred()
        target = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        try:
            status, _ = await association.send_n_action(request, 1, *target)
            if not (status.is_success or status.is_warning):
                return status
            if self._listen is not None:
                # Many peers open an association for the report only after this one has ended.
                await client.release()
            else:
                association.when_ended().addCallback(_ended, waiting)
            client.cancel_on_interrupt(waiting.cancel)
            if self._wait is not None:
                waiting.addTimeout(self._wait, reactor)
            return await waiting
        finally:
            client.cancel_on_interrupt(lambda: None)
            del self._reports[str(uid)]

    async def _reported(self, event: evt.EventReportEvent) -> int:
        """Handle a report of the peer (N-EVENT-REPORT)."""
        information = event.event_information
        waiting = self._reports.get(str(information.get("TransactionUID")))
        if waiting is None:
            self._output.note("refused a report about an unknown transaction")
            return INVALID_ARGUMENT_VALUE
        if not waiting.called:
            # Delivered after the response is sent, since the waiting coroutine releases the association.
            event.assoc.ae.reactor.callLater(0, _deliver, information, waiting)
        return 0

    # --- the result

    def _evaluate_report(self, batch: ReferenceBatch, report: Dataset | Status) -> None:
        if isinstance(report, Status):
            for uid, (_, source) in batch.references.items():
                self._add_outcome(False, uid, source, f"refused: {report}")
            return
        held = {_uid_of(item) for item in report.get("ReferencedSOPSequence") or ()}
        reasons = {_uid_of(item): item.get("FailureReason") for item in report.get("FailedSOPSequence") or ()}
        for uid, (_, source) in batch.references.items():
            if uid in reasons:
                code = reasons[uid]
                self._add_outcome(
                    False, uid, source, f"0x{code:04X} {failure_reason(code)}" if isinstance(code, int) else ""
                )
            else:
                self._add_outcome(uid in held, uid, source, "" if uid in held else "missing in the report")

    def _add_outcome(self, committed: bool, uid: str, source: str, reason: str) -> None:
        if committed:
            self.committed += 1
        else:
            self.failed += 1
        if self._items is not None:
            self._items.item(
                {
                    "sop_instance_uid": uid or None,
                    "path": source or None,
                    "committed": committed,
                    "reason": reason or None,
                }
            )
        words = "committed" if committed else "NOT committed"
        self._output.result("  ".join(part for part in (f"{words:13}", uid, source, reason) if part))

    def _print_result(self, client: ClientAssociation) -> int:
        if (
            not self.committed
            and not self.failed
            and client.cause is None
            and not client.error
            and not client.interrupted
        ):
            client.error = "there is nothing to commit: the input names no DICOM instance"
        exit_status = client.exit_status(not self.failed)
        client.print_errors()
        if client.association is not None:
            skipped = f", {self.skipped} skipped" if self.skipped else ""
            self._output.note(f"{plural(self.committed, 'instance')} committed, {self.failed} not committed{skipped}")
        if self._items is not None:
            self._items.end(
                {
                    "committed": self.committed,
                    "failed": self.failed,
                    "skipped": self.skipped,
                    "exit_status": exit_status,
                    **client.document(),
                }
            )
        return exit_status


def _reference(instance: str, sop_class: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = sop_class
    reference.ReferencedSOPInstanceUID = instance
    return reference


def _uid_of(item: Dataset) -> str:
    return str(item.get("ReferencedSOPInstanceUID"))


def _deliver(information: Dataset, waiting: Deferred[Dataset]) -> None:
    if not waiting.called:
        waiting.callback(information)


def _ended(association: Association, waiting: Deferred[Dataset]) -> None:
    """Fail *waiting*: the association has ended on which the report was expected."""
    if not waiting.called:
        reason = association.end_reason or AssociationError("the peer released the association")
        waiting.errback(
            AssociationError(f"no report: {reason}; if the peer reports on another association, use --listen")
        )

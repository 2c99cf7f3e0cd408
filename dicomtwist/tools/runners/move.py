"""
``dicomtwist move``: have a peer send instances to another AE, or to us.
"""

from __future__ import annotations

from typing import Any, Final

import click
from pydicom import Dataset
from twisted.internet.error import CannotListenError

from dicomtwist import (
    AllStoragePresentationContexts,
    Association,
    AssociationError,
    NotEstablished,
    OperationFailed,
    Server,
    Status,
    build_context,
)
from dicomtwist.dimse.status import CANNOT_PERFORM_SUBOPERATIONS, MOVE_DESTINATION_UNKNOWN
from dicomtwist.errors import DataSetError, NoPresentationContext
from dicomtwist.presentation import STORAGE_TRANSFER_SYNTAXES
from dicomtwist.retrieval.folder import ReceivingFolder
from dicomtwist.retrieval.receiver import FolderReceiver, Requested
from dicomtwist.scu.responses import RetrievalResult, SubOperations
from dicomtwist.tools.client import ClientAssociation
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import VERBOSE, Output, table
from dicomtwist.tools.display.progress import Progress
from dicomtwist.tools.interrupts import MOVE_CANCELLED, Interrupts
from dicomtwist.tools.query.query import Query

#: How long the peer may take to release its associations after the move, in seconds.
GRACE: Final = 10.0
#: How many failed instances are listed one by one.
MAX_LISTED: Final = 20


class Move:
    """
    One run of ``dicomtwist move``.

    :param query: selects the instances to send.
    :param destination: the AE title to send to.
    :param folder: the folder to receive into, ``None`` if the instances go to another AE.
    :param listen: where to listen, if the instances are sent to us.

    :ivar counts: the numbers of sub-operations that the peer has reported.
    :ivar total: the total number of sub-operations, ``None`` until the peer reports it.
    :ivar receiver: receives the instances, ``None`` if they go to another AE.
    """

    def __init__(
        self,
        connection: Connection,
        output: Output,
        query: Query,
        destination: str,
        folder: ReceivingFolder | None,
        listen: str,
    ) -> None:
        self.connection = connection
        self.output = output
        self.query = query
        self.destination = destination
        self.counts = SubOperations()
        self.total: int | None = None
        self.receiver: FolderReceiver | None = None
        self._folder = folder
        self._listen = listen
        self._server: Server | None = None

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        client = ClientAssociation(self.connection, reactor, self.output, interrupts, MOVE_CANCELLED)
        client.ae.executors.acquire()
        if self._folder is not None:
            self.receiver = FolderReceiver(
                self._folder, client.ae.executors.receiving, Requested(self.query.identifier)
            )
        progress = Progress(self.output, self._done, lambda: self.total, self._note, unit=" instances")
        since = reactor.seconds()
        result: RetrievalResult | None = None
        try:
            association = await self._associate(client)
            if association is not None:
                progress.start(reactor)
                result = await self._transfer(client, association)
                await client.release()
        finally:
            progress.stop()
            await self._close(interrupts)
            await client.ae.shutdown()
            client.ae.executors.release()
            if self._folder is not None:
                self._folder.close()
        return self._print_result(client, result, reactor.seconds() - since)

    async def _associate(self, client: ClientAssociation) -> Association | None:
        """Listen if the instances are sent to us, and request an association; ``None`` if there is none."""
        if self.receiver is not None:
            try:
                await self._serve(client, self.receiver)
            except CannotListenError as error:
                client.error = f"--listen {self._listen}: {error.socketError}"
                return None
        return await client.associate([build_context(self.query.model)])

    async def _serve(self, client: ClientAssociation, receiver: FolderReceiver) -> None:
        client.ae.require_called_aet = True
        # As twist dicom: what the peer has is received as it is, and in Explicit VR if the peer has to choose.
        client.ae.keep_compression = True
        contexts = [
            build_context(context.abstract_syntax or "", STORAGE_TRANSFER_SYNTAXES)
            for context in AllStoragePresentationContexts
        ]
        self._server = await client.ae.start_server(
            self._listen, ae_title=self.destination, contexts=contexts, evt_handlers=[receiver.handler]
        )
        self.output.note(f"listening at {self._listen} as {self.destination}", VERBOSE)

    def _last_received(self) -> float:
        """Return when the last byte of an instance arrived, in seconds of the clock."""
        associations = () if self._server is None else self._server.factory.associations
        return max((one.protocol.last_received for one in associations), default=0.0)

    async def _close(self, interrupts: Interrupts) -> None:
        """Stop listening, after the instances under way have arrived, and have them named."""
        if self._server is not None:
            await self._server.shutdown(0 if interrupts.count > 1 else GRACE)
        if self.receiver is not None:
            await self.receiver.settle()

    async def _transfer(self, client: ClientAssociation, association: Association) -> RetrievalResult | None:
        # A peer that sends no pending responses is not silent while its instances arrive here.
        association.progress_elsewhere = self._last_received
        try:
            retrieval = association.send_c_move(
                self.query.identifier, self.destination, self.query.model, on_progress=self._progressed
            )
            client.cancel_on_interrupt(retrieval.cancel)
            return await retrieval.when_done()
        except OperationFailed as failed:
            if not client.interrupted:
                client.error = f"{self.connection.peer} answered: {failed.status}{self._hint(failed.status)}"
            result = failed.result
            assert isinstance(result, RetrievalResult)
            return result
        except (AssociationError, NotEstablished, NoPresentationContext, DataSetError) as error:
            client.error = str(error)
            return None

    def _hint(self, status: Status) -> str:
        """Return what may be wrong if a move has failed as a whole."""
        if int(status) == MOVE_DESTINATION_UNKNOWN:
            return f": {self.connection.peer} needs an address for {self.destination} in its configuration"
        arrived = self.receiver is not None and (self.receiver.stored or self.receiver.failures)
        failed = int(status) == CANNOT_PERFORM_SUBOPERATIONS or int(status) >> 12 == 0xC
        if not failed or arrived or self.counts.completed or self.counts.warning:
            return ""
        where = "here" if self.receiver is not None else "there"
        return (
            f": does it reach {self.destination}? Check the address that {self.connection.peer} has for that AE title, and"
            f" that a server listens {where}"
        )

    def _progressed(self, counts: SubOperations) -> None:
        self.counts = counts
        if counts.remaining is not None:
            self.total = counts.completed + counts.failed + counts.warning + counts.remaining
        self.output.note(repr(counts)[1:-1], VERBOSE)

    def _done(self) -> int:
        counts = self.counts
        told = counts.completed + counts.failed + counts.warning
        return max(told, self.receiver.stored if self.receiver is not None else 0)

    def _note(self) -> str:
        return f"{self.counts.failed} failed" if self.counts.failed else ""

    def _print_result(self, client: ClientAssociation, result: RetrievalResult | None, seconds: float) -> int:
        output, counts, receiver = self.output, self.counts, self.receiver
        refused = dict(receiver.failures) if receiver is not None else {}
        failed = result.failed_instances if result is not None else []
        done = result is not None and not counts.failed and not refused and not failed
        if receiver is not None and not (receiver.stored or counts.completed or refused) and result is not None:
            if done and not client.error and not client.interrupted:
                client.error = f"{self.connection.peer} sent nothing: nothing matches, or we accept none of it"
            done = False
        if receiver is not None and receiver.failures and not client.interrupted:
            # The peer's answer, such as 'out of resources', is what it made of the refusals.
            client.error = "; ".join(filter(None, (receiver.advice(), client.error)))
        if done and receiver is not None and receiver.stored < counts.completed and not client.error:
            client.error = (
                f"the peer reports {counts.completed} instances sent, and {receiver.stored} have arrived: "
                "it may have another address for that AE title"
            )
        exit_status = client.exit_status(done)
        if client.association is not None:
            output.result(*self._summary(refused, seconds))
            for uid in failed[:MAX_LISTED]:
                output.note(f"failed: {uid}")
            if len(failed) > MAX_LISTED:
                output.note(f"failed: {len(failed) - MAX_LISTED} more")
        client.print_errors()
        output.document(
            {
                "command": "move",
                "peer": str(self.connection.peer),
                "exit_status": exit_status,
                "status": None if result is None else f"0x{int(result.status):04X}",
                "completed": counts.completed,
                "warning": counts.warning,
                "failed": counts.failed,
                "remaining": counts.remaining,
                "failed_instances": failed,
                "stored": None if receiver is None else receiver.stored,
                "refused": refused,
                "seconds": round(seconds, 3),
                **client.document(),
            }
        )
        return exit_status

    def _summary(self, refused: dict[str, int], seconds: float) -> list[str]:
        counts = self.counts
        rows: list[tuple[str, object, str]] = [("completed", counts.completed, "")]
        rows += [("with warning", counts.warning, "")] if counts.warning else []
        rows += [("failed", counts.failed, "")] if counts.failed else []
        rows += [("not done", counts.remaining, "")] if counts.remaining else []
        if self._folder is not None and self.receiver is not None:
            rows.append(("stored", self.receiver.stored, f"in {self._folder.root}"))
        rows += [("refused", count, reason) for reason, count in refused.items()]
        return [f"{self.connection.peer} to {self.destination}", *table(rows, "  "), f"in {seconds:.1f} s"]


def require_key(identifier: Dataset, hint: str = "") -> None:
    """
    Check that an identifier selects something.

    :raises click.UsageError: no key has a value.
    """
    if not any(element.value for element in identifier if element.keyword != "QueryRetrieveLevel"):
        raise click.UsageError(
            f"nothing selects what to send: give a key with a value, as in -k StudyInstanceUID=1.2.3{hint}"
        )

"""
``dicomtwist get`` and ``dicomtwist move``: have a peer send instances to us or to another AE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click
from twisted.internet.error import CannotListenError

from dicomtwist import (
    AllStoragePresentationContexts,
    Association,
    AssociationError,
    NotEstablished,
    OperationFailed,
    PresentationContext,
    Server,
    build_context,
    build_role,
)
from dicomtwist.archive.storage.file_store import InstanceStore
from dicomtwist.errors import DataSetError, NoPresentationContext
from dicomtwist.presentation import STORAGE_TRANSFER_SYNTAXES
from dicomtwist.scu.responses import Retrieval, RetrievalResult, SubOperations
from dicomtwist.sop_class import SOPClass
from dicomtwist.tools.client import ClientAssociation
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.contexts import receiving_contexts
from dicomtwist.tools.display.console import VERBOSE, Output, table
from dicomtwist.tools.display.progress import Progress
from dicomtwist.tools.files.receiving_folder import FolderReceiver, Requested
from dicomtwist.tools.interrupts import Interrupts
from dicomtwist.tools.query.query import Query
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: How long the peer may take to release its associations after the move, in seconds.
GRACE: Final = 10.0
#: How many failed instances are listed one by one.
MAX_LISTED: Final = 20


class Transfer:
    """
    The common part of one run of either subcommand.

    :param query: selects the instances to send.
    :param store: the folder to receive into, ``None`` if the instances go to another AE.
    :param overwrite: whether an instance replaces a file that is there already.

    :ivar counts: the numbers of sub-operations that the peer has reported.
    :ivar total: the total number of sub-operations, ``None`` until the peer reports it.
    :ivar receiver: receives the instances, ``None`` if they go to another AE.
    """

    command = ""

    def __init__(
        self,
        connection: Connection,
        output: Output,
        query: Query,
        store: InstanceStore | None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.connection = connection
        self.output = output
        self.query = query
        self.counts = SubOperations()
        self.total: int | None = None
        self.receiver: FolderReceiver | None = None
        self._store = store
        self._overwrite = overwrite

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        client = ClientAssociation(self.connection, reactor, self.output, interrupts)
        client.ae.executors.acquire()
        if self._store is not None:
            requested = Requested(self.query.identifier)
            self.receiver = FolderReceiver(
                self._store, client.ae.executors.receiving, requested, overwrite=self._overwrite
            )
        progress = Progress(self.output, self._done, lambda: self.total, self._note, unit=" instances")
        since = reactor.seconds()
        result: RetrievalResult | None = None
        try:
            association = await self.associate(client)
            if association is not None:
                progress.start(reactor)
                result = await self._transfer(client, association)
                await client.release()
        finally:
            progress.stop()
            await self.close(interrupts)
            await client.ae.shutdown()
            client.ae.executors.release()
            if self._store is not None:
                self._store.close()
        return self._print_result(client, result, reactor.seconds() - since)

    async def associate(self, client: ClientAssociation) -> Association | None:
        """Return the association to send the request on, ``None`` if there is none."""
        raise NotImplementedError

    def ask(self, association: Association, on_progress: Callable[[SubOperations], None]) -> Retrieval:
        """Send the request."""
        raise NotImplementedError

    def why_nothing(self, client: ClientAssociation) -> str:
        """Return why the peer could not send anything, if the negotiation shows it."""
        return ""

    def why_unsent(self, count: int) -> str:
        """Return why the peer has probably failed to send *count* instances, ``""`` if that cannot be known."""
        return ""

    async def close(self, interrupts: Interrupts) -> None:
        """Release what :meth:`associate` has acquired besides the association."""

    async def _transfer(self, client: ClientAssociation, association: Association) -> RetrievalResult | None:
        try:
            retrieval = self.ask(association, self._progressed)
            client.cancel_on_interrupt(retrieval.cancel)
            return await retrieval.when_done()
        except OperationFailed as failed:
            if not client.interrupted:
                client.error = f"{self.connection.peer} answered: {failed.status}"
            result = failed.result
            assert isinstance(result, RetrievalResult)
            return result
        except (AssociationError, NotEstablished, NoPresentationContext, DataSetError) as error:
            client.error = str(error)
            return None

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
        if receiver is not None and not receiver.stored and not refused and result is not None:
            why = "" if done and result.status.is_success else self.why_nothing(client)
            if why and not client.interrupted:
                client.error = f"{client.error}; {why}" if client.error else why
            elif done and not client.error and not client.interrupted:
                client.error = f"{self.connection.peer} sent nothing: nothing matches, or we accept none of it"
            done = False
        if receiver is not None and receiver.advice() and not client.error:
            client.error = receiver.advice()
        unsent = counts.failed - sum(refused.values())
        if unsent > 0 and not client.error and not client.interrupted:
            client.error = self.why_unsent(unsent)
        if done and receiver is not None and receiver.stored < counts.completed and not client.error:
            client.error = (
                f"the peer reports {counts.completed} instances sent, but only {receiver.stored} have arrived"
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
                "command": self.command,
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
        if self._store is not None and self.receiver is not None:
            rows.append(("stored", self.receiver.stored, f"in {self._store.root}"))
        rows += [("refused", count, reason) for reason, count in refused.items()]
        return [f"{self.connection.peer} to {self.destination}", *table(rows, "  "), f"in {seconds:.1f} s"]

    @property
    def destination(self) -> str:
        """The AE title that the instances are sent to."""
        return self.connection.calling


class Get(Transfer):
    """
    One run of ``dicomtwist get``.

    :param classes: the SOP Classes to receive.
    """

    command = "get"

    def __init__(
        self,
        connection: Connection,
        output: Output,
        query: Query,
        store: InstanceStore,
        classes: list[SOPClass],
        *,
        overwrite: bool = False,
    ) -> None:
        super().__init__(connection, output, query, store, overwrite=overwrite)
        self._classes = classes

    async def associate(self, client: ClientAssociation) -> Association | None:
        """Request an association on which the peer may send instances to us."""
        assert self.receiver is not None
        taken = receiving_contexts(self._classes, MAX_PRESENTATION_CONTEXTS - 1)
        contexts: list[PresentationContext] = [build_context(self.query.model), *taken]
        roles = [build_role(uid, scp_role=True) for uid in self._classes]
        return await client.associate(contexts, [self.receiver.handler], roles)

    def ask(self, association: Association, on_progress: Callable[[SubOperations], None]) -> Retrieval:
        """Send the request."""
        return association.send_c_get(self.query.identifier, self.query.model, on_progress=on_progress)

    def why_nothing(self, client: ClientAssociation) -> str:
        """Return why the peer could not send anything, if the negotiation shows it."""
        if client.association is None:
            return ""
        taken = [context for context in client.association.accepted_contexts if context.scp_role]
        if not taken:
            return f"{self.connection.peer} accepts none of the SOP Classes to receive: name others with --sop-class"
        if not any(context.as_scp for context in taken):
            return (
                f"{self.connection.peer} sent nothing. It did not accept that we receive over this association (role"
                " selection, PS3.7 D.3.3.4): try dicomtwist move --receive"
            )
        return ""

    def why_unsent(self, count: int) -> str:
        """Return the usual reason why a peer does not send an instance over this association."""
        return (
            f"{self.connection.peer} did not send {count} instances, probably since no context has their SOP Class and transfer"
            " syntax: name their SOP Classes with --sop-class, so that more are proposed, or try dicomtwist move --receive"
        )


class Move(Transfer):
    """
    One run of ``dicomtwist move``.

    :param destination: the AE title to send to.
    :param listen: where to listen, if the instances are sent to us.
    """

    command = "move"

    def __init__(
        self,
        connection: Connection,
        output: Output,
        query: Query,
        destination: str,
        store: InstanceStore | None,
        listen: str,
        *,
        overwrite: bool = False,
    ) -> None:
        super().__init__(connection, output, query, store, overwrite=overwrite)
        self._destination = destination
        self._listen = listen
        self._server: Server | None = None

    @property
    def destination(self) -> str:
        """The AE title that the instances are sent to."""
        return self._destination

    async def associate(self, client: ClientAssociation) -> Association | None:
        """Listen if the instances are sent to us, and request an association."""
        if self.receiver is not None:
            try:
                await self._serve(client)
            except CannotListenError as error:
                client.error = f"--listen {self._listen}: {error.socketError}"
                return None
        return await client.associate([build_context(self.query.model)])

    async def _serve(self, client: ClientAssociation) -> None:
        assert self.receiver is not None
        client.ae.require_called_aet = True
        # As twist dicom: what the peer has is received as it is, and in Explicit VR if the peer has to choose.
        client.ae.keep_compression = True
        contexts = [
            build_context(context.abstract_syntax or "", STORAGE_TRANSFER_SYNTAXES)
            for context in AllStoragePresentationContexts
        ]
        self._server = await client.ae.start_server(
            self._listen, ae_title=self._destination, contexts=contexts, evt_handlers=[self.receiver.handler]
        )
        self.output.note(f"listening at {self._listen} as {self._destination}", VERBOSE)

    def _last_received(self) -> float:
        """Return when the last byte of an instance arrived, in seconds of the clock."""
        associations = () if self._server is None else self._server.factory.associations
        return max((one.protocol.last_received for one in associations), default=0.0)

    async def close(self, interrupts: Interrupts) -> None:
        """Stop listening, after the instances under way have arrived."""
        if self._server is not None:
            await self._server.shutdown(0 if interrupts.count > 1 else GRACE)

    def ask(self, association: Association, on_progress: Callable[[SubOperations], None]) -> Retrieval:
        """Send the request."""
        # A peer that sends no pending responses is not silent while its instances arrive here.
        association.progress_elsewhere = self._last_received
        return association.send_c_move(
            self.query.identifier, self._destination, self.query.model, on_progress=on_progress
        )


def require_key(query: Query) -> Query:
    """
    Return *query* after a check that it selects something.

    :raises click.UsageError: no key has a value.
    """
    if not any(element.value for element in query.identifier if element.keyword != "QueryRetrieveLevel"):
        raise click.UsageError("nothing selects what to send: give a key with a value, as in -k StudyInstanceUID=1.2.3")
    return query

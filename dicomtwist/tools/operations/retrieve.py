"""
``dicomtwist get`` and ``dicomtwist move``: have a peer send what it has, to us or to others.
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
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from dicomtwist.scu.responses import Retrieval, RetrievalResult, SubOperations
from dicomtwist.sop_class import SOPClass
from dicomtwist.tools.client import Asking
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.contexts import contexts_to_take
from dicomtwist.tools.display.console import VERBOSE, Output, table
from dicomtwist.tools.display.progress import Progress
from dicomtwist.tools.files.receiving_folder import Receiving
from dicomtwist.tools.interrupts import Interrupts
from dicomtwist.tools.query.query import Query
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: How long the peer has to release its associations once the move is over, in seconds.
GRACE: Final = 10.0
#: How many of the instances that failed are told of one by one.
MAX_TOLD: Final = 20


class Transfer:
    """
    One run of either subcommand, as far as both are the same.

    :param query: what to send.
    :param store: where to keep what comes, ``None`` where it does not come to us.

    :ivar counts: what the peer tells of its sub-operations.
    :ivar total: how many there are, as far as it told.
    :ivar receiving: takes what comes.
    """

    command = ""

    def __init__(self, connection: Connection, output: Output, query: Query, store: InstanceStore | None) -> None:
        self.connection = connection
        self.output = output
        self.query = query
        self.counts = SubOperations()
        self.total: int | None = None
        self.receiving: Receiving | None = None
        self._store = store

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it; return the exit status."""
        asking = Asking(self.connection, reactor, self.output, interrupts)
        asking.ae.executors.acquire()
        if self._store is not None:
            self.receiving = Receiving(self._store, asking.ae.executors.receiving)
        progress = Progress(self.output, self._done, lambda: self.total, self._note, unit=" instances")
        since = reactor.seconds()
        result: RetrievalResult | None = None
        try:
            association = await self.associate(asking)
            if association is not None:
                progress.start(reactor)
                result = await self._transfer(asking, association)
                await asking.release()
        finally:
            progress.stop()
            await self.close(interrupts)
            await asking.ae.shutdown()
            asking.ae.executors.release()
            if self._store is not None:
                self._store.close()
        return self._tell(asking, result, reactor.seconds() - since)

    async def associate(self, asking: Asking) -> Association | None:
        """Return the association to ask on, ``None`` where there is none."""
        raise NotImplementedError

    def ask(self, association: Association, on_progress: Callable[[SubOperations], None]) -> Retrieval:
        """Send the request."""
        raise NotImplementedError

    async def close(self, interrupts: Interrupts) -> None:
        """Let go of what :meth:`associate` has taken besides the association."""

    async def _transfer(self, asking: Asking, association: Association) -> RetrievalResult | None:
        try:
            retrieval = self.ask(association, self._progressed)
            asking.stops_with(retrieval.cancel)
            return await retrieval.when_done()
        except OperationFailed as failed:
            if not asking.interrupted:
                asking.error = f"{self.connection.peer} answered: {failed.status}"
            result = failed.result
            assert isinstance(result, RetrievalResult)
            return result
        except (AssociationError, NotEstablished, NoPresentationContext, DataSetError) as error:
            asking.error = str(error)
            return None

    def _progressed(self, counts: SubOperations) -> None:
        self.counts = counts
        if counts.remaining is not None:
            self.total = counts.completed + counts.failed + counts.warning + counts.remaining
        self.output.note(repr(counts)[1:-1], VERBOSE)

    def _done(self) -> int:
        counts = self.counts
        told = counts.completed + counts.failed + counts.warning
        return max(told, self.receiving.stored if self.receiving is not None else 0)

    def _note(self) -> str:
        return f"{self.counts.failed} failed" if self.counts.failed else ""

    def _tell(self, asking: Asking, result: RetrievalResult | None, seconds: float) -> int:
        output, counts, receiving = self.output, self.counts, self.receiving
        refused = dict(receiving.failures) if receiving is not None else {}
        failed = result.failed_instances if result is not None else []
        done = result is not None and not counts.failed and not refused and not failed
        if done and receiving is not None and not receiving.stored and not asking.error:
            done = False
            if not asking.interrupted:
                asking.error = f"{self.connection.peer} sent nothing: nothing matches, or nothing that we take"
        if done and receiving is not None and receiving.stored < counts.completed and not asking.error:
            asking.error = f"{counts.completed} were sent as the peer says, and {receiving.stored} have come"
        exit_status = asking.exit_status(done)
        if asking.association is not None:
            output.result(*self._summary(refused, seconds))
            for uid in failed[:MAX_TOLD]:
                output.note(f"failed: {uid}")
            if len(failed) > MAX_TOLD:
                output.note(f"failed: {len(failed) - MAX_TOLD} more")
        asking.tell()
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
                "stored": None if receiving is None else receiving.stored,
                "refused": refused,
                "seconds": round(seconds, 3),
                **asking.document(),
            }
        )
        return exit_status

    def _summary(self, refused: dict[str, int], seconds: float) -> list[str]:
        counts = self.counts
        rows: list[tuple[str, object, str]] = [("completed", counts.completed, "")]
        rows += [("with warning", counts.warning, "")] if counts.warning else []
        rows += [("failed", counts.failed, "")] if counts.failed else []
        rows += [("not done", counts.remaining, "")] if counts.remaining else []
        if self._store is not None and self.receiving is not None:
            rows.append(("stored", self.receiving.stored, f"in {self._store.root}"))
        rows += [("refused", count, reason) for reason, count in refused.items()]
        return [f"{self.connection.peer} to {self.destination}", *table(rows, "  "), f"in {seconds:.1f} s"]

    @property
    def destination(self) -> str:
        """The AE title of where it goes."""
        return self.connection.calling


class Get(Transfer):
    """
    ``dicomtwist get``.

    :param classes: the SOP Classes to take.
    """

    command = "get"

    def __init__(
        self, connection: Connection, output: Output, query: Query, store: InstanceStore, classes: list[SOPClass]
    ) -> None:
        super().__init__(connection, output, query, store)
        self._classes = classes

    async def associate(self, asking: Asking) -> Association | None:
        """Ask for an association on which the peer may send to us."""
        assert self.receiving is not None
        taken = contexts_to_take(self._classes, MAX_PRESENTATION_CONTEXTS - 1)
        contexts: list[PresentationContext] = [build_context(self.query.model), *taken]
        roles = [build_role(uid, scp_role=True) for uid in self._classes]
        return await asking.associate(contexts, [self.receiving.handler], roles)

    def ask(self, association: Association, on_progress: Callable[[SubOperations], None]) -> Retrieval:
        """Send the request."""
        return association.send_c_get(self.query.identifier, self.query.model, on_progress=on_progress)


class Move(Transfer):
    """
    ``dicomtwist move``.

    :param destination: the AE title to send to.
    :param listen: where to receive it, where it comes to us.
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
    ) -> None:
        super().__init__(connection, output, query, store)
        self._destination = destination
        self._listen = listen
        self._server: Server | None = None

    @property
    def destination(self) -> str:
        """The AE title of where it goes."""
        return self._destination

    async def associate(self, asking: Asking) -> Association | None:
        """Listen, where it comes to us, and ask for an association."""
        if self.receiving is not None:
            try:
                await self._serve(asking)
            except CannotListenError as error:
                asking.error = f"--listen {self._listen}: {error.socketError}"
                return None
        return await asking.associate([build_context(self.query.model)])

    async def _serve(self, asking: Asking) -> None:
        assert self.receiving is not None
        asking.ae.require_called_aet = True
        contexts = [
            build_context(context.abstract_syntax or "", ALL_TRANSFER_SYNTAXES)
            for context in AllStoragePresentationContexts
        ]
        self._server = await asking.ae.start_server(
            self._listen, ae_title=self._destination, contexts=contexts, evt_handlers=[self.receiving.handler]
        )
        self.output.note(f"listening at {self._listen} as {self._destination}", VERBOSE)

    async def close(self, interrupts: Interrupts) -> None:
        """Stop to listen, when what is on its way has come."""
        if self._server is not None:
            await self._server.shutdown(0 if interrupts.count > 1 else GRACE)

    def ask(self, association: Association, on_progress: Callable[[SubOperations], None]) -> Retrieval:
        """Send the request."""
        return association.send_c_move(
            self.query.identifier, self._destination, self.query.model, on_progress=on_progress
        )


def require_key(query: Query) -> Query:
    if not any(element.value for element in query.identifier if element.keyword != "QueryRetrieveLevel"):
        raise click.UsageError("it is not said what to send: give -k, as in -k StudyInstanceUID=1.2.3")
    return query

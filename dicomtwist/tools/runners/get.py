"""
``dicomtwist get``: retrieve what keys or the rows of a table select into a folder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import islice
from typing import Any, Final

from pydicom import Dataset
from twisted.internet.defer import Deferred

from dicomtwist import Association, PresentationContext
from dicomtwist.evt import HandlerTuple
from dicomtwist.retrieval.folder import ReceivingFolder
from dicomtwist.retrieval.journal import RetrievalJournal
from dicomtwist.retrieval.receiver import advice
from dicomtwist.retrieval.results import Outcome, Request, RequestResult
from dicomtwist.retrieval.retriever import Retriever
from dicomtwist.retrieval.web_retriever import WebRetriever
from dicomtwist.runtime.executors import Executor
from dicomtwist.scu.responses import SubOperations
from dicomtwist.sop_class import SOPClass
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import VERBOSE, Output, plural, table
from dicomtwist.tools.display.progress import Progress
from dicomtwist.tools.display.result_table import JSONWriter
from dicomtwist.tools.explain import cause_of
from dicomtwist.tools.interrupts import CANCELLED, FAILURE, NO_ASSOCIATION, SUCCESS, Interrupts
from dicomtwist.tools.query.key_table import InvalidTable, KeyTable, Row
from dicomtwist.tools.web_connection import WebConnection

#: How many rows and instances that were not found or failed are listed one by one; with -v all are.
MAX_LISTED: Final = 20
#: The rows that are read from a table at a time.
MAX_READ: Final = 100
#: The outcome of a row that the retrieval did not come to.
NOT_BEGUN: Final = "not begun"


class Get:
    """
    One run of ``dicomtwist get``.

    :param identifier: the keys that select the instances; ``None`` if a table does.
    :param rows: the table, whose rows select them.
    :param folder: the folder to receive into, prepared.
    :param classes: the SOP Classes to receive, empty for all.
    :param root: the information model, ``None`` for that which the peer has.
    :param level: the Query/Retrieve Level for the rows of a table, ``""`` for that of their keys.
    :param journal: the journal of the rows that are done, ``None`` without ``--resume``.
    """

    #: The effect of Ctrl-C.
    stopping = CANCELLED

    def __init__(
        self,
        connection: Connection | WebConnection,
        output: Output,
        folder: ReceivingFolder,
        classes: list[SOPClass],
        *,
        identifier: Dataset | None = None,
        rows: KeyTable | None = None,
        root: str | None = None,
        level: str = "",
        journal: RetrievalJournal | None = None,
    ) -> None:
        self.connection = connection
        self.output = output
        self._folder = folder
        self._classes = classes
        self._identifier = identifier
        self._rows = rows
        self._root = root
        self._level = level
        self._journal = journal
        self._retriever: Retriever | WebRetriever
        self._executor: Executor
        self._count: int | None = None
        self._taken = 0
        self._taking = True
        self._order: deque[int] = deque()
        self._ready: dict[int, tuple[dict[str, Any], str]] = {}
        self._last_line = 0
        self._more_duplicates = 0
        self._not_begun = 0
        self._listed: list[str] = []
        self._unlisted = 0
        self._error = ""
        self._last: RequestResult | None = None
        self._counts = SubOperations()
        self._document: JSONWriter | None = None
        self._on_first: Callable[[], None] | None = None

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        connection = self.connection
        assert isinstance(connection, Connection)
        ae = connection.make_ae(reactor)
        self.output.log_associations(ae)
        self._executor = ae.executors.retrieval
        self._retriever = Retriever(
            ae,
            self._associate(connection, ae),
            self._folder,
            sop_classes=self._classes,
            root=self._root,
            associations=connection.associations,
            on_result=self._on_result,
            on_suboperations=self._on_suboperations,
            open_journal=self._open_journal if self._journal is not None else None,
        )
        try:
            return await self._run(reactor, interrupts)
        finally:
            await ae.shutdown()

    async def _run(self, reactor: Any, interrupts: Interrupts) -> int:
        if self.output.as_json:
            head = {"command": "get", "peer": str(self.connection.peer)}
            self._document = JSONWriter(self.output, head, "requests")
        retriever = self._retriever
        interrupts.handle(retriever.stop, retriever.abort, self.stopping)
        progress = self._progress()
        since = reactor.seconds()
        self._executor.acquire()
        try:
            if self._rows is not None:
                self._count = await self._executor.run(self._rows.count)
            if self._count == 0:
                raise InvalidTable("the table has no rows")
            self._on_first = partial(progress.start, reactor)
            await retriever.run(self._requests())
            await self._list_not_begun()
        except InvalidTable as error:
            self._error = str(error)
        finally:
            progress.stop()
            if self._journal is not None:
                await self._journal.close()  # if the retriever has not got as far as that
            self._executor.release()
            self._folder.close()
            if self._rows is not None:
                self._rows.close()
        return self._print_result(interrupts.count > 0, reactor.seconds() - since)

    def _associate(self, connection: Connection, ae: Any) -> Any:
        def associate(
            contexts: list[PresentationContext], handlers: list[HandlerTuple], items: list[object]
        ) -> Deferred[Association]:
            return connection.associate(ae, contexts, handlers, items).addCallback(self._associated)

        return associate

    def _associated(self, association: Association) -> Association:
        self._show_progress()
        return association

    def _show_progress(self) -> None:
        """Show the progress from the first association on."""
        on_first, self._on_first = self._on_first, None
        if on_first is not None:
            on_first()

    def _progress(self) -> Progress:
        if self._rows is None:
            return Progress(
                self.output,
                lambda: self._retriever.progress.instances,
                lambda: self._retriever.progress.expected or None,
                self._note,
                unit=" instances",
            )
        return Progress(self.output, lambda: self._taken_and_done, lambda: self._count, self._note, unit=" rows")

    @property
    def _taken_and_done(self) -> int:
        return self._retriever.progress.done + self._duplicates

    @property
    def _duplicates(self) -> int:
        return 0 if self._rows is None else max(self._rows.duplicates, self._more_duplicates)

    def _note(self) -> str:
        progress = self._retriever.progress
        words = [] if self._rows is None else [plural(progress.instances, "instance")]
        if progress.failed or self._counts.failed:
            words.append(f"{max(progress.failed, self._counts.failed)} failed")
        return ", ".join(words)

    # --- requests and results

    async def _requests(self) -> AsyncIterator[Request]:
        if self._rows is None:
            identifier = self._identifier
            assert identifier is not None
            self._taken += 1
            yield Request(identifier, str(identifier.get("QueryRetrieveLevel") or ""))
            self._taking = False
            return
        rows = self._rows.rows()
        while batch := await self._executor.run(lambda: list(islice(rows, MAX_READ))):
            for row in batch:
                self._taken += 1
                self._order.append(row.line)
                self._last_line = row.line
                yield self._request(row)
        self._taking = False

    def _request(self, row: Row) -> Request:
        return Request(Dataset() if row.keys is None else row.keys, self._level, row, row.error)

    def _open_journal(self) -> RetrievalJournal:
        assert self._journal is not None
        return self._journal

    async def _list_not_begun(self) -> None:
        """Report the rows that were not begun, since the retrieval ended early. The table is read again for them."""
        rows = self._rows.again() if self._rows is not None and self._taking else None
        if rows is None:
            return
        try:
            left = rows.rows()
            while batch := await self._executor.run(lambda: list(islice(left, MAX_READ))):
                for row in batch:
                    if row.line > self._last_line:
                        self._not_taken(row)
            self._more_duplicates = rows.duplicates
        finally:
            rows.close()

    def _not_taken(self, row: Row) -> None:
        if row.error:
            members: dict[str, Any] = {"outcome": Outcome.FAILED, "error": row.error}
            self._retriever.totals.requests[Outcome.FAILED] += 1
        elif self._journal is not None and self._journal.contains(self._request(row)):
            members = {"outcome": Outcome.DONE_BEFORE}
            self._retriever.totals.requests[Outcome.DONE_BEFORE] += 1
        else:
            members = {"outcome": NOT_BEGUN}
            self._not_begun += 1
        self._order.append(row.line)
        self._item(row, members, f"failed: line {row.line}: {row.error}" if row.error else "")

    def _item(self, row: Row, members: dict[str, Any], text: str) -> None:
        """Report a row, after those before it in the table."""
        self._ready[row.line] = {"line": row.line, "keys": row.values, **members}, text
        while self._order and self._order[0] in self._ready:
            document, words = self._ready.pop(self._order.popleft())
            if self._document is not None:
                self._document.item(document)
            if words:
                self._list(words)

    def _list(self, text: str) -> None:
        if self.output.verbosity >= VERBOSE:
            self.output.note(text)
        elif len(self._listed) < MAX_LISTED:
            self._listed.append(text)
        else:
            self._unlisted += 1

    def _on_suboperations(self, counts: SubOperations) -> None:
        self._counts = counts
        self.output.note(repr(counts)[1:-1], VERBOSE)

    def _on_result(self, result: RequestResult) -> None:
        self._last = result
        row = result.request.label
        if not isinstance(row, Row):
            self._error = self._error or self._words(result)
            if self._document is not None:
                self._document.item(self._members(result))
            return
        if row.error:
            self._item(row, {"outcome": result.outcome, "error": row.error}, f"failed: line {row.line}: {row.error}")
        elif result.outcome is Outcome.DONE_BEFORE:
            self._item(row, {"outcome": result.outcome}, "")
        else:
            text = ""
            if result.outcome is not Outcome.RETRIEVED:
                words = self._words(result)
                text = f"{result.outcome}: {row}" + (f": {words}" if words and result.outcome is Outcome.FAILED else "")
            self._item(row, self._members(result), text)

    def _words(self, result: RequestResult) -> str:
        """Return why something failed and what to do, in words."""
        peer, hints = (
            self.connection.peer,
            {
                "no class": "{peer} accepts none of the SOP Classes to receive: name others with --sop-class",
                "no role": "{peer} sent nothing. It did not accept that we receive over this association (role selection, PS3.7"
                " D.3.3.4): try dicomtwist move --receive",
                "unsent": "{peer} did not send {count}, probably since no context has their SOP Class and transfer"
                " syntax: name their SOP Classes with --sop-class, so that more are proposed, or try dicomtwist move --receive",
            },
        )
        unsent = max(1, result.failed - result.refused.total())
        hint = hints.get(result.reason, "").format(peer=peer, count=plural(unsent, "instance"))
        if why := advice(result.refused):
            return f"{why}; {hint}" if result.reason == "unsent" else why
        error = result.error.replace("the peer", str(peer), 1)
        if result.reason == "not found":
            return error or f"{peer} sent nothing: it has nothing that matches"
        if result.reason == "unsent" and not result.error.startswith("the peer answered"):
            return hint
        return f"{error}; {hint}" if hint and "answered" in error else hint or error

    @staticmethod
    def _members(result: RequestResult) -> dict[str, Any]:
        return {
            "outcome": result.outcome,
            "entities": result.entities,
            "stored": result.stored + result.existing,
            "existing": result.existing,
            "collisions": result.collisions,
            "refused": dict(result.refused),
            "completed": result.completed,
            "warning": result.warning,
            "failed": result.failed,
            "failed_instances": result.failed_instances,
            "error": result.error or None,
        }

    # --- the end

    def _print_result(self, interrupted: bool, seconds: float) -> int:
        output, retriever, totals = self.output, self._retriever, self._retriever.totals
        cause = None
        if retriever.error is not None and not interrupted:
            cause = cause_of(retriever.error, self.connection)
        journal_error = self._journal.error if self._journal is not None else None
        done = totals.is_complete and not (interrupted or self._error or journal_error or cause) and bool(self._taken)
        exit_status = SUCCESS if done else NO_ASSOCIATION if cause and not retriever.established else FAILURE
        if retriever.established:
            output.result(*self._summary(seconds))
        if self._last is not None and self._rows is None:
            self._listed += [f"failed: {uid}" for uid in self._last.failed_instances[:MAX_LISTED]]
            self._unlisted += max(0, self._last.failed - MAX_LISTED) if self._last.failed_instances else 0
        for line in self._listed:
            output.note(line)
        if self._unlisted:
            output.note(f"{self._unlisted} more: --json and -v list them all")
        if cause is not None:
            output.error(str(cause))
        if self._error and not interrupted:
            output.error(self._error)
        if journal_error is not None:
            output.error(f"the journal could not be written: {journal_error.strerror}")
        if interrupted:
            output.error("interrupted" + (": run the same command again to continue" if self._rows is not None else ""))
        if self._document is not None:
            self._document.end(self._tail(exit_status, interrupted, cause, seconds))
        return exit_status

    def _tail(self, exit_status: int, interrupted: bool, cause: Any, seconds: float) -> dict[str, Any]:
        totals, last = self._retriever.totals, self._last
        return {
            "exit_status": exit_status,
            "found": totals.requests[Outcome.RETRIEVED],
            "not_found": totals.requests[Outcome.NOT_FOUND],
            "failed_requests": totals.requests[Outcome.FAILED],
            "done_before": totals.requests[Outcome.DONE_BEFORE],
            "duplicates": self._duplicates,
            "not_done": self._not_done,
            "not_begun": self._not_begun,
            "status": None if last is None or last.status is None else f"0x{int(last.status):04X}",
            "completed": totals.completed,
            "warning": totals.warning,
            "failed": totals.failed,
            "remaining": None if last is None else last.remaining,
            "failed_instances": [] if last is None or self._rows is not None else last.failed_instances,
            "stored": totals.stored + totals.existing,
            "existing": totals.existing,
            "collisions": totals.collisions,
            "refused": dict(totals.refused),
            "seconds": round(seconds, 3),
            "interrupted": interrupted,
            "error": None if interrupted else self._error or None,
            "cause": cause and cause.document(),
        }

    @property
    def _not_done(self) -> int:
        """The number of requests without a result, as far as it is known."""
        totals = self._retriever.totals.requests
        finished = totals.total() - totals[Outcome.INTERRUPTED]
        if self._count is None or self._rows is None:
            return self._taken - finished
        return max(0, self._count - self._duplicates - finished)

    def _summary(self, seconds: float) -> list[str]:
        totals = self._retriever.totals
        rows: list[tuple[str, object, str]] = []
        if self._rows is None:
            rows.append(("completed", totals.completed, ""))
            rows += [("with warning", totals.warning, "")] if totals.warning else []
            rows += [("failed", totals.failed, "")] if totals.failed else []
            remaining = self._last.remaining if self._last is not None else None
            rows += [("not done", remaining, "")] if remaining else []
        else:
            rows.append(("found", totals.requests[Outcome.RETRIEVED], ""))
            before = totals.requests[Outcome.DONE_BEFORE]
            rows += [("done before", before, "according to the journal")] if before else []
            rows.append(("not found", totals.requests[Outcome.NOT_FOUND], ""))
            rows.append(("failed", totals.requests[Outcome.FAILED], ""))
            interrupted = totals.requests[Outcome.INTERRUPTED]
            rows += [("interrupted", interrupted, "")] if interrupted else []
            left = self._not_done - interrupted
            rows += [("not begun", left, "")] if left > 0 else []
            rows += (
                [("duplicates", self._duplicates, "rows with keys that were there before")] if self._duplicates else []
            )
        rows.append(("stored", totals.stored + totals.existing, f"in {self._folder.root}"))
        rows += [("of these", totals.existing, "there already")] if totals.existing else []
        rows += [("renamed", totals.collisions, "their name was that of another instance")] if totals.collisions else []
        rows += [("refused", count, reason) for reason, count in totals.refused.items()]
        return [f"{self.connection.peer} to {self.connection.calling}", *table(rows, "  "), f"in {seconds:.1f} s"]

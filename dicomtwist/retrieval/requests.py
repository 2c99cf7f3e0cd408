"""The base of retrieval by C-GET and by DICOMweb: requests in turn, the stop, the results."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, FirstError, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.eventloop.coroutines import DeferredItems, deferred_items
from dicomtwist.retrieval.folder import Receipt, ReceivingFolder
from dicomtwist.retrieval.journal import RetrievalJournal
from dicomtwist.retrieval.results import Outcome, Progress, Request, RequestResult, Totals, refusals
from dicomtwist.retrieval.selection import Target
from dicomtwist.runtime.executors import Executor

__all__ = ["RequestRetriever", "RequestWork", "RetrievalStopped", "asynchronous"]

#: After how many requests that need nothing of the peer the reactor gets a turn.
SKIPPED_IN_A_TURN: Final = 256


class RetrievalStopped(Exception):
    """The retrieval was stopped, or the peer cannot be used any more."""


@dataclass(slots=True, eq=False)
class RequestWork:
    """A request under way: its targets, the number of those that are done, and a receipt for each that has begun."""

    result: RequestResult
    targets: list[Target] | None = None
    done: int = 0
    receipts: list[Receipt] = field(default_factory=list)


@deferred_items
async def asynchronous(requests: Iterable[Request]) -> AsyncGenerator[Request, None]:
    """Yield *requests*, one at a time."""
    for request in requests:
        yield request


class Threads(Protocol):
    """The worker threads of a retrieval, which are held while it runs."""

    def acquire(self) -> None:
        """Hold them."""

    def release(self) -> None:
        """Let them go."""


class RequestRetriever:
    """
    Retrieves what requests select into a folder, several at a time.

    :param reactor: the reactor, for pauses.
    :param folder: the folder, prepared.
    :param threads: are held while it runs.
    :param executor: runs what blocks.
    :param count: the number of concurrent workers.
    :param retries: how often a request goes on after its connection broke.
    :param on_result: called with each :class:`RequestResult`.
    :param on_progress: called with the :class:`Progress` when something has arrived.
    :param open_journal: opens the journal of the requests that are complete, in a worker thread; ``None`` for none.

    :ivar totals: the sum of the results so far.
    :ivar progress: how far it is.
    :ivar error: why the peer cannot be used; ``None`` otherwise.
    :ivar established: the number of associations that were established, or of requests that were answered.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        folder: ReceivingFolder,
        threads: Threads,
        executor: Executor,
        *,
        count: int,
        retries: int,
        on_result: Callable[[RequestResult], object] | None,
        on_progress: Callable[[Progress], object] | None,
        open_journal: Callable[[], RetrievalJournal] | None,
    ) -> None:
        self._reactor = reactor
        self._folder = folder
        self._threads = threads
        self._executor = executor
        self._count = count
        self._retries = retries
        self._on_result = on_result
        self._on_progress = on_progress
        self._open_journal = open_journal
        self._journal: RetrievalJournal | None = None
        self._skipped = 0
        self._pending: set[Deferred[Any]] = set()
        self._taking = DeferredLock()
        self._stopping = False
        self.totals = Totals()
        self.progress = Progress()
        self.error: BaseException | None = None
        self.established = 0

    # --- the run

    async def run(self, requests: Iterable[Request] | AsyncIterable[Request]) -> Totals:
        """
        Retrieve everything, and return the sum of the results.

        It ends early after :meth:`stop`, and if the peer cannot be used.

        :param requests: is taken one at a time, so that it may be long.
        """
        self._threads.acquire()
        source: DeferredItems[Request]
        source = DeferredItems(aiter(requests if isinstance(requests, AsyncIterable) else asynchronous(requests)))
        try:
            if self._open_journal is not None:
                self._journal = await self._executor.run(self._open_journal)
            workers = [Deferred.fromCoroutine(worker) for worker in self._workers(source)]
            for worker in workers:
                # After a defect of this program the others do not go on behind the caller's back.
                worker.addErrback(self._defect)
            await gatherResults(workers, consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
        finally:
            await source.aclose()
            await self._folder.settle(self._executor)
            if self._journal is not None:
                await self._journal.close()
            self._threads.release()
        return self.totals

    @property
    def journal_error(self) -> OSError | None:
        """Why the journal could not be written, ``None`` if it could."""
        return None if self._journal is None else self._journal.error

    def _workers(self, source: DeferredItems[Request]) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines that take requests from *source*, see :meth:`_next`, and retrieve them."""
        raise NotImplementedError

    def _defect(self, reason: Failure) -> Failure:
        self.abort()
        return reason

    def stop(self) -> None:
        """Stop: nothing further begins, and nothing is waited for."""
        self._stopping = True
        for pending in list(self._pending):
            pending.cancel()

    def abort(self) -> None:
        """Stop at once, as :meth:`stop` does if the protocol has nothing faster."""
        self.stop()

    async def _next(self, source: DeferredItems[Request]) -> Request | None:
        """Return the next request; ``None`` after the last one and after a stop."""
        await self._taking.acquire()
        try:
            while not self._stopping:
                request: Request = await self._wait_for(anext(source))
                if not self._is_settled(request):
                    return request
                self._skipped += 1
                if self._skipped % SKIPPED_IN_A_TURN == 0:
                    await self._wait_for(deferLater(self._reactor, 0))
        except StopAsyncIteration:
            pass
        except CancelledError:
            if not self._stopping:
                raise
        finally:
            self._taking.release()
        return None

    def _is_settled(self, request: Request) -> bool:
        """Whether a request needs nothing of the peer: it is invalid, or complete according to the journal."""
        if request.error:
            self._report_result(RequestResult(request, Outcome.FAILED, request.error))
        elif self._journal is not None and self._journal.contains(request):
            self._report_result(RequestResult(request, Outcome.DONE_BEFORE))
        else:
            return False
        return True

    async def _wait_for(self, awaitable: Any) -> Any:
        """Wait for a Deferred or coroutine, which :meth:`stop` cancels."""
        pending = awaitable if isinstance(awaitable, Deferred) else Deferred.fromCoroutine(awaitable)
        self._pending.add(pending)
        try:
            return await pending
        finally:
            self._pending.discard(pending)

    async def _pause(self, seconds: float) -> None:
        """
        Wait *seconds*.

        :raises RetrievalStopped: the retrieval was stopped.
        """
        try:
            await self._wait_for(deferLater(self._reactor, seconds))
        except CancelledError:
            raise RetrievalStopped from None

    async def _has(self, study: str) -> bool:
        return await self._executor.run_admitted(self._folder.has_study, study)

    # --- the results

    def _finish(self, work: RequestWork) -> None:
        """Sum up a request whose files have their names."""
        result = work.result
        for receipt in work.receipts:
            result.stored += receipt.stored
            result.existing += receipt.existing
            result.collisions += receipt.collisions
            result.refused.update(receipt.refused)
        if result.refused:
            # The peer's answer, such as 'out of resources', is what it made of them.
            result.error = "; ".join(filter(None, (refusals(result.refused), result.error)))
        result.outcome = Outcome.INTERRUPTED if result.reason == "interrupted" else self._outcome(result)
        if result.outcome is Outcome.RETRIEVED and self._journal is not None:
            self._journal.add(result.request, self._executor)
        self._report_result(result)

    def _report_result(self, result: RequestResult) -> None:
        self.totals.add(result)
        self.progress.done += 1
        self.progress.failed += result.failed
        if self._on_result is not None:
            self._on_result(result)
        self._report()

    def _outcome(self, result: RequestResult) -> Outcome:
        """Return the outcome of a request that was not interrupted."""
        raise NotImplementedError

    def _arrived(self, count: int = 1) -> None:
        self.progress.instances += count
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.progress)

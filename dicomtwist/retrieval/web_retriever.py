"""
Retrieval of many studies into a folder from a server of DICOMweb, over one or several connections.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from dicomtwist.archive.services.storage import status_for
from dicomtwist.archive.storage.types import is_uid
from dicomtwist.dicomweb import (
    AccessDenied,
    DICOMwebClient,
    DICOMwebError,
    InvalidResponse,
    NoConnection,
    Part,
    RequestTimeout,
    ResourceNotFound,
)
from dicomtwist.dicomweb.parameters import ParameterError
from dicomtwist.dimse.status import CANNOT_UNDERSTAND, Status
from dicomtwist.eventloop.coroutines import DeferredItems, deferred_items
from dicomtwist.retrieval.folder import Receipt, ReceivingFolder
from dicomtwist.retrieval.journal import RetrievalJournal
from dicomtwist.retrieval.receiver import FolderReceiver, Requested
from dicomtwist.retrieval.requests import RequestRetriever, RequestWork, RetrievalStopped
from dicomtwist.retrieval.results import MAX_LISTED, Outcome, Progress, Request, RequestResult
from dicomtwist.retrieval.selection import Found, Target, direct_targets, texts
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.runtime.executors import RECEIVING, Executor
from dicomtwist.web.stow.part import IncomingPart, NotAnInstance

__all__ = ["WebRetriever"]

#: The waits before a request goes on after its connection broke.
RETRY_DELAYS: Final = Backoff(first=1.0, longest=16.0)
#: The most concurrent connections.
MAX_CONNECTIONS: Final = 64
#: The most instances of one response that wait to be written.
MAX_UNWRITTEN: Final = 64
#: The most instances of a study that are compared with the files that are there.
MAX_MATCHES: Final = 100_000

_SUCCESS: Final = Status(0, "C-STORE")
_LEVELS: Final = ("STUDY", "SERIES", "IMAGE")
_UNIQUE: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


class WebRetriever(RequestRetriever):
    """
    Retrieves what requests select into a folder, as :class:`~dicomtwist.retrieval.Retriever` does with C-GET.

    A study that is in the folder already is compared with the server's list of its instances, and only what is missing is
    retrieved. After a lost connection the rest is retrieved over another one. Instances are left in the transfer syntax in
    which the server has them.

    :param client: the client of the server; the caller closes it.
    :param folder: the folder, prepared.
    :param sop_classes: the SOP Classes to retrieve; by default all.
    :param connections: the number of concurrent requests.
    :param retries: how often a request goes on after its connection broke.
    :param on_result: called with each :class:`RequestResult`.
    :param on_progress: called with the :class:`Progress` when something has arrived.
    :param open_journal: opens the journal of the requests that are complete, in a worker thread; ``None`` for none.
    :param on_first: called when the server has answered for the first time.

    :ivar totals: the sum of the results so far.
    :ivar progress: how far it is.
    :ivar error: why the server cannot be used; ``None`` otherwise.
    :ivar established: the number of requests that the server has answered.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        folder: ReceivingFolder,
        *,
        sop_classes: Sequence[str] = (),
        connections: int = 1,
        retries: int = 2,
        on_result: Callable[[RequestResult], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        on_first: Callable[[], object] | None = None,
        open_journal: Callable[[], RetrievalJournal] | None = None,
    ) -> None:
        if not 1 <= connections <= MAX_CONNECTIONS:
            raise ValueError(f"connections is a number from 1 to {MAX_CONNECTIONS}, not {connections!r}")
        executor = Executor(client.reactor, "receiving", RECEIVING)
        super().__init__(
            client.reactor,
            folder,
            executor,
            executor,
            count=connections,
            retries=retries,
            on_result=on_result,
            on_progress=on_progress,
            open_journal=open_journal,
        )
        self._client = client
        self._allowed = frozenset(map(str, sop_classes))
        self._on_first = on_first

    # --- the run

    def _workers(self, source: DeferredItems[Request]) -> list[Coroutine[Any, Any, None]]:
        return [self._work(source) for _ in range(self._count)]

    async def _work(self, source: DeferredItems[Request]) -> None:
        receiver = FolderReceiver(self._folder, self._executor, on_stored=self._arrived)
        while not self._stopping:
            request = await self._next(source)
            if request is None:
                break
            work = RequestWork(RequestResult(request))
            try:
                await self._perform(receiver, work)
            except RetrievalStopped:
                if self.error is not None and self.established:
                    work.result.error = str(self.error)
                else:
                    work.result.reason = "interrupted"
            await receiver.settle()
            self._finish(work)

    async def _perform(self, receiver: FolderReceiver, work: RequestWork) -> None:
        """Retrieve what a request selects, over another connection if one is lost."""
        attempts = 0
        while True:
            try:
                await self._wait_for(self._retrieve_all(receiver, work))
                return
            except (CancelledError, RetrievalStopped):
                raise RetrievalStopped from None
            except AccessDenied as error:
                self._give_up(error)
            except (NoConnection, RequestTimeout, InvalidResponse) as error:
                if self._stopping:
                    raise RetrievalStopped from None
                attempts += 1
                if not self.established:
                    self._give_up(error)
                if attempts > self._retries:
                    work.result.error = str(error)
                    return
                self.log.info("connection lost, going on over another: {error}", error=error)
                await receiver.settle()  # so that what has arrived is there, and is not retrieved again
                await self._pause(RETRY_DELAYS(attempts))
            except (DICOMwebError, ParameterError, ValueError) as error:
                work.result.error = str(error)
                return

    def _give_up(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stop()
        raise RetrievalStopped

    # --- one request

    async def _retrieve_all(self, receiver: FolderReceiver, work: RequestWork) -> None:
        result = work.result
        if work.targets is None:
            targets = direct_targets(result.request)
            work.targets = await self._found(result.request) if targets is None else targets
            result.entities = len(work.targets)
            if not work.targets:
                result.reason = "not found"
        while work.done < len(work.targets):
            if self._stopping:
                raise RetrievalStopped
            if len(work.receipts) == work.done:
                work.receipts.append(Receipt())
            target, receipt = work.targets[work.done], work.receipts[work.done]
            receiver.go_on(Requested(target.keys()), receipt)
            await self._retrieve(receiver, work, target, receipt)
            work.done += 1

    async def _found(self, request: Request) -> list[Target]:
        """Return what the keys of *request* select, each target once."""
        keys, level = request.keys, request.level
        given = [texts(keys, name) for name in _UNIQUE]
        if level not in _LEVELS:
            lowest = [one for one, uids in zip(_LEVELS, given, strict=True) if uids]
            level = "STUDY" if level == "PATIENT" or not lowest else lowest[-1]
        identifier = Dataset()
        identifier.update({element.tag: element for element in keys if element.keyword != "QueryRetrieveLevel"})
        names = _UNIQUE[: _LEVELS.index(level) + 1]
        studies: dict[Target, None] = {}
        images: dict[tuple[str, str, str], dict[str, None]] = {}
        async for match in self._matches(identifier, level):
            uids = [
                texts(match, name) or (own if len(own) == 1 else []) for name, own in zip(names, given, strict=False)
            ]
            if not all(len(each) == 1 and is_uid(each[0]) for each in uids):
                raise InvalidResponse(f"the server has a match without a valid {names[-1]} or without those above it")
            one = [each[0] for each in uids]
            if level == "IMAGE":
                images.setdefault((one[0], one[1], ""), {})[one[2]] = None
            else:
                studies[Target(one[0], one[1] if level == "SERIES" else "")] = None
        return [*studies, *(Target(study, series, tuple(uids)) for (study, series, _), uids in images.items())]

    @deferred_items
    async def _matches(
        self, identifier: Dataset, level: str, study: str = "", series: str = "", include: Iterable[str] = ()
    ) -> AsyncGenerator[Dataset, None]:
        client = self._client
        if level == "STUDY":
            matches = client.search_for_studies(identifier, include=include)
        elif level == "SERIES":
            matches = client.search_for_series(study, identifier, include=include)
        else:
            matches = client.search_for_instances(study, series, identifier, include=include)
        async with aclosing(matches):
            async for match in matches:
                self._answered()
                yield match
        self._answered()

    @deferred_items
    async def _or_nothing(self, matches: AsyncGenerator[Dataset, None]) -> AsyncGenerator[Dataset, None]:
        """Yield *matches*; none if the server answers that it does not have the study."""
        try:
            async for match in matches:
                yield match
        except ResourceNotFound:
            self._answered()

    def _answered(self) -> None:
        self.established += 1
        on_first, self._on_first = self._on_first, None
        if on_first is not None:
            on_first()

    async def _retrieve(self, receiver: FolderReceiver, work: RequestWork, target: Target, receipt: Receipt) -> None:
        """Retrieve one target: all of it, or what is missing of it."""
        parts = [target]
        listed: list[Found] | None = None
        if self._allowed or (self._folder.knows_names and await self._has(target.study)):
            listed = await self._listed(target)
            parts = await self._missing(listed, target, receipt)
        elif target.instances:
            parts = [Target(target.study, target.series, (uid,)) for uid in target.instances]
        result = work.result
        for part in parts:
            try:
                await self._fetch(receiver, result, part)
            except ResourceNotFound:
                self._answered()
        came = receipt.uids | receipt.refused_uids
        wanted = [found.instance for found in listed] if listed is not None else list(target.instances)
        lacking = [uid for uid in wanted if uid not in came]
        if not came and not receipt.refused and not listed:
            result.reason = "not found"
        elif lacking:
            result.failed += len(lacking)
            result.failed_instances += lacking[: MAX_LISTED - len(result.failed_instances)]
            result.error = result.error or f"the server did not send {len(lacking)} instances"

    async def _listed(self, target: Target) -> list[Found]:
        """Return the instances of a target that the server has, with their SOP Classes."""
        keys = Dataset()
        if target.instances:
            tag = tag_for_keyword("SOPInstanceUID")
            assert tag is not None
            keys[tag] = DataElement(tag, "UI", list(target.instances), validation_mode=IGNORE)
        found: dict[str, Found] = {}
        include = ("SOPClassUID", "SeriesInstanceUID")
        matches = self._matches(keys, "IMAGE", target.study, target.series, include)
        async for match in self._or_nothing(matches):
            series = target.series or "".join(texts(match, "SeriesInstanceUID")[:1])
            instance = "".join(texts(match, "SOPInstanceUID")[:1])
            if not is_uid(series) or not is_uid(instance):
                raise InvalidResponse("the server has a match without a valid SOPInstanceUID or SeriesInstanceUID")
            if target.instances and instance not in target.instances:
                continue
            sop_class = "".join(texts(match, "SOPClassUID")[:1])
            if self._allowed and sop_class not in self._allowed:
                continue
            found[instance] = Found(target.study, series, instance, sop_class)
            if len(found) > MAX_MATCHES:
                raise InvalidResponse(f"more than {MAX_MATCHES} instances: narrow the keys")
        return list(found.values())

    async def _missing(self, listed: list[Found], target: Target, receipt: Receipt) -> list[Target]:
        """Return what has to be retrieved of a target; the rest is counted in *receipt*."""
        names = [found.uids for found in listed]
        missing = list(names)
        if self._folder.knows_names:
            missing = await self._executor.run_admitted(self._folder.missing, names)
        wanted = set(missing)
        there = {uids[2] for uids in names if uids not in wanted} - receipt.uids
        receipt.existing += len(there)
        receipt.uids |= there
        self._arrived(len(there))
        if len(wanted) == len(names) and not target.instances and not self._allowed:
            return [target]
        return [Target(study, series, (instance,)) for study, series, instance in missing]

    # --- one response

    async def _fetch(self, receiver: FolderReceiver, result: RequestResult, target: Target) -> None:
        client = self._client
        if target.instances:
            parts = client.retrieve_instance(target.study, target.series, target.instances[0])
        elif target.series:
            parts = client.retrieve_series(target.study, target.series)
        else:
            parts = client.retrieve_study(target.study)
        storing = _Storing(receiver)
        try:
            async with aclosing(parts):
                async for part in parts:
                    self._answered()
                    await storing.store(part)
                    result.completed += 1
        finally:
            await storing.finished()

    def _outcome(self, result: RequestResult) -> Outcome:
        if result.reason == "not found" and not result.error and not result.stored + result.existing:
            return Outcome.NOT_FOUND
        is_bad = result.error or result.failed or result.refused or result.reason
        return Outcome.FAILED if is_bad else Outcome.RETRIEVED


class _Storing:
    """
    The instances of one response on their way into the folder, and the flow control of the response.

    :param receiver: stores and counts them.
    """

    def __init__(self, receiver: FolderReceiver) -> None:
        self._receiver = receiver
        self._unwritten = 0
        self._paused = False
        self._cut: IncomingPart | None = None
        self._changed: Deferred[None] | None = None

    async def store(self, part: Part) -> None:
        """
        Take one part; return when the next one may be read.

        :raises DICOMwebError: the part is cut off.
        """
        self._unwritten += 1
        incoming = IncomingPart(self, self._receiver.ingest, None, "", part.media_type.transfer_syntax)
        try:
            async for piece in part:
                incoming.write(memoryview(piece))
                while self._paused:
                    await self._change()
        except BaseException:
            self._cut = incoming
            incoming.fail(Failure())
            raise
        incoming.finish()
        while self._unwritten >= MAX_UNWRITTEN:
            await self._change()

    async def finished(self) -> None:
        """Wait until all are written."""
        while self._unwritten:
            await self._change()

    async def _change(self) -> None:
        self._changed = Deferred()
        await self._changed

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.called:
            changed.callback(None)

    # --- called by the parts

    def pause_part(self, part: IncomingPart) -> None:
        """Stop reading: enough of the part waits to be written."""
        self._paused = True

    def resume_part(self, part: IncomingPart) -> None:
        """Read on."""
        self._paused = False
        self._wake()

    def part_done(self, part: IncomingPart) -> None:
        """Count an instance."""
        self._unwritten -= 1
        error = part.error
        if part is not self._cut:  # which is retrieved again
            self._receiver.arrived(
                _SUCCESS
                if error is None
                else Status(CANNOT_UNDERSTAND, "C-STORE", str(error)[:64])
                if isinstance(error, NotAnInstance)
                else status_for(error)
            )
        self._wake()

"""
Retrieval of many studies into a folder with C-GET, over one or several associations.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from dicomtwist import (
    AE,
    Association,
    AssociationError,
    NotEstablished,
    OperationFailed,
    PresentationContext,
    Status,
    build_context,
    build_role,
)
from dicomtwist.errors import DataSetError, NoPresentationContext
from dicomtwist.eventloop.coroutines import DeferredItems
from dicomtwist.evt import HandlerTuple
from dicomtwist.pool.retry import is_transient
from dicomtwist.retrieval.contexts import (
    all_classes,
    first_contexts,
    further_contexts,
    thorough_contexts,
    usual_classes,
)
from dicomtwist.retrieval.folder import Receipt, ReceivingFolder
from dicomtwist.retrieval.journal import RetrievalJournal
from dicomtwist.retrieval.receiver import FolderReceiver, Requested
from dicomtwist.retrieval.requests import RequestRetriever, RequestWork, RetrievalStopped
from dicomtwist.retrieval.results import MAX_LISTED, Outcome, Progress, Request, RequestResult
from dicomtwist.retrieval.selection import (
    FindFailed,
    Found,
    Target,
    direct_targets,
    find_targets,
    instances_of,
    model_of,
    models,
    parts_of,
)
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.scu.responses import RetrievalResult, SubOperations
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

__all__ = ["Associate", "Retriever"]

#: The waits before an association is requested again, and their number.
RECONNECT_DELAYS: Final = Backoff(first=1.0, longest=16.0)
MAX_RECONNECTS: Final = 5
#: The most concurrent associations.
MAX_ASSOCIATIONS: Final = 64
#: The number of results of one association that may wait for their files to be named.
MAX_UNSETTLED: Final = 128

_CANCELLED: Final = 0xFE00

#: A function that requests an association with these contexts, handlers and extended negotiation items.
Associate = Callable[[list[PresentationContext], list[HandlerTuple], list[object]], "Deferred[Association]"]


@dataclass(slots=True, eq=False)
class _Lane:
    """
    One of the concurrent associations.

    :ivar receiver: stores what arrives on it.
    :ivar main: the association, ``None`` until it is requested.
    :ivar extra: an additional one, for SOP Classes that the first has no contexts for.
    :ivar extra_classes: the SOP Classes of *extra*.
    :ivar cancel: stops the operation under way.
    :ivar settling: the results that wait for their files to be named.
    """

    receiver: FolderReceiver
    main: Association | None = None
    extra: Association | None = None
    extra_classes: tuple[str, ...] = ()
    cancel: Callable[[], None] | None = None
    settling: list[Deferred[None]] = field(default_factory=list)


class Retriever(RequestRetriever):
    """
    Retrieves what requests select into a folder.

    A study that is in the folder already is compared with the peer's list of its instances (C-FIND), and only what is missing
    is retrieved. Instances that an association has no presentation context for are retrieved over a further association, with
    contexts for their SOP Classes. After a lost association the rest is retrieved over another one.

    :param ae: the AE whose associations *associate* requests.
    :param associate: requests an association.
    :param folder: the folder, prepared.
    :param sop_classes: the SOP Classes to receive; by default all, the most usual ones first.
    :param root: the information model, ``"study"`` or ``"patient"``; by default that which the peer has.
    :param associations: the number of concurrent associations.
    :param retries: how often a request goes on after its association broke.
    :param on_result: called with each :class:`RequestResult`.
    :param on_progress: called with the :class:`Progress` when something has arrived.
    :param open_journal: opens the journal of the requests that are complete, in a worker thread; ``None`` for none.
    :param on_suboperations: called with the counts of an operation when the peer reports them.

    :ivar progress: how far it is.
    :ivar error: why no association could be had, ``None`` otherwise.
    :ivar established: the number of associations that were established.
    """

    def __init__(
        self,
        ae: AE,
        associate: Associate,
        folder: ReceivingFolder,
        *,
        sop_classes: Sequence[str] = (),
        root: str | None = None,
        associations: int = 1,
        retries: int = 2,
        on_result: Callable[[RequestResult], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        on_suboperations: Callable[[SubOperations], object] | None = None,
        open_journal: Callable[[], RetrievalJournal] | None = None,
    ) -> None:
        if root not in (None, "study", "patient"):
            raise ValueError(f"root is 'study' or 'patient', not {root!r}")
        if not 1 <= associations <= MAX_ASSOCIATIONS:
            raise ValueError(f"associations is a number from 1 to {MAX_ASSOCIATIONS}, not {associations!r}")
        executors = ae.executors
        super().__init__(
            ae.reactor,
            folder,
            executors,
            executors.receiving,
            count=associations,
            retries=retries,
            on_result=on_result,
            on_progress=on_progress,
            open_journal=open_journal,
        )
        self._associate = associate
        self._root = root
        self._models = [build_context(uid) for uid in models(root)]
        self._room = MAX_PRESENTATION_CONTEXTS - len(self._models)
        self._allowed = frozenset(map(str, sop_classes))
        self._classes = list(dict.fromkeys(map(str, sop_classes))) or all_classes()
        self._first = first_contexts(list(dict.fromkeys(map(str, sop_classes))) or usual_classes(), self._room)
        self._on_suboperations = on_suboperations
        self._lanes: list[_Lane] = []
        self._open: set[Association] = set()
        self.last: Association | None = None

    # --- the run

    def _workers(self, source: DeferredItems[Request]) -> list[Coroutine[Any, Any, None]]:
        self._lanes = [
            _Lane(FolderReceiver(self._folder, self._executor, on_stored=self._arrived)) for _ in range(self._count)
        ]
        return [self._work(lane, source) for lane in self._lanes]

    def stop(self) -> None:
        """Stop in order: the peer is sent C-CANCEL, and the associations are released."""
        super().stop()
        for lane in self._lanes:
            if lane.cancel is not None:
                lane.cancel()

    def abort(self) -> None:
        """Stop at once: the associations are aborted."""
        self.stop()
        for association in list(self._open):
            association.abort("interrupted")

    async def _work(self, lane: _Lane, source: DeferredItems[Request]) -> None:
        try:
            while not self._stopping:
                await self._main(lane)
                request = await self._next(source)
                if request is None:
                    break
                await self._handle(lane, request)
                if len(lane.settling) >= MAX_UNSETTLED:
                    await lane.receiver.settle()
        except RetrievalStopped:
            pass
        await lane.receiver.settle()
        for association in (lane.extra, lane.main):
            await _release(association)

    async def _handle(self, lane: _Lane, request: Request) -> None:
        work = RequestWork(RequestResult(request))
        try:
            await self._perform(lane, work)
        except RetrievalStopped:
            if self.error is not None:
                work.result.error = f"no association: {self.error}"
            else:
                work.result.reason = "interrupted"
            raise
        finally:
            self._settle(lane, work)

    def _settle(self, lane: _Lane, work: RequestWork) -> None:
        settling = lane.receiver.settle(soon=False)
        lane.settling.append(settling)

        def settled(result: Failure | None) -> Failure | None:
            lane.settling.remove(settling)
            self._finish(work)
            return result

        settling.addBoth(settled)

    def _outcome(self, result: RequestResult) -> Outcome:
        if result.reason == "not found":
            return Outcome.NOT_FOUND
        arrived = result.stored + result.existing
        if not result.error and not result.failed and not result.refused and arrived < result.completed:
            result.error = f"the peer reports {result.completed} instances sent, but only {arrived} have arrived"
        return Outcome.FAILED if result.error or result.failed or result.refused else Outcome.RETRIEVED

    # --- associations

    async def _main(self, lane: _Lane) -> Association:
        """
        Return the association of *lane*, requested again if it was lost.

        :raises RetrievalStopped: there is none.
        """
        if lane.main is not None and lane.main.is_established:
            return lane.main
        failures = 0
        while not self._stopping:
            try:
                lane.main = await self._connect(lane, self._first)
                return lane.main
            except CancelledError:
                break
            except Exception as error:
                failures += 1
                if self._stopping or (lane.main is None and self._open):
                    break  # the other associations do without this one
                if not self.established or failures > MAX_RECONNECTS or not is_transient(error):
                    self.error = self.error or error
                    self.stop()
                    break
                self.log.info("no association, trying again: {error}", error=error)
            await self._pause(RECONNECT_DELAYS(failures))
        raise RetrievalStopped

    async def _connect(self, lane: _Lane, contexts: Sequence[PresentationContext]) -> Association:
        classes = dict.fromkeys(str(context.abstract_syntax) for context in contexts)
        roles: list[object] = [build_role(uid, scp_role=True) for uid in classes]
        association: Association = await self._wait_for(
            self._associate([*self._models, *contexts], [lane.receiver.handler], roles)
        )
        self.established += 1
        self.last = association
        self._open.add(association)
        association.when_ended().addCallback(self._open.discard)
        if self._stopping:
            association.abort("interrupted")
        return association

    # --- one request

    async def _perform(self, lane: _Lane, work: RequestWork) -> None:
        """Retrieve what a request selects, over another association if one is lost."""
        attempts = 0
        while True:
            association = await self._main(lane)
            try:
                await self._retrieve_all(lane, association, work)
                return
            except FindFailed as error:
                work.result.error = str(error)
                return
            except (DataSetError, NoPresentationContext, ValueError) as error:
                work.result.error = str(error)
                return
            except (AssociationError, NotEstablished) as error:
                attempts += 1
                if self._stopping:
                    raise RetrievalStopped from None
                if attempts > self._retries:
                    work.result.error = str(error)
                    return
                self.log.info("association lost, going on over another: {error}", error=error)
                await lane.receiver.settle()  # so that what has arrived is there, and is not retrieved again
                # So that a request which ends every association does not do so in a loop.
                await self._pause(RECONNECT_DELAYS(attempts) if attempts > 1 else 0.1)
            finally:
                lane.cancel = None

    async def _retrieve_all(self, lane: _Lane, association: Association, work: RequestWork) -> None:
        result = work.result
        if work.targets is None:
            targets = direct_targets(result.request)
            if targets is None:
                targets, result.status = await self._found(association, result.request)
            work.targets = targets
            result.entities = len(targets)
            if not targets:
                work.result.reason = "not found"
        while work.done < len(work.targets):
            if self._stopping:
                raise RetrievalStopped
            await self._retrieve(lane, association, work, work.targets[work.done])
            work.done += 1

    async def _found(self, association: Association, request: Request) -> tuple[list[Target], Status]:
        try:
            return await find_targets(association, request)
        except FindFailed:
            patients = str(request.keys.get("PatientID") or "")
            used = {element.keyword for element in request.keys if element.value}
            if model_of(association, "Find") is None and patients and not used - {"PatientID", "QueryRetrieveLevel"}:
                return [Target("", patient=patients)], Status(0, "C-FIND")
            raise

    async def _retrieve(self, lane: _Lane, association: Association, work: RequestWork, target: Target) -> None:
        """Retrieve one target: what is missing of it, then what did not come for want of a presentation context."""
        result = work.result
        if len(work.receipts) == work.done:
            work.receipts.append(Receipt())
        receipt = work.receipts[work.done]  # that of an earlier attempt as well
        parts = [target]
        listed: list[Found] | None = None
        if self._folder.knows_names and target.study and await self._has(target.study):
            listed = await instances_of(association, target)
            if listed:
                parts = await self._missing(listed, target, receipt)
        failed, last = await self._get(lane, association, parts, work, receipt)
        unsent = failed - sum(receipt.refused.values())
        if unsent > 0 and not self._stopping:
            recovered = await self._get_unsent(lane, association, target, listed, work, receipt)
            failed -= min(unsent, recovered)
            unsent = max(0, unsent - recovered)
            if not unsent:
                last = None  # its status was about what has come since then
        result.failed += failed
        if last is not None and int(last.status) == _CANCELLED:
            result.remaining = last.suboperations.remaining
            if self._stopping:
                raise RetrievalStopped
        await self._judge(association, work, target, receipt, last, unsent)

    async def _missing(self, listed: list[Found], target: Target, receipt: Receipt) -> list[Target]:
        """Return what has to be retrieved of a target of which something is there; count the rest in *receipt*."""
        names = [found.uids for found in listed]
        missing = set(await self._executor.run_admitted(self._folder.missing, names))
        there = {uids[2] for uids in names if uids not in missing} - receipt.uids
        receipt.existing += len(there)
        receipt.uids |= there
        self._arrived(len(there))
        if len(missing) == len(names):
            return [target]
        return parts_of((found for found in listed if found.uids in missing), target.patient)

    async def _get(
        self, lane: _Lane, association: Association, parts: Sequence[Target], work: RequestWork, receipt: Receipt
    ) -> tuple[int, RetrievalResult | None]:
        """Send C-GETs; return the number of instances that failed, and the last result."""
        failed = 0
        last: RetrievalResult | None = None
        for part in parts:
            if self._stopping:
                raise RetrievalStopped
            chosen = model_of(association, "Get", patient=not part.study)
            if chosen is None:
                raise NoPresentationContext("the peer performs no C-GET: try C-MOVE")
            model, patient_root = chosen
            lane.receiver.go_on(Requested(part.keys()), receipt)
            retrieval = association.send_c_get(
                part.identifier(patient_root=patient_root),
                model,
                on_progress=partial(self._told, self.progress.expected),
            )
            lane.cancel = retrieval.cancel
            try:
                last = await retrieval.when_done()
            except OperationFailed as error:
                assert isinstance(error.result, RetrievalResult)
                last = error.result
            finally:
                lane.cancel = None
            counts, result = last.suboperations, work.result
            failed += counts.failed
            result.status = last.status
            result.completed += counts.completed
            result.warning += counts.warning
            if counts.failed and len(result.failed_instances) < MAX_LISTED:
                result.failed_instances += last.failed_instances[: MAX_LISTED - len(result.failed_instances)]
            if not (last.status.is_success or last.status.is_warning):
                break
        return failed, last

    async def _get_unsent(
        self,
        lane: _Lane,
        association: Association,
        target: Target,
        listed: list[Found] | None,
        work: RequestWork,
        receipt: Receipt,
    ) -> int:
        """Retrieve what the peer did not send, over associations with other contexts; return the number of instances."""
        before = len(receipt.uids)
        listed = listed or await instances_of(association, target)
        plans: Iterable[list[PresentationContext]]
        left = [found for found in listed or () if found.instance not in receipt.uids | receipt.refused_uids]
        if left and all(found.sop_class for found in left):
            classes = {found.sop_class for found in left}
            plans = thorough_contexts(classes & self._allowed if self._allowed else classes, self._room)
        else:
            plans = further_contexts(self._classes, self._first, self._room)
        for contexts in plans:
            if self._stopping:
                break
            try:
                further = await self._extra(lane, contexts)
                if further is None:
                    continue
                proposed = {str(context.abstract_syntax) for context in contexts}
                wanted = [found for found in left if not found.sop_class or found.sop_class in proposed]
                await self._get(lane, further, parts_of(wanted, target.patient) or [target], work, receipt)
            except (AssociationError, NotEstablished, NoPresentationContext, CancelledError) as error:
                self.log.info("no further association: {error}", error=error)
            left = [found for found in left if found.instance not in receipt.uids | receipt.refused_uids]
            if listed and not left:
                break
        recovered = len(receipt.uids) - before
        work.result.failed_instances = [uid for uid in work.result.failed_instances if uid not in receipt.uids]
        return recovered

    async def _extra(self, lane: _Lane, contexts: Sequence[PresentationContext]) -> Association | None:
        """Return an association with these contexts, ``None`` if the peer accepts none to receive on."""
        classes = tuple(sorted({str(context.abstract_syntax) for context in contexts}))
        if lane.extra is None or not lane.extra.is_established or lane.extra_classes != classes:
            await _release(lane.extra)
            lane.extra = await self._connect(lane, contexts)
            lane.extra_classes = classes
        accepted = {context.abstract_syntax for context in lane.extra.accepted_contexts}
        return lane.extra if accepted & set(classes) else None

    async def _judge(
        self,
        association: Association,
        work: RequestWork,
        target: Target,
        receipt: Receipt,
        last: RetrievalResult | None,
        unsent: int,
    ) -> None:
        """Note why a target is not in the folder, as far as the peer's answers and contexts show it."""
        result = work.result
        succeeded = last is None or last.status.is_success or last.status.is_warning
        if not succeeded and last is not None:
            result.error = f"the peer answered: {last.status}"
        if not receipt.uids and not receipt.refused:
            has_matches = None
            if last is None or not last.suboperations.failed:
                has_matches = await self._has_matches(association, target)
            why = (
                ""
                if has_matches is False or (succeeded and not unsent and has_matches is None)
                else _why_nothing(association)
            )
            if why:
                work.result.reason = why
                result.error = result.error or "the peer sent nothing"
            elif has_matches is False and len(work.targets or ()) == 1:
                work.result.reason = "not found"
            elif has_matches is False:
                pass  # the other targets say what the request brings
            elif succeeded and has_matches:
                work.result.reason = "unsent"
                result.error = "the peer has it, and sent nothing"
            elif succeeded and not unsent:
                work.result.reason = "not found"
                result.error = "the peer sent nothing: nothing matches, or we accept none of it"
        if unsent and not work.result.reason:
            work.result.reason = "unsent"
            result.error = result.error or f"the peer did not send {unsent} instance{'s' * (unsent != 1)}"

    async def _has_matches(self, association: Association, target: Target) -> bool | None:
        """Whether the peer has something of a target; ``None`` if it cannot say."""
        if not target.study:
            return None
        try:
            targets, _ = await find_targets(association, Request(target.identifier(patient_root=True)))
        except FindFailed:
            return None
        return bool(targets)

    # --- progress

    def _told(self, before: int, counts: SubOperations) -> None:
        if counts.remaining is not None:
            total = counts.completed + counts.failed + counts.warning + counts.remaining
            self.progress.expected = max(self.progress.expected, before + total)
        if self._on_suboperations is not None:
            self._on_suboperations(counts)


def _why_nothing(association: Association) -> str:
    """Return why a peer can send nothing over an association, if the negotiation shows it."""
    taken = [context for context in association.accepted_contexts if context.scp_role]
    if not taken:
        return "no class"
    return "" if any(context.as_scp for context in taken) else "no role"


async def _release(association: Association | None) -> None:
    if association is not None and association.is_established:
        try:
            await association.release()
        except (AssociationError, NotEstablished):
            pass  # every request has been answered

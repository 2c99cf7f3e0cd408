"""
Confirmation that a peer has what it was sent: storage commitment (PS3.4 Annex J), or a search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydicom import Dataset
from pydicom.uid import generate_uid
from twisted.internet.defer import Deferred

from dicomtwist import evt
from dicomtwist.dimse.status import INVALID_ARGUMENT_VALUE, SUCCESS
from dicomtwist.errors import AssociationError, NotEstablished, PoolError
from dicomtwist.forwarding.delivery.interfaces import SentUIDs
from dicomtwist.forwarding.delivery.results import DONE, MAX_TRIES, Action, Result, of_error, of_reason
from dicomtwist.pool.pool import AssociationPool
from dicomtwist.presentation import PresentationContext, build_context
from dicomtwist.scp.dispatch import Route
from dicomtwist.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

if TYPE_CHECKING:
    from dicomtwist.association.association import Association

__all__ = ["Commitments", "find_contexts", "find_instances", "missing"]

#: The time that a peer has for its report, in seconds. Some check their storage, or write a medium first.
REPORT_WITHIN: Final = 1800.0
#: The most SOP Instance UIDs that one C-FIND asks for: a list of UIDs in a message.
MAX_ASKED: Final = 100


class Commitments:
    """
    The storage commitment of this side as SCU.

    A report arrives on the association of the request, or on one that the peer requests. For the latter the server of this
    side has to have the :attr:`routes`.

    :param reactor: for timers.

    :ivar routes: the reports that it takes.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: dict[str, Deferred[Dataset | None]] = {}
        self.routes = (Route(evt.EVT_N_EVENT_REPORT, StorageCommitmentPushModel, self.handle_report),)

    @property
    def waiting(self) -> int:
        """The number of requests whose report has not arrived."""
        return len(self._waiting)

    def negotiation(self) -> tuple[list[PresentationContext], list[evt.HandlerTuple]]:
        """Return the presentation contexts and the handlers of an association for requests."""
        return [build_context(StorageCommitmentPushModel)], [(evt.EVT_N_EVENT_REPORT, self.handle_report)]

    def handle_report(self, event: evt.EventReportEvent) -> int:
        """Take a report of a peer (N-EVENT-REPORT); one that belongs to no request is refused."""
        information = event.event_information
        waiting = self._waiting.pop(str(information.get("TransactionUID")), None)
        if waiting is None:
            return INVALID_ARGUMENT_VALUE
        # The response to the report goes first.
        self._reactor.callLater(0, _deliver, waiting, information)
        return SUCCESS

    async def request(self, pool: AssociationPool, instances: Sequence[SentUIDs]) -> list[Result]:
        """
        Ask the peer to commit itself to the storage of *instances*, and return what it reports about each.

        :raises AssociationError: the association ended before the peer had answered the request.
        """
        uid = str(generate_uid(prefix=None))
        request = Dataset()
        request.TransactionUID = uid
        request.ReferencedSOPSequence = [_reference(one) for one in instances]
        # The report may arrive before the response to the request.
        waiting: Deferred[Dataset | None] = Deferred()
        self._waiting[uid] = waiting
        try:
            async with pool.association() as association:
                status, _ = await association.send_n_action(
                    request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
                )
            if not (status.is_success or status.is_warning):
                said = f"it refuses to commit itself: 0x{int(status):04X} {status.meaning}"
                return [Result(Action.RETRY, said, MAX_TRIES)] * len(instances)
            late = self._reactor.callLater(REPORT_WITHIN, waiting.callback, None)
            try:
                report = await waiting
            finally:
                if late.active():
                    late.cancel()
        finally:
            self._waiting.pop(uid, None)
        if report is None:
            said = f"no report of storage commitment within {REPORT_WITHIN / 60:g} minutes"
            return [Result(Action.RETRY, said, MAX_TRIES)] * len(instances)
        return _results(report, instances)


def _deliver(waiting: Deferred[Dataset | None], information: Dataset) -> None:
    if not waiting.called:  # it may have been cancelled, or too late
        waiting.callback(information)


def _reference(one: SentUIDs) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = one.sop_class
    reference.ReferencedSOPInstanceUID = one.instance
    return reference


def _results(report: Dataset, instances: Sequence[SentUIDs]) -> list[Result]:
    held = {_uid_of(item) for item in report.get("ReferencedSOPSequence") or ()}
    reasons = {_uid_of(item): item.get("FailureReason") for item in report.get("FailedSOPSequence") or ()}
    results = []
    for one in instances:
        if one.instance in reasons:
            code = reasons[one.instance]
            said = of_reason(code if isinstance(code, int) else 0).said
            results.append(Result(Action.RETRY, f"it does not commit itself: {said}", MAX_TRIES))
        elif one.instance in held:
            results.append(DONE)
        else:
            results.append(Result(Action.RETRY, "its report of commitment does not have the instance", MAX_TRIES))
    return results


def _uid_of(item: Dataset) -> str:
    return str(item.get("ReferencedSOPInstanceUID"))


# --- search


def find_contexts() -> list[PresentationContext]:
    """Return the presentation contexts of an association for :func:`find_instances`."""
    return [build_context(StudyRootQueryRetrieveInformationModelFind)]


async def find_instances(pool: AssociationPool, instances: Sequence[SentUIDs]) -> list[Result]:
    """
    Search for *instances* at the peer by C-FIND, and return for each whether it is there.

    :raises AssociationError: the association ended before all was answered.
    """
    results: dict[int, Result] = {}
    by_series: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, one in enumerate(instances):
        by_series[one.study, one.series].append(number)
    for (study, series), numbers in by_series.items():
        for start in range(0, len(numbers), MAX_ASKED):
            some = numbers[start : start + MAX_ASKED]
            identifier = Dataset()
            identifier.QueryRetrieveLevel = "IMAGE"
            identifier.StudyInstanceUID = study
            identifier.SeriesInstanceUID = series
            identifier.SOPInstanceUID = [instances[number].instance for number in some]
            try:
                answers = await pool.run(partial(_find, identifier))
            except (AssociationError, NotEstablished, PoolError) as error:
                result = of_error(error)
                results |= dict.fromkeys(some, Result(Action.RETRY, f"no confirmation: {result.said}"))
                continue
            found = {str(answer.get("SOPInstanceUID")) for answer in answers}
            results |= {number: DONE if instances[number].instance in found else missing() for number in some}
    return [results[number] for number in range(len(instances))]


async def _find(identifier: Dataset, association: Association) -> list[Dataset]:
    found: list[Dataset] = await association.send_c_find(
        identifier, StudyRootQueryRetrieveInformationModelFind
    ).collect()
    return found


def missing() -> Result:
    """Return the result for an instance that a search does not find."""
    return Result(Action.RETRY, "a search does not find it after it was sent", MAX_TRIES)

"""
Retrieve service classes: C-GET and C-MOVE (PS3.4 C.4.2, C.4.3 and others, PS3.7 9.1.3, 9.1.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydicom import Dataset
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.datasets.identifier import decode_identifier, encode_identifier, failed_instances
from dicomtwist.datasets.sources import BytesSource
from dicomtwist.dimse import status as codes
from dicomtwist.dimse.messages import CGetRQ, CGetRSP, CMoveRQ, CMoveRSP
from dicomtwist.dimse.status import StatusCategory, category
from dicomtwist.errors import DataSetError, ExecutorFull, Refused
from dicomtwist.scp.find import check_object, unpack
from dicomtwist.scp.move_destination import MoveAssociations
from dicomtwist.scp.multiple_responses import NoMoreItems, YieldingHandler, with_identifier
from dicomtwist.scp.performed import Performance, status_response
from dicomtwist.scp.sub_operations import Destination, SameAssociation, SubOperationQueue


def perform_get(performance: Performance) -> None:
    """
    Send the instances that the handler of ``EVT_C_GET`` yields over the association of the request.

    The handler yields the number of sub-operations, then (status, instance) for each, or the instance alone: the path of a
    Part 10 file, the ``bytes`` of one, an open one, or a Dataset. It may yield a list of instances in place of one.

    A C-GET that would wait for one of this side, which waits for it, is refused.
    """
    why = performance.assoc.exchange.why_gets_wait()
    if why is not None:
        performance.refuse(codes.CANNOT_PERFORM_SUBOPERATIONS, why)
        return
    _perform(performance, evt.EVT_C_GET, _Get)


def perform_move(performance: Performance) -> None:
    """
    Send the instances that the handler of ``EVT_C_MOVE`` yields over an association with the destination.

    The handler yields the destination, then what a handler of C-GET yields. A destination is (address, port), (address,
    port, arguments) with the arguments of ``AE.associate`` and ``move_associations``, an endpoint string, or ``None`` if
    the Move Destination is not known.
    """
    _perform(performance, evt.EVT_C_MOVE, _Move)


def _perform(performance: Performance, event: evt.EventType, kind: type[_Retrieve]) -> None:
    if not performance.assoc.has_handler(event):
        performance.refuse(kind.HANDLER_FAILED, f"no handler is bound to {event.name}")
        return

    def start(occurrence: evt.IdentifierEvent) -> None:
        retrieve = kind(performance, occurrence)
        YieldingHandler(performance, event, kind.HANDLER_FAILED).run(retrieve.answer, retrieve.cancelled)

    with_identifier(performance, event, kind.HANDLER_FAILED, start)


class _Retrieve:
    """The common part of C-GET and C-MOVE."""

    HANDLER_FAILED = codes.GET_HANDLER_FAILED
    NUMBER_INVALID = codes.GET_NUMBER_INVALID
    ENDED_EARLY = codes.GET_NUMBER_INVALID
    log = Logger()

    def __init__(self, performance: Performance, event: evt.IdentifierEvent) -> None:
        self._performance = performance
        self._event = event
        self._destination: Destination | None = None
        self._suboperations: SubOperationQueue | None = None

    async def answer(self, handler: YieldingHandler) -> None:
        """Pull the instances, send them, and answer."""
        response: CGetRSP | CMoveRSP | None = None
        identifier: Dataset | bytes | None = None
        failure: Failure | None = None
        try:
            await handler.call(self._event)
            try:
                self._destination = await self._find_destination(handler)
                await self._begin(handler)
                response, identifier = await self._pull(handler)
            except NoMoreItems:
                if not self._performance.is_cancelled:
                    raise Refused(self.ENDED_EARLY, "the handler yielded less than it has to") from None
        except CancelledError:
            if not self._performance.is_cancelled:
                failure = Failure()
        except Exception:
            failure = Failure()
        try:
            if self._suboperations is not None:
                if self._performance.is_cancelled:
                    self._suboperations.stop()
                # Sub-operations that have begun are finished, also after a C-CANCEL.
                await self._suboperations.wait_until_done()
        finally:
            if self._destination is not None:
                await self._destination.close()
        if self._performance.is_cancelled:
            return
        if failure is not None:
            response = self._failed(failure)
        elif identifier is not None:
            identifier = await self._complete(identifier)
        self._finish(cast("CGetRSP | CMoveRSP", response), identifier)

    async def _find_destination(self, handler: YieldingHandler) -> Destination:
        raise NotImplementedError

    async def _begin(self, handler: YieldingHandler) -> None:
        number = await handler.next()
        check_object(number)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise Refused(
                self.NUMBER_INVALID, f"a handler yielded {number!r}, the number of sub-operations was expected"
            )
        assert self._destination is not None
        self._suboperations = SubOperationQueue(self._destination, number, self._performance.assoc, self._progressed)

    async def _pull(self, handler: YieldingHandler) -> tuple[CGetRSP | CMoveRSP, Any]:
        """Store the instances; return the final response, without the counts, and its identifier."""
        suboperations = self._suboperations
        assert suboperations is not None
        while True:
            await suboperations.wait_for_room()
            try:
                status, instance = unpack(await handler.next())
            except NoMoreItems:
                break
            if type(status) is not int or status != codes.PENDING:
                response = self._response(status)
                if category(response.status) is StatusCategory.SUCCESS:
                    break
                if category(response.status) is not StatusCategory.PENDING:
                    return response, instance
            if type(instance) is not list:
                suboperations.start(instance)
                await handler.room()
                continue
            if suboperations.start_together(instance):
                await handler.room()
                continue
            for number, one in enumerate(instance, 1):
                check_object(one)
                await suboperations.wait_for_room(together=number > 1)
                suboperations.start(one, more=number < len(instance))
                await handler.room()
        await suboperations.wait_until_done()
        suboperations.check_destination()
        final = self._performance.response(suboperations.status, suboperations.error_comment)
        return cast("CGetRSP | CMoveRSP", final), None

    def _response(self, status: object) -> CGetRSP | CMoveRSP:
        return cast("CGetRSP | CMoveRSP", status_response(self._performance, status))

    def _failed(self, reason: Failure) -> CGetRSP | CMoveRSP:
        if isinstance(reason.value, Refused):
            self._performance.assoc.log_refusal(
                self.log.info,
                "{service} of {peer!r}{log_to} ends with 0x{status:04X}: {why}",
                service=self._performance.service_name,
                peer=self._performance.assoc.remote.ae_title,
                log_to=self._to(),
                status=reason.value.status,
                why=f"{reason.value}: {reason.value.details}" if reason.value.details else str(reason.value),
            )
            return cast("CGetRSP", self._performance.response(reason.value.status, str(reason.value)))
        self._performance.assoc.log_refusal(
            self.log.failure,
            "the handler of {event} raised; {peer!r} gets the status 0x{status:04X}",
            reason,
            event=self._event.event,
            peer=self._performance.assoc.remote.ae_title,
            status=self.HANDLER_FAILED,
        )
        return cast("CGetRSP", self._performance.response(self.HANDLER_FAILED, "the handler failed"))

    def _progressed(self) -> None:
        performance = self._performance
        if performance.is_cancelled or performance.is_done or self._suboperations is None:
            return
        response = cast("CGetRSP | CMoveRSP", performance.response(codes.PENDING))
        self._suboperations.fill_counts(response, remaining=True)
        performance.assoc.exchange.respond(performance, response)

    async def _complete(self, identifier: Dataset | bytes) -> Dataset | bytes:
        """
        Return the identifier of a handler's final response with the instances that this side could not send as well, and
        count the failures that the handler reports: the count and the list agree (PS3.4 C.4.3.1.3.2, C.4.2.1.4.2).
        """
        suboperations, assoc = self._suboperations, self._performance.assoc
        assert suboperations is not None
        dataset = identifier
        if isinstance(dataset, bytes):
            try:
                dataset = await decode_identifier(
                    dataset, str(self._performance.context.transfer_syntax), assoc.ae.executors.decoding
                )
            except (DataSetError, ExecutorFull):
                return identifier  # the bytes are sent as the handler gave them
        if not isinstance(dataset, Dataset):
            return identifier  # which fails when it is encoded
        reported = failed_instances(dataset)
        known = suboperations.failed_instances
        merged = list(dict.fromkeys([*reported, *known]))
        suboperations.failed = max(suboperations.failed, len(merged))
        if merged == reported:
            return identifier
        complete = Dataset()  # the handler's own stays as it is
        complete.update(dataset)
        complete.FailedSOPInstanceUIDList = merged
        return complete

    def _finish(self, response: CGetRSP | CMoveRSP, identifier: Dataset | bytes | None) -> None:
        suboperations = self._suboperations
        if suboperations is not None and suboperations.failed:
            self._performance.assoc.log_refusal(
                self.log.info,
                "{service} of {peer!r}{log_to}: {failed} of {done} sub-operations failed: {last}",
                service=self._performance.service_name,
                peer=self._performance.assoc.remote.ae_title,
                log_to=self._to(),
                failed=suboperations.failed,
                done=suboperations.done,
                last=suboperations.last_failure,
            )
        if suboperations is not None:
            self._performance.assoc.exchange.totals.sent += suboperations.completed + suboperations.warning
            suboperations.fill_counts(response, remaining=response.status == codes.CANCEL)
            if identifier is None and suboperations.failed and response.status != codes.SUCCESS:
                identifier = Dataset()
                identifier.FailedSOPInstanceUIDList = suboperations.failed_instances
        if identifier is None:
            self._performance.finish(response)
            return
        encoded = encode_identifier(identifier, str(self._performance.context.transfer_syntax))
        self._performance.finish(response, BytesSource(encoded))

    def _to(self) -> str:
        """Return the move destination, if there is one, for a line of the log."""
        request = self._performance.request
        return f" to {request.move_destination!r}" if isinstance(request, CMoveRQ) else ""

    def cancelled(self) -> None:
        """Answer a C-CANCEL."""
        self._finish(self._response(codes.CANCEL), None)


class _Get(_Retrieve):
    async def _find_destination(self, handler: YieldingHandler) -> Destination:
        request = self._performance.request
        assert isinstance(request, CGetRQ)
        return SameAssociation(self._performance.assoc, request.priority)


class _Move(_Retrieve):
    HANDLER_FAILED = codes.MOVE_HANDLER_FAILED
    NUMBER_INVALID = codes.MOVE_NUMBER_INVALID
    ENDED_EARLY = codes.MOVE_DESTINATION_FAILED

    async def _find_destination(self, handler: YieldingHandler) -> Destination:
        request = self._performance.request
        assert isinstance(request, CMoveRQ)
        self._performance.assoc.exchange.totals.note_destination(request.move_destination)
        found = await handler.next()
        check_object(found)
        address, arguments = self._address(found)
        try:
            return MoveAssociations(
                self._performance.assoc,
                request.move_destination,
                request.message_id,
                request.priority,
                address,
                arguments,
            )
        except (TypeError, ValueError) as error:
            raise Refused(codes.MOVE_DESTINATION_INVALID, str(error)) from error

    def _address(self, found: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the positional and the keyword arguments of ``associate``."""
        unknown = Refused(codes.MOVE_DESTINATION_UNKNOWN, "the Move Destination is not known")
        if found is None:
            raise unknown
        if not isinstance(found, tuple):
            return (found,), {}
        if len(found) not in (2, 3) or (len(found) == 3 and not isinstance(found[2], Mapping)):
            raise Refused(codes.MOVE_DESTINATION_INVALID, "a handler yielded no (address, port) for the destination")
        if found[0] is None or (found[1] is None and len(found) == 2):
            raise unknown
        place = found[:2] if found[1] is not None else found[:1]
        return place, found[2] if len(found) == 3 else {}

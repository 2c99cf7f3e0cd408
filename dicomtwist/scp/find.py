"""
Query service classes: C-FIND (PS3.4 Annexes C, K, Q, U, V, X, BB and others, PS3.7 9.1.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydicom import Dataset

from dicomtwist import evt
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.datasets.sources import BytesSource
from dicomtwist.dimse import status as codes
from dicomtwist.dimse.messages import CFindRQ, Response
from dicomtwist.errors import DataSetError, Refused
from dicomtwist.scp.multiple_responses import NoMoreItems, YieldingHandler, with_identifier
from dicomtwist.scp.performed import Performance, status_response
from dicomtwist.sop_class import ServiceClass, uid_to_service_class

#: The length of the identifiers of a list that are sent at once, in bytes.
PIECE_LENGTH: Final = 32 * 1024

#: The tag of Status, an element of command sets.
_STATUS: Final = 0x00000900


def perform_find(performance: Performance) -> None:
    """
    Send a pending response for each match that the handler of ``EVT_C_FIND`` yields, and the final response at its end.

    The handler yields (status, identifier), or the identifier of a pending response alone; an identifier is a Dataset, or
    ``bytes`` in the transfer syntax of the context. It may yield a list of identifiers in place of one, which takes less time
    for each. The end of the handler is Success.
    """
    if not performance.assoc.has_handler(evt.EVT_C_FIND):
        performance.refuse(codes.FIND_HANDLER_FAILED, "no handler is bound to EVT_C_FIND")
        return
    with_identifier(performance, evt.EVT_C_FIND, codes.FIND_HANDLER_FAILED, lambda event: _find(performance, event))


def _find(performance: Performance, event: evt.IdentifierEvent) -> None:
    assert isinstance(performance.request, CFindRQ)
    matches = _SingleMatch if _is_single(performance) else _Matches
    find = matches(performance, event)
    YieldingHandler(performance, evt.EVT_C_FIND, codes.FIND_HANDLER_FAILED).run(
        find.answer, lambda: performance.finish(performance.response(codes.CANCEL))
    )


def _is_single(performance: Performance) -> bool:
    """Whether the SOP Class allows one match only (PS3.4 Q.2.1.1.2)."""
    return uid_to_service_class(str(performance.context.abstract_syntax)) is ServiceClass.RELEVANT_PATIENT


class _Matches:
    """Answers with any number of matches."""

    def __init__(self, performance: Performance, event: evt.IdentifierEvent) -> None:
        self._performance = performance
        self._event = event
        self._syntax = str(performance.context.transfer_syntax)

    async def answer(self, handler: YieldingHandler) -> None:
        """Pull the matches and send them."""
        performance, exchange = self._performance, self._performance.assoc.exchange
        await handler.call(self._event)
        while True:
            try:
                status, identifier = unpack(await handler.next())
            except NoMoreItems:
                break
            if type(status) is int and status == codes.PENDING:  # the status of nearly all
                response = performance.response(status)
            else:
                response = status_response(performance, status)
            if response.status not in (codes.PENDING, codes.PENDING_WARNING):
                performance.finish(response, None if identifier is None else self._encode(identifier))
                return
            if identifier is None:
                raise Refused(codes.FIND_ENCODING_FAILED, "a pending answer without an identifier")
            if type(identifier) is list:
                await self._send_all(handler, response, identifier)
                continue
            source = self._encode(identifier)
            if self._may_go(source):
                exchange.respond(performance, response, source)
                exchange.totals.matches += 1
                await handler.room()
        if not performance.is_cancelled:
            self._end()

    async def _send_all(
        self, handler: YieldingHandler, response: Response, identifiers: Sequence[Dataset | bytes]
    ) -> None:
        """Send *response* with each of *identifiers*; let other work have its turn in between."""
        exchange = self._performance.assoc.exchange
        piece: list[bytes | memoryview] = []
        length = 0
        try:
            for identifier in identifiers:
                check_object(identifier)
                source = self._encode(identifier)
                if not self._may_go(source):
                    continue
                piece.append(source.data)
                length += len(source.data)
                if length >= PIECE_LENGTH:
                    sent, piece, length = piece, [], 0
                    exchange.respond_all(self._performance, response, sent)
                    exchange.totals.matches += len(sent)
                    await handler.room()
        finally:
            if piece:  # also if one cannot be encoded: those before it are sent
                exchange.respond_all(self._performance, response, piece)
                exchange.totals.matches += len(piece)
        await handler.room()

    def _encode(self, identifier: Dataset | bytes) -> BytesSource:
        try:
            return BytesSource(encode_identifier(identifier, self._syntax))
        except (DataSetError, TypeError) as error:
            raise Refused(codes.FIND_ENCODING_FAILED, "an identifier cannot be encoded") from error

    def _may_go(self, source: BytesSource) -> bool:
        """Whether a match may be sent at once."""
        return True

    def _end(self) -> None:
        self._performance.finish(self._performance.response(codes.SUCCESS))


class _SingleMatch(_Matches):
    """Answers with one match, once it is known to be the only one."""

    _match: BytesSource | None = None

    def _may_go(self, source: BytesSource) -> bool:
        if self._match is not None:
            raise Refused(codes.MORE_THAN_ONE_MATCH, "more than one match")
        self._match = source
        return False

    def _end(self) -> None:
        if self._match is not None:
            performance = self._performance
            performance.assoc.exchange.respond(performance, performance.response(codes.PENDING), self._match)
            performance.assoc.exchange.totals.matches += 1
        super()._end()


def unpack(item: Any) -> tuple[Any, Any]:
    """
    Return the status and the object that a handler yielded.

    :raises TypeError: *item* is a tuple that is not (status, object), or a status Dataset without its tuple.
    """
    if isinstance(item, tuple):
        if len(item) != 2:
            raise TypeError(f"a handler yielded a tuple of {len(item)}, (status, identifier) was expected")
        return item
    if isinstance(item, int):
        return item, None
    check_object(item)
    return codes.PENDING, item


def check_object(value: Any) -> None:
    """
    Check an identifier or instance that a handler yielded without a status.

    A Dataset with Status (0000,0900) is a status. As an identifier it would be sent without this element, and a failure would
    become a match.

    :raises TypeError: *value* is a Dataset with Status.
    """
    if isinstance(value, Dataset) and _STATUS in value.keys():  # noqa: SIM118 (the keys are a dict's; Dataset would parse the tag)
        raise TypeError(
            "a handler yielded a Dataset with Status (0000,0900) alone; yield (status, identifier), or (status, None) if there"
            " is no identifier"
        )

"""
An operation that is performed for the peer, from its request to its final response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

from pydicom import Dataset
from pydicom.tag import Tag
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.dimse import status as codes
from dicomtwist.dimse.messages import NCreateRSP, NGetRSP, NSetRSP, Request, Response, make_response
from dicomtwist.dimse.status import Status
from dicomtwist.exchange.invoking import InvokingAssociation
from dicomtwist.exchange.nesting import enter_handler, leave_handler
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.runtime.call_handler import call_handler

if TYPE_CHECKING:
    from dicomtwist.datasets.sources import DataSetSource
    from dicomtwist.datasets.stream import DataSetStream
    from dicomtwist.evt import EventType, Handler
    from dicomtwist.presentation import PresentationContextTuple
    from dicomtwist.runtime.budget import Share


#: The responses that may list the attributes that their status refers to (PS3.7 C.4.2, C.5).
_WITH_ATTRIBUTES: Final = (NGetRSP, NSetRSP, NCreateRSP)

#: The most tags that are sent with a status. The command set stays below the 64 KiB that this library itself accepts.
MAX_STATUS_TAGS: Final = 16_000

#: The longest Error Comment, in characters (PS3.5 6.2, LO).
_MAX_COMMENT: Final = 64


class PerformingAssociation(AssociationInterface, InvokingAssociation, Protocol):
    """An association as service classes know it: a :class:`dicomtwist.Association`."""


class Performance:
    """
    An operation that the peer invoked.

    :param service: its function of :data:`dicomtwist.scp.SERVICES`.

    :ivar assoc: the association of the request.
    :ivar context: the presentation context of the request.
    :ivar request: its command set.
    :ivar stream: its data set as it arrives, ``None`` if it has none.
    :ivar is_cancelled: whether the peer sent C-CANCEL or is gone.
    :ivar is_done: whether its final response was sent.
    :ivar started: when its request arrived, in seconds of the clock; the exchange sets it.
    :ivar memory: the part of the memory for data sets of requests that it takes, until its final response.
    :ivar on_cancel: called when the peer sends C-CANCEL or is gone.
    """

    __slots__ = (
        "__weakref__",
        "_service",
        "assoc",
        "context",
        "is_cancelled",
        "is_done",
        "memory",
        "on_cancel",
        "request",
        "started",
        "stream",
    )

    log = Logger()

    def __init__(
        self,
        assoc: PerformingAssociation,
        context: PresentationContextTuple,
        request: Request,
        service: Callable[[Performance], None],
    ) -> None:
        self.assoc = assoc
        self.context = context
        self.request = request
        self._service = service
        self.stream: DataSetStream | None = None
        self.is_cancelled = self.is_done = False
        self.on_cancel: Callable[[], None] | None = None
        self.memory: Share | None = None
        self.started = 0.0

    @property
    def service_name(self) -> str:
        """The DIMSE service, such as ``"C-STORE"``."""
        return self.request.SERVICE

    def perform(self) -> None:
        """Give the request to its service, which answers at once or later."""
        self._service(self)

    def cancel(self) -> None:
        """Note that the peer sent C-CANCEL or is gone."""
        if self.is_cancelled or self.is_done:
            return
        self.is_cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()

    def response(self, status: int, error_comment: str | None = None) -> Response:
        """Return a response to the request, with the attributes that it has to repeat."""
        response = make_response(self.request, status)
        if error_comment:
            response.error_comment = _comment(error_comment)
        return response

    def answer(self, value: object) -> None:
        """Send the final response for the result of a handler, see :func:`status_response`."""
        self.finish(status_response(self, value))

    def finish(self, response: Response, source: DataSetSource | None = None) -> None:
        """
        Send the final response, with the data set of *source* if there is one.

        The peer always gets an answer: a response that cannot be encoded is replaced by one with the status 0x0110.
        """
        exchange = self.assoc.exchange
        self.is_done = True
        if self.memory is not None:
            self.memory.release()
        try:
            exchange.respond(self, response, source)
        except ValueError:
            self.log.failure(
                "{peer!r} gets the status 0x{status:04X}, since the response to its {service} cannot be encoded",
                peer=self.assoc.remote.ae_title,
                service=self.service_name,
                status=codes.PROCESSING_FAILURE,
            )
            response = self.response(codes.PROCESSING_FAILURE, "the response cannot be encoded")
            exchange.respond(self, response)
        exchange.performance_done(self, response.status)

    def refuse(self, status: int, why: str, details: str = "") -> None:
        """
        Send a failure as the final response when the data set, which is discarded, has arrived.

        :param why: the reason, for the log and the Error Comment.
        :param details: further words for the log alone.
        """
        self.assoc.log_refusal(
            self.log.info,
            "{service} of {peer!r} refused with 0x{status:04X}: {why}",
            service=self.service_name,
            peer=self.assoc.remote.ae_title,
            status=status,
            why=f"{why}: {details}" if details else why,
        )
        response = self.response(status, why)
        if self.stream is None:
            self.finish(response)
        else:
            self.stream.discard(lambda: self.finish(response))

    def call(
        self,
        event: EventType,
        occurrence: object,
        then: Callable[[Any], None],
        failure_status: int,
        bound: tuple[Handler, tuple[Any, ...]] | None = None,
    ) -> None:
        """
        Call the handler of an intervention, and continue with its value, at once if it is known at once.

        :param then: called with the value.
        :param failure_status: the status of the response if the handler raises.
        :param bound: the handler and its arguments, if the caller has looked them up.
        """
        if bound is None:
            bound = self.assoc.handler(event)
            assert bound is not None
        handler, arguments = bound
        inside = enter_handler(self)
        try:
            try:
                result = call_handler(handler, occurrence, arguments)
            finally:
                leave_handler(inside)
            # The first test is quick: Deferred is an abstract base class, for which isinstance() costs more than this method.
            if type(result) is not int and isinstance(result, Deferred):
                result.addBoth(self._handler_done, then, event, failure_status)
                return
            then(result)
        except (Exception, SystemExit, GeneratorExit):  # sys.exit() ends no program that runs a reactor
            self.handler_failed(Failure(), event, failure_status)

    def _handler_done(self, value: Any, then: Callable[[Any], None], event: EventType, failure_status: int) -> None:
        """Continue with the value of a handler that returned a Deferred. One callback costs half as much as two."""
        if isinstance(value, Failure):
            self.handler_failed(value, event, failure_status)
            return
        try:
            then(value)
        except BaseException:  # as a Deferred does
            self.handler_failed(Failure(), event, failure_status)

    def handler_failed(self, reason: Failure, event: EventType, status: int) -> None:
        """Log the exception of a handler, and answer with *status*."""
        if self.is_cancelled and self.assoc.end_reason is not None and reason.value is self.assoc.end_reason:
            return  # the handler was reading the data set of a peer that is gone: there is nothing to answer
        if reason.check(CancelledError) and self.assoc.end_reason is not None:
            return  # the program ends, and its event loop cancels the tasks of handlers
        self.assoc.log_refusal(
            self.log.failure,
            "the handler of {event} raised; {peer!r} gets the status 0x{status:04X}",
            reason,
            event=event,
            peer=self.assoc.remote.ae_title,
            status=status,
        )
        self.refuse(status, "the handler failed")


def status_response(performance: Performance, value: object) -> Response:
    """
    Return the response for the result of a handler: a status as a number, as a
    :class:`~dicomtwist.dimse.status.Status`, or as a Dataset with Status (0000,0900).

    Error Comment, Error ID, Offending Element and, if the response has it, Attribute Identifier List of the latter two are
    copied as well. One of them that cannot be encoded is logged and left out: it only explains the status, and the status
    says what was done.

    :raises TypeError: it is neither.
    :raises ValueError: the status does not fit in 16 bits, or the Dataset has none.
    """
    if type(value) is int and not value:
        return performance.response(0)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= 0xFFFF:
            raise ValueError(f"a handler returned the status {value:#x}, which has more than 16 bits")
        response = performance.response(int(value))
        if isinstance(value, Status):
            if value.error_comment is not None:
                _explain(performance, response, "error_comment", value.error_comment)
            if value.offending_element is not None:
                _explain(performance, response, "offending_element", value.offending_element)
            if value.error_id is not None:
                _explain(performance, response, "error_id", value.error_id)
            if value.attribute_identifier_list is not None:
                _explain(performance, response, "attribute_identifier_list", value.attribute_identifier_list)
        return response
    if isinstance(value, Dataset):
        if "Status" not in value:
            raise ValueError("a handler returned a Dataset without Status (0000,0900)")
        response = status_response(performance, int(value.Status))
        for name, keyword in _DETAILS:
            if keyword in value:
                _explain(performance, response, name, value[keyword].value)
        return response
    raise TypeError(f"a handler returned {type(value).__name__}, a status is an int or a Dataset with Status")


#: The elements that explain a status, by attribute of a response and by keyword (PS3.7 Annex C).
_DETAILS: Final = (
    ("error_comment", "ErrorComment"),
    ("offending_element", "OffendingElement"),
    ("error_id", "ErrorID"),
    ("attribute_identifier_list", "AttributeIdentifierList"),
)


def _explain(performance: Performance, response: Response, name: str, value: Any) -> None:
    """Set the element *name* of *response*, which explains its status; log and omit a value that cannot be encoded."""
    if value is None or (name == "attribute_identifier_list" and not isinstance(response, _WITH_ATTRIBUTES)):
        return
    try:
        setattr(response, name, _DETAIL_OF[name](value))
    except Exception:
        performance.log.failure(
            "a handler of {service} returned {name} that cannot be sent; the status 0x{status:04X} is sent without it",
            service=performance.service_name,
            name=dict(_DETAILS)[name],
            status=response.status,
        )


def _comment(value: Any) -> str | None:
    """Return an Error Comment: 64 characters of the default repertoire, which all of a command set has (PS3.7 6.3.1)."""
    text = value if isinstance(value, str) else "; ".join(map(str, value)) if _is_list(value) else str(value)
    return text[:_MAX_COMMENT].encode("ascii", "replace").decode() or None


def _number(value: Any) -> int:
    number = int(value)
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"{number} is not a number of 16 bits")
    return number


def _tags(value: Any) -> tuple[int, ...] | None:
    """Return the tags of an element of VR AT, one or many, at most :data:`MAX_STATUS_TAGS`."""
    tags = list(value) if _is_list(value) else [value]
    return tuple(int(Tag(tag)) for tag in tags[:MAX_STATUS_TAGS]) or None


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


_DETAIL_OF: Final[dict[str, Callable[[Any], Any]]] = {
    "error_comment": _comment,
    "offending_element": _tags,
    "error_id": _number,
    "attribute_identifier_list": _tags,
}


__all__ = ["Performance", "codes", "status_response"]

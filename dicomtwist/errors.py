"""
The exceptions of dicomtwist. The text of each says what went wrong and, if there is a remedy, names it.

.. code-block:: text

    DICOMError
    +-- ProtocolViolation         the peer violated PS3.7 or PS3.8
    |   +-- InvalidPDU            ... in a PDU
    |   +-- InvalidMessage        ... in a DIMSE message
    +-- InvalidState              the caller issued a primitive that Table 9-10 does not allow now
    +-- AssociationError          an association was not established or has ended
    |   +-- AssociationRejected   A-ASSOCIATE-RJ: result, source, reason
    |   +-- NoAcceptedContexts    established, but without an accepted presentation context
    |   +-- AssociationAborted    A-ABORT by the peer or by this side
    |   +-- AssociationLost       the connection was lost without A-ABORT or A-RELEASE
    |   +-- AssociationReleased   released in order while an operation was waiting
    |   +-- AssociationTimeout    a timer expired; the text names it
    +-- ExecutorFull              too many calls already wait for the threads of one purpose
    +-- PoolError                 a pool of associations gave up before a response arrived; see its cause
        +-- PoolFull              too many operations already wait
        +-- PoolStopped           the pool is stopped or being stopped
        +-- PoolTimeout           the time of the operation expired
        +-- RetriesExhausted      all attempts failed
    OperationFailed               the peer answered with a failure status
    TooManyAnswers                more answers arrived than the limit of a collection allows
    NotEstablished (RuntimeError)           a service was invoked without an association
    WouldDeadlock (RuntimeError)            a request would wait for the code that makes it
    ReactorConflict (RuntimeError)          another reactor is installed or running, or a call would block the reactor
    NoPresentationContext (ValueError)      no accepted context fits the service
    DataSetError (ValueError)               a data set cannot be encoded or decoded
    +-- DataSetTooLong            it has more bytes than may be collected in memory
    Refused                       a handler refuses an operation of the peer with a failure status
"""

from __future__ import annotations

from dicomtwist.dimse.status import Status


class DICOMError(Exception):
    """The base class of dicomtwist's own exceptions."""


class ProtocolViolation(DICOMError):
    """
    The peer violated the standard; the association is aborted.

    :ivar reason: the reason code of the A-ABORT PDU that answers it (PS3.8 9.3.8).
    """

    def __init__(self, message: str, reason: int = 6) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidPDU(ProtocolViolation):
    """A PDU that is unrecognised or malformed (PS3.8 9.3)."""


class InvalidMessage(ProtocolViolation):
    """A DIMSE message that is malformed, out of order or over a limit (PS3.7 6.3, 9.3, PS3.8 Annex E)."""


class InvalidState(DICOMError):
    """A service primitive was issued in a state in which PS3.8 Table 9-10 has no such event."""


#: PS3.8 Table 9-21, A-ASSOCIATE-RJ result.
REJECT_RESULTS = {1: "rejected permanently", 2: "rejected for now (transient)"}

#: PS3.8 Table 9-21, A-ASSOCIATE-RJ source.
REJECT_SOURCES = {
    1: "DICOM UL service user",
    2: "DICOM UL service provider (ACSE)",
    3: "DICOM UL service provider (presentation)",
}

#: PS3.8 Table 9-21, A-ASSOCIATE-RJ reason by (source, reason).
REJECT_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}

#: PS3.8 Table 9-26, A-ABORT reason; significant only if the source is the service provider.
ABORT_REASONS = {
    0: "reason not specified",
    1: "unrecognised PDU",
    2: "unexpected PDU",
    4: "unrecognised PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}


class AssociationError(DICOMError):
    """An association was not established, or ended before an operation was answered."""


class AssociationRejected(AssociationError):
    """
    The acceptor answered with A-ASSOCIATE-RJ (PS3.8 9.3.4).

    :ivar result: 1 permanent, 2 transient.
    :ivar source: 1 service user, 2 provider (ACSE), 3 provider (presentation).
    :ivar reason: the code, whose meaning depends on the source.
    """

    def __init__(self, result: int, source: int, reason: int) -> None:
        self.result, self.source, self.reason = result, source, reason
        super().__init__(
            f"association {self.result_text} by the {self.source_text}: {self.reason_text}"
            f" ({result}, {source}, {reason})"
        )

    @property
    def result_text(self) -> str:
        """The meaning of the result."""
        return REJECT_RESULTS.get(self.result, f"rejected with unknown result {self.result}")

    @property
    def source_text(self) -> str:
        """The meaning of the source."""
        return REJECT_SOURCES.get(self.source, f"unknown source {self.source}")

    @property
    def reason_text(self) -> str:
        """The meaning of the reason code."""
        return REJECT_REASONS.get((self.source, self.reason), f"unknown reason {self.reason}")

    @property
    def is_permanent(self) -> bool:
        """Whether another attempt is useless until someone changes the configuration of either side."""
        return self.result == 1


class NoAcceptedContexts(AssociationError):
    """The acceptor established the association but accepted none of the proposed presentation contexts."""


class AssociationAborted(AssociationError):
    """
    The association ended with A-ABORT (PS3.8 9.3.8).

    :ivar source: 0 service user, 2 service provider.
    :ivar reason: the reason code, significant only with source 2.
    :ivar by_peer: whether the peer sent the A-ABORT; if not, this side did.
    :ivar detail: the reason of this side as text, or an empty str.
    """

    def __init__(self, source: int = 0, reason: int = 0, *, by_peer: bool, detail: str = "") -> None:
        self.source, self.reason, self.by_peer, self.detail = source, reason, by_peer, detail
        text = "association aborted by " + ("the peer" if by_peer else "this side")
        if source == 2:
            text += f", {ABORT_REASONS.get(reason, f'unknown reason {reason}')}"
        if detail:
            text += f": {detail}"
        super().__init__(text)


class AssociationLost(AssociationError):
    """The transport connection was lost without A-RELEASE or A-ABORT."""


class AssociationReleased(AssociationError):
    """The association was released in order while an operation still waited for its response."""


class AssociationTimeout(AssociationError):
    """
    A timer expired and the association was aborted.

    :ivar timer: the timer: ``"connection"``, ``"acse"``, ``"dimse"``, ``"network"``, ``"pdu"`` or ``"write"``.
    :ivar seconds: its length, in seconds.
    """

    def __init__(self, timer: str, seconds: float, what: str) -> None:
        self.timer, self.seconds = timer, seconds
        super().__init__(f"{what} within {seconds:g} seconds ({timer} timeout)")


class OperationFailed(DICOMError):
    """
    The peer did not perform an operation, or not to its end.

    :ivar status: the :class:`~dicomtwist.dimse.status.Status` of its final response.
    :ivar result: the partial result, such as a :class:`~dicomtwist.scu.RetrievalResult`, or ``None``.
    """

    def __init__(self, status: Status, result: object = None) -> None:
        self.status = status
        self.result = result
        super().__init__(f"{status.service or 'the operation'} ended with {status}")


class Refused(DICOMError):
    """
    An operation of the peer is refused with a failure status.

    A handler of C-FIND, C-GET or C-MOVE may raise it to end the operation; the log then has a line, and no traceback.

    :param status: the status code; or a :class:`~dicomtwist.dimse.status.Status`, with the other fields of the response.
    :param comment: the reason; its first 64 characters are the Error Comment (0000,0902) of the response.
    :param service: the DIMSE service that is refused, such as ``"C-STORE"``, if it is known.
    :param details: further words for the log. They are not sent.

    :ivar status: the :class:`~dicomtwist.dimse.status.Status` to answer with.
    :ivar details: *details*.
    """

    def __init__(self, status: int, comment: str = "", service: str = "", *, details: str = "") -> None:
        super().__init__(comment)
        self.details = details
        self.status = status if isinstance(status, Status) else Status(status, service, comment[:64])


class TooManyAnswers(DICOMError):
    """More answers arrived than the limit of the collection allows."""


class NotEstablished(DICOMError, RuntimeError):
    """A service was invoked on an association that is not established."""


class WouldDeadlock(DICOMError, RuntimeError):
    """
    A request would wait for the code that makes it: for a handler that the peer waits for, for a loop over responses that
    come before its own, or for a place in a pool that the code itself holds. Or it is a C-GET that would wait for one of the
    peer, which would wait for it. The request was not sent, or the response to it is given up.
    """


class ReactorConflict(DICOMError, RuntimeError):
    """
    Twisted's reactor, of which a process has one, is in use in a way that does not go with the call: another kind of reactor is
    installed, it runs on another event loop, or the call would block its thread. The text says what to do.
    """


class NoPresentationContext(DICOMError, ValueError):
    """No accepted presentation context fits the SOP Class, the transfer syntax and the role."""


class DataSetError(DICOMError, ValueError):
    """
    A data set cannot be encoded or decoded.

    An exception of pydicom is the ``__cause__``; its text, which may contain values, is part of the text of this one.
    """


class DataSetTooLong(DataSetError):
    """A data set has more bytes than may be collected in memory, or more elements or values than may be decoded."""


#: The longest text of :func:`loggable`, in characters.
MAX_LOGGED = 300


def loggable(error: BaseException | None) -> str:
    """
    Return a description of *error* for the log: one line of printable characters, without the values that pydicom
    and databases quote.
    """
    if isinstance(error, DataSetError) and error.__cause__ is not None:
        return f"a data set cannot be decoded or encoded: {type(error.__cause__).__name__}"
    line = str(error).partition("\n")[0][:MAX_LOGGED]
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line) or type(error).__name__


class ExecutorFull(DICOMError):
    """
    The queue of an executor is full, so it rejects the call. A server refuses the request: out of resources.

    :ivar name: the purpose of the executor.
    :ivar max_queued: the maximum number of calls in its queue.
    """

    def __init__(self, name: str, max_queued: int) -> None:
        super().__init__(f"{max_queued} calls already wait for {name}")
        self.name = name
        self.max_queued = max_queued


class PoolError(DICOMError):
    """
    An :class:`~dicomtwist.pool.AssociationPool` gave up an operation. ``__cause__`` is the last failure, if there was one.

    :ivar attempts: the number of attempts that failed.
    """

    def __init__(self, message: str, attempts: int = 0, cause: BaseException | None = None) -> None:
        self.attempts = attempts
        if cause is not None:
            message = f"{message}; the last of {attempts} failed attempts: {cause}"
        super().__init__(message)
        self.__cause__ = cause


class PoolFull(PoolError):
    """The queue of operations that wait for an association is full."""


class PoolStopped(PoolError):
    """The pool was stopped before a response arrived."""


class PoolTimeout(PoolError):
    """
    The time in which an operation may wait and be retried expired.

    :ivar seconds: that time, in seconds.
    """

    def __init__(self, message: str, seconds: float, attempts: int = 0, cause: BaseException | None = None) -> None:
        super().__init__(message, attempts, cause)
        self.seconds = seconds


class RetriesExhausted(PoolError):
    """All attempts that an operation may have failed."""

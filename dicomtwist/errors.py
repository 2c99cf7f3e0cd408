"""
The exceptions of dicomtwist. Each says what went wrong and, where there is something to do, what.

.. code-block:: text

    DICOMError
    +-- ProtocolViolation         the peer sent what PS3.7 or PS3.8 forbid
    |   +-- InvalidPDU            ... in a PDU
    |   +-- InvalidMessage        ... in a DIMSE message
    +-- InvalidState              the caller asked for what Table 9-10 does not allow now
    +-- AssociationError          an association could not be made or has ended
    |   +-- AssociationRejected   A-ASSOCIATE-RJ: result, source, reason
    |   +-- NoAcceptedContexts    established, but with nothing that could be done
    |   +-- AssociationAborted    A-ABORT by the peer or by us
    |   +-- AssociationLost       the connection went away without A-ABORT or A-RELEASE
    |   +-- AssociationReleased   released in order while an operation was waiting
    |   +-- AssociationTimeout    a timer ran out, and which
    +-- ExecutorFull              too many calls wait for the threads of one purpose already
    +-- PoolError                 a pool of associations gave up before there was an answer; the cause says why
        +-- PoolFull              too many wait already
        +-- PoolStopped           it is stopped or being stopped
        +-- PoolTimeout           its time ran out
        +-- RetriesExhausted      all attempts failed
    OperationFailed               the peer answered with a failure status
    TooManyAnswers                a limit on what is collected was passed
    NotEstablished (RuntimeError)           a service was asked for without an association
    NoPresentationContext (ValueError)      no accepted context fits what was asked for
    DataSetError (ValueError)               a data set cannot be sent or decoded as it is
    +-- DataSetTooLong            it has more bytes than may be collected in memory
    Refused                       a handler refuses what the peer asked for, with a failure status
"""

from __future__ import annotations

from dicomtwist.dimse.status import Status


class DICOMError(Exception):
    """The base of dicomtwist's own exceptions."""


class ProtocolViolation(DICOMError):
    """
    The peer sent what the standard forbids; the association is aborted.

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

#: PS3.8 Table 9-26, A-ABORT reason; of significance only where the source is the service provider.
ABORT_REASONS = {
    0: "reason not specified",
    1: "unrecognised PDU",
    2: "unexpected PDU",
    4: "unrecognised PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}


class AssociationError(DICOMError):
    """An association could not be established, or has ended before an operation was answered."""


class AssociationRejected(AssociationError):
    """
    The acceptor answered with A-ASSOCIATE-RJ (PS3.8 9.3.4).

    :ivar result: 1 permanent, 2 transient.
    :ivar source: 1 service user, 2 provider (ACSE), 3 provider (presentation).
    :ivar reason: the code, with its meaning given by the source.
    """

    def __init__(self, result: int, source: int, reason: int) -> None:
        self.result, self.source, self.reason = result, source, reason
        super().__init__(
            f"association {self.result_text} by the {self.source_text}: {self.reason_text}"
            f" ({result}, {source}, {reason})"
        )

    @property
    def result_text(self) -> str:
        """The result in words."""
        return REJECT_RESULTS.get(self.result, f"rejected with unknown result {self.result}")

    @property
    def source_text(self) -> str:
        """The source in words."""
        return REJECT_SOURCES.get(self.source, f"unknown source {self.source}")

    @property
    def reason_text(self) -> str:
        """The reason in words."""
        return REJECT_REASONS.get((self.source, self.reason), f"unknown reason {self.reason}")

    @property
    def is_permanent(self) -> bool:
        """Whether trying again as it is will not help."""
        return self.result == 1


class NoAcceptedContexts(AssociationError):
    """The acceptor established the association but accepted none of the proposed presentation contexts."""


class AssociationAborted(AssociationError):
    """
    The association ended with A-ABORT (PS3.8 9.3.8).

    :ivar source: 0 service user, 2 service provider.
    :ivar reason: the reason code, of significance only with source 2.
    :ivar by_peer: whether the peer sent it; otherwise this side did.
    :ivar detail: what led this side to it, in words, or an empty str.
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
    """The transport connection went away without A-RELEASE or A-ABORT."""


class AssociationReleased(AssociationError):
    """The association was released in order while something still waited for an answer."""


class AssociationTimeout(AssociationError):
    """
    A timer ran out and the association was aborted.

    :ivar timer: which one: ``"connection"``, ``"acse"``, ``"dimse"``, ``"network"`` or ``"write"``.
    :ivar seconds: how long it was.
    """

    def __init__(self, timer: str, seconds: float, what: str) -> None:
        self.timer, self.seconds = timer, seconds
        super().__init__(f"{what} within {seconds:g} seconds ({timer} timeout)")


class OperationFailed(DICOMError):
    """
    The peer did not do what it was asked for, or not to its end.

    :ivar status: the :class:`~dicomtwist.dimse.status.Status` of its final response.
    :ivar result: what came of it all the same, such as a :class:`~dicomtwist.scu.RetrievalResult`, or ``None``.
    """

    def __init__(self, status: Status, result: object = None) -> None:
        self.status = status
        self.result = result
        super().__init__(f"{status.service or 'the operation'} ended with {status}")


class Refused(DICOMError):
    """
    An operation that the peer asked for is refused with a failure status.

    A handler of C-FIND, C-GET or C-MOVE may raise it to end the operation; the log then has a line, and no traceback.

    :param status: the status code; or a :class:`~dicomtwist.dimse.status.Status`, with what the response says beside it.
    :param comment: why, in words; the response has the first 64 characters as its Error Comment (0000,0902).
    :param service: the DIMSE service that is refused, such as ``"C-STORE"``, if it is known.

    :ivar status: the :class:`~dicomtwist.dimse.status.Status` to answer with.
    """

    def __init__(self, status: int, comment: str = "", service: str = "") -> None:
        super().__init__(comment)
        self.status = status if isinstance(status, Status) else Status(status, service, comment[:64])


class TooManyAnswers(DICOMError):
    """More answers came than were to be collected."""


class NotEstablished(DICOMError, RuntimeError):
    """A service was asked for on an association that is not established, or no longer."""


class NoPresentationContext(DICOMError, ValueError):
    """No accepted presentation context fits the SOP Class, the transfer syntax or the role that was asked for."""


class DataSetError(DICOMError, ValueError):
    """
    A data set cannot be sent or decoded as it is.

    Where pydicom says why, its exception is the ``__cause__``, and what it says, values too, is in the text of this one.
    """


class DataSetTooLong(DataSetError):
    """A data set has more bytes than may be collected in memory."""


#: The longest text of :func:`loggable`, in characters.
MAX_LOGGED = 300


def loggable(error: BaseException | None) -> str:
    """
    Return *error* in words for the log: one line, nothing in it that is not printable, and none of the values that pydicom
    and databases quote.
    """
    if isinstance(error, DataSetError) and error.__cause__ is not None:
        return f"a data set cannot be decoded or encoded: {type(error.__cause__).__name__}"
    line = str(error).partition("\n")[0][:MAX_LOGGED]
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line) or type(error).__name__


class ExecutorFull(DICOMError):
    """
    The queue of an executor is full, so that it does not take the call. A server refuses the request: out of resources.

    :ivar name: what the executor is for.
    :ivar max_queued: the most calls that wait in its queue.
    """

    def __init__(self, name: str, max_queued: int) -> None:
        super().__init__(f"{max_queued} calls wait for {name} already")
        self.name = name
        self.max_queued = max_queued


class PoolError(DICOMError):
    """
    An :class:`~dicomtwist.pool.AssociationPool` gave up. ``__cause__`` is the last failure, where there was one.

    :ivar attempts: how many attempts have failed.
    """

    def __init__(self, message: str, attempts: int = 0, cause: BaseException | None = None) -> None:
        self.attempts = attempts
        if cause is not None:
            message = f"{message}; the last of {attempts} failed attempts: {cause}"
        super().__init__(message)
        self.__cause__ = cause


class PoolFull(PoolError):
    """As many operations as may wait for an association do so already."""


class PoolStopped(PoolError):
    """The pool is stopped, or was before there was an answer."""


class PoolTimeout(PoolError):
    """
    The time that an operation may wait and be tried again ran out.

    :ivar seconds: how long it was.
    """

    def __init__(self, message: str, seconds: float, attempts: int = 0, cause: BaseException | None = None) -> None:
        super().__init__(message, attempts, cause)
        self.seconds = seconds


class RetriesExhausted(PoolError):
    """As many attempts as an operation has have all failed."""

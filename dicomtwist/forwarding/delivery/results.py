"""
Results of sending an instance, and what follows from each: it is done, it is sent again, or it has failed. No I/O.

The reference page of store and forward has the same table in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from twisted.internet.error import ConnectError

from dicomtwist.dicomweb.client.errors import (
    AccessDenied,
    InvalidResponse,
    NoConnection,
    RequestFailed,
    RequestTimeout,
    ResourceNotFound,
    ServerUnavailable,
)
from dicomtwist.dimse.status import StatusCategory, category, failure_reason, meaning
from dicomtwist.errors import (
    AssociationError,
    DataSetError,
    ExecutorFull,
    NoAcceptedContexts,
    NoPresentationContext,
    NotEstablished,
    PoolError,
    loggable,
)
from dicomtwist.forwarding.delivery.breaker import LONGEST_ASKED
from dicomtwist.forwarding.tasks.types import MAX_SAID
from dicomtwist.part10 import NotDicomFile
from dicomtwist.runtime.backoff import Backoff

__all__ = ["Action", "DONE", "MAX_TRIES", "Result", "delays", "of_connecting", "of_error", "of_reason", "of_status"]

#: The tries after which a failure that may concern the instance alone counts as final. With the delays below they take about
#: four hours.
MAX_TRIES: Final = 12
#: The tries after which an instance that the source does not have, or cannot read, has failed.
MAX_MISSING: Final = 4
#: The delays before an instance is sent again, in seconds.
FIRST_DELAY: Final = 10.0
LONGEST_DELAY: Final = 3600.0
#: The tries after which an instance has failed that a service has not stored, and says no reason for.
MAX_UNEXPLAINED: Final = 4


class Action(StrEnum):
    """The consequence of a result."""

    DONE = "done"
    """The destination has the instance."""
    RETRY = "retry"
    """The instance is sent again after a delay."""
    FAIL = "fail"
    """The instance has failed for good at this destination. A user can have it sent again."""


@dataclass(frozen=True, slots=True)
class Result:
    """
    The result of an attempt to send an instance.

    :ivar action: what follows.
    :ivar said: the words of the peer, or about what happened; empty for a plain success.
    :ivar most: the tries after which :attr:`Action.RETRY` becomes :attr:`Action.FAIL`; 0 for no limit.
    :ivar is_down: whether the destination as a whole cannot be used, so that other instances would fare no better.
    :ivar is_lost: whether the connection ended before the answer, which may have had another instance as its cause.
    :ivar is_sent: whether the instance was sent, or may have been; if not, the attempt is no try of it.
    :ivar after: the seconds after which the destination wants to be asked again; ``None`` if it did not say.
    """

    action: Action
    said: str = ""
    most: int = 0
    is_down: bool = False
    is_lost: bool = False
    is_sent: bool = True
    after: float | None = None

    def at(self, tries: int) -> Result:
        """Return the result for an instance that has been tried *tries* times, this time included."""
        if self.action is Action.RETRY and self.most and tries >= self.most:
            return Result(Action.FAIL, f"{self.said}; given up after {tries} tries"[:MAX_SAID])
        return self


DONE: Final = Result(Action.DONE)


def delays(jitter: Callable[[], float]) -> Callable[[int], float]:
    """
    Return the delays in seconds before the next try by the number of tries: 10, 20, 40 ... 3600.

    :param jitter: returns a number from 0 to 1, such as ``random.random``; a delay becomes longer by up to a quarter.
    """
    backoff = Backoff(FIRST_DELAY, LONGEST_DELAY)
    return lambda tries: backoff(tries) * (1 + jitter() / 4)


# --- DIMSE (PS3.4 B.2.3, PS3.7 Annex C)

#: The statuses of failure, by ranges: the first that fits counts. A status in none of them may pass or not, so the instance is
#: tried again up to MAX_TRIES times. A failure that is tried again without a limit is one of the destination, not of the
#: instance.
_FAILURES: Final[tuple[tuple[int, int, Action, int], ...]] = (
    (0x0105, 0x0106, Action.FAIL, 0),  # no such attribute, invalid attribute value
    (0x0110, 0x0110, Action.RETRY, MAX_TRIES),  # processing failure
    (0x0111, 0x0111, Action.DONE, 0),  # duplicate SOP Instance: the destination has it
    (0x0112, 0x0115, Action.FAIL, 0),  # no such instance, event, argument; invalid argument value
    (0x0117, 0x0122, Action.FAIL, 0),  # invalid instance, no such class, missing attributes, class not supported
    (0x0124, 0x0124, Action.RETRY, 0),  # not authorised: the configuration of the destination, which its owner changes
    (0x0210, 0x0210, Action.RETRY, MAX_TRIES),  # duplicate invocation
    (0x0211, 0x0212, Action.FAIL, 0),  # unrecognised operation, mistyped argument
    (0x0213, 0x0213, Action.RETRY, 0),  # resource limitation
    (0xA700, 0xA7FF, Action.RETRY, 0),  # out of resources
    (0xA900, 0xA9FF, Action.FAIL, 0),  # the data set does not match the SOP Class
    (0xC211, 0xC211, Action.RETRY, MAX_TRIES),  # pynetdicom and this package: a handler raised an exception
    (0xC000, 0xCFFF, Action.FAIL, 0),  # cannot understand
)


def of_status(code: int, comment: str | None = None, sop_class: str = "") -> Result:
    """
    Return the result that the status of a C-STORE response means.

    :param comment: Error Comment (0000,0902).
    :param sop_class: the SOP Class UID of the instance.
    """
    kind = category(code)
    if kind is StatusCategory.SUCCESS:
        return DONE
    return _of_code(code, _words(f"0x{code:04X} {meaning(code, 'C-STORE', sop_class)}", comment))


def of_reason(code: int, words: str = "") -> Result:
    """
    Return the result that a Failure Reason (0008,1197) means, of STOW-RS or of a storage commitment.

    :param words: further words about it.
    """
    return _of_code(code, _words(f"0x{code:04X} {failure_reason(code)}" if code else "the peer gave no reason", words))


def _of_code(code: int, said: str) -> Result:
    if category(code) is StatusCategory.WARNING:
        return Result(Action.DONE, said)
    for first, last, action, most in _FAILURES:
        if first <= code <= last:
            return Result(action, said, most, is_down=action is Action.RETRY and not most)
    return Result(Action.RETRY, said, MAX_TRIES)


# --- HTTP (PS3.18 10.5.3)

#: The status codes that concern the instances of the request.
_OF_INSTANCE: Final = frozenset((400, 409, 411, 413, 415, 422))


def _of_request(error: RequestFailed) -> Result:
    said = _words(str(error))
    after = None if error.retry_after is None else min(error.retry_after, LONGEST_ASKED)
    if isinstance(error, AccessDenied | ResourceNotFound | ServerUnavailable):
        return Result(Action.RETRY, said, is_down=True, after=after)
    if error.status in _OF_INSTANCE:
        return Result(Action.FAIL, said)
    if error.status in (301, 302, 303, 307, 308, 405, 407, 408, 501, 505, 507):
        # Another address, no such service, or no room: it concerns all instances.
        return Result(Action.RETRY, said, is_down=True, after=after)
    return Result(Action.RETRY, said, MAX_TRIES, after=after)


# --- errors


def of_connecting(error: BaseException) -> Result:
    """Return the result for an instance if no connection with the destination can be made because of *error*."""
    if isinstance(error, NoAcceptedContexts):
        return Result(Action.FAIL, "the peer accepts no presentation context for the instance")
    cause = error.__cause__ if isinstance(error, PoolError) and error.__cause__ is not None else error
    if isinstance(cause, NoAcceptedContexts):
        return of_connecting(cause)
    return Result(Action.RETRY, _words(loggable(cause)), is_down=True, is_sent=False)


def of_error(error: BaseException) -> Result:
    """Return the result of an attempt that ended with *error*."""
    if isinstance(error, RequestFailed):
        return _of_request(error)
    said = _words(loggable(error))
    if isinstance(error, NoConnection) and isinstance(error.__cause__, ConnectError | OSError):
        return of_connecting(error)
    if isinstance(error, NoConnection | RequestTimeout):
        return Result(Action.RETRY, said, is_lost=True)
    if isinstance(error, InvalidResponse):
        return Result(Action.RETRY, said, MAX_TRIES)
    if isinstance(error, AssociationError | NotEstablished):
        return Result(Action.RETRY, said, is_lost=True)
    if isinstance(error, PoolError):
        return of_connecting(error)
    if isinstance(error, NoPresentationContext | DataSetError | NotDicomFile):
        return Result(Action.FAIL, said)
    if isinstance(error, ExecutorFull):
        return Result(Action.RETRY, said, is_sent=False)
    if isinstance(error, OSError | LookupError):
        return Result(Action.RETRY, said, MAX_MISSING)
    return Result(Action.RETRY, said, MAX_TRIES)


def _words(*parts: str | None) -> str:
    text = ": ".join(part for part in parts if part)
    return " ".join("".join(one if one.isprintable() else " " for one in text[: 2 * MAX_SAID]).split())[:MAX_SAID]

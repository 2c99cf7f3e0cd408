"""
The requests of a retrieval, and their results.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from pydicom import Dataset

from dicomtwist.dimse.status import Status

__all__ = ["Outcome", "Progress", "Request", "RequestResult", "Totals", "refusals"]

#: The most failed instances that a result lists.
MAX_LISTED: Final = 100
#: The most reasons of refused instances that a text has.
_NAMED_REASONS: Final = 3


class Outcome(enum.StrEnum):
    """The outcome of a request, in a word."""

    RETRIEVED = "retrieved"
    """All instances are in the folder."""
    NOT_FOUND = "not found"
    """The peer has nothing that matches."""
    FAILED = "failed"
    """Something that matches is not in the folder, or it is not known whether something matches."""
    INTERRUPTED = "interrupted"
    """The retrieval was stopped before the request was complete."""
    DONE_BEFORE = "done before"
    """The journal has it as complete, so that it was not retrieved again."""


@dataclass(slots=True)
class Request:
    """
    One thing to retrieve.

    :ivar keys: the keys that it matches. With a Study Instance UID, and the UIDs below it, they are retrieved as they are; with
        any other keys the studies that match are found first.
    :ivar level: the Query/Retrieve Level, ``""`` for that of the lowest unique key.
    :ivar label: a mark by which the caller knows it.
    :ivar error: why it cannot be retrieved, so that it fails alone; ``""`` otherwise.
    """

    keys: Dataset
    level: str = ""
    label: object = None
    error: str = ""


@dataclass(slots=True)
class RequestResult:
    """
    The result of one request.

    :ivar request: the request.
    :ivar outcome: in a word.
    :ivar error: why something failed, ``""`` if nothing did.
    :ivar reason: a fixed word for what can be done: ``"no class"`` if the peer accepts none of the SOP Classes to receive,
        ``"no role"`` if it does not accept that we receive over this association (PS3.7 D.3.3.4), ``"unsent"`` if it has
        instances and did not send them, mostly since no presentation context has their SOP Class and transfer syntax.
    :ivar entities: the number of studies, series or instances that were asked for after a search; 1 without.
    :ivar stored: the number of instances that were stored.
    :ivar existing: the number of instances that were in the folder already.
    :ivar collisions: the number of files whose name had to be changed, since another instance had it.
    :ivar refused: the number of instances that this side refused, by reason.
    :ivar completed: the number of sub-operations that the peer reports as completed.
    :ivar warning: the number of those that ended with a warning.
    :ivar failed: the number of instances that the peer did not send.
    :ivar remaining: the number of instances that were not sent because of a cancellation.
    :ivar failed_instances: the SOP Instance UIDs of the first of those that failed.
    :ivar status: the status of the last operation, ``None`` if there was none.
    """

    request: Request
    outcome: Outcome = Outcome.FAILED
    error: str = ""
    reason: str = ""
    entities: int = 0
    stored: int = 0
    existing: int = 0
    collisions: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    warning: int = 0
    failed: int = 0
    remaining: int | None = None
    failed_instances: list[str] = field(default_factory=list)
    status: Status | None = None


def refusals(refused: Counter[str]) -> str:
    """Return in words how many instances this side refused, by reason; nothing if it refused none."""
    return "; ".join(
        f"{count} instance{' was' if count == 1 else 's were'} refused here: {reason}"
        for reason, count in refused.most_common(_NAMED_REASONS)
    )


@dataclass(slots=True)
class Totals:
    """
    The sum of all results.

    :ivar requests: the number of requests by outcome.
    :ivar collisions: see :class:`RequestResult`, as the others.
    """

    requests: Counter[Outcome] = field(default_factory=Counter)
    stored: int = 0
    existing: int = 0
    collisions: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    warning: int = 0
    failed: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything that was requested is in the folder."""
        return set(self.requests) <= {Outcome.RETRIEVED, Outcome.DONE_BEFORE}

    def add(self, result: RequestResult) -> None:
        """Add a result."""
        self.requests[result.outcome] += 1
        self.refused.update(result.refused)
        for name in ("stored", "existing", "collisions", "completed", "warning", "failed"):
            setattr(self, name, getattr(self, name) + getattr(result, name))


@dataclass(slots=True)
class Progress:
    """
    How far a retrieval is.

    :ivar done: the number of requests with a result.
    :ivar instances: the number of instances that are in the folder.
    :ivar expected: the number of instances that the peer has to send for the requests under way and those before.
    :ivar failed: the number of instances that failed.
    """

    done: int = 0
    instances: int = 0
    expected: int = 0
    failed: int = 0

"""Requests on their way through a retriever, by C-GET or DICOMweb."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from dicomtwist.retrieval.folder import Receipt
from dicomtwist.retrieval.results import Request, RequestResult
from dicomtwist.retrieval.selection import Target

__all__ = ["RequestWork", "RetrievalStopped", "asynchronous"]


class RetrievalStopped(Exception):
    """The retrieval was stopped, or the peer cannot be used any more."""


@dataclass(slots=True, eq=False)
class RequestWork:
    """A request under way: its targets, the number of those that are done, and a receipt for each that has begun."""

    result: RequestResult
    targets: list[Target] | None = None
    done: int = 0
    receipts: list[Receipt] = field(default_factory=list)


async def asynchronous(requests: Iterable[Request]) -> AsyncIterator[Request]:
    """Yield *requests*, one at a time."""
    for request in requests:
        yield request

"""
The alternatives of a negotiation: if the best representation of a resource cannot be made, the next one is given.

A negotiation knows the transfer syntax of what is stored, but not whether a codec can decode or encode it. That is known when a
representation is made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from twisted.logger import Logger

from dicomtwist.dicomweb.media_types import Representation
from dicomtwist.errors import DataSetError, loggable
from dicomtwist.pixels.errors import InvalidView, NoSuchFrame, PixelsFailed, PixelsStopped, UnsupportedPixels
from dicomtwist.web.problems import Problem
from dicomtwist.web.wado.delivery import NOT_ACCEPTABLE, problems_of_stored

__all__ = ["first_made", "is_of_representation"]

T = TypeVar("T")

_log = Logger()


def is_of_representation(error: BaseException) -> bool:
    """Return whether another representation may be possible in spite of *error*: that is not so if the request is at fault."""
    return isinstance(error, DataSetError) and not isinstance(error, PixelsStopped | NoSuchFrame | InvalidView)


async def first_made(
    alternatives: Iterable[Representation],
    make: Callable[[Representation], Awaitable[T]],
    what: str,
) -> T:
    """
    Return what *make* returns for the first of *alternatives* that it can make. If pixel data cannot be decoded, only those are
    tried that need no conversion: the others would fail as well, after as long a time.

    :param what: the resource, for the log.
    :raises Problem: there are no alternatives, or the data set is damaged (406).
    :raises PixelsFailed: the error of the first, if none can be made.
    """
    first: DataSetError | None = None
    is_undecodable = False
    for representation in alternatives:
        if is_undecodable and representation.transfer_syntax is not None:
            continue
        try:
            return await make(representation)
        except DataSetError as error:
            if not is_of_representation(error):
                raise
            _log.info(
                "{what} is not given as {representation}: {reason}",
                what=what,
                representation=representation.part_type(representation.transfer_syntax or ""),
                reason=loggable(error),
            )
            is_undecodable = is_undecodable or (
                isinstance(error, PixelsFailed) and not isinstance(error, UnsupportedPixels)
            )
            first = first or error
    if first is None:
        raise Problem(406, NOT_ACCEPTABLE)
    if isinstance(first, PixelsFailed):
        raise first
    with problems_of_stored():
        raise first

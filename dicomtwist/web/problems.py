"""
Problems: the exceptions that become the response to a request of DICOMweb, and the responses to other exceptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from dicomtwist.archive.query.compiler import InvalidIdentifier
from dicomtwist.archive.removal.holds import StudyLocked
from dicomtwist.archive.removal.remover import NotInArchive
from dicomtwist.archive.storage.types import NO_ROOM, IndexFailed, StoreError
from dicomtwist.dicomweb.media_types import MediaTypeError
from dicomtwist.dicomweb.multipart import MultipartError, MultipartTooLarge
from dicomtwist.dicomweb.parameters import ParameterError
from dicomtwist.errors import DataSetError, ExecutorFull
from dicomtwist.pixels.errors import (
    InvalidPixels,
    InvalidView,
    NoSuchFrame,
    NotEncoded,
    PixelsFailed,
    PixelsStopped,
    PixelsTooLarge,
    UnsupportedPixels,
)
from dicomtwist.web.http.body import BodyFailed, BodyTooLong

__all__ = ["RETRY_AFTER", "Problem", "problem_of"]

#: The seconds after which a client may repeat a request that was refused because too much waits.
RETRY_AFTER: Final = 5


class Problem(Exception):
    """
    A request that is refused, or fails. A handler raises it, and it becomes the response.

    :param status: the status code of the response.
    :param words: the reason, for the client, without any value of a data set or of the index.
    :param headers: header fields of the response.
    """

    def __init__(self, status: int, words: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(words)
        self.status = HTTPStatus(status)
        self.words = words
        self.headers = tuple(headers)


def problem_of(error: BaseException) -> Problem | None:
    """
    Return the problem that an exception is for the client; ``None`` for an error of this program, whose response is 500.

    Its words come from this program, never from the operating system or the database.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, MediaTypeError | MultipartError | ParameterError | InvalidIdentifier):
        return Problem(413 if isinstance(error, MultipartTooLarge) else 400, str(error))
    if isinstance(error, PixelsFailed):
        return _problem_of_pixels(error)
    if isinstance(error, DataSetError):
        return Problem(400, str(error) if error.__cause__ is None else "a data set that cannot be read")
    if isinstance(error, BodyTooLong):
        return Problem(413, str(error))
    if isinstance(error, BodyFailed):
        return Problem(error.status, str(error))
    if isinstance(error, ExecutorFull):
        return _later("too many requests wait")
    if isinstance(error, NotInArchive):
        return Problem(404, str(error))
    if isinstance(error, StudyLocked):
        return Problem(409, str(error))
    if isinstance(error, IndexFailed):
        return _later("the index cannot be read or written now")
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return Problem(507, "there is no room in the storage")
    if isinstance(error, StoreError):
        return _later("the storage is not available now")
    return None


def _problem_of_pixels(error: PixelsFailed) -> Problem:
    if isinstance(error, PixelsStopped):
        return _later("the server stops")
    if isinstance(error, NoSuchFrame):
        return Problem(404, str(error))
    if isinstance(error, InvalidView):
        return Problem(400, str(error))
    if isinstance(error, UnsupportedPixels):
        words = "its codec does not encode it" if isinstance(error, NotEncoded) else str(error)
        return Problem(406, f"the instance cannot be rendered or converted: {words}")
    if isinstance(error, PixelsTooLarge):
        return Problem(413, str(error))
    # The words of a codec may quote what the file has.
    if isinstance(error, InvalidPixels):
        return Problem(406, "the pixel data cannot be decoded")
    return Problem(500, "the pixel data cannot be decoded")


def _later(words: str) -> Problem:
    return Problem(503, words, [("Retry-After", str(RETRY_AFTER))])

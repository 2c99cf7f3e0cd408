"""
The exceptions of the DICOMweb client. The text of each has the server's words, if it gave any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from dicomtwist.errors import DICOMError

__all__ = [
    "AccessDenied",
    "DICOMwebError",
    "InvalidResponse",
    "NoConnection",
    "RequestFailed",
    "RequestTimeout",
    "ResourceNotFound",
    "ServerUnavailable",
    "request_failed",
]

#: The most characters of the server's words that an exception has.
MAX_WORDS: Final = 500

#: The names of status codes that a server of DICOMweb sends (PS3.18 8.5).
_NAMES: Final = {
    301: "Moved Permanently",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    409: "Conflict",
    410: "Gone",
    411: "Length Required",
    413: "Payload Too Large",
    415: "Unsupported Media Type",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    507: "Insufficient Storage",
}


class DICOMwebError(DICOMError):
    """A request of DICOMweb failed; the subclasses say why."""


class NoConnection(DICOMwebError):
    """The server cannot be reached, or the connection was lost before the response had arrived; the cause is the reason."""


class RequestTimeout(DICOMwebError):
    """
    The server took too long.

    :ivar timer: ``"connection"``, ``"response"`` for the header of the response, or ``"idle"`` for a pause in its body.
    :ivar seconds: the limit.
    """

    def __init__(self, timer: str, seconds: float) -> None:
        self.timer, self.seconds = timer, seconds
        words = {
            "connection": "no connection was made",
            "response": "the server sent no response",
            "idle": "the server sent nothing more of the response",
        }
        super().__init__(f"{words[timer]} within {seconds:g} seconds")


class InvalidResponse(DICOMwebError):
    """The server sent something that is not a response of DICOMweb, or exceeds a limit."""


class RequestFailed(DICOMwebError):
    """
    The server answered with a status code of failure.

    :ivar status: the status code, such as 409.
    :ivar words: the reason that the server gave in the body of its response; empty without one.
    :ivar retry_after: the seconds after which the server wants the request again; ``None`` if it did not say.
    :ivar body: the body of the response, or its beginning, for a response that says more than words.
    """

    body = b""

    def __init__(self, status: int, words: str = "", retry_after: float | None = None) -> None:
        self.status, self.words, self.retry_after = status, words, retry_after
        name = _NAMES.get(status, "")
        text = f"the server answered {status}" + (f" ({name})" if name else "")
        super().__init__(f"{text}: {words}" if words else text)


class AccessDenied(RequestFailed):
    """The server does not know the user, or the user may not do this: 401 or 403."""


class ResourceNotFound(RequestFailed):
    """The server has no such study, series, instance or other resource: 404 or 410."""


class ServerUnavailable(RequestFailed):
    """The server cannot handle the request now: 429, 502, 503 or 504."""


_CLASSES: Final[Mapping[int, type[RequestFailed]]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: ResourceNotFound,
    410: ResourceNotFound,
    **dict.fromkeys((429, 502, 503, 504), ServerUnavailable),
}


def request_failed(
    status: int, media_type: str = "", body: bytes = b"", warning: str = "", retry_after: str = ""
) -> RequestFailed:
    """
    Return the exception of a response.

    :param status: its status code.
    :param media_type: the media type of its body.
    :param body: its body, or the beginning of that.
    :param warning: its header field Warning, whose text counts if the body has none.
    :param retry_after: its header field Retry-After; a date is not taken.
    """
    words = _words(media_type, body) or warning
    cleaned = " ".join("".join(one if one.isprintable() else " " for one in words).split())
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else None
    error = _CLASSES.get(status, RequestFailed)(status, cleaned[:MAX_WORDS], seconds)
    error.body = body
    return error


def _words(media_type: str, body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    if media_type.endswith("json"):
        try:
            return _json_words(json.loads(text))
        except (ValueError, RecursionError):
            return text[: 2 * MAX_WORDS]
    return text[: 2 * MAX_WORDS] if media_type.startswith("text/") and media_type != "text/html" else ""


def _json_words(document: Any) -> str:
    """Return the words in a JSON document; Orthanc, dcm4chee, Azure and this server have different names for them."""
    if isinstance(document, str):
        return document
    if not isinstance(document, dict):
        return ""
    names = ("words", "Details", "errorMessage", "detail", "message", "Message", "error")
    found: list[str] = []
    for name in names:
        value = document.get(name)
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str) and value and value not in found:
            found.append(value)
    return ": ".join(found[:2])

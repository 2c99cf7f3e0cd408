"""
The API of a running server, as the subcommands for operators use it: JSON over HTTP, with a token if there is one.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

__all__ = ["OperationFailed", "ServerAPI", "open_server"]

#: The time in which the server answers, in seconds.
TIMEOUT: Final = 600.0
#: The longest answer of a server in JSON, in bytes.
MAX_ANSWER: Final = 64 * 1024 * 1024


class OperationFailed(Exception):
    """An operation failed; the text says why."""


class _NoRedirects(HTTPRedirectHandler):
    """The token is for one server: a redirection is an error."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class ServerAPI:
    """
    The API of a server.

    :param url: the URL of its site.
    :param token: a token of a user; empty without one.
    :param tls: the TLS context for https.
    """

    def __init__(self, url: str, token: str, tls: ssl.SSLContext) -> None:
        self._url = url.rstrip("/")
        self._token = token
        # A proxy of the environment is not for the server of this machine or this network.
        self._opener = build_opener(ProxyHandler({}), _NoRedirects(), HTTPSHandler(context=tls))

    @property
    def url(self) -> str:
        """The URL of the site, without a slash at its end."""
        return self._url

    @contextmanager
    def response(self, method: str, path: str, body: Any = None, accept: str = "application/json") -> Iterator[Any]:
        """
        Return the response to a request, open.

        :param body: bytes of a DICOM file, or anything that JSON can have.
        :raises OperationFailed: there is none, or the server refuses.
        """
        headers = {"Accept": accept}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/dicom" if isinstance(body, bytes) else "application/json"
        try:
            with self._opener.open(
                Request(f"{self._url}{path}", data, headers, method=method), timeout=TIMEOUT
            ) as response:
                yield response
        except HTTPError as error:
            raise OperationFailed(_words(error)) from None
        except URLError as error:
            raise OperationFailed(f"cannot reach {self._url}: {error.reason}") from None
        except (OSError, HTTPException, UnicodeError) as error:
            raise OperationFailed(f"the connection to {self._url} failed: {error}") from None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """
        Return the answer to a request, decoded.

        :param path: the path below ``/api``.
        :raises OperationFailed: there is none, or it is not JSON.
        """
        with self.response(method, f"/api{path}", body) as response:
            text = response.read(MAX_ANSWER + 1)
        try:
            return json.loads(text) if 0 < len(text) <= MAX_ANSWER else None
        except (ValueError, RecursionError):
            raise self.is_another() from None

    def is_another(self) -> OperationFailed:
        """Return the error for answers that are not those of twist dicom."""
        return OperationFailed(f"{self._url} has other answers below /api: is it the site of twist dicom --http?")

    def checked(self, answer: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return an answer, an object that has these fields.

        :raises OperationFailed: it has not.
        """
        if not isinstance(answer, dict) or not all(isinstance(answer.get(key), kind) for key, kind in fields.items()):
            raise self.is_another()
        return answer


def open_server(url: str, token_file: Path | None, roots: Path | None) -> ServerAPI:
    """
    Return the API of a server.

    :param token_file: the file of a token, ``None`` without one.
    :param roots: certificates of authorities to trust, ``None`` for those of the system.
    :raises OperationFailed: the URL or a file cannot be used; the text says why.
    """
    try:
        is_url = urlsplit(url).scheme in ("http", "https")
    except ValueError:
        is_url = False
    if not is_url:
        raise OperationFailed(f"{url} is not a URL of HTTP")
    try:
        token = "" if token_file is None else token_file.read_text("ascii").strip()
        if not token.isprintable():  # it is not shown
            raise ValueError(f"{token_file} has other characters than a token has, such as a second line")
        tls = ssl.create_default_context(cafile=None if roots is None else os.fspath(roots))
    except (OSError, ValueError) as error:
        raise OperationFailed(f"cannot read a file of the options: {error}") from None
    return ServerAPI(url, token, tls)


def _words(error: HTTPError) -> str:
    """Return why the server refuses."""
    with suppress(ValueError, OSError):
        found = json.loads(error.read(64 * 1024))
        if isinstance(found, dict) and isinstance(found.get("words"), str):
            return f"the server answers {error.code}: {found['words']}"
    return f"the server answers {error.code} {error.reason}"

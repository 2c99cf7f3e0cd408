"""
The address of a peer that speaks DICOMweb, in text form: a base URL, and settings behind it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from dicomtwist.endpoints import EndpointError, client_tls_options
from dicomtwist.runtime.regular_files import open_regular
from dicomtwist.transport.peer_address import check_url

__all__ = ["WebPeer", "check_web_peer", "read_web_peer"]

#: The longest token or password in a file, in bytes.
MAX_WEB_SECRET: Final = 16 * 1024

#: The settings with which TLS is used, as in the endpoint strings of ``dicomtls:``.
_TLS: Final = ("trustRoots", "privateKey", "certKey", "crl")
_SETTINGS: Final = ("tokenFile", "user", "passwordFile", *_TLS)
_SETTING: Final = re.compile(r"([A-Za-z]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WebPeer:
    """
    A peer that speaks DICOMweb.

    :ivar url: the base URL of the service.
    :ivar token: the bearer token of its requests (RFC 6750), empty for none.
    :ivar user: name and password for Basic authentication (RFC 7617), or ``None``.
    :ivar tls: makes the TLS connections; ``None`` to trust the certificate authorities of the system.
    """

    url: str
    token: str = field(default="", repr=False)
    user: tuple[str, str] | None = field(default=None, repr=False)
    tls: Any = field(default=None, repr=False, compare=False)


def check_web_peer(text: str) -> tuple[str, dict[str, str]]:
    """
    Return the base URL of a peer and its settings, without the files that they name.

    :param text: the URL, and settings behind it such as ``tokenFile=/etc/dicom/cloud.token``, separated by spaces. A path with
        spaces is quoted as in a shell.
    :raises ValueError: it is wrong; the text says how, and repeats no password.
    """
    try:
        url, *words = shlex.split(text.strip())
    except ValueError:
        raise ValueError("a quotation mark has no end") from None
    url = check_url(url)
    settings: dict[str, str] = {}
    for word in words:
        found = _SETTING.fullmatch(word)
        if found is None or found[1] not in _SETTINGS:
            raise ValueError(f"behind the URL there is something else than a setting: {', '.join(_SETTINGS)}")
        if found[1] in settings:
            raise ValueError(f"{found[1]} is there twice")
        settings[found[1]] = found[2]
    _check(url, settings)
    return url, settings


def _check(url: str, settings: Mapping[str, str]) -> None:
    if "tokenFile" in settings and ("user" in settings or "passwordFile" in settings):
        raise ValueError("tokenFile and user contradict each other: a request has one user")
    if ("user" in settings) != ("passwordFile" in settings):
        raise ValueError("user and passwordFile belong together")
    if ":" in settings.get("user", ""):
        raise ValueError("the name of a user of HTTP has no colon")
    if ("privateKey" in settings) != ("certKey" in settings):
        raise ValueError("privateKey and certKey belong together")
    if not url.lower().startswith("https:"):
        if settings.keys() & set(_TLS):
            raise ValueError(f"{', '.join(name for name in _TLS if name in settings)} needs a URL with https")
        if settings and not _is_here(url):
            raise ValueError("a token or a password would be sent without TLS: write https")


def _is_here(url: str) -> bool:
    """Return whether the host of a URL is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_web_peer(text: str) -> WebPeer:
    """
    Return a peer with what its files hold. It blocks.

    :param text: see :func:`check_web_peer`.
    :raises ValueError: it is wrong, or a file cannot be used; the text contains no secret.
    """
    url, settings = check_web_peer(text)
    token = _secret("tokenFile", settings)
    user = (settings["user"], _secret("passwordFile", settings)) if "user" in settings else None
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("tokenFile: the file has no token in one line of ASCII")
    tls = None
    if settings.keys() & set(_TLS):
        try:
            tls = client_tls_options(
                *(
                    urlsplit(url).hostname or "",
                    settings.get("trustRoots"),
                    settings.get("privateKey"),
                    settings.get("certKey"),
                ),
                crl=settings.get("crl"),
            )
        except EndpointError as error:
            raise ValueError(str(error)) from None
    return WebPeer(url, token, user, tls)


def _secret(name: str, settings: Mapping[str, str]) -> str:
    if name not in settings:
        return ""
    try:
        with open_regular(settings[name]) as file:
            data = file.read(MAX_WEB_SECRET + 1)
        text = data.decode().strip("\r\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: the file cannot be read: {getattr(error, 'strerror', 'it is not text')}") from None
    if not text or len(data) > MAX_WEB_SECRET:
        raise ValueError(f"{name}: the file is empty, or has more than {MAX_WEB_SECRET} bytes")
    return text

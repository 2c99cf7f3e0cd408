"""
The address of a peer that speaks DICOMweb, in text form: a base URL, and settings behind it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dicomtwist.dicomweb.urls import BaseURL
from dicomtwist.endpoints import EndpointError, client_tls_options
from dicomtwist.runtime.regular_files import read_short

__all__ = ["DICOMwebPeer", "check_dicomweb_peer", "read_dicomweb_peer"]

#: The longest token or password in a file, in bytes.
MAX_WEB_SECRET: Final = 16 * 1024

#: The settings with which TLS is used, as in the endpoint strings of ``dicomtls:``.
_TLS: Final = ("trustRoots", "privateKey", "certKey", "crl")
_SETTINGS: Final = ("tokenFile", "user", "passwordFile", *_TLS)
_SETTING: Final = re.compile(r"([A-Za-z]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DICOMwebPeer:
    """
    A peer that speaks DICOMweb.

    :ivar url: the base URL of the service.
    :ivar token: the bearer token of its requests (RFC 6750), empty for none.
    :ivar user: name and password for Basic authentication (RFC 7617), or ``None``.
    :ivar tls: makes the TLS connections; ``None`` to trust the certificate authorities of the system.
    """

    url: BaseURL
    token: str = field(default="", repr=False)
    user: tuple[str, str] | None = field(default=None, repr=False)
    tls: Any = field(default=None, repr=False, compare=False)


def check_dicomweb_peer(text: str) -> tuple[BaseURL, dict[str, str]]:
    """
    Return the base URL of a peer and its settings, without the files that they name.

    :param text: the URL, and settings behind it such as ``tokenFile=/etc/dicom/cloud.token``, separated by spaces. A path with
        spaces is quoted as in a shell.
    :raises ValueError: it is wrong; the text says how, and repeats no password.
    """
    try:
        url, *words = shlex.split(text) or [""]
    except ValueError:
        raise ValueError("a quotation mark has no end") from None
    base = BaseURL.parse(url)
    settings: dict[str, str] = {}
    for word in words:
        found = _SETTING.fullmatch(word)
        if found is None or found[1] not in _SETTINGS:
            raise ValueError(f"behind the URL there is something else than a setting: {', '.join(_SETTINGS)}")
        if found[1] in settings:
            raise ValueError(f"{found[1]} is there twice")
        settings[found[1]] = found[2]
    _check(base, settings)
    return base, settings


def _check(url: BaseURL, settings: Mapping[str, str]) -> None:
    if "tokenFile" in settings and ("user" in settings or "passwordFile" in settings):
        raise ValueError("tokenFile and user contradict each other: a request has one user")
    if ("user" in settings) != ("passwordFile" in settings):
        raise ValueError("user and passwordFile belong together")
    if ":" in settings.get("user", ""):
        raise ValueError("the name of a user of HTTP has no colon")
    if ("privateKey" in settings) != ("certKey" in settings):
        raise ValueError("privateKey and certKey belong together")
    if not url.secure:
        if settings.keys() & set(_TLS):
            raise ValueError(f"{', '.join(name for name in _TLS if name in settings)} needs a URL with https")
        if settings and not url.is_loopback:
            raise ValueError("a token or a password would be sent without TLS: write https")


def read_dicomweb_peer(text: str) -> DICOMwebPeer:
    """
    Return a peer with what its files hold. It blocks.

    :param text: see :func:`check_dicomweb_peer`.
    :raises ValueError: it is wrong, or a file cannot be used; the text contains no secret.
    """
    url, settings = check_dicomweb_peer(text)
    token = _secret("tokenFile", settings)
    user = (settings["user"], _secret("passwordFile", settings)) if "user" in settings else None
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("tokenFile: the file has no token in one line of ASCII")
    tls = None
    if settings.keys() & set(_TLS):
        try:
            tls = client_tls_options(
                *(
                    url.host,
                    settings.get("trustRoots"),
                    settings.get("privateKey"),
                    settings.get("certKey"),
                ),
                crl=settings.get("crl"),
            )
        except EndpointError as error:
            raise ValueError(str(error)) from None
    return DICOMwebPeer(url, token, user, tls)


def _secret(name: str, settings: Mapping[str, str]) -> str:
    if name not in settings:
        return ""
    try:
        found = read_short(settings[name], MAX_WEB_SECRET)
        text = "" if found is None else found[1].decode().strip("\r\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: the file cannot be read: {getattr(error, 'strerror', 'it is not text')}") from None
    if not text:
        raise ValueError(f"{name}: the file is empty, or has more than {MAX_WEB_SECRET} bytes")
    return text

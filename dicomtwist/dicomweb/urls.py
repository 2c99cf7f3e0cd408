"""
URLs of a service of DICOMweb: its base URL, and the paths of its resources (PS3.18 8.2, 10.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

__all__ = ["BaseURL", "is_url", "origin_of", "path_of", "uid_of"]

_PORTS: Final = {"http": 80, "https": 443}


def is_url(text: str) -> bool:
    """Return whether *text*, the address of a peer, is meant as a URL of DICOMweb."""
    return re.match(r"\s*https?://", text, re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class BaseURL:
    """
    The base URL of a service (PS3.18 8.2).

    :ivar scheme: http or https.
    :ivar host: the host name or IP address.
    :ivar port: the TCP port.
    :ivar path: the path without a slash at its end.
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> BaseURL:
        """
        Parse a base URL.

        :raises ValueError: it is not one; the text says what to write, and repeats no password.
        """
        try:
            parts = urlsplit(text.strip())
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise ValueError("this is not a URL: write https://host/path") from None
        if parts.scheme not in ("http", "https") or not host or port == 0:
            raise ValueError("the URL of a service has the form https://host/path or http://host:port/path")
        if "@" in parts.netloc:
            raise ValueError("a URL with a user or a password would be shown to others: give them separately")
        if parts.query or parts.fragment:
            raise ValueError("the base URL of a service has no query and no fragment")
        if not text.strip().isascii() or not text.strip().isprintable() or " " in text.strip():
            raise ValueError("a URL has printable ASCII characters only, others are encoded")
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], parts.path.rstrip("/"))

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme == "https"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine. A name that begins as an address may belong to another one."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: credentials are for these (RFC 6454)."""
        return self.scheme, self.host, self.port

    @property
    def address(self) -> str:
        """Host and port, for people to read."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"


def origin_of(url: str) -> tuple[str, str, int]:
    """
    Return scheme, host and port of a URL.

    :raises ValueError: it is not an absolute URL of HTTP that can be sent.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        raise ValueError("the URL of a resource has the form https://host/path, without a user")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("a URL has printable ASCII characters only, others are encoded")
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]


def uid_of(uid: str) -> str:
    """
    Return *uid*.

    :raises ValueError: it is not a UID.
    """
    if not uid or len(uid) > 64 or not all(one in "0123456789." for one in uid):
        raise ValueError(f"{uid[:100]!r} is not a UID")
    return uid


def path_of(study: str, series: str = "", instance: str | None = "") -> str:
    """
    Return the path of a resource; with *instance* ``None`` that of the instances below it.

    :raises ValueError: a UID is missing, or is none.
    """
    if (series and not study) or (instance and not series):
        raise ValueError("a series needs the UID of its study, and an instance that of its series")
    path = ""
    if study:
        path += f"studies/{uid_of(study)}/"
    if series:
        path += f"series/{uid_of(series)}/"
    if instance is None:
        return f"{path}instances"
    if instance:
        path += f"instances/{uid_of(instance)}/"
    if not path:
        raise ValueError("the UID of the study is missing")
    return path.rstrip("/")

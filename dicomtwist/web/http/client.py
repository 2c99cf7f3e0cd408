"""
The client of a request: its address and the URL that it used, also behind a proxy that is trusted.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import ISSLTransport

from dicomtwist.access.certificates import Certificate
from dicomtwist.runtime.networks import UNIX, Networks, is_address
from dicomtwist.transport.upper_layer import proxy_of

__all__ = ["Client"]

#: The most addresses in X-Forwarded-For that are looked at, from the last.
MAX_FORWARDED: Final = 16

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]{1,100}){1,16}")
_PORT_BEHIND: Final = re.compile(r"\[?([0-9A-Fa-f:.]+?)\]?(?::[0-9]{1,5})?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
#: Fields by which a proxy shows that a request came through it.
_TRACES: Final = (b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Proto", b"X-Real-IP", b"Forwarded", b"Via")
#: A set of the addresses of this machine.
_HERE: Final = Networks(loopback=True)


@dataclass(frozen=True, slots=True)
class Client:
    """
    The client of a request.

    :ivar address: its IPv4 or IPv6 address, :data:`~dicomtwist.runtime.networks.UNIX` for a UNIX socket; ``""`` if a proxy
        tells none.
    :ivar proxied: whether a proxy tells the address, or the request may come from a page that is not of this server: then it
        is never taken for a program of this machine.
    :ivar is_secure: whether the connection of the client has TLS, or stays on this machine.
    :ivar origin: scheme, host and port of the URL that the client used, such as ``https://pacs.example``; empty if they would
        not lead back here.
    :ivar host: the host in the request, without a port, in lower case.
    :ivar prefix: the path that a proxy has removed from the URL.
    :ivar certificate: the certificate of the client, if there is one.
    :ivar is_refused: whether the request came through a proxy that is not trusted.
    """

    address: str
    proxied: bool = False
    is_secure: bool = False
    origin: str = ""
    host: str = ""
    prefix: str = ""
    certificate: Certificate | None = None
    is_refused: bool = False

    @classmethod
    def of(cls, request: Any, trusted: Networks, own_hosts: frozenset[str] = frozenset()) -> Client:
        """
        Return the client of *request*.

        :param request: a request of twisted.web.
        :param trusted: the proxies whose fields are believed.
        :param own_hosts: host names of this server.
        """
        transport = request.transport
        peer, local = transport.getPeer(), transport.getHost()
        address = UNIX if isinstance(peer, UNIXAddress) else str(getattr(peer, "host", ""))
        proxy = proxy_of(transport)
        has_tls = ISSLTransport.providedBy(transport)
        certificate = _certificate(transport) if has_tls else None
        host, port = _host(request.getHeader(b"Host"))
        if proxy and not trusted.has(proxy):
            return cls(address, True, certificate=certificate, is_refused=True)
        if not trusted.has(address, proxied=bool(proxy)) or not any(
            request.requestHeaders.hasHeader(one) for one in _TRACES
        ):
            scheme = "https" if has_tls else "http"
            known = _is_own(host, str(getattr(local, "host", "")), own_hosts)
            local_port = getattr(local, "port", 0)
            is_local = not proxy and (address == UNIX or _HERE.has(address))
            return cls(
                address,
                # A page of another server, whose name leads to this machine, is no program of this machine.
                bool(proxy) or (is_local and not known),
                has_tls or is_local,
                _origin(scheme, host, local_port) if known and port in (0, local_port) else "",
                host,
                certificate=certificate,
            )
        return cls._forwarded(request, address, trusted, has_tls, certificate)

    @classmethod
    def _forwarded(
        cls, request: Any, proxy: str, trusted: Networks, has_tls: bool, certificate: Certificate | None
    ) -> Client:
        """Return the client that the trusted *proxy* describes."""
        told = ",".join(_values(request, b"X-Forwarded-For"))
        texts = told.split(",")[-MAX_FORWARDED:] if told.strip() else []
        found = proxy
        for text in reversed(texts):
            found = _address(text.strip())
            if not found or not trusted.has(found, proxied=True):
                break
        scheme = _last(request, b"X-Forwarded-Proto").lower()
        if scheme not in _DEFAULT_PORTS:
            scheme = "https" if has_tls else "http"
        host, port = _host(_last(request, b"X-Forwarded-Host") or request.getHeader(b"Host"))
        number = _last(request, b"X-Forwarded-Port")
        if not port and number.isascii() and number.isdigit() and 0 < int(number[:6]) < 65536:
            port = int(number)
        prefix = _last(request, b"X-Forwarded-Prefix").rstrip("/")
        return cls(
            found,
            True,
            scheme == "https",
            _origin(scheme, host, port) if host else "",
            host,
            prefix if _PREFIX.fullmatch(prefix) else "",
            # The certificate of a connection through a proxy is that of the proxy.
        )


def _address(text: str) -> str:
    """Return the address in X-Forwarded-For, perhaps with a port; ``""`` for any other text."""
    if is_address(text):
        return text
    match = _PORT_BEHIND.fullmatch(text)
    return match[1] if match is not None and is_address(match[1]) else ""


def _certificate(transport: Any) -> Certificate | None:
    shown = transport.getPeerCertificate()
    return None if shown is None else Certificate.of(shown.to_cryptography())


def _values(request: Any, name: bytes) -> list[str]:
    return [value.decode("latin-1") for value in request.requestHeaders.getRawHeaders(name, [])]


def _last(request: Any, name: bytes) -> str:
    """Return the value that the nearest proxy has added."""
    return ",".join(_values(request, name)).rpartition(",")[2].strip()


def _host(value: str | bytes | None) -> tuple[str, int]:
    """Return the host in lower case and the port in a field ``Host``; ``""`` and 0 if they are missing or invalid."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value or ""
    found = _HOST.fullmatch(text.strip())
    if found is None:
        return "", 0
    return found[1].lower().rstrip("."), int(found[2] or 0)


def _origin(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORTS[scheme] else "")


def _is_own(host: str, local: str, own_hosts: frozenset[str]) -> bool:
    """
    Return whether *host* is this server: the address that the client has connected to, a name of this machine, or one that is
    configured.

    :param local: the address of this side of the connection.
    """
    bare = host.strip("[]")
    if is_address(bare):
        return bare == local or (_HERE.has(bare) and _HERE.has(local)) or not local
    if host == "localhost" or host.endswith(".localhost"):
        return not local or _HERE.has(local)
    return host in own_hosts or host == socket.gethostname().lower()

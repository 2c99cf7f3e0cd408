"""
The address of a peer in text form: ``[AET@]host:port`` or ``[AET@]endpoint-string``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import TCP6ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist.endpoints import EndpointError, client_endpoint
from dicomtwist.ul.ae_title import check_ae_title

#: The called AE title if none is given.
ANY_TITLE = "ANY-SCP"

_BRACKETED = re.compile(r"\[([^\]]*)\]:([^:]*)")
_HOST_AND_PORT = re.compile(r"([^:\[\]\\]+):(\d+)")
#: One field of an endpoint string: a backslash quotes the character after it.
_FIELD = re.compile(r"((?:[^:\\]|\\.)*)(?::|$)", re.DOTALL)
#: The prefixes of endpoint strings with a host and a port.
_WITH_HOST = ("tcp", "tcp6", "tls", "ssl", "dicomtls")
#: The prefixes among them that include TLS.
_WITH_TLS = ("tls", "ssl", "dicomtls")


@dataclass(frozen=True, slots=True)
class Peer:
    """
    The address of a peer to request an association from.

    :ivar title: the called AE title.
    :ivar host: the host name or IP address, ``""`` if there is none, as with a UNIX socket.
    :ivar port: the TCP port, 0 if there is none.
    :ivar description: the endpoint string, ``""`` for a plain host and port.
    """

    title: str
    host: str
    port: int
    description: str = ""

    @property
    def secure(self) -> bool:
        """Whether the endpoint string includes TLS."""
        return self.description.partition(":")[0] in _WITH_TLS

    @property
    def address(self) -> str:
        """The address in a form for people to read."""
        if not self.host:
            return self.description
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_name(self) -> bool:
        """Whether the host is a name that has to be resolved."""
        return bool(self.host) and not (isIPAddress(self.host) or isIPv6Address(self.host))

    def __str__(self) -> str:
        return f"{self.title}@{self.address}"

    def endpoint(self, reactor: Any) -> IStreamClientEndpoint | None:
        """
        Return the endpoint of the endpoint string; ``None`` for a plain host and port.

        :raises EndpointError: the string does not work. The files that it names are read, which blocks.
        """
        if not self.description:
            return None
        if self.description.startswith("tcp6:"):
            # Twisted has this prefix for servers only.
            return TCP6ClientEndpoint(reactor, self.host, self.port)
        return client_endpoint(reactor, self.description)


def parse_peer(text: str) -> Peer:
    """
    Parse the address of a peer.

    :param text: ``host:port``, ``[::1]:port`` or an endpoint string, optionally after ``TITLE@``.
    :raises ValueError: *text* is not an address; the error says what to write.
    """
    title, at, rest = text.partition("@")
    if at and ":" not in title:
        title = check_ae_title(title, "the called AE title")
    else:
        title, rest = ANY_TITLE, text
    rest = rest.strip()
    found = _BRACKETED.fullmatch(rest)
    if found is not None:
        if not isIPv6Address(found[1]):
            raise ValueError(f"{found[1]!r} is not an IPv6 address")
        return Peer(title, found[1], _port(found[2]))
    found = _HOST_AND_PORT.fullmatch(rest)
    if found is not None:
        return Peer(title, found[1], _port(found[2]))
    if ":" not in rest:
        raise ValueError(f"{rest!r} has no port: write {rest or 'host'}:104")
    if isIPv6Address(rest) or isIPv6Address(rest.rpartition(":")[0]):
        raise ValueError(f"{rest!r} is not an address: write an IPv6 address in brackets, as in [::1]:104")
    prefix = rest.partition(":")[0]
    host, port = _host_and_port(prefix, rest) if prefix in _WITH_HOST else ("", 0)
    return Peer(title, host, port, rest)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise ValueError(f"{text!r} is not a port: a number from 1 to 65535")
    return int(text)


def _host_and_port(prefix: str, description: str) -> tuple[str, int]:
    """Return the host and port of an endpoint string."""
    rest = description.partition(":")[2]
    bracketed = re.match(r"\[([^\]]*)\]:(.*)", rest)
    if prefix == "tcp6" and bracketed is not None:
        return bracketed[1], _port(bracketed[2])
    fields = [re.sub(r"\\(.)", r"\1", field) for field in _FIELD.findall(rest)]
    named = dict(field.split("=", 1) for field in fields if "=" in field)
    places = [field for field in fields if "=" not in field]
    host = named.get("host") or (places[0] if places else "")
    port = named.get("port") or (places[1] if len(places) > 1 else "")
    if not host or not port:
        raise EndpointError(f"{description!r} needs a host and a port: {prefix}:host:104")
    return host, _port(port)

"""Endpoints: where a server listens and where a client connects.

Twisted's endpoint strings (``tcp:``, ``tcp6:``, ``ssl:``, ``tls:``, ``unix:``, ``systemd:``, ``haproxy:`` ...) work
unchanged. This module adds the prefix ``dicomtls:`` for TLS features that they lack: client certificates that are required
and verified, one bundle file of trust roots, revocation lists, and the cipher suites of the TLS profile of DICOM::

    dicomtls:2762:privateKey=key.pem:certKey=cert.pem:trustRoots=ca.pem                  (server)
    dicomtls:pacs.example.org:2762:privateKey=key.pem:certKey=cert.pem:trustRoots=ca.pem (client)

The files are read once, when a string is parsed, in the calling thread. So build endpoints at the start of a program,
before it listens. A renewed certificate or revocation list takes effect with the next endpoint that is built.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    TCP6ServerEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.protocols.haproxy import proxyEndpoint
from zope.interface import implementer

from dicomtwist.tls.contexts import PROFILES, ClientCertificate, TLSProfile, client_tls_options, server_tls_options
from dicomtwist.tls.errors import EndpointError, PeerCertificateError, TLSError, describe_tls_error
from dicomtwist.tls.transport import wrap_client_tls, wrap_server_tls

__all__ = [
    "check_port",
    "PROFILES",
    "ClientCertificate",
    "EndpointError",
    "PeerCertificateError",
    "TLSError",
    "TLSProfile",
    "client_endpoint",
    "client_tls_options",
    "describe_tls_error",
    "parse_client",
    "parse_server",
    "server_endpoint",
    "server_tls_options",
]

_SERVER_OPTIONS = (
    "port",
    "privateKey",
    "certKey",
    "trustRoots",
    "clientCertificate",
    "crl",
    "extraCertChain",
    "profile",
    "interface",
    "backlog",
)
_CLIENT_OPTIONS = (
    "host",
    "port",
    "trustRoots",
    "privateKey",
    "certKey",
    "hostname",
    "crl",
    "extraCertChain",
    "profile",
    "bindAddress",
    "timeout",
)


# The prefix dicomtls:


def _bind(
    args: Sequence[str], kwargs: Mapping[str, str], positional: Sequence[str], known: Sequence[str]
) -> dict[str, str]:
    """Return the options of a description by name, including the positional ones."""
    if len(args) > len(positional):
        raise EndpointError(
            f"{args[len(positional)]!r} is one value too many: options are written name=value, and a colon "
            "inside a value is written \\:"
        )
    options = dict(zip(positional, args, strict=False))
    for name, value in kwargs.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"the options are {', '.join(known)}"
            raise EndpointError(f"is not an option of dicomtls: {hint}", name)
        if name in options:
            raise EndpointError("is given twice", name)
        options[name] = value
    for name in positional:
        if not options.get(name):
            raise EndpointError("is missing", name)
    return options


def _number(options: Mapping[str, str], name: str, default: int, lowest: int, highest: int) -> int:
    text = options.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and lowest <= int(text) <= highest):
        raise EndpointError(f"{text!r} is not a number from {lowest} to {highest}", name)
    return int(text)


def parse_server(reactor: object, *args: str, **kwargs: str) -> IStreamServerEndpoint:
    """Build a server endpoint from the part of a description after ``dicomtls:``. It reads files, which blocks.

    The form is ``PORT:privateKey=FILE:certKey=FILE:trustRoots=FILE``, optionally with
    ``clientCertificate=required|optional|none``, ``crl=FILE``, ``extraCertChain=FILE``, ``profile=NAME``,
    ``interface=ADDRESS`` (by default every IPv4 address; ``\\:\\:`` is every address of both kinds if the system is
    dual-stack) and ``backlog=NUMBER`` (50). :func:`~dicomtwist.endpoints.server_tls_options` explains them.

    :raises EndpointError: an option is wrong; the error names it.
    """
    options = _bind(args, kwargs, ("port",), _SERVER_OPTIONS)
    port = _number(options, "port", 0, 0, 65535)
    backlog = _number(options, "backlog", 50, 1, 65535)
    interface = options.get("interface", "")
    private_key = options.get("privateKey") or options.get("certKey")
    if not private_key:
        raise EndpointError("is missing: name the PEM file with the private key of this server", "privateKey")
    creator = server_tls_options(
        private_key,
        options.get("certKey") or private_key,
        options.get("trustRoots"),
        client_certificate=cast("ClientCertificate | None", options.get("clientCertificate")),
        crl=options.get("crl"),
        extra_chain=options.get("extraCertChain"),
        profile=options.get("profile", "bcp195"),
    )
    plain = TCP6ServerEndpoint if ":" in interface else TCP4ServerEndpoint
    return wrap_server_tls(creator, plain(reactor, port, backlog, interface))


def parse_client(reactor: object, *args: str, **kwargs: str) -> IStreamClientEndpoint:
    """Build a client endpoint from the part of a description after ``dicomtls:``. It reads files, which blocks.

    The form is ``HOST:PORT:trustRoots=FILE``, optionally with ``privateKey=FILE:certKey=FILE`` (the client's certificate),
    ``hostname=NAME`` (the name that the server's certificate must be valid for, if it is not HOST), ``crl=FILE``,
    ``extraCertChain=FILE``, ``profile=NAME``, ``bindAddress=ADDRESS`` and ``timeout=SECONDS`` (30, for each attempt to
    connect). :func:`~dicomtwist.endpoints.client_tls_options` explains them.

    :raises EndpointError: an option is wrong; the error names it.
    """
    options = _bind(args, kwargs, ("host", "port"), _CLIENT_OPTIONS)
    host = options["host"]
    port = _number(options, "port", 0, 1, 65535)
    timeout = _number(options, "timeout", 30, 1, 86400)
    bind_address = options.get("bindAddress")
    if bind_address is not None and not (isIPAddress(bind_address) or isIPv6Address(bind_address)):
        raise EndpointError(f"{bind_address!r} is not an IP address", "bindAddress")
    creator = client_tls_options(
        options.get("hostname", host),
        options.get("trustRoots"),
        options.get("privateKey"),
        options.get("certKey"),
        crl=options.get("crl"),
        extra_chain=options.get("extraCertChain"),
        profile=options.get("profile", "bcp195"),
    )
    # An address needs no resolver, and without one a failure to connect is reported with its own reason.
    plain: type[Any] = (
        TCP4ClientEndpoint if isIPAddress(host) else TCP6ClientEndpoint if isIPv6Address(host) else HostnameEndpoint
    )
    binding = None if bind_address is None else (bind_address, 0)
    return wrap_client_tls(creator, plain(reactor, host, port, timeout, binding))


# Any description

# Twisted's functions are not annotated, so they get their types here.
_server_from_string: Callable[[object, str], IStreamServerEndpoint] = serverFromString
_client_from_string: Callable[[object, str], IStreamClientEndpoint] = clientFromString

_SERVER_PORT = re.compile(r"(?:tcp6?|ssl):(?:port=)?([^:]*)")
_CLIENT_PORT = re.compile(r"(?:tcp|ssl|tls):(?:[^:\\]|\\.)*:(?:port=)?([^:=]*)(?::|$)")
_SOCKET_PATH = re.compile(r"unix:(?:(?:path|address)=)?((?:[^:\\]|\\.)*)")
# The length of sun_path in sockaddr_un without the final NUL, see unix(7); on the BSDs it is four bytes shorter.
_MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103


_PROXIED = "haproxy:"


@implementer(IStreamServerEndpoint)
class _CheckedHeaders:
    """
    An endpoint below ``haproxy:`` that closes a connection whose PROXY header Twisted's parser cannot decode.

    Twisted lets the error of some headers out, such as one with an address that is not UTF-8: anyone who reaches the port
    could fill the log with tracebacks.
    """

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, protocolFactory: Any) -> Any:
        """Listen with the factory that reads PROXY headers."""
        protocolFactory.protocol = _checked(protocolFactory.protocol)
        return self._endpoint.listen(protocolFactory)


def _checked(protocol: Any) -> Any:
    """Return a class like *protocol*, which reads PROXY headers, for connections whose header may be wrong."""

    class Checked(protocol):  # type: ignore[misc]
        def dataReceived(self, data: bytes) -> None:
            try:
                super().dataReceived(data)
            except Exception:
                if self._proxyInfo is not None:  # the header was right: this is an error of the protocol behind it
                    raise
                self.loseConnection()

    # proxy_of() knows the wrapper by its module.
    Checked.__module__ = protocol.__module__
    return Checked


def check_port(port: object) -> int:
    """
    Return the number of a TCP port that a user passes. The name lookup of Twisted would take it modulo 65536.

    :raises TypeError: it is not an ``int``.
    :raises ValueError: it is not from 0 to 65535.
    """
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"a port is an int, not {type(port).__name__}")
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"a port is from 0 to 65535, not {port}")
    return int(port)


def _check_port(pattern: re.Pattern[str], description: str) -> None:
    """Reject a port above 65535, which Twisted's parsers accept and which then fails when the endpoint is used."""
    found = pattern.match(description)
    if found is not None:
        _number({"port": found[1]}, "port", 0, 0, 65535)


def _check_path(description: str) -> None:
    """Reject a path that is too long for a socket: with it, Twisted's client would wait until its timeout."""
    found = _SOCKET_PATH.match(description)
    if found is not None:
        length = len(os.fsencode(re.sub(r"\\(.)", r"\1", found[1])))
        if length > _MAX_SOCKET_PATH:
            raise EndpointError(
                f"{description!r}: the path of the socket has {length} bytes, the maximum is {_MAX_SOCKET_PATH}"
            )


def _hint(description: str) -> str:
    """Return what to write in place of something that has no known prefix."""
    name = r"[\w.-]*[.\w][\w.-]*"
    if re.fullmatch(rf"{name}:\d+", description):
        return f"write tcp:{description}"
    peer = re.fullmatch(rf"([^:@]+)@({name})(?::(\d+))?", description)
    if peer is not None:
        title, host, port = peer.groups()
        return f"in Python a peer is a host and a port, {host!r}, {port or 11112}, and its AE title ae_title={title!r}"
    if re.fullmatch(name, description) or isIPv6Address(description):
        return f"a host needs its port: {description!r}, 11112"
    return "it begins with a prefix such as tcp:, tcp6:, tls:, unix: or dicomtls:"


def _explained_error(description: str, error: Exception) -> EndpointError:
    """Return an :class:`EndpointError` that explains an error of Twisted's parsers."""
    prefix = description.partition(":")[0]
    if "Unknown endpoint type" in str(error):
        return EndpointError(
            f"{description!r} is not an endpoint, {prefix!r} is not a known prefix: {_hint(description)}"
        )
    if prefix == "systemd" and isinstance(error, LookupError):
        return EndpointError(f"{description!r}: systemd passed no such socket to this process")
    if isinstance(error, OSError):
        return EndpointError(f"{description!r}: cannot read the file {error.filename!r} ({error.strerror})")
    return EndpointError(f"{description!r} does not work as an endpoint: {error}")


def server_endpoint(reactor: object, description: str | int | IStreamServerEndpoint) -> IStreamServerEndpoint:
    """Return the server endpoint for a description, a bare TCP port (``11112``), or an endpoint.

    :raises EndpointError: the description cannot work.
    """
    if not isinstance(description, str | int):
        if not IStreamServerEndpoint.providedBy(description):
            raise EndpointError(f"{description!r} is neither a description nor a server endpoint")
        return description
    text = str(description).strip()
    if re.fullmatch(r"-?\d+", text):
        text = f"tcp:{text}"
    _check_port(_SERVER_PORT, text)
    _check_path(text)
    try:
        if text.startswith(_PROXIED):
            return proxyEndpoint(_CheckedHeaders(_server_from_string(reactor, text.removeprefix(_PROXIED))))
        return _server_from_string(reactor, text)
    except EndpointError:
        raise
    except Exception as error:
        raise _explained_error(text, error) from error


def client_endpoint(reactor: object, description: str | IStreamClientEndpoint) -> IStreamClientEndpoint:
    """Return the client endpoint for a description (``tcp:HOST:PORT``, ``dicomtls:...``), or an endpoint.

    :raises EndpointError: the description cannot work.
    """
    if not isinstance(description, str):
        if not IStreamClientEndpoint.providedBy(description):
            raise EndpointError(f"{description!r} is neither a description nor a client endpoint")
        return description
    text = description.strip()
    _check_port(_CLIENT_PORT, text)
    _check_path(text)
    try:
        return _client_from_string(reactor, text)
    except EndpointError:
        raise
    except Exception as error:
        raise _explained_error(text, error) from error

"""
The connection to a server of DICOMweb, for the subcommands whose PEER may be a URL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import click
from twisted.internet.abstract import isIPAddress, isIPv6Address

from dicomtwist.dicomweb import BaseURL, DICOMwebClient, Timeouts
from dicomtwist.endpoints import EndpointError, client_tls_options
from dicomtwist.tools.user_identity import SecretError, ask_password, read_secret

__all__ = ["WebConnection", "WebPeer", "make_web_connection"]

#: The options that have no meaning for HTTP.
_DIMSE_ONLY: Final = {"async_ops": 1, "kerberos_file": None, "saml_file": None}


@dataclass(frozen=True, slots=True)
class WebPeer:
    """
    A PEER that is the URL of a service, with the attributes of :class:`~dicomtwist.transport.peer_address.Peer`.

    :ivar url: the URL.
    """

    url: BaseURL
    title = ""
    description = ""

    @property
    def host(self) -> str:
        """The host name or IP address."""
        return self.url.host

    @property
    def port(self) -> int:
        """The TCP port."""
        return self.url.port

    @property
    def address(self) -> str:
        """Host and port, for people to read."""
        return self.url.address

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.url.secure

    @property
    def is_name(self) -> bool:
        """Whether the host is a name that has to be resolved."""
        return not (isIPAddress(self.host) or isIPv6Address(self.host))

    def __str__(self) -> str:
        return str(self.url)


@dataclass(slots=True)
class WebConnection:
    """
    A server of DICOMweb and how to connect to it.

    :ivar peer: its URL.
    :ivar arguments: the arguments of :class:`~dicomtwist.dicomweb.DICOMwebClient`; left out of ``repr``, since they hold
        secrets.
    :ivar associations: the number of concurrent requests.
    :ivar has_user: whether the requests have credentials.
    :ivar is_clear: whether these are sent without TLS to another machine.
    """

    peer: WebPeer
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    associations: int = 1
    has_user: bool = False
    is_clear: bool = False
    identity = None

    @property
    def calling(self) -> str:
        """Our name in the output; HTTP has no AE titles."""
        return "dicomtwist"

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.peer.secure

    def make_client(self, reactor: Any, *, retries: int = 2) -> DICOMwebClient:
        """Return a client with the settings that the options describe."""
        return DICOMwebClient(self.peer.url, reactor=reactor, retries=retries, clear_credentials=True, **self.arguments)


def make_web_connection(values: dict[str, Any]) -> WebConnection:
    """
    Return the connection that the options in *values* describe.

    :raises click.UsageError: the options contradict each other, or a file that they name cannot be used.
    """
    peer: WebPeer = values["peer"]
    for name, default in _DIMSE_ONLY.items():
        if values[name] != default:
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning for a URL, whose server speaks HTTP")
    arguments: dict[str, Any] = {
        "timeouts": Timeouts(values["connect_timeout"], values["dimse_timeout"], values["network_timeout"]),
        **_credentials(values),
    }
    tls = _tls(peer, values)
    if tls is not None:
        arguments["tls"] = tls
    has_user = "token" in arguments or "user" in arguments
    is_clear = has_user and not (peer.secure or peer.url.is_loopback)
    return WebConnection(peer, arguments, values["associations"], has_user, is_clear)


def _credentials(values: dict[str, Any]) -> dict[str, Any]:
    user, token_file = values["user"], values["jwt_file"]
    if user is not None and token_file is not None:
        raise click.UsageError("--user and --jwt-file contradict each other: a request has one user")
    option = "--password-file" if token_file is None else "--jwt-file"
    try:
        if token_file is not None:
            return {"token": read_secret(token_file, is_text=True).decode("ascii")}
        if user is None:
            if values["password_file"] is not None or values["no_password"]:
                raise click.UsageError("--user is missing: --password-file and --no-password need the name of the user")
            return {}
        if ":" in user:
            raise click.UsageError("--user: the name of a user of HTTP has no colon")
        if values["no_password"]:
            return {"user": (user, "")}
        file = values["password_file"]
        password = ask_password(user) if file is None else read_secret(file, is_text=True)
        return {"user": (user, password.decode("utf-8"))}
    except SecretError as error:
        raise click.UsageError(f"{option}: {error}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{option}: the file is not text") from None


def _tls(peer: WebPeer, values: dict[str, Any]) -> Any:
    wanted = [name for name in values if name.startswith("tls") and values[name]]
    if wanted and not peer.secure:
        option = wanted[0].replace("_", "-")
        raise click.UsageError(f"--{option} needs a URL with https")
    if not wanted:
        return None
    try:
        return client_tls_options(
            values["tls_hostname"] or peer.host,
            values["tls_roots"],
            values["tls_key"],
            values["tls_certificate"],
            crl=values["tls_crl"],
            extra_chain=values["tls_chain"],
            profile=values["tls_profile"] or "bcp195",
        )
    except EndpointError as error:
        raise click.UsageError(f"--tls: {error}") from None

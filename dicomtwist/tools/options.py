"""
The options that all subcommands share, and the help that shows them in their groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from dicomtwist import UserIdentity, check_ae_title
from dicomtwist.endpoints import PROFILES, EndpointError, client_tls_options
from dicomtwist.settings import Settings
from dicomtwist.tools import user_identity as identities
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.contexts import names_like, sop_classes_named
from dicomtwist.tools.display.console import QUIET, Output
from dicomtwist.transport.peer_address import Peer, parse_peer

_DEFAULTS = Settings()

#: How long to wait for a TCP connection unless told otherwise, in seconds.
CONNECT_TIMEOUT = 15.0
#: The most associations at once.
MAX_ASSOCIATIONS = 64
#: The most operations at once on an association.
MAX_OPERATIONS = 1024

PEER = (
    "[TITLE@]host:port, as in PACS@pacs.example.org:104 or [::1]:104, or [TITLE@] and an endpoint string, as in"
    " PACS@dicomtls:pacs.example.org:2762:trustRoots=ca.pem. Without TITLE it is ANY-SCP that is called."
)
EXIT_STATUS = """\b
0  all went well
1  something failed, or it was interrupted
2  the command was used wrongly
3  there was no association"""


class Option(click.Option):
    """
    An option that the help shows under a heading.

    :param group: the heading.
    """

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """
    A subcommand whose help reads as a manual page: what a peer is, its options in groups, the exit status, examples.

    :param examples: command lines, each behind a line that says what it does.
    """

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section for each group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        # --help comes last of all, whatever group was first.
        groups["Options"] = groups.pop("Options", [])
        with formatter.section("Peer"):
            formatter.write_text(PEER)
        order = sorted(groups, key=lambda name: name != self.own_group)
        for name in order:
            with formatter.section(name):
                formatter.write_dl(groups[name])

    own_group = "What to do"

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit status and the examples."""
        for heading, text in (("Exit status", EXIT_STATUS.removeprefix("\b\n")), ("Examples", self.examples)):
            if text:
                with formatter.section(heading):
                    for line in text.splitlines():
                        formatter.write(f"{'':{formatter.current_indent}}{line}\n" if line else "\n")


def own_option(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an option of one subcommand."""
    return click.option(*names, cls=Option, group=Command.own_group, **attributes)


# --- what the values are


class PeerType(click.ParamType[Peer]):
    """``[AET@]host:port`` or ``[AET@]endpoint-string``."""

    name = "peer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Peer:
        """Return the peer that is meant."""
        if isinstance(value, Peer):
            return value
        try:
            return parse_peer(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class TitleType(click.ParamType[str]):
    """An AE title."""

    name = "title"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the title, checked."""
        try:
            return check_ae_title(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SecondsType(click.ParamType["float | None"]):
    """A time, or ``none`` for no limit."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return the seconds, ``None`` for no limit."""
        if value == "none":
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is not a time: seconds above 0, or none", param, ctx)
        return seconds


class FileType(click.ParamType[str]):
    """The name of a file, which who needs it opens and complains of; here it is only for completion."""

    name = "file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Have the shell complete names of files."""
        return [CompletionItem(incomplete, type="file")]


class SOPClassType(click.ParamType[str]):
    """A SOP Class by its keyword or UID, or a group of them."""

    name = "sop_class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, checked."""
        try:
            sop_classes_named(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the groups and keywords that begin so."""
        return [CompletionItem(name) for name in names_like(incomplete)]


def _no_secret(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Refuse a secret on the command line, without repeating it."""
    if value is not None:
        name = param.opts[0]
        prompt = "leave it out to be asked for the password, or " if name == "--password" else ""
        raise click.UsageError(f"{name} would show the secret to everybody on this machine: {prompt}use {name}-file")


def _connection_option(*names: str, group: str = "Connection", **attributes: Any) -> Callable[..., Any]:
    return click.option(*names, cls=Option, group=group, **attributes)


def _secret_options() -> list[Callable[..., Any]]:
    hidden = [
        _connection_option(f"--{name}", hidden=True, expose_value=False, callback=_no_secret)
        for name in ("password", "jwt", "kerberos", "saml")
    ]
    user = functools.partial(_connection_option, group="User identity", type=FileType(), metavar="FILE")
    return [
        _connection_option(
            "--user",
            group="User identity",
            metavar="NAME",
            help="Say who the user is. The password is asked for at the terminal, unless one of the next two is given.",
        ),
        user("--password-file", help="Take the password from the first line of FILE, - for standard input."),
        _connection_option(
            "--no-password", group="User identity", is_flag=True, help="Say the name of the user and no password."
        ),
        user("--jwt-file", help="Say who the user is with the JSON Web Token in FILE."),
        user("--kerberos-file", help="... with the Kerberos service ticket in FILE."),
        user("--saml-file", help="... with the SAML assertion in FILE."),
        *hidden,
    ]


def _tls_options() -> list[Callable[..., Any]]:
    tls = functools.partial(_connection_option, group="TLS")
    file = functools.partial(tls, type=FileType(), metavar="FILE")
    return [
        tls("--tls", is_flag=True, help="Connect over TLS 1.2 or later. Any other option of TLS means it as well."),
        tls(
            "--tls-roots",
            type=FileType(),
            metavar="PATH",
            help="Who signs the peer's certificate: a PEM file, or a folder of *.pem.",
        ),
        file("--tls-certificate", help="Our certificate, for a peer that asks for one, in PEM form."),
        file("--tls-key", help="Its key; by default in the same file."),
        file("--tls-chain", help="More certificates between ours and the root."),
        file("--tls-crl", help="Revocation list of the CA that signs the peer's certificate."),
        tls("--tls-hostname", metavar="NAME", help="Whom the peer's certificate is for, where that is not its host."),
        tls("--tls-profile", type=click.Choice(list(PROFILES)), help="Cipher suites; bcp195 by default."),
    ]


def _options() -> list[Callable[..., Any]]:
    connection = functools.partial(_connection_option, show_default=True)
    seconds = functools.partial(connection, type=SecondsType(), metavar="SECONDS|none")
    return [
        connection("--calling", type=TitleType(), default=_DEFAULTS.ae_title, metavar="TITLE", help="Our AE title."),
        connection(
            "--associations",
            type=click.IntRange(1, MAX_ASSOCIATIONS),
            default=1,
            metavar="N",
            help="How many associations at once, for echo and store; what the others do takes one.",
        ),
        connection(
            "--async-ops",
            type=click.IntRange(1, MAX_OPERATIONS),
            default=1,
            metavar="N",
            help="How many operations at once on an association, for store, as far as the peer agrees.",
        ),
        connection(
            "--max-pdu",
            type=click.IntRange(0, 2**32 - 1),
            default=_DEFAULTS.maximum_pdu_size,
            metavar="BYTES",
            help="Longest P-DATA-TF that we take; 0 for no limit.",
        ),
        seconds("--connect-timeout", default=f"{CONNECT_TIMEOUT:g}", help="For the TCP connection to be made."),
        seconds(
            "--acse-timeout", default=f"{_DEFAULTS.acse_timeout:g}", help="For TLS, and the association's answers."
        ),
        seconds("--dimse-timeout", default=f"{_DEFAULTS.dimse_timeout:g}", help="For an answer to come or to go on."),
        seconds(
            "--network-timeout",
            default=f"{_DEFAULTS.network_timeout:g}",
            help="For anything to come while nothing is under way.",
        ),
        *_tls_options(),
        *_secret_options(),
        _connection_option("-v", "--verbose", group="Output", count=True, help="Tell more; -vv tells of each message."),
        _connection_option("-q", "--quiet", group="Output", is_flag=True, help="Tell of errors only."),
        _connection_option("--json", "as_json", group="Output", is_flag=True, help="Print one JSON document."),
    ]


# --- what they make

#: What goes into the connection, and not to the subcommand.
_TAKEN = (
    *("peer", "calling", "associations", "async_ops", "max_pdu"),
    *("connect_timeout", "acse_timeout", "dimse_timeout", "network_timeout"),
    *("tls", "tls_roots", "tls_certificate", "tls_key", "tls_chain", "tls_crl", "tls_hostname", "tls_profile"),
    *("user", "password_file", "no_password", "jwt_file", "kerberos_file", "saml_file"),
)


def connects(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Give a subcommand the argument PEER and the common options.

    It is called with *connection*, a :class:`~dicomtwist.tools.connection.Connection`, *output*, an
    :class:`~dicomtwist.tools.display.console.Output`, and its own.
    """

    @functools.wraps(function)
    def wrapper(*, verbose: int, quiet: bool, as_json: bool, **values: Any) -> Any:
        if verbose and quiet:
            raise click.UsageError("-v and -q contradict each other")
        own = {name: value for name, value in values.items() if name not in _TAKEN}
        connection = make_connection({name: values[name] for name in _TAKEN})
        return function(connection=connection, output=Output(QUIET if quiet else verbose, as_json=as_json), **own)

    decorated: Callable[..., Any] = wrapper
    for option in reversed(_options()):
        decorated = option(decorated)
    return click.argument("peer", type=PeerType())(decorated)


def make_connection(values: dict[str, Any]) -> Connection:
    """
    Return what the options in *values* say.

    :raises click.UsageError: they contradict each other, or a file that they name cannot be used.
    """
    from twisted.internet import reactor

    peer: Peer = values["peer"]
    settings = {
        "maximum_pdu_size": values["max_pdu"],
        "connection_timeout": values["connect_timeout"],
        "acse_timeout": values["acse_timeout"],
        "dimse_timeout": values["dimse_timeout"],
        "network_timeout": values["network_timeout"],
    }
    try:
        Settings(**settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        endpoint = peer.endpoint(reactor)
    except EndpointError as error:
        raise click.UsageError(f"PEER: {error}") from None
    return Connection(
        peer=peer,
        calling=values["calling"],
        endpoint=endpoint,
        tls_args=_tls_args(peer, values),
        identity=_identity(values),
        settings=settings,
        async_ops=values["async_ops"],
        associations=values["associations"],
    )


#: The options of TLS by what an endpoint string calls them.
_TLS_NAMES = {
    "trustRoots": "--tls-roots",
    "privateKey": "--tls-key",
    "certKey": "--tls-certificate",
    "extraCertChain": "--tls-chain",
    "crl": "--tls-crl",
    "profile": "--tls-profile",
    "hostname": "--tls-hostname",
}


def _tls_args(peer: Peer, values: dict[str, Any]) -> Any:
    wanted = [name for name in values if name.startswith("tls") and values[name]]
    if not wanted:
        return None
    if peer.secure:
        option = wanted[0].replace("_", "-")
        raise click.UsageError(f"--{option} has no place beside an endpoint string that brings TLS of its own")
    hostname = values["tls_hostname"] or peer.host
    if not hostname:
        raise click.UsageError(
            "--tls-hostname is missing: without a host nobody knows whom the certificate is to be for"
        )
    try:
        return client_tls_options(
            hostname,
            values["tls_roots"],
            values["tls_key"],
            values["tls_certificate"],
            crl=values["tls_crl"],
            extra_chain=values["tls_chain"],
            profile=values["tls_profile"] or "bcp195",
        )
    except EndpointError as error:
        option = _TLS_NAMES.get(error.option or "", "--tls")
        raise click.UsageError(f"{option}: {str(error).removeprefix(f'{error.option}: ')}") from None


def _identity(values: dict[str, Any]) -> UserIdentity | None:
    kinds = {"jwt_file": identities.JWT, "kerberos_file": identities.KERBEROS, "saml_file": identities.SAML}
    given = [name for name in ("user", *kinds) if values[name] is not None]
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{names} contradict each other: an association has one user")
    option = "password_file" if given in ([], ["user"]) else given[0]
    try:
        if values["user"] is not None:
            return identities.username(values["user"], _password(values))
        if values["password_file"] is not None or values["no_password"]:
            raise click.UsageError("--user is missing")
        return identities.token(kinds[given[0]], _token(values, given[0])) if given else None
    except identities.SecretError as error:
        raise click.UsageError(f"--{option.replace('_', '-')}: {error}") from None


def _token(values: dict[str, Any], name: str) -> bytes:
    # A Kerberos ticket is binary, a line break at its end may be part of it.
    return identities.read_secret(values[name], is_text=name != "kerberos_file")


def _password(values: dict[str, Any]) -> bytes | None:
    if values["no_password"]:
        if values["password_file"] is not None:
            raise click.UsageError("--password-file and --no-password contradict each other")
        return None
    if values["password_file"] is not None:
        return identities.read_secret(values["password_file"], is_text=True)
    return identities.ask_password(values["user"])

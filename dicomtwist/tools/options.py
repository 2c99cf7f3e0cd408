"""
The options that all subcommands share, the types of their values, and the help that shows them in groups.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from dicomtwist.settings import Settings
from dicomtwist.ul.ae_title import check_ae_title

if TYPE_CHECKING:
    from dicomtwist.tools.connection import Connection
    from dicomtwist.tools.web_connection import WebConnection, WebPeer
    from dicomtwist.transport.peer_address import Peer

#: The defaults of the settings of an AE.
_DEFAULTS: Final = {field.name: field.default for field in fields(Settings)}
#: The names of the TLS profiles in :data:`dicomtwist.endpoints.PROFILES`.
TLS_PROFILES: Final = ("bcp195", "bcp195-nd")

#: The default timeout of a TCP connection, in seconds.
CONNECT_TIMEOUT = 15.0
#: The most concurrent associations.
MAX_ASSOCIATIONS = 64
#: The common options that only subcommands with many operations use.
FOR_MANY: Final = ("associations", "async_ops")
#: The most outstanding operations on one association.
MAX_OPERATIONS = 1024

PEER = (
    "[TITLE@]host:port, as in PACS@pacs.example.org:104 or [::1]:104, or [TITLE@] and an endpoint string, as in"
    " PACS@dicomtls:pacs.example.org:2762:trustRoots=ca.pem. The default TITLE is ANY-SCP."
)
URL = (
    " PEER may also be the URL of a service of DICOMweb, as in https://pacs.example.org/dicom-web; --user and its password, or"
    " the token of --jwt-file, are then those of HTTP."
)
EXIT_STATUS = """\
0  success
1  something failed, or the command was interrupted
2  the command line is wrong
3  no association could be established"""


class Option(click.Option):
    """
    An option with the heading under which the help shows it.

    :param group: the heading.
    """

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """
    A subcommand whose help reads like a manual page: the form of PEER, options in groups, exit statuses, examples.

    :param examples: command lines, each after a line that says what it does.
    :param unused: the names of common options that have no effect on the subcommand, so that its help leaves them out.
    :param takes_url: whether PEER may be the URL of a service of DICOMweb.
    """

    def __init__(
        self,
        *args: Any,
        examples: str = "",
        unused: Collection[str] = (),
        takes_url: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.takes_url = takes_url
        self.examples = examples
        self.unused = frozenset(unused)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section for each group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None and param.name not in self.unused:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        # The group of --help comes last.
        groups["Options"] = groups.pop("Options", [])
        if self.has_peer:
            with formatter.section("Peer"):
                formatter.write_text(PEER + URL if self.takes_url else PEER)
        order = sorted(groups, key=lambda name: name != self.main_group)
        for name in order:
            with formatter.section(name):
                formatter.write_dl(groups[name])

    main_group = "Operation"
    has_peer = True
    exit_status = EXIT_STATUS

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit statuses and the examples."""
        for heading, text in (("Exit status", self.exit_status), ("Examples", self.examples)):
            if text:
                with formatter.section(heading):
                    for line in text.splitlines():
                        formatter.write(f"{'':{formatter.current_indent}}{line}\n" if line else "\n")


class LocalCommand(Command):
    """A subcommand that connects to no peer."""

    has_peer = False
    exit_status = "\n".join(EXIT_STATUS.splitlines()[:3]).replace(", or the command was interrupted", "")


def command_option(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds an option of one subcommand."""
    return click.option(*names, cls=Option, group=Command.main_group, **attributes)


# --- the types of values


T = TypeVar("T")


class ValueType(click.ParamType[T]):
    """
    The base of the types of values: text that :meth:`parse` turns into a value.

    Shell completion takes the text as it is. Most values need Twisted or pydicom to be parsed, which would take longer
    than the completion itself.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """Return the value of an argument or option."""
        if not isinstance(value, str) or (ctx is not None and ctx.resilient_parsing):
            return cast(T, value)
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def parse(self, text: str) -> T:
        """
        Return the value that *text* means.

        :raises ValueError: it means none; the error says what to write.
        """
        raise NotImplementedError


class PeerType(ValueType["Peer | WebPeer"]):
    """``[AET@]host:port``, ``[AET@]endpoint-string``, or the URL of a service of DICOMweb."""

    name = "peer"

    def parse(self, text: str) -> Peer | WebPeer:
        """Return the peer that *text* names."""
        from dicomtwist.dicomweb.urls import BaseURL, is_url

        if is_url(text):
            from dicomtwist.tools.web_connection import WebPeer

            return WebPeer(BaseURL.parse(text))
        from dicomtwist.transport.peer_address import parse_peer

        return parse_peer(text)


class TitleType(ValueType[str]):
    """An AE title."""

    name = "title"

    def parse(self, text: str) -> str:
        """Return the title."""
        return check_ae_title(text)


class SecondsType(ValueType["float | None"]):
    """A time, or ``none`` for no limit."""

    name = "seconds"

    def parse(self, text: str) -> float | None:
        """Return the seconds, ``None`` for no limit."""
        if text == "none":
            return None
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            raise ValueError(f"{text!r} is not a time: write a number of seconds above 0, or none for no limit")
        return seconds


class SizeType(ValueType[int]):
    """A number of bytes: ``0``, ``500M``, ``10G``."""

    name = "size"

    def parse(self, text: str) -> int:
        """Return the number of bytes."""
        found = re.fullmatch(r"(\d{1,15})([kKMGT]?)", text)
        if not found:
            raise ValueError(f"{text!r} is not a number of bytes: 0, 500M, 10G")
        return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")


class FileType(click.ParamType[str]):
    """The name of a file. The shell completes it; the code that opens the file reports what is wrong with it."""

    name = "file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Have the shell complete names of files."""
        return [CompletionItem(incomplete, type="file")]


class SOPClassType(ValueType[str]):
    """A SOP Class by its keyword or UID, or a group of SOP Classes."""

    name = "sop_class"

    def parse(self, text: str) -> str:
        """Return the name, after a check that it names a SOP Class."""
        from dicomtwist.tools.contexts import sop_classes_named

        sop_classes_named(text)
        return text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the groups and keywords that begin with *incomplete*."""
        from dicomtwist.tools.contexts import complete_sop_class

        return [CompletionItem(name) for name in complete_sop_class(incomplete)]


class ListenType(ValueType[str]):
    """A port to listen at, or the endpoint string of a server."""

    name = "listen"

    def parse(self, text: str) -> str:
        """Return the text, after a check that a server can be made from it."""
        from twisted.internet import reactor

        from dicomtwist.endpoints import server_endpoint

        server_endpoint(reactor, text)
        return text


def _no_secret(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Refuse a secret on the command line, without repeating the secret."""
    if value is not None:
        name = param.opts[0]
        prompt = "leave it out to be prompted for the password, or " if name == "--password" else ""
        raise click.UsageError(f"{name} would show the secret to every user of this machine: {prompt}use {name}-file")


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
            help="User name. The password is prompted for at the terminal, unless one of the next two options is given.",
        ),
        user(
            "--password-file",
            help="Read the password from FILE, - for standard input. A line break at its end is dropped.",
        ),
        _connection_option(
            "--no-password", group="User identity", is_flag=True, help="Send the user name without a password."
        ),
        user("--jwt-file", help="Identify the user by the JSON Web Token in FILE."),
        user("--kerberos-file", help="Identify the user by the Kerberos service ticket in FILE."),
        user("--saml-file", help="Identify the user by the SAML assertion in FILE."),
        *hidden,
    ]


def _tls_options() -> list[Callable[..., Any]]:
    tls = functools.partial(_connection_option, group="TLS")
    file = functools.partial(tls, type=FileType(), metavar="FILE")
    return [
        tls("--tls", is_flag=True, help="Connect over TLS 1.2 or later. Any other TLS option implies this one."),
        tls(
            "--tls-roots",
            type=FileType(),
            metavar="PATH",
            help="The CA certificates that the peer's certificate must lead to: a PEM file, or a folder of *.pem.",
        ),
        file("--tls-certificate", help="Our certificate in PEM form, for a peer that requests one."),
        file("--tls-key", help="The key of our certificate; by default in the same file."),
        file("--tls-chain", help="Intermediate certificates between ours and the root."),
        file("--tls-crl", help="Revocation list of the CA that signed the peer's certificate."),
        tls(
            "--tls-hostname", metavar="NAME", help="The name in the peer's certificate, if it is not the host of PEER."
        ),
        tls("--tls-profile", type=click.Choice(TLS_PROFILES), help="Cipher suites; bcp195 by default."),
    ]


def _options() -> list[Callable[..., Any]]:
    connection = functools.partial(_connection_option, show_default=True)
    seconds = functools.partial(connection, type=SecondsType(), metavar="SECONDS|none")
    return [
        connection("--calling", type=TitleType(), default=_DEFAULTS["ae_title"], metavar="TITLE", help="Our AE title."),
        connection(
            "--associations",
            type=click.IntRange(1, MAX_ASSOCIATIONS),
            default=1,
            metavar="N",
            help="Concurrent associations.",
        ),
        connection(
            "--async-ops",
            type=click.IntRange(1, MAX_OPERATIONS),
            default=1,
            metavar="N",
            help="Outstanding operations on an association, up to the number that the peer agrees to.",
        ),
        connection(
            "--max-pdu",
            type=click.IntRange(0, 2**32 - 1),
            default=_DEFAULTS["maximum_pdu_size"],
            metavar="BYTES",
            help="Longest P-DATA-TF that we accept; 0 for no limit.",
        ),
        seconds("--connect-timeout", default=f"{CONNECT_TIMEOUT:g}", help="Limit for making the TCP connection."),
        seconds(
            "--acse-timeout",
            default=f"{_DEFAULTS['acse_timeout']:g}",
            help="Limit for the TLS handshake and for each answer of the association service.",
        ),
        seconds(
            "--dimse-timeout",
            default=f"{_DEFAULTS['dimse_timeout']:g}",
            help="Limit for a DIMSE response to arrive, or to continue.",
        ),
        seconds(
            "--network-timeout",
            default=f"{_DEFAULTS['network_timeout']:g}",
            help="Limit for an idle association on which nothing arrives.",
        ),
        *_tls_options(),
        *_secret_options(),
        _connection_option(
            "-v",
            "--verbose",
            group="Output",
            count=True,
            help="Print more; -vv prints each message, -vvv each context.",
        ),
        _connection_option(
            "-q", "--quiet", group="Output", is_flag=True, help="Print errors only, and the matches of a query."
        ),
        _connection_option(
            "--trace",
            group="Output",
            is_flag=True,
            help="Show what is negotiated, why something is refused, and each message in words.",
        ),
        _connection_option("--json", "as_json", group="Output", is_flag=True, help="Print one JSON document."),
    ]


# --- the decorator of subcommands

#: The parameters that make the connection and are not passed to the subcommand.
_CONNECTION_PARAMETERS = (
    *("peer", "calling", "associations", "async_ops", "max_pdu"),
    *("connect_timeout", "acse_timeout", "dimse_timeout", "network_timeout"),
    *("tls", "tls_roots", "tls_certificate", "tls_key", "tls_chain", "tls_crl", "tls_hostname", "tls_profile"),
    *("user", "password_file", "no_password", "jwt_file", "kerberos_file", "saml_file"),
)


def _connection(values: dict[str, Any]) -> Connection | WebConnection:
    """
    Return the connection that the options describe.

    :raises click.UsageError: the options contradict each other, or the subcommand does not take a URL.
    """
    if not hasattr(values["peer"], "url"):
        from dicomtwist.tools.connection import make_connection

        return make_connection(values)
    command = click.get_current_context().command
    if not (isinstance(command, Command) and command.takes_url):
        raise click.UsageError(
            f"PEER: dicomtwist {command.name} speaks DIMSE, so give host:port; find, get and store take a URL"
        )
    from dicomtwist.tools.web_connection import make_web_connection

    return make_web_connection(values)


def with_connection(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Add the argument PEER and the common options to a subcommand.

    The subcommand is called with *connection*, a :class:`~dicomtwist.tools.connection.Connection`, *output*, an
    :class:`~dicomtwist.tools.display.console.Output`, and the values of its own parameters.
    """

    @functools.wraps(function)
    def wrapper(*, verbose: int, quiet: bool, trace: bool, as_json: bool, **values: Any) -> Any:
        from dicomtwist.tools.display.console import QUIET, Output

        if verbose and quiet:
            raise click.UsageError("-v and -q contradict each other: give one of them")
        own = {name: value for name, value in values.items() if name not in _CONNECTION_PARAMETERS}
        connection = _connection({name: values[name] for name in _CONNECTION_PARAMETERS})
        output = Output(QUIET if quiet else verbose, as_json=as_json, traces=trace)
        return function(connection=connection, output=output, **own)

    decorated: Callable[..., Any] = wrapper
    for option in reversed(_options()):
        decorated = option(decorated)
    return click.argument("peer", type=PeerType())(decorated)

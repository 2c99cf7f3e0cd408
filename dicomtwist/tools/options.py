"""
The options that all subcommands share, and the help that shows them in their groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from dicomtwist.settings import Settings
from dicomtwist.ul.ae_title import check_ae_title

if TYPE_CHECKING:
    from dicomtwist.transport.peer_address import Peer

#: The defaults of the settings of an AE.
_DEFAULTS: Final = {field.name: field.default for field in fields(Settings)}
#: The names of the TLS profiles in :data:`dicomtwist.endpoints.PROFILES`.
TLS_PROFILES: Final = ("bcp195", "bcp195-nd")

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


class PeerType(ValueType["Peer"]):
    """``[AET@]host:port`` or ``[AET@]endpoint-string``."""

    name = "peer"

    def parse(self, text: str) -> Peer:
        """Return the peer that *text* names."""
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
        from dicomtwist.tools.contexts import names_like

        return [CompletionItem(name) for name in names_like(incomplete)]


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
            default=_DEFAULTS["maximum_pdu_size"],
            metavar="BYTES",
            help="Longest P-DATA-TF that we take; 0 for no limit.",
        ),
        seconds("--connect-timeout", default=f"{CONNECT_TIMEOUT:g}", help="For the TCP connection to be made."),
        seconds(
            "--acse-timeout", default=f"{_DEFAULTS['acse_timeout']:g}", help="For TLS, and the association's answers."
        ),
        seconds(
            "--dimse-timeout", default=f"{_DEFAULTS['dimse_timeout']:g}", help="For an answer to come or to go on."
        ),
        seconds(
            "--network-timeout",
            default=f"{_DEFAULTS['network_timeout']:g}",
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
        from dicomtwist.tools.connection import make_connection
        from dicomtwist.tools.display.console import QUIET, Output

        if verbose and quiet:
            raise click.UsageError("-v and -q contradict each other")
        own = {name: value for name, value in values.items() if name not in _TAKEN}
        connection = make_connection({name: values[name] for name in _TAKEN})
        return function(connection=connection, output=Output(QUIET if quiet else verbose, as_json=as_json), **own)

    decorated: Callable[..., Any] = wrapper
    for option in reversed(_options()):
        decorated = option(decorated)
    return click.argument("peer", type=PeerType())(decorated)

"""
``dicomtwist queue``: the queue of forwarding of ``twist dicom``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dicomtwist.tools import raising_interrupts
from dicomtwist.tools.options import LocalCommand, command_option
from dicomtwist.tools.server_options import AS_JSON, DEFAULT_URL, TLS_ROOTS, TOKEN_FILE, URL, with_options

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
#: The states of tasks, without the import of their type, which shell completion would wait for.
STATES = ("waiting", "sending", "held", "failed", "done")


_server = with_options(URL, TOKEN_FILE, TLS_ROOTS, AS_JSON)
_selection = with_options(
    command_option("--to", "destination", default="", metavar="PEER", help="Only tasks to this peer."),
    command_option("--study", default="", metavar="UID", help="Only tasks of this study."),
    command_option("--instance", default="", metavar="UID", help="Only tasks of this instance."),
    command_option("--rule", default="", metavar="NAME", help="Only tasks by this rule."),
    command_option(
        "--state", "states", multiple=True, type=click.Choice(STATES), help="Only tasks in this state; repeatable."
    ),
)


def _run(values: dict[str, Any], call: Callable[[Any], int]) -> None:
    """Call a function with the API of the server, and end with its exit status."""
    from dicomtwist.tools.server.api import open_server

    _ended(lambda: call(open_server(values["url"] or DEFAULT_URL, values["token_file"], values["tls_roots"])))


def _ended(call: Callable[[], int]) -> None:
    from dicomtwist.tools.display.console import printable
    from dicomtwist.tools.server.api import OperationFailed

    try:
        with raising_interrupts():
            status = call()
    except OperationFailed as error:
        click.echo(f"dicomtwist: {printable(error)}", err=True)
        raise SystemExit(1) from None
    raise SystemExit(status)


class _Group(LocalCommand, click.Group):
    """The subcommands of ``dicomtwist queue``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options and the subcommands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(
    cls=_Group,
    examples="""\
Show what waits for which destination:
  dicomtwist queue show --url http://127.0.0.1:8042""",
)
def queue() -> None:
    """
    Look after the queue of forwarding of twist dicom.

    --url asks a running server, whose access rules have to allow 'admin'.
    """


@queue.command(
    "list",
    cls=LocalCommand,
    examples="""\
List the tasks that failed, with what the peers said:
  dicomtwist queue list --state failed
List those of a study as JSON:
  dicomtwist queue list --study 1.2.840.113619.2.55 --json""",
)
@_server
@_selection
@command_option("--limit", type=click.IntRange(1), metavar="N", help="At most so many tasks.")
def list_(
    destination: str, study: str, instance: str, rule: str, states: tuple[str, ...], limit: int | None, **values: Any
) -> None:
    """List tasks: one instance by one rule to one destination."""
    from dicomtwist.tools.server.queue import list_tasks

    texts = {"destination": destination, "study": study, "instance": instance, "rule": rule}
    query = [(name, value) for name, value in texts.items() if value] + [("state", one) for one in states]
    _run(values, lambda api: list_tasks(api, query, limit, as_json=values["as_json"]))


@queue.command(
    cls=LocalCommand,
    examples="""\
Show the destinations, with the numbers of their tasks:
  dicomtwist queue show
Show a task in full:
  dicomtwist queue show 17""",
)
@_server
@click.argument("ids", nargs=-1, type=click.IntRange(1), metavar="[ID]...")
def show(ids: tuple[int, ...], **values: Any) -> None:
    """Show destinations with the numbers of their tasks and the state of their peers, or some tasks in full."""
    from dicomtwist.tools.server import queue as operations

    _run(values, lambda api: operations.show(api, ids, as_json=values["as_json"]))


def _changing(name: str, words: str, example: str) -> click.Command:
    """Return a subcommand that changes tasks."""

    @queue.command(name, cls=LocalCommand, help=words, examples=example)
    @_server
    @_selection
    @command_option("--all", "every", is_flag=True, help="All tasks.")
    @click.argument("ids", nargs=-1, type=click.IntRange(1), metavar="[ID]...")
    def change(ids: tuple[int, ...], every: bool, states: tuple[str, ...], **values: Any) -> None:
        from dicomtwist.tools.server.queue import change_tasks

        texts = {key: values[key] for key in ("destination", "study", "instance", "rule") if values[key]}
        selection = {**texts, **({"ids": list(ids)} if ids else {}), **({"states": list(states)} if states else {})}
        if not selection and not every:
            raise click.UsageError(
                "name tasks by their IDs or by --to, --study, --instance, --rule or --state, or give --all"
            )
        if every and ids:
            raise click.UsageError("--all and IDs contradict each other: give one of them")
        selection |= {"all": True} if every else {}
        _run(values, lambda api: change_tasks(api, name, selection, as_json=values["as_json"]))

    return change


_changing(
    "retry",
    "Try tasks again at once: those that failed, and those that wait for their next try.",
    """\
Try all again that RESEARCH has refused:
  dicomtwist queue retry --to RESEARCH --state failed""",
)
_changing(
    "hold",
    "Put waiting tasks on hold, until they are released.",
    """\
Send nothing to RESEARCH for now of what waits:
  dicomtwist queue hold --to RESEARCH""",
)
_changing(
    "release",
    "Let tasks on hold be sent.",
    """\
Send what is on hold:
  dicomtwist queue release --all""",
)
_changing(
    "drop",
    "Remove tasks, so that they are not sent.",
    """\
Forget the tasks of a study that failed:
  dicomtwist queue drop --study 1.2.840.113619.2.55 --state failed""",
)


@queue.command(
    cls=LocalCommand,
    examples="""\
Ask a server where it would send a file that CT1 sends:
  dicomtwist queue explain image.dcm --calling CT1
Ask the rules of a configuration file:
  dicomtwist queue explain image.dcm --calling CT1 --config archive.toml""",
)
@_server
@command_option("--config", type=_FILE, metavar="FILE", help="The configuration file, in place of a server that runs.")
@command_option("--calling", default="", metavar="TITLE", help="The calling AE title of the sender.")
@command_option(
    "--called", default="", metavar="TITLE", help="The AE title that it calls, by default that of the server."
)
@command_option("--from", "address", default="", metavar="ADDRESS", help="Its address, by default this machine.")
@command_option("--user", default="", metavar="NAME", help="Its user.")
@command_option("--certificate", default="", metavar="PATTERN", help="Its certificate, as in a rule.")
@click.argument("file", type=_FILE, metavar="FILE")
def explain(
    file: Path, config: Path | None, calling: str, called: str, address: str, user: str, certificate: str, **values: Any
) -> None:
    """
    Explain what the rules of forwarding say about FILE: where it would go, and why it would not.

    The header of the file is sent to the server, without its pixel data. The exit status is 1 if it goes nowhere.
    """
    from dicomtwist.tools.server.queue import explain_file, explain_locally

    given = {"calling": calling, "called": called, "from": address, "user": user, "certificate": certificate}
    sender = {name: value for name, value in given.items() if value}
    if config is None:
        _run(values, lambda api: explain_file(api, file, sender, as_json=values["as_json"]))
    elif values["url"] is not None:
        raise click.UsageError("--url and --config contradict each other: give one of them")
    else:
        _ended(lambda: explain_locally(config, file, sender, as_json=values["as_json"]))


@queue.command(
    cls=LocalCommand,
    examples="""\
Make the key of pseudonyms for rules with 'deidentify' or 'hash':
  dicomtwist queue key /etc/dicom/forward.key""",
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
def key(file: Path) -> None:
    """Make FILE with a new secret key of pseudonyms, which only its owner can read."""
    from dicomtwist.tools.server.queue import write_key

    def call() -> int:
        write_key(file)
        return 0

    _ended(call)

"""
``dicomtwist archive``: look after the archive of ``twist dicom``, at a running server or in the folder of a stopped one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dicomtwist.tools import raising_interrupts
from dicomtwist.tools.options import LocalCommand, command_option
from dicomtwist.tools.server_options import AS_JSON, DEFAULT_URL, TLS_ROOTS, TOKEN_FILE, URL, with_options

#: The options that say where the archive is.
_place = with_options(
    URL,
    command_option(
        "--storage",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="The folder of a server that does not run.",
    ),
    TOKEN_FILE,
    TLS_ROOTS,
    AS_JSON,
)


def _run(name: str, values: dict[str, Any], **arguments: Any) -> None:
    """Run an operation, and end with its exit status."""
    from dicomtwist.tools.display.console import printable
    from dicomtwist.tools.runners.archive import open_archive, run
    from dicomtwist.tools.server.api import OperationFailed

    url, storage = values["url"], values["storage"]
    if url is not None and storage is not None:
        raise click.UsageError("--url and --storage contradict each other: give one of them")
    try:
        with (
            raising_interrupts(),
            open_archive(
                url or DEFAULT_URL, storage, values["token_file"], values["tls_roots"], rebuilds=name == "rebuild"
            ) as archive,
        ):
            status = run(archive, name, as_json=values["as_json"], **arguments)
    except OperationFailed as error:
        click.echo(f"dicomtwist: {printable(error)}", err=True)
        raise SystemExit(1) from None
    raise SystemExit(status)


def _check_uids(uids: Sequence[str]) -> list[list[str]]:
    """
    Return the UIDs of each study, series or instance.

    :raises click.UsageError: one of them is not written so.
    """
    from dicomtwist.archive.storage.types import is_uid

    found = [text.split("/") for text in uids]
    for text, parts in zip(uids, found, strict=True):
        if len(parts) > 3 or not all(map(is_uid, parts)):
            raise click.UsageError(f"{text!r} is not STUDY, STUDY/SERIES or STUDY/SERIES/INSTANCE, each a UID")
    return found


class _Group(LocalCommand, click.Group):
    """The subcommands of ``dicomtwist archive``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options and the subcommands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(
    cls=_Group,
    examples="""\
Show what the archive of a running server holds:
  dicomtwist archive stat --url http://127.0.0.1:8042""",
)
def archive() -> None:
    """
    Look after the archive of twist dicom.

    --url asks a running server, whose access rules decide: 'delete' for deletions, 'admin' for everything else. --storage
    works in the folder of a server that does not run; it is refused while one does.
    """


@archive.command(
    cls=LocalCommand,
    examples="""\
Show what the archive of a server holds:
  dicomtwist archive stat
Show it for the folder of a server that does not run:
  dicomtwist archive stat --storage /var/lib/dicom --json""",
)
@_place
def stat(**values: Any) -> None:
    """Show what the archive holds."""
    _run("stat", values)


@archive.command(
    "list",
    cls=LocalCommand,
    examples="""\
List all studies:
  dicomtwist archive list
List the locked ones as JSON:
  dicomtwist archive list --locked --json""",
)
@_place
@command_option("--patient-id", default="", metavar="ID", help="Only studies of this patient.")
@command_option("--locked", is_flag=True, help="Only locked studies.")
@command_option("--limit", type=click.IntRange(1), metavar="N", help="At most so many studies.")
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
def list_(studies: tuple[str, ...], patient_id: str, locked: bool, limit: int | None, **values: Any) -> None:
    """List studies, with their sizes, times and locks."""
    for uids in _check_uids(studies):
        if len(uids) > 1:
            raise click.UsageError("a list is one of studies: give their UIDs")
    _run("list", values, uids=list(studies), patient_id=patient_id, locked=locked, limit=limit)


@archive.command(
    cls=LocalCommand,
    examples="""\
Delete a study:
  dicomtwist archive delete 1.2.840.113619.2.55
Delete a series of another one, without a question:
  dicomtwist archive delete --yes 1.2.840.113619.2.56/1.2.840.113619.2.56.1""",
)
@_place
@command_option("--yes", is_flag=True, help="Do not ask before the deletion.")
@click.argument("uids", nargs=-1, required=True, metavar="STUDY[/SERIES[/INSTANCE]]...")
def delete(uids: tuple[str, ...], yes: bool, **values: Any) -> None:
    """Delete studies, series or instances, for good."""
    found = _check_uids(uids)
    if not yes and not click.confirm(f"Delete {', '.join(uids)}?", err=True):
        raise SystemExit(1)
    _run("delete", values, uids=found)


@archive.command(
    cls=LocalCommand,
    examples="""\
Lock a study:
  dicomtwist archive lock 1.2.840.113619.2.55 --reason "case 17\"""",
)
@_place
@command_option("--reason", default="", metavar="TEXT", help="The reason, which the list shows.")
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...")
def lock(studies: tuple[str, ...], reason: str, **values: Any) -> None:
    """Lock studies: nobody can delete them, and the retention keeps them."""
    _run("lock", values, uids=_studies(studies), reason=reason)


@archive.command(
    cls=LocalCommand,
    examples="""\
Unlock a study:
  dicomtwist archive unlock 1.2.840.113619.2.55""",
)
@_place
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...")
def unlock(studies: tuple[str, ...], **values: Any) -> None:
    """Unlock studies."""
    _run("unlock", values, uids=_studies(studies))


def _studies(studies: Sequence[str]) -> list[str]:
    if any(len(uids) > 1 for uids in _check_uids(studies)):
        raise click.UsageError("a lock is one of a study: give its UID")
    return list(studies)


@archive.command(
    cls=LocalCommand,
    examples="""\
Compare the files of a running server with its index, and repair the index:
  dicomtwist archive check""",
)
@_place
def check(**values: Any) -> None:
    """
    Compare files and index, and repair the index.

    Files that were added by hand are indexed, and rows whose files were removed by hand are removed. The exit status is 1
    if files cannot be read.
    """
    _run("check", values)


@archive.command(
    cls=LocalCommand,
    examples="""\
Make the index of a server that does not run again:
  dicomtwist archive rebuild --storage /var/lib/dicom""",
)
@_place
def rebuild(**values: Any) -> None:
    """
    Read all files, and make their rows in the index again.

    In a folder, the old index is moved to .index-<time> before, so that a damaged one is replaced.
    """
    _run("rebuild", values)


@archive.command(
    cls=LocalCommand,
    examples="""\
Copy two studies into a folder:
  dicomtwist archive export --to /mnt/disk 1.2.840.113619.2.55 1.2.840.113619.2.56""",
)
@_place
@command_option(
    "--to",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="The folder, made if it is missing. Each instance becomes STUDY/SERIES/INSTANCE.dcm in it.",
)
@click.argument("uids", nargs=-1, required=True, metavar="STUDY[/SERIES[/INSTANCE]]...")
def export(uids: tuple[str, ...], folder: Path, **values: Any) -> None:
    """Copy the files of studies, series or instances into a folder, as they are stored."""
    _run("export", values, uids=_check_uids(uids), folder=folder)

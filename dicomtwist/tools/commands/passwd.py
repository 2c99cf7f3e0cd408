"""
``dicomtwist passwd``: set the passcode of a user of ``twist dicom``.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dicomtwist.access.rules import parse_rules
from dicomtwist.access.users import check_name, hash_passcode, make_token, read_passcode
from dicomtwist.access.users_file import NEW_FILE_MODE, Change, remove_user, set_user
from dicomtwist.tools import raising_interrupts
from dicomtwist.tools.options import LocalCommand, command_option


@click.command(
    cls=LocalCommand,
    examples="""\
Set the passcode of alice, which is prompted for twice:
  dicomtwist passwd --users /etc/dicom/users alice
Find the file of users in the configuration of the server:
  dicomtwist passwd --config /etc/dicom/archive.toml alice
Set it from a script:
  dicomtwist passwd --users /etc/dicom/users alice <passcode.txt
Make a token for a program that uses DICOMweb; it is printed once:
  dicomtwist passwd --users /etc/dicom/users --token viewer
Remove a user:
  dicomtwist passwd --users /etc/dicom/users --delete alice""",
)
@command_option(
    "--users",
    "users",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file of users; created if it is missing. Without a file the line for it is printed.",
)
@command_option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The configuration file of the server, whose key access.users names the file of users.",
)
@command_option("--delete", is_flag=True, help="Remove the user.")
@command_option("--token", is_flag=True, help="Make a token for HTTP instead of a passcode, and print it.")
@click.argument("name")
def passwd(users: Path | None, config: Path | None, delete: bool, token: bool, name: str) -> None:
    """
    Set the passcode of the user NAME of twist dicom.

    With --token it makes a token instead, which a program sends in the field Authorization: Bearer of HTTP.

    The passcode is typed twice at the terminal and not shown, or it is the first line of standard input. Only a hash of it is
    written. The file is replaced as a whole, so a running server never reads half of it; it reads the change at SIGHUP.
    """
    if users is not None and config is not None:
        raise click.UsageError("--users and --config contradict each other: give one of them")
    access = {} if config is None else _access_of(config)
    path = _file_of(config, access) if config is not None else users
    if delete and token:
        raise click.UsageError("--delete and --token contradict each other: give one of them")
    if delete and path is None:
        raise click.UsageError("--delete needs --users or --config")
    try:
        check_name(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        with raising_interrupts():
            _change(name, path, delete=delete, token=token)
        if delete:
            _warn_of_rules(name, config, access)
    except KeyError:
        _fail(f"{path} has no user {name!r}")
    except EOFError:
        _fail("no passcode was typed")
    except ValueError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"cannot change {path}: {error.strerror}")


def _change(name: str, path: Path | None, *, delete: bool, token: bool) -> None:
    """Set the passcode or the token of a user, or remove it, and print what was done; *path* is the file of users."""
    if delete and path is not None:
        print(_words(remove_user(path, name), name, path, is_new=False))
        return
    secret, entry = make_token(name) if token else ("", hash_passcode(name, read_passcode(name)))
    if path is None:
        print(*filter(None, (secret, entry)), sep="\n")
        return
    is_new = not path.exists()
    words = _words(set_user(path, entry), name, path, is_new=is_new)
    if secret:
        # The token alone goes to standard output, so that a script can keep it.
        print(words, file=sys.stderr)
        print(secret)
    else:
        print(words)


def _words(change: Change, name: str, path: Path, *, is_new: bool) -> str:
    preposition = {Change.ADDED: "to", Change.REPLACED: "in", Change.REMOVED: "from"}[change]
    added = f"{name} is {change.value} {preposition} {path}"
    if is_new:
        return f"{added}, a new file (mode {NEW_FILE_MODE:o}): the user that the server runs as must be able to read it"
    return f"{added}; 'kill -HUP' makes a running server read it"


def _warn_of_rules(name: str, config: Path | None, access: Mapping[str, Any]) -> None:
    """Print the rules of the configuration that still name a removed user."""
    try:
        rules = parse_rules(access["rule"], "access.rule").rules if "rule" in access else ()
    except ValueError:
        return  # the server reports it
    named = [str(rule) for rule in rules if name in rule.users]
    if named:
        print(f"dicomtwist: {config} still names {name} in {', '.join(named)}", file=sys.stderr)


def _access_of(config: Path) -> Mapping[str, Any]:
    """Return the table ``access`` of a configuration file."""
    try:
        access = tomllib.loads(config.read_text("utf-8-sig")).get("access", {})
    except OSError as error:
        raise click.UsageError(f"cannot read {config}: {error.strerror}") from None
    except ValueError as error:
        raise click.UsageError(f"{config}: {error}") from None
    return access if isinstance(access, dict) else {}


def _file_of(config: Path, access: Mapping[str, Any]) -> Path:
    """Return the file of users that the table *access* of a configuration file names."""
    users = access.get("users")
    if not isinstance(users, str) or not users:
        raise click.UsageError(f'{config} names no file of users: write users = "/etc/dicom/users" below [access]')
    return Path(users)


def _fail(message: str) -> None:
    print(f"dicomtwist: {message}", file=sys.stderr)
    raise SystemExit(1)

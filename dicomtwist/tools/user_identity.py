"""
User identity (PS3.7 D.3.3.7). Secrets come from a file or a prompt, never from the command line.

Every user of the machine can read a command line in the list of processes, and the shell keeps it in its history.
"""

from __future__ import annotations

import getpass
import sys
from typing import Any

import click

from dicomtwist import UserIdentity
from dicomtwist.tools import raising_interrupts

#: The longest secret, in bytes: the sub-item has 16 bits for the length of a field.
MAX_SECRET = 0xFFFF

#: Identity types of PS3.7 Table D.3-14.
USERNAME, USERNAME_AND_PASSCODE, KERBEROS, SAML, JWT = 1, 2, 3, 4, 5


class SecretError(ValueError):
    """A secret cannot be read. The text contains neither the secret nor what was given as the name of its file."""


def read_secret(path: str, *, is_text: bool) -> bytes:
    """
    Return the content of the file *path*, ``-`` for standard input.

    :param is_text: remove a line break at the end, which editors add.
    :raises SecretError: the file cannot be read, is empty or too long.
    """
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_SECRET + 3)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_SECRET + 3)
    except (OSError, ValueError) as error:
        # The path is left out: it may be the secret itself, given by mistake.
        reason = getattr(error, "strerror", None) or "it is not the name of a file"
        raise SecretError(f"the file cannot be read: {reason}") from None
    if is_text:
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    if not data:
        raise SecretError("the file is empty")
    if len(data) > MAX_SECRET:
        raise SecretError(f"the file has more than {MAX_SECRET} bytes")
    return data


def ask_password(user: str) -> bytes:
    """
    Prompt for the password of *user* at the terminal, without echo.

    :raises SecretError: there is no terminal, or the password is empty or too long.
    """
    if not sys.stdin.isatty():
        raise SecretError("there is no terminal to ask for the password: use --password-file or --no-password")
    with raising_interrupts():
        password = getpass.getpass(f"Password of {user}: ").encode("utf-8")
    if not 0 < len(password) <= MAX_SECRET:
        raise SecretError("no password was typed: use --no-password to send the name alone")
    return password


def username_identity(user: str, password: bytes | None) -> UserIdentity:
    """Return the identity of a user by name, and by password if there is one."""
    kind = USERNAME if password is None else USERNAME_AND_PASSCODE
    return UserIdentity(kind, user.encode("utf-8"), password or b"", response_requested=True)


def token_identity(kind: int, data: bytes) -> UserIdentity:
    """Return the identity that a Kerberos ticket, SAML assertion or JSON Web Token proves."""
    return UserIdentity(kind, data, response_requested=True)


def identity_from_options(values: dict[str, Any]) -> UserIdentity | None:
    """
    Return the user identity that the options in *values* describe, ``None`` if they name no user.

    :raises click.UsageError: the options contradict each other, or a secret cannot be read.
    """
    kinds = {"jwt_file": JWT, "kerberos_file": KERBEROS, "saml_file": SAML}
    given = [name for name in ("user", *kinds) if values[name] is not None]
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{names} contradict each other: an association has one user")
    option = "password_file" if given in ([], ["user"]) else given[0]
    try:
        if values["user"] is not None:
            return username_identity(values["user"], _password(values))
        if values["password_file"] is not None or values["no_password"]:
            raise click.UsageError("--user is missing: --password-file and --no-password need the name of the user")
        return token_identity(kinds[given[0]], _token(values, given[0])) if given else None
    except SecretError as error:
        raise click.UsageError(f"--{option.replace('_', '-')}: {error}") from None


def _token(values: dict[str, Any], name: str) -> bytes:
    # A Kerberos ticket is binary: a line break at its end may be part of it.
    return read_secret(values[name], is_text=name != "kerberos_file")


def _password(values: dict[str, Any]) -> bytes | None:
    if values["no_password"]:
        if values["password_file"] is not None:
            raise click.UsageError("--password-file and --no-password contradict each other")
        return None
    if values["password_file"] is not None:
        return read_secret(values["password_file"], is_text=True)
    return ask_password(values["user"])

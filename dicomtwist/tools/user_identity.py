"""
User identity (PS3.7 D.3.3.7): the secret comes from a file or a prompt, never from the command line.

What is on a command line is in the list of processes and in the history of the shell, for everybody to read.
"""

from __future__ import annotations

import getpass
import sys
from typing import Any

import click

from dicomtwist import UserIdentity

#: The longest secret, in bytes: the length of a field of the sub-item has 16 bits.
MAX_SECRET = 0xFFFF

#: Identity types of PS3.7 Table D.3-14.
USERNAME, USERNAME_AND_PASSCODE, KERBEROS, SAML, JWT = 1, 2, 3, 4, 5


class SecretError(ValueError):
    """A secret cannot be had; the text does not have it in it, nor what was given in the place of a file's name."""


def read_secret(path: str, *, is_text: bool) -> bytes:
    """
    Return what is in the file *path*, ``-`` for standard input.

    :param is_text: take a line break at the end off, which editors put there.
    :raises SecretError: it cannot be read, is empty or too long.
    """
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_SECRET + 3)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_SECRET + 3)
    except (OSError, ValueError) as error:
        # Not the path: it may be the secret itself, put there by mistake.
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
    Ask for the password of *user* at the terminal, without echo.

    :raises SecretError: there is no terminal, or nothing was typed.
    """
    if not sys.stdin.isatty():
        raise SecretError("there is no terminal to ask for the password: use --password-file or --no-password")
    password = getpass.getpass(f"Password of {user}: ").encode("utf-8")
    if not 0 < len(password) <= MAX_SECRET:
        raise SecretError("no password was typed: use --no-password to send the name alone")
    return password


def username(user: str, password: bytes | None) -> UserIdentity:
    """Return the identity of a user by name, and by password where there is one."""
    kind = USERNAME if password is None else USERNAME_AND_PASSCODE
    return UserIdentity(kind, user.encode("utf-8"), password or b"", response_requested=True)


def token(kind: int, data: bytes) -> UserIdentity:
    """Return the identity that a ticket, assertion or token says."""
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
            return username(values["user"], _password(values))
        if values["password_file"] is not None or values["no_password"]:
            raise click.UsageError("--user is missing")
        return token(kinds[given[0]], _token(values, given[0])) if given else None
    except SecretError as error:
        raise click.UsageError(f"--{option.replace('_', '-')}: {error}") from None


def _token(values: dict[str, Any], name: str) -> bytes:
    # A Kerberos ticket is binary, a line break at its end may be part of it.
    return read_secret(values[name], is_text=name != "kerberos_file")


def _password(values: dict[str, Any]) -> bytes | None:
    if values["no_password"]:
        if values["password_file"] is not None:
            raise click.UsageError("--password-file and --no-password contradict each other")
        return None
    if values["password_file"] is not None:
        return read_secret(values["password_file"], is_text=True)
    return ask_password(values["user"])

"""
The users of a server: a file of names with hashed passcodes, and with hashed tokens for HTTP.

``dicomtwist passwd`` changes the file, see :mod:`dicomtwist.access.users_file`. ``python -m dicomtwist.access.users NAME``
asks for a passcode and prints the line for the file; it needs no more than the archive does.
"""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
import hmac
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

__all__ = [
    "TokenEntry",
    "UserEntry",
    "Users",
    "check_name",
    "hash_passcode",
    "make_token",
    "parse_entries",
    "read_passcode",
]

#: The largest number of users.
MAX_USERS: Final = 10_000
#: The longest file of users, in bytes.
MAX_FILE_LENGTH: Final = 4 * 1024 * 1024
#: The most memory for the check of one passcode, in bytes: 128 * N * r of scrypt (RFC 7914).
MAX_SCRYPT_MEMORY: Final = 64 * 1024 * 1024
#: The number of passcodes that are cached as right: a check takes a fifth of a second, too long for frequent requestors.
MAX_REMEMBERED: Final = 1024
#: The longest passcode, in bytes. A user identity item has room for one of 65,535 bytes (PS3.7 D.3.3.7).
MAX_PASSCODE_LENGTH: Final = 1024
#: The most passes (p) of scrypt.
MAX_SCRYPT_PASSES: Final = 16

#: N, r and p of scrypt for passcodes that are hashed here: 32 MiB of memory each.
_N, _R, _P = 2**15, 8, 3
_KEY_LENGTH: Final = 32
_NAME: Final = "scrypt"
_TOKEN: Final = "token"
#: The beginning of a token, by which people and scanners for secrets recognize it.
TOKEN_PREFIX: Final = "dicomtwist_"


@dataclass(frozen=True, slots=True)
class UserEntry:
    """A user, with the hash of the passcode."""

    name: str
    n: int
    r: int
    p: int
    salt: bytes = field(repr=False)
    key: bytes = field(repr=False)

    def is_passcode(self, passcode: bytes) -> bool:
        """Whether *passcode* is right. The check takes about a fifth of a second."""
        return hmac.compare_digest(_scrypt(passcode, self.salt, self.n, self.r, self.p, len(self.key)), self.key)

    def __str__(self) -> str:
        salt, key = (base64.b64encode(value).decode("ascii") for value in (self.salt, self.key))
        return f"{self.name}:{_NAME}:{self.n}:{self.r}:{self.p}:{salt}:{key}"


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A user, with the hash of a token. A token has 256 random bits, so that its hash needs no salt and no time."""

    name: str
    digest: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}:{_TOKEN}:sha256:{base64.b64encode(self.digest).decode('ascii')}"


def make_token(name: str) -> tuple[str, TokenEntry]:
    """
    Return a new token for the user *name*, and its entry.

    :raises ValueError: the name is not valid, see :func:`check_name`.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    return token, TokenEntry(check_name(name), _token_digest(token))


def _token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def hash_passcode(name: str, passcode: bytes, n: int = _N, r: int = _R, p: int = _P) -> UserEntry:
    """
    Return the entry of a user.

    :param n: with *r* and *p*, the cost of the hash: parameters of scrypt (RFC 7914).
    :raises ValueError: the name is empty, has a colon or a control character, or begins with ``#``.
    """
    salt = os.urandom(16)
    return UserEntry(check_name(name), n, r, p, salt, _scrypt(passcode, salt, n, r, p, _KEY_LENGTH))


class Users:
    """
    The users of a file. :meth:`verify` blocks.

    :param path: the file: ``NAME:scrypt:N:R:P:SALT:KEY`` on each line, the last two in base 64, or
        ``NAME:token:sha256:DIGEST``; empty lines and lines that begin with ``#`` are ignored.
    :raises ValueError: the file cannot be read, or a line of it is wrong; the message has the number of the line, and nothing
        of its content.
    """

    def __init__(self, path: Path) -> None:
        entries = [*_read(path)]
        self._entries = {entry.name: entry for entry in entries if isinstance(entry, UserEntry)}
        tokens = {entry.name: entry for entry in entries if isinstance(entry, TokenEntry)}
        self._tokens = {entry.digest: name for name, entry in tokens.items()}
        self._names = self._entries.keys() | tokens.keys()
        if len(self._names) > MAX_USERS:
            raise ValueError(f"{str(path)!r} has more than {MAX_USERS} users")
        like = next(iter(self._entries.values()), UserEntry("", _N, _R, _P, b"", b""))
        self._nobody = UserEntry("", like.n, like.r, like.p, secrets.token_bytes(16), secrets.token_bytes(_KEY_LENGTH))
        self._secret = secrets.token_bytes(32)
        self._right: dict[bytes, None] = {}
        self._lock = Lock()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def user_of(self, token: str) -> str:
        """Return the user that *token* belongs to; ``""`` if it is no token of a user."""
        return self._tokens.get(_token_digest(token), "")

    def is_remembered(self, name: str, passcode: bytes) -> bool:
        """Whether *passcode* was found right before; this does not block."""
        return self._digest(name, passcode) in self._right

    def verify(self, name: str, passcode: bytes) -> bool:
        """Whether *passcode* is that of the user *name*. An unknown name takes as long to check as a wrong passcode."""
        digest = self._digest(name, passcode)
        if digest in self._right:
            return True
        entry = self._entries.get(name)
        if not (entry or self._nobody).is_passcode(passcode) or entry is None:
            return False
        with self._lock:
            while len(self._right) >= MAX_REMEMBERED:
                del self._right[next(iter(self._right))]
            self._right[digest] = None
        return True

    def _digest(self, name: str, passcode: bytes) -> bytes:
        return hmac.digest(self._secret, name.encode() + b"\0" + passcode, "sha256")


def _scrypt(passcode: bytes, salt: bytes, n: int, r: int, p: int, length: int) -> bytes:
    # OpenSSL adds some kilobytes to the memory that it counts.
    return hashlib.scrypt(passcode, salt=salt, n=n, r=r, p=p, maxmem=MAX_SCRYPT_MEMORY + 1024 * 1024, dklen=length)


def check_name(name: str) -> str:
    """
    Return *name* if it can be the name of a user.

    :raises ValueError: it cannot be one.
    """
    if not name or ":" in name or name.startswith("#") or name != name.strip() or not name.isprintable():
        raise ValueError(
            f"{name!r} is not a user name: it is empty, or has a colon, a control character or a space around it"
        )
    return name


def _read(path: Path) -> Iterator[UserEntry | TokenEntry]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_LENGTH + 1)
    except FileNotFoundError as error:
        raise ValueError(
            f"cannot read the users of {str(path)!r}: {error.strerror}; 'dicomtwist passwd --users {path} NAME' makes it"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read the users of {str(path)!r}: {error.strerror}") from None
    if len(content) > MAX_FILE_LENGTH:
        raise ValueError(f"{str(path)!r} has more than {MAX_FILE_LENGTH} bytes")
    return parse_entries(path, content)


def parse_entries(path: Path, content: bytes) -> Iterator[UserEntry | TokenEntry]:
    """
    Yield the entries in the *content* of the file of users *path*.

    :raises ValueError: a line is wrong; the message has the number of the line, and nothing of its content.
    """
    for number, line in enumerate(content.decode("utf-8-sig", "replace").split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            try:
                yield _parse(line.strip())
            except (ValueError, binascii.Error):
                raise ValueError(
                    f"{path}, line {number} is not a user entry; 'dicomtwist passwd NAME' prints one"
                ) from None


def _parse(line: str) -> UserEntry | TokenEntry:
    if line.split(":")[1:2] == [_TOKEN]:
        name, _, algorithm, digest = line.split(":")
        token = TokenEntry(check_name(name), base64.b64decode(digest, validate=True))
        if algorithm != "sha256" or len(token.digest) != hashlib.sha256().digest_size:
            raise ValueError("not SHA-256")
        return token
    name, kind, n, r, p, salt, key = line.split(":")
    entry = UserEntry(
        check_name(name),
        *(int(n), int(r), int(p)),
        base64.b64decode(salt, validate=True),
        base64.b64decode(key, validate=True),
    )
    if kind != _NAME or entry.n < 2 or entry.n & (entry.n - 1) or entry.r < 1:
        raise ValueError("not scrypt")
    if not 1 <= entry.p <= MAX_SCRYPT_PASSES or 128 * entry.n * entry.r > MAX_SCRYPT_MEMORY:
        raise ValueError("costs too much")
    if len(entry.salt) < 8 or not 16 <= len(entry.key) <= 64:
        raise ValueError("too short")
    return entry


def read_passcode(name: str) -> bytes:
    """
    Return the passcode for the user *name*: typed twice at the terminal, without echo, or the first line of standard input
    if that is no terminal.

    :raises ValueError: the passcode is empty or too long, or the two differ.
    """
    if sys.stdin.isatty():
        passcode = os.fsencode(getpass.getpass(f"Passcode of {name}: "))
        if passcode and passcode != os.fsencode(getpass.getpass("Again: ")):
            raise ValueError("the passcodes differ")
    else:
        line = sys.stdin.buffer.readline(MAX_PASSCODE_LENGTH + 3)
        passcode = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
    if not passcode:
        raise ValueError("the passcode is empty")
    if len(passcode) > MAX_PASSCODE_LENGTH:
        raise ValueError(f"the passcode has more than {MAX_PASSCODE_LENGTH} bytes")
    return passcode


def main(arguments: list[str]) -> int:
    """Print the line for the user that the argument names. The passcode is read from the terminal or from a pipe."""
    if len(arguments) != 1:
        print("usage: python -m dicomtwist.access.users NAME", file=sys.stderr)
        return 64
    try:
        name = check_name(arguments[0])
        passcode = read_passcode(name)
    except ValueError as error:
        print(f"{error}", file=sys.stderr)
        return 65
    print(hash_passcode(name, passcode))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

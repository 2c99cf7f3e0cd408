"""
The values of the options of ``twist dicom``: functions that convert the text of an option, or say what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TypeVar

from twisted.python import usage

from dicomtwist.datasets.character_sets import canonical
from dicomtwist.ul.ae_title import check_ae_title

__all__ = ["charset", "choice", "count", "member", "origin", "seconds", "size", "title", "url"]

_E = TypeVar("_E", bound=Enum)


def title(value: str) -> str:
    """
    Return the AE title *value*.

    :raises usage.UsageError: it is not a valid AE title.
    """
    try:
        return check_ae_title(value)
    except ValueError as error:
        raise usage.UsageError(str(error)) from None


def seconds(option: str) -> Callable[[str], float | None]:
    """Return the converter of an *option* that is a time in seconds, or ``none``."""

    def convert(value: str) -> float | None:
        if value == "none":
            return None
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            raise usage.UsageError(f"{option} {value!r} is not a time: seconds above 0, or none")
        return number

    return convert


def count(option: str, least: int, most: int, *, none: bool = False) -> Callable[[str], int | None]:
    """
    Return the converter of an *option* that is a whole number from *least* to *most*.

    :param none: whether it may be ``none``.
    """

    def convert(value: str) -> int | None:
        if none and value == "none":
            return None
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise usage.UsageError(f"{option} {value!r} is not a number from {least} to {most}")
        return number

    return convert


def choice(option: str, words: Sequence[str]) -> Callable[[str], str]:
    """Return the converter of an *option* that is one of *words*."""

    def convert(value: str) -> str:
        if value not in words:
            raise usage.UsageError(f"{option} is {_listed(words)}, not {value!r}")
        return value

    return convert


def member(option: str, kind: type[_E]) -> Callable[[str], _E]:
    """Return the converter of an *option* that is the value of a member of *kind*."""

    def convert(value: str) -> _E:
        try:
            return kind(value)
        except ValueError:
            raise usage.UsageError(f"{option} is {_listed([one.value for one in kind])}, not {value!r}") from None

    return convert


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def charset(value: str) -> str:
    """
    Return the defined term of the character set *value*, ``""`` for ``none``.

    :raises usage.UsageError: it is not a known character set.
    """
    if value == "none":
        return ""
    if not canonical(value):
        raise usage.UsageError(f"--default-charset {value[:64]!r} is no character set: ISO_IR 100, ISO_IR 192, GB18030")
    return canonical(value)


def size(option: str) -> Callable[[str], int]:
    """Return the converter of an *option* that is a number of bytes, such as ``10G``."""

    def convert(value: str) -> int:
        found = re.fullmatch(r"(\d{1,15})([kKMGT]?)", value)
        if not found:
            raise usage.UsageError(f"{option} {value!r} is not a number of bytes: 0, 500M, 10G")
        return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")

    return convert


def url(value: str) -> str:
    """
    Return the URL *value*, without a slash at its end.

    :raises usage.UsageError: it is not an absolute URL of HTTP.
    """
    if not re.fullmatch(r"https?://[A-Za-z0-9._~:\[\]-]+(/[A-Za-z0-9._~/-]*)?", value):
        raise usage.UsageError(f"--http-url {value[:200]!r} is not a URL: https://pacs.example/dicom-web")
    return value.rstrip("/")


def origin(value: str) -> str:
    """
    Return the origin *value* of web pages, as browsers write it (RFC 6454 6.2), or ``*``.

    :raises usage.UsageError: it is not an origin.
    """
    found = value.lower().rstrip("/")
    if value != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[a-z0-9._~:\[\]-]+", found):
        raise usage.UsageError(f"--http-origin {value[:200]!r} is not an origin: https://viewer.example, or *")
    return found

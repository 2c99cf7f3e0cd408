"""
Pseudonyms by a keyed hash: UIDs, texts and numbers of days that depend on a value and on a secret key alone.

Equal values have equal pseudonyms, in any process and after any restart, so that a study that is sent in parts stays one study.
Without the key nobody can try which value a pseudonym stands for.
"""

from __future__ import annotations

import hmac
import re
from datetime import date, timedelta
from typing import Final
from uuid import UUID

__all__ = ["KEY_LENGTH", "Pseudonyms", "shifted"]

#: The least length of a key, in bytes.
KEY_LENGTH: Final = 16
#: Dates move back by 1 to this number of days.
SHIFT_DAYS: Final = 3650

#: UIDs below the root of the standard name classes, syntaxes and well-known frames of reference, and identify nobody.
STANDARD_ROOT: Final = "1.2.840.10008."
_STANDARD_UID: Final = re.compile(re.escape(STANDARD_ROOT) + r"[0-9.]{1,50}")
#: The rest of a date and time behind its day: the time, and the offset from UTC.
_TIME_AND_OFFSET: Final = re.compile(r"(?:[0-9]{2}){0,3}(?:\.[0-9]{1,6})?(?:[+-](?:0[0-9]|1[0-4])[0-5][0-9])?")


class Pseudonyms:
    """
    The pseudonyms under one key.

    :param key: the secret, of at least :data:`KEY_LENGTH` bytes.
    :raises ValueError: it is shorter.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_LENGTH:
            raise ValueError(f"a key has at least {KEY_LENGTH} bytes, not {len(key)}")
        self._key = bytes(key)

    def uid(self, uid: str) -> str:
        """Return the UID in place of *uid*: ``2.25.`` and a UUID (PS3.5 B.2). UIDs of the standard stay."""
        if not uid or _STANDARD_UID.fullmatch(uid):
            return uid
        return f"2.25.{UUID(bytes=self._digest('uid', uid)[:16], version=4).int}"

    def text(self, value: str, length: int = 16) -> str:
        """Return *length* hexadecimal digits, at most 64, in place of *value*."""
        return self._digest("text", value).hex()[:length].upper()

    def days(self, patient: str) -> int:
        """Return by how many days the dates of *patient* move: a negative number, since no date becomes one of the future."""
        return -1 - int.from_bytes(self._digest("days", patient)[:8]) % SHIFT_DAYS

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), "sha256")


def shifted(value: str, days: int) -> str:
    """
    Return a date or a date and time (VR DA or DT) moved by *days*. The time of day stays, and so does the precision.

    :param value: one value; an empty one stays empty.
    :raises ValueError: it is neither, or the result is before the year 1.
    """
    text = value.strip(" \0")
    if not text:
        return ""
    if len(text) == 10 and text[4] == text[7] == ".":  # the form of ACR-NEMA (PS3.5 6.2, DA)
        text = text.replace(".", "")
    end = next((at for at, one in enumerate(text) if not ("0" <= one <= "9")), len(text))
    digits = text[: min(end, 8)]
    if len(digits) not in (4, 6, 8) or not _TIME_AND_OFFSET.fullmatch(text, len(digits)):
        raise ValueError("it is no date")
    try:
        day = date(int(digits[:4]), int(digits[4:6] or 1), int(digits[6:8] or 1)) + timedelta(days)
    except (ValueError, OverflowError):
        raise ValueError("it is no date, or none that can be moved") from None
    return f"{day.year:04}{day.month:02}{day.day:02}"[: len(digits)] + text[len(digits) :]

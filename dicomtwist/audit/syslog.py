"""
Syslog messages (RFC 5424), as PS3.15 A.6 has audit messages in them, and their framing on a connection (RFC 5425).

No I/O, no Twisted.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

__all__ = ["framed", "syslog_message"]

#: Facility 10, security and authorization, with severity 5, notice.
PRIORITY: Final = 10 * 8 + 5
#: The identifier of audit messages (PS3.15 A.6).
MESSAGE_ID: Final = "DICOM+RFC3881"
#: The longest host name and application name (RFC 5424 6).
MAX_HOST: Final = 255
MAX_APPLICATION: Final = 48

_UNPRINTABLE: Final = re.compile(r"[^!-~]")


def syslog_message(content: bytes, when: datetime, host: str, application: str, process: str) -> bytes:
    """
    Return a syslog message.

    :param content: the audit message, in UTF-8.
    :param when: when it was made, with a time zone.
    :param host: the name of this machine.
    :param application: the name of the program.
    :param process: the ID of the process.
    """
    header = " ".join(
        (
            f"<{PRIORITY}>1",
            when.isoformat(timespec="milliseconds"),
            _printable(host, MAX_HOST),
            _printable(application, MAX_APPLICATION),
            _printable(process, 128),
            MESSAGE_ID,
            "-",
        )
    )
    return header.encode("ascii") + b" \xef\xbb\xbf" + content


def framed(message: bytes) -> bytes:
    """Return a message for a connection: its length in bytes, a space, and the message (RFC 5425 4.3, RFC 6587 3.4.1)."""
    return b"%d %b" % (len(message), message)


def _printable(text: str, longest: int) -> str:
    return _UNPRINTABLE.sub("_", text)[:longest] or "-"

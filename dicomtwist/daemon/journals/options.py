"""
The options of the journals of ``twist dicom``, and the journals that are made of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.python import usage

from dicomtwist import evt
from dicomtwist.daemon.journals.records import Records
from dicomtwist.daemon.option_values import size
from dicomtwist.runtime.lines.line_file import LineFile

__all__ = ["JOURNAL_PARAMETERS", "Journal", "check_journals", "make_journals"]

#: The options with a value, as ``usage.Options`` has them.
JOURNAL_PARAMETERS: Final[list[list[Any]]] = [
    [
        "records",
        None,
        None,
        "File to which a line of JSON is appended for each association and HTTP request that has ended.",
    ],
    [
        "records-size",
        None,
        None,
        "Bytes (100M) beyond which the file of records is rotated, to FILE.1 up to FILE.5; by default it is not.",
        size("--records-size"),
    ],
]


class Journal(Protocol):
    """A journal of a server."""

    def reopen(self) -> None:
        """Open its file again, because another file has its name now."""

    def stop(self) -> Deferred[None]:
        """Write what waits. The Deferred fires when that is done, or has failed."""


def check_journals(options: Any) -> None:
    """
    Check the options of journals.

    :raises usage.UsageError: the folder of a file does not exist.
    """
    if options["records"] is None:
        if options["records-size"] is not None:
            raise usage.UsageError("--records-size needs --records, the file")
        return
    path = Path(options["records"])
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise usage.UsageError(f"--records: {path} is not a file in a folder that exists")


def make_journals(options: Any, http: Any) -> list[Journal]:
    """
    Return the journals, at work.

    :param http: the HTTP server, ``None`` without one.
    """
    ae = options.ae
    found: list[Journal] = []
    if options["records"] is not None:
        records = Records(LineFile(options["records"], options["records-size"]), ae.executors.records)
        ae.bind(evt.EVT_RECORD, records.association_ended)
        if http is not None:
            http.site.listeners.append(records.request_ended)
        found.append(records)
    return found

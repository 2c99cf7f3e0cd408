"""
The client of DICOMweb of a subcommand, and what Ctrl-C does to its requests.
"""

from __future__ import annotations

from typing import Any

from dicomtwist.dicomweb import DICOMwebClient, DICOMwebError
from dicomtwist.tools.client import ClientOperation
from dicomtwist.tools.display.console import VERBOSE, Output
from dicomtwist.tools.explain import cause_of
from dicomtwist.tools.interrupts import CLOSED, Interrupts
from dicomtwist.tools.web_connection import WebConnection

__all__ = ["WebOperation", "note_connection"]


class WebOperation(ClientOperation):
    """
    The requests of a subcommand at one server.

    :ivar client: the client.
    :ivar answered: whether the server has answered a request.
    """

    def __init__(self, connection: WebConnection, reactor: Any, output: Output, interrupts: Interrupts) -> None:
        super().__init__(output, interrupts, CLOSED)
        self._connection = connection
        self.client: DICOMwebClient = connection.make_client(reactor)
        self.answered = False
        note_connection(connection, output)

    @property
    def is_connected(self) -> bool:
        """Whether the server has answered."""
        return self.answered

    def failed(self, error: DICOMwebError) -> None:
        """Note why a request failed."""
        if self.answered:
            self.error = self.error or str(error)
        else:
            self.cause = cause_of(error, self._connection)


def note_connection(connection: WebConnection, output: Output) -> None:
    """Print what the user should know of a connection."""
    output.note(f"{connection.peer}, over HTTP", VERBOSE)
    if connection.is_clear:
        output.note(f"the password or token is sent to {connection.peer.host} without TLS: prefer a URL with https")

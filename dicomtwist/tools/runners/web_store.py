"""
``dicomtwist store`` with a URL: send files and folders to a server of DICOMweb (STOW-RS).
"""

from __future__ import annotations

from typing import Any

from dicomtwist.runtime.executors import Executor
from dicomtwist.tools.files.file_scanner import Scanner
from dicomtwist.tools.files.web_sender import WebSender
from dicomtwist.tools.interrupts import Interrupts
from dicomtwist.tools.runners.store import Store, Tally
from dicomtwist.tools.web_connection import WebConnection
from dicomtwist.tools.web_operation import note_connection

__all__ = ["WebStore"]


class WebStore(Store):
    """One run of ``dicomtwist store`` at a server of DICOMweb."""

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        connection = self.connection
        assert isinstance(connection, WebConnection)
        note_connection(connection, self.output)
        client = connection.make_client(reactor, retries=self.retries)

        def sender(scanner: Scanner, tally: Tally, executor: Executor) -> WebSender:
            return WebSender(connection, client, scanner, tally, executor)

        try:
            return await self._run(reactor, interrupts, sender)
        finally:
            await client.close()

"""
``dicomtwist get`` with a URL: retrieve into a folder from a server of DICOMweb (WADO-RS).
"""

from __future__ import annotations

from typing import Any

from dicomtwist.retrieval.web_retriever import WebRetriever
from dicomtwist.tools.interrupts import CLOSED, Interrupts
from dicomtwist.tools.runners.get import Get
from dicomtwist.tools.web_connection import WebConnection
from dicomtwist.tools.web_operation import note_connection

__all__ = ["WebGet"]


class WebGet(Get):
    """One run of ``dicomtwist get`` at a server of DICOMweb."""

    stopping = CLOSED

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        connection = self.connection
        assert isinstance(connection, WebConnection)
        note_connection(connection, self.output)
        client = connection.make_client(reactor)
        self._executor = client.executor
        self._retriever = WebRetriever(
            client,
            self._folder,
            sop_classes=self._classes,
            connections=connection.associations,
            on_result=self._on_result,
            on_first=self._show_progress,
            open_journal=self._open_journal if self._journal is not None else None,
        )
        try:
            return await self._run(reactor, interrupts)
        finally:
            await client.close()

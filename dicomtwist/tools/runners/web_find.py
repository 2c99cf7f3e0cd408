"""
``dicomtwist find`` with a URL: search at a server of DICOMweb (QIDO-RS) and print the matches as they arrive.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import click
from pydicom import Dataset
from twisted.internet.defer import CancelledError, Deferred

from dicomtwist import Status
from dicomtwist.dicomweb import DICOMwebClient, DICOMwebError
from dicomtwist.dicomweb.parameters import ParameterError, search_query
from dicomtwist.tools.display.result_table import PAGE_SECONDS, ResultWriter
from dicomtwist.tools.interrupts import Interrupts
from dicomtwist.tools.query.query import Query
from dicomtwist.tools.runners.find import Find
from dicomtwist.tools.web_connection import WebConnection
from dicomtwist.tools.web_operation import WebOperation

__all__ = ["WebFind", "check_searchable"]


def check_searchable(query: Query) -> None:
    """
    Check that a query can be a search.

    :raises click.UsageError: its level or a key cannot be searched for.
    """
    if query.identifier.QueryRetrieveLevel == "PATIENT":
        raise click.UsageError("--level PATIENT: DICOMweb has studies, series and instances only (PS3.18 10.6)")
    try:
        search_query(query.identifier)
    except ParameterError as error:
        raise click.UsageError(str(error)) from None


class WebFind(Find):
    """One run of ``dicomtwist find`` at a server of DICOMweb."""

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        connection = self._connection
        assert isinstance(connection, WebConnection)
        rows = self._writer()
        operation = WebOperation(connection, reactor, self._output, interrupts)
        self._executor = operation.client.executor
        self._executor.acquire()
        searching: Deferred[bool] = Deferred.fromCoroutine(self._search(operation, rows, reactor))
        operation.cancel_on_interrupt(searching.cancel)
        status = None
        try:
            status = Status(0, "C-FIND") if await searching else None
        except CancelledError:
            pass
        except DICOMwebError as error:
            operation.failed(error)
        finally:
            await self._print(rows.flush)
            await operation.client.close()
            self._executor.release()
        return self._print_result(operation, rows, status)

    async def _search(self, operation: WebOperation, rows: ResultWriter, reactor: Any) -> bool:
        """Print the matches; return whether these are all."""
        first: Any = None
        try:
            async with aclosing(self._matches(operation.client)) as matches:
                async for match in matches:
                    operation.answered = True
                    if first is None:
                        first = reactor.callLater(PAGE_SECONDS, lambda: self._print(rows.flush))
                    await self._show(operation, rows, match)
                    if self.matches == self._limit or self._output.reader_gone:
                        return False
            operation.answered = True
        finally:
            if first is not None and first.active():
                first.cancel()
        return True

    async def _matches(self, client: DICOMwebClient) -> AsyncGenerator[Dataset, None]:
        """Yield the matches, with the UIDs that the URL names."""
        identifier = Dataset()
        identifier.update(self._query.identifier)
        level = identifier.QueryRetrieveLevel
        del identifier.QueryRetrieveLevel
        study = series = ""
        if level != "STUDY":
            study = _single(identifier, "StudyInstanceUID")
        if level == "IMAGE" and study:
            series = _single(identifier, "SeriesInstanceUID")
        if level == "STUDY":
            found = client.search_for_studies(identifier, limit=self._limit)
        elif level == "SERIES":
            found = client.search_for_series(study, identifier, limit=self._limit)
        else:
            found = client.search_for_instances(study, series, identifier, limit=self._limit)
        async with aclosing(found):
            async for match in found:
                for keyword, uid in (("StudyInstanceUID", study), ("SeriesInstanceUID", series)):
                    if uid and keyword not in match:
                        setattr(match, keyword, uid)
                yield match


def _single(identifier: Dataset, keyword: str) -> str:
    """Remove a unique key from an identifier if it has one UID, and return that; empty otherwise."""
    value = identifier.get(keyword)
    if not isinstance(value, str) or not value or set(value) - set("0123456789."):
        return ""
    del identifier[keyword]
    return str(value)

"""docs/migrating.md: what it says about both sides, tried on pynetdicom and on dicomtwist."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pynetdicom
from pydicom import Dataset
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from dicomtwist import AE, Association, OperationFailed, evt
from dicomtwist.sop_class import (
    CTImageStorage,
    ModalityPerformedProcedureStep,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from tests import peers
from tests.documentation import DOCS

FIND = StudyRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove
CLASSES = (Verification, CTImageStorage, FIND, GET, MOVE, ModalityPerformedProcedureStep)
EVENTS = ("EVT_C_ECHO", "EVT_C_STORE", "EVT_C_FIND", "EVT_C_GET", "EVT_C_MOVE", "EVT_N_GET")


def raising(event: Any) -> Any:
    raise RuntimeError("this handler raises")


def raising_generator(event: Any) -> Any:
    raise RuntimeError("this handler raises")
    yield


def handler(name: str) -> Callable[[Any], Any]:
    """Return a handler of the event *name* that raises, before its first value if it is a generator."""
    return raising_generator if name in ("EVT_C_FIND", "EVT_C_GET", "EVT_C_MOVE") else raising


def image() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
    return dataset


async def _status(operation: Awaitable[Any]) -> int:
    try:
        return int((await operation).status)
    except OperationFailed as error:
        return int(error.status)


async def statuses(assoc: Association) -> list[int]:
    """Return the status of each operation of :data:`EVENTS`."""
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", "1.2.3"
    matches = [int(status) async for status, _ in assoc.send_c_find(keys, FIND)]
    return [
        int(await assoc.send_c_echo()),
        int(await assoc.send_c_store(image())),
        matches[-1],
        await _status(assoc.send_c_get(keys, GET).when_done()),
        await _status(assoc.send_c_move(keys, "ANY", MOVE).when_done()),
        int((await assoc.send_n_get([], ModalityPerformedProcedureStep, "1.2.3"))[0]),
    ]


class HandlersThatRaise(TestCase):
    """The statuses of the table."""

    timeout = 60

    def column(self, number: int) -> list[int]:
        """Return the first status of each row of the table, in column *number*."""
        section = (DOCS / "migrating.md").read_text().partition("### Statuses of handlers that raise\n")[2]
        rows = [row.strip("|").split("|") for row in section.partition("\n#")[0].split("\n") if row.startswith("| `")]
        self.assertEqual(tuple(re.findall(r"EVT_\w+", "".join(row[0] for row in rows))), EVENTS)
        return [int(re.findall(r"0x[0-9A-F]{4}", row[number])[0], 16) for row in rows]

    async def ask(self, port: int) -> list[int]:
        ae = AE("SCU")
        for uid in CLASSES:
            ae.add_requested_context(uid)
        async with await ae.associate("127.0.0.1", port) as assoc:
            return await statuses(assoc)

    async def test_pynetdicom(self) -> None:
        logger = logging.getLogger("pynetdicom")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        self.addCleanup(logger.setLevel, level)
        ae = pynetdicom.AE("SCP")
        for uid in CLASSES:
            ae.add_supported_context(uid)
        handlers: Any = [(getattr(pynetdicom.evt, name), handler(name)) for name in EVENTS]
        port = peers.free_port()
        server: Any = await deferToThread(ae.start_server, ("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.addCleanup(deferToThread, server.shutdown)
        self.assertEqual(await self.ask(port), self.column(1))

    async def test_dicomtwist(self) -> None:
        ae = AE("SCP")
        for uid in CLASSES:
            ae.add_supported_context(uid)
        self.addCleanup(ae.shutdown)
        handlers = [(getattr(evt, name), handler(name)) for name in EVENTS]
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=handlers)
        self.assertEqual(await self.ask(server.port), self.column(2))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), len(EVENTS))

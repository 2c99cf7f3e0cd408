"""docs/migrating.md: what it says about both sides, tried on pynetdicom and on dicomtwist."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from shlex import quote
from typing import Any

import pynetdicom
from pydicom import Dataset
from pydicom.data import get_testdata_file
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
from tests.documentation import DOCS, blocks

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
        section = (DOCS / "migrating.md").read_text().partition("#### Statuses of handlers that raise\n")[2]
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


class ScriptsBefore(TestCase):
    """The scripts for pynetdicom on the page do what the page says about those for dicomtwist."""

    timeout = 120

    async def run_script(self, name: str, port: int) -> peers.Result:
        """Run the script *name* of the page, with *port* in place of its own, in a folder of its own."""
        (block,) = [block for block in blocks(DOCS / "migrating.md") if block.file == name]
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / name).write_text(re.sub(r"\b1111[34]\b", str(port), block.text))
        shell = f"cd {quote(str(folder))} && exec {quote(sys.executable)} {name}"
        result = await peers.run("/bin/bash", "-c", shell)
        self.assertEqual(result.code, 0, result.text)
        self.folder = folder
        return result

    async def test_clients(self) -> None:
        port = peers.free_port()
        endpoint = f"tcp:{port}:interface=127.0.0.1"
        storage = Path(self.mktemp()).absolute()
        await peers.start(
            self, sys.executable, "-m", "twisted", "dicom", "--storage", storage, "--port", endpoint, ready=port
        )
        ae = AE("SCU")
        ae.add_requested_context(CTImageStorage)
        async with await ae.associate("127.0.0.1", port) as assoc:
            self.assertEqual(await assoc.send_c_store(str(get_testdata_file("CT_small.dcm"))), 0x0000)
        self.assertEqual((await self.run_script("find_before.py", port)).text, "CompressedSamples^CT1 20040119\n")
        self.assertTrue((await self.run_script("get_before.py", port)).text.endswith("0x0000\n"))
        self.assertTrue((self.folder / "1CT1.dcm").exists())

    async def test_server(self) -> None:
        (block,) = [block for block in blocks(DOCS / "migrating.md") if block.file == "store_before.py"]
        port = peers.free_port()
        script = Path(self.mktemp()).absolute()
        script.write_text(block.text.replace("11114", str(port)))
        server = await peers.start(self, sys.executable, script, ready=port)
        ae = AE("SCU")
        ae.add_requested_context(CTImageStorage)
        async with await ae.associate("127.0.0.1", port) as assoc:
            self.assertEqual(await assoc.send_c_store(str(get_testdata_file("CT_small.dcm"))), 0x0000)
        await server.wait_for("SCU 1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322")
        await server.stop("KILL")

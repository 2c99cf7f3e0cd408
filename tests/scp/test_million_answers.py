"""
A query with a million answers that the requestor does not take: between real processes, over real sockets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import Dataset
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, TestCase

from dicomtwist import AE, Association
from dicomtwist.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)
from tests.peers import Process, pynetdicom_script

reactor: Any = _reactor

MODELS = (StudyRootQueryRetrieveInformationModelFind, PatientRootQueryRetrieveInformationModelFind)

#: How many answers there are, of about 1 KiB each.
ANSWERS = 1_000_000

#: By how much a process may grow, in KiB. All answers would be a million.
MAX_GROWTH = 48 * 1024

#: The most answers that may be made for a peer that takes none: what sockets and our own bounds hold, with room to spare.
MAX_MADE = 100_000

#: A server of ours. In the study root it has all the answers, in the patient root it tells how things stand.
SERVER = """
import json, sys, time
from pathlib import Path
from pydicom import Dataset
from dicomtwist import AE, evt
from dicomtwist.sop_class import (
    PatientRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelFind,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import react

state = {"made": 0, "closed": 0, "cancelled_at": None, "took": None}

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

def find(event):
    answer = Dataset()
    if event.context.abstract_syntax == PatientRootQueryRetrieveInformationModelFind:
        answer.PatientComments = json.dumps({**state, "resident": resident()})
        yield answer
        return
    answer.PatientComments = "x" * 1000
    try:
        for number in range(int(sys.argv[1])):
            state["made"] += 1
            answer.PatientID = str(number)
            yield answer
    finally:
        state["closed"] += 1
        if state["cancelled_at"] is not None:
            state["took"] = time.monotonic() - state["cancelled_at"]

def cancelled(event):
    state["cancelled_at"] = time.monotonic()

async def main(reactor):
    ae = AE("MILLION")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(PatientRootQueryRetrieveInformationModelFind)
    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_CANCEL, cancelled)]
    server = await ae.start_server(("127.0.0.1", 0), evt_handlers=handlers)
    print(json.dumps({"port": server.port}), flush=True)
    await Deferred()

react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""


def resident() -> int:
    """Return the resident memory of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def everything() -> Dataset:
    """Return an identifier that matches all."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.PatientID = ""
    return identifier


class MillionAnswers(TestCase):
    """
    :ivar watching: an association of its own, to ask the server for its state.
    """

    timeout = 180

    async def start(self) -> Association:
        """Start the server; return an association with it."""
        if not Path("/proc/self/status").exists():
            raise SkipTest("this system does not tell the memory of processes in /proc")
        process: Process = await pynetdicom_script(self, SERVER, ANSWERS, ready='"port"', timeout=60)
        port = json.loads(bytes(process.stdout).splitlines()[0])["port"]
        ae = AE("CLIENT")
        # Only the cancellation has to be fast.
        ae.network_timeout = ae.dimse_timeout = None
        for model in MODELS:
            ae.add_requested_context(model)
        self.addCleanup(ae.shutdown)
        self.watching = await ae.associate("127.0.0.1", port)
        return await ae.associate("127.0.0.1", port)

    async def state(self) -> dict[str, Any]:
        """Return the state of the server."""
        (answer,) = await self.watching.send_c_find(everything(), MODELS[1]).collect()
        state: dict[str, Any] = json.loads(answer.PatientComments)
        return state

    async def until(self, condition: Callable[[dict[str, Any], dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for the state of the server until *condition* holds for the state before and the current one."""
        before = await self.state()
        while True:
            await deferLater(reactor, 0.5)
            after = await self.state()
            if condition(before, after):
                return after
            before = after

    async def stopped(self) -> dict[str, Any]:
        """Wait until the handler is not advanced any more."""
        return await self.until(lambda before, after: bool(after["made"]) and before["made"] == after["made"])

    async def test_a_peer_that_stops_reading(self) -> None:
        """The handler is not advanced, and the memory stays flat; C-CANCEL arrives, and ends the query within a second."""
        association = await self.start()
        base = (await self.state())["resident"]
        transport = association.protocol.transport
        # It takes no answer from the moment of its request.
        answers = association.send_c_find(everything(), MODELS[0])
        transport.pauseProducing()
        state = await self.stopped()
        self.assertLess(state["made"], MAX_MADE)
        self.assertLess(state["resident"] - base, MAX_GROWTH)
        self.assertEqual(state["closed"], 0)
        assert answers.message_id is not None
        association.send_c_cancel(answers.message_id)
        state = await self.until(lambda _, after: bool(after["closed"]))
        self.assertLess(state["took"], 1)
        self.assertLess(state["made"], MAX_MADE)
        # The answers on their way can still be read, and then the end.
        transport.resumeProducing()
        count, last = 0, 0
        async for status, _ in answers:
            count, last = count + 1, int(status)
        self.assertEqual(last, 0xFE00)
        self.assertEqual(count, state["made"] + 1)

    async def test_a_requestor_that_does_not_iterate(self) -> None:
        """The requestor stops reading: its memory stays flat, and the handler waits. Leaving the loop ends the query."""
        association = await self.start()
        ours, theirs = resident(), (await self.state())["resident"]
        answers = association.send_c_find(everything(), MODELS[0])
        state = await self.stopped()
        self.assertLess(resident() - ours, MAX_GROWTH)
        self.assertLess(state["made"], MAX_MADE)
        self.assertLess(state["resident"] - theirs, MAX_GROWTH)
        # For the answers that are taken, the handler makes more.
        taken = 0
        while taken < state["made"]:
            status, _ = await answers.__anext__()
            self.assertTrue(status.is_pending)
            taken += 1
        state = await self.until(lambda _, after: after["made"] > taken)
        self.assertEqual(state["closed"], 0)
        answers.leave()
        state = await self.until(lambda _, after: bool(after["closed"]))
        self.assertLess(state["took"], 1)
        self.assertLess(resident() - ours, MAX_GROWTH)
        await association.release()
        self.assertTrue(association.is_released)

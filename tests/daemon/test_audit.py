"""``twist dicom --audit``: the trail holds what the clients did, also if the receiver or the server was down meanwhile."""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset
from twisted.internet import reactor as _reactor
from twisted.web.client import Agent, readBody

from dicomtwist import build_role, evt
from dicomtwist.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)
from tests import peers
from tests.audit.receiver import Receiver
from tests.audit.schema import code_of, objects_of, parsed
from tests.daemon.test_workers import ServerTestCase, instance

reactor = cast(Any, _reactor)

RULES = """
[[access.rule]]
calling = ["SCU", "CT1"]
allow = "all"

[[access.rule]]
calling = "STRANGER"
allow = "echo"

[[access.rule]]
from = "loopback"
allow = ["find", "get", "delete"]
"""


def kind_of(message: Any) -> str:
    """Return event, type, action and outcome of a message in short: ``"110104 C 0"``."""
    event = message.find("EventIdentification")
    kind = code_of(message, "EventIdentification/EventTypeCode")
    parts = [code_of(message), kind, event.get("EventActionCode"), event.get("EventOutcomeIndicator")]
    return " ".join(part for part in parts if part)


def counts_of(message: Any) -> dict[str, int]:
    """Return the number of instances of each study in a message."""
    return {
        uid: sum(int(one.get("NumberOfInstances")) for one in study.iter("SOPClass"))
        for uid, study in objects_of(message, "110180").items()
    }


def _parsed(path: Path) -> list[Any]:
    return [parsed(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _stored(messages: Iterable[Any]) -> list[str]:
    """Return the studies whose instances were stored."""
    return [uid for one in messages if kind_of(one) == "110104 C 0" for uid in counts_of(one)]


def keys(study: str) -> Dataset:
    found = Dataset()
    found.QueryRetrieveLevel = "STUDY"
    found.StudyInstanceUID = study
    return found


class Audit(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.port, self.http = peers.free_port(), peers.free_port()

    async def serve(self, target: str, *options: str, ready: str = "HTTP listens") -> None:
        await self.start(
            f'audit = "{target}"\naudit-source = "Archive 1"\n' + RULES, "--port", f"tcp:{self.port}:interface=127.0.0.1",
            "--http", f"tcp:{self.http}:interface=127.0.0.1", *options, port=self.port, ready=ready,
        )  # fmt: skip

    async def store(self, title: str, *studies: str) -> list[int]:
        assoc = await self.scu(title).associate("127.0.0.1", self.port)
        statuses = [int(await assoc.send_c_store(instance(study))) for study in studies]
        await assoc.release()
        return statuses

    async def get(self, path: str, method: bytes = b"GET") -> int:
        response = await Agent(reactor).request(method, f"http://127.0.0.1:{self.http}/dicom-web{path}".encode())
        body: Any = readBody(response)
        await body
        return int(response.code)

    async def retrieve(self, study: str) -> None:
        ae = self.scu()
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
        assoc = await ae.associate(
            "127.0.0.1", self.port, ext_neg=[build_role(CTImageStorage, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)],
        )  # fmt: skip
        async for _ in assoc.send_c_find(keys(study), StudyRootQueryRetrieveInformationModelFind):
            pass
        async for _ in assoc.send_c_get(keys(study), StudyRootQueryRetrieveInformationModelGet):
            pass
        await assoc.release()

    async def test_a_file(self) -> None:
        path = Path(self.mktemp()).absolute()
        await self.serve(str(path))
        self.assertEqual(await self.store("CT1", "1.2.1", "1.2.1", "1.2.2"), [0, 0, 0])
        self.assertEqual(await self.store("STRANGER", "1.2.3"), [0x0124])
        await self.retrieve("1.2.1")
        self.assertEqual(await self.get("/studies?PatientID=1.2.1"), 200)
        self.assertEqual(await self.get("/studies/1.2.2"), 200)
        self.assertEqual(await self.get("/studies/1.2.2/metadata"), 200)
        self.assertEqual(await self.get("/studies/1.2.2", b"DELETE"), 204)
        self.assertEqual((await self.server.stop()).code, 0)
        messages = [parsed(line) for line in path.read_bytes().splitlines()]
        self.assertEqual(
            {one.find("AuditSourceIdentification").get("AuditSourceID") for one in messages}, {"Archive 1"}
        )
        self.assertEqual(
            Counter(map(kind_of, messages)),
            {
                "110100 110120 E 0": 1,  # started
                "110100 110121 E 0": 1,  # stopped
                "110104 C 0": 2,  # one for each study that was stored
                "110104 C 4": 1,  # of the stranger
                "110113 110132 E 4": 1,
                "110112 E 0": 2,  # C-FIND, QIDO-RS
                "110102 E 0": 1,
                "110104 R 0": 2,  # C-GET, WADO-RS
                "110103 R 0": 1,  # the metadata
                "110105 D 0": 1,
            },
        )
        (deleted,) = [one for one in messages if kind_of(one) == "110105 D 0"]
        self.assertEqual((list(counts_of(deleted)), list(objects_of(deleted, "2"))), (["1.2.2"], ["1.2.2"]))
        stored = [one for one in messages if kind_of(one) == "110104 C 0"]
        self.assertEqual([counts_of(one) for one in stored], [{"1.2.1": 2}, {"1.2.2": 1}])
        self.assertEqual([list(objects_of(one, "2")) for one in stored], [["1.2.1"], ["1.2.2"]])
        self.assertEqual([one.get("UserID") for one in stored[0].findall("ActiveParticipant")], ["CT1", "ANY-SCP"])
        retrieved = [counts_of(one) for one in messages if kind_of(one) == "110104 R 0"]
        self.assertEqual(retrieved, [{"1.2.1": 2}, {"1.2.2": 1}])
        queries = [
            b64decode(one.findtext("ParticipantObjectIdentification/ParticipantObjectQuery"))
            for one in messages
            if code_of(one) == "110112"
        ]
        self.assertIn(b"1.2.1", queries[0])
        self.assertEqual(queries[1], b"/dicom-web/studies?PatientID=1.2.1")

    async def test_a_receiver_that_is_down(self) -> None:
        """Nothing is lost, though the receiver loses its connections, and the server is killed while it is down."""
        receiver = Receiver()
        self.addCleanup(receiver.stop)
        await receiver.start()
        await self.serve(receiver.target)
        done = [f"1.2.{number}" for number in range(1, 10)]
        await self.store("CT1", *done[:3])
        await self.until(lambda: len(receiver.received) >= 4)
        await receiver.stop()
        await self.store("CT1", *done[3:6])
        spool = self.storage / ".audit" / "main"

        def is_spooled(study: str) -> bool:
            return any(f'"{study}"'.encode() in path.read_bytes() for path in spool.glob("*.messages"))

        await self.until(lambda: is_spooled(done[5]))
        await self.server.stop("KILL")
        await self.serve(receiver.target)
        await self.store("CT1", *done[6:])
        await receiver.start()
        await self.until(lambda: any(done[8] in counts_of(one) for one in receiver.messages))
        messages = receiver.messages
        stored = Counter(uid for one in messages if code_of(one) == "110104" for uid in counts_of(one))
        self.assertEqual(set(stored), set(done))
        self.assertEqual(Counter(map(kind_of, messages))["110100 110120 E 0"], 2)
        self.assertEqual((await self.server.stop()).code, 0)
        # The server has told that it stops before it closed the connection.
        self.assertIn("110100 110121 E 0", map(kind_of, receiver.messages))

    async def test_other_places(self) -> None:
        """A reload changes the place: what waited for the former receiver comes to the next one, and nothing is lost."""
        first, second = Receiver(), Receiver()
        for one in (first, second):
            self.addCleanup(one.stop)
        await second.start()
        before, after = (Path(self.mktemp()).absolute() for _ in range(2))
        options = "--port", f"tcp:{self.port}:interface=127.0.0.1", "--http", f"tcp:{self.http}:interface=127.0.0.1"
        await self.start(RULES, *options, port=self.port, ready="HTTP listens")
        open_one = await self.scu("CT1").associate("127.0.0.1", self.port)
        for number, target in enumerate(("", str(before), first.target, second.target, str(after), "")):
            if number:
                line = f'audit = "{target}"\naudit-source = "Archive {number}"\n' if target else ""
                self.configuration.write_text(line + RULES)
                self.server.signal("HUP")
                await self.until(partial(self.has_reloaded, number))
            self.assertEqual(await self.store("CT1", f"1.2.{number}"), [0])
            self.assertEqual(int(await open_one.send_c_store(instance(f"1.3.{number}"))), 0)
            if target == str(after):
                await open_one.release()
                open_one = await self.scu("CT1").associate("127.0.0.1", self.port)
                await self.until(lambda: "1.3.4" in _stored(_parsed(after)))
        await open_one.release()
        await self.until(lambda: {"1.2.2", "1.2.3"} <= set(_stored(second.messages)))
        self.assertEqual((await self.server.stop()).code, 0)
        self.assertEqual(first.received, [])
        self.assertEqual(_stored(_parsed(before)), ["1.2.1"])
        self.assertEqual(sorted(_stored(second.messages)), ["1.2.2", "1.2.3"])
        self.assertEqual(sorted(_stored(_parsed(after))), ["1.2.4", *(f"1.3.{number}" for number in range(1, 5))])
        sources = {one.find("AuditSourceIdentification").get("AuditSourceID") for one in second.messages}
        self.assertEqual(sources, {"Archive 2", "Archive 3"})
        self.assertNotIn("Traceback", self.server.text)

    def has_reloaded(self, times: int) -> bool:
        return self.server.text.count("reloaded the rules") == times

    async def test_a_flood_of_refusals(self) -> None:
        """A client that is refused again and again has few messages, and those of others are there."""
        target = Path(self.mktemp()).absolute()
        await self.serve(str(target))
        for _ in range(100):
            self.assertEqual(await self.get("/studies/1.2", b"POST"), 403)
        self.assertEqual(await self.store("CT1", "1.2.1"), [0])
        self.assertEqual((await self.server.stop()).code, 0)
        messages = _parsed(target)
        alerts = [one for one in messages if code_of(one) == "110113"]
        self.assertEqual(len(alerts), 2)
        self.assertIn("99 more from", alerts[1].find("EventIdentification/EventOutcomeDescription").text)
        self.assertEqual(_stored(messages), ["1.2.1"])

    async def test_workers(self) -> None:
        receiver = Receiver()
        self.addCleanup(receiver.stop)
        await receiver.start()
        await self.serve(receiver.target, "--workers", "2", ready="all 2 workers are ready")
        studies = [f"1.3.{number}" for number in range(6)]
        for study in studies:
            await self.store("CT1", study)
        self.assertEqual((await self.server.stop()).code, 0)
        messages = receiver.messages
        stored = Counter(uid for one in messages if code_of(one) == "110104" for uid in counts_of(one))
        self.assertEqual(stored, Counter(studies))
        self.assertEqual(Counter(map(kind_of, messages))["110100 110120 E 0"], 1)
        self.assertEqual(Counter(map(kind_of, messages))["110100 110121 E 0"], 1)

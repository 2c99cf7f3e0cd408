"""
Storage Commitment (PS3.4 Annex J) with Orthanc, in both roles.

Orthanc releases the association of its request at once, and reports a result on an association that it requests. The tests
with pynetdicom have the result on the association of the request.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.data import get_testdata_file
from twisted.internet.defer import Deferred
from twisted.web.client import Agent, FileBodyProducer, readBody

from dicomtwist import AE, build_role, evt
from dicomtwist.sop_class import (
    CTImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from tests.interop.common import EXPLICIT, LOOPBACK, InteropTestCase
from tests.peers import free_port, start, tool

COMMITMENT = (StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
STORED = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"  # the instance of CT_small.dcm
MISSING = "1.2.3.4"
NO_SUCH_INSTANCE = 0x0112


def reference(uid: str, **more: Any) -> Dataset:
    """Return an item of a sequence of references."""
    dataset = Dataset()
    dataset.ReferencedSOPClassUID = CTImageStorage
    dataset.ReferencedSOPInstanceUID = uid
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return dataset


def instances(sequence: Any) -> list[str]:
    """Return the SOP Instance UIDs of a sequence of references."""
    return [str(item.ReferencedSOPInstanceUID) for item in sequence]


class OrthancTests(InteropTestCase):
    """
    :ivar commitments: the requests that our side received.
    :ivar results: the results that it received, each with its association.
    """

    timeout = 120

    def setUp(self) -> None:
        self.commitments: list[Dataset] = []
        self.results: list[tuple[int, Dataset, Any]] = []
        self.told: Deferred[None] = Deferred()

    def action(self, event: evt.ActionEvent) -> int:
        """Record a request."""
        self.commitments.append(event.action_information)
        self.assertEqual((event.action_type, event.sop_instance_uid), (1, StorageCommitmentPushModelInstance))
        return 0x0000

    def report(self, event: evt.EventReportEvent) -> int:
        """Record a result."""
        self.results.append((event.event_type, event.event_information, event.assoc))
        self.told.callback(None)
        return 0x0000

    async def both(self, both_roles: bool | None = None) -> AE:
        """
        Start Orthanc and our AE, which know each other; return our AE.

        :param both_roles: whether our AE grants both roles; with ``None`` it does not negotiate roles.
        """
        ae = AE("TWIST")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=both_roles, scp_role=both_roles)
        ae.add_requested_context(StorageCommitmentPushModel)
        ae.add_requested_context(CTImageStorage, EXPLICIT)
        handlers: list[evt.HandlerTuple] = [
            (evt.EVT_N_ACTION, self.action),
            (evt.EVT_N_EVENT_REPORT, self.report),
        ]
        server = await ae.start_server(LOOPBACK, evt_handlers=handlers)
        self.addCleanup(ae.shutdown)
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        self.http, self.port = free_port(), free_port()
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomAet": "ORTHANC",
            "DicomPort": self.port,
            "DicomModalities": {"twist": {"AET": "TWIST", "Host": "127.0.0.1", "Port": server.port}},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        process = await start(self, tool("Orthanc"), folder / "orthanc.json", ready=self.port, timeout=60)
        await process.wait_for("Orthanc has started", 60)
        return ae

    async def rest(self, path: str, body: Any = None) -> Any:
        """Call Orthanc's REST API; with a body it is a POST."""
        from twisted.internet import reactor

        producer = None if body is None else FileBodyProducer(BytesIO(json.dumps(body).encode()))
        method = b"GET" if body is None else b"POST"
        agent: Any = Agent(reactor)
        response = await agent.request(method, f"http://127.0.0.1:{self.http}{path}".encode(), None, producer)
        self.assertEqual(response.code, 200)
        return json.loads(await readBody(response))

    async def test_we_ask(self) -> None:
        """Orthanc reports the result on an association of its own, for which it proposes and gets the role of SCP."""
        await self._ask(both_roles=True)
        (_, _, assoc) = self.results[0]
        role = assoc.requestor.role_selection[StorageCommitmentPushModel]
        self.assertEqual((role.scu_role, role.scp_role), (False, True))
        self.assertEqual([context.as_scu for context in assoc.accepted_contexts], [True])

    async def test_we_ask_and_do_not_negotiate(self) -> None:
        """If its role proposal is not answered, Orthanc reports the result all the same, and it is not lost."""
        await self._ask()
        (_, _, assoc) = self.results[0]
        self.assertEqual([context.as_scu for context in assoc.accepted_contexts], [False])

    async def _ask(self, both_roles: bool | None = None) -> None:
        ae = await self.both(both_roles)
        request = Dataset()
        request.TransactionUID = "2.25.7"
        request.ReferencedSOPSequence = [reference(STORED), reference(MISSING)]
        async with await ae.associate("127.0.0.1", self.port, ae_title="ORTHANC") as assoc:
            self.assertEqual(await assoc.send_c_store(str(get_testdata_file("CT_small.dcm"))), 0)
            status, reply = await assoc.send_n_action(request, 1, *COMMITMENT)
            self.assertEqual((status, reply), (0, None))
            await self.told
        ((event_type, information, came_on),) = self.results
        self.assertIsNot(came_on, assoc)
        self.assertEqual((event_type, information.TransactionUID), (2, "2.25.7"))
        self.assertEqual(instances(information.ReferencedSOPSequence), [STORED])
        self.assertEqual(instances(information.FailedSOPSequence), [MISSING])
        self.assertEqual(information.FailedSOPSequence[0].FailureReason, NO_SUCH_INSTANCE)

    async def test_orthanc_asks(self) -> None:
        """Our side commits, and reports the result on an association on which it is SCP."""
        await self._tell(any_role=False, ext_neg=[build_role(StorageCommitmentPushModel, False, True)])

    async def test_orthanc_asks_and_we_do_not_negotiate(self) -> None:
        await self._tell(any_role=True, ext_neg=[])

    async def _tell(self, *, any_role: bool, ext_neg: list[Any]) -> None:
        ae = await self.both()
        wanted = [[CTImageStorage, STORED], [CTImageStorage, MISSING]]
        started = await self.rest("/modalities/twist/storage-commitment", {"DicomInstances": wanted})
        transaction = started["ID"]
        (request,) = self.commitments
        self.assertEqual(request.TransactionUID, transaction)
        self.assertEqual(instances(request.ReferencedSOPSequence), [STORED, MISSING])
        self.assertEqual((await self.rest(started["Path"]))["Status"], "Pending")
        result = Dataset()
        result.TransactionUID = transaction
        result.ReferencedSOPSequence = [reference(STORED)]
        result.FailedSOPSequence = [reference(MISSING, FailureReason=NO_SUCH_INSTANCE)]
        asking = ae.associate("127.0.0.1", self.port, ae_title="ORTHANC", ext_neg=ext_neg)
        async with await asking as assoc:
            status, _ = await assoc.send_n_event_report(result, 2, *COMMITMENT, any_role=any_role)
            self.assertEqual(status, 0)
        told = await self.rest(started["Path"])
        self.assertEqual((told["Status"], told["RemoteAET"]), ("Failure", "TWIST"))
        self.assertEqual([each["SOPInstanceUID"] for each in told["Success"]], [STORED])
        self.assertEqual(
            [(each["SOPInstanceUID"], each["FailureReason"]) for each in told["Failures"]],
            [(MISSING, NO_SUCH_INSTANCE)],
        )

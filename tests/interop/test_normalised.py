"""
DIMSE-N with pynetdicom, in a process of its own, in both roles.
"""

from __future__ import annotations

from typing import Any

from pydicom import Dataset
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from dicomtwist import build_context, build_role, evt
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.scu import Reply
from tests.interop.common import InteropTestCase
from tests.interop.scripts import PRELUDE, SCU, told
from tests.peers import Process, pynetdicom_script

# A SOP Class with all six services.
MACHINE = "1.2.840.10008.5.1.4.34.8"
MPPS = "1.2.840.10008.3.1.2.3.3"
PUSH, WATCH, PULL, EVENT = (f"1.2.840.10008.5.1.4.34.6.{number}" for number in range(1, 5))
COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
INSTANCE = "1.2.3.4"

SCP = (
    PRELUDE
    + """
import queue
from pydicom import Dataset

ae = AE("PYNETDICOM")
for uid in (RTConventionalMachineVerification, ModalityPerformedProcedureStep, StorageCommitmentPushModel,
            BasicGrayscalePrintManagementMeta, UnifiedProcedureStepPush, UnifiedProcedureStepPull,
            UnifiedProcedureStepWatch, UnifiedProcedureStepEvent):
    ae.add_supported_context(uid, scu_role=True, scp_role=True)
events = queue.Queue()

def named(request):
    if "REPORT" in type(request).__name__ or "CREATE" in type(request).__name__:
        return request.AffectedSOPClassUID, request.AffectedSOPInstanceUID
    return request.RequestedSOPClassUID, request.RequestedSOPInstanceUID

def handle(event):
    uid, instance = named(event.request)
    name = event.event.name.removeprefix("EVT_")
    words = {"class": uid, "instance": instance, "on": event.context.abstract_syntax, "patient": ""}
    reply = Dataset()
    reply.PatientID = name
    if name == "N_GET":
        words["tags"] = [int(tag) for tag in event.attribute_identifiers or []]
    elif name == "N_CREATE":
        words["patient"] = event.attribute_list.get("PatientName")
        if instance is None:
            reply.AffectedSOPInstanceUID = "1.2.99"
    elif name == "N_SET":
        words["patient"] = event.modification_list.get("PatientName")
    elif name == "N_ACTION":
        words["type"] = event.action_type
        words["patient"] = event.action_information.get("PatientName") if event.request.ActionInformation else ""
        if event.action_type == 7:
            events.put(event.assoc)
    elif name == "N_EVENT_REPORT":
        words["type"] = event.event_type
        words["patient"] = event.event_information.get("PatientName")
    tell(**{name: words})
    if words["patient"] == "Fails":
        status = Dataset()
        status.Status = 0x0110
        status.ErrorComment = "it fails"
        return status, None
    if name == "N_DELETE":
        return 0x0000
    return 0x0000, reply

server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[
    (hook, handle) for hook in (evt.EVT_N_CREATE, evt.EVT_N_SET, evt.EVT_N_GET, evt.EVT_N_ACTION, evt.EVT_N_DELETE,
                                evt.EVT_N_EVENT_REPORT)
])
tell(port=server.server_address[1])
while True:
    assoc = events.get()
    information = Dataset()
    information.PatientName = "Reported"
    status, reply = assoc.send_n_event_report(information, 9, RTConventionalMachineVerification, "1.2.3.4")
    tell(reported=status.Status, reply=reply.PatientID if reply else None)
"""
)

CLIENT = """
from pydicom import Dataset
MACHINE, INSTANCE = RTConventionalMachineVerification, "1.2.3.4"

def patient(name):
    dataset = Dataset()
    dataset.PatientName = name
    return dataset

def words(answer):
    status, reply = answer if isinstance(answer, tuple) else (answer, None)
    return [status.get("Status"), reply.PatientID if reply else None, status.get("ErrorComment")]
"""


def patient(name: str) -> Dataset:
    dataset = Dataset()
    dataset.PatientName = name
    return dataset


class NormalisedTestCase(InteropTestCase):
    """
    Scripts and their reports.
    """

    async def scp(self) -> tuple[Process, int]:
        """Start a pynetdicom SCP; return it and its port."""
        process = await pynetdicom_script(self, SCP, ready='"port"')
        return process, told(process)[0]["port"]

    async def scu(self, port: int, source: str) -> list[dict[str, Any]]:
        """Run a pynetdicom client to its end; return its reports."""
        process = await pynetdicom_script(self, SCU + CLIENT + source, port, "{}")
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        return told(process)

    def told_of(self, process: Process, name: str) -> dict[str, Any]:
        """Return the only report of *process* about *name*."""
        (found,) = [line[name] for line in told(process) if name in line]
        words: dict[str, Any] = found
        return words


class ScpTests(NormalisedTestCase):
    """
    Our SCU, pynetdicom's SCP.
    """

    async def test_each_service(self) -> None:
        process, port = await self.scp()
        async with await self.requestor(MACHINE).associate("127.0.0.1", port) as assoc:
            target = MACHINE, INSTANCE
            answers = {
                "N_CREATE": await assoc.send_n_create(patient("Created"), *target),
                "N_SET": await assoc.send_n_set(patient("Set"), *target),
                "N_GET": await assoc.send_n_get(["PatientName", 0x00100020], *target),
                "N_ACTION": await assoc.send_n_action(patient("Acted"), 3, *target),
            }
            deleted = await assoc.send_n_delete(*target)
        for name, (status, reply) in answers.items():
            self.assertEqual((status, status.affected_sop_instance_uid), (0, INSTANCE), name)
            assert reply is not None
            self.assertEqual(reply.PatientID, name)
        self.assertEqual((deleted, deleted.affected_sop_instance_uid), (0, INSTANCE))
        common = {"class": MACHINE, "instance": INSTANCE, "on": MACHINE}
        self.assertEqual(self.told_of(process, "N_CREATE"), {**common, "patient": "Created"})
        self.assertEqual(self.told_of(process, "N_SET"), {**common, "patient": "Set"})
        self.assertEqual(self.told_of(process, "N_GET"), {**common, "patient": "", "tags": [0x00100010, 0x00100020]})
        self.assertEqual(self.told_of(process, "N_ACTION"), {**common, "patient": "Acted", "type": 3})
        self.assertEqual(self.told_of(process, "N_DELETE"), {**common, "patient": ""})

    async def test_the_peer_gives_the_uid(self) -> None:
        _, port = await self.scp()
        async with await self.requestor(MPPS).associate("127.0.0.1", port) as assoc:
            status, reply = await assoc.send_n_create(patient("Created"), MPPS)
        self.assertEqual((status, status.affected_sop_instance_uid), (0, "1.2.99"))
        assert reply is not None
        self.assertEqual(reply.PatientID, "N_CREATE")

    async def test_failure(self) -> None:
        _, port = await self.scp()
        async with await self.requestor(MACHINE).associate("127.0.0.1", port) as assoc:
            status, reply = await assoc.send_n_set(patient("Fails"), MACHINE, INSTANCE)
            self.assertEqual((status, status.error_comment, reply), (0x0110, "it fails", None))
            status, _ = await assoc.send_n_set(patient("Works"), MACHINE, INSTANCE)
            self.assertEqual(status, 0)

    async def test_event_report_to_us(self) -> None:
        """The SCP of our request sends it on the same association."""
        seen: list[Any] = []

        def report(event: evt.EventReportEvent) -> Any:
            seen.append((event.event_type, event.event_information.PatientName, event.sop_instance_uid))
            reply = Dataset()
            reply.PatientID = "taken"
            return 0x0000, reply

        process, port = await self.scp()
        handlers = [(evt.EVT_N_EVENT_REPORT, report)]
        assoc = await self.requestor(MACHINE).associate("127.0.0.1", port, evt_handlers=handlers)
        async with assoc:
            await assoc.send_n_action(None, 7, MACHINE, INSTANCE)
            await process.wait_for('"reported"', 30)
        self.assertEqual(seen, [(9, "Reported", INSTANCE)])
        (line,) = [line for line in told(process) if "reported" in line]
        self.assertEqual(line, {"reported": 0, "reply": "taken"})

    async def test_event_report_by_us(self) -> None:
        """Our side sends it as SCP on an association that it requested."""
        process, port = await self.scp()
        role = build_role(COMMITMENT, scu_role=False, scp_role=True)
        async with await self.requestor(COMMITMENT).associate("127.0.0.1", port, ext_neg=[role]) as assoc:
            status, reply = await assoc.send_n_event_report(patient("Reported"), 1, COMMITMENT, COMMITMENT_INSTANCE)
        self.assertEqual(status, 0)
        assert reply is not None
        self.assertEqual(reply.PatientID, "N_EVENT_REPORT")
        words = self.told_of(process, "N_EVENT_REPORT")
        self.assertEqual((words["patient"], words["type"], words["instance"]), ("Reported", 1, COMMITMENT_INSTANCE))

    async def test_meta_and_ups(self) -> None:
        """An operation on the context of another SOP Class arrives there."""
        process, port = await self.scp()
        printing, session = "1.2.840.10008.5.1.1.9", "1.2.840.10008.5.1.1.1"
        async with await self.requestor(printing, PULL).associate("127.0.0.1", port) as assoc:
            status, _ = await assoc.send_n_create(patient("Printed"), session, "1.2.5")
            self.assertEqual(status, 0)
            status, _ = await assoc.send_n_set(patient("Pulled"), PUSH, "1.2.6")
            self.assertEqual(status, 0)
        words = self.told_of(process, "N_CREATE")
        self.assertEqual((words["class"], words["on"], words["instance"]), (session, printing, "1.2.5"))
        words = self.told_of(process, "N_SET")
        self.assertEqual((words["class"], words["on"], words["instance"]), (PUSH, PULL, "1.2.6"))


class ScuTests(NormalisedTestCase):
    """
    pynetdicom's SCU, our SCP.
    """

    async def ours(self, *contexts: str) -> tuple[int, list[Any]]:
        """Start our SCP; return its port and its received requests."""
        seen: list[Any] = []

        def reply_of(event: evt.NormalisedEvent) -> Dataset:
            reply = Dataset()
            reply.PatientID = event.event.name
            return reply

        def create(event: evt.CreateEvent) -> Any:
            seen.append(("create", str(event.attribute_list.PatientName), event.request.AffectedSOPInstanceUID))  # type: ignore[union-attr]
            return 0x0000, reply_of(event)

        async def change(event: evt.SetEvent) -> Any:
            name = str(event.modification_list.PatientName)
            seen.append(("set", name, event.sop_instance_uid))
            if name == "Fails":
                raise ValueError(name)
            return 0x0000, reply_of(event)

        def get(event: evt.GetEvent) -> Any:
            seen.append(("get", [tag.json_key for tag in event.attribute_identifiers], event.sop_instance_uid))
            return 0x0000, reply_of(event)

        def act(event: evt.ActionEvent) -> Any:
            seen.append(("act", event.action_type, event.sop_instance_uid))
            return 0x0000, reply_of(event)

        def report(event: evt.EventReportEvent) -> Any:
            seen.append(("report", event.event_type, event.context.abstract_syntax))
            return 0x0000, reply_of(event)

        def delete(event: evt.NormalisedEvent) -> int:
            seen.append(("delete", event.sop_class_uid, event.sop_instance_uid))
            return 0x0112

        server = await self.serve(
            (evt.EVT_N_CREATE, create),
            (evt.EVT_N_SET, change),
            (evt.EVT_N_GET, get),
            (evt.EVT_N_ACTION, act),
            (evt.EVT_N_EVENT_REPORT, report),
            (evt.EVT_N_DELETE, delete),
            contexts=[build_context(uid) for uid in contexts],
        )
        self.server = server
        return server.port, seen

    async def test_each_service(self) -> None:
        port, seen = await self.ours(MACHINE)
        lines = await self.scu(
            port,
            """
ae = AE("SCU")
ae.add_requested_context(MACHINE)
assoc = associate(ae)
tell(answer=words(assoc.send_n_create(patient("Created"), MACHINE, INSTANCE)))
tell(answer=words(assoc.send_n_create(patient("Unnamed"), MACHINE)))
tell(answer=words(assoc.send_n_set(patient("Set"), MACHINE, INSTANCE)))
tell(answer=words(assoc.send_n_set(patient("Fails"), MACHINE, INSTANCE)))
tell(answer=words(assoc.send_n_get([0x00100010], MACHINE, INSTANCE)))
tell(answer=words(assoc.send_n_action(patient("Acted"), 3, MACHINE, INSTANCE)))
tell(answer=words(assoc.send_n_delete(MACHINE, INSTANCE)))
assoc.release()
""",
        )
        self.assertEqual(
            [line["answer"] for line in lines],
            [
                [0, "EVT_N_CREATE", None],
                [0, "EVT_N_CREATE", None],
                [0, "EVT_N_SET", None],
                [0x0110, None, "the handler failed"],
                [0, "EVT_N_GET", None],
                [0, "EVT_N_ACTION", None],
                [0x0112, None, None],
            ],
        )
        self.assertEqual(
            seen,
            [
                ("create", "Created", INSTANCE),
                ("create", "Unnamed", None),
                ("set", "Set", INSTANCE),
                ("set", "Fails", INSTANCE),
                ("get", ["00100010"], INSTANCE),
                ("act", 3, INSTANCE),
                ("delete", MACHINE, INSTANCE),
            ],
        )
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_event_report_by_us(self) -> None:
        """The SCU of the request gets it on its own association, while its program waits."""
        port, _ = await self.ours(MACHINE)
        reporting: list[Deferred[Reply]] = []

        def act(event: evt.ActionEvent) -> int:
            # The response is sent first, then the notification.
            reporting.append(Deferred.fromCoroutine(report(event.assoc)))
            return 0x0000

        async def report(assoc: AssociationInterface) -> Reply:
            await deferLater(assoc.ae.reactor, 0)
            reply = await assoc.send_n_event_report(patient("Reported"), 4, MACHINE, INSTANCE)
            await assoc.release()
            return reply

        self.server.bind(evt.EVT_N_ACTION, act)
        lines = await self.scu(
            port,
            """
over = threading.Event()

def reported(event):
    tell(reported=event.event_type, patient=event.event_information.PatientName)
    reply = Dataset()
    reply.PatientID = "taken"
    return 0x0000, reply

ae = AE("SCU")
ae.add_requested_context(MACHINE)
handlers = [(evt.EVT_N_EVENT_REPORT, reported), (evt.EVT_RELEASED, lambda event: over.set())]
assoc = ae.associate("127.0.0.1", port, evt_handlers=handlers)
tell(answer=words(assoc.send_n_action(None, 1, MACHINE, INSTANCE)))
# Who releases before its answer is sent gets no answer out: the other side releases.
assert over.wait(30)
""",
        )
        # Two threads of the peer report it, in any order.
        self.assertCountEqual(lines, [{"answer": [0, None, None]}, {"reported": 4, "patient": "Reported"}])
        status, reply = await reporting[0]
        assert reply is not None
        self.assertEqual((status, reply.PatientID), (0, "taken"))

    async def test_event_report_to_us(self) -> None:
        """It arrives on an association of its own, with the role negotiated or not; pynetdicom sends it in both cases."""
        port, seen = await self.ours(COMMITMENT)
        lines = await self.scu(
            port,
            """
UID, INSTANCE = StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
for roles in ([build_role(UID, scp_role=True)], []):
    ae = AE("SCU")
    ae.add_requested_context(UID)
    assoc = associate(ae, ext_neg=roles)
    for context in assoc.accepted_contexts:
        context._as_scp = True
    tell(answer=words(assoc.send_n_event_report(patient("Reported"), len(roles), UID, INSTANCE)))
    assoc.release()
""",
        )
        self.assertEqual([line["answer"] for line in lines], [[0, "EVT_N_EVENT_REPORT", None]] * 2)
        self.assertEqual(seen, [("report", 1, COMMITMENT), ("report", 0, COMMITMENT)])

    async def test_ups(self) -> None:
        """pynetdicom works on a UPS in the contexts of UPS Pull and Push."""
        port, seen = await self.ours(PUSH, PULL, WATCH, EVENT)
        lines = await self.scu(
            port,
            """
ae = AE("SCU")
for uid in (UnifiedProcedureStepPull, UnifiedProcedureStepPush):
    ae.add_requested_context(uid)
assoc = associate(ae)
tell(answer=words(assoc.send_n_create(patient("Pushed"), UnifiedProcedureStepPush, INSTANCE)))
tell(answer=words(assoc.send_n_action(None, 1, UnifiedProcedureStepPush, INSTANCE, meta_uid=UnifiedProcedureStepPull)))
tell(answer=words(assoc.send_n_set(patient("Pulled"), UnifiedProcedureStepPush, INSTANCE, meta_uid=UnifiedProcedureStepPull)))
assoc.release()
""",
        )
        self.assertEqual([line["answer"][0] for line in lines], [0, 0, 0])
        self.assertEqual([line[:2] for line in seen], [("create", "Pushed"), ("act", 1), ("set", "Pulled")])

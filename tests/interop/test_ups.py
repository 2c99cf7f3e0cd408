"""
Unified Procedure Steps (PS3.4 Annex CC): the worklist of the guide, with pynetdicom pushing, watching and performing.
"""

from __future__ import annotations

from typing import Any

from tests.documentation import DOCS, blocks
from tests.interop.common import InteropTestCase
from tests.interop.scripts import PRELUDE, told
from tests.peers import free_port, pynetdicom_script

PEER = (
    PRELUDE
    + """
from pydicom import Dataset
from pydicom.uid import generate_uid

UPS, GLOBAL = UnifiedProcedureStepPush, "1.2.840.10008.5.1.4.34.5"

def attributes(**values):
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset

port, watched = map(int, sys.argv[1:])
came = threading.Semaphore(0)

def report(event):
    tell(event=[event.event_type, event.request.AffectedSOPClassUID == UPS, event.event_information.ProcedureStepState])
    came.release()
    return 0x0000, None

watching = AE("WATCHER")
watching.add_supported_context(UnifiedProcedureStepEvent, scu_role=True, scp_role=True)
server = watching.start_server(("127.0.0.1", watched), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])

def ask(title, *uids):
    ae = AE(title)
    for uid in uids:
        ae.add_requested_context(uid)
    assoc = ae.associate("127.0.0.1", port)
    assert assoc.is_established
    return assoc

assoc = ask("WATCHER", UnifiedProcedureStepWatch)
wish = attributes(ReceivingAE="WATCHER", DeletionLock="FALSE")
status, _ = assoc.send_n_action(wish, 3, UPS, GLOBAL, meta_uid=UnifiedProcedureStepWatch)
tell(status=["subscribe", status.Status])
assoc.release()

assoc = ask("PUSHER", UPS)
step = attributes(ProcedureStepState="SCHEDULED", ProcedureStepLabel="Segment", PatientID="7")
status, _ = assoc.send_n_create(step, UPS, generate_uid())
tell(status=["push", status.Status])
status, _ = assoc.send_n_create(attributes(ProcedureStepState="COMPLETED"), UPS, generate_uid())
tell(status=["push completed", status.Status])
assoc.release()
came.acquire(timeout=30)

assoc = ask("PERFORMER", UnifiedProcedureStepPull)
PULL = dict(meta_uid=UnifiedProcedureStepPull)
found = [identifier for _, identifier in assoc.send_c_find(
    attributes(ProcedureStepState="SCHEDULED", ProcedureStepLabel=""), UnifiedProcedureStepPull) if identifier]
tell(found=[each.ProcedureStepLabel for each in found])
uid, transaction = found[0].SOPInstanceUID, generate_uid()

def act(state, by):
    status, _ = assoc.send_n_action(attributes(ProcedureStepState=state, TransactionUID=by), 1, UPS, uid, **PULL)
    tell(status=[state, status.Status])

act("IN PROGRESS", transaction)
came.acquire(timeout=30)
act("IN PROGRESS", generate_uid())
status, _ = assoc.send_n_set(attributes(TransactionUID=transaction, PatientComments="done"), UPS, uid, **PULL)
tell(status=["set", status.Status])
act("COMPLETED", generate_uid())
act("COMPLETED", transaction)
came.acquire(timeout=30)
status, step = assoc.send_n_get([0x00741000, 0x00104000], UPS, uid, **PULL)
tell(got=[status.Status, step.ProcedureStepState, step.PatientComments])
assoc.release()
server.shutdown()
"""
)


def guide() -> dict[str, Any]:
    """Return the definitions of the guide's program, without running it."""
    (source,) = [
        block.text for block in blocks(DOCS / "guides" / "procedure_steps.md") if "class Worklist" in block.text
    ]
    defined: dict[str, Any] = {}
    exec(source.partition("async def main")[0], defined)
    return defined


class LifeCycleTests(InteropTestCase):
    """
    A step is pushed, pulled and watched.
    """

    async def test_pynetdicom_does_all(self) -> None:
        """pynetdicom has its three roles at our worklist, which notifies it of each state."""
        watched = free_port()
        worklist = guide()["Worklist"]({"WATCHER": ("127.0.0.1", watched)})
        server = await worklist.ae.start_server(("127.0.0.1", 0))
        self.addCleanup(worklist.ae.shutdown)
        process = await pynetdicom_script(self, PEER, server.port, watched)
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        lines = told(process)
        self.assertEqual(
            [line["status"] for line in lines if "status" in line],
            [
                ["subscribe", 0],
                ["push", 0],
                ["push completed", 0xC309],
                ["IN PROGRESS", 0],
                ["IN PROGRESS", 0xC302],
                ["set", 0],
                ["COMPLETED", 0xC301],
                ["COMPLETED", 0],
            ],
        )
        self.assertEqual(
            [line["event"] for line in lines if "event" in line],
            [[1, True, state] for state in ("SCHEDULED", "IN PROGRESS", "COMPLETED")],
        )
        self.assertEqual([line["found"] for line in lines if "found" in line], [["Segment"]])
        self.assertEqual([line["got"] for line in lines if "got" in line], [[0, "COMPLETED", "done"]])

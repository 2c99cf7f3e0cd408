"""
A Modality Performed Procedure Step SCP: a scanner reports when it begins a step, and when it ends.

    python mpps_scp.py tcp:11112:interface=127.0.0.1

N-CREATE begins a step, which has to be IN PROGRESS; N-SET changes it until it is COMPLETED or DISCONTINUED (PS3.4 Annex F).
"""

import sys

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from dicomtwist import AE, Status, evt
from dicomtwist.sop_class import ModalityPerformedProcedureStep, Verification


class Steps:
    """Keeps the procedure steps of modalities in memory."""

    def __init__(self):
        self.steps = {}

    def create(self, event):
        uid = event.sop_instance_uid
        if uid in self.steps:
            return 0x0111  # duplicate SOP Instance
        if event.attribute_list.get("PerformedProcedureStepStatus") != "IN PROGRESS":
            return Status(0x0106, error_comment="a step begins IN PROGRESS", offending_element=(0x00400252,))
        self.steps[uid] = event.attribute_list
        print(f"{event.assoc.requestor.ae_title} begins {uid}", flush=True)
        return 0x0000

    def change(self, event):
        uid = event.sop_instance_uid
        step = self.steps.get(uid)
        if step is None:
            return 0x0112  # no such SOP Instance
        if step.PerformedProcedureStepStatus != "IN PROGRESS":
            return Status(0x0110, error_id=0xA710)  # the step may no longer be updated
        step.update(event.modification_list)
        print(f"{uid} is {step.PerformedProcedureStepStatus}", flush=True)
        return 0x0000


async def main(reactor, endpoint="tcp:11112:interface=127.0.0.1"):
    steps = Steps()
    ae = AE("RIS")
    ae.add_supported_context(Verification)
    ae.add_supported_context(ModalityPerformedProcedureStep)
    await ae.start_server(endpoint, evt_handlers=[(evt.EVT_N_CREATE, steps.create), (evt.EVT_N_SET, steps.change)])
    print("listening", flush=True)
    await Deferred()  # until Ctrl-C


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))

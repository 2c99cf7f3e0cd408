"""
A Modality Worklist SCP: it tells a scanner what to do next.

    python worklist_scp.py tcp:11112:interface=127.0.0.1
    dicomtwist worklist --modality CT localhost:11112

The steps are in a list here; in a hospital `scheduled` asks the RIS, and may be a coroutine that does so. The handler looks
at the keys that a modality sends: its AE title, its modality and the date.
"""

import sys

from pydicom import Dataset
from pydicom.sequence import Sequence
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from dicomtwist import AE, evt
from dicomtwist.sop_class import ModalityWorklistInformationFind, Verification

STEPS = [
    ("CT", "CT1", "20240402", "A100", "Doe^Jane", "A1"),
    ("MR", "MR1", "20240402", "A101", "Roe^Rick", "B2"),
]


def entry(modality, station, date, accession, name, patient_id):
    """Return a worklist entry (PS3.4 K.6.1.2)."""
    step = Dataset()
    step.Modality = modality
    step.ScheduledStationAETitle = station
    step.ScheduledProcedureStepStartDate = date
    item = Dataset()
    item.AccessionNumber = accession
    item.PatientName = name
    item.PatientID = patient_id
    item.ScheduledProcedureStepSequence = Sequence([step])
    return item


async def scheduled():
    """Return the entries of the worklist. A real one awaits a database here."""
    return [entry(*step) for step in STEPS]


async def find(event):
    wanted = event.identifier.get("ScheduledProcedureStepSequence") or [Dataset()]
    keys = {
        keyword: value
        for keyword in ("Modality", "ScheduledStationAETitle", "ScheduledProcedureStepStartDate")
        if (value := wanted[0].get(keyword))
    }
    for item in await scheduled():
        step = item.ScheduledProcedureStepSequence[0]
        if all(step.get(keyword) == value for keyword, value in keys.items()):
            yield 0xFF00, item


async def main(reactor, endpoint="tcp:11112:interface=127.0.0.1"):
    ae = AE("RIS")
    ae.add_supported_context(Verification)
    ae.add_supported_context(ModalityWorklistInformationFind)
    await ae.start_server(endpoint, evt_handlers=[(evt.EVT_C_FIND, find)])
    print("listening", flush=True)
    await Deferred()  # until Ctrl-C


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))

"""
A C-FIND SCP of the Study Root model that answers queries from a list.

    python query_scp.py tcp:11112:interface=127.0.0.1
    findscu -S -k QueryRetrieveLevel=STUDY -k "PatientName=d*" -k StudyInstanceUID 127.0.0.1 11112

The handler is a generator: the server pulls the next match when the connection has room for it, and closes the generator
when the peer sends C-CANCEL or goes away. `twist dicom` has a whole archive with an index behind C-FIND; this file shows the
handler that you write if the studies are in a system of your own.
"""

import sys
from fnmatch import fnmatchcase

from pydicom import Dataset
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from dicomtwist import AE, evt
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

STUDIES = [
    {
        "PatientID": "A1",
        "PatientName": "Doe^Jane",
        "StudyDate": "20240115",
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
    },
    {
        "PatientID": "A1",
        "PatientName": "Doe^Jane",
        "StudyDate": "20240320",
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.2",
    },
    {
        "PatientID": "B2",
        "PatientName": "Roe^Rick",
        "StudyDate": "20240402",
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.3",
    },
]


def matches(study, identifier):
    """Return whether *study* matches every key that has a value; `*` and `?` are wildcards, case is ignored."""
    for keyword, value in study.items():
        key = str(identifier.get(keyword, "") or "")
        if key and not fnmatchcase(value.lower(), key.lower()):
            return False
    return True


def find(event):
    identifier = event.identifier
    if identifier.get("QueryRetrieveLevel") != "STUDY":
        yield 0xA900, None  # the identifier does not match the SOP Class
        return
    for study in STUDIES:
        if matches(study, identifier):
            response = Dataset()
            response.QueryRetrieveLevel = "STUDY"
            for element in identifier:  # a response has the keys of the request
                if element.keyword in study:
                    setattr(response, element.keyword, study[element.keyword])
            yield 0xFF00, response


async def main(reactor, endpoint="tcp:11112:interface=127.0.0.1"):
    ae = AE("QUERY_SCP")
    ae.add_supported_context(Verification)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    await ae.start_server(endpoint, evt_handlers=[(evt.EVT_C_FIND, find)])
    print("listening", flush=True)
    await Deferred()  # until Ctrl-C


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))

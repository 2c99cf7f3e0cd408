"""
A plain script: it verifies that an archive is there, sends files to it, and lists the studies that it then has.

    python script.py 127.0.0.1 11112 ARCHIVE image.dcm ...

Each call of dicomtwist.sync blocks until it has its result; there is no reactor to run and nothing to await.
"""

import sys

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

import dicomtwist.sync
from dicomtwist import DICOMError, build_context
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification


def contexts_for(paths):
    """Return a presentation context for each kind of file, in its own transfer syntax: compressed files stay compressed."""
    kinds = set()
    for path in paths:
        try:
            meta = dcmread(path, specific_tags=[]).file_meta
            kinds.add((meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID))
        except (OSError, InvalidDicomError):
            pass  # sending it says what is wrong
    return [build_context(sop_class, transfer_syntax) for sop_class, transfer_syntax in sorted(kinds)]


def main(host, port, ae_title, *paths):
    contexts = [Verification, StudyRootQueryRetrieveInformationModelFind, *contexts_for(paths)]
    with dicomtwist.sync.connect(host, int(port), ae_title=ae_title, contexts=contexts, ae="SCRIPT") as assoc:
        print("C-ECHO:", assoc.echo())
        for path in paths:
            try:
                print(f"{path}: {assoc.store(path)}")
            except (OSError, DICOMError) as error:
                print(f"{path}: {error}")
        keys = Dataset()
        keys.QueryRetrieveLevel = "STUDY"
        keys.PatientName = keys.StudyInstanceUID = keys.NumberOfStudyRelatedInstances = ""
        for status, study in assoc.find(keys, StudyRootQueryRetrieveInformationModelFind):
            if status.is_pending:
                print(f"{study.PatientName}, {study.NumberOfStudyRelatedInstances} instances")
            elif not status.is_success:
                print("the query failed:", status)


if __name__ == "__main__":
    main(*sys.argv[1:])

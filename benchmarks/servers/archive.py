"""
An archive of ours that serves the files of a folder: ``python -m benchmarks.servers.archive PORT FOLDER DESTINATION``.

It ignores the keys of a request, and finds, sends or moves every file in the folder. C-MOVE sends to the port
DESTINATION of this machine. The attributes of the files are known beforehand, because the benchmarks do not measure the
database behind an archive.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from benchmarks.harness import MAX_PDU
from dicomtwist import AE, build_context, evt
from dicomtwist.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

#: The attributes that are returned of each instance besides its UIDs: those that the clients request.
KEYWORDS = (
    "PatientName",
    "PatientID",
    "StudyDate",
    "Modality",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
)


class Archive:
    """The handlers of the archive."""

    def __init__(self, folder: Path, destination: int) -> None:
        self._paths = sorted(folder.glob("*.dcm"))
        self._destination = destination
        header = dcmread(self._paths[0], stop_before_pixels=True)
        self._common = [(keyword, header.get(keyword)) for keyword in KEYWORDS]
        self._root = str(header.SOPInstanceUID)[:-9]

    def find(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        """Yield a match for each file, always the same Dataset with changed values: a new one costs more than sending it."""
        answer = Dataset()
        answer.QueryRetrieveLevel = "IMAGE"
        for keyword, value in self._common:
            setattr(answer, keyword, value)
        for number in range(len(self._paths)):
            answer.SOPInstanceUID = f"{self._root}{number:09}"
            yield 0xFF00, answer

    def get(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        """Send each file; all paths are known, so one list has them all."""
        yield len(self._paths)
        yield 0xFF00, self._paths

    def move(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        """Move each file."""
        yield "127.0.0.1", self._destination
        yield from self.get(event)


def _main(reactor: Any, port: str, folder: str, destination: str = "0") -> Deferred[None]:
    archive = Archive(Path(folder), int(destination))
    ae = AE("ARCHIVE")
    ae.maximum_pdu_size = MAX_PDU
    ae.supported_contexts = [
        build_context(StudyRootQueryRetrieveInformationModelFind),
        build_context(StudyRootQueryRetrieveInformationModelGet),
        build_context(StudyRootQueryRetrieveInformationModelMove),
    ]
    ae.add_supported_context(MRImageStorage, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_FIND, archive.find), (evt.EVT_C_GET, archive.get), (evt.EVT_C_MOVE, archive.move)]
    started = ae.start_server(("127.0.0.1", int(port)), evt_handlers=handlers)
    # A Deferred that never fires: the server runs until it is killed.
    return started.addCallback(lambda _: Deferred())


if __name__ == "__main__":
    react(_main, sys.argv[1:])

"""
Archives to query and to retrieve from: one of dicomtwist, made of a few handlers, and real ones in processes of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from twisted.trial.unittest import TestCase

from dicomtwist import AE, Association, Server, build_context, build_role, evt
from dicomtwist.datasets import decode_dataset
from dicomtwist.dimse.messages import CStoreRQ
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from tests.interop.common import InteropTestCase
from tests.peers import DicomFile, Result, dataset_bytes, dcmtk, dicom_files, free_port, start, tool

WORKLIST = "1.2.840.10008.5.1.4.31"

#: The information models by DCMTK's flags for them: C-FIND, C-MOVE, C-GET.
MODELS = {
    "-P": ("1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.1.2.1.2", "1.2.840.10008.5.1.4.1.2.1.3"),
    "-S": ("1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"),
    "-O": ("1.2.840.10008.5.1.4.1.2.3.1", "1.2.840.10008.5.1.4.1.2.3.2", "1.2.840.10008.5.1.4.1.2.3.3"),
}
PATIENT_FIND, PATIENT_MOVE, PATIENT_GET = MODELS["-P"]
STUDY_FIND, STUDY_MOVE, STUDY_GET = MODELS["-S"]

#: The unique key of each level.
UNIQUE_KEYS = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}


@cache
def study(size: int = 7) -> tuple[DicomFile, ...]:
    """
    The instances of the study of *size* instances, all of them CT images; with 7 instances it has two series.
    """
    by_study: dict[str, list[DicomFile]] = {}
    for file in dicom_files():
        by_study.setdefault(file.study, []).append(file)
    return next(
        tuple(files)
        for files in by_study.values()
        if len({file.sop_instance for file in files}) == len(files) == size
        if {file.sop_class for file in files} == {"1.2.840.10008.5.1.4.1.1.2"}
    )


@cache
def header(file: DicomFile) -> Dataset:
    """
    Return the attributes of *file*, without pixels.
    """
    return dcmread(file.path, stop_before_pixels=True)


def keys(level: str, **values: Any) -> Dataset:
    """
    Return an identifier with the Query/Retrieve Level; an empty value requests the attribute.
    """
    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def expected_bytes(file: DicomFile) -> bytes:
    """
    Return the data set of *file* as it must arrive: with an even length.
    """
    data = dataset_bytes(file.path)
    return data + b"\0" * (len(data) & 1)


class Archive:
    """
    The handlers of an archive of dicomtwist.

    :param files: its instances.
    :param destinations: the destination of each AE title for C-MOVE, in any form that a handler may yield.
    :ivar asked: the events of the received requests.
    :ivar pulled: the number of matches or instances requested from the generators.
    :ivar closed: the number of generators that ended or were closed.
    """

    def __init__(self, files: Sequence[DicomFile], destinations: dict[str, Any] | None = None) -> None:
        self.files = files
        self.destinations = destinations or {}
        self.asked: list[evt.IdentifierEvent] = []
        self.pulled = 0
        self.closed = 0

    @property
    def handlers(self) -> list[tuple[evt.EventType, Any]]:
        """Return the handlers to bind."""
        return [(evt.EVT_C_FIND, self.find), (evt.EVT_C_GET, self.get), (evt.EVT_C_MOVE, self.move)]

    def _matching(self, identifier: Dataset) -> list[DicomFile]:
        found = list(self.files)
        for keyword in ("PatientID", "PatientName", *list(UNIQUE_KEYS.values())[1:]):
            value = identifier.get(keyword)
            if not value:
                continue
            wanted = (
                [str(one) for one in value] if isinstance(value, list) or hasattr(value, "append") else [str(value)]
            )
            found = [file for file in found if any(fnmatchcase(str(header(file).get(keyword)), one) for one in wanted)]
        return found

    def find(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        """Return the requested attributes of each matching entity of the level."""
        self.asked.append(event)
        identifier = event.identifier
        entities = {
            header(file).get(UNIQUE_KEYS[identifier.QueryRetrieveLevel]): file for file in self._matching(identifier)
        }
        try:
            for file in entities.values():
                answer = keys(identifier.QueryRetrieveLevel)
                for element in identifier:
                    if element.keyword in header(file):
                        answer[element.tag] = header(file)[element.tag]
                    elif element.keyword != "QueryRetrieveLevel":
                        answer.add_new(element.tag, element.VR, None)
                self.pulled += 1
                yield 0xFF00, answer
        finally:
            self.closed += 1

    def get(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        """Send the matching files."""
        self.asked.append(event)
        yield from self._instances(event)

    def move(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        """Send the matching files to the destination."""
        self.asked.append(event)
        yield self.destinations.get(event.move_destination)
        yield from self._instances(event)

    def _instances(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        files = self._matching(event.identifier)
        yield len(files)
        try:
            for file in files:
                self.pulled += 1
                yield 0xFF00, file.path
        finally:
            self.closed += 1


class Received:
    """
    A handler of C-STORE that records requests and data sets.

    :ivar requests: the requests, in order.
    :ivar datasets: the received data sets by SOP Instance UID.
    :ivar syntaxes: their transfer syntaxes.
    :ivar statuses: the statuses to return by SOP Instance UID; Success for all others.
    """

    def __init__(self, **statuses: int) -> None:
        self.requests: list[CStoreRQ] = []
        self.datasets: dict[str, bytes] = {}
        self.syntaxes: dict[str, str] = {}
        self.statuses: dict[str, int] = statuses

    def __call__(self, event: evt.StoreEvent) -> int:
        """Record one."""
        uid = event.request.affected_sop_instance_uid
        self.requests.append(event.request)
        self.syntaxes[uid] = event.context.transfer_syntax
        self.datasets[uid] = event.encoded_dataset(include_meta=False)
        return self.statuses.get(uid, 0)

    @property
    def originators(self) -> set[tuple[str | None, int | None]]:
        """Return the AE titles that requested the moves, each with the Message ID of its C-MOVE."""
        return {
            (request.move_originator_application_entity_title, request.move_originator_message_id)
            for request in self.requests
        }


class ArchiveTestCase(InteropTestCase):
    """
    A test with an archive at one end.
    """

    timeout = 120

    async def serve_archive(self, archive: Archive, *handlers: Any, **settings: Any) -> Server:
        """Start a server of dicomtwist with *archive* behind it."""
        contexts = [build_context(uid, ALL_TRANSFER_SYNTAXES) for models in MODELS.values() for uid in models]
        contexts.append(build_context(WORKLIST, ALL_TRANSFER_SYNTAXES))
        for sop_class in {file.sop_class for file in archive.files}:
            context = build_context(sop_class, ALL_TRANSFER_SYNTAXES)
            context.scu_role = context.scp_role = True
            contexts.append(context)
        return await self.serve(*archive.handlers, *handlers, contexts=contexts, **settings)

    async def associate(
        self,
        port: int,
        called: str,
        *models: str,
        files: Sequence[DicomFile] = (),
        received: Received | None = None,
        **options: Any,
    ) -> Association:
        """
        Request an association with an archive, for *models* and, with *received*, for the storage of *files* with the role
        for C-GET.
        """
        ae = self.requestor(*models)
        roles = []
        if received is not None:
            for sop_class in dict.fromkeys(file.sop_class for file in files):
                syntaxes = sorted({file.transfer_syntax for file in files if file.sop_class == sop_class})
                ae.add_requested_context(sop_class, syntaxes)
                roles.append(build_role(sop_class, scp_role=True))
            options["evt_handlers"] = [(evt.EVT_C_STORE, received), *options.get("evt_handlers", ())]
        return await ae.associate("127.0.0.1", port, ae_title=called, ext_neg=roles, **options)

    def assert_same(self, received: Received, files: Sequence[DicomFile]) -> None:
        """Check that each of *files* arrived once; the archive may have changed group lengths and padding."""
        self.assertCountEqual([request.affected_sop_instance_uid for request in received.requests],
                              [file.sop_instance for file in files])  # fmt: skip
        for file in files:
            syntax = received.syntaxes[file.sop_instance]
            self.assertEqual(syntax, file.transfer_syntax)
            came = decode_dataset(received.datasets[file.sop_instance], syntax)
            sent = decode_dataset(dataset_bytes(file.path), syntax)
            for dataset in (came, sent):
                for element in list(dataset):
                    if element.tag.element == 0 or element.keyword == "DataSetTrailingPadding":
                        del dataset[element.tag]
            self.assertTrue(came == sent, file.name)

    def assert_received(self, received: Received, files: Sequence[DicomFile]) -> None:
        """Check that each of *files* arrived once, byte for byte."""
        self.assertEqual(len(received.requests), len(files))
        self.assert_bytes(received.datasets, files)

    def assert_bytes(self, datasets: dict[str, bytes], files: Sequence[DicomFile]) -> None:
        """Check data sets by their SOP Instance UIDs."""
        self.assertEqual(set(datasets), {file.sop_instance for file in files})
        for file in files:
            self.assertTrue(datasets[file.sop_instance] == expected_bytes(file), file.name)


# --- real archives -------------------------------------------------------------------------------------------


async def fill(port: int, called: str, files: Sequence[DicomFile]) -> None:
    """
    Store each of *files* in its own transfer syntax.
    """
    ae = AE("FILLER")
    for sop_class, syntax in dict.fromkeys((file.sop_class, file.transfer_syntax) for file in files):
        ae.add_requested_context(sop_class, syntax)
    async with await ae.associate("127.0.0.1", port, ae_title=called) as assoc:
        for file in files:
            status = await assoc.send_c_store(file.path)
            assert status.is_success, f"{file.name}: {status}"


async def dcmqrscp(
    testcase: TestCase, files: Sequence[DicomFile], destinations: dict[str, int] | None = None, *flags: object
) -> int:
    """
    Start DCMTK's archive with *files* in it, as the AE ``DCMQRSCP``, and return its port.

    :param destinations: the ports on this machine of the AE titles that it may move to.
    """
    path = dcmtk("dcmqrscp")
    folder = Path(testcase.mktemp()).absolute()
    (folder / "storage").mkdir(parents=True)
    known = {**(destinations or {}), "NOWHERE": free_port()}
    hosts = [f"host{number} = ({title}, localhost, {port})" for number, (title, port) in enumerate(known.items())]
    lines = ["MaxPDUSize = 131072", "MaxAssociations = 16"]
    lines += ["HostTable BEGIN", *hosts, "HostTable END", "VendorTable BEGIN", "VendorTable END"]
    lines += ["AETable BEGIN", f"DCMQRSCP {folder}/storage RW (100, 1024mb) ANY", "AETable END", ""]
    (folder / "config").write_text("\n".join(lines))
    port = free_port()
    await start(testcase, path, "-c", folder / "config", *flags, port, ready=port)
    if files:
        await fill(port, "DCMQRSCP", files)
    return port


async def orthanc(
    testcase: TestCase, files: Sequence[DicomFile], destinations: dict[str, int] | None = None, **more: Any
) -> int:
    """
        Start Orthanc with *files* in it, as the AE ``ORTHANC``, and return its port; see :func:`dcmqrscp`.
    :param more: additional settings of its configuration.
        :param more: further settings of its configuration.
    """
    path = tool("Orthanc")
    folder = Path(testcase.mktemp()).absolute()
    folder.mkdir(parents=True)
    port = free_port()
    settings = {
        "Name": "ORTHANC",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpServerEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {
            title: {"AET": title, "Host": "127.0.0.1", "Port": number} for title, number in (destinations or {}).items()
        },
        "SynchronousCMove": True,
        "StableAge": 1,
        **more,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    await start(testcase, path, folder / "orthanc.json", ready=port, timeout=60)
    await fill(port, "ORTHANC", files)
    return port


async def wlmscpfs(testcase: TestCase, entries: Sequence[Dataset], *flags: object) -> int:
    """
    Start DCMTK's worklist with *entries*, as the AE ``WORKLIST``, and return its port.
    """
    path = dcmtk("wlmscpfs")
    folder = Path(testcase.mktemp()).absolute()
    (folder / "WORKLIST").mkdir(parents=True)
    (folder / "WORKLIST" / "lockfile").touch()
    for number, entry in enumerate(entries):
        entry.save_as(folder / "WORKLIST" / f"{number:03}.wl", implicit_vr=False, little_endian=True)
    port = free_port()
    await start(testcase, path, "-dfp", folder, *flags, port, ready=port)
    return port


def statuses(result: Result, pattern: str) -> list[str]:
    """
    Return the output of a tool about each response: the first group of *pattern* in each line that matches.
    """
    return [found for line in result.text.splitlines() for found in re.findall(pattern, line)]

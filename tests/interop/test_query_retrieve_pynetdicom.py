"""
pynetdicom queries and retrieves, and is queried and retrieved from, in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import Deferred

from dicomtwist import OperationFailed, evt
from tests.interop.archives import (
    PATIENT_FIND,
    STUDY_FIND,
    STUDY_GET,
    STUDY_MOVE,
    Archive,
    ArchiveTestCase,
    Received,
    header,
    keys,
    study,
)
from tests.interop.scripts import PRELUDE, PynetdicomTestCase, Scp, told
from tests.peers import pynetdicom_script

#: A client. The identifier is one of its options; it reports every response.
SCU = """
from pydicom.dataset import Dataset

def identifier():
    dataset = Dataset()
    for keyword, value in options["keys"].items():
        setattr(dataset, keyword, value)
    return dataset

def counts(status):
    names = ("Remaining", "Completed", "Failed", "Warning")
    return [status.get("NumberOf%sSuboperations" % name) for name in names]

def stored(event):
    data = event.encoded_dataset(include_meta=False).hex()
    tell(stored=event.request.AffectedSOPInstanceUID, data=data)
    return 0xA700 if event.request.AffectedSOPInstanceUID in options.get("refused", ()) else 0

ae = AE(options.get("ae_title", "PYNETDICOM"))
ae.add_requested_context(options["model"], options.get("syntaxes", SYNTAXES[:4]))
roles = []
for uid in options.get("storage", ()):
    ae.add_requested_context(uid, "1.2.840.10008.1.2.1")
    roles.append(build_role(uid, scp_role=True))
assoc = ae.associate("127.0.0.1", port, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, stored)])
assert assoc.is_established
for message_id in range(7, 7 + options.get("repeat", 1)):
    if options["service"] == "FIND":
        responses = assoc.send_c_find(identifier(), options["model"], msg_id=message_id)
    elif options["service"] == "GET":
        responses = assoc.send_c_get(identifier(), options["model"], msg_id=message_id)
    else:
        responses = assoc.send_c_move(identifier(), options["to"], options["model"], msg_id=message_id)
    for number, (status, dataset) in enumerate(responses, 1):
        tell(status=status.Status, counts=counts(status), json=dataset.to_json() if dataset is not None else "")
        if number == options.get("cancel"):
            assoc.send_c_cancel(message_id, query_model=options["model"])
assoc.release()
tell(released=assoc.is_released)
"""

#: An archive. Its options are paths, destinations, and the faults that it shall have.
SCP = (
    PRELUDE
    + """
from pydicom import dcmread
from pydicom.dataset import Dataset

options = json.loads(sys.argv[1])
files = [dcmread(path) for path in options["files"]]

def matching(identifier):
    wanted = identifier.get("StudyInstanceUID")
    return [file for file in files if not wanted or file.StudyInstanceUID == wanted]

def find(event):
    tell(find=event.identifier.to_json())
    number = 0
    while number < options.get("answers", 0):
        if event.is_cancelled:
            tell(cancelled=number)
            yield 0xFE00, None
            return
        number += 1
        answer = Dataset()
        answer.QueryRetrieveLevel = "IMAGE"
        answer.SOPInstanceUID = "1.2.%d" % number
        yield 0xFF00, answer
    for file in matching(event.identifier):
        answer = Dataset()
        for element in event.identifier:
            answer[element.tag] = file[element.tag] if element.tag in file else element
        yield 0xFF00, answer
    if "final" in options:
        yield options["final"], None

def get(event):
    found = matching(event.identifier)
    yield len(found)
    for file in found:
        if event.is_cancelled:
            tell(cancelled=True)
            yield 0xFE00, None
            return
        yield 0xFF00, file

def move(event):
    destination = options["destinations"].get(event.move_destination)
    yield ("127.0.0.1", destination) if destination else (None, None)
    yield from get(event)

ae = AE("PYNETDICOM")
ae.add_supported_context(FIND)
ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
ae.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
ae.add_supported_context(CT, SYNTAXES, True, True)
ae.add_requested_context(CT, "1.2.840.10008.1.2.1")
handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_GET, get), (evt.EVT_C_MOVE, move)]
server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
tell(port=server.server_address[1])
threading.Event().wait()
"""
)


def study_keys(size: int) -> dict[str, str]:
    """Return the identifier of a study, for a script."""
    return {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": study(size)[0].study}


class ScuTests(PynetdicomTestCase, ArchiveTestCase):
    """
    Our archive, pynetdicom's client.
    """

    async def asked(self, port: int, **options: Any) -> tuple[list[int], list[list[int | None]], list[Any]]:
        """Run the client; return the statuses, the counts, and the data sets of the responses."""
        lines = await self.scu(port, SCU, **options)
        self.assertEqual(lines[-1], {"released": True})
        self.stored = {line["stored"]: bytes.fromhex(line["data"]) for line in lines if "stored" in line}
        responses = [line for line in lines if "status" in line]
        datasets = [Dataset.from_json(line["json"]) if line["json"] else None for line in responses]
        return [line["status"] for line in responses], [line["counts"] for line in responses], datasets

    async def test_find(self) -> None:
        """
        Each transfer syntax, and several queries on one association.
        """
        archive = Archive([*study(7), *study(4)])
        server = await self.serve_archive(archive)
        wanted = {"QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": "", "PatientName": "Doe*"}
        for number, model in enumerate((STUDY_FIND, PATIENT_FIND)):
            statuses, _, datasets = await self.asked(server.port, service="FIND", model=model, keys=wanted, repeat=2)
            files = [file for file in archive.files if str(header(file).PatientName).startswith("Doe")]
            self.assertEqual(statuses, ([0xFF00] * len(files) + [0]) * 2)
            found = [each.SOPInstanceUID for each in datasets if each is not None]
            self.assertCountEqual(found, [file.sop_instance for file in files] * 2)
            self.assertEqual([event.message_id for event in archive.asked[2 * number :]], [7, 8])

    async def test_find_cancelled(self) -> None:
        """
        C-CANCEL ends a handler that would continue forever, one that waits and one that does not.
        """
        closed: list[bool] = []

        async def waiting(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            try:
                yield 0xFF00, keys("STUDY", StudyInstanceUID="1.2.3")
                await Deferred()
            finally:
                closed.append(event.is_cancelled)

        def busy(event: evt.IdentifierEvent) -> Iterator[Any]:
            try:
                while True:
                    yield 0xFF00, keys("STUDY", StudyInstanceUID="1.2.3")
            finally:
                closed.append(event.is_cancelled)

        for handler in (waiting, busy):
            server = await self.serve_archive(Archive([]), (evt.EVT_C_FIND, handler))
            statuses, _, _ = await self.asked(
                server.port, service="FIND", model=STUDY_FIND, keys=study_keys(7), cancel=1
            )
            self.assertEqual((statuses[0], statuses[-1]), (0xFF00, 0xFE00))
        self.assertEqual(closed, [True, True])

    async def test_get(self) -> None:
        """
        The bytes, the counts, and instances that the client refuses.
        """
        server = await self.serve_archive(Archive(study(7)))
        options = {"service": "GET", "model": STUDY_GET, "keys": study_keys(7), "storage": [study(7)[0].sop_class]}
        statuses, counts, _ = await self.asked(server.port, **options)
        self.assertEqual(statuses, [0xFF00] * 6 + [0])
        self.assertEqual(counts, [[6 - n, n + 1, 0, 0] for n in range(6)] + [[None, 7, 0, 0]])
        self.assert_bytes(self.stored, study(7))
        refused = [file.sop_instance for file in study(7)[3:5]]
        statuses, counts, datasets = await self.asked(server.port, refused=refused, **options)
        self.assertEqual((statuses[-1], counts[-1]), (0xB000, [None, 5, 2, 0]))
        self.assertEqual(datasets[-1].FailedSOPInstanceUIDList, refused)
        # A client that did not propose the role of SCP.
        statuses, counts, datasets = await self.asked(server.port, **{**options, "storage": []})
        self.assertEqual(
            (statuses, counts), ([0xFF00] * 6 + [0xA702], [[6 - n, 0, n + 1, 0] for n in range(6)] + [[None, 0, 7, 0]])
        )
        self.assertEqual(datasets[-1].FailedSOPInstanceUIDList, [file.sop_instance for file in study(7)])

    async def test_get_cancelled(self) -> None:
        """
        C-CANCEL during a C-GET: the instance in transit arrives, the others are reported as remaining.
        """
        archive = Archive(study(50))
        server = await self.serve_archive(archive)
        options = {"service": "GET", "model": STUDY_GET, "keys": study_keys(50), "storage": [study(50)[0].sop_class]}
        statuses, counts, _ = await self.asked(server.port, cancel=2, **options)
        self.assertEqual(statuses[-1], 0xFE00)
        remaining, completed, failed, _ = counts[-1]
        self.assertEqual((remaining or 0) + (completed or 0), 50)
        self.assertEqual((completed, failed), (len(self.stored), 0))
        self.assertLess(len(self.stored), 50)
        self.assertEqual(archive.closed, 1)

    async def test_move(self) -> None:
        """
        The destination is a server of ours, which gets the originator's title and Message ID; then an unknown one; then a
        cancel.
        """
        received = Received()
        target = await self.serve((evt.EVT_C_STORE, received))
        archive = Archive(study(7), {"TARGET": ("127.0.0.1", target.port)})
        server = await self.serve_archive(archive)
        options = {"service": "MOVE", "model": STUDY_MOVE, "keys": study_keys(7), "ae_title": "WORKSTATION"}
        statuses, counts, _ = await self.asked(server.port, to="TARGET", **options)
        self.assertEqual(statuses, [0xFF00] * 6 + [0])
        self.assertEqual(counts, [[6 - n, n + 1, 0, 0] for n in range(6)] + [[None, 7, 0, 0]])
        self.assert_received(received, study(7))
        self.assertEqual(received.originators, {("WORKSTATION", 7)})
        statuses, _, _ = await self.asked(server.port, to="STRANGER", **options)
        self.assertEqual(statuses, [0xA801])

    async def test_move_cancelled(self) -> None:
        """
        A handler that would wait forever is ended, and the remaining instances are reported.
        """
        received = Received()
        target = await self.serve((evt.EVT_C_STORE, received))

        async def endless(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            yield ("127.0.0.1", target.port)
            yield 50
            for file in study(7):
                yield 0xFF00, file.path
            await Deferred()

        server = await self.serve_archive(Archive(study(7)), (evt.EVT_C_MOVE, endless))
        options = {"service": "MOVE", "model": STUDY_MOVE, "keys": study_keys(7), "to": "TARGET"}
        statuses, counts, _ = await self.asked(server.port, cancel=2, **options)
        self.assertEqual(statuses[-1], 0xFE00)
        self.assertEqual(counts[-1][:3], [50 - len(received.requests), len(received.requests), 0])


class ScpTests(PynetdicomTestCase, ArchiveTestCase):
    """
    Our client, pynetdicom's archive.
    """

    async def archive(self, **options: Any) -> Scp:
        """Start the archive."""
        options = {"files": [file.path for file in study(7)], "destinations": {}, **options}
        return Scp(await pynetdicom_script(self, SCP, json.dumps(options), ready='"port"'))

    async def test_find(self) -> None:
        """
        Matches, followed by a failure.
        """
        for final in (0, 0xA700):
            peer = await self.archive(final=final)
            async with await self.associate(peer.port, "PYNETDICOM", STUDY_FIND) as assoc:
                answers = assoc.send_c_find(keys("IMAGE", SOPInstanceUID="", PatientName=""), STUDY_FIND)
                found = [each async for each in answers]
                self.assertEqual([int(status) for status, _ in found], [0xFF00] * 7 + [final])
                uids = [each.SOPInstanceUID for _, each in found if each is not None]
                self.assertCountEqual(uids, [file.sop_instance for file in study(7)])
                if final:
                    answers = assoc.send_c_find(keys("IMAGE", SOPInstanceUID=""), STUDY_FIND)
                    await self.assert_fails(answers.collect(), OperationFailed)

    async def test_find_cancelled(self) -> None:
        """
        The handler gets a C-CANCEL when the caller leaves the loop, and the association continues.
        """
        peer = await self.archive(answers=1_000_000)
        async with await self.associate(peer.port, "PYNETDICOM", STUDY_FIND) as assoc:
            async for _, identifier in assoc.send_c_find(keys("IMAGE", SOPInstanceUID=""), STUDY_FIND):
                assert identifier is not None
                self.assertEqual(identifier.SOPInstanceUID, "1.2.1")
                break
            (number,) = await peer.told("cancelled")
            self.assertLess(number, 1_000_000)
            answers = assoc.send_c_find(keys("IMAGE", SOPInstanceUID=""), STUDY_FIND)
            last = 0
            async for status, _ in answers:
                last = int(status)
                if status.is_pending:
                    answers.cancel()
            self.assertEqual(last, 0xFE00)

    async def test_get(self) -> None:
        """
        The counts, the bytes, and instances that our handler refuses.
        """
        peer = await self.archive()
        for refused in ([], [file.sop_instance for file in study(7)[:2]]):
            received = Received(**dict.fromkeys(refused, 0xA700))
            async with await self.associate(
                peer.port, "PYNETDICOM", STUDY_GET, files=study(7), received=received
            ) as assoc:
                identifier = keys("STUDY", StudyInstanceUID=study(7)[0].study)
                result = await assoc.send_c_get(identifier, STUDY_GET).when_done()
            self.assertEqual(result.status, 0xB000 if refused else 0)
            self.assertEqual(
                (result.suboperations.completed, result.suboperations.failed), (7 - len(refused), len(refused))
            )
            self.assertCountEqual(result.failed_instances, refused)
            self.assert_same(received, study(7))

    async def test_get_cancelled(self) -> None:
        """
        Leaving the loop of a C-GET.
        """
        peer = await self.archive()
        received = Received()
        async with await self.associate(
            peer.port, "PYNETDICOM", STUDY_GET, STUDY_FIND, files=study(7), received=received
        ) as assoc:
            async for status, _ in assoc.send_c_get(keys("STUDY", StudyInstanceUID=study(7)[0].study), STUDY_GET):
                self.assertTrue(status.is_pending)
                break
            found = await assoc.send_c_find(keys("IMAGE", SOPInstanceUID=""), STUDY_FIND).collect()
            self.assertEqual(len(found), 7)
        self.assertTrue(any("cancelled" in line for line in told(peer.process)) or len(received.requests) == 7)

    async def test_move(self) -> None:
        """
        The destination is a server of ours, then an unknown one.
        """
        received = Received()
        target = await self.serve((evt.EVT_C_STORE, received))
        peer = await self.archive(destinations={"TARGET": target.port})
        async with await self.associate(peer.port, "PYNETDICOM", STUDY_MOVE) as assoc:
            identifier = keys("STUDY", StudyInstanceUID=study(7)[0].study)
            result = await assoc.send_c_move(identifier, "TARGET", STUDY_MOVE).when_done()
            self.assertEqual((result.status, result.suboperations.completed), (0, 7))
            self.assert_same(received, study(7))
            # pynetdicom sends its own title as that of the originator.
            self.assertEqual({number for _, number in received.originators}, {1})
            retrieval = assoc.send_c_move(identifier, "STRANGER", STUDY_MOVE)
            error = await self.assert_fails(retrieval.when_done(), OperationFailed)
            self.assertEqual(error.status, 0xA801)

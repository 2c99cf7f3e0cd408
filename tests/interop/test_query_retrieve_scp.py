"""
Our client against real archives: DCMTK's dcmqrscp, Orthanc, and DCMTK's worklist, wlmscpfs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence as Items

from dicomtwist import OperationFailed, Retrieval, RetrievalResult, Server, build_context, evt
from tests.interop.archives import (
    PATIENT_FIND,
    PATIENT_MOVE,
    STUDY_FIND,
    STUDY_GET,
    STUDY_MOVE,
    WORKLIST,
    ArchiveTestCase,
    Received,
    dcmqrscp,
    header,
    keys,
    orthanc,
    study,
    wlmscpfs,
)
from tests.interop.common import IMPLICIT
from tests.peers import DicomFile, dicom_files

FILES = (*study(7), *study(4))


def of(files: Sequence[DicomFile]) -> Dataset:
    """Return the identifier of a study."""
    return keys("STUDY", PatientID=header(files[0]).PatientID, StudyInstanceUID=files[0].study)


class Archives:
    """
    The tests that every archive passes; the classes below name the archives.
    """

    title = ""
    flags: tuple[object, ...] = ()

    async def start(self, files: Sequence[DicomFile], destinations: dict[str, int] | None = None) -> int:
        raise NotImplementedError

    async def destination(self: Any, received: Received, *handlers: Any, **settings: Any) -> Server:
        """Start a server of ours as a move destination."""
        server: Server = await self.serve((evt.EVT_C_STORE, received), *handlers, **settings)
        return server

    # --- C-FIND

    async def test_find(self: Any) -> None:
        """
        At each level, in both models.
        """
        port = await self.start(FILES)
        async with await self.associate(port, self.title, STUDY_FIND, PATIENT_FIND) as assoc:
            ids = {header(file).PatientID for file in FILES}
            found = await assoc.send_c_find(keys("PATIENT", PatientID="", PatientName=""), PATIENT_FIND).collect()
            self.assertEqual({each.PatientID for each in found}, ids)
            found = await assoc.send_c_find(keys("STUDY", PatientID="", StudyInstanceUID=""), STUDY_FIND).collect()
            self.assertEqual({each.StudyInstanceUID for each in found}, {file.study for file in FILES})
            for files in (study(7), study(4)):
                unique = {"StudyInstanceUID": files[0].study}
                series = await assoc.send_c_find(keys("SERIES", **unique, SeriesInstanceUID=""), STUDY_FIND).collect()
                self.assertEqual({each.SeriesInstanceUID for each in series}, {file.series for file in files})
                self.assertEqual(len(series), len({file.series for file in files}))
                images = [
                    each.SOPInstanceUID
                    for one in series
                    for each in await assoc.send_c_find(
                        keys("IMAGE", **unique, SeriesInstanceUID=one.SeriesInstanceUID, SOPInstanceUID=""), STUDY_FIND
                    ).collect()
                ]
                self.assertCountEqual(images, [file.sop_instance for file in files])

    async def test_find_statuses(self: Any) -> None:
        """
        Each match with its status, in both uncompressed transfer syntaxes.
        """
        port = await self.start(FILES)
        for syntax in (IMPLICIT, "1.2.840.10008.1.2.1"):
            contexts = [build_context(STUDY_FIND, syntax)]
            async with await self.associate(port, self.title, contexts=contexts) as assoc:
                answers = assoc.send_c_find(keys("STUDY", StudyInstanceUID="", PatientName="Doe*"), STUDY_FIND)
                names, statuses = [], []
                async for status, identifier in answers:
                    statuses.append(int(status))
                    if identifier is not None:
                        names.append(str(identifier.PatientName))
                self.assertEqual({*statuses[:-1]} <= {0xFF00, 0xFF01}, True, statuses)
                self.assertEqual(statuses[-1], 0)
                self.assertTrue(names and all(name.startswith("Doe") for name in names), names)

    async def test_leaving_a_find(self: Any) -> None:
        """
        A caller that leaves the loop sends C-CANCEL; whether or not the archive stops, the association continues.
        """
        cancels: list[Any] = []
        port = await self.start(FILES)
        handlers = [(evt.EVT_DIMSE_SENT, lambda event: cancels.append(type(event.message).__name__))]
        async with await self.associate(port, self.title, STUDY_FIND, evt_handlers=handlers) as assoc:
            for _ in range(3):
                identifier = keys("SERIES", StudyInstanceUID=study(7)[0].study, SeriesInstanceUID="")
                async with assoc.send_c_find(identifier, STUDY_FIND) as answers:
                    async for status, _ in answers:
                        self.assertTrue(status.is_pending)
                        break
            found = await assoc.send_c_find(keys("STUDY", StudyInstanceUID=""), STUDY_FIND).collect()
            self.assertEqual(len(found), 2)
        self.assertTrue(assoc.is_released)
        self.assertEqual(cancels.count("CFindRQ"), 4)

    # --- C-GET

    async def test_get(self: Any) -> None:
        """
        A study is retrieved on the same association, with the role of SCP for its storage.
        """
        port = await self.start(FILES)
        received, progress = Received(), []
        async with await self.associate(port, self.title, STUDY_GET, files=FILES, received=received) as assoc:
            result = await assoc.send_c_get(
                of(study(7)),
                STUDY_GET,
                on_progress=lambda counts: progress.append((counts.remaining, counts.completed)),
            ).when_done()
            self.assertTrue(result.status.is_success)
            self.assertEqual((result.suboperations.completed, result.suboperations.failed), (7, 0))
            self.assertEqual(result.failed_instances, [])
        self.assert_same(received, study(7))
        self.assertEqual(received.originators, {(None, None)})
        self.check_progress(progress, 7)

    def check_progress(self: Any, progress: list[tuple[int | None, int]], count: int) -> None:
        """Check that the counts increase up to the end."""
        completed = [number for _, number in progress]
        self.assertEqual(completed, sorted(completed))
        self.assertEqual(completed[-1], count)
        pending = [(remaining, number) for remaining, number in progress[:-1]]
        self.assertTrue(pending)
        self.assertTrue(all(remaining is not None and remaining + number == count for remaining, number in pending))

    async def test_get_transfer_syntaxes(self: Any) -> None:
        """
        A compressed instance arrives unchanged.
        """
        (file,) = (file for file in dicom_files() if file.name.endswith("JPGExtended.dcm"))
        port = await self.start([file])
        received = Received()
        async with await self.associate(port, self.title, STUDY_GET, files=[file], received=received) as assoc:
            result = await assoc.send_c_get(of([file]), STUDY_GET).when_done()
            self.assertTrue(result.status.is_success, result)
        self.assert_same(received, [file])

    async def test_get_some_fail(self: Any) -> None:
        """
        The instances that our handler refuses are counted.
        """
        port = await self.start(FILES)
        refused = [file.sop_instance for file in study(7)[:2]]
        received = Received(**dict.fromkeys(refused, 0xA700))
        async with await self.associate(port, self.title, STUDY_GET, files=FILES, received=received) as assoc:
            self.check_failed(await assoc.send_c_get(of(study(7)), STUDY_GET).when_done(), refused)
            # The association is still usable.
            received.statuses = {}
            self.assertTrue((await assoc.send_c_get(of(study(4)), STUDY_GET).when_done()).status.is_success)

    def check_failed(self: Any, result: RetrievalResult, refused: list[str]) -> None:
        """Check the result of a retrieval with refused instances."""
        self.assertEqual(result.status, 0xB000)
        counts = result.suboperations
        self.assertEqual((counts.completed, counts.failed), (7 - len(refused), len(refused)))
        self.assertCountEqual(result.failed_instances, refused)

    async def test_leaving_a_get(self: Any) -> None:
        """
        A caller that leaves the loop sends C-CANCEL; instances that still arrive are stored, and the association continues.
        """
        port = await self.start(FILES)
        received = Received()
        async with await self.associate(
            port, self.title, STUDY_GET, STUDY_FIND, files=FILES, received=received
        ) as assoc:
            async for status, _ in assoc.send_c_get(of(study(7)), STUDY_GET):
                self.assertTrue(status.is_pending)
                break
            found = await assoc.send_c_find(keys("STUDY", StudyInstanceUID=""), STUDY_FIND).collect()
            self.assertEqual(len(found), 2)
        self.assertGreaterEqual(len(received.requests), 1)
        self.assertTrue(assoc.is_released)

    # --- C-MOVE

    async def test_move(self: Any) -> None:
        """
        The destination is a server of ours, which gets the originator's title and Message ID.
        """
        received, progress = Received(), []
        target = await self.destination(received)
        port = await self.start(FILES, {"TARGET": target.port})
        async with await self.associate(port, self.title, STUDY_MOVE, PATIENT_MOVE) as assoc:
            for number, model in enumerate((STUDY_MOVE, PATIENT_MOVE), 1):
                retrieval = assoc.send_c_move(
                    of(study(7)),
                    "TARGET",
                    model,
                    on_progress=lambda counts: progress.append((counts.remaining, counts.completed)),
                )
                result = await retrieval.when_done()
                self.assertEqual(retrieval.message_id, number)
                self.assertTrue(result.status.is_success, result)
                self.assertEqual((result.suboperations.completed, result.suboperations.failed), (7, 0))
                self.check_progress(progress, 7)
                self.assert_same(received, study(7))
                self.assertEqual(received.originators, {("TWISTSCU", number)})
                received.requests.clear()
                progress.clear()

    async def test_move_nowhere(self: Any) -> None:
        """
        The destination is unknown to the archive.
        """
        port = await self.start(FILES)
        async with await self.associate(port, self.title, STUDY_MOVE) as assoc:
            error = await self.assert_fails(
                assoc.send_c_move(of(study(7)), "STRANGER", STUDY_MOVE).when_done(), OperationFailed
            )
            self.assertTrue(error.status.is_failure, error)
            self.check_unknown(error)

    def check_unknown(self: Any, error: OperationFailed) -> None:
        """Check the status of a move to an unknown destination."""
        self.assertEqual(error.status, 0xA801)

    async def test_move_some_fail(self: Any) -> None:
        """
        The destination refuses some instances.
        """
        refused = [file.sop_instance for file in study(7)[:2]]
        received = Received(**dict.fromkeys(refused, 0xA700))
        target = await self.destination(received)
        port = await self.start(FILES, {"TARGET": target.port})
        async with await self.associate(port, self.title, STUDY_MOVE) as assoc:
            await self.check_move_failed(assoc.send_c_move(of(study(7)), "TARGET", STUDY_MOVE), refused)

    async def check_move_failed(self: Any, retrieval: Retrieval, refused: list[str]) -> None:
        """Check the result of a C-MOVE with refused instances."""
        self.check_failed(await retrieval.when_done(), refused)


class DcmqrscpTests(Archives, ArchiveTestCase):
    """
    dcmqrscp.
    """

    title = "DCMQRSCP"

    async def start(self, files: Sequence[DicomFile], destinations: dict[str, int] | None = None) -> int:
        """Start dcmqrscp."""
        return await dcmqrscp(self, files, destinations, "+xx")

    async def test_failed_list(self) -> None:
        """
        The Failed SOP Instance UID List, with a destination that does not listen.
        """
        port = await self.start(FILES)
        async with await self.associate(port, self.title, STUDY_MOVE) as assoc:
            retrieval = assoc.send_c_move(of(study(7)), "NOWHERE", STUDY_MOVE)
            error = await self.assert_fails(retrieval.when_done(), OperationFailed)
            self.assertEqual(error.status, 0xA702)
            self.assertEqual(error.result.suboperations.failed, 7)
            self.assertCountEqual(error.result.failed_instances, [file.sop_instance for file in study(7)])


class OrthancTests(Archives, ArchiveTestCase):
    """
    Orthanc.
    """

    title = "ORTHANC"

    async def start(self, files: Sequence[DicomFile], destinations: dict[str, int] | None = None) -> int:
        """Start Orthanc."""
        return await orthanc(self, files, destinations)

    def check_failed(self, result: RetrievalResult, refused: list[str]) -> None:
        """Orthanc puts the list into the command set, which nobody searches for it."""
        self.assertEqual(result.status, 0xB000)
        self.assertEqual((result.suboperations.completed, result.suboperations.failed), (5, 2))

    async def check_move_failed(self, retrieval: Retrieval, refused: list[str]) -> None:
        """Orthanc ends the whole move at the first refused instance."""
        error = await self.assert_fails(retrieval.when_done(), OperationFailed)
        self.assertEqual(error.status, 0xC000)
        self.assertLess(error.result.suboperations.completed, 7)

    def check_unknown(self, error: OperationFailed) -> None:
        """Orthanc returns 0xC000 for every error."""
        self.assertEqual(error.status, 0xC000)


class WorklistTests(ArchiveTestCase):
    """
    wlmscpfs.
    """

    def entry(self, number: int) -> Dataset:
        """Return a worklist entry that wlmscpfs considers complete."""
        step = Dataset()
        step.ScheduledStationAETitle = "CT1"
        step.ScheduledProcedureStepStartDate = "20260101"
        step.ScheduledProcedureStepStartTime = f"12{number:02}00"
        step.Modality = "CT"
        step.ScheduledPerformingPhysicianName = "Physician^A"
        step.ScheduledProcedureStepDescription = "Thorax"
        step.ScheduledStationName = "STATION"
        step.ScheduledProcedureStepLocation = "ROOM"
        step.ScheduledProcedureStepID = f"STEP{number}"
        entry = Dataset()
        entry.AccessionNumber = f"A{number}"
        entry.PatientName = f"Patient^{number}"
        entry.PatientID = f"ID{number}"
        entry.PatientBirthDate = "19700101"
        entry.PatientSex = "F"
        entry.StudyInstanceUID = f"1.2.3.{number}"
        entry.RequestedProcedureDescription = "Thorax"
        entry.RequestedProcedureID = f"P{number}"
        entry.RequestedProcedurePriority = "HIGH"
        entry.ScheduledProcedureStepSequence = Items([step])
        return entry

    async def test_worklist(self) -> None:
        """
        Matching entries, with a sequence in the query and in the matches.
        """
        port = await wlmscpfs(self, [self.entry(number) for number in range(20)])
        async with await self.associate(port, "WORKLIST", WORKLIST) as assoc:
            step = Dataset()
            step.Modality = "CT"
            step.ScheduledStationAETitle = "CT1"
            step.ScheduledProcedureStepID = ""
            identifier = Dataset()
            identifier.PatientName = "Patient^1*"
            identifier.PatientID = ""
            identifier.ScheduledProcedureStepSequence = Items([step])
            answers = [item async for item in assoc.send_c_find(identifier, WORKLIST)]
            self.assertEqual(answers[-1][0], 0)
            found = [each for status, each in answers if status.is_pending and each is not None]
            numbers = [1, *range(10, 20)]
            self.assertCountEqual([each.PatientID for each in found], [f"ID{number}" for number in numbers])
            steps = [each.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for each in found]
            self.assertCountEqual(steps, [f"STEP{number}" for number in numbers])
            step.Modality = "MR"
            self.assertEqual(await assoc.send_c_find(identifier, WORKLIST).collect(), [])

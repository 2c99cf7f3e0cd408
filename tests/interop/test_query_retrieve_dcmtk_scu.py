"""
DCMTK's clients against our server: findscu, getscu, movescu.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence as Items
from twisted.internet.defer import Deferred

from dicomtwist import Server, Status, build_context, evt
from tests.interop.archives import (
    MODELS,
    Archive,
    ArchiveTestCase,
    Received,
    expected_bytes,
    header,
    statuses,
    study,
)
from tests.interop.common import CT, EXPLICIT, VERIFICATION, Recorder
from tests.peers import (
    DicomFile,
    Result,
    dataset_bytes,
    dcmtk,
    dcmtk_storescp,
    dicom_files,
    free_port,
    one_per_transfer_syntax,
    run,
)

#: The lines in which findscu, getscu and movescu print the status of a response.
FOUND = r"Received (?:Final )?Find Response(?: \d+)? \((.*)\)$"
GOT = r"C-GET Response \((.*)\)$"
MOVED = r"Move Response(?: \d+)? \((.*)\)$"


def query(level: str, *others: str) -> list[str]:
    """Return the flags for an identifier."""
    return [word for key in (f"QueryRetrieveLevel={level}", *others) for word in ("-k", key)]


def of_study(files: Sequence[DicomFile]) -> list[str]:
    """Return the flags for a study."""
    return query("STUDY", f"StudyInstanceUID={files[0].study}")


class DcmtkTestCase(ArchiveTestCase):
    """A test that runs DCMTK's tools."""

    async def tool(self, name: str, server: Server, *flags: object, **options: Any) -> Result:
        """Run one of them against our server."""
        return await run(dcmtk(name), "-v", *flags, "127.0.0.1", server.port, **options)

    def folder(self) -> Path:
        """Create a new folder."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        return folder

    def assert_written(self, folder: Path, files: Sequence[DicomFile]) -> None:
        """Check that *files* are in *folder*, each once, byte for byte."""
        written = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in folder.iterdir()}
        self.assertEqual(set(written), {file.sop_instance for file in files})
        self.assertEqual(len(list(folder.iterdir())), len(files))
        for file in files:
            self.assertTrue(dataset_bytes(written[file.sop_instance]) == expected_bytes(file), file.name)


class FindTests(DcmtkTestCase):
    """
    findscu.
    """

    async def found(self, server: Server, *flags: object) -> tuple[list[Dataset], Result]:
        """Return the matches, as findscu wrote them, and its output."""
        folder = self.folder()
        result = await self.tool("findscu", server, "-X", "-od", folder, *flags)
        self.assertEqual(result.code, 0, result.text)
        return [dcmread(path, force=True) for path in sorted(folder.glob("rsp*.dcm"))], result

    async def test_models_and_levels(self) -> None:
        """
        Each information model, at each of its levels.
        """
        archive = Archive([*study(7), *study(4)])
        server = await self.serve_archive(archive)
        expected = {"PATIENT": 2, "STUDY": 2, "SERIES": 3, "IMAGE": 11}
        for flag, (model, _, _) in MODELS.items():
            for level, count in expected.items():
                answers, result = await self.found(
                    server, flag, *query(level, "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
                )
                self.assertEqual(statuses(result, FOUND), ["Pending"] * count + ["Success"], result.text)
                self.assertEqual(len(answers), count)
                self.assertEqual({answer.QueryRetrieveLevel for answer in answers}, {level})
                self.assertEqual(archive.asked[-1].context.abstract_syntax, model)
        uids = {(answer.PatientID, answer.SeriesInstanceUID, answer.SOPInstanceUID) for answer in answers}
        wanted = {(header(file).PatientID, file.series, file.sop_instance) for file in archive.files}
        self.assertEqual(uids, wanted)
        self.assertEqual(archive.closed, len(MODELS) * len(expected))

    async def test_transfer_syntaxes(self) -> None:
        """
        Each transfer syntax that findscu proposes, a wildcard, and text beyond ASCII.
        """
        names = [file for file in dicom_files() if file.name.endswith(("chrFren.dcm", "chrRuss.dcm", "chrH31.dcm"))]
        server = await self.serve_archive(Archive([*study(7), *names]))
        for flag in ("-xe", "-xb", "-xd", "-xi"):
            answers, _ = await self.found(
                server, "-S", flag, *query("IMAGE", "PatientName=Doe*", "SOPInstanceUID", "InstanceNumber", "Rows")
            )
            self.assertEqual({str(answer.PatientName) for answer in answers}, {"Doe^Peter"})
            self.assertEqual({answer.Rows for answer in answers}, {header(study(7)[0]).Rows})
            found = {(answer.SOPInstanceUID, answer.InstanceNumber) for answer in answers}
            wanted = {(file.sop_instance, header(file).InstanceNumber) for file in study(7)}
            self.assertEqual(found, wanted)
            for file in names:
                (answer,), _ = await self.found(
                    server,
                    "-S",
                    flag,
                    *query("IMAGE", "SpecificCharacterSet", "PatientName", f"SOPInstanceUID={file.sop_instance}"),
                )
                self.assertEqual(answer.PatientName, header(file).PatientName)

    async def test_worklist(self) -> None:
        """
        Modality Worklist, with sequences in the query and in the matches.
        """
        asked: list[Dataset] = []

        def worklist(event: evt.IdentifierEvent) -> Any:
            asked.append(event.identifier)
            for number in range(3):
                step = Dataset()
                step.Modality = "CT"
                step.ScheduledStationAETitle = "CT1"
                step.ScheduledProcedureStepID = f"STEP{number}"
                entry = Dataset()
                entry.PatientName = f"Patient^{number}"
                entry.ScheduledProcedureStepSequence = Items([step])
                yield (0xFF01 if number else 0xFF00), entry

        server = await self.serve_archive(Archive([]), (evt.EVT_C_FIND, worklist))
        step = "ScheduledProcedureStepSequence[0]"
        for flag in ("-xe", "-xb", "-xi"):
            answers, result = await self.found(
                server,
                "-W",
                flag,
                "-k",
                "PatientName",
                "-k",
                f"{step}.Modality=CT",
                "-k",
                f"{step}.ScheduledStationAETitle",
            )
            self.assertEqual(statuses(result, FOUND)[0], "Pending", result.text)
            self.assertEqual(statuses(result, FOUND)[-1], "Success")
            self.assertEqual([str(answer.PatientName) for answer in answers], [f"Patient^{n}" for n in range(3)])
            steps = [answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for answer in answers]
            self.assertEqual(steps, ["STEP0", "STEP1", "STEP2"])
            self.assertEqual(asked[-1].ScheduledProcedureStepSequence[0].Modality, "CT")

    async def test_cancel(self) -> None:
        """
        C-CANCEL ends a handler that would wait forever.
        """
        closed: list[bool] = []

        async def endless(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            try:
                for _ in range(3):
                    yield 0xFF00, event.identifier
                await Deferred()
            finally:
                closed.append(event.is_cancelled)

        server = await self.serve_archive(Archive([]), (evt.EVT_C_FIND, endless))
        _, result = await self.found(server, "-S", "--cancel", 2, *query("STUDY", "StudyInstanceUID"))
        self.assertEqual(statuses(result, FOUND)[-1], "Cancel: MatchingTerminatedDueToCancelRequest", result.text)
        self.assertEqual(closed, [True])

    async def test_failures(self) -> None:
        """
        A failure status ends a query, and another query on the same association succeeds.
        """
        for status, words in (
            (0xA700, "Refused: OutOfResources"),
            (0xA900, "Error: DataSetDoesNotMatchSOPClass"),
            (0xC001, "Failed: UnableToProcess"),
        ):
            server = await self.serve_archive(
                Archive([]), (evt.EVT_C_FIND, lambda event, status=status: [Status(status, "C-FIND", "no")])
            )
            result = await self.tool("findscu", server, "-S", "--repeat", 2, *query("STUDY"))
            self.assertEqual(statuses(result, FOUND), [words] * 2, result.text)


class GetTests(DcmtkTestCase):
    """
    getscu.
    """

    async def test_models(self) -> None:
        """
        Each information model; the bytes are those of the files.
        """
        archive = Archive([*study(7), *study(4)])
        server = await self.serve_archive(archive)
        for flag, (_, _, model) in MODELS.items():
            folder = self.folder()
            result = await self.tool("getscu", server, flag, "+B", "-od", folder, *of_study(study(7)))
            self.assertEqual(result.code, 0, result.text)
            self.assertEqual(statuses(result, GOT), ["Pending"] * 6 + ["Success"], result.text)
            self.assertIn("Number of Completed Suboperations : 7", result.text)
            self.assertEqual(archive.asked[-1].context.abstract_syntax, model)
            self.assert_written(folder, study(7))

    async def test_transfer_syntaxes(self) -> None:
        """
        Compressed instances, if getscu proposes their transfer syntax.
        """
        # +xi applies only to the query: getscu still proposes Explicit VR for instances.
        flags = {
            "1.2.840.10008.1.2.2": "+xb",
            "1.2.840.10008.1.2.1.99": "+xd",
            "1.2.840.10008.1.2.5": "+xr",
            "1.2.840.10008.1.2.4.50": "+xy",
            "1.2.840.10008.1.2.4.51": "+xx",
            "1.2.840.10008.1.2.4.70": "+xs",
            "1.2.840.10008.1.2.4.80": "+xt",
            "1.2.840.10008.1.2.4.90": "+xv",
            "1.2.840.10008.1.2.4.91": "+xw",
        }
        files = {syntax: file for syntax, file in one_per_transfer_syntax().items() if syntax in flags}
        self.assertGreater(len(files), 7)
        for syntax, file in files.items():
            server = await self.serve_archive(Archive([file]))
            folder = self.folder()
            result = await self.tool("getscu", server, "-S", "+B", flags[syntax], "-od", folder, *of_study([file]))
            self.assertEqual(statuses(result, GOT), ["Success"], f"{file.name}: {result.text}")
            self.assert_written(folder, [file])

    async def test_what_it_does_not_take(self) -> None:
        """
        A compressed instance among others, for a getscu that accepts only uncompressed ones.
        """
        (compressed,) = (file for file in dicom_files() if file.name.endswith("JPGExtended.dcm"))
        files = [compressed, *study(4)]
        archive = Archive(files)
        server = await self.serve_archive(archive)
        folder = self.folder()
        everything = query("IMAGE", "StudyInstanceUID=" + "\\".join({file.study for file in files}))
        result = await self.tool("getscu", server, "-S", "+B", "-od", folder, *everything)
        self.assertEqual(statuses(result, GOT)[-1][:7], "Warning", result.text)
        self.assertIn("Number of Completed Suboperations : 4", result.text)
        self.assertIn("Number of Failed Suboperations    : 1", result.text)
        self.assert_written(folder, study(4))

    async def test_pdu_lengths_and_repeats(self) -> None:
        """
        Short PDUs, and several C-GETs on one association.
        """
        server = await self.serve_archive(Archive(study(7)))
        folder = self.folder()
        result = await self.tool(
            "getscu", server, "-S", "-pdu", 4096, "--repeat", 3, "+B", "-od", folder, *of_study(study(7))
        )
        self.assertEqual(statuses(result, GOT), (["Pending"] * 6 + ["Success"]) * 3, result.text)
        self.assert_written(folder, study(7))

    async def test_failures(self) -> None:
        """
        No match, and a handler that raises.
        """
        archive = Archive([])
        server = await self.serve_archive(archive)
        result = await self.tool("getscu", server, "-S", *query("STUDY", "StudyInstanceUID=1.2.3"))
        self.assertEqual(statuses(result, GOT), ["Success"], result.text)
        server = await self.serve_archive(archive, (evt.EVT_C_GET, lambda event: 1 / 0))
        result = await self.tool("getscu", server, "-S", *query("STUDY", "StudyInstanceUID=1.2.3"))
        self.assertEqual(statuses(result, GOT), ["Failed: UnableToProcess"], result.text)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class MoveTests(DcmtkTestCase):
    """
    movescu.
    """

    async def test_to_itself(self) -> None:
        """
        movescu listens, and is its own destination; each information model.
        """
        port = free_port()
        archive = Archive([*study(7), *study(4)], {"MOVESCU": ("127.0.0.1", port)})
        server = await self.serve_archive(archive)
        for flag, (_, model, _) in MODELS.items():
            # In bit preserving mode it writes into its working directory and ignores the folder.
            folder = self.folder()
            before = set(Path().iterdir())
            result = await self.tool("movescu", server, flag, "+B", "+P", port, *of_study(study(7)))
            for path in set(Path().iterdir()) - before:
                path.rename(folder / path.name)
            self.assertEqual(result.code, 0, result.text)
            self.assertEqual(statuses(result, MOVED), ["Pending"] * 6 + ["Success"], result.text)
            self.assertEqual(archive.asked[-1].context.abstract_syntax, model)
            self.assertEqual(archive.asked[-1].move_destination, "MOVESCU")
            self.assert_written(folder, study(7))

    async def test_to_us(self) -> None:
        """
        The destination is a server of ours, over one association and over several; it gets the originator's title and
        Message ID.
        """
        for number in (1, 3):
            received = Received()
            established = Recorder()
            target = await self.serve((evt.EVT_C_STORE, received), (evt.EVT_ESTABLISHED, established))
            address = ("127.0.0.1", target.port, {"move_associations": number})
            server = await self.serve_archive(Archive(study(50), {"TARGET": address}))
            result = await self.tool(
                "movescu", server, "-S", "-aet", "WORKSTATION", "-aem", "TARGET", *of_study(study(50))
            )
            self.assertEqual(statuses(result, MOVED), ["Pending"] * 49 + ["Success"], result.text)
            self.assert_received(received, study(50))
            self.assertEqual(received.originators, {("WORKSTATION", 1)})
            associations = [event.assoc for event in established.events]
            self.assertEqual(len(associations), number)
            self.assertEqual({each.requestor.called_ae_title for each in associations}, {"TARGET"})
            self.assertEqual({each.requestor.ae_title for each in associations}, {"TWIST"})
            self.assertTrue(all(each.is_released for each in associations))

    async def test_to_storescp(self) -> None:
        """
        The destination is DCMTK's server, with every transfer syntax that it accepts.
        """
        files = list(one_per_transfer_syntax().values())
        folder = self.folder()
        port = await dcmtk_storescp(self, folder, "+xa", "+B", "+uf")
        server = await self.serve_archive(Archive(files, {"STORESCP": ("127.0.0.1", port)}))
        for file in files:
            result = await self.tool("movescu", server, "-S", "-aem", "STORESCP", *of_study([file]))
            self.assertEqual(statuses(result, MOVED)[-1:], ["Success"], f"{file.name}: {result.text}")
        written = [dataset_bytes(path) for path in folder.iterdir()]
        for file in files:
            self.assertIn(expected_bytes(file), written, file.name)

    async def test_some_fail(self) -> None:
        """
        The destination refuses some instances; movescu gets the list of them.
        """
        refused = study(7)[2:4]
        received = Received(**{file.sop_instance: 0xA700 for file in refused})
        target = await self.serve((evt.EVT_C_STORE, received))
        server = await self.serve_archive(Archive(study(7), {"TARGET": ("127.0.0.1", target.port)}))
        result = await self.tool("movescu", server, "-d", "-S", "-aem", "TARGET", *of_study(study(7)))
        self.assertIn("0xb000: Warning", result.text)
        self.assertEqual(
            statuses(result, r"(\w+) Suboperations +: "), ["Remaining", "Completed", "Failed", "Warning"] * 7
        )
        for words in ("Completed Suboperations       : 5", "Failed Suboperations          : 2"):
            self.assertIn(words, result.text)
        listed = "\\".join(file.sop_instance for file in refused)
        self.assertIn(f"(0008,0058) UI [{listed[:40]}", result.text)
        # All of them fail: the destination accepts CT images in none of their transfer syntaxes.
        nobody = await self.serve(contexts=[build_context(VERIFICATION)])
        server = await self.serve_archive(Archive(study(7), {"TARGET": ("127.0.0.1", nobody.port)}))
        result = await self.tool("movescu", server, "-d", "-S", "-aem", "TARGET", *of_study(study(7)))
        self.assertIn("0xa702: ", result.text)
        self.assertIn("Failed Suboperations          : 7", result.text)

    async def test_destinations(self) -> None:
        """
        An unknown destination, and one that does not listen.
        """
        server = await self.serve_archive(Archive(study(7), {"NOWHERE": ("127.0.0.1", free_port())}))
        result = await self.tool("movescu", server, "-S", "-aem", "STRANGER", *of_study(study(7)))
        self.assertEqual(statuses(result, MOVED), ["Refused: MoveDestinationUnknown"], result.text)
        result = await self.tool("movescu", server, "-d", "-S", "-aem", "NOWHERE", *of_study(study(7)))
        self.assertIn("0xa702: ", result.text)
        self.assertIn("Failed Suboperations          : 7", result.text)

    async def test_cancel(self) -> None:
        """
        The instance in transit arrives, nothing follows, and the remaining ones are reported.
        """
        received = Received()
        target = await self.serve((evt.EVT_C_STORE, received))
        closed: list[bool] = []

        async def endless(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            try:
                yield ("127.0.0.1", target.port)
                yield 100
                for file in study(7)[:3]:
                    yield 0xFF00, file.path
                await Deferred()
            finally:
                closed.append(event.is_cancelled)

        server = await self.serve_archive(Archive(study(7)), (evt.EVT_C_MOVE, endless))
        result = await self.tool("movescu", server, "-d", "-S", "-aem", "TARGET", "--cancel", 2, *of_study(study(7)))
        self.assertIn("0xfe00: Cancel", result.text)
        self.assertEqual(closed, [True])
        told = statuses(result, r"Remaining Suboperations +: (\d+)")
        self.assertEqual(int(told[-1]), 100 - len(received.requests))
        self.assertIn(len(received.requests), (2, 3))


class OddFiles(DcmtkTestCase):
    """
    Files of odd length, as a peer's store wrote them.
    """

    async def test_odd(self) -> None:
        """
        A data set of odd length arrives with a zero byte appended.
        """
        whole = Path(study(7)[0].path).read_bytes()
        path = self.folder() / "odd.dcm"
        # A private element of three bytes at the end: it violates the standard, but occurs in practice.
        path.write_bytes(whole + b"\xf1\x7f\x10\x00LO\x03\x00abc")
        file = DicomFile(str(path), str(EXPLICIT), CT, study(7)[0].sop_instance, study(7)[0].study, study(7)[0].series)
        received = Received()
        target = await self.serve((evt.EVT_C_STORE, received))
        server = await self.serve_archive(Archive([file], {"TARGET": ("127.0.0.1", target.port)}))
        result = await self.tool("movescu", server, "-S", "-aem", "TARGET", *of_study([file]))
        self.assertEqual(statuses(result, MOVED), ["Success"], result.text)
        self.assertTrue(received.datasets[file.sop_instance] == expected_bytes(file))

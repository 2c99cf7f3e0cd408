"""Studies retrieved into a folder from an archive in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ConnectionRefusedError

from dicomtwist import AE, Server, build_context, evt
from dicomtwist.dimse.messages import CStoreRSP
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from dicomtwist.retrieval import InvalidLayout, Outcome, Progress, Request, RequestResult, Totals, retrieve
from dicomtwist.sop_class import CTImageStorage
from tests.interop.archives import MODELS, Archive, ArchiveTestCase, keys, study
from tests.peers import DicomFile, dataset_bytes, free_port, one_per_transfer_syntax

STUDY = study()[0].study
CT = "1.2.840.10008.5.1.4.1.1.2"


class RetrieveTestCase(ArchiveTestCase):
    """A test with a folder to retrieve into, and the results of each request."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.results: list[RequestResult] = []
        self.ae = AE("READER")
        self.addCleanup(self.ae.shutdown)

    def retrieve(self, server: Server | int, wanted: Any, **options: Any) -> Deferred[Totals]:
        port = server if isinstance(server, int) else server.port
        options.setdefault("on_result", self.results.append)
        return retrieve(self.ae, "127.0.0.1", port, wanted, self.folder, **options)

    def files(self) -> dict[str, Path]:
        """Return the paths in the folder by the SOP Instance UIDs in the files, each of which is whole."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and ".incoming" not in path.parts]
        found = {str(dcmread(path).SOPInstanceUID): path for path in paths}
        self.assertEqual(len(found), len(paths))
        return found

    def copies(self, count: int, **values: Any) -> list[DicomFile]:
        """Return instances of one study that differ in their UIDs and numbers."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        dataset = dcmread(study()[0].path)
        made = []
        for number in range(count):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.2.{number}")
            for keyword, value in values.items():
                setattr(dataset, keyword, value(number) if callable(value) else value)
            path = folder / f"{number}.dcm"
            dataset.save_as(path)
            made.append(replace(study()[0], path=str(path), sop_instance=str(dataset.SOPInstanceUID)))
        return made


class Resumed(RetrieveTestCase):
    """Entries that are wrong, and the journal of those that are complete."""

    async def test_wrong_entries_fail_alone(self) -> None:
        """An entry that selects nothing, or has an empty key, fails with its number; the others are retrieved."""
        server = await self.serve_archive(Archive(study()))
        wrong: list[Any] = [
            {"PatientID": ""},
            {"PatientID": "A", "AccessionNumber": " "},
            {"PatientID": float("nan")},
            "",
            {"Nonsense": "1"},
            Dataset(),
            None,
            "1.2.826E+15",
            {"StudyInstanceUID": ["1.2.3", "A17"]},
            {"SeriesInstanceUID": "1.2.3\\1..2", "StudyInstanceUID": "1.2.3"},
            {"AccessionNumber": 17.0},
            {17: "17"},
            17,
        ]
        totals = await self.retrieve(server, [*wrong, STUDY])
        self.assertEqual(totals.requests, {Outcome.FAILED: len(wrong), Outcome.RETRIEVED: 1})
        self.assertEqual([result.request.label for result in self.results], [*wrong, STUDY])
        errors = [result.error for result in self.results]
        self.assertEqual(errors[:2], ["entry 1: PatientID is empty", "entry 2: AccessionNumber is empty"])
        self.assertEqual(errors[3], "entry 4: StudyInstanceUID is empty")
        self.assertTrue(errors[4].startswith("entry 5: 'Nonsense' is not the keyword"), errors)
        self.assertTrue(errors[6].startswith("entry 7: None is neither a Study Instance UID"), errors)
        self.assertTrue(errors[7].startswith("entry 8: StudyInstanceUID is '1.2.826E+15', which is not a UID"), errors)
        self.assertIn("'A17', which is not a UID", errors[8])
        self.assertIn("SeriesInstanceUID is '1..2', which is not a UID", errors[9])
        self.assertIn("AccessionNumber is the number 17.0, not text", errors[10])
        self.assertIn("17 is not the keyword", errors[11])
        self.assertIn("17 is neither", errors[12])
        self.assertEqual(errors[-1], "")

        async def entries() -> AsyncIterator[Any]:
            for one in (wrong[0], STUDY):
                yield one

        totals = await self.retrieve(server, entries())
        self.assertEqual(totals.requests, {Outcome.FAILED: 1, Outcome.RETRIEVED: 1})

    async def test_a_journal(self) -> None:
        """The peer is not asked again for complete entries, but for those that were not found or failed."""
        archive = Archive(study())
        server = await self.serve_archive(archive)
        journal = Path(self.mktemp()).absolute()
        wanted = [STUDY, "1.2.3", {"PatientID": ""}]
        options = {"resume": journal, "layout": "{Modality}/{SOPInstanceUID}.dcm"}
        first = await self.retrieve(server, wanted, **options)
        self.assertEqual(first.requests, {Outcome.RETRIEVED: 1, Outcome.NOT_FOUND: 1, Outcome.FAILED: 1})
        header = json.loads(journal.read_text().splitlines()[0])
        self.assertEqual((header["journal"], header["peer"]), ("dicomtwist get", f"ANY-SCP@127.0.0.1:{server.port}"))
        before = len(archive.asked)
        totals = await self.retrieve(server, [STUDY] * 600, **options)
        self.assertEqual((totals.requests, totals.is_complete), ({Outcome.DONE_BEFORE: 600}, True))
        self.assertEqual(len(archive.asked), before)
        with self.assertRaisesRegex(ValueError, "is about"):
            await self.retrieve(server, wanted, resume=journal)  # with another layout
        journal.write_text("something else\n")
        with self.assertRaisesRegex(ValueError, "is not a journal"):
            await self.retrieve(server, wanted, **options)


class Retrieving(RetrieveTestCase):
    async def test_a_study(self) -> None:
        """Its files are those of the archive, byte for byte, named by their UIDs."""
        server = await self.serve_archive(Archive(study()))
        seen: list[int] = []
        totals = await self.retrieve(server, STUDY, on_progress=lambda progress: seen.append(progress.instances))
        self.assertEqual((totals.stored, totals.existing, totals.is_complete), (len(study()), 0, True))
        self.assertEqual(seen, sorted(seen))
        self.assertEqual(seen[-1], len(study()))
        files = self.files()
        for file in study():
            path = files[file.sop_instance]
            self.assertEqual(path, self.folder / file.study / file.series / f"{file.sop_instance}.dcm")
            self.assertTrue(dataset_bytes(path).startswith(dataset_bytes(file.path)))

    async def test_what_the_keys_select(self) -> None:
        """Studies are found by other keys; a series and an instance are named by their UIDs, or found."""
        archive = Archive(study())
        server = await self.serve_archive(archive)
        first = study()[0]
        patient = str(dcmread(first.path).PatientID)
        series = [file for file in study() if file.series == first.series]
        for wanted, count in (
            ({"PatientID": patient}, len(study())),
            ({"StudyInstanceUID": STUDY, "SeriesInstanceUID": first.series}, len(series)),
            (Request(keys("SERIES", StudyInstanceUID=STUDY, Modality="CT"), "SERIES"), len(study())),
            (
                keys(
                    "IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID=first.series, SOPInstanceUID=first.sop_instance
                ),
                1,
            ),
            ({"StudyInstanceUID": ["1.2.3", STUDY]}, len(study())),
        ):
            self.folder = Path(self.mktemp()).absolute()
            totals = await self.retrieve(server, wanted)
            self.assertEqual((totals.stored, len(self.files())), (count, count), wanted)

    async def test_not_found(self) -> None:
        server = await self.serve_archive(Archive(study()))
        totals = await self.retrieve(server, ["1.2.3", {"PatientID": "NOBODY"}, STUDY])
        self.assertEqual(totals.requests, {Outcome.NOT_FOUND: 2, Outcome.RETRIEVED: 1})
        self.assertFalse(totals.is_complete)

    async def test_what_is_there(self) -> None:
        """It is not retrieved again: of an incomplete study only what is missing."""
        archive = Archive(study())
        server = await self.serve_archive(archive)
        await self.retrieve(server, STUDY)
        files = self.files()
        archive.pulled = 0
        totals = await self.retrieve(server, STUDY)
        self.assertEqual((totals.stored, totals.existing, totals.completed), (0, len(study()), 0))
        gone = [files[file.sop_instance] for file in study()[::3]]
        for path in gone:
            path.unlink()
        totals = await self.retrieve(server, STUDY)
        self.assertEqual(
            (totals.stored, totals.existing, totals.completed), (len(gone), len(study()) - len(gone), len(gone))
        )
        self.assertEqual(self.files(), files)

    async def test_another_data_set(self) -> None:
        """A file with another data set stays, unless it is to be replaced."""
        server = await self.serve_archive(Archive(study()))
        for options in ({}, {"layout": "{SeriesInstanceUID}/{InstanceNumber}.dcm"}):
            self.folder = Path(self.mktemp()).absolute()
            await self.retrieve(server, STUDY, **options)
            path = self.files()[study()[0].sop_instance]
            dataset = dcmread(path)
            dataset.PatientComments = "mine"
            dataset.save_as(path)
            mine = path.read_bytes()
            totals = await self.retrieve(server, STUDY, **options)
            if options:
                self.assertEqual(list(totals.refused.values()), [1])
            self.assertEqual(path.read_bytes(), mine)
            totals = await self.retrieve(server, STUDY, **options, overwrite=True)
            self.assertTrue(totals.is_complete)
            self.assertNotEqual(path.read_bytes(), mine)
            self.assertEqual(len(self.files()), len(study()))

    async def test_layout(self) -> None:
        """Instances with the same name are kept apart and counted; a second time nothing is added."""
        files = self.copies(9, InstanceNumber=lambda number: number // 3, PatientID="../x")
        server = await self.serve_archive(Archive(files))
        layout = "{PatientID}/{Modality}{InstanceNumber:03}.dcm"
        for _ in range(2):
            totals = await self.retrieve(server, STUDY, layout=layout)
            self.assertEqual(totals.stored + totals.existing, 9)
            self.assertEqual(len(self.files()), 9)
            self.assertEqual({path.parent.parent for path in self.files().values()}, {self.folder})
            self.assertEqual({path.name[:5] for path in self.files().values()}, {"CT000", "CT001", "CT002"})
        self.assertEqual((self.results[0].collisions, self.results[1].collisions), (6, 0))
        with self.assertRaises(InvalidLayout):
            self.retrieve(server, STUDY, layout="../{PatientID}")

    async def test_several_associations(self) -> None:
        """They share the requests, of which only some are taken at a time."""
        server = await self.serve_archive(Archive(study()))
        taken: list[int] = []

        async def wanted() -> AsyncIterator[str]:
            for number in range(50):
                taken.append(number)
                yield STUDY if number == 25 else f"1.2.3.{number}"

        totals = await self.retrieve(server, wanted(), associations=3)
        self.assertEqual(totals.requests, {Outcome.RETRIEVED: 1, Outcome.NOT_FOUND: 49})
        self.assertEqual(len(taken), 50)
        self.assertEqual(len(self.files()), len(study()))

    async def test_the_same_twice_at_once(self) -> None:
        """Two associations that receive the same instances store each once."""
        server = await self.serve_archive(Archive(study()))
        for layout in ("{SeriesNumber}/{InstanceNumber}.dcm", "{SOPInstanceUID}", "same.dcm"):
            self.folder = Path(self.mktemp()).absolute()
            totals = await self.retrieve(server, [STUDY] * 4, associations=4, layout=layout)
            self.assertEqual((totals.stored, totals.existing), (len(study()), 3 * len(study())))
            self.assertEqual(len(self.files()), len(study()))

    async def test_durability(self) -> None:
        server = await self.serve_archive(Archive(study()))
        totals = await self.retrieve(server, STUDY, durability="none")
        self.assertEqual((totals.stored, len(self.files())), (len(study()), len(study())))
        self.assertRaises(ValueError, self.retrieve, server, STUDY, durability="some")

    async def test_mistakes(self) -> None:
        for wanted, words in (
            ({}, "nothing selects"),
            ({"PatientID": ""}, "PatientID is empty"),
            ({"Patient": "1"}, "not the keyword"),
            (Dataset(), "nothing selects"),
            ("A17", "not a UID"),
        ):
            with self.assertRaisesRegex(ValueError, words):
                self.retrieve(1, wanted)
        self.assertFalse(self.folder.exists())
        for options in ({"root": "series"}, {"associations": 0}):
            self.assertRaises(ValueError, self.retrieve, 1, STUDY, **options)
        await self.assert_fails(self.retrieve(free_port(), STUDY), ConnectionRefusedError)


class Contexts(RetrieveTestCase):
    """Instances of more SOP Classes and transfer syntaxes than an association has contexts for."""

    async def test_each_transfer_syntax(self) -> None:
        """Instances that the first association does not bring come over a further one."""
        files = list({file.sop_instance: file for file in one_per_transfer_syntax().values() if file.study}.values())
        odd = [file for file in files if file.transfer_syntax not in ("1.2.840.10008.1.2.2",)]
        server = await self.serve_archive(Archive(odd))
        totals = await self.retrieve(server, sorted({file.study for file in odd}))
        self.assertEqual((totals.failed, totals.stored), (0, len(odd)), self.results)

    async def test_an_unusual_class(self) -> None:
        """The peer is asked for the classes of what is missing."""
        file = self.copies(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.9.2.1")[0]
        dataset = dcmread(file.path)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.save_as(file.path)
        odd = replace(file, sop_class=str(dataset.SOPClassUID))
        server = await self.serve_archive(Archive([*study(), odd]))
        requests: list[Any] = []
        server.bind(evt.EVT_REQUESTED, lambda event: requests.append(event.assoc))
        totals = await self.retrieve(server, STUDY, sop_classes=[CT])
        self.assertEqual((totals.stored, totals.failed), (len(study()), 1))
        self.assertEqual(self.results[0].reason, "unsent")
        totals = await self.retrieve(server, STUDY)
        self.assertEqual((totals.stored, totals.existing, totals.failed), (1, len(study()), 0))
        self.assertIn(odd.sop_instance, self.files())


class Failing(RetrieveTestCase):
    """Peers that are lost, interrupted, or refuse."""

    async def serve_get(self, get: Any, *handlers: Any) -> Server:
        ae = AE("SCP")
        for uid in MODELS["-S"]:
            ae.add_supported_context(uid)
        context = build_context(CTImageStorage, ALL_TRANSFER_SYNTAXES)
        context.scu_role = context.scp_role = True
        ae.supported_contexts = [*ae.supported_contexts, context]
        self.addCleanup(ae.shutdown)
        archive = Archive(study())
        more = [(evt.EVT_C_FIND, archive.find), (evt.EVT_C_GET, get), *handlers]
        return await ae.start_server(("127.0.0.1", 0), evt_handlers=more)

    async def test_the_peer_is_lost(self) -> None:
        """The rest is retrieved over another association."""
        losses = [2, 1]
        asked: list[int] = []
        acknowledged = 0

        def get(event: evt.IdentifierEvent) -> Iterator[Any]:
            wanted = event.identifier.get("SOPInstanceUID") or []
            wanted = [wanted] if isinstance(wanted, str) else list(wanted)
            files = [file for file in study() if not wanted or file.sop_instance in wanted]
            asked.append(len(files))
            yield len(files)
            for file in files:
                yield 0xFF00, file.path

        def received(event: Any) -> None:
            nonlocal acknowledged
            if isinstance(event.message, CStoreRSP):
                acknowledged += 1
                if losses and acknowledged == losses[0]:
                    acknowledged -= losses.pop(0)
                    event.assoc.abort()

        server = await self.serve_get(get, (evt.EVT_DIMSE_RECV, received))
        totals = await self.retrieve(server, STUDY)
        self.assertEqual(totals.requests, {Outcome.RETRIEVED: 1}, self.results)
        self.assertEqual(totals.stored + totals.existing, len(study()))
        self.assertEqual(len(self.files()), len(study()))
        self.assertEqual(asked[0], len(study()))
        self.assertLess(max(asked[1:]), len(study()))

    async def test_the_peer_ends_every_association(self) -> None:
        def get(event: evt.IdentifierEvent) -> Iterator[Any]:
            yield 1
            event.assoc.abort()

        server = await self.serve_get(get)
        totals = await self.retrieve(server, [STUDY, "1.2.3"], retries=1)
        self.assertEqual(totals.requests, {Outcome.FAILED: 2})
        self.assertTrue(all(result.error for result in self.results))

    async def test_cancelled(self) -> None:
        """The peer is sent C-CANCEL; what has arrived is there, and nothing is left open."""
        arrived: Deferred[None] = Deferred()
        cancelled: Deferred[None] = Deferred()
        ended: Deferred[None] = Deferred()

        async def get(event: Any) -> AsyncIterator[Any]:
            yield 2
            yield 0xFF00, study()[0].path
            await cancelled
            yield 0xFE00, None

        server = await self.serve_get(
            get,
            (evt.EVT_C_CANCEL, lambda event: cancelled.callback(None)),
            (evt.EVT_RELEASED, lambda event: ended.callback(None)),
        )
        finished: Deferred[RequestResult] = Deferred()

        def on_progress(progress: Progress) -> None:
            if progress.instances and not arrived.called:
                arrived.callback(None)

        running = self.retrieve(server, [STUDY, "1.2.3"], on_result=finished.callback, on_progress=on_progress)
        await arrived
        running.cancel()
        await self.assert_fails(running, CancelledError)
        result = await finished
        await gatherResults([cancelled, ended])
        assert result.status is not None
        self.assertEqual((result.outcome, result.stored, int(result.status)), (Outcome.INTERRUPTED, 1, 0xFE00))
        self.assertEqual(list(self.files()), [study()[0].sop_instance])

    async def test_a_full_disk(self) -> None:
        server = await self.serve_archive(Archive(study()))
        totals = await self.retrieve(server, STUDY, min_free=1 << 60)
        self.assertEqual((totals.stored, totals.requests), (0, {Outcome.FAILED: 1}))
        self.assertIn("0xA700", "".join(totals.refused))
        self.assertRegex(
            self.results[0].error, rf"^{len(study())} instances were refused here: 0xA700 .*; the peer answered: "
        )

    async def test_no_find(self) -> None:
        """Without C-FIND, UIDs are retrieved as they are; other keys fail with the reason."""
        ae = AE("SCP")
        ae.add_supported_context(MODELS["-S"][2])
        ae.add_supported_context(CTImageStorage, ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_GET, Archive(study()).get)])
        totals = await self.retrieve(server, [STUDY, {"AccessionNumber": "A"}])
        self.assertEqual(totals.requests, {Outcome.RETRIEVED: 1, Outcome.FAILED: 1})
        self.assertIn("no C-FIND", self.results[1].error)

    async def test_progress(self) -> None:
        """It counts up to what was expected."""
        server = await self.serve_archive(Archive(study()))
        last: list[Progress] = []
        await self.retrieve(server, [STUDY], on_progress=last.append)
        progress = last[-1]
        self.assertEqual((progress.done, progress.instances, progress.failed), (1, len(study()), 0))

"""The worklist: files that are added and removed, matching, answers."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import Association, OperationFailed, build_context, evt
from dicomtwist.archive.query.compact_item import Item
from dicomtwist.archive.services import worklist, worklist_folder
from dicomtwist.archive.services.worklist import Worklist, compile_query
from dicomtwist.archive.services.worklist_folder import WorklistFolder
from dicomtwist.daemon import tap
from dicomtwist.datasets.identifier import encode_with_character_set
from dicomtwist.runtime.executors import Executors
from dicomtwist.scp.dispatch import dispatch
from dicomtwist.sop_class import ModalityWorklistInformationModelFind, StudyRootQueryRetrieveInformationModelFind
from tests.archive.services.worklists import ITEMS, code, item, items, query, write
from tests.memory import MemoryTestCase


def name(item: Item) -> str:
    """The name of the patient of an item."""
    return str(item.dataset().PatientName)


def compact() -> list[Item]:
    return [*map(Item, items())]


class Matching(SynchronousTestCase):
    """The items that match; each is identified by the last digit of its Accession Number."""

    def matching(self, asked: Dataset, among: list[Dataset] | None = None) -> str:
        test = compile_query(asked)
        found = "".join(one.AccessionNumber[-1] for one in among or items() if test(one))
        # Items as they are kept in memory match as the data sets do.
        kept = [Item(one) for one in among or items()]
        self.assertEqual("".join(one.dataset().AccessionNumber[-1] for one in kept if test(one)), found)
        return found

    def test_table(self) -> None:
        for keys, expected in (
            ({}, "1234567"),
            ({"PatientName": "VIVALDI^ANTONIO"}, "12"),
            ({"PatientName": "vivaldi^antonio"}, "12"),
            ({"PatientName": "VIVALDI*"}, "12"),
            ({"PatientName": "*"}, "1234567"),
            ({"PatientName": "?OZART*"}, "7"),
            ({"PatientName": "NOBODY"}, ""),
            ({"PatientID": "B?"}, "67"),
            ({"PatientSex": "F"}, "45"),
            ({"AccessionNumber": "1003"}, "3"),
            ({"StudyInstanceUID": ["1.2.7.1", "1.2.7.5"]}, "15"),
            ({"PatientBirthDate": "19520101-19540101"}, "234"),
            ({"Modality": "CT"}, "246"),
            ({"Modality": "ct"}, ""),
            ({"ScheduledStationAETitle": "AA32"}, "13"),
            ({"ScheduledStationAETitle": "AA33"}, "1"),
            ({"ScheduledProcedureStepStartDate": "20240107"}, "34"),
            ({"ScheduledProcedureStepStartDate": "20240106-20240107"}, "234"),
            ({"ScheduledProcedureStepStartDate": "20240107-"}, "3467"),
            ({"ScheduledProcedureStepStartDate": "-20240105"}, "15"),
            ({"ScheduledProcedureStepStartTime": "0900-1200"}, "46"),
            ({"ScheduledProcedureStepStartTime": "-12"}, "146"),
            (
                {
                    "ScheduledProcedureStepStartDate": "20240105-20240107",
                    "ScheduledProcedureStepStartTime": "1200-1000",
                },
                "24",
            ),
            ({"ScheduledProcedureStepStartDate": "20240107", "ScheduledProcedureStepStartTime": "0900-1000"}, "4"),
            ({"ScheduledPerformingPhysicianName": "ROSS", "Modality": "CT", "PatientSex": "F"}, "4"),
            ({"RequestedProcedureCodeSequence": [code("C1")]}, "1357"),
        ):
            self.assertEqual(self.matching(query(**keys)), expected, keys)

    def test_other_character_sets(self) -> None:
        asked = query(PatientName="люк*")
        asked.SpecificCharacterSet = "ISO_IR 144"
        self.assertEqual(self.matching(asked), "5")

    def test_an_identifier_without_steps(self) -> None:
        asked = Dataset()
        asked.PatientID = "V1"
        self.assertEqual(self.matching(asked), "12")
        asked.ScheduledProcedureStepSequence = []
        self.assertEqual(self.matching(asked), "12")

    def test_a_step_without_a_date(self) -> None:
        asked = query(ScheduledProcedureStepStartDate="20240101-20240102", ScheduledProcedureStepStartTime="00-23")
        date, time = "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"
        steps: tuple[dict[str, str], ...] = ({date: ""}, {}, {date: "20240101"}, {date: "20240102", time: "2400"})
        among = [item(number, AccessionNumber=str(number), **values) for number, values in enumerate(steps, 1)]
        self.assertEqual(self.matching(asked, among), "3")

    def test_keys_that_make_no_sense(self) -> None:
        two = query()
        two.ScheduledProcedureStepSequence.append(Dataset())
        wrong = query()
        wrong.ScheduledProcedureStepSequence[0]["ScheduledProcedureStepStartDate"].value = ["2024-13-01-02"]
        self.assertRaises(ValueError, compile_query, two)
        self.assertRaises(ValueError, compile_query, wrong)

    def test_nothing_is_changed(self) -> None:
        asked, among = query(ScheduledProcedureStepStartDate="2024-", ScheduledProcedureStepStartTime="10-"), items()
        before = str(asked), str(among)
        compile_query(query(ScheduledProcedureStepStartDate="20240101-", ScheduledProcedureStepStartTime="10-"))
        for one in among:
            worklist.answer(one, 0, asked)
        self.assertEqual((str(asked), str(among)), before)


class Folder(SynchronousTestCase):
    """Files are added, changed and removed."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir()
        self.told: list[str] = []
        self.folder = WorklistFolder(self.root, self.told.append)

    def names(self, title: str = "ANY") -> list[str]:
        return [name(one) for one in self.folder.items(title)]

    def write(self, name: str, patient: str = "A", **options: Any) -> Path:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        write(path, item(1, PatientName=patient), **options)
        # The clock of the file system may be too coarse for what a test does in a row.
        self.moment = getattr(self, "moment", time.time_ns()) + 1_000_000_000
        os.utime(path, ns=(self.moment, self.moment))
        return path

    def test_they_come_change_and_go(self) -> None:
        self.assertEqual(self.names(), [])
        path = self.write("b.wl")
        self.write("a.wl", "B")
        self.assertEqual(self.names(), ["B", "A"])
        self.write("b.wl", "C")
        self.assertEqual(self.names(), ["B", "C"])
        path.unlink()
        self.assertEqual(self.names(), ["B"])
        self.assertEqual(self.told, [])
        self.assertEqual(list(self.folder._known[str(self.root)]), [str(self.root / "a.wl")])

    def test_read_once(self) -> None:
        self.write("a.wl")
        with mock.patch.object(worklist_folder, "read_file", wraps=worklist_folder.read_file) as reading:
            for _ in range(3):
                self.names()
            self.assertEqual(reading.call_count, 1)
            self.write("a.wl")
            self.names()
            self.assertEqual(reading.call_count, 2)

    def test_every_encoding(self) -> None:
        for number, syntax in enumerate((ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)):
            self.write(f"{number}.wl", f"N{number}", transfer_syntax=syntax)
        self.write("3.wl", "N3", meta=False)
        self.write("4.wl", "N4", transfer_syntax=ImplicitVRLittleEndian, meta=False)
        self.assertEqual(self.names(), ["N0", "N1", "N2", "N3", "N4"])

    def test_a_folder_for_a_title(self) -> None:
        self.write("all.wl", "ALL")
        self.write("CT1/one.wl", "CT1")
        self.write("MR1/one.wl", "MR1")
        self.assertEqual(self.names("CT1"), ["ALL", "CT1"])
        self.assertEqual(self.names("XX"), ["ALL"])

    def test_titles_that_are_paths(self) -> None:
        self.write("sub/one.wl")
        inner = WorklistFolder(self.root / "sub")
        for title in ("", ".", "..", "../sub", "/", str(self.root), "a\0b"):
            self.assertEqual(len(inner.items(title)), 1, title)

    def test_other_files(self) -> None:
        path = self.write("a.wl")
        for name in ("lockfile", "a.dump", ".hidden.wl", "a.wl.tmp"):
            (self.root / name).write_bytes(path.read_bytes())
        self.assertEqual(self.names(), ["A"])

    def test_what_cannot_be_read_is_told_once(self) -> None:
        good = self.write("good.wl").read_bytes()
        write(self.root / "empty_steps.wl", Dataset())
        (self.root / "cut.wl").write_bytes(good[:-5])
        (self.root / "empty.wl").write_bytes(b"")
        (self.root / "noise.wl").write_bytes(b"\xff" * 300)
        (self.root / "folder.wl").mkdir()
        (self.root / "gone.wl").symlink_to("nowhere")
        with mock.patch.object(worklist_folder, "MAX_FILE_LENGTH", len(good)):
            (self.root / "long.wl").write_bytes(good + b"\0\0")
            self.assertEqual(self.names(), ["A"])
            self.assertEqual(self.names(), ["A"])
        told = sorted(Path(why.partition(" is ignored")[0]).name for why in self.told)
        self.assertEqual(told, ["cut.wl", "empty.wl", "empty_steps.wl", "folder.wl", "long.wl", "noise.wl"])

    def test_bounds(self) -> None:
        for number in range(4):
            self.write(f"{number}.wl")
        with mock.patch.object(worklist_folder, "MAX_FILES", 3):
            self.assertEqual(len(self.names()), 3)
        self.assertIn("more than 3 files", self.told[0])

    def test_memory(self) -> None:
        """Files that do not fit into memory are ignored, and logged at each look at the folder, until there is room."""
        for number in range(4):
            self.write(f"{number}.wl", f"N{number}")
        self.names()
        each = self.folder._remembered // 4
        with mock.patch.object(worklist_folder, "MAX_REMEMBERED", 2 * each + each // 2):
            folder = WorklistFolder(self.root, self.told.append)
            for _ in range(2):
                self.assertEqual(len(folder.items("")), 2)
                self.assertIn("the rest of it is ignored", self.told.pop())
                self.assertEqual(self.told, [])
                self.assertLessEqual(folder._remembered, 2 * each + each // 2)
            (self.root / "0.wl").unlink()
            self.assertEqual([name(one) for one in folder.items("")], ["N1", "N2"])
        self.assertEqual(len(folder.items("")), 3)

    def test_memory_of_folders_that_are_gone(self) -> None:
        self.write("CT1/one.wl")
        self.names("CT1")
        self.assertGreater(self.folder._remembered, 0)
        (self.root / "CT1/one.wl").unlink()
        (self.root / "CT1").rmdir()
        self.names("CT1")
        self.assertEqual((self.folder._remembered, [*self.folder._known]), (0, [str(self.root)]))

    def test_only_regular_files(self) -> None:
        """FIFOs, sockets, devices and loops of links hold up nothing, and are told once."""
        self.write("a.wl")
        os.mkfifo(self.root / "fifo.wl")
        (self.root / "loop.wl").symlink_to("loop.wl")
        (self.root / "device.wl").symlink_to("/dev/zero")
        (self.root / "to_fifo.wl").symlink_to("fifo.wl")
        (self.root / "dangling.wl").symlink_to("none")
        (self.root / "link.wl").symlink_to("a.wl")
        with socket.socket(socket.AF_UNIX) as listening:
            with contextlib.chdir(self.root):
                listening.bind("socket.wl")
            for _ in range(2):
                self.assertEqual(self.names(), ["A", "A"])
        told = sorted(os.path.basename(one.split(" is ignored")[0]) for one in self.told)
        self.assertEqual(told, ["device.wl", "fifo.wl", "loop.wl", "socket.wl", "to_fifo.wl"])

    def test_a_file_becomes_a_fifo_when_it_is_opened(self) -> None:
        path = self.write("a.wl")
        regular = os.stat(path)
        path.unlink()
        os.mkfifo(path)
        with mock.patch.object(os, "stat", return_value=regular):
            self.assertRaisesRegex(ValueError, "not a regular file", worklist_folder.read_file, str(path))

    def test_a_file_that_grows(self) -> None:
        """A file is read again when it has grown since it was opened."""
        path = self.write("a.wl")
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        fstat = os.fstat

        def growing(descriptor: int) -> os.stat_result:
            status = fstat(descriptor)
            path.write_bytes(whole)
            os.utime(path, ns=(self.moment + 1, self.moment + 1))
            return status

        with mock.patch.object(os, "fstat", growing):
            self.names()
        self.assertEqual(self.names(), ["A"])

    def test_files_that_cost_too_much(self) -> None:
        """A file of a million items, or one that inflates to a gigabyte, is ignored as soon as that is known."""
        (self.root / "items.wl").write_bytes(b"\x40\0\0\1\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 100_000)
        large = item(1, PatientComments="x" * 10_000_000)
        write(self.root / "inflates.wl", large, transfer_syntax=DeflatedExplicitVRLittleEndian)
        self.assertEqual(self.names(), [])
        self.assertEqual(len(self.told), 2)
        self.assertIn("1048576 bytes", self.told[0])
        self.assertIn("elements and items", self.told[1])

    def test_many_that_cannot_be_read(self) -> None:
        """Some of them are told, and the number of the others."""
        for number in range(30):
            (self.root / f"{number}.wl").write_bytes(b"noise")
        self.names()
        self.assertEqual(len(self.told), 21)
        self.assertEqual(self.told[-1], "10 more files of the worklist are ignored")

    def test_stopped(self) -> None:
        """The reading ends at the next file."""
        for number in range(3):
            self.write(f"{number}.wl")

        def stop(path: str) -> Any:
            self.folder.is_stopped = True
            return read_file(path)

        read_file = worklist_folder.read_file
        with mock.patch.object(worklist_folder, "read_file", side_effect=stop) as reading:
            self.names()
        self.assertEqual(reading.call_count, 1)

    def test_no_folder(self) -> None:
        self.assertRaises(FileNotFoundError, WorklistFolder(self.root / "none").items, "")


class Served(MemoryTestCase):
    """The worklist as a peer queries it over an association."""

    def setUp(self) -> None:
        super().setUp()
        models = [ModalityWorklistInformationModelFind, StudyRootQueryRetrieveInformationModelFind]
        self.scp.supported_contexts = [build_context(uid) for uid in models]
        self.scu.requested_contexts = [build_context(uid) for uid in models]
        self.root = Path(self.mktemp())
        self.root.mkdir()
        for number, one in enumerate(items(), 1):
            write(self.root / f"{number}.wl", one)
        self.worklist = Worklist(self.root, Executors(self.network).worklist)
        self.listen(*dispatch(self.worklist.routes))
        self.assoc: Association = self.associate()

    def ask(self, asked: Dataset, model: str = ModalityWorklistInformationModelFind) -> list[Dataset]:
        return self.network.result_of(self.assoc.send_c_find(asked, model).collect())

    def refused(self, asked: Dataset, **options: Any) -> int:
        error = self.assertRaises(OperationFailed, self.ask, asked, **options)
        return int(error.status)

    def test_keys_are_answered_and_nothing_else(self) -> None:
        asked = query(PatientID="M1", PatientComments="", RequestedProcedureCodeSequence=[])
        (found,) = self.ask(asked)
        keys = {element.keyword for element in asked} | {"SpecificCharacterSet"}
        self.assertEqual({element.keyword for element in found}, keys)
        self.assertEqual(found.SpecificCharacterSet, "ISO_IR 100")
        self.assertEqual(found.PatientName, "Müller^Käthe")
        self.assertEqual(found.PatientComments, "")
        self.assertEqual(found.RequestedProcedureCodeSequence, [code("C0", "Something")])
        (step,) = found.ScheduledProcedureStepSequence
        self.assertEqual(
            {one.keyword for one in step}, {one.keyword for one in asked.ScheduledProcedureStepSequence[0]}
        )
        self.assertEqual((step.Modality, step.ScheduledProcedureStepStartTime), ("CT", "094500"))

    def test_character_sets_are_kept(self) -> None:
        (found,) = self.ask(query(PatientID="L1"))
        self.assertEqual(found.SpecificCharacterSet, "ISO_IR 192")
        self.assertEqual(found.PatientName, "Люксембург^Роза")

    def test_an_answer_for_each_step(self) -> None:
        """The sequence of an answer has one item (PS3.4 K.6.1.2.2)."""
        several = item(8, PatientID="S1", Modality="CT", ScheduledProcedureStepID="S1")
        for identity, modality in (("S2", "MR"), ("S3", "CT")):
            step = Dataset()
            step.ScheduledProcedureStepID, step.Modality = identity, modality
            several.ScheduledProcedureStepSequence.append(step)
        write(self.root / "8.wl", several)
        found = self.ask(query(PatientID="S1", Modality="CT"))
        steps = [one.ScheduledProcedureStepSequence for one in found]
        self.assertEqual([[step.ScheduledProcedureStepID for step in each] for each in steps], [["S1"], ["S3"]])

    def test_no_keys_at_all(self) -> None:
        self.assertEqual(len(self.ask(Dataset())), len(ITEMS))

    def test_what_is_refused(self) -> None:
        two = query()
        two.ScheduledProcedureStepSequence.append(Dataset())
        self.assertEqual(self.refused(two), 0xA900)
        self.assertEqual(self.refused(query(), model=StudyRootQueryRetrieveInformationModelFind), 0x0122)
        for path in self.root.iterdir():
            path.unlink()
        self.root.rmdir()
        self.assertEqual(self.refused(query()), 0xA700)

    def test_many_and_cancelled(self) -> None:
        for number in range(300):
            write(self.root / f"x{number}.wl", item(number, PatientID="MANY"))
        self.assertEqual(len(self.ask(query(PatientID="MANY"))), 300)
        with mock.patch.object(worklist, "PAGE_SIZE", 1):
            answers = self.assoc.send_c_find(query(PatientID="MANY"), ModalityWorklistInformationModelFind)
            seen = []

            async def take() -> None:
                async for status, _ in answers:
                    seen.append(int(status))
                    if len(seen) == 3:
                        answers.cancel()

            self.network.result_of(take())
        self.assertLess(len(seen), 300)
        self.assertEqual(answers.status, 0xFE00)

    def hanging(self) -> list[Deferred[Any]]:
        """Let the folder hang from now on; return the Deferreds of the readings."""
        executor, folder = self.worklist._executor, self.worklist._reader._folder
        run: Any = executor.run
        reading: list[Deferred[Any]] = []

        def hang(function: Any, *arguments: Any) -> Deferred[Any]:
            if function == folder.read:
                reading.append(Deferred())
                return reading[-1]
            running: Deferred[Any] = run(function, *arguments)
            return running

        self.patch(executor, "run", hang)
        return reading

    def ask_later(self) -> Deferred[Any]:
        asking: Deferred[Any] = self.assoc.send_c_find(query(), ModalityWorklistInformationModelFind).collect()
        self.network.flush()
        return asking

    def test_a_folder_that_hangs(self) -> None:
        """Queries fail at their deadline, and one thread is kept for all. When the folder is back, they are answered."""
        reading = self.hanging()
        for _ in range(3):
            asking = self.ask_later()
            self.assertNoResult(asking)
            self.network.advance(worklist.DEADLINE)
            failure = self.failureResultOf(asking, OperationFailed)
            self.assertEqual(int(failure.value.status), 0xA700)
        self.assertEqual(len(reading), 1)
        self.assertEqual(self.worklist._reader._waiting, {"ANY-SCP": []})
        asking = self.ask_later()
        reading.pop().callback({"ANY-SCP": []})
        self.assertEqual(len(reading), 1)
        reading.pop().callback({"ANY-SCP": compact()})
        self.network.flush()
        self.assertEqual(len(self.successResultOf(asking)), len(items()))

    def comment(self, asking: Deferred[Any]) -> str:
        """The Error Comment of a query that is refused because it takes too long."""
        failure = self.failureResultOf(asking, OperationFailed)
        self.assertEqual(int(failure.value.status), 0xA700)
        return str(failure.value.status.error_comment)

    def test_a_folder_that_is_being_read(self) -> None:
        """A query waits for the first reading of a large folder, while it makes progress."""
        reading = self.hanging()
        asking = self.ask_later()
        folder = self.worklist._reader._folder
        for _ in range(2):
            folder.progress += 1
            self.network.advance(worklist.DEADLINE)
            self.assertNoResult(asking)
        self.network.advance((worklist.MAX_DEADLINES - 2) * worklist.DEADLINE - 1)
        reading.pop().callback({"ANY-SCP": compact()})
        self.network.flush()
        self.assertEqual(len(self.successResultOf(asking)), len(items()))

    def test_a_folder_that_is_read_for_too_long(self) -> None:
        """Peers learn that the worklist is being read before they give up; without progress they learn so earlier."""
        self.hanging()
        asking = self.ask_later()
        folder = self.worklist._reader._folder
        for deadlines in (1, 1, worklist.MAX_DEADLINES - 2):
            self.assertNoResult(asking)
            folder.progress += 1
            self.network.advance(deadlines * worklist.DEADLINE)
        self.assertEqual(self.comment(asking), "the worklist is still being read, ask again")
        asking = self.ask_later()
        folder.progress += 1
        self.network.advance(worklist.DEADLINE)
        self.assertNoResult(asking)
        self.network.advance(worklist.DEADLINE)
        self.assertEqual(self.comment(asking), "the worklist cannot be read in time")

    def test_searches_take_turns(self) -> None:
        """A long search leaves its thread between items, and finds each once."""
        with mock.patch.object(worklist, "is_turn_over", return_value=True):
            self.assertEqual(len(self.ask(query())), len(items()))
        self.assertGreater(self.worklist._turns, len(items()))

    def test_cancelled_while_it_hangs(self) -> None:
        """A query that is cancelled, or whose association ends, waits no longer."""
        self.hanging()
        answers = self.assoc.send_c_find(query(), ModalityWorklistInformationModelFind)
        collecting = answers.collect()
        self.network.flush()
        answers.cancel()
        self.network.flush()
        self.assertEqual(int(self.failureResultOf(collecting, OperationFailed).value.status), 0xFE00)
        asking = self.ask_later()
        self.assoc.abort()
        self.network.flush()
        asking.addErrback(lambda _: None)
        self.assertEqual(self.worklist._reader._waiting, {"ANY-SCP": []})

    def test_one_look_for_many_queries(self) -> None:
        """Queries that come while the folder is read are answered by one look that begins after it."""
        reading = self.hanging()
        first = self.ask_later()
        self.network.flush()
        others = [self.associate() for _ in range(5)]
        asked = [one.send_c_find(query(), ModalityWorklistInformationModelFind).collect() for one in others]
        self.network.flush()
        reading.pop(0).callback({"ANY-SCP": compact()[:1]})
        self.network.flush()
        self.assertEqual(len(self.successResultOf(first)), 1)
        reading.pop(0).callback({"ANY-SCP": compact()})
        self.network.flush()
        self.assertEqual([len(self.successResultOf(one)) for one in asked], [len(items())] * 5)
        self.assertEqual(reading, [])

    def test_read_in_the_background(self) -> None:
        """The start reads the files, so that the first query finds them in memory."""
        with mock.patch.object(worklist_folder, "read_file", wraps=worklist_folder.read_file) as read:
            self.worklist.start()
            self.network.flush()
            self.assertEqual(read.call_count, len(items()))
            self.assertEqual(len(self.ask(query())), len(items()))
            self.assertEqual(read.call_count, len(items()))
        self.worklist.stop()

    def test_items_that_cannot_be_compared(self) -> None:
        """A query logs one line about them, and finds the others."""
        told: list[str] = []
        self.patch(self.worklist, "_told", lambda why, event: told.append(why))

        def failing(found: Item) -> list[int]:
            if found.dataset().PatientID != "H1":
                raise RecursionError("too deep")
            return [0]

        with mock.patch.object(worklist, "compile_query", return_value=failing):
            self.assertEqual(len(self.ask(query())), 1)
        (line,) = told
        self.assertIn(f"{len(items()) - 1} of {len(items())} items of the worklist cannot be compared", line)

    def test_items_that_cannot_be_answered(self) -> None:
        """A page logs one line about them, whose number an association bounds, and answers the others."""
        encode = encode_with_character_set

        def failing(found: Dataset, *rest: Any) -> bytes:
            if found.PatientID != "H1":
                raise RecursionError("too deep")
            return encode(found, *rest)

        self.scp.settings.maximum_refusals_logged = 2
        self.assertGreater(len(items()), 3)
        warned: list[str] = []
        self.patch(self.worklist, "log", mock.Mock(warn=lambda _, why, **fields: warned.append(why)))
        with mock.patch.object(worklist, "encode_with_character_set", failing):
            self.assertEqual(len(self.ask(query())), 1)
            (line,) = warned
            self.assertIn(f"{len(items()) - 1} of {len(items())} items of the worklist cannot be answered", line)
            with mock.patch.object(worklist, "PAGE_SIZE", 1):
                self.ask(query())
        self.assertEqual(len(warned), 2)

    def test_a_search_that_takes_long(self) -> None:
        """The deadline ends the search as well, at the next file."""
        seen = []

        def slow(found: Item) -> list[int]:
            seen.append(found)
            # The files that were read are progress, until the first time has passed.
            for _ in range(2):
                calls: list[Any] = [*self.network.getDelayedCalls()]
                (deadline,) = [one for one in calls if one.func.__name__ == "expire"]
                deadline.func()
            return []

        with mock.patch.object(worklist, "compile_query", return_value=slow):
            self.assertEqual(self.refused(query()), 0xA700)
        self.assertEqual(len(seen), 1)

    def test_a_folder_for_the_title_that_is_called(self) -> None:
        (self.root / "CT1").mkdir()
        write(self.root / "CT1" / "1.wl", item(1, PatientID="X1"))
        self.assertEqual(self.ask(query(PatientID="X1")), [])
        self.assoc = self.associate(ae_title="CT1")
        self.assertEqual(len(self.ask(query(PatientID="X1"))), 1)

    def test_two_handlers_of_the_same(self) -> None:
        other = Worklist(self.root, Executors(self.network).worklist)
        self.assertRaises(ValueError, dispatch, [*self.worklist.routes, *other.routes])
        self.assertEqual([entry[0] for entry in dispatch(other.routes)], [evt.EVT_C_FIND])


class Options(SynchronousTestCase):
    """A mistake in an option is reported in one line, before anything is made."""

    def refused(self, *options: str) -> str:
        printed = StringIO()
        self.patch(sys, "stderr", printed)
        storage = Path(self.mktemp())
        error = self.assertRaises(SystemExit, tap.Options().parseOptions, ["--storage", str(storage), *options])
        self.assertEqual(error.code, 64)
        self.assertFalse(storage.exists())
        (line,) = printed.getvalue().splitlines()
        return line

    def test_no_folder(self) -> None:
        self.assertIn("--worklist: nowhere is not a folder", self.refused("--worklist", "nowhere"))

    def test_no_peer(self) -> None:
        self.assertIn("--peer: 'PACS' is not a peer", self.refused("--peer", "PACS"))
        self.assertIn("--peer: cannot read the peers of 'none'", self.refused("--peer", "@none"))

"""Replacements of instances, and attributes that disagree: who may do it, which values apply, and the log."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.address import IPv4Address
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, build_context
from dicomtwist.access.enforcement import Policy
from dicomtwist.access.rules import parse_rules
from dicomtwist.archive.archive import Archive, Duplicates, Precedence
from dicomtwist.archive.folder_import import import_folder
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.conflicts import Conflicts
from dicomtwist.archive.index.record import make_record, scanner_for
from dicomtwist.archive.recovery import reconcile, repair
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.archive.storage.types import Durability
from dicomtwist.datasets import encode_dataset
from dicomtwist.dimse.status import DUPLICATE_SOP_INSTANCE, NOT_AUTHORISED
from dicomtwist.testing import MemoryNetwork
from dicomtwist.transport.peer_directory import Peers
from tests.archive.samples import SECONDARY_CAPTURE, ask, dataset, encoded, files, keep
from tests.memory import MemoryTestCase

STRANGER, HERE = "10.1.0.5", "127.0.0.1"


class AddressedNetwork(MemoryNetwork):
    """A network whose clients have an address that the test chooses."""

    address = STRANGER

    def _free_address(self) -> IPv4Address:
        return IPv4Address("TCP", self.address, super()._free_address().port)


class ReplacingCase(MemoryTestCase):
    durability = Durability.FULL

    def setUp(self) -> None:
        super().setUp()
        self.network: AddressedNetwork = AddressedNetwork()
        self.scp, self.scu = AE("SCP", reactor=self.network), AE("SCU", reactor=self.network)
        self.scu.requested_contexts = [
            build_context(SECONDARY_CAPTURE, ExplicitVRLittleEndian),
            build_context(SECONDARY_CAPTURE, ImplicitVRLittleEndian),
        ]
        self.lines: list[str] = []
        look = cast(ILogObserver, self.look)
        globalLogPublisher.addObserver(look)
        self.addCleanup(globalLogPublisher.removeObserver, look)

    def look(self, event: LogEvent) -> None:
        self.lines.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    def serve(self, policy: Policy | None = None, **options: Any) -> ArchiveServer:
        """Start an archive behind the default rules, or behind *policy*."""
        self.root = Path(self.mktemp())
        self.archive = Archive(self.root, durability=self.durability, **options)
        self.archive.open()
        server = ArchiveServer(self.scp, self.archive, Peers(self.network), policy=policy or Policy())
        self.scp.add_supported_context(SECONDARY_CAPTURE)
        server.start()
        self.listen(*server.handlers())

        def stop() -> None:
            self.network.result_of(server.stop())
            server.close()

        self.addCleanup(stop)
        return server

    def store(self, *datasets: Dataset, address: str = STRANGER) -> list[int]:
        """Store *datasets* from *address*, on one association; return the statuses."""
        self.network.address = address
        association = self.associate()
        answers = [self.network.result_of(association.send_c_store(one)) for one in datasets]
        self.comments = [answer.error_comment for answer in answers]
        statuses = list(map(int, answers))
        self.network.result_of(association.release())
        self.network.flush()
        return statuses

    def end(self) -> None:
        """End the server, so that the next one can listen."""
        self.network.result_of(self.scp.shutdown())
        self.scp = AE("SCP", reactor=self.network)

    def file(self) -> bytes:
        (path,) = files(self.root)
        return path.read_bytes()

    def found(self, level: str, keyword: str) -> list[str]:
        """Return what a query finds."""
        keys: dict[str, Any] = {keyword: None}
        answers = ask(self.archive, level, **keys)
        return sorted(str(answer.get(keyword, "")) for answer in answers)

    def about(self, *words: str) -> list[str]:
        return [line for line in self.lines if all(word in line for word in words)]


def pixels(count: int, value: int = 0, **elements: Any) -> Dataset:
    made = dataset(**elements)
    made.add_new(0x7FE00010, "OB", bytes([value]) * count)
    return made


class Replacing(ReplacingCase):
    """A C-STORE of an instance that is there and differs."""

    #: Changes of an instance: its pixels, its patient, its encoding alone, small and large ones.
    def changed(self) -> list[tuple[Dataset, Dataset]]:
        return [
            (pixels(100), pixels(100, 1)),
            (pixels(100), pixels(102)),
            (dataset(), dataset(PatientName="Other^Name")),
            (dataset(), dataset(PatientID="ANOTHER")),
            (pixels(300_000), pixels(300_000, 1)),
            (pixels(300_000), pixels(10)),
            (pixels(10), pixels(300_000)),
        ]

    def test_a_stranger(self) -> None:
        for first, second in self.changed():
            self.serve()
            self.assertEqual(self.store(first), [0])
            before, names = self.file(), self.found("STUDY", "PatientName")
            self.assertEqual(self.store(second, second, first), [NOT_AUTHORISED, NOT_AUTHORISED, 0])
            self.assertEqual(self.file(), before)
            self.assertEqual(self.found("STUDY", "PatientName"), names)
            self.assertEqual(self.about("replaced"), [])
            self.end()

    def test_this_machine(self) -> None:
        for first, second in self.changed():
            self.lines.clear()
            self.serve()
            self.assertEqual(self.store(first), [0])
            old = hashlib.sha256(self.file()).hexdigest()
            self.assertEqual(self.store(second, address=HERE), [0])
            new = hashlib.sha256(self.file()).hexdigest()
            self.assertNotEqual(old, new)
            (line,) = self.about("replaced")
            name = "/".join((first.StudyInstanceUID, first.SeriesInstanceUID, first.SOPInstanceUID))
            self.assertEqual(line, f"'SCU' at 127.0.0.1: replaced the instance {name}: SHA-256 {old} by {new}")
            self.assertEqual(self.store(first, address=HERE), [0])
            self.assertEqual(hashlib.sha256(self.file()).hexdigest(), old)
            self.assertEqual(len(self.about("replaced", new, old)), 2)
            self.end()

    def test_another_transfer_syntax(self) -> None:
        self.serve()
        self.assertEqual(self.store(dataset()), [0])
        before = self.file()
        self.scu.requested_contexts = self.scu.requested_contexts[1:]
        self.assertEqual(self.store(dataset()), [NOT_AUTHORISED])
        self.assertEqual(self.file(), before)

    def test_rules(self) -> None:
        for allow, status in ((["store"], NOT_AUTHORISED), (["store", "replace"], 0), ("all", 0)):
            self.serve(Policy(parse_rules([{"calling": "SCU", "allow": allow}])))
            self.assertEqual(self.store(dataset(), dataset(PatientName="X")), [0, status])
            comment = "no rule allows replace: the instance is here with other bytes" if status else None
            self.assertEqual(self.comments, [None, comment])
            self.end()

    def test_rules_that_change(self) -> None:
        """New rules apply to associations that are there."""
        server = self.serve(Policy(parse_rules([{"allow": "all"}])))
        association = self.associate()
        send = lambda one: int(self.network.result_of(association.send_c_store(one)))  # noqa: E731
        self.assertEqual([send(dataset()), send(dataset(PatientName="X"))], [0, 0])
        assert server.access is not None
        server.access.change(Policy(parse_rules([{"allow": "store"}])), None)
        self.assertEqual([send(dataset(PatientName="Y")), send(dataset(PatientName="X"))], [NOT_AUTHORISED, 0])

    def test_duplicates_that_stay(self) -> None:
        for duplicates, status in ((Duplicates.KEEP, 0), (Duplicates.REJECT, DUPLICATE_SOP_INSTANCE)):
            self.serve(duplicates=duplicates)
            self.assertEqual(self.store(dataset()), [0])
            before = self.file()
            for address in (STRANGER, HERE):
                self.assertEqual(self.store(dataset(PatientName="X"), address=address), [status])
            self.assertEqual(self.file(), before)
            self.assertEqual(self.about("replaced"), [])
            self.end()

    def test_refusals_are_bounded_and_replacements_are_not(self) -> None:
        self.scp.settings.maximum_refusals_logged = 3
        self.serve()
        versions = [dataset(ImageComments=str(number)) for number in range(12)]
        self.assertEqual(self.store(*versions), [0] + [NOT_AUTHORISED] * 11)
        # By rule, as other refusals by rule: once for the association, with the rule.
        (line,) = self.about("0x0124")
        self.assertEqual(
            line,
            f"C-STORE of 'SCU' at {STRANGER} refused with 0x0124: no rule allows replace: the instance is here with other bytes"
            " (1.2.1.1.1): the nearest is the default rule 'this machine': "
            f"the address is '{STRANGER}', not in loopback, unix",
        )
        self.assertEqual(self.about("was not stored"), [])
        self.assertEqual(self.store(*versions[1:], address=HERE), [0] * 11)
        self.assertEqual(len(self.about("replaced")), 11)

    def test_two_at_once(self) -> None:
        """Of several that a stranger sends at once, the first stays."""
        self.serve()
        self.network.address = STRANGER
        associations = [self.associate() for _ in range(6)]
        waiting = [
            association.send_c_store(dataset(ImageComments=str(number)))
            for number, association in enumerate(associations)
        ]
        statuses = sorted(int(self.network.result_of(one)) for one in waiting)
        self.assertEqual(statuses, [0] + [NOT_AUTHORISED] * 5)


class Elsewhere(ReplacingCase):
    """A C-STORE of an instance whose SOP Instance UID is stored below another study or series."""

    STORED = dataset(1, PatientName="Doe^John")

    def others(self, **elements: Any) -> list[Dataset]:
        """Return other versions of the stored instance: in another series, study, or both; of other sizes."""
        uid = {"SOPInstanceUID": "1.2.1.1.1", **elements}
        large = pixels(300_000, SeriesInstanceUID="1.2.1.9", **uid)
        return [dataset(1, 2, 1, **uid), dataset(1, 1, 2, **uid), dataset(1, 1, 0, PatientID="Q", **uid), large]

    def test_a_stranger(self) -> None:
        self.serve()
        self.assertEqual(self.store(self.STORED), [0])
        before = self.file()
        self.assertEqual(self.store(*self.others()), [NOT_AUTHORISED] * 4)
        self.assertEqual(self.store(*self.others(PatientName="Evil^Name")), [NOT_AUTHORISED] * 4)
        self.assertEqual(self.file(), before)
        self.assertEqual(self.found("STUDY", "StudyInstanceUID"), ["1.2.1"])
        self.assertEqual(self.found("STUDY", "NumberOfStudyRelatedInstances"), ["1"])
        self.assertEqual(self.store(self.STORED, dataset(2)), [0, 0], "the instance itself, and a new one")

    def test_after_a_query(self) -> None:
        """With rows in the index as well as with rows that wait."""
        self.serve()
        for one in self.others():
            self.assertIn(self.store(self.STORED, one), ([0, NOT_AUTHORISED],))
            self.assertEqual(self.found("STUDY", "NumberOfStudyRelatedInstances"), ["1"])
            self.assertEqual(self.store(one), [NOT_AUTHORISED])

    def test_this_machine(self) -> None:
        self.serve()
        self.assertEqual(self.store(self.STORED), [0])
        self.assertEqual(self.store(*self.others(), address=HERE), [0] * 4)
        self.assertEqual(self.found("STUDY", "StudyInstanceUID"), ["1.2.0", "1.2.1", "1.2.2"])
        self.assertEqual(self.found("STUDY", "NumberOfStudyRelatedInstances"), ["1", "1", "3"])
        lines = self.about("both are kept", "'SCU' at 127.0.0.1")
        self.assertEqual(len(lines), 4)
        for one, line in zip(self.others(), lines, strict=True):
            self.assertIn(f"UID of {one.StudyInstanceUID}/{one.SeriesInstanceUID}/1.2.1.1.1 is", line)
        self.assertEqual(self.store(*self.others()), [0] * 4, "identical copies")

    def test_rejected_duplicates(self) -> None:
        for duplicates, statuses in (
            (Duplicates.REJECT, [DUPLICATE_SOP_INSTANCE, DUPLICATE_SOP_INSTANCE]),
            (Duplicates.KEEP, [NOT_AUTHORISED, 0]),
        ):
            self.serve(duplicates=duplicates)
            self.assertEqual(self.store(self.STORED), [0])
            one = self.others()[0]
            self.assertEqual([*self.store(one), *self.store(one, address=HERE)], statuses)
            self.end()

    def test_several_at_once(self) -> None:
        """Of several that a stranger sends at once, one stays, and new instances beside them are stored."""
        self.serve()
        self.network.address = STRANGER
        wanted = [self.STORED, *self.others(), *(dataset(number) for number in range(10, 14))]
        associations = [self.associate() for _ in wanted]
        waiting = [association.send_c_store(one) for association, one in zip(associations, wanted, strict=True)]
        statuses = [int(self.network.result_of(one)) for one in waiting]
        self.assertEqual(sorted(statuses[:5]), [0] + [NOT_AUTHORISED] * 4)
        self.assertEqual(statuses[5:], [0] * 4)
        self.assertEqual(len(files(self.root)), 5)

    def test_nothing_is_left(self) -> None:
        self.serve()
        self.store(self.STORED, *self.others())
        self.assertEqual([path.name for path in (self.root / ".incoming").iterdir()], [".lock"])
        self.assertEqual(len(files(self.root)), 1)


class ElsewhereWithoutSyncs(Elsewhere):
    """As above; rows follow later."""

    durability = Durability.NONE


class ReplacingWithoutSyncs(Replacing):
    """As above; rows follow later."""

    durability = Durability.NONE


class Disagreeing(ReplacingCase):
    """A new instance whose patient or study is described in another way."""

    def test_a_stranger_renames_nobody(self) -> None:
        for precedence in Precedence:
            self.lines.clear()
            self.serve(precedence=precedence)
            self.assertEqual(self.store(dataset(1, StudyDescription="CHEST"), address=HERE), [0])
            other = dataset(2, PatientName="Evil^Name", StudyDescription="ABDOMEN", PatientSex="F", Modality="XX")
            self.assertEqual(self.store(other), [0])
            self.assertEqual(self.found("STUDY", "PatientName"), ["Doe^John"])
            self.assertEqual(self.found("STUDY", "StudyDescription"), ["CHEST"])
            (series,) = ask(self.archive, "SERIES", StudyInstanceUID="1.2.1", Modality=None)
            self.assertEqual(series.Modality, "OT")
            self.assertEqual(self.found("STUDY", "PatientSex"), ["F"], "there was none")
            for keyword in ("PatientName", "StudyDescription"):
                (line,) = self.about(keyword)
                self.assertIn("'SCU' at 10.1.0.5: ", line)
                self.assertIn("the earlier values apply", line)
            self.assertEqual(self.about("Evil") + self.about("Doe") + self.about("CHEST"), [])
            self.end()

    def test_last_or_first(self) -> None:
        for precedence, name in ((Precedence.LAST, "New^Name"), (Precedence.FIRST, "Doe^John")):
            self.lines.clear()
            self.serve(precedence=precedence)
            other = dataset(2, PatientName="New^Name")
            self.assertEqual(self.store(dataset(1), other, address=HERE), [0, 0])
            self.assertEqual(self.found("STUDY", "PatientName"), [name])
            self.assertEqual(len(ask(self.archive, "STUDY", PatientName=name)), 1, "as it is compared with, too")
            words = "the new values apply" if precedence is Precedence.LAST else "the earlier values apply"
            self.assertEqual(len(self.about("PatientName", words)), 1)
            self.end()

    def test_a_line_for_each_disagreement(self) -> None:
        self.serve()
        self.assertEqual(self.store(*(dataset(number) for number in range(1, 4)), address=HERE), [0] * 3)
        self.assertEqual(self.about("disagree"), [])
        many = [dataset(number, PatientName="AB"[number % 2]) for number in range(4, 20)]
        self.assertEqual(self.store(*many), [0] * len(many))
        self.assertEqual(len(self.about("disagree")), 1)

    def test_lines_are_bounded(self) -> None:
        self.scp.settings.maximum_refusals_logged = 3
        self.serve()
        pairs = [
            dataset(1, 1, study, PatientID=f"P{study}", PatientName=name)
            for study in range(1, 9)
            for name in ("A", "B")
        ]
        for number, one in enumerate(pairs):
            one.SOPInstanceUID += f".{number}"
        self.assertEqual(self.store(*pairs), [0] * len(pairs))
        self.assertEqual((len(self.about("disagree")), len(self.about("further ones"))), (3, 1))

    def test_a_study_of_two_patients(self) -> None:
        self.serve()
        self.assertEqual(self.store(dataset(1), dataset(2, PatientID="Q"), dataset(3, PatientID="Q")), [0] * 3)
        (line,) = self.about("disagree")
        self.assertIn("instance 1.2.1/1.2.1.1/1.2.1.1.2 disagrees with the ", line)
        self.assertEqual(self.found("STUDY", "PatientID"), ["P", "Q"])

    def test_what_is_missing_contradicts_nothing(self) -> None:
        self.serve(precedence=Precedence.FIRST)
        self.assertEqual(self.store(dataset(1), dataset(2, PatientName=""), dataset(3, PatientName=None)), [0] * 3)
        self.assertEqual(self.about("disagree"), [])
        self.assertEqual(self.found("STUDY", "PatientName"), ["Doe^John"])


class DisagreeingWithoutSyncs(Disagreeing):
    durability = Durability.NONE

    def about(self, *words: str) -> list[str]:
        self.archive.catch_up()
        self.network.flush()
        return super().about(*words)


class Imported(ReplacingCase):
    """An import replaces as the operator wants, and says what it replaced."""

    def test_import(self) -> None:
        self.serve()
        self.assertEqual(self.store(dataset()), [0])
        folder = Path(self.mktemp())
        folder.mkdir()
        for number, one in enumerate((dataset(), dataset(PatientName="New^Name"), dataset(2, PatientName="Other"))):
            (folder / f"{number}.dcm").write_bytes(b"".join(encoded(one)[1]))
        self.assertEqual(import_folder(self.archive, folder).kept, 3)
        (line,) = self.about("replaced")
        self.assertTrue(
            line.startswith(f"the import of {folder}/1.dcm: replaced the instance 1.2.1/1.2.1.1/1.2.1.1.1: ")
        )
        self.assertEqual(len(self.about("disagree")), 1)


class CutOff(ReplacingCase):
    """A peer that may replace instances, and sends a file that is cut off."""

    def test_statuses(self) -> None:
        for number, size in enumerate((2000, 300_000)):
            self.serve()
            self.network.address = HERE
            whole = dataset(PatientComments="one")
            whole.add_new(0x7FE00010, "OW", bytes(range(250)) * (size // 250))
            content = b"".join(encoded(whole)[1])
            path = Path(self.mktemp())
            path.write_bytes(content[:-400])
            association = self.associate()
            statuses = []
            for what in (path, whole, path, dataset(PatientComments="two"), dataset(9)):
                status = self.network.result_of(association.send_c_store(what))
                statuses.append(int(status))
                if not status.is_success:
                    self.assertEqual(status.error_comment, "the data set is cut off, and a better copy is stored")
            self.network.result_of(association.release())
            self.assertEqual(statuses, [0, 0, 0xC000, 0, 0])
            self.assertEqual(len(self.about("status 0xC000", "a whole copy is stored", "bytes short")), number + 1)
            self.end()


class IndexedAgain(SynchronousTestCase):
    """A start that indexes files does not know who sent them: it gives a patient or study no other values."""

    def open(self, root: Path, **options: Any) -> Archive:
        archive = Archive(root, **options)
        archive.open()
        reconcile(archive)
        self.addCleanup(archive.close)
        return archive

    def described(self, archive: Archive) -> tuple[set[str], ...]:
        keys = ("PatientName", "PatientSex", "StudyDescription")
        wanted: dict[str, Any] = dict.fromkeys(keys)
        answers = ask(archive, "STUDY", **wanted)
        series = [
            one
            for study in ("1.2.1", "1.2.0", "1.2.3")
            for one in ask(archive, "SERIES", StudyInstanceUID=study, Modality=None)
        ]
        return *({str(one[key].value) for one in answers} for key in keys), {one.Modality for one in series}

    def test_an_index_that_is_lost(self) -> None:
        """The values of the file that was stored first apply, wherever its UIDs are in the order of the files."""
        real = {"PatientName": "Doe^John", "StudyDescription": "CHEST", "Modality": "CT"}
        evil = {"PatientName": "Evil^Name", "StudyDescription": "EVIL", "Modality": "XX", "PatientSex": "F"}
        # Series and studies before and behind those of the real ones, in all orders of time.
        places = [(5, 1, 1), (1, 1, 1), (9, 1, 1), (5, 0, 1), (5, 9, 1)]
        for precedence in Precedence:
            for first in range(len(places)):
                root = Path(self.mktemp())
                archive = self.open(root)
                for at, (number, series, study) in enumerate(places):
                    one = dataset(number, series, study, **(real if at == first else evil))
                    if at != first and series == places[first][1]:
                        one.Modality = "XX"
                    self.assertIsNone(keep(archive, one))
                    path = archive.store.path(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
                    os.utime(path, (0 if at == first else 1_000_000 + at,) * 2)
                archive.close()
                shutil.rmtree(root / ".index")
                names, sexes, descriptions, modalities = self.described(self.open(root, precedence=precedence))
                self.assertEqual((names, sexes, descriptions), ({"Doe^John"}, {"F"}, {"CHEST"}))
                self.assertIn("CT", modalities)

    def test_other_studies_of_a_patient(self) -> None:
        root = Path(self.mktemp())
        archive = self.open(root)
        for study, name, time in ((0, "Evil^Name", 30), (1, "Doe^John", 10), (3, "Evil^Too", 20)):
            one = dataset(1, 1, study, PatientName=name)
            self.assertIsNone(keep(archive, one))
            os.utime(archive.store.path(f"1.2.{study}", f"1.2.{study}.1", f"1.2.{study}.1.1"), (time, time))
        archive.close()
        shutil.rmtree(root / ".index")
        self.assertEqual(self.described(self.open(root))[0], {"Doe^John"})

    def test_rows_that_a_crash_has_lost(self) -> None:
        """The index has what it had before."""
        for time in (0, 2_000_000_000):
            root = Path(self.mktemp())
            archive = self.open(root)
            uids = ("1.2.1", "1.2.1.1", "1.2.1.1.2")
            self.assertIsNone(keep(archive, dataset(1)))
            self.assertIsNone(keep(archive, dataset(2, PatientName="Evil^Name", PatientSex="F")))
            archive.index.remove([uids])
            one = dataset(1, ImageComments="received again")
            self.assertIsNone(keep(archive, one))
            os.utime(archive.store.path(*uids), (time, time))
            archive.close()
            names, sexes, *_ = self.described(self.open(root))
            self.assertEqual((names, sexes), ({"Doe^John"}, {"F"}))

    def test_a_worker_that_died(self) -> None:
        """A new instance changes nothing; one that was being replaced does, since its sender was allowed to."""
        for replaced, name in ((False, "Doe^John"), (True, "New^Name")):
            root = Path(self.mktemp())
            archive = Archive(root, process="supervisor")
            archive.open()
            self.addCleanup(archive.close)
            self.assertIsNone(keep(archive, dataset(1)))
            self.assertIsNone(keep(archive, dataset(2, PatientName="New^Name")))
            self.assertIsNone(keep(archive, dataset(1, ImageComments="again")))
            uids = ("1.2.1", "1.2.1.1", "1.2.1.1.2")
            if replaced:
                archive.index.announce_replacing([uids])
            note = root / ".index" / "committing-worker-1"
            note.write_text("temporary\n" + "/".join(uids) + "\n")
            self.assertEqual(repair(archive, "worker-1"), 1)
            self.assertEqual(self.described(archive)[0], {name})


VALUES = st.sampled_from(["", "A", "Doe^John", "X^Y=\u5c71\u7530^\u592a\u90ce", "M\u00fcller"])
ROWS = st.builds(
    lambda name, sex, date: {"PatientName": name, "PatientSex": sex, "PatientBirthDate": date},
    VALUES,
    st.sampled_from(["", "F", "M"]),
    st.sampled_from(["", "19700101", "19800101"]),
)


class Settled(SynchronousTestCase):
    """Rows that are settled are consistent: whatever follows from an attribute comes from the same instance as it."""

    def row(self, values: dict[str, Any]) -> tuple[str, ...]:
        made = dataset(SpecificCharacterSet="ISO_IR 192", **values)
        scanner = scanner_for(ExplicitVRLittleEndian)
        data = encode_dataset(made, ExplicitVRLittleEndian)
        if not scanner.feed(data):
            scanner.finish()
        return make_record(scanner.values, ExplicitVRLittleEndian).patient

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
    @given(ROWS, ROWS)
    def test_first(self, known: dict[str, str], new: dict[str, str]) -> None:
        merged = {keyword: value or new[keyword] for keyword, value in known.items()}
        conflicts = Conflicts(Precedence.FIRST)
        found = conflicts.settled(Level.PATIENT, "P", self.row(known), self.row(new), None, "x")
        self.assertEqual(found, self.row(merged))

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
    @given(ROWS, ROWS)
    def test_last(self, known: dict[str, str], new: dict[str, str]) -> None:
        found = Conflicts().settled(Level.PATIENT, "P", self.row(known), self.row(new), None, "x")
        self.assertEqual(found, self.row(new))

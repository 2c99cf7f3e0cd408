"""
Files that are cut off or damaged behind the indexed elements: an import, a peer, a start and a rebuild of the index.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive import completeness, folder_import
from dicomtwist.archive.archive import Archive, Duplicates
from dicomtwist.archive.completeness import Completeness, examine
from dicomtwist.archive.folder_import import Import, import_folder
from dicomtwist.archive.integrity import Reference, verify
from dicomtwist.archive.recovery import reconcile
from dicomtwist.archive.storage.types import IncompleteInstance
from dicomtwist.datasets import encode_dataset
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta, read_file_meta
from tests.archive.samples import ask, dataset, handed
from tests.archive.test_archive import ArchiveCase

SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
#: The File Meta Information and all UIDs are in front of this.
FRONT = 500


def image(syntax: str, size: int = 300, text: str = "one", **elements: Any) -> tuple[Dataset, bytes]:
    """Return an image with a sequence in front of its pixel data and an element behind it, and its encoded data set."""
    made = dataset(PatientComments=text, **elements)
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3.4"
    made.ReferencedImageSequence = [item]
    made["ReferencedImageSequence"].is_undefined_length = syntax == ExplicitVRLittleEndian
    made.Rows = made.Columns = 10
    pixels = random.Random(1).randbytes(size)
    if syntax == JPEGBaseline8Bit:
        pixels = b"".join(
            struct.pack("<HHL", 0xFFFE, 0xE000, len(piece)) + piece for piece in (b"", pixels[:100], pixels[100:])
        )
    made.add_new(0x7FE00010, "OB" if syntax == JPEGBaseline8Bit else "OW", pixels)
    made["PixelData"].is_undefined_length = syntax == JPEGBaseline8Bit
    return made, encode_dataset(made, ExplicitVRLittleEndian if syntax == JPEGBaseline8Bit else syntax)


def as_file(syntax: str, data: bytes) -> bytes:
    """Return a file of the instance that :func:`image` makes."""
    meta = FileMeta("1.2.840.10008.5.1.4.1.1.7", "1.2.1.1.1", str(syntax), "1.2.3")
    return encode_preamble_and_meta(meta) + data


def verdict(syntax: str, data: bytes) -> Completeness:
    return examine(BytesIO(data), 0, syntax).completeness


class Examining(SynchronousTestCase):
    def test_whole(self) -> None:
        for syntax in SYNTAXES:
            for size in (0, 300, 300_000):
                _, data = image(syntax, size)
                self.assertEqual(examine(BytesIO(data), 0, syntax), (Completeness.WHOLE, ""), syntax)

    def test_every_cut(self) -> None:
        """A cut that is not between two elements is found, in every transfer syntax."""
        for syntax in SYNTAXES:
            _, data = image(syntax)
            whole = [at for at in range(2, len(data)) if verdict(syntax, data[:at]) is not Completeness.CUT_OFF]
            ends = {len(data) - 1}  # the padding byte of a deflated data set
            if syntax != DeflatedExplicitVRLittleEndian:
                ends.clear()
                made, _ = image(syntax)
                encoding = ExplicitVRLittleEndian if syntax == JPEGBaseline8Bit else syntax
                for tag in sorted(made.keys()):
                    del made[tag]
                    ends.add(len(data) - len(encode_dataset(made, encoding)))
            if syntax == ExplicitVRBigEndian:
                ends |= {end + 1 for end in ends}  # the first byte of the next tag is that of padding
            self.assertLessEqual(set(whole), ends, syntax)

    def test_padding(self) -> None:
        for syntax in SYNTAXES:
            _, data = image(syntax)
            for zeros in (*range(1, 18), 511, 2048, 100_000):
                self.assertEqual(verdict(syntax, data + bytes(zeros)), Completeness.WHOLE, (syntax, zeros))

    def test_other_bytes_at_the_end(self) -> None:
        for syntax in SYNTAXES[:3]:
            _, data = image(syntax)
            for more in (b"garbage at the end", b"\r\n\r\n", b"\xff" * 64, as_file(syntax, data)):
                self.assertEqual(verdict(syntax, data + more), Completeness.UNREADABLE, (syntax, more[:16]))

    def test_lengths_that_cannot_be(self) -> None:
        for length in (0xFFFFFFFE, 0x80000000, 302):
            _, data = image(ExplicitVRLittleEndian)
            at = data.index(b"\xe0\x7f\x10\x00") + 8
            data = data[:at] + struct.pack("<L", length) + data[at + 4 :]
            found = examine(BytesIO(data), 0, ExplicitVRLittleEndian)
            self.assertIs(found.completeness, Completeness.CUT_OFF)
            self.assertIn(f"inside (7FE0,0010), {length - 300} bytes short", found.reason)

    def test_long_values_are_not_read(self) -> None:
        class Counting(BytesIO):
            count = 0

            def read(self, size: int | None = -1, /) -> bytes:
                data = super().read(size)
                self.count += len(data)
                return data

        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit):
            _, data = image(syntax, 8 << 20)
            file = Counting(data)
            self.assertEqual(examine(file, 0, syntax).completeness, Completeness.WHOLE)
            self.assertLess(file.count, 1 << 18)

    def test_bombs(self) -> None:
        """A file that inflates to more than any, or has millions of elements, does not take minutes."""
        squeezed = zlib.compressobj(9, wbits=-15)
        _, data = image(ExplicitVRLittleEndian)
        bomb = squeezed.compress(data) + squeezed.compress(bytes(4 << 20)) + squeezed.flush()
        self.patch(completeness, "MAX_INFLATED", 1 << 20)
        self.assertEqual(verdict(DeflatedExplicitVRLittleEndian, bomb), Completeness.UNREADABLE)
        self.patch(completeness, "MAX_SECONDS", 0.0)
        self.assertEqual(verdict(ExplicitVRLittleEndian, data + bytes(1 << 20)), Completeness.UNREADABLE)


class CutOff(ArchiveCase):
    """An archive and a folder to import."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def imported(self, archive: Archive, content: bytes) -> Import:
        (self.folder / "one.dcm").write_bytes(content)
        return import_folder(archive, self.folder)

    def stored(self) -> bytes:
        """Return the data set that is stored."""
        (path,) = self.root.glob("*/*/*.dcm")
        with path.open("rb") as file:
            read_file_meta(file)
            return file.read()

    def test_whole_copy_stays(self) -> None:
        """Wherever a file is cut off behind the UIDs, whether it is a copy of the stored one or differs from it."""
        for syntax in SYNTAXES:
            for size in (300, 3 << 20):
                self.root = Path(self.mktemp())
                archive = self.open()
                _, data = image(syntax, size)
                _, other = image(syntax, size, "two")
                self.assertEqual(self.imported(archive, as_file(syntax, data)).kept, 1)
                middle = len(data) // 2
                cuts = [*range(FRONT, len(data), 31), len(data) - 1] if size == 300 else [middle, len(data) - 2]
                for cut in cuts:
                    for whole in (data, other):
                        found = self.imported(archive, as_file(syntax, whole[:cut]))
                        if whole is other and found.kept:  # between two elements, a data set of its own
                            self.assertEqual(verdict(syntax, whole[:cut]), Completeness.WHOLE)
                            self.imported(archive, as_file(syntax, data))
                            continue
                        self.assertEqual((found.kept, found.skipped), (0, 1), (syntax, cut))
                        (reason,) = found.reasons
                        self.assertIn("one.dcm", reason)
                self.assertEqual(self.stored(), data)
                self.assertEqual(self.imported(archive, as_file(syntax, other)).kept, 1)
                self.assertEqual(self.stored(), other)
                self.assert_consistent(archive)

    def test_cut_between_two_elements(self) -> None:
        archive = self.open()
        _, data = image(ExplicitVRLittleEndian, 300)
        self.imported(archive, as_file(ExplicitVRLittleEndian, data))
        found = self.imported(archive, as_file(ExplicitVRLittleEndian, data[: data.index(b"\xe0\x7f\x10\x00")]))
        self.assertIn("only the beginning of the one that is stored", found.reasons[0])
        self.assertEqual(self.stored(), data)

    def test_zeros_in_place_of_the_end(self) -> None:
        """A file that has its size, or another one, and zeros behind some byte, replaces no whole copy."""
        for syntax in SYNTAXES:
            for size in (300, 3 << 20):
                self.root = Path(self.mktemp())
                archive = self.open()
                _, data = image(syntax, size)
                self.imported(archive, as_file(syntax, data))
                for cut in (len(data) // 2, len(data) - 40, len(data) - 2, len(data) - 1):
                    for length in (len(data) - 1, len(data), len(data) + 8, len(data) + 700_000):
                        found = self.imported(archive, as_file(syntax, data[:cut].ljust(length, b"\0")))
                        self.assertEqual((found.failed, self.stored() == data), (0, True), (syntax, cut, length))
                self.assert_consistent(archive)

    def test_kept_and_then_replaced(self) -> None:
        """A file that is cut off is imported if it is all there is, and each better copy replaces it."""
        for syntax in SYNTAXES:
            self.root = Path(self.mktemp())
            archive = self.open()
            _, data = image(syntax, 4000)
            for cut in (len(data) - 2000, len(data) - 1000):
                found = self.imported(archive, as_file(syntax, data[:cut]))
                self.assertEqual((found.kept, found.damaged), (1, 1), found.reasons)
                self.assertIn("one.dcm", found.damage[0])
                self.assertEqual(self.stored(), data[:cut])
            found = self.imported(archive, as_file(syntax, data[:-1500]))
            self.assertEqual((found.kept, found.skipped), (0, 1))
            found = self.imported(archive, as_file(syntax, data))
            self.assertEqual((found.kept, found.damaged), (1, 0))
            self.assertEqual(self.stored(), data)
            self.assert_consistent(archive)

    def test_damaged_file_and_whole_copy(self) -> None:
        """A file with bytes that are no element replaces no whole copy; a peer that sends such a data set stands for it."""
        archive = self.open()
        _, data = image(ExplicitVRLittleEndian)
        self.imported(archive, as_file(ExplicitVRLittleEndian, data))
        broken = data + b"\xff" * 100
        found = self.imported(archive, as_file(ExplicitVRLittleEndian, broken))
        self.assertEqual((found.kept, found.skipped), (0, 1))
        self.assertIn("a whole copy is stored", found.reasons[0])
        self.assertIsNone(self.sent(archive, broken))
        self.assertEqual(self.stored(), broken)
        self.assertIsInstance(self.sent(archive, data[:-10]), IncompleteInstance)

    def sent(self, archive: Archive, data: bytes) -> BaseException | None:
        """Store a data set as that of a peer."""
        made = handed(dataset())
        assert isinstance(made.content, list)
        made.content = [made.content[0], data]
        outcomes: list[BaseException | None] = []
        archive.keep(made, outcomes.append)
        (outcome,) = outcomes
        return outcome

    def test_peer(self) -> None:
        """A peer replaces no whole copy by one that is cut off; a data set that ends earlier is its own decision."""
        archive = self.open()
        _, data = image(ExplicitVRLittleEndian)
        self.assertIsNone(self.sent(archive, data[:-100]))
        self.assertIsNone(self.sent(archive, data))
        self.assertIsInstance(self.sent(archive, data[:-100]), IncompleteInstance)
        self.assertEqual(self.stored(), data)
        shorter = data[: data.index(b"\xe0\x7f\x10\x00")]
        self.assertIsNone(self.sent(archive, shorter))
        self.assertEqual(self.stored(), shorter)
        self.assert_consistent(archive)

    def test_first_copy_stays(self) -> None:
        """With duplicates keep a damaged file is not reported if the copy in the archive is whole."""
        archive = self.open(duplicates=Duplicates.KEEP)
        _, data = image(ExplicitVRLittleEndian)
        self.imported(archive, as_file(ExplicitVRLittleEndian, data))
        found = self.imported(archive, as_file(ExplicitVRLittleEndian, data[:-1]))
        self.assertEqual((found.kept, found.damaged), (1, 0))

    def test_rebuilt(self) -> None:
        """An index that is made again has the files that are cut off as well, and the start names them."""
        archive = self.open()
        for number, syntax in enumerate(SYNTAXES):
            _, data = image(syntax, 200_000, SOPInstanceUID=f"1.2.1.1.{number}")
            path = self.folder / f"{number}"
            path.write_bytes(as_file(syntax, data[: -1000 if number % 2 else None]))
        self.assertEqual(import_folder(archive, self.folder).damaged, 2)
        archive.close()
        shutil.rmtree(self.root / ".index")
        archive = self.open()
        found = reconcile(archive)
        self.assertEqual((found.indexed, found.damaged, found.unreadable), (5, 2, 0))
        self.assertIn("/1.2.1.1.1.dcm: the data set ends inside (7FE0,0010), 1000 bytes short", found.damaged_names[0])
        self.assertEqual(len(ask(archive, "IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1")), 5)

    def test_storage_commitment(self) -> None:
        """A file that was cut off before the index was made again is not committed, a whole one is."""
        archive = self.open()
        whole, cut = (
            image(ExplicitVRLittleEndian, SOPInstanceUID=f"1.2.1.1.{number}")[1][: None if number else -10]
            for number in (1, 0)
        )
        for number, data in enumerate((whole, cut)):
            (self.folder / f"{number}").write_bytes(as_file(ExplicitVRLittleEndian, data))
        import_folder(archive, self.folder)
        archive.close()
        shutil.rmtree(self.root / ".index")
        archive = self.open()
        reconcile(archive)
        damaged: list[str] = []
        references = [Reference("1.2.840.10008.5.1.4.1.1.7", f"1.2.1.1.{number}") for number in (1, 0)]
        self.assertEqual(verify(archive, references, damaged), [0, 0x0110])
        self.assertIn("10 bytes short", damaged[0])

    def test_nothing_but_a_front(self) -> None:
        """Files without a data set, or cut off in front of a UID, are skipped; at a start they are reported and stay."""
        archive = self.open()
        whole = as_file(ExplicitVRLittleEndian, image(ExplicitVRLittleEndian)[1])
        with BytesIO(whole) as file:
            _, start = read_file_meta(file)
        cuts = (0, 1, 131, 132, 140, start - 1, start, start + 4, start + 20)
        for cut in cuts:
            (self.folder / f"{cut}").write_bytes(whole[:cut])
        found = import_folder(archive, self.folder)
        self.assertEqual((found.kept, found.skipped, len(found.reasons)), (0, len(cuts), len(cuts)))
        series = self.root / "1.2.1" / "1.2.1.1"
        shutil.copytree(self.folder, series, copy_function=lambda source, target: shutil.copy(source, f"{target}.dcm"))
        found_at_start = reconcile(archive)
        self.assertEqual((found_at_start.indexed, found_at_start.unreadable), (0, len(cuts)))

    def test_file_that_changes(self) -> None:
        """A file that becomes longer or shorter while it is read, as one that is being copied, is not imported."""
        for size, change in ((300, 10), (300, -10), (3 << 20, 1), (3 << 20, -1)):
            self.root = Path(self.mktemp())
            archive = self.open()
            _, data = image(ExplicitVRLittleEndian, size)
            path = self.folder / "one.dcm"
            content = as_file(ExplicitVRLittleEndian, data)
            path.write_bytes(content)
            original = folder_import._own_meta

            def own_meta(
                *arguments: Any, original: Any = original, length: int = len(content) + change, path: Path = path
            ) -> bytes:
                os.truncate(path, length)
                made: bytes = original(*arguments)
                return made

            self.patch(folder_import, "_own_meta", own_meta)
            found = import_folder(archive, self.folder)
            self.patch(folder_import, "_own_meta", original)
            self.assertEqual((found.kept, found.failed), (0, 1))
            self.assertIn("changed while it was read", found.reasons[0])
            self.assertEqual(self.assert_consistent(archive), [])

    def test_third_copy(self) -> None:
        """A whole copy that comes between the check and the commit of one that is cut off stays."""
        archive = self.open()
        _, data = image(ExplicitVRLittleEndian)
        self.assertIsNone(self.sent(archive, data[:-100]))
        original = archive.store.write_temporaries

        def write(*arguments: Any) -> Any:
            self.patch(archive.store, "write_temporaries", original)
            self.assertIsNone(self.sent(archive, data))
            return original(*arguments)

        self.patch(archive.store, "write_temporaries", write)
        self.assertIsInstance(self.sent(archive, data[:-50]), IncompleteInstance)
        self.assertEqual(self.stored(), data)
        self.assert_consistent(archive)

    def test_same_instance_in_two_files(self) -> None:
        """The whole one of two files is in the archive, in any order of them."""
        for names in ("ab", "ba"):
            self.root = Path(self.mktemp())
            archive = self.open()
            folder = Path(self.mktemp())
            folder.mkdir()
            _, data = image(ImplicitVRLittleEndian, 5000)
            (folder / names[0]).write_bytes(as_file(ImplicitVRLittleEndian, data))
            (folder / names[1]).write_bytes(as_file(ImplicitVRLittleEndian, data[:-200]))
            found = import_folder(archive, folder)
            self.assertEqual(found.seen, 2)
            self.assertEqual(self.stored(), data)
            self.assertEqual(self.assert_consistent(archive), list(self.root.glob("*/*/*.dcm")))

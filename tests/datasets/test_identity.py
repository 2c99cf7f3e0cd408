"""
The identity of an instance in a file is that of its data set, whatever its File Meta Information says.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import Status, build_context, evt
from dicomtwist.datasets import encode_dataset
from dicomtwist.datasets.identity import IDENTITY_LENGTH, identify, instance_uids, read_identity
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta
from dicomtwist.tools.files.file_scanner import Scanner
from dicomtwist.tools.runners.commit import References
from tests.memory import CT, MemoryTestCase

SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
]


def made(sop_class: str | None = CT, sop_instance: str | None = "1.2.3.4", **elements: Any) -> Dataset:
    """Return a data set with elements before and behind the UIDs."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    if sop_class is not None:
        dataset.SOPClassUID = sop_class
    if sop_instance is not None:
        dataset.SOPInstanceUID = sop_instance
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = "1.9", "1.9.9"
    dataset.SourceImageSequence = [item]
    dataset.PatientName = "Doe^Jane"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


class UIDs(SynchronousTestCase):
    def test_each_transfer_syntax(self) -> None:
        """The UIDs are found in any encoding, with a sequence in front of them, and if one of them is missing."""
        language = Dataset()
        language.CodeValue, language.SOPInstanceUID = "en", "1.8"
        for syntax in SYNTAXES:
            cases: list[dict[str, Any]] = [{}, {"LanguageCodeSequence": [language]}]
            for elements in cases:
                for expected in ((CT, "1.2.3.4"), (CT, None), (None, "1.2"), (None, None)):
                    data = encode_dataset(made(*expected, **elements), syntax)
                    found = instance_uids(data, str(syntax))
                    self.assertEqual(found, tuple(uid or "" for uid in expected), (syntax, elements))

    def test_undefined_length_in_front(self) -> None:
        """A sequence of undefined length in front of the UIDs, with UIDs of its own, is skipped."""
        dataset = made()
        item = Dataset()
        item.SOPClassUID, item.SOPInstanceUID = "1.9", "1.9.9"
        item.is_undefined_length_sequence_item = True
        dataset.LanguageCodeSequence = [item]
        dataset["LanguageCodeSequence"].is_undefined_length = True
        for syntax in SYNTAXES:
            self.assertEqual(instance_uids(encode_dataset(dataset, syntax), str(syntax)), (CT, "1.2.3.4"))

    @settings(deadline=None, max_examples=100)
    @given(st.sampled_from(SYNTAXES), st.data())
    def test_any_bytes(self, syntax: str, data: st.DataObject) -> None:
        """Nothing raises, whatever the bytes, however they are cut off."""
        encoded = bytearray(encode_dataset(made(), syntax))
        for _ in range(data.draw(st.integers(0, 3))):
            encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
        found = instance_uids(memoryview(encoded)[: data.draw(st.integers(0, len(encoded)))], str(syntax))
        self.assertTrue(all(isinstance(uid, str) for uid in found))

    def test_identify(self) -> None:
        """The data set takes precedence; what it lacks, or is not known for want of a transfer syntax, comes from the meta."""
        for syntax, dataset, expected in (
            (str(ExplicitVRLittleEndian), made(), (CT, "1.2.3.4")),
            (str(ExplicitVRLittleEndian), made(None), ("1.7", "1.2.3.4")),
            (str(ExplicitVRLittleEndian), made(None, None), ("1.7", "1.7.7")),
            ("", made(), ("1.7", "1.7.7")),
        ):
            meta = identify(FileMeta("1.7", "1.7.7", syntax), encode_dataset(dataset, ExplicitVRLittleEndian))
            self.assertEqual((meta.media_storage_sop_class_uid, meta.media_storage_sop_instance_uid), expected)

    def test_read(self) -> None:
        """A file is read as far as its UIDs, at the most; one that is not DICOM is refused."""
        data = encode_dataset(made(), ExplicitVRLittleEndian) + os.urandom(3 * IDENTITY_LENGTH)
        file = BytesIO(encode_preamble_and_meta(FileMeta("1.7", "1.7.7", str(ExplicitVRLittleEndian), "1.2")) + data)
        self.assertEqual(read_identity(file).media_storage_sop_instance_uid, "1.2.3.4")
        self.assertLess(file.tell(), 2 * IDENTITY_LENGTH)
        self.assertRaises(NotDicomFile, read_identity, BytesIO(b"nothing"))


class Sending(MemoryTestCase):
    """C-STORE of a file sends the UIDs of its data set."""

    def send(self, syntax: str, meta: FileMeta, *forms: str) -> list[tuple[str, str]]:
        """Send a file in several forms; return the UIDs of the requests."""
        seen: list[tuple[str, str]] = []

        def keep(event: evt.StoreEvent) -> int:
            request = event.request
            seen.append((request.affected_sop_class_uid, request.affected_sop_instance_uid))
            return 0

        self.scu.requested_contexts = self.scp.supported_contexts = [build_context(CT, syntax)]
        association, _ = self.both((evt.EVT_C_STORE, keep))
        content = encode_preamble_and_meta(meta) + encode_dataset(
            made(EncapsulatedDocument=b"\1\2" * 1_000_000), syntax
        )
        path = Path(self.mktemp())
        path.write_bytes(content)
        for what in (str(path), path, content, BytesIO(content)):
            sending = association.send_c_store(what)
            status = self.network.result_of(sending)
            assert isinstance(status, Status)
            self.assertEqual(status, 0)
        return seen

    def test_explicit(self) -> None:
        syntax = str(ExplicitVRLittleEndian)
        self.assertEqual(self.send(syntax, FileMeta("1.7", "1.7.7", syntax, "1.2")), [(CT, "1.2.3.4")] * 4)

    def test_implicit(self) -> None:
        syntax = str(ImplicitVRLittleEndian)
        self.assertEqual(self.send(syntax, FileMeta("1.7", "1.7.7", syntax, "1.2")), [(CT, "1.2.3.4")] * 4)

    def test_no_transfer_syntax(self) -> None:
        """A file that does not say how its data set is encoded is refused in true words, and nothing is sent."""
        association, _ = self.both()
        content = bytes(128) + b"DICM\2\0\2\0UI\4\0001.2\0" + encode_dataset(made(), ExplicitVRLittleEndian)
        reason = self.network.result_of(association.send_c_store(content).addErrback(lambda failure: failure.value))
        self.assertIsInstance(reason, NotDicomFile)
        self.assertIn("no Transfer Syntax UID", str(reason))
        self.assertTrue(association.is_established)


class Tools(SynchronousTestCase):
    """``dicomtwist store`` and ``commit`` take the UIDs of the data set as well."""

    def files(self) -> Path:
        """Return a folder of files whose File Meta Information is wrong, lacks the UIDs, and lacks the transfer syntax."""
        folder = Path(self.mktemp())
        folder.mkdir()
        syntax = str(ExplicitVRLittleEndian)
        data = encode_dataset(made(), syntax)
        (folder / "a").write_bytes(encode_preamble_and_meta(FileMeta("1.7", "1.7.7", syntax, "1.2")) + data)
        element = b"\2\0\x10\0UI" + bytes([len(syntax) + 1, 0]) + syntax.encode() + b"\0"
        (folder / "b").write_bytes(bytes(128) + b"DICM" + element + data)
        (folder / "c").write_bytes(bytes(128) + b"DICM" + b"\2\0\2\0UI\4\x001.7\0" + data)
        return folder

    def test_store(self) -> None:
        batch = Scanner([str(self.files())], lambda instance: False).next_batch()
        assert batch is not None
        self.assertEqual([one.requirement for one in batch.instances], [(CT, str(ExplicitVRLittleEndian))] * 2)
        (unreadable,) = batch.unreadable
        self.assertIn("no Transfer Syntax UID", unreadable.reason)

    def test_commit(self) -> None:
        folder = self.files()
        (folder / "c").unlink()
        batch = References([str(folder)], None).next_batch()
        assert batch is not None
        self.assertEqual({uid: sop_class for uid, (sop_class, _) in batch.references.items()}, {"1.2.3.4": CT})

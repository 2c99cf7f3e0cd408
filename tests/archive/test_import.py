"""
The import of files whose File Meta Information disagrees with their data sets, or lacks elements.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomtwist.archive.folder_import import import_folder
from dicomtwist.datasets import encode_dataset
from dicomtwist.part10 import FileMeta, read_file_meta
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID
from tests.archive.samples import SECONDARY_CAPTURE, dataset, encoded
from tests.archive.test_archive import ArchiveCase


def bare_meta(meta: FileMeta) -> bytes:
    """Return File Meta Information with the elements that are not empty, and nothing else, not even a group length."""
    parts = [bytes(128), b"DICM"]
    for element, vr, value in (
        (0x02, b"UI", meta.media_storage_sop_class_uid),
        (0x03, b"UI", meta.media_storage_sop_instance_uid),
        (0x10, b"UI", meta.transfer_syntax_uid),
        (0x16, b"AE", meta.source_ae_title),
        (0x17, b"AE", meta.sending_ae_title),
    ):
        if value:
            raw = value.encode("latin-1")
            raw += b"\0" * (len(raw) & 1)
            parts.append(struct.pack("<HH2sH", 2, element, vr, len(raw)) + raw)
    return b"".join(parts)


class Import(ArchiveCase):
    def test_import_of_wrong_meta(self) -> None:
        """
        New File Meta Information, with the UIDs of the data set, is written for a file whose own has others, or lacks them; a
        file that could not be sent is skipped with the reason.
        """
        source = Path(self.mktemp())
        source.mkdir()
        titles = FileMeta("1.2.9", "1.2.9.9", str(ExplicitVRLittleEndian), source_ae_title="CT1", sending_ae_title="GÄ")
        for number, (syntax, meta) in enumerate(
            (
                (ExplicitVRLittleEndian, titles),
                (ImplicitVRLittleEndian, FileMeta("", "", str(ImplicitVRLittleEndian))),
                (ExplicitVRBigEndian, FileMeta("", "old", str(ExplicitVRBigEndian))),
                (DeflatedExplicitVRLittleEndian, FileMeta("x", "1.2", str(DeflatedExplicitVRLittleEndian))),
            )
        ):
            for size in (10, 2 << 20):
                made = dataset(number, series=size)
                made.add_new(0x7FE00010, "OB", os.urandom(size))
                path = source / f"{number} {size}"
                path.write_bytes(b"".join((bare_meta(meta), encode_dataset(made, syntax))))
        (source / "no syntax").write_bytes(bare_meta(FileMeta("1.2", "1.3")) + encoded(dataset(7))[1][1])
        (source / "odd syntax").write_bytes(
            bare_meta(FileMeta("1.2", "1.3", "explicit")) + encode_dataset(dataset(8), ExplicitVRLittleEndian)
        )
        (source / "no class").write_bytes(
            bare_meta(FileMeta("", "1.3", str(ExplicitVRLittleEndian)))
            + encode_dataset(dataset(8, SOPClassUID=""), ExplicitVRLittleEndian)
        )
        archive = self.open()
        found = import_folder(archive, source)
        self.assertEqual((found.kept, found.skipped, found.failed), (8, 3, 0), found.reasons)
        self.assertIn("no Transfer Syntax UID", "".join(found.reasons))
        self.assertEqual(len(self.assert_consistent(archive)), 8)
        for path in archive.root.glob("*/*/*.dcm"):
            with path.open("rb") as file:
                meta, _ = read_file_meta(file)
            read = dcmread(path)
            self.assertEqual(meta.media_storage_sop_class_uid, SECONDARY_CAPTURE)
            self.assertEqual(meta.media_storage_sop_instance_uid, read.SOPInstanceUID)
            self.assertEqual(meta.implementation_class_uid, IMPLEMENTATION_CLASS_UID)
            self.assertEqual(path.stem, read.SOPInstanceUID)

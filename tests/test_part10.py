"""File Meta Information: written data reads back, here and in pydicom, and wrong data is refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pydicom
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.part10 import FileMeta, NotDicomFile, decode_uid, encode_preamble_and_meta, read_file_meta

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"

FULL = FileMeta(
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.3.4",
    "1.2.840.10008.1.2.1",
    "1.2.3",
    "NAME_1",
    "SRC",
    "SENDER",
    "RECEIVER",
)


def element(number: int, vr: bytes, value: bytes) -> bytes:
    if vr in (b"OB", b"UN"):
        return struct.pack("<HH2sHI", 2, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def part10(*elements: bytes) -> io.BytesIO:
    return io.BytesIO(bytes(128) + b"DICM" + b"".join(elements))


SYNTAX = element(0x10, b"UI", b"1.2.840.10008.1.2\0")
DATA = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"


class Writing(SynchronousTestCase):
    def test_pydicom_reads_it(self) -> None:
        encoded = encode_preamble_and_meta(FULL)
        meta = pydicom.dcmread(io.BytesIO(encoded + DATA)).file_meta
        self.assertEqual(encoded[:132], bytes(128) + b"DICM")
        self.assertEqual(meta.FileMetaInformationGroupLength, len(encoded) - 144)
        self.assertEqual(meta.FileMetaInformationVersion, b"\0\1")
        self.assertEqual(meta.MediaStorageSOPClassUID, FULL.media_storage_sop_class_uid)
        self.assertEqual(meta.MediaStorageSOPInstanceUID, FULL.media_storage_sop_instance_uid)
        self.assertEqual(meta.TransferSyntaxUID, FULL.transfer_syntax_uid)
        self.assertEqual(meta.ImplementationClassUID, FULL.implementation_class_uid)
        self.assertEqual(meta.ImplementationVersionName, "NAME_1")
        self.assertEqual(meta.SourceApplicationEntityTitle, "SRC")
        self.assertEqual(meta.SendingApplicationEntityTitle, "SENDER")
        self.assertEqual(meta.ReceivingApplicationEntityTitle, "RECEIVER")

    def test_padding(self) -> None:
        encoded = encode_preamble_and_meta(FULL)
        self.assertIn(b"UI\x08\x001.2.3.4\0", encoded)
        self.assertIn(b"AE\x04\x00SRC ", encoded)

    def test_empty_options_are_left_out(self) -> None:
        encoded = encode_preamble_and_meta(FileMeta("1.2", "1.3", "1.4", "1.5"))
        self.assertNotIn(b"SH", encoded)
        self.assertNotIn(b"AE", encoded)

    def test_what_cannot_be_written(self) -> None:
        for change in (
            {"transfer_syntax_uid": ""},
            {"media_storage_sop_instance_uid": "1" * 65},
            {"implementation_class_uid": "1.\u0662"},
            {"source_ae_title": "A" * 17},
            {"source_ae_title": "A\r\nB"},
            {"sending_ae_title": "\x1b[2J"},
            {"implementation_version_name": "N" * 17},
        ):
            fields = {name: getattr(FULL, name) for name in FileMeta.__slots__} | change
            self.assertRaises(ValueError, encode_preamble_and_meta, FileMeta(**fields))

    @given(
        st.lists(st.text("0123456789.", min_size=1, max_size=64), min_size=4, max_size=4),
        st.lists(st.text("ABCxyz_09-", max_size=16), min_size=4, max_size=4),
    )
    def test_round_trip(self, uids: list[str], texts: list[str]) -> None:
        meta = FileMeta(*uids, *texts)
        encoded = encode_preamble_and_meta(meta)
        file = io.BytesIO(encoded + DATA)
        self.assertEqual(read_file_meta(file), (meta, len(encoded)))
        self.assertEqual(file.read(), DATA)


class Reading(SynchronousTestCase):
    def test_shipped_files(self) -> None:
        count = 0
        for path in sorted(SHIPPED.rglob("*.dcm")):
            expected = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            if not expected.preamble or not expected.file_meta:
                with path.open("rb") as file:
                    self.assertRaises(NotDicomFile, read_file_meta, file)
                continue
            with path.open("rb") as file:
                meta, offset = read_file_meta(file)
                self.assertEqual(file.tell(), offset)
            self.assertEqual(meta.transfer_syntax_uid, expected.file_meta.get("TransferSyntaxUID", ""), path)
            self.assertEqual(
                meta.media_storage_sop_instance_uid,
                expected.file_meta.get("MediaStorageSOPInstanceUID", ""),
                path,
            )
            count += 1
        self.assertGreater(count, 50)

    def test_only_the_front_is_read(self) -> None:
        class Counting(io.BytesIO):
            asked = 0

            def read(self, size: int | None = -1) -> bytes:
                assert size is not None and size >= 0
                self.asked += size
                return super().read(size)

        file = Counting(encode_preamble_and_meta(FULL) + bytes(10_000_000))
        read_file_meta(file)
        self.assertLess(file.asked, 10_000)

    def test_a_raw_file_may_give_less_than_asked(self) -> None:
        class Slow(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                return super().read(min(size or 0, 200))

        encoded = encode_preamble_and_meta(FULL)
        self.assertEqual(read_file_meta(Slow(encoded + DATA)), (FULL, len(encoded)))

    def test_group_length_missing_or_wrong(self) -> None:
        for length in (b"", *(element(0, b"UL", struct.pack("<I", n)) for n in (0, 5, 26, 4000, 0xFFFFFFFF))):
            file = part10(length, SYNTAX, element(0x16, b"AE", b"SRC "), DATA)
            meta, _ = read_file_meta(file)
            self.assertEqual((meta.transfer_syntax_uid, meta.source_ae_title), ("1.2.840.10008.1.2", "SRC"))
            self.assertEqual(file.read(), DATA)

    def test_deflated_data_that_looks_like_group_0002(self) -> None:
        syntax = element(0x10, b"UI", b"1.2.840.10008.1.2.1.99")
        file = part10(element(0, b"UL", struct.pack("<I", len(syntax))), syntax, b"\x02\x00AB" * 4)
        read_file_meta(file)
        self.assertEqual(file.read(), b"\x02\x00AB" * 4)

    def test_unknown_and_private_elements(self) -> None:
        file = part10(
            element(0x00F0, b"UN", b"?" * 9000),
            SYNTAX,
            element(0x0100, b"UI", b"1.2.3\0"),
            element(0x0102, b"OB", bytes(30_000)),
            DATA,
        )
        self.assertEqual(read_file_meta(file)[0], FileMeta(transfer_syntax_uid="1.2.840.10008.1.2"))
        self.assertEqual(file.read(), DATA)

    def test_no_data_set_at_all(self) -> None:
        self.assertEqual(read_file_meta(part10(SYNTAX))[1], 132 + len(SYNTAX))

    def test_wrong_padding_is_removed(self) -> None:
        self.assertEqual(decode_uid(b" 1.2.3 \0"), "1.2.3")
        self.assertEqual(decode_uid(b"1.\xe9"), "1.\u00e9")

    def test_refused_with_the_reason(self) -> None:
        for content, reason in (
            (b"", "empty"),
            (b"hello", "5 bytes"),
            (b"GIF89a" * 100, "DICM"),
            (DATA + bytes(200), "bare data set"),
            (bytes(128) + b"DICM", "no File Meta Information"),
            (bytes(128) + b"DICM" + DATA, "no File Meta Information"),
            (bytes(128) + b"DICM" + SYNTAX[:-3], "ends inside"),
            (bytes(128) + b"DICM" + SYNTAX[:6], "ends inside"),
            (bytes(128) + b"DICM" + b"\x02\0\x10\0\x12\0\0\0" + bytes(20), "Value Representation"),
            (bytes(128) + b"DICM" + b"\x02\0\x02\x01OB\0\0\xff\xff\xff\xff", "undefined length"),
            (bytes(128) + b"DICM" + b"\x02\0\x02\x01OB\0\0\xfe\xff\xff\xff", "not accepted"),
            (bytes(128) + b"DICM" + element(0x102, b"OB", bytes(40_000)) * 2, "not accepted"),
        ):
            error = self.assertRaises(NotDicomFile, read_file_meta, io.BytesIO(content))
            self.assertIn(reason, str(error))

    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        try:
            _, offset = read_file_meta(part10(b"\x02\x00", data))
        except NotDicomFile:
            return
        self.assertLessEqual(offset, 134 + len(data))

    def test_a_real_file_is_positioned_at_its_data_set(self) -> None:
        with open(str(get_testdata_file("CT_small.dcm")), "rb") as file:
            read_file_meta(file)
            self.assertEqual(file.read(4), b"\x08\x00\x05\x00")

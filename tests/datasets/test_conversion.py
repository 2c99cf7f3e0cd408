"""The conversion to another uncompressed transfer syntax: texts keep their bytes, whatever character set they claim."""

from __future__ import annotations

import struct
from itertools import permutations, product
from unittest import TestCase

from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom._dicom_dict import DicomDictionary, RepeatersDictionary
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist.datasets.codec import decode_dataset, encode_dataset

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
#: Character sets, and texts that are not in them or that pydicom would write otherwise.
TEXTS = (
    (b"ISO_IR 192", b"M\xfcller^A "),
    (b"ISO 2022 IR 149 ", b"M\xfcller^A "),
    (b"\\ISO 2022 IR 87 ", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    (b"\\ISO 2022 IR 58 ", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab= "),
    (b"GB18030 ", b"\xff\xff\xff\xff^\x81"),
    (b"ISO_IR 13 ", b"\xd4\xcf\xc0\xde^\x80\xa0 "),
    (b"hex ", b"M\xfcller^A "),
    (b"a\0b ", b"M\xfcller^A "),
    (b"", b"M\xc3\xbcller^A"),
)


class Header:
    """Writes the elements of one transfer syntax."""

    def __init__(self, syntax: str) -> None:
        self.implicit = syntax == ImplicitVRLittleEndian
        self.order = ">" if syntax == ExplicitVRBigEndian else "<"

    def element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        group, number = tag >> 16, tag & 0xFFFF
        if self.implicit:
            return struct.pack("<HHI", group, number, len(value)) + value
        if vr in (b"SQ", b"UT", b"UC", b"UN"):
            return struct.pack(self.order + "HH2sHI", group, number, vr, 0, len(value)) + value
        return struct.pack(self.order + "HH2sH", group, number, vr, len(value)) + value

    def item(self, content: bytes) -> bytes:
        return struct.pack(self.order + "HHI", 0xFFFE, 0xE000, len(content)) + content

    def number(self, value: int) -> bytes:
        return struct.pack(self.order + "H", value)

    def dataset(self, charset: bytes, text: bytes) -> bytes:
        """A data set with each kind of text, and with numbers."""
        text += b" " * (len(text) & 1)
        inner = self.element(0x00080104, b"LO", text)
        return b"".join(
            (
                self.element(0x00080005, b"CS", charset),
                self.element(0x00080060, b"CS", b" ct\0"),
                self.element(0x00081032, b"SQ", self.item(inner)),
                self.element(0x00090010, b"LO", b"ACME"),
                self.element(0x00100010, b"PN", text),
                self.element(0x00100020, b"LO", b" 12\\"),
                self.element(0x00101030, b"DS", b"1.50e1\\2"),
                self.element(0x00104000, b"LT", text),
                self.element(0x00200013, b"IS", b"+007"),
                self.element(0x00280010, b"US", self.number(258)),
                self.element(0x00280103, b"US", self.number(1)),
                self.element(0x00280106, b"SS", self.number(0xFFFE)),
            )
        )


class Conversion(TestCase):
    """From each syntax to each other one."""

    def test_texts_keep_their_bytes(self) -> None:
        for charset, text in TEXTS:
            for source, target in permutations(SYNTAXES, 2):
                with self.subTest(charset=charset, source=source, target=target):
                    read = decode_dataset(Header(source).dataset(charset, text), source)
                    # Names of codecs of Python are no character sets, so nothing is claimed.
                    claimed = b"" if charset in (b"hex ", b"a\0b ") else charset
                    self.assertEqual(encode_dataset(read, target), Header(target).dataset(claimed, text))

    @given(st.sampled_from([charset for charset, _ in TEXTS[:6]]), st.binary(max_size=30), st.permutations(SYNTAXES))
    def test_any_bytes(self, charset: bytes, text: bytes, syntaxes: list[str]) -> None:
        source, target, _ = syntaxes
        read = decode_dataset(Header(source).dataset(charset, text), source)
        self.assertEqual(encode_dataset(read, target), Header(target).dataset(charset, text))

    def test_values_that_were_used(self) -> None:
        """A program may have looked at the values, and changed some."""
        for source, target in permutations(SYNTAXES, 2):
            read = decode_dataset(Header(source).dataset(b"ISO_IR 100", b"M\xfcller"), source)
            read.decode()
            read.PatientID = "1"
            again = decode_dataset(encode_dataset(read, target), target)
            self.assertEqual(
                (str(again.PatientName), again.PatientID, again.SmallestImagePixelValue), ("Müller", "1", -2)
            )

    def test_another_character_set(self) -> None:
        """A program may name another character set: pydicom writes the texts in it, those of items as well."""
        for source, target in permutations(SYNTAXES, 2):
            read = decode_dataset(Header(source).dataset(b"ISO_IR 100", b"M\xfcller"), source)
            read.SpecificCharacterSet = "ISO_IR 192"
            encoded = encode_dataset(read, target)
            self.assertEqual(encoded.count("Müller".encode()), 3)
            self.assertNotIn(b"M\xfcl", encoded)

    def test_odd_lengths_and_unknown_vrs(self) -> None:
        """A value of odd length is padded, an element of an unknown VR keeps its bytes."""
        data = b"\x10\0\x10\0PN\x03\0abc" + b"\x10\0\x20\0ZZ\4\0\x80abc"
        read = decode_dataset(data, ExplicitVRLittleEndian)
        self.assertEqual(
            encode_dataset(read, ImplicitVRLittleEndian), b"\x10\0\x10\0\4\0\0\0abc " + b"\x10\0\x20\0\x04\0\0\0\x80abc"
        )

    def test_the_original_is_not_changed(self) -> None:
        read = decode_dataset(
            Header(ExplicitVRLittleEndian).dataset(b"ISO_IR 100", b"M\xfcller"), ExplicitVRLittleEndian
        )
        read.add(DataElement(0x00281201, "OW", b"\1\0\2\0"))
        inner = Dataset()
        inner.add(DataElement(0x00281201, "OW", b"\1\0\2\0"))
        read.ReferencedStudySequence = [inner]
        before = encode_dataset(read, ExplicitVRLittleEndian)
        for target in (ExplicitVRBigEndian, ImplicitVRLittleEndian):
            encoded = encode_dataset(read, target)
            self.assertEqual(encoded.count(b"\0\1\0\2" if target == ExplicitVRBigEndian else b"\1\0\2\0"), 2)
        self.assertEqual(encode_dataset(read, ExplicitVRLittleEndian), before)

    def test_vrs_of_the_dictionary(self) -> None:
        """An element for which the dictionary has several VRs gets one of them, whatever is around it."""
        entries = {tag: vr for tag, (vr, *_) in DicomDictionary.items()}
        entries.update({int(mask.replace("x", "0"), 16): vr for mask, (vr, *_) in RepeatersDictionary.items()})
        source = Header(ImplicitVRLittleEndian)
        empty = source.element(0x00280103, b"US", b"") + source.element(0x00283002, b"US", b"")
        for tag, vr in entries.items():
            if " or " not in vr:
                continue
            element = source.element(tag, b"", b"\1\2\3\4")
            before = empty if tag > 0x00283002 else b""
            item = source.element(0x00081140, b"SQ", source.item(before + element))
            for content, target in product((before + element, item), (ExplicitVRLittleEndian, ExplicitVRBigEndian)):
                with self.subTest(tag=f"{tag:08X}", content=content, target=target):
                    encoded = encode_dataset(decode_dataset(content, ImplicitVRLittleEndian), target)
                    given = encoded[-8:-6] if encoded[-8:-6].isalpha() else encoded[-12:-10]
                    self.assertIn(given.decode(), vr.split(" or "))
                    swapped = target == ExplicitVRBigEndian
                    self.assertEqual(encoded[-4:], b"\2\1\4\3" if swapped else b"\1\2\3\4")

    def test_signs(self) -> None:
        """A retired element has numbers as the pixels have them, those of the data set around it if it is in an item."""
        source, target = Header(ImplicitVRLittleEndian), Header(ExplicitVRLittleEndian)
        for signed, vr in ((0, b"US"), (1, b"SS")):

            def dataset(header: Header, signed: int = signed, vr: bytes = vr) -> bytes:
                perimeter = header.element(0x00280071, vr, b"\xff\xff")
                item = header.element(0x00081140, b"SQ", header.item(perimeter))
                return item + perimeter + header.element(0x00280103, b"US", header.number(signed))

            read = decode_dataset(dataset(source), ImplicitVRLittleEndian)
            self.assertEqual(encode_dataset(read, ExplicitVRLittleEndian), dataset(target))

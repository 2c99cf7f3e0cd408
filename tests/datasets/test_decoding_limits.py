"""The limits on a data set that is decoded: bytes, elements, items and values, in every form."""

from __future__ import annotations

import encodings
import struct
from unittest import TestCase

from hypothesis import given
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomtwist.datasets.character_sets import TERMS
from dicomtwist.datasets.codec import DecodingLimits, decode_dataset, encode_dataset
from dicomtwist.datasets.identifier import DECODED_AT_ONCE, ELEMENTS_AT_ONCE, decode_small
from dicomtwist.errors import DataSetError, DataSetTooLong

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
LIMIT = 1000
USED = (*TERMS, "utf-8", "latin1", "utf-7", "", "hex", "UTF 8")
FEW = DecodingLimits(elements=LIMIT)
_UNDEFINED = 0xFFFFFFFF


def item(content: bytes = b"", *, defined: bool = True, tag: bytes = b"\xfe\xff\x00\xe0") -> bytes:
    """An item of a sequence, in little endian."""
    if defined:
        return tag + struct.pack("<I", len(content)) + content
    return tag + struct.pack("<I", _UNDEFINED) + content + b"\xfe\xff\x0d\xe0\0\0\0\0"


def implicit(tag: int, content: bytes, *, defined: bool = True) -> bytes:
    """An element in Implicit VR Little Endian."""
    length = len(content) if defined else _UNDEFINED
    end = b"" if defined else b"\xfe\xff\xdd\xe0\0\0\0\0"
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length) + content + end


def explicit(tag: int, vr: bytes, content: bytes, *, defined: bool = True) -> bytes:
    """An element with a long length in Explicit VR Little Endian."""
    length = len(content) if defined else _UNDEFINED
    end = b"" if defined else b"\xfe\xff\xdd\xe0\0\0\0\0"
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length) + content + end


def elements(dataset: Dataset) -> int:
    """How many elements and items *dataset* has."""
    count = 0
    for element in dataset:
        count += 1
        if element.VR == "SQ":
            count += sum(1 + elements(one) for one in element.value)
    return count


class Counted(TestCase):
    """Data sets with more elements and items than allowed are refused, before pydicom has made many of them."""

    def refused(self, data: bytes, syntax: str) -> None:
        with self.assertRaisesRegex(DataSetTooLong, "more than 1000 elements and items"):
            decode_dataset(data, syntax, FEW)

    def test_top_level(self) -> None:
        flat = b"".join(implicit(0x00100000 + number, b"") for number in range(1, LIMIT + 2))
        self.refused(flat, ImplicitVRLittleEndian)
        self.assertEqual(len(decode_dataset(flat[:-8], ImplicitVRLittleEndian, FEW)), LIMIT)

    def test_items(self) -> None:
        for inner in (b"", implicit(0x00081150, b"1.2 ")):
            for defined in (True, False):
                items = item(inner, defined=defined) * (LIMIT + 1)
                for outer in (True, False):
                    with self.subTest(inner=inner, defined=defined, outer=outer):
                        self.refused(implicit(0x00081199, items, defined=outer), ImplicitVRLittleEndian)
                        self.refused(explicit(0x00081199, b"SQ", item() * LIMIT, defined=outer), ExplicitVRLittleEndian)

    def test_sequences_that_only_the_dictionary_knows(self) -> None:
        """Of VR UN, of no VR, with items that do not look like items, of undefined length in a private element."""
        odd = item(tag=b"\x08\x00\x18\x00") * (LIMIT + 1)
        for data, syntax in (
            (implicit(0x00081199, odd), ImplicitVRLittleEndian),
            (explicit(0x00081199, b"UN", odd), ExplicitVRLittleEndian),
            (explicit(0x00081199, b"UN", item() * LIMIT), ExplicitVRLittleEndian),
            (explicit(0x00091199, b"UN", item() * LIMIT, defined=False), ExplicitVRLittleEndian),
            (implicit(0x00091199, item() * LIMIT, defined=False), ImplicitVRLittleEndian),
            (
                explicit(0x00290010, b"UN", b"SIEMENS MEDCOM HEADER ")
                + explicit(0x00291040, b"UN", item() * (LIMIT - 1)),
                ExplicitVRLittleEndian,
            ),
        ):
            with self.subTest(data=data[:16]):
                self.refused(data, syntax)

    def test_lengths_that_pass_the_end(self) -> None:
        """A length within a sequence that passes its end does not hide what is behind the sequence."""
        false = implicit(0x00081199, item(struct.pack("<HHI", 0x0008, 0x1150, 1 << 30)))
        self.refused(false + implicit(0x0040A730, item() * LIMIT), ImplicitVRLittleEndian)

    def test_many_sequences_with_an_empty_item(self) -> None:
        """Universal matching of sequences (PS3.4 C.2.2.2.6), whose values are as long as headers, counts exactly."""
        dates = b"".join(implicit(0x00111000 + at, b"20240101") for at in range(1, LIMIT + 1))
        self.assertEqual(len(decode_dataset(dates, ImplicitVRLittleEndian, FEW)), LIMIT)
        sequences = b"".join(
            implicit(tag, item()) for tag in (0x00081032, 0x00081110, 0x00081111, 0x00081120, 0x00081140)
        )
        self.assertEqual(elements(decode_dataset(sequences, ImplicitVRLittleEndian, DecodingLimits(elements=10))), 10)
        with self.assertRaises(DataSetTooLong):
            decode_dataset(sequences, ImplicitVRLittleEndian, DecodingLimits(elements=9))

    def test_levels(self) -> None:
        """Elements and items of all levels count."""
        inner = b""
        for _ in range(10):
            inner = implicit(0x00081199, item(inner) + item() * (LIMIT // 10))
        self.refused(inner, ImplicitVRLittleEndian)

    def test_deflated(self) -> None:
        """A deflated data set counts as it is when it is inflated."""
        dataset = Dataset()
        dataset.PatientComments = "x" * 100_000
        encoded = encode_dataset(dataset, DeflatedExplicitVRLittleEndian)
        self.assertLess(len(encoded), 1000)
        limits = DecodingLimits(length=50_000)
        with self.assertRaisesRegex(DataSetTooLong, "more than 50000 bytes"):
            decode_dataset(encoded, DeflatedExplicitVRLittleEndian, limits)
        with self.assertRaises(DataSetTooLong):
            decode_dataset(bytes(60_000), ExplicitVRLittleEndian, limits)

    def test_values(self) -> None:
        dataset = Dataset()
        dataset.SOPInstanceUID = ["1.2"] * 100
        for syntax in SYNTAXES:
            encoded = encode_dataset(dataset, syntax)
            self.assertEqual(len(decode_dataset(encoded, syntax, DecodingLimits(values=99)).SOPInstanceUID), 100)
            with self.assertRaisesRegex(DataSetTooLong, "more than 98 values"):
                decode_dataset(encoded, syntax, DecodingLimits(values=98))

    @given(
        st.recursive(st.just(()), lambda inner: st.lists(st.tuples(st.booleans(), inner), max_size=5), max_leaves=40)
    )
    def test_any_form(self, form: object) -> None:
        """Exactly the data sets that have more are refused, in each transfer syntax."""

        def make(form: object) -> Dataset:
            made = Dataset()
            made.PatientID = "12345678"
            items = []
            for is_undefined, inner in form:  # type: ignore[attr-defined]
                one = make(inner)
                one.is_undefined_length_sequence_item = is_undefined
                items.append(one)
            if items:
                made.add(DataElement(0x00081199, "SQ", items, is_undefined_length=len(items) % 2 == 0))
            return made

        dataset = make(form)
        count = elements(dataset)
        for syntax in SYNTAXES:
            encoded = encode_dataset(dataset, syntax)
            self.assertEqual(elements(decode_dataset(encoded, syntax, DecodingLimits(elements=count))), count)
            if count > 1:
                with self.assertRaises(DataSetTooLong):
                    decode_dataset(encoded, syntax, DecodingLimits(elements=count - 1))

    @given(st.binary(max_size=300), st.sampled_from(SYNTAXES))
    def test_any_bytes(self, data: bytes, syntax: str) -> None:
        """Any bytes are decoded, or refused with one kind of error, and never have more elements than allowed."""
        try:
            dataset = decode_dataset(data, syntax, DecodingLimits(elements=5))
        except DataSetError:
            return
        count = len(dataset)
        self.assertLessEqual(count, 5)


class CharacterSets(TestCase):
    """A Specific Character Set that is the name of a codec of Python is none, wherever it is."""

    JUNK = (
        b"hex ",
        b"idna",
        b"punycode",
        b"undefined ",
        b"rot13 ",
        b"zlib",
        b"ISO_IR 100\\hex ",
        b"ISO 2022 IR 149\\zlib",
    )

    def used(self, dataset: Dataset) -> list[str]:
        """Use each value; return the names of patients."""
        names = [str(element.value) for element in dataset.iterall() if element.tag == 0x00100010]
        dataset.decode()
        self.assertIn("Patient", str(dataset))
        encode_dataset(dataset, ExplicitVRLittleEndian)
        return names

    def test_anywhere(self) -> None:
        name = implicit(0x00100010, b"\xfcabc^x")
        for junk in self.JUNK:
            junk_set = implicit(0x00080005, junk)
            both = junk_set + name
            for defined in (True, False):

                def nested(content: bytes, tag: int, defined: bool = defined) -> bytes:
                    return implicit(tag, item(content, defined=defined), defined=defined)

                for data in (
                    both,
                    implicit(0x00080000, bytes(100_000)) + both,
                    nested(both, 0x00400100),
                    junk_set + nested(name, 0x00400100),
                    nested(junk_set + nested(name, 0x00400008), 0x00400100),
                    implicit(0x00080005, b"ISO_IR 192") + nested(nested(both, 0x00400008), 0x00400100),
                ):
                    with self.subTest(junk=junk, defined=defined, data=data[:80]):
                        # A byte that is not of the set that remains is lost in a Dataset of pydicom.
                        first = "\ufffd" if b"149" in junk else "\xfc"
                        self.assertEqual(self.used(decode_dataset(data, ImplicitVRLittleEndian)), [f"{first}abc^x"])

    def test_known_terms_inside(self) -> None:
        """An item with a character set of its own keeps it, below one that has none that is known."""
        inner = implicit(0x00400008, item(implicit(0x00080005, b"ISO_IR 192") + implicit(0x00100010, "\xfc".encode())))
        data = implicit(0x00080005, b"hex ") + implicit(0x00400100, item(inner))
        self.assertEqual(self.used(decode_dataset(data, ImplicitVRLittleEndian)), ["\xfc"])

    def test_python_learns_no_name(self) -> None:
        """Python keeps each name of a codec that it has looked up; a peer may send any number of them, in any place."""
        known = len(encodings._cache)
        name = implicit(0x00100010, b"\xfcabc^x")
        for number, value in enumerate((b"a\0b", b"\0hex", b"j\xfcnk" * 9000, b"ISO_IR 100\\nothing", b"8 bytes ")):
            value += b"%d" % number
            value += b" " * (len(value) & 1)
            short = struct.pack("<HH2sH", 8, 5, b"CS", len(value)) if len(value) < 65536 else b""
            explicit_name = struct.pack("<HH2sH", 0x10, 0x10, b"PN", 8) + b"\xfcabc^x  "
            for syntax, data in (
                (ImplicitVRLittleEndian, implicit(0x00080005, value) + name),
                (ImplicitVRLittleEndian, implicit(0x00080005, b"") + implicit(0x00080005, value) + name),
                (ExplicitVRLittleEndian, short + value + explicit_name),
                (ExplicitVRLittleEndian, explicit(0x00080005, b"UN", value) + explicit_name),
                (ExplicitVRLittleEndian, explicit(0x00080005, b"UN", b"") + short + value + explicit_name),
                (
                    ExplicitVRBigEndian,
                    struct.pack(">HH2sH", 8, 5, b"CS", len(value))
                    + value
                    + struct.pack(">HH2sH", 0x10, 0x10, b"PN", 8)
                    + b"\xfcabc^x  ",
                ),
            ):
                nested = implicit(0x00400100, item(data)) if syntax == ImplicitVRLittleEndian else None
                for whole in (data, nested):
                    if whole is not None:
                        with self.subTest(value=value[:10], data=whole[:20]):
                            self.assertEqual(self.used(decode_dataset(whole, syntax)), ["\xfcabc^x"])
        for undefined in (
            implicit(0x00080005, b"a\0b", defined=False),
            explicit(0x00080005, b"UN", b"a\0b", defined=False),
        ):
            with self.assertRaises(DataSetError):
                decode_dataset(undefined, ImplicitVRLittleEndian)
        self.assertEqual(len(encodings._cache), known)

    @given(
        st.lists(st.sampled_from(USED), min_size=1, max_size=3),
        st.binary(max_size=40),
        st.booleans(),
    )
    def test_any_text_can_be_used(self, terms: list[str], text: bytes, is_nested: bool) -> None:
        data = implicit(0x00080005, "\\".join(terms).encode()) + implicit(0x00100010, text + b"^")
        if is_nested:
            data = implicit(0x00400100, item(data)) + implicit(0x00104000, b"Patient ")
        self.used(decode_dataset(data, ImplicitVRLittleEndian))


class AtOnce(TestCase):
    """The data sets that the reactor thread decodes itself."""

    def test_small(self) -> None:
        dataset = Dataset()
        dataset.PatientID = "1"
        encoded = encode_dataset(dataset, ExplicitVRLittleEndian)
        self.assertEqual(decode_small(encoded, ExplicitVRLittleEndian), dataset)

    def test_larger(self) -> None:
        """``None`` for what takes longer, the error for what the limits do not allow."""
        many = implicit(0x00081199, item() * (ELEMENTS_AT_ONCE + 1))
        self.assertIsNone(decode_small(many, ImplicitVRLittleEndian))
        self.assertIsNone(decode_small(many, ImplicitVRLittleEndian, FEW))
        values = implicit(0x00080018, b"1\\" * (ELEMENTS_AT_ONCE + 1))
        self.assertIsNone(decode_small(values, ImplicitVRLittleEndian))
        long = implicit(0x00104000, b" " * DECODED_AT_ONCE)
        self.assertIsNone(decode_small(long, ImplicitVRLittleEndian))
        with self.assertRaises(DataSetTooLong):
            decode_small(many, ImplicitVRLittleEndian, DecodingLimits(10_000, 100, 100))
        with self.assertRaises(DataSetError):
            decode_small(b"\x08\x00", ImplicitVRLittleEndian, FEW)


class Encoding(TestCase):
    """Data sets that a program made and that are nested too deep are refused at once when they are encoded."""

    def test_depth(self) -> None:
        for depth in (64, 65, 400, 5000):
            dataset = inner = Dataset()
            for _ in range(depth):
                item = Dataset()
                inner.ReferencedSeriesSequence = [item]
                inner = item
            if depth == 64:
                self.assertGreater(len(encode_dataset(dataset, ExplicitVRLittleEndian)), depth)
            else:
                self.assertRaises(DataSetError, encode_dataset, dataset, ExplicitVRLittleEndian)

    def test_a_data_set_in_itself(self) -> None:
        dataset = Dataset()
        dataset.ReferencedSeriesSequence = dataset.ReferencedStudySequence = [dataset, dataset]
        with self.assertRaises(DataSetError) as raised:
            encode_dataset(dataset, ExplicitVRLittleEndian)
        self.assertIn("nested deeper", str(raised.exception))

"""The header scanner against pydicom on real files, and against malformed and hostile bytes."""

from __future__ import annotations

import logging
import struct
import tracemalloc
import zlib
from itertools import product
from pathlib import Path

import pydicom
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner, decode_uid, scan
from dicomtwist.part10 import NotDicomFile, read_file_meta

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
SYNTAXES = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, "1.2.840.10008.1.2.4.50", "1.2.3")

STUDY, SERIES, NAME = 0x0020000D, 0x0020000E, 0x00100010
EVERYTHING = 0xFFFFFFFF

# A file of pydicom that is cut off in the middle of a wanted value.
CUT_OFF = {"MR_truncated.dcm", "rtplan_truncated.dcm"}

UNDEFINED = b"\xff\xff\xff\xff"
ITEM = b"\xfe\xff\x00\xe0"
END_ITEM = b"\xfe\xff\x0d\xe0\0\0\0\0"
END_SEQUENCE = b"\xfe\xff\xdd\xe0\0\0\0\0"
SQ = b"\x08\x00\x40\x11SQ\0\0"


def ui(tag: int, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"UI", len(value)) + value


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


TAIL = ui(STUDY, b"1.2\0") + ui(SERIES, b"1.3\0")
BOTH = {STUDY: b"1.2\0", SERIES: b"1.3\0"}


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def fed(scanner: HeaderScanner, data: bytes, chunk: int) -> dict[int, bytes]:
    for begin in range(0, len(data), chunk):
        if scanner.feed(memoryview(data)[begin : begin + chunk]):
            return scanner.values
    scanner.finish()
    return scanner.values


def raw_values(path: Path) -> dict[int, bytes]:
    """Return the raw value of each element outside sequences of undefined length, as pydicom reads it."""
    dataset = pydicom.dcmread(path)
    values: dict[int, bytes] = {}
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and raw.length != EVERYTHING:
            values[int(tag)] = raw.value or b""
    return values


class RealFiles(SynchronousTestCase):
    def setUp(self) -> None:
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_the_same_as_pydicom(self) -> None:
        count = 0
        for path in sorted(SHIPPED.rglob("*")):
            if path.is_dir() or path.name in CUT_OFF:
                continue
            try:
                with path.open("rb") as file:
                    meta, _ = read_file_meta(file)
                    data = file.read()
            except NotDicomFile:
                continue
            expected = raw_values(path)
            count += 1
            for chunk in (len(data), 1000, 7, 1):
                if chunk < 7 and len(data) > 50_000:
                    continue
                scanner = HeaderScanner(meta.transfer_syntax_uid, expected, max_value_length=1 << 30)
                self.assertEqual(fed(scanner, data, chunk), expected, f"{path.name} in {chunk}")
                header = {tag: value for tag, value in expected.items() if tag < 0x00280000}
                scanner = HeaderScanner(meta.transfer_syntax_uid, list(header))
                self.assertEqual(fed(scanner, data, chunk), header, f"{path.name} in {chunk}")
        self.assertGreater(count, 100)

    def test_whole_data_sets_end_where_they_end(self) -> None:
        for name in (
            "CT_small",
            "nested_priv_SQ",
            "JPEG2000-embedded-sequence-delimiter",
            "image_dfl",
            "UN_sequence",
        ):
            with (SHIPPED / f"{name}.dcm").open("rb") as file:
                meta, _ = read_file_meta(file)
                data = file.read()
            for chunk in (len(data), 1000, 7):
                scanner = HeaderScanner(meta.transfer_syntax_uid, (), stop_after=EVERYTHING)
                fed(scanner, data, chunk)
                self.assertEqual((scanner.values, scanner.done), ({}, True))

    def test_files_without_meta(self) -> None:
        for name, syntax in (("ExplVR_BigEndNoMeta", BIG_ENDIAN), ("ExplVR_LitEndNoMeta", EXPLICIT)):
            data = (SHIPPED / f"{name}.dcm").read_bytes()
            expected = pydicom.dcmread(SHIPPED / f"{name}.dcm", force=True).StudyInstanceUID
            self.assertEqual(decode_uid(scan(data, syntax, {STUDY})[STUDY]), expected)

    def test_what_is_cut_off_behind_the_header_does_not_matter(self) -> None:
        with (SHIPPED / "MR_truncated.dcm").open("rb") as file:
            meta, _ = read_file_meta(file)
            self.assertEqual(set(scan(file.read(), meta.transfer_syntax_uid, BOTH)), set(BOTH))


class Structure(SynchronousTestCase):
    """Each case is scanned whole and a byte at a time."""

    def check(self, data: bytes, syntax: str = EXPLICIT, expected: dict[int, bytes] = BOTH) -> None:
        for chunk in (max(len(data), 1), 5, 1):
            self.assertEqual(fed(HeaderScanner(syntax, BOTH), data, chunk), expected)

    def refuse(self, data: bytes, reason: str, syntax: str = EXPLICIT) -> None:
        for chunk in (max(len(data), 1), 5, 1):
            error = self.assertRaises(HeaderError, fed, HeaderScanner(syntax, BOTH), data, chunk)
            self.assertIn(reason, str(error))

    def test_sequences(self) -> None:
        inner = ui(STUDY, b"9.9\0")
        defined = ITEM + struct.pack("<I", len(inner)) + inner
        undefined = ITEM + UNDEFINED + inner + END_ITEM
        nested = ITEM + UNDEFINED + SQ + UNDEFINED + undefined + defined + END_SEQUENCE + inner + END_ITEM
        for items in (b"", defined, undefined, nested, defined * 3 + nested * 2):
            self.check(SQ + struct.pack("<I", len(items)) + items + TAIL)
            self.check(SQ + UNDEFINED + items + END_SEQUENCE + TAIL)
            self.check(SQ + UNDEFINED + items + END_ITEM + END_SEQUENCE + TAIL)
        self.check(SQ + UNDEFINED + ITEM + UNDEFINED + inner + END_SEQUENCE + TAIL)

    def test_un_of_undefined_length_is_implicit_within(self) -> None:
        inner = ITEM + UNDEFINED + implicit(STUDY, b"9.9\0") + implicit(0x4D4D4953, b"x" * 300) + END_ITEM
        un = b"\x09\x00\x10\x10UN\0\0"
        self.check(un + UNDEFINED + inner + END_SEQUENCE + TAIL)
        self.check(SQ + UNDEFINED + ITEM + UNDEFINED + un + UNDEFINED + inner + END_SEQUENCE + END_SEQUENCE + TAIL)

    def test_implicit(self) -> None:
        sequence = b"\x08\x00\x40\x11" + UNDEFINED + ITEM + UNDEFINED + implicit(STUDY, b"9") + END_ITEM + END_SEQUENCE
        self.check(sequence + implicit(STUDY, b"1.2\0") + implicit(SERIES, b"1.3\0"), IMPLICIT)

    def test_fragments_before_what_is_wanted(self) -> None:
        fragments = b"\x08\x00\x00\x10OB\0\0" + UNDEFINED + ITEM + b"\0\0\0\0" + ITEM + b"\x08\0\0\0" + END_SEQUENCE
        self.check(fragments + END_SEQUENCE + TAIL)
        self.refuse(b"\x08\x00\x00\x10OB\0\0" + UNDEFINED + ITEM + UNDEFINED + bytes(9), "item where none")

    def test_value_representations_that_are_none(self) -> None:
        self.check(b"\x08\x00\x01\x10ZZ\x04\x00abcd" + TAIL)  # unknown, written in the short form
        self.check(b"\x08\x00\x01\x10ZZ\0\0\x04\0\0\0abcd" + TAIL)  # unknown, in the form for new ones
        self.check(implicit(0x00081001, b"abcd") + TAIL)  # written implicitly
        self.check(b"\x08\x00\x01\x10UN\0\0\x04\0\0\0abcd" + TAIL)

    def test_absent_and_empty(self) -> None:
        self.check(b"", expected={})
        self.check(ui(STUDY, b""), expected={STUDY: b""})
        self.check(ui(0x00280010, b"10"), expected={})
        self.check(ui(STUDY, b"1.2\0") + ui(0x00280010, b"10"), expected={STUDY: b"1.2\0"})

    def test_deflated(self) -> None:
        self.check(deflate(TAIL), DEFLATED)
        self.check(deflate(ui(NAME, b"x" * 5000) + TAIL) + b"\0", DEFLATED)
        self.check(deflate(ui(STUDY, b"1.2\0")) + b"\0", DEFLATED, {STUDY: b"1.2\0"})
        self.refuse(TAIL, "deflated", DEFLATED)
        self.refuse(deflate(ui(NAME, b"x" * 50))[:-4], "cut off", DEFLATED)

    def test_lying_lengths(self) -> None:
        for length in (b"\xfe\xff\xff\xff", b"\x00\x01\x00\x00"):
            self.refuse(b"\x08\x00\x01\x10OB\0\0" + length + b"0123456789", "short")
            self.refuse(b"\x20\x00\x0d\x00" + length + b"0123456789", "short", IMPLICIT)
        self.refuse(b"\x08\x00\x01\x10UT\0\0" + UNDEFINED + bytes(9), "undefined length")

    def test_cut_off_anywhere(self) -> None:
        data = SQ + UNDEFINED + ITEM + UNDEFINED + ui(NAME, b"1\0") + END_ITEM + END_SEQUENCE + TAIL
        for end in range(1, len(data)):
            if end in (len(data) - 12, len(data) - 24):
                continue  # between two elements
            self.refuse(data[:end], "ends inside")

    def test_delimiters_and_items_out_of_place(self) -> None:
        self.refuse(END_SEQUENCE + TAIL, "outside any sequence")
        self.refuse(ITEM + UNDEFINED + TAIL, "outside any sequence")
        self.refuse(SQ + UNDEFINED + TAIL, "was due")
        self.refuse(SQ + UNDEFINED + ITEM + UNDEFINED + ITEM + UNDEFINED, "item where none")
        self.refuse(SQ + UNDEFINED + b"\xfe\xff\x01\xe0" + bytes(4), "no delimiter")

    def test_twice(self) -> None:
        self.refuse(ui(STUDY, b"1.2\0") + TAIL, "in the data set twice")

    def test_value_representations_of_two_bytes_that_are_none(self) -> None:
        """Private elements of senders that do not know their VR, in the short form."""
        for vr in (b"??", b"  ", b"--", b"un", b"xX", b"A1", b"~ ", b"\"'"):
            self.check(b"\x09\x00\x01\x10" + vr + b"\x04\x00abcd" + TAIL)
            self.check(b"\x09\x00\x01\x10" + vr + b"\x00\x00" + TAIL)
            for value in (b"\x02\x00ab", b"\x00\x00"):
                inner = b"\x09\x00\x01\x10" + vr + value
                self.check(SQ + UNDEFINED + ITEM + UNDEFINED + inner + END_ITEM + END_SEQUENCE + TAIL)
        # Split anywhere in its header, with many bytes behind it.
        data = b"\x09\x00\x01\x10??\x00\x00" + TAIL
        for at in range(len(data)):
            scanner = HeaderScanner(EXPLICIT, BOTH)
            done = scanner.feed(data[:at]) or scanner.feed(data[at:])
            self.assertEqual((done, scanner.values), (True, BOTH), at)
        # An implicitly encoded element whose length looks like such a VR.
        for length in (0x2020, 0x3F3F, 0x7E7E):
            self.check(implicit(0x00091001, bytes(length)) + TAIL)

    def test_long_headers_behind_empty_elements_of_odd_value_representations(self) -> None:
        """However the bytes are cut: both headers may be split."""
        odd = [b"\x09\x00\x01\x10" + vr + b"\x00\x00" for vr in (b"??", b"un", b"ZZ", b"OX")]
        nested = b"\x0b\x00\x00\x10SQ\0\0" + UNDEFINED + END_SEQUENCE
        behind = [b"\x0b\x00\x00\x10" + vr + b"\0\0\2\0\0\0ab" for vr in (b"OB", b"UN", b"SQ", b"UT")]
        for first in odd:
            for second in (*behind, nested, first.replace(b"\x09", b"\x0b") + behind[0].replace(b"\x0b", b"\x0d")):
                data = first + second + TAIL
                self.check(data)
                self.check(SQ + UNDEFINED + ITEM + UNDEFINED + first + second + END_ITEM + END_SEQUENCE + TAIL)
                for size in range(1, 24):
                    for start in range(size):
                        scanner = HeaderScanner(EXPLICIT, BOTH)
                        pieces = [data[:start], *(data[at : at + size] for at in range(start, len(data), size))]
                        self.assertTrue(any(scanner.feed(piece) for piece in pieces))
                        self.assertEqual(scanner.values, BOTH)

    def test_empty_elements_of_unknown_value_representations(self) -> None:
        """Their short form has eight bytes; the long form, which new Value Representations have, has twelve."""
        for vr in (b"ZZ", b"OX", b"XX", b"QQ"):
            for data in (
                b"\x09\x00\x01\x10" + vr + b"\x00\x00" + TAIL,
                b"\x09\x00\x01\x10" + vr + b"\x00\x00\x0a\x00\x00\x00UL\x04\x00\x08\x00\x00\x00" + TAIL,
                *(
                    b"\x09\x00\x01\x10" + vr + b"\x00\x00" + length.to_bytes(4, "little") + bytes(length) + TAIL
                    for length in (0, 1, 2, 3, 4, 5, 70000)
                ),
            ):
                self.check(data)
                inner = data[: len(data) - len(TAIL)]
                self.check(SQ + UNDEFINED + ITEM + UNDEFINED + inner + END_ITEM + END_SEQUENCE + TAIL)
        data = b"\x09\x00\x01\x10ZZ\x00\x00" + TAIL
        for at in range(len(data)):
            scanner = HeaderScanner(EXPLICIT, BOTH)
            done = scanner.feed(data[:at]) or scanner.feed(data[at:])
            self.assertEqual((done, scanner.values), (True, BOTH), at)
        # At the end of a data set: both lengths of a value that has fewer bytes than another header.
        for length in range(4):
            scanner = HeaderScanner(EXPLICIT, {NAME})
            scanner.feed(b"\x09\x00\x01\x10ZZ\x00\x00" + length.to_bytes(4, "little") + bytes(length))
            scanner.finish()

    REQUIRED = frozenset(BOTH)

    def required(self, data: bytes, expected: dict[int, bytes], syntax: str = EXPLICIT) -> None:
        for chunk in (max(len(data), 1), 5, 1):
            scanner = HeaderScanner(syntax, {*BOTH, NAME, 0x00280010}, required=self.REQUIRED)
            self.assertEqual(fed(scanner, data, chunk), expected, chunk)
            self.assertTrue(scanner.done)

    def test_out_of_order(self) -> None:
        """Required elements are found at any place, behind pixel data too."""
        name, rows, pixels = ui(NAME, b"Doe\0"), ui(0x00280010, b"10"), b"\xe0\x7f\x10\x00OW\0\0\x06\0\0\0abcdef"
        fragments = b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED + ITEM + bytes(4) + ITEM + b"\x02\0\0\0ab" + END_SEQUENCE
        everything = {**BOTH, NAME: b"Doe\0", 0x00280010: b"10"}
        for data in (
            rows + pixels + name + TAIL,
            fragments + TAIL + name + rows,
            rows + name + TAIL + fragments,
            name + rows + pixels + TAIL,
            TAIL + name + rows + pixels,
        ):
            self.required(data, everything)
        self.required(rows + pixels, {0x00280010: b"10"})
        self.required(deflate(rows + pixels + name + TAIL), everything, DEFLATED)

    def test_twice_where_uids_are_required(self) -> None:
        one, other = ui(NAME, b"Doe\0"), ui(NAME, b"Roe\0")
        self.required(one + other + TAIL, {**BOTH, NAME: b"Doe\0"})
        self.required(SQ + UNDEFINED + END_SEQUENCE + SQ + UNDEFINED + END_SEQUENCE + TAIL, dict(BOTH))
        scanner = HeaderScanner(EXPLICIT, BOTH, required=self.REQUIRED)
        error = self.assertRaises(HeaderError, scanner.feed, ui(STUDY, b"1.2\0") + ui(STUDY, b"1.3\0") + TAIL)
        self.assertIn("(0020,000D) is in the data set twice", str(error))

    def test_sequences_twice(self) -> None:
        sequence = 0x00081140
        for first in (b"", ITEM + bytes(4)):
            data = SQ + UNDEFINED + first + END_SEQUENCE + SQ + UNDEFINED + END_SEQUENCE + TAIL
            for chunk in (len(data), 3, 1):
                scanner = HeaderScanner(EXPLICIT, {*BOTH, sequence}, sequences=True, required=self.REQUIRED)
                self.assertEqual(fed(scanner, data, chunk), {**BOTH, sequence: first + END_SEQUENCE})

    def test_file_meta_information(self) -> None:
        meta = b"\x02\x00\x10\x00UI\x06\x001.2.3\0"
        self.refuse(meta + TAIL, "begins with File Meta Information")
        self.refuse(b"\x02\x00\x10\x00\x02\0\0\x001\0" + TAIL, "begins with File Meta Information", IMPLICIT)
        self.refuse(deflate(meta + TAIL), "begins with File Meta Information", DEFLATED)
        self.refuse(b"\x00\x02\x00\x10UI\x00\x02" + b"1\0", "begins with File Meta Information", BIG_ENDIAN)

    def test_a_corrupt_deflated_data_set(self) -> None:
        """Neither what zlib gives before an error, nor the error, depends on how the bytes came."""
        whole = zlib.compressobj(wbits=-15)
        front = whole.compress(TAIL + bytes(range(256)) * 40) + whole.flush(zlib.Z_FULL_FLUSH)
        for data in (b":0" + 10 * b"\0", front + b"\xff" * 9, front[: len(front) // 2] + b"\x07" * 50, TAIL):
            outcomes = set()
            for chunk in (len(data), 100, 7, 2, 1):
                scanner = HeaderScanner(DEFLATED, BOTH)
                try:
                    outcome = str(fed(scanner, data, chunk))
                except HeaderError as error:
                    outcome = f"{error} {scanner.values}"
                outcomes.add(outcome)
            self.assertEqual(len(outcomes), 1, outcomes)

    def test_an_error_stays(self) -> None:
        scanner = HeaderScanner(EXPLICIT, BOTH)
        self.assertRaises(HeaderError, scanner.feed, END_SEQUENCE)
        self.assertRaises(HeaderError, scanner.feed, TAIL)
        self.assertRaises(HeaderError, scanner.finish)
        self.assertFalse(scanner.done)


class Limits(SynchronousTestCase):
    def test_a_wanted_value_that_is_too_long(self) -> None:
        data = b"\x10\x00\x10\x00UT\0\0" + struct.pack("<I", 70_000) + bytes(70_000) + TAIL
        for chunk in (len(data), 1000):
            scanner = HeaderScanner(EXPLICIT, {NAME, STUDY, SERIES})
            self.assertEqual(fed(scanner, data, chunk), BOTH)
            self.assertEqual(scanner.skipped, {NAME: 70_000})

    def test_a_wanted_sequence_of_undefined_length(self) -> None:
        scanner = HeaderScanner(EXPLICIT, {0x00081140, STUDY})
        self.assertTrue(scanner.feed(SQ + UNDEFINED + END_SEQUENCE + TAIL))
        self.assertEqual((scanner.values, scanner.skipped), ({STUDY: b"1.2\0"}, {0x00081140: EVERYTHING}))

    def test_deep_nesting(self) -> None:
        level = SQ + UNDEFINED + ITEM + UNDEFINED
        shut = END_ITEM + END_SEQUENCE
        self.assertEqual(scan(level * 64 + shut * 64 + TAIL, EXPLICIT, BOTH), BOTH)
        error = self.assertRaises(HeaderError, scan, level * 10_000 + shut * 10_000 + TAIL, EXPLICIT, BOTH)
        self.assertIn("64 deep", str(error))
        deep = b""
        for _ in range(400):  # of defined length: stepped over whole, however deep
            deep = SQ + struct.pack("<I", len(deep) + 8) + ITEM + struct.pack("<I", len(deep)) + deep
        self.assertEqual(scan(deep + TAIL, EXPLICIT, BOTH), BOTH)

    def test_an_inflation_bomb(self) -> None:
        for bomb in (
            b"\x08\x00\x01\x10OB\0\0\xfe\xff\xff\xff" + bytes(200_000_000),
            b"\x08\x00\x01\x10CS\0\0" * 2_000_000,
        ):
            data = deflate(bomb)
            del bomb
            tracemalloc.start()
            error = self.assertRaises(HeaderError, scan, data, DEFLATED, BOTH)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            self.assertIn("inflates to more", str(error))
            self.assertLess(peak, 1_000_000)

    def test_inflated_bytes(self) -> None:
        data = deflate(ui(NAME, b"x" * 1000) + TAIL)
        self.assertEqual(fed(HeaderScanner(DEFLATED, BOTH), data, 10), BOTH)
        padding = struct.pack("<HH2sHI", 8, 8, b"OB", 0, 200_000) + bytes(range(250)) * 800
        scanner = HeaderScanner(DEFLATED, BOTH, max_inflated=100_000)
        self.assertRaises(HeaderError, fed, scanner, deflate(padding + TAIL), 1000)

    def test_nothing_is_allocated_by_declaration(self) -> None:
        tracemalloc.start()
        for length in (b"\xfe\xff\xff\xff", b"\x00\xff\x00\x00"):
            scanner = HeaderScanner(IMPLICIT, BOTH)
            scanner.feed(b"\x20\x00\x0d\x00" + length + b"1.2")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.assertLess(peak, 50_000)

    def test_nothing_wanted(self) -> None:
        self.assertTrue(HeaderScanner(EXPLICIT, ()).feed(b""))
        self.assertEqual(scan(b"anything", EXPLICIT, ()), {})


PIECES = st.sampled_from(
    [SQ + UNDEFINED, ITEM + UNDEFINED, ITEM + b"\x04\0\0\0", END_ITEM, END_SEQUENCE, TAIL, UNDEFINED,
     b"\x09\x00\x10\x10UN\0\0", implicit(0x00081140, b""), b"\xe0\x7f\x10\x00OB\0\0", ui(NAME, b"N^N ")]
)  # fmt: skip
NEARLY = st.lists(PIECES | st.binary(max_size=12), max_size=30).map(b"".join)


class Sequences(SynchronousTestCase):
    """Wanted sequences of undefined length, if the scanner takes sequences."""

    TAG = 0x00081140

    def content(self, implicit_vr: bool) -> bytes:
        """Return two items: one of undefined length that contains a sequence, and one of defined length."""
        value = implicit(NAME, b"A^B ") if implicit_vr else struct.pack("<HH2sH", 0x10, 0x10, b"PN", 4) + b"A^B "
        head = SQ[:4] if implicit_vr else SQ
        inner = head + UNDEFINED + ITEM + struct.pack("<I", len(value)) + value + END_SEQUENCE
        first = ITEM + UNDEFINED + inner + value + END_ITEM
        return first + ITEM + struct.pack("<I", len(value)) + value + END_SEQUENCE

    def test_in_any_pieces(self) -> None:
        for syntax in (IMPLICIT, EXPLICIT):
            content = self.content(syntax == IMPLICIT)
            head = SQ[:4] if syntax == IMPLICIT else SQ
            tail = implicit(STUDY, b"1.2\0") if syntax == IMPLICIT else ui(STUDY, b"1.2\0")
            data = head + UNDEFINED + content + tail
            for chunk in range(1, len(data) + 1):
                scanner = HeaderScanner(syntax, {self.TAG, STUDY}, sequences=True)
                self.assertEqual(fed(scanner, data, chunk), {self.TAG: content, STUDY: b"1.2\0"})
                self.assertEqual(scanner.skipped, {})
            last = HeaderScanner(syntax, {self.TAG}, sequences=True)
            self.assertEqual(fed(last, data, 7), {self.TAG: content})
            self.assertTrue(last.done)
            plain = HeaderScanner(syntax, {self.TAG, STUDY})
            self.assertEqual(fed(plain, data, 7), {STUDY: b"1.2\0"})
            self.assertEqual(plain.skipped, {self.TAG: EVERYTHING})

    def test_one_that_is_too_long(self) -> None:
        content = self.content(False)
        data = SQ + UNDEFINED + content + ui(STUDY, b"1.2\0")
        for chunk in (1, 5, 1000):
            short = HeaderScanner(EXPLICIT, {self.TAG, STUDY}, sequences=True, max_value_length=len(content) - 1)
            self.assertEqual(fed(short, data, chunk), {STUDY: b"1.2\0"})
            self.assertEqual(short.skipped, {self.TAG: EVERYTHING})
            exact = HeaderScanner(EXPLICIT, {self.TAG, STUDY}, sequences=True, max_value_length=len(content))
            self.assertIn(self.TAG, fed(exact, data, chunk))

    def test_one_that_is_cut_off(self) -> None:
        data = SQ + UNDEFINED + self.content(False)
        for end in range(len(SQ) + 4, len(data) - 8):
            scanner = HeaderScanner(EXPLICIT, {self.TAG, STUDY}, sequences=True)
            scanner.feed(data[:end])
            self.assertRaises(HeaderError, scanner.finish)
            self.assertEqual(scanner.values, {})


class AnyBytes(SynchronousTestCase):
    def test_empty_elements_of_odd_vrs_in_pieces(self) -> None:
        """An empty element in the short form, and what follows it, are read alike however they are cut."""
        odd = [
            struct.pack("<HH2sH", 0x0009, number, vr, 0)
            for number, vr in enumerate((b"ZZ", b"??", b"  ", b"un", b"QX"))
        ]
        study = b"\x20\x00\x0d\x00UI\x04\x001.23"
        known = [
            struct.pack("<HH2sHI", 0x0010, number, vr, 0, 4) + b"data"
            for number, vr in enumerate((b"OB", b"UN", b"UT"))
        ]
        known += [struct.pack("<HH2sH", 0x0010, 0x1000, vr, 0) for vr in (b"LO", b"US")]
        for first, second in product(odd, odd + known):
            for tail in (study, b"\x11\x00\x00\x00" + bytes(8) + study, bytes(4) + study, study[:9]):
                data = first + second + tail
                outcomes = set()
                for chunk in range(1, len(data) + 1):
                    scanner = HeaderScanner(EXPLICIT, {STUDY})
                    try:
                        outcomes.add((frozenset(fed(scanner, data, chunk).items()), scanner.done))
                    except HeaderError:
                        outcomes.add((frozenset(), False))
                self.assertEqual(len(outcomes), 1, data)

    @settings(max_examples=300, deadline=None)
    @given(
        st.binary(max_size=400) | NEARLY, st.sampled_from(SYNTAXES), st.integers(1, 40), st.booleans(), st.booleans()
    )
    @example(b":0" + 10 * b"\0", DEFLATED, 1, False, False)
    def test_only_header_errors_and_the_same_in_pieces(
        self, data: bytes, syntax: str, chunk: int, everything: bool, required: bool
    ) -> None:
        if syntax == DEFLATED and len(data) % 2:
            data = deflate(data)
        outcomes = []
        for size in (max(len(data), 1), chunk):
            scanner = HeaderScanner(
                syntax,
                {NAME, *BOTH},
                stop_after=EVERYTHING if everything else None,
                required=frozenset(BOTH) if required else frozenset(),
            )
            try:
                fed(scanner, data, size)
                failed = False
            except HeaderError:
                failed = True
            self.assertLess(len(scanner._pending), 16)  # a header, and the beginning of the next
            outcomes.append((failed, scanner.done, scanner.values, scanner.skipped))
        self.assertEqual(outcomes[0], outcomes[1])

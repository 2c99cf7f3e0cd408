"""Layouts against the header scanner: on real files, and on data sets that resemble an earlier one nearly or not at all."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pydicom
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.datasets import layout_cache
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.datasets.layout_cache import COST, MAX_HEADERS, MAX_LAYOUTS, ONE_OF, SAVINGS, Layouts
from dicomtwist.part10 import NotDicomFile, read_file_meta

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"

CLASS, INSTANCE, REFERENCED, NAME, STUDY, SERIES = (
    0x00080016,
    0x00080018,
    0x00081140,
    0x00100010,
    0x0020000D,
    0x0020000E,
)
WANTED = frozenset((CLASS, INSTANCE, REFERENCED, NAME, STUDY, SERIES))

ITEM_END = b"\xfe\xff\x0d\xe0\0\0\0\0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
UNDEFINED = 0xFFFFFFFF


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    length = len(value) if length is None else length
    long = vr in (b"SQ", b"UN", b"OB", b"OW")
    return head + (struct.pack("<xxL", length) if long else struct.pack("<H", length & 0xFFFF)) + value


def item(value: bytes, length: int | None = None) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(value) if length is None else length) + value


def dataset(number: bytes = b"1", name: bytes = b"Doe^J ", pixels: bytes = bytes(10)) -> bytes:
    inner = element(0x00081150, b"UI", b"1.2.3\0") + element(0x00081155, b"UI", b"1.9." + number)
    sequence = item(inner) + item(inner, UNDEFINED) + ITEM_END + SEQUENCE_END
    return b"".join(
        (
            element(CLASS, b"UI", b"1.2\0"),
            element(INSTANCE, b"UI", b"1.5." + number),
            element(REFERENCED, b"SQ", sequence, UNDEFINED),
            element(NAME, b"PN", name),
            element(0x00181030, b"LO", b"protocol"),
            element(STUDY, b"UI", b"1.3\0"),
            element(SERIES, b"UI", b"1.4\0"),
            element(0x7FE00010, b"OW", pixels),
        )
    )


TAIL = element(STUDY, b"UI", b"1.3\0") + element(SERIES, b"UI", b"1.4\0") + element(0x7FE00010, b"OW", bytes(4))


def scanned(data: bytes, syntax: str = EXPLICIT, wanted: frozenset[int] = WANTED) -> dict[int, bytes]:
    scanner = HeaderScanner(syntax, wanted, sequences=True)
    if not scanner.feed(data):
        scanner.finish()
    return scanner.values


def learned(*datasets: bytes, syntax: str = EXPLICIT, wanted: frozenset[int] = WANTED) -> Layouts:
    found = Layouts(wanted)
    for data in datasets:
        found.learn(data, syntax, scanned(data, syntax, wanted))
    return found


class LayoutTests(SynchronousTestCase):
    def test_another_instance_of_the_series(self) -> None:
        known = learned(dataset(b"1"))
        other = dataset(b"7", b"Roe^M ", bytes(5000))
        self.assertEqual(known.values(other, EXPLICIT), scanned(other))
        self.assertIn(b"1.9.7", scanned(other)[REFERENCED])

    def test_what_is_different_is_left_to_the_scanner(self) -> None:
        known = learned(dataset(b"1"))
        for other in (
            dataset(b"17"),
            dataset(name=b"Poe^E^A "),
            dataset().replace(b"LO", b"SH"),
            dataset().replace(element(STUDY, b"UI", b"1.3\0"), element(0x0020000C, b"UI", b"1.3\0")),
            dataset()[:-12],
            b"",
        ):
            self.assertIsNone(known.values(other, EXPLICIT))
        self.assertIsNone(known.values(dataset(), IMPLICIT))

    def test_a_data_set_that_ends_before_what_is_wanted_does(self) -> None:
        short = dataset()[: dataset().index(struct.pack("<HH", 0x20, 0x0D))]
        known = learned(short)
        self.assertEqual(known.values(short, EXPLICIT), scanned(short))
        # More follows, or could follow if only the beginning is there.
        self.assertIsNone(known.values(short, EXPLICIT, whole=False))
        self.assertIsNone(known.values(short + element(STUDY, b"UI", b"1.3\0"), EXPLICIT))

    def test_the_length_of_a_nested_element_behind_what_is_wanted_counts(self) -> None:
        nested = element(0x0040A170, b"SQ", SEQUENCE_END, UNDEFINED)
        data = element(REFERENCED, b"SQ", item(nested, UNDEFINED) + ITEM_END + SEQUENCE_END, UNDEFINED) + TAIL
        other = data.replace(nested, element(0x0040A170, b"SQ", SEQUENCE_END, 8))
        known = learned(data)
        self.assertEqual(known.values(data, EXPLICIT), scanned(data))
        self.assertIsNone(known.values(other, EXPLICIT))

    def test_the_beginning_is_enough(self) -> None:
        known = learned(dataset())
        beginning = memoryview(dataset(b"2", pixels=bytes(20)))[:-20]
        self.assertEqual(known.values(beginning, EXPLICIT, whole=False), scanned(bytes(beginning)))
        self.assertIsNone(known.values(beginning[:-1], EXPLICIT, whole=False))

    def test_what_is_not_learned(self) -> None:
        for data, syntax in (
            (
                dataset().replace(b"LO", b"ZZ\0\0").replace(b"\x08\0protocol", b"\x08\0\0\0protocol"),
                EXPLICIT,
            ),  # a VR nobody knows
            (element(INSTANCE, b"UI", b"1.5\0") + element(CLASS, b"UI", b"1.2\0"), EXPLICIT),  # out of order
            (element(REFERENCED, b"UN", SEQUENCE_END, UNDEFINED) + TAIL, EXPLICIT),
            (b"", EXPLICIT),
        ):
            known = Layouts(WANTED)
            known.learn(data, syntax, scanned(data))
            self.assertIsNone(known.values(data, syntax), data)
        known = Layouts(WANTED)
        known.learn(dataset(), DEFLATED, scanned(dataset()))
        self.assertIsNone(known.values(dataset(), DEFLATED))

    def test_what_the_scanner_did_not_find_is_not_found(self) -> None:
        """The scanner skips a value that is too long."""
        data = dataset(name=b"x" * 1000)
        scanner = HeaderScanner(EXPLICIT, WANTED, sequences=True, max_value_length=999)
        self.assertTrue(scanner.feed(data))
        known = Layouts(WANTED, 999)
        known.learn(data, EXPLICIT, scanner.values)
        self.assertIsNone(known.values(data, EXPLICIT))

    def test_more_headers_and_deeper_ones_than_are_remembered(self) -> None:
        many = b"".join(element(0x00090000 + number, b"LO", b"") for number in range(MAX_HEADERS))
        deep = element(REFERENCED, b"SQ", b"", UNDEFINED)
        nested = (deep + item(b"", UNDEFINED)) * (layout_cache.MAX_DEPTH + 1) + (ITEM_END + SEQUENCE_END) * (
            layout_cache.MAX_DEPTH + 1
        )
        for front in (many, nested):
            data = front + element(STUDY, b"UI", b"1.3\0") + element(0x7FE00010, b"OW", b"")
            self.assertIn(STUDY, scanned(data))
            self.assertIsNone(learned(data).values(data, EXPLICIT))

    def test_few_are_remembered_those_that_came_last(self) -> None:
        names = [b"x" * 2 * number for number in range(MAX_LAYOUTS + 1)]
        known = learned(*(dataset(name=name) for name in names[:-1]))
        for _ in range(COST):
            self.assertIsNotNone(known.values(dataset(name=names[0]), EXPLICIT))
        last = dataset(name=names[-1])
        known.learn(last, EXPLICIT, scanned(last))
        found = [known.values(dataset(name=name), EXPLICIT) is not None for name in names]
        self.assertEqual(found, [True, False] + [True] * (MAX_LAYOUTS - 1))

    def test_a_sender_of_whose_data_sets_no_two_are_alike(self) -> None:
        known = Layouts(WANTED)
        number = 0

        def learned_of(count: int) -> int:
            """Return how many of *count* data sets, all different, are learned."""
            nonlocal number
            learned = 0
            for _ in range(count):
                number += 1
                before = known._layouts
                data = dataset(name=b"x" * 2 * number)
                known.learn(data, EXPLICIT, scanned(data))
                learned += known._layouts is not before
            return learned

        first = SAVINGS // COST
        self.assertEqual(learned_of(first), first)
        self.assertEqual(learned_of(3 * ONE_OF), 3)
        # Each hit saves a scan.
        last = dataset(name=b"x" * 2 * number)
        for _ in range(2 * COST):
            self.assertIsNotNone(known.values(last, EXPLICIT))
        self.assertEqual(learned_of(ONE_OF - 1), 2)
        for _ in range(2 * SAVINGS):
            known.values(dataset(name=b"x" * 2 * (number - ONE_OF + 2)), EXPLICIT)
        self.assertEqual(learned_of(first), first)


class RealFileTests(SynchronousTestCase):
    def test_real_files(self) -> None:
        """A learned file that is changed outside its headers gives the values that the scanner finds in it."""
        generator = random.Random(1)
        plain = 0
        for path in sorted(SHIPPED.rglob("*.dcm")):
            with path.open("rb") as file:
                try:
                    meta, start = read_file_meta(file)
                except NotDicomFile:
                    continue
                file.seek(start)
                data = file.read()
            syntax = meta.transfer_syntax_uid
            try:
                values = scanned(data, syntax)
            except HeaderError:
                continue
            known = learned(data, syntax=syntax)
            if known.values(data, syntax) is None:
                continue
            plain += 1
            self.assertEqual(known.values(data, syntax), values, path)
            for _ in range(20):
                changed = bytearray(data)
                for _ in range(generator.randrange(1, 20)):
                    changed[generator.randrange(min(len(changed), 3000))] ^= generator.randrange(1, 256)
                self.check(known, bytes(changed), syntax)
        self.assertGreater(plain, 60)

    def check(self, known: Layouts, data: bytes, syntax: str) -> None:
        found = known.values(data, syntax)
        if found is not None:
            self.assertEqual(found, scanned(data, syntax))


VALUES = st.binary(max_size=6)
ELEMENTS = st.tuples(
    st.sampled_from([CLASS, INSTANCE, REFERENCED, 0x00090010, NAME, 0x00181030, STUDY, SERIES, 0x7FE00010]),
    st.sampled_from([b"UI", b"LO", b"SQ", b"UN", b"OB", b"XX"]),
    VALUES,
    st.sampled_from([None, None, None, 0, 4, UNDEFINED]),
)


class AnyDataSetTests(SynchronousTestCase):
    @given(
        st.lists(ELEMENTS, max_size=8),
        st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=4),
        st.booleans(),
    )
    @settings(max_examples=400, deadline=None)
    def test_as_the_scanner(
        self, elements: list[tuple[int, bytes, bytes, int | None]], changes: list[tuple[int, int]], ordered: bool
    ) -> None:
        data = b"".join(element(*one) for one in (sorted(elements, key=lambda one: one[0]) if ordered else elements))
        try:
            known = learned(data)
        except HeaderError:
            return
        changed = bytearray(data)
        for at, byte in changes:
            if at < len(changed):
                changed[at] = byte
        for candidate in (data, bytes(changed), bytes(changed[: len(changed) // 2])):
            found = known.values(candidate, EXPLICIT)
            if found is not None:
                self.assertEqual(found, scanned(candidate))
            found = known.values(candidate, EXPLICIT, whole=False)
            if found is not None:
                scanner = HeaderScanner(EXPLICIT, WANTED, sequences=True)
                self.assertTrue(scanner.feed(candidate))
                self.assertEqual(found, scanner.values)

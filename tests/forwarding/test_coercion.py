"""Headers that are changed, and spliced in front of pixel data that pass byte for byte."""

from __future__ import annotations

import re
import unittest
import zlib
from io import BytesIO
from pathlib import Path

import pydicom.data
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from dicomtwist.datasets.codec import decode_dataset, encode_dataset
from dicomtwist.errors import DataSetError
from dicomtwist.forwarding.coercion import BY_PATIENT, Coercion, Mapped, Replacement, check_target, check_values
from dicomtwist.forwarding.errors import CoercionError
from dicomtwist.forwarding.header import Edit, Splice, rewritten_meta
from dicomtwist.forwarding.paths import parse_path
from dicomtwist.forwarding.pseudonyms import Pseudonyms, shifted
from dicomtwist.part10 import FileMeta, NotDicomFile, read_file_meta

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG = "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.50"

PSEUDONYMS = Pseudonyms(b"a secret of sixteen or more bytes")
PIXELS = bytes(range(256)) * 4


def stored(**attributes: object) -> Dataset:
    """Return an instance with the least that it needs, and *attributes*."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.PatientName, dataset.PatientID = "Smith^Jane", "P1"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def with_pixels(dataset: Dataset) -> Dataset:
    dataset.BitsAllocated = 8
    dataset.add_new(0x7FE00010, "OB", PIXELS)
    return dataset


def spliced(data: bytes, syntax: str, edit: Edit, *, step: int = 0, drop_tail: bool = False) -> bytes:
    splice = Splice(syntax, edit, drop_tail=drop_tail)
    step = step or len(data)
    out = [bytes(one) for at in range(0, len(data), step) for one in splice.feed(data[at : at + step])]
    return b"".join(out + [bytes(one) for one in splice.finish()])


def coerced(dataset: Dataset, coercion: Coercion, syntax: str = EXPLICIT) -> Dataset:
    return decode_dataset(spliced(encode_dataset(dataset, syntax), syntax, coercion), syntax)


def setting(**attributes: str) -> Coercion:
    return Coercion(set={parse_path(key): (value,) for key, value in attributes.items()})


class Splices(unittest.TestCase):
    def test_pixel_data_pass_untouched_in_each_syntax(self) -> None:
        for syntax in (IMPLICIT, EXPLICIT, DEFLATED, BIG):
            data = encode_dataset(with_pixels(stored()), syntax)
            for step in (0, 1, 7):
                with self.subTest(syntax=syntax, step=step):
                    out = spliced(data, syntax, setting(InstitutionName="Elsewhere"), step=step)
                    dataset = decode_dataset(out, syntax)
                    self.assertEqual(dataset.InstitutionName, "Elsewhere")
                    self.assertEqual(dataset.PixelData, PIXELS)
                    self.assertEqual(len(out) % 2, 0)

    def test_offset_says_where_the_source_goes_on(self) -> None:
        data = encode_dataset(with_pixels(stored()), EXPLICIT)
        splice = Splice(EXPLICIT, setting(PatientID="P2"))
        splice.feed(data)
        assert splice.rewritten is not None
        self.assertEqual(data[splice.rewritten.offset :][:4], b"\xe0\x7f\x10\0")
        self.assertEqual(splice.rewritten.sop_instance_uid, "1.2.3.4")

    def test_what_follows_pixel_data_passes_or_is_dropped(self) -> None:
        dataset = with_pixels(stored())
        dataset.add_new(0xFFFCFFFC, "OB", b"Smith^Jane")
        for syntax in (IMPLICIT, EXPLICIT, DEFLATED, BIG):
            data = encode_dataset(dataset, syntax)
            for step in (0, 1, 5):
                with self.subTest(syntax=syntax, step=step):
                    whole = decode_dataset(spliced(data, syntax, setting(PatientName="A"), step=step), syntax)
                    self.assertEqual(whole[0xFFFCFFFC].value, b"Smith^Jane")
                    cut = spliced(data, syntax, setting(PatientName="A"), step=step, drop_tail=True)
                    self.assertNotIn(0xFFFCFFFC, decode_dataset(cut, syntax))
                    self.assertEqual(decode_dataset(cut, syntax).PixelData, PIXELS)

    def test_only_pixels_pass_of_their_group(self) -> None:
        for syntax, name in ((EXPLICIT, b"LO"), (IMPLICIT, b""), (BIG, b"LO")):
            is_big, width = syntax == BIG, 4 if syntax == IMPLICIT else 2

            def element(number: int, value: bytes, vr: bytes, is_big: bool = is_big, width: int = width) -> bytes:
                def encoded(number: int, width: int) -> bytes:
                    return number.to_bytes(width, "big" if is_big else "little")

                return encoded(0x7FE0, 2) + encoded(number, 2) + vr + encoded(len(value), width) + value

            header = encode_dataset(stored(), syntax)
            pixels = encode_dataset(with_pixels(stored()), syntax)
            pixels = pixels[pixels.index(element(0x10, b"", b"")[:4]) :]
            before = element(0, b"\x04\0\0\0", name and b"UL")
            data = header + before + pixels + element(0x1234, b"Smith^Jane", name)
            for step in (0, 1, 7):
                cut = spliced(data, syntax, Coercion(), step=step, drop_tail=True)
                self.assertTrue(cut.endswith(pixels))
                self.assertNotIn(before, cut)
        with self.assertRaises(DataSetError):
            spliced(header + b"\x7f\xe0\x12\x34SQ\0\0\xff\xff\xff\xff" + bytes(16), BIG, Coercion(), drop_tail=True)

    def test_fragments_are_followed_to_their_end(self) -> None:
        items = (
            b"\xfe\xff\x00\xe0\0\0\0\0"
            + b"\xfe\xff\x00\xe0\x06\0\0\0\xfe\xff\xdd\xe0\0\0"
            + b"\xfe\xff\xdd\xe0\0\0\0\0"
        )
        pixels = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + items
        data = encode_dataset(stored(), EXPLICIT) + pixels
        tail = b"\xfc\xff\xfc\xffOB\0\0\x02\0\0\0ab"
        for step in (0, 1, 9):
            self.assertTrue(spliced(data + tail, JPEG, Coercion(), step=step, drop_tail=True).endswith(pixels))
            self.assertTrue(spliced(data + tail, JPEG, Coercion(), step=step).endswith(tail))

    def test_cut_source_is_an_error(self) -> None:
        data = encode_dataset(with_pixels(stored()), EXPLICIT)
        for end in (20, len(data) - 3):
            with self.assertRaises(DataSetError):
                spliced(data[:end], EXPLICIT, Coercion(), drop_tail=True)
        deflated = encode_dataset(stored(), DEFLATED)
        with self.assertRaises(DataSetError):
            spliced(deflated[:-6], DEFLATED, Coercion())

    def test_group_lengths_go(self) -> None:
        data = b"\x08\0\0\0UL\x04\0\x99\0\0\0" + encode_dataset(stored(), EXPLICIT)
        self.assertNotIn(0x00080000, decode_dataset(spliced(data, EXPLICIT, setting(PatientID="P2")), EXPLICIT))

    def test_meta_follows_the_header(self) -> None:
        splice = Splice(EXPLICIT, Coercion(hash=(parse_path("SOPInstanceUID"),), pseudonyms=PSEUDONYMS))
        splice.feed(encode_dataset(with_pixels(stored()), EXPLICIT))
        assert splice.rewritten is not None
        meta = rewritten_meta(
            FileMeta("1", "1.2.3.4", EXPLICIT, "1.2.9", "SMITH", source_ae_title="CT1"),
            splice.rewritten,
            anonymous=True,
        )
        self.assertNotEqual((meta.implementation_class_uid, meta.implementation_version_name), ("1.2.9", "SMITH"))
        self.assertEqual(meta.media_storage_sop_instance_uid, PSEUDONYMS.uid("1.2.3.4"))
        self.assertEqual(meta.source_ae_title, "")

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=400), st.sampled_from((IMPLICIT, EXPLICIT, DEFLATED, BIG)), st.integers(1, 50))
    def test_any_bytes_raise_nothing_but_data_set_errors(self, junk: bytes, syntax: str, step: int) -> None:
        whole = encode_dataset(stored(), EXPLICIT) + junk
        for data in (junk, whole):
            try:
                spliced(data, syntax, setting(PatientID="P2"), step=step, drop_tail=True)
            except DataSetError:
                pass

    def test_pixels_of_all_test_files_pass(self) -> None:
        tried = 0
        for path in sorted(Path(pydicom.data.__file__).parent.joinpath("test_files").rglob("*.dcm")):
            content = path.read_bytes()
            try:
                meta, offset = read_file_meta(BytesIO(content))
                syntax, data = meta.transfer_syntax_uid, content[offset:]
                out = spliced(data, syntax, setting(InstitutionName="X"), step=60_000)
            except (NotDicomFile, DataSetError):
                continue
            if syntax == DEFLATED:
                data, out = (zlib.decompress(one, -15) for one in (data, out))
            splice = Splice(EXPLICIT if syntax == DEFLATED else syntax, Coercion())
            splice.feed(data)
            if splice.rewritten is not None and splice.rewritten.offset < len(data):
                tried += 1
                self.assertTrue(out.endswith(data[splice.rewritten.offset :]), path.name)
        self.assertGreater(tried, 40)


class Coercions(unittest.TestCase):
    def test_values_are_set_in_items(self) -> None:
        item = Dataset()
        item.ScheduledProcedureStepID = "1"
        dataset = stored(RequestAttributesSequence=Sequence([item, Dataset()]))
        path = parse_path("RequestAttributesSequence.ScheduledProcedureStepID")
        new = coerced(dataset, Coercion(set={path: ("9",)}))
        self.assertEqual([one.ScheduledProcedureStepID for one in new.RequestAttributesSequence], ["9", "9"])

    def test_attributes_are_removed(self) -> None:
        dataset = stored(PatientComments="drinks")
        block = dataset.private_block(0x0029, "ACME 1", create=True)
        block.add_new(0x10, "LO", "Smith")
        block.add_new(0x11, "LO", "kept")
        new = coerced(dataset, Coercion(remove=(parse_path("PatientComments"), parse_path("0029[ACME 1]10"))))
        self.assertNotIn("PatientComments", new)
        self.assertEqual([one.value for one in new.group_dataset(0x0029)], ["ACME 1", "kept"])

    def test_texts_are_replaced_by_pattern(self) -> None:
        rule = Replacement(re.compile(r"^CT (\w+)"), r"\1 CT")
        new = coerced(stored(StudyDescription="CT Head"), Coercion(replace={parse_path("StudyDescription"): (rule,)}))
        self.assertEqual(new.StudyDescription, "Head CT")

    def test_mapped_value_fails_without_an_entry(self) -> None:
        path = parse_path("PatientID")
        for missing, expected in (("keep", "P1"), ("remove", "")):
            mapped = Coercion(map={path: Mapped({"P2": "S2"}, missing)})
            self.assertEqual(coerced(stored(), mapped).PatientID or "", expected)
        self.assertEqual(coerced(stored(), Coercion(map={path: Mapped({"P1": "S1"})})).PatientID, "S1")
        with self.assertRaises(CoercionError) as caught:
            coerced(stored(), Coercion(map={path: Mapped({})}))
        self.assertEqual((caught.exception.tag, caught.exception.rule), ("PatientID", "map"))
        self.assertNotIn("P1", str(caught.exception))

    def test_hashes_are_stable(self) -> None:
        rule = Coercion(hash=(parse_path("AccessionNumber"), parse_path("StudyInstanceUID")), pseudonyms=PSEUDONYMS)
        first, second = (coerced(stored(AccessionNumber="A1"), rule) for _ in range(2))
        self.assertEqual(first, second)
        self.assertNotEqual(first.AccessionNumber, "A1")
        self.assertTrue(first.StudyInstanceUID.startswith("2.25."))

    def test_dates_move_together(self) -> None:
        dataset = stored(StudyDate="20200301", AcquisitionDateTime="20200301120000.5+0100", StudyTime="1200")
        new = coerced(dataset, Coercion(shift_dates=-1))
        self.assertEqual((new.StudyDate, new.AcquisitionDateTime), ("20200229", "20200229120000.5+0100"))
        self.assertEqual(new.StudyTime, "1200")
        by_patient = coerced(dataset, Coercion(shift_dates=BY_PATIENT, pseudonyms=PSEUDONYMS))
        self.assertEqual(by_patient.StudyDate, shifted("20200301", PSEUDONYMS.days("P1")))
        with self.assertRaisesRegex(CoercionError, "shift-dates: StudyDate"):
            data = encode_dataset(stored(), EXPLICIT)
            bad = data.replace(b"\x10\0\x10\0PN", b"\x08\0\x20\0DA\x08\0yesterd \x10\0\x10\0PN")
            spliced(bad, EXPLICIT, Coercion(shift_dates=1))

    def test_values_are_written_in_the_character_set_of_the_data_set(self) -> None:
        dataset = stored(SpecificCharacterSet="ISO_IR 100")
        self.assertEqual(coerced(dataset, setting(InstitutionName="Köln")).InstitutionName, "Köln")
        with self.assertRaises(CoercionError) as caught:
            coerced(dataset, setting(InstitutionName="京都"))
        self.assertEqual((caught.exception.tag, caught.exception.rule), ("InstitutionName", "set"))

    def test_values_that_would_not_read_back_are_refused(self) -> None:
        # pydicom writes no escape sequences of ISO 2022 IR 58 behind a delimiter.
        with self.assertRaisesRegex(CoercionError, "cannot be encoded"):
            coerced(stored(SpecificCharacterSet=["", "ISO 2022 IR 58"]), setting(PatientName="\u738b^\u5c0f\u4e1c"))
        for terms, text in (
            (["", "ISO 2022 IR 87"], "\u5c71\u7530^\u592a\u90ce"),
            (["", "ISO 2022 IR 149"], "\uae40\ud76c\uc911"),
            ("GB18030", "\u738b\u5c0f\u4e1c"),
            ("ISO_IR 192", "M\u00fcller"),
            ("ISO_IR 100", "M\u00fcller"),
        ):
            for keyword in ("PatientName", "InstitutionName"):
                new = coerced(stored(SpecificCharacterSet=terms), setting(**{keyword: text}))
                self.assertEqual(str(new[keyword].value), text)

    def test_what_is_no_date_is_not_moved(self) -> None:
        for value in ("20200229 Smith", "20200101-20200303", "2020-02-29", "2020-1977", "20200229Smith", "20200101-"):
            with self.subTest(value), self.assertRaises(ValueError):
                shifted(value, 30)
        for value, moved in (
            ("20200229120000.123456+0100", "20200330120000.123456+0100"),
            ("2020.02.29", "20200330"),
            ("20200229-0500", "20200330-0500"),
            ("2020022912", "2020033012"),
        ):
            self.assertEqual(shifted(value, 30), moved)

    def test_uids_have_no_padding_and_those_of_the_standard_stay(self) -> None:
        data = encode_dataset(stored(), EXPLICIT).replace(b"1.2.3.1\0", b"1.2.3.1 ")
        rule = Coercion(hash=(parse_path("SeriesInstanceUID"),), pseudonyms=PSEUDONYMS)
        new = decode_dataset(spliced(data, EXPLICIT, rule), EXPLICIT)
        self.assertEqual(new.SeriesInstanceUID, PSEUDONYMS.uid("1.2.3.1"))
        self.assertEqual(PSEUDONYMS.uid("1.2.840.10008.1.4.1.1"), "1.2.840.10008.1.4.1.1")
        self.assertNotIn("Smith", PSEUDONYMS.uid("1.2.840.10008.Smith"))

    def test_targets_are_checked(self) -> None:
        for text, rule in (
            ("SOPInstanceUID", "set"),
            ("SpecificCharacterSet", "set"),
            ("PixelData", "remove"),
            ("00290010", "set"),
            ("Rows", "replace"),
            ("SOPClassUID", "hash"),
            ("TransferSyntaxUID", "set"),
        ):
            with self.subTest(text), self.assertRaises(ValueError):
                check_target(parse_path(text), rule)
        with self.assertRaises(ValueError):
            check_values(parse_path("PatientSex"), ("far more than sixteen characters",))
        for keyword, value in (("PatientID", "a\nb"), ("StudyDate", "20200101-20200202"), ("StudyTime", "10-")):
            with self.subTest(keyword), self.assertRaises(ValueError):
                check_values(parse_path(keyword), (value,))
        check_values(parse_path("PatientComments"), ("a\nb",))
        check_values(parse_path("AcquisitionDateTime"), ("20200101120000-0500",))
        with self.assertRaisesRegex(ValueError, "did you mean PatientID"):
            parse_path("PatientId")

    @settings(max_examples=80, deadline=None)
    @given(st.dates(), st.integers(-3000, 3000))
    def test_shifts_are_undone(self, day: object, days: int) -> None:
        text = str(day).replace("-", "")
        try:
            moved = shifted(text, days)
        except ValueError:
            return
        self.assertEqual(shifted(moved, -days), text)

    @settings(max_examples=80, deadline=None)
    @given(st.text(max_size=64))
    def test_pseudonyms_are_valid(self, text: str) -> None:
        uid = PSEUDONYMS.uid(text)
        self.assertTrue(not text or re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid))
        self.assertRegex(PSEUDONYMS.text(text), r"^[0-9A-F]{16}$")
        self.assertTrue(-3650 <= PSEUDONYMS.days(text) <= -1)


class Reads(unittest.TestCase):
    def test_result_is_a_file(self) -> None:
        out = spliced(encode_dataset(with_pixels(stored()), EXPLICIT), EXPLICIT, setting(PatientID="P2"))
        self.assertEqual(dcmread(BytesIO(out), force=True).PatientID, "P2")
        self.assertEqual(ExplicitVRLittleEndian, EXPLICIT)

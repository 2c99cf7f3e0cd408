"""De-identification by PS3.15 Annex E, held against a second copy of the facts."""

from __future__ import annotations

import unittest
import zlib
from io import BytesIO
from pathlib import Path

import pydicom.data
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from dicomtwist.datasets.codec import decode_dataset, encode_dataset
from dicomtwist.errors import DataSetError
from dicomtwist.forwarding.coercion import Coercion
from dicomtwist.forwarding.confidentiality import METHODS, Option, row_of, simple_action
from dicomtwist.forwarding.deidentification import Deidentification, may_show_text
from dicomtwist.forwarding.header import Splice
from dicomtwist.forwarding.paths import parse_path
from dicomtwist.forwarding.pseudonyms import Pseudonyms, shifted
from dicomtwist.part10 import DEFLATED, NotDicomFile, read_file_meta

EXPLICIT = "1.2.840.10008.1.2.1"
PSEUDONYMS = Pseudonyms(b"a secret of sixteen or more bytes")
FILES = sorted(Path(pydicom.data.__file__).parent.joinpath("test_files").rglob("*.dcm"))

#: The column Basic Profile of Table E.1-1 as another project has it, read from the standard on its own.
FACTS = {
    int(tag, 16): action
    for tag, action in (
        line.split(",") for line in Path(__file__).with_name("basic_profile.csv").read_text().splitlines()
    )
}


def deidentified(dataset: Dataset, *options: Option) -> Dataset:
    splice = Splice(EXPLICIT, Deidentification(PSEUDONYMS, options), drop_tail=True)
    out = splice.feed(encode_dataset(dataset, EXPLICIT)) + splice.finish()
    return decode_dataset(b"".join(map(bytes, out)), EXPLICIT)


def stored(**attributes: object) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.PatientName, dataset.PatientID = "Smith^Jane", "P1"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


#: The VRs of names, identifiers and UIDs, and of other texts.
NAMES, TEXTS = ("AE", "PN", "UI"), ("LO", "LT", "SH", "ST", "UC", "UR", "UT")
IDENTIFIERS = ("PatientID", "AccessionNumber", "StudyID", "DeviceSerialNumber", "InstitutionName")


def identities(dataset: Dataset, *, with_texts: bool) -> set[bytes]:
    """
    Return the names, identifiers and UIDs in *dataset* and its items that Table E.1-1 does not let through, as bytes that are
    long enough to be sought.

    :param with_texts: all other texts as well, such as descriptions.
    """
    found = set()
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                found |= identities(item, with_texts=with_texts)
        is_name = element.VR in NAMES or element.keyword in IDENTIFIERS
        is_listed = int(element.tag) in FACTS and (is_name or (with_texts and element.VR in TEXTS))
        if element.VR == "PN" or is_listed:
            found |= texts(element)
    return {one for one in found if len(one) > 4 and one.isascii()}


def shown(dataset: Dataset) -> bytes:
    """Return the values that the profile keeps: some files have the name of the institution in one of them."""
    kept = b""
    for element in dataset:
        if element.VR == "SQ":
            kept += b"".join(shown(item) for item in element.value or ())
        elif (
            int(element.tag) not in FACTS and not element.tag.is_private and element.VR not in ("PN", "UN", "OB", "OW")
        ):
            kept += b"\n".join(texts(element)) + b"\n"
    return kept


def texts(element: DataElement) -> set[bytes]:
    values = element.value if element.VM > 1 else [element.value]
    parts = (str(value or "").replace("=", "^").split("^") for value in values or ())
    return {
        one.encode("latin-1", "ignore") for all_of in parts for one in all_of if not one.startswith("1.2.840.10008.")
    }


class Facts(unittest.TestCase):
    def test_table_agrees_with_the_second_copy(self) -> None:
        self.assertGreater(len(FACTS), 600)
        for tag, action in FACTS.items():
            row = row_of(tag)
            assert row is not None, hex(tag)
            self.assertEqual(row.basic, action, hex(tag))

    def test_each_option_has_a_method_and_most_have_rows(self) -> None:
        self.assertEqual(set(METHODS), {"", *Option})
        rows = [row for tag in FACTS if (row := row_of(tag)) is not None]
        for option in set(Option) - {Option.RETAIN_SAFE_PRIVATE}:
            self.assertTrue(any(option in row.options for row in rows), option)

    def test_compounds_follow_the_iod(self) -> None:
        ct, enhanced, pet = (f"1.2.840.10008.5.1.4.1.1.{one}" for one in ("2", "2.1", "128"))
        self.assertEqual(simple_action("X/Z/D", 0x0008002A, ct), "X")
        self.assertEqual(simple_action("X/Z/D", 0x0008002A, enhanced), "D")
        self.assertEqual(simple_action("X/D", 0x00080021, pet), "D")
        self.assertEqual(simple_action("X/Z", 0x00400555, enhanced), "Z")
        self.assertEqual(simple_action("X/Z/D", 0x00181000, enhanced), "D")
        self.assertEqual(simple_action("X/Z/D", 0x00181000, enhanced, is_nested=True), "Z")
        self.assertEqual(simple_action("X/Z/U*", 0x00081140, ct), "U")
        self.assertEqual(simple_action("Z/D", 0x00080023, ct), "Z")


class Profile(unittest.TestCase):
    def test_every_row_of_the_table_is_applied(self) -> None:
        for tag, action in FACTS.items():
            if not dictionary_has_tag(tag) or tag >> 16 <= 2 or tag >> 16 >= 0x7FE0 or len(dictionary_VR(tag)) > 2:
                continue
            if tag in (0x00100010, 0x00100020):
                continue  # the pseudonyms
            vr = dictionary_VR(tag)
            value = secret(vr)
            dataset = stored()
            dataset.add_new(tag, vr, value)
            new = deidentified(dataset)
            simple = simple_action(action, tag, dataset.SOPClassUID)
            with self.subTest(f"{tag:08X} {vr} {action}"):
                if simple == "X":
                    self.assertNotIn(tag, new)
                elif vr == "SQ":
                    self.assertNotIn("SECRET", str(new[tag].value))
                    self.assertEqual(bool(new[tag].value), simple != "Z")
                elif simple == "Z":
                    self.assertFalse(new[tag].value)
                else:
                    self.assertTrue(new[tag].value is not None and new[tag].value != "")
                    self.assertNotEqual(new[tag].value, value)

    def test_study_in_parts_stays_one_study(self) -> None:
        first, second = deidentified(stored()), deidentified(stored(SOPInstanceUID="1.2.3.5"))
        self.assertEqual(first.StudyInstanceUID, second.StudyInstanceUID)
        self.assertEqual((first.PatientID, first.PatientName), (second.PatientID, second.PatientName))
        self.assertNotEqual(first.SOPInstanceUID, second.SOPInstanceUID)
        self.assertNotEqual(first.PatientID, deidentified(stored(PatientID="P2")).PatientID)
        self.assertNotIn(first.StudyInstanceUID, ("1.2.3", Pseudonyms(b"another secret of 16").uid("1.2.3")))

    def test_what_was_done_is_said(self) -> None:
        new = deidentified(stored(), Option.RETAIN_UIDS, Option.RETAIN_MODIFIED_DATES)
        self.assertEqual(new.PatientIdentityRemoved, "YES")
        codes = [item.CodeValue for item in new.DeidentificationMethodCodeSequence]
        self.assertEqual(codes, ["113100", "113107", "113110"])
        self.assertEqual(new.LongitudinalTemporalInformationModified, "MODIFIED")
        self.assertEqual(deidentified(stored()).LongitudinalTemporalInformationModified, "REMOVED")
        self.assertEqual(new.StudyInstanceUID, "1.2.3")
        self.assertTrue(may_show_text(new))
        self.assertFalse(may_show_text(stored(BurnedInAnnotation="NO")))

    def test_options_for_dates(self) -> None:
        dataset = stored(StudyDate="20200301", StudyTime="1200", PatientBirthDate="19700101")
        self.assertEqual(deidentified(dataset).StudyDate, "")
        self.assertEqual(deidentified(dataset, Option.RETAIN_FULL_DATES).StudyDate, "20200301")
        modified = deidentified(dataset, Option.RETAIN_MODIFIED_DATES)
        self.assertEqual(modified.StudyDate, shifted("20200301", PSEUDONYMS.days("P1")))
        self.assertEqual(modified.StudyTime, "1200")
        self.assertEqual(modified.PatientBirthDate, "")
        with self.assertRaises(ValueError):
            Deidentification(PSEUDONYMS, (Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES))

    def test_options_that_retain(self) -> None:
        dataset = stored(InstitutionName="St Mary", StationName="CT1", PatientWeight="70", PatientSex="F")
        plain = deidentified(dataset)
        self.assertNotIn("InstitutionName", plain)
        self.assertEqual(plain.PatientSex, "")
        self.assertEqual(deidentified(dataset, Option.RETAIN_INSTITUTION_IDENTITY).InstitutionName, "St Mary")
        self.assertEqual(deidentified(dataset, Option.RETAIN_DEVICE_IDENTITY).StationName, "CT1")
        kept = deidentified(dataset, Option.RETAIN_PATIENT_CHARACTERISTICS)
        self.assertEqual((kept.PatientSex, str(kept.PatientWeight)), ("F", "70"))

    def test_descriptors_keep_words_of_the_standard(self) -> None:
        text = "CT chest of Smith, born 19700101, Dr. Qwertz, 5mm"
        dataset = stored(StudyDescription=text)
        self.assertNotIn("StudyDescription", deidentified(dataset))
        new = deidentified(dataset, Option.CLEAN_DESCRIPTORS).StudyDescription
        self.assertIn("chest", new)
        for word in ("Smith", "1970", "Qwertz"):
            self.assertNotIn(word, new)

    def test_private_elements_go_unless_safe(self) -> None:
        dataset = stored()
        for creator, offset in (("SIEMENS MR HEADER", 0x0C), ("ACME", 0x0C)):
            block = dataset.private_block(0x0019, creator, create=True)
            block.add_new(offset, "IS", "1000")
            block.add_new(0x70, "LO", "Smith")
        dataset.add_new(0x00291010, "UN", b"no creator: Smith ")
        self.assertFalse([one for one in deidentified(dataset) if one.tag.is_private])
        safe = [one.value for one in deidentified(dataset, Option.RETAIN_SAFE_PRIVATE) if one.tag.is_private]
        self.assertEqual(safe, ["SIEMENS MR HEADER", 1000])

    def test_safe_private_elements_go_if_they_hold_another_kind_of_value(self) -> None:
        dataset = stored()
        block = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
        block.add_new(0x23, "LO", "Smith^Jane")
        block.add_new(0x24, "UN", b"Smith^Jane")
        block.add_new(0x27, "LO", ["1.5", "Smith"])
        self.assertFalse([one for one in deidentified(dataset, Option.RETAIN_SAFE_PRIVATE) if one.tag.is_private])

    def test_values_of_another_kind_than_their_vr_go(self) -> None:
        full, modified = Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES
        for tag, vr, options in (
            (0x00041130, "CS", ()),  # File-set ID, of a directory
            (0x00280010, "LO", ()),  # Rows
            (0x0008001B, "UI", ()),  # Original Specialized SOP Class UID
            (0x00080020, "DA", (full,)),
            (0x00080020, "DA", (modified,)),
            (0x00080030, "TM", (full,)),
            (0x00080030, "TM", (modified,)),
            (0x0008002A, "DT", (full,)),
            (0x00189074, "DT", (full,)),
            (0x00181160, "LO", ()),  # Filter Type, to see that its text stays
        ):
            dataset = stored()
            dataset[tag] = RawDataElement(Tag(tag), vr, 6, b"Smith ", 0, False, True)
            new = deidentified(dataset, *options)
            with self.subTest(f"{tag:08X} {vr} {options}"):
                self.assertEqual(b"Smith" in encode_dataset(new, EXPLICIT), tag == 0x00181160)

    def test_dates_and_times_that_are_kept(self) -> None:
        dataset = stored(StudyDate="20200301", StudyTime="120000.5", AcquisitionDateTime="20200301120000+0100")
        for option in (Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES):
            new = deidentified(dataset, option)
            self.assertEqual(new.StudyTime, "120000.5")
            self.assertTrue(new.AcquisitionDateTime.endswith("0301120000+0100") or option != Option.RETAIN_FULL_DATES)

    def test_names_that_are_words_do_not_stay_in_reports(self) -> None:
        item, concept = Dataset(), Dataset()
        concept.CodeValue, concept.CodingSchemeDesignator, concept.CodeMeaning = "1", "99X", "x"
        item.ValueType, item.ConceptNameCodeSequence, item.TextValue = "TEXT", Sequence([concept]), "head of Brown"
        new = deidentified(
            stored(PatientName="Brown^Rose", ContentSequence=Sequence([item])), Option.CLEAN_STRUCTURED_CONTENT
        )
        self.assertEqual(new.ContentSequence[0].TextValue, "head of")

    def test_unknown_elements_and_planes_go(self) -> None:
        dataset = stored()
        dataset.add_new(0x00081999, "LO", "Smith")
        dataset.add_new(0x50003000, "OW", b"curve Smith ")
        dataset.add_new(0x60020010, "US", 4)
        dataset.add_new(0x60023000, "OW", b"bits")
        new = deidentified(dataset, *(set(Option) - {Option.RETAIN_FULL_DATES}))
        for tag in (0x00081999, 0x50003000, 0x60020010, 0x60023000):
            self.assertNotIn(tag, new)

    def test_items_are_treated_at_any_depth(self) -> None:
        inner = Dataset()
        inner.ReferencedSOPInstanceUID, inner.PatientName = "1.2.3.9", "Smith^Jane"
        outer = Dataset()
        outer.ReferencedSOPSequence, outer.SeriesInstanceUID = Sequence([inner]), "1.2.3.1"
        new = deidentified(stored(ReferencedSeriesSequence=Sequence([outer])))
        item = new.ReferencedSeriesSequence[0]
        self.assertEqual(item.SeriesInstanceUID, new.SeriesInstanceUID)
        self.assertEqual(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID, PSEUDONYMS.uid("1.2.3.9"))
        self.assertFalse(item.ReferencedSOPSequence[0].PatientName)

    def test_content_of_reports(self) -> None:
        def content(kind: str, code: str, **values: object) -> Dataset:
            item, concept = Dataset(), Dataset()
            concept.CodeValue, concept.CodingSchemeDesignator, concept.CodeMeaning = code, "DCM", "x"
            item.ValueType, item.ConceptNameCodeSequence = kind, Sequence([concept])
            for keyword, value in values.items():
                setattr(item, keyword, value)
            return item

        items = [
            content("PNAME", "121008", PersonName="Smith^Jane"),
            content("TEXT", "121071", TextValue="chest of Smith"),
            content("TEXT", "121030", TextValue="Smith"),
        ]
        plain = deidentified(stored(ContentSequence=Sequence(items)))
        self.assertEqual([one.TextValue for one in plain.ContentSequence], ["ANONYMIZED"])
        cleaned = deidentified(
            stored(ContentSequence=Sequence(items)), Option.CLEAN_STRUCTURED_CONTENT, Option.CLEAN_DESCRIPTORS
        )
        self.assertNotIn("Smith", str(cleaned))
        self.assertIn("chest", str(cleaned))

    def test_coercion_comes_last_and_sees_the_original(self) -> None:
        rule = Coercion(
            set={parse_path("ClinicalTrialSponsorName"): ("Acme",)},
            hash=(parse_path("AccessionNumber"),),
            pseudonyms=PSEUDONYMS,
            deidentify=Deidentification(PSEUDONYMS),
        )
        dataset = stored(AccessionNumber="A1")
        dataset.add_new(0xFFFCFFFC, "OB", b"Smith^Jane")
        splice = rule.splice(EXPLICIT)
        out = splice.feed(encode_dataset(dataset, EXPLICIT)) + splice.finish()
        self.assertNotIn(b"Smith", b"".join(map(bytes, out)))
        new = decode_dataset(b"".join(map(bytes, out)), EXPLICIT)
        self.assertEqual(new.ClinicalTrialSponsorName, "Acme")
        self.assertEqual(new.AccessionNumber, PSEUDONYMS.text("A1"))

    @settings(max_examples=60, deadline=None)
    @given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=6, max_size=12), st.sets(st.sampled_from(sorted(Option))))
    def test_no_option_lets_a_name_through(self, name: str, options: set[Option]) -> None:
        options -= {Option.RETAIN_FULL_DATES, Option.RETAIN_INSTITUTION_IDENTITY}
        name = f"Q{name}"
        dataset = stored(PatientName=name, PatientID=name, ReferringPhysicianName=name, StudyDescription=f"of {name}")
        dataset.PatientComments, dataset.SeriesDescription, dataset.AccessionNumber = name, f"head {name}", name
        self.assertNotIn(name, str(deidentified(dataset, *options)))


class Hostile(unittest.TestCase):
    HEADER = next(path for path in FILES if path.name == "CT_small.dcm").read_bytes()

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6), st.booleans())
    def test_damaged_headers_raise_nothing_but_data_set_errors(
        self, changes: list[tuple[int, int]], clean: bool
    ) -> None:
        _, offset = read_file_meta(BytesIO(self.HEADER))
        damaged = bytearray(self.HEADER[offset:])
        for at, value in changes:
            damaged[at] = value
        options = set(Option) - {Option.RETAIN_FULL_DATES} if clean else set()
        splice = Coercion(deidentify=Deidentification(PSEUDONYMS, options)).splice(EXPLICIT)
        try:
            splice.feed(damaged)
            splice.finish()
        except DataSetError:
            pass


class TestFiles(unittest.TestCase):
    def test_no_identity_of_any_file_leaves(self) -> None:
        every = tuple(set(Option) - {Option.RETAIN_FULL_DATES, Option.RETAIN_UIDS, Option.RETAIN_INSTITUTION_IDENTITY})
        every = tuple(one for one in every if one is not Option.RETAIN_DEVICE_IDENTITY)
        tried = found = 0
        for path in FILES:
            content = path.read_bytes()
            try:
                meta, offset = read_file_meta(BytesIO(content))
                syntax = meta.transfer_syntax_uid
                splice, left = leaving(content[offset:], syntax, Deidentification(PSEUDONYMS))
                _, cleaned = leaving(content[offset:], syntax, Deidentification(PSEUDONYMS, every))
            except (NotDicomFile, DataSetError):
                continue
            assert splice.rewritten is not None
            source = pydicom.dcmread(path, stop_before_pixels=True)
            plain = EXPLICIT if syntax in DEFLATED else syntax
            tried += 1
            try:
                names, sought = (identities(source, with_texts=one) for one in (False, True))
                kept = shown(source)
            except Exception:
                continue
            for identity in sorted(sought):
                if identity in kept:
                    continue
                found += 1
                self.assertFalse(identity in left, f"{identity!r} of {path.name}")
                # A description that is cleaned keeps the words of the standard.
                self.assertFalse(identity in names and identity in cleaned, f"{identity!r} of {path.name}")
            new = decode_dataset(splice.rewritten.header, plain)
            self.assertFalse([one.tag for one in new if one.tag.is_private], path.name)
        self.assertGreater(tried, 50)
        self.assertGreater(found, 400)


def leaving(data: bytes, syntax: str, edit: Deidentification) -> tuple[Splice, bytes]:
    """Return the bytes that leave, with the pixel data, inflated."""
    splice = Coercion(deidentify=edit).splice(syntax)
    out = b"".join(map(bytes, splice.feed(data) + splice.finish()))
    return splice, zlib.decompress(out, -zlib.MAX_WBITS) if syntax in DEFLATED else out


def secret(vr: str) -> object:
    """Return a value of *vr*."""
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.CodeMeaning = "SECRET", "a code"
        return Sequence([item])
    texts = {"AS": "040Y", "DA": "20200102", "DT": "20200102030405", "TM": "030405", "UI": "1.2.3.99"}
    numbers = dict.fromkeys(("DS", "IS", "FD", "FL", "SL", "SS", "UL", "US", "AT", "SV", "UV"), 7)
    codes = dict.fromkeys(("OB", "OW", "OF", "OD", "OL", "OV", "UN"), b"SECRET..")
    return {**texts, **numbers, **codes}.get(vr, "SECRET")

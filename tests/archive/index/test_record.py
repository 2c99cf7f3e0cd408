"""Records: whatever is in the front of a data set, the index has a row of it, and answers give back the bytes that came."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import update
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index import schema
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.record import COLUMNS, WANTED, make_record
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.query.answer_reader import AnswerReader, identifiers
from dicomtwist.archive.query.compiler import Model, Negotiated, compile_find
from dicomtwist.archive.query.search import Search
from dicomtwist.archive.storage.types import Durability
from dicomtwist.datasets import decode_dataset
from dicomtwist.datasets.header_scanner import scan
from tests.archive.samples import dataset, encoded

NAME, DESCRIPTION, SERIES_DESCRIPTION, COMMENTS = 0x00100010, 0x00081030, 0x0008103E, 0x00204000
CHARACTER_SET = 0x00080005


def item(**elements: Any) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


class Case(SynchronousTestCase):
    """An archive of instances whose text is given as bytes."""

    def archive(self, **options: Any) -> Archive:
        archive = Archive(Path(self.mktemp()), durability=Durability.NONE, **options)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def keep(self, archive: Archive, number: int, charset: bytes | None, values: dict[int, bytes], **more: Any) -> None:
        record, content = encoded(dataset(number, **more))
        found = scan(content[1], ExplicitVRLittleEndian, WANTED) | values
        if charset is not None:
            found[CHARACTER_SET] = charset
        record = make_record(found, ExplicitVRLittleEndian, archive.default_charset)
        outcomes: list[BaseException | None] = []
        archive.keep(
            ReceivedInstance(record.uids, str(ExplicitVRLittleEndian), content, lambda: record, record.length),
            outcomes.append,
        )
        self.assertEqual(outcomes, [None])

    def answers(self, archive: Archive, level: str, *tags: int, **keys: Any) -> list[dict[int, bytes]]:
        archive.catch_up()
        identifier = item(QueryRetrieveLevel=level, **keys)
        for tag in tags:
            identifier.add_new(tag, "PN" if tag == NAME else "LO", None)
        query = compile_find(identifier, Model.PATIENT_ROOT, Negotiated(relational=True))
        search = Search(archive.index.engine, query)
        found = AnswerReader(search, identifiers("A", ExplicitVRLittleEndian)).read(search.numbers())
        for one in found:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                decode_dataset(one, ExplicitVRLittleEndian)
        return [
            {
                tag: value.rstrip(b" ")
                for tag, value in scan(one, ExplicitVRLittleEndian, {CHARACTER_SET, *tags}).items()
            }
            for one in found
        ]


class Answers(Case):
    """Bytes come back as they came, under the character set that they have, or under none."""

    def test_text_without_a_character_set(self) -> None:
        archive = self.archive()
        for number, raw in enumerate((b"M\xfcller", "Müller".encode(), b"\xb0\xa1\xff\xfe", b"plain"), 1):
            self.keep(archive, number, None, {NAME: raw}, PatientID=str(number))
            (found,) = self.answers(archive, "PATIENT", NAME, PatientID=str(number))
            self.assertEqual(found, {NAME: raw})

    def test_unknown_character_sets(self) -> None:
        archive = self.archive()
        for number, term in enumerate(
            (b"undefined", b"idna", b"hex\\zip", b"punycode", b"\xff\0\x1b", b"x" * 16000), 1
        ):
            raw = b"M\xfcller\xc3"
            self.keep(archive, number, term, {NAME: raw}, PatientID=str(number))
            (found,) = self.answers(archive, "PATIENT", NAME, PatientID=str(number))
            self.assertEqual(found, {NAME: raw})

    def test_bytes_that_are_not_in_the_character_set(self) -> None:
        archive = self.archive()
        cases = ((b"ISO_IR 192", b"M\xfcller"), (b"GB18030", b"\xff\xffA"), (b"ISO_IR 127", b"A\xff"))
        for number, (term, raw) in enumerate(cases, 1):
            self.keep(archive, number, term, {NAME: raw}, PatientID=str(number))
            (found,) = self.answers(archive, "PATIENT", NAME, PatientID=str(number))
            self.assertEqual(found, {NAME: raw})

    def test_levels_differ(self) -> None:
        """Each level has the bytes and the character set of the instance that described it last."""
        latin, utf, unknown = "Grün".encode("latin-1"), "Grün".encode(), b"\xfc\xc3"
        tags = (NAME, DESCRIPTION, SERIES_DESCRIPTION)
        for study_charset, study, claimed, expected in (
            (b"ISO_IR 192", utf, b"ISO_IR 192", (utf, utf, utf)),
            (None, unknown, None, (latin, unknown, utf)),
            (b"ISO_IR 192", unknown, None, (latin, unknown, utf)),
        ):
            archive = self.archive()
            self.keep(archive, 1, b"ISO_IR 100", {NAME: latin})
            self._level(archive, study_charset, {DESCRIPTION: study}, "study")
            self._level(archive, b"ISO_IR 192", {SERIES_DESCRIPTION: utf}, "series")
            for level, count in (("SERIES", 3), ("STUDY", 2), ("PATIENT", 1), ("IMAGE", 3)):
                (found,) = self.answers(archive, level, *tags[:count])
                if level in ("SERIES", "IMAGE"):
                    self.assertEqual(tuple(found[tag] for tag in tags), expected, level)
                    self.assertEqual(found.get(CHARACTER_SET), claimed, level)
                elif level == "PATIENT":
                    self.assertEqual(found, {NAME: latin, CHARACTER_SET: b"ISO_IR 100"})

    def _level(self, archive: Archive, charset: bytes | None, values: dict[int, bytes], table: str) -> None:
        """Describe one level as an instance in another character set would."""
        archive.catch_up()
        made = {} if charset is None else {CHARACTER_SET: charset}
        record = make_record(made | values, ExplicitVRLittleEndian)
        column = {"study": "study_description", "series": "series_description"}[table]
        row = dict(zip(COLUMNS[Level[table.upper()]], getattr(record, table), strict=True))
        with archive.index.engine.begin() as connection:
            connection.execute(
                update(getattr(schema, table)).values({"character_set": row["character_set"], column: row[column]})
            )

    def test_code_extensions_are_found(self) -> None:
        archive = self.archive()
        raw = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="
        self.keep(archive, 1, b"\\ISO 2022 IR 58", {NAME: raw})
        for key in ("张*", "*小东*", "Zhang*=张*", "=张^小东"):
            (found,) = self.answers(archive, "PATIENT", SpecificCharacterSet="ISO_IR 192", PatientName=key)
        (found,) = self.answers(archive, "PATIENT", NAME)
        self.assertEqual(found, {NAME: raw.rstrip(b"="), CHARACTER_SET: b"\\ISO 2022 IR 58"} | {NAME: found[NAME]})
        self.assertIn("张".encode("gb2312"), found[NAME])

    def test_default_charset(self) -> None:
        archive = self.archive(default_charset="ISO_IR 144")
        raw = "Чехов".encode("iso8859_5")
        self.keep(archive, 1, None, {NAME: raw})
        (found,) = self.answers(archive, "PATIENT", NAME, SpecificCharacterSet="ISO_IR 192")
        self.assertEqual(found, {NAME: raw, CHARACTER_SET: b"ISO_IR 144"})
        identifier = item(QueryRetrieveLevel="PATIENT", SpecificCharacterSet="ISO_IR 192", PatientName="чех*")
        query = compile_find(identifier, Model.PATIENT_ROOT)
        self.assertEqual(len(Search(archive.index.engine, query).numbers()), 1)

    def test_default_charset_that_is_wrong(self) -> None:
        archive = self.archive(default_charset="utf-8")
        self.keep(archive, 1, None, {NAME: b"M\xfcller", DESCRIPTION: "Fuß".encode()})
        (found,) = self.answers(archive, "PATIENT", NAME)
        self.assertEqual(found, {NAME: b"M\xfcller"})
        (found,) = self.answers(archive, "STUDY", DESCRIPTION)
        self.assertEqual(found, {DESCRIPTION: "Fuß".encode(), CHARACTER_SET: b"ISO_IR 192"})


class AnyHeader(SynchronousTestCase):
    """Nothing makes a record fail."""

    @given(
        st.dictionaries(st.sampled_from(sorted(WANTED)), st.binary(max_size=40)),
        st.sampled_from((str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian), "1.2.840.10008.1.2.2")),
        st.sampled_from(("", "ISO_IR 192", "\\ISO 2022 IR 87")),
    )
    def test_records(self, values: dict[int, bytes], syntax: str, default: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = make_record(values, syntax, default)
        for row in (record.patient, record.study, record.series, record.instance):
            for text in row:
                text.encode()
                self.assertNotIn("\0", text)

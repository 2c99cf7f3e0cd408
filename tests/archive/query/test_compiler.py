"""Queries: each kind of matching of PS3.4 C.2.2.2, both query modes, invalid identifiers, and the encoding of answers."""

from __future__ import annotations

import re
import warnings
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.index.normal_forms import (
    date_range,
    datetime_range,
    like_pattern,
    name_groups,
    sounds,
    time_range,
    wildcard_regex,
)
from dicomtwist.archive.query import search as finder
from dicomtwist.archive.query.compiler import InvalidIdentifier, Model, Negotiated, compile_find, compile_retrieve
from dicomtwist.archive.query.search import Search
from dicomtwist.archive.query.statements import retrieval_of_one
from dicomtwist.datasets import decode_dataset
from tests.archive.samples import ask, dataset, keep


def item(**elements: Any) -> Dataset:
    """An item of a sequence."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


class Values(SynchronousTestCase):
    """Normal forms and patterns."""

    def test_ranges(self) -> None:
        self.assertEqual(date_range("20200101"), ("20200101", "20200101"))
        self.assertEqual(date_range("20200101-"), ("20200101", "99991231"))
        self.assertEqual(date_range("-20200101"), ("0", "20200101"))
        self.assertEqual(date_range("20200101 - 20210101"), ("20200101", "20210101"))
        self.assertEqual(time_range("10"), ("100000.000000", "105959.999999"))
        self.assertEqual(time_range("1015"), ("101500.000000", "101559.999999"))
        self.assertEqual(time_range("101530.5"), ("101530.500000", "101530.599999"))
        self.assertEqual(time_range("0800-1000"), ("080000.000000", "100059.999999"))
        self.assertEqual(datetime_range("2019-2021"), ("20190101000000.000000", "20211231235959.999999"))
        self.assertEqual(datetime_range("202002"), ("20200201000000.000000", "20200229235959.999999"))
        east = timezone(timedelta(hours=1))
        self.assertEqual(
            datetime_range("20200101120000-0500-20200102120000-0500", east),
            ("20200101180000.000000", "20200102180000.999999"),
        )
        for wrong in ("x", "2020", "20200101-x", "--", "-", "20200101-20210101-20220101"):
            self.assertRaises(ValueError, date_range, wrong)
        for wrong in ("x", "1", "-", "10-x"):
            self.assertRaises(ValueError, time_range, wrong)
        for wrong in ("x", "-", "20200101-x"):
            self.assertRaises(ValueError, datetime_range, wrong)

    def test_names(self) -> None:
        self.assertEqual(name_groups("Doe^John^^"), ["doe^john", "", ""])
        self.assertEqual(
            name_groups("Yamada^Tarou=山田^太郎=やまだ^たろう"), ["yamada^tarou", "山田^太郎", "やまだ^たろう"]
        )
        self.assertEqual(sounds("Robert^Rupert"), " r163 ")
        self.assertEqual(sounds("Müller"), sounds("Mueller^Muller"))
        self.assertEqual(sounds("^= "), "")

    @given(st.text("ab%_\\*?", max_size=8), st.text("ab%_\\", max_size=8))
    @settings(max_examples=300, deadline=None)
    def test_patterns(self, pattern: str, text: str) -> None:
        """Both forms of a wildcard pattern match the texts that a simple translation matches."""
        plain = re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern))
        like = re.sub(
            r"\\(.)|(%)|(_)|(.)",
            lambda found: ".*" if found[2] else "." if found[3] else re.escape(found[1] or found[4]),
            like_pattern(pattern),
        )
        expected = plain.fullmatch(text) is not None
        self.assertEqual(wildcard_regex(pattern).fullmatch(text) is not None, expected)
        self.assertEqual(re.fullmatch(like, text) is not None, expected)

    def test_patterns_are_fast(self) -> None:
        """No key makes a comparison take long."""
        self.assertIsNone(wildcard_regex("a*" * 30 + "b").fullmatch("a" * 10_000))


class MatchingCase(SynchronousTestCase):
    """An archive and queries to it."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.archive = Archive(self.root)
        self.archive.open()
        self.addCleanup(self.archive.close)

    def keep(self, *instances: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
        for one in instances:
            self.assertIsNone(keep(self.archive, one, transfer_syntax))

    def studies(self, level: str = "STUDY", **keys: Any) -> list[int]:
        """The numbers of the studies that match."""
        return [int(answer.StudyInstanceUID.split(".")[2]) for answer in ask(self.archive, level, **keys)]


class Matching(MatchingCase):
    """Matching of keys."""

    def test_single_value_wildcard_and_universal(self) -> None:
        for number, description in enumerate(("Head", "Head CT", "head", ["50% _x", "y"][0], "", "50 percent x"), 1):
            self.keep(dataset(study=number, StudyDescription=description))
        for key, expected in (
            ("Head", [1]),
            ("Head ", [1]),
            ("Head*", [1, 2]),
            ("*CT", [2]),
            ("H?ad", [1]),
            ("?ead", [1, 3]),
            ("50% *", [4]),
            ("50%*", [4]),
            ("5_*", []),
            ("*_x", [4]),
            ("*", [1, 2, 3, 4, 5, 6]),
            ("**", [1, 2, 3, 4, 5, 6]),
            ("", [1, 2, 3, 4, 5, 6]),
            (None, [1, 2, 3, 4, 5, 6]),
            ("'; DROP TABLE study; --", []),
        ):
            self.assertEqual(self.studies(StudyDescription=key), expected, key)

    def test_list_of_uids(self) -> None:
        for number in range(1, 5):
            self.keep(dataset(study=number))
        self.assertEqual(self.studies(StudyInstanceUID=["1.2.3", "1.2.1", "1.2.9"]), [1, 3])
        self.assertEqual(self.studies(StudyInstanceUID="1.2.2"), [2])

    def test_dates_and_times(self) -> None:
        for number, (date, time) in enumerate(
            (("20200101", "101530"), ("20200102", "0959"), ("20210630", ""), ("", "2300"), ("2020.03.01", "10:15:30")),
            1,
        ):
            made = dataset(study=number)
            made.add_new("StudyDate", "DA", "")
            made["StudyDate"]._value = date
            made.add_new("StudyTime", "TM", "")
            made["StudyTime"]._value = time
            self.keep(made)
        for keys, expected in (
            ({"StudyDate": "20200101"}, [1]),
            ({"StudyDate": "20200101-20200131"}, [1, 2]),
            ({"StudyDate": "20200102-"}, [2, 3, 5]),
            ({"StudyDate": "-20200102"}, [1, 2]),
            ({"StudyTime": "1015"}, [1, 5]),
            ({"StudyTime": "101530"}, [1, 5]),
            ({"StudyTime": "-1000"}, [2]),
            ({"StudyTime": "0900-1100"}, [1, 2, 5]),
            ({"StudyDate": "20200101-20200102", "StudyTime": "1000-"}, [1]),
        ):
            self.assertEqual(self.studies(**keys), expected, keys)
        both = Negotiated(date_time=True)
        for date, time, expected in (
            ("20200101-20200102", "1000-1000", [1, 2]),
            ("20200101-20200102", "1100-0930", []),
            ("20200101-20200102", "1100-1000", [2]),
            ("20200101-", "1016-", [2, 3, 5]),
            ("20200101", "1000-1100", [1]),
        ):
            self.assertEqual(self.studies(negotiated=both, StudyDate=date, StudyTime=time), expected, (date, time))

    def test_time_zones(self) -> None:
        self.keep(
            dataset(study=1, StudyDate="20200101", StudyTime="233000", TimezoneOffsetFromUTC="-0500"),
            dataset(study=2, StudyDate="20200102", StudyTime="043000", TimezoneOffsetFromUTC="+0000"),
            dataset(study=3, StudyDate="20200102", StudyTime="043000", TimezoneOffsetFromUTC="+0900"),
        )
        zones = Negotiated(timezone=True)
        ask_for = {"StudyDate": "20200102", "TimezoneOffsetFromUTC": "+0000"}
        self.assertEqual(self.studies(negotiated=zones, **ask_for), [1, 2])
        exact = {"StudyDate": "20200102", "StudyTime": "0430", "TimezoneOffsetFromUTC": "+0000"}
        self.assertEqual(self.studies(negotiated=Negotiated(timezone=True, date_time=True), **exact), [1, 2])
        self.assertEqual(self.studies(StudyDate="20200102"), [2, 3])

    def test_moments_with_offset(self) -> None:
        self.keep(
            dataset(1, AcquisitionDateTime="20200101120000+0000"), dataset(2, AcquisitionDateTime="20200101120000-0500")
        )
        found = ask(
            self.archive,
            "IMAGE",
            negotiated=Negotiated(relational=True),
            AcquisitionDateTime="20200101160000+0000-20200101180000+0000",
        )
        self.assertEqual([answer.SOPInstanceUID for answer in found], ["1.2.1.1.2"])

    def test_names(self) -> None:
        for number, name in enumerate(
            (
                "Doe^John",
                "DOE^Jane^^Dr",
                "Doe",
                "Yamada^Tarou=山田^太郎=やまだ^たろう",
                "Müller^Jörg",
                "Doering^J",
                "Smyth^Robert",
            ),
            1,
        ):
            self.keep(
                dataset(study=number, PatientID=str(number), PatientName=name, SpecificCharacterSet="ISO_IR 192",
                        ReferringPhysicianName=name)
            )  # fmt: skip
        cases: tuple[tuple[str, list[int]], ...] = (
            ("doe^john", [1]),
            ("DOE^JOHN^^", [1]),
            ("Doe", [3]),
            ("Doe^*", [1, 2, 3]),
            ("doe*", [1, 2, 3, 6]),
            ("*^j*", [1, 2, 5, 6]),
            ("D?e^John", [1]),
            ("山田*", [4]),
            ("=山田^太郎", [4]),
            ("Yamada*=山*", [4]),
            ("Yamada*=田*", []),
            ("=Yamada*", []),
            ("yamada^tarou", [4]),
            ("müller^JÖRG", [5]),
            ("Muller*", []),
        )
        for key, expected in cases:
            self.assertEqual(self.studies(PatientName=key, SpecificCharacterSet="ISO_IR 192"), expected, key)
            self.assertEqual(self.studies(ReferringPhysicianName=key), expected, key)
        fuzzy = Negotiated(fuzzy=True)
        for key, expected in (("Smith^Rupert", [7]), ("robert", [7]), ("Mueller", [5]), ("jon^doe", [1, 2])):
            self.assertEqual(self.studies(negotiated=fuzzy, PatientName=key), expected, key)
            self.assertEqual(self.studies(negotiated=fuzzy, ReferringPhysicianName=key), expected, key)
            self.assertEqual(self.studies(PatientName=key), [], key)

    def test_several_values(self) -> None:
        self.keep(
            dataset(1, OperatorsName=["A^B", "C^D"], ImageType=["ORIGINAL", "PRIMARY"]),
            dataset(2, series=2, OperatorsName="C^DD", ImageType=["DERIVED", "PRIMARY", "X"]),
        )
        relational = Negotiated(relational=True)
        for key, expected in (("PRIMARY", 2), ("ORIGINAL", 1), ("PRIM", 0), ("*RIV*", 1), ("ORIGINAL*PRIMARY", 0)):
            self.assertEqual(len(ask(self.archive, "IMAGE", negotiated=relational, ImageType=key)), expected, key)
        for key, expected in (("c^d", 1), ("C*", 2), ("a^b", 1), ("a^b*d", 0)):
            self.assertEqual(len(ask(self.archive, "SERIES", negotiated=relational, OperatorsName=key)), expected, key)

    def test_numbers(self) -> None:
        self.keep(dataset(7, PatientWeight="70.50", Rows=512), dataset(12, PatientWeight="70.50", Rows=256))
        relational = Negotiated(relational=True)
        for keys, expected in (
            ({"InstanceNumber": "7"}, 1),
            ({"InstanceNumber": "007"}, 1),
            ({"InstanceNumber": "1"}, 0),
            ({"Rows": 512}, 1),
            ({"PatientWeight": "70.5"}, 2),
            ({"PatientWeight": "7"}, 0),
        ):
            self.assertEqual(len(ask(self.archive, "IMAGE", negotiated=relational, **keys)), expected, keys)

    def test_sequences(self) -> None:
        self.keep(
            dataset(
                series=1, RequestAttributesSequence=[item(ScheduledProcedureStepID="S1", RequestedProcedureID="R1")]
            ),
            dataset(
                series=2,
                RequestAttributesSequence=[item(ScheduledProcedureStepID="S2"), item(RequestedProcedureID="R1")],
            ),
            dataset(series=3),
        )
        for transfer_syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
            self.keep(
                dataset(series=4, RequestAttributesSequence=[item(ScheduledProcedureStepID="S4")]),
                transfer_syntax=transfer_syntax,
            )
        for keys, expected in (
            ({"ScheduledProcedureStepID": "S1"}, ["1"]),
            ({"ScheduledProcedureStepID": "S*"}, ["1", "2", "4"]),
            ({"RequestedProcedureID": "R1"}, ["1", "2"]),
            ({"ScheduledProcedureStepID": "S2", "RequestedProcedureID": "R1"}, []),
            ({"ScheduledProcedureStepID": ""}, ["1", "2", "3", "4"]),
            ({"ScheduledProcedureStepID": "X"}, []),
        ):
            found = ask(self.archive, "SERIES", StudyInstanceUID="1.2.1", RequestAttributesSequence=[item(**keys)])
            self.assertEqual([answer.SeriesInstanceUID.split(".")[-1] for answer in found], expected, keys)
        (found_one,) = ask(
            self.archive,
            "SERIES",
            StudyInstanceUID="1.2.1",
            SeriesInstanceUID="1.2.1.1",
            RequestAttributesSequence=[item(ScheduledProcedureStepID="", ScheduledProcedureStepDescription="")],
        )
        (answered,) = found_one.RequestAttributesSequence
        self.assertEqual(answered.ScheduledProcedureStepID, "S1")
        self.assertEqual(answered.ScheduledProcedureStepDescription, "")
        self.assertNotIn("RequestedProcedureID", answered)

    def test_empty_values(self) -> None:
        self.keep(dataset(study=1, AccessionNumber=""), dataset(study=2, AccessionNumber="A"))
        self.assertEqual(self.studies(AccessionNumber='""'), [])
        self.assertEqual(self.studies(negotiated=Negotiated(empty_values=True), AccessionNumber='""'), [1])

    def test_what_is_collected(self) -> None:
        self.keep(
            dataset(1, 1, 1, Modality="CT"),
            dataset(2, 1, 1, Modality="CT"),
            dataset(1, 2, 1, Modality="SR"),
            dataset(1, 1, 2, Modality="MR", PatientID="Q"),
        )
        self.assertEqual(self.studies(ModalitiesInStudy="SR"), [1])
        self.assertEqual(self.studies(ModalitiesInStudy=["MR", "SR"]), [1, 2])
        self.assertEqual(self.studies(ModalitiesInStudy="US"), [])
        self.assertEqual(self.studies(SOPClassesInStudy="1.2.840.10008.5.1.4.1.1.7", ModalitiesInStudy="MR"), [2])
        counts: dict[str, Any] = dict.fromkeys(
            ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "NumberOfPatientRelatedStudies",
             "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances", "ModalitiesInStudy")
        )  # fmt: skip
        first, second = ask(self.archive, "STUDY", **counts)
        self.assertEqual(list(first.ModalitiesInStudy), ["CT", "SR"])
        self.assertEqual(second.ModalitiesInStudy, "MR")
        self.assertEqual([int(first[keyword].value) for keyword in counts if keyword.startswith("N")], [2, 3, 1, 2, 3])
        (only,) = ask(self.archive, "SERIES", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1",
                      NumberOfSeriesRelatedInstances=None)  # fmt: skip
        self.assertEqual(only.NumberOfSeriesRelatedInstances, 2)


class Levels(MatchingCase):
    """One answer for each entity; the unique keys of the levels above."""

    def setUp(self) -> None:
        super().setUp()
        for study in (1, 2):
            for series in (1, 2, 3):
                self.keep(*(dataset(number, series, study, PatientID=f"P{study}") for number in (1, 2)))

    def count(self, level: str, **keys: Any) -> int:
        return len(ask(self.archive, level, **keys))

    def test_one_answer_for_each_entity(self) -> None:
        root = Model.PATIENT_ROOT
        self.assertEqual(self.count("PATIENT", model=root), 2)
        self.assertEqual(self.count("STUDY"), 2)
        self.assertEqual(self.count("STUDY", model=root, PatientID="P1"), 1)
        self.assertEqual(self.count("SERIES", StudyInstanceUID="1.2.1"), 3)
        self.assertEqual(self.count("IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.2"), 2)
        relational = Negotiated(relational=True)
        self.assertEqual(self.count("IMAGE", negotiated=relational), 12)
        self.assertEqual(self.count("IMAGE", negotiated=relational, PatientID="P2"), 6)
        self.assertEqual(self.count("SERIES", negotiated=relational, PatientName="doe*"), 6)

    def test_what_an_answer_has(self) -> None:
        (answer,) = ask(
            self.archive,
            "SERIES",
            StudyInstanceUID="1.2.1",
            SeriesInstanceUID="1.2.1.3",
            Modality=None,
            SeriesNumber=None,
        )
        self.assertEqual(answer.QueryRetrieveLevel, "SERIES")
        self.assertEqual(answer.RetrieveAETitle, "ARCHIVE")
        self.assertEqual(answer.InstanceAvailability, "ONLINE")
        self.assertEqual((answer.Modality, answer.SeriesNumber), ("OT", None))
        self.assertEqual((answer.StudyInstanceUID, answer.SeriesInstanceUID), ("1.2.1", "1.2.1.3"))
        self.assertNotIn("PatientID", answer)

    def test_what_cannot_be_answered(self) -> None:
        relational = Negotiated(relational=True)
        for model, level, keys, words in (
            (Model.STUDY_ROOT, None, {}, "Level"),
            (Model.STUDY_ROOT, "X", {}, "Level"),
            (Model.STUDY_ROOT, "PATIENT", {}, "level PATIENT"),
            (Model.PATIENT_STUDY_ONLY, "SERIES", {"PatientID": "P1", "StudyInstanceUID": "1.2"}, "level SERIES"),
            (Model.PATIENT_ROOT, "STUDY", {}, "PatientID is missing"),
            (Model.PATIENT_ROOT, "STUDY", {"PatientID": "P*"}, "single value"),
            (Model.STUDY_ROOT, "SERIES", {}, "StudyInstanceUID is missing"),
            (Model.STUDY_ROOT, "SERIES", {"StudyInstanceUID": ["1.2", "1.3"]}, "single value"),
            (Model.STUDY_ROOT, "IMAGE", {"StudyInstanceUID": "1.2"}, "SeriesInstanceUID is missing"),
            (Model.STUDY_ROOT, "STUDY", {"StudyDate": "yesterday"}, "StudyDate"),
            (Model.STUDY_ROOT, "STUDY", {"StudyInstanceUID": "1.2*"}, "wildcards"),
            (Model.STUDY_ROOT, "STUDY", {"PatientWeight": "x"}, "PatientWeight"),
        ):
            identifier = Dataset()
            if level:
                identifier.QueryRetrieveLevel = level
            for keyword, value in keys.items():
                identifier.add_new(keyword, "LO", "")
                identifier[keyword]._value = value
            error = self.assertRaises(InvalidIdentifier, compile_find, identifier, model)
            self.assertEqual(error.status, 0xA900)
            self.assertIn(words, error.comment)
            self.assertLessEqual(len(error.comment), 64)
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        compile_find(identifier, Model.STUDY_ROOT, relational)

    def test_values_that_pydicom_does_not_take(self) -> None:
        """Such values are refused within sequences too, and so is a sequence in place of a text."""
        level = b"\x08\0\x52\0\6\0\0\0STUDY "

        def sequence(tag: bytes, item: bytes) -> bytes:
            content = b"\xfe\xff\0\xe0" + len(item).to_bytes(4, "little") + item
            return tag + len(content).to_bytes(4, "little") + content

        length_to_end = b"\x08\0\1\0\6\0\0\0ABCDEF"  # of VR UL: a multiple of 4
        code = b"\x08\0\x32\x10"
        for keys, words in (
            (sequence(code, length_to_end), "ProcedureCodeSequence cannot be read"),
            (sequence(code, sequence(code, length_to_end)), "ProcedureCodeSequence cannot be read"),
        ):
            identifier = decode_dataset(level + keys, ImplicitVRLittleEndian)
            error = self.assertRaises(InvalidIdentifier, compile_find, identifier, Model.STUDY_ROOT)
            self.assertEqual(error.comment, words)
        for keyword in ("PatientID", "StudyInstanceUID", "StudyDate"):
            identifier = item(QueryRetrieveLevel="STUDY")
            identifier.add_new(keyword, "SQ", [item(PatientID="X")])
            for compile_it in compile_find, compile_retrieve:
                if compile_it is compile_find or keyword == "StudyInstanceUID":
                    error = self.assertRaises(InvalidIdentifier, compile_it, identifier, Model.STUDY_ROOT)
                    self.assertIn("is a sequence", error.comment)
        identifier = item(QueryRetrieveLevel="STUDY")
        identifier.add_new("ProcedureCodeSequence", "LO", "X")
        error = self.assertRaises(InvalidIdentifier, compile_find, identifier, Model.STUDY_ROOT)
        self.assertIn("cannot be read", error.comment)

    @settings(deadline=None)
    @given(
        st.lists(st.text("12.* \0\\\t?A\u00e9", max_size=9), max_size=4).map("\\".join),
        st.sampled_from([None, b"UI", b"CS", b"UN"]),
        st.sampled_from([0x0020000D, 0x0020000E, 0x00080052]),
    )
    def test_values_as_pydicom_has_them(self, text: str, vr: bytes | None, tag: int) -> None:
        """The values of UIDs and codes that are read from their bytes are those that pydicom reads."""
        value = text.encode("latin-1")
        value += b"\0" * (len(value) % 2)
        level = b"" if tag == 0x00080052 else b"\x08\0\x52\0%sSTUDY "
        key = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
        size = len(value)
        if vr is None:
            syntax, header = ImplicitVRLittleEndian, key + size.to_bytes(4, "little")
            level = level.replace(b"%s", b"\6\0\0\0")
        else:
            syntax, level = ExplicitVRLittleEndian, level.replace(b"%s", b"CS\6\0")
            header = key + vr + (b"\0\0" + size.to_bytes(4, "little") if vr == b"UN" else size.to_bytes(2, "little"))
        found: list[object] = []
        for decode in (False, True):
            identifier = decode_dataset(level + header + value, syntax)
            if decode:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    list(identifier)  # which makes pydicom decode each value
            try:
                found.append(compile_retrieve(identifier, Model.STUDY_ROOT, Negotiated(relational=True)).unique)
            except InvalidIdentifier as error:
                found.append(str(error))
        self.assertEqual(found[0], found[1])

    def test_statements_of_both_databases(self) -> None:
        """The parameters are in the order of the statement, or have its names."""
        levels = frozenset((Level.STUDY, Level.SERIES))
        statement, names, given = retrieval_of_one(sqlite.dialect(), levels)
        assert names is not None
        self.assertEqual((statement.count("?"), names[:3]), (len(names), ("STUDY", "SERIES", "most")))
        self.assertLessEqual(set(names), {*given, "STUDY", "SERIES", "most"})
        statement, names, given = retrieval_of_one(psycopg.dialect(), levels)
        self.assertIsNone(names)
        for name in ("STUDY", "SERIES", "most"):
            self.assertIn(f"%({name})s", statement)
        self.assertEqual(statement.count("%"), 3)

    def test_keys_that_are_not_supported(self) -> None:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "STUDY"
        identifier.Modality = "CT"
        identifier.PatientMotherBirthName = "X"
        identifier.add_new(0x00091001, "LO", "private")
        query = compile_find(identifier, Model.STUDY_ROOT)
        self.assertEqual(query.unsupported, [0x00080060, 0x00091001, 0x00101060])
        self.assertEqual(len(Search(self.archive.index.engine, query).numbers()), 2)

    def test_what_is_retrieved(self) -> None:
        def paths(level: str, model: Model = Model.STUDY_ROOT, **keys: Any) -> list[str]:
            identifier = item(QueryRetrieveLevel=level, **keys)
            search = Search(self.archive.index.engine, compile_retrieve(identifier, model))
            found = search.instances(self.archive.store, search.numbers())
            for one in found:
                self.assertEqual(Path(one.path).stat().st_size, one.size)
                self.assertEqual(one.transfer_syntax, ExplicitVRLittleEndian)
                self.assertEqual(one.sop_class_uid, "1.2.840.10008.5.1.4.1.1.7")
            numbers, at_once = search.all_instances(self.archive.store)
            assert numbers is not None
            self.assertEqual(at_once, search.instances(self.archive.store, numbers))
            self.assertEqual(sorted(numbers), [*search.numbers()])
            with mock.patch.object(finder, "RETRIEVAL_PAGE_SIZE", len(found) - 1):
                self.assertEqual(search.all_instances(self.archive.store), (None, []))
            return [one.sop_instance_uid for one in found]

        self.assertEqual(len(paths("PATIENT", Model.PATIENT_ROOT, PatientID="P1")), 6)
        self.assertEqual(len(paths("STUDY", StudyInstanceUID=["1.2.1", "1.2.2"])), 12)
        self.assertEqual(len(paths("SERIES", StudyInstanceUID="1.2.1", SeriesInstanceUID=["1.2.1.1", "1.2.1.3"])), 4)
        uids: dict[str, Any] = {
            "StudyInstanceUID": "1.2.1",
            "SeriesInstanceUID": "1.2.1.1",
            "SOPInstanceUID": ["1.2.1.1.2", "1.2.1.1.9"],
        }
        self.assertEqual(paths("IMAGE", **uids), ["1.2.1.1.2"])
        self.assertEqual(paths("STUDY", StudyInstanceUID="1.9"), [])
        for level, keys in (
            ("STUDY", {}),
            ("SERIES", {"SeriesInstanceUID": "1.2.1.1"}),
            ("IMAGE", {"StudyInstanceUID": "1.2.1"}),
            ("STUDY", {"StudyInstanceUID": "1.2.*"}),
            ("STUDY", {"StudyInstanceUID": ["1.2.1", "1.2.?"]}),
            ("SERIES", {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "*"}),
        ):
            identifier = item(QueryRetrieveLevel=level, **keys)
            self.assertRaises(InvalidIdentifier, compile_retrieve, identifier, Model.STUDY_ROOT)


class Answers(MatchingCase):
    """The encoding of answers."""

    def test_transfer_syntaxes(self) -> None:
        self.keep(dataset(3, Rows=512, PatientName="Doe^John", StudyDate="20200101", ImageType=["A", "B"]))
        keys: dict[str, Any] = dict.fromkeys(
            ("Rows", "PatientName", "StudyDate", "ImageType", "InstanceNumber", "SOPClassUID")
        )
        for transfer_syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
            (answer,) = ask(
                self.archive, "IMAGE", negotiated=Negotiated(relational=True), transfer_syntax=transfer_syntax, **keys
            )
            self.assertEqual((answer.Rows, answer.InstanceNumber, answer.StudyDate), (512, 3, "20200101"))
            self.assertEqual((answer.PatientName, list(answer.ImageType)), ("Doe^John", ["A", "B"]))
            self.assertEqual([int(one.tag) for one in answer], sorted(int(one.tag) for one in answer))

    def test_character_sets(self) -> None:
        names = {
            "ISO_IR 100": "Müller^Jörg",
            "ISO_IR 144": "Люксембург",
            "ISO_IR 192": "Wang^XiaoDong=王^小东",
            "GB18030": "Wang^XiaoDong=王^小东",
            "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
            "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
        }
        for number, (term, name) in enumerate(names.items(), 1):
            terms = term.split("\\") if "\\" in term else term
            self.keep(dataset(study=number, PatientID=str(number), PatientName=name, SpecificCharacterSet=terms))
        answers = ask(self.archive, "STUDY", PatientName=None)
        self.assertEqual([str(answer.PatientName) for answer in answers], list(names.values()))
        told = [
            "\\".join(value) if not isinstance(value := answer.SpecificCharacterSet, str) else value
            for answer in answers
        ]
        self.assertEqual(told, list(names))

    def test_mixed_character_sets(self) -> None:
        self.keep(dataset(1, PatientName="Müller", SpecificCharacterSet="ISO_IR 100"))
        made = dataset(1, study=2, PatientName="Müller", SpecificCharacterSet="ISO_IR 192", StudyDescription="Люж")
        self.keep(made)
        self.keep(dataset(2, PatientName="Müller", SpecificCharacterSet="ISO_IR 100"))
        first, second = ask(self.archive, "STUDY", PatientName=None, StudyDescription=None)
        self.assertEqual((first.SpecificCharacterSet, first.PatientName), ("ISO_IR 100", "Müller"))
        self.assertEqual((second.SpecificCharacterSet, second.PatientName), ("ISO_IR 192", "Müller"))
        self.assertEqual(second.StudyDescription, "Люж")

"""The query of a search becomes the identifier of a C-FIND, and the other way round."""

from __future__ import annotations

import time
import unittest

from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from dicomtwist.archive.query.compiler import InvalidIdentifier, Model, Negotiated, compile_find
from dicomtwist.dicomweb.parameters import (
    MAX_PARAMETERS,
    MAX_QUERY_LENGTH,
    MAX_RESULTS,
    MAX_WARNINGS,
    RETURN_KEYS,
    ParameterError,
    Warnings,
    parse_query,
    parse_search,
    search_query,
    tag_of,
)


def keys(query: str, level: str = "STUDY", **uids: str) -> dict[str, object]:
    """Return the matching keys of a search, by keyword."""
    identifier = parse_search(query, level, **uids).identifier
    found: dict[str, object] = {}
    for element in identifier:
        if element.VR == "SQ":
            inner = {one.keyword: one.value for one in element.value[0] if not one.is_empty} if element.value else {}
            if inner:
                found[element.keyword] = inner
        elif not element.is_empty and element.keyword != "QueryRetrieveLevel":
            found[element.keyword] = element.value
    return found


class Keys(unittest.TestCase):
    def test_table(self) -> None:
        for query, expected in (
            ("", {}),
            ("PatientID=A", {"PatientID": "A"}),
            ("00100020=A", {"PatientID": "A"}),
            ("patientid=A&0020000d=1.2", {"PatientID": "A", "StudyInstanceUID": "1.2"}),
            ("PatientName=Mu%2A", {"PatientName": "Mu*"}),  # dicomweb-client
            ("PatientName=M%C3%BCller%5EA%3Fa", {"PatientName": "Müller^A?a", "SpecificCharacterSet": "ISO_IR 192"}),
            ("PatientName=M+N", {"PatientName": "M N"}),
            ("PatientName=M%20N%2BO", {"PatientName": "M N+O"}),
            ("PatientName=A,B", {"PatientName": "A,B"}),
            ("PatientName=A,B&multiplevaluematching=true", {"PatientName": ["A", "B"]}),
            ("StudyDate=20200101-20201231", {"StudyDate": "20200101-20201231"}),
            ("StudyDate=20200101-&StudyTime=-1200", {"StudyDate": "20200101-", "StudyTime": "-1200"}),
            ("StudyInstanceUID=1.2,1.3", {"StudyInstanceUID": ["1.2", "1.3"]}),
            ("StudyInstanceUID=1.2%5C1.3", {"StudyInstanceUID": ["1.2", "1.3"]}),
            ("StudyInstanceUID=1.2&StudyInstanceUID=1.3", {"StudyInstanceUID": ["1.2", "1.3"]}),
            ("ModalitiesInStudy=CT,MR", {"ModalitiesInStudy": ["CT", "MR"]}),
            ("ModalitiesInStudy=CT%5CMR", {"ModalitiesInStudy": ["CT", "MR"]}),
            ("AccessionNumber=", {}),
            ("AccessionNumber=%22%22&emptyvaluematching=true", {"AccessionNumber": '""'}),
            ("PatientID", {}),
            ("&&PatientID=A&", {"PatientID": "A"}),
            ("PatientID=A=B", {"PatientID": "A=B"}),
            ("SpecificCharacterSet=x&RetrieveURL=y", {}),
        ):
            with self.subTest(query=query):
                self.assertEqual(keys(query), expected)

    def test_series_and_instances(self) -> None:
        for query, expected in (
            ("SeriesNumber=3", {"SeriesNumber": 3}),
            ("SeriesNumber=*", {}),
            (
                "RequestAttributesSequence.RequestedProcedureID=A",
                {"RequestAttributesSequence": {"RequestedProcedureID": "A"}},
            ),
            ("00400275.00401001=A", {"RequestAttributesSequence": {"RequestedProcedureID": "A"}}),
        ):
            with self.subTest(query=query):
                self.assertEqual(keys(query, "SERIES"), expected)
        self.assertEqual(keys("Rows=512&InstanceNumber=1", "IMAGE"), {"Rows": 512, "InstanceNumber": 1})
        time_zone = "AcquisitionDateTime=20200101000000+0100"
        self.assertEqual(keys(time_zone, "IMAGE"), {"AcquisitionDateTime": "20200101000000+0100"})

    def test_uids_in_the_path(self) -> None:
        self.assertEqual(
            keys("Modality=CT", "IMAGE", study="1.2", series="1.3"),
            {"Modality": "CT", "StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"},
        )
        for query, expected in (("", False), ("StudyInstanceUID=1.2,1.9", False), ("StudyInstanceUID=1.9", True)):
            search = parse_search(query, "SERIES", study="1.2")
            self.assertEqual((search.is_contradictory, search.identifier.StudyInstanceUID), (expected, "1.2"))

    def test_options(self) -> None:
        # The query of OHIF for a list of studies.
        search = parse_search("limit=101&offset=25&fuzzymatching=true&includefield=00081030%2C00080060", "STUDY")
        self.assertEqual((search.limit, search.offset, search.fuzzy, search.all_fields), (101, 25, True, False))
        self.assertIn("StudyDescription", search.identifier)
        self.assertEqual(search.warnings, ())
        search = parse_search("Limit=0&FuzzyMatching=FALSE&includefield=all&emptyvaluematching=true", "STUDY")
        self.assertEqual((search.limit, search.fuzzy, search.all_fields, search.empty_values), (0, False, True, True))
        self.assertEqual(parse_search("limit=99999999999999999999", "STUDY").limit, MAX_RESULTS)

    def test_return_keys(self) -> None:
        identifier = parse_search("PatientID=A", "STUDY").identifier
        self.assertEqual({element.keyword for element in identifier}, {*RETURN_KEYS["STUDY"], "QueryRetrieveLevel"})
        series = parse_search("", "SERIES", study="1.2").identifier
        self.assertNotIn("PatientName", series)
        self.assertEqual(list(series.RequestAttributesSequence[0].keys()), [0x00400009, 0x00401001])
        self.assertIn("PatientName", parse_search("", "SERIES").identifier)
        instances = parse_search("", "IMAGE", study="1.2").identifier
        self.assertIn("Modality", instances)
        self.assertNotIn("PatientName", instances)
        self.assertNotIn("Modality", parse_search("", "IMAGE", study="1.2", series="1.3").identifier)

    def test_include_fields(self) -> None:
        search = parse_search(
            "includefield=00101002.00100020&includefield=PatientAge,x,&includefield=00081190", "STUDY"
        )
        self.assertIn("PatientID", search.identifier.OtherPatientIDsSequence[0])
        self.assertIn("PatientAge", search.identifier)
        self.assertEqual(search.warnings, ("includefield=x is not known, and is ignored",))

    def test_warnings(self) -> None:
        search = parse_search(
            "x=1&PatientNam=A&00091001=B&PixelData=C&PatientID.PatientName=D&access_token%22%0A=E", "STUDY"
        )
        self.assertEqual(len(search.warnings), 6)
        self.assertEqual(search.warnings[-1], "access_token? is not known, and is ignored")
        many = parse_search("&".join(f"x{number}=" for number in range(100)), "STUDY")
        self.assertEqual(len(many.warnings), MAX_WARNINGS)
        warnings = Warnings().with_ignored("é" * 1000)
        self.assertLess(len(warnings[0]), 150)
        self.assertEqual(search.warnings.fields("pacs")[0], '299 pacs "x is not known, and is ignored"')

    def test_invalid_values(self) -> None:
        for query in (
            "limit=x",
            "limit=-1",
            "limit=",
            "limit=1.5",
            "offset=%D9%A1",
            "fuzzymatching=1",
            "emptyvaluematching=",
            "StudyInstanceUID=x",
            "SeriesNumber=x",
            "Rows=1.5",
            "RequestAttributesSequence=x",
            "PatientName=%FF",
            "PatientName=%00",
            "x" * (MAX_QUERY_LENGTH + 1),
            "x=&" * (MAX_PARAMETERS + 1),
        ):
            with self.subTest(query=query[:50]), self.assertRaises(ParameterError):
                parse_search(query, "IMAGE")
        with self.assertRaises(ParameterError):
            parse_query("PatientName=Müller".encode("latin-1"))

    def test_compiled(self) -> None:
        """Each search is one that the compiler of C-FIND takes."""
        for query in (
            "PatientName=A*&StudyDate=20200101-20201231&ModalitiesInStudy=CT,MR&StudyInstanceUID=1.2,1.3&includefield=all",
            "PatientName=M%C3%BCller&fuzzymatching=true",
            "RequestAttributesSequence.RequestedProcedureID=A&SeriesNumber=1&Modality=CT&NumberOfFrames=3",
        ):
            for level in ("STUDY", "SERIES", "IMAGE"):
                search = parse_search(query, level)
                negotiated = Negotiated(relational=True, fuzzy=search.fuzzy)
                compiled = compile_find(search.identifier, Model.STUDY_ROOT, negotiated)
                self.assertEqual(compiled.level.name, level)
                if "Request" not in query:
                    self.assertEqual(compiled.unsupported, [])

    @given(
        st.lists(
            st.tuples(
                st.one_of(
                    st.sampled_from(
                        ["PatientName", "StudyDate", "Rows", "00400275.00401001", "SeriesNumber", "includefield"]
                    ),
                    st.text(max_size=10),
                ),
                st.text(max_size=10),
            ),
            max_size=4,
        ),
        st.sampled_from(["STUDY", "SERIES", "IMAGE"]),
    )
    def test_any_parameters(self, parameters: list[tuple[str, str]], level: str) -> None:
        try:
            search = parse_search(parameters, level)
        except ParameterError:
            return
        try:
            compile_find(search.identifier, Model.STUDY_ROOT, Negotiated(relational=True))
        except InvalidIdentifier:
            pass

    def test_long_queries_take_little_time(self) -> None:
        begin = time.process_time()
        uids = ",".join(f"1.2.{number}" for number in range(10_000))
        self.assertEqual(len(parse_search(f"StudyInstanceUID={uids}", "STUDY").identifier.StudyInstanceUID), 10_000)
        for query in (
            "." * 200_000 + "=",
            "x." * 100_000,
            "PatientID=" + "%5C" * 80_000,
            "includefield=" + "," * 200_000,
        ):
            parse_search(query, "STUDY")
        self.assertLess(time.process_time() - begin, 3)

    def test_names(self) -> None:
        for name, expected in (
            ("PatientName", 0x00100010),
            ("patientname", 0x00100010),
            ("0020000D", 0x0020000D),
            ("0020000d", 0x0020000D),
            ("", None),
            ("0010001", None),
            ("0x100010", None),
        ):
            self.assertEqual(tag_of(name), expected)


class Queries(unittest.TestCase):
    def test_of_mappings(self) -> None:
        query = search_query(
            {"PatientName": "Mü*&=", "StudyInstanceUID": ["1.2", "1.3"], "00080061": ["CT", "MR"]},
            include=["StudyDescription", 0x00080060],
            fuzzy=True,
            limit=10,
            offset=5,
        )
        self.assertEqual(
            query,
            "PatientName=M%C3%BC*%26%3D&StudyInstanceUID=1.2,1.3&00080061=CT%5CMR"
            "&includefield=StudyDescription,00080060&fuzzymatching=true&limit=10&offset=5",
        )
        self.assertEqual(search_query(), "")
        with self.assertRaises(ParameterError):
            search_query({"Patient": "A"})

    def test_of_identifiers(self) -> None:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "SERIES"
        identifier.PatientID, identifier.StudyDescription = "A", None
        identifier.StudyInstanceUID = ["1.2", "1.3"]
        item = Dataset()
        item.RequestedProcedureID, item.ScheduledProcedureStepID = "B", None
        identifier.RequestAttributesSequence = [item]
        query = search_query(identifier)
        self.assertEqual(
            query, "00100020=A&0020000D=1.2,1.3&00400275.00401001=B&includefield=00081030,00400275.00400009"
        )
        found = parse_search(query, "SERIES").identifier
        for element in identifier:
            self.assertEqual(found[element.tag], element)

    @given(
        st.text(
            alphabet=st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\ ,"), min_size=1, max_size=20
        )
    )
    def test_round_trip(self, value: str) -> None:
        assert parse_search(search_query({"PatientID": value}), "STUDY").identifier.PatientID == value.strip(" ")

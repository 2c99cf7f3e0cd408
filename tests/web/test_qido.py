"""dicomtwist.web.qido: searches by HTTP, in memory, and the answers beside those to C-FIND."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock
from urllib.parse import quote

from pydicom import Dataset
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from dicomtwist.archive.index import reading
from dicomtwist.archive.index.index import IndexFailed
from dicomtwist.archive.query import search as searching
from dicomtwist.archive.query.answer_reader import AnswerReader
from dicomtwist.archive.query.compiler import Negotiated
from dicomtwist.dicomweb.parameters import parse_search
from tests.archive.samples import ask, dataset, keep
from tests.web.site import SiteTestCase, encode

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"


def values(answers: Sequence[dict[str, Any]], tag: str) -> list[Any]:
    """Return the values of an attribute in all answers."""
    return [value for answer in answers for value in answer[tag].get("Value", [None])]


def code(value: str) -> Dataset:
    """Return an item of a code sequence."""
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "99X"
    item.CodeMeaning = "überall"
    return item


def request_attributes(step: str) -> Dataset:
    """Return an item of the Request Attributes Sequence."""
    item = Dataset()
    item.ScheduledProcedureStepID = step
    item.RequestedProcedureID = f"R{step}"
    item.ScheduledProcedureStepDescription = "described"
    return item


class Searches(SiteTestCase):
    """
    An archive of three studies: CT of two series with five instances each, MR of one patient without a birth date, and US.
    """

    def setUp(self) -> None:
        super().setUp()
        for series in (1, 2):
            for number in range(1, 6):
                keep(
                    self.archive,
                    dataset(
                        number,
                        series,
                        1,
                        Modality="CT",
                        Rows=512,
                        Columns=256,
                        StudyDate="20200102",
                        StudyTime="101112",
                        SeriesDescription=f"series {series}",
                        PatientBirthDate="19700101",
                        RequestAttributesSequence=[request_attributes(str(series))],
                        ImagePositionPatient=[1, 2.5, number],
                    ),
                )
        keep(
            self.archive,
            dataset(
                1,
                1,
                2,
                Modality="MR",
                PatientID="P2",
                PatientName="Müller^Jürgen=山田^太郎=やまだ^たろう",
                SpecificCharacterSet="ISO_IR 192",
                StudyDate="20210304",
                AccessionNumber="A 2",
                StudyDescription='quo"te\\back',
                ProcedureCodeSequence=[code("C1")],
            ),
            "1.2.840.10008.1.2",
        )
        keep(
            self.archive, dataset(1, 1, 3, Modality="US", PatientID="P3", PatientName="Smith^Ann", StudyDate="20210305")
        )

    async def get(self, path: str, *, headers: Sequence[tuple[str, str]] = (), status: int = 200) -> Any:
        """Return the answers to a search."""
        response = await self.client().request("GET", f"/dicom-web{path}", headers)
        self.assertEqual(response.status, status, (path[:200], response.body))
        self.warnings = response.headers.get("warning", "")
        if status == 200:
            self.assertEqual(response.headers["content-type"], "application/dicom+json")
        return response.json

    async def test_resources(self) -> None:
        """The six resources of PS3.18 Table 10.6.1-1."""
        for path, tag, count in (
            ("/studies", STUDY, 3),
            ("/studies/1.2.1/series", SERIES, 2),
            ("/studies/1.2.1/instances", INSTANCE, 10),
            ("/studies/1.2.1/series/1.2.1.2/instances", INSTANCE, 5),
            ("/series", SERIES, 4),
            ("/instances", INSTANCE, 12),
        ):
            answers = await self.get(path)
            self.assertEqual(len(set(values(answers, tag))), count, path)
            self.assertEqual(self.warnings, "")

    async def test_attributes_of_a_study(self) -> None:
        """PS3.18 Table 10.6.3-3."""
        (answer,) = await self.get("/studies?PatientID=P2")
        self.assertEqual(
            answer,
            {
                "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
                "00080020": {"vr": "DA", "Value": ["20210304"]},
                "00080030": {"vr": "TM"},
                "00080050": {"vr": "SH", "Value": ["A 2"]},
                "00080054": {"vr": "AE", "Value": ["ARCHIVE"]},
                "00080056": {"vr": "CS", "Value": ["ONLINE"]},
                "00080061": {"vr": "CS", "Value": ["MR"]},
                "00080090": {"vr": "PN"},
                "00080201": {"vr": "SH"},
                "00081190": {"vr": "UR", "Value": ["http://127.0.0.1:8042/dicom-web/studies/1.2.2"]},
                "00100010": {
                    "vr": "PN",
                    "Value": [
                        {
                            "Alphabetic": "Müller^Jürgen",
                            "Ideographic": "山田^太郎",
                            "Phonetic": "やまだ^たろう",
                        }
                    ],
                },
                "00100020": {"vr": "LO", "Value": ["P2"]},
                "00100030": {"vr": "DA"},
                "00100040": {"vr": "CS"},
                "0020000D": {"vr": "UI", "Value": ["1.2.2"]},
                "00200010": {"vr": "SH"},
                "00201206": {"vr": "IS", "Value": [1]},
                "00201208": {"vr": "IS", "Value": [1]},
            },
        )

    async def test_attributes_of_series_and_instances(self) -> None:
        """PS3.18 Tables 10.6.3-4 and 10.6.3-5; a search of all studies has the attributes of the levels above."""
        first, second = await self.get("/studies/1.2.1/series")
        self.assertEqual(first["0008103E"]["Value"], ["series 1"])
        self.assertEqual(second["00201209"]["Value"], [5])
        self.assertEqual(second["00081190"]["Value"], ["http://127.0.0.1:8042/dicom-web/studies/1.2.1/series/1.2.1.2"])
        self.assertEqual(
            second["00400275"]["Value"],
            [{"00400009": {"vr": "SH", "Value": ["2"]}, "00401001": {"vr": "SH", "Value": ["R2"]}}],
        )
        self.assertNotIn("00100010", first)
        (answer,) = await self.get("/instances?SOPInstanceUID=1.2.1.2.4")
        self.assertEqual(answer["00280010"]["Value"], [512])
        self.assertEqual(answer["00200013"]["Value"], [4])
        self.assertEqual(answer["00083002"]["Value"], ["1.2.840.10008.1.2.1"])
        self.assertEqual(answer["00100010"]["Value"], [{"Alphabetic": "Doe^John"}])
        self.assertEqual(answer["0008103E"]["Value"], ["series 2"])
        self.assertTrue(answer["00081190"]["Value"][0].endswith("/studies/1.2.1/series/1.2.1.2/instances/1.2.1.2.4"))

    async def test_nothing(self) -> None:
        for path in (
            "/studies?PatientID=nobody",
            "/studies/9.9/series",
            "/studies/1.2.1/series/1.2.2.1/instances",
            "/studies/1.2.1/series?StudyInstanceUID=1.2.2",
            "/studies?offset=3",
            "/studies?limit=0",
        ):
            self.assertEqual(await self.get(path), [], path)

    async def test_includefield(self) -> None:
        (answer,) = await self.get("/studies?00100020=P2&includefield=StudyDescription,00081032")
        self.assertEqual(answer["00081030"]["Value"], ['quo"te', "back"])
        item = answer["00081032"]["Value"][0]
        self.assertEqual(item["00080104"], {"vr": "LO", "Value": ["überall"]})
        (answer,) = await self.get("/studies?00100020=P2&includefield=00081032.00080100")
        self.assertEqual(answer["00081032"]["Value"], [{"00080100": {"vr": "SH", "Value": ["C1"]}}])
        answers = await self.get("/studies/1.2.1/series?includefield=all")
        item = answers[0]["00400275"]["Value"][0]
        self.assertEqual(item["00400007"]["Value"], ["described"])
        self.assertEqual(answers[0]["00100010"]["Value"], [{"Alphabetic": "Doe^John"}])
        self.assertEqual(answers[0]["00201208"]["Value"], [10])
        answers = await self.get("/studies/1.2.1/series/1.2.1.1/instances?includefield=all&limit=1")
        self.assertEqual(answers[0]["00200032"]["Value"], [1, 2.5, 1])
        self.assertEqual(self.warnings, '299 dicomtwist "There are 4 additional results that can be requested"')

    async def test_warnings(self) -> None:
        answers = await self.get("/studies?PatientID=P&NoSuchName=1&StationAETitle=X&Rows=7&includefield=Nothing")
        self.assertEqual(len(answers), 1)
        for name in ("NoSuchName", "StationAETitle", "Rows", "includefield=Nothing"):
            self.assertIn(name, self.warnings)

    async def test_pages(self) -> None:
        """Pages join to the whole, in a stable order; the latest study is the first, other entities keep their order."""
        whole = values(await self.get("/studies"), STUDY)
        self.assertEqual(whole, ["1.2.3", "1.2.2", "1.2.1"])
        pages = [values(await self.get(f"/studies?limit=1&offset={at}"), STUDY)[0] for at in range(3)]
        self.assertEqual(pages, whole)
        for query in ("", "&PatientName=*o*", "&ImagePositionPatient=2.5", "&RequestAttributesSequence.00400009=*"):
            all_of = values(await self.get(f"/instances?{query}"), INSTANCE)
            for size in (1, 3, 4, 50):
                found: list[str] = []
                for at in range(0, 60, size):
                    page = values(await self.get(f"/instances?limit={size}&offset={at}{query}"), INSTANCE)
                    self.assertEqual(bool(self.warnings), at + size < len(all_of))
                    found += page
                    if len(page) < size:
                        break
                self.assertEqual(found, all_of, (query, size))

    async def test_further_results(self) -> None:
        """A warning reports further results, with their number if the database tests all keys."""
        for path, words in (
            ("/instances?limit=5&offset=2", "There are 5 additional results that can be requested"),
            ("/instances?limit=5&offset=7", ""),
            ("/instances?limit=11", "There are 1 additional results that can be requested"),
            ("/instances?limit=2", "There are more than 9 additional results that can be requested"),
            ("/instances?limit=2&ImagePositionPatient=2.5", "There are additional results that can be requested"),
        ):
            with mock.patch("dicomtwist.web.qido.MAX_COUNTED", 9):
                await self.get(path)
            self.assertEqual(self.warnings, f'299 dicomtwist "{words}"' if words else "", path)

    async def test_pages_in_turns(self) -> None:
        """The pages are the same if a search is interrupted at each chance."""
        paths = [
            f"/{resource}?limit={limit}&offset={offset}{query}"
            for resource in ("studies", "instances")
            for limit, offset in ((2, 0), (2, 1), (1, 2), (100, 1), (3, 9), (1, 20))
            for query in ("", "&ImagePositionPatient=2.5", "&PatientName=*")
        ]
        expected = [await self.get(path) for path in paths]
        with mock.patch.object(searching, "BATCH_SIZE", 1), mock.patch.object(searching, "is_turn_over", lambda: True):
            self.assertEqual([await self.get(path) for path in paths], expected)
        with mock.patch.object(searching, "FIRST_WINDOW", 2):
            read = reading.reading
            calls = 0

            def interrupted(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += options.get("in_turns", False)
                if calls % 3 == 1 and options.get("in_turns"):
                    raise reading.TurnOver
                return read(*arguments, **options)

            with mock.patch.object(searching, "reading", interrupted):
                self.assertEqual([await self.get(path) for path in paths], expected)

    async def test_compressed(self) -> None:
        """Answers are compressed for a client that takes gzip, if they are not short; streamed ones too."""
        gzip = (("Accept-Encoding", "gzip, deflate, br"),)
        expected = await self.get("/instances")
        for first_page in (searching.FIRST_PAGE_SIZE, 1):
            with (
                mock.patch.object(searching, "FIRST_PAGE_SIZE", first_page),
                mock.patch("dicomtwist.web.qido.FIRST_PAGE_SIZE", first_page),
            ):
                response = await self.client().request("GET", "/dicom-web/instances", gzip)
            self.assertEqual(response.headers["content-encoding"], "gzip")
            self.assertEqual(response.headers["vary"], "Accept, Accept-Encoding")
            self.assertEqual(response.json, expected)
        for path, headers in (("/studies?PatientID=P2", gzip), ("/instances", ())):
            response = await self.client().request("GET", f"/dicom-web{path}", headers)
            self.assertNotIn("content-encoding", response.headers)
            self.assertEqual(response.headers["vary"], "Accept, Accept-Encoding")

    async def test_long_answers_are_streamed(self) -> None:
        with mock.patch.object(searching, "FIRST_PAGE_SIZE", 1), mock.patch("dicomtwist.web.qido.FIRST_PAGE_SIZE", 1):
            response = await self.client().request("GET", "/dicom-web/instances")
        self.assertEqual(response.headers.get("transfer-encoding"), "chunked")
        self.assertEqual(len(response.json), 12)

    async def test_head(self) -> None:
        head = await self.client().request("HEAD", "/dicom-web/studies")
        self.assertEqual((head.status, head.body), (200, b""))

    async def test_media_types(self) -> None:
        for accept, status in (
            ("application/dicom+json", 200),
            ("*/*", 200),
            ("text/html,application/xhtml+xml,*/*;q=0.8", 200),
            ("application/*", 200),
            ('multipart/related; type="application/dicom+xml"', 406),
            ("application/dicom+json;q=0", 406),
            ("image/png", 406),
        ):
            await self.get("/studies", headers=[("Accept", accept)], status=status)
        response = await self.client().request("GET", "/dicom-web/studies", [("Accept", "application/json")])
        self.assertEqual(response.headers["content-type"], "application/json")

    async def test_invalid(self) -> None:
        for path in (
            "/studies?limit=-1",
            "/studies?limit=x",
            "/studies?offset=1.5",
            "/studies?StudyDate=yesterday",
            "/studies?StudyDate=20210101-20200101-",
            "/studies?StudyInstanceUID=abc",
            "/studies?fuzzymatching=perhaps",
            "/studies?%FF=1",
            "/studies?RequestAttributesSequence=1",
            "/studies/1.2.x/series",
            "/studies?StudyInstanceUID=" + ",".join(["1"] * 10_001),
        ):
            answer = await self.get(path, status=400)
            self.assertIn("words", answer, path)

    async def test_long_query(self) -> None:
        """A query of 2,000 UIDs, which is parsed in a thread."""
        uids = ",".join(["1.2.2", *(f"1.2.826.0.1.{number}" for number in range(2000))])
        (answer,) = await self.get(f"/studies?StudyInstanceUID={uids}")
        self.assertEqual(values([answer], STUDY), ["1.2.2"])

    async def test_too_many(self) -> None:
        with mock.patch.object(searching, "MAX_MATCHES", 2):
            await self.get("/studies", status=413)
            self.assertEqual(len(await self.get("/studies?limit=2")), 2)

    async def test_index_fails(self) -> None:
        with mock.patch.object(searching, "reading", side_effect=IndexFailed("gone")):
            answer = await self.get("/studies", status=503)
        self.assertNotIn("gone", answer["words"])
        self.flushLoggedErrors()

    async def test_client_goes(self) -> None:
        """The search of a client that has gone is cancelled."""
        cancelled: list[bool] = []
        waiting: Deferred[Any] = Deferred(lambda _: cancelled.append(True))
        with mock.patch.object(searching.Finder, "search", return_value=waiting):
            client = self.client()
            client.send(encode("GET", "/dicom-web/studies"))
            client.lose()
        self.assertEqual(cancelled, [True])
        self.clients.clear()

    async def test_client_that_does_not_read(self) -> None:
        """The next page is read when the connection takes it, and not while it is paused."""
        pages: list[int] = []
        read = AnswerReader.read

        def counted(reader: Any, page: Any) -> list[bytes]:
            pages.append(len(page))
            return read(reader, page)

        client = self.client()
        transport: Any = client.transport
        write = transport.write

        def written(data: bytes) -> None:
            write(data)
            transport.producer.pauseProducing()

        with (
            mock.patch.object(searching, "FIRST_PAGE_SIZE", 1),
            mock.patch("dicomtwist.web.qido.FIRST_PAGE_SIZE", 1),
            mock.patch.object(AnswerReader, "read", counted),
        ):
            with mock.patch.object(transport, "write", written):
                client.send(encode("GET", "/dicom-web/instances"))
                while b"[{" not in transport.value():
                    await transport.changed
                    await deferLater(reactor, 0)
            self.assertEqual(self.ae.executors.querying.vitals.queued, 0)
            self.assertEqual(pages, [1])
            transport.producer.resumeProducing()
            response = await client.response()
        self.assertEqual(len(response.json), 12)
        self.assertEqual(pages, [1, 2, 4, 5])

    async def test_answers_as_to_c_find(self) -> None:
        """Queries give the same entities and attributes as a C-FIND with the same keys."""
        for level, path, tag in (
            ("STUDY", "/studies", STUDY),
            ("SERIES", "/series", SERIES),
            ("IMAGE", "/instances", INSTANCE),
        ):
            for query in QUERIES:
                answers = await self.get(f"{path}?{query}")
                search = parse_search(query, level)
                keys = {element.keyword: element.value for element in search.identifier}
                del keys["QueryRetrieveLevel"]
                options = Negotiated(relational=True, fuzzy=search.fuzzy, empty_values=search.empty_values)
                found = {
                    str(one[int(tag, 16)].value): one for one in ask(self.archive, level, negotiated=options, **keys)
                }
                self.assertEqual(sorted(values(answers, tag)), sorted(found), (path, query))
                for answer in answers:
                    expected = found[answer[tag]["Value"][0]].to_json_dict()
                    for name in expected.keys() - {"00080005", "00080052", "00080054"}:
                        if expected[name] == {"vr": "SQ", "Value": []}:
                            del expected[name]["Value"]
                        self.assertEqual(answer[name], expected[name], (path, query, name))


QUERIES = (
    "",
    "PatientID=P",
    "PatientID=P*",
    "PatientID=P%3F",
    "00100020=P2",
    "PatientName=Doe%5EJohn",
    "PatientName=doe*",
    "PatientName=*",
    f"PatientName={quote('müller*')}",
    f"PatientName={quote('山田*')}",
    "PatientName=Schmidt&fuzzymatching=true",
    "PatientName=Smyth&fuzzymatching=true",
    "PatientName=Smyth",
    "StudyDate=20200102",
    "StudyDate=20210101-",
    "StudyDate=-20210304",
    "StudyDate=20210304-20210305",
    "StudyTime=1011-1012",
    "PatientBirthDate=19700101",
    "AccessionNumber=A+2",
    "AccessionNumber=A%202",
    "ModalitiesInStudy=CT",
    "ModalitiesInStudy=CT,MR",
    "ModalitiesInStudy=CT%5CUS",
    "StudyInstanceUID=1.2.1,1.2.3",
    "StudyInstanceUID=1.2.1%5C1.2.2",
    "StudyInstanceUID=1.2.1&StudyInstanceUID=1.2.2",
    "SOPClassesInStudy=1.2.840.10008.5.1.4.1.1.7",
    "StudyDescription=quo*",
    "ReferringPhysicianName=*",
    "ProcedureCodeSequence.CodeValue=C1",
    "00081032.00080100=C2",
    "ProcedureCodeSequence.CodeMeaning=*ber*",
    "NumberOfStudyRelatedInstances=1",
    "includefield=StudyDescription",
    "includefield=PatientComments&includefield=00101040",
    "PatientBirthDate=%22%22&emptyvaluematching=true",
    "PatientID=nobody",
    "StudyDate=20210304&PatientName=M*&ModalitiesInStudy=MR",
    "StudyID=*",
    "TimezoneOffsetFromUTC=%2B0100",
)

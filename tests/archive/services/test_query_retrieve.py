"""C-FIND, C-MOVE and C-GET of the archive: the answers, the instances that are sent, and the status of each failure."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from sqlalchemy import text
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher

from dicomtwist import (
    AE,
    Answers,
    Association,
    OperationFailed,
    Retrieval,
    RetrievalResult,
    SOPClassExtended,
    Status,
    build_context,
    build_role,
    evt,
)
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.index import IndexFailed
from dicomtwist.archive.query import search as finder
from dicomtwist.archive.services.query_retrieve import QueryRetrieve
from dicomtwist.archive.storage.types import Durability
from dicomtwist.runtime.executors import Executors
from dicomtwist.scp.dispatch import dispatch
from dicomtwist.transport.peer_directory import Peers
from dicomtwist.ul.pdu import AAssociateRQ
from tests.archive.samples import SECONDARY_CAPTURE, dataset, keep
from tests.memory import CT, MemoryTestCase
from tests.web.wado.test_damaged import DAMAGES

PATIENT_FIND, PATIENT_MOVE, PATIENT_GET = (f"1.2.840.10008.5.1.4.1.2.1.{number}" for number in (1, 2, 3))
STUDY_FIND, STUDY_MOVE, STUDY_GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
ONLY_FIND, ONLY_MOVE, ONLY_GET = (f"1.2.840.10008.5.1.4.1.2.3.{number}" for number in (1, 2, 3))
MODELS = (
    *(PATIENT_FIND, PATIENT_MOVE, PATIENT_GET),
    *(STUDY_FIND, STUDY_MOVE, STUDY_GET),
    *(ONLY_FIND, ONLY_MOVE, ONLY_GET),
)
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit)


def keys(level: str, **values: Any) -> Dataset:
    """An identifier."""
    made = Dataset()
    made.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def compressed(number: int = 1, **elements: Any) -> Dataset:
    """An instance with one fragment of pixel data that no test decodes."""
    made = dataset(number, SOPClassUID=CT, **elements)
    made.add_new(0x7FE00010, "OB", encapsulate([b"\xff\xd8 no picture \xff\xd9"]))
    made["PixelData"].is_undefined_length = True
    return made


class QueryRetrieveTestCase(MemoryTestCase):
    """
    An archive of two studies of patient P, the second with two series, and one of patient Q.

    :ivar stored: the SOP Instance UIDs that arrived, in order; ``syntaxes`` are their transfer syntaxes.
    :ivar refuse: the statuses with which some of them are refused.
    """

    def setUp(self) -> None:
        super().setUp()
        self.root = Path(self.mktemp())
        self.archive = Archive(self.root, durability=Durability.NONE)
        self.archive.open()
        self.addCleanup(self.archive.close)
        self.keep(
            *(dataset(number, study=1, StudyDate="20240101", PatientID="P") for number in (1, 2)),
            *(dataset(number, study=2, StudyDate="20240202", PatientID="P") for number in (1, 10, 2)),
            dataset(1, series=2, study=2, StudyDate="20240202", PatientID="P"),
            dataset(1, study=3, StudyDate="20240303", PatientID="Q", PatientName="Jeckyll^Ann"),
        )
        self.stored: list[str] = []
        self.syntaxes: list[str] = []
        self.events: list[evt.StoreEvent] = []
        self.refuse: dict[str, int] = {}
        self.proposed: list[list[tuple[str, list[str]]]] = []
        self.query_retrieve = QueryRetrieve(
            self.archive,
            Executors(self.network).querying,
            "ARCHIVE",
            Peers(self.network, ["SCU=tcp:127.0.0.1:106", "PLAIN=127.0.0.1:106", "NOWHERE=127.0.0.1:107"]),
        )
        self.scp.supported_contexts = [build_context(model, self.query_syntaxes()) for model in MODELS]
        for sop_class in (SECONDARY_CAPTURE, CT):
            self.scp.add_supported_context(sop_class, SYNTAXES, scu_role=True, scp_role=True)
        self.scp.bind(evt.EVT_SOP_EXTENDED, self.query_retrieve.handle_extended)
        self.server = self.listen(*dispatch(self.query_retrieve.routes))

    @staticmethod
    def query_syntaxes() -> list[str]:
        return [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]

    def keep(self, *instances: Dataset, syntax: str = ExplicitVRLittleEndian) -> None:
        for one in instances:
            self.assertIsNone(keep(self.archive, one, syntax))
        self.archive.catch_up()

    def store(self, event: evt.StoreEvent) -> int:
        self.stored.append(event.request.affected_sop_instance_uid)
        self.syntaxes.append(event.context.transfer_syntax)
        self.events.append(event)
        return self.refuse.get(self.stored[-1], 0)

    def asking_for(self, *models: str, extended: dict[str, bytes] | None = None, **options: Any) -> Association:
        """An association for *models*, and for storing the instances of a C-GET."""
        contexts = [build_context(model, options.pop("syntax", ExplicitVRLittleEndian)) for model in models]
        contexts += [build_context(SECONDARY_CAPTURE, SYNTAXES[:2]), build_context(CT, JPEGBaseline8Bit)]
        return self.associate(
            contexts=contexts,
            ext_neg=[
                *(build_role(sop_class, scp_role=True) for sop_class in (SECONDARY_CAPTURE, CT)),
                *(SOPClassExtended(model, information) for model, information in (extended or {}).items()),
            ],
            evt_handlers=[(evt.EVT_C_STORE, self.store)],
        )

    def all_of(self, answers: Answers) -> list[tuple[Status, Dataset | None]]:
        """Every response of *answers*."""

        async def take() -> list[tuple[Status, Dataset | None]]:
            return [answer async for answer in answers]

        taking = Deferred.fromCoroutine(take())
        self.network.flush()
        return self.successResultOf(taking)

    def find(self, identifier: Dataset, model: str = STUDY_FIND, **options: Any) -> list[Dataset]:
        """The matches of a query, on an association of its own; all statuses are those of plain success."""
        assoc = self.asking_for(model, **options)
        answers = self.all_of(assoc.send_c_find(identifier, model))
        self.assertEqual([int(status) for status, _ in answers], [0xFF00] * (len(answers) - 1) + [0])
        return [found for _, found in answers if found is not None]

    def refused(self, identifier: Dataset, model: str = STUDY_FIND, **options: Any) -> tuple[int, str]:
        """The status of a C-FIND whose only response it is, and its comment."""
        assoc = self.asking_for(model, **options)
        ((status, found),) = self.all_of(assoc.send_c_find(identifier, model))
        self.assertIsNone(found)
        self.assertTrue(assoc.is_established)
        return int(status), status.error_comment or ""

    def ended(self, retrieval: Retrieval) -> RetrievalResult:
        """The final response of a retrieval, also of a failed one."""
        waiting = retrieval.when_done()
        self.network.flush()
        results: list[Any] = []
        waiting.addBoth(results.append)
        (result,) = results
        if isinstance(result, RetrievalResult):
            return result
        assert isinstance(result.value, OperationFailed), result
        assert isinstance(result.value.result, RetrievalResult)
        return result.value.result

    @contextmanager
    def in_pages(self, size: int) -> Iterator[None]:
        """Make pages of *size* answers within the block."""
        with (
            mock.patch.object(finder.Found.pages, "__defaults__", (size,)),
            mock.patch.object(finder, "FIRST_PAGE_SIZE", size),
            mock.patch.object(finder, "PAGE_SIZE", size),
            mock.patch.object(finder, "RETRIEVAL_PAGE_SIZE", size),
        ):
            yield

    def break_index(self) -> None:
        with self.archive.index.engine.begin() as connection:
            connection.execute(text("DROP TABLE instance"))


class FindTests(QueryRetrieveTestCase):
    def test_each_level_and_model(self) -> None:
        """The answers contain the unique keys of all levels of the model, whether the identifier has them or not."""
        for model, level, asked, expected in (
            (PATIENT_FIND, "PATIENT", {}, ["P", "Q"]),
            (PATIENT_FIND, "STUDY", {"PatientID": "P"}, ["P 1.2.1", "P 1.2.2"]),
            (PATIENT_FIND, "SERIES", {"PatientID": "P", "StudyInstanceUID": "1.2.2"}, ["P 1.2.2 1.2.2.1", "P 1.2.2 1.2.2.2"]),
            (
                PATIENT_FIND,
                "IMAGE",
                {"PatientID": "P", "StudyInstanceUID": "1.2.2", "SeriesInstanceUID": "1.2.2.2"},
                ["P 1.2.2 1.2.2.2 1.2.2.2.1"],
            ),
            (STUDY_FIND, "STUDY", {}, ["1.2.1", "1.2.2", "1.2.3"]),
            (STUDY_FIND, "SERIES", {"StudyInstanceUID": "1.2.2"}, ["1.2.2 1.2.2.1", "1.2.2 1.2.2.2"]),
            (
                STUDY_FIND,
                "IMAGE",
                {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1"},
                ["1.2.1 1.2.1.1 1.2.1.1.1", "1.2.1 1.2.1.1 1.2.1.1.2"],
            ),
            (ONLY_FIND, "PATIENT", {}, ["P", "Q"]),
            (ONLY_FIND, "STUDY", {"PatientID": "Q"}, ["Q 1.2.3"]),
        ):  # fmt: skip
            found = self.find(keys(level, **asked), model)
            unique = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            told = [" ".join(str(one[name].value) for name in unique if name in one) for one in found]
            self.assertEqual(told, expected, f"{model} {level}")
            for one in found:
                self.assertEqual(one.QueryRetrieveLevel, level)
                self.assertEqual((one.RetrieveAETitle, one.InstanceAvailability), ("ARCHIVE", "ONLINE"))

    def test_levels_that_a_model_has_not(self) -> None:
        for model, level in ((STUDY_FIND, "PATIENT"), (ONLY_FIND, "SERIES"), (ONLY_FIND, "IMAGE")):
            expected = (0xA900, f"the information model has no level {level}")
            self.assertEqual(self.refused(keys(level, PatientID=""), model), expected)

    def test_each_transfer_syntax(self) -> None:
        for syntax in self.query_syntaxes():
            found = self.find(keys("STUDY", PatientName="Doe*", NumberOfStudyRelatedInstances=""), syntax=syntax)
            told = [(str(one.PatientName), one.NumberOfStudyRelatedInstances) for one in found]
            self.assertEqual(told, [("Doe^John", 2), ("Doe^John", 4)], syntax)

    def test_nothing(self) -> None:
        self.assertEqual(self.find(keys("STUDY", PatientName="Nobody")), [])

    def test_pages(self) -> None:
        """If there are more answers than are read at once, each arrives once, in order."""
        self.keep(*(dataset(number, study=9) for number in range(1, 22)))
        asked = keys("IMAGE", StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", InstanceNumber="")
        for size in (10, 7, 21, 22):
            with self.in_pages(size):
                self.assertEqual([one.InstanceNumber for one in self.find(asked)], [*range(1, 22)])

    def test_keys_that_are_not_looked_at(self) -> None:
        """0xFF01: an unsupported key is not returned and does not narrow the query (PS3.4 C.4.1.1.4)."""
        assoc = self.asking_for(STUDY_FIND)
        answers = self.all_of(assoc.send_c_find(keys("STUDY", PatientID="Q", Rows=512), STUDY_FIND))
        self.assertEqual([int(status) for status, _ in answers], [0xFF01, 0])
        assert answers[0][1] is not None
        self.assertNotIn("Rows", answers[0][1])
        self.assertEqual(answers[0][1].StudyInstanceUID, "1.2.3")

    def test_identifiers_that_are_none(self) -> None:
        """0xA900, with a comment that says why; the log says it too, but for values."""
        lines: list[str] = []
        look = cast(ILogObserver, lambda event: lines.append(formatEvent(event)))
        globalLogPublisher.addObserver(look)
        self.addCleanup(globalLogPublisher.removeObserver, look)
        for asked, comment in (
            (Dataset(), "Query/Retrieve Level is missing"),
            (keys("SLICE"), "an invalid Query/Retrieve Level of 5 characters"),
            (keys("SERIES"), "StudyInstanceUID is missing, a query for SERIES needs it"),
            (keys("SERIES", StudyInstanceUID=["1.2.1", "1.2.2"]), "StudyInstanceUID has to be a single value"),
            (keys("STUDY", StudyDate="20240101-2024010"), "StudyDate: '20240101-2024010' is no date and no range of dates"),
        ):  # fmt: skip
            lines.clear()
            self.assertEqual(self.refused(asked), (0xA900, comment))
            (line,) = [one for one in lines if "refused with 0xA900" in one]
            logged = comment if "'" not in comment else "StudyDate: an invalid value"
            self.assertTrue(line.startswith("C-FIND of '") and line.endswith(f"refused with 0xA900: {logged}"), line)

    def test_bytes_that_are_no_data_set(self) -> None:
        assoc = self.asking_for(STUDY_FIND)
        with mock.patch("dicomtwist.scu.dimse_c.encode_identifier", lambda *_: b"\x08\x00\x52\x00CS\xff\x00garbage!"):
            ((status, _),) = self.all_of(assoc.send_c_find(keys("STUDY"), STUDY_FIND))
        self.assertEqual((int(status), status.error_comment), (0xA900, "the identifier cannot be read"))
        self.assertTrue(assoc.is_established)

    def test_the_index_fails(self) -> None:
        """0xA700, and the log says why; the association goes on."""
        self.break_index()
        asked = keys("IMAGE", StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1")
        self.assertEqual(self.refused(asked), (0xA700, "the index cannot be read"))
        self.assertEqual(len(self.find(keys("STUDY"))), 3)

    def test_the_index_fails_later(self) -> None:
        """After the first page the answers end with 0xA700."""
        self.keep(*(dataset(number, study=9) for number in range(1, 12)))
        rows, pages = finder.Search.rows, 0

        def failing(search: finder.Search, *args: Any) -> Any:
            nonlocal pages
            pages += 1
            if pages > 1:
                raise IndexFailed("index: disk I/O error")
            return rows(search, *args)

        assoc = self.asking_for(STUDY_FIND)
        asked = keys("IMAGE", StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1")
        with self.in_pages(10), mock.patch.object(finder.Search, "rows", failing):
            answers = self.all_of(assoc.send_c_find(asked, STUDY_FIND))
        self.assertEqual([int(status) for status, _ in answers], [0xFF00] * 10 + [0xA700])

    def test_too_many(self) -> None:
        with mock.patch.object(finder, "MAX_MATCHES", 2):
            self.assertEqual(self.refused(keys("STUDY")), (0xA700, "more than 2 match"))

    def test_cancelled(self) -> None:
        """A cancelled query ends with 0xFE00, and no further page is read."""
        comments = "x" * 10_000
        many = 200
        self.keep(*(dataset(number, study=9, ImageComments=comments) for number in range(1, many + 1)))
        rows, pages = finder.Search.rows, 0

        def counted(search: finder.Search, *args: Any) -> Any:
            nonlocal pages
            pages += 1
            return rows(search, *args)

        assoc = self.asking_for(STUDY_FIND)
        asked = keys("IMAGE", StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", ImageComments="")

        async def take_some(answers: Answers) -> list[int]:
            statuses = []
            async for status, _ in answers:
                statuses.append(int(status))
                if len(statuses) == 3:
                    answers.cancel()
            return statuses

        with self.in_pages(10), mock.patch.object(finder.Search, "rows", counted):
            taking = Deferred.fromCoroutine(take_some(assoc.send_c_find(asked, STUDY_FIND)))
            self.network.flush()
        statuses = self.successResultOf(taking)
        self.assertEqual(statuses[-1], 0xFE00)
        self.assertLess(len(statuses), many)
        self.assertLess(pages, 20)
        self.assertEqual(len(self.all_of(assoc.send_c_find(keys("STUDY"), STUDY_FIND))), 5)


class NegotiationTests(QueryRetrieveTestCase):
    """SOP Class extended negotiation (PS3.4 C.5)."""

    def test_answered(self) -> None:
        """A byte is accepted if the option that it requests is supported; the answer has as many bytes as the request."""
        wanted = {
            PATIENT_FIND: b"\1\0\1",
            STUDY_FIND: b"\1\1\1\1\1\1",
            ONLY_FIND: b"\1\1\1\1\1\1\1\1",
            STUDY_MOVE: b"\1\1",
            STUDY_GET: b"\0",
            CT: b"\2\0",
        }
        assoc = self.asking_for(PATIENT_FIND, STUDY_FIND, ONLY_FIND, STUDY_MOVE, STUDY_GET, extended=wanted)
        self.assertEqual(
            assoc.acceptor.sop_class_extended,
            {
                PATIENT_FIND: b"\1\0\1",
                STUDY_FIND: b"\1\1\1\1\0\1",
                ONLY_FIND: b"\1\1\1\1\0\1",
                STUDY_MOVE: b"\1",
                STUDY_GET: b"\0",
            },
        )

    def test_used(self) -> None:
        """Each option has its effect, and has none if it is not negotiated."""
        self.keep(
            dataset(1, study=4, StudyDate="20240404", StudyTime="230000", PatientID="R", PatientName="Smith^A"),
            dataset(1, study=5, StudyDate="20240405", StudyTime="010000", PatientID="S", PatientName="Smyth^B"),
            dataset(1, study=6, StudyDate="", PatientID="T", PatientName="T"),
        )
        moment = {"StudyDate": "20240404-20240405", "StudyTime": "220000-020000"}
        for information, asked, expected in (
            (b"\0\0\1", {"PatientName": "Smith"}, ["4", "5"]),
            (b"\0\0\0", {"PatientName": "Smith*"}, ["4"]),
            (b"\0\1", moment, ["4", "5"]),
            (b"\0\0\0\0\0\1", {"StudyDate": '""'}, ["6"]),
            (b"\0\0\0\1", {"StudyDate": "20240404", "TimezoneOffsetFromUTC": "+0000"}, ["4"]),
        ):
            found = self.find(keys("STUDY", **asked), extended={STUDY_FIND: information})
            uids = [str(one.StudyInstanceUID).rpartition(".")[2] for one in found]
            self.assertEqual(sorted(uids), expected, f"{information!r} {asked}")

    def test_used_of_the_context_alone(self) -> None:
        """Options negotiated for one SOP Class do not apply to another."""
        relational = keys("IMAGE", PatientID="P")
        extended = {STUDY_FIND: b"\1"}
        self.assertEqual(len(self.find(relational, STUDY_FIND, extended=extended)), 6)
        assoc = self.asking_for(STUDY_FIND, PATIENT_FIND, extended=extended)
        ((status, _),) = self.all_of(assoc.send_c_find(relational, PATIENT_FIND))
        self.assertEqual(status, 0xA900)

    def test_relational_retrieval(self) -> None:
        for extended, expected in (({STUDY_GET: b"\1"}, ["1.2.2.2.1"]), ({}, [])):
            self.stored.clear()
            assoc = self.asking_for(STUDY_GET, extended=extended)
            result = self.ended(assoc.send_c_get(keys("SERIES", SeriesInstanceUID="1.2.2.2"), STUDY_GET))
            self.assertEqual((int(result.status), self.stored), (0 if expected else 0xA900, expected))


class GetTests(QueryRetrieveTestCase):
    def get(self, identifier: Dataset, model: str = STUDY_GET) -> RetrievalResult:
        """Retrieve on an association of its own."""
        assoc = self.asking_for(model)
        result = self.ended(assoc.send_c_get(identifier, model))
        self.assertTrue(assoc.is_established)
        return result

    def test_each_level_and_model(self) -> None:
        """Instances are sent in the order of series and Instance Number."""
        of_series = {"PatientID": "P", "StudyInstanceUID": "1.2.2", "SeriesInstanceUID": "1.2.2.1"}
        study_2 = ["1.2.2.1.1", "1.2.2.1.2", "1.2.2.1.10", "1.2.2.2.1"]
        for model, level, asked, expected in (
            (PATIENT_GET, "PATIENT", {"PatientID": "P"}, ["1.2.1.1.1", "1.2.1.1.2", *study_2]),
            (PATIENT_GET, "STUDY", {"PatientID": "P", "StudyInstanceUID": "1.2.2"}, study_2),
            (PATIENT_GET, "SERIES", of_series, study_2[:3]),
            (PATIENT_GET, "IMAGE", {**of_series, "SOPInstanceUID": "1.2.2.1.2"}, ["1.2.2.1.2"]),
            (STUDY_GET, "STUDY", {"StudyInstanceUID": ["1.2.1", "1.2.3"]}, ["1.2.1.1.1", "1.2.1.1.2", "1.2.3.1.1"]),
            (ONLY_GET, "STUDY", {"PatientID": "Q", "StudyInstanceUID": "1.2.3"}, ["1.2.3.1.1"]),
            (STUDY_GET, "STUDY", {"StudyInstanceUID": "1.2.99"}, []),
            (STUDY_GET, "PATIENT", {"PatientID": "P"}, ["1.2.1.1.1", "1.2.1.1.2", *study_2]),
            (STUDY_GET, "PATIENT", {"PatientID": ["Q", "R"], "StudyInstanceUID": "1.2.1"}, ["1.2.3.1.1"]),
        ):  # fmt: skip
            self.stored.clear()
            result = self.get(keys(level, **asked), model)
            self.assertEqual((int(result.status), self.stored), (0, expected), f"{model} {asked}")
            self.assertEqual(result.suboperations.completed, len(expected))

    def test_pages(self) -> None:
        with self.in_pages(2):
            self.assertEqual(self.get(keys("STUDY", StudyInstanceUID="1.2.2")).suboperations.completed, 4)
        self.assertEqual(self.stored, ["1.2.2.1.1", "1.2.2.1.2", "1.2.2.1.10", "1.2.2.2.1"])

    def test_compressed(self) -> None:
        """A compressed instance is sent unchanged; if no context accepts its transfer syntax, its sub-operation fails."""
        self.keep(compressed(study=7), compressed(2, study=7), syntax=JPEGBaseline8Bit)
        self.assertEqual(self.get(keys("STUDY", StudyInstanceUID="1.2.7")).status, 0)
        self.assertEqual(self.syntaxes, [JPEGBaseline8Bit] * 2)
        assoc = self.associate(
            contexts=[build_context(STUDY_GET), build_context(CT, ExplicitVRLittleEndian)],
            ext_neg=[build_role(CT, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, self.store)],
        )
        result = self.ended(assoc.send_c_get(keys("STUDY", StudyInstanceUID="1.2.7"), STUDY_GET))
        self.assertEqual((int(result.status), result.failed_instances), (0xA702, ["1.2.7.1.1", "1.2.7.1.2"]))

    def test_a_file_is_gone(self) -> None:
        """Its sub-operation fails, and its UID is in the list of failures."""
        (self.root / "1.2.2" / "1.2.2.1" / "1.2.2.1.2.dcm").unlink()
        result = self.get(keys("STUDY", StudyInstanceUID="1.2.2"))
        self.assertEqual((int(result.status), result.failed_instances), (0xB000, ["1.2.2.1.2"]))
        counts = result.suboperations
        self.assertEqual((counts.completed, counts.failed, counts.warning), (3, 1, 0))
        self.assertEqual(self.stored, ["1.2.2.1.1", "1.2.2.1.10", "1.2.2.2.1"])

    def test_a_file_is_damaged(self) -> None:
        """Its sub-operation fails; the others of its study are sent."""
        path = self.root / "1.2.2" / "1.2.2.1" / "1.2.2.1.2.dcm"
        for name, damage in DAMAGES.items():
            content = path.read_bytes()
            damage(path)
            self.stored.clear()
            result = self.get(keys("STUDY", StudyInstanceUID="1.2.2"))
            self.assertEqual((int(result.status), result.failed_instances), (0xB000, ["1.2.2.1.2"]), name)
            self.assertEqual(self.stored, ["1.2.2.1.1", "1.2.2.1.10", "1.2.2.2.1"], name)
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        self.stored.clear()
        self.assertEqual(self.get(keys("STUDY", StudyInstanceUID="1.2.2")).status, 0)

    def test_refused_by_the_peer(self) -> None:
        self.refuse = {"1.2.2.1.10": 0xA700}
        result = self.get(keys("STUDY", StudyInstanceUID="1.2.2"))
        self.assertEqual((int(result.status), result.failed_instances), (0xB000, ["1.2.2.1.10"]))

    def test_identifiers_that_are_none(self) -> None:
        for asked, comment in (
            (Dataset(), "Query/Retrieve Level is missing"),
            (keys("STUDY"), "StudyInstanceUID is missing"),
            (keys("SERIES", SeriesInstanceUID="1.2.1.1"), "StudyInstanceUID is missing, a query for SERIES needs it"),
            (keys("PATIENT", StudyInstanceUID="1.2.1"), "PatientID is missing"),
            (keys("PATIENT", PatientID=""), "PatientID is missing"),
        ):
            result = self.get(asked)
            self.assertEqual((int(result.status), result.status.error_comment), (0xA900, comment))
        self.assertEqual(self.stored, [])

    def test_the_index_fails(self) -> None:
        self.break_index()
        result = self.get(keys("STUDY", StudyInstanceUID="1.2.2"))
        self.assertEqual((int(result.status), result.status.error_comment), (0xA701, "the index cannot be read"))

    def test_cancelled(self) -> None:
        """After the second instance only those already on their way arrive; the counts include the rest."""
        self.keep(*(dataset(number, study=9) for number in range(1, 101)))
        assoc = self.asking_for(STUDY_GET)
        retrieval = assoc.send_c_get(keys("STUDY", StudyInstanceUID="1.2.9"), STUDY_GET)

        def store(event: evt.StoreEvent) -> int:
            if len(self.stored) == 1:
                retrieval.cancel()
            return self.store(event)

        assoc.unbind(evt.EVT_C_STORE, self.store)
        assoc.bind(evt.EVT_C_STORE, store)
        result = self.ended(retrieval)
        self.assertEqual(result.status, 0xFE00)
        self.assertLess(len(self.stored), 10)
        self.assertEqual(result.suboperations.completed, len(self.stored))
        self.assertEqual(result.suboperations.remaining, 100 - len(self.stored))
        self.assertEqual(len(self.all_of(assoc.send_c_get(keys("STUDY", StudyInstanceUID="1.2.3"), STUDY_GET))), 1)


class MoveTests(QueryRetrieveTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.destination = AE("DESTINATION", reactor=self.network)
        self.destination.supported_contexts = [build_context(uid, SYNTAXES) for uid in (SECONDARY_CAPTURE, CT)]

    def tearDown(self) -> None:
        super().tearDown()
        self.assertEqual(self.destination._associations, set())

    def listening(self) -> None:
        """Start the destination."""
        handlers = [(evt.EVT_C_STORE, self.store), (evt.EVT_PDU_RECV, self.received)]
        self.network.result_of(self.destination.start_server(106, evt_handlers=handlers))

    def received(self, event: evt.Event) -> None:
        if isinstance(event.pdu, AAssociateRQ):
            self.proposed.append(
                [(each.abstract_syntax, [*each.transfer_syntaxes]) for each in event.pdu.presentation_contexts]
            )

    def move(self, identifier: Dataset, destination: str = "SCU", model: str = STUDY_MOVE) -> RetrievalResult:
        """Perform a C-MOVE on an association of its own."""
        assoc = self.asking_for(model)
        result = self.ended(assoc.send_c_move(identifier, destination, model))
        self.assertTrue(assoc.is_established)
        return result

    def test_all(self) -> None:
        """To an endpoint and to a host with a port, in each model; each instance names the AE that requested the C-MOVE."""
        self.listening()
        for destination, model in (("SCU", STUDY_MOVE), ("PLAIN", PATIENT_MOVE), ("SCU", ONLY_MOVE)):
            self.stored.clear()
            self.events.clear()
            result = self.move(keys("STUDY", PatientID="P", StudyInstanceUID="1.2.2"), destination, model)
            self.assertEqual((int(result.status), result.suboperations.completed), (0, 4))
            self.assertEqual(self.stored, ["1.2.2.1.1", "1.2.2.1.2", "1.2.2.1.10", "1.2.2.2.1"])
            for event in self.events:
                self.assertEqual(event.request.move_originator_application_entity_title, "SCU")
                self.assertEqual(event.assoc.requestor.called_ae_title, destination)

    def test_contexts(self) -> None:
        """
        One association proposes contexts for all instances: each transfer syntax of a SOP Class in one of its own, and the
        uncompressed ones in a further one with alternatives, which is last if there are several uncompressed ones.
        """
        self.listening()
        self.keep(dataset(3, study=7), dataset(4, study=7), syntax=ImplicitVRLittleEndian)
        self.keep(compressed(1, study=7), compressed(2, study=7), syntax=JPEGBaseline8Bit)
        self.keep(dataset(5, study=7, SOPClassUID=CT))
        self.assertEqual(self.move(keys("STUDY", StudyInstanceUID="1.2.7")).suboperations.completed, 5)
        self.assertEqual(
            self.proposed,
            [
                [
                    (CT, [JPEGBaseline8Bit]),
                    (SECONDARY_CAPTURE, [ImplicitVRLittleEndian]),
                    (CT, [ExplicitVRLittleEndian]),
                    (SECONDARY_CAPTURE, [ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
                    (CT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]),
                ]
            ],
        )
        compressed_ones = [JPEGBaseline8Bit] * 2
        self.assertEqual(self.syntaxes, [*compressed_ones, *[ImplicitVRLittleEndian] * 2, ExplicitVRLittleEndian])

    def test_gdcm(self) -> None:
        """
        GDCM's SCP reads every data set in the transfer syntax of the last context that it accepted: Implicit VR if that is
        among several. All that can be converted arrives in it; a compressed instance fails alone.
        """
        self.destination.implementation_class_uid = "1.2.826.0.1.3680043.2.1143.107.104.103.115.3.0.21"
        order = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
        self.destination.supported_contexts = [build_context(uid, order) for uid in (SECONDARY_CAPTURE, CT)]
        self.listening()
        big, deflated = ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian
        for study, (syntaxes, expected) in enumerate(
            (
                ([ExplicitVRLittleEndian], ExplicitVRLittleEndian),
                ([ImplicitVRLittleEndian], ImplicitVRLittleEndian),
                ([big], ImplicitVRLittleEndian),
                ([deflated], ImplicitVRLittleEndian),
                *((list(both), ImplicitVRLittleEndian) for both in itertools.permutations(order)),
                *((list(three), ImplicitVRLittleEndian) for three in itertools.permutations([*order, big])),
                *((list(both), ImplicitVRLittleEndian) for both in itertools.permutations([big, deflated])),
            ),
            7,
        ):
            for number, syntax in enumerate(syntaxes):
                sop_class = (SECONDARY_CAPTURE, CT)[number % 2]
                self.keep(dataset(number, study=study, SOPClassUID=sop_class), syntax=syntax)
            self.keep(compressed(9, study=study), syntax=JPEGBaseline8Bit)
            self.proposed.clear()
            self.syntaxes.clear()
            result = self.move(keys("STUDY", StudyInstanceUID=f"1.2.{study}"))
            self.assertEqual(result.failed_instances, [f"1.2.{study}.1.9"], syntaxes)
            self.assertEqual((len(self.proposed), self.syntaxes), (1, [expected] * len(syntaxes)), syntaxes)

    def test_any_order_of_the_destination(self) -> None:
        """Instances arrive in the transfer syntax that they are stored in, whichever one the destination prefers."""
        stored = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
        self.listening()
        for number, syntax in enumerate(stored):
            self.keep(dataset(number, study=7), dataset(number, study=7, series=2, SOPClassUID=CT), syntax=syntax)
        self.keep(compressed(9, study=7, series=2), syntax=JPEGBaseline8Bit)
        for order in itertools.permutations([*stored, JPEGBaseline8Bit]):
            self.destination.supported_contexts = [build_context(uid, order) for uid in (SECONDARY_CAPTURE, CT)]
            self.syntaxes.clear()
            self.assertEqual(self.move(keys("STUDY", StudyInstanceUID="1.2.7")).suboperations.completed, 7)
            self.assertEqual(self.syntaxes, [*stored, *stored, JPEGBaseline8Bit])

    def test_a_transfer_syntax_that_is_none(self) -> None:
        """An instance in a "transfer syntax" that is a SOP Class, unknown or malformed fails alone, or arrives if accepted."""
        self.keep(dataset(1, study=7))
        for number, syntax in ((2, CT), (3, "1.2.3.4.5"), (4, "1.2.x")):
            self.keep(dataset(number, study=7), syntax=syntax)
        self.listening()
        for promiscuous, arrived in ((False, ["1.2.7.1.1"]), (True, ["1.2.7.1.1", "1.2.7.1.2", "1.2.7.1.3"])):
            self.destination.promiscuous = promiscuous
            self.stored.clear()
            result = self.move(keys("STUDY", StudyInstanceUID="1.2.7"))
            self.assertEqual((int(result.status), sorted(self.stored)), (0xB000, arrived))
            self.assertEqual(result.suboperations.failed, 4 - len(arrived))

    def test_more_than_128_contexts(self) -> None:
        """As many contexts as fit are proposed at first, the others when an instance needs one."""
        classes = [f"1.2.840.10008.5.1.4.1.1.1{number:03}" for number in range(140)]
        self.destination.supported_contexts = [build_context(uid, SYNTAXES) for uid in classes]
        self.listening()
        self.keep(*(dataset(number, study=7, SOPClassUID=uid) for number, uid in enumerate(classes)))
        result = self.move(keys("STUDY", StudyInstanceUID="1.2.7"))
        self.assertEqual(len(self.proposed[0]), 128)
        self.assertEqual((int(result.status), result.suboperations.completed), (0, 140))

    def test_a_destination_that_takes_something_else(self) -> None:
        """Instances that it accepts arrive; the others are in the list of failures, by their UIDs."""
        self.destination.supported_contexts = [build_context(SECONDARY_CAPTURE, ImplicitVRLittleEndian)]
        self.listening()
        self.keep(dataset(1, study=7), dataset(2, study=7))
        self.keep(compressed(3, study=7), syntax=JPEGBaseline8Bit)
        result = self.move(keys("STUDY", StudyInstanceUID="1.2.7"))
        self.assertEqual((int(result.status), result.failed_instances), (0xB000, ["1.2.7.1.3"]))
        self.assertEqual((self.stored, self.syntaxes), (["1.2.7.1.1", "1.2.7.1.2"], [ImplicitVRLittleEndian] * 2))

    def test_unknown_destination(self) -> None:
        """0xA801; the index is not searched."""
        with mock.patch.object(finder.Search, "numbers", side_effect=AssertionError):
            result = self.move(keys("STUDY", StudyInstanceUID="1.2.2"), "STRANGER")
        self.assertEqual(result.status, 0xA801)

    def test_nobody_listens(self) -> None:
        """0xA702: every sub-operation fails, and the list of failures has every UID."""
        result = self.move(keys("STUDY", StudyInstanceUID="1.2.1"), "NOWHERE")
        self.assertEqual((int(result.status), result.suboperations.failed), (0xA702, 2))
        self.assertEqual(result.failed_instances, ["1.2.1.1.1", "1.2.1.1.2"])

    def test_nothing_to_move(self) -> None:
        """Success, without an association."""
        self.listening()
        result = self.move(keys("STUDY", StudyInstanceUID="1.2.99"))
        self.assertEqual((int(result.status), result.suboperations.completed), (0, 0))
        self.assertEqual(self.proposed, [])

    def test_a_file_is_gone(self) -> None:
        self.listening()
        for uid in ("1.2.2.1.1", "1.2.2.2.1"):
            series = uid.rpartition(".")[0]
            (self.root / "1.2.2" / series / f"{uid}.dcm").unlink()
        result = self.move(keys("STUDY", StudyInstanceUID="1.2.2"))
        self.assertEqual((int(result.status), result.failed_instances), (0xB000, ["1.2.2.1.1", "1.2.2.2.1"]))
        self.assertEqual(self.stored, ["1.2.2.1.2", "1.2.2.1.10"])

    def test_identifiers_that_are_none(self) -> None:
        result = self.move(keys("SERIES", SeriesInstanceUID="1.2.1.1"))
        comment = "StudyInstanceUID is missing, a query for SERIES needs it"
        self.assertEqual((int(result.status), result.status.error_comment), (0xA900, comment))

    def test_the_index_fails(self) -> None:
        self.break_index()
        result = self.move(keys("STUDY", StudyInstanceUID="1.2.2"))
        self.assertEqual((int(result.status), result.status.error_comment), (0xA701, "the index cannot be read"))

    def test_cancelled(self) -> None:
        self.listening()
        self.keep(*(dataset(number, study=9) for number in range(1, 101)))
        assoc = self.asking_for(STUDY_MOVE)
        retrieval = assoc.send_c_move(keys("STUDY", StudyInstanceUID="1.2.9"), "SCU", STUDY_MOVE)

        async def until_some(retrieval: AsyncIterator[Any]) -> int:
            last = 0
            async for status, _ in retrieval:
                last = int(status)
                if len(self.stored) > 2:
                    assert isinstance(retrieval, Retrieval)
                    retrieval.cancel()
            return last

        ending = Deferred.fromCoroutine(until_some(retrieval))
        self.network.flush()
        self.assertEqual(self.successResultOf(ending), 0xFE00)
        self.assertLess(len(self.stored), 10)
        self.assertEqual(retrieval.suboperations.remaining, 100 - len(self.stored))

"""Rows 25 to 29: queries and retrievals that are meant to do harm, on an archive with its index."""

from __future__ import annotations

import threading
import time
from array import array
from pathlib import Path
from typing import Any
from unittest import mock

from pydicom import Dataset, config
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from dicomtwist import AE, AssociationTimeout, build_context, evt
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.normal_forms import MAX_ALTERNATIVES, MAX_KEY_LENGTH
from dicomtwist.archive.ingest import Ingest
from dicomtwist.archive.query import search as finder
from dicomtwist.archive.query.answer_reader import AnswerReader
from dicomtwist.archive.query.compiler import MAX_VALUES, Model
from dicomtwist.archive.query.sequences import MAX_NESTING
from dicomtwist.archive.services.query_retrieve import QueryRetrieve
from dicomtwist.archive.services.storage import StorageService
from dicomtwist.archive.storage.types import Durability
from dicomtwist.datasets import encode_dataset
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.dimse.messages import CCancelRQ, CFindRQ, CGetRQ, CGetRSP, CMoveRQ, CStoreRQ, CStoreRSP
from dicomtwist.runtime.executors import Executors
from dicomtwist.scp.dispatch import dispatch
from dicomtwist.testing import ScriptedPeer
from dicomtwist.transport.peer_directory import Peers
from dicomtwist.ul.items import ProposedContext, RoleSelection, UserInformation
from tests.archive.samples import SECONDARY_CAPTURE, dataset, keep
from tests.hostile.common import DIMSE, HostileTestCase, statuses
from tests.memory import VERIFICATION
from tests.peers import dataset_bytes

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
CONTEXTS = ((1, VERIFICATION), (3, FIND), (5, MOVE), (7, GET))
#: The default of the setting, in seconds.
WRITE = 60
STUDIES = 5
EVERYTHING = [f"1.2.{study}" for study in range(1, STUDIES + 1)]
#: The matches that may be read ahead for a peer that reads no responses: two pages, and the content of the message queue.
FEW_PAGES = 20


def keys(level: str = "STUDY", **values: Any) -> Dataset:
    """Return an identifier with any values."""
    made = Dataset()
    made.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


class QueryTestCase(HostileTestCase):
    """The server is an archive of some studies with two instances each, and it knows peers."""

    def setUp(self) -> None:
        super().setUp()
        self.receivers: list[Ingest] = []
        # Invalid values are the subject of these tests.
        for setting in ("reading_validation_mode", "writing_validation_mode"):
            self.patch(config.settings, f"_{setting}", config.IGNORE)
        self.archive = self.make_archive()
        for study in range(1, STUDIES + 1):
            for number in (1, 2):
                self.assertIsNone(keep(self.archive, dataset(number, study=study, PatientID=f"P_{study}%")))
        self.serve_archive(self.archive)

    def make_archive(self) -> Archive:
        archive = Archive(Path(self.mktemp()), durability=Durability.NONE)
        archive.open()
        self.addCleanup(archive.close)
        return archive

    def handlers(self, archive: Archive) -> list[evt.HandlerTuple]:
        """Return all handlers of an archive."""
        executors = Executors(self.network)
        places = [
            *("SELF=tcp:127.0.0.1:104", "OTHER=tcp:127.0.0.1:105", "SILENT=tcp:127.0.0.1:106", "GONE=127.0.0.1:107"),
        ]
        query_retrieve = QueryRetrieve(archive, executors.querying, "ARCHIVE", Peers(self.network, places))
        receiver = Ingest(archive, executors.receiving)
        self.receivers.append(receiver)
        return [*dispatch(query_retrieve.routes), (evt.EVT_C_STORE, StorageService(receiver).handle_store)]

    def tearDown(self) -> None:
        for receiver in self.receivers:
            receiver.stop()
        super().tearDown()

    def serve_archive(self, archive: Archive) -> None:
        self.support(self.scp)
        self.serve(*self.handlers(archive))

    def support(self, ae: AE) -> None:
        ae.supported_contexts = [build_context(uid) for uid in (VERIFICATION, FIND, MOVE, GET)]
        ae.add_supported_context(SECONDARY_CAPTURE, scu_role=True, scp_role=True)

    def querying(self) -> ScriptedPeer:
        """Return a peer with an association for all services."""
        peer = self.connect()
        peer.request(
            *(ProposedContext(number, uid, (ExplicitVRLittleEndian,)) for number, uid in CONTEXTS),
            ProposedContext(9, SECONDARY_CAPTURE, (ExplicitVRLittleEndian,)),
            information=UserInformation(0, "1.2.3", roles=(RoleSelection(SECONDARY_CAPTURE, False, True),)),
        )
        peer.take()
        self.assertTrue(self.association_of(peer).is_established)
        return peer

    def ask(self, peer: ScriptedPeer, request: CFindRQ | CGetRQ | CMoveRQ, identifier: Dataset) -> None:
        context = {CFindRQ: 3, CMoveRQ: 5, CGetRQ: 7}[type(request)]
        request.affected_sop_class_uid = dict(CONTEXTS)[context]
        peer.send_message(context, request, encode_identifier(identifier, ExplicitVRLittleEndian))

    def cancel(self, peer: ScriptedPeer, message_id: int, context: int = 3) -> None:
        peer.send_message(context, CCancelRQ(message_id_being_responded_to=message_id))

    def find(self, identifier: Dataset, peer: ScriptedPeer | None = None) -> list[int]:
        """Return the statuses of the responses to a C-FIND, and check that the association is still alive."""
        asker = peer or self.querying()
        before = len(statuses(asker))
        self.ask(asker, CFindRQ(message_id=1), identifier)
        found = statuses(asker)[before:]
        self.echoes(asker)
        if peer is None:
            asker.close()
        return found


class Keys(QueryTestCase):
    """Rows 25 and 26."""

    def test_too_much(self) -> None:
        """Such an identifier is refused with a status that says so, and is not an error of the archive."""
        many = range(MAX_ALTERNATIVES + 1)
        item = Dataset()
        item.CodeValue = "*a" * MAX_KEY_LENGTH
        deep = Dataset()
        for _ in range(MAX_NESTING + 1):
            outer = Dataset()
            outer.ProcedureCodeSequence = [deep]
            deep = outer
        cases: list[dict[str, Any]] = [
            *({"PatientName": text} for text in ("*?" * 500_000, "a^" * 1000, "ab " * 300_000, "a=b=" * 2000)),
            *({"StudyDescription": text} for text in ("x" * 1_000_000, "x" * 1_000_000 + "*", "*a" * 600)),
            {"StudyDate": "2" * 1_000_000},
            {"StudyDate": "-" * 1000},
            {"StudyTime": "1-2-3-" * 100},
            {"PatientID": [f"*{number}" for number in many]},
            {"ModalitiesInStudy": [f"*{number}" for number in many]},
            {"PatientName": [f"a{number}" for number in many]},
            {"ReferringPhysicianName": [f"a{number}" for number in many]},
            {"StudyDate": ["20240101-20240201" for number in many]},
            {"StudyInstanceUID": [f"1.2.{number}" for number in range(MAX_VALUES + 1)]},
            {"ProcedureCodeSequence": [item]},
            {"ProcedureCodeSequence": [deep]},
        ]
        for case in cases:
            self.assertEqual(self.find(keys(**case)), [0xA900], str(case)[:60])
        self.assertEqual(self.lines_with("cannot be answered"), 0)

    def test_of_all_keys_together(self) -> None:
        uids = [f"1.2.{number}" for number in range(MAX_VALUES // 2 + 1)]
        given = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1"}
        self.assertEqual(self.find(keys("IMAGE", **given, SOPInstanceUID=uids, SOPClassUID=uids)), [0xA900])

    def test_as_much_as_there_may_be(self) -> None:
        """The database accepts it."""
        uids = [f"1.2.{number}" for number in range(MAX_VALUES)]
        self.assertEqual(self.find(keys(StudyInstanceUID=uids)), [0xFF00] * STUDIES + [0])
        many = range(MAX_ALTERNATIVES)
        cases: list[dict[str, Any]] = [
            {"PatientName": [f"{number}" + "^*" * 400 for number in many]},
            {"PatientName": [f"{number}" + " a=b" * 200 for number in many]},
            {"ReferringPhysicianName": [f"{number}" + "^*" * 400 for number in many]},
            {"PatientID": [f"*{number}" + "?*" * 500 for number in many]},
            {"ModalitiesInStudy": [f"*{number}" + "?*" * 500 for number in many]},
            {"StudyDate": [f"20240101-2024{number:04}" for number in range(101, 101 + 20)]},
        ]
        for case in cases:
            self.assertEqual(self.find(keys(**case)), [0], str(case)[:60])
        self.assertEqual(self.find(keys(PatientName=["Doe^*^*^*^*"] + ["x"] * 49)), [0xFF00] * STUDIES + [0])

    def test_of_retrievals(self) -> None:
        """The limits apply to C-GET and C-MOVE too."""
        requests: list[CGetRQ | CMoveRQ] = [CGetRQ(message_id=1), CMoveRQ(message_id=1, move_destination="GONE")]
        for request in requests:
            for uids, expected in (
                ([f"1.2.{number}" for number in range(MAX_VALUES + 1)], 0xA900),
                (["1" * 2000], 0xA900),
                (["*"], 0xA900),  # a UID has no wildcards
                (["1.2.?"], 0xA900),
                (["1.2.3.404"], 0),
            ):
                peer = self.querying()
                self.ask(peer, request, keys(StudyInstanceUID=uids))
                self.assertEqual(statuses(peer), [expected], uids[:1])
                self.echoes(peer)
                peer.close()
        self.assertEqual(self.lines_with("cannot be answered"), 0)

    def test_what_means_something_to_a_database(self) -> None:
        """Row 26: text with a meaning in SQL has none here."""
        peer = self.querying()
        for text in (
            "' OR 1=1--",
            "%",
            "_",
            "P_1",
            "P%",
            "*' OR '1'='1",
            "*%",
            "%*",
            "*__*",
            '"',
            "''",
            ";DROP TABLE patient",
        ):
            for keyword in ("PatientID", "PatientName", "StudyDescription", "ModalitiesInStudy", "AccessionNumber"):
                expected = [0xFF00] * STUDIES if (keyword, text) == ("PatientID", "*%") else []
                self.assertEqual(self.find(keys(**{keyword: text}), peer), [*expected, 0], f"{keyword} {text}")
        self.assertEqual(self.find(keys(PatientID="P_1%"), peer), [0xFF00, 0])
        self.assertEqual(self.find(keys(PatientID="P_?%"), peer), [0xFF00] * STUDIES + [0])

    def test_wildcards_are_linear(self) -> None:
        """The worst patterns and the longest values within the limits need few steps for each character."""
        value = ("a" * 63 + "\\") * 200
        self.assertIsNone(keep(self.archive, dataset(9, study=9, StudyDescription="a" * 10_000, OtherPatientIDs=value)))
        began = time.process_time()
        for pattern in ("*a" * 500 + "b", "*" + "?" * 1000 + "b", "*?" * 500 + "b", "*a?" * 330 + "b"):
            for keyword in ("StudyDescription", "OtherPatientIDs"):
                self.assertEqual(self.find(keys(**{keyword: pattern})), [0], pattern[:10])
        self.assertLess(time.process_time() - began, 10)

    def test_bytes_that_are_none(self) -> None:
        """An identifier with wrong lengths, and one of 16 MiB and more."""
        good = encode_dataset(keys(PatientID="P"), ExplicitVRLittleEndian)
        for data in (good[:-1], b"\x08\0\x52\0UN\0\0\xfe\xff\xff\xff" + bytes(10), b"\xff" * 1000, b"\0", b""):
            peer = self.querying()
            peer.send_message(3, CFindRQ(message_id=1, affected_sop_class_uid=FIND), data)
            (status,) = statuses(peer)
            self.assertIn(status, (0xA900, 0xC000))
            self.echoes(peer)
            peer.close()
        peer = self.querying()
        peer.send_message(3, CFindRQ(message_id=1, affected_sop_class_uid=FIND), bytes(16 * 1024**2 + 2))
        self.assertEqual(statuses(peer), [0xA700])
        self.echoes(peer)


class StopsReading(QueryTestCase):
    """Row 27: a million matches, and a peer that does not read the responses."""

    def setUp(self) -> None:
        super().setUp()
        self.pages = 0
        read = AnswerReader.read
        instances = finder.Search.instances

        def counted(reader: AnswerReader, page: Any) -> list[bytes]:
            self.pages += 1
            return read(reader, page)

        def counted_instances(search: finder.Search, store: Any, page: Any) -> Any:
            self.pages += 1
            return instances(search, store, page)

        million = array("q", [1]) * 1_000_000

        def in_turns(search: Any) -> Any:
            yield
            return million

        patched: tuple[tuple[Any, str, Any], ...] = (
            (AnswerReader, "read", counted),
            (finder.Search, "instances", counted_instances),
            (finder.Search, "numbers", lambda search, **options: million),
            (finder.Search, "in_turns", in_turns),
            (finder.Search, "all_instances", lambda search, store: (None, [])),
        )
        for target, name, value in patched:
            patcher = mock.patch.object(target, name, value)
            patcher.start()
            self.addCleanup(patcher.stop)

    def stalled(self, request: CFindRQ | CGetRQ, level: str = "STUDY") -> ScriptedPeer:
        """Return a peer that has requested everything, and reads nothing."""
        peer = self.querying()
        peer.transport.pauseProducing()
        self.ask(peer, request, keys(level, StudyInstanceUID=EVERYTHING))
        self.network.advance(1)
        self.assertGreater(self.pages, 0)
        self.assertLess(self.pages, FEW_PAGES)
        self.assertLess(self.end_of(peer).most_buffered, 2 * 1024**2)
        return peer

    def test_find(self) -> None:
        peer = self.stalled(CFindRQ(message_id=1))
        association, pages = self.association_of(peer), self.pages
        self.wait(WRITE - 2)
        self.assertTrue(association.is_established)
        self.wait(2)
        self.assertIsInstance(association.end_reason, AssociationTimeout)
        self.assertEqual(association.end_reason.timer, "write")
        self.assertEqual(self.pages, pages)
        self.assertEqual(self.lines_with("'SCRIPTED' at"), 1)
        peer.transport.resumeProducing()
        self.network.flush()
        self.assertIsNotNone(peer.closed)

    def test_find_and_cancel(self) -> None:
        """The C-CANCEL is received, and ends the operation."""
        peer = self.stalled(CFindRQ(message_id=1))
        self.cancel(peer, 1)
        pages = self.pages
        peer.transport.resumeProducing()
        found = statuses(peer)
        self.assertEqual((set(found[:-1]), found[-1]), ({0xFF00}, 0xFE00))
        self.assertEqual(self.pages, pages)
        self.echoes(peer)

    def test_get(self) -> None:
        """In a retrieval, one instance is being sent and one is open; the server waits for them, but not forever."""
        peer = self.stalled(CGetRQ(message_id=1))
        association = self.association_of(peer)
        self.wait(WRITE + 1)
        self.assertIsInstance(association.end_reason, AssociationTimeout)
        peer.transport.resumeProducing()
        self.network.flush()
        self.assertIsNotNone(peer.closed)

    def test_many_that_ask(self) -> None:
        """Each of many such peers costs little, and all of them end."""
        peers = [self.stalled_one() for _ in range(20)]
        self.assertLess(self.pages, 20 * FEW_PAGES)
        self.wait(WRITE + 1)
        for peer in peers:
            self.assertIsNotNone(self.association_of(peer).end_reason)
            peer.reset()

    def stalled_one(self) -> ScriptedPeer:
        peer = self.querying()
        peer.transport.pauseProducing()
        self.ask(peer, CFindRQ(message_id=1), keys(StudyInstanceUID=EVERYTHING))
        return peer


class Cancel(QueryTestCase):
    """Row 28."""

    def test_of_what_is_not_there(self) -> None:
        """A C-CANCEL for an unknown Message ID, or after the final response, has no effect."""
        peer = self.querying()
        for context in (1, 3, 5, 7):
            for message_id in (0, 7, 0xFFFF):
                self.cancel(peer, message_id, context)
        self.assertEqual(self.find(keys(), peer), [0xFF00] * STUDIES + [0])
        self.cancel(peer, 1)
        self.cancel(peer, 1)
        self.assertEqual(statuses(peer)[-1], 0)
        self.echoes(peer)

    def cancelled_get(self) -> tuple[ScriptedPeer, CStoreRQ]:
        """Return a peer that has received the first instance of its C-GET, has not answered it, and cancels."""
        peer = self.querying()
        self.ask(peer, CGetRQ(message_id=1), keys(StudyInstanceUID=EVERYTHING))
        self.cancel(peer, 1, 7)
        ((stored, _),) = peer.messages()
        assert isinstance(stored, CStoreRQ)
        return peer, stored

    def test_get(self) -> None:
        """The final response follows the answer to the instance in transit, and no other instance is sent."""
        peer, stored = self.cancelled_get()
        self.cancel(peer, 1, 7)
        peer.send_message(9, CStoreRSP(message_id_being_responded_to=stored.message_id, status=0))
        answer, _ = peer.messages()[-1]
        assert isinstance(answer, CGetRSP)
        self.assertEqual((answer.status, answer.number_of_completed_suboperations), (0xFE00, 1))
        self.assertEqual(len(peer.messages()), 2)
        self.echoes(peer)

    def test_get_of_who_does_not_answer(self) -> None:
        """The server waits for the answer, but not forever."""
        peer, _ = self.cancelled_get()
        association = self.association_of(peer)
        self.wait(DIMSE + 1)
        self.assertIsInstance(association.end_reason, AssociationTimeout)
        self.assertEqual(len(peer.messages()), 1)

    def test_move(self) -> None:
        """The destination does not answer our association request."""
        self.network.scripted_server(106)
        peer = self.querying()
        self.ask(peer, CMoveRQ(message_id=1, move_destination="SILENT"), keys(StudyInstanceUID=EVERYTHING))
        self.assertEqual(statuses(peer), [])
        self.cancel(peer, 1, 5)
        self.assertEqual(statuses(peer), [0xFE00])
        self.echoes(peer)
        self.wait(120)


class Moves(QueryTestCase):
    """Row 29."""

    def move(self, destination: str, peer: ScriptedPeer | None = None) -> Any:
        """Return the final response to a C-MOVE of everything."""
        asker = peer or self.querying()
        self.ask(asker, CMoveRQ(message_id=1, move_destination=destination), keys(StudyInstanceUID=EVERYTHING))
        for _ in range(20):
            if statuses(asker) and statuses(asker)[-1] != 0xFF00:
                break
            self.wait(10)
        answer, _ = asker.messages()[-1]
        self.echoes(asker)
        return answer

    def test_unknown(self) -> None:
        for title in ("NOBODY", "", "../../x", "SELF\\OTHER", "self", "\x1b[31m"):
            self.assertEqual(self.move(title).status, 0xA801, title)
        self.assertEqual(self.lines_with("\x1b"), 0)

    def test_nobody_answers(self) -> None:
        silent = self.network.scripted_server(106)
        for title in ("GONE", "SILENT"):
            self.assertEqual(self.move(title).status, 0xA702, title)
        del silent.transport

    def test_to_oneself(self) -> None:
        """Each instance is already there, and remains unchanged."""
        before = self.files(self.archive)
        answer = self.move("SELF")
        self.assertEqual((answer.status, answer.number_of_completed_suboperations), (0, 2 * STUDIES))
        self.assertEqual(self.files(self.archive), before)

    def test_to_oneself_when_full(self) -> None:
        """There is no free association for it: it fails, and does not wait for itself."""
        peer = self.querying()
        assert self.server is not None
        self.scp.maximum_associations = len(self.server.active_associations)
        self.assertEqual(self.move("SELF", peer).status, 0xA702)

    def test_in_a_loop(self) -> None:
        """Two archives are asked to move to each other, both at once and repeatedly."""
        other = self.make_archive()
        ae = AE("OTHER", reactor=self.network)
        self.support(ae)
        second = self.network.result_of(ae.start_server(105, evt_handlers=self.handlers(other)))
        scu = AE("LOOP", reactor=self.network)
        scu.add_requested_context(MOVE)
        everything = keys(StudyInstanceUID=EVERYTHING)
        for _ in range(3):
            both = [self.network.result_of(scu.associate("127.0.0.1", port)) for port in (104, 105)]
            moves = [
                one.send_c_move(everything, title, MOVE) for one, title in zip(both, ("OTHER", "SELF"), strict=True)
            ]
            for result in self.network.result_of(gatherResults([move.when_done() for move in moves])):
                self.assertTrue(result.status.is_success, result)
            for one in both:
                self.network.result_of(one.release())
        found, expected = self.files(other), self.files(self.archive)
        self.assertEqual(len(expected), 2 * STUDIES)
        self.assertEqual({name: len(found[name]) for name in found}, {name: len(expected[name]) for name in expected})
        self.assertEqual(found, expected)
        self.network.result_of(second.shutdown())

    def files(self, archive: Archive) -> dict[str, bytes]:
        """Return the data sets of an archive."""
        return {path.name: dataset_bytes(path) for path in Path(archive.root).rglob("*.dcm")}


class OffTheReactor(TestCase):
    """Row 25: with real threads, no query is decoded or answered in the reactor thread."""

    async def test_threads(self) -> None:
        archive = Archive(Path(self.mktemp()), durability=Durability.NONE)
        archive.open()
        self.addCleanup(archive.close)
        keep(archive, dataset())
        from twisted.internet import reactor

        executor = Executors(reactor).querying
        executor.acquire()
        self.addCleanup(executor.release)
        seen: set[int] = set()
        batches = finder._Matching.batches

        def noted(*arguments: Any, **bounds: Any) -> Any:
            seen.add(threading.get_ident())
            return batches(*arguments, **bounds)

        with mock.patch.object(finder._Matching, "batches", noted):
            found = await finder.Finder(archive, executor, "X").find(keys(), Model.STUDY_ROOT, ExplicitVRLittleEndian)
        self.assertEqual(found.total, 1)
        self.assertNotIn(threading.get_ident(), seen)
        self.assertEqual(len(seen), 1)

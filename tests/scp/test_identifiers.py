"""Identifiers and attribute lists that cost too much, and the threads that decode those that cost a little more."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from twisted.internet.defer import Deferred

from dicomtwist import OperationFailed, build_context, evt
from dicomtwist.datasets import codec
from dicomtwist.datasets.identifier import DECODED_AT_ONCE, ELEMENTS_AT_ONCE, encode_identifier
from dicomtwist.dimse.messages import NCreateRQ
from dicomtwist.errors import DataSetTooLong
from dicomtwist.runtime.executors import Bounds
from dicomtwist.sop_class import (
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationModelFind,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from tests.memory import MemoryTestCase

FIND = StudyRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove
WORKLIST = ModalityWorklistInformationModelFind
CLASSES = (FIND, GET, MOVE, WORKLIST, ModalityPerformedProcedureStep, StorageCommitmentPushModel)
ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"


def items(number: int) -> bytes:
    """A data set with a sequence of so many empty items, in Implicit VR Little Endian."""
    return struct.pack("<HHI", 0x0040, 0x0100, len(ITEM) * number) + ITEM * number


def nothing(event: evt.IdentifierEvent) -> Iterator[Any]:
    """A handler that finds nothing; it looks at the identifier."""
    assert isinstance(event.identifier, Dataset)
    if event.event is evt.EVT_C_MOVE:
        yield "127.0.0.1", 105
    if event.event is not evt.EVT_C_FIND:
        yield 0


class Refused(MemoryTestCase):
    """Requests with data sets that cost too much are refused, their handlers are not called, and associations go on."""

    def setUp(self) -> None:
        super().setUp()
        self.scp.supported_contexts = [build_context(uid, ImplicitVRLittleEndian) for uid in CLASSES]
        self.scu.requested_contexts = [build_context(uid, ImplicitVRLittleEndian) for uid in CLASSES]
        self.called: list[object] = []
        self.server = self.listen(
            *((event, self.note) for event in (evt.EVT_C_FIND, evt.EVT_C_GET, evt.EVT_C_MOVE)),
            *((event, self.note_normalised) for event in (evt.EVT_N_CREATE, evt.EVT_N_SET, evt.EVT_N_ACTION)),
        )
        self.assoc = self.associate()

    def note(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        self.called.append(event.event)
        return nothing(event)

    def note_normalised(self, event: evt.NormalisedEvent) -> int:
        self.called.append(event.event)
        event.decode()
        return 0

    def last(self, retrieval: Any) -> Any:
        async def take() -> Any:
            return [status async for status, _ in retrieval][-1]

        return self.network.result_of(take())

    def requests(self, data: bytes) -> dict[str, Callable[[], Any]]:
        """The requests that bring a data set, each returns the final status."""
        assoc, step, commitment = self.assoc, ModalityPerformedProcedureStep, StorageCommitmentPushModel
        return {
            "C-FIND": lambda: self.last(assoc.send_c_find(data, FIND)),
            "worklist": lambda: self.last(assoc.send_c_find(data, WORKLIST)),
            "C-GET": lambda: self.last(assoc.send_c_get(data, GET)),
            "C-MOVE": lambda: self.last(assoc.send_c_move(data, "THERE", MOVE)),
            "N-CREATE": lambda: self.network.result_of(assoc.send_n_create(data, step, "1.2.3"))[0],
            "N-SET": lambda: self.network.result_of(assoc.send_n_set(data, step, "1.2.3"))[0],
            "N-ACTION": lambda: self.network.result_of(assoc.send_n_action(data, 1, commitment, "1.2.3"))[0],
        }

    def refuses(self, data: bytes, comment: str, services: tuple[str, ...] = ()) -> None:
        for service, request in self.requests(data).items():
            if services and service not in services:
                continue
            with self.subTest(service=service):
                status = request()
                self.assertEqual(int(status), 0x0213 if service.startswith("N-") else 0xA700)
                self.assertIn(comment, status.error_comment)
        self.assertEqual(self.called, [])
        self.assertTrue(self.assoc.is_established)

    def takes(self, data: bytes) -> None:
        requests = self.requests(data)
        for service, request in requests.items():
            with self.subTest(service=service):
                self.assertEqual(int(request()), 0)
        self.assertEqual(len(self.called), len(requests))

    def test_elements(self) -> None:
        self.scp.maximum_identifier_elements = self.scp.maximum_attributes = 1000
        self.refuses(items(1000), "more than 1000 elements and items")
        self.takes(items(999))

    def test_elements_in_the_reactor_thread(self) -> None:
        """Also limits below what the reactor thread decodes apply."""
        self.scp.maximum_identifier_elements = self.scp.maximum_attributes = 10
        self.refuses(items(10), "more than 10 elements and items")
        self.takes(items(9))

    def test_bytes(self) -> None:
        self.scp.maximum_identifier_size = self.scp.maximum_buffered_size = 1000
        comment = b"x" * 993
        self.refuses(struct.pack("<HHI", 0x0010, 0x4000, 994) + comment + b" ", "more than 1000 bytes")
        self.takes(struct.pack("<HHI", 0x0010, 0x4000, 992) + comment[:992])

    def test_values(self) -> None:
        self.scp.maximum_identifier_values = 500
        uids = b"1\\" * 501
        self.refuses(
            struct.pack("<HHI", 0x0008, 0x0018, len(uids)) + uids,
            "more than 500 values",
            ("C-FIND", "worklist", "C-GET", "C-MOVE"),
        )
        self.takes(struct.pack("<HHI", 0x0008, 0x0018, len(uids) - 2) + uids[:-2])

    def test_values_of_attributes(self) -> None:
        """Values of DIMSE-N are counted in each VR that has several, in items too; bytes and long texts have one."""
        self.scp.maximum_attribute_values = 500
        services = ("N-CREATE", "N-SET", "N-ACTION")
        for tag, part in (
            (0x00080018, b"1\\"),  # UI
            (0x00100010, b"A^\\="),  # PN
            (0x00281052, b"1\\"),  # DS
            (0x00200013, b"\\\\"),  # IS
            (0x00080119, b"\\ "),  # UC
            (0x00280009, b"\x10\0\x10\0"),  # AT
            (0x00104000, b"\x1b("),  # LT, which has one value, with escape sequences
            (0x00080081, b"\x1b "),  # ST
            (0x00100010, b"\x1bA"),  # PN
        ):
            with self.subTest(tag=tag):
                data = struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(part) * 502) + part * 502
                self.refuses(data, "more than 500 values", services)
                item = struct.pack("<HHI", 0xFFFE, 0xE000, len(data)) + data
                self.refuses(struct.pack("<HHI", 0x0040, 0x0100, len(item)) + item, "more than 500 values", services)
        text = b"\\" * 1000
        taken = (
            struct.pack("<HHI", 0x0010, 0x4000, len(text))
            + text
            + struct.pack("<HHI", 0x0011, 0x1010, len(text))
            + text
        )
        for service in services:
            self.assertEqual(int(self.requests(taken)[service]()), 0)

    LONG, SHORT = (struct.pack("<HHI", 0x0010, 0x4000, length) + b" " * length for length in (150_000, 60_000))

    def hold(self) -> Deferred[int]:
        """Let the handler of N-CREATE wait for this."""
        waiting: Deferred[int] = Deferred()
        self.scp.maximum_request_memory = 400_000
        self.server.bind(evt.EVT_N_CREATE, lambda event: waiting)
        return waiting

    def test_memory_of_all_requests(self) -> None:
        """A request is refused while others take the memory, but not one with a short data set."""
        waiting = self.hold()
        performed = self.associate().send_n_create(self.LONG, ModalityPerformedProcedureStep, "1.2.3")
        self.network.flush()
        self.assertEqual(self.scp.request_memory.taken, len(self.LONG))
        self.refuses(self.LONG, "too many long data sets of requests at once")
        for service in ("N-SET", "N-ACTION", "C-FIND"):
            self.assertEqual(int(self.requests(self.SHORT)[service]()), 0)
        waiting.callback(0)
        self.assertEqual(int(self.network.result_of(performed)[0]), 0)
        self.assertEqual(self.scp.request_memory.taken, 0)
        for service in ("N-SET", "N-ACTION", "C-FIND", "C-GET", "C-MOVE"):
            self.assertEqual(int(self.requests(self.LONG)[service]()), 0)
        self.assertEqual(self.scp.request_memory.taken, 0)

    def test_memory_of_a_peer_that_is_gone(self) -> None:
        """Its part comes back when the handler has ended; at once, if half a data set had arrived, or if it is refused."""
        waiting = self.hold()
        assoc = self.associate()
        assoc.send_n_create(self.LONG, ModalityPerformedProcedureStep, "1.2.3").addErrback(lambda _: None)
        self.network.flush()
        assoc.abort()
        self.network.flush()
        self.assertEqual(self.scp.request_memory.taken, len(self.LONG))
        waiting.callback(0)
        self.assertEqual(self.scp.request_memory.taken, 0)

        peer = self.network.scripted_client(104)
        peer.request((1, ModalityPerformedProcedureStep))
        create = NCreateRQ(message_id=1, affected_sop_class_uid=ModalityPerformedProcedureStep)
        *most, _ = peer.encode_message(1, create, self.LONG)
        peer.send(b"".join(most))
        self.assertGreater(self.scp.request_memory.taken, 100_000)
        peer.reset()
        self.assertEqual(self.scp.request_memory.taken, 0)

    def test_the_default_takes_what_is_real(self) -> None:
        """A list of 10,000 of the longest UIDs, and a query for a worklist with some hundred keys."""
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.SOPInstanceUID = [f"1.2.{'3' * 54}.{number}" for number in range(10_000, 20_000)]
        self.takes(encode_identifier(identifier, ImplicitVRLittleEndian))
        self.called.clear()
        step = Dataset()
        for tag in range(0x00400001, 0x00400060):
            step.add_new(tag, "LO", "")
        identifier = Dataset()
        identifier.ScheduledProcedureStepSequence = [step]
        identifier.RequestedProcedureCodeSequence = [step]
        self.takes(encode_identifier(identifier, ImplicitVRLittleEndian))

    def test_the_default_refuses_what_is_not(self) -> None:
        self.refuses(items(4096), "elements and items", ("C-FIND", "worklist", "C-GET", "C-MOVE"))
        self.refuses(items(100_000), "elements and items", ("N-CREATE", "N-SET", "N-ACTION"))
        numbers = struct.pack("<HHI", 0x0020, 0x0013, 1_000_000) + b"1\\" * 500_000
        self.refuses(numbers, "more than 20000 values", ("C-FIND", "worklist", "C-GET", "C-MOVE"))
        self.refuses(numbers, "more than 100000 values", ("N-CREATE", "N-SET", "N-ACTION"))

    def test_full(self) -> None:
        """Too many data sets wait for a thread; the small ones need none."""
        executor = self.scp.executors.decoding
        executor.bounds = Bounds(threads=1, max_queued=0)
        self.network.works = False
        executor.run(int)
        find, decoded = self.assoc.send_c_find(items(ELEMENTS_AT_ONCE), FIND), self.assoc.send_c_find(items(1), FIND)
        collecting = [one.collect() for one in (find, decoded)]
        self.network.flush()
        failure = self.failureResultOf(collecting[0], OperationFailed)
        self.assertEqual(int(failure.value.status), 0xA700)
        self.assertEqual(self.successResultOf(collecting[1]), [])

    def test_cancelled(self) -> None:
        """A C-CANCEL, or the end of the association, takes the data set out of the queue; its handler is not called."""
        self.network.works = False
        executor = self.scp.executors.decoding
        others = [self.associate(), self.associate()]
        answers = [assoc.send_c_find(items(ELEMENTS_AT_ONCE), FIND) for assoc in others]
        collecting = [one.collect() for one in answers]
        create = others[1].send_n_create(items(ELEMENTS_AT_ONCE), ModalityPerformedProcedureStep)
        create.addErrback(lambda _: None)
        self.network.flush()
        self.assertEqual(executor.vitals.queued, 2)
        answers[0].cancel()
        self.network.flush()
        self.assertEqual(executor.vitals.queued, 1)
        self.assertEqual(int(self.failureResultOf(collecting[0], OperationFailed).value.status), 0xFE00)
        others[1].abort()
        collecting[1].addErrback(lambda _: None)
        self.network.flush()
        self.assertEqual(executor.vitals.queued, 0)
        self.network.works = True
        self.network.flush()
        self.assertEqual(self.called, [])

    def test_what_cannot_be_decoded_is_tried_once(self) -> None:
        """The handler gets the error without a second attempt, which would be in the reactor thread."""
        data = items(ELEMENTS_AT_ONCE) + b"\x10\0\x10\0" + b"\xf0\xff\xff\x7f" + b" " * DECODED_AT_ONCE
        decode = codec.decode_dataset
        with mock.patch.object(evt, "decode_dataset", side_effect=decode) as decoding:
            for request in self.requests(data).values():
                self.assertIn(int(request()) >> 12, (0x0, 0xA, 0xC))
        self.assertEqual(decoding.call_count, len(self.called))
        self.assertEqual(len(self.flushLoggedErrors()), len(self.called))

    def test_responses(self) -> None:
        """The limit of attributes holds for what peers answer as well."""
        self.scu.maximum_attributes = 1000
        self.network.result_of(
            self.scp.start_server(105, evt_handlers=[(evt.EVT_C_FIND, lambda event: [(0xFF00, items(1000))])])
        )
        answers = self.associate(105).send_c_find(items(1), FIND).collect()
        self.network.flush()
        found = self.successResultOf(answers)
        self.assertEqual((len(found), found.lost.count), (0, 1))
        self.assertIsInstance(found.lost.errors[0], DataSetTooLong)


class Threads(MemoryTestCase):
    """Who decodes."""

    def test_handlers_find_it_decoded(self) -> None:
        """A thread of the executor decodes a data set that takes more than some milliseconds, before the handler is called."""
        self.scp.supported_contexts = self.scu.requested_contexts = [build_context(FIND, ImplicitVRLittleEndian)]
        executor = self.scp.executors.decoding
        run = mock.Mock(side_effect=executor.run_shared)
        decode = mock.Mock(side_effect=codec.decode_dataset)
        self.listen((evt.EVT_C_FIND, nothing))
        assoc = self.associate()
        with mock.patch.object(executor, "run_shared", run), mock.patch.object(evt, "decode_dataset", decode):
            self.assertEqual(self.network.result_of(assoc.send_c_find(items(10), FIND).collect()), [])
            self.assertEqual((run.call_count, decode.call_count), (0, 0))
            self.assertEqual(self.network.result_of(assoc.send_c_find(items(300), FIND).collect()), [])
            self.assertEqual((run.call_count, decode.call_count), (1, 1))
            long = struct.pack("<HHI", 0x0010, 0x4000, DECODED_AT_ONCE) + b" " * DECODED_AT_ONCE
            self.assertEqual(self.network.result_of(assoc.send_c_find(long, FIND).collect()), [])
            self.assertEqual((run.call_count, decode.call_count), (2, 2))

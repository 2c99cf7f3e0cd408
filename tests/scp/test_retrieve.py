"""
C-GET and C-MOVE in both roles (PS3.7 9.1.3, 9.1.4; PS3.4 C.4.2, C.4.3): sub-operations, their counts, and failures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from twisted.internet.defer import Deferred

from dicomtwist import (
    AE,
    Association,
    AssociationAborted,
    AsyncOperationsWindow,
    OperationFailed,
    Retrieval,
    RetrievalResult,
    Status,
    SubOperations,
    build_context,
    build_role,
    evt,
)
from dicomtwist.datasets import encode_dataset
from dicomtwist.dimse.messages import CGetRSP, CMoveRSP, CStoreRSP
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.scp.sub_operations import PATHS_AHEAD
from dicomtwist.ul.pdu import AReleaseRP, AReleaseRQ
from tests.memory import CT, MemoryTestCase, encoded, instance, part10

GET = "1.2.840.10008.5.1.4.1.2.2.3"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
CT_CONTEXT = build_context(CT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])


def keys() -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    dataset.StudyInstanceUID = "1.2.3"
    return dataset


def uid(number: int) -> str:
    return f"1.2.3.{number}"


class RetrieveTestCase(MemoryTestCase):
    """
    :ivar stored: the SOP Instance UIDs that were stored, in order.
    :ivar events: the events of their C-STORE requests.
    :ivar refuse: the status to answer, by SOP Instance UID; Success for others.
    """

    def setUp(self) -> None:
        super().setUp()
        self.stored: list[str] = []
        self.events: list[evt.StoreEvent] = []
        self.refuse: dict[str, int | Deferred[int]] = {}
        self.progress: list[tuple[int | None, int, int, int]] = []

    def store(self, event: evt.StoreEvent) -> Any:
        self.stored.append(event.request.affected_sop_instance_uid)
        self.events.append(event)
        return self.refuse.get(self.stored[-1], 0)

    def saw(self, counts: SubOperations) -> None:
        self.progress.append((counts.remaining, counts.completed, counts.failed, counts.warning))

    def ended(self, retrieval: Retrieval) -> RetrievalResult:
        """Return the result of *retrieval*, also of one that failed."""
        waiting = retrieval.when_done()
        self.network.flush()
        results: list[Any] = []
        waiting.addBoth(results.append)
        (result,) = results
        if isinstance(result, RetrievalResult):
            return result
        error = result.value
        assert isinstance(error, OperationFailed), error
        assert isinstance(error.result, RetrievalResult)
        return error.result


class GetTestCase(RetrieveTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.scp.supported_contexts = [build_context(GET), CT_CONTEXT]
        self.scp.add_supported_context(CT, CT_CONTEXT.transfer_syntax, scu_role=True, scp_role=True)
        self.scu.requested_contexts = [build_context(GET), CT_CONTEXT]

    def associated(self, handler: Any, *args: Any, size: int = 1) -> Association:
        handlers = [(evt.EVT_C_GET, handler, list(args)), (evt.EVT_ASYNC_OPS, lambda event: (size, size))]
        self.server = self.listen(*handlers)
        negotiation: list[Any] = [build_role(CT, scp_role=True)]
        if size > 1:
            negotiation.append(AsyncOperationsWindow(size, size))
        return self.associate(ext_neg=negotiation, evt_handlers=[(evt.EVT_C_STORE, self.store)])

    def get(self, handler: Any, *args: Any, size: int = 1) -> RetrievalResult:
        association = self.associated(handler, *args, size=size)
        self.retrieval = association.send_c_get(keys(), GET, on_progress=self.saw)
        self.network.flush()
        return self.ended(self.retrieval)


def spied(case: RetrieveTestCase, *associations: Association) -> list[Association]:
    """Return a list to which each association is added when it writes."""
    writes: list[Association] = []
    for association in associations:
        send = association.protocol.send

        def noted(buffers: Any, association: Association = association, send: Any = send) -> None:
            writes.append(association)
            send(buffers)

        case.patch(association.protocol, "send", noted)
    return writes


def datasets(event: evt.Event, count: int) -> Iterator[Any]:
    yield count
    for number in range(count):
        yield 0xFF00, instance(uid=uid(number))


class GetTests(GetTestCase):
    def test_all(self) -> None:
        result = self.get(datasets, 3)
        self.assertEqual(self.stored, [uid(0), uid(1), uid(2)])
        self.assertTrue(result.status.is_success)
        self.assertEqual(self.progress, [(2, 1, 0, 0), (1, 2, 0, 0), (None, 3, 0, 0)])
        self.assertEqual(result.failed_instances, [])
        self.assertIsNone(self.events[0].request.move_originator_application_entity_title)

    def test_each_kind_of_instance(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(part10(uid=uid(1)))

        async def handler(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            yield 4
            yield 0xFF00, path
            yield str(path)
            yield part10(uid=uid(2))
            yield instance(uid=uid(3))

        result = self.get(handler)
        self.assertEqual(self.stored, [uid(1), uid(1), uid(2), uid(3)])
        self.assertEqual(result.suboperations.completed, 4)
        self.assertEqual(self.events[0].encoded_dataset(include_meta=False), encoded(uid=uid(1)))

    def test_a_path_is_converted(self) -> None:
        """A file is converted to another uncompressed transfer syntax if its own was not accepted."""
        self.scu.requested_contexts = [build_context(GET), build_context(CT, ImplicitVRLittleEndian)]
        path = Path(self.mktemp())
        path.write_bytes(part10(uid=uid(1)))
        self.assertTrue(self.get(lambda event: [1, path]).status.is_success)
        self.assertEqual(self.events[0].dataset.PatientName, "Nobody")
        self.assertEqual(self.events[0].context.transfer_syntax, ImplicitVRLittleEndian)

    def ahead(self, sizes: list[int], kind: str) -> list[int]:
        """Return how many instances were taken from the handler before the first response, and then after each one."""
        count = len(sizes)
        self.refuse = {uid(number): Deferred() for number in range(count)}
        pulled: list[int] = []

        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            yield count
            for number, size in enumerate(sizes):
                pulled.append(number)
                if kind == "path":
                    path = Path(self.mktemp())
                    path.write_bytes(part10(size, uid=uid(number)))
                    yield path
                    path.unlink()
                else:
                    yield instance(size, uid=uid(number)) if kind == "dataset" else part10(size, uid=uid(number))

        association = self.associated(handler)
        retrieval = association.send_c_get(keys(), GET)
        numbers = []
        for number in range(count):
            self.network.flush()
            self.assertEqual(self.stored, [uid(known) for known in range(number + 1)])
            numbers.append(len(pulled))
            waiting = self.refuse[uid(number)]
            assert isinstance(waiting, Deferred)
            waiting.callback(0)
        self.assertTrue(self.ended(retrieval).status.is_success)
        return numbers

    def test_paths_are_asked_for_ahead(self) -> None:
        """Paths are taken ahead up to a limit, and then several at once; a file is open before the handler goes on."""
        numbers = self.ahead([100] * (3 * PATHS_AHEAD), "path")
        batch = PATHS_AHEAD // 2
        most = [PATHS_AHEAD + 1 + number * batch for number in range(4)] + [3 * PATHS_AHEAD]
        self.assertEqual(numbers[: 3 * batch], [most[0]] * batch + [most[1]] * batch + [most[2]] * batch)
        self.assertEqual(set(numbers), set(most))
        self.assertEqual(self.events[30].encoded_dataset(include_meta=False), encoded(100, uid(30)))

    def test_large_files_are_not_read_far_ahead(self) -> None:
        """Three large files are in memory at most: one that is sent, the next one, and one that is read behind it."""
        numbers = self.ahead([2_000_000 - number % 2 for number in range(8)], "path")
        self.assertEqual(numbers, [4, 5, 6, 7, 8, 8, 8, 8])
        self.assertEqual(self.events[7].encoded_dataset(include_meta=False), encoded(1_999_999, uid(7)))

    def test_of_what_is_in_memory_one_is_asked_for_ahead(self) -> None:
        for kind in ("dataset", "bytes"):
            self.stored.clear()
            self.assertEqual(self.ahead([100] * 5, kind), [2, 3, 4, 5, 5])
            self.server.shutdown()
            self.network.flush()

    def test_a_list(self) -> None:
        """Several files of a list are read in one trip to a thread; a list may hold anything that can be yielded."""
        paths = [Path(self.mktemp()) for _ in range(30)]
        for number, path in enumerate(paths):
            path.write_bytes(part10(2_000_000 if number == 20 else 100, uid=uid(number)))
        gone = [Path(self.mktemp()) for _ in range(2)]
        trips: list[Any] = []

        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            run = event.assoc.ae.executors.retrieval.run

            def counted(*args: Any) -> Any:
                trips.append(args)
                return run(*args)

            self.patch(event.assoc.ae.executors.retrieval, "run", counted)
            yield 35
            yield 0xFF00, []
            yield 0xFF00, [*paths[:25], gone[0]]
            for path in paths[:25]:
                path.unlink()
            yield [instance(uid=uid(40)), instance(uid=uid(41)), *paths[25:], gone[1]]
            yield instance(uid=uid(42))

        result = self.get(handler)
        self.assertEqual(self.stored, [uid(number) for number in (*range(25), 40, 41, *range(25, 30), 42)])
        self.assertEqual(result.suboperations.completed, 33)
        self.assertEqual(result.suboperations.failed, 2)
        self.assertLess(len(trips), 12)

    def test_a_short_list(self) -> None:
        """The files of a short list are opened in one trip to a thread, also those that are gone."""
        paths = [Path(self.mktemp()) for _ in range(6)]
        for number, path in enumerate(paths):
            path.write_bytes(part10(uid=uid(number)))
        gone = Path(self.mktemp())
        for some, wanted in (
            (paths[:3], 1),
            ([gone, *paths[:3]], 1),
            (paths[:1], 1),
            (paths, 2),
            ([paths[0], instance(uid=uid(1))], 2),
        ):
            self.stored.clear()
            trips: list[Any] = []

            def handler(event: evt.IdentifierEvent, some: list[Any] = some, trips: list[Any] = trips) -> Iterator[Any]:
                run = event.assoc.ae.executors.retrieval.run

                def counted(*args: Any) -> Any:
                    trips.append(args)
                    return run(*args)

                self.patch(event.assoc.ae.executors.retrieval, "run", counted)
                yield len(some)
                yield 0xFF00, some

            result = self.get(handler)
            self.assertEqual(len(self.stored) + result.suboperations.failed, len(some))
            self.assertEqual(result.suboperations.failed, gone in some)
            self.assertLessEqual(len(trips), wanted, some)
            self.server.shutdown()
            self.network.flush()

    def test_a_short_list_cancelled(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(part10(uid=uid(1)))
        association = self.associated(lambda event: [100, *[(0xFF00, [path] * 3)] * 33])
        retrieval = association.send_c_get(keys(), GET, on_progress=self.saw)
        retrieval.cancel()
        self.assertEqual(self.ended(retrieval).status, 0xFE00)
        self.assertLess(len(self.stored), 5)

    def test_a_response_and_the_next_request_go_together(self) -> None:
        association = self.associated(lambda event: [20, [part10(uid=uid(number)) for number in range(20)]])
        (accepted,) = self.server.factory.associations
        writes = spied(self, accepted)
        retrieval = association.send_c_get(keys(), GET)
        self.assertTrue(self.ended(retrieval).status.is_success)
        self.assertEqual(len(self.stored), 20)
        self.assertLessEqual(len(writes), 21)

    def test_cancelled_in_a_list(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes(part10(uid=uid(1)))
        association = self.associated(lambda event: [100, (0xFF00, [path] * 100)])
        retrieval = association.send_c_get(keys(), GET, on_progress=self.saw)
        retrieval.cancel()
        self.assertEqual(self.ended(retrieval).status, 0xFE00)
        self.assertLess(len(self.stored), 3)

    def test_nothing(self) -> None:
        result = self.get(datasets, 0)
        self.assertTrue(result.status.is_success)
        self.assertEqual(self.progress, [(None, 0, 0, 0)])

    def test_some_fail(self) -> None:
        self.refuse = {uid(1): 0xA700, uid(2): 0xB007}
        result = self.get(datasets, 4)
        self.assertEqual(result.status, 0xB000)
        self.assertEqual(result.failed_instances, [uid(1)])
        self.assertEqual(self.progress[-1], (None, 2, 1, 1))

    def test_a_warning_alone(self) -> None:
        self.refuse = {uid(0): 0xB000}
        result = self.get(datasets, 1)
        self.assertEqual((result.status, result.failed_instances), (0xB000, []))

    def test_all_fail(self) -> None:
        self.refuse = {uid(0): 0xA700, uid(1): 0xC000}
        result = self.get(datasets, 2)
        self.assertEqual(result.status, 0xA702)
        self.assertEqual(result.failed_instances, [uid(0), uid(1)])
        self.assertEqual(self.progress[-1], (None, 0, 2, 0))

    def test_what_cannot_be_sent_is_counted(self) -> None:
        compressed = encode_preamble_and_meta(FileMeta(CT, uid(8), str(JPEGBaseline8Bit), "1.2.3")) + encoded(
            uid=uid(8)
        )
        missing = Path(self.mktemp())

        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            yield 5
            yield compressed
            yield missing
            yield 0xFF00, None
            yield b"not DICOM at all"
            yield instance(uid=uid(1))

        result = self.get(handler)
        self.assertEqual(self.stored, [uid(1)])
        self.assertEqual((result.status, result.suboperations.failed), (0xB000, 4))
        self.assertEqual(result.failed_instances, [uid(8)])
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    def test_without_the_role(self) -> None:
        self.listen((evt.EVT_C_GET, datasets, [1]))
        association = self.associate()
        result = self.ended(association.send_c_get(keys(), GET))
        self.assertEqual((result.status, result.failed_instances), (0xA702, [uid(0)]))

    def test_many_at_once(self) -> None:
        """Sub-operations count against the window of the performer, which invokes them."""
        waiting: dict[str, Deferred[int]] = {uid(number): Deferred() for number in range(5)}
        self.refuse.update(waiting)
        association = self.associated(datasets, 5, size=3)
        retrieval = association.send_c_get(keys(), GET)
        self.network.flush()
        self.assertEqual(self.stored, [uid(0), uid(1), uid(2)])
        waiting[uid(1)].callback(0)
        self.network.flush()
        self.assertEqual(self.stored, [uid(0), uid(1), uid(2), uid(3)])
        for number in (0, 2, 3, 4):
            waiting[uid(number)].callback(0)
            self.network.flush()
        self.assertTrue(self.ended(retrieval).status.is_success)

    def test_fewer_and_more_than_announced(self) -> None:
        def handler(event: evt.IdentifierEvent, announced: int) -> Iterator[Any]:
            yield announced
            for number in range(3):
                yield instance(uid=uid(number))

        self.assertEqual(self.get(handler, 2).suboperations.completed, 3)
        self.server.shutdown()
        self.network.flush()
        self.assertEqual(self.get(handler, 70_000).suboperations.completed, 3)
        self.assertIn((65535, 1, 0, 0), self.progress)

    def test_handler_ends_it(self) -> None:
        def handler(event: evt.IdentifierEvent, status: int) -> Iterator[Any]:
            yield 3
            yield instance(uid=uid(0))
            yield status, None
            raise AssertionError("nothing is asked for behind that")

        for status, remaining in ((0xFE00, 2), (0xA701, None), (0x0000, None)):
            self.progress.clear()
            self.assertEqual(self.get(handler, status).status, status)
            self.assertEqual(self.progress[-1], (remaining, 1, 0, 0))
            self.server.shutdown()
            self.network.flush()


class GetFailureTests(GetTestCase):
    def test_nothing_bound(self) -> None:
        self.listen()
        association = self.associate()
        self.assertEqual(self.ended(association.send_c_get(keys(), GET)).status, 0xC411)

    def test_raising(self) -> None:
        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            yield 2
            yield instance(uid=uid(0))
            raise ZeroDivisionError

        result = self.get(handler)
        self.assertEqual((result.status, result.suboperations.completed), (0xC411, 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_numbers(self) -> None:
        for number in (-1, "3", None, True, 1.5):
            self.assertEqual(self.get(lambda event, number=number: [number, instance()]).status, 0xC413)
            self.server.shutdown()
            self.network.flush()
        self.assertEqual(self.get(lambda event: []).status, 0xC413)
        self.assertEqual(self.stored, [])

    def test_cancelled(self) -> None:
        answer: Deferred[int] = Deferred()
        self.refuse[uid(1)] = answer
        closed: list[bool] = []

        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            try:
                yield from datasets(event, 10)
            finally:
                closed.append(event.is_cancelled)

        association = self.associated(handler)
        retrieval = association.send_c_get(keys(), GET, on_progress=self.saw)
        self.network.flush()
        retrieval.cancel()
        self.network.flush()
        self.assertEqual(self.progress, [(9, 1, 0, 0)], "what is on its way is waited for")
        answer.callback(0)
        result = self.ended(retrieval)
        self.assertEqual(result.status, 0xFE00)
        self.assertEqual(self.progress[-1], (8, 2, 0, 0))
        self.assertEqual((self.stored, closed), ([uid(0), uid(1)], [True]))

    def test_left(self) -> None:
        association = self.associated(datasets, 1000)

        async def one() -> None:
            async for status, _ in association.send_c_get(keys(), GET):
                self.assertTrue(status.is_pending)
                break

        leaving = Deferred.fromCoroutine(one())
        self.network.flush()
        self.assertIsNone(self.successResultOf(leaving))
        self.network.flush()
        self.assertFalse(association.exchange.asking)
        self.assertLess(len(self.stored), 10)

    def test_the_requestor_goes(self) -> None:
        self.refuse[uid(0)] = Deferred()
        association = self.associated(datasets, 3)
        retrieval = association.send_c_get(keys(), GET)
        self.network.flush()
        association.abort()
        self.network.flush()
        self.failureResultOf(retrieval.when_done(), AssociationAborted)

    def test_a_progress_callback_that_raises(self) -> None:
        association = self.associated(datasets, 1)
        retrieval = association.send_c_get(keys(), GET, on_progress=lambda counts: 1 / 0)
        self.network.flush()
        self.assertTrue(self.ended(retrieval).status.is_success)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_counts_that_a_peer_leaves_out(self) -> None:
        association, peer = self.scripted_scp()
        retrieval = association.send_c_get(keys(), GET)
        self.network.flush()
        peer.send_message(
            1, CGetRSP(message_id_being_responded_to=1, status=0xFF00, number_of_completed_suboperations=4)
        )
        self.assertEqual(
            repr(retrieval.suboperations), "<sub-operations: 4 completed, 0 with warning, 0 failed, ? remaining>"
        )
        peer.send_message(1, CGetRSP(message_id_being_responded_to=1))
        self.assertEqual(self.ended(retrieval).suboperations.completed, 4)


class MoveTestCase(RetrieveTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.scp.supported_contexts = [build_context(MOVE)]
        self.scp.requested_contexts = []
        self.scu.requested_contexts = [build_context(MOVE)]
        self.archive = AE("ARCHIVE", reactor=self.network)
        self.archive.supported_contexts = [CT_CONTEXT]
        self.associations: list[AssociationInterface] = []
        self.most_open = 0

    def tearDown(self) -> None:
        super().tearDown()
        self.assertEqual(self.archive._associations, set())

    def listening(self, *handlers: Any, port: int = 11113) -> None:
        """Start the destination of C-MOVE."""
        bound: list[Any] = [
            (evt.EVT_C_STORE, self.store),
            (evt.EVT_ESTABLISHED, self.opened),
            *handlers,
        ]
        self.destination = self.network.result_of(self.archive.start_server(port, evt_handlers=bound))

    def opened(self, event: evt.Event) -> None:
        self.associations.append(event.assoc)
        self.most_open = max(self.most_open, sum(each.is_established for each in self.associations))

    def move(self, handler: Any, *args: Any, destination: str = "ARCHIVE") -> RetrievalResult:
        return self.ended(self.moving(handler, *args, destination=destination))

    def moving(self, handler: Any, *args: Any, destination: str = "ARCHIVE") -> Retrieval:
        self.server = self.listen((evt.EVT_C_MOVE, handler, list(args)))
        association = self.associate()
        retrieval = association.send_c_move(keys(), destination, MOVE, on_progress=self.saw)
        self.network.flush()
        return retrieval


def to_archive(event: evt.Event, count: int, arguments: dict[str, Any] | None = None) -> Iterator[Any]:
    yield ("127.0.0.1", 11113, arguments or {})
    yield from datasets(event, count)


class MoveTests(MoveTestCase):
    def test_all(self) -> None:
        self.listening()
        result = self.move(to_archive, 3)
        self.assertTrue(result.status.is_success)
        self.assertEqual(self.stored, [uid(0), uid(1), uid(2)])
        self.assertEqual(self.progress, [(2, 1, 0, 0), (1, 2, 0, 0), (None, 3, 0, 0)])
        (association,) = self.associations
        self.assertEqual(association.requestor.ae_title, "SCP")
        self.assertEqual(association.requestor.called_ae_title, "ARCHIVE")
        self.assertTrue(association.is_released)
        request = self.events[0].request
        self.assertEqual(request.move_originator_application_entity_title, "SCU")
        self.assertEqual(request.move_originator_message_id, 1)

    def test_the_next_request_goes_before_the_response(self) -> None:
        """The next request to the destination is written before the pending response to the requestor."""
        self.listening()
        first: Deferred[int] = Deferred()
        self.refuse[uid(0)] = first
        retrieval = self.moving(to_archive, 3)
        (to_requestor,) = self.server.factory.associations
        (to_destination,) = [each for each in self.scp._associations if each is not to_requestor]
        writes = spied(self, to_requestor, to_destination)
        first.callback(0)
        self.network.flush()
        self.assertEqual(writes[:2], [to_destination, to_requestor])
        self.assertTrue(self.ended(retrieval).status.is_success)
        self.assertEqual(self.progress, [(2, 1, 0, 0), (1, 2, 0, 0), (None, 3, 0, 0)])

    def test_kinds_of_destinations(self) -> None:
        self.listening()
        for destination in (
            ("127.0.0.1", 11113),
            ("127.0.0.1", 11113, {"contexts": [CT_CONTEXT]}),
            "tcp:127.0.0.1:11113",
        ):
            self.stored.clear()
            result = self.move(lambda event, there=destination: [there, 1, instance(uid=uid(1))])
            self.assertEqual((result.status, self.stored), (0, [uid(1)]), destination)
            self.server.shutdown()
            self.network.flush()

    def test_several_associations(self) -> None:
        self.listening()
        waiting: list[Deferred[int]] = []

        def slow(event: evt.StoreEvent) -> Deferred[int]:
            waiting.append(Deferred())
            return waiting[-1]

        self.store = slow  # type: ignore[method-assign]
        self.archive.bind(evt.EVT_C_STORE, slow)
        self.network.result_of(
            self.archive.start_server(
                11114, evt_handlers=[(evt.EVT_ESTABLISHED, lambda event: self.associations.append(event.assoc))]
            )
        )

        def handler(event: evt.Event) -> Iterator[Any]:
            yield ("127.0.0.1", 11114, {"move_associations": 3})
            yield from datasets(event, 7)

        retrieval = self.moving(handler)
        self.assertEqual((len(self.associations), len(waiting)), (3, 3))
        for _ in range(7):
            waiting.pop(0).callback(0)
            self.network.flush()
        self.assertEqual(self.ended(retrieval).suboperations.completed, 7)
        self.assertTrue(all(association.is_released for association in self.associations))

    def test_the_setting(self) -> None:
        self.listening()
        self.scp.move_associations = 2
        self.assertTrue(self.move(to_archive, 3).status.is_success)
        self.assertEqual(len(self.associations), 2)

    def test_a_window(self) -> None:
        """If the destination grants an asynchronous window, as many instances are in progress on one association."""
        waiting: dict[str, Deferred[int]] = {uid(number): Deferred() for number in range(4)}
        self.refuse.update(waiting)
        self.listening((evt.EVT_ASYNC_OPS, lambda event: (4, 1)))
        retrieval = self.moving(to_archive, 4, {"ext_neg": [AsyncOperationsWindow(4, 1)]})
        self.assertEqual(len(self.stored), 4)
        for each in waiting.values():
            each.callback(0)
        self.network.flush()
        self.assertTrue(self.ended(retrieval).status.is_success)

    def test_what_was_not_proposed(self) -> None:
        """The association is made again for an instance in a transfer syntax that was not proposed."""
        self.archive.add_supported_context(CT, JPEGBaseline8Bit)
        self.listening()
        path = Path(self.mktemp())
        path.write_bytes(
            encode_preamble_and_meta(FileMeta(CT, uid(8), str(JPEGBaseline8Bit), "1.2.3")) + encoded(uid=uid(8))
        )
        arguments = {"contexts": [CT_CONTEXT]}
        handler = [("127.0.0.1", 11113, arguments), 3, path, instance(uid=uid(1)), path]
        result = self.move(lambda event: handler)
        self.assertTrue(result.status.is_success)
        self.assertEqual(self.stored, [uid(8), uid(1), uid(8)])
        first, second = self.associations
        self.assertEqual((first.is_released, second.is_released), (True, True))
        # The destination may serve one at a time.
        self.assertEqual(self.most_open, 1)

    def test_instances_go_as_they_are(self) -> None:
        """Later instances are converted to the syntax of the first if that is possible, without a new association."""
        self.listening()
        for first, second in (
            (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
            (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian),
        ):
            paths, sent = [], []
            for number, syntax in enumerate((first, second, first)):
                path = Path(self.mktemp())
                data = encode_dataset(instance(uid=uid(number)), syntax)
                path.write_bytes(encode_preamble_and_meta(FileMeta(CT, uid(number), str(syntax), "1.2.3")) + data)
                paths.append(path)
                sent.append(data)
            self.events.clear()
            self.associations.clear()
            result = self.move(lambda event, paths=paths: [("127.0.0.1", 11113), 3, *paths])
            self.assertTrue(result.status.is_success)
            came = [event.encoded_dataset(include_meta=False) for event in self.events]
            self.assertEqual(came[::2], sent[::2])
            self.assertEqual(self.events[1].dataset.SOPInstanceUID, uid(1))
            self.assertEqual(len(self.associations), 1)
            self.server.shutdown()
            self.network.flush()

    def test_the_only_syntax_of_a_destination(self) -> None:
        """An instance whose SOP Class was not proposed is converted to the one syntax that the destination accepts."""
        self.listening()
        for stored, accepted in (
            (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
            (ImplicitVRLittleEndian, ExplicitVRLittleEndian),
            (DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian),
        ):
            for given in ({}, {"contexts": [build_context(CT)]}):
                private = "1.2.826.0.1.3680043.10.99"
                self.archive.supported_contexts = [CT_CONTEXT, build_context(private, accepted)]
                paths = []
                for sop_class, number, syntax in ((CT, 1, ExplicitVRLittleEndian), (private, 2, stored)):
                    made = instance(uid=uid(number))
                    made.SOPClassUID = sop_class
                    meta = FileMeta(sop_class, uid(number), str(syntax), "1.2.3")
                    path = Path(self.mktemp())
                    path.write_bytes(encode_preamble_and_meta(meta) + encode_dataset(made, syntax))
                    paths.append(path)
                self.events.clear()
                result = self.move(lambda event, paths=paths, given=given: [("127.0.0.1", 11113, given), 2, *paths])
                self.assertTrue(result.status.is_success)
                self.assertEqual(self.events[1].context.transfer_syntax, accepted)
                self.server.shutdown()
                self.network.flush()

    def test_one_association_only(self) -> None:
        """A destination that takes one association only, such as a client that moves to itself, gets all instances."""
        self.listening((evt.EVT_ESTABLISHED, lambda event: self.stop_listening()))
        compressed = Path(self.mktemp())
        compressed.write_bytes(
            encode_preamble_and_meta(FileMeta(CT, uid(8), str(JPEGBaseline8Bit), "1.2.3")) + encoded(uid=uid(8))
        )
        self.archive.add_supported_context(CT, JPEGBaseline8Bit)
        items = [instance(uid=uid(0)), instance(uid=uid(1)), compressed, instance(uid=uid(2))]
        result = self.move(lambda event: [("127.0.0.1", 11113), 4, *items])
        self.assertEqual((result.status, self.stored), (0xB000, [uid(0), uid(1)]))
        self.assertEqual(result.failed_instances, [uid(8), uid(2)])

    def stop_listening(self) -> None:
        """Accept no further association."""
        self.destination.shutdown(grace=None)

    def test_given_contexts_convert(self) -> None:
        """If the handler gives contexts, uncompressed instances are converted to fit them."""
        self.listening()
        arguments = {"contexts": [build_context(CT, ImplicitVRLittleEndian)]}
        path = Path(self.mktemp())
        path.write_bytes(part10(uid=uid(1)))
        result = self.move(lambda event: [("127.0.0.1", 11113, arguments), 1, path])
        self.assertTrue(result.status.is_success)
        self.assertEqual(self.events[0].context.transfer_syntax, ImplicitVRLittleEndian)
        self.assertEqual(len(self.associations), 1)

    def test_a_destination_that_minds(self) -> None:
        """The destination rejects the second proposal: the other instances are stored as before."""
        self.listening((evt.EVT_REQUESTED, self.mind))
        path = Path(self.mktemp())
        path.write_bytes(
            encode_preamble_and_meta(FileMeta(CT, uid(8), str(JPEGBaseline8Bit), "1.2.3")) + encoded(uid=uid(8))
        )
        result = self.move(lambda event: [("127.0.0.1", 11113), 3, instance(uid=uid(0)), path, instance(uid=uid(1))])
        self.assertEqual((result.status, result.failed_instances), (0xB000, [uid(8)]))
        self.assertEqual(self.stored, [uid(0), uid(1)])

    def mind(self, event: evt.Event) -> None:
        """Abort an association that proposes JPEG."""
        if any(JPEGBaseline8Bit in context.transfer_syntaxes for context in event.pdu.presentation_contexts):
            event.assoc.abort()

    def test_what_the_destination_does_not_take(self) -> None:
        self.listening()
        mr = instance(uid=uid(5))
        mr.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        result = self.move(lambda event: [("127.0.0.1", 11113), 2, mr, instance(uid=uid(1))])
        self.assertEqual((result.status, result.failed_instances, self.stored), (0xB000, [uid(5)], [uid(1)]))


class MoveFailureTests(MoveTestCase):
    def test_a_destination_that_refuses_before_it_has_the_data_set(self) -> None:
        """Its status counts, and the final response follows as soon as it has read the rest."""
        peer = self.network.scripted_server(11113)
        result = self.moving(lambda event: [("127.0.0.1", 11113), 1, instance(400_000, uid=uid(1))])
        peer.accept()
        peer.transport.pauseProducing()
        (association,) = [each for each in self.scp._associations if each.is_requestor]
        (operation,) = association.exchange._operations.values()
        peer.send_message(operation.context_id, CStoreRSP(message_id_being_responded_to=1, status=0x0122))
        peer.transport.resumeProducing()
        self.assertEqual(peer.take()[-1], AReleaseRQ())
        peer.send(AReleaseRP())
        self.assertEqual(self.ended(result).failed_instances, [uid(1)])
        self.assertEqual(self.network.seconds(), 0.0)

    def test_unknown(self) -> None:
        for nowhere in (None, (None, None)):
            self.assertEqual(self.move(lambda event, nowhere=nowhere: [nowhere, 1, instance()]).status, 0xA801)
            self.server.shutdown()
            self.network.flush()

    def test_not_a_destination(self) -> None:
        for nowhere in (
            7,
            ("127.0.0.1",),
            ("127.0.0.1", "port"),
            ("h", 70_000),
            ("127.0.0.1", 104, {"nonsense": 1}),
            "nonsense:1",
        ):
            path = Path(self.mktemp())
            path.write_bytes(part10())
            for yielded in (instance(), path, [path] * 3):
                result = self.move(lambda event, nowhere=nowhere, yielded=yielded: [nowhere, 1, yielded])
                self.assertEqual(result.status, 0xC515, nowhere)
                self.server.shutdown()
                self.network.flush()
        self.flushLoggedErrors()

    def test_number(self) -> None:
        self.listening()
        self.assertEqual(self.move(lambda event: [("127.0.0.1", 11113), "many"]).status, 0xC513)

    def test_too_little(self) -> None:
        self.assertEqual(self.move(lambda event: []).status, 0xC514)

    def test_raises(self) -> None:
        self.assertEqual(self.move(lambda event: 1 / 0).status, 0xC511)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_nothing_bound(self) -> None:
        self.listen()
        retrieval = self.associate().send_c_move(keys(), "ARCHIVE", MOVE)
        self.assertEqual(self.ended(retrieval).status, 0xC511)

    def test_nobody_there(self) -> None:
        result = self.move(to_archive, 2)
        self.assertEqual((result.status, result.failed_instances), (0xA702, [uid(0), uid(1)]))
        self.assertEqual(result.suboperations.failed, 2)

    def test_refused(self) -> None:
        self.archive.require_called_aet = True
        self.listening()
        result = self.move(to_archive, 2, destination="SOMEBODY")
        self.assertEqual((result.status, result.failed_instances), (0xA702, [uid(0), uid(1)]))

    def test_lost_on_the_way(self) -> None:
        def handler(event: evt.StoreEvent) -> Any:
            if event.request.affected_sop_instance_uid == uid(1):
                event.assoc.abort()
            return 0

        self.store = handler  # type: ignore[method-assign]
        self.listening()
        result = self.move(to_archive, 4)
        self.assertEqual(result.status, 0xB000)
        self.assertCountEqual(result.failed_instances, [uid(1), uid(2), uid(3)])

    def test_cancelled(self) -> None:
        answer: Deferred[int] = Deferred()
        self.refuse[uid(1)] = answer
        self.listening()
        retrieval = self.moving(to_archive, 10)
        retrieval.cancel()
        self.network.flush()
        answer.callback(0)
        self.assertEqual(self.ended(retrieval).status, 0xFE00)
        self.assertEqual(self.stored, [uid(0), uid(1)])
        self.assertTrue(self.associations[0].is_released)

    def test_cancelled_while_the_destination_is_released(self) -> None:
        """A C-CANCEL during the release ends the wait for it, not the release, and logs no error."""
        self.listening()
        released = []
        release = Association.release

        def slow(association: Association) -> Deferred[None]:
            if association.ae is self.scp:
                released.append(release(association))
                return Deferred()
            return release(association)

        self.patch(Association, "release", slow)
        retrieval = self.moving(to_archive, 3)
        self.network.flush()
        self.assertEqual(len(released), 1)
        retrieval.cancel()
        self.network.flush()
        self.assertEqual(self.ended(retrieval).status, 0xFE00)
        self.assertEqual(self.stored, [uid(0), uid(1), uid(2)])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_cancelled_while_it_connects(self) -> None:
        self.network.answers = False
        self.server = self.listen((evt.EVT_C_MOVE, to_archive, [10]))
        self.network.answers = True
        association = self.associate()
        retrieval = association.send_c_move(keys(), "ARCHIVE", MOVE)
        self.network.answers = False
        self.network.flush()
        retrieval.cancel()
        self.network.flush()
        self.assertEqual(self.ended(retrieval).status, 0xFE00)

    def test_a_destination_of_the_wrong_form_is_the_requestors_error(self) -> None:
        self.listen()
        with self.assertRaises(ValueError):
            self.associate().send_c_move(keys(), "A TITLE THAT IS TOO LONG", MOVE)

    def test_statuses_print_in_words(self) -> None:
        association, peer = self.scripted_scp()
        retrieval = association.send_c_move(keys(), "ARCHIVE", MOVE)
        self.network.flush()
        peer.send_message(1, CMoveRSP(message_id_being_responded_to=1, status=0xA801))
        error = self.failureResultOf(retrieval.when_done(), OperationFailed).value
        self.assertIn("destination unknown", str(error).lower())
        self.assertIsInstance(error.status, Status)

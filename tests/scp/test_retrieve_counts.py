"""
The counts and the Failed SOP Instance UID List of a handler's own final response (PS3.4 C.4.2.1.4.2, C.4.3.1.3.2): they agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomtwist import AE, OperationFailed, RetrievalResult, build_context, build_role, evt
from dicomtwist.datasets import encode_dataset
from tests.memory import CT, MemoryTestCase, instance

GET = "1.2.840.10008.5.1.4.1.2.2.3"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"


def keys() -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    return dataset


def uid(number: int) -> str:
    return f"1.2.3.{number}"


def failed(*numbers: int) -> Dataset:
    dataset = Dataset()
    dataset.FailedSOPInstanceUIDList = [uid(number) for number in numbers]
    return dataset


class CountTests(MemoryTestCase):
    """Each case in C-GET and in C-MOVE."""

    def setUp(self) -> None:
        super().setUp()
        contexts = [build_context(one, ExplicitVRLittleEndian) for one in (GET, MOVE, CT)]
        self.scp.supported_contexts = self.scu.requested_contexts = contexts
        self.scp.add_supported_context(CT, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
        self.refused: set[str] = set()
        self.warned: set[str] = set()
        destination = AE("STORE", reactor=self.network)
        destination.supported_contexts = contexts
        self.network.result_of(destination.start_server(105, evt_handlers=[(evt.EVT_C_STORE, self.store)]))
        self.destination = destination

    def tearDown(self) -> None:
        self.destination.shutdown()
        super().tearDown()

    def store(self, event: evt.StoreEvent) -> int:
        stored = event.request.affected_sop_instance_uid
        return 0xA700 if stored in self.refused else 0xB000 if stored in self.warned else 0

    def retrieve(self, operation: str, total: int, sent: int, status: int, identifier: Any) -> RetrievalResult:
        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            if event.event is evt.EVT_C_MOVE:
                yield "127.0.0.1", 105
            yield total
            for number in range(sent):
                yield instance(uid=uid(number))
            yield status, identifier

        server = self.listen((evt.EVT_C_GET, handler), (evt.EVT_C_MOVE, handler))
        association = self.associate(
            ext_neg=[build_role(CT, scu_role=True, scp_role=True)], evt_handlers=[(evt.EVT_C_STORE, self.store)]
        )
        if operation == GET:
            waiting = association.send_c_get(keys(), GET).when_done()
        else:
            waiting = association.send_c_move(keys(), "STORE", MOVE).when_done()
        results: list[Any] = []
        waiting.addBoth(results.append)
        self.network.flush()
        (result,) = results
        if not isinstance(result, RetrievalResult):
            assert isinstance(result.value, OperationFailed), result
            result = result.value.result
        assert isinstance(result, RetrievalResult)
        association.abort()
        server.shutdown()
        self.network.flush()
        return result

    def check(
        self, result: RetrievalResult, status: int, counts: tuple[int | None, int, int, int], uids: list[str]
    ) -> None:
        told = result.suboperations
        self.assertEqual(result.status, status)
        self.assertEqual((told.remaining, told.completed, told.failed, told.warning), counts)
        self.assertEqual(result.failed_instances, uids)

    def test_a_list_of_two(self) -> None:
        """A failure with two instances that the handler knows to have failed."""
        for operation, encode in product((GET, MOVE), (False, True)):
            for status, remaining in ((0xA702, None), (0xC123, None), (0xB000, None), (0xFE00, 0)):
                identifier: Any = failed(5, 6)
                if encode:
                    identifier = encode_dataset(identifier, ExplicitVRLittleEndian)
                result = self.retrieve(operation, 2, 0, status, identifier)
                self.check(result, status, (remaining, 0, 2, 0), [uid(5), uid(6)])

    def test_beside_own_failures(self) -> None:
        """An instance that was not stored is in the list once, and counted once."""
        self.refused, self.warned = {uid(0)}, {uid(2)}
        for operation in (GET, MOVE):
            own = failed(7, 0)
            result = self.retrieve(operation, 4, 3, 0xA702, own)
            self.check(result, 0xA702, (None, 1, 2, 1), [uid(7), uid(0)])
            result = self.retrieve(operation, 4, 3, 0xA702, failed(7))
            self.check(result, 0xA702, (None, 1, 2, 1), [uid(7), uid(0)])
            self.assertEqual(list(own.FailedSOPInstanceUIDList), [uid(7), uid(0)])
            result = self.retrieve(operation, 4, 3, 0xA702, encode_dataset(failed(7), ExplicitVRLittleEndian))
            self.check(result, 0xA702, (None, 1, 2, 1), [uid(7), uid(0)])

    def test_without_a_list(self) -> None:
        self.refused = {uid(0)}
        for operation, identifier in product((GET, MOVE), (None, Dataset())):
            result = self.retrieve(operation, 3, 2, 0xA702, identifier)
            self.check(result, 0xA702, (None, 1, 1, 0), [uid(0)])

    def test_one_failure(self) -> None:
        """A list of one is no list for pydicom."""
        one = Dataset()
        one.FailedSOPInstanceUIDList = uid(3)
        for operation in (GET, MOVE):
            self.check(self.retrieve(operation, 1, 0, 0xA701, one), 0xA701, (None, 0, 1, 0), [uid(3)])

    def test_an_identifier_that_is_none(self) -> None:
        """An identifier that cannot be encoded or read ends in an answer."""
        broken = Dataset()
        broken.add_new(0x00080058, "US", ["x"])
        for operation, identifier in product((GET, MOVE), (broken, "text", 5, b"\1\2\3")):
            result = self.retrieve(operation, 1, 1, 0xA702, identifier)
            self.assertTrue(result.status.is_failure, identifier)
            self.assertEqual(result.suboperations.failed, 0)
            self.flushLoggedErrors()

    @settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
    @given(
        st.sampled_from([GET, MOVE]),
        st.sets(st.integers(0, 3)),
        st.sets(st.integers(0, 7)),
        st.sampled_from([0xA701, 0xA702, 0xA900, 0xB000, 0xC001, 0xFE00]),
        st.integers(0, 4),
    )
    def test_any(self, operation: str, refused: set[int], listed: set[int], status: int, sent: int) -> None:
        """The count of failures is the length of the list, whatever was sent, refused and listed."""
        self.refused, self.warned = {uid(number) for number in refused}, set()
        result = self.retrieve(operation, 8, sent, status, failed(*sorted(listed)))
        expected = {uid(number) for number in listed | (refused & set(range(sent)))}
        self.assertEqual(set(result.failed_instances), expected)
        self.assertEqual(len(result.failed_instances), len(expected))
        self.assertEqual(result.suboperations.failed, len(expected))
        self.assertEqual(result.suboperations.completed, sent - len(refused & set(range(sent))))
        self.assertEqual(result.status, status)

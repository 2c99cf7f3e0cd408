"""
C-FIND in both roles (PS3.7 9.1.2): streams of answers with back-pressure, C-CANCEL, and failures.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast
from unittest import mock

from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher

from dicomtwist import (
    Answers,
    Association,
    AssociationAborted,
    AssociationLost,
    DataSetError,
    NoPresentationContext,
    NotEstablished,
    OperationFailed,
    Status,
    TooManyAnswers,
    build_context,
    evt,
)
from dicomtwist.datasets import encode_dataset
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.dimse.message_stream import encode_pdata
from dicomtwist.dimse.messages import CCancelRQ, CFindRQ, CFindRSP
from dicomtwist.scu.responses import FULL_COUNT, MAX_LOST
from tests.memory import VERIFICATION, MemoryTestCase

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
RELEVANT_PATIENT = "1.2.840.10008.5.1.4.37.1"
MODELS = [build_context(FIND), build_context(RELEVANT_PATIENT), build_context(VERIFICATION)]


def keys(**values: Any) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def match(number: int) -> Dataset:
    return keys(StudyInstanceUID=f"1.2.{number}", PatientName="Doe^John")


def numbered(event: evt.Event, count: int) -> Iterator[Any]:
    """Return a handler that finds *count* studies."""
    for number in range(count):
        yield 0xFF00, match(number)


class FindTestCase(MemoryTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.scp.supported_contexts = MODELS
        self.scu.requested_contexts = MODELS

    def find(self, association: Association, identifier: Dataset | None = None, model: str = FIND) -> Answers:
        answers = association.send_c_find(identifier or keys(PatientID=""), model)
        self.network.flush()
        return answers

    def all_of(self, answers: Answers) -> list[tuple[Status, Dataset | None]]:
        async def take() -> list[tuple[Status, Dataset | None]]:
            return [answer async for answer in answers]

        taking = Deferred.fromCoroutine(take())
        self.network.flush()
        return self.successResultOf(taking)

    def uids(self, answers: Answers) -> list[str]:
        collecting = answers.collect()
        self.network.flush()
        return [identifier.StudyInstanceUID for identifier in self.successResultOf(collecting)]

    def statuses(self, *handlers: Any, identifier: Dataset | None = None, model: str = FIND) -> list[int]:
        """Return the statuses that the SCU gets from a handler."""
        association, _ = self.both(*handlers)
        return [int(status) for status, _ in self.all_of(self.find(association, identifier, model))]


class AnswersTests(FindTestCase):
    """The requestor gets the answers that the handler yields."""

    def test_all(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, numbered, [3]))
        answers = self.all_of(self.find(association))
        self.assertEqual([int(status) for status, _ in answers], [0xFF00] * 3 + [0])
        self.assertEqual([each.StudyInstanceUID for _, each in answers if each], ["1.2.0", "1.2.1", "1.2.2"])
        self.assertIsNone(answers[-1][1])
        self.assertTrue(answers[0][0].is_pending)

    def test_collect(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, numbered, [250]))
        answers = self.find(association)
        self.assertEqual(self.uids(answers), [f"1.2.{number}" for number in range(250)])
        assert answers.status is not None
        self.assertTrue(answers.status.is_success)

    def test_identifier_and_event(self) -> None:
        seen: list[evt.IdentifierEvent] = []

        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            seen.append(event)
            yield 0xFF01, event.identifier

        association, _ = self.both((evt.EVT_C_FIND, handler))
        ((status, identifier), _) = self.all_of(self.find(association, keys(PatientName="Doe*")))
        self.assertEqual(status, 0xFF01)
        assert identifier is not None
        self.assertEqual(identifier.PatientName, "Doe*")
        (event,) = seen
        self.assertEqual(event.request.affected_sop_class_uid, FIND)
        self.assertEqual(event.message_id, 1)
        self.assertEqual(event.context.abstract_syntax, FIND)
        self.assertFalse(event.is_cancelled)
        with self.assertRaises(AttributeError):
            _ = event.move_destination

    def test_kinds_of_handlers(self) -> None:
        async def generator(event: evt.Event) -> AsyncIterator[Any]:
            yield 0xFF00, match(1)
            await succeed(None)
            yield match(2)
            yield 0x0000

        async def coroutine(event: evt.Event) -> list[Any]:
            return [(0xFF00, match(1)), match(2)]

        def deferred(event: evt.Event) -> Deferred[Any]:
            return succeed(iter([match(1), match(2)]))

        def encoded(event: evt.Event) -> Iterator[Any]:
            yield 0xFF00, encode_identifier(match(1), str(event.context.transfer_syntax))
            yield 0xFF00, match(2)

        for handler in (generator, coroutine, deferred, encoded):
            server = self.listen((evt.EVT_C_FIND, handler))
            association = self.associate()
            self.assertEqual(self.uids(self.find(association)), ["1.2.1", "1.2.2"], handler.__name__)
            association.abort()
            self.network.flush()
            server.shutdown()
            self.network.flush()

    def test_each_transfer_syntax(self) -> None:
        for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"):
            self.scp.supported_contexts = self.scu.requested_contexts = [build_context(FIND, syntax)]
            server = self.listen((evt.EVT_C_FIND, numbered, [2]))
            association = self.associate()
            self.assertEqual(self.uids(self.find(association)), ["1.2.0", "1.2.1"])
            association.abort()
            server.shutdown()
            self.network.flush()

    def test_a_final_status_with_words(self) -> None:
        def handler(event: evt.Event) -> Iterator[Any]:
            yield 0xFF00, match(1)
            yield Status(0xA700, "C-FIND", "too much")

        association, _ = self.both((evt.EVT_C_FIND, handler))
        _, (status, identifier) = self.all_of(self.find(association))
        self.assertEqual((status, status.error_comment, identifier), (0xA700, "too much", None))

    def test_final_identifier(self) -> None:
        """A Repository Query may end with a warning and an identifier to continue with (PS3.4 C.6.4)."""
        association, _ = self.both((evt.EVT_C_FIND, lambda event: [(0xB001, match(7))]))
        ((status, identifier),) = self.all_of(self.find(association))
        self.assertTrue(status.is_warning)
        assert identifier is not None
        self.assertEqual(identifier.StudyInstanceUID, "1.2.7")

    def test_operations_follow_each_other(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, numbered, [2]))
        first, second = (association.send_c_find(keys(), FIND) for _ in range(2))
        self.assertEqual((first.message_id, second.message_id), (1, None))
        self.network.flush()
        self.assertEqual(len(self.all_of(first)), 3)
        self.network.flush()
        self.assertEqual(second.message_id, 2)
        self.assertEqual(len(self.all_of(second)), 3)

    def test_at_once_in_a_window(self) -> None:
        self.scp.bind(evt.EVT_C_FIND, numbered, [5])
        association, _ = self.windowed()
        found = [self.find(association) for _ in range(4)]
        self.assertEqual([len(self.all_of(answers)) for answers in reversed(found)], [6] * 4)


class ListTests(FindTestCase):
    """Handlers that yield lists of identifiers."""

    def answers_of(self, *items: Any, model: str = FIND) -> list[tuple[int, str]]:
        """Return the statuses and the UIDs of the answers to a handler that yields *items*."""
        association, _ = self.both((evt.EVT_C_FIND, lambda event: iter(items)))
        found = self.all_of(self.find(association, None, model))
        self.assertTrue(association.is_established)
        return [(int(status), "" if each is None else each.StudyInstanceUID) for status, each in found]

    def test_all(self) -> None:
        encoded = encode_identifier(match(3), ImplicitVRLittleEndian)
        items: tuple[Any, ...] = ((0xFF00, [match(1), match(2)]), [], (0xFF01, [encoded]), [match(4)], match(5))
        expected = [
            (0xFF00, "1.2.1"),
            (0xFF00, "1.2.2"),
            (0xFF01, "1.2.3"),
            (0xFF00, "1.2.4"),
            (0xFF00, "1.2.5"),
            (0, ""),
        ]
        self.assertEqual(self.answers_of(*items), expected)

    def test_odd_lengths(self) -> None:
        """Data sets of odd length are padded, since no fragment is of odd length (PS3.8 9.3.5.1)."""
        raw = b"\x20\0\x0d\0\5\0\0\x001.2.1"
        with mock.patch("dicomtwist.exchange.send_queue.encode_pdata", side_effect=encode_pdata) as encoded:
            association, _ = self.both((evt.EVT_C_FIND, lambda event: [[raw, raw]]))
            self.find(association)
        lengths = [len(call.args[2]) for call in encoded.call_args_list if not call.args[1]]
        self.assertEqual(lengths[-2:], [14, 14])

    def test_long(self) -> None:
        """Lists of more than a piece, of more than a PDU each, and of identifiers longer than a piece."""
        for count, comment in ((5000, 10), (40, 20_000), (3, 300_000)):
            identifiers = []
            for number in range(count):
                identifiers.append(match(number))
                identifiers[-1].PatientComments = "x" * comment
            self.assertEqual(
                self.answers_of(identifiers), [(0xFF00, f"1.2.{number}") for number in range(count)] + [(0, "")]
            )
            self.scp.shutdown()
            self.network.flush()

    def test_one_that_cannot_be_encoded(self) -> None:
        bad = keys()
        bad.add_new(0x00080018, "US", "not a number")
        for wrong in (bad, None, 7, "text"):
            found = self.answers_of([match(1), match(2), wrong, match(3)])
            self.assertEqual(found, [(0xFF00, "1.2.1"), (0xFF00, "1.2.2"), (0xC312, "")])
            self.assertEqual(len(self.flushLoggedErrors()), 1)
            self.scp.shutdown()
            self.network.flush()

    def test_a_status_among_them(self) -> None:
        status = Dataset()
        status.Status = 0xA700
        self.assertEqual(self.answers_of([match(1), status]), [(0xFF00, "1.2.1"), (0xC311, "")])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_single(self) -> None:
        self.assertEqual(self.answers_of([match(1)], model=RELEVANT_PATIENT), [(0xFF00, "1.2.1"), (0, "")])
        self.scp.shutdown()
        self.network.flush()
        self.assertEqual(self.answers_of([match(1), match(2)], model=RELEVANT_PATIENT), [(0xC100, "")])

    def test_each_is_observed(self) -> None:
        sent: list[Any] = []
        association, _ = self.both(
            (evt.EVT_C_FIND, lambda event: [[match(1), match(2)]]),
            (evt.EVT_DIMSE_SENT, lambda event: sent.append(int(event.message.status))),
        )
        self.all_of(self.find(association))
        self.assertEqual(sent, [0xFF00, 0xFF00, 0])


class FailureTests(FindTestCase):
    """Each failure gives its status, and the association goes on."""

    def raising(self, event: evt.Event) -> Iterator[Any]:
        yield 0xFF00, match(1)
        raise ValueError("no good")

    def test_nothing_bound(self) -> None:
        self.assertEqual(self.statuses(), [0xC311])

    def test_raises(self) -> None:
        self.assertEqual(self.statuses((evt.EVT_C_FIND, self.raising)), [0xFF00, 0xC311])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_raises_at_once(self) -> None:
        self.assertEqual(self.statuses((evt.EVT_C_FIND, lambda event: 1 / 0)), [0xC311])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_no_generator(self) -> None:
        self.assertEqual(self.statuses((evt.EVT_C_FIND, lambda event: 0)), [0xC311])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_cannot_be_encoded(self) -> None:
        bad = keys()
        bad.add_new(0x00080018, "US", "not a number")
        self.assertEqual(self.statuses((evt.EVT_C_FIND, lambda event: [(0xFF00, bad)])), [0xC312])
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_pending_without_identifier(self) -> None:
        self.assertEqual(self.statuses((evt.EVT_C_FIND, lambda event: [(0xFF00, None)])), [0xC312])

    def test_the_identifier_cannot_be_decoded(self) -> None:
        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            yield 0xFF00, event.identifier

        association, _ = self.both((evt.EVT_C_FIND, handler))
        answers = association.send_c_find(b"\x08\x00\x05\x00\xff\xff\x00\x00", FIND)
        self.network.flush()
        self.assertEqual([int(status) for status, _ in self.all_of(answers)], [0xC311])
        self.assertEqual(len(self.flushLoggedErrors(DataSetError)), 1)

    def test_collect_of_a_failure(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, lambda event: [match(1), 0xA900]))
        collecting = self.find(association).collect()
        self.network.flush()
        error = self.failureResultOf(collecting, OperationFailed).value
        self.assertEqual(error.status, 0xA900)
        self.assertIn("identifier does not match SOP Class", str(error))

    def test_too_many_to_collect(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, numbered, [1000]))
        collecting = self.find(association).collect(limit=10)
        self.network.flush()
        self.failureResultOf(collecting, TooManyAnswers)
        self.network.flush()
        self.assertFalse(association.exchange.asking)

    def test_nothing_to_ask(self) -> None:
        association, _ = self.both()
        with self.assertRaises(NoPresentationContext):
            association.send_c_find(keys(), "1.2.840.10008.5.1.4.31")
        with self.assertRaises(TypeError):
            association.send_c_find("PatientID=1", FIND)  # type: ignore[arg-type]
        association.abort()
        self.network.flush()
        with self.assertRaises(NotEstablished):
            association.send_c_find(keys(), FIND)

    def test_lost(self) -> None:
        association, peer = self.scripted_scp()
        answers = self.find(association)
        peer.send_message(1, CFindRSP(message_id_being_responded_to=1, status=0xFF00), b"")
        taking = answers.collect()
        peer.transport.abortConnection()
        self.network.flush()
        self.failureResultOf(taking, AssociationLost)

    def test_aborted_by_the_handler(self) -> None:
        def handler(event: evt.Event) -> Iterator[Any]:
            yield match(1)
            event.assoc.abort()
            yield match(2)

        association, _ = self.both((evt.EVT_C_FIND, handler))
        collecting = self.find(association).collect()
        self.network.flush()
        self.failureResultOf(collecting, AssociationAborted)


class SingleMatchTests(FindTestCase):
    """Relevant Patient Information Query answers one match, or fails if there are more (PS3.4 Q.2)."""

    def test_one(self) -> None:
        self.assertEqual(self.statuses((evt.EVT_C_FIND, numbered, [1]), model=RELEVANT_PATIENT), [0xFF00, 0])

    def test_none(self) -> None:
        self.assertEqual(self.statuses((evt.EVT_C_FIND, numbered, [0]), model=RELEVANT_PATIENT), [0])

    def test_more(self) -> None:
        self.assertEqual(self.statuses((evt.EVT_C_FIND, numbered, [2]), model=RELEVANT_PATIENT), [0xC100])


class LostTests(FindTestCase):
    """One identifier that cannot be decoded, whatever is wrong with it, is lost alone."""

    BROKEN = (
        b"\x08\x00\x05\x00\xff\xff\x00\x00",  # a length beyond the end
        b"\x08\x00\x05",  # a part of a header
        b"\xff" * 40,
        b"\x10\x00\x20\x00\x08\x00\x00\x00\0\0\0",  # a value of NULs that is cut off
        b"\x08\x00\x40\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff",  # a sequence without its end
    )

    def answers(self, final: bytes | None = None) -> Answers:
        """Return the answers of a peer, among which are broken ones, and the final one with *final*."""
        good = [encode_dataset(match(number), ImplicitVRLittleEndian) for number in range(4)]

        def handler(event: evt.Event) -> Iterator[Any]:
            yield 0xFF00, good[0]
            for broken in self.BROKEN:
                yield 0xFF00, broken
                yield 0xFF01, good[1]
            yield 0xFF00, good[2] + b"\0"
            yield 0xFF00, good[3] + b"\0" * 5
            yield 0x0000, final

        association, _ = self.both((evt.EVT_C_FIND, handler))
        return self.find(association)

    def test_iterated(self) -> None:
        answers = self.answers()
        found = self.all_of(answers)
        self.assertEqual([int(status) for status, _ in found], [0xFF00, *[0xFF01] * 5, 0xFF00, 0xFF00, 0])
        uids = [each.StudyInstanceUID for _, each in found if each is not None]
        self.assertEqual(uids, ["1.2.0", *["1.2.1"] * 5, "1.2.2", "1.2.3"])
        self.assertEqual(answers.lost.count, len(self.BROKEN))
        self.assertIn("5 identifiers could not be decoded: ", str(answers.lost))

    def test_collected(self) -> None:
        collecting = self.answers().collect()
        self.network.flush()
        found = self.successResultOf(collecting)
        self.assertEqual(len(found), 8)
        self.assertEqual(found.lost.count, 5)
        self.assertEqual(len(found.lost.errors), 5)

    def test_nothing_lost(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, numbered, [2]))
        collecting = self.find(association).collect()
        self.network.flush()
        found = self.successResultOf(collecting)
        self.assertEqual((len(found), found.lost.count, str(found.lost)), (2, 0, "no identifier was lost"))

    def test_kept_errors_are_bounded(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, lambda event: [(0xFF00, b"\x08")] * (MAX_LOST + 50)))
        collecting = self.find(association).collect()
        self.network.flush()
        found = self.successResultOf(collecting)
        self.assertEqual((found, found.lost.count, len(found.lost.errors)), ([], MAX_LOST + 50, MAX_LOST))

    def test_logged_once(self) -> None:
        events: list[LogEvent] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        collecting = self.answers().collect()
        self.network.flush()
        self.successResultOf(collecting)
        shown = [formatEvent(event) for event in events if event.get("log_level") is LogLevel.warn]
        self.assertEqual(len(shown), 1)
        self.assertIn("sent an identifier that cannot be decoded, it is left out: ", shown[0])


class CancelTests(FindTestCase):
    """C-CANCEL ends a C-FIND with or without the help of the handler."""

    def setUp(self) -> None:
        super().setUp()
        self.closed = 0
        self.cancelled: list[bool] = []
        self.waiting: Deferred[None] | None = None

    async def endless(self, event: evt.IdentifierEvent) -> AsyncIterator[Any]:
        """Find one study, then wait for ever."""
        try:
            yield match(1)
            self.waiting = Deferred()
            await self.waiting
        except CancelledError:
            self.cancelled.append(event.is_cancelled)
            raise
        finally:
            self.closed += 1

    def busy(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        """Find studies for ever."""
        number = 0
        try:
            while True:
                yield match(number)
                number += 1
        finally:
            self.closed += 1

    def test_an_async_generator_that_waits(self) -> None:
        told: list[evt.Event] = []
        association, _ = self.both((evt.EVT_C_FIND, self.endless), (evt.EVT_C_CANCEL, told.append))
        answers = self.find(association)
        self.assertIsNotNone(self.waiting)
        answers.cancel()
        self.assertEqual([int(status) for status, _ in self.all_of(answers)], [0xFF00, 0xFE00])
        self.assertEqual((self.cancelled, self.closed), ([True], 1))
        self.assertEqual([event.message_id for event in told], [1])
        self.assertIsInstance(told[0].request, CFindRQ)

    def test_a_generator_that_never_waits(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, self.busy))
        answers = self.find(association)
        association.send_c_cancel(1)
        statuses = [int(status) for status, _ in self.all_of(answers)]
        self.assertEqual(statuses[-1], 0xFE00)
        self.assertGreater(len(statuses), FULL_COUNT)
        self.assertEqual(self.closed, 1)

    def test_within_a_list(self) -> None:
        """The transport is full in the middle of a list; the rest of it is not sent after a C-CANCEL."""
        long = match(1)
        long.PatientComments = "x" * 10_000
        association, _ = self.both((evt.EVT_C_FIND, lambda event: [[long] * 10_000]))
        answers = self.find(association)
        association.send_c_cancel(1)
        statuses = [int(status) for status, _ in self.all_of(answers)]
        self.assertEqual((set(statuses[:-1]), statuses[-1]), ({0xFF00}, 0xFE00))
        self.assertLess(len(statuses), 9_000)

    def test_a_handler_that_looks(self) -> None:
        """A handler may check for a cancellation itself, as older handlers do."""
        steps: list[Deferred[None]] = []

        async def handler(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            yield match(1)
            try:
                steps.append(Deferred())
                await steps[0]
            except CancelledError:
                pass
            if event.is_cancelled:
                yield 0xFE00, None

        association, _ = self.both((evt.EVT_C_FIND, handler))
        answers = self.find(association)
        answers.cancel()
        self.assertEqual([int(status) for status, _ in self.all_of(answers)], [0xFF00, 0xFE00])

    def test_raising_when_cancelled_is_logged(self) -> None:
        async def handler(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            yield match(1)
            try:
                await Deferred()
            finally:
                raise KeyError("cleaning up")

        association, _ = self.both((evt.EVT_C_FIND, handler))
        answers = self.find(association)
        answers.cancel()
        self.assertEqual([int(status) for status, _ in self.all_of(answers)], [0xFF00, 0xFE00])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_leaving_the_loop(self) -> None:
        association, accepted = self.both((evt.EVT_C_FIND, self.busy))

        async def first() -> Any:
            async for _, identifier in association.send_c_find(keys(), FIND):
                return identifier

        looking = Deferred.fromCoroutine(first())
        self.network.flush()
        self.assertEqual(self.successResultOf(looking).StudyInstanceUID, "1.2.0")
        self.network.flush()
        self.assertEqual(self.closed, 1)
        self.assertFalse(association.exchange.asking)
        self.assertFalse(accepted.exchange.answering)

    def test_an_exception_in_the_loop(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, self.busy))

        async def first() -> None:
            async with association.send_c_find(keys(), FIND) as answers:
                async for _ in answers:
                    raise ArithmeticError

        looking = Deferred.fromCoroutine(first())
        self.network.flush()
        self.failureResultOf(looking, ArithmeticError)
        self.network.flush()
        self.assertEqual(self.closed, 1)
        self.assertFalse(association.exchange.asking)

    def test_letting_go(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, self.busy))
        answers = self.find(association)
        del answers
        gc.collect()
        self.network.flush()
        self.assertEqual(self.closed, 1)
        self.assertFalse(association.exchange.asking)

    def test_cancelling_who_waits(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, self.endless))
        collecting = self.find(association).collect()
        self.network.flush()
        collecting.cancel()
        self.failureResultOf(collecting, CancelledError)
        self.network.flush()
        self.assertEqual(self.closed, 1)
        self.assertFalse(association.exchange.asking)

    def test_left_while_it_waits_for_the_window(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, self.endless))
        first, second = self.find(association), self.find(association)
        second.leave()
        first.cancel()
        self.network.flush()
        self.assertFalse(association.exchange.asking)
        self.assertEqual(self.closed, 1)

    def test_cancelled_while_it_waits_for_the_window(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, self.endless))
        first, second = self.find(association), self.find(association)
        second.cancel()
        first.leave()
        self.network.flush()
        self.assertEqual([int(status) for status, _ in self.all_of(second)][-1], 0xFE00)
        self.assertFalse(association.exchange.asking)

    def test_the_peer_goes(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, self.endless))
        answers = self.find(association)
        association.abort()
        self.network.flush()
        self.assertEqual((self.cancelled, self.closed), ([True], 1))
        with self.assertRaises(AssociationAborted):
            self.all_of_raising(answers)

    def all_of_raising(self, answers: Answers) -> None:
        collecting = answers.collect()
        self.network.flush()
        self.failureResultOf(collecting).raiseException()

    def test_a_handler_that_waits_for_ever(self) -> None:
        """The peer is gone and the handler waits on: when both are garbage collected, nothing is logged."""
        never: list[Deferred[None]] = [Deferred(), Deferred()]

        async def handler(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            try:
                await never[0]
            except CancelledError:
                await never[1]
            yield 0

        association, accepted = self.both((evt.EVT_C_FIND, handler))
        answers = self.find(association)
        association.abort()
        with self.assertRaises(AssociationAborted):
            self.all_of_raising(answers)
        accepted.unbind(evt.EVT_C_FIND, handler)
        self.network.result_of(self.scp.shutdown())
        del association, accepted, answers, handler
        never.clear()
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_nothing_to_cancel(self) -> None:
        association, _ = self.both((evt.EVT_C_FIND, numbered, [1]))
        answers = self.find(association)
        self.all_of(answers)
        association.send_c_cancel(1)
        answers.cancel()
        answers.leave()
        self.network.flush()
        self.assertTrue(association.is_established)

    def test_answers_behind_the_cancel_are_dropped(self) -> None:
        association, peer = self.scripted_scp()
        answers = self.find(association)
        answers.leave()
        self.network.flush()
        self.assertIsInstance(peer.messages()[-1][0], CCancelRQ)
        data = encode_identifier(match(1), str(ImplicitVRLittleEndian))
        for status in (0xFF00, 0xFF00, 0x0000):
            peer.send_message(1, CFindRSP(message_id_being_responded_to=1, status=status), data if status else None)
        self.network.flush()
        self.assertFalse(association.exchange.asking)
        self.assertTrue(association.is_established)


class BackPressureTests(FindTestCase):
    """A requestor that does not read stops the handler."""

    def setUp(self) -> None:
        super().setUp()
        self.count = 0

    def many(self, event: evt.Event) -> Iterator[Any]:
        for number in range(20_000):
            self.count += 1
            yield match(number)

    def test_a_consumer_that_stops_stops_the_performer(self) -> None:
        self.scu.network_timeout = self.scu.dimse_timeout = 10
        association, _ = self.both((evt.EVT_C_FIND, self.many))
        answers = self.find(association)
        before = self.count
        self.network.flush()
        self.assertEqual(self.count, before)
        self.assertLess(before, 15_000)
        # No timeout of this side ends a handler that takes long.
        self.network.advance(50)
        self.assertTrue(association.is_established, association.end_reason)

        async def take() -> tuple[Status, Dataset | None]:
            return await anext(answers)

        taking = Deferred.fromCoroutine(take())
        self.assertTrue(self.successResultOf(taking)[0].is_pending)
        answers.leave()
        self.network.flush()
        self.assertTrue(association.is_established, association.end_reason)
        self.assertFalse(association.exchange.asking)

    def test_another_operation_is_answered_meanwhile(self) -> None:
        self.scp.bind(evt.EVT_C_FIND, numbered, [2000])
        association, _ = self.windowed()
        answers = self.find(association)
        self.assertTrue(association.protocol.reading_paused)
        echoing = association.send_c_echo()
        self.network.flush()
        self.assertEqual(self.successResultOf(echoing), 0)
        self.assertEqual(len(self.uids(answers)), 2000)
        self.assertFalse(association.protocol.reading_paused)

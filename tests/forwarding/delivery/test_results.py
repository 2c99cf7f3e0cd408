"""The results of attempts: which are sent again, which have failed, and when."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost, ConnectionRefusedError

from dicomtwist.dicomweb.client.errors import InvalidResponse, NoConnection, RequestTimeout, request_failed
from dicomtwist.dimse.status import StatusCategory, category
from dicomtwist.errors import (
    AssociationAborted,
    AssociationRejected,
    AssociationTimeout,
    DataSetError,
    ExecutorFull,
    NoAcceptedContexts,
    NoPresentationContext,
    RetriesExhausted,
)
from dicomtwist.forwarding.delivery.breaker import LONGEST_ASKED
from dicomtwist.forwarding.delivery.results import (
    FIRST_DELAY,
    LONGEST_DELAY,
    MAX_TRIES,
    Action,
    delays,
    of_connecting,
    of_error,
    of_reason,
    of_status,
)
from dicomtwist.forwarding.errors import CoercionError
from dicomtwist.forwarding.tasks.types import MAX_SAID
from dicomtwist.part10 import NotDicomFile

#: Statuses of C-STORE, the action, and whether the destination as a whole counts as down.
STATUSES = (
    (0x0000, Action.DONE, False),
    (0x0001, Action.DONE, False),
    (0x0107, Action.DONE, False),
    (0x0116, Action.DONE, False),
    (0xB000, Action.DONE, False),
    (0xB006, Action.DONE, False),
    (0xB007, Action.DONE, False),
    (0x0111, Action.DONE, False),
    (0x0105, Action.FAIL, False),
    (0x0106, Action.FAIL, False),
    (0x0110, Action.RETRY, False),
    (0x0112, Action.FAIL, False),
    (0x0115, Action.FAIL, False),
    (0x0117, Action.FAIL, False),
    (0x0118, Action.FAIL, False),
    (0x0119, Action.FAIL, False),
    (0x0120, Action.FAIL, False),
    (0x0121, Action.FAIL, False),
    (0x0122, Action.FAIL, False),
    (0x0124, Action.RETRY, True),
    (0x0210, Action.RETRY, False),
    (0x0211, Action.FAIL, False),
    (0x0212, Action.FAIL, False),
    (0x0213, Action.RETRY, True),
    (0xA700, Action.RETRY, True),
    (0xA7FF, Action.RETRY, True),
    (0xA800, Action.RETRY, False),
    (0xA900, Action.FAIL, False),
    (0xC000, Action.FAIL, False),
    (0xC211, Action.RETRY, False),
    (0xCFFF, Action.FAIL, False),
    (0xFE00, Action.RETRY, False),
    (0xFF00, Action.RETRY, False),
    (0x1234, Action.RETRY, False),
)

#: Status codes of HTTP, likewise.
RESPONSES = (
    (301, Action.RETRY, True),
    (400, Action.FAIL, False),
    (401, Action.RETRY, True),
    (403, Action.RETRY, True),
    (404, Action.RETRY, True),
    (405, Action.RETRY, True),
    (408, Action.RETRY, True),
    (409, Action.FAIL, False),
    (410, Action.RETRY, True),
    (413, Action.FAIL, False),
    (415, Action.FAIL, False),
    (418, Action.RETRY, False),
    (422, Action.FAIL, False),
    (429, Action.RETRY, True),
    (500, Action.RETRY, False),
    (501, Action.RETRY, True),
    (502, Action.RETRY, True),
    (503, Action.RETRY, True),
    (504, Action.RETRY, True),
    (507, Action.RETRY, True),
)


class Statuses(unittest.TestCase):
    def test_table(self) -> None:
        for code, action, is_down in STATUSES:
            with self.subTest(f"{code:04X}"):
                result = of_status(code)
                self.assertEqual((result.action, result.is_down), (action, is_down))
                self.assertTrue(result.is_sent)
                self.assertFalse(result.is_lost)

    @given(st.integers(0, 0xFFFF), st.none() | st.text())
    def test_any_status(self, code: int, comment: str | None) -> None:
        result = of_status(code, comment)
        self.assertTrue(result.said.isprintable())
        self.assertLessEqual(len(result.said), MAX_SAID)
        if category(code) in (StatusCategory.SUCCESS, StatusCategory.WARNING):
            self.assertIs(result.action, Action.DONE)
        elif code != 0x0111:
            self.assertIsNot(result.action, Action.DONE)
            self.assertTrue(result.said)

    def test_words_of_the_peer(self) -> None:
        said = of_status(0xA700, "the disk\x1b is full").said
        self.assertIn("0xA700", said)
        self.assertIn("the disk is full", said)

    def test_reasons(self) -> None:
        self.assertIs(of_reason(0xA900).action, Action.FAIL)
        self.assertIs(of_reason(0x0111).action, Action.DONE)
        self.assertEqual((of_reason(0).action, of_reason(0).most), (Action.RETRY, MAX_TRIES))
        self.assertIs(of_reason(0xC122, "syntax").action, Action.FAIL)


class Responses(unittest.TestCase):
    def test_table(self) -> None:
        for code, action, is_down in RESPONSES:
            with self.subTest(code):
                result = of_error(request_failed(code, "text/plain", b"the server says no"))
                self.assertEqual((result.action, result.is_down), (action, is_down))
                self.assertIn("the server says no", result.said)

    def test_retry_after(self) -> None:
        self.assertEqual(of_error(request_failed(503, retry_after="120")).after, 120)
        self.assertEqual(of_error(request_failed(503, retry_after="9" * 400)).after, LONGEST_ASKED)


class Errors(unittest.TestCase):
    def test_connecting(self) -> None:
        refused = RetriesExhausted("no answer", 1, ConnectionRefusedError())
        for error in (refused, AssociationRejected(1, 1, 7), AssociationTimeout("acse", 30, "no answer"), OSError("x")):
            with self.subTest(error):
                result = of_connecting(error)
                self.assertEqual((result.action, result.is_down, result.is_sent), (Action.RETRY, True, False))

    def test_connecting_without_contexts(self) -> None:
        error = NoAcceptedContexts("none")
        self.assertIs(of_connecting(error).action, Action.FAIL)
        self.assertIs(of_connecting(RetriesExhausted("no", 1, error)).action, Action.FAIL)

    def test_lost(self) -> None:
        lost = NoConnection("the connection was lost")
        lost.__cause__ = ConnectionLost()
        for error in (AssociationAborted(by_peer=True), RequestTimeout("response", 60), lost):
            with self.subTest(error):
                result = of_error(error)
                self.assertEqual((result.action, result.is_lost, result.is_down), (Action.RETRY, True, False))

    def test_web_server_that_refuses_connections(self) -> None:
        error = NoConnection("no connection")
        error.__cause__ = ConnectionRefusedError()
        self.assertEqual((of_error(error).is_down, of_error(error).is_sent), (True, False))

    def test_instances(self) -> None:
        for error in (
            DataSetError("damaged"),
            CoercionError("PatientID", "map", "no entry"),
            NotDicomFile("none"),
            NoPresentationContext("none"),
        ):
            with self.subTest(error):
                self.assertIs(of_error(error).action, Action.FAIL)

    def test_missing(self) -> None:
        result = of_error(FileNotFoundError(2, "gone"))
        self.assertIs(result.at(3).action, Action.RETRY)
        self.assertIs(result.at(4).action, Action.FAIL)
        self.assertIn("gone", result.at(4).said)
        self.assertIs(of_error(LookupError("not stored")).at(4).action, Action.FAIL)

    def test_full_executor_is_no_try(self) -> None:
        self.assertFalse(of_error(ExecutorFull("retrieval", 3)).is_sent)

    def test_mistakes(self) -> None:
        for error in (InvalidResponse("x"), RuntimeError("a mistake")):
            self.assertEqual(of_error(error).most, MAX_TRIES)

    def test_limited(self) -> None:
        result = of_status(0x0110)
        self.assertIs(result.at(MAX_TRIES - 1), result)
        self.assertIs(result.at(MAX_TRIES).action, Action.FAIL)
        full = of_status(0xA700)
        self.assertIs(full.at(10_000), full)


class Delays(unittest.TestCase):
    def test_they_grow(self) -> None:
        delay = delays(lambda: 0.0)
        self.assertEqual([delay(tries) for tries in (1, 2, 3, 4)], [10, 20, 40, 80])
        self.assertEqual(delay(50), LONGEST_DELAY)

    def test_jitter(self) -> None:
        delay = delays(lambda: 1.0)
        self.assertEqual(delay(1), FIRST_DELAY * 1.25)

    def test_time_of_all_tries(self) -> None:
        """A status that may pass has about four hours to do so."""
        delay = delays(lambda: 0.5)
        self.assertAlmostEqual(sum(delay(tries) for tries in range(1, MAX_TRIES)) / 3600, 4, delta=1)

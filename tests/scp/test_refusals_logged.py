"""Lines of the log about refused operations are bounded for each association, whatever is refused and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from pydicom import Dataset
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher

from dicomtwist import build_context, evt
from dicomtwist.errors import OperationFailed
from dicomtwist.sop_class import (
    ModalityPerformedProcedureStep,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from tests.memory import CONTEXTS, CT, MemoryTestCase, instance

FIND = StudyRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove


class HandlerMistake(Exception):
    """A handler raises."""


def raising(event: evt.Event) -> Any:
    raise HandlerMistake("words of the handler")


def raising_later(event: evt.Event) -> Iterator[Any]:
    raise HandlerMistake("words of the handler")
    yield


def nowhere(event: evt.Event) -> Iterator[Any]:
    yield None


def keys() -> Dataset:
    made = Dataset()
    made.QueryRetrieveLevel = "STUDY"
    return made


class RefusalsLogged(MemoryTestCase):
    MOST = 4

    def setUp(self) -> None:
        super().setUp()
        contexts = [*CONTEXTS, *(build_context(uid) for uid in (FIND, GET, MOVE, ModalityPerformedProcedureStep))]
        self.scp.supported_contexts = self.scu.requested_contexts = contexts
        self.scp.settings.maximum_refusals_logged = self.MOST
        self.lines: list[str] = []
        look = cast(ILogObserver, self.look)
        globalLogPublisher.addObserver(look)
        self.addCleanup(globalLogPublisher.removeObserver, look)

    def look(self, event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).startswith("dicomtwist"):
            self.lines.append(eventAsText(event, includeTimestamp=False, includeSystem=False, includeTraceback=False))

    def last(self, answers: Any) -> None:
        try:
            self.network.result_of(answers.collect())
        except OperationFailed:
            pass

    def requests(self, association: Any) -> dict[str, Callable[[], Any]]:
        """Return a way to ask for each service."""
        result = self.network.result_of
        return {
            "C-ECHO": lambda: result(association.send_c_echo()),
            "C-STORE": lambda: result(association.send_c_store(instance())),
            "C-FIND": lambda: self.last(association.send_c_find(keys(), FIND)),
            "C-GET": lambda: self.last(association.send_c_get(keys(), GET)),
            "C-MOVE": lambda: self.last(association.send_c_move(keys(), "NOWHERE", MOVE)),
            "N-CREATE": lambda: result(association.send_n_create(Dataset(), ModalityPerformedProcedureStep, "1.2.3")),
        }

    def bounded(self, handlers: list[Any], *services: str) -> None:
        """Each of *services*, asked for many times, has no more lines than it may, on each association again."""
        self.listen(*handlers)
        for service in services:
            for _ in range(2):
                association = self.associate()
                self.lines.clear()
                for _ in range(3 * self.MOST):
                    self.requests(association)[service]()
                about = list(self.lines)
                self.network.result_of(association.release())
                self.flushLoggedErrors(HandlerMistake)
                self.assertEqual(len(about), self.MOST + 1, (service, about))
                self.assertIn("further ones on this association are not logged", about[-1])

    def test_without_a_handler(self) -> None:
        self.bounded([], "C-STORE", "C-FIND", "C-GET", "C-MOVE", "N-CREATE")

    def test_handlers_that_raise(self) -> None:
        simple = [(event, raising) for event in (evt.EVT_C_ECHO, evt.EVT_C_STORE, evt.EVT_N_CREATE)]
        answering = [(event, raising_later) for event in (evt.EVT_C_FIND, evt.EVT_C_GET, evt.EVT_C_MOVE)]
        self.bounded([*simple, *answering], *self.requests(None))

    def test_all_share_one_bound(self) -> None:
        self.listen((evt.EVT_C_MOVE, raising_later))
        association = self.associate()
        self.lines.clear()
        for _ in range(3):
            for service in ("C-STORE", "C-FIND", "C-GET", "C-MOVE", "N-CREATE"):
                self.requests(association)[service]()
        self.flushLoggedErrors(HandlerMistake)
        self.assertEqual(len(self.lines), self.MOST + 1, self.lines)

    def test_none(self) -> None:
        self.MOST = self.scp.settings.maximum_refusals_logged = 0
        self.listen()
        association = self.associate()
        self.lines.clear()
        for _ in range(9):
            self.assertNotEqual(self.network.result_of(association.send_c_store(instance())), 0)
        self.assertEqual(len(self.lines), 1, self.lines)

    def test_what_succeeds_is_not_counted(self) -> None:
        self.listen(
            (evt.EVT_C_STORE, lambda event: 0 if event.request.affected_sop_instance_uid == "1.2.3.4" else 0xA700)
        )
        association = self.associate()
        for _ in range(9):
            self.assertEqual(self.network.result_of(association.send_c_store(instance())), 0)
        self.assertEqual(CT, association.accepted_contexts[1].abstract_syntax)
        self.assertFalse([line for line in self.lines if "further ones" in line])

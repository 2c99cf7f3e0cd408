"""
A Dataset with Status (0000,0900) that a handler yields or returns: it is a status, and never an identifier or an instance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import succeed

from dicomtwist import build_context, evt
from tests.memory import CT, VERIFICATION, instance, part10
from tests.scp.test_find import FindTestCase, match
from tests.scp.test_retrieve import GetTestCase, MoveTestCase, uid

STATUSES = (0x0000, 0xA700, 0xC001, 0xFE00, 0xFF00, 0xFF01)


def status(code: int, **details: Any) -> Dataset:
    dataset = Dataset()
    dataset.Status = code
    for keyword, value in details.items():
        setattr(dataset, keyword, value)
    return dataset


def kinds(*items: Any) -> list[Callable[[Any], Any]]:
    """Return handlers of each kind that yield *items*."""

    def generator(event: Any) -> Any:
        yield from items

    async def asynchronous(event: Any) -> Any:
        for item in items:
            yield item

    async def coroutine(event: Any) -> Any:
        return list(items)

    return [generator, asynchronous, coroutine, lambda event: items, lambda event: succeed(iter(items))]


class FindTests(FindTestCase):
    def ends_with(self, *items: Any) -> None:
        for handler in kinds(*items):
            self.assertEqual(self.statuses((evt.EVT_C_FIND, handler)), [0xFF00] * (len(items) - 1) + [0xC311])
            (logged,) = self.flushLoggedErrors(TypeError)
            self.assertIn("yield (status, identifier)", str(logged.value))
            self.scp.shutdown()
            self.network.flush()

    def test_each_status(self) -> None:
        for code in STATUSES:
            self.ends_with(status(code))

    def test_behind_matches(self) -> None:
        self.ends_with(match(1), (0xFF00, match(2)), status(0xA700, ErrorComment="disk"))

    def test_a_match_that_has_a_status(self) -> None:
        both = match(1)
        both.Status = 0xFF00
        self.ends_with(both)

    def test_a_returned_tuple(self) -> None:
        """A handler that is no generator and returns (status, identifier) yields both, one after another."""
        self.assertEqual(self.statuses((evt.EVT_C_FIND, lambda event: (status(0xA700), None))), [0xC311])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_in_a_tuple(self) -> None:
        for code in (0xA700, 0xC001, 0x0000):
            handler = lambda event, code=code: [(status(code), None)]  # noqa: E731
            self.assertEqual(self.statuses((evt.EVT_C_FIND, handler)), [code])
            self.scp.shutdown()
            self.network.flush()


class GetTests(GetTestCase):
    def test_each_place(self) -> None:
        file = part10(uid=uid(1))
        for code in STATUSES:
            for items in (
                (status(code),),
                (2, status(code)),
                (2, instance(uid=uid(0)), status(code)),
                (2, [status(code)]),
                (2, [file, status(code)]),
            ):
                for handler in kinds(*items):
                    result = self.get(handler)
                    self.assertEqual(result.status, 0xC411, items)
                    self.assertEqual(result.suboperations.failed, 0, "the status was sent as an instance")
                    self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
                    self.scp.shutdown()
                    self.network.flush()

    def test_in_a_tuple(self) -> None:
        result = self.get(lambda event: [1, (status(0xA701, ErrorComment="no memory"), None)])
        self.assertEqual(result.status, 0xA701)


class MoveTests(MoveTestCase):
    def test_each_place(self) -> None:
        self.listening()
        place = ("127.0.0.1", 11113)
        for code in STATUSES:
            for items in (
                (status(code),),
                (place, status(code)),
                (place, 1, status(code)),
                (place, 2, [instance(uid=uid(0)), status(code)]),
            ):
                for handler in kinds(*items):
                    result = self.move(handler)
                    self.assertEqual(result.status, 0xC511, items)
                    self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
                    self.scp.shutdown()
                    self.network.flush()


class SingleAnswerTests(FindTestCase):
    """Services with one response: a result that is no status fails with the status of the service, and is logged."""

    PRINTER = "1.2.840.10008.5.1.1.16"

    def setUp(self) -> None:
        super().setUp()
        models = [build_context(uid) for uid in (VERIFICATION, CT, self.PRINTER)]
        self.scp.supported_contexts = self.scu.requested_contexts = models

    def results(self) -> list[Any]:
        def generator(event: Any) -> Any:
            yield 0x0000

        async def asynchronous(event: Any) -> Any:
            yield 0x0000

        def returns(value: Any) -> Callable[[Any], Any]:
            return lambda event: value

        empty, two = Dataset(), status(0)
        empty.Status = None
        two["Status"].value = [0, 0]
        wrong: tuple[Any, ...] = (
            None,
            True,
            "0000",
            0x10000,
            -1,
            1.0,
            b"",
            Dataset(),
            empty,
            two,
            [0],
            {},
            (0, None, None),
            status,
        )
        return [generator, asynchronous, *map(returns, wrong)]

    def answer(self, event: evt.EventType, ask: Callable[[Any], Any], expected: int) -> None:
        for handler in self.results():
            association, _ = self.both((event, handler))
            answered = self.network.result_of(ask(association))
            self.assertEqual(int(answered[0] if isinstance(answered, tuple) else answered), expected)
            self.assertEqual(len(self.flushLoggedErrors()), 1)
            self.scp.shutdown()
            self.network.flush()

    def test_echo(self) -> None:
        self.answer(evt.EVT_C_ECHO, lambda assoc: assoc.send_c_echo(), 0xC001)

    def test_store(self) -> None:
        self.answer(evt.EVT_C_STORE, lambda assoc: assoc.send_c_store(instance()), 0xC211)

    def test_normalised(self) -> None:
        requests: dict[evt.EventType, Callable[[Any], Any]] = {
            evt.EVT_N_GET: lambda assoc: assoc.send_n_get([], self.PRINTER, "1.2.3"),
            evt.EVT_N_SET: lambda assoc: assoc.send_n_set(match(1), self.PRINTER, "1.2.3"),
            evt.EVT_N_ACTION: lambda assoc: assoc.send_n_action(match(1), 1, self.PRINTER, "1.2.3"),
            evt.EVT_N_CREATE: lambda assoc: assoc.send_n_create(match(1), self.PRINTER, "1.2.3"),
            evt.EVT_N_DELETE: lambda assoc: assoc.send_n_delete(self.PRINTER, "1.2.3"),
            evt.EVT_N_EVENT_REPORT: lambda assoc: assoc.send_n_event_report(
                match(1), 1, self.PRINTER, "1.2.3", any_role=True
            ),
        }
        for event, ask in requests.items():
            self.answer(event, ask, 0x0110)

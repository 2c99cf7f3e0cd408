"""Every form in which a handler may return its value."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.runtime.call_handler import await_handler, call_handler


class Promise:
    """An awaitable that is neither a coroutine nor a Deferred."""

    def __init__(self, deferred: Deferred[int]) -> None:
        self._deferred = deferred

    def __await__(self) -> Generator[Deferred[int], Any, int]:
        return self._deferred.__await__()


async def coroutine(event: object, *arguments: object) -> tuple[object, ...]:
    return (event, *arguments)


class CallHandler(SynchronousTestCase):
    def test_a_value_is_returned_at_once(self) -> None:
        for value in (0, 0xA700, True, None, Dataset(), (0, Dataset()), [1], iter(()), b"", "text"):
            self.assertIs(call_handler(lambda event, given: given, "event", (value,)), value)

    def test_a_generator_is_a_value(self) -> None:
        async def answers(event: object) -> Any:
            yield event

        self.assertTrue(hasattr(call_handler(answers, "event"), "__aiter__"))

    def test_a_deferred_is_handed_on(self) -> None:
        deferred: Deferred[int] = Deferred()
        self.assertIs(call_handler(lambda event: deferred, "event"), deferred)

    def test_a_coroutine_gives_a_deferred(self) -> None:
        result = call_handler(coroutine, "event", ("argument",))
        self.assertEqual(self.successResultOf(result), ("event", "argument"))

    def test_another_awaitable_gives_a_deferred(self) -> None:
        waiting: Deferred[int] = Deferred()
        result = call_handler(lambda event: Promise(waiting), "event")
        self.assertNoResult(result)
        waiting.callback(7)
        self.assertEqual(self.successResultOf(result), 7)

    def test_an_exception_is_raised_or_fails_the_deferred(self) -> None:
        def fails(event: object) -> int:
            raise ValueError("no")

        async def fails_later(event: object) -> int:
            raise ValueError("no")

        self.assertRaises(ValueError, call_handler, fails, "event")
        self.failureResultOf(call_handler(fails_later, "event"), ValueError)

    def test_a_coroutine_waits_for_every_form(self) -> None:
        for handler in (lambda event: 7, lambda event: succeed(7), lambda event: Promise(succeed(7)), self.seven):
            waiting = Deferred.fromCoroutine(await_handler(handler, "event"))
            self.assertEqual(self.successResultOf(waiting), 7)

    async def seven(self, event: object) -> int:
        return 7

"""Coroutines that await Deferreds and the awaitables of asyncio alike, cancellation included."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextvars import ContextVar
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import fail as failed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

import dicomtwist
from dicomtwist.eventloop.coroutines import (
    SteppedItems,
    await_any,
    deferred_items,
    from_deferred,
    running_loop,
    to_deferred,
)

PACKAGE = Path(dicomtwist.__file__).parent

variable: ContextVar[str] = ContextVar("variable", default="")


class FromDeferred(SynchronousTestCase):
    def test_results(self) -> None:
        """A result that is there, one that comes later, and an exception, unchanged."""
        error = KeyError("it")

        async def main() -> None:
            self.assertEqual(await from_deferred(succeed(1)), 1)
            later: Deferred[int] = Deferred()
            asyncio.get_running_loop().call_soon(later.callback, 2)
            self.assertEqual(await from_deferred(later), 2)
            with self.assertRaises(KeyError) as raised:
                await from_deferred(failed(error))
            self.assertIs(raised.exception, error)

        asyncio.run(main())
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_cancel(self) -> None:
        """A cancellation of the task cancels the Deferred, and nothing is logged of it."""
        cancelled: list[Deferred[None]] = []

        async def main() -> None:
            waiting: Deferred[None] = Deferred(cancelled.append)
            with self.assertRaises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await from_deferred(waiting)
            self.assertEqual(cancelled, [waiting])

        asyncio.run(main())
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_fires_after_the_loop(self) -> None:
        """A Deferred that fires after the end of the loop finds nobody who waits."""
        late: Deferred[int] = Deferred()

        async def main() -> None:
            tasks.append(asyncio.create_task(from_deferred(late)))
            await asyncio.sleep(0)

        tasks: list[asyncio.Task[int]] = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        late.callback(1)
        self.assertEqual(self.successResultOf(late), 1)
        loop.call_exception_handler = lambda context: None  # type: ignore[method-assign]  # a task is left over on purpose


class ToDeferred(SynchronousTestCase):
    def test_without_a_loop(self) -> None:
        """Outside of asyncio a coroutine of Twisted runs at once."""
        self.assertIsNone(running_loop())

        async def coroutine() -> int:
            return await succeed(3)

        self.assertEqual(self.successResultOf(to_deferred(coroutine())), 3)

    def test_both_kinds(self) -> None:
        async def coroutine() -> tuple[int, int, str]:
            await asyncio.sleep(0)
            first = await succeed(1)
            later: Deferred[int] = Deferred()
            asyncio.get_running_loop().call_soon(later.callback, 2)
            return first, await later, variable.get()

        async def main() -> None:
            variable.set("kept")
            self.assertEqual(await from_deferred(to_deferred(coroutine())), (1, 2, "kept"))
            future = asyncio.get_running_loop().create_future()
            deferred = to_deferred(future)
            future.set_result(4)
            self.assertEqual(await from_deferred(deferred), 4)

        asyncio.run(main())

    def test_exceptions(self) -> None:
        """An exception reaches the coroutine that awaits, from either side."""

        async def inner(error: Exception) -> None:
            try:
                await failed(error)
            finally:
                await asyncio.sleep(0)

        async def main() -> None:
            with self.assertRaises(KeyError):
                await from_deferred(to_deferred(inner(KeyError())))
            with self.assertRaises(ValueError):
                await await_any(inner(ValueError()))

        asyncio.run(main())

    def test_cancel(self) -> None:
        """Cancelling the Deferred cancels the task, and it fires when the task has ended."""
        events: list[str] = []

        async def inner() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                events.append("cleaned up")
                raise

        async def main() -> None:
            deferred = to_deferred(inner())
            await asyncio.sleep(0)

            def ended(reason: Failure) -> None:
                self.assertTrue(reason.check(CancelledError))
                events.append("fired")

            deferred.addErrback(ended)
            deferred.cancel()
            await from_deferred(deferred)
            self.assertEqual(events, ["cleaned up", "fired"])
            # One that has not begun: nothing warns of a coroutine that was never awaited.
            never = to_deferred(inner())
            never.cancel()
            with self.assertRaises(CancelledError):
                await from_deferred(never)

        asyncio.run(main())
        self.assertEqual(self.flushWarnings(), [])


class Items(SynchronousTestCase):
    def test_items(self) -> None:
        """All steps of a generator run in one context, and its cleanup may await."""
        seen: list[str] = []

        async def items() -> AsyncIterator[int]:
            try:
                for number in range(3):
                    seen.append(variable.get())
                    variable.set(f"{number}")
                    await asyncio.sleep(0)
                    yield number
            finally:
                await asyncio.sleep(0)
                seen.append("closed")

        async def take(wanted: int) -> list[int]:
            stepped = SteppedItems(items())
            taken: list[int] = []
            while len(taken) < wanted:
                try:
                    taken.append(await stepped.__anext__())
                except StopAsyncIteration:
                    break
            await stepped.aclose()
            return taken

        async def main() -> None:
            variable.set("outer")
            self.assertEqual(await from_deferred(Deferred.fromCoroutine(take(10))), [0, 1, 2])
            self.assertEqual(seen, ["outer", "0", "1", "closed"])
            del seen[:]
            self.assertEqual(await from_deferred(Deferred.fromCoroutine(take(1))), [0])
            self.assertEqual(seen, ["outer", "closed"])

        asyncio.run(main())


class OfDeferreds(SynchronousTestCase):
    """Generators whose code awaits Deferreds."""

    def setUp(self) -> None:
        self.waiting: list[Deferred[int]] = []
        self.closed = 0

    def make(self) -> AsyncGenerator[int, None]:
        @deferred_items
        async def items() -> AsyncGenerator[int, None]:
            try:
                while True:
                    self.waiting.append(Deferred())
                    yield await self.waiting[-1]
            finally:
                await succeed(None)
                self.closed += 1

        return items()

    def test_the_event_loop_does_not_close_them(self) -> None:
        """An event loop that shuts down leaves a generator alone, during a step and between two."""
        problems: list[object] = []
        first, second = self.make(), self.make()

        async def step(items: AsyncGenerator[int, None]) -> int:
            return await anext(items)

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
            one = Deferred.fromCoroutine(step(first))
            self.waiting[0].callback(1)
            self.assertEqual(await from_deferred(one), 1)
            steps.append(Deferred.fromCoroutine(step(second)))

        steps: list[Deferred[int]] = []
        asyncio.run(main())
        self.assertEqual((problems, self.closed), ([], 0))
        self.waiting[1].callback(2)
        self.assertEqual(self.successResultOf(steps[0]), 2)

    def test_close_during_a_step(self) -> None:
        """Closing a generator cancels the step under way, for the coroutine that waits for it as well."""
        items = self.make()

        async def take() -> list[int]:
            return [item async for item in items]

        taking = Deferred.fromCoroutine(take())
        closing = Deferred.fromCoroutine(items.aclose())
        self.failureResultOf(taking, CancelledError)
        self.successResultOf(closing)
        self.assertEqual(self.closed, 1)

    def test_cancel(self) -> None:
        """A cancellation ends the step and the generator."""
        items = self.make()

        async def take() -> list[int]:
            return [item async for item in items]

        taking = Deferred.fromCoroutine(take())
        self.waiting[0].callback(0)
        taking.cancel()
        self.failureResultOf(taking, CancelledError)
        self.assertEqual((len(self.waiting), self.closed), (2, 1))

    def test_two_at_once(self) -> None:
        """A second step while the first is under way is refused, and leaves the first one alone."""
        items = self.make()
        first = items.__anext__()
        self.assertRaises(RuntimeError, items.__anext__)
        self.waiting[0].callback(5)
        self.assertEqual(self.successResultOf(first), 5)


class Everywhere(SynchronousTestCase):
    """No event loop may close a generator of the library whose code awaits Deferreds."""

    #: The rooms that run on event loops of asyncio, each of whose generators is :class:`DeferredItems`.
    ROOMS = ("ae", "association", "dicomweb", "exchange", "pool", "retrieval", "runtime", "scp", "scu", "transport")

    def test_generators(self) -> None:
        bare = []
        for room in self.ROOMS:
            for path in sorted((PACKAGE / room).rglob("*.py")):
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.AsyncFunctionDef) and _yields(node):
                        names = [ast.unparse(one) for one in node.decorator_list]
                        if "deferred_items" not in names:
                            bare.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}")
        self.assertEqual(bare, [])


def _yields(function: ast.AsyncFunctionDef) -> bool:
    left: list[ast.AST] = list(function.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Yield):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return False

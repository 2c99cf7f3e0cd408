"""Coroutines that await Deferreds and the awaitables of asyncio alike, cancellation included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import fail as failed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.eventloop.coroutines import SteppedItems, await_any, from_deferred, running_loop, to_deferred

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

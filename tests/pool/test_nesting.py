"""Operations from inside a block or an operation that holds a place of a pool: they get another place, or fail at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults, inlineCallbacks

from dicomtwist import AssociationPool, AsyncOperationsWindow, WouldDeadlock, evt
from tests.memory import instance
from tests.pool.test_pool import PoolTestCase


async def block(pool: AssociationPool) -> int:
    async with pool.association() as association:
        return int(await association.send_c_echo())


async def exclusive(pool: AssociationPool) -> int:
    async with pool.association(exclusive=True) as association:
        return int(await association.send_c_echo())


@inlineCallbacks
def generator(pool: AssociationPool) -> Any:
    status = yield pool.send_c_echo()
    return int(status)


#: The ways to take a place.
WAYS: dict[str, Callable[[AssociationPool], Any]] = {
    "block": block,
    "exclusive": exclusive,
    "run": lambda pool: pool.run(lambda association: association.send_c_echo()),
    "send_c_echo": lambda pool: pool.send_c_echo(),
    "send_c_store": lambda pool: pool.send_c_store(instance()),
    "generator": generator,
    "gathered": lambda pool: gatherResults([pool.send_c_echo()], consumeErrors=True).addCallback(
        lambda found: found[0]
    ),
}


class Nesting(PoolTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.window = 1
        self.listen(
            (evt.EVT_ASYNC_OPS, lambda event: (self.window, self.window)),
            (evt.EVT_C_ECHO, lambda event: 0),
            (evt.EVT_C_STORE, lambda event: 0),
        )

    def endless(self, size: int, *, window: int = 1) -> AssociationPool:
        """Return a pool whose operations wait without a limit."""
        self.window = window
        extended = [AsyncOperationsWindow(window, window)] if window > 1 else []
        return self.pool(size=size, timeout=None, ext_neg=extended)

    def within(self, pool: AssociationPool, ask: Callable[[], Any], depth: int = 1, *, alone: bool = False) -> Any:
        """Return what *ask* gives inside *depth* blocks, or its error."""

        async def enter(left: int) -> Any:
            if not left:
                try:
                    return await ask()
                except WouldDeadlock as error:
                    return error
                except FirstError as error:
                    return error.subFailure.value
            async with pool.association(exclusive=alone):
                return await enter(left - 1)

        return self.network.result_of(Deferred.fromCoroutine(enter(depth)))

    def assert_works(self, pool: AssociationPool) -> None:
        self.assertEqual(self.network.result_of(pool.send_c_echo()), 0)
        self.assertEqual((pool.busy, pool.waiting), (0, 0))

    def test_each_way_inside_each_way(self) -> None:
        for size in (1, 2, 3):
            pool = self.endless(size)
            for name, way in WAYS.items():
                for alone in (False, True):
                    error = self.within(pool, lambda: way(pool), size, alone=alone)  # noqa: B023
                    self.assertIsInstance(error, WouldDeadlock, (size, name))
                    self.assertIn("with SCP is in use", str(error))
                    self.assert_works(pool)
                    self.assertEqual(self.within(pool, lambda: way(pool), size - 1), 0, (size, name))  # noqa: B023

    def test_in_an_operation(self) -> None:
        """The function of run() holds a place as well, and its error is that of the operation."""
        pool = self.endless(1)
        for way in WAYS.values():

            async def operation(association: Any, way: Any = way) -> Any:
                return await way(pool)

            running = pool.run(operation)
            self.network.flush()
            self.assertTrue(running.called)
            running.addErrback(lambda _: None)
            self.assert_works(pool)

    def test_with_a_window(self) -> None:
        """The places of one association are places; an exclusive one is not to be had beside the own lease."""
        pool = self.endless(1, window=3)
        self.assertEqual(self.within(pool, lambda: block(pool), 2), 0)
        self.assertIsInstance(self.within(pool, lambda: block(pool), 3), WouldDeadlock)
        self.assertIsInstance(self.within(pool, lambda: exclusive(pool), 1), WouldDeadlock)
        self.assertIsInstance(self.within(pool, lambda: block(pool), 1, alone=True), WouldDeadlock)
        self.assert_works(pool)

    def test_first_in_the_queue(self) -> None:
        """An exclusive lease that waits for the block to end does not stop the block from taking a further place."""
        pool = self.endless(1, window=3)
        gate: Deferred[None] = Deferred()

        async def outer() -> int:
            async with pool.association():
                await gate
                return await block(pool)

        ended = Deferred.fromCoroutine(outer())
        alone = Deferred.fromCoroutine(exclusive(pool))
        self.network.flush()
        self.assertEqual(pool.waiting, 1)
        gate.callback(None)
        self.network.flush()
        self.assertEqual(self.successResultOf(ended), 0)
        self.assertEqual(self.successResultOf(alone), 0)

    def test_two_that_wait_for_each_other(self) -> None:
        """The last one of them fails, and the other one goes on."""
        for pools in ((self.endless(2),) * 2, (self.endless(1), self.endless(1))):
            gates: list[Deferred[None]] = [Deferred(), Deferred()]
            results: list[Any] = []

            async def task(number: int, pools: Any = pools, gates: Any = gates, results: Any = results) -> None:
                async with pools[number].association():
                    await gates[number]
                    try:
                        results.append(await block(pools[1 - number]))
                    except WouldDeadlock as error:
                        results.append(error)

            tasks = [Deferred.fromCoroutine(task(number)) for number in (0, 1)]
            self.network.flush()
            gates[0].callback(None)
            self.network.flush()
            self.assertEqual(results, [])
            gates[1].callback(None)
            self.network.flush()
            for one in tasks:
                self.successResultOf(one)
            self.assertIsInstance(results[0], WouldDeadlock)
            self.assertEqual(results[1], 0)
            for pool in pools:
                self.assert_works(pool)

    def test_three_in_a_ring(self) -> None:
        pools = [self.endless(1) for _ in range(3)]
        gates: list[Deferred[None]] = [Deferred() for _ in pools]
        results: list[Any] = []

        async def task(number: int) -> None:
            async with pools[number].association():
                await gates[number]
                try:
                    results.append(await pools[(number + 1) % 3].send_c_echo())
                except WouldDeadlock as error:
                    results.append(error)

        tasks = [Deferred.fromCoroutine(task(number)) for number in range(3)]
        self.network.flush()
        for gate in gates:
            self.assertEqual(results, [])
            gate.callback(None)
            self.network.flush()
        for one in tasks:
            self.successResultOf(one)
        self.assertEqual([type(one) is WouldDeadlock for one in results], [True, False, False])

    def test_others_are_waited_for(self) -> None:
        """A place that other code holds, or that the pool can still get, comes free."""
        pool = self.endless(2)
        gate: Deferred[None] = Deferred()

        async def other() -> None:
            async with pool.association():
                await gate

        async def task() -> int:
            async with pool.association():
                return await block(pool)

        others, ended = Deferred.fromCoroutine(other()), Deferred.fromCoroutine(task())
        self.network.flush()
        self.assertEqual((pool.busy, pool.waiting), (2, 1))
        gate.callback(None)
        self.network.flush()
        self.successResultOf(others)
        self.assertEqual(self.successResultOf(ended), 0)

    def test_one_that_is_being_established(self) -> None:
        """It counts as a place, however long it takes."""
        pool = self.endless(2)
        gate: Deferred[None] = Deferred()

        async def task() -> int:
            async with pool.association():
                await gate
                return await block(pool)

        ended = Deferred.fromCoroutine(task())
        self.network.flush()
        self.network.answers = False
        gate.callback(None)
        self.network.flush()
        self.assertNoResult(ended)
        self.assertEqual((pool.connecting, pool.waiting), (1, 1))
        ended.addErrback(lambda reason: reason.trap(CancelledError))
        ended.cancel()
        self.assertEqual((pool.busy, pool.waiting), (0, 0))

    def test_behind_the_end(self) -> None:
        """An operation that follows another one is not inside of it, in a callback as in a coroutine."""
        pool = self.endless(1)
        results: list[Any] = []

        def again(status: Any, left: int) -> Any:
            results.append(int(status))
            return pool.send_c_echo().addCallback(again, left - 1) if left else status

        self.assertEqual(self.network.result_of(pool.send_c_echo().addCallback(again, 50)), 0)

        async def one_after_another() -> None:
            for _ in range(3):
                await block(pool)
                results.append(int(await pool.send_c_echo()))

        self.network.result_of(Deferred.fromCoroutine(one_after_another()))
        self.assertEqual(results, [0] * 54)

    def test_a_wait_that_ended(self) -> None:
        """An operation that was cancelled, or timed out, waits no more: it makes no later one fail."""
        pool = self.pool(size=2, timeout=5.0)
        gates: list[Deferred[None]] = [Deferred() for _ in range(3)]
        results: list[Any] = []

        async def first() -> None:
            async with pool.association():
                await gates[0]
                asked = pool.send_c_echo()
                asked.addErrback(lambda reason: None)
                if len(results) == 0:
                    asked.cancel()
                await gates[1]

        async def second() -> None:
            async with pool.association():
                await gates[2]
                results.append(await pool.send_c_echo())

        one, two = Deferred.fromCoroutine(first()), Deferred.fromCoroutine(second())
        self.network.flush()
        gates[0].callback(None)
        gates[2].callback(None)
        self.network.flush()
        self.assertEqual((results, pool.waiting), ([], 1))
        gates[1].callback(None)
        self.network.flush()
        self.successResultOf(one)
        self.successResultOf(two)
        self.assertEqual(results, [0])


class StopInside(PoolTestCase):
    """A pool that is stopped by code that holds a place of it."""

    def check(self, pool: AssociationPool, ended: Deferred[Any]) -> None:
        # The clock stands still: neither the grace nor any other time is waited for.
        self.network.flush()
        self.successResultOf(ended)
        self.assertEqual((pool.open, pool.busy), (0, 0))
        self.assertTrue(all(not connection.is_open for connection in self.network.connections))

    def test_in_a_block(self) -> None:
        self.listen()
        for grace in (10.0, None):
            for depth in (1, 2):
                pool = self.pool(size=2, grace=grace)

                async def stop(left: int, pool: AssociationPool = pool) -> None:
                    if left == 0:
                        await pool.stopService()
                        return
                    async with pool.association() as association:
                        await association.send_c_echo()
                        await stop(left - 1)

                self.check(pool, Deferred.fromCoroutine(stop(depth)))

    def test_in_an_operation(self) -> None:
        self.listen()
        pool = self.pool(size=1, grace=None)
        self.check(pool, pool.run(lambda association: pool.stopService()))

    def test_requests_that_are_answered_later(self) -> None:
        """A request that the block has sent is answered before the association is released."""
        self.serve()
        pool = self.pool(size=1, grace=None)
        results: list[Any] = []

        async def stop() -> None:
            async with pool.association() as association:
                association.send_c_echo().addBoth(results.append)
                await pool.stopService()

        ended = Deferred.fromCoroutine(stop())
        self.network.flush()
        self.assertNoResult(ended)
        self.answer(0)
        self.assertEqual(results, [0])
        self.check(pool, ended)

    def test_others_have_their_grace(self) -> None:
        """An operation of other code goes on, also on the association of the block."""
        self.serve()
        pool = self.pool(size=2, grace=10.0)
        other = self.echo(pool)

        async def stop() -> None:
            async with pool.association():
                await pool.stopService()

        ended = Deferred.fromCoroutine(stop())
        self.network.flush()
        self.assertNoResult(ended)
        self.answer(0)
        self.assertEqual(self.successResultOf(other), 0)
        self.check(pool, ended)

"""AssociationPool: reuse, order, health, what is tried again and what not, and how it stops."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectionRefusedError
from twisted.logger import formatEvent, globalLogPublisher

from dicomtwist import (
    AE,
    Association,
    AssociationAborted,
    AssociationLost,
    AssociationPool,
    AssociationRejected,
    AsyncOperationsWindow,
    NoAcceptedContexts,
    NoPresentationContext,
    PoolFull,
    PoolStopped,
    PoolTimeout,
    RetriesExhausted,
    Server,
    build_context,
    evt,
)
from dicomtwist.dimse.messages import CEchoRQ, NActionRQ
from dicomtwist.pool import RereadableFile
from dicomtwist.pool.lease import current_lease
from tests.memory import CT, VERIFICATION, MemoryTestCase, encoded, instance, part10


class Desk:
    """
    A handler that answers when the test says so.

    :ivar events: what came.
    """

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._held: list[Deferred[int]] = []

    def __call__(self, event: Any) -> Deferred[int]:
        self.events.append(event)
        held: Deferred[int] = Deferred(lambda _: None)
        self._held.append(held)
        return held

    @property
    def count(self) -> int:
        """How many came."""
        return len(self.events)

    def answer(self, number: int, status: int = 0) -> None:
        """Answer one of them."""
        self._held[number].callback(status)


class PoolTestCase(MemoryTestCase):
    """
    :ivar desk: the handler of C-ECHO and C-STORE.
    """

    def setUp(self) -> None:
        super().setUp()
        self.pools: list[AssociationPool] = []
        self.desk = Desk()

    def tearDown(self) -> None:
        stopping = [pool.stopService() for pool in self.pools]
        super().tearDown()
        for stopped in stopping:
            self.successResultOf(stopped)

    def pool(self, **options: Any) -> AssociationPool:
        """A pool that waits 1, 2, 4, ... seconds after failures."""
        options = {"retry_policy": lambda count: 2.0 ** (count - 1), **options}
        pool = AssociationPool(self.scu, "127.0.0.1", 104, ae_title="SCP", **options)
        self.pools.append(pool)
        return pool

    def serve(self, **options: Any) -> Server:
        """The SCP that answers when the test says so."""
        return self.listen((evt.EVT_C_ECHO, self.desk), (evt.EVT_C_STORE, self.desk), **options)

    def echo(self, pool: AssociationPool) -> Deferred[Any]:
        """A C-ECHO, as far as it comes."""
        asked = pool.send_c_echo()
        self.network.flush()
        return asked

    def answer(self, number: int, status: int = 0) -> None:
        """Let the desk answer, to the end."""
        self.desk.answer(number, status)
        self.network.flush()

    def failure(self, deferred: Deferred[Any], *kinds: type[BaseException]) -> Any:
        """Return the error of *deferred*."""
        return self.failureResultOf(deferred, *kinds).value

    def state(self, pool: AssociationPool) -> tuple[int, int, int]:
        """Return the numbers of open and busy associations and of waiting operations."""
        return pool.open, pool.busy, pool.waiting

    def last(self) -> Any:
        """Return the connection that was made last."""
        return self.network.connections[-1]


class Sharing(PoolTestCase):
    """The choice of an association for each operation."""

    def test_one_is_used_again(self) -> None:
        self.listen()
        pool = self.pool()
        for _ in range(3):
            self.assertEqual(self.network.result_of(pool.send_c_echo()), 0)
        self.assertEqual(pool.established, 1)
        self.assertEqual(len(self.network.connections), 1)
        self.assertEqual(self.state(pool), (1, 0, 0))

    def test_no_more_than_its_size_and_in_order(self) -> None:
        self.serve()
        pool = self.pool(size=2)
        done: list[int] = []
        for number in range(5):
            asked: Deferred[Any] = pool.send_c_echo()
            asked.addCallback(lambda _, number: done.append(number), number)
        self.network.flush()
        self.assertEqual(self.state(pool), (2, 2, 3))
        self.assertEqual(repr(pool), "<AssociationPool with 'SCP': 2 of 2 open, 2 busy, 3 waiting>")
        for number in (1, 0, 2, 3, 4):
            self.answer(number)
        self.assertEqual(done, [1, 0, 2, 3, 4])
        self.assertEqual(pool.established, 2)

    def test_only_as_many_as_are_needed(self) -> None:
        self.serve()
        pool = self.pool(size=4)
        pool.send_c_echo()
        self.echo(pool)
        self.assertEqual(pool.open, 2)
        self.answer(0)
        self.answer(1)

    def test_whoever_waits_takes_what_comes_free_first(self) -> None:
        """Also while another association is asked for that never comes."""
        self.serve()
        pool = self.pool(size=2)
        first = self.echo(pool)
        self.network.answers = False
        second = self.echo(pool)
        self.assertEqual((pool.connecting, pool.waiting), (1, 1))
        self.answer(0)
        self.successResultOf(first)
        self.assertEqual((self.desk.count, pool.waiting), (2, 0))
        self.answer(1)
        self.successResultOf(second)

    def test_a_window_is_so_many_places(self) -> None:
        self.listen(
            (evt.EVT_ASYNC_OPS, lambda event: (3, 3)), (evt.EVT_C_ECHO, self.desk), (evt.EVT_C_STORE, self.desk)
        )
        pool = self.pool(size=1, ext_neg=[AsyncOperationsWindow(8, 1)])
        done = [pool.send_c_echo() for _ in range(4)]
        self.network.flush()
        self.assertEqual((self.state(pool), pool.in_use), ((1, 1, 1), 3))
        self.assertEqual(self.desk.count, 3)
        self.answer(2)
        self.successResultOf(done[2])
        self.assertEqual((pool.in_use, self.desk.count, pool.waiting), (3, 4, 0))
        for number in (0, 1, 3):
            self.answer(number)
        self.assertEqual(pool.established, 1)

    def test_the_least_used_of_several(self) -> None:
        self.listen((evt.EVT_ASYNC_OPS, lambda event: (3, 3)), (evt.EVT_C_ECHO, self.desk))
        pool = self.pool(size=2, ext_neg=[AsyncOperationsWindow(3, 1)])
        pool.send_c_echo()
        self.echo(pool)
        self.assertEqual(pool.open, 2)
        for _ in range(2):
            self.echo(pool)
        used = [event.assoc for event in self.desk.events]
        self.assertEqual(sorted(used.count(assoc) for assoc in set(used)), [2, 2])
        for number in range(4):
            self.answer(number)

    def test_an_exclusive_one_is_shared_with_nobody(self) -> None:
        self.listen((evt.EVT_ASYNC_OPS, lambda event: (3, 3)), (evt.EVT_C_ECHO, self.desk))
        pool = self.pool(size=1, ext_neg=[AsyncOperationsWindow(3, 1)])
        shared = self.echo(pool)
        leave: Deferred[None] = Deferred()

        async def alone() -> None:
            async with pool.association(exclusive=True):
                await leave

        exclusive = Deferred.fromCoroutine(alone())
        behind = self.echo(pool)
        self.assertEqual((pool.in_use, pool.waiting), (1, 2), "who comes later does not overtake")
        self.answer(0)
        self.successResultOf(shared)
        self.assertEqual((pool.in_use, pool.waiting), (1, 1))
        leave.callback(None)
        self.network.flush()
        self.successResultOf(exclusive)
        self.answer(1)
        self.successResultOf(behind)

    def test_a_block_with_several_operations(self) -> None:
        self.listen()
        pool = self.pool()

        async def work() -> list[int]:
            async with pool.association() as assoc:
                self.assertIsInstance(assoc, Association)
                results = [await assoc.send_c_echo(), await assoc.send_c_echo()]
                self.assertEqual(pool.busy, 1)
                self.assertIsNotNone(current_lease.get())
            self.assertIsNone(current_lease.get())
            return [int(result) for result in results]

        self.assertEqual(self.network.result_of(work()), [0, 0])
        self.assertEqual(self.state(pool), (1, 0, 0))

    def test_a_block_cannot_be_entered_twice(self) -> None:
        self.listen()
        block = self.pool().association()

        async def work() -> None:
            async with block, block:
                self.fail("it was entered twice")

        with self.assertRaisesRegex(RuntimeError, "another one"):
            self.network.result_of(work())

    def test_errors_of_the_operation_are_its_own(self) -> None:
        """They are not tried again, and the association goes on being used."""
        self.listen()
        pool = self.pool()
        calls: list[Association] = []

        def wrong(assoc: Association) -> Deferred[Any]:
            calls.append(assoc)
            raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            self.network.result_of(pool.run(wrong))
        unknown = instance()
        unknown.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        with self.assertRaises(NoPresentationContext):
            self.network.result_of(pool.send_c_store(unknown))
        self.assertEqual((len(calls), pool.established, pool.open), (1, 1, 1))

    def test_the_error_of_another_association_is_not_tried_again(self) -> None:
        self.listen()
        pool = self.pool()
        calls: list[Association] = []

        async def other(assoc: Association) -> None:
            calls.append(assoc)
            raise AssociationLost("another one")

        with self.assertRaisesRegex(AssociationLost, "another one"):
            self.network.result_of(pool.run(other))
        self.assertEqual(len(calls), 1)

    def test_many_that_fail_at_once(self) -> None:
        """Each place is given back while the one before is being given: no recursion."""
        self.listen()
        pool = self.pool(size=1, max_waiting=5000)

        def wrong(assoc: Association) -> Deferred[Any]:
            raise ZeroDivisionError

        failing = [pool.run(wrong) for _ in range(5000)]
        self.network.flush()
        for failed in failing:
            self.failure(failed, ZeroDivisionError)

    def test_arguments_are_checked(self) -> None:
        for options, words in (
            ({"size": 0}, "size is at least 1"),
            ({"max_waiting": 0}, "max_waiting is at least 1"),
            ({"attempts": 0}, "attempts is at least 1"),
            ({"timeout": 0}, "timeout is a number of seconds above 0"),
            ({"idle_timeout": -1}, "idle_timeout is a number of seconds above 0"),
            ({"idle_timeout": 60}, "not below the AE's network_timeout"),
            ({"idle_timeout": None}, "not below the AE's network_timeout"),
            ({"ae_title": "A title that is too long"}, "the called AE title"),
        ):
            with self.assertRaisesRegex(ValueError, words):
                AssociationPool(self.scu, "127.0.0.1", 104, **options)
        self.scu.network_timeout = None
        AssociationPool(self.scu, "tcp:127.0.0.1:104", idle_timeout=None)


class Health(PoolTestCase):
    """Which associations are handed out."""

    def test_idle_ones_are_released(self) -> None:
        server = self.serve()
        pool = self.pool(size=2, idle_timeout=20)
        pool.send_c_echo()
        self.echo(pool)
        self.answer(0)
        self.network.advance(15)
        self.answer(1)
        ended = [association.when_ended() for association in server.active_associations]
        self.network.advance(4.9)
        self.assertEqual(pool.open, 2)
        self.network.advance(0.1)
        self.assertEqual(pool.open, 1)
        self.network.advance(14.9)
        self.assertEqual(pool.open, 1)
        self.network.advance(0.1)
        self.assertEqual(self.state(pool), (0, 0, 0))
        self.assertTrue(all(self.successResultOf(end).is_released for end in ended))
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_the_one_that_was_used_last_is_used_again(self) -> None:
        """So that those that are not needed become idle."""
        self.serve()
        pool = self.pool(size=2, idle_timeout=20)
        pool.send_c_echo()
        self.echo(pool)
        self.answer(0)
        self.network.advance(1)
        self.answer(1)
        for number in range(2, 8):
            self.network.advance(5)
            self.echo(pool)
            self.assertIs(self.desk.events[number].assoc, self.desk.events[1].assoc)
            self.answer(number)
        self.assertEqual(pool.open, 1)

    def test_none_for_ever(self) -> None:
        self.listen()
        self.scp.network_timeout = self.scu.network_timeout = None
        pool = self.pool(idle_timeout=None)
        self.network.result_of(pool.send_c_echo())
        self.network.advance(10_000)
        self.network.result_of(pool.send_c_echo())
        self.assertEqual(pool.established, 1)

    def test_idle_for_too_long_without_a_timer(self) -> None:
        """As after a machine has slept: the time is over, and no timer has said so yet."""
        self.listen()
        pool = self.pool(idle_timeout=20)
        self.network.result_of(pool.send_c_echo())
        self.network.rightNow += 25
        asked = pool.send_c_echo()
        self.assertEqual((pool.connecting, pool.open), (1, 0))
        self.assertEqual(self.network.result_of(asked), 0)
        self.assertEqual((pool.established, pool.open, pool.retried), (2, 1, 0))
        self.assertFalse(self.network.connections[0].is_open)

    def test_what_the_peer_ends_is_noticed_at_once(self) -> None:
        server = self.listen()
        pool = self.pool()
        endings: tuple[Callable[[Association], object], ...] = (
            lambda assoc: assoc.abort(),
            lambda assoc: assoc.release(),
            lambda assoc: self.last().server.abortConnection(),
        )
        for ending in endings:
            self.assertEqual(self.network.result_of(pool.send_c_echo()), 0)
            (accepted,) = server.active_associations
            ending(accepted)
            self.network.flush()
            self.assertEqual(self.state(pool), (0, 0, 0))
        self.assertEqual((pool.established, pool.retried), (3, 0))

    def test_who_gave_up_waiting_leaves_it_to_nobody(self) -> None:
        """The answer is still to come: it is waited for, and then the association is released."""
        server = self.serve()
        pool = self.pool(size=2)
        given_up = pool.run(lambda assoc: assoc.send_c_echo().addTimeout(5, self.network))
        self.network.advance(5)
        self.failure(given_up, DeferredTimeout)
        self.assertEqual(self.state(pool), (1, 0, 0))
        other = self.echo(pool)
        self.assertEqual(pool.open, 2)
        first, second = self.desk.events
        self.assertIsNot(first.assoc, second.assoc)
        self.answer(0)
        self.assertTrue(first.assoc.is_released)
        self.assertEqual(pool.open, 1)
        self.answer(1)
        self.successResultOf(other)
        self.assertEqual(server.active_associations, [second.assoc])

    def test_a_block_that_leaves_something_behind(self) -> None:
        self.serve()
        pool = self.pool()
        late: list[Deferred[Any]] = []

        async def careless() -> None:
            async with pool.association() as assoc:
                late.append(assoc.send_c_echo())

        self.network.result_of(careless())
        self.assertEqual((pool.open, pool.busy), (1, 0))
        again = self.echo(pool)
        self.assertEqual(pool.established, 2)
        self.answer(0)
        self.assertEqual(self.successResultOf(late[0]), 0)
        self.answer(1)
        self.successResultOf(again)
        self.assertEqual(pool.open, 1)

    def test_in_a_window_only_the_one_that_was_given_up_matters(self) -> None:
        self.listen((evt.EVT_ASYNC_OPS, lambda event: (3, 3)), (evt.EVT_C_ECHO, self.desk))
        pool = self.pool(size=1, ext_neg=[AsyncOperationsWindow(3, 1)])
        first, second = pool.send_c_echo(), pool.send_c_echo()
        self.network.flush()
        self.answer(0)
        self.successResultOf(first)
        third = self.echo(pool)
        self.assertEqual(pool.established, 1, "the one that was answered leaves it usable")
        second.cancel()
        self.failure(second, CancelledError)
        fourth = self.echo(pool)
        self.assertEqual((pool.waiting, pool.in_use), (1, 1))
        self.answer(2)
        self.successResultOf(third)
        self.answer(1)
        self.assertEqual((pool.established, pool.waiting), (2, 0))
        self.answer(3)
        self.successResultOf(fourth)

    def test_a_timeout_casts_doubt_on_the_idle_ones(self) -> None:
        """A peer behind a wall that drops what it has forgotten does so for all."""
        self.scu.dimse_timeout = 10
        self.serve()
        pool = self.pool(size=3)
        asked = [pool.send_c_echo() for _ in range(3)]
        self.network.flush()
        for number in range(3):
            self.answer(number)
        for connection in self.network.connections:
            connection.server.frozen = True
        again = self.echo(pool)
        self.network.advance(10)
        self.assertEqual((pool.open, pool.waiting), (0, 1))
        self.network.advance(1)
        self.assertEqual((pool.established, pool.retried), (4, 1))
        self.answer(3)
        self.successResultOf(again)
        self.assertEqual([int(self.successResultOf(one)) for one in asked], [0, 0, 0])


class Again(PoolTestCase):
    """The operations that are retried, and those that are not."""

    def test_what_was_not_answered(self) -> None:
        self.serve()
        pool = self.pool()
        stored = pool.send_c_store(instance(uid="1.2.7"))
        self.network.flush()
        self.assertEqual(self.desk.count, 1)
        self.last().cut()
        self.network.advance(0.9)
        self.assertEqual((self.state(pool), self.desk.count), ((0, 0, 1), 1))
        self.network.advance(0.1)
        self.assertEqual((self.desk.count, pool.retried), (2, 1))
        self.answer(1)
        self.assertEqual(self.successResultOf(stored), 0)
        self.assertEqual({event.request.affected_sop_instance_uid for event in self.desk.events}, {"1.2.7"})

    def test_a_failure_status_is_an_answer(self) -> None:
        self.serve()
        pool = self.pool()
        stored = pool.send_c_store(instance())
        self.network.flush()
        self.answer(0, 0xA700)
        self.assertEqual(self.successResultOf(stored), 0xA700)
        self.network.advance(60)
        self.assertEqual(self.desk.count, 1)

    def test_a_function_of_which_something_was_answered(self) -> None:
        """It would ask for that once more."""
        self.serve()
        pool = self.pool()

        async def two(assoc: Association) -> None:
            await assoc.send_c_store(instance(uid="1.2.1"))
            await assoc.send_c_store(instance(uid="1.2.2"))

        for retry in (None, True):
            before = self.desk.count
            asked = pool.run(two, retry=retry)
            self.network.flush()
            self.answer(before)
            self.last().cut()
            self.network.flush()
            self.failure(asked, AssociationLost)
            self.network.advance(60)
            self.assertEqual(self.desk.count, before + 2)

    def test_a_function_of_which_nothing_was_answered(self) -> None:
        self.serve()
        pool = self.pool()

        async def two(assoc: Association) -> list[int]:
            return [int(await assoc.send_c_echo()), int(await assoc.send_c_echo())]

        asked = pool.run(two)
        self.network.flush()
        self.last().cut()
        self.network.advance(1)
        self.answer(1)
        self.answer(2)
        self.assertEqual(self.successResultOf(asked), [0, 0])

    def action(self, sent: list[NActionRQ]) -> Callable[[Association], Deferred[Any]]:
        """A function that sends an N-ACTION, which changes something, and loses the connection before it is there."""

        def send(assoc: Association) -> Deferred[Any]:
            request = NActionRQ(
                requested_sop_class_uid=VERIFICATION, requested_sop_instance_uid="1.2.3", action_type_id=1
            )
            sent.append(request)
            operation = assoc.exchange.start(1, request)
            if len(sent) == 1:
                self.last().client.abortConnection()
            return operation

        return send

    def test_what_changes_something_only_where_it_is_wanted(self) -> None:
        self.listen()
        pool = self.pool()
        sent: list[NActionRQ] = []
        with self.assertRaises(AssociationLost):
            self.network.result_of(pool.run(self.action(sent)))
        self.network.advance(60)
        self.assertEqual(len(sent), 1)
        sent.clear()
        asked = pool.run(self.action(sent), retry=True)
        self.network.flush()
        self.assertNoResult(asked)
        self.network.advance(1)
        response, _ = self.successResultOf(asked)
        self.assertEqual((len(sent), type(response).__name__), (2, "NActionRSP"))

    def test_what_was_not_even_sent(self) -> None:
        """It changes nothing, whatever it is."""
        self.listen()
        pool = self.pool()
        calls: list[Association] = []
        sent: list[NActionRQ] = []
        ready: Deferred[None] = Deferred()

        async def late(assoc: Association) -> Any:
            calls.append(assoc)
            if len(calls) == 1:
                await ready
            sent.append(
                NActionRQ(requested_sop_class_uid=VERIFICATION, requested_sop_instance_uid="1", action_type_id=1)
            )
            return await assoc.exchange.start(1, sent[-1])

        asked = pool.run(late)
        self.network.flush()
        self.last().cut()
        ready.callback(None)
        self.network.advance(1)
        self.successResultOf(asked)
        self.assertEqual(len(calls), 2)

    def test_not_at_all(self) -> None:
        self.serve()
        pool = self.pool()
        asked = pool.run(lambda assoc: assoc.send_c_echo(), retry=False)
        self.network.flush()
        self.last().cut()
        self.failure(asked, AssociationLost)
        self.assertEqual(self.state(pool), (0, 0, 0))

    def test_only_so_often(self) -> None:
        self.serve()
        pool = self.pool(attempts=3)
        asked = self.echo(pool)
        for seconds in (1, 2, 0):
            self.last().cut()
            self.network.advance(seconds)
        error = self.failure(asked, RetriesExhausted)
        self.assertIsInstance(error.__cause__, AssociationLost)
        self.assertEqual((error.attempts, self.desk.count), (3, 3))
        self.assertIn("the last of 3 failed attempts: the connection was lost", str(error))

    def test_what_the_log_says_of_the_next_attempt(self) -> None:
        """The log announces no attempt that nothing waits for."""
        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        asked = self.echo(self.pool(attempts=2))
        self.network.advance(1)
        self.failure(asked, RetriesExhausted)
        lines = [formatEvent(event) for event in events if "no association with" in str(event.get("log_format"))]
        self.assertEqual(len(lines), 2)
        self.assertTrue(lines[0].endswith("; the next attempt in 1.0 s"), lines[0])
        self.assertTrue(lines[1].endswith("; nothing waits for another attempt"), lines[1])

    def test_not_beyond_the_time(self) -> None:
        """Where the next attempt would come too late it is not waited for."""
        self.serve()
        pool = self.pool(timeout=5)
        asked = self.echo(pool)
        self.network.advance(3)
        self.last().cut()
        self.network.advance(1)
        self.assertEqual(self.desk.count, 2)
        self.last().cut()
        error = self.failure(asked, PoolTimeout)
        self.assertIsInstance(error.__cause__, AssociationLost)
        self.assertEqual((error.seconds, error.attempts), (5, 2))

    def test_the_time_does_not_cut_off_what_is_under_way(self) -> None:
        self.serve()
        pool = self.pool(timeout=5)
        asked = self.echo(pool)
        self.network.advance(20)
        self.answer(0)
        self.assertEqual(self.successResultOf(asked), 0)

    def test_others_of_the_window(self) -> None:
        """Of the operations that an association had, those without an answer are tried again, and no other."""
        self.listen((evt.EVT_ASYNC_OPS, lambda event: (4, 4)), (evt.EVT_C_STORE, self.desk))
        pool = self.pool(size=1, ext_neg=[AsyncOperationsWindow(4, 1)])
        uids = [f"1.2.{number}" for number in range(4)]
        stored = [pool.send_c_store(instance(uid=uid)) for uid in uids]
        self.network.flush()
        self.answer(1, 0xB000)
        self.answer(3)
        self.last().cut()
        self.network.advance(1)
        came = [event.request.affected_sop_instance_uid for event in self.desk.events]
        self.assertEqual(sorted(came), sorted([*uids, uids[0], uids[2]]))
        self.answer(4)
        self.answer(5)
        self.assertEqual([int(self.successResultOf(one)) for one in stored], [0, 0xB000, 0, 0])

    def test_in_a_window_who_sent_what(self) -> None:
        """Somebody else's N-ACTION on the same association does not keep a C-ECHO from being tried again."""
        self.listen((evt.EVT_ASYNC_OPS, lambda event: (4, 4)), (evt.EVT_C_ECHO, self.desk))
        pool = self.pool(size=1, ext_neg=[AsyncOperationsWindow(4, 1)])
        echo = self.echo(pool)
        sent: list[NActionRQ] = []
        action = pool.run(self.action(sent))
        self.network.flush()
        self.failure(action, AssociationLost)
        self.assertNoResult(echo)
        self.network.advance(1)
        self.answer(1)
        self.successResultOf(echo)
        self.assertEqual((len(sent), pool.established), (1, 2))

    def test_in_a_window_what_a_callback_sends_is_everybodys(self) -> None:
        """Nobody can tell whose it is: rather one operation too few is repeated than one too many."""
        self.listen((evt.EVT_ASYNC_OPS, lambda event: (4, 4)), (evt.EVT_C_ECHO, self.desk))
        pool = self.pool(size=1, ext_neg=[AsyncOperationsWindow(4, 1)])
        echo = self.echo(pool)
        sent: list[NActionRQ] = []
        now: Deferred[None] = Deferred()
        action = pool.run(lambda assoc: now.addCallback(lambda _: self.action(sent)(assoc)))
        self.network.flush()
        now.callback(None)
        self.network.flush()
        self.failure(action, AssociationLost)
        self.failure(echo, AssociationLost)

    def test_a_file_is_read_again_from_where_it_stood(self) -> None:
        self.serve()
        pool = self.pool()
        file = BytesIO(b"before" + part10(3_000_000))
        file.seek(6)
        stored = pool.send_c_store(file)
        self.network.flush()
        self.last().cut()
        self.network.advance(1)
        self.answer(1)
        self.assertEqual(self.successResultOf(stored), 0)
        self.assertEqual(self.desk.events[1].encoded_dataset(include_meta=False), encoded(3_000_000))
        self.assertFalse(file.closed)

    def test_a_file_whose_last_read_is_late(self) -> None:
        """A read for the first attempt that a slow disk still works at does not move the file under the second."""
        self.serve()
        pool = self.pool()
        stored = pool.send_c_store(BytesIO(part10(5_000_000)))
        while self.last_bytes() < 1_000_000:
            self.network._round()
        self.network.works = False
        self.network.flush()
        self.assertTrue(self.network.work)
        self.last().cut()
        self.network.advance(1)
        self.network.works = True
        self.network.flush()
        self.answer(0)
        self.assertEqual(self.successResultOf(stored), 0)
        self.assertEqual(self.desk.events[0].encoded_dataset(include_meta=False), encoded(5_000_000))

    def last_bytes(self) -> int:
        """How much was sent on the last connection."""
        return self.last().client.bytes_written if self.network.connections else 0

    def test_one_reader_of_a_file_after_the_other(self) -> None:
        file = BytesIO(b"before 0123456789")
        file.seek(7)
        whole = RereadableFile(file)
        first = whole.reopen()
        self.assertEqual(first.read(4), b"0123")
        second = whole.reopen()
        self.assertEqual(second.read(2), b"01")
        self.assertEqual(first.read(4), b"", "who is late gets nothing, and moves nothing")
        self.assertEqual(second.read(), b"23456789")

    def test_what_cannot_be_read_again_is_sent_once(self) -> None:
        class Pipe(BytesIO):
            def seekable(self) -> bool:
                return False

        class Bare:
            def __init__(self) -> None:
                self.read = BytesIO(part10()).read

        self.serve()
        pool = self.pool()
        files: tuple[Any, ...] = (Pipe(part10()), Bare())
        for file in files:
            stored = pool.send_c_store(file)
            self.network.flush()
            self.last().cut()
            self.failure(stored, AssociationLost)
        self.network.advance(60)
        self.assertEqual(self.desk.count, 2)

    def test_the_parameters_of_a_store(self) -> None:
        self.serve()
        self.pool().send_c_store(instance(), priority=1, originator_aet="MOVER", originator_id=7)
        self.network.flush()
        (event,) = self.desk.events
        request = event.request
        self.assertEqual(
            (request.priority, request.move_originator_application_entity_title, request.move_originator_message_id),
            (1, "MOVER", 7),
        )
        self.answer(0)


class NotToBeHad(PoolTestCase):
    """A peer that is away, or says no."""

    def test_refused_connections_back_off(self) -> None:
        pool = self.pool(attempts=4)
        asked = [pool.send_c_echo() for _ in range(3)]
        attempts = []
        for _ in range(10):
            self.network.advance(1)
            attempts.append(pool.failed)
        # Three at once at first; then one, to see, after 1, 2 and 4 seconds more.
        self.assertEqual(attempts, [4, 4, 5, 5, 5, 5, 6, 6, 6, 6])
        for one in asked:
            error = self.failure(one, RetriesExhausted)
            self.assertEqual(error.attempts, 4)
            self.assertIsInstance(error.__cause__, ConnectionRefusedError)

    def test_it_comes_back(self) -> None:
        pool = self.pool()
        asked = [pool.send_c_echo() for _ in range(3)]
        self.network.advance(1.5)
        self.listen()
        self.network.advance(1.4)
        self.assertEqual(pool.waiting, 3)
        self.network.advance(0.1)
        self.assertEqual([int(self.successResultOf(one)) for one in asked], [0, 0, 0])
        self.assertEqual((pool.retried, pool.waiting), (0, 0))

    def test_after_success_it_begins_with_the_shortest_wait(self) -> None:
        delays: list[int] = []
        pool = self.pool(retry_policy=lambda count: delays.append(count) or 1.0)  # type: ignore[func-returns-value]
        self.echo(pool)
        self.network.advance(2)
        server = self.listen()
        self.network.advance(1)
        self.assertEqual(delays, [1, 2, 3])
        self.network.result_of(server.shutdown())
        self.network.flush()
        asked = self.echo(pool)
        self.assertEqual(delays, [1, 2, 3, 1])
        asked.addErrback(lambda reason: reason.trap(PoolStopped))

    def test_whoever_comes_later_waits_as_well(self) -> None:
        """It is the peer that needs its time, not the one that asks."""
        pool = self.pool()
        first = self.echo(pool)
        self.network.advance(1)
        self.assertEqual(pool.failed, 2)
        second = self.echo(pool)
        self.assertEqual((pool.failed, pool.connecting), (2, 0))
        self.listen()
        self.network.advance(2)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_rejected_for_good(self) -> None:
        self.listen()
        self.scp.require_calling_aet = ["SOMEBODY"]
        pool = self.pool()
        asked = [pool.send_c_echo() for _ in range(3)]
        self.network.flush()
        for one in asked:
            self.assertEqual(self.failure(one, AssociationRejected).reason, 3)
        self.assertEqual((self.state(pool), pool.connecting), ((0, 0, 0), 0))
        self.scp.require_calling_aet = []
        self.assertEqual(self.network.result_of(pool.send_c_echo()), 0)

    def test_rejected_for_now(self) -> None:
        server = self.listen()
        self.scp.maximum_associations = 1
        other = self.associate()
        pool = self.pool()
        asked = self.echo(pool)
        self.assertEqual(pool.waiting, 1)
        self.network.result_of(other.release())
        self.network.advance(0.9)
        self.assertNoResult(asked)
        self.network.advance(0.1)
        self.assertEqual(self.successResultOf(asked), 0)
        self.assertEqual(len(server.active_associations), 1)

    def test_one_more_is_too_many(self) -> None:
        """A rejection of a further association does not fail waiting operations while others are open."""
        self.serve()
        pool = self.pool(size=3, attempts=2)
        first = self.echo(pool)
        self.scp.require_calling_aet = ["SOMEBODY"]  # permanently
        second = self.echo(pool)
        self.network.advance(20)
        self.assertEqual(self.state(pool), (1, 1, 1))
        self.assertGreater(pool.failed, 3)
        self.answer(0)
        self.answer(1)
        self.assertEqual([int(self.successResultOf(one)) for one in (first, second)], [0, 0])

    def test_nothing_accepted(self) -> None:
        self.listen()
        pool = self.pool(contexts=[build_context("1.2.840.10008.5.1.4.1.1.4")])
        self.failure(self.echo(pool), NoAcceptedContexts)
        self.assertEqual((pool.waiting, pool.connecting), (0, 0))

    def test_nothing_to_propose(self) -> None:
        self.scu.requested_contexts = []
        self.failure(self.echo(self.pool()), RuntimeError)

    def test_no_answer(self) -> None:
        """The AE's own timeouts end an attempt."""
        self.listen()
        self.scu.connection_timeout = 5
        self.network.answers = False
        pool = self.pool()
        asked = self.echo(pool)
        self.network.advance(5)
        self.assertEqual(pool.failed, 1)
        self.network.answers = True
        self.network.advance(1)
        self.assertEqual(self.successResultOf(asked), 0)

    def test_too_late(self) -> None:
        pool = self.pool(timeout=6)
        asked = self.echo(pool)
        self.network.advance(5.9)
        self.assertNoResult(asked)
        self.network.advance(0.1)
        error = self.failure(asked, PoolTimeout)
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)
        self.assertEqual((error.seconds, error.attempts), (6, 2 + 1))
        self.assertEqual(pool.waiting, 0)

    def test_no_place_for_too_long(self) -> None:
        self.serve()
        pool = self.pool(size=1, timeout=6)
        first, second = pool.send_c_echo(), pool.send_c_echo()
        self.network.advance(6)
        error = self.failure(second, PoolTimeout)
        self.assertEqual((error.__cause__, error.attempts), (None, 0))
        self.assertEqual(str(error), "no association with SCP was available within 6 seconds")
        self.answer(0)
        self.successResultOf(first)
        self.assertEqual(self.desk.count, 1)

    def test_who_waits_too_long_makes_way(self) -> None:
        """One that wants an association alone and gives up does not hold up those behind it."""
        self.listen((evt.EVT_ASYNC_OPS, lambda event: (3, 3)), (evt.EVT_C_ECHO, self.desk))
        pool = self.pool(size=1, timeout=6, ext_neg=[AsyncOperationsWindow(3, 1)])
        first = self.echo(pool)

        async def alone() -> None:
            async with pool.association(exclusive=True):
                self.fail("it was not alone")

        exclusive = Deferred.fromCoroutine(alone())
        self.network.advance(3)
        behind = self.echo(pool)
        self.network.advance(3)
        self.failure(exclusive, PoolTimeout)
        self.assertEqual(self.desk.count, 2)
        self.answer(0)
        self.answer(1)
        self.successResultOf(first)
        self.successResultOf(behind)

    def test_too_many_wait(self) -> None:
        self.serve()
        pool = self.pool(size=1, max_waiting=2)
        accepted = [self.echo(pool) for _ in range(3)]
        error = self.failure(self.echo(pool), PoolFull)
        self.assertEqual(str(error), "2 operations wait already for an association with SCP")
        # Who was let in comes back, however many wait.
        self.last().cut()
        self.network.flush()
        self.assertEqual(pool.waiting, 2)
        self.network.advance(1)
        self.assertEqual(pool.waiting, 2)
        for number in range(1, 4):
            self.answer(number)
        self.assertEqual([int(self.successResultOf(one)) for one in accepted], [0, 0, 0])

    def test_who_comes_back_is_not_too_many(self) -> None:
        self.serve()
        pool = self.pool(size=3, max_waiting=1)
        accepted = [self.echo(pool) for _ in range(3)]
        for connection in self.network.connections:
            connection.cut()
        self.network.flush()
        self.assertEqual(pool.waiting, 3)
        self.network.advance(1)
        for number in range(3, 6):
            self.answer(number)
        self.assertEqual([int(self.successResultOf(one)) for one in accepted], [0, 0, 0])


class Cancelling(PoolTestCase):
    """A Deferred that is cancelled, at each stage."""

    def test_who_gives_up_makes_way(self) -> None:
        """As one that waits for an association to itself, and everybody behind it."""
        self.listen((evt.EVT_ASYNC_OPS, lambda event: (3, 3)), (evt.EVT_C_ECHO, self.desk))
        pool = self.pool(size=1, ext_neg=[AsyncOperationsWindow(3, 1)])
        first = self.echo(pool)

        async def alone() -> None:
            async with pool.association(exclusive=True):
                self.fail("it was not alone")

        exclusive = Deferred.fromCoroutine(alone())
        behind = self.echo(pool)
        self.assertEqual((self.desk.count, pool.waiting), (1, 2))
        exclusive.cancel()
        self.failure(exclusive, CancelledError)
        self.network.flush()
        self.assertEqual((self.desk.count, pool.waiting), (2, 0))
        self.answer(0)
        self.answer(1)
        self.successResultOf(first)
        self.successResultOf(behind)

    def test_while_it_waits(self) -> None:
        self.serve()
        pool = self.pool(size=1)
        first, second, third = (pool.send_c_echo() for _ in range(3))
        self.network.flush()
        second.cancel()
        self.failure(second, CancelledError)
        self.assertEqual(pool.waiting, 1)
        self.answer(0)
        self.answer(1)
        self.successResultOf(first)
        self.successResultOf(third)
        self.assertEqual(self.desk.count, 2)

    def test_while_it_is_connected(self) -> None:
        self.listen()
        pool = self.pool()
        asked = pool.send_c_echo()
        asked.cancel()
        self.failure(asked, CancelledError)
        self.network.flush()
        self.assertEqual(self.state(pool), (1, 0, 0))
        self.network.advance(30)
        self.assertEqual(pool.open, 0)

    def test_while_it_is_under_way(self) -> None:
        self.serve()
        pool = self.pool()
        asked = self.echo(pool)
        asked.cancel()
        self.failure(asked, CancelledError)
        self.answer(0)
        self.assertEqual(self.state(pool), (0, 0, 0))
        self.assertTrue(self.desk.events[0].assoc.is_released)

    def test_before_it_is_tried_again(self) -> None:
        self.serve()
        pool = self.pool()
        asked = self.echo(pool)
        self.last().cut()
        self.network.flush()
        asked.cancel()
        self.failure(asked, CancelledError)
        self.assertEqual(pool.waiting, 0)
        self.network.advance(60)
        self.assertEqual(self.desk.count, 1)

    def test_while_the_peer_is_away(self) -> None:
        pool = self.pool()
        asked = self.echo(pool)
        asked.cancel()
        self.failure(asked, CancelledError)
        self.network.advance(60)
        self.assertEqual((pool.waiting, pool.failed), (0, 1))


class Stopping(PoolTestCase):
    """stopService."""

    def test_it_is_a_service(self) -> None:
        self.listen()
        pool, parent = self.pool(), MultiService()
        self.assertTrue(IService.providedBy(pool))
        pool.setServiceParent(parent)
        parent.startService()
        self.assertEqual(self.network.result_of(pool.send_c_echo()), 0)
        self.network.result_of(parent.stopService())
        self.assertEqual((pool.open, pool.running), (0, 0))
        self.failure(self.echo(pool), PoolStopped)
        parent.startService()
        self.assertEqual(self.network.result_of(pool.send_c_echo()), 0)

    def test_what_is_under_way_finishes(self) -> None:
        server = self.serve()
        pool = self.pool(size=1)
        under_way, waiting = pool.send_c_echo(), pool.send_c_echo()
        self.network.flush()
        (accepted,) = server.active_associations
        stopping = pool.stopService()
        self.network.advance(5)
        error = self.failure(waiting, PoolStopped)
        self.assertEqual(str(error), "the pool of associations with SCP is stopped")
        self.assertNoResult(stopping)
        self.answer(0)
        self.assertEqual(self.successResultOf(under_way), 0)
        self.successResultOf(stopping)
        self.assertTrue(accepted.is_released)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_a_block_may_go_on(self) -> None:
        """It is the whole of it that is under way, not only the operation that it is at."""
        self.serve()
        pool = self.pool()

        async def two() -> list[int]:
            async with pool.association() as assoc:
                return [int(await assoc.send_c_echo()), int(await assoc.send_c_echo())]

        asked = Deferred.fromCoroutine(two())
        self.network.flush()
        stopping = pool.stopService()
        self.answer(0)
        self.assertNoResult(stopping)
        self.answer(1)
        self.assertEqual(self.successResultOf(asked), [0, 0])
        self.successResultOf(stopping)

    def test_but_not_for_ever(self) -> None:
        server = self.serve()
        pool = self.pool(grace=8)
        asked = self.echo(pool)
        (accepted,) = server.active_associations
        stopping = pool.stopService()
        self.network.advance(7.9)
        self.assertNoResult(stopping)
        self.network.advance(0.1)
        error = self.failure(asked, PoolStopped)
        self.assertIsInstance(error.__cause__, AssociationAborted)
        self.successResultOf(stopping)
        self.assertTrue(accepted.is_aborted)

    def test_at_once(self) -> None:
        self.serve()
        pool = self.pool(grace=0)
        asked = self.echo(pool)
        stopping = pool.stopService()
        self.network.flush()
        self.failure(asked, PoolStopped)
        self.successResultOf(stopping)

    def test_a_peer_that_does_not_agree_to_the_release(self) -> None:
        """The grace time is for that, too."""
        self.listen()
        pool = self.pool(grace=8)
        self.network.result_of(pool.send_c_echo())
        connection = self.last()
        connection.server.frozen = True
        stopping = pool.stopService()
        self.network.advance(8)
        self.assertEqual(pool.open, 0)
        self.network.advance(30)  # the ARTIM timer: it does not close either
        self.successResultOf(stopping)

    def test_while_associations_are_asked_for(self) -> None:
        """Before there is a connection, and before there is an answer."""
        for port, connections in ((104, 0), (105, 1)):
            self.network.scripted_server(port)
            pool = AssociationPool(self.scu, "127.0.0.1", port)
            asked = pool.send_c_echo()
            if connections:
                self.network.flush()
            self.assertEqual((pool.connecting, len(self.network.connections)), (1, connections))
            stopping = pool.stopService()
            self.failure(asked, PoolStopped)
            self.network.flush()
            if connections:
                self.assertNoResult(stopping)
                self.last().server.loseConnection()
                self.network.flush()
            self.successResultOf(stopping)
            self.assertEqual(pool.connecting, 0)

    def test_while_something_waits_to_be_tried_again(self) -> None:
        self.serve()
        pool = self.pool()
        asked = self.echo(pool)
        self.last().cut()
        self.network.flush()
        self.assertEqual(pool.waiting, 1)
        self.successResultOf(pool.stopService())
        error = self.failure(asked, PoolStopped)
        self.assertIsInstance(error.__cause__, AssociationLost)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_while_the_peer_is_away(self) -> None:
        pool = self.pool()
        asked = self.echo(pool)
        self.successResultOf(pool.stopService())
        error = self.failure(asked, PoolStopped)
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_what_is_lost_meanwhile_is_not_tried_again(self) -> None:
        self.serve()
        pool = self.pool()
        asked = self.echo(pool)
        stopping = pool.stopService()
        self.last().cut()
        error = self.failure(asked, PoolStopped)
        self.assertIsInstance(error.__cause__, AssociationLost)
        self.successResultOf(stopping)

    def test_twice(self) -> None:
        self.serve()
        pool = self.pool()
        asked = self.echo(pool)
        first, second = pool.stopService(), pool.stopService()
        self.answer(0)
        for done in (asked, first, second):
            self.successResultOf(done)

    def test_started_again_at_once(self) -> None:
        """Associations from before the stop are not used again."""
        self.serve()
        pool = self.pool(size=2)
        old = self.echo(pool)
        stopping = pool.stopService()
        pool.startService()
        new = self.echo(pool)
        self.answer(0)
        self.successResultOf(old)
        self.successResultOf(stopping)
        self.answer(1)
        self.successResultOf(new)
        self.assertEqual((pool.established, pool.open), (2, 1))

    def test_with_async_with(self) -> None:
        self.listen()

        async def work() -> AssociationPool:
            async with AssociationPool(self.scu, "127.0.0.1", 104) as pool:
                await pool.send_c_echo()
                self.assertEqual(pool.open, 1)
            return pool

        pool = self.network.result_of(work())
        self.assertEqual(pool.open, 0)

    def test_handlers_of_its_associations(self) -> None:
        """Handlers of the caller are called in addition to the pool's own."""
        self.listen()
        sent: list[Any] = []
        opened: list[Any] = []
        pool = self.pool(
            evt_handlers=[
                (evt.EVT_DIMSE_SENT, lambda event: sent.append(event.message)),
                (evt.EVT_CONN_OPEN, opened.append),
            ]
        )
        self.network.result_of(pool.send_c_echo())
        self.assertEqual([type(message) for message in sent], [CEchoRQ])
        self.assertEqual(len(opened), 1)


class Peers(PoolTestCase):
    """One pool for each peer."""

    def test_two(self) -> None:
        self.listen()
        other = AE("OTHER", reactor=self.network)
        other.supported_contexts = [build_context(VERIFICATION), build_context(CT)]
        self.network.result_of(other.start_server(105))
        here, there = self.pool(), AssociationPool(self.scu, "127.0.0.1", 105, ae_title="OTHER")
        self.pools.append(there)
        for pool in (here, there):
            self.assertEqual(self.network.result_of(pool.send_c_echo()), 0)
        self.assertEqual([self.state(pool) for pool in (here, there)], [(1, 0, 0), (1, 0, 0)])

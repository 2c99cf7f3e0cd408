"""Turns and delays of addresses at the check of passcodes, on a simulated clock."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.access import passcode_checks
from dicomtwist.access.passcode_checks import MAX_WAITING, PasscodeChecks, TooManyChecks
from dicomtwist.access.users import Users, hash_passcode
from dicomtwist.errors import ExecutorFull
from dicomtwist.runtime.executors import Bounds, Executor
from dicomtwist.testing import MemoryNetwork

RIGHT = b"ThePassword"


class Checks(SynchronousTestCase):
    """One executor with two threads, which work when the network is flushed."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.executor = Executor(self.network, "passcodes", Bounds(threads=2, max_queued=100))
        self.executor.acquire()
        path = Path(self.mktemp())
        path.write_text(f"{hash_passcode('alice', RIGHT, n=16)}\n")
        self.users = Users(path)
        self.checks = PasscodeChecks(self.executor)
        self.verified = mock.Mock(side_effect=self.users.verify)
        self.patch(self.users, "verify", self.verified)

    def tearDown(self) -> None:
        self.network.works = True
        self.network.flush()
        self.network.advance(100)
        self.executor.release()
        self.assertEqual(self.network.getDelayedCalls(), [])
        self.assertEqual(self.network.pools, [])

    def verify(self, passcode: bytes = b"wrong", address: str = "10.0.0.1", name: str = "alice") -> Deferred[bool]:
        return self.checks.verify(address, self.users, name, passcode)

    def wrong(self, address: str = "10.0.0.1") -> None:
        """Let a wrong passcode fail."""
        failing = self.verify(address=address)
        self.network.flush()
        self.assertFalse(self.successResultOf(failing))

    def is_delayed(self, address: str) -> bool:
        """Whether a check of *address* would be delayed now."""
        asking = self.verify(address=address)
        self.network.flush()
        if asking.called:
            self.assertFalse(self.successResultOf(asking))
            return False
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        return True

    def test_one_at_a_time(self) -> None:
        """A hundred guesses of one address: one check, and 16 that wait; another address has its turn at once."""
        self.network.works = False
        guesses = [self.verify() for _ in range(100)]
        self.assertEqual(self.executor.vitals.queued, 1)
        refused = [one for one in guesses if one.called]
        self.assertEqual(len(refused), 100 - 1 - MAX_WAITING)
        for one in refused:
            self.failureResultOf(one, TooManyChecks)
        right = self.verify(RIGHT, "10.0.0.2")
        self.network.works = True
        self.network.flush()
        self.assertTrue(self.successResultOf(right))
        self.assertFalse(self.successResultOf(guesses[0]))
        self.assertEqual(self.verified.call_count, 2)
        for one in guesses[1 : 1 + MAX_WAITING]:
            self.assertNoResult(one)
            one.cancel()
            self.failureResultOf(one, CancelledError)

    def test_delays_grow(self) -> None:
        self.wrong()
        for delay in (1, 2, 4, 8, 16, 30, 30):
            asking = self.verify()
            self.network.advance(delay - 0.01)
            self.assertNoResult(asking)
            self.network.advance(0.01)
            self.assertFalse(self.successResultOf(asking))
        self.assertEqual(self.verified.call_count, 8)

    def test_a_right_one_ends_them(self) -> None:
        """A right passcode of which nothing is remembered waits its turn, then there is no delay and no memory of failures."""
        self.wrong()
        right = self.verify(RIGHT)
        self.network.advance(1)
        self.assertTrue(self.successResultOf(right))
        self.assertEqual(self.checks._addresses, {})

    def test_what_was_right_before_never_waits(self) -> None:
        self.network.works = False
        first = self.verify(RIGHT)
        self.network.works = True
        self.network.flush()
        self.assertTrue(self.successResultOf(first))
        self.wrong()
        self.assertTrue(self.successResultOf(self.verify(RIGHT)))

    def test_gone_while_it_waits(self) -> None:
        """Nothing is done for a connection that is gone, and no timer is left."""
        self.wrong()
        waiting = [self.verify() for _ in range(3)]
        for one in waiting:
            one.cancel()
            self.failureResultOf(one, CancelledError)
        self.assertEqual(self.network.getDelayedCalls(), [])
        self.network.advance(100)
        self.assertEqual(self.verified.call_count, 1)

    def test_gone_before_a_thread_has_begun(self) -> None:
        """Also a thousand connections that close at once cost nothing, and no delay."""
        self.network.works = False
        for _ in range(1000):
            one = self.verify()
            one.cancel()
            self.failureResultOf(one, CancelledError)
        self.assertEqual(self.executor.vitals.queued, 0)
        self.network.works = True
        self.network.flush()
        self.verified.assert_not_called()
        self.assertFalse(self.is_delayed("10.0.0.1"))

    def test_gone_while_it_is_checked(self) -> None:
        """The next check of the address waits for the end of the one that a thread is at, which counts."""
        answers: list[Deferred[Any]] = []

        def verify(*_: object) -> bool:
            answers[0].cancel()
            answers.append(self.verify())
            self.assertEqual(self.executor.vitals.queued, 0)
            return False

        self.verified.side_effect = verify
        answers.append(self.verify())
        self.network.flush()
        self.failureResultOf(answers[0], CancelledError)
        self.assertNoResult(answers[1])
        self.verified.side_effect = None
        self.verified.return_value = False
        self.network.advance(1)
        self.assertFalse(self.successResultOf(answers[1]))

    def test_hosts(self) -> None:
        """A host with a network of IPv6 is one address; mapped addresses are those of IPv4; others are what they are."""
        for first, second, same in (
            ("2001:db8::1", "2001:db8::ffff:2", True),
            ("2001:db8::1", "2001:db8:0:1::1", False),
            ("fe80::1%eth0", "fe80::2%eth1", True),
            ("::ffff:10.0.0.9", "10.0.0.9", True),
            ("10.0.1.1", "10.0.1.2", False),
            ("", "unix", False),
        ):
            self.wrong(first)
            self.assertEqual(self.is_delayed(second), same, (first, second))
            self.network.advance(60)

    def test_addresses_are_forgotten(self) -> None:
        self.wrong()
        self.network.advance(700)
        self.wrong("10.0.0.2")
        self.assertEqual([*self.checks._addresses], ["10.0.0.2"])

    def test_most_addresses(self) -> None:
        with mock.patch.object(passcode_checks, "MAX_ADDRESSES", 5):
            for number in range(20):
                self.wrong(f"10.0.0.{number}")
            self.assertEqual([*self.checks._addresses], [f"10.0.0.{number}" for number in range(15, 20)])

    def answered(self, *waiting: Deferred[bool]) -> list[int]:
        """Let the threads work; return the numbers of *waiting* in the sequence of their answers."""
        sequence: list[int] = []

        def note(number: int, outcome: bool | Failure) -> None:
            sequence.append(number)

        for number, one in enumerate(waiting):
            one.addBoth(partial(note, number))
        self.network.works = True
        self.network.flush()
        return sequence

    def crowd(self, count: int, start: int = 0, name: str = "alice") -> list[Deferred[bool]]:
        """Wrong passcodes of one user name, each from an address of its own."""
        return [self.verify(address=f"10.1.{number}.1", name=name) for number in range(start, start + count)]

    def test_order(self) -> None:
        """Addresses with a right passcode come first, those with a failure last."""
        known = self.verify(RIGHT)
        self.network.flush()
        self.assertTrue(self.successResultOf(known))
        self.wrong("10.0.0.2")
        self.network.advance(1)
        self.network.works = False
        crowd = self.crowd(20)
        failed = self.verify(address="10.0.0.2")
        late = self.crowd(2, 20)
        first_time = self.verify(b"other", "10.0.0.1")
        sequence = self.answered(*crowd, failed, *late, first_time)
        self.assertEqual(sequence, [0, 1, 23, *range(2, 20), 21, 22, 20])

    def test_names_take_turns(self) -> None:
        """Guesses for one name, from many addresses, delay a new user of another name by the checks under way."""
        self.network.works = False
        crowd = self.crowd(20)
        others = [self.verify(address=f"10.2.{number}.1", name="bob") for number in range(2)]
        others.append(self.verify(RIGHT, "10.3.0.1", "carol"))
        sequence = self.answered(*crowd, *others)
        # The two threads have the first two.
        self.assertEqual(sequence[:8], [0, 1, 20, 22, 21, 2, 3, 4])

    def test_full_of_guesses(self) -> None:
        """A queue that is full refuses the check that would be the last, which may be one that waits."""
        self.executor.bounds = Bounds(threads=2, max_queued=10)
        known = self.verify(RIGHT)
        self.network.flush()
        self.assertTrue(self.successResultOf(known))
        self.network.works = False
        crowd = self.crowd(30)
        refused = [number for number, one in enumerate(crowd) if one.called]
        self.assertEqual(refused, [*range(12, 30)])
        new = self.verify(b"other", "10.0.0.1")
        bob = self.verify(address="10.2.0.1", name="bob")
        for one in (*crowd[12:], crowd[11], crowd[10]):
            self.failureResultOf(one, ExecutorFull)
        self.assertEqual(self.executor.vitals.queued, 12)
        self.assertEqual(self.answered(*crowd[:10], new, bob), [0, 1, 10, 11, *range(2, 10)])
        self.assertEqual(self.checks._submitted, [])

    def test_displaced_with_more_behind(self) -> None:
        """The next check of an address whose check was displaced is refused as well, and nothing is left of either."""
        self.executor.bounds = Bounds(threads=1, max_queued=2)
        self.verify(RIGHT, "10.0.0.1")
        self.network.flush()
        self.network.works = False
        crowd = [self.verify(address=f"10.1.{number % 3}.1") for number in range(6)]
        new = [self.verify(b"other", "10.0.0.1"), self.verify(b"another", "10.0.0.1")]
        self.assertEqual([number for number, one in enumerate(crowd) if one.called], [2, 5])
        for number in (2, 5):
            self.failureResultOf(crowd[number], ExecutorFull)
        self.network.works = True
        self.network.flush()
        self.assertFalse(self.successResultOf(new[0]))
        self.network.advance(100)
        for one in (*crowd[:2], *crowd[3:5], new[1]):
            self.assertFalse(self.successResultOf(one))
        self.assertEqual(self.checks._submitted, [])

    def test_known_addresses_are_bounded(self) -> None:
        with mock.patch.object(passcode_checks, "MAX_KNOWN", 3):
            for number in range(9):
                self.users._right.clear()
                self.verify(RIGHT, f"10.0.0.{number}")
                self.network.flush()
        self.assertEqual([*self.checks._known], ["10.0.0.6", "10.0.0.7", "10.0.0.8"])

    def test_full(self) -> None:
        """All threads are busy, and no place is left in their queue."""
        self.network.works = False
        self.executor.bounds = Bounds(threads=1, max_queued=0)
        self.executor.run(int)
        self.failureResultOf(self.verify(), ExecutorFull)
        self.assertEqual(self.checks._addresses, {})

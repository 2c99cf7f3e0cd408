"""
Checks of passcodes: one at a time for each address, with a delay after failures, and none for a connection that is gone.

If more checks wait than the threads can do, guesses from many addresses must not keep users out. Addresses from which a right
passcode has come are first, then those without a failure, then the others; among equals the user names take turns, so that
guesses for one name delay no user of another name. If the queue is full, the last check in this order is refused.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice
from typing import Any, Final

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from dicomtwist.access.users import Users
from dicomtwist.errors import DICOMError, ExecutorFull
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.networks import host_of

__all__ = ["PasscodeChecks", "TooManyChecks"]

#: The delay before the next check for an address after a wrong passcode, in seconds: at first, and at the most; it doubles.
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 30.0
#: The time after which the failures of an address are forgotten, in seconds.
FORGET_AFTER: Final = 600.0
#: The number of addresses with failures that are remembered; of more, those that failed first are forgotten.
MAX_ADDRESSES: Final = 10_000
#: The number of addresses from which a right passcode has come that are remembered.
MAX_KNOWN: Final = 10_000
#: The number of addresses that are looked at, to be forgotten, for each new one.
FORGOTTEN_AT_ONCE: Final = 100
#: The number of associations of one address that wait for their check.
MAX_WAITING: Final = 16

_DELAY: Final = Backoff(FIRST_DELAY, LONGEST_DELAY)


class TooManyChecks(DICOMError):
    """Too many associations of one address wait for the check of their passcodes."""


class _Address:
    """
    An address with its checks.

    :ivar failures: the wrong passcodes in a row.
    :ivar until: when the next check may begin, in seconds of the reactor.
    :ivar is_busy: whether a check is under way.
    :ivar waiting: the checks that wait for their turn.
    :ivar call: the end of the delay that they wait for.
    """

    __slots__ = ("call", "failures", "is_busy", "until", "waiting")

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0
        self.is_busy = False
        self.waiting: deque[_Check] = deque()
        self.call: Any = None


class _Check:
    """
    The check of one passcode.

    :ivar is_gone: whether nobody waits for its result.
    :ivar has_begun: whether a thread is at it.
    :ivar order: its place in the queue, the lowest first: the rank of its address, and the turn of its user name.
    :ivar is_displaced: whether it was refused to make room for another one.
    :ivar is_skipped: whether nothing was checked, because nobody waited when a thread began.
    """

    __slots__ = (
        *("has_begun", "is_displaced", "is_gone", "is_skipped", "name", "order"),
        *("passcode", "result", "running", "users"),
    )

    def __init__(self, users: Users, name: str, passcode: bytes) -> None:
        self.users = users
        self.name = name
        self.passcode = passcode
        self.is_gone = self.has_begun = self.is_skipped = self.is_displaced = False
        self.order = (0, 0)
        self.running: Deferred[bool] | None = None
        self.result: Deferred[bool]

    def verify(self) -> bool:
        """Check the passcode, in a worker thread."""
        self.has_begun = True
        self.is_skipped = self.is_gone
        return not self.is_skipped and self.users.verify(self.name, self.passcode)


def _order(check: _Check) -> tuple[int, int]:
    return check.order


class PasscodeChecks:
    """
    Checks passcodes in threads, so that guesses from one address neither keep the threads busy nor follow each other quickly.

    A check costs a fifth of a second of a processor. A passcode that was found right before costs nothing and never waits.

    :param executor: the threads; the caller holds it while the object is used.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        #: The addresses with a check or a failure, the latest failure last.
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        #: The addresses from which a right passcode has come, the latest last.
        self._known: OrderedDict[str, None] = OrderedDict()
        #: The checks that the executor has, and of each rank the turn that has come.
        self._submitted: list[_Check] = []
        self._turns = [0, 0, 0]

    def verify(self, address: str, users: Users, name: str, passcode: bytes) -> Deferred[bool]:
        """
        Check a passcode when it is the turn of *address*.

        :returns: a Deferred with whether it is right. It fails at once with :class:`TooManyChecks` or
            :class:`~dicomtwist.errors.ExecutorFull`. Cancelling it takes the check out of the queue; a check that has begun is
            finished, and counts for the address.
        """
        if users.is_remembered(name, passcode):
            return succeed(True)
        key = host_of(address)
        found = self._addresses.get(key)
        if found is None:
            self._forget()
            found = self._addresses[key] = _Address()
        if len(found.waiting) >= MAX_WAITING:
            return fail(TooManyChecks(f"{MAX_WAITING} passcodes of this address wait for their check already"))
        check = _Check(users, name, passcode)
        check.result = Deferred(lambda _: self._cancelled(check, found))
        found.waiting.append(check)
        self._next(key, found)
        return check.result

    # --- turns

    def _next(self, key: str, address: _Address) -> None:
        if address.is_busy or address.call is not None or not address.waiting:
            return
        delay = address.until - self._executor.seconds()
        if delay > 0:
            address.call = self._executor.call_later(delay, self._delayed, key, address)
            return
        check = address.waiting.popleft()
        address.is_busy = True
        check.running = self._submit(check, key, address)
        check.running.addBoth(self._done, check, key, address)

    def _submit(self, check: _Check, key: str, address: _Address) -> Deferred[bool]:
        rank = 2 if address.failures else 0 if key in self._known else 1
        ahead = [one.order[1] for one in self._submitted if one.order[0] == rank and one.name == check.name]
        check.order = rank, max([self._turns[rank], *(turn + 1 for turn in ahead)])
        last = None
        if self._executor.is_full:
            last = max((one for one in self._submitted if not one.has_begun), key=_order, default=None)
            if last is None or last.order <= check.order:
                return fail(ExecutorFull(self._executor.name, self._executor.bounds.max_queued))
        self._submitted.append(check)
        running = self._executor.run_ordered(check.order, check.verify)
        if last is not None and last.running is not None:
            last.is_displaced = True
            last.running.cancel()
        return running

    def _delayed(self, key: str, address: _Address) -> None:
        address.call = None
        self._next(key, address)

    def _cancelled(self, check: _Check, address: _Address) -> None:
        check.is_gone = True
        if check in address.waiting:
            address.waiting.remove(check)
            if not address.waiting and address.call is not None:
                call, address.call = address.call, None
                call.cancel()
        elif check.running is not None and not check.has_begun:
            check.running.cancel()

    def _done(self, outcome: bool | Failure, check: _Check, key: str, address: _Address) -> None:
        address.is_busy = False
        if check in self._submitted:
            self._submitted.remove(check)
        if check.has_begun:
            rank, turn = check.order
            self._turns[rank] = max(self._turns[rank], turn)
        if check.is_displaced and not check.has_begun:
            outcome = Failure(ExecutorFull(self._executor.name, self._executor.bounds.max_queued))
        if outcome is True:
            address.failures = 0
            self._known[key] = None
            self._known.move_to_end(key)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        elif outcome is False and not check.is_skipped:
            address.failures += 1
            address.until = self._executor.seconds() + _DELAY(address.failures)
            self._addresses.move_to_end(key)
        self._next(key, address)
        if not (address.failures or address.is_busy or address.waiting):
            self._addresses.pop(key, None)
        if not check.is_gone:
            if isinstance(outcome, Failure):
                check.result.errback(outcome)
            else:
                check.result.callback(outcome)

    def _forget(self) -> None:
        """Forget addresses whose last failure is long ago, and the oldest if there are too many."""
        now = self._executor.seconds()
        # New addresses are at the end as well; those that a check keeps are as few as its threads and their queue.
        for key in [*islice(self._addresses, FORGOTTEN_AT_ONCE)]:
            address = self._addresses[key]
            if len(self._addresses) < MAX_ADDRESSES and now < address.until + FORGET_AFTER:
                break
            if not (address.is_busy or address.waiting):
                del self._addresses[key]

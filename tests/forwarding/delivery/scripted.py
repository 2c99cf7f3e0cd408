"""A scripted queue of tasks, scripted peers, and a forwarder of them under a clock that the test moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from dicomtwist.forwarding.delivery.interfaces import Delivery, Feed, SentUIDs
from dicomtwist.forwarding.delivery.results import DONE, Action, Result
from dicomtwist.forwarding.forwarder import Forwarder
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.rules import Destination
from dicomtwist.forwarding.tasks.types import Definition, Due, Outcome, Task, TaskState

#: The time in seconds since 1970 at which the clock begins: 12:00 UTC.
BEGIN = 1_796_040_000.0


class ScriptedQueue:
    """
    A queue of tasks in memory.

    :ivar broken: an error that all calls raise.
    :ivar claims: the claims: destination and number of tasks.
    :ivar finishes: the number of outcomes of each transaction.
    :ivar released: the owners that gave back their tasks.
    """

    def __init__(self, *tables: dict[str, Any]) -> None:
        self.tables = [{"name": f"rule {number}", **table} for number, table in enumerate(tables, 1)]
        self.tasks: dict[int, Task] = {}
        self.broken: Exception | None = None
        self.claims: list[tuple[Destination, int]] = []
        self.finishes: list[int] = []
        self.released: list[str] = []
        self.renewals = 0

    def add(self, count: int = 1, rule: int = 1, size: int = 1000, **fields: Any) -> list[Task]:
        """Make *count* tasks of each destination of a rule."""
        added = []
        for destination in parse_forward([self.tables[rule - 1]]).rules[0].to:
            for _ in range(count):
                number = len(self.tasks) + 1
                task = Task(number, "1.2", "1.2.3", f"1.2.3.{number}", rule, destination, TaskState.WAITING, size=size)
                self.tasks[number] = replace(task, **fields)
                added.append(self.tasks[number])
        return added

    def states(self, name: str = "") -> Counter[str]:
        """Return the number of tasks by state."""
        return Counter(str(task.state) for task in self.tasks.values() if not name or name in task.destination)

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def claim(
        self,
        destination: Destination,
        limit: int,
        now: float,
        lease: float,
        owner: str,
        rules: Collection[int] | None = None,
    ) -> list[Task]:
        self._check()
        due = [
            task
            for task in self.tasks.values()
            if task.state is TaskState.WAITING
            and task.destination == destination
            and task.next_try <= now
            and (rules is None or task.rule in rules)
        ][:limit]
        for task in due:
            self.tasks[task.id] = replace(task, state=TaskState.SENDING)
        self.claims.append((destination, len(due)))
        return due

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        self._check()
        self.finishes.append(len(outcomes))
        for one in outcomes:
            task = self.tasks[one.task_id]
            if task.version != one.version:
                continue
            assert task.state is TaskState.SENDING, task
            self.tasks[one.task_id] = replace(
                task, state=one.state, next_try=one.next_try, said=one.said, tries=one.tries
            )

    def renew(self, owner: str, now: float, lease: float) -> None:
        self._check()
        self.renewals += 1

    def release(self, owner: str) -> None:
        self._check()
        self.released.append(owner)
        for task in self.tasks.values():
            if task.state is TaskState.SENDING:
                self.tasks[task.id] = replace(task, state=TaskState.WAITING, next_try=0.0)

    def due(self) -> list[Due]:
        self._check()
        found: dict[tuple[Destination, int], float] = {}
        for task in self.tasks.values():
            if task.state is TaskState.WAITING:
                key = task.destination, task.rule
                found[key] = min(found.get(key, task.next_try), task.next_try)
        return [Due(*key, at) for key, at in found.items()]

    def definitions(self) -> Mapping[int, Definition]:
        self._check()
        rules = parse_forward(self.tables).rules
        return {
            number: replace(Definition.of(rule, table), id=number)
            for number, (rule, table) in enumerate(zip(rules, self.tables, strict=True), 1)
        }


class ScriptedSender:
    """
    A peer that answers as the test says.

    :ivar answer: the result of an instance, ``None`` for no answer: :meth:`answer_all` gives it then.
    :ivar refusal: the error of each attempt to connect.
    :ivar sent: the SOP Instance UIDs that it was sent, in order.
    :ivar deliveries: the tasks of these.
    :ivar attempts: the number of attempts to connect.
    :ivar held: the instances that it has not answered.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answer: Callable[[Delivery], Result | None] = lambda delivery: DONE
        self.unreadable: Callable[[Delivery], Result | None] = lambda delivery: None
        self.refusal: Exception | None = None
        self.sent: list[str] = []
        self.deliveries: list[Task] = []
        self.attempts = 0
        self.held: list[Delivery] = []
        self.open_now = self.most_open = 0
        self.window = 1
        self.connections = self.most_connections = 0
        self.confirmed: list[list[str]] = []
        self.confirmation: Callable[[Delivery], Result] = lambda delivery: DONE
        self.is_closed = False
        self._feed: Feed | None = None
        self._waiting: list[Deferred[None]] = []

    def open(self, deliveries: Sequence[Delivery]) -> list[Result | None]:
        results = []
        for delivery in deliveries:
            result = self.unreadable(delivery)
            results.append(result)
            if result is None:
                task = delivery.task
                delivery.parcel, delivery.size, delivery.held = task.instance, task.size, task.size
                delivery.uids = SentUIDs(task.study, task.series, "1.2", task.instance)
                delivery.close = self._closed
                self.open_now += 1
                self.most_open = max(self.most_open, self.open_now)
        return results

    def _closed(self) -> None:
        self.open_now -= 1

    async def send(self, feed: Feed) -> None:
        self.attempts += 1
        if self.refusal is not None:
            raise self.refusal
        self.connections += 1
        self.most_connections = max(self.most_connections, self.connections)
        try:
            while True:
                while len(self.held) >= self.window:
                    waiting: Deferred[None] = Deferred()
                    self._waiting.append(waiting)
                    await waiting
                delivery = feed.take()
                if delivery is None:
                    if not await feed.more():
                        return
                    continue
                self.open_now -= 1
                self.sent.append(delivery.task.instance)
                self.deliveries.append(delivery.task)
                result = self.answer(delivery)
                if result is None:
                    self.held.append(delivery)
                    self._feed = feed
                    continue
                feed.ended(delivery, result)
                if result.is_lost:
                    return
        finally:
            self.connections -= 1

    def answer_held(self, result: Result = DONE) -> None:
        """Answer what has no answer yet."""
        held, self.held = self.held, []
        assert self._feed is not None
        for delivery in held:
            self._feed.ended(delivery, result)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    async def confirm(self, deliveries: Sequence[Delivery], how: str) -> Sequence[Result]:
        self.confirmed.append([delivery.task.instance for delivery in deliveries])
        return [self.confirmation(delivery) for delivery in deliveries]

    async def close(self, grace: float) -> None:
        self.is_closed = True
        if self.held:
            self.answer_held(Result(Action.RETRY, "the association was aborted", is_lost=True))


class ScriptedExecutor:
    """
    An executor without threads. As with threads, a result never comes at once.

    :param clock: moves its calls on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Call *function* when the clock moves on."""
        return deferLater(self._clock, 0.001, function, *args, **kwargs)

    run_admitted = run


class _Executors:
    def __init__(self, clock: Clock) -> None:
        self.retrieval = self.forwarding = ScriptedExecutor(clock)
        self.users = 0

    def acquire(self) -> None:
        self.users += 1

    def release(self) -> None:
        self.users -= 1


class _AE:
    def __init__(self, clock: Clock) -> None:
        self.reactor = clock
        self.executors = _Executors(clock)


class Network:
    """
    A forwarder with scripted peers.

    :param queue: its tasks.
    :param names: the names of the peers.
    """

    def __init__(self, queue: ScriptedQueue, *names: str) -> None:
        self.clock = Clock()
        self.queue = queue
        self.senders = {name: ScriptedSender(self.clock) for name in names}
        self.associations: dict[str, int] = {}
        self.ae = _AE(self.clock)
        self.forwarder = Forwarder(
            self.ae,  # type: ignore[arg-type]
            queue,
            None,  # type: ignore[arg-type]
            self._connect,
            owner="test",
            clock=self.now,
            jitter=lambda: 0.0,
        )

    def _connect(self, name: str, associations: int) -> ScriptedSender:
        self.associations[name] = associations
        return self.senders[name]

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return BEGIN + self.clock.seconds()

    def run(self, seconds: float, step: float = 0.05) -> None:
        """Move the clock on in steps."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(min(step, end - self.clock.seconds()))

    def stop(self) -> Deferred[None]:
        """Stop the forwarder, and move the clock on for a second."""
        stopping = self.forwarder.stopService()
        self.run(1)
        return stopping

    def start(self) -> None:
        """Start the forwarder."""
        self.forwarder.startService()
        self.run(0.05)

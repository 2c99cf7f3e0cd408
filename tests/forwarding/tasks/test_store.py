"""The store of tasks: made once for each copy, claimed by one, finished, found, kept through restarts; in both databases."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.tasks import schema
from dicomtwist.forwarding.tasks.store import KEEP_RULES, TaskStore
from dicomtwist.forwarding.tasks.types import (
    MAX_SAID,
    Arrival,
    Definition,
    Made,
    Selection,
    Task,
    TasksFailed,
    TaskState,
    TasksUnusable,
)
from tests.archive.index.test_postgresql import empty

A, B, FAILOVER = ("A",), ("B",), ("B", "C")
NOW = 1_800_000_000.0
FAILED = frozenset((TaskState.FAILED,))
DONE = frozenset((TaskState.DONE,))


def definition(name: str = "all", *to: tuple[str, ...], **more: Any) -> Definition:
    return Definition(name, {"name": name, **more}, to or (A,), **more)


def arrival(number: int, *rules: int, study: int = 1, received: int = 1000) -> Arrival:
    return Arrival(f"1.2.{study}", f"1.2.{study}.1", f"1.2.{study}.1.{number}", rules, received, 12_000)


class Case(SynchronousTestCase):
    """A store of its own for each test."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.engine = self.database()
        self.store = self.opened()

    def database(self) -> Engine | None:
        return None

    def opened(self) -> TaskStore:
        """Open the store once more, as another process does."""
        store = TaskStore(self.folder, engine=self.engine)
        store.open()
        self.addCleanup(store.close)
        return store

    def claim(self, limit: int = 100, now: float = NOW, to: tuple[str, ...] = A, **more: Any) -> list[Task]:
        return self.store.claim(to, limit, now, 60.0, "me", **more)

    def finish(self, tasks: Iterable[Task], state: TaskState = TaskState.DONE, **more: Any) -> None:
        self.store.finish([one.ends(state, **more) for one in tasks], NOW)

    def made(self, made: Made, tasks: int) -> None:
        """Check the number of tasks that were made, as far as the database tells it."""
        if self.engine is None:
            self.assertEqual(made.tasks, tasks)
        else:
            self.assertGreaterEqual(made.tasks, tasks)

    def states(self) -> list[TaskState]:
        return [one.state for one in self.store.find(Selection(), 10_000)]


class Making(Case):
    def test_once_for_each_destination(self) -> None:
        first, second = self.store.register([definition("a", A, FAILOVER), definition("b", B)])
        made = self.store.make([arrival(1, first, second), arrival(2, first)], NOW)
        self.made(made, 5)
        again = self.store.make([arrival(1, first, second), arrival(2, first), arrival(2, second)], NOW)
        self.made(again, 1)  # by the rule that did not match before
        found = self.store.find(Selection(instance="1.2.1.1.1"), 10)
        self.assertEqual({one.destination for one in found}, {A, FAILOVER, B})
        (one,) = self.store.find(Selection(instance="1.2.1.1.1", destination="A"), 10)
        self.assertEqual((one.study, one.series, one.instance), ("1.2.1", "1.2.1.1", "1.2.1.1.1"))
        self.assertEqual((one.state, one.tries, one.made_at, one.size), (TaskState.WAITING, 0, NOW, 12_000))
        self.assertEqual(self.store.definitions()[one.rule].name, "a")

    def test_same_copy_changes_nothing(self) -> None:
        """A task stays as it is in any state, since the replay after a crash makes it again."""
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(number, rule) for number in range(5)], NOW)
        tasks = self.claim(limit=3)
        self.finish(tasks[:1])
        self.finish(tasks[1:2], TaskState.FAILED)
        self.store.hold(Selection(instance="1.2.1.1.4"))
        before = self.store.find(Selection(), 10)
        for received in (1000, 0):
            self.made(self.store.make([arrival(n, rule, received=received) for n in range(5)], NOW), 0)
        self.assertEqual(self.store.find(Selection(), 10), before)

    def test_another_copy_is_sent_again(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(number, rule) for number in range(4)], NOW)
        done, failed, sending = self.claim(limit=3)
        self.finish([done])
        self.finish([failed], TaskState.FAILED, said="no")
        made = self.store.make([arrival(number, rule, received=2000) for number in range(4)], NOW + 1)
        self.made(made, 4)
        # The peer has the earlier copy now, and still needs the new one.
        self.finish([sending])
        self.assertEqual(self.states(), [TaskState.WAITING] * 4)
        self.assertEqual({one.said for one in self.store.find(Selection(), 10)}, {""})

    def test_a_copy_that_no_rule_matches(self) -> None:
        """It replaces one that was sent; tasks of rules that left the configuration stay done."""
        first, second = self.store.register([definition("a"), definition("b", B)])
        self.store.make([arrival(1, first, second)], NOW)
        self.finish(self.claim())
        self.finish(self.claim(to=B))
        self.store.register([definition("a")])
        self.made(self.store.make([arrival(1, received=2000)], NOW), 1)
        self.assertEqual({one.destination: one.state for one in self.store.find(Selection(), 9)}, {
            A: TaskState.WAITING, B: TaskState.DONE,
        })  # fmt: skip

    def test_held_stays_held(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(1, rule)], NOW)
        self.store.hold(Selection())
        self.store.make([arrival(1, rule, received=2000)], NOW)
        self.assertEqual(self.states(), [TaskState.HELD])
        self.store.release_held(Selection())
        self.assertEqual(len(self.claim()), 1)

    def test_unknown_rules(self) -> None:
        (rule,) = self.store.register([definition()])
        made = self.store.make([arrival(1, rule, 77), arrival(2, 78)], NOW)
        self.made(made, 1)
        self.assertEqual(made.unknown, {77, 78})

    def test_of_another_process(self) -> None:
        """A rule that another process has registered since is known."""
        other = self.opened()
        (rule,) = other.register([definition()])
        self.made(self.store.make([arrival(1, rule)], NOW), 1)

    def test_at_the_same_time(self) -> None:
        """Threads and processes make tasks of the same instances: each is made once, and none waits for ever."""
        (rule,) = self.store.register([definition("all", A, B)])
        other = self.opened()
        errors: list[BaseException] = []

        def work(store: TaskStore, step: int) -> None:
            try:
                numbers = range(200)[::step]
                for start in range(0, len(numbers), 20):
                    store.make([arrival(number, rule) for number in numbers[start : start + 20]], NOW)
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=work, args=(store, step)) for store in (self.store, other) for step in (1, -1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(errors, [])
        self.assertEqual(sum(self.store.counts().values()), 400)

    def test_after_a_restart(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(1, rule)], NOW)
        identity = self.store.identity
        self.store.close()
        self.assertRaises(TasksFailed, self.store.counts)
        self.store = self.opened()
        self.assertEqual(self.store.identity, identity)
        self.assertEqual(len(self.claim()), 1)


class Rules(Case):
    def test_equal_ones_keep_their_number(self) -> None:
        tables: list[dict[str, Any]] = [
            {"name": "a", "to": ["A"], "where": {"StationName": "CT*"}},
            {"to": [["B", "C"]], "keep": False},
        ]
        rules = parse_forward(tables).rules
        made = [Definition.of(rule, table) for rule, table in zip(rules, tables, strict=True)]
        numbers = self.store.register(made)
        self.assertEqual(self.opened().register(made[::-1]), numbers[::-1])
        (changed,) = self.store.register([Definition("a", {"name": "a", "to": ["B"]}, (B,))])
        self.assertNotIn(changed, numbers)
        known = self.store.definitions()
        self.assertEqual(known[numbers[0]].table, tables[0])
        self.assertEqual((known[numbers[1]].to, known[numbers[1]].keep), ((FAILOVER,), False))

    def test_forgotten_ones(self) -> None:
        """A rule that nothing needs is forgotten after a time, and its number is not given again."""
        old, kept = self.store.register([definition("old"), definition("kept", B)], NOW)
        self.store.make([arrival(1, old, kept)], NOW)
        self.store.register([], NOW)
        self.finish(self.claim())
        self.store.forget(NOW + 1)
        self.assertEqual(set(self.store.definitions()), {old, kept})
        self.store.forget(NOW + KEEP_RULES + 1)
        self.assertEqual(set(self.store.definitions()), {kept}, "a task of it waits")
        (new,) = self.store.register([definition("old")], NOW)
        self.assertGreater(new, old)


class Claiming(Case):
    def test_priority_then_age(self) -> None:
        low, high, other = self.store.register([definition("low"), definition("high", priority=9), definition("other")])
        self.store.make([arrival(1, low)], NOW)
        self.store.make([arrival(2, other)], NOW)
        self.store.make([arrival(3, low), arrival(4, high)], NOW)
        self.assertEqual([one.instance[-1] for one in self.claim(limit=3)], ["4", "1", "2"])
        self.assertEqual([one.instance[-1] for one in self.claim()], ["3"])
        self.assertEqual(self.claim(), [])

    def test_allowed_rules(self) -> None:
        day, night = self.store.register([definition("day"), definition("night")])
        self.store.make([arrival(1, day, night)], NOW)
        self.assertEqual([one.rule for one in self.claim(rules=[night])], [night])
        self.assertEqual(self.claim(rules=[]), [])
        self.assertEqual([one.rule for one in self.claim(rules=[day, night])], [day])

    def test_next_try(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(1, rule), arrival(2, rule)], NOW)
        first, second = self.claim()
        self.finish([first], TaskState.WAITING, next_try=NOW + 30, said="busy")
        self.finish([second], TaskState.WAITING)
        self.assertEqual(self.store.next_due(NOW), {A: NOW})
        self.assertEqual([one.id for one in self.claim()], [second.id])
        self.assertEqual(self.store.next_due(NOW), {A: NOW + 30})
        self.assertEqual(self.claim(now=NOW + 29), [])
        (again,) = self.claim(now=NOW + 31)
        self.assertEqual((again.id, again.tries, again.said), (first.id, 1, "busy"))

    def test_lease(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(1, rule)], NOW)
        (mine,) = self.claim()
        self.store.renew("me", NOW + 50, 60.0)
        other = self.opened()
        self.assertEqual(other.claim(A, 10, NOW + 100, 60.0, "other"), [])
        (theirs,) = other.claim(A, 10, NOW + 120, 60.0, "other")
        self.assertEqual(theirs.tries, 1, "a task that ends each process that sends it does not come first for ever")
        self.finish([mine], TaskState.FAILED)
        self.assertEqual(self.states(), [TaskState.SENDING], "the first one lost its lease")
        other.finish([theirs.ends(TaskState.DONE)])
        self.assertEqual(self.states(), [TaskState.DONE])

    def test_clock_that_was_ahead(self) -> None:
        """Times that were noted by a clock that was years ahead let no task wait for years."""
        years = NOW + 5 * 365 * 86400.0
        rule, quiet = self.store.register([definition(), definition("quiet", B, study_quiet=60.0)])
        self.store.make([arrival(number, rule) for number in range(3)], years)
        self.store.make([arrival(9, quiet, study=2)], years)
        delayed, leased, soon = self.claim(now=years)
        self.finish([delayed], TaskState.WAITING, next_try=years + 30)
        self.finish([soon], TaskState.WAITING, next_try=NOW + 3600)
        self.assertEqual(self.claim(), [])
        self.assertEqual(self.store.renew("other", NOW, 60.0), 0)
        self.assertEqual([one.id for one in self.claim()], [delayed.id])
        self.assertEqual([one.id for one in self.claim(now=NOW + 61)], [delayed.id, leased.id])
        self.assertEqual(self.claim(now=NOW + 59, to=B), [])
        self.assertEqual(len(self.claim(now=NOW + 61, to=B)), 1)
        self.assertEqual([one.id for one in self.claim(now=NOW + 3601)][-1], soon.id)

    def test_release(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(number, rule) for number in range(4)], NOW)
        self.claim(limit=1)
        self.store.claim(A, 1, NOW, 60.0, "other")
        self.assertEqual(self.store.release("me"), 1)
        self.assertEqual(Counter(self.states()), {TaskState.WAITING: 3, TaskState.SENDING: 1})
        self.assertEqual(self.store.release(None), 1)
        self.assertEqual(self.states(), [TaskState.WAITING] * 4)

    def test_one_gets_it(self) -> None:
        """Processes that claim at the same time get each task once, and together all of them."""
        (rule,) = self.store.register([definition()])
        for start in range(0, 400, 100):
            self.store.make([arrival(number, rule) for number in range(start, start + 100)], NOW)
        stores = [self.store, self.opened(), self.opened()]
        got: list[Task] = []
        errors: list[BaseException] = []

        def work(store: TaskStore, owner: str) -> None:
            try:
                misses = 0
                while misses < 3:
                    tasks = store.claim(A, 7, NOW, 60.0, owner)
                    misses = 0 if tasks else misses + 1
                    got.extend(tasks)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(store, str(at))) for at, store in enumerate(stores)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(errors, [])
        self.assertEqual(
            Counter(one.id for one in got), Counter({one.id: 1 for one in self.store.find(Selection(), 999)})
        )

    def test_quiet_study(self) -> None:
        rule, _ = self.store.register([definition("quiet", study_quiet=60.0), definition("plain", B)])
        self.store.make([arrival(1, rule), arrival(2, rule, study=2)], NOW)
        self.assertEqual(self.store.next_due(NOW), {A: NOW + 60})
        (first, _) = self.store.find(Selection(), 10)
        self.assertEqual((first.state, first.next_try), (TaskState.WAITING, NOW + 60))
        self.store.make([arrival(3)], NOW + 40)  # no rule matches it
        (other,) = self.claim(now=NOW + 70)
        self.assertEqual(other.study, "1.2.2")
        self.finish([other])
        self.store.make([arrival(4, rule)], NOW + 90)
        self.assertEqual(self.claim(now=NOW + 140), [])
        self.assertEqual([one.instance[-1] for one in self.claim(now=NOW + 151)], ["1", "4"])

    def test_words_are_cut(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(1, rule)], NOW)
        self.finish(self.claim(), TaskState.FAILED, said="a\0" + "ü" * 10_000)
        (one,) = self.store.find(Selection(), 1)
        self.assertEqual(one.said, ("a " + "ü" * MAX_SAID)[:MAX_SAID])

    def test_poor_outcome(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(1, rule)], NOW)
        (one,) = self.claim()
        self.assertRaises(ValueError, self.store.finish, [one.ends(TaskState.SENDING)])


class Queue(Case):
    def setUp(self) -> None:
        super().setUp()
        self.rule, self.other = self.store.register([definition("a", FAILOVER), definition("b", A)])
        self.store.make([arrival(number, self.rule, study=1 + number % 2) for number in range(6)], NOW)
        self.store.make([arrival(9, self.other)], NOW + 5)

    def count(self, **selection: Any) -> int:
        return len(self.store.find(Selection(**selection), 100))

    def test_find(self) -> None:
        self.assertEqual(self.count(), 7)
        self.assertEqual(self.count(destination="C"), 6)
        self.assertEqual(self.count(destination="A"), 1)
        self.assertEqual(self.count(destination="D"), 0)
        self.assertEqual(self.count(rule="b"), 1)
        self.assertEqual(self.count(study="1.2.2"), 3)
        self.assertEqual(self.count(study="1.2.2", destination="A"), 0)
        self.assertEqual(self.count(instance="1.2.1.1.9"), 1)
        self.assertEqual(self.count(states=DONE), 0)
        ids = [one.id for one in self.store.find(Selection(), 100)]
        self.assertEqual(ids, sorted(ids))
        pages = [one.id for after in (0, ids[2], ids[5]) for one in self.store.find(Selection(), 3, after)]
        self.assertEqual(pages, ids)
        self.assertEqual([one.id for one in self.store.find(Selection(ids=ids[1:3]), 9)], ids[1:3])

    def test_hold_and_release(self) -> None:
        self.assertEqual(self.store.hold(Selection(study="1.2.2")), 3)
        self.assertEqual(len(self.claim(to=FAILOVER)), 3)
        self.assertEqual(self.store.release_held(Selection(destination="A")), 0)
        self.assertEqual(self.store.release_held(Selection(destination="B")), 3)
        self.assertEqual(len(self.claim(to=FAILOVER)), 3)

    def test_retry(self) -> None:
        failed, delayed, done = self.claim(3, to=FAILOVER)
        self.finish([failed], TaskState.FAILED, tries=9)
        self.finish([delayed], TaskState.WAITING, next_try=NOW + 999)
        self.finish([done])
        self.assertEqual(self.store.retry(Selection(states=FAILED)), 1)
        self.assertEqual(self.store.retry(Selection()), 1)
        self.assertEqual(Counter(self.states()), {TaskState.WAITING: 6, TaskState.DONE: 1})
        self.assertEqual(self.store.retry(Selection(states=DONE)), 1)
        self.assertEqual({one.tries for one in self.claim(to=FAILOVER)}, {0})

    def test_drop(self) -> None:
        sending = self.claim(1, to=FAILOVER)
        self.assertEqual(self.store.drop(Selection(study="1.2.1")), 4)
        self.finish(sending)
        self.assertEqual(self.count(), 3)
        self.assertFalse(self.store.unfinished("1.2.1"))

    def test_in_steps(self) -> None:
        """More tasks than one step changes are all changed."""
        for start in range(10, 4510, 500):
            self.store.make([arrival(number, self.other) for number in range(start, start + 500)], NOW)
        self.assertEqual(self.store.hold(Selection(destination="A")), 4501)
        self.assertEqual(self.store.drop(Selection(rule="b")), 4501)

    def test_counts_and_age(self) -> None:
        self.finish(self.claim(2, to=FAILOVER))
        self.assertEqual(
            self.store.counts(),
            {
                (self.rule, FAILOVER, TaskState.DONE): 2,
                (self.rule, FAILOVER, TaskState.WAITING): 4,
                (self.other, A, TaskState.WAITING): 1,
            },
        )
        self.assertEqual(self.store.oldest(), {FAILOVER: NOW, A: NOW + 5})
        self.finish(self.claim())
        self.assertEqual(self.store.oldest(), {FAILOVER: NOW})


class Removing(Case):
    """The archive may remove what is forwarded and not kept, and nothing that is not forwarded."""

    def test_unfinished(self) -> None:
        (rule,) = self.store.register([definition()])
        self.assertFalse(self.store.unfinished("1.2.1"))
        self.store.make([arrival(1, rule), arrival(2, rule)], NOW)
        first, second = self.claim()
        self.assertTrue(self.store.unfinished("1.2.1"))
        self.finish([first])
        self.finish([second], TaskState.FAILED)
        self.assertTrue(self.store.unfinished("1.2.1"), "an instance that failed is not forwarded")
        self.store.retry(Selection())
        self.finish(self.claim())
        self.assertFalse(self.store.unfinished("1.2.1"))

    def test_removable(self) -> None:
        gone, stays = self.store.register([definition("gone", A, B, keep=False), definition("stays")])
        self.store.make([arrival(1, gone), arrival(2, gone, stays), arrival(3, stays)], NOW)
        self.finish(self.claim())
        self.assertEqual(self.store.removable(NOW + 1, 10), [], "B has none of them")
        self.finish(self.claim(to=B))
        self.assertEqual(self.store.removable(NOW, 10), [])
        (one,) = self.store.removable(NOW + 1, 10)
        self.assertEqual(one, ("1.2.1", "1.2.1.1", "1.2.1.1.1"))
        self.store.postpone_removal([one], NOW + 60)
        self.assertEqual(self.store.removable(NOW + 1, 10), [])
        self.store.removed([one], NOW)
        self.assertEqual(self.store.removable(NOW + 99, 10), [])
        self.assertEqual(set(self.states()), {TaskState.DONE})
        # The archive does not have it any more, and cannot know whether these are the same bytes.
        self.made(self.store.make([arrival(1, gone, received=0)], NOW), 2)

    def test_forget(self) -> None:
        (rule,) = self.store.register([definition()])
        self.store.make([arrival(number, rule) for number in range(6)], NOW)
        self.finish(self.claim(5))
        self.assertEqual(self.store.forget(NOW, 3), 0)
        self.assertEqual([self.store.forget(NOW + 1, 3) for _ in range(3)], [3, 2, 0])
        self.assertEqual(len(self.states()), 1)


class Postgres:
    """The store in PostgreSQL."""

    def database(self) -> Engine:
        engine = empty()
        schema.metadata.drop_all(engine)
        self.addCleanup(engine.dispose)  # type: ignore[attr-defined]
        return engine


class MakingPostgres(Postgres, Making):
    pass


class RulesPostgres(Postgres, Rules):
    pass


class ClaimingPostgres(Postgres, Claiming):
    pass


class QueuePostgres(Postgres, Queue):
    pass


class RemovingPostgres(Postgres, Removing):
    pass


class Unusable(SynchronousTestCase):
    def test_no_folder(self) -> None:
        self.assertRaises(TasksUnusable, TaskStore(Path(self.mktemp()) / "a" / "b").open)

    def test_damaged(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "tasks.sqlite").write_bytes(b"no database" * 1000)
        self.assertRaises(TasksUnusable, TaskStore(folder).open)

    def test_later_version(self) -> None:
        folder = Path(self.mktemp())
        store = TaskStore(folder)
        store.open()
        with store._db.writing() as connection:
            connection.exec_driver_sql("UPDATE forward_about SET value = '99' WHERE name = 'version'")
        store.close()
        self.assertIn("version 99", str(self.assertRaises(TasksUnusable, TaskStore(folder).open)))

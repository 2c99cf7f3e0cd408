"""The cost of queries: each distinct value is tested once, wildcards together, and nothing goes on that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from sqlalchemy import Engine, select, text
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import TestCase

from dicomtwist.archive.index import reading as reading_module
from dicomtwist.archive.index.normal_forms import any_of, has_wildcard, wildcard_regex
from dicomtwist.archive.index.reading import reading
from dicomtwist.archive.index.schema import instance, migrate, patient, series, study
from dicomtwist.archive.index.sqlite import sqlite_engine
from dicomtwist.archive.query import person_names, search
from dicomtwist.archive.query.compiler import Model, Negotiated, Query, compile_find
from dicomtwist.archive.query.search import Search
from dicomtwist.archive.storage.types import IndexFailed
from dicomtwist.runtime.executors import Executors

SERIES, INSTANCES = 5, 1000


def compiled(**keys: Any) -> Query:
    """A query for instances."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return compile_find(identifier, Model.STUDY_ROOT, Negotiated(relational=True))


class Costs(TestCase):
    """An index of 1,000 instances in 5 series, whose operators have names."""

    timeout = 60

    def setUp(self) -> None:
        self.engine: Engine = sqlite_engine(Path(self.mktemp()), full=False)
        self.addCleanup(self.engine.dispose)
        migrate(self.engine)
        with self.engine.begin() as connection:
            connection.execute(patient.insert().values(id=1, patient_key="p"))
            connection.execute(study.insert().values(id=1, parent=1, study_instance_uid="1.2"))
            for number in range(1, SERIES + 1):
                names = f"Doe^John{number}\\Miller^Bob"
                connection.execute(
                    series.insert().values(
                        id=number,
                        parent=1,
                        series_instance_uid=f"1.2.{number}",
                        operators_name=names,
                        operators_name_key=names.casefold(),
                    )
                )
            connection.execute(
                instance.insert(),
                [
                    {"id": number, "parent": number % SERIES + 1, "sop_instance_uid": f"1.3.{number}",
                     "transfer_syntax": "1.2", "size": 1, "image_type": f"ORIGINAL\\A{number}"}
                    for number in range(1, INSTANCES + 1)
                ],
            )  # fmt: skip

    def counted(self, query: Query) -> list[Any]:
        """Note each test of a value."""
        tested: list[Any] = []

        def count(columns: Any, predicate: Any) -> Any:
            def test(row: Sequence[Any]) -> bool:
                tested.append(tuple(row))
                return bool(predicate(row))

            return columns, test

        query.residual[:] = [count(*one) for one in query.residual]
        return tested

    def test_each_distinct_value_once(self) -> None:
        for keys, found, tests in (
            ({"OperatorsName": [f"*{number}*" for number in range(1, 50)]}, INSTANCES, SERIES),
            ({"OperatorsName": ["*l*r^*"] * 50}, INSTANCES, SERIES),
            ({"OperatorsName": "doe*3"}, INSTANCES // SERIES, 1),
            ({"ImageType": ["*A*1*"] * 50}, 272, 272),
        ):
            query = compiled(**keys)
            tested = self.counted(query)
            self.assertEqual(len(Search(self.engine, query).numbers()), found, keys)
            self.assertEqual(len(tested), tests, keys)

    def test_what_is_remembered_is_bounded(self) -> None:
        query = compiled(ImageType="*A*")
        tested = self.counted(query)
        with mock.patch.object(search, "MAX_TESTED", 10):
            self.assertEqual(len(Search(self.engine, query).numbers()), INSTANCES)
        self.assertEqual(len(tested), INSTANCES)

    async def test_tests_end_when_nobody_waits(self) -> None:
        """A search that a peer has cancelled ends at its next batch of rows."""
        executors = Executors(reactor)
        query = compiled(ImageType="*A*")
        begun, gate = threading.Event(), threading.Event()
        tested: list[Any] = []

        def test(row: Sequence[Any]) -> bool:
            tested.append(row)
            begun.set()
            return gate.wait(30)

        query.residual[:] = [(columns, test) for columns, _ in query.residual]
        ended: list[BaseException] = []

        def find() -> None:
            try:
                Search(self.engine, query).numbers()
            except BaseException as error:
                ended.append(error)
                raise

        finding = executors.querying.run(find)
        await executors.housekeeping.run(begun.wait, 30)
        finding.cancel()
        self.failureResultOf(finding, CancelledError)
        gate.set()
        # The executor's threads end when nothing is left to do: this waits for the one that searches.
        executors.acquire()
        while executors.querying.vitals.busy:
            await executors.housekeeping.run(int)
        executors.release()
        self.assertEqual([type(error) for error in ended], [CancelledError])
        self.assertLessEqual(len(tested), search.BATCH_SIZE)

    def test_statements_end_when_nobody_waits(self) -> None:
        """SQLite is interrupted within a statement, and the connection can be used again."""
        asked: list[None] = []

        def is_wanted() -> bool:
            asked.append(None)
            return len(asked) < 3

        endless = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
        gone = mock.patch.object(reading_module, "is_wanted", is_wanted)
        raising = mock.patch.object(reading_module, "check_wanted", side_effect=CancelledError)
        with gone, raising, self.assertRaises(CancelledError), reading(self.engine) as connection:
            connection.execute(endless)
        self.assertEqual(len(asked), 3)
        with reading(self.engine) as connection:
            self.assertEqual(connection.execute(select(study.c.id)).scalars().all(), [1])
            driver: Any = connection.connection.driver_connection
            self.assertEqual(driver.execute("SELECT 1").fetchall(), [(1,)])

    def test_turns(self) -> None:
        """
        A search that leaves its thread after a batch, or in the middle of a statement, finds each entity once, in order.

        The gap in the ids is longer than the first range of them.
        """
        with self.engine.begin() as connection:
            connection.execute(instance.update().where(instance.c.id > 900).values(id=instance.c.id + 50_000))
            connection.execute(instance.delete().where(instance.c.id.between(200, 850)))
        for keys in ({}, {"ImageType": "*A*1*"}, {"OperatorsName": "doe*3"}, {"OperatorsName": "nobody*"}):
            for steps in (1, 5_000, 1_000_000):
                for over in (lambda: True, partial(Random(steps).getrandbits, 1), lambda: False):
                    expected = Search(self.engine, compiled(**keys)).numbers()
                    turns, found = self.taken(Search(self.engine, compiled(**keys)), steps, over)
                    self.assertEqual(found, expected, (keys, steps))
                    self.assertLess(turns, 10 * INSTANCES)

    def taken(self, one: Search, steps: int, is_over: Any) -> tuple[int, Any]:
        """Take the turns of a search; return their number and the result."""
        turns, work = 0, one.in_turns()
        modules = (search, reading_module)
        with ExitStack() as patches:
            for module in modules:
                patches.enter_context(mock.patch.object(module, "is_turn_over", is_over))
            patches.enter_context(mock.patch.object(reading_module, "STEPS_BETWEEN", steps))
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    return turns, end.value
                turns += 1

    def test_ranges_of_ids(self) -> None:
        """The statement for a range of ids reads these entities alone, not all instances of a series of a million."""
        matching = search._Matching(compiled(SeriesInstanceUID="1.2.3", ImageType="*A*"), set())
        plans = []
        for statement in (matching.statement, matching.statement_by_id):
            bounded = statement.where(matching.id > 0, matching.id <= 10).order_by(matching.id)
            driver = bounded.compile(self.engine, compile_kwargs={"literal_binds": True})
            with self.engine.connect() as connection:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {driver}").all()
            plans.append(" ".join(row[3] for row in plan))
        self.assertIn("instance_in_series", plans[0])
        self.assertIn("SEARCH instance USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)", plans[1])

    def test_turns_end(self) -> None:
        """A statement that is slow for each row gives way as well, and holds no connection between its turns."""
        one = Search(self.engine, compiled(ImageType="*A*"))
        work = one.in_turns()
        held: list[int] = []
        with (
            mock.patch.object(search, "is_turn_over", lambda: True),
            mock.patch.object(search, "BATCH_SIZE", 10),
        ):
            for _ in work:
                pool: Any = self.engine.pool
                held.append(pool.checkedout())
        self.assertGreater(len(held), 10)
        self.assertEqual(set(held), {0})

    def test_turns_that_find_too_much(self) -> None:
        with mock.patch.object(search, "MAX_MATCHES", 100):
            for keys in ({}, {"ImageType": "*A*"}):
                work = Search(self.engine, compiled(**keys)).in_turns()
                self.assertRaises(search.TooManyMatches, list, work)
            self.assertEqual(len([*Search(self.engine, compiled(ImageType="*A1?")).in_turns()]), 0)

    def test_other_failures(self) -> None:
        with self.assertRaises(IndexFailed), reading(self.engine) as connection:
            connection.execute(text("SELECT nothing FROM nowhere"))


class Together(TestCase):
    """All wildcards of a key as one expression."""

    @given(st.lists(st.text("ab*?|()", max_size=6), max_size=6), st.text("ab|()", max_size=8))
    def test_any_of(self, values: list[str], found: str) -> None:
        expected = any(
            wildcard_regex(value).fullmatch(found) is not None if has_wildcard(value) else value == found
            for value in values
        )
        self.assertEqual(any_of(values)(found), expected)

    @given(st.lists(st.text("ab*?^=", min_size=1, max_size=6), min_size=1, max_size=4), st.text("ab^=", max_size=8))
    def test_names(self, values: list[str], found: str) -> None:
        """Several names match what one of them matches."""
        alone = [person_names.predicate([value], fuzzy=False)(found) for value in values]
        self.assertEqual(person_names.predicate(values, fuzzy=False)(found), any(alone))

    def test_linear(self) -> None:
        """No pattern makes a comparison slow."""
        long = "ab" * 5000
        for pattern in ("?*" * 300 + "z", "*a*b" * 200 + "z", "a*" * 400 + "?z", "*?" * 400 + "c"):
            self.assertFalse(any_of([pattern] * 50)(long), pattern)

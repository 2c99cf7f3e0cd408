"""
Searches in the index: pages of encoded identifiers for a query, and the instances for a retrieval.

A search first fetches the ids of all matches, eight bytes each; then it reads and encodes one page at a time. So no
transaction stays open while a slow peer takes the answers, and memory does not grow with their content. Matches that are
removed meanwhile are left out.

A long search takes turns: each is a transaction of its own, and goes on behind the last entity that was tested. So it holds no
thread and no connection while others have their turn.

Handlers call :class:`Finder`, which works in threads; :class:`Search` and :class:`AnswerReader` block.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Final, Generic, TypeVar

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import ColumnElement, Connection, Engine, Select, bindparam, func, select, text
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.attributes import Attribute, Level
from dicomtwist.archive.index.reading import TurnOver, fetch_all, reading
from dicomtwist.archive.index.schema import TABLES, instance, series, study
from dicomtwist.archive.query.compiler import (
    BASELINE,
    Model,
    Negotiated,
    Predicate,
    Query,
    compile_find,
    compile_retrieve,
)
from dicomtwist.archive.query.response_encoder import AnswerEncoder, Field
from dicomtwist.archive.query.statements import (
    INSTANCE,
    ORDER,
    joined_to,
    listed,
    retrieval,
    retrieval_of_one,
    rows_of,
    unique_column,
)
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.types import IndexFailed
from dicomtwist.datasets.codec import decode_dataset
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import TURN, Executor, Share, is_turn_over, run_in_turns
from dicomtwist.runtime.work import check_wanted

__all__ = ["Finder", "Found", "StoredInstance"]

#: The number of answers that are read, encoded and handed over at once.
PAGE_SIZE: Final = 500
#: The number of answers to a C-FIND in the first page. Each page is twice as long as the one before, up to ``PAGE_SIZE``, so
#: that the peer has answers to work on while the next page is read: it needs some 30 microseconds for an answer, a page 10.
FIRST_PAGE_SIZE: Final = 64
#: The maximum number of answers to one query; each takes 8 bytes of memory.
MAX_MATCHES: Final = 10_000_000

#: The number of rows that are tested before the search asks whether it is still wanted.
BATCH_SIZE: Final = 200
#: The number of ids that a statement covers at first, if a statement for all of them needs more than a turn to find one match.
FIRST_WINDOW: Final = 1024
#: The number of distinct values whose test is remembered while one query is performed.
MAX_TESTED: Final = 50_000

#: Above every id, which are 64 bits wide.
_HIGHEST_ID: Final = 2**62

#: An identifier of the level STUDY in Implicit VR, with a UID that no study has, and three keys without a value.
_NOTHING: Final = (
    b"\x08\0\x20\0\0\0\0\0\x08\0\x52\0\6\0\0\0STUDY \x10\0\x10\0\0\0\0\0\x10\0\x20\0\0\0\0\0\x20\0\x0d\0\4\0\0\x000.0\0"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """
    An instance that is to be sent: a path (``os.PathLike``) together with the UIDs of the instance, so that the UID can be
    reported even if the file is missing.

    :ivar path: its file.
    :ivar size: the size of the file in bytes.
    """

    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    size: int

    def __fspath__(self) -> str:
        return self.path


class TooManyMatches(IndexFailed):
    """More entities match than the maximum number of answers to one query."""


class Found(Generic[T]):
    """
    The matches of a query: ``async for page in found.pages()``, each page a list.

    :param executor: the threads that read the index, as the peer may use them.
    :param numbers: the ids of the entities that match.
    :param read: returns the page of some of them; called in a thread.
    :param first: the page of the first ids, if the search has read it already.
    :param covered: the number of ids that *first* is for.

    :ivar total: the number of entities that match.
    :ivar unsupported: tags of keys that were not matched; if there are any, the pending status is 0xFF01.
    """

    def __init__(
        self,
        executor: Share,
        numbers: array[int],
        read: Callable[[Sequence[int]], list[T]],
        unsupported: Sequence[int] = (),
        first: list[T] | None = None,
        covered: int = 0,
    ) -> None:
        self.total = len(numbers)
        self.unsupported = tuple(unsupported)
        self._executor = executor
        self._numbers = numbers
        self._read = read
        self._first = first or []
        self._covered = covered

    async def pages(self, size: int = PAGE_SIZE) -> AsyncIterator[list[T]]:
        """
        Yield the answers in lists of up to *size*; each page is read only when the caller takes it.

        :raises IndexFailed: the database cannot be read.
        """
        first, self._first = self._first, []
        covered, self._covered = self._covered, 0
        step = min(size, 2 * covered or size)
        for start in range(0, len(first), size):
            yield first[start : start + size]
        first.clear()
        while covered < self.total:
            page = self._numbers[covered : covered + step]
            covered, step = covered + step, min(size, 2 * step)
            yield await self._executor.run_admitted(self._read, page)


class Finder:
    """
    Searches the index of an archive, in worker threads.

    :param archive: the archive, open.
    :param executor: the threads that read the index; the caller holds it while the object is used.
    :param ae_title: Retrieve AE Title (0008,0054) of the answers.
    :param zone: the time zone of data without a Timezone Offset From UTC; by default that of this machine.
    """

    def __init__(self, archive: Archive, executor: Executor, ae_title: str, *, zone: tzinfo | None = None) -> None:
        self._archive = archive
        self._default_charset = archive.default_charset
        self._executor = executor
        self._ae_title = ae_title
        self._zone = zone

    def warm_up(self) -> Deferred[None]:
        """
        Perform a query and a retrieval in a thread that find nothing: the first query of a process then takes 2 ms less.

        :returns: a Deferred that fires with ``None``; it fails as those of :meth:`find` and :meth:`retrieve`.
        """
        return self._executor.run(self._warm_up)

    def _warm_up(self) -> None:
        share = self._executor.share("")
        for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
            for _ in self._find(
                share, decode_dataset(_NOTHING, ImplicitVRLittleEndian), Model.STUDY_ROOT, syntax, BASELINE
            ):
                pass
        self._retrieve(share, decode_dataset(_NOTHING, ImplicitVRLittleEndian), Model.STUDY_ROOT, BASELINE)

    def find(
        self,
        identifier: Dataset,
        model: Model,
        transfer_syntax: str,
        negotiated: Negotiated = BASELINE,
        *,
        peer: str = "",
    ) -> Deferred[Found[bytes]]:
        """
        Find the matches for the identifier of a C-FIND.

        :param transfer_syntax: the transfer syntax of the answers.
        :param peer: the host of the peer; its searches never take all threads.
        :returns: a Deferred that fires with encoded identifiers. It fails with
            :class:`~dicomtwist.archive.query.compiler.InvalidIdentifier`, which carries the status 0xA900, or with
            :class:`~dicomtwist.archive.index.index.IndexFailed`.
        """
        share = self._executor.share(peer)
        finding = self._find(share, identifier, model, transfer_syntax, negotiated)
        return Deferred.fromCoroutine(run_in_turns(share, finding))

    def retrieve(
        self, identifier: Dataset, model: Model, negotiated: Negotiated = BASELINE, *, peer: str = ""
    ) -> Deferred[Found[StoredInstance]]:
        """
        Find the instances that the identifier of a C-MOVE or C-GET names.

        :returns: a Deferred that fires with the instances, in the order of study, series and Instance Number; it fails as
            that of :meth:`find`.
        """
        share = self._executor.share(peer)
        return share.run(self._retrieve, share, identifier, model, negotiated)

    def _find(
        self, share: Share, identifier: Dataset, model: Model, transfer_syntax: str, negotiated: Negotiated
    ) -> Generator[None, None, Found[bytes]]:
        query = compile_find(identifier, model, negotiated, zone=self._zone, default_charset=self._default_charset)
        self._archive.add_rows()
        search = Search(self._archive.index.engine, query)
        reader = AnswerReader(search, self._ae_title, transfer_syntax)
        numbers = yield from search.in_turns()
        if is_turn_over():
            yield
        first = numbers[:FIRST_PAGE_SIZE]
        return Found(share, numbers, reader.read, query.unsupported, reader.read(first), len(first))

    def _retrieve(
        self, share: Share, identifier: Dataset, model: Model, negotiated: Negotiated
    ) -> Found[StoredInstance]:
        query = compile_retrieve(identifier, model, negotiated, default_charset=self._default_charset)
        self._archive.add_rows()
        search = Search(self._archive.index.engine, query)
        store = self._archive.store
        numbers, first = search.all_instances(store)
        if numbers is not None:
            self._archive.make_files()  # behind the search: all that it has found have files then
            return Found(share, numbers, lambda page: search.instances(store, page), (), first, len(first))
        numbers = search.numbers(levels={Level.STUDY, Level.SERIES}, order=ORDER)
        self._archive.make_files()
        return Found(share, numbers, lambda page: search.instances(store, page))


def _once(predicate: Predicate) -> Predicate:
    """Return *predicate*, which tests each distinct value once: rows of an entity below share those of the one above."""
    tested: dict[tuple[Any, ...], bool] = {}

    def test(row: Sequence[Any]) -> bool:
        key = tuple(row)
        found = tested.get(key)
        if found is None:
            found = predicate(row)
            if len(tested) < MAX_TESTED:
                tested[key] = found
        return found

    return test


class _Matching:
    """
    The test of the entities for a query.

    :param query: the query.
    :param levels: the levels whose tables are needed besides.

    :ivar id: the column with the id of an entity.
    :ivar statement: selects the entities that fulfil the criteria.
    :ivar numbers: the ids of the entities so far that match.
    """

    def __init__(self, query: Query, levels: set[Level]) -> None:
        self.id: ColumnElement[int] = TABLES[query.level].c.id
        columns: list[ColumnElement[Any]] = [self.id]
        self._predicates: list[tuple[slice, Predicate]] = []
        for wanted, predicate in query.residual:
            self._predicates.append((slice(len(columns), len(columns) + len(wanted)), _once(predicate)))
            columns += wanted
        joined = {*query.levels, *levels}
        if any(column.table is study for wanted, _ in query.residual for column in wanted if hasattr(column, "table")):
            joined.add(Level.STUDY)
        unique = [unique_column(level).in_(values) for level, values in query.unique.items()]
        self.statement = joined_to(select(*columns), query.level, joined).where(*query.criteria, *unique)
        self.numbers = array("q")

    def batches(self, connection: Connection, statement: Select[Any], **bounds: int) -> Generator[int, None, None]:
        """
        Test the rows of *statement*, and add those that match to *numbers*.

        :param bounds: the values of the parameters of *statement*.
        :returns: yields the id of the last row after each batch.
        :raises TooManyMatches: there are more than ``MAX_MATCHES``.
        :raises CancelledError: nobody waits for the result.
        """
        predicates, numbers = self._predicates, self.numbers
        if not predicates:
            statement = statement.limit(MAX_MATCHES + 1 - len(numbers))
        rows = connection.execution_options(yield_per=BATCH_SIZE).execute(statement, bounds)
        for some in rows.partitions():
            check_wanted()
            end = some[-1][0]
            if predicates:
                some = [row for row in some if all(predicate(row[part]) for part, predicate in predicates)]
            numbers.extend([row[0] for row in some])
            if len(numbers) > MAX_MATCHES:
                raise TooManyMatches(f"more than {MAX_MATCHES} match")
            yield end


class Search:
    """
    A compiled query and the database that it reads.

    :param engine: the database of the index.
    :param query: the query.
    """

    def __init__(self, engine: Engine, query: Query) -> None:
        self.engine = engine
        self.query = query

    def numbers(self, *, levels: set[Level] | None = None, order: Sequence[ColumnElement[Any]] = ()) -> array[int]:
        """
        Return the ids of all entities that match.

        :param levels: the levels whose tables *order* needs.
        :raises IndexFailed: the database cannot be read.
        :raises TooManyMatches: there are more than ``MAX_MATCHES``.
        :raises CancelledError: the peer has cancelled the request, or its association has ended.
        """
        matching = _Matching(self.query, levels or set())
        statement = matching.statement.order_by(*(order or (matching.id,)))
        with reading(self.engine) as connection:
            for _ in matching.batches(connection, statement):
                pass
        return matching.numbers

    def in_turns(self) -> Generator[None, None, array[int]]:
        """
        Return the ids of all entities that match, in their order, as :meth:`numbers` does; yield when the turn is over.

        An entity that is added meanwhile may be found.
        """
        matching = _Matching(self.query, set())
        above, up_to = matching.id > bindparam("above"), matching.id <= bindparam("up_to")
        statement = matching.statement.where(above, up_to).order_by(matching.id)
        # The ids up to this one are tested; the range of ids of the next statement, 0 for all others.
        tested = window = 0
        compiled: dict[Any, Any] = {}
        while True:
            begun_at, begun, end = tested, time.monotonic(), _HIGHEST_ID
            try:
                # A turn is as long as it takes if it is for a single entity.
                with reading(self.engine, in_turns=window != 1, cached=self.query.is_short) as connection:
                    if window:
                        first = connection.scalar(select(func.min(matching.id)).where(matching.id > tested))
                        if first is None:
                            return matching.numbers
                        end = first + window - 1
                        connection.execution_options(compiled_cache=compiled)
                    for at in matching.batches(connection, statement, above=tested, up_to=end):
                        tested = at
                        if is_turn_over():
                            break
                    else:
                        if not window:
                            return matching.numbers
                        tested = end
                        if time.monotonic() - begun < TURN / 3 and not is_turn_over():
                            window *= 2
                            continue  # a longer one would hardly end within this turn
            except TurnOver:
                if tested == begun_at:
                    window = max(1, window // 2) if window else FIRST_WINDOW
            yield

    def rows(self, columns: Sequence[ColumnElement[Any]], levels: set[Level], page: Sequence[int]) -> list[Any]:
        """Return a row for each entity of *page*, in that order: its id, then the values of *columns*."""
        statement = rows_of(self.engine.dialect, self.query.level, tuple(columns), frozenset(levels))
        with reading(self.engine) as connection:
            found = {row[0]: row for row in connection.exec_driver_sql(statement + listed(page)).all()}
        return [found[number] for number in page if number in found]

    def all_instances(self, store: Storage) -> tuple[array[int] | None, list[StoredInstance]]:
        """
        Return the ids and the instances of a retrieval in one step, if they fit into a page; else ``None`` and an empty list.

        The statement is fixed and compiled once: for a study of three images the two steps took 2 ms more.
        """
        unique = self.query.unique
        values: dict[str, Any] = {level.name: values for level, values in unique.items()}
        values["most"] = PAGE_SIZE + 1
        rows: Sequence[Sequence[Any]]
        with reading(self.engine, cached=True) as connection:
            if all(len(some) == 1 for some in unique.values()):
                values.update((level.name, only) for level, (only,) in unique.items())
                statement, names, given = retrieval_of_one(self.engine.dialect, frozenset(unique))
                values = {**given, **values}
                if names is None:
                    rows = connection.exec_driver_sql(statement, values).all()
                else:
                    rows = fetch_all(connection, statement, [values[name] for name in names])
            else:
                rows = connection.execute(retrieval(frozenset(unique)), values).all()
        if len(rows) > PAGE_SIZE:
            return None, []
        return array("q", [row[0] for row in rows]), _located(store, rows)

    def instances(self, store: Storage, page: Sequence[int]) -> list[StoredInstance]:
        """Return the instances of one page of a retrieval, with their paths in *store*."""
        return _located(store, self.rows(INSTANCE, {Level.STUDY, Level.SERIES}, page))


def _located(store: Storage, rows: Iterable[Sequence[Any]]) -> list[StoredInstance]:
    """Return the instances of *rows*: an id, then the values of :data:`INSTANCE`."""
    return [
        StoredInstance(store.locate(in_study, in_series, uid), sop_class, uid, syntax, size)
        for _, in_study, in_series, uid, sop_class, syntax, size in rows
    ]


class AnswerReader:
    """
    Reads and encodes pages of answers to a C-FIND.

    :param search: the query.
    :param ae_title: Retrieve AE Title (0008,0054).
    :param transfer_syntax: the transfer syntax of the answers.
    """

    log = Logger()

    def __init__(self, search: Search, ae_title: str, transfer_syntax: str) -> None:
        self._search = search
        self._has_failed = False
        query = search.query
        self._computed = [key for key in query.keys if key.is_computed]
        stored = [key for key in query.keys if not key.is_computed]
        self._levels = {key.level for key in query.keys} | {query.level}
        self._columns: list[ColumnElement[Any]] = []
        fields = [Field(key, self._add(key.level, key.column), query.sequences.get(key.tag)) for key in stored]
        # A row of the patient level has no id of a study, and no computed key of that level needs one.
        self._numbers = [self._add(key.level, "id") for key in self._computed]
        sets = {
            level: self._add(level, "character_set") for level in sorted({key.level for key in stored} | {query.level})
        }
        end = len(self._columns) + 1
        fields += [Field(key, end + at) for at, key in enumerate(self._computed)]
        self._encoder = AnswerEncoder(fields, sets, query.level, ae_title, transfer_syntax)

    def _add(self, level: Level, name: str) -> int:
        self._columns.append(TABLES[level].c[name])
        return len(self._columns)  # position 0 of a row is the id of the entity

    def read(self, page: Sequence[int]) -> list[bytes]:
        """
        Return the answers for the entities *page*.

        :raises IndexFailed: the database cannot be read.
        """
        rows = self._search.rows(self._columns, self._levels, page)
        if not self._computed:
            return self._encoded(rows)
        values = [
            self._compute(key, {row[at] for row in rows}) for key, at in zip(self._computed, self._numbers, strict=True)
        ]
        return self._encoded(
            (*row, *(found.get(row[at], empty) for (found, empty), at in zip(values, self._numbers, strict=True)))
            for row in rows
        )

    def _encoded(self, rows: Iterable[Sequence[Any]]) -> list[bytes]:
        answers: list[bytes] = []
        failures: list[str] = []
        for row in rows:
            check_wanted()
            try:
                answers.append(self._encoder.encode(row))
            except Exception as error:
                # The other rows are answered.
                failures.append(loggable(error))
        if failures and not self._has_failed:
            # One line for a query, however many rows it has.
            self._has_failed = True
            self.log.error(
                "{count} of {total} answers were left out, since they cannot be encoded, the first: {reason}; further ones to"
                " this query are not logged",
                count=len(failures),
                total=len(answers) + len(failures),
                reason=failures[0],
            )
        return answers

    def _compute(self, key: Attribute, numbers: set[int]) -> tuple[dict[int, str], str]:
        """Return the value of *key* for each entity, and its value for an entity that has nothing below it."""
        statement, entity, is_count = _COMPUTE[key.keyword]
        with reading(self._search.engine) as connection:
            rows = connection.execute(_of(statement(), entity, sorted(numbers))).all()
        if is_count:
            return {number: str(count) for number, count in rows}, "0"
        collected: dict[int, list[str]] = {}
        for number, value in rows:
            if value:
                collected.setdefault(number, []).append(value)
        return {number: "\\".join(sorted(values)) for number, values in collected.items()}, ""


def _counted(entity: ColumnElement[Any], table: Any, *joins: tuple[Any, ColumnElement[bool]]) -> Any:
    def statement() -> Select[Any]:
        return _with(select(entity, func.count()).select_from(table), joins).group_by(entity)

    return statement, entity, True


def _collected(
    entity: ColumnElement[Any], value: ColumnElement[Any], table: Any, *joins: tuple[Any, ColumnElement[bool]]
) -> Any:
    def statement() -> Select[Any]:
        return _with(select(entity, value).select_from(table), joins).group_by(entity, value)

    return statement, entity, False


def _with(statement: Select[Any], joins: Sequence[tuple[Any, ColumnElement[bool]]]) -> Select[Any]:
    for table, condition in joins:
        statement = statement.join(table, condition)
    return statement


_SERIES_OF_INSTANCE: Final = (series, instance.c.parent == series.c.id)
_STUDY_OF_SERIES: Final = (study, series.c.parent == study.c.id)
_COMPUTE: Final[dict[str, Any]] = {
    "NumberOfPatientRelatedStudies": _counted(study.c.parent, study),
    "NumberOfPatientRelatedSeries": _counted(study.c.parent, series, _STUDY_OF_SERIES),
    "NumberOfPatientRelatedInstances": _counted(study.c.parent, instance, _SERIES_OF_INSTANCE, _STUDY_OF_SERIES),
    "NumberOfStudyRelatedSeries": _counted(series.c.parent, series),
    "NumberOfStudyRelatedInstances": _counted(series.c.parent, instance, _SERIES_OF_INSTANCE),
    "NumberOfSeriesRelatedInstances": _counted(instance.c.parent, instance),
    "ModalitiesInStudy": _collected(series.c.parent, series.c.modality, series),
    "SOPClassesInStudy": _collected(series.c.parent, instance.c.sop_class_uid, instance, _SERIES_OF_INSTANCE),
    "AvailableTransferSyntaxUID": _collected(instance.c.id, instance.c.transfer_syntax, instance),
}


def _of(statement: Select[Any], column: ColumnElement[Any], numbers: Sequence[int]) -> Select[Any]:
    """
    Select only the rows whose *column* is one of *numbers*.

    The numbers are part of the SQL text, which is much faster than hundreds of parameters.
    """
    table: Any = getattr(column, "table", None)
    return statement.where(text(f"{table.name}.{getattr(column, 'name', '')} IN {listed(numbers)}"))

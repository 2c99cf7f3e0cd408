"""
The reader of answers: pages of rows of the index, with the values that a query computes, become encoded answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from sqlalchemy import ColumnElement, Engine, Select, func, select, text
from twisted.logger import Logger

from dicomtwist.archive.index.attributes import Attribute, Level
from dicomtwist.archive.index.reading import reading
from dicomtwist.archive.index.schema import TABLES, instance, series, study
from dicomtwist.archive.query.compiler import Query
from dicomtwist.archive.query.response_encoder import AnswerEncoder, Field
from dicomtwist.archive.query.statements import listed
from dicomtwist.errors import loggable
from dicomtwist.runtime.work import check_wanted

__all__ = ["AnswerReader", "MakeEncoder", "RowEncoder", "Rows", "identifiers"]


#: The number of computed values of each key that are kept for the next pages.
MAX_KNOWN: Final = 1024


class Rows(Protocol):
    """A compiled query and its rows, as :class:`~dicomtwist.archive.query.search.Search` has them."""

    @property
    def engine(self) -> Engine:
        """The database of the index."""

    @property
    def query(self) -> Query:
        """The query."""

    def rows(self, columns: Sequence[ColumnElement[Any]], levels: set[Level], page: Sequence[int], /) -> list[Any]:
        """Return a row for each entity of *page*, in that order: its id, then the values of *columns*."""


class RowEncoder(Protocol):
    """The encoder of the answers to one query."""

    def encode(self, row: Sequence[Any], /) -> bytes:
        """Return the answer for a row."""


#: Makes the encoder of a query: its fields, where in a row the Specific Character Set of each level is, and the level of the
#: answers.
MakeEncoder: TypeAlias = Callable[[Sequence[Field], Mapping[Level, int], Level], RowEncoder]


def identifiers(ae_title: str, transfer_syntax: str) -> MakeEncoder:
    """
    Return the maker of the encoder for answers to a C-FIND.

    :param ae_title: Retrieve AE Title (0008,0054).
    :param transfer_syntax: the transfer syntax of the answers.
    """

    def make(fields: Sequence[Field], character_sets: Mapping[Level, int], level: Level) -> RowEncoder:
        return AnswerEncoder(fields, character_sets, level, ae_title, transfer_syntax)

    return make


class AnswerReader:
    """
    Reads and encodes pages of answers to a query.

    :param search: the query.
    :param make_encoder: makes the encoder of the answers.
    """

    log = Logger()

    def __init__(self, search: Rows, make_encoder: MakeEncoder) -> None:
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
        self._known: list[dict[int, str]] = [{} for _ in self._computed]
        sets = {
            level: self._add(level, "character_set") for level in sorted({key.level for key in stored} | {query.level})
        }
        end = len(self._columns) + 1
        fields += [Field(key, end + at) for at, key in enumerate(self._computed)]
        self._encoder = make_encoder(fields, sets, query.level)

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
            self._values(key, {row[at] for row in rows}, known)
            for key, at, known in zip(self._computed, self._numbers, self._known, strict=True)
        ]
        return self._encoded(
            (*row, *(found[row[at]] for found, at in zip(values, self._numbers, strict=True))) for row in rows
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

    def _values(self, key: Attribute, numbers: set[int], known: dict[int, str]) -> dict[int, str]:
        """
        Return the value of *key* for each entity.

        To count the instances of a large study takes longer than to read a page. An entity above the answers has the value
        that it had for an earlier page.

        :param known: the values of earlier pages.
        """
        missing = numbers - known.keys()
        if len(known) + len(missing) > MAX_KNOWN:
            known.clear()
            missing = numbers
        if missing:
            found, empty = self._compute(key, missing)
            known.update((number, found.get(number, empty)) for number in missing)
        return known

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

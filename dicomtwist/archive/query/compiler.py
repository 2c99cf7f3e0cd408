"""
The compiler of queries: identifiers become SQL, by the matching of PS3.4 C.2.2.2 and the information models of PS3.4 C.6.

An identifier becomes criteria in SQL. If SQL cannot express a key completely, its criteria find a little too much, and a
predicate on each row decides. The module does not access a database.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any, Final

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DataSets
from sqlalchemy import ColumnElement, and_, exists, false, or_, select

from dicomtwist.archive.index.attributes import BY_TAG, Attribute, Level
from dicomtwist.archive.index.normal_forms import any_of, check_key, has_wildcard, like_pattern
from dicomtwist.archive.index.record import integer_text
from dicomtwist.archive.index.schema import TABLES, instance, series, study
from dicomtwist.archive.query import person_names
from dicomtwist.archive.query.date_ranges import Moments, moments, paired_time, single_range
from dicomtwist.archive.query.sequences import sequence_predicate
from dicomtwist.datasets.character_sets import decode_texts, decode_values
from dicomtwist.dimse.status import DATASET_MISMATCH

__all__ = ["BASELINE", "InvalidIdentifier", "Model", "Negotiated", "Query", "compile_find", "compile_retrieve"]

#: The maximum number of values of all keys together, such as those of a list of UIDs; the limits of databases are not far
#: above.
MAX_VALUES: Final = 10_000

#: The most characters of the values of a query whose compiled statement is kept.
MAX_SHORT: Final = 1000

_LEVEL: Final = 0x00080052
_TIMEZONE: Final = 0x00080201
#: The elements of an identifier or of an answer that are not keys.
_NO_KEYS: Final = frozenset((0x00080005, _LEVEL, 0x00080053, 0x00080054, 0x00080056))
_EMPTY: Final = '""'


class Model(enum.Enum):
    """An information model, defined by its levels."""

    PATIENT_ROOT = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE)
    STUDY_ROOT = (Level.STUDY, Level.SERIES, Level.IMAGE)
    PATIENT_STUDY_ONLY = (Level.PATIENT, Level.STUDY)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """
    The options that extended negotiation has enabled (PS3.4 C.5.1.1); each is off by default.

    :ivar relational: keys of any level above are allowed, and the unique keys of these levels are not required.
    :ivar date_time: a date and its time are matched as one moment.
    :ivar fuzzy: names that sound alike match.
    :ivar timezone: times are in the identifier's Timezone Offset From UTC (0008,0201).
    :ivar empty_values: a key of two quotation marks matches an empty value.
    """

    relational: bool = False
    date_time: bool = False
    fuzzy: bool = False
    timezone: bool = False
    empty_values: bool = False

    @classmethod
    def from_bytes(cls, information: bytes) -> Negotiated:
        """Return the options in a Service-class-application-information field (PS3.4 tables C.5-1 and C.5-3)."""
        on = [byte == 1 for byte in information[:6]] + [False] * 6
        return cls(on[0], on[1], on[2], on[3], on[5])


#: No option enabled.
BASELINE: Final = Negotiated()


class InvalidIdentifier(ValueError):
    """
    An identifier that cannot be answered.

    :ivar status: 0xA900, for the response.
    :ivar comment: an Error Comment (0000,0902), at most 64 characters.
    """

    def __init__(self, comment: str) -> None:
        super().__init__(comment)
        self.status = DATASET_MISMATCH
        self.comment = comment if len(comment) <= 64 else f"{comment[:61]}..."


#: A function that decides whether a row matches, by the values of the predicate's columns.
Predicate = Callable[[Sequence[Any]], bool]


@dataclass(slots=True)
class Query:
    """
    A compiled query.

    :ivar level: the level of the answers.
    :ivar criteria: the SQL criteria, all of which a match fulfils.
    :ivar residual: columns, each group with a predicate on their values that a match fulfils as well.
    :ivar keys: the attributes of an answer, in the order of their tags.
    :ivar sequences: the keys within each sequence of the identifier, by tag.
    :ivar unsupported: tags of keys that are neither matched nor returned; if there are any, the pending status is 0xFF01.
    :ivar levels: the levels whose tables the criteria need.
    :ivar is_short: whether the values of all keys are short together; the compiled statement is kept then, with them in it.
    :ivar unique: for a retrieval, the values of the unique keys, by level; the criteria are without them.
    """

    level: Level
    criteria: list[ColumnElement[bool]] = field(default_factory=list)
    residual: list[tuple[tuple[ColumnElement[Any], ...], Predicate]] = field(default_factory=list)
    keys: list[Attribute] = field(default_factory=list)
    sequences: dict[int, Dataset] = field(default_factory=dict)
    unsupported: list[int] = field(default_factory=list)
    levels: set[Level] = field(default_factory=set)
    unique: dict[Level, list[str]] = field(default_factory=dict)
    is_short: bool = False


@dataclass(slots=True)
class _Key:
    """A key of an identifier with its values; no value means universal matching."""

    attribute: Attribute
    values: list[str]

    @property
    def column(self) -> ColumnElement[Any]:
        return TABLES[self.attribute.level].c[self.attribute.column]

    @property
    def compared(self) -> ColumnElement[Any]:
        """The column that is compared: the one with the normal form, if there is one."""
        return TABLES[self.attribute.level].c[self.attribute.key_column or self.attribute.column]


def compile_find(
    identifier: Dataset,
    model: Model,
    negotiated: Negotiated = BASELINE,
    *,
    zone: tzinfo | None = None,
    default_charset: str = "",
) -> Query:
    """
    Compile the identifier of a C-FIND.

    :param zone: the time zone of data without a Timezone Offset From UTC; by default that of this machine.
    :param default_charset: the character set of text without one, see :class:`dicomtwist.archive.archive.Archive`.
    :raises InvalidIdentifier: it does not fit *model*, or a value is invalid.
    """
    _decode(identifier, default_charset)
    level = _level(identifier, model)
    query = Query(level)
    keys: dict[int, _Key] = {}
    for tag in sorted(int(tag) for tag in identifier.keys()):  # noqa: SIM118
        attribute = BY_TAG.get(tag)
        if tag in _NO_KEYS or tag & 0xFFFF == 0:
            continue
        if attribute is None or attribute.level > level:
            if not (tag == _TIMEZONE and negotiated.timezone):
                query.unsupported.append(tag)
        elif attribute.vr == "SQ":
            query.keys.append(attribute)
            _add_sequence(query, attribute, identifier)
        else:
            query.keys.append(attribute)
            keys[tag] = _Key(attribute, _values(identifier, tag))
    _check_costs(keys.values())
    lengths = [len(value) for key in keys.values() for value in key.values]
    query.is_short = not query.sequences and sum(lengths) <= MAX_SHORT
    _check_unique(keys, model, level, relational=negotiated.relational)
    query.keys += [upper.unique for upper in model.value if upper <= level and upper.unique not in query.keys]
    query.keys.sort(key=lambda attribute: attribute.tag)
    source = _values(identifier, _TIMEZONE)[:1] if negotiated.timezone and _TIMEZONE in identifier else []
    keys.pop(_TIMEZONE, None) if negotiated.timezone else None
    _add_moments(query, keys, negotiated, source[0] if source else "", zone)
    for key in keys.values():
        _add_key(query, key, negotiated, zone)
    return query


def compile_retrieve(
    identifier: Dataset, model: Model, negotiated: Negotiated = BASELINE, *, default_charset: str = ""
) -> Query:
    """
    Compile the identifier of a C-MOVE or C-GET. The matches are instances, whatever its level.

    Only unique keys are used; that of the identifier's level may be a list (PS3.4 C.4.2.1.4). The level PATIENT of the Study
    Root model, which PS3.4 C.6.2.1 does not have, is that of the Patient Root model: Orthanc retrieves patients so.

    :raises InvalidIdentifier: it does not fit *model*, or a unique key is missing or has a wildcard.
    """
    _decode(identifier, default_charset)
    level = _level(identifier, Model.PATIENT_ROOT if model is Model.STUDY_ROOT else model)
    if level is Level.PATIENT:
        model = Model.PATIENT_ROOT
    query = Query(Level.IMAGE)
    keys = {}
    for upper in model.value:
        attribute = upper.unique
        values = _values(identifier, attribute.tag) if attribute.tag in identifier else []
        if upper <= level and values:
            keys[attribute.tag] = _Key(attribute, values)
    if level.unique.tag not in keys:
        raise InvalidIdentifier(f"{level.unique.keyword} is missing")
    _check_costs(keys.values())
    _check_unique(keys, model, level, relational=negotiated.relational)
    for key in keys.values():
        if key.attribute.vr == "UI":
            _check_uids(key)
        query.levels.add(key.attribute.level)
        query.unique[key.attribute.level] = key.values
    return query


def _decode(identifier: Dataset, default_charset: str) -> None:
    """
    Decode the texts of *identifier*, whatever its Specific Character Set is.

    :raises InvalidIdentifier: a sequence cannot be read.
    """
    try:
        decode_texts(identifier, default_charset)
    except Exception as error:
        # pydicom raises whatever a value makes it raise.
        raise InvalidIdentifier("a key cannot be read") from error


def _level(identifier: Dataset, model: Model) -> Level:
    values = _values(identifier, _LEVEL) if _LEVEL in identifier else []
    if len(values) != 1:
        raise InvalidIdentifier("Query/Retrieve Level is missing")
    try:
        level = Level[values[0].strip()]
    except KeyError:
        raise InvalidIdentifier(f"an invalid Query/Retrieve Level of {len(values[0])} characters") from None
    if level not in model.value:
        raise InvalidIdentifier(f"the information model has no level {level.name}")
    return level


def _values(identifier: Dataset, tag: int) -> list[str]:
    """Return the values of a key; an empty list if it is empty."""
    raw = identifier.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.value is not None:
        text = raw.value.rstrip(b"\0 ").decode("latin-1")
        vr = raw.VR or ("CS" if tag == _LEVEL else BY_TAG[tag].vr if tag in BY_TAG else "")
        if vr in ("CS", "UI") and text.isascii() and text.isprintable():
            # pydicom finds the same values in 50 times of the time.
            return _clean(text.split("\\"), tag)
    try:
        value = identifier[tag].value
    except Exception as error:
        # pydicom may raise anything, depending on the value.
        raise InvalidIdentifier(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) cannot be read") from error
    if value is None:
        return []
    if isinstance(value, DataSets):
        raise InvalidIdentifier(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is a sequence, and should not be")
    if isinstance(value, bytes) and tag in BY_TAG and BY_TAG[tag].vr == "UI":
        # In an explicit VR encoding a list of more than 64 KiB has the VR UN (PS3.5 6.2.2).
        value = value.decode("ascii", "replace").split("\\")
    return _clean([str(one) for one in value] if isinstance(value, (list, tuple, MultiValue)) else [str(value)], tag)


def _clean(found: list[str], tag: int) -> list[str]:
    """Return the values *found* of the key *tag* without padding; leave out empty ones."""
    if len(found) > MAX_VALUES:
        raise InvalidIdentifier(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has more than {MAX_VALUES} values")
    return [text for text in (one.strip(" \0") for one in found) if text]


def _check_costs(keys: Iterable[_Key]) -> None:
    """
    Check that the keys stay within the limits of databases, and that no key takes long to compare with a row.

    :raises InvalidIdentifier: a key has too many values, or too long a one.
    """
    total = 0
    for key in keys:
        try:
            check_key(key.attribute.vr, key.values, one_by_one=key.attribute.is_multiple)
        except ValueError as error:
            raise InvalidIdentifier(f"{key.attribute.keyword}: {error}") from None
        total += len(key.values)
    if total > MAX_VALUES:
        raise InvalidIdentifier(f"the keys have more than {MAX_VALUES} values")


def _check_unique(keys: dict[int, _Key], model: Model, level: Level, *, relational: bool) -> None:
    """
    Check that a hierarchical query names one entity of each level above (PS3.4 C.4.1.3.1.1).

    :raises InvalidIdentifier: a unique key of such a level is missing, or is not a single value.
    """
    for upper in model.value:
        attribute = upper.unique
        if upper >= level or relational:
            continue
        key = keys.get(attribute.tag)
        if key is None or not key.values:
            raise InvalidIdentifier(f"{attribute.keyword} is missing, a query for {level.name} needs it")
        if len(key.values) > 1 or has_wildcard(key.values[0]):
            raise InvalidIdentifier(f"{attribute.keyword} has to be a single value")


# --- keys


def _add_key(query: Query, key: _Key, negotiated: Negotiated, zone: tzinfo | None) -> None:
    attribute, values = key.attribute, key.values
    if not values or values == ["*"]:
        return
    if attribute.is_computed:
        criterion = _computed(attribute, values)
        if criterion is not None:
            query.criteria.append(criterion)
            query.levels.add(attribute.level)
        return
    query.levels.add(attribute.level)
    if negotiated.empty_values and values == [_EMPTY]:
        query.criteria.append(key.column == "")
    elif attribute.vr == "PN":
        _add_name(query, key, negotiated)
    elif attribute.vr in ("DA", "TM", "DT"):
        try:
            ranges = [single_range(attribute.vr, value, zone) for value in values]
        except ValueError as error:
            raise InvalidIdentifier(f"{attribute.keyword}: {error}") from error
        query.criteria.append(or_(*(_between(key.compared, first, last) for first, last in ranges)))
    elif attribute.vr == "UI":
        _check_uids(key)
        query.criteria.append(key.column.in_(key.values))
    elif attribute.vr == "DS":
        _add_number(query, key)
    else:
        _add_text(query, key)


def _check_uids(key: _Key) -> None:
    if any(has_wildcard(value) for value in key.values):
        raise InvalidIdentifier(f"{key.attribute.keyword}: a UID has no wildcards")


def _add_text(query: Query, key: _Key) -> None:
    column = key.column
    values = [integer_text(value) for value in key.values] if key.attribute.vr in ("IS", "US") else key.values
    if not key.attribute.is_multiple:
        query.criteria.append(_any(column, values))
        return
    criteria = []
    for value in values:
        pattern = f"*\\{value}\\*" if not has_wildcard(value) else f"*{value}*"
        criteria.append(("\\" + column + "\\").like(like_pattern(pattern), escape="\\"))
    query.criteria.append(or_(*criteria))
    if any(map(has_wildcard, values)):
        test = any_of(values)
        query.residual.append(((column,), lambda row: any(map(test, row[0].split("\\")))))


def _any(column: ColumnElement[Any], values: Sequence[str]) -> ColumnElement[bool]:
    """Return a criterion: the column equals one of *values*, or matches one with wildcards."""
    plain = [value for value in values if not has_wildcard(value)]
    criteria: list[ColumnElement[bool]] = [
        column.like(like_pattern(value), escape="\\") for value in values if has_wildcard(value)
    ]
    if plain:
        criteria.append(column == plain[0] if len(plain) == 1 else column.in_(plain))
    return or_(*criteria) if criteria else false()


def _add_number(query: Query, key: _Key) -> None:
    try:
        wanted = {float(value) for value in key.values}
    except ValueError:
        raise InvalidIdentifier(f"{key.attribute.keyword}: {key.values[0][:16]!r} is no number") from None

    def matches(row: Sequence[Any]) -> bool:
        for text in row[0].split("\\"):
            try:
                if float(text) in wanted:
                    return True
            except ValueError:
                pass
        return False

    query.criteria.append(key.column != "")
    query.residual.append(((key.column,), matches))


def _add_name(query: Query, key: _Key, negotiated: Negotiated) -> None:
    fuzzy = negotiated.fuzzy
    if key.attribute.keyword == "PatientName":
        columns = TABLES[Level.PATIENT].c
        groups = (columns.name_alphabetic, columns.name_ideographic, columns.name_phonetic)
        query.criteria.append(
            or_(*(person_names.criterion(value, groups, columns.name_sound if fuzzy else None) for value in key.values))
        )
        return
    predicate = person_names.predicate(key.values, fuzzy=fuzzy)
    query.criteria.append(key.column != "")
    if not fuzzy:
        query.criteria.append(or_(*(person_names.coarse(value, key.compared) for value in key.values)))
    query.residual.append(((key.column,), lambda row: predicate(row[0])))


def _computed(attribute: Attribute, values: list[str]) -> ColumnElement[bool] | None:
    """
    Return the criterion of a computed key, ``None`` if it has none.

    Keys that are collected from the levels below are matched. Counts are not matched, but returned all the same.
    """
    if attribute.keyword == "ModalitiesInStudy":
        below = select(series.c.id).where(series.c.parent == study.c.id, _any(series.c.modality, values))
        return exists(below.correlate(study))
    if attribute.keyword == "SOPClassesInStudy":
        within = (
            select(instance.c.id)
            .join(series, instance.c.parent == series.c.id)
            .where(series.c.parent == study.c.id, instance.c.sop_class_uid.in_(values))
        )
        return exists(within.correlate(study))
    if attribute.keyword == "AvailableTransferSyntaxUID":
        return instance.c.transfer_syntax.in_(values)
    return None


def _add_sequence(query: Query, attribute: Attribute, identifier: Dataset) -> None:
    try:
        items = list(identifier[attribute.tag].value or ())
        for item in items:
            decode_values(item)  # down to the last element: pydicom raises whatever a value makes it raise
    except Exception as error:
        raise InvalidIdentifier(f"{attribute.keyword} cannot be read") from error
    if len(items) > 1:
        raise InvalidIdentifier(f"{attribute.keyword} has more than one item")
    query.sequences[attribute.tag] = items[0] if items else Dataset()
    try:
        predicate = sequence_predicate(items[0]) if items else None
    except ValueError as error:
        raise InvalidIdentifier(f"{attribute.keyword}: {error}") from error
    if predicate is not None:
        matches = predicate
        column = TABLES[attribute.level].c[attribute.column]
        query.levels.add(attribute.level)
        query.criteria.append(column != "")
        query.residual.append(((column,), lambda row: matches(row[0])))


# --- dates with their times


def _add_moments(query: Query, keys: dict[int, _Key], negotiated: Negotiated, offset: str, zone: tzinfo | None) -> None:
    """Move the pairs of date and time that are matched as one moment from *keys* to *query* (PS3.4 C.2.2.2.5.2)."""
    for tag, key in [*keys.items()]:
        time_tag = paired_time(tag)
        if time_tag is None or len(key.values) != 1:
            continue
        time = keys.get(time_tag)
        combined = negotiated.date_time and time is not None and len(time.values) == 1
        if not (combined or offset):
            continue
        try:
            wanted = moments(key.values[0], time.values[0] if combined and time else "", offset, zone)
        except ValueError as error:
            raise InvalidIdentifier(f"{key.attribute.keyword}: {error}") from error
        del keys[tag]
        if combined:
            del keys[time_tag]
        time_attribute = BY_TAG[time_tag]
        table = TABLES[key.attribute.level]
        _add_moment(query, key, table.c[time_attribute.key_column or ""], wanted)


def _add_moment(query: Query, key: _Key, time: ColumnElement[Any], wanted: Moments) -> None:
    query.levels.update((key.attribute.level, Level.STUDY) if wanted.is_shifted else (key.attribute.level,))
    date = key.column
    if wanted.is_shifted and query.level >= Level.STUDY:
        query.criteria.append(_between(date, *wanted.days))
        query.residual.append(((date, time, study.c.timezone_offset_from_utc), wanted.contains))
        return
    after = or_(date > wanted.first[0], and_(date == wanted.first[0], time >= wanted.first[1]))
    before = or_(date < wanted.last[0], and_(date == wanted.last[0], time <= wanted.last[1]))
    query.criteria += [_between(date, wanted.first[0], wanted.last[0]), after, before]


def _between(column: ColumnElement[Any], first: str, last: str) -> ColumnElement[bool]:
    # BETWEEN of PostgreSQL does not accept a bound with a collation.
    return and_(column >= first, column <= last)

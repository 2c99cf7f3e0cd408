"""
Attributes that disagree: what a new instance says of its patient, study or series, and what the index has of them.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from dicomtwist.archive.index.attributes import Level, at_level
from dicomtwist.archive.index.record import COLUMNS, NAME_COLUMNS, Row, Sender

__all__ = ["Conflicts", "Precedence", "StoringTimes"]

#: How many disagreements are remembered, so that each has one line in the log.
MAX_REMEMBERED: Final = 4096


class Precedence(enum.Enum):
    """The values that the index keeps if those of an instance disagree with those in the index."""

    LAST = "last"
    """The values of the latest instance, if its sender may replace instances."""
    FIRST = "first"
    """The values that are in the index already."""

    def __str__(self) -> str:
        return str(self.value)


class StoringTimes:
    """
    The times of the files whose values the entities of one level have, while files are indexed again.

    :param size: the number of entities whose times are remembered. An entity that is forgotten keeps its values.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._times: OrderedDict[object, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def note(self, key: object, time: float) -> None:
        """Note the time of the file from which an entity has its values."""
        self._times[key] = time
        self._times.move_to_end(key)
        if len(self._times) > self._size:
            self._times.popitem(last=False)

    def note_equal(self, key: object, time: float) -> None:
        """Note the time of another file with the values that an entity has."""
        known = self._times.get(key)
        if known is not None:
            self.note(key, min(known, time))

    def settled(self, level: Level, key: object, known: Row, new: Row, time: float) -> Row:
        """Return the row of an entity that is known already: with the values of the file that was stored first."""
        noted = self._times.get(key)
        if noted is None or time >= noted:
            return _supplemented(level, known, new)
        self.note(key, time)
        return _supplemented(level, new, known)

    def clear(self) -> None:
        """Forget all times."""
        self._times.clear()


class Conflicts:
    """
    Decides which values apply, and notes the disagreements until the transaction is committed.

    :param precedence: the values that apply.
    """

    def __init__(self, precedence: Precedence = Precedence.LAST) -> None:
        self.precedence = precedence
        self._noted: list[tuple[Sender, object, dict[str, object]]] = []
        self._logged: OrderedDict[object, None] = OrderedDict()

    def settled(self, level: Level, key: str, known: Row, new: Row, sender: Sender | None, instance: str) -> Row:
        """
        Return the row of a patient, study or series that is known already.

        :param key: the UID or identifier of the entity.
        :param known: the row that the index has.
        :param new: the row that the instance makes; it differs.
        :param sender: the sender of the instance, ``None`` for a file of the archive.
        :param instance: the name of the instance, for the log.
        """
        last = self.precedence is Precedence.LAST and (sender is None or sender.may_replace)
        if sender is not None and level is not Level.SERIES:
            differing = [
                name for name, columns in _ATTRIBUTES[level] if known[columns[0]] and _differs(known, new, columns[0])
            ]
            if differing:
                self._note(sender, (level, key, *differing), differing, level, instance, "new" if last else "earlier")
        return new if last else _supplemented(level, known, new)

    def other_patient(self, study_uid: str, sender: Sender | None, instance: str) -> None:
        """Note that a study is in the index of another patient already; they are kept apart."""
        if sender is not None:
            self._note(sender, ("patient of", study_uid), ["PatientID"], Level.STUDY, instance, "")

    def commit(self) -> None:
        """Log what was noted."""
        noted, self._noted = self._noted, []
        for sender, _, fields in noted:
            sender.log_conflict(
                "instance {instance} disagrees with the {entity} in the index about {attributes}: {outcome}", **fields
            )

    def roll_back(self) -> None:
        """Forget what was noted: the transaction failed, and another one will note it again."""
        for _, which, _ in self._noted:
            self._logged.pop(which, None)
        self._noted.clear()

    def _note(
        self, sender: Sender, which: object, differing: Sequence[str], level: Level, instance: str, applying: str
    ) -> None:
        if which in self._logged:
            self._logged.move_to_end(which)
            return
        self._logged[which] = None
        if len(self._logged) > MAX_REMEMBERED:
            self._logged.popitem(last=False)
        fields: dict[str, object] = {
            "attributes": ", ".join(differing),
            "instance": instance,
            "entity": level.name.lower(),
            "outcome": f"the {applying} values apply" if applying else "the study is kept for both patients",
        }
        self._noted.append((sender, which, fields))


def _attributes(level: Level) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the attributes of *level*, each with the positions of the columns that follow from it, its own first."""
    positions = {name: at for at, name in enumerate(COLUMNS[level])}
    found = []
    for attribute in at_level(level):
        columns = [positions[attribute.column]]
        if attribute.key_column:
            columns.append(positions[attribute.key_column])
        if attribute.keyword == "PatientName":
            columns += [positions[name] for name in NAME_COLUMNS]
        found.append((attribute.keyword, tuple(columns)))
    return tuple(found)


_ATTRIBUTES: Final = {level: _attributes(level) for level in (Level.PATIENT, Level.STUDY, Level.SERIES)}
_CHARACTER_SET: Final = 0  # the first column of each level


def _differs(known: Row, new: Row, column: int) -> bool:
    # An attribute that an instance does not have contradicts nothing.
    return bool(new[column]) and known[column] != new[column]


def _supplemented(level: Level, known: Row, new: Row) -> Row:
    """Return *known*, with the attributes of *new* that it does not have."""
    row = list(known)
    for _, columns in _ATTRIBUTES[level]:
        if not known[columns[0]] and new[columns[0]]:
            for column in columns:
                row[column] = new[column]
    row[_CHARACTER_SET] = known[_CHARACTER_SET] or new[_CHARACTER_SET]
    return tuple(row)

"""
An archive at a glance, and lists of its studies, for operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import func, select

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.reading import count_entities, reading
from dicomtwist.archive.index.schema import instance, patient, series, study

__all__ = ["MAX_STUDIES", "StudyChoice", "overview", "studies", "text_time"]

#: The most studies of one list.
MAX_STUDIES: Final = 1000


class StudyChoice(NamedTuple):
    """
    The studies of a list.

    :ivar uids: their Study Instance UIDs; empty for all.
    :ivar patient_id: the Patient ID, empty for any.
    :ivar is_locked: whether only locked studies are listed.
    :ivar offset: the number of studies that are left out at the beginning.
    :ivar limit: the most studies.
    """

    uids: Sequence[str] = ()
    patient_id: str = ""
    is_locked: bool = False
    offset: int = 0
    limit: int = 100


def text_time(seconds: float) -> str | None:
    """Return a time in seconds since 1970 as text (ISO 8601, UTC), ``None`` for 0 and what is no time of a calendar."""
    try:
        then = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return then.isoformat(timespec="seconds").replace("+00:00", "Z") if seconds else None


def overview(archive: Archive) -> dict[str, Any]:
    """
    Return what an archive holds, as JSON can have it. It blocks.

    :raises IndexFailed: the database cannot be read.
    :raises OSError: the file system does not say how much is free.
    """
    archive.add_rows()
    folder, free = archive.store.room()
    return {
        "folder": folder,
        "free": free,
        **count_entities(archive.index.engine),
        "size": archive.study_times.total(archive.index),
        "unindexed": archive.unindexed,
        "locked": len(archive.holds.all()),
        "unpurged": len(archive.store.removed.left()),
        "lacks_room": archive.lacks_room or None,
    }


def studies(archive: Archive, choice: StudyChoice) -> list[dict[str, Any]]:
    """
    List studies, as JSON can have them, in the order of their UIDs. It blocks.

    :raises IndexFailed: the database cannot be read.
    :raises OSError: the locks cannot be listed.
    """
    archive.add_rows()
    holds = archive.holds.all()
    statement = (
        select(
            study.c.study_instance_uid,
            *(func.min(one) for one in (study.c.study_date, study.c.study_description, study.c.accession_number)),
            *(func.min(one) for one in (patient.c.patient_id, patient.c.patient_name)),
            func.count(series.c.id.distinct()),
            func.count(instance.c.id),
        )
        .join(patient, study.c.parent == patient.c.id)
        .join(series, series.c.parent == study.c.id)
        .join(instance, instance.c.parent == series.c.id)
        .group_by(study.c.study_instance_uid)
        .order_by(study.c.study_instance_uid)
        .offset(choice.offset)
        .limit(min(choice.limit, MAX_STUDIES))
    )
    if choice.uids:
        statement = statement.where(study.c.study_instance_uid.in_(choice.uids))
    if choice.patient_id:
        statement = statement.where(patient.c.patient_id == choice.patient_id)
    if choice.is_locked:
        statement = statement.where(study.c.study_instance_uid.in_([*holds]))
    with reading(archive.index.engine) as connection:
        rows = connection.execute(statement).all()
    times = archive.study_times
    if not archive.index.is_reading:
        times.write(archive.index)
    facts = times.facts(archive.index, [row[0] for row in rows])
    unknown = [uid for uid, one in facts.items() if not one.received]
    if unknown and not archive.index.is_reading:
        archive.make_files()
        received = {uid: archive.store.received(uid) for uid in unknown}
        times.note_times(archive.index, received.items())
        facts |= times.facts(archive.index, unknown)
    return [_study(row, facts[row[0]], holds) for row in rows]


def _study(row: Sequence[Any], facts: Any, holds: Mapping[str, Any]) -> dict[str, Any]:
    uid, date, description, accession, patient_id, name, series_count, count = row
    hold = holds.get(uid)
    return {
        "study": uid,
        "patient_id": patient_id,
        "patient_name": name,
        "date": date,
        "description": description,
        "accession_number": accession,
        "modalities": list(facts.modalities),
        "series": series_count,
        "instances": count,
        "size": facts.size,
        "received": text_time(facts.received),
        "accessed": text_time(facts.accessed),
        "calling": facts.calling or None,
        "lock": None if hold is None else {"reason": hold.reason, "by": hold.by, "since": text_time(hold.since)},
    }

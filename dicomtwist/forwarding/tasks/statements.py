"""
The statements of the store of tasks, which are compiled once.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import and_, bindparam, case, delete, exists, or_, select, update

from dicomtwist.forwarding.tasks.schema import (
    DELAYED,
    DONE,
    FAILED,
    HELD,
    QUIET,
    READY,
    REMOVABLE,
    REMOVED,
    SENDING,
    among,
    quiet,
    route,
    rule,
    series,
    task,
)

#: Values with which a task waits again: a new task by the same route has the same.
AGAIN: Final[dict[str, Any]] = {"tries": 0, "said": "", "owner": ""}
#: The states from which a task waits again if another copy arrives. The other ones wait, or are held by an operator.
ENDED: Final = (SENDING, FAILED, DONE, REMOVABLE, REMOVED)
UNDONE: Final = (READY, DELAYED, QUIET, SENDING, HELD, FAILED)


def insert_task(module: Any) -> Any:
    """Return the statement that makes a task, or lets one for another copy wait again."""
    insert = module.insert(task)
    new = insert.excluded
    ended = among(task.c.state, ENDED)
    return insert.on_conflict_do_update(
        index_elements=[task.c.instance, task.c.series, task.c.route],
        set_={
            "received": new.received,
            "size": new.size,
            "version": task.c.version + 1,
            "state": case((ended, new.state), else_=task.c.state),
            "at": case((ended, new.at), else_=task.c.at),
            "tries": case((ended, 0), else_=task.c.tries),
            "made_at": case((ended, new.made_at), else_=task.c.made_at),
            "said": case((ended, ""), else_=task.c.said),
            "owner": case((ended, ""), else_=task.c.owner),
        },
        where=or_(and_(new.received != 0, task.c.received != new.received), task.c.state == REMOVED),
    )


def insert_quiet(module: Any) -> Any:
    insert = module.insert(quiet)
    return insert.on_conflict_do_update(
        index_elements=[quiet.c.study, quiet.c.route],
        set_={"wait": insert.excluded.wait, "until": insert.excluded.until},
    )


#: The tasks of another copy that the note of the new copy does not name.
OTHER_COPY: Final = (
    update(task)
    .where((task.c.instance == bindparam("instance_")) & (task.c.series == bindparam("series_")))
    .where(task.c.received != bindparam("received_"))
    .where(among(task.c.state, ENDED))
    .where(
        or_(
            among(task.c.state, (SENDING, FAILED)),
            task.c.route.in_(
                select(route.c.id).where(route.c.rule.in_(select(rule.c.id).where(rule.c.retired == 0.0)))
            ),
        )
    )
    .values(state=READY, at=0.0, received=bindparam("received_"), version=task.c.version + 1, **AGAIN)
)
STILL_ARRIVES: Final = (
    update(quiet).where(quiet.c.study == bindparam("study_")).values(until=bindparam("now_") + quiet.c.wait)
)
FINISH: Final = (
    update(task)
    .where((task.c.id == bindparam("id_")) & (task.c.version == bindparam("version_")) & (task.c.state == SENDING))
    .values(
        state=bindparam("state_"), at=bindparam("at_"), tries=bindparam("tries_"), said=bindparam("said_"), owner=""
    )
)
_other = task.alias()
_other_route = route.alias()
#: The instance of a task has tasks that are not done, or by rules that keep it.
IS_WANTED: Final = (
    exists()
    .where((_other.c.instance == task.c.instance) & (_other.c.series == task.c.series))
    .where((_other_route.c.id == _other.c.route) & (rule.c.id == _other_route.c.rule))
    .where(or_(among(_other.c.state, UNDONE), rule.c.keep))
    .correlate(task)
)
#: The task was the last one of its instance, which no rule keeps.
DELIVERED_EVERYWHERE: Final = (
    update(task)
    .where((task.c.id == bindparam("id_")) & (task.c.state == DONE))
    .where(~IS_WANTED)
    .values(state=REMOVABLE)
)
REMOVABLE_IN: Final = (
    select(series.c.series, task.c.instance)
    .join_from(series, task, series.c.id == task.c.series)
    .where((series.c.study == bindparam("study_")) & (task.c.state == REMOVABLE) & ~IS_WANTED)
)
KEEP: Final = (
    update(task)
    .where(task.c.series.in_(select(series.c.id).where(series.c.study == bindparam("study_"))))
    .where((task.c.state == REMOVABLE) & IS_WANTED)
    .values(state=DONE)
)
UNFINISHED: Final = (
    select(task.c.id)
    .join_from(task, series, series.c.id == task.c.series)
    .where((series.c.study == bindparam("study_")) & among(task.c.state, UNDONE))
    .limit(1)
)
FIND_REMOVABLE: Final = (
    select(series.c.study, series.c.series, task.c.instance)
    .join_from(task, series, series.c.id == task.c.series)
    .where(task.c.route.in_(select(route.c.id)) & (task.c.state == REMOVABLE) & (task.c.at < bindparam("before_")))
    .limit(bindparam("limit_"))
)
OF_INSTANCE: Final = (task.c.instance == bindparam("instance_")) & task.c.series.in_(
    select(series.c.id).where((series.c.study == bindparam("study_")) & (series.c.series == bindparam("uid_")))
)
MARK_REMOVED: Final = (
    update(task).where(OF_INSTANCE & among(task.c.state, (DONE, REMOVABLE))).values(state=REMOVED, at=bindparam("at_"))
)
POSTPONE: Final = update(task).where(OF_INSTANCE & (task.c.state == REMOVABLE)).values(at=bindparam("at_"))
FORGOTTEN: Final = (
    select(task.c.id)
    .where((task.c.route == bindparam("route_")) & (task.c.state == bindparam("state_")))
    .where(task.c.at < bindparam("before_"))
    .limit(bindparam("limit_"))
)
FORGET_SERIES: Final = delete(series).where(
    (series.c.id == bindparam("id_")) & ~exists().where(task.c.series == series.c.id)
)
LEFT: Final = select(rule.c.id).where((rule.c.retired != 0.0) & (rule.c.retired < bindparam("before_")))
FORGET_ROUTES: Final = delete(route).where(route.c.rule.in_(LEFT) & ~exists().where(task.c.route == route.c.id))
FORGET_RULES: Final = delete(rule).where(
    (rule.c.retired != 0.0) & (rule.c.retired < bindparam("before_")) & ~exists().where(route.c.rule == rule.c.id)
)

"""
The tables of the tasks.

In PostgreSQL they lie beside those of the index, hence the prefix of their names. No table of the index is referred to: the
index can be removed and made again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    inspect,
    literal_column,
    select,
    text,
)

from dicomtwist.archive.index.sqlite import WRITING
from dicomtwist.forwarding.tasks.types import TaskState, TasksUnusable

__all__ = [
    "DELAYED",
    "DONE",
    "FAILED",
    "HELD",
    "QUIET",
    "READY",
    "REMOVABLE",
    "REMOVED",
    "SENDING",
    "STATES",
    "about",
    "among",
    "migrate",
    "quiet",
    "route",
    "rule",
    "series",
    "states_of",
    "task",
]

#: The version of the tables. A change of the tables raises it, and adds a step that converts those of the version before.
SCHEMA_VERSION: Final = 1

#: The states of a task in the database. A waiting task is READY, or DELAYED until its next try, or waits for its study to be
#: QUIET. The instance of a REMOVABLE task is delivered everywhere and need not be kept; that of a REMOVED one was removed.
READY, DELAYED, QUIET, SENDING, HELD, FAILED, DONE, REMOVABLE, REMOVED = range(9)
#: The states in the database by number, and what they are for a caller.
STATES: Final = (
    *(TaskState.WAITING, TaskState.WAITING, TaskState.WAITING, TaskState.SENDING, TaskState.HELD, TaskState.FAILED),
    *(TaskState.DONE, TaskState.DONE, TaskState.DONE),
)

metadata = MetaData()

_ID = BigInteger().with_variant(Integer, "sqlite")
_TEXT = Text().with_variant(String(collation="C"), "postgresql")

#: The rules that tasks were made by, and those of the configuration.
rule = Table(
    "forward_rule",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", _TEXT, nullable=False),
    Column("definition", _TEXT, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("study_quiet", Float(53), nullable=False),
    Column("keep", Boolean, nullable=False),
    # When the rule left the configuration, in seconds since 1970; 0 while it is there.
    Column("retired", Float(53), nullable=False, server_default="0"),
    # A number is never given again: notes in the inbox may name a rule that has no tasks any more.
    sqlite_autoincrement=True,
)
#: A route is a rule and one of its destinations, with the peers of that as a JSON array.
route = Table(
    "forward_route",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("rule", _ID, nullable=False),
    Column("destination", _TEXT, nullable=False),
    sqlite_autoincrement=True,
)
series = Table(
    "forward_series",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("study", _TEXT, nullable=False),
    Column("series", _TEXT, nullable=False),
    sqlite_autoincrement=True,
)
task = Table(
    "forward_task",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("route", _ID, nullable=False),
    Column("state", SmallInteger, nullable=False),
    # READY: 0. DELAYED: the next try. QUIET: the number of the series. SENDING: the end of the lease. Else: since when.
    # Thus one index finds the oldest task, those that are due, leases that have ended, and what can be forgotten.
    Column("at", Float(53), nullable=False),
    Column("series", _ID, nullable=False),
    Column("instance", _TEXT, nullable=False),
    Column("received", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("version", Integer, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("made_at", Float(53), nullable=False),
    Column("owner", _TEXT, nullable=False, server_default=""),
    Column("said", _TEXT, nullable=False, server_default=""),
    sqlite_autoincrement=True,
)
#: The studies that have to be quiet before their tasks of a route can be claimed.
quiet = Table(
    "forward_quiet",
    metadata,
    Column("study", _TEXT, primary_key=True),
    Column("route", _ID, primary_key=True, autoincrement=False),
    Column("wait", Float(53), nullable=False),
    Column("until", Float(53), nullable=False),
)
#: Facts about the database itself: its version, and its identity, which notes name.
about = Table(
    "forward_about", metadata, Column("name", _TEXT, primary_key=True), Column("value", _TEXT, nullable=False)
)

Index("forward_rule_by_definition", rule.c.name, rule.c.definition)
Index("forward_route_of_rule", route.c.rule, route.c.destination, unique=True)
Index("forward_route_to", route.c.destination)
Index("forward_series_in_study", series.c.study, series.c.series, unique=True)
Index("forward_task_once", task.c.instance, task.c.series, task.c.route, unique=True)
Index("forward_task_next", task.c.route, task.c.state, task.c.at, task.c.id)
Index("forward_task_in_series", task.c.series, task.c.state)
_CLAIMED = text("owner <> ''")
Index("forward_task_by_owner", task.c.owner, sqlite_where=_CLAIMED, postgresql_where=_CLAIMED)
Index("forward_quiet_next", quiet.c.route, quiet.c.until)


def among(column: Any, states: Iterable[int]) -> Any:
    """Return the condition that a column has one of some states, for statements of many executions too."""
    return column.in_([literal_column(str(state)) for state in states])


def states_of(state: TaskState) -> list[int]:
    """Return the states of the database that are *state* for a caller."""
    return [number for number, one in enumerate(STATES) if one is state]


def migrate(engine: Engine) -> str:
    """
    Create the tables if they are missing.

    :returns: the identity of the database.
    :raises TasksUnusable: the tables are of a later version.
    """
    with engine.connect().execution_options(**WRITING) as connection, connection.begin():
        if not inspect(connection).has_table(about.name):
            _create(connection)
        facts: dict[str, str] = {row.name: row.value for row in connection.execute(select(about))}
    if int(facts["version"]) > SCHEMA_VERSION:
        raise TasksUnusable(
            f"the tasks of forwarding have version {facts['version']}, and this program knows versions up to "
            f"{SCHEMA_VERSION}; use the program that wrote them"
        )
    return facts["identity"]


def _create(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Several processes start at the same time.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4712001)")
        if inspect(connection).has_table(about.name):
            return
    metadata.create_all(connection)
    connection.execute(
        about.insert(),
        [{"name": "version", "value": str(SCHEMA_VERSION)}, {"name": "identity", "value": secrets.token_hex(4)}],
    )

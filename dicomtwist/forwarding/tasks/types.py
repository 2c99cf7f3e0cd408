"""
The values of the tasks of forwarding, without a database.

A *task* is one instance on its way to one destination by one rule. A *copy* of an instance is known by the time of its file: a
task is for the copy that the archive had when the task was made, or made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from dicomtwist.archive.storage.types import IndexFailed, StoreUnusable
from dicomtwist.forwarding.rules import Destination, ForwardRule

__all__ = [
    "MAX_CLAIM",
    "MAX_SAID",
    "Arrival",
    "Counts",
    "Definition",
    "Due",
    "Made",
    "Outcome",
    "Selection",
    "Task",
    "TaskState",
    "TasksFailed",
    "TasksUnusable",
]

#: The most tasks that one call claims.
MAX_CLAIM: Final = 1000
#: The length at which the words of a peer are cut, in characters.
MAX_SAID: Final = 512


class TasksUnusable(StoreUnusable):
    """The database of the tasks cannot be used; the text says why and what to do."""


class TasksFailed(IndexFailed):
    """The database of the tasks refused a request and has changed nothing. The text is the database's own."""


class TaskState(StrEnum):
    """The state of a task."""

    WAITING = "waiting"
    """It is to be sent: now, at the time of its next try, or when its study is quiet."""
    SENDING = "sending"
    """A process has claimed it and is sending it."""
    HELD = "held"
    """An operator has put it on hold."""
    FAILED = "failed"
    """The destination has refused the instance for good, or it could not be sent; an operator may let it be tried again."""
    DONE = "done"
    """The destination has the instance."""


@dataclass(frozen=True, slots=True)
class Definition:
    """
    A rule as tasks keep it, so that a change of the configuration does not change the tasks that wait.

    :ivar name: the name of the rule.
    :ivar table: its table in the configuration, as values of JSON.
    :ivar to: its destinations.
    :ivar priority: 0 to 9; tasks of the higher one are claimed first.
    :ivar study_quiet: for how many seconds nothing of the study may have arrived before its tasks can be claimed.
    :ivar keep: whether the archive keeps the instances that are delivered.
    :ivar id: the number of the rule, which tasks and notes name it by; 0 before it is registered.
    """

    name: str
    table: Mapping[str, Any]
    to: tuple[Destination, ...]
    priority: int = 5
    study_quiet: float = 0.0
    keep: bool = True
    id: int = 0

    @classmethod
    def of(cls, rule: ForwardRule, table: Mapping[str, Any]) -> Definition:
        """
        Return the definition of a rule.

        :param table: the table of the configuration that the rule was made of.
        """
        return cls(rule.name, table, rule.to, rule.priority, rule.study_quiet, rule.keep)

    @property
    def json(self) -> str:
        """The table as JSON; equal tables have equal texts."""
        return json.dumps(self.table, sort_keys=True, separators=(",", ":"), default=str)


class Arrival(NamedTuple):
    """
    An instance that the archive has, and the rules that match it.

    :ivar study: its Study Instance UID.
    :ivar series: its Series Instance UID.
    :ivar instance: its SOP Instance UID.
    :ivar rules: the numbers of the rules; none for an instance that only keeps its study from being quiet, or that replaces
        one which has tasks.
    :ivar received: the time of the file, in nanoseconds since 1970. If it is another one than that of a task, the archive has
        another copy, which has to be sent again. 0 if it is not known: tasks that are there stay as they are.
    :ivar size: the size of the file in bytes, 0 if it is not known.
    """

    study: str
    series: str
    instance: str
    rules: tuple[int, ...] = ()
    received: int = 0
    size: int = 0


class Made(NamedTuple):
    """
    The result of making tasks.

    :ivar tasks: the number of tasks that were made, or made to wait again. PostgreSQL counts those that were there as well.
    :ivar unknown: the numbers of rules that the database does not know; no tasks were made for these.
    """

    tasks: int
    unknown: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Task:
    """
    An instance on its way to a destination.

    :ivar id: its number; a task that was made earlier has a lower one.
    :ivar study: the Study Instance UID.
    :ivar series: the Series Instance UID.
    :ivar instance: the SOP Instance UID.
    :ivar rule: the number of the rule, see :meth:`~dicomtwist.forwarding.tasks.store.TaskStore.definitions`.
    :ivar destination: the peers in the order of failover.
    :ivar state: its state.
    :ivar tries: how many times it was tried.
    :ivar next_try: the time of the next try, in seconds since 1970; 0 for at once. Of a task that is being sent the time when
        its lease ends, of one that is finished the time when it was.
    :ivar made_at: when it was made, in seconds since 1970.
    :ivar priority: the priority of its rule.
    :ivar said: the last words of the peer, or why it was not sent.
    :ivar size: the size of the file in bytes, 0 if it is not known.
    :ivar version: a number that changes if another copy of the instance replaces the one that is being sent. An outcome
        with an earlier number does not count.
    """

    id: int
    study: str
    series: str
    instance: str
    rule: int
    destination: Destination
    state: TaskState
    tries: int = 0
    next_try: float = 0.0
    made_at: float = 0.0
    priority: int = 5
    said: str = ""
    size: int = 0
    version: int = 0

    def ends(self, state: TaskState, said: str = "", *, tries: int | None = None, next_try: float = 0.0) -> Outcome:
        """
        Return an outcome of the task.

        :param tries: as :attr:`Outcome.tries`; ``None`` for one more than before.
        """
        return Outcome(self.id, state, next_try, said, self.tries + 1 if tries is None else tries, self.version)


class Outcome(NamedTuple):
    """
    The outcome of a task that was claimed.

    :ivar task_id: its number.
    :ivar state: its state from now on: WAITING, HELD, FAILED or DONE.
    :ivar next_try: if it waits: the time of its next try, in seconds since 1970; 0 for at once.
    :ivar said: the words of the peer.
    :ivar tries: how many times it was tried.
    :ivar version: :attr:`Task.version` of the task that was claimed.
    """

    task_id: int
    state: TaskState
    next_try: float = 0.0
    said: str = ""
    tries: int = 0
    version: int = 0


class Due(NamedTuple):
    """
    When tasks of a rule can be claimed for a destination.

    :ivar destination: the peers in the order of failover.
    :ivar rule: the number of the rule.
    :ivar at: the time in seconds since 1970; in the past for tasks that can be claimed now.
    """

    destination: Destination
    rule: int
    at: float


@dataclass(frozen=True, slots=True)
class Selection:
    """
    Tasks that all conditions hold for; a condition that is empty holds for all.

    :ivar ids: their numbers.
    :ivar destination: the name of a peer, which may be any in the order of failover.
    :ivar study: the Study Instance UID.
    :ivar instance: the SOP Instance UID.
    :ivar rule: the name of the rule.
    :ivar states: their states.
    """

    ids: Sequence[int] = ()
    destination: str = ""
    study: str = ""
    instance: str = ""
    rule: str = ""
    states: frozenset[TaskState] = field(default_factory=frozenset)


#: The number of tasks by the number of their rule, their destination and their state.
Counts = dict[tuple[int, Destination, TaskState], int]

"""
The receipt of instances that are to be forwarded: which rules match, and the tasks that follow.

A note names the rules by their numbers in the database of the tasks, and that database by its identity, so that a note which
is older than the database never names another rule: the images of patients would go to the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from twisted.logger import Logger

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.inbox.notes import Noted
from dicomtwist.archive.instance import Notes
from dicomtwist.archive.storage.types import StoreError
from dicomtwist.datasets.element_headers import EXPLICIT_BIG_ENDIAN, IMPLICIT
from dicomtwist.errors import loggable
from dicomtwist.forwarding.receipt.attributes import Items, ScannedAttributes, items_of, tags_for
from dicomtwist.forwarding.rules import ForwardRules
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.tasks.types import Arrival, Definition, TasksFailed, TasksUnusable

__all__ = ["Receipt"]

#: The combinations of a sender and of values for which it is remembered which rules match.
MAX_REMEMBERED: Final = 4096

_NOTE: Final = re.compile(rb"([0-9a-f]{8}):((?:[0-9]{1,18}(?:,[0-9]{1,18})*)?)")


class Receipt:
    """
    Makes the tasks of what an archive receives; a :class:`~dicomtwist.archive.instance.TaskMaker`.

    :param store: the store of the tasks, not open yet: the archive opens this object, and this object the store.
    :param rules: the rules.
    :param tables: the tables of the configuration that the rules were made of, in the same order.
    :param notify: called in any thread after tasks were made; it does not block.

    :ivar store: the store.
    :ivar notify: as the parameter; it may be set later.
    """

    log = Logger()

    def __init__(
        self,
        store: TaskStore,
        rules: ForwardRules,
        tables: Sequence[Mapping[str, Any]],
        notify: Callable[[], object] = lambda: None,
    ) -> None:
        self.store = store
        self.notify = notify
        self._rules = rules
        self._tables = tables
        self._is_open = False
        self._notes: Notes = _NotOpen(rules)

    @property
    def notes(self) -> Notes:
        """The rules as they are now."""
        return self._notes

    @property
    def rules(self) -> ForwardRules:
        """The rules of the configuration."""
        return self._rules

    def open(self, *, alone: bool) -> None:
        """
        Open the store, and register the rules; idempotent.

        :param alone: whether no other process that shares the archive is at work. Then tasks that an earlier run was sending
            are sent again at once.
        :raises TasksUnusable: the store cannot be used.
        """
        if self._is_open:
            return
        self.store.open()
        try:
            if alone and not self.store.is_shared:
                self.store.release(None)
            self._register()
        except TasksFailed as error:
            self.store.close()
            raise TasksUnusable(str(error)) from error
        self._is_open = True

    def reload(self, rules: ForwardRules, tables: Sequence[Mapping[str, Any]]) -> None:
        """
        Replace the rules; instances that begin to arrive from now on are subject to the new ones. It blocks.

        :raises TasksFailed: the store refused; the earlier rules apply.
        """
        before = self._rules, self._tables
        self._rules, self._tables = rules, tables
        try:
            if self._is_open:
                self._register()
            else:
                self._notes = _NotOpen(rules)
        except BaseException:
            self._rules, self._tables = before
            raise

    def _register(self) -> None:
        definitions = [Definition.of(rule, table) for rule, table in zip(self._rules.rules, self._tables, strict=True)]
        numbers = self.store.register(definitions)
        self._notes = _RuleNotes(self._rules, numbers, self.store.identity)

    def close(self) -> None:
        """Close the store; idempotent."""
        self._is_open = False
        self._notes = _NotOpen(self._rules)
        self.store.close()

    def make(self, noted: Sequence[Noted]) -> None:
        """
        Make the tasks of instances, see :meth:`dicomtwist.archive.instance.TaskMaker.make`.

        :raises TasksFailed: the store refused; no task was made.
        """
        strange: list[Noted] = []
        made = self.store.make([self._arrival(one, strange) for one in noted])
        if strange:
            # The instances are stored, and everything else about them is in order.
            self.log.error(
                "{count} instances were received for another database of tasks, and are not forwarded: {instance}{more}",
                count=len(strange),
                instance="/".join(strange[0].uids),
                more=" and others" if len(strange) > 1 else "",
            )
        if made.unknown:
            self.log.error(
                "rules of forwarding {numbers} are not in the database of tasks any more: instances that they matched are "
                "not forwarded by them",
                numbers=", ".join(map(str, sorted(made.unknown))),
            )
        if made.tasks > 0:
            self.notify()

    def _arrival(self, one: Noted, strange: list[Noted]) -> Arrival:
        rules: tuple[int, ...] = ()
        if one.note:
            found = _NOTE.fullmatch(one.note)
            if found is None or found[1].decode() != self.store.identity:
                strange.append(one)
            elif found[2]:
                rules = tuple(map(int, found[2].split(b",")))
        return Arrival(*one.uids, rules, one.received, one.size)

    def wants(self, study: str) -> str:
        """
        Return why the retention has to leave a study, ``""`` if it need not: an instance of it is not delivered.

        It blocks; :attr:`~dicomtwist.archive.services.retention.Retention.wanted_by` takes it.
        """
        try:
            return "instances of it are not forwarded yet" if self.store.unfinished(study) else ""
        except StoreError as error:
            return f"nobody knows whether it is forwarded: {loggable(error)}"


class _NotOpen:
    """The rules while tasks cannot be made."""

    def __init__(self, rules: ForwardRules) -> None:
        self.tags = tags_for(rules.paths)

    def note(self, values: Mapping[int, bytes], transfer_syntax: str, requestor: Requestor) -> bytes:
        """Refuse the instance."""
        raise TasksFailed("the tasks of forwarding cannot be noted yet")


class _RuleNotes:
    """
    The rules at one time; a :class:`~dicomtwist.archive.instance.Notes`.

    :param rules: the rules.
    :param numbers: their numbers in the database.
    :param identity: the identity of the database.
    """

    def __init__(self, rules: ForwardRules, numbers: Sequence[int], identity: str) -> None:
        self.tags = tags_for(rules.paths) if len(rules) else frozenset[int]()
        self._rules = tuple(zip(rules.rules, numbers, strict=True))
        self._identity = identity
        self._sorted = sorted(self.tags)
        # Each instance keeps its study from being quiet, whether or not it is forwarded.
        self._always = any(rule.study_quiet > 0 for rule in rules.rules)
        # Nearly all instances of a series have the same values.
        self._remembered = lru_cache(maxsize=MAX_REMEMBERED)(self._matched)

    def note(self, values: Mapping[int, bytes], transfer_syntax: str, requestor: Requestor) -> bytes:
        """Return the note of an instance."""
        if not self._rules:
            return b""
        # The transfer syntaxes that are encoded alike are one.
        if transfer_syntax not in IMPLICIT and transfer_syntax != EXPLICIT_BIG_ENDIAN:
            transfer_syntax = ""
        return self._remembered(items_of(values, self._sorted), transfer_syntax, requestor)

    def _matched(self, items: Items, transfer_syntax: str, requestor: Requestor) -> bytes:
        attributes = ScannedAttributes(items, transfer_syntax)
        numbers = [str(number) for rule, number in self._rules if rule.matches(attributes, requestor)]
        if not numbers and not self._always:
            return b""
        return f"{self._identity}:{','.join(numbers)}".encode()

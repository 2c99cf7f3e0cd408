"""
The retention: studies are deleted by age, and to keep the archive below a size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.study_times import StudyFacts
from dicomtwist.archive.removal.age_clock import AgeClock
from dicomtwist.archive.removal.holds import StudyLocked
from dicomtwist.archive.removal.policy import RetentionPolicy, RetentionRule
from dicomtwist.archive.removal.remover import NotInArchive
from dicomtwist.archive.services.deletion import Deletion
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executor

__all__ = ["Retention"]

#: The time between two writes of what is known about the times of studies, in seconds.
WRITE_EVERY: Final = 30.0
#: The studies that a dry run names in the log, so that each has one line.
MAX_TOLD: Final = 10_000


class _Excess:
    """
    The bytes that are too many.

    :ivar all: those of all instances together.
    :ivar of_rules: those of the studies of rules, by the identity of the rule.
    """

    def __init__(self) -> None:
        self.all = 0
        self.of_rules: dict[int, int] = {}

    def __bool__(self) -> bool:
        return self.all > 0 or any(one > 0 for one in self.of_rules.values())

    def less(self, rule: RetentionRule | None, size: int) -> None:
        """Take note that a study is deleted."""
        self.all -= size
        if id(rule) in self.of_rules:
            self.of_rules[id(rule)] -= size


def _why(policy: RetentionPolicy, study: StudyFacts, now: float, excess: _Excess) -> str:
    """Return why a study is to be deleted, with the rule that applies to it; ``""`` if it stays."""
    rule = policy.rule_for(study)
    if rule is None or rule.keep:
        return ""
    name = f" by the rule {rule.name!r}" if rule.name else ""
    if policy.is_too_old(study, now):
        return f"its age{name}"
    if excess.of_rules.get(id(rule), 0) > 0:
        return f"the size{name}"
    return f"the size of the archive{f' ({rule.name})' if rule.name else ''}" if excess.all > 0 else ""


class Retention:
    """
    Deletes studies that the policy does not keep, one after the other.

    A study that is locked, or that a function of :attr:`wanted_by` wants, stays.

    :param archive: the archive, open while the service runs.
    :param deletion: deletes the studies.
    :param executor: the threads that look for them; the caller holds it while the object is used.
    :param is_first: whether this process looks for studies. Of several processes that share an archive one does.
    :param clock: returns the time, in seconds since 1970; by default without steps of the system clock forward.

    :ivar policy: the policy, which may be replaced at any time; ``None`` without one.
    :ivar wanted_by: functions that return why a study must stay for now, ``""`` if it need not; called in a thread with its
        Study Instance UID.
    :ivar deleted: the number of studies that were deleted, or that a dry run would have deleted.
    :ivar kept: the number of studies that were to be deleted at the last look, and are locked or wanted.
    """

    log = Logger()

    def __init__(
        self,
        archive: Archive,
        deletion: Deletion,
        executor: Executor,
        *,
        is_first: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.policy: RetentionPolicy | None = None
        self.wanted_by: list[Callable[[str], str]] = []
        self.deleted = 0
        self.kept = 0
        self._archive = archive
        self._deletion = deletion
        self._executor = executor
        self._is_first = is_first
        self._clock = AgeClock() if clock is None else clock
        self._is_stopped = True
        self._next: IDelayedCall | None = None
        self._looking: Deferred[None] = succeed(None)
        self._told: dict[str, None] = {}

    def start(self) -> None:
        """Begin to look for studies."""
        self._is_stopped = False
        self._later()

    def stop(self) -> Deferred[None]:
        """
        Delete no further studies.

        :returns: a Deferred that fires with ``None`` when the current step has ended and the times of studies are written.
        """
        self.cancel()
        done: Deferred[None] = Deferred()
        self._looking.addBoth(lambda _: self._write().addBoth(lambda _: done.callback(None)))
        return done

    def cancel(self) -> None:
        """Look for no studies any more; idempotent."""
        self._is_stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _write(self) -> Deferred[None]:
        if not self._archive.study_times.has_notes:
            return succeed(None)
        return self._executor.run_admitted(self._write_times)

    def _write_times(self) -> None:
        archive = self._archive
        if not archive.lacks_room and archive.study_times.has_notes:
            archive.add_rows()
            archive.study_times.write(archive.index)

    def _later(self) -> None:
        if not self._is_stopped:
            policy = self.policy
            interval = WRITE_EVERY if policy is None else min(WRITE_EVERY, policy.interval)
            self._next = self._executor.call_later(interval, self._look)

    def _look(self) -> None:
        self._next = None
        self._looking = (
            Deferred.fromCoroutine(self.look()).addErrback(self._failed).addCallback(lambda _: self._later())
        )

    def _failed(self, reason: Failure) -> None:
        self.log.error("the retention could not delete for now: {reason}", reason=loggable(reason.value))

    async def look(self) -> None:
        """Write the times of studies, and delete those that the policy does not keep."""
        await self._write()
        policy = self.policy
        if policy is None or not policy.deletes or not self._is_first or self._archive.index.is_reading:
            return
        while not self._is_stopped and await self._executor.run(self._learn):
            pass
        self.kept = 0
        excess = _Excess()
        if policy.size is not None:
            total = await self._executor.run(self._archive.study_times.total, self._archive.index)
            excess.all = total - policy.size
        if policy.has_sizes:
            await self._measure(policy, excess)
        await self._delete(policy, excess)

    async def _pages(self, policy: RetentionPolicy) -> AsyncIterator[list[StudyFacts]]:
        """Yield the facts about all studies in the order of the policy, a page at a time, until the service stops."""
        archive, after = self._archive, (0.0, "")
        while not self._is_stopped:
            page = await self._executor.run(archive.study_times.oldest, archive.index, policy.order, after)
            if not page:
                return
            yield page
            after = (page[-1].time(policy.order), page[-1].uid)

    async def _measure(self, policy: RetentionPolicy, excess: _Excess) -> None:
        """Learn what the studies of each rule with a size have beyond it."""
        sizes: Counter[int] = Counter()
        async for page in self._pages(policy):
            for study in page:
                rule = policy.rule_for(study)
                if rule is not None:
                    sizes[id(rule)] += study.size
        for rule in policy.rules:
            if rule.size is not None:
                excess.of_rules[id(rule)] = sizes[id(rule)] - rule.size

    async def _delete(self, policy: RetentionPolicy, excess: _Excess) -> None:
        """
        Delete studies for their age, and the oldest of the others.

        :param excess: the bytes that are too many.
        """
        now = self._clock()
        async for page in self._pages(policy):
            for study in page:
                youngest = policy.youngest
                is_young = youngest is None or now - study.time(policy.order) < youngest
                if is_young and not excess:
                    return
                if self._is_stopped or self.policy is not policy:
                    return
                why = _why(policy, study, now, excess)
                if why and await self._delete_one(policy, study, why):
                    excess.less(policy.rule_for(study), study.size)

    async def _delete_one(self, policy: RetentionPolicy, study: StudyFacts, why: str) -> bool:
        """Delete a study; return whether it is gone, or would be."""
        wanted = await self._executor.run(self._is_wanted, study)
        if wanted:
            self.kept += 1
            return False
        if policy.dry_run:
            if study.uid not in self._told:
                self._told[study.uid] = None
                if len(self._told) > MAX_TOLD:
                    del self._told[next(iter(self._told))]
                self.deleted += 1
                self.log.info(
                    "dry run: the retention would delete study {uid} for {why}, {size} bytes",
                    uid=study.uid,
                    why=why,
                    size=study.size,
                )
            return True
        try:
            await self._deletion.delete((study.uid,), f"the retention for {why}", unless=lambda: self._is_wanted(study))
        except StudyLocked:
            self.kept += 1
            return False
        except NotInArchive:
            return False
        self.deleted += 1
        return True

    # --- in threads

    def _is_wanted(self, study: StudyFacts) -> str:
        """Return why a study stays; ``""`` if it need not."""
        archive = self._archive
        if archive.holds.get(study.uid) is not None:
            return "it is locked"
        if archive.store.received(study.uid) > study.received + 1:
            # Another process has received it, and has not noted that yet; or that was killed before.
            sender = study.sender or Requestor(study.called, study.calling)
            archive.study_times.note_received(study.uid, sender)
            return "an instance was received since"
        return next((why for wanted in self.wanted_by if (why := wanted(study.uid))), "")

    def _learn(self) -> bool:
        """Read from files when some studies were received whose times are not known; return whether there were any."""
        times, index = self._archive.study_times, self._archive.index
        unknown = times.unknown(index)
        self._archive.make_files()
        now = self._clock()
        times.note_times(index, [(uid, self._archive.store.received(uid) or now) for uid in unknown])
        return bool(unknown)

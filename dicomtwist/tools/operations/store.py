"""
``dicomtwist store``: send files and folders.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import Status
from dicomtwist.runtime.executors import Bounds, Executor
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import NORMAL, VERBOSE, Output, plural, printable, table
from dicomtwist.tools.display.progress import Progress
from dicomtwist.tools.explain import Cause
from dicomtwist.tools.files.bulk_sender import SCANNERS, Sender, count_reasons
from dicomtwist.tools.files.file_scanner import Batch, Instance, Scanner, Survey
from dicomtwist.tools.files.resume_journal import Journal
from dicomtwist.tools.interrupts import ALL_WELL, NO_ASSOCIATION, SOME_FAILED, Interrupts

#: How many different reasons of failures are told apart in the summary.
MAX_REASONS = 50
#: How many failures are told of one by one; with -v all are.
MAX_TOLD = 20
#: The threads of headers, survey and journal; each of these has one call at a time.
SCANNING = Bounds(threads=SCANNERS + 2, max_queued=SCANNERS + 2)
#: How many files the survey counts in one go of its thread.
SURVEYED = 1000


@dataclass
class Tally:
    """
    What came of the files; a :class:`~dicomtwist.tools.files.bulk_sender.Report`.

    :ivar done: the size of all that needs no more attention, in bytes.
    :ivar sent: the size of what was stored.
    """

    output: Output
    executor: Executor
    journal: Journal | None = None
    stored_count: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    known: int = 0
    found: int = 0
    done: int = 0
    sent: int = 0
    told: int = 0

    def scanned(self, batch: Batch) -> None:
        """Count what was found, and what cannot be sent."""
        self.skipped += batch.skipped
        self.known += batch.known
        self.found += len(batch.instances)
        self.done += batch.passed_over
        for unreadable in batch.unreadable:
            self._failed(unreadable.path, unreadable.reason, unreadable.size)

    def stored(self, instance: Instance, status: Status) -> None:
        """Count it, and note it in the journal."""
        self.stored_count += 1
        self.done += instance.size
        self.sent += instance.size
        if status.is_warning:
            count_reasons(self.warnings, str(status), MAX_REASONS)
        self.output.note(f"stored {printable(instance.path)}: {status}", VERBOSE)
        if self.journal is not None:
            self.journal.acknowledged(instance, self.executor)

    def failed(self, instance: Instance, reason: str) -> None:
        """Count it and tell of it."""
        self._failed(instance.path, reason, instance.size)

    def waiting(self, cause: Cause, seconds: float) -> None:
        """Tell of it."""
        self.output.note(f"no association, the next attempt is in {seconds:g} s: {cause.what}")

    def _failed(self, path: str, reason: str, size: int) -> None:
        count_reasons(self.failures, reason, MAX_REASONS)
        self.done += size
        self.told += 1
        if self.told == MAX_TOLD + 1:
            self.output.note("more failures are counted, and told one by one with -v", NORMAL)
        self.output.note(f"failed {printable(path)}: {reason}", NORMAL if self.told <= MAX_TOLD else VERBOSE)

    @property
    def failed_count(self) -> int:
        """How many failed."""
        return sum(self.failures.values())


class Store:
    """
    One run of the subcommand.

    :param paths: files and folders.
    :param journal: what was acknowledged before, and is from now on.
    """

    def __init__(
        self, connection: Connection, output: Output, paths: tuple[str, ...], journal: Journal | None, retries: int
    ) -> None:
        self.connection = connection
        self.output = output
        self.paths = paths
        self.journal = journal
        self.retries = retries
        self.surveyed: int | None = None
        self._surveying = True

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it; return the exit status."""
        executor = Executor(reactor, "scanning", SCANNING)
        executor.acquire()
        ae = self.connection.make_ae(reactor)
        self.output.follow(ae)
        tally = Tally(self.output, executor, self.journal)
        scanner = Scanner(self.paths, self.journal.knows if self.journal is not None else lambda instance: False)
        sender = Sender(self.connection, ae, scanner, tally, executor, self.retries)
        interrupts.handle(sender.stop, sender.abort)
        progress = Progress(
            self.output, lambda: tally.done + sender.under_way, lambda: self.surveyed, lambda: _note(tally)
        )
        progress.start(reactor)
        survey = Deferred.fromCoroutine(self._survey(executor) if progress.shown else _nothing())
        since = reactor.seconds()
        try:
            await sender.run()
        finally:
            seconds = reactor.seconds() - since
            self._surveying = False
            await survey
            progress.stop()
            if self.journal is not None:
                await self.journal.close()
            await ae.shutdown()
            executor.release()
        return self._tell(tally, sender, seconds, interrupts.count > 0)

    async def _survey(self, executor: Executor) -> None:
        """Count all bytes there are, for the time that is left."""
        survey = Survey(self.paths)
        while self._surveying and await executor.run(survey.go_on, SURVEYED):
            pass
        self.surveyed = survey.size

    def _tell(self, tally: Tally, sender: Sender, seconds: float, interrupted: bool) -> int:
        output = self.output
        status = ALL_WELL
        if not sender.associations and (sender.cause is not None):
            status = NO_ASSOCIATION
        elif tally.failed_count or sender.cause is not None or interrupted or sender.not_sent:
            status = SOME_FAILED
        elif not tally.stored_count and not tally.known:
            output.error("none of the files is a DICOM file")
            status = SOME_FAILED
        if self.journal is not None and self.journal.error is not None:
            output.error(f"the journal is not complete: {self.journal.error.strerror}")
            status = max(status, SOME_FAILED)
        if sender.cause is not None:
            output.error(str(sender.cause))
        if interrupted:
            output.error("interrupted" + (": go on with the same command" if self.journal is not None else ""))
        output.result(*_summary(tally, sender, seconds, self.connection))
        output.document(
            {
                "command": "store",
                "peer": str(self.connection.peer),
                "exit_status": status,
                "stored": tally.stored_count,
                "warnings": dict(tally.warnings),
                "failed": tally.failed_count,
                "failures": dict(tally.failures),
                "skipped": tally.skipped,
                "stored_before": tally.known,
                "not_sent": sender.not_sent,
                "bytes": tally.sent,
                "seconds": round(seconds, 3),
                "associations": sender.associations,
                "interrupted": interrupted,
                "cause": sender.cause and sender.cause.document(),
            }
        )
        return status


async def _nothing() -> None:
    """In the place of a survey that nobody would look at."""


def _note(tally: Tally) -> str:
    failed = f", {tally.failed_count} failed" if tally.failed_count else ""
    return f"{tally.stored_count} stored{failed}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _summary(tally: Tally, sender: Sender, seconds: float, connection: Connection) -> list[str]:
    rows: list[tuple[str, object, str]] = [("stored", tally.stored_count, "")]
    rows += [("  with warning", count, reason) for reason, count in tally.warnings.most_common()]
    rows += [("failed", count, reason) for reason, count in tally.failures.most_common()]
    if tally.skipped:
        rows.append(("skipped", tally.skipped, "not DICOM instances"))
    if tally.known:
        rows.append(("stored before", tally.known, "as the journal says"))
    if sender.not_sent:
        more = "" if sender.scan_complete else ", and what was not looked at"
        rows.append(("not sent", sender.not_sent, f"found{more}"))
    rate = f"{_size(tally.sent / seconds)}/s, {tally.stored_count / seconds:.0f} instances/s" if seconds > 0 else ""
    return [
        f"{connection.calling} to {connection.peer}",
        *table(rows, "  "),
        f"{_size(tally.sent)} in {seconds:.1f} s, {rate}, over {plural(sender.associations, 'association')}",
    ]

"""
``dicomtwist store``: send files and folders with C-STORE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import Status
from dicomtwist.runtime.executors import Bounds, Executor
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import NORMAL, VERBOSE, Output, printable, table
from dicomtwist.tools.display.progress import Progress
from dicomtwist.tools.display.result_table import JSONWriter
from dicomtwist.tools.explain import Cause
from dicomtwist.tools.files.bulk_sender import SCANNERS, BulkSender, Sender, count_reasons
from dicomtwist.tools.files.file_scanner import ScanBatch, ScannedInstance, Scanner, SizeSurvey
from dicomtwist.tools.files.resume_journal import ResumeJournal
from dicomtwist.tools.interrupts import ANSWERED_FIRST, FAILURE, NO_ASSOCIATION, SUCCESS, Interrupts
from dicomtwist.tools.web_connection import WebConnection

#: How many different reasons the summary distinguishes.
MAX_REASONS = 50
#: How many failures are listed one by one; with -v all are.
MAX_LISTED = 20
#: The threads of headers, survey and journal; each of these has one call at a time.
SCANNING = Bounds(threads=SCANNERS + 2, max_queued=SCANNERS + 2)
#: How many files the survey adds at a time.
SURVEYED = 1000


@dataclass
class Tally:
    """
    The outcome of all files; a :class:`~dicomtwist.tools.files.bulk_sender.StoreObserver`.

    :ivar failed_files: prints each failure as an item of the JSON document.
    :ivar done: the size of all files that are dealt with, in bytes.
    :ivar sent: the size of all instances that were stored, in bytes.
    :ivar not_sent_files: the paths of the instances that were found and not sent, no more than wait at once.
    """

    output: Output
    executor: Executor
    failed_files: JSONWriter
    journal: ResumeJournal | None = None
    stored_count: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    stored_before: int = 0
    found: int = 0
    done: int = 0
    sent: int = 0
    listed: int = 0
    not_sent_files: list[str] = field(default_factory=list)

    def scanned(self, batch: ScanBatch) -> None:
        """Count the instances of a batch and the files that cannot be sent."""
        self.skipped += batch.skipped
        self.stored_before += batch.stored_before
        self.found += len(batch.instances)
        self.done += batch.skipped_bytes
        for unreadable in batch.unreadable:
            self._failed(unreadable.path, unreadable.reason, unreadable.size)

    def stored(self, instance: ScannedInstance, status: Status) -> None:
        """Count a stored instance and record it in the journal."""
        self.stored_count += 1
        self.done += instance.size
        self.sent += instance.size
        if status.is_warning:
            count_reasons(self.warnings, str(status), MAX_REASONS)
        self.output.note(f"stored {printable(instance.path)}: {status}", VERBOSE)
        if self.journal is not None:
            self.journal.add(instance, self.executor)

    def failed(self, instance: ScannedInstance, reason: str) -> None:
        """Count and print a failure."""
        self._failed(instance.path, reason, instance.size)

    def not_sent(self, instance: ScannedInstance) -> None:
        """Note an instance that the transfer did not come to, for the JSON document."""
        if self.output.as_json:
            self.not_sent_files.append(instance.path)

    def waiting(self, cause: Cause, seconds: float) -> None:
        """Print when the next attempt is."""
        self.output.note(f"no association, the next attempt is in {seconds:g} s: {cause.what}")

    def _failed(self, path: str, reason: str, size: int) -> None:
        count_reasons(self.failures, reason, MAX_REASONS)
        self.failed_files.item({"path": path, "reason": reason})
        self.done += size
        self.listed += 1
        if self.listed == MAX_LISTED + 1:
            self.output.note("further failures are only counted; use -v to list them", NORMAL)
        self.output.note(f"failed {printable(path)}: {reason}", NORMAL if self.listed <= MAX_LISTED else VERBOSE)

    @property
    def failed_count(self) -> int:
        """The number of failures."""
        return sum(self.failures.values())


#: Makes the sender of the instances that a scanner finds.
MakeSender = Callable[[Scanner, Tally, Executor], Sender]


class Store:
    """
    One run of the subcommand.

    :param paths: files and folders.
    :param journal: the journal of acknowledgements, ``None`` without ``--resume``.
    :param retries: how often an instance is sent again after its association broke.
    """

    def __init__(
        self,
        connection: Connection | WebConnection,
        output: Output,
        paths: tuple[str, ...],
        journal: ResumeJournal | None,
        retries: int,
    ) -> None:
        self.connection = connection
        self.output = output
        self.paths = paths
        self.journal = journal
        self.retries = retries
        self.surveyed: int | None = None
        self._surveying = True

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        connection = self.connection
        assert isinstance(connection, Connection)
        ae = connection.make_ae(reactor)
        self.output.log_associations(ae)

        def sender(scanner: Scanner, tally: Tally, executor: Executor) -> BulkSender:
            return BulkSender(connection, ae, scanner, tally, executor, self.retries)

        try:
            return await self._run(reactor, interrupts, sender)
        finally:
            await ae.shutdown()

    async def _run(self, reactor: Any, interrupts: Interrupts, make_sender: MakeSender) -> int:
        executor = Executor(reactor, "scanning", SCANNING)
        executor.acquire()
        failed_files = JSONWriter(self.output, {"command": "store", "peer": str(self.connection.peer)}, "failed_files")
        tally = Tally(self.output, executor, failed_files, self.journal)
        scanner = Scanner(self.paths, self.journal.contains if self.journal is not None else lambda instance: False)
        sender = make_sender(scanner, tally, executor)
        interrupts.handle(sender.stop, sender.abort, ANSWERED_FIRST)
        progress = Progress(
            self.output, lambda: tally.done + sender.bytes_under_way, lambda: self.surveyed, lambda: _note(tally)
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
            executor.release()
        return self._print_result(tally, sender, seconds, interrupts.count > 0)

    async def _survey(self, executor: Executor) -> None:
        """Add up the sizes of all files, for the remaining time in the progress bar."""
        survey = SizeSurvey(self.paths)
        while self._surveying and await executor.run(survey.count_next, SURVEYED):
            pass
        self.surveyed = survey.size

    def _print_result(self, tally: Tally, sender: Sender, seconds: float, interrupted: bool) -> int:
        output = self.output
        status = SUCCESS
        if not sender.associations and (sender.cause is not None):
            status = NO_ASSOCIATION
        elif tally.failed_count or sender.cause is not None or interrupted or sender.not_sent:
            status = FAILURE
        elif not tally.stored_count and not tally.stored_before:
            output.error("none of the files is a DICOM file")
            status = FAILURE
        if self.journal is not None and self.journal.error is not None:
            output.error(f"the journal could not be written: {self.journal.error.strerror}")
            status = max(status, FAILURE)
        if sender.cause is not None:
            output.error(str(sender.cause))
        if interrupted:
            output.error(
                "interrupted" + (": run the same command again to continue" if self.journal is not None else "")
            )
        output.result(*_summary(tally, sender, seconds, self.connection))
        tally.failed_files.end(
            {
                "exit_status": status,
                "stored": tally.stored_count,
                "warnings": dict(tally.warnings),
                "failed": tally.failed_count,
                "failures": dict(tally.failures),
                "skipped": tally.skipped,
                "stored_before": tally.stored_before,
                "not_sent": sender.not_sent,
                "not_sent_files": tally.not_sent_files,
                "scan_complete": sender.scan_complete,
                "bytes": tally.sent,
                "seconds": round(seconds, 3),
                "associations": sender.associations,
                "interrupted": interrupted,
                "cause": sender.cause and sender.cause.document(),
            }
        )
        return status


async def _nothing() -> None:
    """Do nothing, instead of a survey for a progress bar that is not shown."""


def _note(tally: Tally) -> str:
    failed = f", {tally.failed_count} failed" if tally.failed_count else ""
    return f"{tally.stored_count} stored{failed}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _summary(tally: Tally, sender: Sender, seconds: float, connection: Connection | WebConnection) -> list[str]:
    rows: list[tuple[str, object, str]] = [("stored", tally.stored_count, "")]
    rows += [("  with warning", count, reason) for reason, count in tally.warnings.most_common()]
    rows += [("failed", count, reason) for reason, count in tally.failures.most_common()]
    if tally.skipped:
        rows.append(("skipped", tally.skipped, "not DICOM instances"))
    if tally.stored_before:
        rows.append(("stored before", tally.stored_before, "according to the journal"))
    if sender.not_sent:
        more = "" if sender.scan_complete else "besides files that were not looked at"
        rows.append(("not sent", sender.not_sent, more))
    rate = f"{_size(tally.sent / seconds)}/s, {tally.stored_count / seconds:.0f} instances/s" if seconds > 0 else ""
    return [
        f"{connection.calling} to {connection.peer}",
        *table(rows, "  "),
        f"{_size(tally.sent)} in {seconds:.1f} s, {rate}, {sender.means}",
    ]

"""
Modality Worklist from a folder of files (PS3.4 Annex K), with the layout that wlmscpfs of DCMTK uses.

Each file ``*.wl`` is a data set with a Scheduled Procedure Step Sequence. The files in the folder itself are for all peers;
the files in ``TITLE/`` are for peers that call the AE title TITLE. Another system writes, replaces and removes the files at
any time, so each query lists the folder and reads the files that are new or have changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final

from pydicom import DataElement, Dataset
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from dicomtwist import evt
from dicomtwist.archive.index.normal_forms import normal_date, time_key
from dicomtwist.archive.query.compact_item import Item
from dicomtwist.archive.query.date_ranges import moments
from dicomtwist.archive.query.sequences import ItemTest, answer_item, item_test, items_of, texts
from dicomtwist.archive.services.worklist_folder import STEPS, WorklistFolder, WorklistReader, WorklistTooSlow
from dicomtwist.datasets.character_sets import decode_texts, decode_values
from dicomtwist.datasets.identifier import encode_with_character_set
from dicomtwist.dimse.status import DATASET_MISMATCH, OUT_OF_RESOURCES, PENDING, Status
from dicomtwist.errors import DataSetError, ExecutorFull, loggable
from dicomtwist.runtime.executors import Executor, Share, is_turn_over, run_in_turns
from dicomtwist.runtime.networks import host_of
from dicomtwist.runtime.work import check_wanted
from dicomtwist.scp.dispatch import Route
from dicomtwist.sop_class import ModalityWorklistInformationModelFind

__all__ = ["Worklist", "WorklistFolder", "compile_query"]

#: The time for which a query waits while neither a file is read nor a query makes progress, in seconds: less than the DIMSE
#: timeouts of peers, so that they learn why they get nothing.
DEADLINE: Final = 10.0
#: The number of such times for which a query waits while there is progress, as in the first reading of a large folder: most
#: peers wait for 30 seconds at least.
MAX_DEADLINES: Final = 2.5
#: The number of answers that are encoded at once.
PAGE_SIZE: Final = 100

#: Scheduled Procedure Step Start Date and Time.
_START: Final = (0x00400002, 0x00400003)
#: The elements of an identifier that are not keys: Specific Character Set, Query/Retrieve Level, Timezone Offset From UTC.
_NO_KEYS: Final = frozenset((0x00080005, 0x00080052, 0x00080201))

# --- matching


#: A function that returns the scheduled steps of an item that match, each as a position in its sequence.
Query = Callable[[Dataset | Item], Sequence[int]]


def compile_query(identifier: Dataset) -> Query:
    """
    Compile the identifier of a query for the worklist (PS3.4 K.6.1.2, C.2.2.2).

    If Scheduled Procedure Step Start Date and Start Time are both ranges, they are matched as one range of moments.

    :raises ValueError: a key is invalid.
    """
    keys = _keys(identifier)
    matches = item_test(Dataset({element.tag: element for element in keys if element.tag != STEPS}))
    step_matches = _step_test(identifier)

    def query(item: Dataset | Item) -> Sequence[int]:
        if matches is not None and not matches(item):
            return ()
        steps = items_of(item, STEPS)
        return [at for at, step in enumerate(steps) if step_matches is None or step_matches(step)]

    return query


def _keys(identifier: Dataset) -> Dataset:
    return Dataset({one.tag: one for one in identifier if one.tag not in _NO_KEYS and one.tag & 0xFFFF})


def _step_test(identifier: Dataset) -> ItemTest | None:
    if STEPS in identifier and identifier[STEPS].VR != "SQ":
        raise ValueError("Scheduled Procedure Step Sequence is no sequence")
    items = items_of(identifier, STEPS)
    if not items:
        return None
    if len(items) > 1:
        raise ValueError("Scheduled Procedure Step Sequence has more than one item")
    step = items[0]
    dates, times = (texts(step[tag]) if tag in step else [] for tag in _START)
    within: ItemTest | None = None
    if len(dates) == len(times) == 1 and "-" in dates[0] and "-" in times[0]:
        within = _moment_test(dates[0], times[0])
        step = Dataset({element.tag: element for element in step if element.tag not in _START})
    others = item_test(step, 2)
    if within is None or others is None:
        return within or others
    first, second = within, others
    return lambda step: first(step) and second(step)


def _moment_test(date: str, time: str) -> ItemTest:
    """Return a test whether a step starts in a range of moments; a step without a time starts at the beginning of its day."""
    wanted = moments(date, time, "", None)

    def within(step: Dataset | Item) -> bool:
        start, clock = (next(iter(texts(step[tag]) if tag in step else ()), "") for tag in _START)
        moment = (normal_date(start), time_key(clock or "00"))
        return bool(moment[0]) and wanted.first <= moment <= wanted.last

    return within


def answer(item: Dataset, at: int, identifier: Dataset) -> Dataset:
    """
    Return the answer to *identifier* for one step of *item*: the keys of *identifier*, in the character set of *item*.

    :param at: the position of the step; the sequence in the answer contains only this step (PS3.4 K.6.1.2.2).
    """
    wanted = _keys(identifier)
    one = Dataset({tag: item[tag] for tag in wanted.keys() if tag in item and tag != STEPS})  # noqa: SIM118
    one.add(DataElement(STEPS, "SQ", [items_of(item, STEPS)[at]]))
    found = answer_item(one, wanted) if len(wanted) else Dataset()
    if "SpecificCharacterSet" in item:
        found["SpecificCharacterSet"] = item["SpecificCharacterSet"]
    return found


# --- the service


class Worklist:
    """
    An SCP of the SOP Class Modality Worklist Information Model - FIND.

    :param folder: the folder of the files.
    :param executor: the threads that read and search them; the caller holds it while the object is used. One of them reads.
    :param deadline: the time for which a query waits without any progress, in seconds; with progress it waits
        :data:`MAX_DEADLINES` times as long. ``None`` for any time.
    :param default_charset: the character set of text without one, see :class:`dicomtwist.archive.archive.Archive`.

    :ivar deadline: that time, which may change.
    :ivar routes: the requests that it performs.
    """

    log = Logger()

    def __init__(
        self, folder: Path, executor: Executor, deadline: float | None = DEADLINE, *, default_charset: str = ""
    ) -> None:
        self._default_charset = default_charset
        self._executor = executor
        self.deadline = deadline
        self._folder = folder
        self._reader = self._new_reader()
        self._former: list[WorklistReader] = []
        self._turns = 0
        self.routes = (Route(evt.EVT_C_FIND, ModalityWorklistInformationModelFind, self.handle_find),)

    def start(self) -> None:
        """Begin to read the files, so that the first query finds them in memory."""
        self._reader.read()

    @property
    def folder(self) -> Path:
        """The folder of the files. It may be changed; queries that are under way keep the former one."""
        return self._folder

    @folder.setter
    def folder(self, folder: Path) -> None:
        if folder != self._folder:
            self._former = [one for one in (*self._former, self._reader) if one.is_reading]
            self._folder = folder
            self._reader = self._new_reader()
            self._reader.read()

    def _new_reader(self) -> WorklistReader:
        folder = WorklistFolder(self._folder, self._told, default_charset=self._default_charset)
        return WorklistReader(folder, self._executor)

    def stop(self) -> Deferred[None]:
        """Stop reading; operations end with their associations."""
        for reader in (*self._former, self._reader):
            reader.stop()
        return succeed(None)

    async def handle_find(self, event: evt.IdentifierEvent) -> AsyncIterator[tuple[int, Any]]:
        """
        Perform a query.

        :returns: yields (0xFF00, a list of encoded identifiers) for the scheduled steps that match; or ends with 0xA900 if the
            identifier cannot be read or a key is invalid, with 0xA700 if the folder cannot be read, or not in time.
        """
        try:
            matches = await self._found(event)
        except ValueError as error:
            yield Status(DATASET_MISMATCH, "C-FIND", str(error)[:64]), None
            return
        except OSError as error:
            event.assoc.log_refusal(self.log.error, "the worklist cannot be read: {error}", error=loggable(error))
            comment = "the worklist cannot be read"
            if isinstance(error, WorklistTooSlow):
                comment = "the worklist is still being read, ask again" if error.is_working else f"{comment} in time"
            yield Status(OUT_OF_RESOURCES, "C-FIND", comment), None
            return
        except ExecutorFull as error:
            event.assoc.log_refusal(self.log.error, "the worklist is not read: {error}", error=loggable(error))
            yield Status(OUT_OF_RESOURCES, "C-FIND", "too many queries wait"), None
            return
        for start in range(0, len(matches), PAGE_SIZE):
            page = matches[start : start + PAGE_SIZE]
            yield PENDING, await self._share(event).run_admitted(self._encode, page, event)

    async def _found(self, event: evt.IdentifierEvent) -> list[tuple[Item, int]]:
        """
        Return the steps that match.

        :raises WorklistTooSlow: the deadline has passed. The folder is read on.
        """
        finding = Deferred.fromCoroutine(self._find(event))
        if self.deadline is None:
            return await finding
        call: IDelayedCall
        late: WorklistTooSlow | None = None
        deadlines, seen = 1.0, self._progress

        def expire() -> None:
            nonlocal call, deadlines, late, seen
            is_working, seen = self._progress != seen, self._progress
            if is_working and deadlines < MAX_DEADLINES:
                if call.active():
                    call.cancel()
                more = min(1.0, MAX_DEADLINES - deadlines)
                deadlines += more
                call = self._executor.call_later(more * deadline, expire)
                return
            late = WorklistTooSlow(f"its folder was not read and searched within {deadlines * deadline:g} s")
            late.is_working = is_working
            finding.cancel()

        deadline = self.deadline
        call = self._executor.call_later(deadline, expire)
        try:
            return await finding
        except CancelledError:
            if late is None:
                raise
            raise late from None
        finally:
            if call.active():
                call.cancel()

    @property
    def files(self) -> int:
        """The number of files that are in memory."""
        return self._reader.files

    @property
    def _progress(self) -> int:
        return self._reader.progress + self._turns

    async def _find(self, event: evt.IdentifierEvent) -> list[tuple[Item, int]]:
        share = self._share(event)
        query = await share.run(_compiled, event, self._default_charset)
        items = await self._reader.items(event.assoc.requestor.called_ae_title)
        return await run_in_turns(share, self._matches(query, items, event), is_admitted=True)

    def _share(self, event: evt.IdentifierEvent) -> Share:
        """Return the threads for the peer of *event*, which are not all of them."""
        return self._executor.share(host_of(event.assoc.remote.address))

    def _encode(self, matches: Sequence[tuple[Item, int]], event: evt.IdentifierEvent) -> list[bytes]:
        syntax = str(event.context.transfer_syntax)
        encoded: list[bytes] = []
        failures: list[str] = []
        tags = [*event.identifier.keys(), STEPS]
        for found, at in matches:
            check_wanted()
            try:
                item = found.dataset(tags)
                known = item.get("SpecificCharacterSet") or self._default_charset
                own = known if isinstance(known, str) else "\\".join(known)
                encoded.append(encode_with_character_set(answer(item, at, event.identifier), own, syntax))
            except Exception as error:
                failures.append(loggable(error))
        if failures:
            # One line for a page, however many items it has.
            count = f"{len(failures)} of {len(matches)} items"
            self._told(f"{count} of the worklist cannot be answered, the first: {failures[0]}", event)
        return encoded

    def _matches(
        self, query: Query, items: Sequence[Item], event: evt.IdentifierEvent
    ) -> Generator[None, None, list[tuple[Item, int]]]:
        found: list[tuple[Item, int]] = []
        failures: list[str] = []
        for item in items:
            check_wanted()
            if is_turn_over():
                self._turns += 1
                yield
            try:
                found += [(item, at) for at in query(item)]
            except Exception as error:
                failures.append(loggable(error))
        if failures:
            # One line for a query, however many items there are.
            count = f"{len(failures)} of {len(items)} items"
            self._told(f"{count} of the worklist cannot be compared, the first: {failures[0]}", event)
        self._turns += 1
        return found

    def _told(self, why: str, event: evt.IdentifierEvent | None = None) -> None:
        """Log a warning from a worker thread; one about a query counts for the association of *event*."""
        if event is None:
            self._executor.call_in_reactor(self.log.warn, "{why}", why=why)
        else:
            self._executor.call_in_reactor(event.assoc.log_refusal, self.log.warn, "{why}", why=why)


def _compiled(event: evt.IdentifierEvent, default_charset: str) -> Query:
    identifier = event.identifier
    try:
        decode_texts(identifier, default_charset)
        decode_values(identifier)
    except Exception as error:
        # pydicom may raise anything, depending on the value.
        raise DataSetError(f"a key cannot be read: {error}") from error
    return compile_query(identifier)

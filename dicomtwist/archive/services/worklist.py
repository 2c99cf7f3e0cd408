"""
Modality Worklist from a folder of files (PS3.4 Annex K), with the layout that wlmscpfs of DCMTK uses.

Each file ``*.wl`` is a data set with a Scheduled Procedure Step Sequence. The files in the folder itself are for all peers;
the files in ``TITLE/`` are for peers that call the AE title TITLE. Another system writes, replaces and removes the files at
any time, so each query lists the folder and reads the files that are new or have changed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from pydicom import DataElement, Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from dicomtwist import evt
from dicomtwist.archive.index.normal_forms import normal_date, time_key
from dicomtwist.archive.query.date_ranges import moments
from dicomtwist.archive.query.sequences import ItemTest, answer_item, item_test, items_of, texts
from dicomtwist.datasets.codec import decode_dataset
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.dimse.status import DATASET_MISMATCH, OUT_OF_RESOURCES, PENDING, Status
from dicomtwist.errors import DataSetError, ExecutorFull, loggable
from dicomtwist.part10 import NotDicomFile, read_file_meta
from dicomtwist.runtime.executors import Executor, check_wanted
from dicomtwist.scp.dispatch import Route
from dicomtwist.sop_class import ModalityWorklistInformationModelFind

__all__ = ["Worklist", "WorklistFolder", "compile_query"]

#: The maximum number of files in a folder; more files are ignored.
MAX_FILES: Final = 100_000
#: The maximum length of a file, in bytes; a longer one is ignored.
MAX_FILE_LENGTH: Final = 1024 * 1024
#: The maximum size of all files in the cache, in bytes; files beyond it are read for each query.
MAX_REMEMBERED: Final = 256 * 1024 * 1024
#: The number of answers that are encoded at once.
PAGE_SIZE: Final = 100
SUFFIX: Final = ".wl"

_STEPS: Final = 0x00400100
#: Scheduled Procedure Step Start Date and Time.
_START: Final = (0x00400002, 0x00400003)
#: The elements of an identifier that are not keys: Specific Character Set, Query/Retrieve Level, Timezone Offset From UTC.
_NO_KEYS: Final = frozenset((0x00080005, 0x00080052, 0x00080201))

#: The data set of a file, or the reason why the file is ignored.
_Loaded = Dataset | str


@dataclass(frozen=True, slots=True)
class _Known:
    """A file in the cache: its state when it was read, its content, and the bytes that it counts for."""

    stamp: tuple[int, int, int]
    item: _Loaded
    size: int


class WorklistFolder:
    """
    The files of a worklist. All methods block and are meant for worker threads.

    :param root: the folder.
    :param unreadable: called with a message for each file that is ignored, when the file is read.
    """

    def __init__(self, root: Path, unreadable: Callable[[str], object] = lambda why: None) -> None:
        self.root = root
        self._unreadable = unreadable
        self._known: dict[str, _Known] = {}
        self._remembered = 0
        self._lock = threading.Lock()

    def items(self, title: str) -> list[Dataset]:
        """
        Return the content of the files for peers that call *title*, sorted by file name. The data sets are shared and must
        not be changed.

        :raises OSError: the folder cannot be read.
        """
        folders = [os.fspath(self.root)]
        if title not in ("", ".", "..") and not {"/", "\0"} & set(title):
            own = os.path.join(folders[0], title)
            if os.path.isdir(own):
                folders.append(own)
        with self._lock:
            found = [item for folder in folders for item in self._folder(folder)]
        return [item for item in found if isinstance(item, Dataset)]

    def _folder(self, folder: str) -> list[_Loaded]:
        entries: dict[str, tuple[int, int, int]] = {}
        with os.scandir(folder) as scan:
            for entry in scan:
                if not entry.name.endswith(SUFFIX) or entry.name.startswith("."):
                    continue
                if len(entries) >= MAX_FILES:
                    self._unreadable(f"{folder} has more than {MAX_FILES} files")
                    break
                try:
                    status = entry.stat()
                except OSError:
                    continue  # the file was removed at this moment
                entries[entry.path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        for path in [path for path in self._known if os.path.dirname(path) == folder and path not in entries]:
            self._forget(path)
        return [self._item(path, stamp) for path, stamp in sorted(entries.items())]

    def _item(self, path: str, stamp: tuple[int, int, int]) -> _Loaded:
        check_wanted()  # a folder may have many files, and the association may have ended
        known = self._known.get(path)
        if known is not None and known.stamp == stamp:
            return known.item
        self._forget(path)
        item: _Loaded
        try:
            item = read_item(path)
        except (OSError, ValueError) as error:
            item = f"{path} is ignored: {loggable(error)}"
            self._unreadable(item)
        size = stamp[1] if isinstance(item, Dataset) else len(item)
        if self._remembered + size <= MAX_REMEMBERED:
            self._known[path] = _Known(stamp, item, size)
            self._remembered += size
        return item

    def _forget(self, path: str) -> None:
        known = self._known.pop(path, None)
        if known is not None:
            self._remembered -= known.size


def read_item(path: str) -> Dataset:
    """
    Read a file of a worklist: a file of PS3.10, or a bare data set in Implicit or Explicit VR Little Endian.

    :returns: its data set, decoded to the last element.
    :raises ValueError: its content is invalid; the text says why.
    :raises OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_FILE_LENGTH + 1)
    if len(content) > MAX_FILE_LENGTH:
        raise ValueError(f"it has more than {MAX_FILE_LENGTH} bytes")
    try:
        meta, start = read_file_meta(BytesIO(content))
        syntax = meta.transfer_syntax_uid
    except NotDicomFile:
        if content[128:132] == b"DICM" or len(content) < 8:
            raise
        start, syntax = 0, ExplicitVRLittleEndian if content[4:6].isalpha() else ImplicitVRLittleEndian
    item = decode_dataset(content[start:], syntax)
    try:
        item.decode()
        has_steps = bool(items_of(item, _STEPS))
    except Exception as error:
        # pydicom may raise anything, depending on the value.
        raise DataSetError(f"a value cannot be decoded: {error}") from error
    if not has_steps:
        raise ValueError("it has no Scheduled Procedure Step Sequence (0040,0100)")
    return item


# --- matching


#: A function that returns the scheduled steps of an item that match, each as a position in its sequence.
Query = Callable[[Dataset], Sequence[int]]


def compile_query(identifier: Dataset) -> Query:
    """
    Compile the identifier of a query for the worklist (PS3.4 K.6.1.2, C.2.2.2).

    If Scheduled Procedure Step Start Date and Start Time are both ranges, they are matched as one range of moments.

    :raises ValueError: a key is invalid.
    """
    keys = _keys(identifier)
    matches = item_test(Dataset({element.tag: element for element in keys if element.tag != _STEPS}))
    step_matches = _step_test(identifier)

    def query(item: Dataset) -> Sequence[int]:
        if matches is not None and not matches(item):
            return ()
        steps = items_of(item, _STEPS)
        return [at for at, step in enumerate(steps) if step_matches is None or step_matches(step)]

    return query


def _keys(identifier: Dataset) -> Dataset:
    return Dataset({one.tag: one for one in identifier if one.tag not in _NO_KEYS and one.tag & 0xFFFF})


def _step_test(identifier: Dataset) -> ItemTest | None:
    if _STEPS in identifier and identifier[_STEPS].VR != "SQ":
        raise ValueError("Scheduled Procedure Step Sequence is no sequence")
    items = items_of(identifier, _STEPS)
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

    def within(step: Dataset) -> bool:
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
    one = Dataset({tag: item[tag] for tag in wanted.keys() if tag in item and tag != _STEPS})  # noqa: SIM118
    one.add(DataElement(_STEPS, "SQ", [items_of(item, _STEPS)[at]]))
    found = answer_item(one, wanted) if len(wanted) else Dataset()
    if "SpecificCharacterSet" in item:
        found["SpecificCharacterSet"] = item["SpecificCharacterSet"]
    return found


# --- the service


class Worklist:
    """
    An SCP of the SOP Class Modality Worklist Information Model - FIND.

    :param folder: the folder of the files.
    :param executor: the threads that read them; the caller holds it while the object is used.

    :ivar routes: the requests that it performs.
    """

    log = Logger()

    def __init__(self, folder: Path, executor: Executor) -> None:
        self._folder = WorklistFolder(folder, self._told)
        self._executor = executor
        self.routes = (Route(evt.EVT_C_FIND, ModalityWorklistInformationModelFind, self.handle_find),)

    def start(self) -> None:
        """Do nothing: each query reads the files."""

    def stop(self) -> Deferred[None]:
        """Do nothing: operations end with their associations."""
        return succeed(None)

    async def handle_find(self, event: evt.IdentifierEvent) -> AsyncIterator[tuple[int, Any]]:
        """
        Perform a query.

        :returns: yields (0xFF00, encoded identifier) for each scheduled step that matches; or ends with 0xA900 if the
            identifier cannot be read or a key is invalid, with 0xA700 if the folder cannot be read.
        """
        try:
            matches = await self._executor.run(self._find, event)
        except ValueError as error:
            yield Status(DATASET_MISMATCH, "C-FIND", str(error)[:64]), None
            return
        except OSError as error:
            event.assoc.log_refusal(self.log.error, "the worklist cannot be read: {error}", error=loggable(error))
            yield Status(OUT_OF_RESOURCES, "C-FIND", "the worklist cannot be read"), None
            return
        except ExecutorFull as error:
            event.assoc.log_refusal(self.log.error, "the worklist is not read: {error}", error=loggable(error))
            yield Status(OUT_OF_RESOURCES, "C-FIND", "too many queries wait"), None
            return
        for start in range(0, len(matches), PAGE_SIZE):
            page = matches[start : start + PAGE_SIZE]
            for encoded in await self._executor.run_admitted(self._encode, page, event):
                yield PENDING, encoded

    def _find(self, event: evt.IdentifierEvent) -> list[tuple[Dataset, int]]:
        identifier = event.identifier
        try:
            identifier.decode()
        except Exception as error:
            # pydicom may raise anything, depending on the value.
            raise DataSetError(f"a key cannot be read: {error}") from error
        query = compile_query(identifier)
        items = self._folder.items(event.assoc.requestor.called_ae_title)
        return [(item, at) for item in items for at in query(item)]

    def _encode(self, matches: Sequence[tuple[Dataset, int]], event: evt.IdentifierEvent) -> list[bytes]:
        syntax = str(event.context.transfer_syntax)
        return list(self._encoded(matches, event.identifier, syntax))

    def _encoded(self, matches: Sequence[tuple[Dataset, int]], identifier: Dataset, syntax: str) -> Iterator[bytes]:
        for item, at in matches:
            try:
                yield encode_identifier(answer(item, at, identifier), syntax)
            except DataSetError as error:
                self._told(f"an item of the worklist cannot be answered: {loggable(error)}")

    def _told(self, why: str) -> None:
        """Log a warning from a worker thread."""
        self._executor.call_in_reactor(self.log.warn, "{why}", why=why)

"""
Stored instances that are open for reading, at any position.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from tempfile import TemporaryFile
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, TypeVar

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.storage.types import InstanceUIDs, StoreError
from dicomtwist.datasets.codec import MAX_INFLATED
from dicomtwist.datasets.element_headers import DEFLATED, EXPLICIT_LITTLE_ENDIAN
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import NO_TRANSFER_SYNTAX, FileMeta, NotDicomFile, read_file_meta
from dicomtwist.runtime.work import check_wanted

__all__ = ["CHECK", "FileHead", "NotStored", "Source", "StoredFile", "StoredFiles"]

T = TypeVar("T")

#: The advice of log lines about files that are damaged, or are not those that were stored.
CHECK: Final = "'dicomtwist archive check' compares files and index"
#: The largest file that is read as a whole, in bytes.
MAX_LOADED: Final = 1024 * 1024
#: The bytes that are read to find the File Meta Information: that of most files has 300.
_HEAD: Final = 1024
#: The largest instance of a study that is read as a whole when it is its turn, in bytes; a longer one is opened.
MAX_SHORT: Final = 64 * 1024
#: The bytes that are inflated at a time.
_INFLATE_IN: Final = 64 * 1024
_INFLATE_OUT: Final = 1024 * 1024


class NotStored(StoreError):
    """The archive does not hold the instance."""


class Source:
    """
    A range of bytes in an open file, up to its end.

    :param file: the file. One thread at a time reads it.
    :param start: the position in the file that is the position 0 of the source.
    """

    __slots__ = ("_file", "_start")

    def __init__(self, file: BinaryIO, start: int = 0) -> None:
        self._file = file
        self._start = start

    def read(self, offset: int, length: int) -> bytes:
        """
        Return *length* bytes from *offset* on; fewer at the end only.

        :raises OSError: the file cannot be read.
        """
        self._file.seek(self._start + offset)
        return self._file.read(length)

    def view(self, offset: int, length: int) -> memoryview | None:
        """Return *length* bytes from *offset* on, if they are in memory; fewer at the end only."""
        return None

    @property
    def descriptor(self) -> int | None:
        """The file descriptor of the file; ``None`` if it is in memory."""
        return self._file.fileno()

    def position(self, offset: int) -> int:
        """Return the position in the file that is *offset* in the source."""
        return self._start + offset


class _Loaded(Source):
    """
    A range of bytes in memory.

    :param data: the content of the file.
    :param start: see :class:`Source`.
    """

    __slots__ = ("_view",)

    def __init__(self, data: bytes, start: int = 0) -> None:
        self._view = memoryview(data)[start:]

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._view[offset : offset + length])

    def view(self, offset: int, length: int) -> memoryview | None:
        return self._view[offset : offset + length]

    @property
    def descriptor(self) -> None:
        """There is no file."""
        return None


class FileHead(NamedTuple):
    """
    The beginning of the file of an instance.

    :ivar size: the size of the file in bytes.
    :ivar version: a text that is another one for every other content of the file.
    :ivar meta: its File Meta Information.
    :ivar start: the position of the data set in the file.
    """

    size: int
    version: str
    meta: FileMeta
    start: int


class StoredFile:
    """
    The file of an instance, open. All methods block.

    :param file: the file at its start; the object closes it.
    :param size: its size in bytes.
    :param version: a text that is another one for every other content of the file.
    :param head: the beginning of the same version, read before; without it the File Meta Information is read.

    :ivar size: the size of the file in bytes.
    :ivar version: see above.
    :ivar is_closed: whether :meth:`close` was called.
    :ivar meta: the File Meta Information.
    :ivar raw: the bytes of the file.
    :ivar start: the position of the data set in the file.
    :raises NotDicomFile: the file is no Part 10 file, or has no transfer syntax.
    """

    __slots__ = ("_data", "_file", "_inflated", "is_closed", "meta", "raw", "size", "start", "version")

    def __init__(self, file: BinaryIO, size: int, version: str, head: FileHead | None = None) -> None:
        self._file = file
        self._inflated: BinaryIO | None = None
        self._data: Source | None = None
        self.size = size
        self.version = version
        self.is_closed = False
        if head is not None and head.version == version:
            self.meta, self.start = head.meta, head.start
        else:
            try:
                self.meta, self.start = _read_meta(file)
            except BaseException:
                file.close()
                raise
        self.raw = Source(file)

    def load(self) -> None:
        """
        Read the file into memory, unless it is longer than :data:`MAX_LOADED`.

        :raises OSError: it cannot be read.
        """
        if self.size > MAX_LOADED or self._inflated is not None:
            return
        data = self.raw.read(0, self.size)
        self.raw = _Loaded(data)
        if self.meta.transfer_syntax_uid not in DEFLATED:
            self._data = _Loaded(data, self.start)
        self._file.close()

    @property
    def data(self) -> Source:
        """
        The bytes of the data set. A deflated one is inflated into a temporary file when this is first asked for.

        :raises DataSetError: it cannot be inflated.
        """
        if self._data is None:
            if self.meta.transfer_syntax_uid in DEFLATED:
                self._inflated = _inflated(self.raw, self.start)
                self._data = Source(self._inflated)
            else:
                self._data = Source(self._file, self.start)
        return self._data

    @property
    def data_syntax(self) -> str:
        """The UID of the transfer syntax of :attr:`data`."""
        syntax = self.meta.transfer_syntax_uid
        return EXPLICIT_LITTLE_ENDIAN if syntax in DEFLATED else syntax

    def close(self) -> None:
        """Close the file; idempotent."""
        self.is_closed = True
        self._file.close()
        if self._inflated is not None:
            self._inflated.close()

    def __enter__(self) -> StoredFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _read_meta(file: BinaryIO) -> tuple[FileMeta, int]:
    """
    Return the File Meta Information of a file, and the position of the data set.

    :raises NotDicomFile: the file is no Part 10 file, or has no transfer syntax.
    """
    meta, start = read_file_meta(file)
    if not meta.transfer_syntax_uid:
        raise NotDicomFile(NO_TRANSFER_SYNTAX)
    return meta, start


def _inflated(source: Source, offset: int) -> BinaryIO:
    """Inflate a data set into a temporary file, which has no name."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    file: BinaryIO = TemporaryFile()
    try:
        while not inflater.eof:
            check_wanted()
            data = source.read(offset, _INFLATE_IN)
            offset += len(data)
            if not data:
                raise DataSetError("the deflated data set ends too early")
            while data and not inflater.eof:
                some = inflater.decompress(data, _INFLATE_OUT)
                data = inflater.unconsumed_tail
                total += len(some)
                if total > MAX_INFLATED:
                    raise DataSetError(f"the deflated data set inflates to more than {MAX_INFLATED} bytes")
                file.write(some)
        file.flush()
    except zlib.error as error:
        file.close()
        raise DataSetError(f"the data set is not deflated: {error}") from error
    except BaseException:
        file.close()
        raise
    return file


class StoredFiles:
    """
    Opens the instances of an archive by their UIDs. All methods block.

    An instance that is stored, and has no file yet, gets its file.

    :param archive: the archive, open.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def open(self, uids: InstanceUIDs, head: FileHead | None = None) -> StoredFile:
        """
        Open an instance; the caller closes it.

        :param uids: its UIDs, which are valid.
        :param head: from :meth:`heads`; what it says is not read again if the file is the same.
        :raises NotStored: the archive does not hold it.
        :raises NotDicomFile: its file is damaged.
        :raises OSError: its file cannot be read.
        """
        store = self._archive.store
        self._archive.retrievals.note_opened(uids)
        file = self._present(uids, store.open)
        try:
            size, version = store.describe(file)
        except BaseException:
            file.close()
            raise
        return StoredFile(file, size, version, head)

    def _present(self, uids: InstanceUIDs, read: Callable[[str, str, str], T]) -> T:
        """
        Return what *read* returns for the file of an instance. One that has no file yet gets it.

        :raises NotStored: the archive does not hold it.
        """
        try:
            return read(*uids)
        except (FileNotFoundError, NotADirectoryError):
            self._archive.make_files()
            try:
                return read(*uids)
            except (FileNotFoundError, NotADirectoryError):
                self._archive.retrievals.note_missing([uids])
                raise NotStored("there is no such instance") from None

    def read_short(self, uids: InstanceUIDs, head: FileHead) -> bytes | None:
        """
        Return the file of an instance of up to :data:`MAX_SHORT` bytes.

        :param head: from :meth:`heads`.
        :returns: ``None`` if it is longer, or has changed, or cannot be read: :meth:`open` tells more.
        """
        if head.size > MAX_SHORT:
            return None
        try:
            found = self._archive.store.read_short(*uids, MAX_SHORT)
        except OSError:
            return None
        if found is None or found[0] != head.version or len(found[1]) < head.size:
            return None
        self._archive.retrievals.note_opened(uids)
        return found[1]

    def path(self, uids: InstanceUIDs) -> str:
        """Return the path of the file of an instance, for a process that reads it."""
        return self._archive.store.locate(*uids)

    def heads(self, instances: Iterable[InstanceUIDs]) -> list[FileHead | Exception]:
        """
        Read the beginning of the file of each instance.

        :returns: for each what it says; or why it cannot be read: :class:`NotStored` if it is missing, ``NotDicomFile`` if it
            is damaged, an ``OSError`` if the system refuses it.
        """
        found: list[FileHead | Exception] = []
        for uids in instances:
            try:
                found.append(self._present(uids, self._head))
            except (NotStored, NotDicomFile, OSError) as error:
                found.append(error)
        return found

    def _head(self, study_uid: str, series_uid: str, instance_uid: str) -> FileHead:
        store = self._archive.store
        size, version, data = store.head(study_uid, series_uid, instance_uid, _HEAD)
        try:
            return FileHead(size, version, *_read_meta(BytesIO(data)))
        except NotDicomFile:
            if len(data) < _HEAD:
                raise
        # The File Meta Information is longer than others, or damaged.
        with store.open(study_uid, series_uid, instance_uid) as file:
            return FileHead(*store.describe(file), *_read_meta(file))

    def versions(self, study_uid: str, series_uid: str) -> Mapping[str, str]:
        """
        Return the SOP Instance UIDs of a series, each with a text that is another one for every other content of its file.

        :returns: an empty mapping if there is no such series.
        :raises OSError: the folder cannot be read.
        """
        self._archive.make_files()
        return self._archive.store.versions(study_uid, series_uid)

    def series_of(self, study_uid: str) -> list[str]:
        """
        Return the Series Instance UIDs of a study, sorted.

        :returns: an empty list if there is no such study.
        :raises OSError: the folder cannot be read.
        """
        self._archive.make_files()
        return self._archive.store.series_of(study_uid)

"""
Writing one instance to disk piece by piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dicomtwist.archive.storage.system_calls import Buffer
from dicomtwist.archive.storage.temporary_files import TemporaryFiles
from dicomtwist.archive.storage.types import StoreClosed, Written

__all__ = ["InstanceWriter"]


class InstanceWriter:
    """Writes one instance; made by :meth:`~dicomtwist.archive.storage.file_store.InstanceStore.create`.

    Any failure removes the temporary file and closes the writer; so does :meth:`discard`.

    :param files: the temporary files of the store; the writer adds one.
    :raises OSError: the file cannot be made.
    """

    __slots__ = ("_file", "_files", "_hash")

    def __init__(self, files: TemporaryFiles) -> None:
        self._files = files
        self._file = files.create()
        self._hash = hashlib.sha256() if files.syncs else None

    @property
    def size(self) -> int:
        """How many bytes have been written."""
        return self._file.size

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append buffers, all bytes of them.

        :param buffers: any number of buffers, each contiguous.
        :raises OSError: as it came, errno intact; the temporary file has been removed.
        :raises StoreClosed: the writer has ended.
        """
        self._check_open()
        try:
            self._files.append(self._file, buffers)
            if self._hash is not None:
                # Hashed here, while the system writes these bytes and the rest has not arrived yet.
                for buffer in buffers:
                    self._hash.update(buffer)
        except BaseException:
            self.discard()
            raise

    def seal(self) -> Written:
        """Complete the temporary file; with durability full it is on the medium afterwards.

        :returns: the file, which belongs to the caller from then on.
        :raises OSError: as it came, errno intact; the temporary file has been removed.
        :raises StoreClosed: the writer has ended.
        """
        self._check_open()
        return self._files.seal(self._file, b"" if self._hash is None else self._hash.digest())

    def discard(self) -> None:
        """Remove the temporary file; idempotent, and does nothing after :meth:`seal`."""
        self._files.discard(self._file)

    def _check_open(self) -> None:
        if self._file.fd < 0:
            raise StoreClosed("this instance has been committed or discarded")

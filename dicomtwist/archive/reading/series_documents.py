"""
The documents of all series (:mod:`~dicomtwist.archive.reading.series_document`), beside the instances.

A document is made, or extended, when it is first asked for; and before that, when no instance of its series has arrived for
some seconds. It tells which copy of each instance it has. That is compared with the files whenever it is asked for, so that no
document is out of date, whatever has changed the files, and a document that is lost or damaged is made again.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.reading.metadata import MetadataEncoder
from dicomtwist.archive.reading.series_document import InvalidDocument, SeriesDocument, SeriesDocumentWriter
from dicomtwist.archive.reading.stored_file import CHECK, NotStored, StoredFiles
from dicomtwist.errors import loggable
from dicomtwist.runtime.executors import Executors, Runner, is_turn_over, run_in_turns

__all__ = ["SeriesDocuments"]

#: The folder of the documents. Document and series have the same UIDs, with an underscore between them.
FOLDER: Final = ".metadata"
#: The longest document that is read, in bytes.
MAX_DOCUMENT: Final = 256 * 1024 * 1024
#: The time without a new instance after which the document of a series is made, in seconds.
QUIET: Final = 5.0
#: The time between two looks for such series, in seconds.
LOOK: Final = 1.0
#: The most series that wait for that; the documents of others are made when they are asked for.
MAX_WAITING: Final = 10_000

#: Study and Series Instance UID.
_Key: TypeAlias = tuple[str, str]


class SeriesDocuments:
    """
    Reads the documents of series, and makes those that are missing.

    :param archive: the archive, open.
    :param files: opens its instances.
    :param executors: the threads; the caller holds them while the object is used.
    """

    log = Logger()

    def __init__(self, archive: Archive, files: StoredFiles, executors: Executors) -> None:
        self._files = files
        self._executors = executors
        self._default_charset = archive.default_charset
        self._folder = archive.store.side_folder(FOLDER)
        self._made: dict[_Key, list[Deferred[SeriesDocument | None]]] = {}
        self._changed: dict[_Key, float] = {}
        self._is_stopped = False
        self._is_making = False
        self._looking: IDelayedCall | None = None

    def document(self, study_uid: str, series_uid: str, peer: str = "") -> Deferred[SeriesDocument | None]:
        """
        Return the document of a series as it is now.

        :param peer: the host of the client; its calls never take all threads.
        :returns: a Deferred with the document, ``None`` if there is no such series. It fails with an :class:`OSError`, or with
            :class:`~dicomtwist.errors.ExecutorFull`. Cancelling it does not end the work, whose result the next one has.
        """
        return self._document((study_uid, series_uid), self._executors.retrieval.share(peer))

    def _document(self, key: _Key, executor: Runner) -> Deferred[SeriesDocument | None]:
        is_first = key not in self._made
        waiting = self._made.setdefault(key, [])
        result: Deferred[SeriesDocument | None] = Deferred(waiting.remove)
        waiting.append(result)
        if not is_first:
            return result

        def deliver(outcome: SeriesDocument | Failure | None) -> None:
            for one in self._made.pop(key):
                one.callback(outcome)  # a Failure fails it

        Deferred.fromCoroutine(run_in_turns(executor, self._make(*key))).addBoth(deliver)
        return result

    # --- in threads

    def _make(self, study_uid: str, series_uid: str) -> Generator[None, None, SeriesDocument | None]:
        """Read the document of a series, or make it; leave the thread when the turn is over."""
        name = f"{study_uid}_{series_uid}"
        versions = self._files.versions(study_uid, series_uid)
        if not versions:
            self._folder.remove(name)
            return None
        earlier = self._read(name)
        if earlier is not None and earlier.versions == versions:
            return earlier
        writer = SeriesDocumentWriter(versions, earlier)
        encoder = MetadataEncoder(self._default_charset)
        failures: list[str] = []
        is_complete = True
        for uid in writer.missing:
            if is_turn_over():
                yield
            try:
                with self._files.open((study_uid, series_uid, uid)) as stored:
                    version = stored.version
                    metadata = encoder.encode((study_uid, series_uid, uid), stored)
            except NotStored:
                continue  # removed meanwhile
            except Exception as error:
                # The other instances are in the document.
                failures.append(loggable(error))
                is_complete = is_complete and not isinstance(error, OSError)  # which may be over at the next request
                version, metadata = versions[uid], b""
            writer.add(uid, version, metadata)
        document = writer.finish()
        if failures:
            self.log.error(
                "the metadata of {count} instances of series {series} cannot be read, the first: {reason}; {check}",
                count=len(failures),
                series=series_uid,
                reason=failures[0],
                check=CHECK,
            )
        if is_complete:
            self._write(name, document)
        return document

    def _read(self, name: str) -> SeriesDocument | None:
        try:
            return SeriesDocument.decode(self._folder.read(name, MAX_DOCUMENT))
        except FileNotFoundError:
            return None
        except (OSError, InvalidDocument) as error:
            self.log.info("the document of metadata {name} is made again: {reason}", name=name, reason=loggable(error))
            return None

    def _write(self, name: str, document: SeriesDocument) -> None:
        try:
            self._folder.put(document.encode(), name)
        except OSError as error:
            # It is made again for the next request.
            self.log.info("the document of metadata {name} is not kept: {reason}", name=name, reason=loggable(error))

    # --- before they are asked for, in the reactor thread

    def changed(self, study_uid: str, series_uid: str) -> None:
        """Note that an instance of a series is stored: its document is made when no further one arrives."""
        if self._is_stopped:
            return
        key = (study_uid, series_uid)
        self._changed.pop(key, None)
        if len(self._changed) >= MAX_WAITING:
            del self._changed[next(iter(self._changed))]
        executor = self._executors.housekeeping
        self._changed[key] = executor.seconds()
        if self._looking is None and not self._is_making:
            self._looking = executor.call_later(QUIET, self._look)

    def stop(self) -> None:
        """Make no further documents before they are asked for."""
        self._is_stopped = True
        self._changed.clear()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> None:
        """Make the document of the series that has been quiet for the longest time, then the next."""
        self._looking = None
        if self._is_stopped or not self._changed:
            return
        executor = self._executors.housekeeping
        key, changed = next(iter(self._changed.items()))
        if executor.seconds() - changed < QUIET:
            self._looking = executor.call_later(LOOK, self._look)
            return
        del self._changed[key]
        self._is_making = True
        self._document(key, executor).addErrback(self._not_made).addCallback(self._next)

    def _not_made(self, reason: Failure) -> None:
        self.log.info("a document of metadata is not made: {reason}", reason=loggable(reason.value))

    def _next(self, _: object) -> None:
        self._is_making = False
        self._look()

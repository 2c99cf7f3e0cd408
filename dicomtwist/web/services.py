"""
The services that handlers of requests use: an archive, and what HTTP adds to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dicomtwist.archive.query.search import Finder
from dicomtwist.archive.reading.frames import FrameTables
from dicomtwist.archive.reading.series_documents import SeriesDocuments
from dicomtwist.archive.reading.stored_file import StoredFiles
from dicomtwist.archive.removal.remover import Deleted
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.forwarding.operators.queue import ForwardQueue
from dicomtwist.pixels.pool import Pixels
from dicomtwist.runtime.networks import Networks
from dicomtwist.web.http.limits import HTTPLimits
from dicomtwist.web.image_cache import ImageCache
from dicomtwist.web.monitoring.monitor import Monitor
from dicomtwist.web.monitoring.overview import Overview
from dicomtwist.web.response_cache import ResponseCache

__all__ = ["Services"]


@dataclass(slots=True)
class Services:
    """
    The services of a :class:`~dicomtwist.web.resource.DICOMwebResource`.

    :ivar archive_server: the archive with its services: ``.archive``, ``.ingest``, ``.access``, ``.ae.executors``.
    :ivar reactor: the reactor; a clock in tests.
    :ivar limits: the limits on requests.
    :ivar public_url: the URL of the resource as clients know it, such as ``https://pacs.example/dicom-web``; empty if
        clients use the address of this server.
    :ivar origins: the origins of web pages that may use the resource; ``*`` for any.
    :ivar trusted_proxies: the proxies whose ``X-Forwarded-`` fields are believed.
    :ivar pixels: the processes that decode and render pixel data, ``None`` without them.
    :ivar monitor: collects the metrics of this process, ``None`` without ``/metrics``.
    :ivar overview: the whole server as an operator sees it, ``None`` without ``/api``.
    :ivar queue: the queue of forwarding, ``None`` if this server cannot forward.
    :ivar files: opens stored instances.
    :ivar frame_tables: finds their frames.
    :ivar rendered: rendered images that are kept.
    :ivar documents: the metadata of series.
    :ivar finder: searches the index.
    :ivar compressed: recent metadata, compressed.
    """

    archive_server: ArchiveServer
    reactor: Any
    limits: HTTPLimits = field(default_factory=HTTPLimits)
    public_url: str = ""
    origins: frozenset[str] = frozenset()
    trusted_proxies: Networks = field(default_factory=lambda: Networks(loopback=True, unix=True))
    pixels: Pixels | None = None
    files: StoredFiles = field(init=False)
    frame_tables: FrameTables = field(init=False)
    monitor: Monitor | None = None
    overview: Overview | None = None
    queue: ForwardQueue | None = None
    rendered: ImageCache = field(default_factory=ImageCache)
    documents: SeriesDocuments = field(init=False)
    finder: Finder = field(init=False)
    compressed: ResponseCache = field(init=False)

    def __post_init__(self) -> None:
        server = self.archive_server
        executors = server.ae.executors
        self.files = StoredFiles(server.archive)
        self.frame_tables = FrameTables()
        self.compressed = ResponseCache()
        self.documents = SeriesDocuments(server.archive, self.files, executors)
        self.finder = Finder(server.archive, executors.querying, server.ae.ae_title)

    def start(self) -> None:
        """Make the documents of series when no further instance of them arrives, and begin the history of figures."""
        if self.overview is not None:
            self.overview.start()
        self.archive_server.ingest.listeners.append(self.documents.changed)
        self.archive_server.deletion.listeners.append(self._deleted)

    def _deleted(self, deleted: Deleted, by: str) -> None:
        for series in deleted.series:
            self.documents.changed(deleted.uids[0], series)

    def stop(self) -> None:
        """End what :meth:`start` has begun; idempotent."""
        self.documents.stop()
        if self.overview is not None:
            self.overview.stop()
        listeners = self.archive_server.ingest.listeners
        if self.documents.changed in listeners:
            listeners.remove(self.documents.changed)
            self.archive_server.deletion.listeners.remove(self._deleted)

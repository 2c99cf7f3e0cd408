"""The one line of the log about a disk that is full, whatever is refused for it."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.archive.services.no_room import INTERVAL, NoRoomLog
from dicomtwist.archive.storage.system_calls import Buffer, FileSystem
from dicomtwist.archive.storage.types import IndexFailed, lacks_room
from dicomtwist.runtime.executors import Executors
from dicomtwist.sop_class import ModalityPerformedProcedureStep, StorageCommitmentPushModel
from dicomtwist.transport.peer_directory import Peers
from tests.archive.services.test_mpps import step
from tests.archive.services.test_storage_commitment import ONE, asking_for
from tests.memory import MemoryTestCase

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Filling(FileSystem):
    """A disk that is full after a while."""

    is_full = False

    def writev(self, fd: int, buffers: Sequence[Buffer]) -> int:
        if self.is_full:
            raise FULL
        return super().writev(fd, buffers)


def index_error(on_a_full_disk: bool) -> IndexFailed:
    """Return what the index raises: SQLite's own error inside that of SQLAlchemy."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
        connection.execute(text("PRAGMA max_page_count = 2"))
        try:
            wrong = "INSERT INTO t VALUES (zeroblob(100000))" if on_a_full_disk else "SELECT x FROM nothing"
            connection.execute(text(wrong))
        except OperationalError as error:
            failed = IndexFailed("index")
            failed.__cause__ = error
            assert isinstance(error.orig, sqlite3.Error)
            return failed
    raise AssertionError("it succeeded")


class NoRoom(MemoryTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.lines: list[str] = []

        def look(event: LogEvent) -> None:
            if event.get("log_level") and event["log_level"].name in ("warn", "error", "critical"):
                self.lines.append(formatEvent(event))

        observer = cast(ILogObserver, look)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def test_lacks_room(self) -> None:
        for error, is_one in (
            (FULL, True),
            (OSError(errno.EROFS, ""), True),
            (OSError(errno.EIO, ""), False),
            (OSError("no number"), False),
            (ValueError("full"), False),
            (index_error(True), True),
            (index_error(False), False),
            (IndexFailed("index: it is closed"), False),
        ):
            self.assertEqual(lacks_room(error), is_one, error)

    def test_counts(self) -> None:
        class Storage:
            def room(self) -> tuple[str, int]:
                return "/srv/dicom", 2048

        log = NoRoomLog(Storage(), Executors(self.network).housekeeping)
        self.assertFalse(log.takes(OSError(errno.EIO, "")))
        for what in ("instance", "performed procedure step", "instance", "instance"):
            self.assertTrue(log.takes(FULL, what))
        self.network.flush()
        self.network.advance(INTERVAL)
        self.assertTrue(log.takes(FULL))
        self.network.flush()
        first, second = self.lines
        self.assertIn("there is no room in /srv/dicom: 2.05 kB free; ", first)
        self.assertIn("; 3 instances and 1 performed procedure step refused since", first)
        self.assertIn("; 1 instance refused since", second)

    def test_services_share_it(self) -> None:
        """Performed procedure steps and storage commitments, on several associations, are in one line."""
        archive = Archive(Path(self.mktemp()), file_system=(file_system := Filling()))
        archive.open()
        file_system.is_full = True
        server = ArchiveServer(self.scp, archive, Peers(self.network))
        server.start()

        def stop() -> None:
            self.network.result_of(server.stop())
            server.close()

        self.addCleanup(stop)
        self.listen(*server.handlers())
        for uid in (ModalityPerformedProcedureStep, StorageCommitmentPushModel):
            self.scu.add_requested_context(uid)
        answers: list[Any] = []
        for number in range(3):
            association = self.associate()
            created = association.send_n_create(step(), ModalityPerformedProcedureStep, f"1.2.{number}")
            answers.append(self.network.result_of(created)[0])
            asked = association.send_n_action(asking_for(ONE), 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
            answers.append(self.network.result_of(asked)[0])
        self.assertEqual([int(one) for one in answers], [0x0213] * 6)
        self.assertEqual({one.error_comment for one in answers}, {"the disk is full (ENOSPC)"})
        (line,) = self.lines
        self.assertIn(f"there is no room in {archive.root}", line)

"""Storage commitment: the response, the report and its ways, and surviving a restart."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from unittest import mock

from pydicom import Dataset
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher

from dicomtwist import Association, Status, build_context, evt
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.services import commitment_journal, storage_commitment
from dicomtwist.archive.services.commitment_journal import FOLDER, Transactions, TransactionUnreadable
from dicomtwist.archive.services.storage_commitment import (
    FIRST_DELAY,
    LONGEST_DELAY,
    PAUSE,
    REPORT_FOR,
    StorageCommitment,
)
from dicomtwist.archive.storage.system_calls import FileSystem
from dicomtwist.archive.storage.types import Durability
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.runtime.executors import Executors
from dicomtwist.scp.dispatch import dispatch
from dicomtwist.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from dicomtwist.transport.peer_directory import Peers
from dicomtwist.ul.pdu import AAssociateRQ
from tests.archive.samples import SECONDARY_CAPTURE, dataset, keep
from tests.archive.test_ingest import Failing
from tests.memory import CT, MemoryTestCase

TRANSACTION = "1.2.99.1"
SECONDS = 1_700_000_000.0


def asking_for(*uids: str, sop_class: str = SECONDARY_CAPTURE, transaction: str = TRANSACTION) -> Dataset:
    """Action Information for instances."""
    information = Dataset()
    information.TransactionUID = transaction
    information.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = uid
        information.ReferencedSOPSequence.append(item)
    return information


class Reports:
    """A handler of EVT_N_EVENT_REPORT that collects the reports as (type, held, failed with reason)."""

    def __init__(self) -> None:
        self.all: list[tuple[int, list[str], dict[str, int]]] = []
        self.information: list[Dataset] = []
        self.associations: list[AssociationInterface] = []
        self.status: int | Deferred[int] = 0

    def __call__(self, event: evt.EventReportEvent) -> Any:
        information = event.event_information
        held = [item.ReferencedSOPInstanceUID for item in information.get("ReferencedSOPSequence") or ()]
        failed = {
            item.ReferencedSOPInstanceUID: item.FailureReason for item in information.get("FailedSOPSequence") or ()
        }
        self.all.append((event.event_type, held, failed))
        self.information.append(information)
        self.associations.append(event.assoc)
        return self.status


class CommitmentTestCase(MemoryTestCase):
    """An archive with two instances, and a modality that requests a commitment for them."""

    durability = Durability.FULL
    peers: tuple[str, ...] = ("SCU=tcp:127.0.0.1:106",)

    def setUp(self) -> None:
        super().setUp()
        self.scp.supported_contexts = [build_context(StorageCommitmentPushModel)]
        self.scu.requested_contexts = [build_context(StorageCommitmentPushModel)]
        self.scu.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        self.root = Path(self.mktemp())
        self.reports = Reports()
        self.started = 0.0
        self.open()
        for number in (1, 2):
            self.assertIsNone(keep(self.archive, dataset(number)))

    def tearDown(self) -> None:
        self.stop()
        super().tearDown()

    #: The seconds by which the wall clock was set forward.
    step = 0.0

    def open(self, file_system: FileSystem | None = None, **options: Any) -> None:
        """Start the archive."""
        self.archive = Archive(self.root, durability=self.durability, file_system=file_system)
        self.archive.open()
        self.commitment = StorageCommitment(
            self.archive,
            Executors(self.network).housekeeping,
            self.scp,
            Peers(self.network, self.peers),
            clock=lambda: SECONDS + self.network.seconds() + self.step,
            **options,
        )
        self.commitment.start()
        self.server = self.listen(*dispatch(self.commitment.routes))

    def stop(self) -> None:
        """Stop it."""
        stopping = self.commitment.stop()
        self.network.flush()
        self.successResultOf(stopping)
        self.network.result_of(self.server.shutdown(0))
        self.archive.close()

    def restart(self, **options: Any) -> None:
        self.stop()
        self.open(**options)

    def modality(self, **options: Any) -> None:
        """Let the modality listen for reports."""
        handlers = [(evt.EVT_N_EVENT_REPORT, self.reports)]
        self.modality_server = self.network.result_of(self.scu.start_server(106, evt_handlers=handlers, **options))

    def ask(
        self, information: Dataset, action: int = 1, instance: str = StorageCommitmentPushModelInstance, **options: Any
    ) -> tuple[Status, Association]:
        """Request a commitment on an association of its own, which stays open."""
        assoc = self.associate(**options)
        asking = assoc.send_n_action(information, action, StorageCommitmentPushModel, instance)
        self.network.flush()
        status, reply = self.successResultOf(asking)
        self.assertIsNone(reply)
        return status, assoc

    def ask_and_leave(self, information: Dataset) -> Status:
        """Request a commitment and release the association at once."""
        status, assoc = self.ask(information)
        self.network.result_of(assoc.release())
        return status

    def files(self) -> list[str]:
        folder = self.root / FOLDER
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def path(self, number: int) -> Path:
        return self.root / "1.2.1" / "1.2.1.1" / f"1.2.1.1.{number}.dcm"


ONE, TWO, NONE = "1.2.1.1.1", "1.2.1.1.2", "1.2.1.1.3"


class SameAssociation(CommitmentTestCase):
    """The modality waits for the report on the association of its request."""

    def report(self, information: Dataset) -> tuple[int, list[str], dict[str, int]]:
        status, assoc = self.ask(information, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.reports)])
        self.assertEqual(status, 0)
        self.assertEqual(self.reports.all, [])
        self.assertEqual(len(self.files()), 1)
        self.network.advance(PAUSE)
        self.assertEqual(self.reports.associations, [assoc])
        self.assertEqual(self.files(), [])
        self.assertEqual(self.commitment.unreported, 0)
        self.reports.associations.clear()
        return self.reports.all.pop()

    def test_all_are_held(self) -> None:
        self.assertEqual(self.report(asking_for(ONE, TWO)), (1, [ONE, TWO], {}))
        information = self.reports.information[0]
        self.assertEqual(information.TransactionUID, TRANSACTION)
        self.assertEqual(information.RetrieveAETitle, "SCP")
        self.assertNotIn("FailedSOPSequence", information)

    def test_one_is_not_there(self) -> None:
        self.assertEqual(self.report(asking_for(ONE, NONE)), (2, [ONE], {NONE: 0x0112}))

    def test_none_is_there(self) -> None:
        self.assertEqual(self.report(asking_for(NONE)), (2, [], {NONE: 0x0112}))
        self.assertNotIn("ReferencedSOPSequence", self.reports.information[0])

    def test_another_sop_class(self) -> None:
        self.assertEqual(self.report(asking_for(ONE, sop_class=CT)), (2, [], {ONE: 0x0119}))

    def test_the_file_is_gone(self) -> None:
        self.path(1).unlink()
        self.assertEqual(self.report(asking_for(ONE, TWO)), (2, [TWO], {ONE: 0x0110}))

    def test_the_file_is_damaged(self) -> None:
        whole = self.path(1).read_bytes()
        transfer_syntax = whole.index(b"1.2.840.10008.1.2.1")
        for damaged in (
            whole[:-1],
            whole + b"\0\0",
            b"\0" * len(whole),
            whole.replace(b"1.2.1.1.1", b"1.2.1.1.9"),
            whole[: transfer_syntax + 18] + b"2" + whole[transfer_syntax + 19 :],
        ):
            self.path(1).write_bytes(damaged)
            self.assertEqual(self.report(asking_for(ONE)), (2, [], {ONE: 0x0110}))
        self.path(1).write_bytes(whole)
        self.assertEqual(self.report(asking_for(ONE)), (1, [ONE], {}))

    def test_a_bit_is_flipped(self) -> None:
        """Only the digest reveals it, which the index has with durability full."""
        damaged = bytearray(self.path(1).read_bytes())
        damaged[damaged.index(b"Doe^John")] ^= 1
        self.path(1).write_bytes(damaged)
        held = self.durability is Durability.NONE
        self.assertEqual(self.report(asking_for(ONE)), (1, [ONE], {}) if held else (2, [], {ONE: 0x0110}))

    def test_many(self) -> None:
        uids = [f"1.2.3.{number}" for number in range(500)]
        event_type, held, failed = self.report(asking_for(ONE, *uids, TWO))
        self.assertEqual((event_type, held), (2, [ONE, TWO]))
        self.assertEqual(failed, dict.fromkeys(uids, 0x0112))

    def test_the_report_is_not_taken_there(self) -> None:
        """The report is then sent on a new association to the modality."""
        self.modality()
        self.reports.status = 0x0110
        _, assoc = self.ask(asking_for(ONE), evt_handlers=[(evt.EVT_N_EVENT_REPORT, lambda event: 0x0110)])
        self.reports.status = 0
        self.network.advance(PAUSE)
        self.assertEqual(self.reports.all, [(1, [ONE], {})])
        self.assertNotEqual(self.reports.associations, [assoc])

    def test_asked_again(self) -> None:
        """Nothing is reported twice, and a repeated request does not wait for the next attempt."""
        self.ask_and_leave(asking_for(ONE))
        self.network.advance(PAUSE)
        self.assertEqual(len(self.files()), 1)
        self.assertEqual(self.report(asking_for(ONE)), (1, [ONE], {}))

    def test_the_transaction_uid_is_in_use(self) -> None:
        self.ask_and_leave(asking_for(ONE))
        status, _ = self.ask(asking_for(TWO), evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.reports)])
        self.assertEqual(status, 0)
        self.network.advance(PAUSE)
        self.assertEqual(self.reports.all, [(2, [], {TWO: 0x0131})])
        self.assertEqual(self.commitment.unreported, 1)


class Relaxed(SameAssociation):
    """Durability none: instances are synced before the archive commits to them."""

    durability = Durability.NONE

    def test_synced(self) -> None:
        synced = []
        fsync = os.fsync

        def noting(fd: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))
            fsync(fd)

        with mock.patch.object(os, "fsync", noting):
            self.report(asking_for(ONE))
        there = self.path(1).absolute()
        self.assertEqual(synced, [str(there), *(str(folder) for folder in list(there.parents)[:3])])


class AnotherAssociation(CommitmentTestCase):
    """The modality has released its association, and listens for another."""

    def test_reported(self) -> None:
        self.modality()
        self.assertEqual(self.ask_and_leave(asking_for(ONE, NONE)), 0)
        self.network.advance(PAUSE)
        self.assertEqual(self.reports.all, [(2, [ONE], {NONE: 0x0112})])
        self.assertEqual(self.files(), [])
        (assoc,) = self.reports.associations
        self.assertEqual((assoc.requestor.ae_title, assoc.acceptor.ae_title), ("SCP", "SCU"))
        self.assertTrue(assoc.is_released)

    def test_the_role_is_proposed(self) -> None:
        peer = self.network.scripted_server(106)
        self.ask_and_leave(asking_for(ONE))
        self.network.advance(PAUSE)
        (request,) = [pdu for pdu in peer.take() if isinstance(pdu, AAssociateRQ)]
        (role,) = request.user_information.roles
        self.assertEqual((role.scu_role, role.scp_role), (False, True))

    def test_a_peer_that_does_not_answer_roles(self) -> None:
        self.scu.supported_contexts = [build_context(StorageCommitmentPushModel)]
        self.modality()
        self.ask_and_leave(asking_for(ONE))
        self.network.advance(PAUSE)
        self.assertEqual(self.reports.all, [(1, [ONE], {})])
        self.assertFalse(self.reports.associations[0].accepted_contexts[0].as_scu)

    def test_tried_again(self) -> None:
        """The report is retried at growing intervals until the modality is reachable."""
        self.ask_and_leave(asking_for(ONE))
        attempts: list[float] = []
        associate = self.scp.associate

        def counted(*args: Any, **options: Any) -> Any:
            attempts.append(self.network.seconds())
            return associate(*args, **options)

        with mock.patch.object(self.scp, "associate", counted):
            self.network.advance(PAUSE + 2 * 3600)
            gaps = [round(after - before) for before, after in pairwise(attempts)]
            self.assertEqual(gaps[:7], [FIRST_DELAY * 2**number for number in range(6)] + [LONGEST_DELAY])
            self.assertEqual(set(gaps[6:]), {LONGEST_DELAY})
            self.modality()
            self.network.advance(LONGEST_DELAY)
        self.assertEqual(self.reports.all, [(1, [ONE], {})])
        self.assertEqual(self.files(), [])

    def test_refused_reports_are_tried_again(self) -> None:
        self.modality()
        self.reports.status = 0x0110
        self.ask_and_leave(asking_for(ONE))
        self.network.advance(PAUSE)
        self.assertEqual(len(self.files()), 1)
        self.reports.status = 0
        self.network.advance(FIRST_DELAY)
        self.assertEqual(self.reports.all, [(1, [ONE], {})] * 2)
        self.assertEqual(self.files(), [])

    def test_given_up(self) -> None:
        self.ask_and_leave(asking_for(ONE))
        self.network.advance(REPORT_FOR)
        self.assertEqual(len(self.files()), 1)
        self.network.advance(2 * LONGEST_DELAY)
        self.assertEqual(self.files(), [])
        self.assertEqual(self.commitment.unreported, 0)

    def test_a_wall_clock_that_steps(self) -> None:
        """It gives nothing up too early, and keeps nothing for ever, also if it is wrong at a start."""
        for step in (10 * REPORT_FOR, -10 * REPORT_FOR):
            with self.subTest(step=step):
                self.ask_and_leave(asking_for(ONE))
                self.network.advance(FIRST_DELAY)
                self.step += step
                self.network.advance(REPORT_FOR / 2)
                self.assertEqual(self.commitment.unreported, 1)
                self.network.advance(REPORT_FOR / 2 + 2 * LONGEST_DELAY)
                self.assertEqual((self.files(), self.commitment.unreported), ([], 0))
        self.ask_and_leave(asking_for(ONE))
        self.step -= 10 * REPORT_FOR
        self.restart()
        self.network.advance(REPORT_FOR + 2 * LONGEST_DELAY)
        self.assertEqual((self.files(), self.commitment.unreported), ([], 0))

    def test_it_survives_a_restart(self) -> None:
        self.ask_and_leave(asking_for(ONE, NONE))
        self.restart()
        self.assertEqual(self.commitment.unreported, 1)
        self.modality()
        self.network.advance(PAUSE)
        self.assertEqual(self.reports.all, [(2, [ONE], {NONE: 0x0112})])
        self.assertEqual(self.files(), [])

    def test_one_process_of_several_takes_up(self) -> None:
        self.ask_and_leave(asking_for(ONE))
        self.restart(takes_up=False)
        self.assertEqual(self.commitment.unreported, 0)
        self.restart()
        self.assertEqual(self.commitment.unreported, 1)

    def test_what_was_found_survives_too(self) -> None:
        """An instance is checked once, and the result of that check is reported."""
        self.ask_and_leave(asking_for(ONE))
        self.network.advance(PAUSE)
        self.restart()
        self.modality()
        with mock.patch.object(storage_commitment, "verify", side_effect=AssertionError):
            self.network.advance(PAUSE)
        self.assertEqual(self.reports.all, [(1, [ONE], {})])

    def test_stopped_while_it_reports(self) -> None:
        self.modality()
        self.reports.status = Deferred()
        self.ask_and_leave(asking_for(ONE))
        self.network.advance(PAUSE)
        self.assertEqual(len(self.reports.all), 1)
        self.restart()
        self.assertEqual(len(self.files()), 1)
        self.reports.status = 0
        self.network.advance(PAUSE)
        self.assertEqual(len(self.reports.all), 2)
        self.assertEqual(self.files(), [])

    def test_a_file_that_cannot_be_read(self) -> None:
        self.ask_and_leave(asking_for(ONE))
        (name,) = self.files()
        path = self.root / FOLDER / name
        content = path.read_bytes()
        for damaged in (
            b"",
            b"[]",
            content[:-9],
            content.replace(b'"version": 1', b'"version": 2'),
            content.replace(b"null", b"[]"),
        ):
            path.write_bytes(damaged)
            self.assertRaises(TransactionUnreadable, self.commitment._transactions.load, name)
        with mock.patch.object(commitment_journal, "MAX_FILE_LENGTH", 10):
            self.assertRaises(TransactionUnreadable, self.commitment._transactions.load, name)
        self.restart()
        self.assertEqual(self.commitment.unreported, 0)
        self.assertEqual(self.files(), [name])

    def test_a_file_that_goes_away(self) -> None:
        self.ask_and_leave(asking_for(ONE))
        (name,) = self.files()
        (self.root / FOLDER / name).unlink()
        self.network.advance(PAUSE)
        self.assertEqual(self.commitment.unreported, 0)


class Unknown(CommitmentTestCase):
    """The address of the modality is not known."""

    peers = ()

    def test_it_waits(self) -> None:
        self.ask_and_leave(asking_for(ONE))
        self.network.advance(PAUSE + FIRST_DELAY)
        self.assertEqual(len(self.files()), 1)


class Refused(CommitmentTestCase):
    def refused(self, information: Dataset, code: int, **options: Any) -> None:
        lines: list[str] = []
        look = cast(ILogObserver, lambda event: lines.append(formatEvent(event)))
        globalLogPublisher.addObserver(look)
        self.addCleanup(globalLogPublisher.removeObserver, look)
        status, assoc = self.ask(information, **options)
        self.assertEqual(f"{status:04X}", f"{code:04X}", status.error_comment)
        told = [line for line in lines if " was refused: " in line or "there is no room in" in line]
        self.assertLessEqual(len(told), 1)
        if code != 0x0213:
            self.assertEqual(len(told), 1, lines)
        self.network.result_of(assoc.release())
        self.assertEqual(self.files(), [])
        self.assertEqual(self.commitment.unreported, 0)

    def test_other_actions(self) -> None:
        self.refused(asking_for(ONE), 0x0123, action=2)
        self.refused(asking_for(ONE), 0x0112, instance="1.2.3")

    def test_what_is_missing(self) -> None:
        self.refused(asking_for(), 0x0115)
        self.refused(asking_for(ONE, transaction=""), 0x0115)
        self.refused(asking_for(ONE, ""), 0x0115)
        self.refused(asking_for(ONE, sop_class=""), 0x0115)

    def test_uids_that_are_none(self) -> None:
        self.refused(asking_for(ONE, transaction="../x"), 0x0115)
        self.refused(asking_for("1.2.x"), 0x0115)

    def test_too_many(self) -> None:
        with mock.patch.object(storage_commitment, "MAX_REFERENCES", 1):
            self.refused(asking_for(ONE, TWO), 0x0213)
        with mock.patch.object(storage_commitment, "MAX_TRANSACTIONS", 0):
            self.refused(asking_for(ONE), 0x0213)

    def test_no_room(self) -> None:
        for code, status in ((errno.ENOSPC, 0x0213), (errno.EIO, 0x0110)):
            self.restart(file_system=Failing("writev", code, 1))
            self.refused(asking_for(ONE), status)
        self.restart()
        self.assertEqual(self.ask_and_leave(asking_for(ONE)), 0)

    def test_names_of_other_files_are_passed_over(self) -> None:
        self.ask_and_leave(asking_for(ONE))
        (name,) = self.files()
        (self.root / FOLDER / "readme.txt").write_text("hello")
        self.assertEqual(list(Transactions(self.archive.store).names()), [name])

"""An archive with its services, wired in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dicomtwist import build_context
from dicomtwist.access.enforcement import Policy
from dicomtwist.access.rules import parse_rules
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.archive.services.commitment_journal import Transaction
from dicomtwist.dimse.status import NOT_AUTHORISED
from dicomtwist.sop_class import (
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationModelFind,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
)
from dicomtwist.transport.peer_directory import Peers
from tests.archive.samples import SECONDARY_CAPTURE, dataset, files
from tests.memory import MemoryTestCase


class Wiring(MemoryTestCase):
    """The parts of a server work together over a network in memory."""

    def make(self, **options: Any) -> ArchiveServer:
        self.root = Path(self.mktemp())
        archive = Archive(self.root)
        archive.open()
        server = ArchiveServer(self.scp, archive, Peers(self.network), **options)
        self.addCleanup(server.close)
        self.scp.add_supported_context(SECONDARY_CAPTURE)
        return server

    def supported(self) -> set[str]:
        return {str(context.abstract_syntax) for context in self.scp.supported_contexts}

    def test_contexts(self) -> None:
        """The SOP Classes of its services are supported contexts; that of the worklist only if there is one."""
        self.make()
        self.assertGreaterEqual(
            self.supported(),
            {
                *(str(ModalityPerformedProcedureStep), str(StorageCommitmentPushModel)),
                str(StudyRootQueryRetrieveInformationModelFind),
            },
        )
        self.assertNotIn(str(ModalityWorklistInformationModelFind), self.supported())
        server = self.make(worklist=Path(self.mktemp()))
        self.assertIn(str(ModalityWorklistInformationModelFind), self.supported())
        self.assertEqual(len(server.providers), 4)

    def test_stored_and_found(self) -> None:
        """A stored instance is found; after stop and close nothing of the server is left."""
        server = self.make()
        server.start()
        self.listen(*server.handlers())
        contexts = [build_context(SECONDARY_CAPTURE), build_context(StudyRootQueryRetrieveInformationModelFind)]
        assoc = self.associate(contexts=contexts)
        stored = self.network.result_of(assoc.send_c_store(dataset()))
        self.assertTrue(stored.is_success)
        self.assertEqual([path.name for path in files(self.root)], ["1.2.1.1.1.dcm"])
        self.assertEqual(server.archive.index.find_instances(["1.2.1.1.1"])[0].uids, ("1.2.1", "1.2.1.1", "1.2.1.1.1"))
        self.network.result_of(server.stop())
        server.close()
        server.close()

    def test_policy(self) -> None:
        """An operation that no rule allows is refused."""
        rules = parse_rules([{"calling": "SCU", "allow": ["echo"]}], "rule")
        server = self.make(policy=Policy(rules))
        server.start()
        self.listen(*server.handlers())
        assoc = self.associate(contexts=[build_context(SECONDARY_CAPTURE)])
        self.assertEqual(int(self.network.result_of(assoc.send_c_store(dataset()))), NOT_AUTHORISED)
        self.assertEqual(files(self.root), [])

    def test_a_start_that_fails(self) -> None:
        """The archive is closed all the same, so that it can be opened again."""
        server = self.make()

        def wrong() -> None:
            raise OSError("a mistake")

        server.storage_commitment.start = wrong  # type: ignore[method-assign]
        self.assertRaises(OSError, server.start)
        server.close()
        again = Archive(self.root)
        self.assertEqual(again.open(), 0)
        again.close()

    def test_who_takes_up_commitments(self) -> None:
        """One of several processes reports the commitments that the previous run of the program left unreported."""
        for takes_up in (False, True):
            server = self.make(takes_up=takes_up)
            server.storage_commitment._transactions.save(Transaction("1.2", "PEER", self.network.seconds(), ()))
            server.start()
            self.assertEqual(server.storage_commitment.unreported, int(takes_up))
            self.network.result_of(server.stop())
            server.close()

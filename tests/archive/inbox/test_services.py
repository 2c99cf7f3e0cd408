"""The services of an archive with an inbox: retrieval, commitment and replacement directly after the acknowledgement."""

from __future__ import annotations

from typing import Any

from dicomtwist.archive.archive import Archive
from tests.archive import test_replacing
from tests.archive.inbox.common import InboxTestCase
from tests.archive.samples import dataset
from tests.archive.services import test_query_retrieve, test_storage_commitment


class WithInbox:
    """Gives each archive of a test case an inbox."""

    def setUp(self) -> None:
        case: Any = self
        case.patch(Archive.__init__, "__kwdefaults__", {**(Archive.__init__.__kwdefaults__ or {}), "inbox": True})
        parent: Any = super()
        parent.setUp()


class Gets(WithInbox, test_query_retrieve.GetTests):
    """C-GET."""


class Moves(WithInbox, test_query_retrieve.MoveTests):
    """C-MOVE."""


class Commitments(WithInbox, test_storage_commitment.AnotherAssociation):
    """Storage commitment."""


class ReplacingCase(WithInbox, test_replacing.ReplacingCase):
    def file(self) -> bytes:
        self.archive.make_files()
        (path,) = self.root.glob("*/*/*.dcm")
        return path.read_bytes()


class Replacing(ReplacingCase, test_replacing.Replacing):
    """Replacements over the network."""


class ReplacingUnsynced(ReplacingCase, test_replacing.ReplacingWithoutSyncs):
    """Replacements without syncs."""


class Defaults(WithInbox, InboxTestCase):
    def test_it_is_there(self) -> None:
        archive = Archive(self.root)
        archive.open()
        self.addCleanup(archive.close)
        self.kept(archive, dataset(1))
        self.assertEqual(self.files(), {})

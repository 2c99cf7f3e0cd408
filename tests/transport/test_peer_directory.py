"""The directory of AE titles and their addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.testing import MemoryNetwork
from dicomtwist.transport import peer_directory
from dicomtwist.transport.peer_directory import Peers
from tests.peers import certificates


class PeersTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()

    def peers(self, *descriptions: str) -> Peers:
        return Peers(self.network, descriptions)

    def refused(self, *descriptions: str) -> str:
        return str(self.assertRaises(ValueError, self.peers, *descriptions))

    def test_host_and_port(self) -> None:
        known = self.peers("PACS=pacs.example.org:104", "OTHER = [::1]:11112")
        self.assertEqual(known.destination("PACS"), ("pacs.example.org", 104))
        self.assertEqual(known.destination("OTHER"), ("::1", 11112))
        self.assertEqual(sorted(known), ["OTHER", "PACS"])
        self.assertEqual(len(known), 2)

    def test_unknown(self) -> None:
        known = self.peers("PACS=pacs:104")
        self.assertIsNone(known.destination("pacs"))
        self.assertNotIn("pacs", known)
        self.assertNotIn(104, known)

    def test_spaces_around_a_title_mean_nothing(self) -> None:
        self.assertIn("PACS            ", self.peers("PACS=pacs:104"))

    def test_endpoint_strings(self) -> None:
        root = str(certificates().ca).replace(":", "\\:")
        known = self.peers(
            "A=tcp:127.0.0.1:104", "B=tcp6:[::1]:104", "C=tls:pacs:2762", f"D=dicomtls:h:1:trustRoots={root}"
        )
        kinds = {"A": TCP4ClientEndpoint, "B": TCP6ClientEndpoint}
        for title in known:
            destination: Any = known.destination(title)
            self.assertTrue(IStreamClientEndpoint.providedBy(destination), title)
            self.assertIsInstance(destination, kinds.get(title, object))

    def test_the_last_one_counts(self) -> None:
        self.assertEqual(self.peers("A=one:1", "A=two:2").destination("A"), ("two", 2))

    def test_wrong_ones_are_told(self) -> None:
        self.assertIn("TITLE=host:port", self.refused("pacs:104"))
        self.assertIn("the maximum is 16", self.refused("SEVENTEEN_LETTERS=pacs:104"))
        self.assertIn("no port", self.refused("PACS=pacs"))
        self.assertIn("not a known prefix", self.refused("PACS=udp:pacs:104:x"))
        self.assertIn("No such file", self.refused("@no-such-file"))

    def test_files_are_read_again(self) -> None:
        path = Path(self.mktemp())
        path.write_text("# who gets what\n\n  A=one:1  \nB=two:2\n")
        known = self.peers(f"@{path}", "C=three:3")
        self.assertEqual(sorted(known), ["A", "B", "C"])
        path.write_text("\ufeffA=four:4\n", "utf-8")
        known.reload()
        self.assertEqual({title: known.destination(title) for title in known}, {"A": ("four", 4), "C": ("three", 3)})

    def test_a_mistake_changes_nothing(self) -> None:
        path = Path(self.mktemp())
        path.write_text("A=one:1\n")
        known = self.peers(f"@{path}")
        path.write_text("A=two:2\nB\n")
        error = self.assertRaises(ValueError, known.reload)
        self.assertIn(f"{path}, line 2: 'B' is not a peer", str(error))
        self.assertEqual(known.destination("A"), ("one", 1))

    def test_bounds(self) -> None:
        path = Path(self.mktemp())
        path.write_text("A=one:1\nB=two:2\n")
        with mock.patch.object(peer_directory, "MAX_PEERS", 1):
            self.assertIn("more than 1 peers", self.refused(f"@{path}"))
        with mock.patch.object(peer_directory, "MAX_FILE_LENGTH", 8):
            self.assertIn("more than 8 bytes", self.refused(f"@{path}"))

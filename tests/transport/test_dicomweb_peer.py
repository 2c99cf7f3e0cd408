"""The addresses of peers that speak DICOMweb."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.dicomweb import BaseURL
from dicomtwist.testing import MemoryNetwork
from dicomtwist.transport.dicomweb_peer import MAX_WEB_SECRET, check_dicomweb_peer, read_dicomweb_peer
from dicomtwist.transport.peer_directory import Peers
from tests.peers import certificates

URL = "https://cloud.example/dicom-web"
BASE = BaseURL.parse(URL)


class Text(SynchronousTestCase):
    def test_settings(self) -> None:
        self.assertEqual(check_dicomweb_peer(f" {URL} "), (BASE, {}))
        self.assertEqual(
            check_dicomweb_peer(f"{URL} tokenFile='/a b/token'  trustRoots=/ca=1.pem"),
            (BASE, {"tokenFile": "/a b/token", "trustRoots": "/ca=1.pem"}),
        )

    def test_mistakes(self) -> None:
        for text, words in {
            f"{URL} token=secret": "something else than a setting: tokenFile, user",
            f"{URL} secret": "something else than a setting",
            f"{URL} tokenFile=": "something else than a setting",
            f"{URL} tokenFile=/a tokenFile=/b": "tokenFile is there twice",
            f"{URL} tokenFile=/a user=x passwordFile=/b": "contradict each other",
            f"{URL} user=x": "belong together",
            f"{URL} passwordFile=/x": "belong together",
            f"{URL} user=a:b passwordFile=/x": "no colon",
            f"{URL} certKey=/x": "belong together",
            f"{URL} tokenFile='/x": "a quotation mark has no end",
            "http://localhost/dicom-web trustRoots=/x": "trustRoots needs a URL with https",
            "http://cloud.example/dicom-web tokenFile=/x": "without TLS",
            "http://10.0.0.1/dicom-web user=x passwordFile=/x": "without TLS",
            "http://127.0.0.1.cloud.example/ tokenFile=/x": "without TLS",
            "https://alice:secret@cloud.example/": "a user or a password",
            "": "the form https",
        }.items():
            error = str(self.assertRaises(ValueError, check_dicomweb_peer, text))
            self.assertIn(words, error)
            self.assertNotIn("secret", error)

    def test_this_machine_needs_no_tls(self) -> None:
        for host in ("localhost", "127.0.0.1", "[::1]"):
            self.assertEqual(check_dicomweb_peer(f"http://{host}:1/ tokenFile=/x")[1], {"tokenFile": "/x"})


class Files(SynchronousTestCase):
    def file(self, content: bytes) -> Path:
        path = Path(self.mktemp())
        path.write_bytes(content)
        return path

    def test_token(self) -> None:
        peer = read_dicomweb_peer(f"{URL} tokenFile={self.file(b'ab.c-d=')}")
        self.assertEqual((peer.url, peer.token, peer.user, peer.tls), (BASE, "ab.c-d=", None, None))
        self.assertEqual(read_dicomweb_peer(f"{URL} tokenFile={self.file(b'ab' + bytes([13, 10]))}").token, "ab")
        self.assertNotIn("ab.c", repr(peer))

    def test_user(self) -> None:
        peer = read_dicomweb_peer(f"{URL} user=router passwordFile={self.file('pä ß'.encode())}")
        self.assertEqual(peer.user, ("router", "pä ß"))
        self.assertNotIn("pä", repr(peer))

    def test_files_that_cannot_be_used(self) -> None:
        for content, words in {
            b"": "empty",
            b"\n": "empty",
            b"x" * (MAX_WEB_SECRET + 1): "more than",
            b"a b": "no token",
            b"a\nb": "no token",
            b"\xff": "is not text",
        }.items():
            error = str(self.assertRaises(ValueError, read_dicomweb_peer, f"{URL} tokenFile={self.file(content)}"))
            self.assertIn(words, error)
        self.assertIn("tokenFile", str(self.assertRaises(ValueError, read_dicomweb_peer, f"{URL} tokenFile=nowhere")))
        self.assertIn("tokenFile", str(self.assertRaises(ValueError, read_dicomweb_peer, f"{URL} tokenFile=/dev/zero")))

    def test_tls(self) -> None:
        found = certificates()
        peer = read_dicomweb_peer(
            f"{URL} trustRoots={found.ca} privateKey={found.client_key} certKey={found.client_cert}"
        )
        self.assertIsNotNone(peer.tls)
        error = str(self.assertRaises(ValueError, read_dicomweb_peer, f"{URL} trustRoots=nowhere"))
        self.assertIn("trustRoots", error)

    def test_in_the_directory(self) -> None:
        """A reload reads the files again; a mistake leaves everything as it was."""
        token = self.file(b"one")
        known = Peers(MemoryNetwork(), [f"CLOUD={URL} tokenFile={token}"])
        token.write_bytes(b"two")
        known.reload()
        self.assertEqual(getattr(known.web("CLOUD"), "token", ""), "two")
        token.write_bytes(b"")
        self.assertRaises(ValueError, known.reload)
        self.assertEqual(getattr(known.web("CLOUD"), "token", ""), "two")
        self.assertIsNone(known.destination("CLOUD"))
        self.assertEqual((known.names(), len(known)), (["CLOUD"], 0))

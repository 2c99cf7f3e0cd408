"""The address of a peer in text form."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.endpoints import TCP6ClientEndpoint
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.transport.peer_address import Peer, parse_peer


class Parsed(SynchronousTestCase):
    """Valid addresses."""

    def test_host_and_port(self) -> None:
        self.assertEqual(parse_peer("pacs.example.org:104"), Peer("ANY-SCP", "pacs.example.org", 104))
        self.assertEqual(parse_peer("MY PACS@10.0.0.1:11112"), Peer("MY PACS", "10.0.0.1", 11112))

    def test_ipv6(self) -> None:
        self.assertEqual(parse_peer("A@[::1]:104"), Peer("A", "::1", 104))
        self.assertEqual(str(parse_peer("[fe80::1]:104")), "ANY-SCP@[fe80::1]:104")

    def test_endpoint_strings(self) -> None:
        for text, host, port, secure in (
            ("tcp:pacs:104", "pacs", 104, False),
            ("tcp:host=pacs:port=104:timeout=3", "pacs", 104, False),
            ("tcp6:[::1]:104", "::1", 104, False),
            (r"tcp6:\:\:1:104", "::1", 104, False),
            ("tls:pacs:2762", "pacs", 2762, True),
            ("ssl:pacs:2762:caCertsDir=/etc/ca", "pacs", 2762, True),
            ("dicomtls:pacs:2762:trustRoots=ca.pem", "pacs", 2762, True),
            ("unix:/run/dicom@home.sock", "", 0, False),
        ):
            for title in ("", "PACS@"):
                peer = parse_peer(title + text)
                self.assertEqual(peer, Peer(title[:-1] or "ANY-SCP", host, port, text))
                self.assertEqual(peer.secure, secure)

    def test_tcp6_is_an_endpoint(self) -> None:
        self.assertIsInstance(parse_peer("tcp6:[::1]:104").endpoint(reactor), TCP6ClientEndpoint)
        self.assertIsNone(parse_peer("[::1]:104").endpoint(reactor))

    def test_names_are_told_from_addresses(self) -> None:
        for text, is_name in (("localhost:1", True), ("127.0.0.1:1", False), ("[::1]:1", False), ("unix:/x", False)):
            self.assertIs(parse_peer(text).is_name, is_name, text)


class Refused(SynchronousTestCase):
    """Invalid addresses, and the error for each."""

    def test_words(self) -> None:
        for text, words in (
            ("", "has no port"),
            ("pacs", "write pacs:104"),
            ("PACS@pacs", "write pacs:104"),
            ("::1:104", "in brackets"),
            ("fe80::1", "in brackets"),
            ("[pacs]:104", "not an IPv6 address"),
            ("[::1]:x", "not a port"),
            ("pacs:0", "not a port"),
            ("pacs:65536", "not a port"),
            ("A_TITLE_THAT_IS_TOO_LONG@pacs:104", "the maximum is 16"),
            ("@pacs:104", "empty"),
            ("tcp:pacs", "needs a host and a port"),
            ("tls:pacs:x", "not a port"),
        ):
            error = self.assertRaises(ValueError, parse_peer, text)
            self.assertIn(words, str(error), text)

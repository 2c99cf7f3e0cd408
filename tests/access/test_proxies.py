"""PROXY headers at endpoints of ``haproxy:``: nobody becomes this machine by one, and only trusted proxies are believed."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from dicomtwist import AssociationRejected, DICOMError, evt
from dicomtwist.access.enforcement import Access, Policy
from dicomtwist.access.rules import DEFAULT_RULES, EVERYTHING, UNIX, Operation, Requestor, parse_rules
from dicomtwist.runtime.executors import Executors
from dicomtwist.runtime.networks import Networks, parse_networks
from tests.interop.common import VERIFICATION, InteropTestCase
from tests.peers import socket_path

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
STRANGER = {Operation.ECHO, Operation.STORE}


def version_2(command: int, family: int, addresses: bytes) -> bytes:
    """Return a header of version 2 of the PROXY protocol."""
    return SIGNATURE + bytes((0x20 | command, family)) + struct.pack(">H", len(addresses)) + addresses


def inet(version: int, address: str) -> bytes:
    """Return the addresses of a header: from *address* to itself."""
    packed = socket.inet_pton(version, address)
    return packed + packed + struct.pack(">HH", 40000, 104)


UNIX_PATH = b"/run/dicom.sock".ljust(108, b"\0")

#: Headers of both versions that claim to come from this machine, or from nowhere.
CLAIMS = {
    "1, IPv4 loopback": b"PROXY TCP4 127.0.0.1 127.0.0.1 40000 104\r\n",
    "1, other IPv4 loopback": b"PROXY TCP4 127.200.3.4 10.0.0.1 40000 104\r\n",
    "1, IPv6 loopback": b"PROXY TCP6 ::1 ::1 40000 104\r\n",
    "1, IPv4 loopback in IPv6": b"PROXY TCP6 ::ffff:127.0.0.1 ::1 40000 104\r\n",
    "1, unknown with addresses": b"PROXY UNKNOWN 127.0.0.1 127.0.0.1 1 1\r\n",
    "2, IPv4 loopback": version_2(1, 0x11, inet(socket.AF_INET, "127.0.0.1")),
    "2, IPv6 loopback": version_2(1, 0x21, inet(socket.AF_INET6, "::1")),
    "2, UNIX": version_2(1, 0x31, UNIX_PATH + UNIX_PATH),
    "2, UNIX without a name": version_2(1, 0x31, bytes(216)),
    "2, LOCAL": version_2(0, 0x00, b""),
    "2, LOCAL with addresses": version_2(0, 0x11, inet(socket.AF_INET, "127.0.0.1")),
    "2, unspecified": version_2(1, 0x00, b""),
}
ELSEWHERE = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 104\r\n"


@implementer(IStreamClientEndpoint)
class Behind:
    """A client endpoint whose connections begin with *header*."""

    def __init__(self, endpoint: Any, header: bytes) -> None:
        self.endpoint = endpoint
        self.header = header

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        header = self.header

        class WithHeader(ProtocolWrapper):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(header)
                super().connectionMade()

        factory = WrappingFactory(protocolFactory)
        factory.protocol = WithHeader
        connecting: Deferred[Any] = self.endpoint.connect(factory)
        return connecting


class Matching(SynchronousTestCase):
    """Rules know the difference between an address of the connection and one that a proxy has told."""

    def test_default_rules(self) -> None:
        for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", UNIX, "", "/run/dicom.sock"):
            who = Requestor("ARCHIVE", "CT1", address, proxied=True)
            self.assertEqual(DEFAULT_RULES.allowed(who), STRANGER, address)

    def test_words_and_networks(self) -> None:
        for text, address, direct, proxied in (
            ("loopback", "127.0.0.1", True, False),
            ("loopback", "::1", True, False),
            ("unix", UNIX, True, False),
            ("127.0.0.0/8", "127.0.0.1", True, True),
            ("10.1.0.0/16", "10.1.0.5", True, True),
            ("10.1.0.0/16", UNIX, False, False),
            ("::/0", "::1", True, True),
        ):
            networks = parse_networks([text])
            found = networks.has(address), networks.has(address, proxied=True)
            self.assertEqual(found, (direct, proxied), (text, address))
        self.assertFalse(Networks())
        self.assertTrue(parse_networks(["unix"]))

    def test_written_rules(self) -> None:
        rules = parse_rules([{"from": ["loopback", "unix"], "allow": "all"}, {"from": "10.0.0.0/8", "allow": "find"}])
        self.assertEqual(rules.allowed(Requestor("A", "B", "127.0.0.1")), EVERYTHING)
        self.assertEqual(rules.allowed(Requestor("A", "B", "127.0.0.1", proxied=True)), set())
        self.assertEqual(rules.allowed(Requestor("A", "B", "10.2.3.4", proxied=True)), {Operation.FIND})


class Connections(InteropTestCase):
    """Over real sockets, with headers as proxies and forgers write them."""

    async def listen(self, address: str, **settings: Any) -> Any:
        """Listen behind the default rules; what each association may do goes to ``self.allowed``."""
        self.access = Access(Policy(), Executors(reactor).passcodes)
        self.allowed: list[tuple[str, set[Operation]]] = []

        def established(event: evt.Event) -> None:
            may = {one for one in Operation if self.access.may(event.assoc, one)}
            self.allowed.append((event.assoc.requestor.proxy, may))

        handlers: Any = [*self.access.guarded([]), (evt.EVT_ESTABLISHED, established)]
        return await self.serve(*handlers, address=address, **settings)

    async def ask(self, endpoint: Any) -> None:
        async with await self.requestor(VERIFICATION).associate(endpoint) as association:
            self.assertEqual(await association.send_c_echo(), 0)

    async def test_nobody_becomes_this_machine(self) -> None:
        server = await self.listen("haproxy:tcp:0:interface=127.0.0.1")
        for name, header in {**CLAIMS, "elsewhere": ELSEWHERE}.items():
            self.allowed.clear()
            await self.ask(Behind(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port), header))
            self.assertEqual(self.allowed, [("127.0.0.1", STRANGER)], name)

    async def test_a_proxy_at_a_unix_socket(self) -> None:
        path = socket_path(self)
        await self.listen(f"haproxy:unix:{path}")
        for name, header in CLAIMS.items():
            self.allowed.clear()
            await self.ask(Behind(UNIXClientEndpoint(reactor, str(path)), header))
            self.assertEqual(self.allowed, [(UNIX, STRANGER)], name)

    async def test_without_a_proxy(self) -> None:
        server = await self.listen("tcp:0:interface=127.0.0.1")
        await self.ask(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port))
        self.assertEqual(self.allowed, [("", set(Operation))])

    async def test_only_named_proxies_are_believed(self) -> None:
        server = await self.listen("haproxy:tcp:0:interface=127.0.0.1", trusted_proxies=["unix", "192.0.2.0/24"])
        for header in (*CLAIMS.values(), ELSEWHERE):
            behind = Behind(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port), header)
            refused = self.requestor(VERIFICATION).associate(behind)
            error: Any = await self.assertFailure(refused, AssociationRejected)
            self.assertEqual((error.result, error.source, error.reason), (1, 1, 1))
        self.assertEqual(self.allowed, [])
        other = await self.listen("haproxy:tcp:0:interface=127.0.0.1", trusted_proxies=["127.0.0.0/30"])
        await self.ask(Behind(TCP4ClientEndpoint(reactor, "127.0.0.1", other.port), ELSEWHERE))
        self.assertEqual(self.allowed, [("127.0.0.1", STRANGER)])

    async def test_headers_that_cannot_be_decoded(self) -> None:
        """Such a connection is closed, and the log has no traceback; the next one works."""
        server = await self.listen("haproxy:tcp:0:interface=127.0.0.1")
        for header in (
            b"PROXY TCP4 \xff\xfe 192.0.2.1 1 2\r\n",
            b"PROXY TCP6 2001:db8::1 \x80 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 x 2\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 \r\n",
            b"PROXY TCP6 2001:db8::1 ::1 " + b"1" * 5000 + b" 2\r\n",
            b"PROXY TCP4 \r\n",
            version_2(1, 0x13, inet(socket.AF_INET, "192.0.2.7")),
            version_2(1, 0x21, inet(socket.AF_INET, "192.0.2.7")),
            version_2(1, 0x31, b"/"),
        ):
            behind = Behind(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port), header)
            await self.assertFailure(self.requestor(VERIFICATION).associate(behind), DICOMError)
            self.assertEqual(self.flushLoggedErrors(), [], header)
        await self.ask(Behind(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port), ELSEWHERE))
        self.assertEqual(self.allowed, [("127.0.0.1", STRANGER)])

    async def test_texts_in_place_of_addresses(self) -> None:
        """Any text can stand in place of an address; it forges no line of the log, nor fills it."""
        server = await self.listen("haproxy:tcp:0:interface=127.0.0.1")
        texts = (b"\x1b[2J", b"192.0.2.7\n2026-01-01", b"\xc2\x85", b"A" * 30000, b"\xe2\x80\xa8" * 200)
        for text in texts:
            addresses: list[str] = []
            server.bind(evt.EVT_REQUESTED, lambda event, seen=addresses: seen.append(event.assoc.requestor.address))
            header = b"PROXY TCP4 " + text + b" 192.0.2.1 1 2\r\n"
            await self.ask(Behind(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port), header))
            await self.ask(
                Behind(
                    TCP4ClientEndpoint(reactor, "127.0.0.1", server.port),
                    version_2(1, 0x31, text[:108].ljust(108, b"\0") + UNIX_PATH),
                )
            )
            self.assertEqual(len(addresses), 2)
            for address in addresses:
                self.assertTrue(address.isprintable(), address)
                self.assertLess(len(address), 1200)

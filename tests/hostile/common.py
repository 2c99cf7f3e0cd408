"""What the tests of hostile peers share."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, globalLogPublisher
from zope.interface import implementer

from dicomtwist import AE, Association, Server
from dicomtwist.dimse.messages import CEchoRSP, Message
from dicomtwist.testing import MemoryTransport, ScriptedPeer
from dicomtwist.ul.pdu import PDU, AAbort
from tests.memory import CONTEXTS, CT, VERIFICATION, MemoryTestCase, echo

#: The defaults of the settings, in seconds.
ACSE, DIMSE, NETWORK, PDU_TIME = 30, 30, 60, 120

#: A-ABORT of the service provider: unexpected or unrecognised PDU, invalid PDU parameter value (PS3.8 9.3.8).
NO_REASON, UNRECOGNISED, UNEXPECTED, INVALID = AAbort(2, 0), AAbort(2, 1), AAbort(2, 2), AAbort(2, 6)


@implementer(ILogObserver)
class Log:
    """
    What is logged.

    :ivar lines: the lines of INFO and above.
    :ivar tracebacks: events with a failure.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tracebacks: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        """Keep it."""
        if "log_failure" in event:
            self.tracebacks.append(eventAsText(event))
        if event.get("log_namespace", "").startswith("dicomtwist") and event["log_level"] >= LogLevel.info:
            self.lines.append(eventAsText(event, includeSystem=False, includeTimestamp=False))


class HostileTestCase(MemoryTestCase):
    """
    A server in memory, at 104, a neighbour whose association is there all the time, and hostile peers.

    :ivar handlers: what the server has; a class may set others.
    """

    def setUp(self) -> None:
        super().setUp()
        self.log = Log()
        globalLogPublisher.addObserver(self.log)
        self.addCleanup(globalLogPublisher.removeObserver, self.log)
        self.neighbour_ae = AE("NEIGHBOUR", reactor=self.network)
        self.neighbour_ae.requested_contexts = CONTEXTS
        self.neighbour: Association | None = None
        self.server: Server | None = None
        self._refs: list[weakref.ref[Any]] = []
        self._lines_before: dict[int, int] = {}

    def tearDown(self) -> None:
        """All is over: nobody has anything of it any more."""
        if self.server is not None:
            self.echo_is_answered()
            if self.neighbour is not None:
                self.network.result_of(self.neighbour.release())
            self._remember(self.server.factory.associations)
            self.neighbour = None
        super().tearDown()
        self.assertEqual(self.log.tracebacks, [])
        if self.server is not None:
            self.assertEqual(self.server.factory.associations, set())
            self.assertEqual(self.server.factory._connections, {})
        self.network.connections.clear()
        gc.collect()
        left = [ref() for ref in self._refs if ref() is not None]
        self.assertEqual(left, [], "something keeps them alive")

    def _remember(self, associations: Iterable[Any]) -> None:
        for association in associations:
            self._refs += [weakref.ref(association), weakref.ref(association.protocol)]

    def serve(self, *handlers: Any, **options: Any) -> Server:
        """Start the server, and let the neighbour in."""
        self.server = self.listen(*handlers, **options)
        self.neighbour = self.network.result_of(self.neighbour_ae.associate("127.0.0.1", 104))
        return self.server

    def echo_is_answered(self) -> None:
        """The neighbour's C-ECHO is answered without any time going by."""
        if self.neighbour is not None and self.neighbour.is_established:
            before = self.network.seconds()
            self.assertTrue(self.network.result_of(self.neighbour.send_c_echo()).is_success)
            self.assertEqual(self.network.seconds(), before)

    def wait(self, seconds: float) -> None:
        """Let time go by, in which the neighbour is heard all the time."""
        while seconds > 0:
            step = min(seconds, 25.0)
            self.network.advance(step)
            self.echo_is_answered()
            seconds -= step

    def connect(self, *, established: bool = False, **options: Any) -> ScriptedPeer:
        """A hostile peer, with or without an association: 1 is the context for echo, 3 that for CT, 5 is rejected."""
        if self.server is None:
            self.serve()
        assert self.server is not None
        before = set(self.server.factory.associations)
        lines = len(self.log.lines)
        peer = self.network.scripted_client(104)
        self._lines_before[id(peer)] = lines
        self._remember(self.server.factory.associations - before)
        if established:
            peer.request((1, VERIFICATION), (3, CT), (5, "1.2.3"), **options)
            peer.take()
        return peer

    def association_of(self, peer: ScriptedPeer) -> Any:
        """The server's side of it."""
        return self.end_of(peer).protocol.user

    def end_of(self, peer: ScriptedPeer) -> MemoryTransport:
        """The server's end of the connection."""
        transport: MemoryTransport = peer.transport.other
        return transport

    def is_aborted(self, peer: ScriptedPeer, *answers: PDU) -> None:
        """
        The peer gets *answers* at once; it is waited for to close, which it does not, and closed. One line tells of it: this
        is for one peer at a time.
        """
        self.assertEqual(peer.take(), list(answers))
        self.assertIsNone(peer.closed)
        self.echo_is_answered()
        protocol = self.end_of(peer).protocol
        self.assertEqual((len(protocol.connection._framer._partial), protocol.connection.mid_pdu), (0, False))
        peer.send(bytes(1000))
        self.assertIn(peer.take(), ([], [UNRECOGNISED]))  # at most once more, by AA-7
        self.wait(ACSE)
        self.assertIsNotNone(peer.closed)
        lines = self.log.lines[self._lines_before[id(peer)] :]
        self.assertEqual([line for line in lines if not line.isprintable()], [])
        # Operations that were refused have lines of their own, without the address.
        self.assertEqual(sum("127.0.0.1" in line and ": tolerated" not in line for line in lines), 1, lines)

    def lines_with(self, words: str) -> int:
        """How many lines of the log say *words*."""
        return sum(words in line for line in self.log.lines)

    def every(self, cases: Sequence[Any], test: Callable[..., None]) -> None:
        """Run *test* with each of the cases, a tuple being its arguments."""
        self.assertTrue(cases)
        for case in cases:
            try:
                test(*(case if isinstance(case, tuple) else (case,)))
            except self.failureException as error:
                raise self.failureException(f"{case!r:.500}: {error}") from error

    def echoes(self, peer: ScriptedPeer, message_id: int = 77) -> None:
        """The peer's association is alive."""
        peer.send_message(1, echo(message_id))
        answer, _ = peer.messages()[-1]
        assert isinstance(answer, CEchoRSP)
        self.assertEqual((answer.message_id_being_responded_to, answer.status), (message_id, 0))


def statuses(peer: ScriptedPeer) -> list[int]:
    """The statuses of the responses that came."""
    return [getattr(message, "status", -1) for message, _ in peer.messages()]


def pdata(*pdvs: tuple[int, int, bytes]) -> bytes:
    """A P-DATA-TF of (context ID, control header, data)."""
    body = b"".join(
        (len(data) + 2).to_bytes(4, "big") + bytes((context, control)) + data for context, control, data in pdvs
    )
    return b"\4\0" + len(body).to_bytes(4, "big") + body


def command_of(message: Message) -> bytes:
    """Its command set."""
    return message.encode()

"""The common parts of the tests with hostile peers."""

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
    Records the log.

    :ivar lines: the lines of level INFO and above.
    :ivar tracebacks: the events with a failure.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tracebacks: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        """Record an event."""
        if "log_failure" in event:
            self.tracebacks.append(eventAsText(event))
        if event.get("log_namespace", "").startswith("dicomtwist") and event["log_level"] >= LogLevel.info:
            self.lines.append(eventAsText(event, includeSystem=False, includeTimestamp=False))


class HostileTestCase(MemoryTestCase):
    """
    A server in memory at port 104, a neighbour with an association during the whole test, and hostile peers.

    :ivar handlers: the handlers of the server; a class may set others.
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
        """Check that everything has ended: no object still refers to an association."""
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
        """Start the server, and let the neighbour associate."""
        self.server = self.listen(*handlers, **options)
        self.neighbour = self.network.result_of(self.neighbour_ae.associate("127.0.0.1", 104))
        return self.server

    def echo_is_answered(self) -> None:
        """Check that the neighbour's C-ECHO is answered without any time passing."""
        if self.neighbour is not None and self.neighbour.is_established:
            before = self.network.seconds()
            self.assertTrue(self.network.result_of(self.neighbour.send_c_echo()).is_success)
            self.assertEqual(self.network.seconds(), before)

    def wait(self, seconds: float) -> None:
        """Let time pass, during which the neighbour's echoes are answered."""
        while seconds > 0:
            step = min(seconds, 25.0)
            self.network.advance(step)
            self.echo_is_answered()
            seconds -= step

    def connect(self, *, established: bool = False, **options: Any) -> ScriptedPeer:
        """Return a hostile peer, with or without an association: context 1 is for echo, 3 for CT, 5 is rejected."""
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
        """Return the server's association with the peer."""
        return self.end_of(peer).protocol.user

    def end_of(self, peer: ScriptedPeer) -> MemoryTransport:
        """Return the server's end of the connection."""
        transport: MemoryTransport = peer.transport.other
        return transport

    def is_aborted(self, peer: ScriptedPeer, *answers: PDU) -> None:
        """
        Check that the peer gets *answers* at once, and that the server waits for it to close, then closes the connection.
        There is one line in the log about its end, so this is for one peer at a time.
        """
        self.assertEqual(peer.take(), list(answers))
        self.assertIsNone(peer.closed)
        self.echo_is_answered()
        protocol = self.end_of(peer).protocol
        self.assertEqual((len(protocol.connection._framer._partial), protocol.connection.mid_pdu), (0, False))
        peer.send(bytes(1000))
        self.assertIn(peer.take(), ([], [UNRECOGNISED]))  # at most one more, from AA-7
        self.wait(ACSE)
        self.assertIsNotNone(peer.closed)
        lines = self.log.lines[self._lines_before[id(peer)] :]
        self.assertEqual([line for line in lines if not line.isprintable()], [])
        # Refused operations have lines of their own, without the address; refused contexts one of the beginning.
        others = (": tolerated", "presentation contexts not accepted")
        ends = [line for line in lines if "127.0.0.1" in line and not any(words in line for words in others)]
        self.assertEqual(len(ends), 1, lines)

    def lines_with(self, words: str) -> int:
        """Return the number of log lines that contain *words*."""
        return sum(words in line for line in self.log.lines)

    def every(self, cases: Sequence[Any], test: Callable[..., None]) -> None:
        """Run *test* with each of the cases; a tuple holds its arguments."""
        self.assertTrue(cases)
        for case in cases:
            try:
                test(*(case if isinstance(case, tuple) else (case,)))
            except self.failureException as error:
                raise self.failureException(f"{case!r:.500}: {error}") from error

    def echoes(self, peer: ScriptedPeer, message_id: int = 77) -> None:
        """Check that the peer's association is alive."""
        peer.send_message(1, echo(message_id))
        answer, _ = peer.messages()[-1]
        assert isinstance(answer, CEchoRSP)
        self.assertEqual((answer.message_id_being_responded_to, answer.status), (message_id, 0))


def statuses(peer: ScriptedPeer) -> list[int]:
    """Return the statuses of the received responses."""
    return [getattr(message, "status", -1) for message, _ in peer.messages()]


def pdata(*pdvs: tuple[int, int, bytes]) -> bytes:
    """Return a P-DATA-TF of (context ID, control header, data)."""
    body = b"".join(
        (len(data) + 2).to_bytes(4, "big") + bytes((context, control)) + data for context, control, data in pdvs
    )
    return b"\4\0" + len(body).to_bytes(4, "big") + body


def command_of(message: Message) -> bytes:
    """Return the command set of *message*."""
    return message.encode()

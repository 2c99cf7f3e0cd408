"""The short way from the reactor to connections that have bytes to read."""

from __future__ import annotations

import socket
from threading import Thread
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.python import context
from twisted.python.failure import Failure
from twisted.python.log import ILogContext
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.runtime.read_dispatch import dispatch_reads_directly


class Recorder(Protocol):
    """Records the calls of its transport, with the name that the logging context has."""

    on_data: Any = None

    def connectionMade(self) -> None:
        self.system = context.get(ILogContext)["system"]
        self.data = b""
        self.systems: list[str] = []
        self.lost: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.systems.append(context.get(ILogContext)["system"])
        if self.on_data is not None:
            self.on_data()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost.append(reason)


class Recorders(Factory):
    """Makes recorders, and appends them to a list."""

    def __init__(self, made: list[Recorder]) -> None:
        self.made = made

    def buildProtocol(self, addr: object) -> Recorder:
        self.made.append(Recorder())
        return self.made[-1]


class Dispatch(SynchronousTestCase):
    """Connections of a reactor of their own, which the tests advance step by step."""

    def setUp(self) -> None:
        self.reactor: Any = EPollReactor()
        self.addCleanup(self.reactor._poller.close)
        self.addCleanup(self.reactor.removeAll)
        self.assertTrue(dispatch_reads_directly(self.reactor))
        self.served: list[Recorder] = []
        self.port = self.reactor.listenTCP(0, Recorders(self.served), interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def connect(self) -> tuple[socket.socket, Recorder]:
        """Return a new connection: the client's socket, and the protocol that serves it."""
        client = socket.create_connection(("127.0.0.1", self.port.getHost().port))
        self.addCleanup(client.close)
        before = len(self.served)
        self.until(lambda: len(self.served) > before)
        return client, self.served[-1]

    def until(self, condition: Any) -> None:
        """Let the reactor handle events until *condition* holds, for at most 1,000 of them."""
        for _ in range(1000):
            if condition():
                return
            self.reactor.iterate(5)
        self.fail("it has not happened")

    def test_bytes(self) -> None:
        """The bytes arrive, without a logging context for the connection; a listening port has one as always."""
        client, served = self.connect()
        for part in (b"one", b"two"):
            client.sendall(part)
            self.until(lambda part=part: served.data.endswith(part))
        self.assertEqual(served.data, b"onetwo")
        self.assertEqual(served.systems, ["-", "-"])
        self.assertNotEqual(served.system, "-")

    def test_error(self) -> None:
        """An error of a protocol is logged and closes its connection alone."""
        client, served = self.connect()
        other, unharmed = self.connect()

        def fail() -> None:
            raise ZeroDivisionError("a defect")

        served.on_data = fail
        client.sendall(b"x")
        self.until(lambda: served.lost)
        self.assertEqual([str(error.value) for error in self.flushLoggedErrors(ZeroDivisionError)], ["a defect"])
        self.assertIsInstance(served.lost[0].value, ZeroDivisionError)
        self.assertEqual(client.recv(1), b"")
        other.sendall(b"y")
        self.until(lambda: unharmed.data)

    def test_keyboard_interrupt(self) -> None:
        """Ctrl-C inside a protocol ends the reactor's step, as it always does."""
        client, served = self.connect()

        def interrupt() -> None:
            raise KeyboardInterrupt

        served.on_data = interrupt
        client.sendall(b"x")
        with self.assertRaises(KeyboardInterrupt):
            self.until(lambda: served.lost)

    def test_peer_closes(self) -> None:
        """The end of the stream closes the connection."""
        client, served = self.connect()
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        self.until(lambda: served.lost)
        self.assertEqual(served.data, b"last")
        self.assertIsInstance(served.lost[0].value, ConnectionDone)

    def test_closed_by_an_event_before(self) -> None:
        """Of two connections with bytes to read, the one that is handled first closes the other."""
        clients, served = zip(*(self.connect() for _ in range(2)), strict=True)
        for mine, other in (served, served[::-1]):
            mine.on_data = other.transport.abortConnection
        for client in clients:
            client.sendall(b"x")
        self.until(lambda: served[0].lost or served[1].lost)
        self.reactor.iterate(0)
        (closed,) = [one for one in served if one.lost]
        self.assertIsInstance(closed.lost[0].value, ConnectionAborted)
        self.assertEqual(closed.data, b"")

    def test_writing(self) -> None:
        """A connection that also waits to write gets both of its events."""
        client, served = self.connect()
        much = bytes(8_000_000)
        assert served.transport is not None
        served.transport.write(much)
        client.sendall(b"x")
        client.setblocking(False)
        received = 0

        def all_received() -> bool:
            nonlocal received
            try:
                received += len(client.recv(1 << 20))
            except BlockingIOError:
                pass
            return received == len(much) and served.data == b"x"

        self.until(all_received)

    def test_wake_up(self) -> None:
        """Other threads wake the reactor as always."""
        called: list[int] = []
        thread = Thread(target=self.reactor.callFromThread, args=(called.append, 1))
        thread.start()
        self.addCleanup(thread.join)
        self.until(lambda: called)

    def test_once(self) -> None:
        """A second call changes nothing."""
        before = self.reactor.doIteration
        self.assertTrue(dispatch_reads_directly(self.reactor))
        self.assertIs(self.reactor.doIteration, before)


class OtherReactors(SynchronousTestCase):
    def test_they_stay_as_they_are(self) -> None:
        select = SelectReactor()
        self.addCleanup(select.removeAll)
        for reactor in (select, Clock()):
            self.assertFalse(dispatch_reads_directly(reactor))
            self.assertNotIn("doIteration", vars(reactor))

    def test_without_the_parts_that_are_needed(self) -> None:
        """A later Twisted, whose reactor has other private parts, is left alone."""
        reactor: Any = EPollReactor()
        self.addCleanup(reactor.removeAll)
        poller = vars(reactor).pop("_poller")
        self.addCleanup(poller.close)
        self.addCleanup(setattr, reactor, "_poller", poller)
        self.assertFalse(dispatch_reads_directly(reactor))

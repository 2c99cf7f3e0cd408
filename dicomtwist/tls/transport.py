"""
TLS on a Twisted transport, for peers that send and receive images.

Twisted's own TLS layer passes each record of 16 KiB up and down by itself and writes in the next turn of the reactor, which
costs more than OpenSSL does: a receiver of 200 MB spent 35 % of its time in the interpreter and 5 % in the cipher. This
layer passes on all records of one read together, encrypts what is written at once, and writes it directly to the socket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHandshakeListener,
    IListeningPort,
    INegotiated,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ISystemHandle,
)
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.internet.task import CooperativeTask, TaskFinished, cooperate
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from dicomtwist.tls.errors import in_words, last_reason
from dicomtwist.transport.socket_writer import Output, make_output

__all__ = ["TLSFactory", "TLSTransport", "wrap_client_tls", "wrap_server_tls"]

_log = Logger()

#: The maximum length of the content of a TLS record, in bytes (RFC 8446 5.1). OpenSSL returns one record at a time.
_RECORD_SIZE: Final = 2**14

#: The bytes that a record adds to its content at most, and the bytes of alerts and handshake messages before it. A longer
#: output is read in more than one part.
_RECORD_OVERHEAD: Final = 128
_MESSAGES_SIZE: Final = 2**12

#: The part of the content that is encrypted in one call, in bytes. The result is copied once.
_SEND_SIZE: Final = 256 * 1024

#: The maximum length of one read from the socket, in bytes. Twisted begins with 64 KiB, and so does a connection.
MAX_READ_SIZE: Final = 256 * 1024


class _Pull:
    """
    A push producer that calls a pull producer in each turn of the reactor.

    :param failed: called after an error of the producer, which is logged.
    """

    def __init__(self, producer: Any, failed: Callable[[], None]) -> None:
        self._producer = producer
        self._failed = failed
        self._paused = False
        self._task: CooperativeTask[Iterator[None]] | None = cooperate(self._turns())

    def _turns(self) -> Iterator[None]:
        while True:
            try:
                self._producer.resumeProducing()
            except Exception:
                _log.failure("The producer {producer!r} failed.", producer=self._producer)
                self._failed()
                return
            yield

    def pauseProducing(self) -> None:
        if self._task is not None and not self._paused:
            self._paused = True
            self._task.pause()

    def resumeProducing(self) -> None:
        if self._task is not None and self._paused:
            self._paused = False
            self._task.resume()

    def stopProducing(self) -> None:
        self.end()
        self._producer.stopProducing()

    def end(self) -> None:
        """End the calls."""
        task, self._task = self._task, None
        if task is not None:
            with suppress(TaskFinished):
                task.stop()


class _Flow:
    """The user of the output below TLS: notified when the peer accepts no more, and when it accepts more again."""

    __slots__ = ("_changed",)

    def __init__(self, changed: Callable[[bool], None]) -> None:
        self._changed = changed

    def pauseProducing(self) -> None:
        self._changed(True)

    def resumeProducing(self) -> None:
        self._changed(False)

    def write_progressed(self) -> None:
        """Do nothing: the bytes of this part are not all written yet."""

    def stopProducing(self) -> None:
        """Do nothing: ``connectionLost`` follows."""


@implementer(ISystemHandle, INegotiated)
class TLSTransport(ProtocolWrapper):
    """
    The transport of a protocol that speaks through TLS, and the protocol of the transport below.

    It does for its protocol what ``twisted.protocols.tls.TLSMemoryBIOProtocol`` does, with the same reasons for the end of
    a connection: the error of a handshake that failed; ``ConnectionLost`` after an end without a close_notify.

    :ivar disconnecting: whether this side closes the connection.
    """

    transport: Any
    factory: TLSFactory
    wrappedProtocol: Any

    def __init__(self, factory: TLSFactory, wrapped_protocol: IProtocol) -> None:
        super().__init__(factory, wrapped_protocol)
        self._tls: Any = None
        self._output: Output | None = None
        self._read_size = 0
        self._handshaking = True
        self._ended = self._aborted = self._closing = False
        self._reason: Failure | None = None
        # The content that was written before or during a handshake.
        self._held: list[bytes | memoryview] = []
        self._full = False
        self._producer: Any = None
        self._producer_paused = False

    # --- calls of the transport below

    def makeConnection(self, transport: Any) -> None:
        """Connect the protocol, then begin the handshake."""
        self._tls = self.factory.connection_for(self)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]
        if not self._aborted:
            self._shake_hands()

    def connectionMade(self) -> None:
        """The transport below is open; the protocol above is not connected yet."""
        self._read_size = getattr(self.transport, "bufferSize", 0)
        self._output = make_output(self.transport, _Flow(self._output_changed))

    def dataReceived(self, data: bytes) -> None:
        """Decrypt *data*, and pass on the content of all records that are complete."""
        if self._ended or self._aborted:
            return
        self._tls.bio_write(data)
        if self._handshaking:
            self._shake_hands()
            if self._handshaking:
                return
        if self._held:
            self._write_held()
        self._receive()
        if self._read_size and len(data) >= self._read_size:
            self._enlarge_reads()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection below is closed: pass on what was received, then the reason."""
        self._output = None
        if not self._ended:
            self._tls.bio_shutdown()
            self._receive()
            self._ended = True
        self.connected = False
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        reason, self._reason = self._reason or reason, None
        self._held.clear()
        # The connection refers to this object.
        self._tls = None
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    # --- the handshake and the end of TLS

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
        except SSL.Error:
            self._end(Failure())
        else:
            self._handshaking = False
            if not self._aborted and IHandshakeListener.providedBy(self.wrappedProtocol):
                self.wrappedProtocol.handshakeCompleted()

    def _shut_down(self) -> None:
        """Send a close_notify; close the transport below if the peer has sent its own."""
        if self._tls is None:
            return
        try:
            done = self._tls.shutdown()
        except SSL.Error:
            # OpenSSL cannot end a handshake that is in progress.
            done = False
        self._flush()
        if done:
            self._close()

    def _end(self, reason: Failure | None) -> None:
        """
        Close the transport below: TLS has ended.

        :param reason: the error, ``None`` to report the reason of the transport below.
        """
        if reason is not None and last_reason(cast(SSL.Error, reason.value)).casefold().startswith("unexpected eof"):
            reason = Failure(CONNECTION_LOST)
        elif reason is not None:
            reason = Failure(in_words(cast(SSL.Error, reason.value)))
        if self._reason is None:
            self._reason = reason
        self._ended = True
        # An alert tells the peer what is wrong.
        self._flush()
        self._close()

    def _close(self) -> None:
        """Close the transport below after everything is written."""
        if not self._closing:
            self._closing = True
            if self._output is not None:
                self._output.hand_over()
            # loseConnection never completes while a producer is registered.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    # --- receiving

    def _receive(self) -> None:
        """Pass on the content of the records that were received, and write what OpenSSL answers to the others."""
        if self._tls is None:
            return  # closed by the protocol at the end of the handshake
        receive = self._tls.recv
        contents: list[bytes] = []
        ending: Callable[[], None] | None = None
        try:
            while True:
                contents.append(receive(_RECORD_SIZE))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            ending = self._closed_by_peer
        except SSL.Error:
            failure = Failure()

            def ending() -> None:
                self._end(failure)

        if contents and not self._aborted:
            self.wrappedProtocol.dataReceived(contents[0] if len(contents) == 1 else b"".join(contents))
        if self._tls is None:
            return  # closed by the protocol
        if ending is not None:
            ending()
        else:
            self._flush()

    def _closed_by_peer(self) -> None:
        self._shut_down()
        self._end(None)

    def _enlarge_reads(self) -> None:
        """Read more at once: the last read was full, so a large data set is being received, and fewer reads are faster."""
        if self._read_size < MAX_READ_SIZE:
            self._read_size *= 2
            self.transport.bufferSize = self._read_size

    # --- calls of the protocol above

    def write(self, data: bytes) -> None:
        """Encrypt *data* and write it; no effect after :meth:`loseConnection`, unless a producer is registered."""
        if self._ended or not self.connected or (self.disconnecting and self._producer is None):
            return
        if self._handshaking or self._held:
            self._hold(bytes(data))
        else:
            self._encrypt(memoryview(data))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Write *data* in order."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close the connection after everything is written."""
        if self.disconnecting or not self.connected:
            return
        self.disconnecting = True
        if self._handshaking and not self._held:
            # OpenSSL cannot end a handshake, and nothing will be written that completes it.
            self.abortConnection()
        elif not self._held and self._producer is None:
            self._shut_down()

    def abortConnection(self) -> None:
        """Close the connection at once, and pass on nothing more."""
        if not self.connected:
            return
        self._aborted = self.disconnecting = True
        self._shut_down()
        self.transport.abortConnection()

    def failVerification(self, reason: Failure) -> None:
        """Abort the connection, and report *reason*; called by connection creators of Twisted during the handshake."""
        self._reason = reason
        self.abortConnection()

    def getHandle(self) -> SSL.Connection:
        """Return the connection of pyOpenSSL."""
        connection: SSL.Connection = self._tls
        return connection

    def getPeerCertificate(self) -> crypto.X509 | None:
        """Return the certificate of the peer, if it has sent one."""
        certificate: crypto.X509 | None = None if self._tls is None else self._tls.get_peer_certificate()
        return certificate

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """The protocol that both sides agreed to (ALPN), if any."""
        return (self._tls.get_alpn_proto_negotiated() or None) if self._tls is not None else None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Pause *producer* while the peer accepts no more, and during handshakes in which something was written."""
        if self._ended or not self.connected:
            producer.stopProducing()
            return
        if self._producer is not None:
            raise RuntimeError(f"cannot register {producer!r}: {self._producer!r} was never unregistered")
        self._producer = producer if streaming else _Pull(producer, self.abortConnection)
        self._producer_paused = False
        self._update_producer()

    def unregisterProducer(self) -> None:
        """End the calls of the producer; a close that waited for it goes on."""
        producer, self._producer = self._producer, None
        if isinstance(producer, _Pull):
            producer.end()
        if producer is not None and self.disconnecting and not self._held:
            self._shut_down()

    # --- writing

    def _hold(self, data: bytes | memoryview) -> None:
        self._held.append(data)
        self._update_producer()

    def _write_held(self) -> None:
        """Write what was held during a handshake."""
        held, self._held = self._held, []
        for index, data in enumerate(held):
            self._encrypt(memoryview(data))
            if self._held:
                self._held += held[index + 1 :]
                return
        self._update_producer()
        if self.disconnecting and self._producer is None:
            self._shut_down()

    def _encrypt(self, data: memoryview) -> None:
        while data and not self._ended:
            part = data[:_SEND_SIZE]
            try:
                sent = self._tls.send(part)
            except SSL.WantReadError:
                # The peer began another handshake, which a TLS context of the user may allow.
                self._flush()
                self._hold(data)
                return
            except SSL.Error:
                # The protocol is told this error, not only that the connection is closed.
                self._end(Failure())
                return
            data = data[sent:]
            self._flush(sent)

    def _flush(self, length: int = 0) -> None:
        """
        Write the output of OpenSSL to the transport below.

        :param length: the number of bytes of content in it.
        """
        size = length + length // _RECORD_SIZE * _RECORD_OVERHEAD + _MESSAGES_SIZE
        output = self._output
        while output is not None:
            try:
                data = self._tls.bio_read(size)
            except SSL.WantReadError:
                return
            output.write((data,))
            if len(data) < size:
                return

    def _output_changed(self, full: bool) -> None:
        self._full = full
        self._update_producer()

    def _update_producer(self) -> None:
        paused = self._full or bool(self._held)
        if self._producer is None or paused == self._producer_paused:
            return
        self._producer_paused = paused
        if paused:
            self._producer.pauseProducing()
        else:
            self._producer.resumeProducing()


class TLSFactory(WrappingFactory[TLSTransport]):
    """
    Builds the protocols of another factory with TLS below them.

    :param creator: the TLS of a client (``IOpenSSLClientConnectionCreator``) or of a server, according to *client*.
    :param client: whether the protocols are clients, which begin the handshake.
    :param wrapped_factory: the factory of the protocols above TLS.
    """

    protocol = TLSTransport
    noisy = False

    def __init__(self, creator: Any, client: bool, wrapped_factory: IProtocolFactory) -> None:
        super().__init__(wrapped_factory)  # type: ignore[no-untyped-call]
        self._creator = creator
        self._client = client

    def connection_for(self, transport: TLSTransport) -> SSL.Connection:
        """Return a new connection of pyOpenSSL. Its application data is the transport, as in Twisted."""
        connection: SSL.Connection
        if self._client:
            connection = self._creator.clientConnectionForTLS(transport)
            connection.set_connect_state()
        else:
            connection = self._creator.serverConnectionForTLS(transport)
            connection.set_accept_state()
        connection.set_app_data(transport)
        return connection


@implementer(IStreamClientEndpoint)
@dataclass(frozen=True, slots=True)
class _ClientEndpoint:
    creator: IOpenSSLClientConnectionCreator
    endpoint: IStreamClientEndpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        connecting: Deferred[Any] = self.endpoint.connect(TLSFactory(self.creator, True, protocolFactory))
        return connecting.addCallback(lambda transport: transport.wrappedProtocol)


@implementer(IStreamServerEndpoint)
@dataclass(frozen=True, slots=True)
class _ServerEndpoint:
    creator: IOpenSSLServerConnectionCreator
    endpoint: IStreamServerEndpoint

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        listening: Deferred[IListeningPort] = self.endpoint.listen(TLSFactory(self.creator, False, protocolFactory))
        return listening


def wrap_client_tls(creator: IOpenSSLClientConnectionCreator, endpoint: IStreamClientEndpoint) -> IStreamClientEndpoint:
    """Return an endpoint that connects as *endpoint* does, with TLS. Its Deferred does not wait for the handshake."""
    return _ClientEndpoint(creator, endpoint)


def wrap_server_tls(creator: IOpenSSLServerConnectionCreator, endpoint: IStreamServerEndpoint) -> IStreamServerEndpoint:
    """Return an endpoint that listens as *endpoint* does, with TLS."""
    return _ServerEndpoint(creator, endpoint)

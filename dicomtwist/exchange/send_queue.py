"""
The queue of messages to send: one message after the other, each data set pulled from its source as the transport takes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dicomtwist.datasets.sources import BytesSource, Chunk, DataSetSource
from dicomtwist.dimse.message_stream import encode_command_pdata, encode_pdata, payload_length
from dicomtwist.dimse.messages import Message
from dicomtwist.errors import DataSetError
from dicomtwist.interfaces import UpperLayer

#: The most PDUs that are encoded at once, for peers with a very short maximum length: with two buffers each, they are what
#: the kernel takes in one call.
MAX_PDUS = 512

#: The number of messages that may wait before reading from the peer pauses. The window bounds the requests of this side:
#: only responses can be that many.
MAX_QUEUED = 1000

#: The number of messages that may wait before a service that makes one after the other has to wait (:meth:`Outgoing.room`).
CONGESTED = 16

#: The most bytes that are held back while the queue is corked.
CORKED_SIZE = 64 * 1024


class _QueuedMessage:
    __slots__ = ("command", "context_id", "message", "sent", "source")

    def __init__(
        self,
        context_id: int,
        message: Message,
        command: bytes,
        source: DataSetSource | None,
        sent: Callable[[], None] | None,
    ) -> None:
        self.context_id = context_id
        self.message = message
        self.command = command
        self.source = source
        self.sent = sent


class Outgoing:
    """
    The queue of messages of one association. The fragments of two messages are never mixed (PS3.7 6.3).

    :param protocol: the upper layer that sends.
    :param peer_max_length: the longest P-DATA-TF that the peer receives, in bytes, 0 for no limit.
    :param failed: called with the message and the reason if a data set that is sent in part cannot be finished; nothing
        can be sent after that.
    :param emptied: called when a message that had to wait for the transport or its source was sent and no other waits.
        A release may wait for it: the operation itself is over already if the peer answered before it had the data set.
    """

    def __init__(
        self,
        protocol: UpperLayer,
        peer_max_length: int,
        failed: Callable[[Message, Failure], None],
        emptied: Callable[[], None],
    ) -> None:
        self._protocol = protocol
        self._payload = payload_length(peer_max_length)
        # A multiple of the payload of a PDU, so that no short PDU is sent in between.
        self._piece = min(max(1, protocol.write_size // self._payload), MAX_PDUS) * self._payload
        self._failed = failed
        self._emptied = emptied
        self._queue: deque[_QueuedMessage] = deque()
        self._current: _QueuedMessage | None = None
        self._rest: memoryview = memoryview(b"")
        self._rest_is_last = False
        self._reading = False
        self._running = False
        self._closed = False
        self._too_many = False
        self._corked: list[bytes | memoryview] | None = None
        self._corked_length = 0
        self._waiting_for_room: list[Deferred[None]] = []

    @property
    def _is_full(self) -> bool:
        return self._protocol.write_paused_since is not None

    @property
    def busy(self) -> bool:
        """Whether a message is being sent or waits."""
        return self._current is not None or bool(self._queue)

    def waits(self, message: Message) -> bool:
        """Return whether *message* waits for others, so that no byte of it was sent yet."""
        return any(queued.message is message for queued in self._queue)

    def send(
        self,
        context_id: int,
        message: Message,
        command: bytes,
        source: DataSetSource | None = None,
        sent: Callable[[], None] | None = None,
    ) -> None:
        """
        Send *message* with its data set.

        :param command: its encoded command set. The caller encodes it, before it changes anything for the message: a
            message that cannot be encoded then fails alone.
        :param source: the data set; it is closed in any case.
        :param sent: called when the last byte was given to the transport.
        """
        if self._closed:
            if source is not None:
                source.close()
            return
        if self._current is None and not self._queue and self._send_at_once(context_id, command, source):
            if sent is not None:
                sent()
            return
        self._queue.append(_QueuedMessage(context_id, message, command, source, sent))
        if len(self._queue) > MAX_QUEUED and not self._too_many:
            self._too_many = True
            self._protocol.pause_reading()
        self._run()

    def send_all(
        self, context_id: int, message: Message, command: bytes, datasets: Sequence[bytes | memoryview]
    ) -> None:
        """
        Send *message* once for each of *datasets*, in one write if nothing waits.

        :param command: as for :meth:`send`.
        :param datasets: data sets in memory, some dozens of KiB together.
        """
        if self._closed or self._current is not None or self._queue or self._is_full:
            for data in datasets:
                self.send(context_id, message, command, BytesSource(data))
            return
        head = b"".join(encode_command_pdata(context_id, command, self._payload))
        parts: list[bytes | memoryview] = []
        for data in datasets:
            if len(data) & 1:
                data = bytes(data) + b"\0"
            parts.append(head)
            parts += encode_pdata(context_id, False, data, self._payload)
        self._send_or_hold([b"".join(parts)])

    def _send_at_once(self, context_id: int, command: bytes, source: DataSetSource | None) -> bool:
        """Send a small message in memory at once, if the queue is empty; return whether it was sent."""
        if source is None:
            buffers = encode_command_pdata(context_id, command, self._payload)
        elif type(source) is BytesSource and len(source.data) <= CORKED_SIZE and not self._is_full:
            buffers = encode_command_pdata(context_id, command, self._payload)
            data = source.data
            if len(data) & 1:
                data = bytes(data) + b"\0"
            buffers += encode_pdata(context_id, False, data, self._payload)
        else:
            return False
        self._send_or_hold(buffers)
        return True

    def _send_or_hold(self, buffers: list[bytes | memoryview]) -> None:
        if self._corked is None:
            self._protocol.send(buffers)
        else:
            self._corked += buffers
            self._corked_length += sum(map(len, buffers))
            if self._corked_length > CORKED_SIZE:
                self.flush()

    def cork(self) -> None:
        """
        Hold messages back until :meth:`uncork`, for fewer and larger writes; the caller must not wait in between.
        """
        if self._corked is None:
            self._corked = []

    def uncork(self) -> None:
        """Write the messages that were held back, and hold back no more."""
        self.flush()
        self._corked = None

    def flush(self) -> None:
        """
        Write the messages that were held back, and hold back the next ones.

        A release follows the last response at once, also if that one is held back: it must not come before it.
        """
        if self._corked:
            corked, self._corked, self._corked_length = self._corked, [], 0
            if not self._closed:
                self._protocol.send(corked)

    def room(self) -> Deferred[None] | None:
        """Return a Deferred that fires when there is room for more messages, ``None`` if there is room now."""
        if self._closed or not (self._is_full or len(self._queue) >= CONGESTED):
            return None
        waiting: Deferred[None] = Deferred(self._waiting_for_room.remove)
        self._waiting_for_room.append(waiting)
        return waiting

    def _tell_of_room(self) -> None:
        while self._waiting_for_room and (self._closed or not (self._is_full or len(self._queue) >= CONGESTED)):
            self._waiting_for_room.pop(0).callback(None)

    def _run(self) -> None:
        """Send queued messages until the transport is full, a source has to be waited for, or the queue is empty."""
        if self._running:
            return
        self._running = True
        try:
            while not self._closed:
                head: list[bytes | memoryview] = []
                if self._current is None:
                    if not self._queue or (self._queue[0].source is not None and self._is_full):
                        return
                    queued = self._current = self._queue.popleft()
                    head = encode_command_pdata(queued.context_id, queued.command, self._payload)
                    if self._corked:
                        # Messages that were held back go out with this one.
                        head = self._corked + head
                        self._corked, self._corked_length = [], 0
                if not self._pump(self._current, head):
                    return
                self._finish()
        finally:
            self._running = False

    def _pump(self, current: _QueuedMessage, buffers: list[bytes | memoryview]) -> bool:
        """
        Give the data set to the transport until it is full; return whether the message is complete.

        :param buffers: the command set if it is still to be sent. It goes out with the first part of the data set if that
            is there at once: one write, one packet.
        """
        if current.source is None:
            self._protocol.send(buffers)
            return True
        while not self._closed:
            if not self._rest and not self._rest_is_last:
                if self._reading or self._read(current.source):
                    break
                continue
            if self._is_full and not buffers:
                return False
            piece = self._rest[: self._piece]
            self._rest = self._rest[self._piece :]
            last = self._rest_is_last and not self._rest
            self._protocol.send(buffers + encode_pdata(current.context_id, False, piece, self._payload, last))
            buffers = []
            if last:
                return True
        if buffers and not self._closed:
            self._protocol.send(buffers)
        return False

    def _read(self, source: DataSetSource) -> bool:
        """Read from the source; return whether it has to be waited for."""
        try:
            chunk = source.read()
        except Exception:
            self._fail(Failure())
            return False
        if isinstance(chunk, Deferred):
            self._reading = True

            def have(chunk: Chunk) -> None:
                self._reading = False
                self._take(chunk)
                self._run()  # without effect if the chunk came at once: _run is still active

            def failed(reason: Failure) -> None:
                self._reading = False
                self._fail(reason)

            chunk.addCallback(have).addErrback(failed)
            return self._reading
        self._take(chunk)
        return False

    def _take(self, chunk: Chunk) -> None:
        data, last = chunk
        if self._closed:
            return
        if len(data) & 1:
            if not last:
                self._fail(Failure(DataSetError("a source gave a chunk of odd length that is not the last")))
                return
            # Every data set is of even length (PS3.5 7.1.1); the pad of a deflated one is a zero (PS3.5 A.5).
            data = bytes(data) + b"\0"
        self._rest = memoryview(data)
        self._rest_is_last = last

    def _finish(self) -> None:
        current, self._current = self._current, None
        self._rest = memoryview(b"")
        self._rest_is_last = False
        if self._too_many and not self._queue:
            self._too_many = False
            self._protocol.resume_reading()
        assert current is not None
        if current.source is not None:
            current.source.close()
        if current.sent is not None:
            current.sent()
        if self._waiting_for_room:
            self._tell_of_room()
        if not self.busy:
            self._emptied()

    def _fail(self, reason: Failure) -> None:
        current = self._current
        if current is None or self._closed:
            return
        self.close()
        self._failed(current.message, reason)

    def writable(self) -> None:
        """Continue to send: the transport takes more bytes."""
        if not self._reading:
            self._run()
        self._tell_of_room()

    def close(self) -> None:
        """Drop everything that was not given to the transport."""
        self._closed = True
        dropped = [self._current, *self._queue] if self._current is not None else []
        self._current = None
        self._queue.clear()
        self._rest = memoryview(b"")
        for queued in dropped:
            if queued is not None and queued.source is not None:
                queued.source.close()
        self._corked = None
        self._tell_of_room()

"""
Requests of the peer that wait, because it has sent more of them than the asynchronous operations window allows.

PS3.7 D.3.3.3 forbids that, but requestors do it: they pipeline their requests over one connection without a negotiated window.
A refusal would lose their instances, so the requests are performed in order, as earlier ones end.
"""

from __future__ import annotations

from dicomtwist.datasets.stream import CHUNK, DataSetStream
from dicomtwist.interfaces import PerformedOperation, UpperLayer


class Pauser:
    """
    Stops reading from the peer for the data set of one request.

    :param protocol: reads.

    :ivar is_waiting: whether the request waits. As long as it does, a pause is no fault of the peer or of a handler, so the
        network timeout does not limit it.
    """

    __slots__ = ("_pause", "_protocol", "is_waiting")

    def __init__(self, protocol: UpperLayer) -> None:
        self._protocol = protocol
        self._pause: bool | None = None  # whether the present pause is timed
        self.is_waiting = True

    @property
    def is_paused(self) -> bool:
        """Whether reading is paused for this data set."""
        return self._pause is not None

    def pause_reading(self) -> None:
        """Stop reading."""
        self._pause = not self.is_waiting
        self._protocol.pause_reading(timed=self._pause)

    def resume_reading(self) -> None:
        """Read again."""
        if self._pause is not None:
            timed, self._pause = self._pause, None
            self._protocol.resume_reading(timed=timed)

    def performed(self) -> None:
        """Have the network timeout limit pauses: the request is performed now."""
        self.is_waiting = False
        if self._pause is False:
            self._pause = True
            self._protocol.pause_reading()
            self._protocol.resume_reading(timed=False)


class WaitingRequests:
    """
    The requests that wait, in the order in which they came, and the pause of reading that bounds them.

    :param protocol: reads from the peer.
    :param limit: the number of requests at which reading is paused; with 0 none waits.

    :ivar requests: the requests, each with what pauses reading for it.
    """

    __slots__ = ("_is_paused", "_limit", "_protocol", "requests")

    def __init__(self, protocol: UpperLayer, limit: int) -> None:
        self._protocol = protocol
        self._limit = limit
        self.requests: list[tuple[PerformedOperation, Pauser]] = []  # a deque takes 700 bytes even if it is empty
        self._is_paused = False

    def __len__(self) -> int:
        return len(self.requests)

    def find(self, message_id: int) -> PerformedOperation | None:
        """Return the request with a Message ID, ``None`` if none waits."""
        return next((one for one, _ in self.requests if one.request.message_id == message_id), None)

    @property
    def _is_full(self) -> bool:
        """Whether no further request should be read."""
        held = sum(one.stream.received for one, _ in self.requests if one.stream is not None)
        return len(self.requests) >= self._limit or held >= CHUNK

    def add(self, performance: PerformedOperation, *, may_pause: bool) -> bool:
        """
        Let a request wait, and pause reading if that makes them too many.

        :param may_pause: whether reading may be paused; not if an operation under way needs what the peer sends.
        :returns: whether it waits; if not, there is no room.
        """
        if not self._limit or (not may_pause and self._is_full):
            return False
        pauser = Pauser(self._protocol)
        if performance.stream is not None:
            performance.stream = DataSetStream(pauser)
        self.requests.append((performance, pauser))
        if may_pause:
            self._pause_if_full()
        return True

    def _pause_if_full(self) -> None:
        if self._is_full and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_reading(timed=False)

    def take(self) -> PerformedOperation:
        """Remove the first request, which is to be performed."""
        performance, pauser = self.requests.pop(0)
        pauser.performed()
        if self._is_paused and not self._is_full:
            self._resume()
        return performance

    def _resume(self) -> None:
        self._is_paused = False
        self._protocol.resume_reading(timed=False)

    def make_way(self) -> list[PerformedOperation]:
        """
        Read from the peer again: an operation under way needs what it sends.

        :returns: the requests whose data sets are too long to wait, which the caller refuses; they no longer wait.
        """
        blocking = [one for one, pauser in self.requests if pauser.is_paused]
        if blocking:
            self.requests = [pair for pair in self.requests if not pair[1].is_paused]
        if self._is_paused:
            self._resume()
        return blocking

    def clear(self) -> list[PerformedOperation]:
        """Remove and return all requests: the association has ended."""
        performances = [one for one, _ in self.requests]
        self.requests.clear()
        return performances

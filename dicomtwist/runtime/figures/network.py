"""
The figures of an Application Entity on the network.
"""

from __future__ import annotations

from dicomtwist.runtime.figures.counts import Counts, Durations

__all__ = ["NetworkFigures", "OperationFigures"]


class OperationFigures:
    """
    Operations that have ended.

    :ivar counts: their number, by service and status.
    :ivar durations: their durations, by service.
    """

    __slots__ = ("counts", "durations")

    def __init__(self) -> None:
        self.counts = Counts()
        self.durations: Durations[str] = Durations()

    def done(self, service: str, status: int, seconds: float) -> None:
        """Count an operation that has ended after *seconds*."""
        self.counts.add((service, status))
        self.durations.add(service, seconds)


class NetworkFigures:
    """
    The figures of an Application Entity on the network.

    :ivar performed: the operations that it performed for peers, from the request to the final response.
    :ivar invoked: the operations that it invoked, from the end of the request to the final response.
    :ivar associations: the associations that have ended, by role, kind of ending, and the side that ended them.
    :ivar lifetimes: their durations, by role.
    :ivar bytes_received: the bytes that associations received which have ended.
    :ivar bytes_sent: the bytes that they sent.
    """

    __slots__ = ("associations", "bytes_received", "bytes_sent", "invoked", "lifetimes", "performed")

    def __init__(self) -> None:
        self.performed = OperationFigures()
        self.invoked = OperationFigures()
        self.associations = Counts()
        self.lifetimes: Durations[str] = Durations()
        self.bytes_received = self.bytes_sent = 0

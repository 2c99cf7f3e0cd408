"""
The deadlines of an established association.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dicomtwist.exchange.exchange import Exchange
from dicomtwist.settings import Settings
from dicomtwist.transport.upper_layer import UpperLayerProtocol


class Deadline(NamedTuple):
    """
    The time limit of a step that the peer or a handler has to take.

    :ivar timer: the timeout of the settings that limits it, such as ``"acse"`` or ``"write"``.
    :ivar seconds: the time that it may take, in seconds.
    :ivar since: the time from which it is counted, in seconds of the clock.
    :ivar what: the beginning of the error's text, if the step is not taken in time.
    """

    timer: str
    seconds: float
    since: float
    what: str


def shortest_timeout(settings: Settings) -> float | None:
    """Return the shortest of the timeouts, in seconds. No deadline expires earlier than this after its start."""
    times = (
        settings.acse_timeout,
        settings.dimse_timeout,
        settings.network_timeout,
        settings.write_timeout,
        settings.pdu_timeout,
    )
    return min((seconds for seconds in times if seconds is not None), default=None)


def deadlines(
    settings: Settings,
    protocol: UpperLayerProtocol,
    exchange: Exchange | None,
    release_asked_at: float | None,
    progress_elsewhere: Callable[[], float] | None = None,
) -> list[Deadline]:
    """
    Return the deadlines that run now.

    :param release_asked_at: when this side sent its A-RELEASE-RQ, in seconds of the clock; ``None`` if it waits for no
        answer.
    :param progress_elsewhere: returns when an operation last made progress on another association, in seconds of the clock.
    """
    found: list[Deadline] = []
    if settings.acse_timeout is not None and release_asked_at is not None:
        found.append(Deadline("acse", settings.acse_timeout, release_asked_at, "the peer did not agree to the release"))
    if protocol.pdu_since is not None:
        # The limit is for the whole PDU, not for each byte. A PDU without data is small: only a hostile peer sends it slowly.
        control = protocol.connection.mid_control
        timer, seconds = ("acse", settings.acse_timeout) if control else ("pdu", settings.pdu_timeout)
        if seconds is not None:
            found.append(Deadline(timer, seconds, protocol.pdu_since, "a PDU did not arrive completely"))
    write = settings.write_timeout
    if write is not None and protocol.write_paused_since is not None:
        found.append(
            Deadline("write", write, protocol.write_paused_since, "the peer did not read the data that was sent to it")
        )
    network = settings.network_timeout
    if network is not None and protocol.read_paused_since is not None:
        found.append(
            Deadline("network", network, protocol.read_paused_since, "no handler took the data set that was received")
        )
    dimse = settings.dimse_timeout
    if dimse is not None and not protocol.reading_paused:
        if (exchange is not None and exchange.mid_message) or protocol.connection.mid_pdu:
            found.append(Deadline("dimse", dimse, protocol.last_received, "a message did not continue"))
        waiting = exchange.waiting_since if exchange is not None else None
        if waiting is not None and protocol.write_paused_since is None:
            # Every byte in either direction is progress: the response may follow a large data set of the peer, and the peer
            # cannot answer a request that is still in the buffer of this side.
            since = max(waiting, protocol.last_received, protocol.last_sent)
            if progress_elsewhere is not None:
                since = max(since, progress_elsewhere())
            handler = exchange.calls.handler_awaited if exchange is not None else None
            what = "the peer did not answer a request"
            if handler is not None:
                what = f"a C-GET waited for the handler of {handler}, which did not end"
            found.append(Deadline("dimse", dimse, since, what))
    if network is not None and not found and not (exchange is not None and exchange.under_way):
        since = max(protocol.last_received, protocol.last_sent)
        found.append(Deadline("network", network, since, "nothing happened"))
    return found

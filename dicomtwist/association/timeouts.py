"""
What an established association waits for, and until when.
"""

from __future__ import annotations

from typing import NamedTuple

from dicomtwist.exchange.exchange import Exchange
from dicomtwist.settings import Settings
from dicomtwist.transport.upper_layer import UpperLayerProtocol


class Deadline(NamedTuple):
    """
    Something that is to happen.

    :ivar timer: which timeout of the settings limits it, or ``"write"``.
    :ivar seconds: how long it may take.
    :ivar since: since when, in seconds of the clock.
    :ivar what: what did not happen, if it does not.
    """

    timer: str
    seconds: float
    since: float
    what: str


def shortest_timeout(settings: Settings) -> float | None:
    """Return the shortest of the timeouts, in seconds: nothing runs out sooner after it began."""
    times = (
        settings.acse_timeout,
        settings.dimse_timeout,
        settings.network_timeout,
        settings.write_timeout,
        settings.pdu_timeout,
    )
    return min((seconds for seconds in times if seconds is not None), default=None)


def deadlines(
    settings: Settings, protocol: UpperLayerProtocol, exchange: Exchange | None, release_asked_at: float | None
) -> list[Deadline]:
    """
    Return what is waited for.

    :param release_asked_at: since when the answer to our A-RELEASE request is waited for, ``None`` if it is not.
    """
    found: list[Deadline] = []
    if settings.acse_timeout is not None and release_asked_at is not None:
        found.append(Deadline("acse", settings.acse_timeout, release_asked_at, "the peer did not agree to the release"))
    if protocol.pdu_since is not None:
        # For the whole of it, not for each byte. One without data is small: it takes long only if it is meant to.
        control = protocol.connection.mid_control
        timer, seconds = ("acse", settings.acse_timeout) if control else ("pdu", settings.pdu_timeout)
        if seconds is not None:
            found.append(Deadline(timer, seconds, protocol.pdu_since, "a PDU did not come whole"))
    write = settings.write_timeout
    if write is not None and protocol.write_paused_since is not None:
        found.append(Deadline("write", write, protocol.write_paused_since, "the peer did not read what was written"))
    network = settings.network_timeout
    if network is not None and protocol.read_paused_since is not None:
        found.append(Deadline("network", network, protocol.read_paused_since, "a received data set was not taken"))
    dimse = settings.dimse_timeout
    if dimse is not None and not protocol.reading_paused:
        if (exchange is not None and exchange.mid_message) or protocol.connection.mid_pdu:
            found.append(Deadline("dimse", dimse, protocol.last_received, "a message did not go on"))
        waiting = exchange.waiting_since if exchange is not None else None
        if waiting is not None and protocol.write_paused_since is None:
            # Every byte that comes or goes is progress: the answer may be behind a large data set of the peer's, and what
            # is still in our buffer nobody can answer.
            since = max(waiting, protocol.last_received, protocol.last_sent)
            found.append(Deadline("dimse", dimse, since, "the peer did not answer a request"))
    busy = exchange is not None and (exchange.asking or exchange.answering)
    if network is not None and not found and not busy:
        since = max(protocol.last_received, protocol.last_sent)
        found.append(Deadline("network", network, since, "nothing happened"))
    return found

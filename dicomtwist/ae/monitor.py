"""
The vital signs of a running server: the lag of its reactor, its associations and operations, its memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from dicomtwist.runtime.executors import Executors, ExecutorVitals
from dicomtwist.runtime.figures.counts import Durations

if TYPE_CHECKING:
    from dicomtwist.ae.server import Server

__all__ = ["BlockedExecutors", "ReactorLag", "Vitals", "resident_memory"]

#: The time between two measurements of the lag, in seconds.
INTERVAL: Final = 0.5
#: The period of the maximum and the mean, in which at most one warning is logged, in seconds.
WINDOW: Final = 60.0


class ReactorLag:
    """
    The lag of a reactor: the time by which its timers fire late, because code computes in its thread or blocks it.

    :param clock: the reactor.
    :param warning: the lag from which on a warning is logged, in seconds; ``None`` for no warning.

    :ivar warning: that lag, which may change.
    :ivar distribution: all measurements since the start, with one label, which is empty.
    """

    log = Logger()

    def __init__(self, clock: Any, warning: float | None = 1.0) -> None:
        self.distribution: Durations[str] = Durations()
        self._clock = clock
        self.warning = warning
        self._samples: deque[tuple[float, float]] = deque()
        self._told: float | None = None
        self._due = 0.0
        self._call: Any = None

    def start(self) -> None:
        """Start the measurements, unless they run already."""
        if self._call is None:
            self._samples.clear()
            self._told = None
            self._next()

    def stop(self) -> None:
        """Stop the measurements; their results stay available."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    @property
    def maximum(self) -> float:
        """The maximum of the last minute, in seconds. A timer that is due and has not fired counts."""
        return max((late for _, late in self._recent()), default=0.0)

    @property
    def mean(self) -> float:
        """The mean of the last minute, in seconds."""
        recent = self._recent()
        return sum(late for _, late in recent) / len(recent) if recent else 0.0

    def maximum_of(self, seconds: float) -> float:
        """Return the maximum of the last *seconds*, at most of the last minute, in seconds."""
        return max((late for _, late in self._recent(seconds)), default=0.0)

    def _recent(self, seconds: float = WINDOW) -> list[tuple[float, float]]:
        now = self._clock.seconds()
        recent = [(at, late) for at, late in self._samples if at > now - seconds]
        if self._call is not None and now > self._due:
            recent.append((now, now - self._due))
        return recent

    def _next(self) -> None:
        self._due = self._clock.seconds() + INTERVAL
        self._call = self._clock.callLater(INTERVAL, self._look)

    def _look(self) -> None:
        now = self._clock.seconds()
        late = max(0.0, now - self._due)
        self._samples.append((now, late))
        self.distribution.add("", late)
        while self._samples[0][0] <= now - WINDOW:
            self._samples.popleft()
        self._next()
        if self.warning is None or late <= self.warning:
            return
        if self._told is None or now - self._told >= WINDOW:
            self._told = now
            self.log.info(
                "the reactor was held up for {late:.3f} s; in the last minute its timers were late by {mean:.3f} s on average",
                late=late,
                mean=self.mean,
            )


class BlockedExecutors:
    """
    Logs executors all of whose threads have been busy with the same calls for long: once for each time that this lasts.

    :param clock: the reactor.
    :param executors: the executors.
    :param warning: the seconds from which on a warning is logged; ``None`` for no warning.
    """

    log = Logger()

    def __init__(self, clock: Any, executors: Executors, warning: float | None = 5.0) -> None:
        self._clock = clock
        self._executors = executors
        self._warning = warning
        self._blocked: set[str] = set()
        self._call: Any = None

    def start(self) -> None:
        """Start to look, unless it looks already."""
        if self._call is None and self._warning is not None:
            self._call = self._clock.callLater(INTERVAL, self._look)

    def change(self, warning: float | None) -> None:
        """Replace the seconds from which on a warning is logged, and look from now on."""
        self.stop()
        self._warning = warning
        self.start()

    def stop(self) -> None:
        """Stop to look."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _look(self) -> None:
        self._call = None
        self.start()
        for vitals in self._executors.vitals():
            if vitals.blocked < (self._warning or 0):
                if vitals.name in self._blocked:
                    self._blocked.remove(vitals.name)
                    self.log.info("the executor {name} has a free thread again", name=vitals.name)
            elif vitals.name not in self._blocked:
                self._blocked.add(vitals.name)
                self.log.warn(
                    "all {threads} threads of the executor {name} have been busy for {seconds:.1f} s, with {work}; "
                    "{queued} calls wait for them",
                    threads=vitals.threads,
                    name=vitals.name,
                    seconds=vitals.blocked,
                    work=", ".join(vitals.work),
                    queued=vitals.queued,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """
    The vital signs of a server at one moment.

    :ivar associations: the number of established associations.
    :ivar connections: the number of connections, with an association or without.
    :ivar operations: the number of operations that were performed since the start, by service such as ``"C-STORE"``.
    :ivar lag_maximum: the maximum lag of the reactor in the last minute, in seconds.
    :ivar lag_mean: the mean lag of the reactor in the last minute, in seconds.
    :ivar memory: the resident memory of the process, in bytes; 0 if the system does not report it.
    :ivar executors: the vital signs of each executor that was used; the text has those that have work.
    :ivar http_connections: the number of connections of HTTP; ``None`` if the server has no port for it.
    """

    associations: int
    connections: int
    operations: Mapping[str, int]
    lag_maximum: float
    lag_mean: float
    memory: int
    executors: tuple[ExecutorVitals, ...] = ()
    http_connections: int | None = None

    @classmethod
    def of(cls, server: Server | None, lag: ReactorLag, executors: Executors | None = None) -> Vitals:
        """Return the vital signs of *server*, which is ``None`` if nothing listens, and of *executors*."""
        return cls(
            associations=0 if server is None else len(server.active_associations),
            connections=0 if server is None else len(server.factory.associations),
            operations={} if server is None else dict(sorted(server.operations.items())),
            lag_maximum=lag.maximum,
            lag_mean=lag.mean,
            memory=resident_memory(),
            executors=() if executors is None else tuple(executors.vitals()),
        )

    def __str__(self) -> str:
        operations = ", ".join(f"{count} {service}" for service, count in self.operations.items())
        return (
            f"{self.associations} associations, {self.connections} connections"
            + ("" if self.http_connections is None else f", {self.http_connections} HTTP connections")
            + "; since the start "
            f"{operations or 'no operations'}; the reactor was late by {self.lag_maximum:.3f} s at the most and "
            f"{self.lag_mean:.3f} s on average in the last minute; {self.memory // 1024**2} MiB of memory"
            + "".join(f"; {one}" for one in self.executors if one.busy or one.queued)
        )


def resident_memory() -> int:
    """Return the resident memory of this process in bytes, 0 if ``/proc`` does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0

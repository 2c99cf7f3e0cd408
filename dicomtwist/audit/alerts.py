"""
Repeated alerts of one kind and source, together: a client that tries thousands of times does not fill the audit trail.

The first one has a message at once. Further ones are counted, and have one message together at the end of each interval. No
I/O; the timer is that of the clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from dicomtwist.audit.messages import Event, NodeObject, Participant
from dicomtwist.runtime.networks import host_of

__all__ = ["Alerts"]

#: The time for which alerts of one kind and source are counted until they have a message together, in seconds.
EVERY: Final = 60.0
#: The most kinds and sources that are counted apart; those beyond are counted together, by kind.
MAX_SOURCES: Final = 1000
#: The most names of one host that are counted apart; those beyond are counted together, by kind and host.
MAX_NAMES: Final = 20


class _Key(NamedTuple):
    """
    A kind and a source of alerts.

    :ivar kind: the codes of the event and of its type.
    :ivar host: the host of the source, ``""`` for several.
    :ivar name: its name, ``""`` for several.
    """

    kind: tuple[str, str]
    host: str
    name: str


@dataclass(slots=True)
class _Repeated:
    """Alerts that have no message yet."""

    count: int = 0
    first: datetime | None = None
    last: Event | None = None


class Alerts:
    """
    Alerts, of which repeated ones have a message together.

    :param clock: the reactor.
    :param put: writes the message of an event.
    """

    def __init__(self, clock: Any, put: Callable[[Event], object]) -> None:
        self._clock = clock
        self._put = put
        self._table: dict[_Key, _Repeated] = {}
        self._names: Counter[str] = Counter()
        self._call: Any = None

    def add(self, event: Event) -> None:
        """
        Take an alert.

        :param event: its first participant is the source.
        """
        key = self._key(event)
        repeated = self._table.get(key)
        if repeated is None:
            self._table[key] = _Repeated()
            self._names[key.host] += 1
            self._put(self._named(key, event))
            if self._call is None:
                self._call = self._clock.callLater(EVERY, self._look)
            return
        repeated.count += 1
        repeated.first = repeated.first or event.when
        repeated.last = event

    def flush(self) -> None:
        """Write the messages of what was counted, and forget everything."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._tell()
        self._table.clear()
        self._names.clear()

    def _key(self, event: Event) -> _Key:
        source = event.participants[0]
        kind = event.code.value, "" if event.kind is None else event.kind.value
        host = host_of(source.address) or "unknown"
        for key in (_Key(kind, host, source.user), _Key(kind, host, "")):
            if key in self._table:
                return key
        if len(self._table) >= MAX_SOURCES:
            return _Key(kind, "", "")
        return _Key(kind, host, source.user if self._names[host] < MAX_NAMES else "")

    def _look(self) -> None:
        self._call = None
        # A source that was quiet for the whole interval is a new one if it comes again.
        for key in [key for key, repeated in self._table.items() if not repeated.count]:
            del self._table[key]
            self._names[key.host] -= 1
            if not self._names[key.host]:
                del self._names[key.host]
        self._tell()
        if self._table:
            self._call = self._clock.callLater(EVERY, self._look)

    def _tell(self) -> None:
        for key, repeated in self._table.items():
            event = repeated.last
            if event is not None and repeated.first is not None:
                period = f"{repeated.first.isoformat(timespec='seconds')} to {event.when.isoformat(timespec='seconds')}"
                why = f"{repeated.count} more from {period}, the last: {event.why}"
                objects = [replace(one, why=why) if isinstance(one, NodeObject) else one for one in event.objects]
                self._put(self._named(key, replace(event, why=why, objects=objects)))
            repeated.count, repeated.first, repeated.last = 0, None, None

    def _named(self, key: _Key, event: Event) -> Event:
        """Return *event* with the source that *key* stands for."""
        if key.name:
            return event
        first, *others = event.participants
        source = Participant(user="several", is_requestor=first.is_requestor, address=first.address if key.host else "")
        return replace(event, participants=[source, *others])

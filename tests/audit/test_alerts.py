"""Repeated alerts: the first of each source at once, the others together, whatever comes in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.audit.alerts import EVERY, MAX_NAMES, MAX_SOURCES, Alerts
from dicomtwist.audit.messages import (
    AUTHENTICATION,
    FAILURE,
    LOGIN,
    RESTRICTED,
    SECURITY_ALERT,
    Event,
    NodeObject,
    Participant,
    message,
)
from tests.audit.schema import parsed

NOW = datetime(2026, 11, 30, 12, 0, 0, 0, UTC)


class Repeated(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.put: list[Event] = []
        self.alerts = Alerts(self.clock, self.put.append)

    def add(self, address: str = "10.1.0.1", name: str = "", *, login: bool = False, why: str = "refused") -> None:
        node = NodeObject(node="ARCHIVE", why=why)
        self.alerts.add(
            Event(
                code=AUTHENTICATION if login else SECURITY_ALERT,
                kind=LOGIN if login else RESTRICTED,
                action="E",
                when=NOW + timedelta(seconds=self.clock.seconds()),
                outcome=FAILURE,
                why=why,
                participants=[
                    Participant(user=name or address, address=address, is_requestor=True),
                    Participant(user="ARCHIVE"),
                ],
                objects=() if login else [node],
            )
        )

    def told(self) -> list[tuple[str, str]]:
        """Return source and reason of each message; all are valid."""
        found = [(event.participants[0].user, event.why) for event in self.put]
        for event in self.put:
            parsed(message(event, "SOURCE"))
        self.put.clear()
        return found

    def test_one_source(self) -> None:
        for _ in range(1000):
            self.add()
            self.clock.advance(0.01)
        self.assertEqual(self.told(), [("10.1.0.1", "refused")])
        self.clock.advance(EVERY - 9)
        ((source, why),) = self.told()
        self.assertEqual(source, "10.1.0.1")
        self.assertEqual(why, "999 more from 2026-11-30T12:00:00+00:00 to 2026-11-30T12:00:09+00:00, the last: refused")
        self.add()  # it goes on
        self.assertEqual(self.told(), [])
        self.clock.advance(EVERY)
        self.assertEqual([why.partition(" ")[0] for _, why in self.told()], ["1"])
        self.clock.advance(EVERY)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.add()  # after a pause
        self.assertEqual(self.told(), [("10.1.0.1", "refused")])

    def test_others_are_not_hidden(self) -> None:
        """Other kinds, other names and other hosts have messages of their own."""
        for _ in range(3):
            self.add()
            self.add(login=True)
            self.add(name="CT1")
            self.add("10.1.0.2")
        self.assertEqual([source for source, _ in self.told()], ["10.1.0.1", "10.1.0.1", "CT1", "10.1.0.2"])
        self.alerts.flush()
        self.assertEqual([why.partition(" ")[0] for _, why in self.told()], ["2"] * 4)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_names(self) -> None:
        """A host has few names that count apart, and leaves room for others."""
        for number in range(5 * MAX_SOURCES):
            self.add(name=f"AE{number}")
        self.add("10.1.0.2")
        told = self.told()
        self.assertEqual(len(told), MAX_NAMES + 2)
        self.assertEqual([source for source, _ in told[-2:]], ["several", "10.1.0.2"])
        self.clock.advance(EVERY)
        ((source, why),) = self.told()
        self.assertEqual((source, why.partition(" ")[0]), ("several", str(5 * MAX_SOURCES - MAX_NAMES - 1)))

    def test_many_hosts(self) -> None:
        """The number of messages is bounded, and nothing is left out of the counts."""
        total = 3 * MAX_SOURCES
        for number in range(total):
            self.add(f"2001:db8:{number:x}::1")
        told = self.told()
        self.assertEqual(len(told), MAX_SOURCES + 1)
        self.assertEqual(told[-1][0], "several")
        self.clock.advance(EVERY)
        ((_, why),) = self.told()
        self.assertEqual(why.partition(" ")[0], str(total - MAX_SOURCES - 1))
        for _ in range(2):
            self.clock.advance(EVERY)
        self.assertEqual(self.clock.getDelayedCalls(), [])

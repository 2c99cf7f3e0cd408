"""The retention: its configuration, the times of studies, what is deleted and what stays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from sqlalchemy import select
from twisted.internet import reactor
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from dicomtwist import AE
from dicomtwist.access.certificates import Certificate, parse_pattern
from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.reading import reading
from dicomtwist.archive.index.study_times import Order, StudyFacts, study_senders
from dicomtwist.archive.removal.holds import Hold
from dicomtwist.archive.removal.policy import parse_retention
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.transport.peer_directory import Peers
from tests.archive.samples import dataset, keep

DAY = 86400.0
NOW = 1_800_000_000.0


class Configuration(SynchronousTestCase):
    def test_policy(self) -> None:
        policy = parse_retention(
            {
                "age": "1y",
                "size": "1.5T",
                "order": "accessed",
                "dry-run": True,
                "every": "10s",
                "rule": [
                    {"name": "teaching", "calling": "TEACH*", "keep": True},
                    {"modality": ["CT", "MR"], "age": "30d"},
                ],
            }
        )
        self.assertEqual(policy.size, int(1.5 * 2**40))
        self.assertEqual((policy.order, policy.dry_run, policy.interval), (Order.ACCESSED, True, 10.0))
        self.assertEqual(policy.youngest, 30 * DAY)

        def study(days: float, calling: str = "X", *modalities: str, accessed: float = 0.0) -> StudyFacts:
            return StudyFacts("1.2", NOW - days * DAY, accessed, calling, "ME", modalities)

        for facts, too_old, spare in (
            (study(400), True, True),
            (study(400, "X", "US"), True, True),
            (study(300, "X", "US"), False, True),
            (study(31, "X", "CT"), True, True),
            (study(31, "X", "CT", "US"), False, True),
            (study(29, "X", "CT"), False, True),
            (study(400, "TEACH1", "CT"), False, False),
            (study(400, ""), False, False),
            (study(400, "X", "CT", accessed=NOW - DAY), False, True),
        ):
            self.assertEqual((policy.is_too_old(facts, NOW), policy.is_spare(facts)), (too_old, spare), facts)

    def test_senders(self) -> None:
        """Conditions on the sender; a study stays if one of them depends on what is not known, and no other one fails."""
        certificate = Certificate(parse_pattern("CN=ct1,O=Hospital").subject, "ab" * 32)
        ct1 = Requestor("ME", "CT1", "10.1.0.7", user="tech", certificate=certificate)
        proxied = Requestor("ME", "CT1", "127.0.0.1", proxied=True)

        def study(sender: Requestor | None, calling: str = "CT1") -> StudyFacts:
            return StudyFacts("1.2", NOW, 0.0, calling, "ME", ("CT",), 0, sender)

        for conditions, facts, matches in (
            ({"user": "tech"}, study(ct1), True),
            ({"user": ["else", "tech"]}, study(ct1), True),
            ({"user": "else"}, study(ct1), False),
            ({"user": "tech"}, study(None), None),
            ({"user": "tech"}, study(proxied), False),
            ({"from": "10.1.0.0/16"}, study(ct1), True),
            ({"from": ["10.2.0.0/16", "::1"]}, study(ct1), False),
            ({"from": "10.1.0.7"}, study(None), None),
            ({"from": "loopback"}, study(proxied), False),
            ({"from": "loopback"}, study(Requestor("", "", "127.0.0.1")), True),
            ({"certificate": "CN=ct1"}, study(ct1), True),
            ({"certificate": "sha256:" + "ab" * 32}, study(ct1), True),
            ({"certificate": "CN=ct2"}, study(ct1), False),
            ({"certificate": "CN=ct1"}, study(proxied), False),
            ({"certificate": "CN=ct1"}, study(None), None),
            ({"certificate": "CN=ct1", "calling": "MR*"}, study(None), False),
            ({"certificate": "CN=ct1", "calling": "CT*"}, study(None), None),
            ({"user": "tech", "modality": "MR"}, study(None), False),
            ({"user": "tech", "calling": "CT1"}, study(None, ""), None),
        ):
            (rule,) = parse_retention({"rule": [{**conditions, "age": "1d"}]}).rules
            self.assertIs(rule.matches(facts), matches, (conditions, facts))

    def test_mistakes(self) -> None:
        for table, words in (
            ({"age": 30}, "age is a time"),
            ({"age": "30"}, "age is a time"),
            ({"size": "much"}, "size is a number of bytes"),
            ({"size": True}, "size is a number of bytes"),
            ({"order": "newest"}, "order is received or accessed"),
            ({"ages": "1d"}, "ages is not a key"),
            ({"every": "0.1s"}, "a second at least"),
            ({"dry-run": "yes"}, "dry-run is true or false"),
            ({"rule": {}}, r"write each rule as a table"),
            ({"rule": [{"modality": "CT"}]}, "rule 1: give either age, size or both, or keep"),
            ({"rule": [{"age": "1d", "keep": True}]}, "rule 1: give either age, size or both, or keep"),
            ({"rule": [{"age": "1d", "modality": []}]}, "modality is empty"),
            ({"rule": [{"age": "1d", "calling": [1]}]}, "calling is a text"),
            ({"rule": [{"size": "1G", "keep": True}]}, "rule 1: give either age, size or both, or keep"),
            ({"rule": [{"size": "big"}]}, "rule 1: size is a number of bytes"),
            ({"rule": [{"age": "1d", "from": "here"}]}, "rule 1: 'here' does not appear to be"),
            ({"rule": [{"age": "1d", "certificate": "ct1"}]}, "rule 1: 'ct1' describes no certificate"),
            ({"rule": [{"age": "1d", "user": ""}]}, "rule 1: user is a text"),
        ):
            error = self.assertRaises(ValueError, parse_retention, table)
            self.assertIn(words, str(error))


class Looks(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.archive = Archive(self.folder)
        self.archive.open()
        self.server = ArchiveServer(AE("ARCHIVE"), self.archive, Peers(reactor, []))
        self.server.start()
        self.addCleanup(self.server.close)
        self.addCleanup(self.server.stop)
        self.retention = self.server.retention
        self.now = NOW
        self.retention._clock = lambda: self.now

    def store(self, study: int, days: float, **elements: Any) -> None:
        """Store a study of two instances that was received *days* ago."""
        for number in (1, 2):
            self.assertIsNone(keep(self.archive, dataset(number, study=study, **elements)))
            path = self.folder / f"1.2.{study}" / f"1.2.{study}.1" / f"1.2.{study}.1.{number}.dcm"
            os.utime(path, (NOW - days * DAY,) * 2)

    def studies(self) -> list[int]:
        return [int(study.rpartition(".")[2]) for study, _, _ in self.archive.index.files()]

    async def test_age(self) -> None:
        self.retention.policy = parse_retention({"age": "30d", "rule": [{"modality": "US", "age": "1d"}]})
        self.store(1, 31)
        self.store(2, 29)
        self.store(3, 2, Modality="US")
        self.store(4, 0.5, Modality="US")
        await self.retention.look()
        self.assertEqual(self.studies(), [2, 4])
        self.assertEqual(self.retention.deleted, 2)
        self.now += DAY
        await self.retention.look()
        self.assertEqual(self.studies(), [])

    async def test_size(self) -> None:
        """A stream of studies stays below the size; the oldest go first."""
        self.store(1, 0)
        one = self.archive.study_times.total(self.archive.index)
        self.retention.policy = parse_retention({"size": int(3.5 * one)})
        for study in range(2, 12):
            self.store(study, 20 - study)
            await self.retention.look()
            self.assertLessEqual(self.archive.study_times.total(self.archive.index), 3.5 * one)
        self.assertEqual(self.studies(), [1, 10, 11])

    async def test_accessed(self) -> None:
        for study in (1, 2, 3):
            self.store(study, 40 - study)
        self.retention.policy = parse_retention({"age": "100d"})
        await self.retention.look()  # learns the times
        self.archive.study_times._clock = lambda: NOW
        self.archive.study_times.note_accessed("1.2.1")
        self.retention.policy = parse_retention({"age": "30d", "order": "accessed"})
        await self.retention.look()
        self.assertEqual(self.studies(), [1])

    async def test_locked_and_wanted(self) -> None:
        for study in (1, 2, 3):
            self.store(study, 40)
        self.archive.holds.put("1.2.1", Hold("", "", NOW))
        self.retention.wanted_by.append(lambda uid: "not forwarded" if uid == "1.2.2" else "")
        self.retention.policy = parse_retention({"age": "30d", "size": 0})
        await self.retention.look()
        self.assertEqual(self.studies(), [1, 2])
        self.assertEqual(self.retention.kept, 2)

    async def test_received_since(self) -> None:
        """An instance that was received, and is not noted yet, keeps its study."""
        self.store(1, 40)
        self.retention.policy = parse_retention({"age": "100d"})
        await self.retention.look()
        self.assertIsNone(keep(self.archive, dataset(3, study=1)))
        os.utime(self.folder / "1.2.1" / "1.2.1.1" / "1.2.1.1.3.dcm", (NOW - DAY,) * 2)
        self.archive.study_times._clock = lambda: NOW
        self.retention.policy = parse_retention({"age": "30d"})
        await self.retention.look()
        self.assertEqual(self.studies(), [1])
        self.now += 31 * DAY
        await self.retention.look()
        self.assertEqual(self.studies(), [])

    async def test_dry_run(self) -> None:
        self.store(1, 40)
        self.retention.policy = parse_retention({"age": "30d", "dry-run": True})
        await self.retention.look()
        await self.retention.look()
        self.assertEqual((self.studies(), self.retention.deleted), ([1], 1))

    async def test_senders(self) -> None:
        """A study whose sender is not known stays, if a rule about senders might keep it."""
        self.store(1, 40)
        self.store(2, 40)
        self.archive.study_times._clock = lambda: NOW - 40 * DAY
        self.archive.study_times.note_received("1.2.2", Requestor("ARCHIVE", "CT1"))
        self.retention.policy = parse_retention({"age": "30d", "rule": [{"calling": "TEACH", "keep": True}]})
        await self.retention.look()
        self.assertEqual(self.studies(), [1])

    async def test_sizes_of_rules(self) -> None:
        """The studies of a rule stay below its size, the oldest go first; others do not count there."""
        for study in range(1, 9):
            self.store(study, 20 - study, Modality="US" if study % 2 else "CT")
        one = self.archive.study_times.total(self.archive.index) / 8
        rule = {"name": "ultrasound", "modality": "US", "size": int(2.5 * one)}
        self.retention.policy = parse_retention({"rule": [rule], "dry-run": True})
        logged: list[LogEvent] = []
        globalLogPublisher.addObserver(cast("Any", logged.append))
        await self.retention.look()
        globalLogPublisher.removeObserver(cast("Any", logged.append))
        lines = [formatEvent(event) for event in logged]
        self.assertEqual(
            [line.partition(",")[0] for line in lines if "dry run" in line],
            [
                f"dry run: the retention would delete study 1.2.{n} for the size by the rule 'ultrasound'"
                for n in (1, 3)
            ],
        )
        self.retention.policy = parse_retention({"rule": [rule]})
        await self.retention.look()
        self.assertEqual(self.studies(), [2, 4, 5, 6, 7, 8])
        # With the size of the archive as well; studies of the rule count there too.
        self.retention.policy = parse_retention({"rule": [rule], "size": int(4.5 * one)})
        await self.retention.look()
        self.assertEqual(self.studies(), [5, 6, 7, 8])
        self.retention.policy = parse_retention({"rule": [{**rule, "age": "13d"}]})
        self.now += DAY
        await self.retention.look()
        self.assertEqual(self.studies(), [6, 8])

    async def test_senders_are_kept(self) -> None:
        """User, address and certificate are in the database; those of an earlier receipt do not count."""
        times, index = self.archive.study_times, self.archive.index
        certificate = Certificate(parse_pattern("CN=ct1,O=Hospital").subject, "ab" * 32)
        sender = Requestor("ARCHIVE", "CT1", "10.1.0.7", True, "tech", None, certificate)
        self.store(1, 40)
        times._clock = lambda: NOW - 40 * DAY
        times.note_received("1.2.1", sender)
        times.write(index)
        self.assertEqual(times.oldest(index, Order.RECEIVED)[0].sender, sender)
        times.note_accessed("1.2.1")
        times.write(index)
        self.assertEqual(times.facts(index, ["1.2.1"])["1.2.1"].sender, sender)
        times._clock = lambda: NOW - 39 * DAY
        times.note_received("1.2.1", Requestor("ARCHIVE", "CT2"))
        times.write(index)
        self.assertIsNone(times.facts(index, ["1.2.1"])["1.2.1"].sender)
        times.note_received("1.2.1", Requestor("", "", "10.1.0.8", user="web"))
        times.write(index)
        facts = times.facts(index, ["1.2.1"])["1.2.1"]
        self.assertEqual((facts.calling, facts.sender and facts.sender.user), ("HTTP", "web"))
        self.archive.delete(("1.2.1",))
        times.forget_removed(index)
        with reading(index.engine) as connection:
            self.assertEqual(connection.execute(select(study_senders)).all(), [])

    async def test_times_survive(self) -> None:
        """They are written at a stop, with the later of two receipts, and forgotten with the study."""
        times, index = self.archive.study_times, self.archive.index
        self.store(1, 1)
        times._clock = lambda: NOW - 5
        times.note_received("1.2.1", Requestor("B", "A"))
        times.note_accessed("1.2.1")
        await self.server.stop()
        (found,) = times.oldest(index, Order.RECEIVED)
        self.assertEqual((found.received, found.accessed, found.calling), (NOW - 5, NOW - 5, "A"))
        self.archive.delete(("1.2.1",))
        self.assertEqual(times.oldest(index, Order.RECEIVED), [])
        times.forget_removed(index)

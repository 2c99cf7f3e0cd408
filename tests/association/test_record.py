"""The record of an association: what is in it, whatever happened, and that it is bounded."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import Association, AsyncOperationsWindow, build_context, evt
from dicomtwist.association import AssociationRecord, Ending, OperationCount, RecordKeeper
from dicomtwist.association.record import MAX_COUNTED, MAX_OPERATIONS, OTHER_STATUS, counting
from dicomtwist.dimse.messages import (
    CEchoRQ,
    CEchoRSP,
    CFindRQ,
    CFindRSP,
    CStoreRQ,
    CStoreRSP,
    NCreateRQ,
    NCreateRSP,
)
from dicomtwist.ul.pdu import AAbort, AAssociateRJ, AReleaseRP, AReleaseRQ
from tests.memory import CT, MemoryTestCase, echo, instance, store

MR = "1.2.840.10008.5.1.4.1.1.4"


class RecordTestCase(MemoryTestCase):
    """
    :ivar ours: the records of the SCU.
    :ivar theirs: the records of the SCP.
    """

    def setUp(self) -> None:
        super().setUp()
        self.ours: list[AssociationRecord] = []
        self.theirs: list[AssociationRecord] = []
        for ae, records in ((self.scu, self.ours), (self.scp, self.theirs)):
            ae.bind(evt.EVT_RECORD, lambda event, records: records.append(event.record), [records])

    def only(self, records: list[AssociationRecord]) -> AssociationRecord:
        """The one record that there is; it can be written as JSON, and as one line."""
        self.network.flush()
        (record,) = records
        self.assertEqual(json.loads(json.dumps(record.as_dict())), record.as_dict())
        self.assertEqual(len(str(record).splitlines()), 1)
        return record

    def done(self, record: AssociationRecord) -> list[tuple[Any, ...]]:
        """Its operations, in short."""
        return [
            (operation.direction, operation.service, operation.status, operation.sop_instance_uid)
            for operation in record.operations
        ]


class Contents(RecordTestCase):
    """The operations and contexts of a record."""

    def test_both_sides(self) -> None:
        statuses = iter((0x0000, 0xA700))
        association, _ = self.both(
            (evt.EVT_C_STORE, lambda event: next(statuses)),
            contexts=[build_context("1.2.840.10008.1.1"), build_context(CT), build_context(MR)],
        )
        self.network.result_of(association.send_c_echo())
        self.network.advance(2)
        for uid in ("1.2.1", "1.2.2"):
            self.network.result_of(association.send_c_store(instance(uid=uid)))
        self.network.advance(1.5)
        sent = association.bytes_sent
        self.network.result_of(association.release())
        ours, theirs = self.only(self.ours), self.only(self.theirs)
        for record, direction in ((ours, "sent"), (theirs, "received")):
            self.assertEqual((record.calling_ae_title, record.called_ae_title), ("SCU", "ANY-SCP"))
            self.assertEqual(
                self.done(record),
                [
                    (direction, "C-ECHO", 0, ""),
                    (direction, "C-STORE", 0, "1.2.1"),
                    (direction, "C-STORE", 0xA700, "1.2.2"),
                ],
            )
            self.assertEqual({operation.sop_class_uid for operation in record.operations[1:]}, {CT})
            self.assertEqual([operation.started for operation in record.operations], [0, 2, 2])
            self.assertEqual(
                [(count.service, count.status, count.count) for count in record.counts],
                [("C-ECHO", 0, 1), ("C-STORE", 0, 1), ("C-STORE", 0xA700, 1)],
            )
            self.assertEqual(
                [(context.context_id, context.result) for context in record.contexts], [(1, 0), (3, 0), (5, 3)]
            )
            self.assertEqual(record.contexts[2].transfer_syntax, None)
            self.assertEqual((record.seconds, record.established, record.omitted, record.secure), (3.5, 0, 0, False))
            self.assertLess(abs(record.started - datetime.now(UTC)), timedelta(minutes=5))
            self.assertEqual(record.ended - record.started, timedelta(seconds=3.5))
            self.assertEqual(record.implementation_class_uid, self.scp.implementation_class_uid)
        self.assertEqual((ours.mode, theirs.mode), ("requestor", "acceptor"))
        self.assertEqual((ours.local, ours.remote), (theirs.remote, theirs.local))
        self.assertEqual((ours.bytes_sent, ours.bytes_received), (theirs.bytes_received, theirs.bytes_sent))
        self.assertGreaterEqual(ours.bytes_sent, sent)
        self.assertEqual(
            (ours.ending, theirs.ending), (Ending(kind="released", by="us"), Ending(kind="released", by="peer"))
        )
        client, server = f"127.0.0.1:{ours.local[1]}", "127.0.0.1:104"
        what = f"{ours.bytes_received} bytes in, {ours.bytes_sent} out, 3.500 s; released by this side"
        self.assertEqual(
            str(ours),
            f"'SCU' at {client} to 'ANY-SCP' at {server}: 1 C-ECHO sent, 2 C-STORE sent (1 failed); {what}",
        )
        self.assertTrue(str(theirs).startswith(f"'SCU' at {client} to 'ANY-SCP' at {server}: 1 C-ECHO received,"))

    def test_as_a_dict(self) -> None:
        association, _ = self.both()
        self.network.result_of(association.send_c_echo())
        self.network.result_of(association.release())
        told = self.only(self.ours).as_dict()
        self.assertEqual(told["remote"], ["127.0.0.1", 104])
        self.assertEqual(datetime.fromisoformat(told["started"]), self.ours[0].started)
        self.assertEqual(datetime.fromisoformat(told["ended"]), self.ours[0].ended)
        self.assertEqual(
            told["operations"],
            [
                {
                    "direction": "sent",
                    "service": "C-ECHO",
                    "message_id": 1,
                    "sop_class_uid": "1.2.840.10008.1.1",
                    "sop_instance_uid": "",
                    "status": 0,
                    "pending": 0,
                    "started": 0,
                    "seconds": 0,
                }
            ],
        )
        self.assertEqual(told["ending"], {"kind": "released", "by": "us", "why": "", "codes": [], "timer": None})

    def test_what_was_never_answered(self) -> None:
        held: Deferred[int] = Deferred(lambda _: None)
        association, accepted = self.windowed((evt.EVT_C_STORE, lambda event: held))
        stored = association.send_c_store(instance())
        self.network.result_of(association.send_c_echo())
        self.network.advance(4)
        accepted.abort()
        self.network.flush()
        stored.addErrback(lambda _: None)
        for records, direction in ((self.ours, "sent"), (self.theirs, "received")):
            record = self.only(records)
            self.assertEqual(self.done(record), [(direction, "C-ECHO", 0, ""), (direction, "C-STORE", None, "1.2.3.4")])
            self.assertEqual(record.operations[1].seconds, 4)
            self.assertIn(f"1 C-STORE {direction} (1 failed)", str(record))

    def test_who_listens_later_gets_the_rest(self) -> None:
        for ae in (self.scu, self.scp):
            for item in ae.get_handlers(evt.EVT_RECORD):
                ae.unbind(item[0], item[1])
        association, accepted = self.both()
        self.network.result_of(association.send_c_echo())
        self.network.advance(3)
        accepted.bind(evt.EVT_RECORD, lambda event: self.theirs.append(event.record))
        self.network.result_of(association.send_c_echo())
        self.network.result_of(association.release())
        self.assertEqual(self.ours, [])
        record = self.only(self.theirs)
        self.assertEqual((len(record.operations), record.seconds, record.established), (1, 0, None))
        self.assertEqual(record.ending, Ending(kind="released", by="peer"))

    def test_nobody_listens(self) -> None:
        """Without a handler there is no record keeper; unbinding the last handler removes it."""
        for item in self.scu.get_handlers(evt.EVT_RECORD):
            self.scu.unbind(item[0], item[1])
        association, accepted = self.both()
        self.assertIsNone(association._keeper)
        self.assertIsNotNone(accepted._keeper)
        association.bind(evt.EVT_RECORD, print)
        self.assertIsNotNone(association._keeper)
        association.unbind(evt.EVT_RECORD, print)
        self.assertIsNone(association._keeper)
        self.network.result_of(association.release())

    def test_it_comes_before_the_end_is_told(self) -> None:
        association, _ = self.both()
        seen: list[int] = []
        association.when_ended().addCallback(lambda _: seen.append(len(self.ours)))
        self.network.result_of(association.release())
        self.assertEqual(seen, [1])


class Endings(RecordTestCase):
    """How it ended."""

    def ending(self, records: list[AssociationRecord]) -> tuple[Any, ...]:
        """The ending of the one record, without the words."""
        record = self.only(records)
        self.assertTrue(str(record).endswith(str(record.ending)))
        return record.ending.kind, record.ending.by, record.ending.codes, record.ending.timer

    def test_released_by_the_acceptor(self) -> None:
        _, accepted = self.both()
        self.network.result_of(accepted.release())
        self.assertEqual(self.ending(self.ours), ("released", "peer", (), None))
        self.assertEqual(self.ending(self.theirs), ("released", "us", (), None))

    def test_released_by_both(self) -> None:
        """The side whose A-RELEASE-RQ was first, as far as this side can see, has released."""
        association, peer = self.scripted_scp()
        released = association.release()
        peer.send(AReleaseRQ())
        peer.send(AReleaseRP())
        peer.send(AReleaseRP())
        peer.close()
        self.successResultOf(released)
        self.assertEqual(self.ending(self.ours), ("released", "us", (), None))

    def test_aborted(self) -> None:
        association, _ = self.both()
        association.abort("for a reason")
        self.assertEqual(self.ending(self.ours), ("aborted", "us", (0, 0), None))
        self.assertIn("for a reason", str(self.ours[0]))
        self.assertEqual(self.ending(self.theirs), ("aborted", "peer", (0, 0), None))

    def test_aborted_by_the_provider(self) -> None:
        _, peer = self.scripted_scu()
        peer.send(AAbort(2, 6))
        peer.close()
        self.assertEqual(self.ending(self.theirs), ("aborted", "peer", (2, 6), None))

    def test_aborted_for_what_the_peer_sent(self) -> None:
        _, peer = self.scripted_scu()
        peer.send_message(1, CEchoRSP(message_id_being_responded_to=9, status=0))
        peer.close()
        kind, by, codes, _ = self.ending(self.theirs)
        self.assertEqual((kind, by, codes[0]), ("aborted", "us", 2))
        self.assertIn("which waits for none", self.theirs[0].ending.why)

    def test_rejected(self) -> None:
        self.listen()
        self.scp.require_calling_aet = ["SOMEBODY"]
        self.asking().addErrback(lambda _: None)
        self.assertEqual(self.ending(self.ours), ("rejected", "peer", (1, 1, 3), None))
        self.assertEqual(self.ending(self.theirs), ("rejected", "us", (1, 1, 3), None))
        self.assertEqual([context.result for context in self.ours[0].contexts], [None, None])
        self.assertEqual(self.ours[0].contexts, self.theirs[0].contexts)
        self.assertIsNone(self.ours[0].established)

    def test_rejected_by_a_scripted_peer(self) -> None:
        peer = self.network.scripted_server(105)
        self.asking(105).addErrback(lambda _: None)
        peer.send(AAssociateRJ(2, 3, 2))
        peer.close()
        self.assertEqual(self.ending(self.ours), ("rejected", "peer", (2, 3, 2), None))

    def test_lost(self) -> None:
        self.both()
        self.network.connections[0].cut()
        for records in (self.ours, self.theirs):
            self.assertEqual(self.ending(records), ("lost", None, (), None))

    def test_timed_out(self) -> None:
        for timer in ("dimse", "network"):
            association, peer = self.scripted_scp()
            if timer == "dimse":
                association.send_c_echo().addErrback(lambda _: None)
            self.network.advance(60)
            self.assertEqual(self.ending(self.ours), ("timeout", "us", (), timer))
            peer.close()
            self.ours.clear()
            self.network.result_of(self.network.ports[105].stopListening())

    def test_no_answer_to_the_request(self) -> None:
        self.network.scripted_server(105)
        self.asking(105).addErrback(lambda _: None)
        self.network.advance(30)
        self.assertEqual(self.ending(self.ours), ("timeout", "us", (), "acse"))

    def test_never_asked_for(self) -> None:
        """As somebody who looks whether the port is open."""
        self.listen()
        self.network.scripted_client(104).close()
        self.assertEqual(self.ending(self.theirs), ("not asked for", None, (), None))

    def test_words_of_the_peer_stay_on_the_line(self) -> None:
        self.listen()
        peer = self.network.scripted_client(104)
        peer.request((1, "1.2.840.10008.1.1"), calling="BAD\nTITLE", called="A\x1b[2J")
        peer.close()
        record = self.only(self.theirs)
        self.assertTrue(str(record).isprintable())


class Bounds(RecordTestCase):
    """However long an association lasts, its record has an end."""

    def keep(self) -> tuple[RecordKeeper, Association]:
        """A keeper, and an association that is over."""
        association, _ = self.both()
        self.network.result_of(association.release())
        return RecordKeeper(0), association

    def perform(self, keeper: RecordKeeper, status: int, number: int = 1) -> None:
        """An operation of the peer's."""
        keeper.notified(evt.EVT_DIMSE_RECV, {"message": store(number)}, 0)
        answer = CStoreRSP(message_id_being_responded_to=number, status=status)
        keeper.notified(evt.EVT_DIMSE_SENT, {"message": answer}, 0)

    def test_operations(self) -> None:
        keeper, association = self.keep()
        for _ in range(MAX_OPERATIONS + 5):
            self.perform(keeper, 0)
        record = keeper.finish(association, 1)
        self.assertEqual((len(record.operations), record.omitted), (MAX_OPERATIONS, 5))
        self.assertEqual(
            record.counts,
            (OperationCount(direction="received", service="C-STORE", status=0, count=MAX_OPERATIONS + 5),),
        )

    def test_handlers_that_need_counts_alone(self) -> None:
        """No operations are listed for them; a handler that is bound later gets those from then on."""
        counted: list[AssociationRecord] = []

        @counting
        def count(event: evt.Event) -> None:
            counted.append(event.record)

        self.listen()
        association = self.associate()
        for ae in (self.scu, self.scp):
            for bound in ae.get_handlers(evt.EVT_RECORD):
                ae.unbind(evt.EVT_RECORD, bound[1])
        association.bind(evt.EVT_RECORD, count)
        for listed in (False, True):
            if listed:
                association.bind(evt.EVT_RECORD, lambda event: self.ours.append(event.record))
            self.network.result_of(association.send_c_echo())
        self.network.result_of(association.release())
        record = self.only(self.ours)
        self.assertEqual(counted, [record])
        self.assertEqual((len(record.operations), record.omitted), (1, 1))
        self.assertEqual([one.count for one in record.counts], [2])

    def test_counts(self) -> None:
        keeper, association = self.keep()
        for status in range(0xC000, 0xC000 + MAX_COUNTED + 50):
            self.perform(keeper, status)
        self.perform(keeper, 0xC000)
        counts = keeper.finish(association, 1).counts
        self.assertEqual(len(counts), MAX_COUNTED + 1)
        self.assertEqual((counts[0].count, counts[-1].status, counts[-1].count), (2, OTHER_STATUS, 50))
        self.assertEqual(sum(count.count for count in counts), MAX_COUNTED + 51)

    def test_a_message_id_that_is_in_use(self) -> None:
        """The second request is answered, as a rule at once, and not the first."""
        keeper, association = self.keep()
        for uid in ("1.2.1", "1.2.2"):
            request = CStoreRQ(message_id=1, affected_sop_class_uid=CT, affected_sop_instance_uid=uid)
            keeper.notified(evt.EVT_DIMSE_RECV, {"message": request}, 0)
        for status in (0x0210, 0):
            answer = CStoreRSP(message_id_being_responded_to=1, status=status)
            keeper.notified(evt.EVT_DIMSE_SENT, {"message": answer}, 0)
        self.assertEqual(
            self.done(keeper.finish(association, 1)),
            [("received", "C-STORE", 0x0210, "1.2.2"), ("received", "C-STORE", 0, "1.2.1")],
        )

    def test_both_sides_use_the_same_message_id(self) -> None:
        keeper, association = self.keep()
        keeper.notified(evt.EVT_DIMSE_RECV, {"message": echo(1)}, 0)
        keeper.notified(evt.EVT_DIMSE_SENT, {"message": CEchoRQ(message_id=1)}, 1)
        keeper.notified(evt.EVT_DIMSE_SENT, {"message": CEchoRSP(message_id_being_responded_to=1, status=0)}, 5)
        keeper.notified(evt.EVT_DIMSE_RECV, {"message": CEchoRSP(message_id_being_responded_to=1, status=0x0122)}, 7)
        record = keeper.finish(association, 9)
        self.assertEqual(self.done(record), [("received", "C-ECHO", 0, ""), ("sent", "C-ECHO", 0x0122, "")])
        self.assertEqual([operation.seconds for operation in record.operations], [5, 6])

    def test_pending_responses(self) -> None:
        keeper, association = self.keep()
        keeper.notified(evt.EVT_DIMSE_SENT, {"message": CFindRQ(message_id=1, affected_sop_class_uid="1.2")}, 0)
        for status in (0xFF00, 0xFF01, 0xFE00):
            answer = CFindRSP(message_id_being_responded_to=1, status=status)
            keeper.notified(evt.EVT_DIMSE_RECV, {"message": answer}, 0)
        (operation,) = keeper.finish(association, 1).operations
        self.assertEqual((operation.pending, operation.status), (2, 0xFE00))

    def test_a_uid_that_the_scp_chose(self) -> None:
        keeper, association = self.keep()
        keeper.notified(evt.EVT_DIMSE_SENT, {"message": NCreateRQ(message_id=1, affected_sop_class_uid="1.2")}, 0)
        answer = NCreateRSP(message_id_being_responded_to=1, status=0, affected_sop_instance_uid="1.2.99")
        keeper.notified(evt.EVT_DIMSE_RECV, {"message": answer}, 0)
        self.assertEqual(self.done(keeper.finish(association, 1)), [("sent", "N-CREATE", 0, "1.2.99")])

    def test_a_response_to_nothing(self) -> None:
        keeper, association = self.keep()
        answer = CEchoRSP(message_id_being_responded_to=1, status=0)
        keeper.notified(evt.EVT_DIMSE_RECV, {"message": answer}, 0)
        self.assertEqual(keeper.finish(association, 1).operations, ())


class Windows(RecordTestCase):
    """Operations that are under way at once."""

    def test_in_the_order_in_which_they_ended(self) -> None:
        held: dict[str, Deferred[int]] = {}

        def hold(event: Any) -> Deferred[int]:
            answer: Deferred[int] = Deferred()
            held[event.request.affected_sop_instance_uid] = answer
            return answer

        self.listen((evt.EVT_ASYNC_OPS, lambda event: (3, 3)), (evt.EVT_C_STORE, hold))
        association = self.associate(ext_neg=[AsyncOperationsWindow(3, 3)])
        for uid in ("1.2.1", "1.2.2", "1.2.3"):
            association.send_c_store(instance(uid=uid))
        self.network.flush()
        for uid in ("1.2.2", "1.2.3", "1.2.1"):
            self.network.advance(1)
            held[uid].callback(0)
        self.network.result_of(association.release())
        for records in (self.ours, self.theirs):
            operations = self.only(records).operations
            self.assertEqual(
                [(operation.sop_instance_uid, operation.seconds) for operation in operations],
                [("1.2.2", 1), ("1.2.3", 2), ("1.2.1", 3)],
            )

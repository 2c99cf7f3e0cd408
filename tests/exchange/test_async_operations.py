"""
The asynchronous operations window on both sides (PS3.7 D.3.3.3): it is proposed and answered, and then it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from random import Random
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from dicomtwist import (
    Association,
    AssociationAborted,
    AssociationLost,
    AssociationReleased,
    AssociationTimeout,
    AsyncOperationsWindow,
    Status,
    build_context,
    build_role,
    evt,
)
from dicomtwist.dimse.messages import CEchoRQ, CEchoRSP, CStoreRQ, CStoreRSP
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import (
    COMMAND_FRAGMENT,
    LAST_FRAGMENT,
    AAbort,
    AAssociateAC,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    PDataTF,
)
from tests.memory import CT, VERIFICATION, MemoryTestCase, echo, encoded, instance, part10, store

#: How long the handlers of these tests take, in seconds.
WORK = 0.02
DIMSE = 30.0


def asking_for(invoked: int, performed: int = 1) -> UserInformation:
    """The user information with the item."""
    return UserInformation(async_operations=AsyncOperationsWindow(invoked, performed))


def granting(invoked: int, performed: int = 1) -> tuple[evt.EventType, Callable[[evt.Event], tuple[int, int]]]:
    """The handler that answers so."""
    return evt.EVT_ASYNC_OPS, lambda event: (invoked, performed)


def requests(peer: ScriptedPeer) -> list[Any]:
    """The requests that came to a peer."""
    return [message for message, _ in peer.messages() if isinstance(message, CEchoRQ | CStoreRQ)]


def responses(peer: ScriptedPeer) -> list[tuple[int, int]]:
    """The (Message ID, status) of the responses that came to a peer."""
    return [
        (message.message_id_being_responded_to, message.status)
        for message, _ in peer.messages()
        if isinstance(message, CEchoRSP | CStoreRSP)
    ]


class Worker:
    """
    A handler that responds after a delay, or when the test says so.

    :ivar started: the UIDs of the instances, in the order in which it was called.
    :ivar most: the highest number of instances that it handled at once.
    :ivar working: the instances that it handles now.
    """

    def __init__(self) -> None:
        self.started: list[str] = []
        self.most = 0
        self.working: dict[str, Deferred[int]] = {}

    def __call__(self, event: evt.StoreEvent) -> Deferred[int]:
        """Begin."""
        uid = event.request.affected_sop_instance_uid
        self.started.append(uid)
        self.working[uid] = Deferred()
        self.most = max(self.most, len(self.working))
        return self.working[uid]

    def finish(self, uid: str, status: int = 0) -> None:
        """Be done with one of them."""
        self.working.pop(uid).callback(status)


class WindowTestCase(MemoryTestCase):
    """
    A test with many C-STOREs at once.
    """

    def stores(self, association: Association, count: int, first: int = 1) -> dict[str, Deferred[Status]]:
        """Ask for *count* of them at once, by the UIDs of the instances."""
        uids = [f"1.2.{number}" for number in range(first, first + count)]
        sending = {uid: association.send_c_store(instance(100, uid)) for uid in uids}
        self.network.flush()
        return sending

    def scripted(
        self,
        proposed: AsyncOperationsWindow | None,
        answered: AsyncOperationsWindow | None,
        **options: Any,
    ) -> tuple[Association, ScriptedPeer]:
        """An association with a scripted acceptor that answers as it is told."""
        peer = self.network.scripted_server(105)
        asking = self.asking(105, ext_neg=[] if proposed is None else [proposed], **options)
        peer.accept(information=UserInformation(maximum_length=16384, async_operations=answered))
        return self.successResultOf(asking), peer

    def window_of(self, size: int, **options: Any) -> tuple[Association, ScriptedPeer]:
        """Return an association with a window of *size*, and its scripted peer."""
        return self.scripted(AsyncOperationsWindow(size, 1), AsyncOperationsWindow(size, 1), **options)

    def answer(self, peer: ScriptedPeer, request: Any, status: int = 0) -> None:
        """Let a scripted peer answer *request*."""
        if isinstance(request, CStoreRQ):
            peer.send_message(3, CStoreRSP(message_id_being_responded_to=request.message_id, status=status))
        else:
            peer.send_message(1, CEchoRSP(message_id_being_responded_to=request.message_id, status=status))


class Time(WindowTestCase):
    """The time of 160 C-STOREs at once, with a handler that takes 20 ms for each."""

    def done(self, association: Association) -> list[int]:
        """Return how many are answered after each 20 ms, from the beginning until all are."""
        statuses: list[Status] = []
        for sending in self.stores(association, 160).values():
            sending.addCallback(statuses.append)
        counts = [len(statuses)]
        began = self.network.seconds()
        while len(statuses) < 160:
            self.network.advance(WORK)
            counts.append(len(statuses))
        self.assertEqual({int(status) for status in statuses}, {0})
        self.assertAlmostEqual(self.network.seconds() - began, (len(counts) - 1) * WORK)
        return counts

    def slow(self, event: evt.StoreEvent) -> Deferred[int]:
        """A handler."""
        return deferLater(self.network, WORK, int)

    async def slow_coroutine(self, event: evt.StoreEvent) -> int:
        """Respond after the same delay, as a coroutine."""
        await deferLater(self.network, WORK)
        return 0

    def test_with_a_window_of_16(self) -> None:
        for handler in (self.slow, self.slow_coroutine, evt.streaming(lambda event: self.slow_coroutine(event))):
            self.setUp()
            association, _ = self.windowed((evt.EVT_C_STORE, handler), size=16)
            self.assertEqual(self.done(association), list(range(0, 161, 16)), "ten times 20 ms")
            self.tearDown()

    def test_without(self) -> None:
        association, _ = self.both((evt.EVT_C_STORE, self.slow), granting(16))
        self.assertEqual(self.done(association), list(range(161)), "160 times 20 ms")


class Negotiating(WindowTestCase):
    """The proposed window, the answer, and the window that results."""

    def item(self, peer: ScriptedPeer, kind: type[AAssociateRQ] | type[AAssociateAC]) -> AsyncOperationsWindow | None:
        """Return the item as it came to a peer."""
        (pdu,) = [pdu for pdu in peer.pdus if isinstance(pdu, kind)]
        return pdu.user_information.async_operations

    def test_left_out_unless_asked_for(self) -> None:
        association, peer = self.scripted(None, None)
        self.assertIsNone(self.item(peer, AAssociateRQ))
        self.assertNotIn(b"\x53\0\0\x04", bytes(peer.received))
        self.assertEqual(association.requestor.asynchronous_operations, (1, 1))
        self.assertEqual(association.acceptor.asynchronous_operations, (1, 1))

    def test_an_acceptor_that_is_not_asked(self) -> None:
        asked: list[evt.Event] = []
        association, peer = self.scripted_scu((evt.EVT_ASYNC_OPS, asked.append), information=UserInformation())
        self.assertEqual(asked, [])
        self.assertIsNone(self.item(peer, AAssociateAC))
        self.assertEqual(association.acceptor.asynchronous_operations, (1, 1))

    def test_an_acceptor_without_a_handler(self) -> None:
        # No item in the answer: both sides are synchronous (PS3.7 D.3.3.3).
        worker = Worker()
        association, accepted = self.both((evt.EVT_C_STORE, worker), ext_neg=[AsyncOperationsWindow(16, 16)])
        sending = self.stores(association, 3)
        for number, uid in enumerate(sending, 1):
            self.assertEqual(worker.started, list(sending)[:number])
            worker.finish(uid)
            self.network.flush()
        self.assertEqual([self.successResultOf(deferred) for deferred in sending.values()], [0, 0, 0])
        self.assertEqual(worker.most, 1)
        for each in (association, accepted):
            self.assertEqual(each.acceptor.asynchronous_operations, (1, 1))

    def test_an_acceptor_without_a_handler_on_the_wire(self) -> None:
        self.scp.settings.maximum_waiting = 0
        _, peer = self.scripted_scu((evt.EVT_C_STORE, Worker()), information=asking_for(16, 16))
        self.assertIsNone(self.item(peer, AAssociateAC))
        peer.send_message(3, store(1), encoded())
        peer.send_message(3, store(2), encoded())
        self.assertEqual(responses(peer), [(2, 0x0213)])

    def test_never_above_what_was_proposed(self) -> None:
        # (proposed), (what the handler returns), (answer); 0 is for no limit, under the one of the AE.
        for proposed, wanted, answered in (
            ((16, 1), (16, 1), (16, 1)),
            ((16, 1), (8, 1), (8, 1)),
            ((8, 1), (16, 1), (8, 1)),
            ((8, 2), (16, 16), (8, 2)),
            ((8, 2), (0, 0), (8, 2)),
            ((0, 0), (16, 3), (16, 3)),
            ((0, 0), (0, 0), (20, 0)),
            ((100, 5), (100, 9), (20, 5)),
            ((1, 1), (16, 16), (1, 1)),
        ):
            self.setUp()
            self.scp.settings.maximum_operations = 20
            association, peer = self.scripted_scu(granting(*wanted), information=asking_for(*proposed))
            self.assertEqual(self.item(peer, AAssociateAC), AsyncOperationsWindow(*answered), (proposed, wanted))
            self.assertEqual(association.requestor.asynchronous_operations, proposed)
            self.assertEqual(association.acceptor.asynchronous_operations, answered[::-1])
            self.tearDown()

    def test_what_a_requestor_makes_of_the_answer(self) -> None:
        # (proposed), (answered), how many C-STOREs are in flight; a peer that answers more than was proposed is not
        # believed, and one that answers nothing is synchronous.
        for proposed, answered, most in (
            (AsyncOperationsWindow(16, 1), AsyncOperationsWindow(16, 1), 16),
            (AsyncOperationsWindow(16, 1), AsyncOperationsWindow(3, 1), 3),
            (AsyncOperationsWindow(4, 1), AsyncOperationsWindow(16, 1), 4),
            (AsyncOperationsWindow(4, 1), AsyncOperationsWindow(0, 1), 4),
            (AsyncOperationsWindow(0, 1), AsyncOperationsWindow(7, 1), 7),
            (AsyncOperationsWindow(0, 1), AsyncOperationsWindow(0, 1), 20),
            (AsyncOperationsWindow(100, 1), AsyncOperationsWindow(100, 1), 20),
            (AsyncOperationsWindow(16, 1), None, 1),
            (None, AsyncOperationsWindow(16, 16), 1),
        ):
            self.setUp()
            self.scu.settings.maximum_operations = 20
            association, peer = self.scripted(proposed, answered)
            for deferred in self.stores(association, 30).values():
                deferred.addErrback(lambda reason: None)
            self.assertEqual(len(requests(peer)), most, (proposed, answered))
            self.tearDown()


class Invoking(WindowTestCase):
    """The requestor: what it has in flight, and what it makes of answers."""

    def test_out_of_order(self) -> None:
        # 100 C-STOREs, 16 at once, answered in any order: each answer comes where it belongs.
        association, peer = self.window_of(16)
        sending = self.stores(association, 100)
        random = Random(16)
        waiting: dict[str, Any] = {}
        seen = 0
        while any(not deferred.called for deferred in sending.values()):
            came = requests(peer)
            waiting.update({request.affected_sop_instance_uid: request for request in came[seen:]})
            seen = len(came)
            left = sum(not deferred.called for deferred in sending.values())
            self.assertEqual(len(waiting), min(16, left))
            uid = random.choice(list(waiting))
            status = 0xB000 + int(uid.rpartition(".")[2])
            self.answer(peer, waiting.pop(uid), status)
            self.assertEqual(self.successResultOf(sending[uid]), status)
        self.assertEqual([request.affected_sop_instance_uid for request in requests(peer)], list(sending), "in order")

    def test_never_more_than_the_window(self) -> None:
        # The same against an acceptor of ours, which counts.
        worker = Worker()
        association, _ = self.windowed((evt.EVT_C_STORE, worker), size=16)
        sending = self.stores(association, 100)
        random = Random(1)
        for left in range(100, 0, -1):
            self.assertEqual(len(worker.working), min(16, left))
            uid = random.choice(list(worker.working))
            status = 0xB000 + int(uid.rpartition(".")[2])
            worker.finish(uid, status)
            self.network.flush()
            self.assertEqual(self.successResultOf(sending.pop(uid)), status)
        self.assertEqual(worker.most, 16)
        self.assertEqual(worker.started, [f"1.2.{number}" for number in range(1, 101)])

    def test_services_share_it(self) -> None:
        association, peer = self.window_of(3)
        sending: list[Deferred[Status]] = []
        for number in range(3):
            sending += [association.send_c_echo(), association.send_c_store(instance(uid=f"1.2.{number}"))]
        for done in range(6):
            came = requests(peer)
            self.assertEqual(len(came), min(6, done + 3))
            self.assertIs(type(came[done]), CStoreRQ if done % 2 else CEchoRQ)
            self.answer(peer, came[done])
        self.assertEqual([self.successResultOf(deferred) for deferred in sending], [0] * 6)

    def test_an_answer_asks_for_more(self) -> None:
        # Whoever is told of an answer may ask at once, and waits behind those who wait.
        association, peer = self.window_of(2)
        later: list[Deferred[Status]] = []
        sending = self.stores(association, 3)
        sending["1.2.1"].addCallback(lambda _: later.append(association.send_c_store(instance(uid="1.2.9"))))
        self.answer(peer, requests(peer)[0])
        self.assertEqual([each.affected_sop_instance_uid for each in requests(peer)], ["1.2.1", "1.2.2", "1.2.3"])
        for number in (1, 2, 3):
            self.answer(peer, requests(peer)[number])
        self.assertEqual(self.successResultOf(later[0]), 0)

    def test_message_ids_in_use_are_passed_over(self) -> None:
        association, peer = self.window_of(4)
        sending = self.stores(association, 3)
        association.exchange._last_message_id = 0xFFFE
        sending |= self.stores(association, 3, first=4)
        self.assertEqual([request.message_id for request in requests(peer)], [1, 2, 3, 0xFFFF])
        self.answer(peer, requests(peer)[1])
        self.assertEqual(requests(peer)[4].message_id, 2)
        self.answer(peer, requests(peer)[3])
        self.assertEqual(requests(peer)[5].message_id, 4)
        self.assertEqual([uid for uid, deferred in sending.items() if deferred.called], ["1.2.2", "1.2.4"])
        for deferred in sending.values():
            deferred.addErrback(lambda reason: None)

    def test_the_acceptor_asks(self) -> None:
        # The other way round: the acceptor is the SCU, and the requestor performs 3 at once.
        worker = Worker()
        contexts = [build_context(CT, ExplicitVRLittleEndian)]
        contexts[0].scu_role = contexts[0].scp_role = True
        self.scp.supported_contexts = contexts
        self.scu.requested_contexts = [build_context(CT, ExplicitVRLittleEndian)]
        association, accepted = self.both(
            granting(1, 3),
            ext_neg=[AsyncOperationsWindow(1, 5), build_role(CT, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, worker)],
        )
        self.assertEqual(accepted.acceptor.asynchronous_operations, (3, 1))
        self.assertEqual(association.acceptor.asynchronous_operations, (3, 1))
        sending = self.stores(accepted, 10)
        for left in range(10, 0, -1):
            self.assertEqual(len(worker.working), min(3, left))
            uid = list(worker.working)[-1]
            worker.finish(uid, 0xB000 + left)
            self.network.flush()
            self.assertEqual(self.successResultOf(sending[uid]), 0xB000 + left)
        self.assertEqual(worker.most, 3)


class Cancelling(WindowTestCase):
    """A cancelled operation that was sent is not taken back: the peer performs it."""

    def test_the_place_is_kept(self) -> None:
        association, peer = self.window_of(2)
        sending = self.stores(association, 4)
        for uid in ("1.2.1", "1.2.2"):
            sending[uid].cancel()
            self.failureResultOf(sending[uid], CancelledError)
        self.network.flush()
        self.assertEqual(len(requests(peer)), 2, "both places are taken")
        self.answer(peer, requests(peer)[1])
        self.assertEqual(len(requests(peer)), 3)
        self.answer(peer, requests(peer)[2])
        self.assertEqual(self.successResultOf(sending["1.2.3"]), 0)
        self.assertEqual(len(requests(peer)), 4, "one place is still that of the first")
        self.answer(peer, requests(peer)[3])
        self.assertEqual(self.successResultOf(sending["1.2.4"]), 0)
        releasing = association.release()
        self.network.flush()
        self.assertNotIn(AReleaseRQ(), peer.pdus, "the first is not answered")
        self.answer(peer, requests(peer)[0])
        self.assertIn(AReleaseRQ(), peer.pdus)
        peer.send(AReleaseRP())
        self.successResultOf(releasing)

    def test_with_its_data_set_on_the_way(self) -> None:
        # What has begun is sent to its end, or nothing else could be sent.
        association, peer = self.window_of(1)
        peer.transport.frozen = True
        first = association.send_c_store(instance(1_000_000))
        second = association.send_c_store(instance(uid="1.2.5"))
        self.network.flush()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        peer.transport.frozen = False
        ((request, data),) = peer.messages()
        self.assertEqual(len(data), len(encoded(1_000_000)))
        self.answer(peer, request)
        self.answer(peer, requests(peer)[1])
        self.assertEqual(self.successResultOf(second), 0)

    def test_with_its_message_still_to_be_sent(self) -> None:
        association, peer = self.window_of(3)
        peer.transport.frozen = True
        sending = [association.send_c_store(instance(1_000_000, f"1.2.{number}")) for number in range(4)]
        self.network.flush()
        sending[1].cancel()
        self.failureResultOf(sending[1], CancelledError)
        peer.transport.frozen = False
        self.assertEqual(len(requests(peer)), 3)
        for request in requests(peer):
            self.answer(peer, request)
        self.answer(peer, requests(peer)[3])
        self.assertEqual([self.successResultOf(sending[number]) for number in (0, 2, 3)], [0, 0, 0])

    def test_when_the_association_ends(self) -> None:
        association, peer = self.window_of(2)
        sending = list(self.stores(association, 4).values())
        sending[0].cancel()
        sending[3].cancel()
        peer.reset()
        for number, kind in enumerate((CancelledError, AssociationLost, AssociationLost, CancelledError)):
            self.failureResultOf(sending[number], kind)


class Performing(WindowTestCase):
    """The acceptor: what it has in work, and whom it refuses."""

    def asked(self, *handlers: Any, window: UserInformation | None = None) -> tuple[Association, ScriptedPeer, Worker]:
        """An association with a scripted requestor, 16 operations of which are in work."""
        worker = Worker()
        association, peer = self.scripted_scu(
            (evt.EVT_C_STORE, worker), *(handlers or (granting(16),)), information=window or asking_for(16)
        )
        return association, peer, worker

    def ask(self, peer: ScriptedPeer, *numbers: int) -> None:
        """Let the peer send C-STOREs with these Message IDs."""
        for number in numbers:
            request = store(number)
            request.affected_sop_instance_uid = f"1.2.{number}"
            peer.send_message(3, request, encoded(100, f"1.2.{number}"))

    def test_as_each_is_done(self) -> None:
        _, peer, worker = self.asked()
        self.ask(peer, *range(1, 17))
        order = list(range(1, 17))
        Random(3).shuffle(order)
        for number in order:
            worker.finish(f"1.2.{number}", 0xB000 + number)
        self.assertEqual(responses(peer), [(number, 0xB000 + number) for number in order])

    def test_an_overrun_is_refused(self) -> None:
        self.scp.settings.maximum_waiting = 0
        association, peer, worker = self.asked()
        self.ask(peer, *range(1, 20))
        peer.send_message(1, echo(20))
        self.assertEqual(responses(peer), [(17, 0x0213), (18, 0x0213), (19, 0x0213), (20, 0x0213)])
        self.assertEqual(worker.most, 16)
        comments = {message.error_comment for message, _ in peer.messages() if isinstance(message, CStoreRSP)}
        self.assertEqual(comments, {"no more than 16 operations at once"})
        # The association lives on: what was in work is answered, and its place is free again.
        worker.finish("1.2.5")
        self.ask(peer, 21)
        worker.finish("1.2.21")
        peer.send_message(1, echo(22))
        self.assertEqual(responses(peer)[4:], [(5, 0), (21, 0), (22, 0)])
        for uid in list(worker.working):
            worker.finish(uid)
        self.assertEqual(len(responses(peer)), 22)
        peer.send(AReleaseRQ())
        self.assertEqual(peer.take()[-1], AReleaseRP())
        self.assertTrue(association.is_released)

    def test_no_limit_has_one(self) -> None:
        self.scp.settings.maximum_operations = 5
        self.scp.settings.maximum_waiting = 0
        _, peer, worker = self.asked(granting(0), window=asking_for(0))
        self.assertEqual(
            [pdu.user_information.async_operations for pdu in peer.pdus if isinstance(pdu, AAssociateAC)],
            [AsyncOperationsWindow(5, 1)],
        )
        self.ask(peer, *range(1, 8))
        self.assertEqual(worker.most, 5)
        self.assertEqual(responses(peer), [(6, 0x0213), (7, 0x0213)])

    def test_a_streaming_handler_begins_at_the_command(self) -> None:
        # It has its place before its data set has come, and there is still only one data set at a time.
        streams: list[str] = []

        @evt.streaming
        async def read(event: evt.StoreEvent) -> int:
            streams.append(event.request.affected_sop_instance_uid)
            async for _ in event.stream:
                pass
            await waiting
            return 0

        self.scp.settings.maximum_waiting = 0
        waiting: Deferred[None] = Deferred()
        _, peer, _ = self.asked((evt.EVT_C_STORE, read), granting(2))
        self.ask(peer, 1, 2, 3)
        self.assertEqual(streams, ["1.2.1", "1.2.2"])
        self.assertEqual(responses(peer), [(3, 0x0213)])
        waiting.callback(None)
        self.assertEqual(responses(peer), [(3, 0x0213), (1, 0), (2, 0)])

    def test_a_release_waits_for_what_is_in_work(self) -> None:
        association, peer, worker = self.asked()
        self.ask(peer, *range(1, 17))
        peer.send(AReleaseRQ())
        for number in range(16, 0, -1):
            self.assertNotIn(AReleaseRP(), peer.pdus)
            worker.finish(f"1.2.{number}")
            self.network.flush()
        self.assertEqual(peer.take()[-1], AReleaseRP())
        self.assertEqual([message_id for message_id, _ in responses(peer)], list(range(16, 0, -1)))
        self.assertTrue(association.is_released)

    def test_the_peer_is_gone(self) -> None:
        # Handlers that are done afterwards are done for nobody; nothing is said, nothing is logged as an error.
        for leave in (ScriptedPeer.close, ScriptedPeer.reset, lambda peer: peer.send(AAbort(0, 0))):
            self.setUp()
            association, peer, worker = self.asked()
            self.ask(peer, *range(1, 17))
            leave(peer)
            self.assertTrue(association.is_aborted)
            before = len(peer.received)
            for uid in list(worker.working):
                worker.finish(uid)
            self.network.flush()
            self.assertEqual(len(peer.received), before)
            self.assertEqual(association.exchange.counts["C-STORE"], 16)
            self.tearDown()


class Ending(WindowTestCase):
    """16 operations are outstanding and 10 wait for their turn when something happens."""

    def setUp(self) -> None:
        super().setUp()
        self.reasons: list[BaseException] = []

    def outstanding(self) -> tuple[Association, ScriptedPeer, list[Deferred[None]]]:
        """Return the association, the peer, and the Deferreds; what they fail with is in ``reasons``."""
        association, peer = self.window_of(16)
        sending = [
            deferred.addCallbacks(
                lambda status: self.fail("answered"), lambda reason: self.reasons.append(reason.value)
            )
            for deferred in self.stores(association, 26).values()
        ]
        self.assertEqual(len(requests(peer)), 16)
        return association, peer, sending

    def all_failed(self, association: Association, kind: type[Exception], count: int = 26) -> Any:
        """Each failed, once, with the same reason; nothing is left."""
        self.network.flush()
        self.assertEqual(len(self.reasons), count)
        (reason,) = set(self.reasons)
        self.assertIsInstance(reason, kind)
        self.assertIs(reason, association.end_reason)
        self.assertFalse(association.is_established)
        return reason

    def test_our_abort(self) -> None:
        association, peer, _ = self.outstanding()
        association.abort("enough")
        self.assertFalse(self.all_failed(association, AssociationAborted).by_peer)
        self.assertEqual(peer.take()[-1], AAbort(0, 0))

    def test_an_abort_by_the_peer(self) -> None:
        association, peer, _ = self.outstanding()
        peer.send(AAbort(0, 0))
        self.assertTrue(self.all_failed(association, AssociationAborted).by_peer)

    def test_an_abort_behind_some_answers(self) -> None:
        association, peer = self.window_of(16)
        sending = list(self.stores(association, 26).values())
        answers = [CStoreRSP(message_id_being_responded_to=number) for number in (3, 9)]
        peer.send(*[piece for answer in answers for piece in peer.encode_message(3, answer)], AAbort(0, 0))
        self.assertEqual([self.successResultOf(sending.pop(number)) for number in (8, 2)], [0, 0])
        for deferred in sending:
            self.assertIs(self.failureResultOf(deferred, AssociationAborted).value, association.end_reason)

    def test_the_connection_is_lost(self) -> None:
        for lose in (ScriptedPeer.close, ScriptedPeer.reset, lambda peer: self.network.connections[-1].cut()):
            self.setUp()
            association, peer, _ = self.outstanding()
            lose(peer)
            self.all_failed(association, AssociationLost)
            self.tearDown()

    def test_bad_bytes(self) -> None:
        association, peer, _ = self.outstanding()
        peer.send(b"\xff" * 10)
        self.assertEqual(self.all_failed(association, AssociationAborted).source, 2)

    def test_the_peer_does_not_answer(self) -> None:
        association, peer, _ = self.outstanding()
        self.network.advance(DIMSE - 0.1)
        self.assertEqual(self.reasons, [])
        self.network.advance(0.1)
        self.assertEqual(self.all_failed(association, AssociationTimeout).timer, "dimse")
        self.assertEqual(peer.take()[-1], AAbort(0, 0))

    def test_the_peer_answers_slowly(self) -> None:
        # Each answer is progress: the last of 26 may come after 26 times the timeout, but not one moment later.
        association, peer = self.window_of(16)
        statuses: list[Status] = []
        sending = list(self.stores(association, 26).values())
        for deferred in sending:
            deferred.addCallbacks(statuses.append, lambda reason: self.reasons.append(reason.value))
        answered: set[int] = set()
        for number in range(1, 26):
            self.network.advance(DIMSE - 0.1)
            # The one that was asked for last, so that the oldest ones wait for all of the time.
            request = next(each for each in reversed(requests(peer)) if each.message_id not in answered)
            answered.add(request.message_id)
            self.answer(peer, request)
            self.assertEqual(len(statuses), number)
        self.network.advance(DIMSE - 0.1)
        self.assertEqual(self.reasons, [])
        self.network.advance(0.1)
        self.all_failed(association, AssociationTimeout, count=1)

    def test_the_answer_moves_slowly(self) -> None:
        # Each byte of an answer is progress for all.
        association, peer = self.window_of(16)
        sending = list(self.stores(association, 16).values())
        for number in range(1, 17):
            pieces = b"".join(peer.encode_message(3, CStoreRSP(message_id_being_responded_to=number)))
            for piece in (pieces[:4], pieces[4:30], pieces[30:]):
                self.network.advance(DIMSE - 0.1)
                peer.send(piece)
        self.assertEqual([self.successResultOf(deferred) for deferred in sending], [0] * 16)
        self.assertTrue(association.is_established)

    def test_who_fails_asks_again(self) -> None:
        association, peer = self.window_of(16)
        again: list[Deferred[Status]] = []

        def retry(reason: object) -> None:
            again.append(association.send_c_echo())

        for deferred in self.stores(association, 26).values():
            deferred.addErrback(retry)
        peer.reset()
        self.assertEqual(len(again), 26)
        for deferred in again:
            error = self.failureResultOf(deferred).value
            self.assertIs(error.__cause__ or error, association.end_reason)

    def test_a_release_by_us_waits(self) -> None:
        worker = Worker()
        association, accepted = self.windowed((evt.EVT_C_STORE, worker), size=16)
        sending = self.stores(association, 26)
        releasing = association.release()
        for left in range(26, 0, -1):
            self.network.flush()
            self.assertEqual(len(worker.working), min(16, left))
            self.assertNoResult(releasing)
            worker.finish(list(worker.working)[-1])
        self.network.flush()
        self.successResultOf(releasing)
        self.assertEqual([self.successResultOf(deferred) for deferred in sending.values()], [0] * 26)
        self.assertTrue(association.is_released and accepted.is_released)

    def test_a_release_by_the_peer_waits_for_nothing(self) -> None:
        association, peer, _ = self.outstanding()
        peer.send(AReleaseRQ())
        self.network.flush()
        self.assertEqual(len(self.reasons), 26)
        self.assertEqual({type(reason) for reason in self.reasons}, {AssociationReleased})
        self.assertTrue(association.is_released)
        self.assertIn(AReleaseRP(), peer.pdus)


def messages_of(peer: ScriptedPeer) -> Iterator[tuple[int, bytes, bytes]]:
    """
    Yield the context ID, command set and data set of each message that came to a peer.

    :raises AssertionError: fragments of two messages are mixed.
    """
    context_id, command, data, kind = 0, bytearray(), bytearray(), COMMAND_FRAGMENT
    for pdv in [pdv for pdu in peer.pdus if isinstance(pdu, PDataTF) for pdv in pdu.pdvs]:
        assert not command or pdv.context_id == context_id, "a fragment of another presentation context"
        assert pdv.control & COMMAND_FRAGMENT == kind, "a fragment of another kind"
        context_id = pdv.context_id
        (command if kind else data).extend(pdv.data)
        if not pdv.control & LAST_FRAGMENT:
            continue
        # Command Data Set Type (0000,0800) of 0101H says that there is no data set.
        has_dataset = b"\0\0\0\x08\x02\0\0\0\x01\x01" not in command
        if kind and has_dataset:
            kind = 0
            continue
        yield context_id, bytes(command), bytes(data)
        command, data, kind = bytearray(), bytearray(), COMMAND_FRAGMENT
    assert not command and not data, "a message is not complete"


class Fragments(WindowTestCase):
    """Those of two messages are never mixed (PS3.7 6.3), however many are under way."""

    SIZES = (300_000, 10, 70_000, 5000, 1_000_000, 0, 30_000)

    def small(self) -> tuple[Association, ScriptedPeer]:
        """A peer that takes PDUs of 4096 bytes, and two contexts for CT."""
        peer = self.network.scripted_server(105)
        asking = self.asking(
            105,
            contexts=[
                build_context(VERIFICATION),
                build_context(CT, ExplicitVRLittleEndian),
                build_context(CT, ImplicitVRLittleEndian),
            ],
            ext_neg=[AsyncOperationsWindow(16, 1)],
        )
        peer.accept(information=UserInformation(maximum_length=4096, async_operations=AsyncOperationsWindow(16, 1)))
        return self.successResultOf(asking), peer

    def test_of_requests(self) -> None:
        # Some are there at once, some come from files, between them C-ECHOs; the peer reads now and then.
        association, peer = self.small()
        peer.transport.frozen = True
        for number, size in enumerate(self.SIZES):
            uid = f"1.2.{number}"
            what = BytesIO(part10(size, uid)) if number % 2 else instance(size, uid)
            for deferred in (association.send_c_store(what), association.send_c_echo()):
                deferred.addErrback(lambda reason: None)
            self.network.works = number % 3 > 0
            self.network.flush()
            peer.transport.frozen = False
            peer.transport.step()
            peer.transport.frozen = True
        peer.transport.frozen = False
        self.network.works = True
        self.network.flush()
        came = list(messages_of(peer))
        self.assertEqual(len([context_id for context_id, _, data in came if context_id == 1 and not data]), 7)
        expected = sorted(encoded(size, f"1.2.{number}") for number, size in enumerate(self.SIZES))
        self.assertEqual(sorted(data for context_id, _, data in came if context_id != 1), expected)
        longest = max(len(pdv.data) for pdu in peer.pdus if isinstance(pdu, PDataTF) for pdv in pdu.pdvs)
        self.assertLessEqual(longest + 6, 4096)

    def test_of_requests_and_answers(self) -> None:
        # An acceptor that sends instances, and answers C-ECHO meanwhile.
        contexts = [build_context(VERIFICATION), build_context(CT, ExplicitVRLittleEndian)]
        contexts[1].scu_role = contexts[1].scp_role = True
        self.scp.supported_contexts = contexts
        association, peer = self.scripted_scu(
            granting(16, 16),
            information=UserInformation(
                maximum_length=4096,
                async_operations=AsyncOperationsWindow(16, 16),
                roles=(build_role(CT, scu_role=True, scp_role=True),),
            ),
        )
        expected: list[bytes] = []
        peer.transport.frozen = True
        for number, size in enumerate(self.SIZES):
            association.send_c_store(instance(size, f"1.2.{number}")).addErrback(lambda reason: None)
            expected.append(encoded(size, f"1.2.{number}"))
        for number in range(1, 8):
            peer.transport.frozen = False
            peer.transport.write(b"".join(peer.encode_message(1, echo(number))))
            for _ in range(number):
                peer.transport.step()
            peer.transport.frozen = True
            self.network.flush()
        peer.transport.frozen = False
        self.network.flush()
        came = list(messages_of(peer))
        self.assertEqual([data for context_id, _, data in came if context_id == 3], expected)
        self.assertEqual(responses(peer), [(number, 0) for number in range(1, 8)])

    def test_what_is_mixed_by_the_peer_aborts(self) -> None:
        association, peer = self.scripted_scu(granting(16), information=asking_for(16))
        first = ScriptedPeer.encode_message(3, store(1), encoded(100_000))
        second = ScriptedPeer.encode_message(1, echo(2))
        peer.send(*first[:5], *second, *first[5:])
        self.assertIsInstance(peer.take()[-1], AAbort)
        self.assertTrue(association.is_aborted)

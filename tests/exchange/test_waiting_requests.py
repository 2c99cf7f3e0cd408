"""
Requests beyond the asynchronous operations window: requestors pipeline them, and they wait.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from twisted.internet.defer import Deferred

from dicomtwist import build_context, build_role, evt
from dicomtwist.datasets import encode_dataset
from dicomtwist.datasets.stream import CHUNK
from dicomtwist.dimse.messages import (
    CCancelRQ,
    CEchoRSP,
    CFindRQ,
    CFindRSP,
    CGetRQ,
    CGetRSP,
    CStoreRQ,
    CStoreRSP,
    Response,
)
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import RoleSelection, UserInformation
from dicomtwist.ul.pdu import AReleaseRP, AReleaseRQ
from tests.memory import CT, VERIFICATION, MemoryTestCase, echo, encoded, part10, store

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"


def responses(peer: ScriptedPeer) -> list[tuple[int, int]]:
    """Return the (Message ID, status) of the responses that a peer received."""
    return [
        (message.message_id_being_responded_to, message.status)
        for message, _ in peer.messages()
        if isinstance(message, Response)
    ]


def keys() -> bytes:
    """Return an identifier."""
    dataset = Dataset()
    dataset.QueryRetrieveLevel, dataset.StudyInstanceUID = "STUDY", "1.2"
    return encode_dataset(dataset, ImplicitVRLittleEndian)


class WaitingTests(MemoryTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.answers: list[Deferred[int]] = []
        self.sizes: list[int] = []

    def work(self, event: Any) -> Deferred[int]:
        """Answer when the test says so."""
        if isinstance(event, evt.StoreEvent):
            self.sizes.append(len(event.encoded_dataset(include_meta=False)))
        self.answers.append(Deferred())
        return self.answers[-1]

    def serve(self, *handlers: evt.HandlerTuple, **information: Any) -> tuple[Any, ScriptedPeer]:
        """Return an association without a window, and its scripted requestor."""
        self.scp.supported_contexts = [*self.scp.supported_contexts, build_context(FIND), build_context(GET)]
        storage = self.scp.supported_contexts[1]
        self.scp.add_supported_context(CT, storage.transfer_syntax, scu_role=True, scp_role=True)
        handlers = (*handlers, (evt.EVT_C_ECHO, self.work), (evt.EVT_C_STORE, self.work))
        server = self.listen(*handlers)
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), (3, CT), (5, FIND), (7, GET), **information)
        peer.take()
        (association,) = server.factory.associations
        return association, peer

    def store(self, peer: ScriptedPeer, *numbers: int, size: int = 100) -> None:
        """Have the peer send C-STORE requests with these Message IDs."""
        for number in numbers:
            request = store(number)
            request.affected_sop_instance_uid = f"1.2.{number}"
            peer.send_message(3, request, encoded(size, f"1.2.{number}"))

    def finish_all(self) -> None:
        """Answer until nothing is left to be answered."""
        done = 0
        while done < len(self.answers):
            self.answers[done].callback(0)
            done += 1
            self.network.flush()

    def test_in_order(self) -> None:
        """
        Requests of any service are performed one by one, in the order in which they came; each data set is whole.
        """
        _, peer = self.serve()
        self.store(peer, 1, 2)
        peer.send_message(1, echo(3))
        self.store(peer, 4, size=300_000)
        self.assertEqual(len(self.answers), 1)
        self.assertEqual(responses(peer), [])
        self.finish_all()
        self.assertEqual(responses(peer), [(1, 0), (2, 0), (3, 0), (4, 0)])
        self.assertEqual(self.sizes, [len(encoded(100, "1.2.1"))] * 2 + [len(encoded(300_000, "1.2.4"))])

    def test_more_than_may_wait(self) -> None:
        """
        Reading pauses while as many wait as may; all are answered in the end, however long a handler takes.
        """
        self.scp.settings.maximum_waiting = 3
        association, peer = self.serve()
        self.store(peer, *range(1, 21))
        self.assertTrue(association.protocol.reading_paused)
        self.network.advance(600)
        self.assertTrue(association.is_established)
        self.finish_all()
        self.assertEqual(responses(peer), [(number, 0) for number in range(1, 21)])
        self.assertFalse(association.protocol.reading_paused)

    def test_long_data_sets(self) -> None:
        """
        Data sets that wait are bounded in bytes as well: reading pauses, without a time limit, and goes on.
        """
        association, peer = self.serve()
        self.store(peer, *range(1, 6), size=3 * CHUNK)
        self.assertTrue(association.protocol.reading_paused)
        self.assertLess(association.bytes_received, 6 * CHUNK)
        self.network.advance(600)
        self.assertTrue(association.is_established)
        self.finish_all()
        self.assertEqual(responses(peer), [(number, 0) for number in range(1, 6)])
        self.assertEqual(len(set(self.sizes)), 1)

    def test_synchronous_handlers(self) -> None:
        """
        Hundreds of requests whose handlers answer at once do not nest, and are answered in order.
        """
        first: Deferred[int] = Deferred()
        self.scp.settings.maximum_waiting = 5000
        _, peer = self.scripted_scu((evt.EVT_C_ECHO, lambda event: first if event.request.message_id == 1 else 0))
        for number in range(1, 2001):
            peer.send_message(1, echo(number))
        first.callback(0)
        self.assertEqual(responses(peer), [(number, 0) for number in range(1, 2001)])

    def test_a_message_id_that_waits(self) -> None:
        """A request with the Message ID of one that waits is refused; the others are performed."""
        _, peer = self.serve()
        for number in (1, 2, 2):
            peer.send_message(1, echo(number))
        self.finish_all()
        self.assertEqual(responses(peer), [(2, 0x0210), (1, 0), (2, 0)])

    def test_cancel(self) -> None:
        """A C-CANCEL for a query that waits is answered with 0xFE00 when its turn comes, and nothing of it is looked up."""
        asked: list[int] = []

        def find(event: evt.Event) -> Any:
            asked.append(event.request.message_id)
            yield 0xFF00, Dataset()

        _, peer = self.serve((evt.EVT_C_FIND, find))
        peer.send_message(1, echo(1))
        for number in (2, 3):
            peer.send_message(5, CFindRQ(message_id=number, affected_sop_class_uid=FIND, priority=0), keys())
        peer.send_message(5, CCancelRQ(message_id_being_responded_to=2))
        self.finish_all()
        self.assertEqual(responses(peer), [(1, 0), (2, 0xFE00), (3, 0xFF00), (3, 0)])
        self.assertEqual(asked, [3])

    def test_release(self) -> None:
        """A release is answered after those that wait."""
        association, peer = self.serve()
        self.store(peer, 1, 2, 3)
        peer.send(AReleaseRQ())
        self.finish_all()
        self.assertEqual(responses(peer), [(1, 0), (2, 0), (3, 0)])
        self.assertIsInstance(peer.take()[-1], AReleaseRP)
        self.assertTrue(association.is_released)

    def test_the_end_of_the_association(self) -> None:
        """It drops the requests that wait: no handler is called for them."""
        _, peer = self.serve()
        self.store(peer, 1, 2, 3)
        peer.transport.loseConnection()
        self.network.flush()
        self.finish_all()
        self.assertEqual(len(self.answers), 1)

    def test_behind_a_c_get(self) -> None:
        """
        While a C-GET is performed, which needs the responses of the peer, reading never pauses: what is too much is refused.
        """
        self.scp.settings.maximum_waiting = 2

        def get(event: evt.Event) -> Any:
            yield 2
            yield 0xFF00, part10(100, "1.2.8")
            yield 0xFF00, part10(100, "1.2.9")

        roles = UserInformation(roles=(RoleSelection(CT, True, True),))
        association, peer = self.serve((evt.EVT_C_GET, get), information=roles)
        peer.send_message(7, CGetRQ(message_id=1, affected_sop_class_uid=GET, priority=0), keys())
        for number in (2, 3, 4):
            peer.send_message(1, echo(number))
        self.assertFalse(association.protocol.reading_paused)
        self.assertEqual(responses(peer), [(4, 0x0213)])
        while requests := [one for one, _ in peer.messages() if isinstance(one, CStoreRQ)][self.gets_answered :]:
            for request in requests:
                self.gets_answered += 1
                peer.send_message(3, CStoreRSP(message_id_being_responded_to=request.message_id, status=0))
        self.finish_all()
        self.assertEqual(responses(peer)[-3:], [(1, 0), (2, 0), (3, 0)])

    gets_answered = 0

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from(["echo", "store"]), st.integers(0, 3000)), max_size=30), st.integers(1, 8)
    )
    def test_any_sequence(self, sequence: list[tuple[str, int]], limit: int) -> None:
        """All requests are answered once, in order, whatever they are and however few may wait."""
        self.setUp()
        self.scp.settings.maximum_waiting = limit
        _, peer = self.serve()
        for number, (what, size) in enumerate(sequence, 1):
            if what == "echo":
                peer.send_message(1, echo(number))
            else:
                self.store(peer, number, size=2 * size)
        self.finish_all()
        self.assertEqual(responses(peer), [(number, 0) for number in range(1, len(sequence) + 1)])
        self.tearDown()


class GetWithoutRoles(MemoryTestCase):
    """C-GET from an SCP that answers no role, as many do."""

    def ask(self, **options: Any) -> tuple[Any, ScriptedPeer, list[str]]:
        """Return an association that has proposed to be SCP, its scripted acceptor, and the UIDs that are stored."""
        stored: list[str] = []

        def keep(event: evt.StoreEvent) -> int:
            stored.append(event.request.affected_sop_instance_uid)
            return 0

        self.scu.requested_contexts = [build_context(GET), build_context(CT)]
        peer = self.network.scripted_server(105)
        asking = self.asking(105, evt_handlers=[(evt.EVT_C_STORE, keep)], **options)
        peer.accept(information=UserInformation(maximum_length=16384))
        return self.successResultOf(asking), peer, stored

    def send(self, peer: ScriptedPeer, number: int) -> None:
        """Have the peer send an instance."""
        uid = f"1.2.{number}"
        request = CStoreRQ(message_id=number, affected_sop_class_uid=CT, affected_sop_instance_uid=uid)
        peer.send_message(3, request, encode_dataset(Dataset(), ImplicitVRLittleEndian) or b"")

    def test_proposed(self) -> None:
        """Instances are taken while the C-GET is under way; before and after it they are refused, with the reason."""
        association, peer, stored = self.ask(ext_neg=[build_role(CT, scp_role=True)])
        self.send(peer, 1)
        self.assertEqual(responses(peer), [(1, 0x0122)])
        done = association.send_c_get(Dataset(), GET).when_done()
        self.network.flush()
        self.send(peer, 2)
        self.send(peer, 3)
        self.assertEqual(responses(peer)[1:], [(2, 0), (3, 0)])
        request = next(one for one, _ in peer.messages() if isinstance(one, CGetRQ))
        peer.send_message(
            1,
            CGetRSP(message_id_being_responded_to=request.message_id, status=0, number_of_completed_suboperations=2),
        )
        self.assertEqual(self.successResultOf(done).suboperations.completed, 2)
        self.send(peer, 4)
        self.assertEqual(responses(peer)[3:], [(4, 0x0122)])
        self.assertEqual(stored, ["1.2.2", "1.2.3"])
        comments = {one.error_comment for one, _ in peer.messages() if isinstance(one, CStoreRSP)}
        self.assertEqual(comments, {None, "the SCP role was not accepted, and no C-GET is under way"})

    def test_not_proposed(self) -> None:
        """Without a proposed role an instance is refused, also during a C-GET; so is any other request in this role."""
        association, peer, stored = self.ask()
        association.send_c_get(Dataset(), GET)
        self.network.flush()
        self.send(peer, 1)
        peer.send_message(1, echo(2))
        self.assertEqual(responses(peer), [(1, 0x0122), (2, 0x0122)])
        self.assertEqual(stored, [])
        self.assertFalse([one for one, _ in peer.messages() if isinstance(one, CEchoRSP | CFindRSP) and not one.status])
        association.abort()
        self.network.flush()

"""PDUs and messages out of order: rows 23, 24, 28 and 35, and deviations of real devices."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import AsyncOperationsWindow, evt
from dicomtwist.dimse.messages import CCancelRQ, CEchoRSP, CStoreRSP
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ
from tests.hostile.common import ACSE, INVALID, UNEXPECTED, HostileTestCase, pdata, statuses
from tests.memory import CT, VERIFICATION, echo, encoded, store


def element(tag: int, value: bytes, group: int = 0) -> bytes:
    """Return an element of a command set."""
    return group.to_bytes(2, "little") + tag.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


class Order(HostileTestCase):
    """Row 23: exactly PS3.8 Table 9-10."""

    def test_out_of_place(self) -> None:
        data = b"".join(ScriptedPeer.encode_message(1, echo()))
        ac, rj = AAssociateAC("A", "B").encode(), AAssociateRJ(1, 1, 1).encode()
        rq = AAssociateRQ("A", "B").encode()
        begun = b"".join(ScriptedPeer.encode_message(3, store(), encoded(100_000))[:4])
        cases: list[tuple[bool, bytes]] = [(True, pdu) for pdu in (rq, ac, rj, AReleaseRP().encode())]
        cases += [(False, pdu) for pdu in (data, ac, rj, AReleaseRQ().encode(), AReleaseRP().encode())]
        cases.append((True, begun + AReleaseRQ().encode()))

        def test(established: bool, what: bytes) -> None:
            peer = self.connect(established=established)
            peer.send(what)
            self.is_aborted(peer, UNEXPECTED if established else AAbort(0, 0))

        self.every(cases, test)

    def test_while_the_handlers_decide(self) -> None:
        deciding: list[Deferred[tuple[int, int]]] = []

        def decide(event: evt.Event) -> Deferred[tuple[int, int]]:
            deciding.append(Deferred())
            return deciding[-1]

        self.serve((evt.EVT_ASYNC_OPS, decide))
        information = UserInformation(async_operations=AsyncOperationsWindow(2, 2))

        def test(what: bytes) -> None:
            peer = self.connect()
            peer.request((1, VERIFICATION), information=information)
            self.assertEqual(peer.take(), [])
            peer.send(what)
            self.assertEqual(peer.take(), [UNEXPECTED])
            deciding[-1].callback((1, 1))  # too late
            self.is_aborted(peer)

        data = b"".join(ScriptedPeer.encode_message(1, echo()))
        self.every([data, AReleaseRQ().encode(), AAssociateRQ("A", "B").encode()], test)

    def test_after_the_end(self) -> None:
        """Sta13: data are dropped, another A-ASSOCIATE-RQ gets an A-ABORT, an A-ABORT closes."""
        peer = self.connect(established=True)
        peer.send(AReleaseRQ(), *ScriptedPeer.encode_message(1, echo()))
        self.assertEqual(peer.take(), [AReleaseRP()])
        peer.send(*ScriptedPeer.encode_message(1, echo()), AReleaseRQ())
        self.assertEqual(peer.take(), [])
        peer.send(AAssociateRQ("A", "B"))
        self.assertEqual(peer.take(), [UNEXPECTED])
        self.echo_is_answered()
        peer.send(AAbort(0, 0))
        self.assertIsNotNone(peer.closed)

    def test_release_collision(self) -> None:
        peer = self.connect(established=True)
        association = self.association_of(peer)
        releasing = association.release()
        self.assertEqual(peer.take(), [AReleaseRQ()])
        peer.send(AReleaseRQ())
        self.assertEqual(peer.take(), [])
        peer.send(*ScriptedPeer.encode_message(1, echo()))  # Sta10
        self.is_aborted(peer, UNEXPECTED)
        self.assertFalse(association.is_released)
        self.failureResultOf(releasing)
        del association, releasing


class Commands(HostileTestCase):
    """Rows 24 and 28."""

    def test_malformed(self) -> None:
        def test(command: bytes) -> None:
            peer = self.connect(established=True)
            peer.send(pdata((1, 3, command)))
            (answer,) = peer.take()
            assert isinstance(answer, AAbort)
            self.assertEqual(answer.source, 2)
            self.is_aborted(peer)

        field, message_id = element(0x100, b"\x30\0"), element(0x110, b"\1\0")
        none = element(0x800, b"\1\1")
        cases = [
            b"",
            field + none,  # no Message ID
            message_id + none,  # no Command Field
            element(0x100, b"\x37\x13") + message_id + none,  # an unknown Command Field
            element(0x10, b"x", group=8) + field + message_id,  # an element of another group
            field + message_id + b"\0\0\0\7\xff\xff\xff\xff",
            field + message_id + b"\0\0\0\7\xfe\xff\xff\xffxxxxxxxxxx",
            field + message_id + none[:5],
            element(0x100, b"\x30\x80") + none,  # a response to no Message ID
            bytes(100),
        ]
        self.every(cases, test)

    def test_wrong_lengths(self) -> None:
        """Numbers of 1, 3, 4 and 6 bytes, and a padding byte behind the command set, do not end the association."""
        peer = self.connect(established=True)
        lengths = (b"\x30", b"\x30\0\0", b"\x30\0\0\0", b"\x30\0\1\0\2\0")
        for number, field in enumerate(lengths, 1):
            message_id = bytes([number]) + field[1:]
            command = element(0x100, field) + element(0x110, message_id) + element(0x800, b"\1\1" + bytes(number))
            peer.send(pdata((1, 3, command + b"\0")))
            self.assertEqual(statuses(peer), [0] * number)
        self.echoes(peer, 9)

    def test_message_id_in_flight_and_too_many(self) -> None:
        answers: list[Deferred[int]] = []

        def hold(event: evt.Event) -> Deferred[int]:
            answers.append(Deferred())
            return answers[-1]

        self.serve((evt.EVT_C_STORE, hold), (evt.EVT_ASYNC_OPS, lambda event: (2, 2)))
        window = UserInformation(async_operations=AsyncOperationsWindow(2, 2))
        peer = self.connect(established=True, information=window)
        for message_id in (1, 1, 2, 3):
            peer.send_message(3, store(message_id), encoded())
            self.echo_is_answered()
        got = [(message.message_id_being_responded_to, message.status) for message, _ in self.responses(peer)]
        self.assertEqual(got, [(1, 0x0210)])
        self.assertEqual(len(answers), 2)  # the third one waits for the window
        while answers:
            answers.pop(0).callback(0)
        self.assertEqual(statuses(peer)[1:], [0, 0, 0])
        self.echoes(peer)

    def responses(self, peer: ScriptedPeer) -> Any:
        return peer.messages()

    def test_cancel_of_nothing(self) -> None:
        """A C-CANCEL for an unknown Message ID, or after the response, is ignored."""
        peer = self.connect(established=True)
        self.echoes(peer, 5)
        for message_id in (5, 6, 0, 0xFFFF):
            peer.send_message(1, CCancelRQ(message_id_being_responded_to=message_id))
            self.echoes(peer)
        self.assertEqual(len(peer.messages()), 5)

    def test_services_that_are_not_there(self) -> None:
        peer = self.connect(established=True)
        command_fields = (0x20, 0x21, 0x10, 0x100, 0x110, 0x120, 0x130, 0x140, 0x150)
        for number, code in enumerate(command_fields, 1):
            command = element(0x100, code.to_bytes(2, "little")) + element(0x110, number.to_bytes(2, "little"))
            peer.send(pdata((1, 3, command + element(0x800, b"\1\1"))))
            self.assertEqual(len(statuses(peer)), number)
        self.assertTrue(all(statuses(peer)), statuses(peer))
        self.echoes(peer)


class WrongButReal(HostileTestCase):
    """Row 35: the deviations of real devices are tolerated, and logged once."""

    def noted(self) -> list[str]:
        """Return the log lines about deviations."""
        return [line for line in self.log.lines if ": tolerated" in line]

    def test_requests(self) -> None:
        got: list[tuple[str, str, int]] = []

        def keep(event: evt.StoreEvent) -> int:
            request = event.request
            got.append(
                (request.affected_sop_class_uid, request.affected_sop_instance_uid, len(event.encoded_dataset(False)))
            )
            return 0

        self.serve((evt.EVT_C_STORE, keep))
        information = UserInformation(0, "1.2.3", "A NAME OF MORE THAN 16 CHARACTERS")
        peer = self.connect(established=True, information=information)
        twice = ((CT.encode() + b" ", b"1.2.3.4 "), (CT.encode() + b"\0", b"1.2.3\xe4\0")) * 2
        for uid, instance in twice:
            command = element(2, uid) + element(0x100, b"\1\0") + element(0x110, b"\1\0")
            command += element(0x800, b"\0\0") + element(0x1000, instance)
            # No group length, no priority, and command and data set in one PDU.
            peer.send(pdata((3, 3, command), (3, 2, encoded())))
        self.assertEqual(got, [(CT, "1.2.3.4", len(encoded())), (CT, "1.2.3\xe4", len(encoded()))] * 2)
        self.assertEqual(statuses(peer), [0, 0, 0, 0])
        self.echoes(peer)
        before = "'SCRIPTED' at 127.0.0.1: tolerated a deviation from the standard: "
        self.assertEqual(
            self.noted(),
            [
                before + "an implementation version name of more than 16 characters",
                before + "UIDs that are padded with spaces; C-STORE-RQ without priority",
                before + "UIDs that are not ASCII",
            ],
        )
        # Another association of the peer logs them again; one without deviations logs nothing.
        self.connect(established=True, information=information)
        self.assertEqual(len(self.noted()), 4)
        self.echoes(self.connect(established=True))
        self.assertEqual(len(self.noted()), 4)

    def test_responses_without_optional_elements(self) -> None:
        association, peer = self.scripted_scp()
        echoing = association.send_c_echo()
        self.network.flush()
        peer.send(pdata((1, 3, element(0x100, b"\x30\x80") + element(0x120, b"\1\0") + element(0x900, b"\0\0"))))
        self.assertEqual(self.successResultOf(echoing), 0)
        (line,) = self.noted()
        self.assertIn("'ANY-SCP' at 127.0.0.1", line)
        self.assertIn("C-ECHO-RSP without command_data_set_type", line)
        peer.send_message(1, CEchoRSP(message_id_being_responded_to=1, status=0))  # a second time
        self.assertIsInstance(peer.take()[-1], AAbort)
        self.assertTrue(association.is_aborted)

    def test_an_answer(self) -> None:
        """The requestor logs the deviations in the user information of the acceptor."""
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        peer.accept(information=UserInformation(0, "1.2.3\0"))
        self.assertTrue(self.successResultOf(asking).is_established)
        (line,) = self.noted()
        self.assertIn("UIDs that are padded", line)

    def test_a_response_of_another_service(self) -> None:
        association, peer = self.scripted_scp()
        echoing = association.send_c_echo()
        self.network.flush()
        peer.take()
        peer.send_message(1, CStoreRSP(message_id_being_responded_to=1, status=0))
        (answer,) = peer.take()
        assert isinstance(answer, AAbort)
        self.assertIn(answer, (INVALID, UNEXPECTED, AAbort(2, 0)))
        self.failureResultOf(echoing)
        self.network.advance(ACSE)
        self.assertIsNotNone(peer.closed)

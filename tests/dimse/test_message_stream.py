"""Fragments to messages and back (PS3.8 Annex E)."""

import unittest
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.dimse.command import MAX_COMMAND_LENGTH
from dicomtwist.dimse.message_stream import MAX_SEND_LENGTH, MessageReceiver, encode_pdata, payload_length
from dicomtwist.dimse.messages import CEchoRQ, CFindRQ, CStoreRQ, NGetRQ
from dicomtwist.errors import InvalidMessage
from dicomtwist.ul.framing import Fragment, Framer
from dicomtwist.ul.pdu import PDataTF
from tests.dimse.test_messages import any_message

ECHO = CEchoRQ(message_id=1)
FIND = CFindRQ(message_id=2, affected_sop_class_uid="1.2.3", has_dataset=True)

COMMAND, DATA = 1, 0
LAST = 2


class Recorder:
    """A user that records its messages."""

    def __init__(self):
        self.received = []
        self.data = []

    def message_received(self, context_id, message):
        self.received.append((context_id, message))

    def dataset_fragment_received(self, data):
        self.data.append(data)

    def dataset_received(self):
        self.received.append(b"".join(self.data))
        self.data.clear()


def fragment(context_id, control, data, ends=True):
    return Fragment(context_id, control, memoryview(data), ends)


def receiver(contexts=(1, 3), limit=None):
    user = Recorder()
    return user, MessageReceiver(user, contexts, limit)


def pdus(buffers):
    """Return the P-DATA-TF PDUs in *buffers*."""
    stream = b"".join(buffers)
    result = []
    while stream:
        length = 6 + int.from_bytes(stream[2:6], "big")
        assert stream[0] == 4
        result.append(PDataTF.decode(memoryview(stream[6:length])))
        stream = stream[length:]
    return result


class ReceiveTests(unittest.TestCase):
    def test_a_message_without_data_set(self):
        user, messages = receiver()
        messages.receive(fragment(1, COMMAND | LAST, ECHO.encode()))
        self.assertEqual(user.received, [(1, ECHO)])
        self.assertFalse(messages.mid_message)

    def test_a_message_with_data_set(self):
        user, messages = receiver()
        messages.receive(fragment(3, COMMAND | LAST, FIND.encode()))
        self.assertTrue(messages.mid_message)
        messages.receive(fragment(3, DATA, b"one"))
        messages.receive(fragment(3, DATA | LAST, b"two", ends=False))
        self.assertEqual(user.received, [(3, FIND)])
        messages.receive(fragment(3, DATA | LAST, b"three"))
        self.assertEqual(user.received, [(3, FIND), b"onetwothree"])
        self.assertFalse(messages.mid_message)

    def test_data_is_handed_on_as_it_came(self):
        user, messages = receiver()
        messages.receive(fragment(3, COMMAND | LAST, FIND.encode()))
        piece = fragment(3, DATA, b"piece")
        messages.receive(piece)
        self.assertIs(user.data[0], piece.data)

    def test_a_command_in_pieces(self):
        encoded = FIND.encode()
        user, messages = receiver()
        for place, byte in enumerate(encoded):
            self.assertEqual(user.received, [])
            last = place == len(encoded) - 1
            messages.receive(fragment(1, COMMAND | LAST if last else COMMAND, bytes((byte,))))
            self.assertTrue(messages.mid_message)
        self.assertEqual(user.received, [(1, FIND)])

    def test_a_command_that_reads_cut(self):
        encoded = ECHO.encode()
        user, messages = receiver()
        messages.receive(fragment(1, COMMAND | LAST, encoded[:10], ends=False))
        messages.receive(fragment(1, COMMAND | LAST, encoded[10:20], ends=False))
        messages.receive(fragment(1, COMMAND | LAST, encoded[20:]))
        self.assertEqual(user.received, [(1, ECHO)])

    def test_an_empty_data_set(self):
        user, messages = receiver()
        messages.receive(fragment(3, COMMAND | LAST, FIND.encode()))
        messages.receive(fragment(3, DATA | LAST, b""))
        self.assertEqual(user.received, [(3, FIND), b""])
        self.assertFalse(messages.mid_message)

    def test_an_empty_end(self):
        user, messages = receiver()
        encoded = FIND.encode()
        messages.receive(fragment(3, COMMAND, encoded))
        messages.receive(fragment(3, COMMAND | LAST, b""))
        messages.receive(fragment(3, DATA, b"data"))
        messages.receive(fragment(3, DATA | LAST, b""))
        self.assertEqual(user.received, [(3, FIND), b"data"])

    def test_reserved_bits_are_not_tested(self):
        user, messages = receiver()
        messages.receive(fragment(1, 0xFC | COMMAND | LAST, ECHO.encode()))
        self.assertEqual(user.received, [(1, ECHO)])

    def test_one_message_after_another_on_any_context(self):
        user, messages = receiver()
        for context_id in 1, 3, 3, 1:
            messages.receive(fragment(context_id, COMMAND | LAST, FIND.encode()))
            messages.receive(fragment(context_id, DATA | LAST, b"x"))
        self.assertEqual([what for what in user.received if what != b"x"], [(n, FIND) for n in (1, 3, 3, 1)])

    def test_contexts_may_be_set_later(self):
        user, messages = receiver(())
        messages.contexts = {5: "accepted"}
        messages.receive(fragment(5, COMMAND | LAST, ECHO.encode()))
        self.assertEqual(user.received, [(5, ECHO)])

    def test_the_receiver_is_ready_when_the_user_is_called(self):
        """In a call, a user may examine the receiver, or fail, without harm to the next message."""
        seen = []

        class Looker(Recorder):
            def message_received(self, context_id, message):
                seen.append(messages.mid_message)

            def dataset_received(self):
                seen.append(messages.mid_message)

        messages = MessageReceiver(Looker(), (1,))
        messages.receive(fragment(1, COMMAND | LAST, ECHO.encode()))
        messages.receive(fragment(1, COMMAND | LAST, FIND.encode()))
        messages.receive(fragment(1, DATA | LAST, b"x"))
        self.assertEqual(seen, [False, True, False])


class RuleTests(unittest.TestCase):
    def assert_refused(self, words, *fragments, limit=None, contexts=(1, 3)):
        user, messages = receiver(contexts, limit)
        for piece in fragments[:-1]:
            messages.receive(piece)
        before = list(user.received)
        with self.assertRaisesRegex(InvalidMessage, words):
            messages.receive(fragments[-1])
        self.assertEqual(user.received, before)

    def test_contexts_that_were_not_accepted(self):
        for context_id in 0, 2, 5, 255:
            with self.subTest(context_id):
                self.assert_refused("was not accepted", fragment(context_id, COMMAND | LAST, ECHO.encode()))
                self.assert_refused("was not accepted", fragment(context_id, DATA | LAST, b"data"))

    def test_context_0_after_a_message(self):
        self.assert_refused(
            "presentation context ID 0 was not accepted",
            fragment(1, COMMAND | LAST, ECHO.encode()),
            fragment(0, COMMAND | LAST, ECHO.encode()),
        )

    def test_context_that_changes_inside_a_message(self):
        begin = fragment(1, COMMAND | LAST, FIND.encode())
        for other in 3, 0, 7:
            words = f"presentation context ID {other} inside a message on context 1"
            self.assert_refused(words, begin, fragment(other, DATA | LAST, b"data"))
            self.assert_refused(words, begin, fragment(1, DATA, b"da"), fragment(other, DATA | LAST, b"ta"))
            self.assert_refused(words, fragment(1, COMMAND, b"ab"), fragment(other, COMMAND | LAST, b"cd"))

    def test_data_set_before_command(self):
        self.assert_refused("without a command set", fragment(1, DATA | LAST, b"data"))
        self.assert_refused(
            "without a command set", fragment(1, COMMAND, ECHO.encode()[:20]), fragment(1, DATA, b"data")
        )

    def test_data_set_that_was_not_announced(self):
        self.assert_refused(
            "without a command set",
            fragment(1, COMMAND | LAST, ECHO.encode()),
            fragment(1, DATA | LAST, b"data"),
        )

    def test_command_inside_a_data_set(self):
        begin = fragment(1, COMMAND | LAST, FIND.encode())
        self.assert_refused("inside a data set", begin, fragment(1, COMMAND | LAST, ECHO.encode()))
        self.assert_refused(
            "inside a data set", begin, fragment(1, DATA, b"da"), fragment(1, COMMAND | LAST, ECHO.encode())
        )

    def test_malformed_commands(self):
        self.assert_refused("without Command Field", fragment(1, COMMAND | LAST, b""))
        self.assert_refused("remain", fragment(1, COMMAND | LAST, ECHO.encode()[:-1]))

    @given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 255), st.binary(max_size=20), st.booleans())))
    def test_arbitrary_fragments(self, pieces):
        _, messages = receiver(limit=100)
        try:
            for piece in pieces:
                messages.receive(fragment(*piece))
        except InvalidMessage:
            pass


class LimitTests(unittest.TestCase):
    def test_command_in_one_piece(self):
        room = MAX_COMMAND_LENGTH - len(NGetRQ(attribute_identifier_list=()).encode())
        longest = NGetRQ(attribute_identifier_list=(0x00100010,) * (room // 4))
        self.assertGreater(len(longest.encode()), MAX_COMMAND_LENGTH - 4)
        user, messages = receiver()
        messages.receive(fragment(1, COMMAND | LAST, longest.encode()))
        self.assertEqual(user.received, [(1, longest)])
        with self.assertRaisesRegex(InvalidMessage, "more than 65536 bytes"):
            messages.receive(fragment(1, COMMAND | LAST, longest.encode() + bytes(8)))

    def test_command_that_never_ends(self):
        _, messages = receiver()
        for _ in range(MAX_COMMAND_LENGTH // 1024):
            messages.receive(fragment(1, COMMAND, bytes(1024)))
        with self.assertRaisesRegex(InvalidMessage, "more than 65536 bytes"):
            messages.receive(fragment(1, COMMAND, b"x"))

    def test_the_length_of_a_command_begins_anew(self):
        user, messages = receiver()
        encoded = ECHO.encode()
        for _ in range(MAX_COMMAND_LENGTH // len(encoded) + 1):
            messages.receive(fragment(1, COMMAND, encoded[:20]))
            messages.receive(fragment(1, COMMAND | LAST, encoded[20:]))
        self.assertTrue(all(what == (1, ECHO) for what in user.received))

    def test_data_set(self):
        user, messages = receiver(limit=10)
        for _ in range(3):
            messages.receive(fragment(1, COMMAND | LAST, FIND.encode()))
            messages.receive(fragment(1, DATA, b"12345"))
            messages.receive(fragment(1, DATA | LAST, b"67890"))
        self.assertEqual(user.received, [(1, FIND), b"1234567890"] * 3)
        messages.receive(fragment(1, COMMAND | LAST, FIND.encode()))
        messages.receive(fragment(1, DATA, b"1234567890"))
        with self.assertRaisesRegex(InvalidMessage, "more than 10 bytes"):
            messages.receive(fragment(1, DATA, b"1"))
        self.assertEqual(user.data, [b"1234567890"])

    def test_a_limit_of_nothing(self):
        _, messages = receiver(limit=0)
        messages.receive(fragment(1, COMMAND | LAST, FIND.encode()))
        with self.assertRaisesRegex(InvalidMessage, "more than 0 bytes"):
            messages.receive(fragment(1, DATA, b"1"))


class PayloadTests(unittest.TestCase):
    def test_payload_length(self):
        for maximum, payload in (
            (0, MAX_SEND_LENGTH - 6),
            (16384, 16378),
            (16383, 16376),
            (8, 2),
            (9, 2),
            (10, 4),
            (1, 2),
            (MAX_SEND_LENGTH, MAX_SEND_LENGTH - 6),
            (MAX_SEND_LENGTH + 1, MAX_SEND_LENGTH - 6),
            (0xFFFFFFFF, MAX_SEND_LENGTH - 6),
        ):
            self.assertEqual(payload_length(maximum), payload, maximum)

    @given(st.integers(8, 1 << 18))
    def test_pdus_fit(self, maximum):
        payload = payload_length(maximum)
        self.assertEqual(payload % 2, 0)
        self.assertLessEqual(payload + 6, maximum)


class EncodeTests(unittest.TestCase):
    def test_known_bytes(self):
        self.assertEqual(
            b"".join(encode_pdata(5, True, b"abcdef", 4)),
            b"\4\0\0\0\0\x0a\0\0\0\6\5\1abcd\4\0\0\0\0\x08\0\0\0\4\5\3ef",
        )
        self.assertEqual(b"".join(encode_pdata(5, False, b"ab", 4)), b"\4\0\0\0\0\x08\0\0\0\4\5\2ab")
        self.assertEqual(b"".join(encode_pdata(5, False, b"", 4)), b"\4\0\0\0\0\x06\0\0\0\2\5\2")

    def test_more_to_come(self):
        self.assertEqual(
            [pdu.pdvs[0].control for pdu in pdus(encode_pdata(1, False, b"abcdef", 2, last=False))], [0] * 3
        )
        self.assertEqual(
            [pdu.pdvs[0].control for pdu in pdus(encode_pdata(1, True, b"abcdef", 2, last=False))], [1] * 3
        )

    def test_data_is_not_copied(self):
        data = bytes(1000)
        for buffer in encode_pdata(1, False, data, 100)[1::2]:
            assert isinstance(buffer, memoryview)
            self.assertIs(buffer.obj, data)
        self.assertIs(encode_pdata(1, False, data, 1000)[1], data)

    @given(st.binary(max_size=200), st.integers(1, 60), st.booleans(), st.booleans())
    def test_fragments(self, data, half, command, last):
        data = data[: len(data) & ~1]
        payload = 2 * half
        encoded = pdus(encode_pdata(7, command, data, payload, last))
        sent = [pdv for pdu in encoded for pdv in pdu.pdvs]
        self.assertEqual(len(sent), len(encoded))
        self.assertEqual(b"".join(pdv.data for pdv in sent), data)
        for place, pdv in enumerate(sent):
            self.assertEqual(pdv.context_id, 7)
            self.assertEqual(bool(pdv.control & COMMAND), command)
            self.assertEqual(bool(pdv.control & LAST), last and place == len(sent) - 1)
            self.assertEqual(len(pdv.data) % 2, 0)
            self.assertLessEqual(len(pdv.data), payload)
        # As few PDUs as possible.
        self.assertEqual(len(sent), max(1, -(-len(data) // payload)))


class RoundTripTests(unittest.TestCase):
    """An encoded message is the same after it has passed through framing and receiver."""

    def carry(self, message, pieces, payload, size):
        """Send *message* with *pieces* as its data set in reads of *size*; return the received message."""
        buffers = encode_pdata(1, True, message.encode(), payload)
        for place, piece in enumerate(pieces):
            buffers += encode_pdata(1, False, piece, payload, place == len(pieces) - 1)
        stream = b"".join(buffers)
        user, messages = receiver()
        framer = Framer(payload + 6)
        for place in range(0, len(stream), size):
            for frame in framer.feed(stream[place : place + size]):
                messages.receive(frame)
        self.assertFalse(messages.mid_message or framer.mid_pdu)
        return user.received

    def test_many_payload_sizes(self):
        request = CStoreRQ(
            message_id=9,
            affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            affected_sop_instance_uid="1.2.3",
            has_dataset=True,
        )
        data = bytes(range(256)) * 2
        for payload in (2, 4, 6, 10, 64, 98, 100, 102, 254, 510, 512, 514, 16378):
            for size in 1, 7, 100, 1 << 20:
                self.assertEqual(self.carry(request, [data], payload, size), [(1, request), data])

    def test_empty_data_set(self):
        self.assertEqual(self.carry(FIND, [b""], 100, 5), [(1, FIND), b""])

    def test_an_empty_end(self):
        self.assertEqual(self.carry(FIND, [b"data", b""], 100, 5), [(1, FIND), b"data"])

    @given(
        any_message,
        st.lists(
            st.binary(min_size=2, max_size=60).map(lambda data: data[: len(data) & ~1]),
            min_size=1,
            max_size=4,
        ),
        st.integers(1, 50),
        st.integers(1, 200),
    )
    def test_any(self, message, pieces, half, size):
        expected: list[Any] = [(1, message)]
        if message.has_dataset:
            expected.append(b"".join(pieces))
        else:
            pieces = []
        self.assertEqual(self.carry(message, pieces, 2 * half, size), expected)

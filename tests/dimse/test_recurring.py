"""Decoding of requests whose beginning is known."""

import struct
import unittest
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.dimse import recurring
from dicomtwist.dimse.messages import CEchoRQ, CEchoRSP, CFindRQ, CStoreRQ, decode_message
from dicomtwist.dimse.recurring import decode_recurring
from dicomtwist.errors import InvalidMessage

CT = "1.2.840.10008.5.1.4.1.1.2"

uids = st.text(alphabet="0123456789.", min_size=1, max_size=64)
numbers = st.integers(0, 0xFFFF)
stores = st.builds(
    CStoreRQ,
    message_id=numbers,
    affected_sop_class_uid=st.one_of(st.just(CT), uids),
    affected_sop_instance_uid=uids,
    priority=numbers,
    has_dataset=st.booleans(),
    move_originator_application_entity_title=st.one_of(st.none(), st.just("MOVER")),
    move_originator_message_id=st.one_of(st.none(), numbers),
)
echoes = st.builds(CEchoRQ, message_id=numbers, affected_sop_class_uid=st.one_of(st.just("1.2.840.10008.1.1"), uids))


def outcome(decode, data):
    """Return the message in *data* with what is tolerated in it, or the words of the error."""
    try:
        message = decode(data)
    except InvalidMessage as error:
        return str(error)
    return type(message), message, message.tolerated


class Decoding(unittest.TestCase):
    def setUp(self):
        for known in (recurring._stores, recurring._echoes):
            known.clear()
            self.addCleanup(known.clear)

    @given(st.lists(st.one_of(stores, echoes, st.builds(CFindRQ, message_id=numbers, affected_sop_class_uid=uids))))
    def test_as_any_message(self, requests):
        """Each request is decoded to what decode_message returns, whether its beginning is known or not."""
        for request in requests:
            data = request.encode()
            for _ in range(2):
                self.assertEqual(outcome(decode_recurring, data), outcome(decode_message, data))
                self.assertEqual(decode_recurring(data), request)

    @given(
        st.one_of(stores, echoes),
        st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=4),
        st.integers(-3, 3),
    )
    def test_changed_bytes(self, request, changes, longer):
        """A request that differs anywhere from one with a known beginning is decoded as if nothing was known."""
        data = bytearray(request.encode())
        decode_recurring(bytes(data))
        decode_recurring(CStoreRQ(affected_sop_class_uid=CT, affected_sop_instance_uid="1.2").encode())
        for place, value in changes:
            data[place % len(data)] = value
        changed = bytes(data[:longer]) if longer < 0 else bytes(data) + bytes(longer)
        for _ in range(2):
            self.assertEqual(outcome(decode_recurring, changed), outcome(decode_message, changed))

    @given(st.binary(max_size=120))
    def test_noise(self, data):
        self.assertEqual(outcome(decode_recurring, data), outcome(decode_message, data))

    def test_odd_uids(self):
        """SOP Instance UIDs that are encoded wrongly are reported as always, also behind a known beginning."""
        data = CStoreRQ(message_id=7, affected_sop_class_uid=CT, affected_sop_instance_uid="1.2.3").encode()
        decode_recurring(data)
        self.assertIn(data[:64], recurring._stores)
        for value in (
            b"1.2.3\0",
            b"1.2.3 ",
            b"1.2\0\0\0",
            b"\0\0\0\0\0\0",
            b"      ",
            b"1.2\xe43\0",
            b"",
            b"1.2.3 \0\0",
        ):
            odd = data[:-10] + struct.pack("<L", len(value)) + value
            self.assertEqual(outcome(decode_recurring, odd), outcome(decode_message, odd), value)

    def test_all_kinds_are_learned(self):
        """The second request of a kind with a UID of this length needs no full decoding."""
        store = CStoreRQ(message_id=1, affected_sop_class_uid=CT, affected_sop_instance_uid="1.2", has_dataset=True)
        for request in (store, CEchoRQ(message_id=1)):
            decode_recurring(request.encode())
        store.message_id, store.affected_sop_instance_uid, store.priority = 0xABCD, "1.34", 2
        with patch("dicomtwist.dimse.recurring.decode_message", self.fail):
            self.assertEqual(decode_recurring(store.encode()), store)
            self.assertEqual(decode_recurring(CEchoRQ(message_id=0x1234).encode()), CEchoRQ(message_id=0x1234))

    def test_other_messages_are_not_learned(self):
        decode_recurring(CFindRQ(message_id=1, affected_sop_class_uid=CT).encode())
        decode_recurring(CEchoRSP(message_id_being_responded_to=1, affected_sop_class_uid=CT).encode())
        self.assertEqual((recurring._stores, recurring._echoes), ({}, {}))

    def test_bound(self):
        """A peer that sends many SOP Class UIDs does not fill the memory."""
        for number in range(3 * recurring.MAX_BEGINNINGS):
            uid = f"1.2.{number}"
            decode_recurring(CEchoRQ(message_id=1, affected_sop_class_uid=uid).encode())
            decode_recurring(CStoreRQ(message_id=1, affected_sop_class_uid=uid, affected_sop_instance_uid="1").encode())
            self.assertLessEqual(len(recurring._echoes), recurring.MAX_BEGINNINGS)
            self.assertLessEqual(len(recurring._stores), recurring.MAX_BEGINNINGS)


if __name__ == "__main__":
    unittest.main()

"""The seven PDUs (PS3.8 9.3): bytes written by hand, round trips, limits, wrong lengths."""

import unittest

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.errors import InvalidPDU
from dicomtwist.ul.items import AnsweredContext, ProposedContext, UserIdentity, UserInformation, encode_item
from dicomtwist.ul.pdu import (
    PDU,
    PDU_TYPES,
    PDV,
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    PDataTF,
    decode_pdu,
)
from tests.ul.test_items import answered_contexts, proposed_contexts, uids, user_informations

#: PS3.8 9.3.2: an association request for an echo from "ECHOSCU" to "ANY-SCP", field by field.
ECHO_RQ = (
    b"\x01\x00\x00\x00\x00\xb0"  # type, reserved, length 176
    b"\x00\x01\x00\x00"  # protocol version, reserved
    b"ANY-SCP         "
    b"ECHOSCU         " + bytes(32) + b"\x10\x00\x00\x151.2.840.10008.3.1.1.1"
    b"\x20\x00\x00\x2e\x01\x00\x00\x00"  # context 1
    b"\x30\x00\x00\x111.2.840.10008.1.1"
    b"\x40\x00\x00\x111.2.840.10008.1.2"
    b"\x50\x00\x00\x1d"
    b"\x51\x00\x00\x04\x00\x00\x40\x00"  # maximum length 16384
    b"\x52\x00\x00\x071.2.3.4"
    b"\x55\x00\x00\x06TWIST1"
)

#: PS3.8 9.3.3: the answer to it.
ECHO_AC = (
    b"\x02\x00\x00\x00\x00\x9b"
    b"\x00\x01\x00\x00"
    b"ANY-SCP         "
    b"ECHOSCU         " + bytes(32) + b"\x10\x00\x00\x151.2.840.10008.3.1.1.1"
    b"\x21\x00\x00\x19\x01\x00\x00\x00"  # context 1, accepted
    b"\x40\x00\x00\x111.2.840.10008.1.2"
    b"\x50\x00\x00\x1d"
    b"\x51\x00\x00\x04\x00\x00\x40\x00"
    b"\x52\x00\x00\x071.2.3.4"
    b"\x55\x00\x00\x06TWIST1"
)

INFORMATION = UserInformation(16384, "1.2.3.4", "TWIST1")

KNOWN: list[tuple[PDU, bytes]] = [
    (
        AAssociateRQ(
            "ANY-SCP",
            "ECHOSCU",
            (ProposedContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),),
            INFORMATION,
        ),
        ECHO_RQ,
    ),
    (
        AAssociateAC("ANY-SCP", "ECHOSCU", (AnsweredContext(1, 0, "1.2.840.10008.1.2"),), INFORMATION),
        ECHO_AC,
    ),
    (AAssociateRJ(1, 2, 3), b"\x03\x00\x00\x00\x00\x04\x00\x01\x02\x03"),
    (PDataTF((PDV(5, 3, b"ab"),)), b"\x04\x00\x00\x00\x00\x08\x00\x00\x00\x04\x05\x03ab"),
    (AReleaseRQ(), b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"),
    (AReleaseRP(), b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"),
    (AAbort(2, 5), b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x05"),
]


def decode(pdu):
    """Decode the bytes of a complete PDU, after a check of the length in its header."""
    assert int.from_bytes(pdu[2:6], "big") == len(pdu) - 6
    return decode_pdu(pdu[0], memoryview(pdu)[6:])


def associate(items, pdu_type=1):
    """Return the bytes of an A-ASSOCIATE PDU with *items* as its variable field."""
    body = b"\x00\x01\x00\x00" + b"SCP".ljust(16) + b"SCU".ljust(16) + bytes(32) + items
    return bytes((pdu_type, 0)) + len(body).to_bytes(4, "big") + body


titles = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x85\xa0\x1c\x1d\x1e\x1f"),
    max_size=16,
)
versions = st.integers(0, 0xFFFF)
bytes_of_one = st.integers(0, 255)


def associate_pdus(cls, contexts):
    return st.builds(
        cls,
        titles,
        titles,
        st.lists(contexts, max_size=8, unique_by=lambda context: context.context_id).map(tuple),
        user_informations,
        uids,
        versions,
    )


pdus = st.one_of(
    associate_pdus(AAssociateRQ, proposed_contexts),
    associate_pdus(AAssociateAC, answered_contexts),
    st.builds(AAssociateRJ, bytes_of_one, bytes_of_one, bytes_of_one),
    st.builds(PDataTF, st.lists(st.builds(PDV, bytes_of_one, bytes_of_one, st.binary(max_size=99))).map(tuple)),
    st.just(AReleaseRQ()),
    st.just(AReleaseRP()),
    st.builds(AAbort, bytes_of_one, bytes_of_one),
)


class KnownBytesTests(unittest.TestCase):
    def test_encode(self):
        for pdu, encoded in KNOWN:
            with self.subTest(type(pdu).__name__):
                self.assertEqual(pdu.encode(), encoded)

    def test_decode(self):
        for pdu, encoded in KNOWN:
            with self.subTest(type(pdu).__name__):
                self.assertEqual(decode(encoded), pdu)

    def test_all_seven_are_here(self):
        self.assertEqual([type(pdu) for pdu, _ in KNOWN], [PDU_TYPES[number] for number in range(1, 8)])
        self.assertEqual([cls.pdu_type for cls in PDU_TYPES.values()], list(range(1, 8)))

    def test_reserved_fields_are_not_tested(self):
        self.assertEqual(decode(b"\x03\xff\x00\x00\x00\x04\xff\x01\x02\x03"), AAssociateRJ(1, 2, 3))
        self.assertEqual(decode(b"\x05\xff\x00\x00\x00\x04\xff\xff\xff\xff"), AReleaseRQ())
        self.assertEqual(decode(b"\x07\xff\x00\x00\x00\x04\xff\xff\x02\x05"), AAbort(2, 5))
        noisy = bytearray(ECHO_RQ)
        noisy[8:10] = b"\xff\xff"
        noisy[42:74] = b"\xff" * 32
        self.assertEqual(decode(bytes(noisy)), decode(ECHO_RQ))


class ToldTests(unittest.TestCase):
    """Each PDU has a description of the deviations that were tolerated in it."""

    def test_nothing(self):
        for pdu, encoded in KNOWN[:2]:
            self.assertEqual(decode(encoded).tolerated, ())
            self.assertEqual(getattr(pdu, "tolerated", None), ())

    def test_in_order(self):
        pdu = decode(associate(encode_item(0x10, b"1.2\0") + UserInformation(0, "1.2", "X" * 17).encode()))
        self.assertEqual(
            pdu.tolerated, ("UIDs that are padded", "an implementation version name of more than 16 characters")
        )
        self.assertEqual(
            pdu, decode(associate(encode_item(0x10, b"1.2") + UserInformation(0, "1.2", "X" * 17).encode()))
        )

    def test_titles(self):
        """The titles in an A-ASSOCIATE-AC are not tested (PS3.8 9.3.3)."""
        for start in 10, 26:
            for encoded, told in (ECHO_RQ, ("AE titles that are padded with NULs",)), (ECHO_AC, ()):
                pdu = bytearray(encoded)
                pdu[start : start + 16] = b"SCP".ljust(16, b"\0")
                self.assertEqual(decode(bytes(pdu)).tolerated, told)


class TitleTests(unittest.TestCase):
    def test_padding_is_not_significant(self):
        for raw in (
            b"SCP             ",
            b"  SCP           ",
            b"SCP\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b" SCP \0          ",
        ):
            pdu = bytearray(ECHO_RQ)
            pdu[10:26] = raw
            self.assertEqual(decode(bytes(pdu)).called_ae_title, "SCP")

    def test_sixteen_characters(self):
        pdu = AAssociateRQ("A" * 16, "B" * 16)
        self.assertEqual(decode(pdu.encode()), AAssociateRQ("A" * 16, "B" * 16))
        for called, calling in (("A" * 17, "B"), ("A", "B" * 17)):
            with self.assertRaisesRegex(ValueError, "17 characters"):
                AAssociateRQ(called, calling).encode()
            with self.assertRaisesRegex(ValueError, "17 characters"):
                AAssociateAC(called, calling).encode()

    def test_any_bytes_are_kept_for_others_to_judge(self):
        pdu = bytearray(ECHO_RQ)
        pdu[10:26] = b"\x1b[2J\r\n../\xff\xfe\x00\x01\x02\x03\x04"
        self.assertEqual(decode(bytes(pdu)).called_ae_title.encode("latin-1"), bytes(pdu[10:26]))


class RoundTripTests(unittest.TestCase):
    @given(pdus)
    def test_round_trip(self, pdu):
        self.assertEqual(decode(pdu.encode()), pdu)


class LieTests(unittest.TestCase):
    """For any bytes, decoding returns a PDU or raises InvalidPDU."""

    def test_unknown_types(self):
        for pdu_type in {*range(256)} - set(range(1, 8)):
            with self.assertRaises(InvalidPDU) as caught:
                decode_pdu(pdu_type, memoryview(b"\0\0\0\0"))
            self.assertEqual(caught.exception.reason, 1)

    def test_short_and_long_bodies(self):
        for pdu_type in 3, 5, 6, 7:
            for length in 0, 3, 5, 1000:
                with self.assertRaises(InvalidPDU) as caught:
                    decode_pdu(pdu_type, memoryview(bytes(length)))
                self.assertEqual(caught.exception.reason, 6)
        for pdu_type in 1, 2:
            for length in 0, 4, 67:
                with self.assertRaises(InvalidPDU):
                    decode_pdu(pdu_type, memoryview(bytes(length)))

    def test_an_association_without_items(self):
        for pdu_type in 1, 2:
            pdu = decode(associate(b"", pdu_type))
            self.assertEqual(pdu.application_context_name, "")
            self.assertEqual(pdu.presentation_contexts, ())
            self.assertEqual(pdu.user_information, UserInformation())

    def test_each_truncation(self):
        for encoded in ECHO_RQ, ECHO_AC:
            whole = decode(encoded)
            for length in range(6, len(encoded)):
                try:
                    pdu = decode_pdu(encoded[0], memoryview(encoded)[6:length])
                except InvalidPDU:
                    continue
                self.assertNotEqual(pdu, whole)  # the truncation is between two items

    def test_pdv_lengths(self):
        for pdvs in (
            b"\0",
            b"\0\0\0\2\1",
            b"\0\0\0\0\1\3",
            b"\0\0\0\1\1\3",
            b"\0\0\0\5\1\3ab",
            b"\xff\xff\xff\xff\1\3ab",
            b"\0\0\0\4\1\3ab\0",
        ):
            with self.subTest(pdvs=pdvs), self.assertRaises(InvalidPDU):
                decode_pdu(4, memoryview(pdvs))

    @given(st.integers(0, 255), st.binary(max_size=300))
    def test_arbitrary_bytes(self, pdu_type, body):
        try:
            decode_pdu(pdu_type, memoryview(body))
        except InvalidPDU:
            pass

    @given(st.sampled_from([1, 2]), st.binary(max_size=300))
    def test_arbitrary_items(self, pdu_type, items):
        try:
            decode(associate(items, pdu_type))
        except InvalidPDU:
            pass

    @given(pdus, st.data())
    def test_damaged_pdus(self, pdu, data):
        encoded = bytearray(pdu.encode())
        for _ in range(data.draw(st.integers(1, 4))):
            where = data.draw(st.integers(6, len(encoded) - 1)) if len(encoded) > 6 else 0
            encoded[where] = data.draw(st.integers(0, 255))
        end = data.draw(st.integers(6, len(encoded)))
        try:
            decode_pdu(pdu.pdu_type, memoryview(encoded)[6:end])
        except InvalidPDU:
            pass


class SecretTests(unittest.TestCase):
    def test_repr_keeps_them(self):
        identity = UserIdentity(2, b"the name", b"the passcode", True)
        request = AAssociateRQ("SCP", "SCU", (), UserInformation(user_identity=identity))
        answer = AAssociateAC("SCP", "SCU", (), UserInformation(user_identity_response=b"the ticket"))
        for pdu in request, answer, decode(request.encode()), decode(answer.encode()):
            for text in repr(pdu), str(pdu), f"{pdu.user_information}":
                self.assertNotIn("the ", text)
        self.assertEqual(decode(request.encode()).user_information.user_identity, identity)

    def test_no_error_holds_them(self):
        information = UserInformation(user_identity=UserIdentity(2, b"the name", b"the passcode"))
        encoded = AAssociateRQ("SCP", "SCU", (), information).encode()
        for length in range(6, len(encoded)):
            try:
                decode_pdu(1, memoryview(encoded)[6:length])
            except InvalidPDU as error:
                self.assertNotIn("the n", str(error))
                self.assertNotIn("the p", str(error))


class AbortTests(unittest.TestCase):
    def test_reason_text(self):
        self.assertEqual(AAbort(2, 1).reason_text, "unrecognised PDU")
        self.assertEqual(AAbort(2, 99).reason_text, "unknown reason 99")

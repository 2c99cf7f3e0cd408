"""The items of A-ASSOCIATE-RQ and -AC (PS3.8 9.3.2 and 9.3.3, PS3.7 D.3.3)."""

import tracemalloc
import unittest

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.errors import InvalidPDU
from dicomtwist.ul import items as ul_items
from dicomtwist.ul.items import (
    AnsweredContext,
    AsyncOperationsWindow,
    ProposedContext,
    RoleSelection,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserIdentity,
    UserInformation,
    decode_text,
    decode_user_information,
    decode_variable_items,
    encode_item,
)

uids = st.text("0123456789.", min_size=1, max_size=64)
context_ids = st.integers(0, 127).map(lambda number: 2 * number + 1)
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=16)
u16 = st.integers(0, 0xFFFF)

proposed_contexts = st.builds(ProposedContext, context_ids, uids, st.lists(uids, max_size=6).map(tuple))
answered_contexts = st.one_of(
    st.builds(AnsweredContext, context_ids, st.just(0), uids),
    st.builds(AnsweredContext, context_ids, st.integers(1, 255)),
)
user_identities = st.builds(
    UserIdentity, st.integers(0, 255), st.binary(max_size=40), st.binary(max_size=40), st.booleans()
)
user_informations = st.builds(
    UserInformation,
    maximum_length=st.none() | st.integers(0, 0xFFFFFFFF),
    implementation_class_uid=st.none() | uids,
    implementation_version_name=st.none() | names,
    async_operations=st.none() | st.builds(AsyncOperationsWindow, u16, u16),
    roles=st.lists(st.builds(RoleSelection, uids, st.booleans(), st.booleans()), max_size=3).map(tuple),
    sop_class_extended=st.lists(st.builds(SOPClassExtended, uids, st.binary(max_size=20)), max_size=3).map(tuple),
    sop_class_common_extended=st.lists(
        st.builds(SOPClassCommonExtended, uids, uids, st.lists(uids, max_size=3).map(tuple)), max_size=3
    ).map(tuple),
    user_identity=st.none() | user_identities,
    user_identity_response=st.none() | st.binary(max_size=40),
)


def value_of(item):
    """Return the value after the header of *item*, after a check of its length."""
    assert int.from_bytes(item[2:4], "big") == len(item) - 4
    return memoryview(item)[4:]


def user_information(*sub_items):
    """Return the decoded user information item of these (type, value) pairs."""
    return decode_user_information(memoryview(b"".join(encode_item(*pair) for pair in sub_items)), set())


class RememberedTests(unittest.TestCase):
    """Presentation contexts and role selections that are decoded again, which are remembered if they are short."""

    def test_again(self):
        for syntaxes in (["1.2"], ["1.2\0"], [], ["1.2." + "3" * 60] * 5, ["1.\xe9"]):
            parts = [encode_item(0x30, b"1.2.840"), *(encode_item(0x40, uid.encode("latin-1")) for uid in syntaxes)]
            value = memoryview(b"\5\0\0\0" + b"".join(parts))
            found = []
            for _ in range(3):
                tolerated = {"before"}
                found.append((ProposedContext.decode(value, tolerated), tolerated))
            self.assertEqual(found[1:], found[:1] * 2)
            clean = tuple(uid.rstrip("\0") for uid in syntaxes)
            self.assertEqual(found[0][0], ProposedContext(5, "1.2.840", clean))
            self.assertEqual(len(found[0][1]), 1 + (not syntaxes or syntaxes[0] in ("1.2\0", "1.\xe9")))

    def test_roles_again(self):
        for uid in ("1.2.840", "1.2.840\0", "1." + "2" * 300):
            found = []
            for flags in (b"\0\1", b"\1\0", b"\0\1"):
                tolerated: set[str] = set()
                raw = uid.encode()
                item = encode_item(0x54, len(raw).to_bytes(2, "big") + raw + flags)
                (role,) = decode_user_information(memoryview(item), tolerated).roles
                self.assertEqual(role, RoleSelection(uid.rstrip("\0"), flags == b"\1\0", flags == b"\0\1"))
                found.append(tolerated)
            self.assertEqual(found[1:], found[:1] * 2)
            self.assertEqual("UIDs that are padded" in found[0], uid.endswith("\0"))

    def test_errors_again(self):
        for _ in range(3):
            with self.assertRaises(InvalidPDU):
                ProposedContext.decode(memoryview(b"\5\0\0\0" + encode_item(0x40, b"1.2")), set())
            with self.assertRaises(InvalidPDU):
                user_information((0x54, b"\0\7\x31\1\1"))

    def test_whole_fields(self):
        """The items of a PDU are found again after other PDUs, and whatever was done with the first ones."""
        offers = [
            (0x20, b"\5\0\0\0" + encode_item(0x30, b"1.2.%d\0" % n) + encode_item(0x40, b"1.2")) for n in range(40)
        ]
        for _ in range(2):
            for number, offer in enumerate(offers):
                data = b"".join(encode_item(*item) for item in (offer, (0x50, encode_item(0x51, b"\0\0\1\0"))))
                for _ in range(2):
                    items = decode_variable_items(memoryview(bytearray(data)))
                    self.assertEqual(items.proposed, (ProposedContext(5, f"1.2.{number}", ("1.2",)),))
                    self.assertIn("UIDs that are padded", items.tolerated)
                    self.assertNotIn("added", items.tolerated)
                    items.tolerated.add("added")
                self.assertLessEqual(len(ul_items._fields), ul_items.MAX_REMEMBERED_FIELDS)

    def test_no_secrets_and_nothing_long(self):
        """The identity of a user and the response to it are not kept, nor a PDU that is long."""
        user = encode_item(0x58, b"\2\0\0\4user\0\7pass123")
        response = encode_item(0x59, b"\0\x09secret456")
        long = encode_item(0x52, b"1." * (ul_items.MAX_REMEMBERED_FIELD // 2))
        for sub_item in (user, response, long):
            data = encode_item(0x50, sub_item)
            first, second = (decode_variable_items(memoryview(data)) for _ in range(2))
            self.assertEqual(first, second)
            self.assertNotIn(data, ul_items._fields)

    def test_encoded_again(self):
        """Answers and roles that are equal have equal bytes, and others have others."""
        for uid in ("1.2.840", "1." + "2" * 300):
            for _ in range(2):
                made = {AnsweredContext(n, r, uid).encode() for n in (1, 3) for r in (0, 4)}
                self.assertEqual(len(made), 4)
                decoded = {AnsweredContext.decode(value_of(item), set()).context_id for item in made}
                self.assertEqual(decoded, {1, 3})
                pairs = [(False, True), (True, False), (True, True)]
                information = UserInformation(roles=tuple(RoleSelection(uid, *pair) for pair in pairs))
                self.assertEqual(
                    decode_user_information(value_of(information.encode()), set()).roles, information.roles
                )

    def test_other_bytes(self):
        """A change of any byte counts, also of the ID and of a reserved byte."""
        value = bytearray(b"\5\0\0\0" + encode_item(0x30, b"1.2.840") + encode_item(0x40, b"1.2"))
        first = ProposedContext.decode(memoryview(value), set())
        value[0] = 7
        self.assertEqual(ProposedContext.decode(memoryview(value), set()).context_id, 7)
        value[0], value[2] = 5, 9
        self.assertEqual(ProposedContext.decode(memoryview(value), set()), first)

    def test_memory(self):
        """Peers that propose something else each time do not make the memory grow."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        sizes = []
        for start in range(0, 60_000, 20_000):
            for number in range(start, start + 20_000):
                uid = encode_item(0x30, b"1.2.%d." % number + b"3" * 50)
                ProposedContext.decode(memoryview(b"\5\0\0\0" + uid + encode_item(0x40, b"1.2") * 20), set())
            sizes.append(tracemalloc.get_traced_memory()[0])
        self.assertLess(sizes[-1] - sizes[0], 200_000)
        self.assertLess(sizes[-1], 5_000_000)


class KnownBytesTests(unittest.TestCase):
    """Each sub-item against bytes written by hand."""

    KNOWN = (
        (UserInformation(maximum_length=0x12345678), b"\x51\x00\x00\x04\x12\x34\x56\x78"),
        (UserInformation(implementation_class_uid="1.2.3"), b"\x52\x00\x00\x051.2.3"),
        (
            UserInformation(async_operations=AsyncOperationsWindow(5, 258)),
            b"\x53\x00\x00\x04\x00\x05\x01\x02",
        ),
        (
            UserInformation(roles=(RoleSelection("1.2", True, False), RoleSelection("1.3", False, True))),
            b"\x54\x00\x00\x07\x00\x031.2\x01\x00\x54\x00\x00\x07\x00\x031.3\x00\x01",
        ),
        (UserInformation(implementation_version_name="AB"), b"\x55\x00\x00\x02AB"),
        (
            UserInformation(sop_class_extended=(SOPClassExtended("1.2", b"\1\0\1"),)),
            b"\x56\x00\x00\x08\x00\x031.2\1\0\1",
        ),
        (
            UserInformation(sop_class_common_extended=(SOPClassCommonExtended("1.2", "4.2", ("1.5", "1.66")),)),
            b"\x57\x00\x00\x17\x00\x031.2\x00\x034.2\x00\x0b\x00\x031.5\x00\x041.66",
        ),
        (
            UserInformation(user_identity=UserIdentity(2, b"me", b"key", True)),
            b"\x58\x00\x00\x0b\x02\x01\x00\x02me\x00\x03key",
        ),
        (UserInformation(user_identity_response=b"ok"), b"\x59\x00\x00\x04\x00\x02ok"),
    )

    def test_sub_items(self):
        for information, encoded in self.KNOWN:
            with self.subTest(encoded[0]):
                item = information.encode()
                self.assertEqual(item, b"\x50\x00" + len(encoded).to_bytes(2, "big") + encoded)
                self.assertEqual(decode_user_information(value_of(item), set()), information)

    def test_all_at_once_are_in_the_order_of_their_types(self):
        parts = {}
        for information, _ in self.KNOWN:
            for name in UserInformation.__dataclass_fields__:
                value = getattr(information, name)
                if value not in (None, ()):
                    parts[name] = value
        self.assertEqual(parts.keys(), UserInformation.__dataclass_fields__.keys())
        item = UserInformation(**parts).encode()
        self.assertEqual(item[4:], b"".join(encoded for _, encoded in self.KNOWN))
        self.assertEqual(decode_user_information(value_of(item), set()), UserInformation(**parts))

    def test_presentation_contexts(self):
        self.assertEqual(
            ProposedContext(3, "1.2", ("1.3", "1.4")).encode(),
            b"\x20\x00\x00\x19\x03\x00\x00\x00\x30\x00\x00\x031.2\x40\x00\x00\x031.3\x40\x00\x00\x031.4",
        )
        self.assertEqual(AnsweredContext(3, 4, "1.3").encode(), b"\x21\x00\x00\x0b\x03\x00\x04\x00\x40\x00\x00\x031.3")


class RoundTripTests(unittest.TestCase):
    @given(proposed_contexts)
    def test_proposed_context(self, context):
        self.assertEqual(ProposedContext.decode(value_of(context.encode()), set()), context)

    @given(answered_contexts)
    def test_answered_context(self, context):
        self.assertEqual(AnsweredContext.decode(value_of(context.encode()), set()), context)

    @given(user_informations)
    def test_user_information(self, information):
        self.assertEqual(decode_user_information(value_of(information.encode()), set()), information)


class LimitTests(unittest.TestCase):
    def test_items_that_do_not_fit(self):
        long = "1" * 0x10000
        for item in (
            ProposedContext(1, long, ()),
            ProposedContext(1, "1.2", ("1" * 64,) * 1000),
            AnsweredContext(1, 0, long),
            UserInformation(implementation_class_uid=long),
            UserInformation(roles=(RoleSelection(long),)),
            UserInformation(sop_class_extended=(SOPClassExtended("1.2", bytes(0x10000)),)),
            UserInformation(user_identity=UserIdentity(2, bytes(0x10000))),
            UserInformation(user_identity=UserIdentity(2, bytes(40000), bytes(40000))),
            UserInformation(user_identity_response=bytes(0x10000)),
        ):
            with self.assertRaisesRegex(ValueError, "65535"):
                item.encode()

    def test_the_longest_that_fits(self):
        information = UserInformation(user_identity=UserIdentity(5, bytes(0xFFFF - 4 - 6)))
        self.assertEqual(decode_user_information(value_of(information.encode()), set()), information)

    def test_128_contexts(self):
        contexts = tuple(ProposedContext(number, "1.2", ("1.3",)) for number in range(1, 256, 2))
        encoded = b"".join(context.encode() for context in contexts)
        self.assertEqual(decode_variable_items(memoryview(encoded)).proposed, contexts)


class LieTests(unittest.TestCase):
    """Lengths that do not match the available bytes."""

    def assert_invalid(self, data):
        with self.assertRaises(InvalidPDU):
            decode_variable_items(memoryview(data))

    def test_item_headers(self):
        for data in (
            b"\x10",
            b"\x10\0\0",
            b"\x10\0\0\1",
            b"\x10\0\xff\xff1.2",
            b"\x77\0\0\5abcd",
            b"\x50\0\0\1",
        ):
            with self.subTest(data=data):
                self.assert_invalid(data)

    def test_presentation_contexts(self):
        for value in (
            b"",
            b"\1\0\0",
            b"\1\0\0\0",
            b"\1\0\0\0\x30",
            b"\1\0\0\0\x30\0\0\4abc",
            b"\1\0\0\0\x40\0\0\0",
        ):
            with self.subTest(value=value):
                self.assert_invalid(encode_item(0x20, value))
        for value in b"", b"\1\0\0", b"\1\0\0\0\x40\0\0\4abc":
            with self.subTest(value=value):
                self.assert_invalid(encode_item(0x21, value))

    def test_context_ids(self):
        for number in 0, 2, 254:
            self.assert_invalid(ProposedContext(number, "1.2", ("1.3",)).encode())
            self.assert_invalid(AnsweredContext(number, 0, "1.3").encode())
        self.assert_invalid(ProposedContext(1, "1.2", ("1.3",)).encode() * 2)
        self.assert_invalid(AnsweredContext(1, 0, "1.3").encode() * 2)

    def test_129_contexts(self):
        encoded = b"".join(ProposedContext(2 * n % 256 + 1, "1.2", ("1.3",)).encode() for n in range(129))
        self.assert_invalid(encoded)

    def test_sub_items(self):
        for item_type, value in (
            (0x51, b"\0\0\1"),
            (0x53, b"\0\1\0"),
            (0x54, b"\0\3ab"),
            (0x54, b"\0\2ab"),
            (0x54, b"\0\2ab\1"),
            (0x56, b"\0"),
            (0x56, b"\0\3ab"),
            (0x57, b"\0\1a"),
            (0x57, b"\0\1a\0\1b"),
            (0x57, b"\0\1a\0\1b\0\4\0\1c"),
            (0x57, b"\0\1a\0\1b\0\3\0\2c"),
            (0x57, b"\xff\xffa"),
            (0x58, b""),
            (0x58, b"\1"),
            (0x58, b"\1\0"),
            (0x58, b"\1\0\0\5abcd"),
            (0x58, b"\1\0\0\1a\0"),
            (0x58, b"\2\0\0\1a\xff\xffb"),
            (0x59, b""),
            (0x59, b"\0\2a"),
        ):
            with self.subTest(item_type=hex(item_type), value=value), self.assertRaises(InvalidPDU):
                user_information((item_type, value))

    @given(st.sampled_from(range(0x51, 0x5A)), st.binary(max_size=40))
    def test_arbitrary_sub_items(self, item_type, value):
        try:
            user_information((item_type, value))
        except InvalidPDU:
            pass


class ToleranceTests(unittest.TestCase):
    """Deviations of real peers from the standard, and permitted content without a meaning for this side."""

    def test_unknown_items_are_skipped(self):
        context = ProposedContext(1, "1.2", ("1.3",))
        inside = ProposedContext.decode(
            memoryview(b"\1\0\0\0" + encode_item(0x99, b"?") + encode_item(0x30, b"1.2") + encode_item(0x40, b"1.3")),
            set(),
        )
        self.assertEqual(inside, context)
        items = decode_variable_items(memoryview(encode_item(0x99, b"????") + context.encode() + encode_item(0, b"")))
        self.assertEqual(items.proposed, (context,))
        self.assertEqual(user_information((0x5A, b"?"), (0x51, b"\0\0\0\7"), (0xFF, b"")), UserInformation(7))

    def test_of_repeated_sub_items_the_first_counts(self):
        self.assertEqual(user_information((0x51, b"\0\0\0\1"), (0x51, b"\0\0\0\2")), UserInformation(1))
        twice = UserInformation(3).encode() + UserInformation(4).encode()
        self.assertEqual(decode_variable_items(memoryview(twice)).user_information, UserInformation(3))

    def test_padding(self):
        for padded in b"1.2.3\0", b"1.2.3 ", b"1.2.3\0 \0":
            self.assertEqual(user_information((0x52, padded)).implementation_class_uid, "1.2.3")
        self.assertEqual(decode_text(b"\xe4\xff"), "\xe4\xff")

    def test_a_long_version_name(self):
        self.assertEqual(
            user_information((0x55, b"MORE_THAN_SIXTEEN_CHARACTERS")).implementation_version_name,
            "MORE_THAN_SIXTEEN_CHARACTERS",
        )

    def test_identity_without_secondary_field(self):
        self.assertEqual(user_information((0x58, b"\1\0\0\2me")).user_identity, UserIdentity(1, b"me"))

    def test_rejected_context_with_garbage_for_a_syntax(self):
        self.assertEqual(AnsweredContext.decode(memoryview(b"\1\0\3\0\xff\xff"), set()), AnsweredContext(1, 3))

    def test_transfer_syntaxes_that_are_nothing_but_padding(self):
        """They count as missing, as empty ones do."""
        for padding in (b"", b"\0", b" \0 "):
            value = b"\1\0\0\0" + encode_item(0x30, b"1.2") + encode_item(0x40, padding) + encode_item(0x40, b"1.2.3")
            decoded = ProposedContext.decode(memoryview(value), set())
            self.assertEqual(decoded.transfer_syntaxes, ("1.2.3",))

    def test_contexts_without_transfer_syntaxes(self):
        value = b"\1\0\0\0" + encode_item(0x30, b"1.2") + encode_item(0x40, b"") * 5
        self.assertEqual(ProposedContext.decode(memoryview(value), set()), ProposedContext(1, "1.2", ()))


class ToldTests(unittest.TestCase):
    """Deviations from the standard that are accepted are described, without text of the peer."""

    INFORMATION = UserInformation(0, "1.2.3", "A NAME OF THE 16")

    def tolerated(self, *items: bytes, information: bytes | None = None) -> set[str]:
        data = b"".join(items) + (self.INFORMATION.encode() if information is None else information)
        return decode_variable_items(memoryview(data)).tolerated

    def within(self, *sub_items: tuple[int, bytes]) -> set[str]:
        item = encode_item(0x50, b"".join(encode_item(*pair) for pair in sub_items))
        return self.tolerated(information=item)

    def test_nothing(self):
        name = encode_item(0x10, b"1.2.840.10008.3.1.1.1")
        proposed, answered = ProposedContext(1, "1.2", ("1.3",)).encode(), AnsweredContext(3, 0, "1.3").encode()
        rejected = encode_item(0x21, b"\5\0\3\0\xff\xff")  # its transfer syntax is not decoded
        self.assertEqual(self.tolerated(name, encode_item(0x99, b"?"), proposed, answered, rejected), set())
        for known, _ in KnownBytesTests.KNOWN:
            self.assertLessEqual(
                self.tolerated(information=known.encode()), {"no maximum length", "no implementation class UID"}
            )

    def test_uids(self):
        padded, foreign = {"UIDs that are padded"}, {"UIDs that are not ASCII"}
        for raw, told in (b"1.2\0", padded), (b"1.2 ", padded), (b"1.\xe4", foreign), (b"1.\xe4 \0", padded | foreign):
            for item in (
                encode_item(0x10, raw),
                encode_item(0x20, b"\1\0\0\0" + encode_item(0x30, raw) + encode_item(0x40, b"1.2")),
                encode_item(0x20, b"\1\0\0\0" + encode_item(0x30, b"1.2") + encode_item(0x40, raw)),
                encode_item(0x21, b"\1\0\0\0" + encode_item(0x40, raw)),
            ):
                self.assertEqual(self.tolerated(item), told)
            counted = len(raw).to_bytes(2, "big") + raw
            for sub_item in (
                (0x54, counted + b"\0\1"),
                (0x56, counted + b"?"),
                (0x57, counted * 2 + b"\0\0"),
                (0x57, b"\0\0" * 2 + len(counted).to_bytes(2, "big") + counted),
            ):
                self.assertEqual(self.within((0x51, bytes(4)), (0x52, b"1.2"), sub_item), told)
            self.assertEqual(self.within((0x51, bytes(4)), (0x52, raw)), told)

    def test_what_is_missing_or_too_much(self):
        length, uid = (0x51, bytes(4)), (0x52, b"1.2")
        for sub_items, told in (
            ([uid], "no maximum length"),
            ([length], "no implementation class UID"),
            ([length, uid, (0x55, b"A NAME OF THE 17.")], "an implementation version name of more than 16 characters"),
            ([length, length, uid], "maximum length more than once"),
            ([length, uid, (0x58, b"\1\0\0\2me"), (0x58, b"?")], "user identity more than once"),
            ([length, uid, (0x58, b"\1\0\0\2me")], "a user identity without the length of its second field"),
        ):
            with self.subTest(told):
                self.assertIn(told, self.within(*sub_items))
        self.assertEqual(self.within(length, uid, (0x77, b""), (0x77, b"")), set())
        self.assertEqual(self.tolerated(information=b""), {"no user information"})
        self.assertEqual(self.tolerated(self.INFORMATION.encode()), {"user information more than once"})
        context = encode_item(0x20, b"\1\0\0\0" + encode_item(0x30, b"1.2"))
        self.assertEqual(self.tolerated(context), {"presentation contexts without a transfer syntax"})


class SecretTests(unittest.TestCase):
    def test_repr(self):
        for shown in (
            UserIdentity(2, b"name", b"word"),
            UserInformation(user_identity=UserIdentity(2, b"name", b"word"), user_identity_response=b"word"),
        ):
            self.assertNotIn("b'name'", repr(shown))
            self.assertNotIn("word'", repr(shown))
        self.assertIn("identity_type=2", repr(UserIdentity(2, b"name")))


class MemoryTests(unittest.TestCase):
    """Decoded items need no more than a small multiple of the memory of the received bytes."""

    def multiple_of(self, data, decode):
        view = memoryview(data)
        decode(view)
        tracemalloc.start()
        try:
            kept = decode(view)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.assertIsNotNone(kept)
        return peak / len(data)

    def test_16000_empty_transfer_syntaxes(self):
        value = b"\1\0\0\0" + encode_item(0x30, b"1.2") + encode_item(0x40, b"") * 16000
        self.assertLess(self.multiple_of(encode_item(0x20, value), decode_variable_items), 2)

    def test_many_short_items(self):
        def information(view):
            return decode_user_information(view, set())

        uid_list = b"\0\1a\0\1b\xff\xf0" + b"\0\2ab" * (0xFFF0 // 4)
        for what, item, decode in (
            ("transfer syntaxes", encode_item(0x30, b"1.2") + encode_item(0x40, b"ab") * 10000, None),
            ("roles", encode_item(0x54, b"\0\0\0\0") * 8000, information),
            ("extended", encode_item(0x56, b"\0\0") * 10000, information),
            ("common extended", encode_item(0x57, bytes(6)) * 6000, information),
            ("related", encode_item(0x57, uid_list), information),
            ("unknown", encode_item(0x77, b"") * 16000, information),
        ):
            data = item if decode else encode_item(0x20, b"\1\0\0\0" + item)
            with self.subTest(what):
                self.assertLess(self.multiple_of(data, decode or decode_variable_items), 24)

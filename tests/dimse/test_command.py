"""The command set codec (PS3.7 6.3.1, Annex E) against bytes written by hand and against pydicom."""

import unittest
from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dicomtwist.dimse.command import ELEMENTS, KEYWORDS, Value, decode_command, encode_command
from dicomtwist.errors import InvalidMessage

#: The C-STORE-RQ of a CT image, element by element.
STORE = (
    b"\x00\x00\x00\x00\x04\x00\x00\x00\x6e\x00\x00\x00"  # group length 110
    b"\x00\x00\x02\x00\x1a\x00\x00\x001.2.840.10008.5.1.4.1.1.2\0"
    b"\x00\x00\x00\x01\x02\x00\x00\x00\x01\x00"  # Command Field
    b"\x00\x00\x10\x01\x02\x00\x00\x00\x07\x00"  # Message ID
    b"\x00\x00\x00\x07\x02\x00\x00\x00\x02\x00"  # Priority
    b"\x00\x00\x00\x08\x02\x00\x00\x00\x01\x00"  # Command Data Set Type
    b"\x00\x00\x00\x10\x06\x00\x00\x001.2.3\0"
    b"\x00\x00\x30\x10\x04\x00\x00\x00MOVE"
    b"\x00\x00\x31\x10\x02\x00\x00\x00\x34\x12"
)
STORE_VALUES: dict[str, Value] = {
    "affected_sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
    "command_field": 0x0001,
    "message_id": 7,
    "priority": 2,
    "command_data_set_type": 1,
    "affected_sop_instance_uid": "1.2.3",
    "move_originator_application_entity_title": "MOVE",
    "move_originator_message_id": 0x1234,
}

# No spaces, which are padding at the ends, and no backslash, which separates values.
characters = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="\\")
VALUES: dict[str, st.SearchStrategy[Value]] = {
    "UI": st.text("0123456789.", min_size=1, max_size=64),
    "AE": st.text(characters, min_size=1, max_size=16),
    "LO": st.text(characters, min_size=1, max_size=64),
    "US": st.integers(0, 0xFFFF),
    "AT": st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=6).map(tuple),
}
commands = st.fixed_dictionaries({}, optional={keyword: VALUES[vr] for keyword, (_, vr) in KEYWORDS.items()})


def in_order(values):
    return sorted(values.items(), key=lambda pair: KEYWORDS[pair[0]][0])


def element(number, value, group=0):
    """Return the bytes of one element."""
    return b"".join(part.to_bytes(2, "little") for part in (group, number)) + (len(value).to_bytes(4, "little") + value)


def pydicom_encode(values):
    """Return *values* encoded by pydicom in Implicit VR Little Endian, with the group length in front."""
    dataset = Dataset()
    for keyword, value in values.items():
        number, vr = KEYWORDS[keyword]
        dataset.add_new(number, vr, list(value) if vr == "AT" else value)
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_dataset(buffer, dataset)
    body = buffer.getvalue()
    return element(0, len(body).to_bytes(4, "little")) + body


def pydicom_decode(encoded):
    """Return *encoded* decoded by pydicom, with the keywords of dicomtwist."""
    values = {}
    for item in read_dataset(BytesIO(encoded), is_implicit_VR=True, is_little_endian=True):
        if item.tag.element == 0:
            continue
        keyword, vr = ELEMENTS[item.tag.element]
        value = item.value
        if vr == "AT":
            value = tuple(int(tag) for tag in (value if item.VM != 1 else [value]))
        values[keyword] = value if vr in ("US", "AT") else str(value)
    return values


class KnownBytesTests(unittest.TestCase):
    def test_encode(self):
        self.assertEqual(encode_command(STORE_VALUES.items()), STORE)

    def test_decode(self):
        self.assertEqual(decode_command(STORE), STORE_VALUES)

    def test_none_is_left_out(self):
        self.assertEqual(encode_command([("message_id", None)]), element(0, bytes(4)))

    def test_tags(self):
        encoded = encode_command([("attribute_identifier_list", (0x00100020, 0x7FE00010))])
        self.assertEqual(encoded[12:], element(0x1005, b"\x10\x00\x20\x00\xe0\x7f\x10\x00"))
        self.assertEqual(decode_command(encoded), {"attribute_identifier_list": (0x00100020, 0x7FE00010)})

    def test_padding(self):
        self.assertEqual(
            encode_command([("affected_sop_class_uid", "1.2"), ("move_destination", "ABC")])[12:],
            element(0x0002, b"1.2\0") + element(0x0600, b"ABC "),
        )
        self.assertEqual(
            decode_command(element(0x0600, b"  ABC \0") + element(0x1000, b"1.2 \0") + element(0x0902, b" x \0")),
            {"move_destination": "ABC", "affected_sop_instance_uid": "1.2", "error_comment": " x"},
        )

    def test_what_is_tolerated_is_told(self):
        padded, foreign = "UIDs that are padded with spaces", "UIDs that are not ASCII"
        for raw, text, told in (
            (b"1.2\0", "1.2", []),
            (b"1.23", "1.23", []),
            (b"1.2\0\0\0", "1.2", []),
            (b"\0\0", "", []),
            (b"1.2 ", "1.2", [padded]),
            (b"1.2 \0", "1.2", [padded]),
            (b"  ", "", [padded]),
            (b"1.\xe4\0", "1.\xe4", [foreign]),
            (b"1.\xe4 ", "1.\xe4", [foreign, padded]),
        ):
            # At the front, where most command sets are decoded in one step, and elsewhere.
            front = STORE[:12] + element(2, raw) + STORE[46:]
            for data, keyword in (
                (front, "affected_sop_class_uid"),
                (element(0x1001, raw), "requested_sop_instance_uid"),
            ):
                tolerated: list[str] = []
                values = decode_command(data, tolerated)
                self.assertEqual((values[keyword], tolerated), (text, told))
                self.assertEqual(decode_command(data), values)
            self.assertEqual(decode_command(front), {**STORE_VALUES, "affected_sop_class_uid": text})
        tolerated = []
        decode_command(STORE, tolerated)
        self.assertEqual(tolerated, [])

    def test_without_group_length(self):
        self.assertEqual(decode_command(STORE[12:]), STORE_VALUES)

    def test_a_wrong_group_length_does_no_harm(self):
        for length in b"\0\0\0\0", b"\xff\xff\xff\xff":
            self.assertEqual(decode_command(STORE[:8] + length + STORE[12:]), STORE_VALUES)

    def test_empty(self):
        self.assertEqual(decode_command(b""), {})


class DictionaryTests(unittest.TestCase):
    """The table of elements against pydicom's dictionary."""

    def test_elements(self):
        for number, (keyword, vr) in ELEMENTS.items():
            with self.subTest(keyword):
                self.assertEqual(vr, dictionary_VR(number))
                self.assertEqual(keyword.replace("_", ""), keyword_for_tag(number).lower())


class PydicomTests(unittest.TestCase):
    """The bytes are those of pydicom."""

    @given(commands)
    def test_encode(self, values):
        self.assertEqual(encode_command(in_order(values)), pydicom_encode(values))

    @given(commands)
    def test_decode(self, values):
        self.assertEqual(decode_command(pydicom_encode(values)), values)

    @given(commands)
    def test_pydicom_reads_ours(self, values):
        self.assertEqual(pydicom_decode(encode_command(in_order(values))), values)


class ToleranceTests(unittest.TestCase):
    def test_unknown_and_retired_elements_are_passed_over(self):
        retired = element(0x0001, b"\x04\0\0\0") + element(0x5110, b"anything") + element(0x0B0B, b"")
        self.assertEqual(decode_command(STORE + retired), STORE_VALUES)

    def test_elements_without_a_value_are_as_good_as_missing(self):
        for number in ELEMENTS:
            self.assertEqual(decode_command(element(number, b"")), {})

    def test_any_order(self):
        """PS3.7 requires ascending elements; elements in another order are still unambiguous."""
        parts = [element(0x0110, b"\1\0"), element(0x0100, b"\x30\0"), element(0x0002, b"1.2\0")]
        self.assertEqual(
            decode_command(b"".join(parts)),
            {"message_id": 1, "command_field": 0x30, "affected_sop_class_uid": "1.2"},
        )

    def test_text_of_any_bytes(self):
        raw = bytes(range(1, 256))
        self.assertEqual(decode_command(element(0x1000, raw))["affected_sop_instance_uid"], raw.decode("latin-1"))


class MalformedTests(unittest.TestCase):
    def assert_invalid(self, data, words):
        with self.assertRaisesRegex(InvalidMessage, words):
            decode_command(data)

    def test_other_groups(self):
        self.assert_invalid(STORE + element(0x0010, b"X", group=8), r"\(0008,0010\).* group 0000 only")
        self.assert_invalid(element(0x0100, b"\1\0", group=1), "group 0000 only")
        self.assert_invalid(element(0x0010, b"", group=8), "group 0000 only")

    def test_other_groups_behind_a_response(self):
        """Orthanc writes them in a C-GET response after a sub-operation has failed."""
        response = element(0x0100, b"\x10\x80") + element(0x0120, b"\1\0")
        more = element(0x0000, b"\4\0\0\0", group=8) + element(0x0058, b"1.2\0", group=8)
        tolerated: list[str] = []
        self.assertEqual(decode_command(response + more, tolerated), decode_command(response))
        self.assertEqual(set(tolerated), {"elements of a data set in the command set of a response"})
        self.assert_invalid(response + more[:-1], "remain")
        self.assert_invalid(more + response, "group 0000 only")

    def test_lengths_that_lie(self):
        for length in 3, 4, 0xFFFFFFFE, 0xFFFFFFFF:
            data = b"\0\0\2\0" + length.to_bytes(4, "little") + b"1."
            self.assert_invalid(data, f"of {length} bytes, only 2 remain")

    def test_numbers_of_the_wrong_size(self):
        """A number of any length is read; of one with more than 2 bytes, or of several, the first 2 count."""
        for value, number in (
            (b"\7", 7),
            (b"\1\2\0", 0x201),
            (b"\1\2\0\0", 0x201),
            (b"\1\0\2\0\3\0", 1),
            (b"\7" * 9, 0x707),
        ):
            for keyword, (tag, vr) in KEYWORDS.items():
                if vr == "US":
                    tolerated: list[str] = []
                    self.assertEqual(decode_command(element(tag, value), tolerated), {keyword: number})
                    self.assertEqual(tolerated, ["numbers of other than 2 bytes in a command set"])

    def test_tags_of_the_wrong_size(self):
        """The tags that are whole are read."""
        for value, tags in ((b"\1", ()), (b"\1\0", ()), (b"\1\0\0", ()), (b"\1\0\2\0\0\0", (0x10002,))):
            tolerated: list[str] = []
            found = decode_command(element(0x1005, value), tolerated)
            self.assertEqual(found, {"attribute_identifier_list": tags})
            self.assertEqual(tolerated, ["tags of other than 4 bytes in a command set"])

    def test_a_padding_byte(self):
        """One NUL behind the last element is skipped; more bytes, or another one, are none."""
        tolerated: list[str] = []
        self.assertEqual(decode_command(STORE + b"\0", tolerated), STORE_VALUES)
        self.assertEqual(tolerated, ["a padding byte behind a command set"])
        for more in b"\1", b" ", b"\0\0", b"\0" * 7:
            self.assert_invalid(STORE + more, "remain")

    @given(st.dictionaries(st.sampled_from([0x100, 0x110, 0x700, 0x800]), st.binary(min_size=1, max_size=12)))
    def test_wrong_sizes_in_a_whole_command(self, values):
        """A request with numbers of any length is decoded, and its other elements are unchanged."""
        parts = [element(0x0002, b"1.2.840.10008.1.1\0")]
        parts += [element(tag, values.get(tag, b"\1\0")) for tag in (0x100, 0x110, 0x700, 0x800)]
        parts.append(element(0x1000, b"1.2.3\0"))
        found = decode_command(b"".join(parts))
        self.assertEqual(found["affected_sop_instance_uid"], "1.2.3")
        for keyword, tag in (("command_field", 0x100), ("message_id", 0x110), ("priority", 0x700)):
            self.assertEqual(found[keyword], int.from_bytes(values.get(tag, b"\1\0")[:2], "little"))

    def test_each_truncation(self):
        edges = set()
        position = 0
        while position < len(STORE):
            edges.add(position)
            position += 8 + int.from_bytes(STORE[position + 4 : position + 8], "little")
        for length in range(len(STORE)):
            if length in edges or length - 1 in edges:  # one NUL more is taken for padding
                decode_command(STORE[:length])
            else:
                self.assert_invalid(STORE[:length], "remain")

    @given(st.binary(max_size=200))
    def test_arbitrary_bytes(self, data):
        try:
            decode_command(data)
        except InvalidMessage:
            pass

    @given(st.lists(st.tuples(st.sampled_from(sorted(ELEMENTS)), st.binary(max_size=12)), max_size=8))
    def test_arbitrary_values(self, elements):
        try:
            decode_command(b"".join(element(number, value) for number, value in elements))
        except InvalidMessage:
            pass

    @given(st.data())
    def test_damaged_commands(self, data):
        damaged = bytearray(STORE)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        try:
            decode_command(bytes(damaged))
        except InvalidMessage:
            pass

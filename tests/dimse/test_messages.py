"""The 23 messages of DIMSE (PS3.7 9.3, 10.3, Annex E)."""

import unittest
from dataclasses import fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.dimse import messages
from dicomtwist.dimse.command import KEYWORDS, decode_command, encode_command
from dicomtwist.dimse.messages import (
    MESSAGES,
    NO_DATASET,
    RESPONSES,
    CCancelRQ,
    CEchoRQ,
    CEchoRSP,
    CFindRSP,
    CMoveRQ,
    CMoveRSP,
    CStoreRQ,
    CStoreRSP,
    NActionRQ,
    NEventReportRQ,
    NGetRQ,
    Request,
    Response,
    decode_message,
)
from dicomtwist.errors import InvalidMessage
from tests.dimse.test_command import STORE, VALUES, pydicom_decode, pydicom_encode

# PS3.7 E.1 and 9.3, 10.3: the Command Field, the name, the elements besides Command Field and Command Data Set Type.
# Optional elements are in brackets (here also the status elements of Annex C in responses).
STANDARD = """
0001 C-STORE-RQ  0002 0110 0700 1000 [1030] [1031]
8001 C-STORE-RSP [0002] 0120 0900 [0901] [0902] [0903] [1000]
0010 C-GET-RQ    0002 0110 0700
8010 C-GET-RSP   [0002] 0120 0900 [0901] [0902] [0903] [1020] [1021] [1022] [1023]
0020 C-FIND-RQ   0002 0110 0700
8020 C-FIND-RSP  [0002] 0120 0900 [0901] [0902] [0903]
0021 C-MOVE-RQ   0002 0110 0600 0700
8021 C-MOVE-RSP  [0002] 0120 0900 [0901] [0902] [0903] [1020] [1021] [1022] [1023]
0030 C-ECHO-RQ   0002 0110
8030 C-ECHO-RSP  [0002] 0120 0900 [0901] [0902] [0903]
0100 N-EVENT-REPORT-RQ  0002 0110 1000 1002
8100 N-EVENT-REPORT-RSP [0002] 0120 0900 [0901] [0902] [0903] [1000] [1002]
0110 N-GET-RQ    0003 0110 1001 [1005]
8110 N-GET-RSP   [0002] 0120 0900 [0901] [0902] [0903] [1000] [1005]
0120 N-SET-RQ    0003 0110 1001
8120 N-SET-RSP   [0002] 0120 0900 [0901] [0902] [0903] [1000] [1005]
0130 N-ACTION-RQ 0003 0110 1001 1008
8130 N-ACTION-RSP [0002] 0120 0900 [0901] [0902] [0903] [1000] [1008]
0140 N-CREATE-RQ 0002 0110 [1000]
8140 N-CREATE-RSP [0002] 0120 0900 [0901] [0902] [0903] [1000] [1005]
0150 N-DELETE-RQ 0003 0110 1001
8150 N-DELETE-RSP [0002] 0120 0900 [0901] [0902] [0903] [1000]
0FFF C-CANCEL-RQ 0120
"""


def read_standard():
    """Yield (Command Field, name, {element number: whether it is optional})."""
    for line in STANDARD.strip().splitlines():
        number, name, *elements = line.split()
        yield int(number, 16), name, {int(word.strip("[]"), 16): word[0] == "[" for word in elements}


def strategy_of(cls):
    """Return a strategy for messages of *cls*."""
    values: dict[str, st.SearchStrategy[Any]] = {"has_dataset": st.booleans()}
    for field in fields(cls):
        if field.name not in ("has_dataset", "tolerated"):
            value = VALUES[KEYWORDS[field.name][1]]
            values[field.name] = st.none() | value if field.default is None else value
    return st.builds(cls, **values)


any_message = st.sampled_from(sorted(MESSAGES)).flatmap(lambda number: strategy_of(MESSAGES[number]))


def command(**values):
    """Return an encoded command set of *values*."""
    return encode_command(sorted(values.items(), key=lambda pair: KEYWORDS[pair[0]][0]))


class StandardTests(unittest.TestCase):
    def test_each_message(self):
        for number, name, elements in read_standard():
            with self.subTest(name):
                cls = MESSAGES[number]
                self.assertEqual((cls.COMMAND_FIELD, cls.NAME), (number, name))
                ours = {
                    KEYWORDS[field.name][0]: field.default is None
                    for field in fields(cls)
                    if field.name not in ("has_dataset", "tolerated")
                }
                self.assertEqual(ours, elements)

    def test_there_are_no_others(self):
        self.assertEqual(MESSAGES.keys(), {number for number, *_ in read_standard()})
        self.assertEqual(len(MESSAGES), 23)

    def test_requests_and_responses(self):
        for number, cls in MESSAGES.items():
            if number & 0x8000:
                self.assertTrue(issubclass(cls, Response))
                self.assertIs(RESPONSES[MESSAGES[number & 0x7FFF]], cls)
            elif cls is not CCancelRQ:
                self.assertTrue(issubclass(cls, Request))
                self.assertIn(cls, RESPONSES)
        self.assertEqual(len(RESPONSES), 11)

    def test_responses_repeat_the_uids_of_the_request(self):
        pairs: list[tuple[Any, Any]] = list(RESPONSES.items())
        for cls, response_class in pairs:
            uids = {field.name: f"1.{len(field.name)}" for field in fields(cls) if field.name.endswith("_uid")}
            response = messages.make_response(cls(message_id=7, **uids), 0xB000)
            repeated = {name.replace("requested", "affected"): uid for name, uid in uids.items()}
            repeated = {name: uid for name, uid in repeated.items() if hasattr(response, name)}
            self.assertEqual(response, response_class(message_id_being_responded_to=7, status=0xB000, **repeated))
            self.assertIn("affected_sop_class_uid", repeated)
            for name in uids:
                uids[name] = ""
            response = messages.make_response(cls(message_id=7, **uids), 0)
            self.assertEqual(response, response_class(message_id_being_responded_to=7, status=0))

    def test_required_attributes_are_attributes(self):
        for cls in MESSAGES.values():
            self.assertLessEqual(set(cls.REQUIRED), {field.name for field in fields(cls)})

    def test_priorities(self):
        self.assertEqual((messages.MEDIUM, messages.HIGH, messages.LOW), (0, 1, 2))


class KnownBytesTests(unittest.TestCase):
    def test_store(self):
        request = CStoreRQ(
            message_id=7,
            affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            affected_sop_instance_uid="1.2.3",
            priority=messages.LOW,
            move_originator_application_entity_title="MOVE",
            move_originator_message_id=0x1234,
            has_dataset=True,
        )
        self.assertEqual(request.encode(), STORE)
        self.assertEqual(decode_message(STORE), request)

    def test_echo(self):
        request = (
            b"\x00\x00\x00\x00\x04\x00\x00\x00\x38\x00\x00\x00"
            b"\x00\x00\x02\x00\x12\x00\x00\x001.2.840.10008.1.1\0"
            b"\x00\x00\x00\x01\x02\x00\x00\x00\x30\x00"
            b"\x00\x00\x10\x01\x02\x00\x00\x00\x05\x00"
            b"\x00\x00\x00\x08\x02\x00\x00\x00\x01\x01"
        )
        self.assertEqual(CEchoRQ(message_id=5).encode(), request)
        self.assertEqual(decode_message(request), CEchoRQ(message_id=5))

    def test_data_set_type(self):
        """0101 means that there is no data set, any other value that there is one (PS3.7 E.1)."""
        for number in 0x0000, 0x0001, 0x0002, 0x0100, 0x0102, 0xFFFF, NO_DATASET:
            message = decode_message(
                command(
                    command_field=0x8030,
                    message_id_being_responded_to=1,
                    status=0,
                    command_data_set_type=number,
                )
            )
            self.assertEqual(message.has_dataset, number != NO_DATASET)


class RoundTripTests(unittest.TestCase):
    @given(any_message)
    def test_ours(self, message):
        self.assertEqual(decode_message(message.encode()), message)

    @given(any_message)
    def test_against_pydicom(self, message):
        encoded = message.encode()
        values = pydicom_decode(encoded)
        self.assertEqual(values["command_field"], message.COMMAND_FIELD)
        self.assertEqual(pydicom_encode(values), encoded)
        self.assertEqual(decode_command(encoded), values)

    def test_each_class_with_its_defaults(self):
        for cls in MESSAGES.values():
            with self.subTest(cls.NAME):
                message = cls()
                self.assertEqual(decode_message(message.encode()), message)

    def test_elements_ascend(self):
        for cls in MESSAGES.values():
            encoded = cls().encode()
            position, numbers = 0, []
            while position < len(encoded):
                numbers.append(int.from_bytes(encoded[position + 2 : position + 4], "little"))
                position += 8 + int.from_bytes(encoded[position + 4 : position + 8], "little")
            self.assertEqual(numbers, sorted(set(numbers)))

    def test_numbers_that_do_not_fit(self):
        for request in CEchoRQ(message_id=0x10000), CEchoRQ(message_id=-1), CMoveRSP(error_id=1 << 20):
            with self.assertRaises(ValueError):
                request.encode()


class MissingTests(unittest.TestCase):
    """A message is refused only if a missing element prevents the operation."""

    def assert_invalid(self, words, **values):
        with self.assertRaisesRegex(InvalidMessage, words):
            decode_message(command(**values))

    def test_command_field(self):
        self.assert_invalid("without Command Field", message_id=1)
        self.assert_invalid("without Command Field")
        with self.assertRaises(InvalidMessage):
            decode_message(b"")

    def test_unknown_command_fields(self):
        for number in 0x0000, 0x0002, 0x0031, 0x8FFF, 0xFFFF:
            self.assert_invalid(f"Command Field {number:#06x} is unknown", command_field=number, message_id=1)

    def test_message_id(self):
        for number, cls in MESSAGES.items():
            if issubclass(cls, Request):
                self.assert_invalid(f"{cls.NAME} without message_id", command_field=number)
            elif issubclass(cls, Response):
                self.assert_invalid(f"{cls.NAME} without message_id_being_responded_to", command_field=number, status=0)
                self.assert_invalid(f"{cls.NAME} without status", command_field=number, message_id_being_responded_to=1)
        self.assert_invalid("C-CANCEL-RQ without message_id_being_responded_to", command_field=0x0FFF, message_id=1)

    def test_a_message_id_without_a_value(self):
        with self.assertRaisesRegex(InvalidMessage, "C-ECHO-RQ without message_id"):
            decode_message(command(command_field=0x0030) + b"\0\0\x10\x01\0\0\0\0")

    def test_the_shortest_response(self):
        self.assertEqual(
            decode_message(command(command_field=0x8001, message_id_being_responded_to=3, status=0)),
            CStoreRSP(message_id_being_responded_to=3, status=0),
        )

    def test_what_is_tolerated_is_told(self):
        """Each deviation is described once; missing optional elements are not deviations."""
        none = {"command_data_set_type": 0x0101}
        for values, told in (
            ({"command_field": 0x8030, "message_id_being_responded_to": 3, "status": 0, **none}, ()),
            ({"command_field": 0x0030, "message_id": 3, **none}, ()),
            ({"command_field": 0x0030, "message_id": 3}, ("C-ECHO-RQ without command_data_set_type",)),
            ({"command_field": 0x0001, "message_id": 3, **none}, ("C-STORE-RQ without priority",)),
            (
                {"command_field": 0x0001, "message_id": 3},
                ("C-STORE-RQ without command_data_set_type", "C-STORE-RQ without priority"),
            ),
            (
                {"command_field": 0x0130, "message_id": 3, "requested_sop_class_uid": "1.\xe4", **none}
                | {"requested_sop_instance_uid": "1.\xf6"},
                ("UIDs that are not ASCII",),
            ),
        ):
            message = decode_message(command(**values))
            self.assertEqual(message.tolerated, told)
            self.assertEqual(decode_message(message.encode()).has_dataset, message.has_dataset)
        self.assertEqual(CEchoRQ().tolerated, ())
        self.assertNotIn("tolerated", repr(CEchoRQ()))

    def test_requests_without_uids_are_for_the_services_to_answer(self):
        request = decode_message(command(command_field=0x0001, message_id=3))
        self.assertEqual(request, CStoreRQ(message_id=3))
        assert isinstance(request, CStoreRQ)
        self.assertEqual(request.affected_sop_class_uid, "")

    def test_elements_of_other_messages_are_passed_over(self):
        message = decode_message(
            command(command_field=0x0030, message_id=3, status=0, move_destination="X", event_type_id=4)
        )
        self.assertEqual(message, CEchoRQ(message_id=3))
        self.assertFalse(hasattr(message, "status"))


class AttributeTests(unittest.TestCase):
    def test_there_are_no_other_attributes(self):
        with self.assertRaises(AttributeError):
            CEchoRSP().statsu = 0  # type: ignore[attr-defined]

    def test_attributes_may_be_set(self):
        response = CFindRSP(message_id_being_responded_to=1)
        response.status = 0xFF00
        response.has_dataset = True
        response.offending_element = (0x00100010,)
        self.assertEqual(decode_message(response.encode()), response)

    def test_by_keyword_only(self):
        with self.assertRaises(TypeError):
            CEchoRQ(1)  # type: ignore[call-arg, arg-type]

    def test_examples(self):
        for message in (
            CMoveRQ(message_id=1, affected_sop_class_uid="1.2", move_destination="ELSEWHERE", has_dataset=True),
            CMoveRSP(number_of_remaining_suboperations=0, number_of_failed_suboperations=0xFFFF),
            NGetRQ(attribute_identifier_list=(0x00080018, 0x00100010)),
            NActionRQ(action_type_id=2),
            NEventReportRQ(event_type_id=0),
        ):
            self.assertEqual(decode_message(message.encode()), message)


class MalformedTests(unittest.TestCase):
    @given(st.binary(max_size=120))
    def test_arbitrary_bytes(self, data):
        try:
            decode_message(data)
        except InvalidMessage:
            pass

    @given(any_message, st.data())
    def test_damaged_messages(self, message, data):
        damaged = bytearray(message.encode())
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        try:
            decode_message(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
        except InvalidMessage:
            pass

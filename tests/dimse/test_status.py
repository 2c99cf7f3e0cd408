"""Status codes (PS3.7 Annex C)."""

import copy
import pickle
import unittest

from dicomtwist.dimse import status
from dicomtwist.dimse.status import Status, StatusCategory, category, meaning

# PS3.7 C.1 to C.5, and PS3.4 for the services: the class of each range, both ends included.
RANGES = """
0000 0000 Success
0001 0001 Warning
0105 0106 Failure
0107 0107 Warning
0110 0115 Failure
0116 0116 Warning
0117 0124 Failure
0210 0213 Failure
A700 A9FF Failure
B000 BFFF Warning
C000 CFFF Failure
FE00 FE00 Cancel
FF00 FF01 Pending
"""


class CategoryTests(unittest.TestCase):
    def test_ranges(self):
        for line in RANGES.strip().splitlines():
            first, last, name = line.split()
            for code in range(int(first, 16), int(last, 16) + 1):
                self.assertEqual(category(code), StatusCategory(name), hex(code))

    def test_what_the_standard_does_not_know_is_a_failure(self):
        for code in 0x0002, 0x0108, 0x1234, 0xFF02, 0xFFFF:
            self.assertEqual(category(code), StatusCategory.FAILURE)

    def test_each_code_has_one(self):
        self.assertEqual({category(code) for code in range(0x10000)}, set(StatusCategory))


class MeaningTests(unittest.TestCase):
    def test_by_service(self):
        self.assertEqual(meaning(0xA700, "C-STORE"), "Refused: out of resources")
        self.assertEqual(meaning(0xA7FF, "C-STORE"), "Refused: out of resources")
        self.assertEqual(meaning(0xA801, "C-MOVE"), "Refused: Move Destination unknown")
        self.assertEqual(meaning(0xB000, "C-STORE"), "Coercion of data elements")
        self.assertEqual(meaning(0xB000, "C-MOVE"), "Sub-operations complete with failures or warnings")

    def test_without_service(self):
        self.assertEqual(meaning(0x0000), "Success")
        self.assertEqual(meaning(0x0122, "C-FIND"), "SOP Class not supported")
        self.assertEqual(meaning(0xA700), "Failure")
        self.assertEqual(meaning(0xB123), "Warning")

    def test_each_named_code_has_words(self):
        for name, code in vars(status).items():
            if name.isupper() and isinstance(code, int):
                self.assertTrue(any(meaning(code, service) for service in ("", "C-STORE", "C-MOVE")), name)


class StatusTests(unittest.TestCase):
    def test_it_is_a_number(self):
        self.assertEqual(Status(0xA700), 0xA700)
        self.assertEqual(f"{Status(0xA700):04X}", "A700")
        self.assertEqual({0xA700: "full"}[Status(0xA700)], "full")
        self.assertEqual(Status(0).Status, 0)
        self.assertIs(type(Status(0).Status), int)

    def test_it_is_always_true(self):
        self.assertTrue(Status(0x0000))
        self.assertTrue(Status(0x0110))

    def test_questions(self):
        for code, yes in (
            (0x0000, "is_success"),
            (0xB007, "is_warning"),
            (0xFF01, "is_pending"),
            (0xA900, "is_failure"),
            (0xFE00, None),
        ):
            value = Status(code)
            for question in "is_success", "is_warning", "is_pending", "is_failure":
                self.assertEqual(getattr(value, question), question == yes, (hex(code), question))
        self.assertIs(Status(0xFE00).category, StatusCategory.CANCEL)

    def test_what_the_response_said_beside_it(self):
        value = Status(0xA900, "C-STORE", "no such class", (0x00080016,), 77)
        self.assertEqual(value.service, "C-STORE")
        self.assertEqual(value.error_comment, "no such class")
        self.assertEqual(value.offending_element, (0x00080016,))
        self.assertEqual(value.error_id, 77)
        self.assertEqual(str(value), "0xA900 Error: data set does not match SOP Class: no such class")
        self.assertEqual(repr(value), "<Status 0xA900 Error: data set does not match SOP Class>")
        self.assertEqual(str(Status(0)), "0x0000 Success")

    def test_elements_by_keyword(self):
        """Scripts for pynetdicom read the elements of the response as those of a data set."""
        value = Status(0xA900, "C-STORE", "no such class", (0x00080016,), 77, "1.2", (0x00100010,), "1.2.3")
        value.number_of_completed_suboperations = 0
        for keyword, expected in {
            "Status": 0xA900,
            "ErrorComment": "no such class",
            "OffendingElement": (0x00080016,),
            "ErrorID": 77,
            "AttributeIdentifierList": (0x00100010,),
            "AffectedSOPInstanceUID": "1.2.3",
            "NumberOfCompletedSuboperations": 0,
        }.items():
            self.assertEqual(getattr(value, keyword), expected)
            self.assertEqual(value.get(keyword), expected)
            self.assertIn(keyword, value)
            if keyword != "Status":
                self.assertFalse(hasattr(Status(0xA900), keyword))
                self.assertIsNone(Status(0xA900).get(keyword))
                self.assertEqual(Status(0xA900).get(keyword, "nothing"), "nothing")
                self.assertNotIn(keyword, Status(0xA900))
        with self.assertRaisesRegex(AttributeError, "the response with the status 0x0000 Success has no ErrorComment"):
            Status(0).ErrorComment  # noqa: B018
        self.assertIsNone(value.get("PatientName"))
        self.assertNotIn("PatientName", value)
        self.assertNotIn(0x00000900, value)

    def test_copies(self):
        value = Status(0xA900, "C-STORE", "no such class", (0x00080016,), 77)
        for other in copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value)):
            self.assertEqual(other, value)
            self.assertEqual(str(other), str(value))
            self.assertEqual(other.error_id, 77)

"""Errors as text for the log."""

import unittest

from dicomtwist.datasets import decode_dataset
from dicomtwist.errors import MAX_LOGGED, DataSetError, loggable


class Loggable(unittest.TestCase):
    def test_own_words(self):
        self.assertEqual(loggable(DataSetError("it ends inside an element")), "it ends inside an element")
        self.assertEqual(
            loggable(OSError(28, "No space left on device", "a/b")), "[Errno 28] No space left on device: 'a/b'"
        )
        self.assertEqual(loggable(KeyError()), "KeyError")

    def test_one_printable_line(self):
        self.assertEqual(loggable(ValueError("one\ntwo")), "one")
        self.assertEqual(loggable(ValueError("\x1b[2J a\rb \u202e \xe4")), "\\x1b[2J a\\rb \\u202e \xe4")
        self.assertEqual(len(loggable(ValueError("x" * 1000))), MAX_LOGGED)

    def test_what_pydicom_quotes(self):
        """pydicom's error quotes a value whose length is impossible, so the log leaves its text out."""
        dataset = decode_dataset(b"\x18\0\x74\x90UL\6\0Secret", "1.2.840.10008.1.2.1")
        try:
            dataset.decode()
        except Exception as cause:
            self.assertIn("Secret", str(cause))
            error = DataSetError(f"it cannot be decoded: {cause}")
            error.__cause__ = cause
        self.assertEqual(loggable(error), "a data set cannot be decoded or encoded: BytesLengthException")

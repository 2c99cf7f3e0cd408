"""The files of rules of forwarding: tables of values, and the key of pseudonyms."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.daemon.forwarding import files
from dicomtwist.daemon.forwarding.files import KeyFileError, is_open_to_others, make_key, read_key, read_table


class Tables(SynchronousTestCase):
    """``read_table``"""

    def read(self, content: bytes) -> dict[str, str]:
        path = Path(self.mktemp())
        path.write_bytes(content)
        return read_table(str(path))

    def test_forms_of_spreadsheets(self) -> None:
        for content in (
            b"P1,T1\nP2,T2\n",
            b"\xef\xbb\xbfP1;T1\r\nP2;T2\r\n\r\n",
            b"P1\tT1\nP2\tT2",
            b'"P1", T1 \n"P2","T2"\n',
        ):
            self.assertEqual(self.read(content), {"P1": "T1", "P2": "T2"}, content)
        self.assertEqual(self.read('"Smith, Jane","Ä,""B"\n'.encode()), {"Smith, Jane": 'Ä,"B'})
        self.assertEqual(self.read(b"P1,\n"), {"P1": ""})

    def test_what_is_no_table(self) -> None:
        """The words name the line, and no value of it."""
        for content, words in (
            (b"P1,T1\nP2\n", "line 2: a row has two values, and this one has 1"),
            (b"P1,T1\nP2,T2,T3\n", "line 2: a row has two values, and this one has 3"),
            (b"P1,T1\nP1,T2\n", "line 2: the value is there twice"),
            (b"P1,T1\n\xff,T2\n", "line 2: it is not in UTF-8"),
            (b'P1,"T1\n', "line 1"),
            (b"", "has no rows"),
            (b"P1," + b"T" * 200_000 + b"\n", "line 1"),
        ):
            error = self.assertRaises(ValueError, self.read, content)
            self.assertIn(words, str(error))
            self.assertNotIn("T1", str(error))
        self.assertIn("No such file", str(self.assertRaises(ValueError, read_table, "/nowhere")))

    def test_bounds(self) -> None:
        with patch.object(files, "MAX_TABLE_LENGTH", 10):
            self.assertIn("more than 10 bytes", str(self.assertRaises(ValueError, self.read, b"P1,T1\nP2,T2\n")))
        with patch.object(files, "MAX_TABLE_ROWS", 1):
            self.assertIn("more than 1 rows", str(self.assertRaises(ValueError, self.read, b"P1,T1\nP2,T2\n")))


class Keys(SynchronousTestCase):
    """``make_key`` and ``read_key``"""

    def test_key_is_its_owners(self) -> None:
        path = Path(self.mktemp())
        self.addCleanup(os.umask, os.umask(0))
        make_key(path)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertFalse(is_open_to_others(path))
        self.assertEqual(read_key(path).uid("1.2.3"), read_key(path).uid("1.2.3"))
        before = path.read_bytes()
        self.assertRaises(FileExistsError, make_key, path)
        self.assertEqual(path.read_bytes(), before)
        path.chmod(0o604)
        self.assertTrue(is_open_to_others(path))

    def test_other_key_gives_other_pseudonyms(self) -> None:
        first, second = Path(self.mktemp()), Path(self.mktemp())
        make_key(first)
        make_key(second)
        self.assertNotEqual(read_key(first).uid("1.2.3"), read_key(second).uid("1.2.3"))

    def test_what_is_no_key(self) -> None:
        path = Path(self.mktemp())
        for content in (b"", b"short\n", b"x" * 5000):
            path.write_bytes(content)
            error = self.assertRaises(KeyFileError, read_key, path)
            self.assertIn("has no key", str(error))
        self.assertIn("cannot read", str(self.assertRaises(KeyFileError, read_key, Path("/nowhere"))))

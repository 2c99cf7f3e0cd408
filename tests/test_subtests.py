"""The parts of a test that fail in a worker process of trial are reported, see the package of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import tests

MODULE = """
import unittest
import tests

class Parts(unittest.TestCase):
    def test_failure(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertEqual(number, 0)

    def test_error(self):
        with self.subTest("an error"):
            raise OSError("the reason")

    def test_success(self):
        with self.subTest("a success"):
            pass
"""


class Workers(SynchronousTestCase):
    def test_parts(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "test_parts.py").write_text(MODULE)
        root = str(Path(str(tests.__file__)).parents[1])
        done = subprocess.run(
            [sys.executable, "-m", "twisted.trial", "-j", "1", "test_parts"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertIn("FAILED (failures=2, errors=1, successes=1)", done.stdout, done.stderr)
        self.assertIn("the reason", done.stdout)
        self.assertNotEqual(done.returncode, 0)

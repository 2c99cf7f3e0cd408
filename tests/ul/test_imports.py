"""The upper layer and DIMSE need only the standard library."""

import subprocess
import sys
import unittest
from pathlib import Path

from dicomtwist import ul

PROGRAM = """
import sys, types
for name in "twisted", "zope", "pydicom", "numpy":
    sys.modules[name] = None  # makes any import of it fail
package = types.ModuleType("dicomtwist")  # in place of the real one, which imports everything
package.__path__ = [sys.argv[1]]
sys.modules["dicomtwist"] = package
import dicomtwist.ul.connection, dicomtwist.ul.state_machine, dicomtwist.dimse.status, dicomtwist.dimse.message_stream
"""


class ImportTests(unittest.TestCase):
    def test_neither_twisted_nor_pydicom_is_needed(self):
        folder = Path(ul.__file__).parent.parent
        run = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=False)
        self.assertEqual((run.returncode, run.stderr), (0, ""))

"""``dicomtwist queue``: what needs no server. With one it is tested in tests/daemon/forwarding."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from pydicom.data import get_testdata_file

from dicomtwist.daemon.forwarding.files import read_key
from dicomtwist.forwarding.tasks.types import TaskState
from dicomtwist.tools.commands.queue import STATES
from tests import peers
from tests.tools.common import ToolTestCase

CT = str(get_testdata_file("CT_small.dcm"))
RULES = """
[[forward]]
name = "ct"
modality = "CT"
to = [["A", "B"], "C"]
deidentify = true
[[forward]]
name = "night"
calling = "CT9"
to = "C"
map.PatientID = "/nowhere.csv"
"""


class Queue(ToolTestCase):
    def test_states(self) -> None:
        """The command lists the states itself, since it starts without the module that has them."""
        self.assertEqual(STATES, tuple(TaskState))

    def rules(self, text: str = RULES) -> Path:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.toml"
        path.write_text(text)
        return path

    def test_explain_by_a_configuration(self) -> None:
        """Neither the key nor the tables of values are read."""
        result = self.misuse("queue", "explain", CT, "--calling", "CT1", "--config", self.rules(), "--json")
        self.assertEqual(result.code, 0, result.text)
        first, second = (json.loads(line) for line in result.stdout.splitlines())
        self.assertEqual((first["destinations"], first["changes"]), (["A,B", "C"], True))
        self.assertEqual((second["sends"], second["key"]), (False, "calling"))
        result = self.misuse("queue", "explain", CT, "--calling", "CT9", "--config", self.rules())
        self.assertEqual(result.stdout.decode().splitlines()[0], "ct: to A, else B and to C, changed on the way")
        self.assertEqual(result.stdout.decode().splitlines()[1], "night: to C, changed on the way")

    def test_a_file_that_goes_nowhere(self) -> None:
        result = self.misuse("queue", "explain", CT, "--config", self.rules(RULES.replace('"CT"', '"MR"')))
        self.assertEqual(result.code, 1)
        self.assertIn("ct: no, modality: Modality is 'CT', not 'MR'", result.text)
        self.assertEqual(self.misuse("queue", "explain", CT, "--config", self.rules("")).code, 1)

    def test_explain_of_what_cannot_be_read(self) -> None:
        other = self.folder / "other"
        other.write_bytes(b"no DICOM")
        for arguments in (
            (other, "--config", self.rules()),
            (CT, "--config", other),
            (CT, "--config", self.rules(RULES.replace("modality", "modalty"))),
            (CT, "--config", self.rules(), "--from", "nowhere"),
            (CT, "--config", self.rules(), "--calling", "x" * 17),
        ):
            result = self.misuse("queue", "explain", *arguments)
            self.assertEqual(result.code, 1, arguments)
            self.assertNotIn("Traceback", result.text)
            self.assertIn("dicomtwist: ", result.text)

    def test_key(self) -> None:
        path = self.folder / "key"
        result = self.misuse("queue", "key", path)
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        read_key(path)
        self.assertNotIn(path.read_text().strip(), result.text)
        before = path.read_bytes()
        self.assertEqual(self.misuse("queue", "key", path).code, 1)
        self.assertEqual(path.read_bytes(), before)
        self.assertEqual(self.misuse("queue", "key", self.folder / "none" / "key").code, 1)

    def test_changes_name_what_they_change(self) -> None:
        for arguments in (("drop",), ("retry", "--all", 1), ("hold", "--state", "x"), ("release", "x"), ("show", 0)):
            self.assertEqual(self.misuse("queue", *arguments).code, 2, arguments)

    def test_no_server(self) -> None:
        port = peers.free_port()
        for arguments in (("list",), ("show",), ("retry", "--all"), ("explain", CT)):
            result = self.misuse("queue", *arguments, "--url", f"http://127.0.0.1:{port}")
            self.assertEqual(result.code, 1)
            self.assertIn("cannot reach", result.text)

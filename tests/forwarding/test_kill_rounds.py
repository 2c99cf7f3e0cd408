"""``twist dicom`` is killed while it receives and forwards: a few rounds of tests.forwarding.kill_rounds."""

from __future__ import annotations

import sys

from twisted.trial.unittest import TestCase

from tests import peers


class KillRounds(TestCase):
    timeout = 300

    async def test_rounds(self) -> None:
        """Two rounds with one destination that goes up and down, and one that is slow."""
        peers.require("storescu", "storescp")
        command = (sys.executable, "-m", "tests.forwarding.kill_rounds", "--rounds", "2", "--count", "30")
        result = await peers.run(*command, timeout=280)
        self.assertEqual(result.code, 0, result.text)
        self.assertIn("nothing lost in 2 rounds", result.text)

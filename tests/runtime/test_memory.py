"""The settings of the C library's memory, each observed in a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

PROGRAM = """
import json, resource, sys
from dicomtwist.runtime.memory import retain_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        pieces = [bytes(256 * 1024) for _ in range(16)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([faults(), retain_heap(), faults()]))
"""


class KeepMemory(SynchronousTestCase):
    def test_what_was_freed_is_not_got_from_the_system_again(self) -> None:
        if platform.libc_ver()[0] != "glibc":
            raise SkipTest("there is no glibc here")
        output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True).stdout
        before, done, after = json.loads(output)
        self.assertTrue(done)
        self.assertGreater(before, 20_000)
        self.assertLess(after, before / 5)

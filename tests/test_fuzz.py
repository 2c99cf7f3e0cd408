"""Each target of the fuzzer runs over its seeds, and over inputs that failed once."""

from __future__ import annotations

import random
import unittest

from fuzz.seeds import seeds
from fuzz.targets import TARGETS

#: How many damaged copies of each seed are tried, and the longest seed for which that is done, in bytes.
COPIES, LONGEST = 3, 4000


def damaged(data: bytes, source: random.Random) -> bytes:
    """Return *data* with a few bytes changed."""
    copy = bytearray(data)
    for _ in range(source.randrange(1, 4)):
        place = source.randrange(len(copy))
        copy[place] = source.choice((0, 1, 0x7F, 0x80, 0xFF, copy[place] ^ 1 << source.randrange(8)))
    if source.random() < 0.3:
        del copy[source.randrange(len(copy)) :]
    return bytes(copy)


class Seeds(unittest.TestCase):
    def setUp(self) -> None:
        self.seeds = seeds()

    def test_every_target_has_some(self) -> None:
        self.assertEqual(set(self.seeds), set(TARGETS))
        for name, inputs in self.seeds.items():
            self.assertTrue(all(inputs), name)

    def test_seeds(self) -> None:
        for name, inputs in self.seeds.items():
            for number, data in enumerate(inputs):
                with self.subTest(target=name, seed=number):
                    TARGETS[name](data)

    def test_damaged_seeds(self) -> None:
        source = random.Random(20)  # the same copies each time
        for name, inputs in self.seeds.items():
            for number, data in enumerate(inputs):
                for _ in range(COPIES):
                    with self.subTest(target=name, seed=number):
                        TARGETS[name](damaged(data[:LONGEST], source))

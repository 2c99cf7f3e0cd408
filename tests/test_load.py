"""``make load`` and ``make soak`` in short: that they work, and how memory is judged."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from benchmarks import load, soak


class Short(TestCase):
    """A small part of each load."""

    timeout = 300

    def setUp(self) -> None:
        if not Path("/proc/self/status").exists():
            raise SkipTest("this system does not tell of processes in /proc")

    async def measured(self, name: str) -> None:
        root = Path(self.mktemp()).absolute()
        root.mkdir()
        with redirect_stderr(io.StringIO()):
            rows = await load.run([name], root, short=True)
        self.assertTrue(rows)
        # Memory says little with few associations, and times say little on a busy machine.
        short = [row for row in rows if row.good is False and name not in ("idle-growth", "hostile")]
        self.assertEqual(short, [])
        self.assertEqual([row for row in rows if row.ours == "failed"], [])

    async def test_associations(self) -> None:
        await self.measured("associations")

    async def test_connections(self) -> None:
        await self.measured("connections")

    async def test_senders(self) -> None:
        await self.measured("senders")

    async def test_hostile(self) -> None:
        await self.measured("hostile")

    async def test_idle_growth(self) -> None:
        await self.measured("idle-growth")

    async def test_cost(self) -> None:
        await self.measured("cost")

    async def test_soak(self) -> None:
        root = Path(self.mktemp()).absolute()
        root.mkdir()
        with redirect_stdout(io.StringIO()) as output:
            await soak.soak(root, 6)
        lines = output.getvalue().splitlines()
        good = {line[6:] for line in lines if line.startswith("OK")}
        self.assertLessEqual(
            {"nothing is wrong", "no traceback", "the stored instances are those that were sent"}, good, lines
        )
        self.assertIn("no association is left", good)


class Judging(SynchronousTestCase):
    """Memory that is flat, and memory that is not."""

    def samples(self, *sizes: float) -> list[tuple[float, int]]:
        return [(float(at), int(size)) for at, size in enumerate(sizes)]

    def test_flat(self) -> None:
        for sizes in ([100_000] * 100, [100_000 + at % 7 * 1000 for at in range(100)], [100_000, 90_000] * 50):
            self.assertTrue(soak.is_flat(self.samples(*sizes)))

    def test_warming_up(self) -> None:
        """Growth during the warm-up does not count."""
        self.assertTrue(soak.is_flat(self.samples(*range(10_000, 100_000, 5000), *[120_000] * 90)))

    def test_growing(self) -> None:
        self.assertFalse(soak.is_flat(self.samples(*(100_000 + at * 300 for at in range(100)))))
        self.assertEqual(soak.growth(self.samples(*range(100)))[0], 54)

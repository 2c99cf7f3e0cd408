"""The results that ``make bench`` keeps, and the page that it makes of them."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import harness, profile, report
from benchmarks.harness import Bench, Row, compare
from benchmarks.rows import BENCHMARKS
from tests import peers
from tests.documentation import DOCS

HERE, THERE = ["this machine", "these versions"], ["another machine", "others"]


def row(work: str, good: bool | None = True) -> Row:
    return Row(work, "1.0 (1.0-1.1)", "DCMTK", "2.0 (2.0-2.1)", "2.00", "0.5", good)


class Page(SynchronousTestCase):
    def test_is_made_of_what_is_kept(self) -> None:
        """
        The page has exactly the kept results and the current text. After a change to the text, this command writes the page
        again: ``python -m benchmarks --write docs/benchmarks.md --measure-nothing``.
        """
        kept = report.load(DOCS / "benchmarks.json")
        self.assertEqual((DOCS / "benchmarks.md").read_text(), report.page(kept, BENCHMARKS))
        self.assertLessEqual(set(kept), set(BENCHMARKS), "a benchmark is kept that there is not any more")

    def test_nothing_is_kept(self) -> None:
        text = report.page({}, BENCHMARKS)
        self.assertIn("None are kept yet", text)
        self.assertNotIn("| Work", text)

    def test_rows_replace_their_own(self) -> None:
        """A run of one benchmark leaves the rows of the others as they are."""
        path = Path(self.mktemp())
        report.keep(path, "one", [row("first of one"), row("second of one")], 5, HERE)
        report.keep(path, "two", [row("of two")], 5, HERE)
        kept = report.keep(path, "one", [row("one again", False)], 3, HERE)
        self.assertEqual(kept, report.load(path))
        text = report.page(kept, ["two", "one"])
        self.assertNotIn("first of one", text)
        self.assertLess(text.index("| of two |"), text.index("| one again |"))
        self.assertEqual((text.count(" (5) |"), text.count(" (3) |")), (1, 1))
        self.assertIn("Short of what is needed: one again.", text)
        self.assertEqual(text.count("## Figures"), 1)
        self.assertNotIn("of two", report.page(kept, ["one"]))

    def test_other_machines_have_other_tables(self) -> None:
        path = Path(self.mktemp())
        report.keep(path, "one", [row("one")], 5, HERE)
        kept = report.keep(path, "two", [Row("two", report.FAILED, "", "", "", "", None, "a | b < c")], 5, THERE)
        _, here, there = report.page(kept, ["one", "two"]).split("## Figures: ")
        self.assertIn("| one |", here)
        self.assertIn("nothing that was measured", here)
        self.assertIn("| a / b &lt; c |", there)
        self.assertIn("Could not be measured: two.", there)

    def test_what_it_was_measured_on(self) -> None:
        lines = report.setting(Path.cwd())
        for words in ("Twisted ", "pydicom ", "DCMTK ", "Orthanc ", "pynetdicom ", "cores"):
            self.assertIn(words, "\n".join(lines))


class Rows(SynchronousTestCase):
    def test_ratio(self) -> None:
        """The ratio is the peer's time divided by ours, and has to be at least the needed one."""
        found = compare("work", [1.0, 2.0, 9.0], "peer", [5.0, 4.0, 3.0], 2.0)
        self.assertEqual((found.ours, found.ratio, found.good), ("2.00 (1.00-9.00)", "2.00", True))
        self.assertIs(compare("work", [2.1], "peer", [4.0], 2.0).good, False)
        self.assertIsNone(compare("work", [2.0], "peer", [4.0]).good)

    def test_settling(self) -> None:
        """Nothing is measured while files are created slowly, unless they stay slow."""
        bench = Bench(Path(self.mktemp()), 1, False)
        costs = [1e-3, 1e-3, 1e-6, 1e-3]
        slept: list[float] = []
        self.patch(bench, "_seconds_for_a_file", lambda: costs.pop(0))
        self.patch(time, "sleep", slept.append)
        bench.settle()
        self.assertEqual((len(costs), len(slept)), (1, 2))
        self.patch(harness, "MOST_SETTLING", -1)
        with redirect_stderr(io.StringIO()) as words:
            for _ in range(3):
                bench.settle()
        self.assertEqual((len(costs), words.getvalue().count("stays so")), (0, 1))


class Profile(SynchronousTestCase):
    def test_of_a_store(self) -> None:
        """The profile has the functions that do the work, also in threads, but no functions that only wait."""
        root = Path(self.mktemp()).absolute()
        root.mkdir()
        peers.dcmtk("storescu")
        count, stats = profile.profiled(root, "store-small", "full", 0.02)
        self.assertEqual(count, 20)
        calls = {function[2]: figures[1] for function, figures in stats.items()}
        self.assertEqual(calls["handle_store"], count)
        self.assertGreaterEqual(calls["<built-in method posix.fsync>"], count)
        text = profile.table(count, stats, 10_000)
        self.assertIn("dicomtwist/archive/ingest.py", text)
        self.assertNotIn("'poll'", text)

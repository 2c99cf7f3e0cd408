"""The results that ``make bench`` keeps, and the page that it makes of them."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import harness, instances, profile, report, running, sizing
from benchmarks.__main__ import chosen
from benchmarks.harness import Bench, BenchmarkError, Row, compare, run_client, serving, stop
from benchmarks.programs import twist_dicom
from benchmarks.rows import BENCHMARKS
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.recovery import reconcile
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

    def test_tables_of_sizes(self) -> None:
        """The guide to operations has the kept results. The command above writes its tables again as well."""
        guide = (DOCS / "guides" / "operations.md").read_text()
        self.assertEqual(guide, sizing.page(guide, report.load(DOCS / "benchmarks.json")))
        self.assertIn("| receive, 8 senders | 12 KB |", guide)

    def test_sizes_of_what_is_kept(self) -> None:
        """Rates are computed from the time; rows that are not kept, or failed, are left out."""
        marks = "<!-- begin: rates -->\n\n<!-- end -->\n<!-- begin: figures -->\n\n<!-- end -->\n"
        self.assertEqual(sizing.page(marks, {}).count("\n|"), 4)
        kept = {
            "archive-medium": {
                "date": "2026-01-31",
                "on": HERE,
                "rows": [vars(Row("archive 300 x 500 KB, durability full", "2.0 (1-3)", "", "", "", "", None))],
            },
            "idle-growth": {
                "date": "2026-01-31",
                "on": HERE,
                "rows": [
                    vars(Row("memory of an idle association, 1,000 of them", report.FAILED, "", "", "", "", None))
                ],
            },
        }
        text = sizing.page(marks, kept)
        self.assertIn("| 500 KB | 150, 75 MB | 2.0 s | this machine, 2026-01-31 |", text)
        self.assertEqual(text.count("\n|"), 5)

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
        """Nothing is measured while files are created slowly, unless they stay slow; then the rows say so."""
        costs = [1e-3, 1e-3, 1e-6]
        slept: list[float] = []
        self.patch(Bench, "_seconds_for_a_file", lambda bench: costs.pop(0))
        self.patch(time, "sleep", slept.append)
        bench = Bench(Path(self.mktemp()), 1, False)
        bench.settle()
        self.assertEqual((costs, len(slept), bench.slow), ([], 2, ""))
        costs[:] = [1e-3, 2e-3, 1e-6]
        self.patch(harness, "MOST_SETTLING", -1)
        bench = Bench(Path(self.mktemp()), 1, False)
        found = []
        with redirect_stderr(io.StringIO()) as words:
            for _ in range(3):
                bench.settle()
                found.append(bench.slow)
        self.assertEqual(found, [f"creating a file took {cost} us before" for cost in (1000, 2000)] + [""])
        self.assertEqual((costs, len(slept), words.getvalue().count("stays so")), ([], 2, 2))

    def test_names_and_patterns(self) -> None:
        self.assertEqual(chosen([]), list(BENCHMARKS))
        self.assertEqual(chosen(["tls-s*", "echo"]), ["echo", "tls-small"])


class Archives(SynchronousTestCase):
    """The archives and clients of the benchmarks do what their rows say."""

    def folder(self) -> Path:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        return folder

    def test_filled(self) -> None:
        """An archive that is made quickly is one in which a start finds nothing to do."""
        storage = self.folder() / "storage"
        running.fill_archive(storage, 300)
        archive = Archive(storage)
        archive.open()
        self.addCleanup(archive.close)
        found = reconcile(archive)
        self.assertEqual((found.instances, found.indexed, found.lost), (300, 0, 0))

    def test_sustained_load_and_retrieval(self) -> None:
        """The clients store from several associations, find and retrieve; they fail if anything is missing."""
        bench = Bench(self.folder(), 1, True)
        with serving(twist_dicom(bench.fresh(), "full"), bench.fresh() / "log") as server:
            found = cast(Any, run_client("sustain", server.port, server.pid, 3, 200, 3000))
            studies = [instances.study_uid(number) for number in range(2)]
            for flags in ([], ["--each"]):
                self.assertGreater(run_client("get", server.port, 100, *studies, *flags)["total"], 0)
            error = self.assertRaises(BenchmarkError, run_client, "get", server.port, 101, *studies)
            self.assertIn("100 of 101 instances came", str(error))
            self.assertLess(stop(server), 60)
        self.assertEqual((len(found["quarters"]), len(found["resident"])), (4, 4))
        self.assertTrue(all(seconds > 0 for seconds in found["quarters"]))

    def test_sustained_rows(self) -> None:
        """A run of a load ends with everything stored and nothing left in the inbox."""
        peers.dcmtk("storescu")
        rows = running.load_rows(Bench(self.folder(), 1, True), 2, 1000)
        self.assertEqual([row.needed for row in rows], ["0.9", "< 8 MiB", "< 0.05 s", "<= 2 s"])


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
        self.assertGreaterEqual(calls["<built-in method posix.fdatasync>"], count)
        text = profile.table(count, stats, 10_000)
        self.assertIn("dicomtwist/archive/ingest.py", text)
        self.assertNotIn("'poll'", text)

"""The documentation: its programs run and print what it says, its limits are those of the code, its links lead somewhere."""

from __future__ import annotations

import importlib
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

from dicomtwist import AE
from dicomtwist.settings import Settings
from dicomtwist.sop_class import Verification
from dicomtwist.tap import Options
from tests.test_layers import modules

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"

#: A program, and what it prints where that is told.
PROGRAM = re.compile(r"```python\n(.*?)```(?:\n\nprints\n\n```text\n(.*?)```)?", re.DOTALL)


class Programs(TestCase):
    """Each Python block of a page is a whole program."""

    timeout = 60

    async def run_all(self, page: str, count: int, port: int | None = None) -> None:
        """
        Run the programs of *page*, and compare what they print.

        :param count: how many there are.
        :param port: of the server that a program expects at 11112.
        """
        programs = PROGRAM.findall((DOCS / page).read_text())
        self.assertEqual(len(programs), count)
        folder = Path(self.mktemp())
        folder.mkdir()
        for number, (source, printed) in enumerate(programs):
            path = folder / f"program{number}.py"
            path.write_text(source.replace("11112", str(port)) if port else source)
            arguments = [os.fsencode(path.absolute())]
            stdout, stderr, code = await getProcessOutputAndValue(sys.executable, arguments, os.environ, str(folder))
            self.assertEqual(code, 0, stderr.decode())
            if printed:
                self.assertEqual(stdout.decode(), printed)

    async def test_handlers(self) -> None:
        await self.run_all("guides/handlers.md", 5)

    async def test_streaming(self) -> None:
        await self.run_all("guides/streaming.md", 3)

    async def test_pooling(self) -> None:
        await self.run_all("guides/pooling.md", 3)

    async def test_service_classes(self) -> None:
        await self.run_all("service_classes.md", 1)

    async def test_migrating(self) -> None:
        ae = AE("ANY-SCP")
        ae.add_supported_context(Verification)
        server = await ae.start_server(("127.0.0.1", 0))
        self.addCleanup(ae.shutdown)
        await self.run_all("migrating.md", 1, server.port)


class Limits(SynchronousTestCase):
    """docs/limits.md tells each bound with its default."""

    def setUp(self) -> None:
        page = (DOCS / "limits.md").read_text()
        rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
        self.rows = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}
        self.settings = {name: cells for name, cells in self.rows.items() if "." not in name}
        self.constants = {name: cells for name, cells in self.rows.items() if "." in name}

    def value(self, cell: str) -> float | None:
        """What a default says: a number, maybe with a unit, or none."""
        if cell == "none":
            return None
        number, _, unit = cell.partition(" ")
        return int(number) * {"": 1, "s": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}[unit]

    def test_settings(self) -> None:
        settings = Settings()
        for name, cells in self.settings.items():
            self.assertEqual(self.value(cells[1]), getattr(settings, name), name)
        told = {field.name for field in fields(Settings) if field.name.endswith("timeout") or "maximum" in field.name}
        told.add("move_associations")
        self.assertEqual(set(self.settings), told)

    def test_options(self) -> None:
        told = {cells[0].strip("`").removeprefix("--"): name for name, cells in self.settings.items() if cells[0]}
        parameters: Any = Options.optParameters
        options = {option[0]: option[2] for option in parameters}
        for option, name in told.items():
            self.assertEqual(options[option], getattr(Settings(), name), option)
        bounds = {option for option in options if option.startswith("max-") or option.endswith("-timeout")}
        self.assertEqual(set(told), bounds)

    def test_constants(self) -> None:
        for name, cells in self.constants.items():
            module, _, constant = name.rpartition(".")
            self.assertEqual(
                self.value(cells[0]), getattr(importlib.import_module(f"dicomtwist.{module}"), constant), name
            )

    def test_nothing_is_left_out(self) -> None:
        """What is called MAX_... and is a number is in the page."""
        pattern = re.compile(r"^(MAX_\w+)(?:: Final)? = [0-9]", re.MULTILINE)
        for module, file in modules().items():
            for constant in pattern.findall((PROJECT / "dicomtwist" / file).read_text()):
                name = f"{module.removeprefix('dicomtwist.')}.{constant}"
                self.assertIn(name, self.constants, f"docs/limits.md does not tell of {name}")


class Links(SynchronousTestCase):
    """Links between the pages."""

    PAGES = [PROJECT / "README.md", *sorted(DOCS.rglob("*.md"))]

    def test_they_lead_somewhere(self) -> None:
        for page in self.PAGES:
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
                self.assertTrue((page.parent / target).exists(), f"{page.relative_to(PROJECT)} links to {target}")

    def test_the_index_has_all(self) -> None:
        index = DOCS / "index.md"
        linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", index.read_text())}
        for page in self.PAGES:
            if page not in (index, PROJECT / "README.md"):
                self.assertIn(page.resolve(), linked)

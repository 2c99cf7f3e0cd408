"""The documentation: its programs run and print what it says, its limits are those of the code, and its links have targets."""

from __future__ import annotations

import importlib
import inspect
import re
import unittest
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import Any

from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association, ServiceUser
from pynetdicom.events import Event
from twisted.internet.defer import Deferred
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase, TestCase

import dicomtwist
from dicomtwist import AE, evt
from dicomtwist.daemon.tap import Options
from dicomtwist.settings import Settings
from dicomtwist.sop_class import Verification
from tests.documentation import (
    DOCS,
    NO_PROGRAM,
    NOT_RUN,
    PROGRAMS,
    PROJECT,
    Block,
    blocks,
    commands,
    matches,
    pages,
)
from tests.page_runner import run_page
from tests.test_layers import modules

#: Blocks that another test runs: the page and the block's first line, and that test.
ELSEWHERE = {
    ("README.md", "@evt.streaming"): "tests.test_readme.Readme.test_streaming_handler",
    ("docs/guides/operations.md", "mkdir -p /backup/dicom"): (
        "tests.daemon.test_operations.Operations.test_backup_under_load"
    ),
    ("docs/guides/testing.md", "network.answers = False  # attempts to connect get no answer"): (
        "tests.test_testing.Guide.test_the_peer"
    ),
    ("docs/guides/testing.md", "from dicomtwist.dimse.messages import CEchoRQ"): (
        "tests.test_testing.Guide.test_the_peer"
    ),
}

#: Pages that another test runs as a whole.
PAGES_ELSEWHERE = {"docs/guides/command.md": "tests.tools.test_guide"}

#: Pages whose programs need a server at 11112 that supports Verification.
WITH_SERVER = ("docs/migrating.md",)


def elsewhere(block: Block) -> str | None:
    """Return the name of the test that runs *block*, if that is not a test of this module."""
    return PAGES_ELSEWHERE.get(block.page) or ELSEWHERE.get((block.page, block.text.partition("\n")[0]))


class Programs(TestCase):
    """Each program in a page does what the page says. Each page with programs has a test, see below."""

    timeout = 600

    async def run_page(self, page: Path) -> None:
        """Run the blocks of *page*."""
        name = page.relative_to(PROJECT).as_posix()
        ports = {}
        if name in WITH_SERVER:
            ae = AE("ANY-SCP")
            ae.add_supported_context(Verification)
            self.addCleanup(ae.shutdown)
            ports["11112"] = (await ae.start_server(("127.0.0.1", 0))).port
        await run_page(self, page, [block for block in blocks(page) if elsewhere(block) is None], ports)


def _add_tests() -> None:
    for page in pages():
        if any(block.is_program and elsewhere(block) is None for block in blocks(page)):
            name = page.relative_to(PROJECT).with_suffix("").as_posix().removeprefix("docs/").replace("/", "_")
            setattr(Programs, f"test_{name}", lambda self, page=page: Deferred.fromCoroutine(self.run_page(page)))


_add_tests()


class Blocks(SynchronousTestCase):
    """No block of code is left without a test."""

    def setUp(self) -> None:
        self.blocks = [block for page in pages() for block in blocks(page)]

    def test_each_says_what_it_is(self) -> None:
        """Programs are run, and blocks that are not programs are marked as such."""
        self.assertGreater(len(self.blocks), 20)
        for block in self.blocks:
            self.assertIn(block.language, (*PROGRAMS, *NO_PROGRAM), f"{block}: write ```text, or what it is")
            self.assertIn(block.key, ("", "server", "file", *NOT_RUN), f"{block}: no such comment")
            if block.key in NOT_RUN:
                self.assertGreater(len(block.value), 10, f"{block}: why not?")

    def test_files_are_used(self) -> None:
        """Each saved file is run by a command of its page, or read by a test."""
        for block in self.blocks:
            if block.file is not None and block.is_program and block.key not in NOT_RUN and elsewhere(block) is None:
                used = [other.text for other in self.blocks if other.page == block.page and other is not block]
                # Twisted finds a plugin by the name of its command.
                module = Path(block.file).stem.removesuffix("_plugin")
                self.assertTrue(any(module in text for text in used), f"{block}: nothing runs {block.file}")

    def test_elsewhere(self) -> None:
        """The tests in the tables above exist, and so do the blocks."""
        found = {(block.page, block.text.partition("\n")[0]) for block in self.blocks}
        self.assertEqual(set(ELSEWHERE) - found, set())
        for name in ELSEWHERE.values():
            self.assertTrue(callable(namedAny(name)), name)
        for page, name in PAGES_ELSEWHERE.items():
            self.assertIn(Path(page).name, Path(namedAny(name).__file__).read_text())

    def test_each_page_is_run(self) -> None:
        """Each page with a program that no other test runs has a test."""
        waiting = {block.page for block in self.blocks if block.is_program and elsewhere(block) is None}
        tests = {name for name in dir(Programs) if name.startswith("test_")}
        self.assertEqual(len(tests), len(waiting))

    def test_what_is_expected(self) -> None:
        """The comparison finds differences."""
        self.assertTrue(matches("a\n", "a\n"))
        self.assertFalse(matches("a\n", "a\nb\n"))
        self.assertFalse(matches("a.c\n", "abc\n"))
        self.assertTrue(matches("...a ... c\n...\nend\n", "x a b c\n1\n2\nend\n"))
        self.assertTrue(matches("a\n...\n", "a\n"))
        self.assertFalse(matches("a\n...\nend\n", "a\n"))
        self.assertFalse(matches("a\n", ""))

    def test_commands(self) -> None:
        block = Block("page", 1, "console", "$ one \\\n    more\nprinted\n$ two\n")
        self.assertEqual(list(commands(block)), [("one \\\n    more\n", "printed\n"), ("two\n", "")])
        self.assertRaises(ValueError, list, commands(Block("page", 1, "console", "printed\n")))


class Limits(SynchronousTestCase):
    """docs/limits.md lists each bound with its default."""

    def setUp(self) -> None:
        page = (DOCS / "limits.md").read_text()
        rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
        self.rows = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}
        self.settings = {name: cells for name, cells in self.rows.items() if "." not in name}
        self.constants = {name: cells for name, cells in self.rows.items() if "." in name}

    def value(self, cell: str) -> float | None:
        """Return a default: a number, perhaps with a unit, or ``None``."""
        if cell == "none":
            return None
        number, _, unit = cell.partition(" ")
        return (float(number) if "." in number else int(number)) * {
            "": 1,
            "s": 1,
            "KiB": 1024,
            "MiB": 1024**2,
            "GiB": 1024**3,
        }[unit]

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
        self.assertEqual(set(told), {option for option in bounds if not option.startswith("http-")})
        for option in options:
            if option.startswith("http-max-") or (option.startswith("http-") and option.endswith("-timeout")):
                cells = [cells for cells in self.constants.values() if f"`--{option}`" in cells[1]]
                self.assertEqual([self.value(one[0]) for one in cells], [options[option]], option)

    def test_constants(self) -> None:
        for name, cells in self.constants.items():
            self.assertEqual(self.value(cells[0]), namedAny(f"dicomtwist.{name}"), name)

    def test_nothing_is_left_out(self) -> None:
        """Each number named MAX_... is in the page."""
        pattern = re.compile(r"^(MAX_\w+)(?:: Final)? = [0-9]", re.MULTILINE)
        for module, file in modules().items():
            for constant in pattern.findall((PROJECT / "dicomtwist" / file).read_text()):
                name = f"{module.removeprefix('dicomtwist.')}.{constant}"
                self.assertIn(name, self.constants, f"docs/limits.md does not tell of {name}")


class Hostile(SynchronousTestCase):
    """docs/security.md lists the attacks on a server, and the tests that check its reaction to each."""

    def setUp(self) -> None:
        page = (DOCS / "security.md").read_text()
        self.rows = re.findall(r"^\| (\d+) \| .* \| .* \| (.*) \|$", page, re.MULTILINE)
        self.named = {name for _, cell in self.rows for name in re.findall(r"`([\w.]+)`", cell)}

    def test_rows(self) -> None:
        """Tests refer to the rows by their numbers."""
        self.assertEqual([int(number) for number, _ in self.rows], list(range(1, len(self.rows) + 1)))
        self.assertGreaterEqual(len(self.rows), 42)

    def test_they_are_there(self) -> None:
        for name in self.named:
            self.assertTrue(callable(namedAny(f"tests.{name}")), name)

    def test_all_are_named(self) -> None:
        """Each test of hostile peers is in a row, alone or with its class."""
        for path in (PROJECT / "tests" / "hostile").glob("test_*.py"):
            module = namedAny(f"tests.hostile.{path.stem}")
            for case in vars(module).values():
                if isinstance(case, type) and issubclass(case, TestCase | SynchronousTestCase | unittest.TestCase):
                    name = f"hostile.{path.stem}.{case.__name__}"
                    if case.__module__ == module.__name__ and any(test.startswith("test_") for test in vars(case)):
                        self.assertTrue(any(f"{named}.".startswith(f"{name}.") for named in self.named), name)


class Links(SynchronousTestCase):
    """Links between the pages."""

    def test_they_lead_somewhere(self) -> None:
        for page in (
            *pages(),
            PROJECT / "CONTRIBUTING.md",
            PROJECT / "SECURITY.md",
            *PROJECT.glob("changelog.d/README.md"),
        ):
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
                self.assertTrue((page.parent / target).exists(), f"{page.relative_to(PROJECT)} links to {target}")

    def test_the_index_has_all(self) -> None:
        """The pages are linked from docs/index.md, those of the API from docs/reference/index.md."""
        reference = DOCS / "reference"
        for index, others in ((DOCS / "index.md", pages()[1:]), (reference / "index.md", reference.glob("*.md"))):
            linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", index.read_text())}
            for page in others:
                if page != index and (page.parent != reference or index.parent == reference):
                    if page.name != "index.md":
                        self.assertIn(page.resolve(), linked)

    def test_the_index_has_a_place_for_all(self) -> None:
        """Each page is in a toctree of docs/index.md, as Sphinx requires."""
        trees = [block.text.split() for block in blocks(DOCS / "index.md") if block.language == "{toctree}"]
        entries = [entry for tree in trees for entry in tree if not entry.startswith(":")]
        self.assertEqual(len(entries), len(set(entries)))
        for page in DOCS.rglob("*.md"):
            name = page.relative_to(DOCS).with_suffix("").as_posix()
            if name != "index" and (page.parent.name != "reference" or page.name == "index.md"):
                self.assertIn(name, entries)


class Fragments(SynchronousTestCase):
    """The entries of the next release's changelog."""

    def test_links_start_at_the_projects_folder(self) -> None:
        """CHANGELOG.md is there; the page of the documentation drops ``docs/`` from them."""
        for fragment in (PROJECT / "changelog.d").glob("*.*.md"):
            for target in re.findall(r"\]\(([^)#:]+)\)", fragment.read_text()):
                self.assertTrue(
                    target.startswith("docs/") and (PROJECT / target).exists(), f"{fragment.name}: {target}"
                )


class Glossary(SynchronousTestCase):
    """docs/glossary.md has each term once, and names modules that are there."""

    def test_terms(self) -> None:
        page = (DOCS / "glossary.md").read_text()
        terms = [term for row in re.findall(r"^\| (\*\*.*?) \|", page, re.MULTILINE) for term in row.split(", ")]
        self.assertGreater(len(terms), 20)
        self.assertEqual(len(terms), len(set(terms)))

    def test_modules(self) -> None:
        page = (DOCS / "glossary.md").read_text()
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", page):
            self.assertTrue((PROJECT / "dicomtwist" / name).exists(), name)


class Reference(SynchronousTestCase):
    """The pages of the API."""

    def setUp(self) -> None:
        text = "".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
        self.modules = re.findall(r"automodule:: (\S+)", text)
        self.classes = re.findall(r"auto(?:class|function):: (\S+)", text)

    def test_modules_are_there(self) -> None:
        self.assertEqual(len(self.modules), len(set(self.modules)))
        self.assertEqual(set(self.modules) - set(modules()), set())

    def test_public_names_have_a_page(self) -> None:
        """Each name of ``from dicomtwist import ...`` is on a page: by itself, or with the module that holds it."""
        on_a_page = [namedAny(name) for name in self.classes]
        for module in map(importlib.import_module, self.modules):
            on_a_page += [module, *(getattr(module, name) for name in getattr(module, "__all__", vars(module)))]
        for name in dicomtwist.__all__:
            value = getattr(dicomtwist, name)
            if inspect.ismodule(value) or getattr(value, "__module__", "").startswith("dicomtwist"):
                self.assertTrue(any(value is other for other in on_a_page), name)

    def test_public_paths(self) -> None:
        """A name that a package exports is documented under the package, not under the module that defines it."""
        packages = {name for name, file in modules().items() if file.endswith("/__init__.py") and "/" in file}
        exported = {name: set(getattr(importlib.import_module(name), "__all__", ())) for name in packages}
        documented = [name.rpartition(".")[::2] for name in self.classes]
        for module in self.modules:
            documented += [(module, name) for name in getattr(importlib.import_module(module), "__all__", ())]
        for module, name in documented:
            self.assertNotIn(name, exported.get(module.rpartition(".")[0], ()), f"{module}.{name}")


class SeedChecklist(SynchronousTestCase):
    """docs/seed_checklist.md names tests that exist."""

    def test_tests_are_there(self) -> None:
        page = (DOCS / "seed_checklist.md").read_text()
        sections = re.findall(r"^## [^\n]*\(`(tests/\w+\.py)`\)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        self.assertEqual(len(sections), 5)
        for file, rows in sections:
            for row in re.findall(r"^\| (?!In the document)(.*) \|$", rows, re.MULTILINE):
                last = row.rpartition(" | ")[2]
                names = re.findall(r"`([^`]*)`", last)
                self.assertTrue(names or last == "the same tests", row)
                source = (PROJECT / file).read_text()
                for name in names:
                    if name.startswith("tests/"):
                        source += (PROJECT / name).read_text()
                for name in names:
                    for part in () if name.startswith("tests/") else name.split("."):
                        self.assertRegex(source, rf"(class|def) {part}\b", row)


class Names(SynchronousTestCase):
    """Pages that have to be complete name everything."""

    def test_events(self) -> None:
        """docs/guides/handlers.md lists each event, under its kind."""
        page = (DOCS / "guides" / "handlers.md").read_text()
        notifications, _, interventions = page.partition("An **intervention** asks")
        for event in evt.get_events():
            rows = interventions if event.is_intervention else notifications
            self.assertIsNotNone(re.search(rf"^\|.*`{event.name}`.*\|", rows, re.MULTILINE), event.name)

    def test_migrating(self) -> None:
        """docs/migrating.md has every public name of the reference's AE, association, its users and events."""
        page = (DOCS / "migrating.md").read_text()
        kinds: tuple[type, ...] = (ApplicationEntity, Association, ServiceUser, Event)
        names = {name for kind in kinds for name in dir(kind) if not name.startswith("_")} - set(dir(Thread))
        self.assertGreater(len(names), 80)
        missing = [name for name in sorted(names) if not re.search(rf"\b{name}\b", page)]
        self.assertEqual(missing, [])

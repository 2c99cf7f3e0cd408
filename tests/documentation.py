"""
Finds the blocks of code in README.md and in docs/, and runs them.

The word after a fence says what the block is:

* ``python``: a whole program. If the text ``prints`` and a ``text`` block follow, the program has to print that text. A block
  that begins with a comment such as ``# server.py`` is saved under that name instead, for a ``console`` block to run.
* ``console``: commands after ``$ `` and their output, in which ``...`` stands for any text, and alone on its line for any
  number of lines.
* ``sh``: a script.
* ``zsh``, ``fish``: a script for these shells, which a separate test runs.
* Other words, see :data:`NO_PROGRAM`, are not programs.

A comment ``<!-- KEY: VALUE -->`` on the line above a fence gives more information:

* ``server: PORT``: the one command of the console block runs until the end of the page. The runner waits until it listens at
  PORT, and stops it with SIGTERM or the signal that follows PORT. Its output is compared then.
* ``file: NAME``: the block is saved under that name.
* ``not run: REASON``: the block is a program, and there is a reason not to run it.

The blocks of a page run in order, in one folder that is empty at first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests import peers

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"

PROGRAMS = ("python", "console", "sh", "zsh", "fish")
NO_PROGRAM = ("text", "ini", "toml", "dockerfile", "{toctree}", "{include}", "{eval-rst}")

#: Ports that the pages use; a test replaces them by free ports.
PORTS = re.compile(r"\b(11112|11113|11114|2762|8080)\b")

#: Tools of other projects that the pages use.
TOOLS = re.compile(r"^(?:\$ )?(echoscu|storescu|storescp|findscu|movescu|getscu|dcmdump|openssl)\b", re.MULTILINE)

_FENCE = re.compile(r"(`{3,}|:{3,})(.*)")
_COMMENT = re.compile(r"<!-- ([\w ]+): (.*) -->")
_FILE = re.compile(r"# ([\w.-]+\.py)$")


@dataclass(frozen=True)
class Block:
    """
    A fenced block.

    :ivar page: its page, as a path relative to the project's folder.
    :ivar line: the number of its first line.
    :ivar language: the word after its fence.
    :ivar text: its content.
    :ivar key: the key of the comment above it.
    :ivar value: the value of that comment.
    :ivar printed: the output that it has to print, if the page shows it.
    """

    page: str
    line: int
    language: str
    text: str
    key: str = ""
    value: str = ""
    printed: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_program(self) -> bool:
        """Whether the block is a program to run."""
        return self.language in PROGRAMS

    @property
    def file(self) -> str | None:
        """The name to save the block under, if another block runs it."""
        if self.key == "file":
            return self.value
        found = _FILE.match(self.text.partition("\n")[0]) if self.language == "python" else None
        return found[1] if found else None


def pages() -> list[Path]:
    """Return every page of the documentation."""
    return [PROJECT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return every fenced block of *page*."""
    name = page.relative_to(PROJECT).as_posix()
    lines = page.read_text().split("\n")
    found: list[Block] = []
    number, prints = 0, False
    while number < len(lines):
        fence = _FENCE.fullmatch(lines[number])
        if fence is None:
            prints = lines[number] == "prints" or (prints and not lines[number])
            number += 1
            continue
        comment = _COMMENT.fullmatch(lines[number - 1]) if number else None
        end = lines.index(fence[1], number + 1)
        block = Block(
            name,
            number + 1,
            fence[2].partition(" ")[0],
            "".join(f"{line}\n" for line in lines[number + 1 : end]),
            *(comment.groups() if comment else ()),
        )
        if prints and block.language == "text" and found:
            found[-1] = Block(**{**vars(found[-1]), "printed": block.text})
        found.append(block)
        number, prints = end + 1, False
    return found


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with its expected output."""
    command, output, continues = "", "", False
    for line in block.text.splitlines():
        if line.startswith("$ ") or continues:
            if not continues and command:
                yield command, output
            if not continues:
                command, output = "", ""
            command += line.removeprefix("$ ") + "\n"
            continues = line.endswith("\\")
        elif not command:
            raise ValueError(f"{block} does not begin with a command")
        else:
            output += f"{line}\n"
    yield command, output


def matches(expected: str, printed: str) -> bool:
    """Return whether *printed* is the expected output, with ``...`` for any text."""
    pattern = "".join(
        r"(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\n"
        for line in expected.splitlines()
    )
    return re.fullmatch(pattern, printed) is not None


class Runner:
    """
    Runs the blocks of one page.

    :param testcase: the running test.
    :param ports: replacements for ports; the other ports are replaced by free ones.
    """

    def __init__(self, testcase: TestCase, ports: dict[str, int] | None = None) -> None:
        self.testcase = testcase
        self.folder = Path(testcase.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        self._ports = {name: str(port) for name, port in (ports or {}).items()}
        self._number = 0
        self._servers: list[tuple[Block, peers.Process, str]] = []
        self._env = {"PYTHONUNBUFFERED": "1", "COLUMNS": "100", "SHELL": "/bin/bash"}

    def _prepare(self, found: list[Block]) -> None:
        """Make a folder of the commands that the blocks use, so that the right ones run whatever PATH says."""
        folder = self.folder.with_name(f"{self.folder.name}-bin")
        folder.mkdir()
        for name, module in (
            ("python", ""),
            ("twist", "twisted"),
            ("dicomtwist", "dicomtwist.tools"),
        ):
            script = folder / name
            run = f"-m {module}" if module else ""
            script.write_text(f'#!/bin/bash\nexec {quote(sys.executable)} {run} "$@"\n')
            script.chmod(0o755)
        for block in found:
            if block.language in ("console", "sh") and block.key != "not run":
                for tool in TOOLS.findall(block.text):
                    if not (folder / tool).exists():
                        (folder / tool).symlink_to(peers.tool(tool))
        self._path = f"{folder}:/usr/bin:/bin"

    def text(self, source: str) -> str:
        """Return *source* with its ports replaced by free ones."""
        return PORTS.sub(lambda found: self._ports.setdefault(found[1], str(peers.free_port())), source)

    async def run(self, page: Path, found: list[Block]) -> None:
        """Run *found*, the blocks of *page*."""
        self._prepare(found)
        for block in found:
            if block.file is not None:
                (self.folder / block.file).write_text(self.text(block.text))
            elif block.is_program and block.key != "not run":
                await getattr(self, f"_run_{block.language}")(block)
        for block, process, expected in reversed(self._servers):
            if process.running:
                _, _, signal = block.value.partition(" ")
                await process.stop(signal or "TERM", 30)
            self._compare(block, expected, process.text)

    async def _bash(self, source: str) -> peers.Result:
        return await peers.run("/bin/bash", "-c", self._in_folder(source), env=self._env, timeout=120)

    def _in_folder(self, source: str) -> str:
        # One stream for both outputs, so that their order is kept.
        return f"cd {quote(str(self.folder))} && export PATH={quote(self._path)} && exec 2>&1 </dev/null\n{source}"

    def _compare(self, block: Block, expected: str, printed: str) -> None:
        if expected and not matches(self.text(expected), printed):
            self.testcase.fail(f"{block} says\n{expected}\nand this was printed:\n{printed}")

    async def _run_python(self, block: Block) -> None:
        self._number += 1
        path = self.folder / f"program{self._number}.py"
        path.write_text(self.text(block.text))
        # The log is not part of the compared output.
        result = await self._bash(f"exec python {path.name} 2>{path.name}.log")
        log = path.with_name(f"{path.name}.log").read_text()
        self.testcase.assertEqual(result.code, 0, f"{block}: {result.text}{log}")
        if block.printed is not None:
            self.testcase.assertEqual(result.text, self.text(block.printed), str(block))

    async def _run_sh(self, block: Block) -> None:
        result = await self._bash(f"set -e\n{self.text(block.text)}")
        self.testcase.assertEqual(result.code, 0, f"{block}: {result.text}")

    async def _run_console(self, block: Block) -> None:
        for command, expected in commands(block):
            if block.key == "server":
                await self._start(block, command, expected)
                continue
            result = await self._bash(self.text(command))
            self._compare(block, expected, result.text)
            if not expected:
                self.testcase.assertEqual((result.code, result.text), (0, ""), f"{block}: {command}")

    async def _start(self, block: Block, command: str, expected: str) -> None:
        port = int(self.text(block.value.partition(" ")[0]))
        source = self._in_folder(f"exec {self.text(command)}")
        process = await peers.start(self.testcase, "/bin/bash", "-c", source, ready=port, env=self._env, timeout=60)
        self._servers.append((block, process, expected))


def run_page(testcase: TestCase, page: Path, found: list[Block], ports: dict[str, int] | None = None) -> Deferred[None]:
    """Run *found*, blocks of *page*, for *testcase*; the Deferred fails if a block does not do what it says."""
    return Deferred.fromCoroutine(Runner(testcase, ports).run(page, found))

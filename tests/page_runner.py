"""Runs the blocks of code of a page, see :mod:`tests.documentation`."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests import peers, user_environment
from tests.documentation import NOT_RUN, Block, commands, matches

#: Ports that the pages use; a test replaces them by free ports.
PORTS = re.compile(r"\b(11112|11113|11114|2762|8080)\b")

#: Tools of other projects that the pages use.
TOOLS = re.compile(r"^(?:\$ )?(echoscu|storescu|storescp|findscu|movescu|getscu|dcmdump|openssl)\b", re.MULTILINE)


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

    def _prepare(self, found: list[Block], scripts: Path) -> None:
        """Set PATH to the scripts of the users' environment, behind the tools of other projects that the blocks use."""
        folder = self.folder.with_name(f"{self.folder.name}-bin")
        folder.mkdir()
        for block in found:
            if block.language in ("console", "sh") and block.key not in NOT_RUN:
                for tool in TOOLS.findall(block.text):
                    if not (folder / tool).exists():
                        (folder / tool).symlink_to(peers.tool(tool))
        self._path = f"{folder}:{scripts}:/usr/bin:/bin"

    def text(self, source: str) -> str:
        """Return *source* with its ports replaced by free ones."""
        return PORTS.sub(lambda found: self._ports.setdefault(found[1], str(peers.free_port())), source)

    async def run(self, page: Path, found: list[Block]) -> None:
        """Run *found*, the blocks of *page*."""
        self._prepare(found, await user_environment.scripts())
        for block in found:
            if block.file is not None and block.key not in NOT_RUN:
                file = self.folder / block.file
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(self.text(block.text))
            elif block.is_program and block.key not in NOT_RUN:
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

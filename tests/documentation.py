"""
Finds the blocks of code in README.md and in docs/, for :mod:`tests.page_runner` to run.

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
* ``installs: WHERE``: the commands install dicomtwist; :mod:`tests.user_environment` runs those of the tutorial.
* ``not run: REASON``: the block is a program, and there is a reason not to run it.

The blocks of a page run in order, in one folder that is empty at first, with the scripts of an environment in which
dicomtwist was installed as the tutorial says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"

PROGRAMS = ("python", "console", "sh", "zsh", "fish")
NO_PROGRAM = ("text", "ini", "toml", "dockerfile", "{toctree}", "{include}", "{eval-rst}")

#: Keys of the comments above blocks that the runner passes over.
NOT_RUN = ("not run", "installs")

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

"""
A check of the prose: constructions that CONTRIBUTING.md ("How to write") bans, in docstrings, comments, messages and pages.

``make prose`` (``python -m tests.prose [--count] [PATH ...]``) prints file and line, the rule and the sentence of each hit, and
ends with status 1 if there are any. ``--count`` prints the number of hits of each folder instead. Text in backticks, in
double quotes and in fenced blocks is not checked. Sentences that may stay are listed in tests/prose_exceptions.toml.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
import tomllib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

PROJECT: Final = Path(__file__).parent.parent
EXCEPTIONS: Final = Path(__file__).with_name("prose_exceptions.toml")

#: The files that are checked by default: code, then pages. ``CHANGELOG.md`` is history.
CODE: Final = ("dicomtwist", "examples", "benchmarks", "fuzz", "tests", ".ci", "twisted/plugins")
PAGES: Final = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "changelog.d", ".github")

#: In these folders docstrings are checked, not comments and strings: the strings of tests are input and expected output.
DOCSTRINGS_ONLY: Final = ("tests/",)


class Rule(NamedTuple):
    """
    A banned construction.

    :ivar name: its short name.
    :ivar pattern: searched in a sentence, whatever the case; ``^`` is the beginning of the sentence.
    :ivar instead: the words to use.
    """

    name: str
    pattern: re.Pattern[str]
    instead: str


def _rule(name: str, pattern: str, instead: str) -> Rule:
    return Rule(name, re.compile(pattern, re.IGNORECASE), instead)


RULES: Final = (
    _rule(
        "subject",
        r"^(?:who|whom|whose|whoever|what|whatever|whichever|the same|those (?:that|who|which))\b(?! .*\?$)",
        "begin with a noun of the field: the acceptor, the index, a worker thread, the peer",
    ),
    _rule("whoever", r"(?<!^)\bwhoever\b", "name the caller, the peer, the operator"),
    _rule(
        "free-who", r"\b(?:for|of|to|by|with|from|than|what|lets?|has|have) who\b(?! else)", "name the caller, the peer"
    ),
    _rule(
        "one-who", r"\b(?:the one|he|him|those|all|anybody|everybody|one) who\b", "name the caller, the peer, the user"
    ),
    _rule(
        "where-if",
        r"(?:^|, )where (?!(?:it|they) (?:is|are|was|were|lies|lie)\W*$)(?:it|there|they|no|none|nothing|nobody|one)\b",
        "if, when",
    ),
    _rule("anew", r"\banew\b", "again, or a verb: rebuilt, reread, restarted"),
    _rule("tell-of", r"\b(?:tell|tells|told|telling) of\b", "report, acknowledge, describe, notify"),
    _rule("told-success", r"\b(?:tell|tells|told|telling)\b[^,;]* success\b", "acknowledge"),
    _rule("goes-before", r"\b(?:go|goes|going|went|gone) before\b(?! that\b)", "take precedence, override"),
    _rule("as-none", r"\b(?:that|which|it|what) (?:is|are) none\b", "say what it is not: an invalid UID"),
    _rule(
        "takes-not",
        r"\b(?:takes|finds|gives|knows|needs|comes|goes|holds|sees|says) (?:it |them )?not\b(?! only)",
        "does not",
    ),
)


@dataclass(frozen=True)
class Text:
    """
    A paragraph, a list item, a table cell, a field of a docstring, a comment or a string.

    :ivar lines: its lines, stripped, each with its number in the file.
    :ivar is_page: whether it is from a page. There a table cell or a list item that begins in lower case completes a sentence.
    :ivar is_cell: whether it is a table cell. One without a full stop is a title.
    """

    lines: Sequence[tuple[int, str]]
    is_page: bool = False
    is_cell: bool = False

    def sentences(self) -> Iterator[tuple[int, str]]:
        """Yield each sentence on one line, with the number of the line where it begins."""
        joined, starts = "", []
        for _, line in self.lines:
            starts.append(len(joined))
            joined += f"{line} "
        begin = 0
        for end in (*(found.end() for found in _SENTENCE_END.finditer(joined)), len(joined)):
            sentence = joined[begin:end]
            if sentence.strip():
                offset = begin + len(sentence) - len(sentence.lstrip())
                yield self.lines[bisect_right(starts, offset) - 1][0], sentence.strip()
            begin = end


class Hit(NamedTuple):
    """A sentence that breaks a rule."""

    file: str
    line: int
    rule: Rule
    sentence: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule.name}: {self.sentence}  [{self.rule.instead}]"


class Allowed(NamedTuple):
    """
    A sentence that may stay.

    :ivar file: its file.
    :ivar text: a part of the sentence.
    :ivar reason: why it may stay.
    """

    file: str
    text: str
    reason: str

    def covers(self, hit: Hit) -> bool:
        return hit.file == self.file and self.text in hit.sentence


_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)[.!?][)\"'*_]*\s+(?=[\"'(*_`]*[A-Z`])")
_QUOTED = re.compile(r"``.*?``|`[^`]*`|\"[^\"]*\"|\u201c[^\u201d]*\u201d")
_FIELD = re.compile(r":(?:param|ivar|cvar|var|arg|returns?|raises?|type|rtype|yields?)\b[^:]*:\s*")
_ITEM = re.compile(r"(?:[-*+]|\d+\.|#\.)\s+(?:\[[ x]\] )?")
_DIRECTIVE = re.compile(r"\.\. |:[\w-]+:$|>>> |# (?:noqa|type:|fmt:|ruff:|pragma)")


def check(text: Text) -> Iterator[tuple[int, Rule, str]]:
    """Yield line, rule and sentence of each hit in *text*."""
    for line, sentence in text.sentences():
        bare = _QUOTED.sub("\N{HORIZONTAL ELLIPSIS}", sentence).lstrip("*_(").rstrip()
        if len(bare.split()) < 3:
            continue
        is_title = (text.is_page and bare[0].islower()) or (text.is_cell and bare[-1] not in ".!")
        for rule in RULES:
            if rule.pattern.search(bare) and not (is_title and rule.name == "subject"):
                yield line, rule, sentence


def paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[Text]:
    """Divide the lines of a docstring into texts: a field and a list item begin one, and so does a line behind an empty one."""
    current: list[tuple[int, str]] = []
    literal: int | None = None  # the indentation of the line that a literal block or a directive follows
    for number, raw in lines:
        line = raw.strip()
        indentation = len(raw) - len(raw.lstrip())
        if literal is not None and (not line or indentation > literal):
            continue
        literal = None
        begins = _FIELD.match(line) or _ITEM.match(line)
        if not line or begins or _DIRECTIVE.match(line):
            if current:
                yield Text(current)
            current = []
        if line.endswith("::") or line.startswith(".. "):
            literal = indentation
        if line and not _DIRECTIVE.match(line):
            current.append((number, line[begins.end() :] if begins else line))
        if literal is not None and current:
            yield Text(current)
            current = []
    if current:
        yield Text(current)


def python_texts(source: str, docstrings_only: bool = False) -> Iterator[Text]:
    """Yield the docstrings of a module, and unless *docstrings_only* its comments and strings of three words or more."""
    tree = ast.parse(source)
    docstrings = set()
    inside: set[ast.Constant] = set()  # the parts of f-strings, which are joined
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings.add(first.value)
                yield from paragraphs(enumerate(first.value.value.split("\n"), first.value.lineno))
    if docstrings_only:
        return
    yield from _comments(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [
                part.value if isinstance(part, ast.Constant) else "\N{HORIZONTAL ELLIPSIS}" for part in node.values
            ]
            inside.update(part for part in ast.walk(node) if isinstance(part, ast.Constant))
            yield Text([(node.lineno, "".join(map(str, parts)))])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings | inside:
            if "\n" in node.value:
                yield from paragraphs(enumerate(node.value.split("\n"), node.lineno))
            else:
                yield Text([(node.lineno, node.value)])


def _comments(source: str) -> Iterator[Text]:
    current: list[tuple[int, str]] = []
    column = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, start = token.start
        follows = current and current[-1][0] == line - 1 and column == start and not token.line[:start].strip()
        if not follows and current:
            yield from paragraphs(current)
            current = []
        column = start
        if not _DIRECTIVE.match(token.string):
            current.append((line, token.string.lstrip("#:").strip()))
    if current:
        yield from paragraphs(current)


def markdown_texts(source: str) -> Iterator[Text]:
    """Yield paragraphs, list items and table cells of a page; headings are titles, not sentences."""
    current: list[tuple[int, str]] = []
    fence = ""
    for number, raw in enumerate(source.split("\n"), 1):
        line = raw.strip().removeprefix("> ")
        found = re.match(r"`{3,}|:{3,}|<!--", line)
        if fence:
            fence = "" if line.endswith(fence) else fence
            continue
        item = _ITEM.match(line)
        if not line or found or item or line.startswith(("#", "|")) or raw.startswith("    "):
            if current and not (raw.startswith("    ") and line and not item):
                yield Text(current, is_page=True)
                current = []
        if found:
            fence = "-->" if found[0] == "<!--" else found[0]
            fence = "" if fence == "-->" and line.endswith("-->") else fence
        elif line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            yield from (Text([(number, cell.strip())], True, True) for cell in cells if cell.strip())
        elif line and not line.startswith("#"):
            if current or not raw.startswith("    "):
                current.append((number, line[item.end() :] if item else line))
    if current:
        yield Text(current, is_page=True)


def files(paths: Sequence[str]) -> Iterator[Path]:
    """Yield the files to check below *paths*, which are seen from the project's folder."""
    for name in paths:
        path = PROJECT / name
        if path.is_file():
            yield path
        else:
            yield from sorted(file for file in path.rglob("*") if file.suffix in (".py", ".md"))


def hits(paths: Sequence[str] = (*CODE, *PAGES)) -> Iterator[Hit]:
    """Yield every hit below *paths*, exceptions included."""
    for path in files(paths):
        name = path.relative_to(PROJECT).as_posix()
        source = path.read_text()
        texts = (
            python_texts(source, name.startswith(DOCSTRINGS_ONLY)) if path.suffix == ".py" else markdown_texts(source)
        )
        for text in texts:
            yield from (Hit(name, *found) for found in check(text))


def allowed() -> list[Allowed]:
    """Read tests/prose_exceptions.toml."""
    return [Allowed(**entry) for entry in tomllib.loads(EXCEPTIONS.read_text()).get("exception", [])]


def folder(file: str) -> str:
    """Return the folder that *file* is counted for."""
    parts = file.split("/")
    depth = 2 if parts[:1] in (["dicomtwist"], ["docs"], ["tests"]) else 1
    return "/".join(parts[:depth]) if len(parts) > depth else ("/".join(parts[:-1]) or file)


def main(arguments: Sequence[str]) -> int:
    """Print the hits; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose")
    parser.add_argument("--count", action="store_true", help="print the number of hits of each folder")
    parser.add_argument("paths", nargs="*", metavar="PATH", default=[*CODE, *PAGES])
    options = parser.parse_args(arguments)
    exceptions = allowed()
    found, used = [], set()
    for hit in hits(options.paths):
        covering = {exception for exception in exceptions if exception.covers(hit)}
        used |= covering
        if not covering:
            found.append(hit)
    if options.count:
        for name, count in sorted(Counter(folder(hit.file) for hit in found).items()):
            print(f"{count:5} {name}")
    else:
        for hit in found:
            print(hit)
    for exception in exceptions if options.paths == [*CODE, *PAGES] else ():
        if exception not in used:
            print(f"{EXCEPTIONS.name}: nothing is covered by {exception.file}: {exception.text}")
    print(f"{len(found)} sentences to rewrite" if found else "no sentence to rewrite")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

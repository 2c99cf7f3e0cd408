"""The rooms of docs/architecture.md: each module is in one of them, and imports nothing but what that one may."""

from __future__ import annotations

import ast
import re
import sys
import unittest
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import dicomtwist

PACKAGE = Path(dicomtwist.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"

#: Packages by the name that they are imported under, and how the table calls them.
PACKAGES = {
    "click": "click",
    "cryptography": "cryptography",
    "OpenSSL": "pyOpenSSL",
    "pydicom": "pydicom",
    "service_identity": "service-identity",
    "sqlalchemy": "SQLAlchemy",
    "tqdm": "tqdm",
    "twisted": "Twisted",
    "zope": "Twisted",  # zope.interface, which Twisted stands on
}

ALL_ABOVE = None


class Room(NamedTuple):
    """
    One row of the table.

    :ivar modules: its files; a folder stands for all in it that no other room has. What is further right may import what
        is further left.
    :ivar own: the rooms of the package that it may import, of those above it.
    :ivar others: the packages that it may import besides the standard library.
    """

    modules: tuple[str, ...]
    own: tuple[str, ...] | None = ALL_ABOVE
    others: tuple[str, ...] = ()


ROOMS = (
    Room(("errors.py",), ()),
    Room(("ul/",), ("errors.py",)),
    Room(("dimse/",), ("errors.py", "ul/")),
    Room(("datasets/chunk_buffer.py",), ()),
    Room(("part10.py", "datasets/header_scanner.py", "datasets/layout_cache.py"), ()),
    Room(("sop_class.py", "sop_relations.py", "presentation.py"), ("ul/", "dimse/"), ("pydicom",)),
    Room(("association/negotiation.py", "settings.py")),
    Room(("exchange/operations_window.py",), (), ("Twisted",)),
    Room(("runtime/threads.py",), (), ("Twisted",)),
    Room(("datasets/nesting.py",), ("errors.py",), ("pydicom",)),
    Room(
        ("datasets/codec.py", "datasets/sources.py"),
        ("errors.py", "datasets/nesting.py", "part10.py", "datasets/chunk_buffer.py", "runtime/threads.py"),
        ("Twisted", "pydicom"),
    ),
    Room(("datasets/identifier.py",), ("errors.py", "datasets/codec.py"), ("pydicom",)),
    Room(("evt.py",), ALL_ABOVE, ("pydicom",)),
    Room(("exchange/store_request.py",), ALL_ABOVE, ("Twisted", "pydicom")),
    Room(("scp/",), ALL_ABOVE, ("Twisted", "pydicom")),
    Room(("exchange/send_queue.py", "exchange/exchange.py"), ALL_ABOVE, ("Twisted",)),
    Room(("association/record.py",), ("errors.py", "dimse/", "evt.py")),
    Room(("transport/socket_writer.py", "transport/upper_layer.py"), ("errors.py", "ul/"), ("Twisted",)),
    Room(
        ("scu/responses.py", "scu/dimse_c.py", "scu/dimse_n.py", "association/timeouts.py"),
        ALL_ABOVE,
        ("Twisted", "pydicom"),
    ),
    Room(("tls/errors.py",), (), ("Twisted", "pyOpenSSL", "service-identity")),
    Room(("tls/contexts.py",), ("tls/errors.py",), ("Twisted", "pyOpenSSL", "service-identity", "cryptography")),
    Room(("endpoints.py",), ("tls/errors.py", "tls/contexts.py"), ("Twisted",)),
    Room(("transport/peer_address.py",), ("association/negotiation.py", "endpoints.py"), ("Twisted",)),
    Room(("association/association.py",), ALL_ABOVE, ("Twisted", "pydicom")),
    Room(("association/requestor.py", "association/acceptor.py"), ALL_ABOVE, ("Twisted",)),
    Room(("ae/server.py",), ALL_ABOVE, ("Twisted",)),
    Room(("ae/legacy_callbacks.py",), ("evt.py",)),
    Room(("ae/ae.py",), ALL_ABOVE, ("Twisted",)),
    Room(("pool/lease.py", "pool/retry.py", "pool/pool.py"), ALL_ABOVE, ("Twisted",)),
    Room(("__init__.py",)),
    Room(("testing/",), ("errors.py", "ul/", "dimse/"), ("Twisted",)),
    Room(
        (
            "archive/storage/system_calls.py",
            "archive/storage/types.py",
            "archive/storage/file_writer.py",
            "archive/storage/file_store.py",
        ),
        (),
    ),
    Room(
        ("archive/",),
        (
            "errors.py",
            "dimse/",
            "datasets/chunk_buffer.py",
            "part10.py",
            "datasets/header_scanner.py",
            "datasets/layout_cache.py",
            "runtime/threads.py",
            "evt.py",
            "archive/storage/system_calls.py",
            "archive/storage/types.py",
            "archive/storage/file_store.py",
        ),
        ("Twisted", "pydicom", "SQLAlchemy"),
    ),
    Room(("transport/peer_directory.py",), ("association/negotiation.py", "transport/peer_address.py"), ("Twisted",)),
    Room(
        ("access/certificates.py", "access/rules.py", "access/users.py"),
        ("association/negotiation.py",),
        ("cryptography",),
    ),
    Room(("access/enforcement.py",), ALL_ABOVE, ("Twisted",)),
    Room(("scp/dispatch.py",), ("dimse/", "evt.py"), ("Twisted",)),
    Room(("archive/services/mpps.py", "archive/services/worklist.py"), ALL_ABOVE, ("Twisted", "pydicom")),
    Room(("archive/integrity.py", "archive/services/commitment_journal.py"), ALL_ABOVE, ("SQLAlchemy",)),
    Room(
        ("archive/services/storage_commitment.py", "archive/services/query_retrieve.py"),
        ALL_ABOVE,
        ("Twisted", "pydicom"),
    ),
    Room(("daemon/configuration.py", "transport/listening_sockets.py", "daemon/workers.py"), ALL_ABOVE, ("Twisted",)),
    Room(("ae/monitor.py",), (), ("Twisted",)),
    Room(("runtime/memory.py",), ()),
    Room(
        ("service.py", "daemon/archive_service.py", "daemon/reload.py", "daemon/supervisor.py", "daemon/tap.py"),
        ALL_ABOVE,
        ("Twisted",),
    ),
    Room(("tools/",), ALL_ABOVE, ("Twisted", "pydicom", "pyOpenSSL", "click", "tqdm")),
)

#: Imports that go up all the same: (importer, imported), each with its reason behind it.
EXCEPTIONS: frozenset[tuple[str, str]] = frozenset()


def modules() -> dict[str, str]:
    """Every module of the package: its name to its file, seen from the package's folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE)
        parts = file.parts[:-1] if file.name == "__init__.py" else file.with_suffix("").parts
        found[".".join(("dicomtwist", *parts))] = file.as_posix()
    return found


def place(file: str) -> tuple[int, int]:
    """Where *file* is in the table: its room, and its place there. Its own name counts before that of its folder."""
    folder = file.rpartition("/")[0] + "/"
    for name in (file, folder):
        for number, room in enumerate(ROOMS):
            if name in room.modules:
                return number, room.modules.index(name)
    if file.endswith("/__init__.py"):  # the face of a folder: it hands on names of the modules in it
        return max(
            (number, position)
            for number, room in enumerate(ROOMS)
            for position, name in enumerate(room.modules)
            if name.startswith(folder)
        )
    raise LookupError(f"dicomtwist/{file} is in no room: add it to ROOMS here and to docs/architecture.md")


def run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All that is in *node* and that a type checker is not alone in reading."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from run_time(other)
        else:
            yield child
            yield from run_time(child)


def imports(file: str) -> Iterator[str]:
    """The names that *file* imports at run time, wherever in it; a module where the name is one, else what it is in."""
    known = modules()
    for node in run_time(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{file} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


class Layers(unittest.TestCase):
    def setUp(self) -> None:
        self.modules = modules()

    def test_every_module_has_one_room(self) -> None:
        names = [name for room in ROOMS for name in room.modules]
        self.assertEqual(len(names), len(set(names)))
        for file in self.modules.values():
            place(file)
        for name in names:
            self.assertTrue((PACKAGE / name).exists(), f"{name} has a room and is not there")

    def test_nothing_imports_upwards(self) -> None:
        wrong = []
        for file in self.modules.values():
            number, position = place(file)
            room = ROOMS[number]
            for name in imports(file):
                if name not in self.modules or (file, self.modules[name]) in EXCEPTIONS:
                    continue
                if file.endswith("/__init__.py") and self.modules[name].startswith(file.removesuffix("__init__.py")):
                    continue  # a face hands on names of its own folder
                imported, before = place(self.modules[name])
                if imported == number:
                    # Within a folder the order is free, see the test of cycles.
                    allowed = before < position or room.modules[position].endswith("/")
                else:
                    own = (
                        room.own
                        if room.own is not None
                        else [name for above in ROOMS[:number] for name in above.modules]
                    )
                    allowed = imported < number and ROOMS[imported].modules[before] in own
                if not allowed:
                    wrong.append(f"{file} imports {self.modules[name]}")
        self.assertEqual(wrong, [])

    def test_no_other_packages(self) -> None:
        wrong = []
        for file in self.modules.values():
            room = ROOMS[place(file)[0]]
            for name in {name.partition(".")[0] for name in imports(file)} - sys.stdlib_module_names - {"dicomtwist"}:
                if PACKAGES.get(name) not in room.others:
                    wrong.append(f"{file} imports {name}")
        self.assertEqual(wrong, [])

    def test_no_cycles(self) -> None:
        graph = {
            file: {self.modules[name] for name in imports(file) if name in self.modules}
            for file in self.modules.values()
        }
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            self.fail(" -> ".join(error.args[1]))

    def test_the_exceptions_are_needed(self) -> None:
        found = {
            (file, self.modules[name])
            for file in self.modules.values()
            for name in imports(file)
            if name in self.modules
        }
        self.assertEqual(EXCEPTIONS - found, set())


class Table(unittest.TestCase):
    """The table of docs/architecture.md says the same."""

    def test_same_rooms(self) -> None:
        section = ARCHITECTURE.read_text().partition("## Rooms\n")[2].partition("\n## ")[0]
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"
        ]
        told = [(tuple(re.findall(r"`([^`]+)`", row[0])), row[2]) for row in rows]
        self.assertEqual(told, [(room.modules, self.words(room)) for room in ROOMS])

    def words(self, room: Room) -> str:
        """What the table says that *room* may import."""
        own = "all above" if room.own is None else ", ".join(f"`{name}`" for name in room.own)
        return "; ".join(part for part in (own, ", ".join(room.others)) if part) or "nothing"

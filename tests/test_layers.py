"""The house of docs/architecture.md: each module belongs to one room, and imports only what that room may import."""

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

#: The public modules of the package's root; each has a page in docs/reference.
ROOT_MODULES = {
    "__init__.py",
    "endpoints.py",
    "errors.py",
    "evt.py",
    "interfaces.py",
    "logs.py",
    "part10.py",
    "presentation.py",
    "service.py",
    "settings.py",
    "sop_class.py",
    "sop_relations.py",
    "trace.py",
}

#: The most modules that one folder may hold, ``__init__.py`` and ``__main__.py`` not counted.
MOST_MODULES = 12

#: Import names of third-party packages, and their names in the table.
PACKAGES = {
    "PIL": "Pillow",
    "click": "click",
    "cryptography": "cryptography",
    "jinja2": "Jinja2",
    "markupsafe": "Jinja2",  # a dependency of it
    "imagecodecs": "imagecodecs",
    "numpy": "NumPy",
    "OpenSSL": "pyOpenSSL",
    "prometheus_client": "prometheus-client",
    "pydicom": "pydicom",
    "service_identity": "service-identity",
    "sqlalchemy": "SQLAlchemy",
    "tqdm": "tqdm",
    "twisted": "Twisted",
    "zope": "Twisted",  # zope.interface is a dependency of Twisted
}

#: The only files that may import SQLAlchemy; a folder stands for all its files.
SQL = ("archive/index/", "archive/query/", "archive/services/commitment_journal.py", "forwarding/tasks/")


class Room(NamedTuple):
    """
    One row of the table in docs/architecture.md.

    :ivar modules: its folders and files, the lowest first: an entry may import those before it.
    :ivar packages: the third-party packages that it may import. Of this package it may import every lower room.
    """

    modules: tuple[str, ...]
    packages: tuple[str, ...] = ()


#: The rooms from the lowest to the highest. The table and the picture have the highest on top.
ROOMS = (
    Room(("dimse/status_tables.py", "dimse/status.py", "errors.py", "part10.py")),
    Room(("ul/",)),
    Room(("dimse/",)),
    Room(("eventloop/", "runtime/"), ("Twisted",)),
    Room(("sop_class.py", "sop_relations.py", "presentation.py", "settings.py"), ("pydicom",)),
    Room(("datasets/",), ("Twisted", "pydicom")),
    Room(("dicomweb/",), ("pydicom",)),
    Room(("interfaces.py", "evt.py"), ("Twisted", "pydicom")),
    Room(
        ("transport/socket_writer.py", "tls/", "endpoints.py"),
        ("Twisted", "pyOpenSSL", "service-identity", "cryptography"),
    ),
    Room(("transport/",), ("Twisted",)),
    Room(("dicomweb/client/", "dicomweb/__init__.py"), ("Twisted", "pydicom", "pyOpenSSL")),
    Room(("exchange/",), ("Twisted", "pydicom")),
    Room(("scu/",), ("Twisted", "pydicom")),
    Room(("scp/",), ("Twisted", "pydicom")),
    Room(("association/",), ("Twisted", "pydicom")),
    Room(("logs.py", "trace.py", "ae/", "service.py"), ("Twisted",)),
    Room(("pool/", "__init__.py"), ("Twisted", "pydicom")),
    Room(("testing/",), ("Twisted",)),
    Room(("pixels/",), ("Twisted", "pydicom", "NumPy", "imagecodecs", "Pillow")),
    Room(("access/",), ("Twisted", "cryptography")),
    Room(("forwarding/",), ("pydicom",)),
    Room(("archive/storage/",), ("Twisted",)),
    Room(("archive/inbox/",)),
    Room(("archive/index/",), ("pydicom", "SQLAlchemy")),
    Room(("forwarding/tasks/",), ("SQLAlchemy",)),
    Room(("archive/removal/", "archive/", "archive/query/", "archive/reading/"), ("Twisted", "pydicom", "SQLAlchemy")),
    Room(("archive/services/", "archive/server.py"), ("Twisted", "pydicom", "SQLAlchemy")),
    Room(("forwarding/receipt/",), ("Twisted", "pydicom")),
    Room(
        ("forwarding/delivery/", "forwarding/forwarder.py", "forwarding/__init__.py", "forwarding/operators/"),
        ("Twisted", "pydicom"),
    ),
    Room(("web/http/", "web/"), ("Twisted", "pydicom", "prometheus-client", "Jinja2")),
    Room(("audit/",), ("Twisted",)),
    Room(("retrieval/",), ("Twisted", "pydicom")),
    Room(("faces/", "asyncio/", "sync/"), ("Twisted", "pydicom")),
    Room(("daemon/",), ("Twisted",)),
    Room(
        (
            "tools/query/",
            "tools/display/",
            "tools/",
            "tools/files/",
            "tools/server/",
            "tools/runners/",
            "tools/commands/",
        ),
        ("Twisted", "pydicom", "pyOpenSSL", "click", "tqdm"),
    ),
)

#: Imports and private names that break a rule all the same: (file, what), each with its reason beside it.
EXCEPTIONS: frozenset[tuple[str, str]] = frozenset(
    {
        ("archive/users.py", "access/users.py"),  # the earlier name of a command, kept for scripts
        # zlib has no public name for the type of its decompressors.
        ("datasets/header_scanner.py", "_Decompress"),
        # pydicom's Dataset gives no other access to its elements without decoding them.
        ("datasets/identifier.py", "_dict"),
    }
)


def modules() -> dict[str, str]:
    """Return every module of the package: its dotted name and its file, relative to the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE)
        parts = file.parts[:-1] if file.name == "__init__.py" else file.with_suffix("").parts
        found[".".join(("dicomtwist", *parts))] = file.as_posix()
    return found


MODULES = modules()


def position(file: str) -> tuple[int, int]:
    """Return the row of *file* in the table and its position in that row. The longest matching entry counts."""
    matches = [
        (len(name), row, column)
        for row, room in enumerate(ROOMS)
        for column, name in enumerate(room.modules)
        if file == name or (name.endswith("/") and file.startswith(name))
    ]
    if not matches:
        raise LookupError(f"dicomtwist/{file} is in no room: add it to ROOMS here and to docs/architecture.md")
    return max(matches)[1:]


def parsed(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text())


def imports(file: str) -> Iterator[str]:
    """Yield the names that *file* imports, for type checkers too: a module's name if it is one, else its module's."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{file} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def own_imports(file: str) -> set[str]:
    """Return the files of this package that *file* imports."""
    return {MODULES[name] for name in imports(file) if name in MODULES}


def defined_names(tree: ast.Module) -> set[str]:
    """Return all names that a module defines: functions, classes, variables, attributes, slots, arguments."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # an entry of __slots__
    return names


def foreign_privates(file: str) -> Iterator[str]:
    """Yield the names with one leading underscore that *file* takes from another module."""
    tree = parsed(file)
    own = defined_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.attr


def is_private(name: str) -> bool:
    # The documentation of Python has this one of os.
    return name.startswith("_") and not name.startswith("__") and name != "_exit"


def makes_paths(file: str) -> bool:
    """Return whether *file*, outside of ``archive/storage``, names the suffix of instances, so makes paths of them."""
    outside = file.startswith(("archive/", "daemon/")) and not file.startswith("archive/storage/")
    return outside and re.search(r"INSTANCE_SUFFIX|\.dcm\b", (PACKAGE / file).read_text()) is not None


class Rooms(unittest.TestCase):
    def test_each_entry_is_there_once(self) -> None:
        names = [name for room in ROOMS for name in room.modules]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual([name for name in names if not (PACKAGE / name).exists()], [])
        for file in MODULES.values():
            position(file)

    def test_root_holds_public_modules_only(self) -> None:
        self.assertEqual({file for file in MODULES.values() if "/" not in file}, ROOT_MODULES)

    def test_small_folders(self) -> None:
        for folder in {PACKAGE / file for file in MODULES.values()}:
            held = [path for path in folder.parent.glob("*.py") if not path.name.startswith("__")]
            self.assertLessEqual(len(held), MOST_MODULES, folder.parent)

    def test_nothing_imports_upwards(self) -> None:
        wrong = []
        for file in MODULES.values():
            row, column = position(file)
            for imported in own_imports(file):
                if position(imported) > (row, column) and (file, imported) not in EXCEPTIONS:
                    wrong.append(f"{file} imports {imported}")
        self.assertEqual(sorted(wrong), [])

    def test_no_cycles(self) -> None:
        """A module imports no module that imports it, directly or through others; imports for type checkers count."""
        try:
            TopologicalSorter(
                {
                    file: {name for name in own_imports(file) if (file, name) not in EXCEPTIONS}
                    for file in MODULES.values()
                }
            ).prepare()
        except CycleError as error:
            self.fail(" -> ".join(error.args[1]))

    def test_no_other_packages(self) -> None:
        wrong = []
        for file in MODULES.values():
            room = ROOMS[position(file)[0]]
            for name in {name.partition(".")[0] for name in imports(file)} - sys.stdlib_module_names - {"dicomtwist"}:
                if PACKAGES.get(name) not in room.packages:
                    wrong.append(f"{file} imports {name}")
                elif (file, name) in EXCEPTIONS:
                    continue
                elif name == "sqlalchemy" and not any(
                    file == sql or (sql[-1] == "/" and file.startswith(sql)) for sql in SQL
                ):
                    wrong.append(f"{file} imports {name}, outside of the files for SQL")
        self.assertEqual(sorted(wrong), [])

    def test_no_foreign_privates(self) -> None:
        wrong = [
            f"{file} uses {name}"
            for file in MODULES.values()
            for name in foreign_privates(file)
            if (file, name) not in EXCEPTIONS
        ]
        self.assertEqual(sorted(wrong), [])

    def test_paths_of_instances_stay_in_storage(self) -> None:
        """Outside of ``archive/storage`` nothing knows how a path is made of UIDs."""
        wrong = [file for file in MODULES.values() if makes_paths(file) and (file, ".dcm") not in EXCEPTIONS]
        self.assertEqual(wrong, [])

    def test_the_exceptions_are_needed(self) -> None:
        found = {
            (file, what)
            for file in MODULES.values()
            for what in (*own_imports(file), *foreign_privates(file), *imports(file))
        } | {(file, ".dcm") for file in MODULES.values() if makes_paths(file)}
        self.assertEqual(EXCEPTIONS - found, set())


class Table(unittest.TestCase):
    """The table of docs/architecture.md agrees with the code."""

    def test_same_rooms(self) -> None:
        section = ARCHITECTURE.read_text().partition("## Rooms\n")[2].partition("\n## ")[0]
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"
        ]
        told = [(tuple(re.findall(r"`([^`]+)`", row[0])), row[2]) for row in rows]
        self.assertEqual(told, [(room.modules[::-1], ", ".join(room.packages) or "none") for room in reversed(ROOMS)])

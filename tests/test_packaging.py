"""
The contents of an installation: plugins that Twisted finds, and rooms that need nothing but Python.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

import dicomtwist
from dicomtwist.presentation import PREBUILT_CONTEXTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dicomtwist"

# Runs without Twisted, pydicom and the package's own __init__, which imports both.
# argv: the package's folder, modules.
IMPORT_PURE = """
import importlib, sys, types
for blocked in ("twisted", "zope", "pydicom"):
    sys.modules[blocked] = None
package = types.ModuleType("dicomtwist")
package.__path__ = [sys.argv[1]]
sys.modules["dicomtwist"] = package
before = set(sys.modules)
for name in sys.argv[2:]:
    importlib.import_module(name)
pure = {"dicomtwist." + room for room in ("ul", "dimse", "errors", "part10")}
strangers = [
    name
    for name in set(sys.modules) - before
    if name.partition(".")[0] not in sys.stdlib_module_names and ".".join(name.split(".")[:2]) not in pure
]
if strangers:
    sys.exit(f"imported, but not pure: {sorted(strangers)}")
"""

# The cost of the plugin file, which every twist command pays; argv: the project's folder.
IMPORT_PLUGIN = """
import sys
sys.path.insert(0, sys.argv[1])
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
assert "dicom" in [maker.tapname for maker in getPlugins(IServiceMaker)]
import twisted.plugins.dicomtwist_plugin
heavy = {"dicomtwist", "pydicom", "OpenSSL", "twisted.internet.reactor"} & set(sys.modules)
if heavy:
    sys.exit(f"the plugin imports {sorted(heavy)}")
"""

# The cost of "import dicomtwist", and the names that the package has nevertheless.
IMPORT_ROOT = """
import sys
import dicomtwist
heavy = {"pydicom", "twisted", "OpenSSL"} & set(sys.modules)
if heavy:
    sys.exit(f"the package imports {sorted(heavy)}")
if dicomtwist.pool.AssociationPool is not dicomtwist.AssociationPool:
    sys.exit("a subpackage is not an attribute of the package")
from dicomtwist import *
AE, evt, CTImageStorage = AE, evt, sop_class.CTImageStorage
"""


def run_python(source: str, *args: object) -> tuple[int, str]:
    """
    Run source in a fresh interpreter and return its exit code and output.
    """
    done = subprocess.run(
        [sys.executable, "-c", source, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def pure_modules() -> list[str]:
    """Return the modules on disk that may import only the standard library, by their dotted names."""
    paths = [*(PACKAGE / "ul").rglob("*.py"), *(PACKAGE / "dimse").rglob("*.py")]
    paths += [path for path in (PACKAGE / "errors.py", PACKAGE / "part10.py") if path.exists()]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return sorted(name.removesuffix(".__init__") for name in names)


class PluginTests(SynchronousTestCase):
    """Twisted finds the plugins of dicomtwist."""

    def test_command(self) -> None:
        """
        ``twist`` has the command ``dicom``, once.
        """
        makers: list[Any] = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "dicom"]
        self.assertEqual([maker.module for maker in makers], ["dicomtwist.daemon.tap"])

    def test_endpoint_prefix(self) -> None:
        """
        ``dicomtls:`` is an endpoint string for servers and for clients.
        """
        for interface in (IStreamServerEndpointStringParser, IStreamClientEndpointStringParserWithReactor):
            plugins: list[Any] = list(getPlugins(interface))
            prefixes = [plugin.prefix for plugin in plugins]
            self.assertEqual(prefixes.count("dicomtls"), 1, interface)

    def test_light(self) -> None:
        """The plugin file imports nothing of the package, because every ``twist`` command would pay for that."""
        self.assertEqual(run_python(IMPORT_PLUGIN, ROOT), (0, ""))

    def test_plugin_folders_are_not_packages(self) -> None:
        """
        An ``__init__.py`` in them would hide Twisted's own plugins.
        """
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])


class RootTests(SynchronousTestCase):
    """
    The package imports its names when they are first used.
    """

    def test_light(self) -> None:
        """The package alone imports neither Twisted nor pydicom, and has all its names nevertheless."""
        self.assertEqual(run_python(IMPORT_ROOT), (0, ""))

    def test_names(self) -> None:
        """Each public name is the object of the module in which type checkers find it, and no name is missing."""
        tree = ast.parse((PACKAGE / "__init__.py").read_text())
        (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
        names = set(PREBUILT_CONTEXTS)
        for node in block.body:
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                for name in [alias.name for alias in node.names]:
                    names.add(name)
                    value = getattr(importlib.import_module(node.module), name)
                    self.assertIs(getattr(dicomtwist, name), value)
        self.assertEqual(names, set(dicomtwist.__all__))
        self.assertEqual(len(names), len(dicomtwist.__all__))
        self.assertEqual(names - set(dir(dicomtwist)), set())
        prebuilt = [
            node.target.id
            for node in block.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ]
        self.assertEqual(sorted(prebuilt), sorted(PREBUILT_CONTEXTS))

    def test_unknown_names(self) -> None:
        """An unknown name raises an AttributeError."""
        self.assertRaises(AttributeError, getattr, dicomtwist, "Nonsense")


class PurityTests(SynchronousTestCase):
    """
    Protocol code needs neither Twisted nor pydicom.
    """

    def test_pure_rooms(self) -> None:
        """Each module of the pure rooms can be imported if only the standard library is available."""
        modules = pure_modules()
        for room in ("dicomtwist.ul.", "dicomtwist.dimse."):
            self.assertTrue(any(name.startswith(room) for name in modules), f"no module in {room}")
        self.assertEqual(run_python(IMPORT_PURE, PACKAGE, *modules), (0, ""))

"""
An environment as a user has it: made with the commands of the tutorial, so with the real scripts ``twist``, ``trial`` and
``dicomtwist``, and with the package installed instead of imported from the checkout.

The environment is made once for each state of the sources, in ``build/user-environment``, and shared by all tests.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from tests import peers
from tests.documentation import DOCS, PROJECT, blocks, commands

#: What a checkout needs to be installed from, relative to its folder.
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "dicomtwist", "twisted")

_FOLDER = PROJECT / "build" / "user-environment"


def installation() -> list[str]:
    """Return the commands of the tutorial that install dicomtwist, for a shell in the folder of the sources."""
    (block,) = [block for block in blocks(DOCS / "tutorial.md") if block.key == "installs"]
    return [command for command, _ in commands(block)]


def _files() -> list[Path]:
    found: list[Path] = []
    for name in SOURCES:
        source = PROJECT / name
        found += source.rglob("*.py") if source.is_dir() else [source]
    return sorted(found)


def _state() -> str:
    """Return a digest of everything that the environment is made from."""
    digest = hashlib.sha256("".join([sys.version, *installation()]).encode())
    for path in _files():
        digest.update(f"{path.relative_to(PROJECT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _make() -> Path:
    """
    Make the environment, unless it exists already; blocks.

    :returns: the folder of its scripts.
    :raises SkipTest: packages cannot be fetched here; if the environment has ``CI=true``, it is a :class:`peers.PeerError`.
    """
    _FOLDER.parent.mkdir(exist_ok=True)
    with _FOLDER.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state, made_from, sources = _state(), _FOLDER / "state", _FOLDER / "dicomtwist"
        scripts = sources / ".venv" / "bin"
        if made_from.exists() and made_from.read_text() == state:
            return scripts
        shutil.rmtree(_FOLDER, ignore_errors=True)
        for path in [*_files(), PROJECT / "dicomtwist" / "py.typed"]:
            copy = sources / path.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        python = _FOLDER / "bin" / "python3"
        python.parent.mkdir()
        python.symlink_to(Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"))
        script = "".join(["set -e\n", *installation(), "command -v dicomtwist\n"])
        env = {"PATH": f"{python.parent}:/usr/bin:/bin"}
        done = subprocess.run(
            ["/bin/bash", "-c", script],
            cwd=sources,
            env={**{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode or done.stdout.splitlines()[-1:] != [str(scripts / "dicomtwist")]:
            raise peers.missing_error(f"the commands of the tutorial do not install dicomtwist here:\n{done.stdout}")
        made_from.write_text(state)
        return scripts


@functools.cache
def _made() -> Path | Exception:
    try:
        return _make()
    except (SkipTest, peers.PeerError) as error:
        return error  # the attempt takes long, so it is not repeated for each test


def make_scripts() -> Path:
    """Return what :func:`scripts` returns; blocks."""
    found = _made()
    if isinstance(found, Exception):
        raise found
    return found


def scripts() -> Deferred[Path]:
    """Return the folder of the environment's scripts, for the front of ``PATH``; makes the environment on first use."""
    return deferToThread(make_scripts)

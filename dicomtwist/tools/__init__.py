"""
The ``dicomtwist`` command: DICOM from a shell, for engineers at hospitals and test benches.

This module is only the entry point. If the extra ``[tools]`` is missing, it says what to install. The command itself is
in :mod:`dicomtwist.tools.cli`, and each subcommand is a module of its own.
"""

from __future__ import annotations

import importlib.util
import sys

#: The modules that the extra ``[tools]`` of setup.cfg installs.
REQUIRED = ("click", "tqdm")


def main() -> None:
    """
    Run the command with the arguments of this process.

    :raises SystemExit: always, with the exit status: 0 success, 1 failure, 2 wrong usage, 3 no association.
    """
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        needs = " and ".join(missing)
        print(f"dicomtwist: this command needs {needs}: pip install 'dicomtwist[tools]'", file=sys.stderr)
        raise SystemExit(2)
    from dicomtwist.tools.cli import dicomtwist

    dicomtwist(prog_name="dicomtwist")

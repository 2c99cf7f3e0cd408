"""
The ``dicomtwist`` command: what an engineer at a hospital or a test bench asks of a peer, from a shell.

Here is only the way in, which says what to install where the extra ``[tools]`` is missing. The command itself is in
:mod:`dicomtwist.tools.cli`, and each subcommand in a module of its own.
"""

from __future__ import annotations

import importlib.util
import sys

#: What the extra ``[tools]`` of setup.cfg brings, by the names of the modules.
REQUIRED = ("click", "tqdm")


def main() -> None:
    """
    Run the command with the arguments of this process.

    :raises SystemExit: always, with the exit status: 0 all well, 1 some failed, 2 used wrongly, 3 no association.
    """
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        needs = " and ".join(missing)
        print(f"dicomtwist: this command needs {needs}: pip install 'dicomtwist[tools]'", file=sys.stderr)
        raise SystemExit(2)
    from dicomtwist.tools.cli import dicomtwist

    dicomtwist(prog_name="dicomtwist")

"""
The ``dicomtwist`` command: DICOM from a shell, for engineers at hospitals and test benches.

This module is only the entry point. If the extra ``[tools]`` is missing, it says what to install. The command itself is
in :mod:`dicomtwist.tools.cli`, and each subcommand is a module of its own.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: The modules that the extra ``[tools]`` of setup.cfg installs.
REQUIRED = ("click", "tqdm")


def main() -> None:
    """
    Run the command with the arguments of this process.

    SIGINT ends the process until a subcommand handles it: there is nothing to clean up, and a shell sees the status 130. As an
    exception it would be a traceback of the import that it comes in.

    :raises SystemExit: always, with the exit status: 0 success, 1 failure, 2 wrong usage, 3 no association.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        needs = " and ".join(missing)
        print(f"dicomtwist: this command needs {needs}: pip install 'dicomtwist[tools]'", file=sys.stderr)
        raise SystemExit(2)
    from dicomtwist.tools.cli import dicomtwist

    dicomtwist(prog_name="dicomtwist")


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """
    Have SIGINT raise KeyboardInterrupt for a while, if it would end the process: in code that leaves something behind, as a
    prompt leaves a terminal without echo.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

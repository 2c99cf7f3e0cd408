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


class _Ended(BaseException):
    """A signal that ends the process, as an exception, so that what was begun is put away."""

    def __init__(self, number: int) -> None:
        self.number = number


def _end(number: int, frame: object) -> None:
    # A second one kills at once.
    signal.signal(number, signal.SIG_DFL)
    raise _Ended(number)


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """
    Have the signals that would end the process raise exceptions for a while: in code that leaves something behind, as a
    prompt leaves a terminal without echo.

    SIGINT is KeyboardInterrupt. SIGTERM and SIGHUP end the process by the signal when the block was left.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _end, signal.SIGHUP: _end}
    taken = [number for number in handlers if signal.getsignal(number) is signal.SIG_DFL]
    ended = 0
    for number in taken:
        signal.signal(number, handlers[number])
    try:
        yield
    except _Ended as signalled:
        ended = signalled.number
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
    if ended:
        signal.raise_signal(ended)

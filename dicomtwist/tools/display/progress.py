"""
The progress bar of what takes its time, on a terminal.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm
from twisted.internet.task import LoopingCall

from dicomtwist.tools.display.console import NORMAL, Output

#: How often the bar is drawn, in seconds.
REDRAW = 0.2

# It would start a thread to look after bars that are not updated; ours is, by the reactor.
tqdm.monitor_interval = 0


class Progress:
    """
    A bar on standard error where that is a terminal, and nothing otherwise.

    :param output: what it makes room for; with ``-q`` there is no bar.
    :param done: returns how much is done.
    :param total: returns how much there is, ``None`` while that is not known: then the time left is not told.
    :param note: returns what to write beside it.
    :param unit: what is counted; bytes are told in kB and MB.

    :ivar shown: whether there is one.
    """

    def __init__(
        self,
        output: Output,
        done: Callable[[], int],
        total: Callable[[], int | None],
        note: Callable[[], str],
        unit: str = "B",
    ) -> None:
        self.shown = sys.stderr.isatty() and output.verbosity >= NORMAL
        self._output = output
        self._unit = unit
        self._done, self._total, self._note = done, total, note
        self._bar: tqdm[Any] | None = None
        self._loop = LoopingCall(self._draw)

    def start(self, reactor: Any) -> None:
        """Begin to draw it."""
        if not self.shown:
            return
        # A terminal that does not know its size, as on a serial line, says 0: a bar of no width would be none.
        knows_size = os.get_terminal_size(sys.stderr.fileno()).columns > 0
        assumed = shutil.get_terminal_size()
        self._bar = tqdm(
            total=None,
            unit=self._unit,
            unit_scale=self._unit == "B",
            file=sys.stderr,
            dynamic_ncols=knows_size,
            ncols=None if knows_size else assumed.columns,
            nrows=None if knows_size else assumed.lines,
            mininterval=0,
        )
        self._output.around = self._around
        self._loop.clock = reactor
        self._loop.start(REDRAW, now=False)

    def _draw(self) -> None:
        bar = self._bar
        assert bar is not None
        total = self._total()
        done = self._done()
        # What is not known yet is not told; what goes beyond its end was not counted right, and does not show.
        bar.total = None if total is None else max(total, done)
        bar.set_postfix_str(self._note(), refresh=False)
        if done > bar.n:
            bar.update(done - bar.n)
        else:
            bar.refresh()

    def _around(self, write: Callable[[], None]) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            write()

    def stop(self) -> None:
        """Draw it for the last time."""
        if self._bar is None:
            return
        self._loop.stop()
        self._draw()
        self._bar.close()
        self._bar = None
        self._output.around = None

"""
The progress bar of a long operation, on a terminal.
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

#: The interval at which the bar is drawn, in seconds.
REDRAW = 0.2

# tqdm would start a thread that redraws stalled bars; the reactor redraws ours.
tqdm.monitor_interval = 0


class Progress:
    """
    A progress bar on standard error, shown only if that is a terminal.

    :param output: the output that the bar makes room for; with ``-q`` there is no bar.
    :param done: returns the amount that is done.
    :param total: returns the total amount, ``None`` while it is unknown; the bar then shows no remaining time.
    :param note: returns the text beside the bar.
    :param unit: the unit of the amounts; bytes are shown in kB and MB.

    :ivar shown: whether there is a bar.
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
        """Begin to draw the bar."""
        if not self.shown:
            return
        # A terminal that does not know its size, as on a serial line, reports 0 columns, in which no bar would fit.
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
        self._output.outside_progress = self._outside_progress
        self._loop.clock = reactor
        self._loop.start(REDRAW, now=False)

    def _draw(self) -> None:
        bar = self._bar
        assert bar is not None
        total = self._total()
        done = self._done()
        # A total that is exceeded was an estimate; the bar then ends at 100 %.
        bar.total = None if total is None else max(total, done)
        bar.set_postfix_str(self._note(), refresh=False)
        if done > bar.n:
            bar.update(done - bar.n)
        else:
            bar.refresh()

    def _outside_progress(self, write: Callable[[], None]) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            write()

    def stop(self) -> None:
        """Draw the bar for the last time."""
        if self._bar is None:
            return
        self._loop.stop()
        self._draw()
        self._bar.close()
        self._bar = None
        self._output.outside_progress = None

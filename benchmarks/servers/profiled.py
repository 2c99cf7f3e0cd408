"""
A server under cProfile: ``python -m benchmarks.servers.profiled FILE ARGUMENTS``, with the arguments of ``twist``.

The first SIGURG starts the profile, so that the start of the server does not count; the second writes the result into FILE. The
server handles SIGUSR1 and SIGUSR2 itself.
"""

from __future__ import annotations

import cProfile
import pstats
import signal
import sys
import threading
from typing import Any

from twisted.application.twist._twist import Twist

_profiles = [cProfile.Profile()]


def _profile_thread(*_: Any) -> None:
    """Profile the current thread from now on; each thread calls this when it starts."""
    _profiles.append(cProfile.Profile())
    _profiles[-1].enable()


def _begin(number: int, frame: Any) -> None:
    signal.signal(signal.SIGURG, _write)
    for profile in _profiles:
        profile.clear()
    _profiles[0].enable()


def _write(number: int, frame: Any) -> None:
    _profiles[0].disable()
    stats = pstats.Stats(_profiles[0])
    for profile in _profiles[1:]:
        if profile.getstats():
            stats.add(profile)
    stats.dump_stats(sys.argv[1])


if __name__ == "__main__":
    signal.signal(signal.SIGURG, _begin)
    if sys.version_info < (3, 12):
        # Later versions profile all threads at once.
        threading.setprofile(_profile_thread)
    Twist.main(["twist", *sys.argv[2:]])

"""
Notifications to the service manager (sd_notify(3)): when the server is ready, reloads and stops.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

__all__ = ["Notifier"]

#: While the server starts, the manager is asked every so many seconds to wait for so many more.
EXTEND_EVERY: Final = 10.0
EXTEND_BY: Final = 60.0


class Notifier:
    """
    Sends the state of the process to the service manager; does nothing without one.

    :param environment: has the address of the manager's socket in ``NOTIFY_SOCKET``: a path, or ``@`` and a name
        of the abstract namespace.
    """

    log = Logger()

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # Other kinds, such as vsock:, are for virtual machines.
        self._address = address if address.startswith(("/", "@")) else ""
        self._reloads = 0
        self._extending: Any = None

    def starting(self, clock: Any) -> None:
        """
        Ask the manager to wait until the server is ready, as long as the reactor runs: the comparison of files and index may
        take longer than ``TimeoutStartSec``.

        :param clock: the reactor.
        """
        if self._address:
            self._extending = clock.callLater(EXTEND_EVERY, self._extend, clock)

    def _extend(self, clock: Any) -> None:
        self._send(f"EXTEND_TIMEOUT_USEC={int(EXTEND_BY * 1_000_000)}")
        self.starting(clock)

    def _end_extending(self) -> None:
        call, self._extending = self._extending, None
        if call is not None and call.active():
            call.cancel()

    def ready(self) -> None:
        """Say that the server listens."""
        self._end_extending()
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that a stop has begun; nothing is sent after it."""
        self._end_extending()
        self._send("STOPPING=1")
        self._address = ""

    def during(self, reload: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """
        Reload, and say when it begins and, whether it succeeds or fails, when it has ended.

        Reloads may overlap; the last one that ends makes the server ready again.
        """
        self._reloads += 1
        # systemd compares this time with that of its own request (Type=notify-reload).
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        return reload().addBoth(self._reloaded)

    def _reloaded(self, result: Any) -> Any:
        self._reloads -= 1
        if not self._reloads:
            self.ready()
        return result

    def _send(self, state: str) -> None:
        """Send a datagram without waiting. A failure is logged, and changes nothing else."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(state.encode(), address)
        except OSError as error:
            self.log.warn(
                "the service manager was not notified of {state}: {reason}",
                state=state.partition("=")[0],
                reason=str(error),
            )

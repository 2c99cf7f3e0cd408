"""
Notifications to the service manager (sd_notify(3)): when the server is ready, reloads and stops.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

__all__ = ["Notifier"]


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

    def ready(self) -> None:
        """Say that the server listens."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that a stop has begun; nothing is sent after it."""
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

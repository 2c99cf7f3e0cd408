"""
The command lines of the servers: ours and the peers'. This is the one place that knows them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import MAX_PDU, dcmtk

#: Gives the command line of a server for a port.
Program = Callable[[int], Sequence[object]]


def twist_dicom(storage: Path, durability: str = "none") -> Program:
    """Return our server, as users run it."""
    return lambda port: [
        sys.executable,
        *("-m", "twisted", "dicom"),
        *("--port", f"tcp:{port}:interface=127.0.0.1"),
        *("--storage", storage),
        *("--durability", durability),
        *("--max-pdu", MAX_PDU),
    ]


def dcmtk_storescp(storage: Path, *flags: object) -> Program:
    """Return DCMTK's server, which writes the bytes as they come and serves each association in a process."""
    return lambda port: [dcmtk("storescp"), "--fork", "+B", "-pdu", MAX_PDU, "-od", storage, *flags, port]


def pynetdicom_storescp(storage: Path) -> Program:
    """Return pynetdicom's server application."""
    return lambda port: [
        sys.executable,
        *("-m", "pynetdicom", "storescp", "-q", "-pdu", MAX_PDU, "-ba", "127.0.0.1", "-od", storage, port),
    ]


def window_server(operations: int, seconds: float = 0) -> Program:
    """Return a server of ours that grants so many operations at once, takes *seconds* for each and keeps nothing."""
    return lambda port: [sys.executable, "-m", "benchmarks.servers.window", port, operations, seconds]


def delaying_proxy(target: int, seconds: float) -> Program:
    """Return our proxy in front of the port *target*."""
    return lambda port: [sys.executable, "-m", "benchmarks.proxy", port, target, seconds]


def echoscu(port: int, repeat: int) -> Sequence[object]:
    """Return DCMTK's client for C-ECHO."""
    return [dcmtk("echoscu"), "--repeat", repeat, "127.0.0.1", port]


def storescu(port: int, paths: Sequence[Path]) -> Sequence[object]:
    """Return DCMTK's client for C-STORE."""
    return [dcmtk("storescu"), "-pdu", MAX_PDU, "--max-send-pdu", MAX_PDU, "127.0.0.1", port, *paths]

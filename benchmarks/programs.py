"""
The command lines of the servers: ours and the peers'. This is the one place that knows them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks import instances
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


def storescu(port: int, paths: Sequence[Path], called: str = "ANY-SCP") -> Sequence[object]:
    """Return DCMTK's client for C-STORE."""
    sizes = ("-pdu", MAX_PDU, "--max-send-pdu", MAX_PDU)
    return [dcmtk("storescu"), *sizes, "-aec", called, "127.0.0.1", port, *paths]


# --- archives

#: What is asked of an archive, all instances of a study.
QUERY: Final = (
    "QueryRetrieveLevel=IMAGE",
    f"StudyInstanceUID={instances.STUDY}",
    "SeriesInstanceUID=",
    "SOPInstanceUID=",
    "InstanceNumber=",
    "PatientName=",
    "PatientID=",
    "StudyDate=",
    "Modality=",
)

_RETRIEVAL: Final = ("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={instances.STUDY}")


def archive_server(folder: Path, destination: int) -> Program:
    """Return an archive of ours with the files of *folder*, which moves to the port *destination*."""
    return lambda port: [sys.executable, "-m", "benchmarks.servers.archive", port, folder, destination]


def dcmqrscp_configuration(folder: Path, destination: int) -> Path:
    """Write the configuration of DCMTK's archive, which keeps its files in *folder* and moves to the port *destination*."""
    (folder / "storage").mkdir()
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text(
        f"""MaxPDUSize = {MAX_PDU}
MaxAssociations = 16
HostTable BEGIN
destination = (DESTINATION, localhost, {destination})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
DCMQRSCP {folder}/storage RW (10, 1024mb) ANY
AETable END
"""
    )
    return configuration


def dcmqrscp(configuration: Path) -> Program:
    """Return DCMTK's archive, which writes the bytes as they come and serves each association in a process."""
    return lambda port: [dcmtk("dcmqrscp"), "+B", "-c", configuration, port]


def findscu(port: int) -> Sequence[object]:
    """Return DCMTK's client for C-FIND, which does not print what it gets."""
    return _asking("findscu", port, QUERY, "-q")


def getscu(port: int) -> Sequence[object]:
    """Return DCMTK's client for C-GET, which drops what it gets."""
    return _asking("getscu", port, _RETRIEVAL, "--ignore")


def movescu(port: int) -> Sequence[object]:
    """Return DCMTK's client for C-MOVE."""
    return _asking("movescu", port, _RETRIEVAL, "-aem", "DESTINATION")


def _asking(tool: str, port: int, keys: Sequence[str], *flags: object) -> Sequence[object]:
    words = [word for key in keys for word in ("-k", key)]
    return [dcmtk(tool), "-S", "-pdu", MAX_PDU, "-aec", "DCMQRSCP", *flags, *words, "127.0.0.1", port]

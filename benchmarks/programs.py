"""
The command lines of all servers and clients, ours and the peers'. No other module knows them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks import instances
from benchmarks.harness import MAX_PDU, BenchmarkError, dcmtk, installed
from tests.peers import Certificates

#: A function that returns the command line of a server for a port.
Program = Callable[[int], Sequence[object]]


def twist_dicom(storage: Path, durability: str = "none", *options: object) -> Program:
    """Return ``twist dicom``, as users run it."""
    return lambda port: _twist(f"tcp:{port}:interface=127.0.0.1", storage, durability, options)


def twist_web(storage: Path, dicom: int, *options: object) -> Program:
    """Return ``twist dicom`` with DICOMweb on the port of the program and DIMSE on the port *dicom*; durability full."""
    return lambda port: [
        *_twist(f"tcp:{dicom}:interface=127.0.0.1", storage, "full", ()),
        *("--http", f"tcp:{port}:interface=127.0.0.1"),
        *options,
    ]


def secure_twist_dicom(storage: Path, found: Certificates, durability: str = "none") -> Program:
    """Return ``twist dicom`` with TLS."""
    settings = f"privateKey={found.server_key}:certKey={found.server_cert}:trustRoots={found.ca}:interface=127.0.0.1"
    return lambda port: _twist(f"dicomtls:{port}:{settings}", storage, durability, ())


def _twist(endpoint: str, storage: Path, durability: str, options: Sequence[object]) -> Sequence[object]:
    return [
        sys.executable,
        *("-m", "twisted", "dicom"),
        *("--port", endpoint),
        *("--storage", storage),
        *("--durability", durability),
        *("--max-pdu", MAX_PDU),
        *options,
    ]


def dcmtk_storescp(storage: Path, *flags: object) -> Program:
    """Return DCMTK's storage server, which writes the received bytes as they are and serves each association in a process."""
    return lambda port: [dcmtk("storescp"), "--fork", "+B", "-pdu", MAX_PDU, "-od", storage, *flags, port]


def secure_storescp(storage: Path, found: Certificates) -> Program:
    """Return DCMTK's storage server with TLS."""
    return dcmtk_storescp(storage, "+tls", found.server_key, found.server_cert, "+cf", found.ca)


def pynetdicom_storescp(storage: Path) -> Program:
    """Return pynetdicom's server application."""
    return lambda port: [
        sys.executable,
        *("-m", "pynetdicom", "storescp", "-q", "-pdu", MAX_PDU, "-ba", "127.0.0.1", "-od", storage, port),
    ]


def window_server(operations: int, seconds: float = 0) -> Program:
    """Return a server of ours that grants a window of *operations*, takes *seconds* for each and keeps nothing."""
    return lambda port: [sys.executable, "-m", "benchmarks.servers.window", port, operations, seconds]


def delaying_proxy(target: int, seconds: float) -> Program:
    """Return our proxy in front of the port *target*, which delays every byte by *seconds*."""
    return lambda port: [sys.executable, "-m", "benchmarks.proxy", port, target, seconds]


def echoscu(port: int, repeat: int, called: str = "ANY-SCP") -> Sequence[object]:
    """Return DCMTK's client for C-ECHO."""
    return [dcmtk("echoscu"), "-aec", called, "--repeat", repeat, "127.0.0.1", port]


def storescu(
    port: int, paths: Sequence[Path], called: str = "ANY-SCP", found: Certificates | None = None
) -> Sequence[object]:
    """Return DCMTK's client for C-STORE, with TLS if there are certificates."""
    sizes = ("-pdu", MAX_PDU, "--max-send-pdu", MAX_PDU)
    tls = ("+tls", found.client_key, found.client_cert, "+cf", found.ca) if found else ()
    return [dcmtk("storescu"), *sizes, *tls, "-aec", called, "127.0.0.1", port, *paths]


# --- archives

#: The keys of the query: all instances of a study.
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
    """Return an archive of ours with the files of *folder*, whose C-MOVE sends to the port *destination*."""
    return lambda port: [sys.executable, "-m", "benchmarks.servers.archive", port, folder, destination]


def dcmqrscp_configuration(folder: Path, destination: int, studies: int = 10) -> Path:
    """
    Write the configuration of DCMTK's archive with its files in *folder*; C-MOVE sends to the port *destination*.

    :param studies: the number of studies that it keeps; it drops older ones.
    """
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
DCMQRSCP {folder}/storage RW ({studies}, 1024mb) ANY
AETable END
"""
    )
    return configuration


def dcmqrscp(configuration: Path) -> Program:
    """Return DCMTK's archive, which writes the received bytes as they are and serves each association in a process."""
    return lambda port: [dcmtk("dcmqrscp"), "+B", "-c", configuration, port]


def _orthanc(folder: Path, **settings: object) -> Sequence[object]:
    """Write the configuration of Orthanc, which keeps its files in *folder*, and return its command line."""
    storage = str(folder / "storage")
    content = {"Name": "ORTHANC", "StorageDirectory": storage, "IndexDirectory": storage, **settings}
    configuration = folder / "orthanc.json"
    configuration.write_text(json.dumps(content))
    return [installed("Orthanc"), configuration]


def _orthanc_scp(folder: Path, port: int, **settings: object) -> Sequence[object]:
    """Return the command line of Orthanc with DIMSE only."""
    return _orthanc(folder, HttpServerEnabled=False, DicomAet="ORTHANC", DicomPort=port, **settings)


def orthanc(folder: Path, found: Certificates | None = None) -> Program:
    """Return Orthanc, which keeps its files in *folder*, with TLS if there are certificates."""
    settings: dict[str, object] = {"DicomAlwaysAllowGet": True}
    if found is not None:
        settings |= {
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": found.server_cert,
            "DicomTlsPrivateKey": found.server_key,
            "DicomTlsTrustedCertificates": found.ca,
        }
    return lambda port: _orthanc_scp(folder, port, **settings)


def orthanc_forwarder(folder: Path, destination: int) -> Program:
    """Return Orthanc with a script in Lua that sends each instance that comes to the port *destination*."""
    script = folder / "forward.lua"
    script.write_text("function OnStoredInstance(id, tags, metadata)\n  SendToModality(id, 'destination')\nend\n")
    modalities = {"destination": ["DESTINATION", "127.0.0.1", destination]}
    return lambda port: _orthanc_scp(folder, port, LuaScripts=[str(script)], DicomModalities=modalities)


#: Orthanc's plugin for DICOMweb, as Debian and Ubuntu install it.
_PLUGIN: Final = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


def orthanc_web(folder: Path) -> Program:
    """
    Return Orthanc with its plugin for DICOMweb, which keeps its files in *folder*. Its files are synced by default.

    :raises BenchmarkError: the plugin is not installed.
    """
    if not Path(_PLUGIN).exists():
        raise BenchmarkError(f"not installed: {_PLUGIN} (apt-get install orthanc-dicomweb)")
    return lambda port: _orthanc(
        folder,
        HttpServerEnabled=True,
        HttpPort=port,
        KeepAlive=True,
        RemoteAccessAllowed=False,
        DicomServerEnabled=False,
        Plugins=[_PLUGIN],
    )


def pynetdicom_qrscp(folder: Path) -> Program:
    """Return pynetdicom's archive, which keeps its files in *folder*."""

    def command(port: int) -> Sequence[object]:
        configuration = folder / "qrscp.ini"
        configuration.write_text(
            f"""[DEFAULT]
ae_title: QRSCP
port: {port}
max_pdu: {MAX_PDU}
acse_timeout: 30
dimse_timeout: 30
network_timeout: 30
bind_address: 127.0.0.1
instance_location: {folder}/instances
database_location: {folder}/instances.sqlite
log_identifier: False
"""
        )
        return [sys.executable, "-m", "pynetdicom", "qrscp", "-q", "-c", configuration]

    return command


def findscu(port: int, series: str = "") -> Sequence[object]:
    """Return DCMTK's client for C-FIND, without output; *series* is for archives that require the Series Instance UID."""
    keys = [f"{key}{series}" if key.startswith("Series") else key for key in QUERY]
    return _asking("findscu", port, keys, "-q")


def studyscu(port: int, patient: str) -> Sequence[object]:
    """Return DCMTK's client for C-FIND of the studies of a patient, without output."""
    return _asking("findscu", port, ("QueryRetrieveLevel=STUDY", f"PatientID={patient}", "StudyInstanceUID="), "-q")


def getscu(port: int) -> Sequence[object]:
    """Return DCMTK's client for C-GET, which drops what it receives."""
    return _asking("getscu", port, _RETRIEVAL, "--ignore")


def movescu(port: int) -> Sequence[object]:
    """Return DCMTK's client for C-MOVE."""
    return _asking("movescu", port, _RETRIEVAL, "-aem", "DESTINATION")


def _asking(tool: str, port: int, keys: Sequence[str], *flags: object) -> Sequence[object]:
    words = [word for key in keys for word in ("-k", key)]
    return [dcmtk(tool), "-S", "-pdu", MAX_PDU, "-aec", "DCMQRSCP", *flags, *words, "127.0.0.1", port]

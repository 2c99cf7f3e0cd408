"""
Real peers for the tests: DCMTK's tools, other programs and pynetdicom scripts, as processes beside the reactor.

Everything here is asynchronous: a test awaits a client that runs to its end (:func:`run`), or a server that is killed and
awaited when the test is over (:func:`start`). Nothing is left behind: no process, no socket, no delayed call.

A missing tool skips the test that needs it. If the environment has ``CI=true``, the test fails instead, so that a run without
peers cannot pass for a run with them.
"""

from __future__ import annotations

import atexit
import functools
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import trustme
from pydicom import data as pydicom_data
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase

reactor = cast(Any, _reactor)


class PeerError(AssertionError):
    """A peer did not do its part: it ended too soon, or an expected event did not happen in time."""


# --- tools -------------------------------------------------------------------------------------------------


# Debian's packages of the tools that do not come with DCMTK.
_PACKAGES = {
    "tshark": "tshark",
    "text2pcap": "tshark",
    "Orthanc": "orthanc",
    "gdcmscu": "libgdcm-tools",
    "node": "nodejs",
    "rsyslogd": "rsyslog-gnutls",
    **{name: name for name in ("chromium", "haproxy", "zsh", "fish")},
}


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


@functools.cache
def _find_tool(name: str) -> str | None:
    # pynetdicom installs scripts named storescp, echoscu and so on: a file that starts with "#!" is not DCMTK's tool. Debian's
    # /usr/bin/chromium is a script as well.
    folders = ["/usr/lib/chromium", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin", *os.get_exec_path()]
    for folder in folders:
        path = Path(folder, name)
        if path.is_file() and os.access(path, os.X_OK) and not _is_script(path):
            return str(path.absolute())
    return None


def missing_error(message: str) -> Exception:
    """Return the exception of a test that lacks something here: it skips the test, or lets it fail if ``CI=true``."""
    return (PeerError if os.environ.get("CI", "").lower() in {"1", "true"} else SkipTest)(message)


def require(*tools: str) -> None:
    """
    Skip the running test unless all these tools are installed; let it fail if ``CI=true``.

    :param tools: names such as ``"storescu"`` or ``"tshark"``.
    :raises SkipTest: when one is missing.
    :raises PeerError: when one is missing and the environment has ``CI=true``.
    """
    missing = [name for name in tools if _find_tool(name) is None]
    if not missing:
        return
    packages = sorted({_PACKAGES.get(name, "dcmtk") for name in missing})
    raise missing_error(
        f"not installed: {', '.join(missing)} (Debian and Ubuntu: apt-get install {' '.join(packages)})"
    )


def tool(name: str) -> str:
    """Return the absolute path of a tool; skips or fails like :func:`require` if it is missing."""
    require(name)
    path = _find_tool(name)
    assert path is not None
    return path


def dcmtk(name: str) -> str:
    """Return the absolute path of one of DCMTK's tools; see :func:`tool`."""
    return tool(name)


# --- processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """
    The end of a process and its output.

    :ivar code: the exit code, ``None`` if a signal ended the process.
    :ivar signal: the number of that signal, or ``None``.
    """

    code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Both streams as text, standard output first."""
        return _text(self.stdout, self.stderr)


def _text(stdout: bytes | bytearray, stderr: bytes | bytearray) -> str:
    return (bytes(stdout) + bytes(stderr)).decode("utf-8", "replace")


_alive: set[int] = set()


@atexit.register
def _kill_survivors() -> None:
    # Only reached if a test was torn down before its cleanup could run.
    for pid in _alive:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Process(ProcessProtocol):
    """
    A process that runs beside the reactor. Made by :func:`start`.

    :ivar command: the command line.
    :ivar result: how it ended, ``None`` while it runs.
    """

    transport: IProcessTransport

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.result: Result | None = None
        self.pid = 0
        self._waiters: list[tuple[Callable[[], bool], Deferred[None]]] = []

    @property
    def text(self) -> str:
        """The output so far, standard output first."""
        return _text(self.stdout, self.stderr)

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self.result is None

    async def wait(self, timeout: float = 60) -> Result:
        """Wait for the end of the process. After ``timeout`` seconds, kill it and raise :class:`PeerError`."""
        try:
            await self.until(lambda: not self.running, timeout, "its end")
        except PeerError:
            await self.stop("KILL")
            raise
        assert self.result is not None
        return self.result

    async def wait_for(self, text: str, timeout: float = 30) -> None:
        """Wait until the process has printed ``text`` on either stream."""
        await self.until(lambda: text in self.text, timeout, f"the text {text!r}")

    async def until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """
        Wait for a condition, which is checked whenever the process prints something or ends.

        :raises PeerError: when the process has ended before the condition holds, or the time is over.
        """
        if not condition():
            if not self.running:
                raise self._error(f"ended before {what}")
            waiter: Deferred[None] = Deferred()
            self._waiters.append((condition, waiter))
            try:
                await waiter.addTimeout(timeout, reactor)
            except DeferredTimeoutError:
                self._waiters = [entry for entry in self._waiters if entry[1] is not waiter]
                raise self._error(f"{timeout} s without {what}") from None
            if not condition():
                raise self._error(f"ended before {what}")

    async def poll(self, condition: Callable[[], bool], what: str = "an expected event") -> None:
        """
        Wait for a condition that the process does not print; the timeout of the test is the limit.

        :raises PeerError: when the process has ended before the condition holds.
        """
        while not condition():
            if not self.running and not condition():
                raise self._error(f"ended before {what}")
            await deferLater(reactor, 0.05)

    async def stop(self, signal_name: str = "TERM", timeout: float = 10) -> Result:
        """Send a signal and wait for the end; kill the process after ``timeout`` seconds. It may have ended already."""
        self.signal(signal_name)
        try:
            await self.until(lambda: not self.running, timeout, "its end")
        except PeerError:
            self.signal("KILL")
            # A child of the process may hold the pipes open; close our ends, or its end is never reported.
            self.transport.loseConnection()
            await self.until(lambda: not self.running, timeout, "its end after SIGKILL")
        assert self.result is not None
        return self.result

    def signal(self, name: str) -> None:
        """Send a signal, named without ``SIG``, if the process still runs."""
        try:
            self.transport.signalProcess(name)
        except ProcessExitedAlready:
            pass

    def _error(self, what: str) -> PeerError:
        return PeerError(f"{' '.join(self.command)}: {what}; {self.result or 'still running'}\n{self.text}")

    def _look(self) -> None:
        waiters, self._waiters = self._waiters, []
        for condition, waiter in waiters:
            if condition() or not self.running:
                waiter.callback(None)
            else:
                self._waiters.append((condition, waiter))

    def connectionMade(self) -> None:
        """Note the process ID, and close standard input, which no peer reads."""
        pid = self.transport.pid
        assert pid is not None
        self.pid = pid
        _alive.add(pid)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        """Keep standard output."""
        self.stdout += data
        self._look()

    def errReceived(self, data: bytes) -> None:
        """Keep standard error."""
        self.stderr += data
        self._look()

    def processExited(self, reason: Failure) -> None:
        """The process is reaped: its process ID may be used again."""
        _alive.discard(self.pid)

    def processEnded(self, reason: Failure) -> None:
        """The process is reaped and its pipes are closed."""
        ended: Any = reason.value
        self.result = Result(ended.exitCode, ended.signal, bytes(self.stdout), bytes(self.stderr))
        self._look()


def _spawn(path: str, args: tuple[object, ...], env: dict[str, str] | None, nodelay: bool) -> Process:
    environment = {**os.environ, "TCP_NODELAY": "1"}
    if not nodelay:
        del environment["TCP_NODELAY"]
    environment.update(env or {})
    command = [path, *(os.fspath(arg) if isinstance(arg, os.PathLike) else str(arg) for arg in args)]
    process = Process(command)
    reactor.spawnProcess(process, path, command, env=environment, path=os.getcwd())
    return process


async def run(
    path: str,
    *args: object,
    env: dict[str, str] | None = None,
    timeout: float = 60,
    nodelay: bool = True,
) -> Result:
    """
    Run a program to its end.

    :param path: the program, such as ``dcmtk("echoscu")``.
    :param args: its arguments; anything with a ``str`` or a path.
    :param env: variables to add to the environment.
    :param timeout: seconds after which it is killed and :class:`PeerError` raised.
    :param nodelay: set ``TCP_NODELAY=1``, without which Debian's DCMTK leaves Nagle's algorithm on and a round trip costs some
        40 ms; ``False`` to run it as users do.
    """
    return await _spawn(path, args, env, nodelay).wait(timeout)


async def start(
    testcase: TestCase,
    path: str,
    *args: object,
    ready: int | str | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 30,
    nodelay: bool = True,
) -> Process:
    """
    Start a server that is killed and awaited when the test is over.

    :param testcase: the test; its ``addCleanup`` stops the process.
    :param ready: the condition to wait for: a port on which the process listens, a text that it prints, or nothing.
    :param timeout: seconds to wait for ``ready``.

    The other parameters are those of :func:`run`.
    """
    process = _spawn(path, args, env, nodelay)
    testcase.addCleanup(lambda: Deferred.fromCoroutine(process.stop("KILL")))
    if isinstance(ready, str):
        await process.wait_for(ready, timeout)
    elif ready is not None:
        await wait_listening(ready, timeout, process)
    return process


async def dcmtk_storescp(
    testcase: TestCase,
    folder: str | os.PathLike[str],
    *flags: object,
    env: dict[str, str] | None = None,
    nodelay: bool = True,
) -> int:
    """
    Start DCMTK's ``storescp``, which writes into ``folder`` (created if missing), and return its port.

    :param flags: further flags, such as ``"+xa"`` (accept every transfer syntax) or ``"+B"`` (keep the bytes as they are
        received).
    """
    path = dcmtk("storescp")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for attempt in range(3):
        port = free_port()
        try:
            await start(testcase, path, "-od", folder, *flags, port, ready=port, env=env, nodelay=nodelay)
        except PeerError as error:
            # Another process may have taken the port since free_port() looked.
            if attempt == 2 or "already in use" not in str(error):
                raise
        else:
            return port
    raise AssertionError("not reached")


async def pynetdicom_script(
    testcase: TestCase,
    source: str,
    *args: object,
    ready: int | str | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 30,
) -> Process:
    """
    Run Python source, which may import pynetdicom, as a process of its own.

    :param source: the source; it finds ``args`` in ``sys.argv[1:]``, and its output is not buffered.
    :param ready: see :func:`start`. A client is started without it, and awaited with :meth:`Process.wait`.
    """
    script = Path(testcase.mktemp()).absolute().with_suffix(".py")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(source, encoding="utf-8")
    return await start(testcase, sys.executable, "-u", script, *args, ready=ready, env=env, timeout=timeout)


# --- ports -------------------------------------------------------------------------------------------------

# Below the range from which the system takes ports for outgoing connections, so that no such connection takes one of them.
_ports = iter(random.sample(range(20000, 32000), 12000))


def free_port() -> int:
    """Return a TCP port that is free now and was not returned before."""
    for port in _ports:
        try:
            with socket.socket() as listener:
                listener.bind(("", port))
        except OSError:
            continue
        return port
    raise PeerError("no free port left")


def socket_path(test: TestCase) -> Path:
    """
    Return a path for a UNIX socket of *test*, in a temporary folder: if the checkout is deep in the file system, the path of a
    file next to it may be too long for a socket.
    """
    folder = Path(tempfile.mkdtemp(prefix="dicom-"))
    test.addCleanup(shutil.rmtree, folder, ignore_errors=True)
    return folder / "s"


def _listens(port: int) -> bool | None:
    """Return whether a socket of this machine listens on a port; ``None`` if the system does not list its sockets."""
    lines: list[str] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines += Path(table).read_text().splitlines()[1:]
        except OSError:
            if table == "/proc/net/tcp":
                return None
    return any(
        fields[1].endswith(f":{port:04X}") and fields[3] == "0A"  # 0A: TCP_LISTEN
        for fields in map(str.split, lines)
    )


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


async def wait_listening(port: int, timeout: float = 30, process: Process | None = None) -> None:
    """
    Wait until a socket of this machine listens on a port.

    If the system lists its sockets, no connection is made, so that a peer that accepts a single connection does not lose it.

    :param process: give up as soon as this process ends.
    :raises PeerError: when the process has ended, or the time is over.
    """
    deadline = reactor.seconds() + timeout
    while True:
        listens = _listens(port)
        if listens or (listens is None and _connects(port)):
            return
        if process is not None and not process.running:
            raise process._error(f"ended before it listened on port {port}")
        if reactor.seconds() > deadline:
            raise PeerError(f"nothing listened on port {port} for {timeout} s")
        await deferLater(reactor, 0.02)


# --- certificates ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificates:
    """
    Paths of PEM files.

    :ivar ca: the certificate of an authority; ``ca_dir`` is a folder that holds only it.
    :ivar server_key: the key to ``server_cert``, which ``ca`` signed for localhost, 127.0.0.1 and ::1.
    :ivar client_key: the key to ``client_cert``, which ``ca`` signed.
    :ivar other_ca: the certificate of an unrelated authority; ``other_ca_dir`` is a folder with only it.
    :ivar other_key: the key to ``other_cert``, which ``other_ca`` signed, for a server on localhost or a
        client.
    """

    ca: str
    ca_dir: str
    server_key: str
    server_cert: str
    client_key: str
    client_cert: str
    other_ca: str
    other_ca_dir: str
    other_key: str
    other_cert: str


@functools.cache
def certificates() -> Certificates:
    """Return keys and certificates, which are made once in a process and deleted at its end."""
    folder = Path(tempfile.mkdtemp(prefix="dicomtwist-certificates-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths: dict[str, str] = {}

    def authority(name: str) -> trustme.CA:
        # RSA, because the cipher profiles of DCMTK name only ciphers for RSA certificates.
        ca = trustme.CA(organization_name=f"dicomtwist tests: {name}", key_type=trustme.KeyType.RSA)
        (folder / name).mkdir()
        ca.cert_pem.write_to_path(folder / name / "ca.pem")
        paths[name] = str(folder / name / "ca.pem")
        paths[f"{name}_dir"] = str(folder / name)
        return ca

    def leaf(ca: trustme.CA, name: str, *identities: str) -> None:
        issued = ca.issue_cert(*identities, common_name=name, key_type=trustme.KeyType.RSA)
        paths[f"{name}_key"] = str(folder / f"{name}_key.pem")
        paths[f"{name}_cert"] = str(folder / f"{name}_cert.pem")
        issued.private_key_pem.write_to_path(paths[f"{name}_key"])
        (certificate,) = issued.cert_chain_pems
        certificate.write_to_path(paths[f"{name}_cert"])

    ca = authority("ca")
    leaf(ca, "server", "localhost", "127.0.0.1", "::1")
    leaf(ca, "client", "modality@example.org")
    leaf(authority("other_ca"), "other", "localhost", "127.0.0.1", "::1")
    return Certificates(**paths)


# --- real files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DicomFile:
    """
    A Part 10 file (PS3.10) with an instance that can be stored.

    :ivar study: its Study Instance UID, and ``series`` its Series Instance UID; empty if it has none.
    """

    path: str
    transfer_syntax: str
    sop_class: str
    sop_instance: str
    study: str
    series: str

    @property
    def name(self) -> str:
        """The path below pydicom's data folder, a label for messages."""
        return str(Path(self.path).relative_to(_DATA_ROOT))


_DATA_ROOT = Path(pydicom_data.__file__).parent

# These look complete at first, but a parser that reads to the end fails: two are cut short, and one has a sequence in an
# encoding other than its transfer syntax.
_BROKEN = {"MR_truncated.dcm", "rtplan_truncated.dcm", "SC_rgb_jpeg.dcm"}


@functools.cache
def dicom_files(*, without_study: bool = False) -> tuple[DicomFile, ...]:
    """
    Return the storage instances among the files that are installed with pydicom, in the order of their paths.

    Only complete ones: the File Meta Information and the data set agree about the instance, it has a study and a series, and
    all UIDs are valid. Several are versions of one instance in different transfer syntaxes with the *same* SOP Instance UID.
    Nothing is downloaded.

    :param without_study: also instances without study and series: palettes, which belong to none, and all files in JPEG-LS
        near-lossless. A receiver that needs a study must refuse them.
    """
    files = []
    for path in sorted(path for path in _DATA_ROOT.rglob("*") if path.is_file() and path.name not in _BROKEN):
        file = _describe(path)
        if file is not None and (without_study or (file.study and file.series)):
            files.append(file)
    return tuple(files)


def _describe(path: Path) -> DicomFile | None:
    try:
        dataset = dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:  # not a Part 10 file
        return None
    meta = dataset.file_meta
    syntax: UID = meta.get("TransferSyntaxUID", UID(""))
    if "FileMetaInformationGroupLength" not in meta or not syntax.is_transfer_syntax:
        return None
    uids = [
        UID(dataset.get(keyword) or "")
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    ]
    declared = [meta.get("MediaStorageSOPClassUID"), meta.get("MediaStorageSOPInstanceUID")]
    if uids[:2] != declared or not all(uids[:2]) or not all(uid.is_valid for uid in uids if uid):
        return None
    return DicomFile(str(path), str(syntax), *map(str, uids))


def one_per_transfer_syntax(*, without_study: bool = False) -> dict[str, DicomFile]:
    """Return the largest of :func:`dicom_files` in each transfer syntax."""
    found: dict[str, DicomFile] = {}
    for file in sorted(dicom_files(without_study=without_study), key=lambda file: Path(file.path).stat().st_size):
        found[file.transfer_syntax] = file
    return found


def dataset_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the encoded data set of a Part 10 file: everything after the File Meta Information, unchanged."""
    content = Path(path).read_bytes()
    if content[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00":
        raise PeerError(f"{os.fspath(path)} does not start as PS3.10 says")
    return content[144 + int.from_bytes(content[140:144], "little") :]

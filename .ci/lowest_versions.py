"""
Checks that the package works with the lowest versions of its dependencies that setup.cfg allows.

They are installed in a fresh environment, each lower bound as the very version. There every module is imported, and the
command ``dicomtwist`` asks ``twist dicom`` for its services, with and without TLS.
"""

from __future__ import annotations

import configparser
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import trustme
from packaging_check import PROJECT, copy_sources
from pydicom.data import get_testdata_file

EXTRAS = ("archive", "metrics", "page", "pixels", "tools")
#: The longest wait for the server, in seconds.
TIMEOUT = 30

#: Imports each module of the package.
IMPORT_ALL = """
import pkgutil, dicomtwist
for module in pkgutil.walk_packages(dicomtwist.__path__, "dicomtwist."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
"""


def requirements() -> Iterator[str]:
    """Yield what the package and its extras require, each lower bound as the very version."""
    configuration = configparser.ConfigParser()
    configuration.read(PROJECT / "setup.cfg")
    texts = [configuration["options"]["install_requires"]]
    texts += [configuration["options.extras_require"][extra] for extra in EXTRAS]
    for line in "\n".join(texts).splitlines():
        if line.strip():
            name, bound, version = line.strip().partition(">=")
            if not bound:
                raise SystemExit(f"setup.cfg: {name} has no lower bound")
            yield f"{name}=={version}"


def run(*command: str | Path, status: int = 0) -> str:
    """Run a command that must end with *status*, and return what it prints."""
    print("+", *command, flush=True)
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != status:
        raise SystemExit(f"{done.stdout}\nended with {done.returncode}")
    return done.stdout


def expect(text: str, *words: str) -> None:
    """Demand that *words* are in the output of a command."""
    for word in words:
        if word not in text:
            raise SystemExit(f"{text}\nlacks {word}")


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until *server* listens at *port*."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{log.read_text()}\ntwist dicom does not listen") from None
            time.sleep(0.1)


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Make a CA and a certificate of this machine; return the paths of the CA, the certificate and the key."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    paths = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    for path, pem in zip(paths, (authority.cert_pem, issued.cert_chain_pems[0], issued.private_key_pem), strict=True):
        pem.write_to_path(path)
    return paths


def ask(programs: Path, port: int, tls_port: int, folder: Path, ca: Path) -> None:
    """Ask the server for its services with the command ``dicomtwist``."""
    tool = programs / "dicomtwist"
    image = get_testdata_file("CT_small.dcm", download=False)
    assert image is not None
    plain, secure = f"SMOKE@127.0.0.1:{port}", f"SMOKE@localhost:{tls_port}"
    tls = ("--tls", "--tls-roots", ca)
    run(tool, "echo", plain)
    run(tool, "echo", *tls, secure)
    run(tool, "echo", "--tls", secure, status=3)  # its CA is not known
    run(tool, "store", plain, image)
    run(tool, "store", *tls, secure, image)
    expect(run(tool, "find", "--csv", "-k", "PatientName", "-k", "StudyInstanceUID", plain), "CompressedSamples^CT1")
    run(tool, "get", "--root", "patient", "-k", "PatientID=1CT1", *tls, secure, folder / "fetched")
    if not list((folder / "fetched").rglob("*.dcm")):
        raise SystemExit("dicomtwist get has fetched nothing")
    run(tool, "commit", plain, image)


def main() -> None:
    """Install, and run all checks in a temporary folder."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = folder / "environment" / "bin"
        venv.create(folder / "environment")
        copy_sources(folder / "sources")
        lowest = list(requirements())
        install = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--no-compile")
        run(*install, f"{folder / 'sources'}[{','.join(EXTRAS)}]", *lowest)
        run(programs / "python", "-c", IMPORT_ALL)
        ca, certificate, key = certificates(folder)
        port, tls_port, log = free_port(), free_port(), folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [
                    *(programs / "twist", "--log-format", "text", "dicom", "--storage", folder / "archive"),
                    *("--port", f"tcp:{port}:interface=127.0.0.1"),
                    "--port",
                    f"dicomtls:{tls_port}:interface=127.0.0.1:privateKey={key}:certKey={certificate}:clientCertificate=none",
                ],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_for(port, server, log)
            wait_for(tls_port, server, log)
            ask(programs, port, tls_port, folder, ca)
            server.send_signal(signal.SIGTERM)
            if server.wait(TIMEOUT) != 0:
                raise SystemExit(f"{log.read_text()}\ntwist dicom ended with {server.returncode}")
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
        if "Traceback" in log.read_text():
            raise SystemExit(log.read_text())
    print(f"lowest-check: {', '.join(lowest)} work ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    sys.exit(main())

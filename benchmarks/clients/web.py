"""
A client of DICOMweb that spends as little time as possible: ``python -m benchmarks.clients.web PORT store|get ...``.

It writes and reads HTTP/1.1 on a blocking socket, one connection for each client, which it keeps. Requests are made before the
time begins, and what is received is dropped as it comes, so that the measured time is mostly that of the server. Several
clients are processes.

Prints JSON: ``total``, from the moment when all clients are connected to the end of the last response, in seconds; and
``received``, the bytes of all bodies.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import instances

#: The bytes that are received at once.
_READ: Final = 1 << 20
_TIMEOUT: Final = 300.0
BOUNDARY: Final = "benchmark-5d41402abc4b2a76b9719d911017c592"


class WebError(Exception):
    """The server refused something, or sent less than was expected."""


class Response(NamedTuple):
    """
    A response.

    :ivar status: its status.
    :ivar length: the bytes of its body.
    :ivar body: the body, if it was to be kept.
    """

    status: int
    length: int
    body: bytes


class Connection:
    """
    A connection that is kept, unless the server closes it at the end of a response, as Orthanc does after a study.

    :param port: the port on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._scratch = bytearray(_READ)
        self._waiting = b""
        self._connect()

    def _connect(self) -> None:
        self._is_closed = False
        self._socket = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Send a request, in pieces."""
        if self._is_closed:
            self._socket.close()
            self._connect()
        for piece in pieces:
            self._socket.sendall(piece)

    def receive(self, *, keep: bool = False) -> Response:
        """
        Receive a response.

        :param keep: whether its body is kept.
        :raises WebError: the connection is closed before its end.
        """
        head = self._head()
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        kept: list[bytes] | None = [] if keep else None
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            length = 0
            while size := int(self._line().partition(b";")[0], 16):
                self._take(size, kept)
                self._line()
                length += size
            self._line()
        elif b"content-length" in fields:
            length = int(fields[b"content-length"])
            self._take(length, kept)
        else:
            self._is_closed = True
            length = self._take_all(kept)
        return Response(status, length, b"".join(kept or ()))

    def _more(self) -> None:
        data = self._socket.recv(64 * 1024)
        if not data:
            raise WebError("the server closed the connection")
        self._waiting += data

    def _head(self) -> bytes:
        while (end := self._waiting.find(b"\r\n\r\n")) < 0:
            self._more()
        head, self._waiting = self._waiting[:end], self._waiting[end + 4 :]
        return head

    def _line(self) -> bytes:
        while (end := self._waiting.find(b"\r\n")) < 0:
            self._more()
        line, self._waiting = self._waiting[:end], self._waiting[end + 2 :]
        return line

    def _take(self, length: int, kept: list[bytes] | None) -> None:
        """Take *length* bytes of a body, and drop them unless they are *kept*."""
        some, self._waiting = self._waiting[:length], self._waiting[length:]
        if kept is not None:
            kept.append(some)
        length -= len(some)
        view = memoryview(self._scratch)
        while length:
            size = self._socket.recv_into(view[: min(length, _READ)])
            if not size:
                raise WebError("the server closed the connection in the middle of a body")
            if kept is not None:
                kept.append(bytes(view[:size]))
            length -= size

    def _take_all(self, kept: list[bytes] | None) -> int:
        """Take a body that ends with the connection, and return its length."""
        some, self._waiting = self._waiting, b""
        length = 0
        while True:
            length += len(some)
            if kept is not None:
                kept.append(some)
            some = self._socket.recv(_READ)
            if not some:
                return length

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def head_of(method: str, path: str, *fields: str, length: int | None = None) -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *fields]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode("ascii")


def storing(path: str, files: Sequence[bytes]) -> list[bytes]:
    """Return a request of STOW-RS with *files*, in pieces."""
    pieces = []
    for file in files:
        pieces += [f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode(), file]
    pieces.append(f"\r\n--{BOUNDARY}--\r\n".encode())
    length = sum(map(len, pieces))
    fields = (
        f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}',
        "Accept: application/dicom+json",
    )
    return [head_of("POST", path, *fields, length=length) + pieces[0], *pieces[1:]]


#: One client's work on its connection; returns the bytes of the bodies that it received.
Work = Callable[[Connection], int]


def _store(arguments: argparse.Namespace, share: int) -> Work:
    files = [path.read_bytes() for path in sorted(arguments.folder.glob("*.dcm"))[share :: arguments.clients]]
    batches = [files[at : at + arguments.batch] for at in range(0, len(files), arguments.batch)]
    requests = [(len(batch), [b"".join(storing(arguments.path, batch))]) for batch in batches]

    def work(connection: Connection) -> int:
        received = 0
        for count, request in requests:
            connection.send(request)
            answer = connection.receive(keep=True)
            if answer.status != 200 or answer.body.count(b'"00081155"') != count:
                raise WebError(f"{answer.status} for {count} instances: {answer.body[:500]!r}")
            received += answer.length
        return received

    return work


def _get(arguments: argparse.Namespace, share: int) -> Work:
    fields = [f"{name}: {value}" for name, value in (("Accept", arguments.accept),) if value]
    requests = [
        head_of("GET", _formatted(arguments.path, number), *fields)
        for number in range(arguments.first + share, arguments.first + arguments.count, arguments.clients)
    ]

    def work(connection: Connection) -> int:
        received = 0
        for request in requests:
            connection.send([request])
            answer = connection.receive(keep=bool(arguments.mark))
            if answer.status != 200 or answer.length < arguments.least:
                raise WebError(f"{answer.status} with {answer.length} bytes: {answer.body[:500]!r}")
            if arguments.mark and answer.body.count(arguments.mark.encode()) < arguments.marks:
                raise WebError(f"{answer.body.count(arguments.mark.encode())} x {arguments.mark}")
            received += answer.length
        return received

    return work


def _formatted(path: str, number: int) -> str:
    uid = instances.instance_uid(number)
    return path.format(study=instances.STUDY, series=instances.SERIES, instance=uid, number=number)


def _in_processes(works: Sequence[Work], port: int) -> Iterator[int]:
    """Run *works*, each in a process with its connection; yield the bytes that each received."""
    pipes = []
    for work in works[1:]:
        reading, writing = os.pipe()
        if not (pid := os.fork()):
            status = 1
            try:
                os.write(writing, str(work(Connection(port))).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        pipes.append((pid, reading))
    yield works[0](Connection(port))
    for pid, reading in pipes:
        with os.fdopen(reading) as file:
            text = file.read()
        _, status = os.waitpid(pid, 0)
        if status:
            raise WebError("a client failed")
        yield int(text)


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, default=1)
    kinds = parser.add_subparsers(required=True)
    store = kinds.add_parser("store")
    store.add_argument("folder", type=Path)
    store.add_argument("--path", default="/dicom-web/studies")
    store.add_argument("--batch", type=int, default=1, help="instances in a request")
    store.set_defaults(prepare=_store)
    get = kinds.add_parser("get")
    get.add_argument("path", help="with {study}, {series}, {instance} and {number}")
    get.add_argument("--first", type=int, default=0, help="the number of the first instance")
    get.add_argument("--count", type=int, default=1, help="the number of requests, one for each instance")
    get.add_argument("--accept", default="")
    get.add_argument("--least", type=int, default=1, help="the fewest bytes of a body")
    get.add_argument("--mark", default="", help="a text of the body")
    get.add_argument("--marks", type=int, default=1, help="how many times the body has it at least")
    get.set_defaults(prepare=_get)
    arguments = parser.parse_args()
    works = [arguments.prepare(arguments, share) for share in range(arguments.clients)]
    began = time.perf_counter()
    received = sum(_in_processes(works, arguments.port))
    print(json.dumps({"total": time.perf_counter() - began, "received": received}))


if __name__ == "__main__":
    _main()

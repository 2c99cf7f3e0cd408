"""
The child process: it reads jobs from its socket, and does one after the other.

It has limits of memory and time, writes no files, and has no sockets but that to the server. It ends when the server does.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from dicomtwist.pixels.child.image import Image, open_image
from dicomtwist.pixels.child.render import render
from dicomtwist.pixels.child.transcode import converted_frames, transcoded
from dicomtwist.pixels.errors import PixelsFailed
from dicomtwist.pixels.messages import MessageReader, encode_message
from dicomtwist.pixels.options import RenderOptions

__all__ = ["main"]

_READ: Final = 1024 * 1024


class Worker:
    """
    Does jobs. The image of the last job stays open, since the next one is often about another frame of it.

    :param seconds: the time of the processor that one job may take, in seconds.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._key: object = None
        self._image: Image | None = None
        self._jobs: dict[str, Callable[[Image, dict[str, Any]], tuple[dict[str, Any], bytes]]] = {
            "render": self._render,
            "frames": self._frames,
            "transcode": self._transcode,
        }

    def perform(self, job: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Do a job; return the header and the payload of the answer."""
        self._limit_time()
        try:
            return self._jobs[job["do"]](self._open(job, payload), job)
        except PixelsFailed as error:
            return {"error": type(error).__name__, "words": str(error)}, b""
        except MemoryError:
            self._close()
            return {"error": "PixelsTooLarge", "words": "the image needs more memory than a process may have"}, b""
        except OSError as error:
            return {"errno": error.errno, "words": error.strerror or str(error)}, b""
        except RecursionError:
            return {"error": "InvalidPixels", "words": "the data set is nested too deep"}, b""
        except Exception as error:
            self._close()
            return {"error": "InvalidPixels", "words": f"{type(error).__name__}: {error}"[:300]}, b""

    def _limit_time(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + self._seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))

    def _open(self, job: dict[str, Any], payload: bytes) -> Image:
        path = job.get("path")
        if path is None:
            self._close()
            return open_image(payload)
        status = os.stat(path)
        key = path, status.st_ino, status.st_size, status.st_mtime_ns
        if self._image is None or self._key != key:
            self._close()
            self._image = open_image(path)
            self._key = key
        return self._image

    def _close(self) -> None:
        image, self._image = self._image, None
        if image is not None:
            image.close()

    def _render(self, image: Image, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        frame = job["frame"]
        data = render(image, image.count // 2 if frame is None else frame, RenderOptions.from_json(job["options"]))
        return {}, data

    def _frames(self, image: Image, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        found = converted_frames(image, job["frames"], job["syntax"])
        return {"lengths": [len(one) for one in found]}, b"".join(found)

    def _transcode(self, image: Image, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        piece = transcoded(image, job["syntax"], job["first"])
        return {"next": piece.next, "length": piece.length}, piece.data


def _limit(memory: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The server ends its children, in order, when it stops.
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))


def main() -> None:
    """Serve the socket that is file descriptor 0, until the server closes it. Arguments: memory in bytes, seconds for a job."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    connection = socket.socket(fileno=os.dup(0))
    connection.setblocking(True)
    _limit(memory)
    worker, reader = Worker(seconds), MessageReader()
    connection.sendall(b"".join(encode_message({"ready": True})))
    while True:
        try:
            data = connection.recv(_READ)
        except ConnectionError:
            return
        if not data:
            return
        for job, payload in reader.feed(data):
            for part in encode_message(*worker.perform(job, payload)):
                try:
                    connection.sendall(part)
                except ConnectionError:
                    return


if __name__ == "__main__":
    main()

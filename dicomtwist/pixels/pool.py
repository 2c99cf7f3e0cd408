"""
A pool of child processes that decode, encode and render images for a server.

Codecs are written in C and get their input from peers, so they run neither in the server's process nor with its rights to the
network. Each job is bounded: it gives one image, or some MiB of a longer result. So a slow peer keeps no process waiting, and
a job that crashes its process, or takes too long or too much memory, costs one request. Peers take turns, and a peer whose jobs
fill all processes does not keep the others waiting: for a peer that has none there is one process more.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred, DeferredList, succeed

from dicomtwist.datasets.sources import Chunk
from dicomtwist.errors import ExecutorFull
from dicomtwist.pixels.errors import PixelsCrashed, PixelsStopped
from dicomtwist.pixels.lanes import Lanes
from dicomtwist.pixels.options import RenderOptions
from dicomtwist.pixels.processes import Answer, Child, Job
from dicomtwist.pixels.syntaxes import ENCODABLE, can_transcode

__all__ = ["Pixels", "Transcoded"]

#: The default number of processes, of bytes of address space for each, and of seconds for a job.
PROCESSES: Final = 2
MEMORY: Final = 2 * 1024 * 1024 * 1024
TIMEOUT: Final = 30.0
#: The most jobs that wait for a process; for one more, the peer with the most of them gets
#: :class:`~dicomtwist.errors.ExecutorFull`.
MAX_QUEUED: Final = 1024
#: The number of jobs after which a process is replaced, since codecs may lose memory.
MAX_JOBS: Final = 10_000
#: The time for which a process without a job is kept, in seconds.
IDLE: Final = 300.0

#: An instance: the path of a Part 10 file, or the bytes of one.
Instance: TypeAlias = "str | os.PathLike[str] | bytes"


class Pixels:
    """
    The pool. Processes are started when there is work for them.

    :param reactor: the reactor.
    :param processes: the most processes, but for one more while other peers use all of them.
    :param memory: the bytes of address space that one process may have.
    :param timeout: the time for one job, in seconds.
    :param max_queued: the most jobs that wait for a process.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        processes: int = PROCESSES,
        memory: int = MEMORY,
        timeout: float = TIMEOUT,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        if processes < 1:
            raise ValueError(f"processes = {processes}: there is one process at least")
        self._reactor = reactor
        self._memory, self._timeout, self._max_queued = memory, timeout, max_queued
        self._children: list[Child] = []
        self._idle: list[Child] = []
        self._jobs: Lanes[Job] = Lanes(processes, max_queued)
        self._is_stopped = False
        self._ended: list[Deferred[None]] = []

    @property
    def pids(self) -> list[int]:
        """The process IDs of the processes that run."""
        return [child.pid for child in self._children]

    @property
    def queued(self) -> int:
        """The number of jobs that wait for a process."""
        return len(self._jobs)

    # --- jobs

    def render(
        self, instance: Instance, frame: int | None = 1, options: RenderOptions | None = None, *, peer: str = ""
    ) -> Deferred[bytes]:
        """
        Render a frame for display.

        :param instance: the path of a Part 10 file, or the bytes of one.
        :param frame: the number of the frame, from 1; ``None`` for the one in the middle.
        :param options: how it is rendered; the default is JPEG, with all pixels and the window of the data set.
        :param peer: the name of the host that it is for; the hosts take turns.
        :returns: a Deferred with the encoded image. It fails with a :class:`~dicomtwist.pixels.errors.PixelsFailed`,
            :class:`~dicomtwist.errors.ExecutorFull` if too many jobs wait, or ``OSError`` if the file cannot be read.
        """
        job = {
            "do": "render",
            "frame": None if frame is None else frame - 1,
            "options": asdict(options or RenderOptions()),
        }
        return self._ask(instance, job, peer).addCallback(lambda answer: answer[1])

    async def frames(
        self, instance: Instance, frames: Sequence[int], syntax: str, *, peer: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """
        Convert frames to another transfer syntax.

        :param instance: the path of a Part 10 file, or the bytes of one.
        :param frames: the numbers of the frames, from 1.
        :param syntax: the UID of the transfer syntax; of an uncompressed one the values are in little endian, with the samples
            of a pixel side by side.
        :param peer: the name of the host that they are for.
        :returns: an iterator over the frames. It raises what the Deferred of :meth:`render` fails with.
        """
        at = 0
        while at < len(frames):
            # A job names a bounded number of frames, and gives as many of them as a piece may hold.
            wanted = [frame - 1 for frame in frames[at : at + _FRAMES]]
            header, payload = await self._ask(instance, {"do": "frames", "frames": wanted, "syntax": syntax}, peer)
            offset = 0
            for length in header["lengths"]:
                yield payload[offset : offset + length]
                offset += length
            at += len(header["lengths"])

    async def transcode(self, instance: Instance, syntax: str, *, peer: str = "") -> Transcoded:
        """
        Convert an instance to another transfer syntax, without loss.

        :param instance: the path of a Part 10 file, or the bytes of one.
        :param syntax: the UID of the transfer syntax, see :func:`~dicomtwist.pixels.syntaxes.can_transcode`.
        :param peer: the name of the host that it is for.
        :returns: the data set, whose first piece is made.
        :raises PixelsFailed: it cannot be converted.
        :raises ExecutorFull: too many jobs wait.
        :raises OSError: the file cannot be read.
        """
        result = Transcoded(self, instance, syntax, peer)
        await result.begin()
        return result

    @staticmethod
    def targets(source: str) -> Sequence[str]:
        """Return the UIDs of the transfer syntaxes that images in *source* can be converted to, the preferred first."""
        return [target for target in ENCODABLE if can_transcode(source, target)]

    def piece(self, instance: Instance, syntax: str, first: int, peer: str = "") -> Deferred[Answer]:
        """Ask for a piece of a conversion; for :class:`Transcoded`."""
        return self._ask(instance, {"do": "transcode", "syntax": syntax, "first": first}, peer)

    # --- processes

    def stop(self) -> Deferred[None]:
        """
        Stop: jobs that wait fail with :class:`~dicomtwist.pixels.errors.PixelsStopped`, those that are being done are finished.

        :returns: a Deferred that fires when all processes have ended.
        """
        self._is_stopped = True
        for job in list(self._jobs.clear()):
            job.fail(PixelsStopped("the server stops"))
        ended = [self._when_ended() for _ in self._children]
        for child in self._idle:
            child.close()
        self._idle.clear()
        return DeferredList(ended).addCallback(lambda _: None) if ended else succeed(None)

    def _when_ended(self) -> Deferred[None]:
        ended: Deferred[None] = Deferred()
        self._ended.append(ended)
        return ended

    def _ask(self, instance: Instance, header: dict[str, Any], peer: str) -> Deferred[Answer]:
        payload = b""
        if isinstance(instance, bytes):
            payload = instance
        else:
            header["path"] = os.fspath(instance)
        job = Job(header, payload, self._cancel, peer)
        if self._is_stopped:
            job.fail(PixelsStopped("the server stops"))
            return job.done
        dropped = self._jobs.add(peer, job)
        if dropped is not job:
            self._assign()
        if dropped is not None:
            dropped.fail(ExecutorFull("pixels", self._max_queued))
        return job.done

    def _cancel(self, job: Job) -> None:
        # A job that is being done is bounded; its answer is dropped.
        self._jobs.remove(job.peer, job)

    def _assign(self) -> None:
        """Give processes the jobs whose turn it is; there are as many as jobs that are being done at most."""
        while (job := self._jobs.next()) is not None:
            if self._idle:
                child = self._idle.pop()
                if child.idle_timer is not None:
                    child.idle_timer.cancel()
                    child.idle_timer = None
            else:
                try:
                    child = Child(self._reactor, self._memory, self._timeout, self._done, self._ended_child)
                except Exception as error:
                    self._jobs.done(job.peer)
                    job.fail(PixelsCrashed(f"no process can be started: {error}"))
                    continue
                self._children.append(child)
            child.give(job)

    def _done(self, child: Child, job: Job) -> None:
        """Give *child*, which has done *job*, the next one, or keep it for some time."""
        self._jobs.done(job.peer)
        if self._is_stopped or child.jobs >= MAX_JOBS:
            child.close()
            self._assign()
            return
        self._idle.append(child)
        self._assign()
        if child in self._idle:
            child.idle_timer = self._reactor.callLater(IDLE, self._expired, child)

    def _expired(self, child: Child) -> None:
        child.idle_timer = None
        self._idle.remove(child)
        child.close()

    def _ended_child(self, child: Child, job: Job | None) -> None:
        if job is not None:
            self._jobs.done(job.peer)
        self._children.remove(child)
        if child in self._idle:
            self._idle.remove(child)
        if self._ended:
            self._ended.pop().callback(None)
        if not self._is_stopped:
            self._assign()


#: The most frames that one job names.
_FRAMES: Final = 256


class Transcoded:
    """
    A data set that is being converted to another transfer syntax; a :class:`~dicomtwist.datasets.sources.DataSetSource`.

    One piece is made ahead of those that are taken.

    :param pixels: the pool.
    :param instance: the path of a Part 10 file, or the bytes of one.
    :param syntax: the UID of the transfer syntax.
    :param peer: the name of the host that it is for.

    :ivar length: its length in bytes; ``None`` if it is not known, because there is more than one piece.
    """

    __slots__ = ("_ahead", "_instance", "_is_closed", "_peer", "_pixels", "_syntax", "length")

    def __init__(self, pixels: Pixels, instance: Instance, syntax: str, peer: str = "") -> None:
        self._pixels, self._instance, self._syntax, self._peer = pixels, instance, syntax, peer
        self._ahead: Deferred[Answer] | Answer | None = None
        self._is_closed = False
        self.length: int | None = None

    async def begin(self) -> None:
        """Make the first piece."""
        answer = await self._pixels.piece(self._instance, self._syntax, 0, self._peer)
        self.length = answer[0]["length"]
        self._ahead = answer

    def read(self) -> Chunk | Deferred[Chunk]:
        """Return the next piece and whether it is the last one."""
        ahead, self._ahead = self._ahead, None
        assert ahead is not None, "read after the last piece"
        return ahead.addCallback(self._have) if isinstance(ahead, Deferred) else self._have(ahead)

    def _have(self, answer: Answer) -> Chunk:
        header, data = answer
        following = header["next"]
        if following is not None and not self._is_closed:
            self._ahead = self._pixels.piece(self._instance, self._syntax, following, self._peer)
        return data, following is None

    def close(self) -> None:
        """Make no more pieces."""
        self._is_closed = True
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Deferred):
            ahead.addErrback(lambda _: None)
            ahead.cancel()

    async def __aiter__(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Iterate over the pieces."""
        try:
            is_last = False
            while not is_last:
                found = self.read()
                data, is_last = await found if isinstance(found, Deferred) else found
                yield data
        finally:
            self.close()

"""The pool of child processes, with real processes: answers, limits, crashes, the end."""

from __future__ import annotations

import os
import signal
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from dicomtwist.datasets.codec import decode_dataset
from dicomtwist.errors import ExecutorFull
from dicomtwist.pixels.errors import (
    InvalidPixels,
    NoSuchFrame,
    PixelsCrashed,
    PixelsStopped,
    PixelsTimeout,
    PixelsTooLarge,
    UnsupportedPixels,
)
from dicomtwist.pixels.options import RenderOptions, View
from dicomtwist.pixels.pool import Pixels, Transcoded


def path_of(name: str) -> Path:
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str), name
    return Path(found)


CT = path_of("CT_small.dcm")
RLE_FRAMES = path_of("SC_rgb_rle_2frame.dcm")
COMPRESSED = path_of("JPEG2000.dcm")


async def whole(source: Transcoded) -> bytes:
    return b"".join([bytes(piece) async for piece in source])


def bytes_of(dataset: Dataset) -> bytes:
    output = BytesIO()
    dataset.save_as(output)
    return output.getvalue()


class PixelsTestCase(TestCase):
    """Each test has a pool of its own, which is stopped."""

    timeout = 120

    def make(self, **arguments) -> Pixels:
        pixels = Pixels(reactor, **arguments)
        self.addCleanup(pixels.stop)
        return pixels


class Answers(PixelsTestCase):
    async def test_render(self) -> None:
        pixels = self.make()
        picture = Image.open(BytesIO(await pixels.render(CT)))
        self.assertEqual((picture.format, picture.size), ("JPEG", (128, 128)))
        options = RenderOptions("image/png", view=View(40, 60))
        picture = Image.open(BytesIO(await pixels.render(CT.read_bytes(), None, options)))
        self.assertEqual((picture.format, picture.size), ("PNG", (40, 40)))

    async def test_transcode(self) -> None:
        pixels = self.make()
        for syntax in (ExplicitVRLittleEndian, JPEGLSLossless, RLELossless):
            data = await whole(await pixels.transcode(COMPRESSED, syntax))
            dataset = decode_dataset(data, syntax)
            self.assertEqual(dataset.SOPInstanceUID, dcmread(COMPRESSED).SOPInstanceUID)
        dataset = decode_dataset(
            await whole(await pixels.transcode(COMPRESSED, ExplicitVRLittleEndian)), ExplicitVRLittleEndian
        )
        self.assertEqual(dataset.PixelData, pixel_array(COMPRESSED).tobytes())

    async def test_frames(self) -> None:
        pixels = self.make()
        expected = pixel_array(RLE_FRAMES)
        found = [frame async for frame in pixels.frames(RLE_FRAMES, [2, 1, 2], ExplicitVRLittleEndian)]
        self.assertEqual(found, [expected[at].tobytes() for at in (1, 0, 1)])

    async def test_large_results_in_pieces(self) -> None:
        """A multi-frame image of 40 MB is converted in pieces, and each is as long as some frames."""
        dataset = dcmread(CT)
        frame = np.tile(dataset.pixel_array, (8, 8))
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *frame.shape, 20
        dataset.PixelData = frame.tobytes() * 20
        dataset.compress(RLELossless)
        path = Path(self.mktemp())
        dataset.save_as(path)
        source = await self.make().transcode(path, ExplicitVRLittleEndian)
        self.assertIsNone(source.length)
        pieces = [bytes(piece) async for piece in source]
        self.assertGreater(len(pieces), 4)
        self.assertLess(max(map(len, pieces)), 8 * 1024 * 1024)
        result = decode_dataset(b"".join(pieces), ExplicitVRLittleEndian)
        self.assertEqual(result.PixelData, frame.tobytes() * 20)

    async def test_several_at_once(self) -> None:
        pixels = self.make(processes=2)
        jobs = [pixels.render(CT) for _ in range(20)]
        self.assertEqual(len(pixels.pids), 2)
        self.assertEqual(pixels.queued, 18)
        self.assertEqual(len({await job for job in jobs}), 1)

    async def test_peers_take_turns(self) -> None:
        """An image for one host does not wait for the hundreds that another one has asked for."""
        pixels = self.make(processes=1, max_queued=200)
        fifo = Path(self.mktemp())
        os.mkfifo(fifo)
        # The first one takes until somebody writes to it, so that the others wait behind it however fast the machine is.
        busy = [pixels.render(path, peer="busy") for path in (fifo, *[CT] * 200)]
        refused = await self.assertFailure(pixels.render(CT, peer="busy"), ExecutorFull)
        self.assertIn("200", str(refused))
        await pixels.render(CT, peer="other")
        self.assertLessEqual(len(pixels.pids), 2)
        source = await pixels.transcode(COMPRESSED, ExplicitVRLittleEndian, peer="other")
        self.assertTrue(await whole(source))
        self.assertFalse(any(job.called for job in busy[:-1]))
        await self.assertFailure(busy[-1], ExecutorFull)  # it made room for another host
        with fifo.open("wb"):
            pass
        await self.assertFailure(busy[0], OSError)
        for job in busy:
            job.addErrback(lambda _: None)

    async def test_other_peers_of_long_jobs(self) -> None:
        """A host that has all processes does not keep another one waiting, however long its jobs take."""
        pixels = self.make(processes=1)
        fifo = Path(self.mktemp())
        os.mkfifo(fifo)
        blocked = pixels.render(fifo, peer="busy")  # until somebody writes to it
        waiting = pixels.render(CT, peer="busy")
        await pixels.render(CT, peer="other")
        self.assertFalse(blocked.called or waiting.called)
        with fifo.open("wb"):
            pass
        await self.assertFailure(blocked, OSError)
        await waiting


class Failures(PixelsTestCase):
    async def test_each_has_a_type(self) -> None:
        pixels = self.make(processes=1)
        dataset = dcmread(CT)
        bomb = dcmread(CT)
        bomb.Rows = bomb.Columns = 65535
        bomb.NumberOfFrames = 1_000_000
        short = dcmread(CT)
        short.PixelData = short.PixelData[:100]
        without = dcmread(CT)
        del without.PixelData
        for instance, frame, error in (
            (b"", 1, InvalidPixels),
            (b"\0" * 128 + b"DICM" + b"\xff" * 100, 1, InvalidPixels),
            (bytes_of(bomb), 1, PixelsTooLarge),
            (bytes_of(short), 1, InvalidPixels),
            (bytes_of(without), 1, UnsupportedPixels),
            (bytes_of(dataset), 2, NoSuchFrame),
            (bytes_of(dataset), 0, NoSuchFrame),
            ("/no/such/file", 1, FileNotFoundError),
        ):
            await self.assertFailure(pixels.render(instance, frame), error)
        await self.assertFailure(
            Deferred.fromCoroutine(pixels.transcode(COMPRESSED, "1.2.840.10008.1.2.4.50")), UnsupportedPixels
        )
        pids = pixels.pids
        self.assertTrue(await pixels.render(CT))
        self.assertEqual(pixels.pids, pids)

    async def test_memory(self) -> None:
        """An image that needs more memory than a process may have fails alone."""
        dataset = dcmread(CT)
        dataset.Rows, dataset.Columns = 10_000, 10_000
        dataset.PixelData = b"\0" * 200_000_000
        path = Path(self.mktemp())
        dataset.save_as(path)
        pixels = self.make(processes=1, memory=1024 * 1024 * 1024)
        await self.assertFailure(pixels.render(path, 1, RenderOptions("image/png")), PixelsTooLarge, PixelsCrashed)
        self.assertTrue(await pixels.render(CT))

    async def test_crash(self) -> None:
        """A process that is killed costs its job, and another one does the next."""
        pixels = self.make(processes=1)
        await pixels.render(CT)
        (pid,) = pixels.pids
        os.kill(pid, signal.SIGSTOP)
        jobs = [pixels.render(CT) for _ in range(3)]
        os.kill(pid, signal.SIGKILL)
        await self.assertFailure(jobs[0], PixelsCrashed)
        self.assertTrue(await jobs[1])
        self.assertTrue(await jobs[2])
        self.assertNotIn(pid, pixels.pids)
        self.flushLoggedErrors()

    async def test_hang(self) -> None:
        pixels = self.make(processes=1, timeout=1.0)
        await pixels.render(CT)
        os.kill(pixels.pids[0], signal.SIGSTOP)
        jobs = [pixels.render(CT) for _ in range(2)]
        await self.assertFailure(jobs[0], PixelsTimeout)
        self.assertTrue(await jobs[1])

    async def test_queue(self) -> None:
        pixels = self.make(processes=1, max_queued=2)
        jobs = [pixels.render(CT) for _ in range(3)]
        await self.assertFailure(pixels.render(CT), ExecutorFull)
        jobs[1].cancel()
        await self.assertFailure(jobs[1], Exception)
        self.assertEqual(pixels.queued, 1)
        self.assertTrue(await jobs[0])
        self.assertTrue(await jobs[2])


class End(PixelsTestCase):
    async def test_stop(self) -> None:
        """The job that is being done is finished, the others fail, and no process is left."""
        pixels = self.make(processes=1)
        jobs = [pixels.render(CT) for _ in range(2)]
        pids = pixels.pids
        stopped = pixels.stop()
        await self.assertFailure(jobs[1], PixelsStopped)
        self.assertTrue(await jobs[0])
        await stopped
        self.assertEqual(pixels.pids, [])
        self.assertRaises(ProcessLookupError, os.kill, pids[0], 0)
        await self.assertFailure(pixels.render(CT), PixelsStopped)

    async def test_nothing_is_inherited(self) -> None:
        """A child has its socket, its pipes and the image as descriptors, and no secrets in its environment."""
        self.patch(os, "environ", {**os.environ, "A_SECRET": "hidden"})
        pixels = self.make(processes=1)
        await pixels.render(CT)
        (pid,) = pixels.pids
        self.assertLessEqual(len(os.listdir(f"/proc/{pid}/fd")), 6)
        self.assertNotIn(b"A_SECRET", Path(f"/proc/{pid}/environ").read_bytes())

    async def test_idle_processes_end(self) -> None:
        self.patch(__import__("dicomtwist.pixels.pool", fromlist=["pool"]), "IDLE", 0.01)
        pixels = self.make(processes=1)
        await pixels.render(CT)
        ended = pixels._when_ended()
        await ended
        self.assertEqual(pixels.pids, [])
        self.assertTrue(await pixels.render(CT))

    async def test_jpeg_2000_as_a_source(self) -> None:
        source = await self.make().transcode(CT, JPEG2000Lossless)
        self.assertIsNotNone(source.length)
        chunk = source.read()
        assert isinstance(chunk, tuple)
        data, is_last = chunk
        self.assertTrue(is_last)
        self.assertEqual(source.length, len(data))
        source.close()

"""
Peers that do not take the transfer syntax of stored images get them in another one, by C-GET and by C-MOVE.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist.pixels.syntaxes import COMPRESSED
from tests import peers
from tests.interop.archives import fill, statuses
from tests.interop.test_query_retrieve_dcmtk_scu import GOT, MOVED, query
from tests.interop.twist import TwistTestCase
from tests.peers import DicomFile, Result, dcmtk, one_per_transfer_syntax, run


def images() -> list[DicomFile]:
    """Return an image in each compressed transfer syntax, all from different studies."""
    by_study = {file.study: file for syntax, file in one_per_transfer_syntax().items() if syntax in COMPRESSED}
    return [*by_study.values()]


def studies(files: Sequence[DicomFile]) -> Sequence[object]:
    """Return the keys for the studies of *files*."""
    return query("STUDY", "StudyInstanceUID=" + "\\".join(sorted({file.study for file in files})))


class TranscodingTests(TwistTestCase):
    async def begin(self, *options: object) -> list[DicomFile]:
        """Start the archive, and store the images in it."""
        await self.twist(*options)
        files = images()
        self.assertGreater(len(files), 5)
        await fill(self.port, "TWIST", files)
        return files

    def new_folder(self) -> Path:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        return folder

    async def tool(self, name: str, *flags: object) -> Result:
        return await run(dcmtk(name), "-v", "-S", "-aec", "TWIST", *flags, "127.0.0.1", self.port)

    def assert_images(self, folder: Path, files: Sequence[DicomFile], syntaxes: Sequence[str]) -> None:
        """Check that *folder* has *files*, with the same pixels, in one of *syntaxes*."""
        found = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in folder.iterdir()}
        self.assertEqual(set(found), {file.sop_instance for file in files})
        for file in files:
            path = found[file.sop_instance]
            self.assertIn(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID, syntaxes)
            try:
                expected = pixel_array(file.path)
            except RuntimeError:
                continue  # pydicom cannot decode it with the plugins that are installed
            np.testing.assert_array_equal(pixel_array(path), expected, file.name)

    async def test_get(self) -> None:
        """getscu accepts uncompressed transfer syntaxes only, unless an option adds one."""
        files = await self.begin()
        folder = self.new_folder()
        result = await self.tool("getscu", "-od", folder, *studies(files))
        self.assertEqual(statuses(result, GOT), ["Pending"] * (len(files) - 1) + ["Success"], result.text)
        self.assert_images(folder, files, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])

    async def test_move(self) -> None:
        """The destinations accept uncompressed transfer syntaxes, and Implicit VR only."""
        destinations = {"STORESCP": self.new_folder(), "IMPLICIT": self.new_folder()}
        options: list[object] = []
        for title, folder in destinations.items():
            port = await peers.dcmtk_storescp(self, folder, *(["+xi"] if title == "IMPLICIT" else []), "+B")
            options += ["--peer", f"{title}=127.0.0.1:{port}"]
        files = await self.begin(*options)
        for title, folder in destinations.items():
            result = await self.tool("movescu", "-aem", title, *studies(files))
            self.assertEqual(statuses(result, MOVED)[-1], "Success", result.text)
            explicit = [] if title == "IMPLICIT" else [ExplicitVRLittleEndian]
            self.assert_images(folder, files, [*explicit, ImplicitVRLittleEndian])

    async def test_move_as_stored(self) -> None:
        """A destination that takes every transfer syntax gets the bytes of the files."""
        folder = self.new_folder()
        storescp = await peers.dcmtk_storescp(self, folder, "+xa", "+B")
        files = await self.begin("--peer", f"STORESCP=127.0.0.1:{storescp}")
        result = await self.tool("movescu", "-aem", "STORESCP", *studies(files))
        self.assertEqual(statuses(result, MOVED)[-1], "Success", result.text)
        datasets = {
            str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): peers.dataset_bytes(path)
            for path in folder.iterdir()
        }
        self.assert_bytes(datasets, files)

    async def test_without_processes(self) -> None:
        """Compressed images fail then, as without the extra."""
        files = await self.begin("--image-processes", 0)
        result = await self.tool("getscu", "-od", self.new_folder(), *studies(files[:1]))
        self.assertNotEqual(statuses(result, GOT)[-1], "Success", result.text)

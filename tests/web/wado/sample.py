"""An archive with instances of pydicom's test files, and other ones, for the tests of retrieval."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.part10 import read_file_meta
from tests.web.site import SiteTestCase

__all__ = ["WADOTestCase", "image", "part10", "test_file"]


def test_file(name: str) -> Path:
    """Return the path of one of the test files that come with pydicom."""
    path = get_testdata_file(name, download=False)
    assert path, name
    return Path(str(path))


def image(
    number: int = 1, *, study: str = "1.2", series: str = "1.2.1", syntax: str = ExplicitVRLittleEndian, **more: Any
) -> Dataset:
    """Return a small image of 16 bits; *more* are further attributes by keyword."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = f"{series}.{number}"
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series
    dataset.InstanceNumber = number
    dataset.PatientName = "Yamada^Tarou"
    dataset.Rows = dataset.Columns = 4
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    frames = int(more.get("NumberOfFrames", 1))
    if "PixelData" not in more:
        dataset.PixelData = bytes(range(32)) * frames
    return dataset


def part10(dataset: Dataset) -> bytes:
    """Return *dataset* as a Part 10 file."""
    file = BytesIO()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.ImplementationClassUID = UID("1.2.3")
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


class _Flow:
    def pause(self) -> None: ...

    def resume(self) -> None: ...


class WADOTestCase(SiteTestCase):
    """A test with a site whose archive has instances."""

    async def store(self, *instances: Dataset | Path) -> list[InstanceUIDs]:
        """Store instances as a sender does; return their UIDs."""
        return [await self._store(part10(one) if isinstance(one, Dataset) else one.read_bytes()) for one in instances]

    async def _store(self, content: bytes) -> InstanceUIDs:
        file = BytesIO(content)
        meta, start = read_file_meta(file)
        incoming = self.server.ingest.begin(meta, _Flow())
        incoming.write(memoryview(content)[start:])
        incoming.finish()
        error = await incoming.result
        if error is not None:
            raise error
        dataset = dcmread(BytesIO(content), stop_before_pixels=True)
        return dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID

    def path(self, uids: Iterable[str], rest: str = "") -> str:
        """Return the path of a study, a series or an instance."""
        levels = ("studies", "series", "instances")
        return "/dicom-web" + "".join(f"/{level}/{uid}" for level, uid in zip(levels, uids, strict=False)) + rest

    def stored(self, uids: InstanceUIDs) -> bytes:
        """Return the stored file of an instance."""
        with self.archive.store.open(*uids) as file:
            return file.read()

"""DICOMweb with the index in PostgreSQL: the answers are those with SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from dicomtwist.archive.archive import Archive
from tests.archive.index.test_postgresql import empty
from tests.archive.samples import keep
from tests.interop.archives import STUDY_FIND
from tests.interop.test_archive_queries import DIFFERENT, MORE, SAME
from tests.interop.test_dicomweb_queries import FURTHER, url
from tests.interop.twist import made, shipped
from tests.web import test_qido
from tests.web.site import Client, SiteTestCase
from tests.web.wado import test_instances, test_metadata


class PostgreSQL(SiteTestCase):
    """A site whose archive has its index in PostgreSQL."""

    def make_archive(self) -> Archive:
        return Archive(self.folder, engine=empty())


class SearchesThere(PostgreSQL, test_qido.Searches):
    """Searches."""


class InstancesThere(PostgreSQL, test_instances.Instances):
    """Retrieval of instances."""


class MetadataThere(PostgreSQL, test_metadata.Metadata):
    """Retrieval of metadata."""


class Queries(PostgreSQL):
    """The queries that C-FIND and DICOMweb answer alike, in both databases."""

    async def test_the_same(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        data_sets = [dcmread(file.path, stop_before_pixels=True) for file in (*shipped(), *made(folder))]
        self._keep(data_sets)
        there = self.client()
        self.open_site(Archive(folder / "sqlite"))
        self._keep(data_sets)
        here = self.client()
        every: list[Any] = [*SAME, *(row[0] for row in MORE), *(row[0] for row in DIFFERENT), *FURTHER]
        paths = [url(asked) for asked in every if asked.model == STUDY_FIND and asked.level != "PATIENT"]
        for level in ("studies", "series", "instances"):
            paths += [f"/{level}?includefield=all", f"/{level}?limit=3&offset=2", f"/{level}?limit=5&includefield=all"]
            paths += [f"/{level}?fuzzymatching=true&PatientName=Smyth", f"/{level}?PatientName=m%C3%BCller*"]
        some = 0
        for path in paths:
            expected = await self._answer(here, path)
            self.assertEqual(await self._answer(there, path), expected, path)
            some += expected[0] == 200 and len(expected[2]) > 2
        self.assertGreater(some, len(paths) // 2)

    def _keep(self, data_sets: Sequence[Dataset]) -> None:
        for one in data_sets:
            keep(self.archive, one, str(one.file_meta.TransferSyntaxUID))

    async def _answer(self, client: Client, path: str) -> tuple[int, str, bytes]:
        response = await client.request("GET", f"/dicom-web{path}")
        return response.status, response.headers.get("warning", ""), response.body

"""
The client of DICOMweb, and the ``dicomtwist`` command with a URL, at real servers: ``twist dicom --http`` and Orthanc.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread

from dicomtwist.dicomweb import DICOMwebClient, DICOMwebError, ResourceNotFound, StoredInstance, StoreOutcome
from dicomtwist.retrieval import Outcome, retrieve_from_web
from dicomtwist.retrieval.function import Wanted
from tests import peers
from tests.interop.twist import TwistTestCase
from tests.peers import DicomFile, dicom_files

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


def several() -> list[DicomFile]:
    """Return instances of several SOP Classes and transfer syntaxes, each instance once."""
    found = {file.sop_instance: file for file in dicom_files() if os.path.getsize(file.path) < 200_000}
    return list(found.values())[:40]


def data_set(content: bytes) -> bytes:
    """Return a file without its File Meta Information."""
    length = int.from_bytes(content[140:144], "little")
    return content[144 + length :]


class Servers:
    """The tests of each server."""

    base: str

    async def start_server(self) -> None:
        """Start the server, empty."""
        raise NotImplementedError

    async def command(self: Any, *args: object) -> Any:
        """Run ``dicomtwist`` with ``--json``; return its document, and the exit status in it."""
        name, *rest = args
        result = await peers.run(sys.executable, "-m", "dicomtwist.tools", name, "--json", *rest, timeout=120)
        return json.loads(result.stdout)

    async def test_client(self: Any) -> None:
        """Instances that are stored are found, and come back as they were."""
        await self.start_server()
        client = DICOMwebClient(self.base)
        self.addCleanup(client.close)
        files = several()
        results: list[StoredInstance] = []
        total = await client.store_instances([file.path for file in files], on_result=results.append, max_batch=7)
        stored = {one.sop_instance for one in results if one.outcome is StoreOutcome.STORED}
        self.assertEqual((total.stored, len(results)), (len(stored), len(files)))
        self.assertGreaterEqual(len(stored), len(files) - 5)
        self.assertTrue(all(one.words for one in results if one.outcome is StoreOutcome.FAILED))

        found = [one async for one in client.search_for_instances(page=9)]
        self.assertEqual({one.SOPInstanceUID for one in found}, stored)
        studies = {one.StudyInstanceUID async for one in client.search_for_studies(include=["StudyDescription"])}
        self.assertEqual(studies, {file.study for file in files if file.sop_instance in stored})

        contents = {file.sop_instance: Path(file.path).read_bytes() for file in files}
        came: set[str] = set()
        for study in studies:
            async for part in client.retrieve_study(study):
                content = await part.read()
                uid = str(dcmread(BytesIO(content), stop_before_pixels=True).SOPInstanceUID)
                self.assert_same(content, contents[uid])
                came.add(uid)
        self.assertEqual(came, stored)
        (metadata,) = await listed(client.retrieve_metadata(*uids_of(found[0])))
        self.assertEqual(metadata.SOPInstanceUID, found[0].SOPInstanceUID)
        await self.check_failures(client)

    async def check_failures(self: Any, client: DICOMwebClient) -> None:
        """Resources that are not there."""
        with self.assertRaises(ResourceNotFound):
            await listed(client.retrieve_study("1.2.3.4"))
        with self.assertRaises(DICOMwebError):
            await client.retrieve_rendered("1.2.3.4")

    async def test_frames(self: Any) -> None:
        """Frames come as they are stored."""
        await self.start_server()
        client = DICOMwebClient(self.base)
        self.addCleanup(client.close)
        (file,) = [one for one in several() if one.path.endswith("/CT_small.dcm")]
        await client.store_instances(file.path)
        parts = client.retrieve_frames(file.study, file.series, file.sop_instance)
        frames = [await part.read() async for part in parts]
        self.assertEqual(frames, [dcmread(file.path).PixelData])

    async def test_folder(self: Any) -> None:
        """A retrieval into a folder fetches what is missing only."""
        await self.start_server()
        client = DICOMwebClient(self.base)
        self.addCleanup(client.close)
        files = [file for file in several() if "dicomdirtests" in file.path]
        self.assertEqual((await client.store_instances([file.path for file in files])).failed, 0)
        folder = Path(self.mktemp()).absolute()
        studies = sorted({file.study for file in files})
        wanted: list[Wanted] = [
            *studies[1:],
            {"StudyInstanceUID": studies[0]},
            {"PatientID": "nobody at all"},
            "1.2.3.4",
        ]
        for missing in (len(files), 0, 2):
            totals = await retrieve_from_web(client, wanted, folder, durability="none", connections=2)
            self.assertEqual((totals.stored, totals.stored + totals.existing), (missing, len(files)), totals)
            self.assertEqual(totals.requests, {Outcome.RETRIEVED: len(studies), Outcome.NOT_FOUND: 2})
            names = sorted(folder.rglob("*.dcm"))
            self.assertEqual(len(names), len(files))
            for name in names[: 2 * (missing == 0)]:
                name.unlink()

    async def test_command(self: Any) -> None:
        """``dicomtwist store``, ``find`` and ``get`` with a URL."""
        await self.start_server()
        files = [file for file in several() if "dicomdirtests" in file.path]
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        for file in files:
            (folder / f"{file.sop_instance}.dcm").write_bytes(Path(file.path).read_bytes())
        (folder / "notes.txt").write_text("no DICOM")
        journal = folder.with_name("journal")
        sent = await self.command("store", "--resume", journal, self.base, folder)
        self.assertEqual((sent["stored"], sent["failed"], sent["skipped"]), (len(files), 0, 1), sent)
        again = await self.command("store", "--resume", journal, self.base, folder)
        self.assertEqual((again["stored"], again["stored_before"], again["exit_status"]), (0, len(files), 0))

        study = files[0].study
        series = {file.series for file in files if file.study == study}
        found = await self.command("find", "--level", "SERIES", "-k", f"StudyInstanceUID={study}", self.base)
        self.assertEqual({one["SeriesInstanceUID"] for one in found["matches"]}, series)
        self.assertEqual({one["StudyInstanceUID"] for one in found["matches"]}, {study})
        limited = await self.command("find", "--limit", "1", self.base, "-k", "StudyInstanceUID")
        self.assertEqual((limited["count"], limited["exit_status"]), (1, 0))

        got = folder.with_name("got")
        result = await self.command("get", "-k", f"StudyInstanceUID={study}", self.base, got)
        self.assertEqual((result["stored"], result["exit_status"]), (sum(one.study == study for one in files), 0))
        nothing = await self.command("get", "-k", "StudyInstanceUID=1.2.3.4", self.base, got)
        self.assertEqual((nothing["not_found"], nothing["exit_status"]), (1, 1))
        gone = await self.command("find", "http://127.0.0.1:1/dicom-web")
        self.assertEqual((gone["cause"]["code"], gone["exit_status"]), ("refused", 3))


async def listed(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def uids_of(match: Any) -> tuple[str, str, str]:
    return match.StudyInstanceUID, match.SeriesInstanceUID, match.SOPInstanceUID


class TwistTests(Servers, TwistTestCase):
    """``twist dicom --http``."""

    async def start_server(self) -> None:
        """Start the server, empty."""
        http = peers.free_port()
        self.base = f"http://127.0.0.1:{http}/dicom-web"
        await self.twist("--http", f"tcp:{http}:interface=127.0.0.1")

    def assert_same(self, came: bytes, sent: bytes) -> None:  # type: ignore[override]
        """The data sets are equal to the byte."""
        self.assertEqual(data_set(came), data_set(sent))


class OrthancTests(Servers, TwistTestCase):
    """Orthanc with its plugin for DICOMweb."""

    async def start_server(self) -> None:
        """Start the server, empty."""
        if not os.path.exists(PLUGIN):
            raise peers.missing_error(
                "not installed: Orthanc's plugin (Debian and Ubuntu: apt-get install orthanc-dicomweb)"
            )
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        http, port = peers.free_port(), peers.free_port()
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": http,
            "DicomPort": port,
            "AuthenticationEnabled": False,
            "Plugins": [PLUGIN],
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        process = await peers.start(self, peers.tool("Orthanc"), folder / "orthanc.json", ready=port, timeout=60)
        await process.wait_for("Orthanc has started", 60)
        self.base = f"http://127.0.0.1:{http}/dicom-web"

    def assert_same(self, came: bytes, sent: bytes) -> None:  # type: ignore[override]
        """Orthanc keeps the data set."""
        self.assertEqual(data_set(came)[:2000], data_set(sent)[:2000])

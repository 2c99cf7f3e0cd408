"""
Searches of DICOMweb and C-FIND, of one ``twist dicom`` with the instances of the other tests of queries: the answers agree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from twisted.internet.threads import deferToThread

from dicomtwist import SOPClassExtended
from tests import peers
from tests.interop.archives import STUDY_FIND, fill, keys
from tests.interop.test_archive_queries import DIFFERENT, INVALID, LEVELS, MORE, SAME, STUDY_4, Asked, study, told
from tests.interop.twist import ROOT, TwistTestCase, made, shipped

GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
SERIES_2: Final = {**STUDY_4, "SeriesInstanceUID": f"{ROOT}.4.2"}

#: Queries besides those of the other tables. Some of them need relational queries, which every search of DICOMweb may be.
FURTHER: Final = (
    Asked("SERIES", {}),
    Asked("SERIES", {"Modality": "MR", "SeriesNumber": ""}),
    Asked("SERIES", {"PatientName": "Smith*", "Modality": ""}),
    Asked("SERIES", {"StudyInstanceUID": [f"{ROOT}.1", f"{ROOT}.4"], "PatientID": ""}),
    Asked("SERIES", {"StudyDate": "20240601-20240604", "Modality": "CT"}),
    Asked("IMAGE", {"Modality": "CT", "StudyDate": "20240101", "InstanceNumber": ""}),
    Asked("IMAGE", {"SOPInstanceUID": [f"{ROOT}.4.2.1", f"{ROOT}.1.1.2"], "PatientName": ""}),
    Asked("IMAGE", STUDY_4),
    Asked("IMAGE", {**SERIES_2, "InstanceNumber": "2", "SOPClassUID": "", "AvailableTransferSyntaxUID": ""}),
    Asked("IMAGE", {"Rows": 64, "Columns": ""}),
    Asked("IMAGE", {"ImageType": "ORIGINAL", "ImagePositionPatient": "", "PatientWeight": ""}),
    study(StudyDescription="Hand*", ModalitiesInStudy="", PatientSex=""),
    study(StudyDate="-20240101", PatientSex="F"),
    study(SOPClassesInStudy="1.2.840.10008.5.1.4.1.1.4"),
)


class Answered(NamedTuple):
    """A response to a search."""

    status: int
    warnings: list[str]
    content: Any


def url(asked: Asked) -> str:
    """Return the path and the query of a search; UIDs that are single values are in the path."""
    values = {name: value for name, value in asked.keys.items() if name != "SpecificCharacterSet"}
    path = {"STUDY": "/studies", "SERIES": "/series", "IMAGE": "/instances"}[asked.level]
    in_study, in_series = values.get("StudyInstanceUID"), values.get("SeriesInstanceUID")
    if asked.level != "STUDY" and isinstance(in_study, str):
        del values["StudyInstanceUID"]
        if asked.level == "IMAGE" and isinstance(in_series, str):
            del values["SeriesInstanceUID"]
            path = f"/series/{in_series}/instances"
        path = f"/studies/{in_study}{path}"
    pairs = []
    for name, value in values.items():
        if value == "":
            pairs.append(f"includefield={name}")
        else:
            text = "\\".join(value) if isinstance(value, list) else str(value)
            pairs.append(f"{name}={quote(text, safe='')}")
    return f"{path}?{'&'.join(pairs)}"


def texts(answer: dict[str, Any], wanted: Dataset) -> dict[str, str]:
    """Return the values in an answer of the keys in *wanted*, as ``told`` returns them of the answers to a C-FIND."""
    found = {}
    for element in wanted:
        values = answer.get(f"{int(element.tag):08X}", {}).get("Value", [])
        if element.VR == "DS":
            values = list(map(float, values))
        plain = [
            "=".join(one.get(group, "") for group in GROUPS).rstrip("=") if isinstance(one, dict) else one
            for one in values
        ]
        found[element.keyword] = "" if not plain else str(plain[0] if len(plain) == 1 else plain)
    found.pop("SpecificCharacterSet", None)
    found["QueryRetrieveLevel"] = wanted.QueryRetrieveLevel
    return found


class SearchTests(TwistTestCase):
    async def started(self) -> None:
        """Start an archive with HTTP, and store the instances."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        files = [*shipped(), *made(folder)]
        self.http = peers.free_port()
        await self.twist("--http", f"tcp:{self.http}:interface=127.0.0.1")
        await fill(self.port, "TWIST", files)

    async def searched(self, paths: Sequence[str]) -> list[Answered]:
        """Return the responses to searches on one connection."""

        def ask() -> list[Answered]:
            connection = HTTPConnection("127.0.0.1", self.http, timeout=60)
            answers = []
            for path in paths:
                connection.request("GET", f"/dicom-web{path}", headers={"Accept": "application/dicom+json"})
                response = connection.getresponse()
                warnings = response.headers.get_all("Warning", [])
                answers.append(Answered(response.status, warnings, json.loads(response.read())))
            connection.close()
            return answers

        answers: list[Answered] = await deferToThread(ask)
        return answers

    async def found(self, assoc: Any, asked: Asked, identifier: Dataset) -> tuple[list[Any], int]:
        """Return the answers to a C-FIND, sorted, and the final status."""
        found, final = [], 0
        async for status, one in assoc.send_c_find(identifier, STUDY_FIND):
            if one is not None:
                for element in one:
                    if element.VR == "DS" and not element.is_empty:
                        # JSON has a number, whose notation is free.
                        element.value = (
                            [float(part) for part in element.value] if element.VM > 1 else float(element.value)
                        )
                found.append(told(one, identifier))
            final = int(status)
        return sorted(found, key=str), final

    async def test_the_same(self) -> None:
        """A table of queries gives the same entities and values by DICOMweb and by C-FIND."""
        await self.started()
        # Only C-FIND has the level PATIENT, and the keys of the other tables that C-FIND refuses without relational queries.
        every: list[Any] = [*SAME, *(row[0] for row in MORE), *(row[0] for row in DIFFERENT), *FURTHER]
        table: list[Asked] = [one for one in every if one.model == STUDY_FIND and one.level != "PATIENT"]
        self.assertGreater(len(table), 80)
        answers = await self.searched([url(asked) for asked in table])
        relational = [SOPClassExtended(STUDY_FIND, b"\1")]
        some = 0
        async with await self.requestor(STUDY_FIND).associate(
            "127.0.0.1", self.port, ae_title="TWIST", ext_neg=relational
        ) as assoc:
            for asked, answer in zip(table, answers, strict=True):
                identifier = keys(asked.level, **asked.keys)
                setattr(identifier, LEVELS[asked.level], identifier.get(LEVELS[asked.level], ""))
                expected, status = await self.found(assoc, asked, identifier)
                if status == INVALID:
                    self.assertEqual(answer.status, 400, asked)
                    continue
                self.assertEqual((answer.status, answer.warnings), (200, []), asked)
                self.assertEqual(sorted([texts(one, identifier) for one in answer.content], key=str), expected, asked)
                some += bool(expected)
        self.assertGreater(some, len(table) // 2)

    async def test_dicomweb_client(self) -> None:
        """dicomweb-client searches at all levels, with pages, and reads the answers."""
        await self.started()

        def use() -> tuple[list[Any], ...]:
            client = DICOMwebClient(f"http://127.0.0.1:{self.http}/dicom-web")
            return (
                client.search_for_studies(search_filters={"PatientName": "Smith*"}, fields=["StudyDescription"]),
                client.search_for_studies(limit=5, offset=3),
                client.search_for_studies(get_remaining=True, limit=7),
                client.search_for_studies(),
                client.search_for_series(f"{ROOT}.4"),
                client.search_for_instances(f"{ROOT}.4", f"{ROOT}.4.2"),
                client.search_for_instances(search_filters={"00080060": "MR"}),
                client.search_for_studies(fuzzymatching=True, search_filters={"PatientName": "Smyth"}),
                client.search_for_studies(search_filters={"PatientID": "nobody"}),
            )

        smiths, some, paged, studies, series, instances, of_mr, fuzzy, nobody = await deferToThread(use)
        self.assertEqual(len(smiths), 3)
        self.assertEqual(
            {str(Dataset.from_json(one).StudyDescription) for one in smiths if one["00081030"].get("Value")},
            {"Hand left", "Hand_right 50%"},
        )
        self.assertEqual(some, studies[3:8])
        self.assertEqual(paged, studies)
        self.assertEqual([len(series), len(instances)], [3, 2])
        self.assertEqual({Dataset.from_json(one).Modality for one in of_mr}, {"MR"})
        self.assertEqual(len(fuzzy), 2)
        self.assertEqual(nobody, [])

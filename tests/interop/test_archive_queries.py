"""
Queries to ``twist dicom`` and to dcmqrscp with equal instances in them: the answers agree, except for the differences
below.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydicom import Dataset, dcmread

from dicomtwist import Association
from tests import peers
from tests.interop.archives import PATIENT_FIND, STUDY_FIND, dcmqrscp, fill, keys
from tests.interop.twist import MR, ROOT, TwistTestCase, made, shipped


class Asked(NamedTuple):
    """A query."""

    level: str
    keys: dict[str, Any]
    model: str = STUDY_FIND


def study(**keys: Any) -> Asked:
    return Asked("STUDY", keys)


def patient(**keys: Any) -> Asked:
    return Asked("PATIENT", keys, PATIENT_FIND)


STUDY_1 = {"StudyInstanceUID": f"{ROOT}.1"}
STUDY_4 = {"StudyInstanceUID": f"{ROOT}.4"}
STUDY_9 = {"StudyInstanceUID": f"{ROOT}.9"}

#: Queries with equal answers.
SAME: Final = (
    study(),
    study(PatientName="", PatientID="", StudyDate="", StudyTime="", AccessionNumber="", StudyID=""),
    study(PatientID="G1"),
    study(PatientID="G?"),
    study(PatientID="G*"),
    study(PatientID="G_10"),
    study(PatientID="*"),
    study(PatientID="??"),
    study(PatientID="9889*4"),
    study(PatientID="nobody"),
    study(PatientName="Smith^Anna"),
    study(PatientName="Smith*"),
    study(PatientName="Smith^*"),
    study(PatientName="*Anna*"),
    study(PatientName="Smith^Ann?"),
    study(PatientName="Doe^*"),
    study(PatientName="*^J*"),
    study(PatientName="O'Brien_100%*"),
    study(PatientName="O'Brien?100?^Pat"),
    study(PatientName="%"),
    study(PatientName="CompressedSamples^??1"),
    study(StudyDate="20240101"),
    study(StudyDate="20240101-20240229"),
    study(StudyDate="20240601-"),
    study(StudyDate="-20000101"),
    study(StudyTime="080000"),
    study(StudyTime="-0930"),
    study(StudyTime="1500-"),
    study(StudyDate="20240101-20240229", StudyTime="080000-130000"),
    study(AccessionNumber="A10*"),
    study(AccessionNumber="B101"),
    study(AccessionNumber="?10?"),
    study(StudyID="1"),
    study(StudyDescription="Hand*"),
    study(StudyDescription="Hand_right 50%"),
    study(ReferringPhysicianName="House^G*"),
    study(StudyInstanceUID=f"{ROOT}.1"),
    study(StudyInstanceUID=[f"{ROOT}.1", f"{ROOT}.3", f"{ROOT}.99"]),
    study(PatientBirthDate="19500101-19800229"),
    patient(),
    patient(PatientID="", PatientName="", PatientSex="", PatientBirthDate=""),
    patient(PatientID="G1"),
    patient(PatientName="Smith*"),
    patient(PatientSex="O"),
    patient(PatientBirthDate="19700101-19701231"),
    Asked("STUDY", {"PatientID": "G1", "StudyDate": ""}, PATIENT_FIND),
    Asked("SERIES", {**STUDY_1, "Modality": "", "SeriesNumber": ""}),
    Asked("SERIES", {**STUDY_4, "SeriesNumber": "2"}),
    Asked("SERIES", {**STUDY_9, "SeriesNumber": "", "Modality": "CT"}),
    Asked("SERIES", {**STUDY_9, "Modality": "MR"}),
    Asked("SERIES", {"PatientID": "G1", **STUDY_1}, PATIENT_FIND),
    Asked("SERIES", {"PatientID": "G2", **STUDY_1}, PATIENT_FIND),
    Asked("IMAGE", {**STUDY_4, "SeriesInstanceUID": f"{ROOT}.4.2", "InstanceNumber": ""}),
    Asked("IMAGE", {**STUDY_4, "SeriesInstanceUID": f"{ROOT}.4.2", "InstanceNumber": "2"}),
    Asked("IMAGE", {**STUDY_1, "SeriesInstanceUID": f"{ROOT}.1.1", "SOPInstanceUID": f"{ROOT}.1.1.2"}),
    Asked("IMAGE", {"PatientID": "G1", **STUDY_1, "SeriesInstanceUID": f"{ROOT}.1.1"}, PATIENT_FIND),
    study(PatientName="Müller^K?the", SpecificCharacterSet="ISO_IR 100"),
    study(PatientName="Чехов*", SpecificCharacterSet="ISO_IR 144"),
    study(PatientName="Чехов*", SpecificCharacterSet="ISO_IR 192"),
    study(PatientName="*王*", SpecificCharacterSet="ISO_IR 192"),
    study(PatientName="Wang*"),
    study(PatientName="Yamada*"),
    study(PatientName="", PatientID="G*", SpecificCharacterSet=""),
    study(PatientName="Doe^Jane"),
    study(PatientName="Doe^Jane*"),
    study(PatientName="Doe*III"),
    study(PatientName="Smith"),
    study(PatientID="g1"),
    study(StudyDate="20240102-20240101"),
    study(StudyDate="2024.01.01"),
    study(StudyTime="0945"),
    study(StudyTime="094500"),
    study(StudyTime="100000"),
    study(StudyTime="235959.999999"),
    study(StudyTime="09:45"),
    study(StudyDate="20240101-20240229", StudyTime="100000-060000"),
    study(StudyID="01"),
    study(AccessionNumber="B1?1"),
    study(AccessionNumber="C*1"),
    study(StudyDescription="hand*"),
    study(StudyDescription="*A?B"),
    patient(PatientBirthDate="-19000101"),
    patient(PatientSex="f"),
)

#: Queries with equal entities in both answers, for which ``twist dicom`` returns more: dcmqrscp leaves these keys empty.
#: All of them are optional, and an SCP may ignore optional keys (PS3.4 C.2.2.1.3, tables C.6-1 to C.6-5).
MORE: Final[tuple[tuple[Asked, dict[str, tuple[str, ...]]], ...]] = (
    (
        study(ModalitiesInStudy="", NumberOfStudyRelatedSeries="", NumberOfStudyRelatedInstances=""),
        {f"{ROOT}.2": ("['CT', 'MR']", "2", "2"), f"{ROOT}.4": ("MR", "3", "4")},
    ),
    (study(InstitutionName=""), {"1.3.6.1.4.1.5962.1.2.1.20040119072730.12322": ("JFK IMAGING CENTER",)}),
    (
        patient(NumberOfPatientRelatedStudies="", NumberOfPatientRelatedSeries="", NumberOfPatientRelatedInstances=""),
        {"G1": ("2", "4", "5"), "98890234": ("4", "9", "24")},
    ),
    (
        Asked("SERIES", {**STUDY_4, "SeriesDescription": "", "NumberOfSeriesRelatedInstances": ""}),
        {f"{ROOT}.4.2": ("Series 2", "2")},
    ),
    (
        Asked("IMAGE", {**STUDY_4, "SeriesInstanceUID": f"{ROOT}.4.2", "SOPClassUID": ""}),
        {f"{ROOT}.4.2.1": (MR,), f"{ROOT}.4.2.2": (MR,)},
    ),
)

INVALID: Final = 0xA900
#: Queries with different answers, and the clause of PS3.4 about each: the number of our matches, of theirs; or the status.
DIFFERENT: Final = (
    # Names may be matched without regard to case, and twist dicom does so (C.2.2.2.1).
    (study(PatientName="smith*"), 3, 0),
    (study(PatientName="SMITH^ANNA"), 1, 0),
    (study(PatientName="Müller*", SpecificCharacterSet="ISO_IR 100"), 3, 2),
    (study(PatientName="Müller*", SpecificCharacterSet="ISO_IR 192"), 3, 2),
    (study(ReferringPhysicianName="house*"), 4, 0),
    (patient(PatientName="smith*"), 3, 0),
    # A question mark matches a character, not a byte, in every character set (C.2.2.2.4).
    (study(PatientName="M?ller*"), 3, 0),
    # A key with one component group is matched against each group of the name, which is optional (C.2.2.2.1).
    (study(PatientName="山田*", SpecificCharacterSet="ISO_IR 192"), 3, 0),
    # Trailing delimiters of components have no meaning (PS3.5 6.2.1).
    (study(PatientName="Smith^Anna^"), 1, 0),
    # A time without its last parts stands for all values of these parts (C.2.2.2.1, C.2.2.2.5; PS3.5 6.2, TM).
    (study(StudyTime="12"), 2, 1),
    (study(StudyTime="1200"), 2, 1),
    (study(StudyTime="120000"), 2, 1),
    (study(StudyTime="10"), 3, 1),
    (study(StudyTime="080000-120000"), 9, 8),
    # Only UIDs require matching of lists (C.2.2.2.2); here several values of any key match any of them.
    (study(PatientID=["G1", "G2"]), 3, 0),
    # A single asterisk is universal matching (C.2.2.2.4), here also for keys whose VRs have no wildcards.
    (study(StudyDate="*"), 38, 0),
    # An optional key that is matched here and ignored there (C.2.2.1.3).
    (study(ModalitiesInStudy="MR"), 11, 38),
    (study(ModalitiesInStudy=["CT", "MR"]), 20, 38),
    (Asked("SERIES", {**STUDY_4, "SeriesDescription": "Series 2"}), 1, 3),
    # An IS is a number, so its notation does not matter (C.2.2.2.1; PS3.5 6.2, IS).
    (Asked("SERIES", {**STUDY_4, "SeriesNumber": "02"}), 1, 0),
    # Neither a date nor a range of dates; a UID with a wildcard: invalid (C.4.1.1.4, table C.4-1; C.2.2.2.4).
    (study(StudyDate="2024"), INVALID, 0),
    (study(StudyDate="202401"), INVALID, 0),
    (study(StudyDate="hello"), INVALID, 0),
    (study(StudyDate="2024*"), INVALID, 0),
    (study(StudyInstanceUID=f"{ROOT}.*"), INVALID, 0),
    # A hierarchical query has single values in the unique keys above its level (C.4.1.2.1).
    (Asked("STUDY", {"PatientID": "G*"}, PATIENT_FIND), INVALID, 11),
    (Asked("SERIES", {"StudyInstanceUID": [f"{ROOT}.1", f"{ROOT}.4"]}), INVALID, 5),
    # Both refuse these, with different statuses: a level that the model lacks, unique keys that are missing (C.4.1.2.1).
    (Asked("PATIENT", {}), INVALID, 0xC000),
    (Asked("STUDY", {}, PATIENT_FIND), INVALID, 0xC000),
    (Asked("SERIES", {}), INVALID, 0xC000),
    (Asked("SERIES", {"Modality": "MR"}), INVALID, 0xC000),
    (Asked("IMAGE", STUDY_4), INVALID, 0xC000),
)

LEVELS: Final = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}

#: An answer in a form that can be compared: the requested keys, as texts.
Answer = dict[str, str]


def told(answer: Dataset, wanted: Dataset) -> Answer:
    """Return the values in *answer* of the keys in *wanted*, decoded from any character set."""
    answer.decode()
    texts = {}
    for element in wanted:
        value = answer[element.tag].value if element.tag in answer else None
        texts[element.keyword] = "" if value is None else str(value)
    texts.pop("SpecificCharacterSet", None)
    return texts


class QueryTests(TwistTestCase):
    async def both(self) -> tuple[int, int]:
        """Store the instances in both archives, and return their ports."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        files = [*shipped(), *made(folder)]
        await self.twist()
        await fill(self.port, "TWIST", files)
        return self.port, await dcmqrscp(self, files)

    @staticmethod
    def identifier(asked: Asked) -> Dataset:
        """Return the identifier, with the unique key of its level."""
        made = keys(asked.level, **asked.keys)
        unique = LEVELS.get(asked.level)
        if unique is not None and unique not in made:
            setattr(made, unique, "")
        return made

    async def answers(self, assoc: Association, asked: Asked) -> tuple[list[Answer], int]:
        """Return the matches, sorted, and the final status."""
        identifier = self.identifier(asked)
        found, final = [], 0
        async for status, one in assoc.send_c_find(identifier, asked.model):
            if one is not None:
                found.append(told(one, identifier))
            final = int(status)
        return sorted(found, key=str), final

    async def test_the_same(self) -> None:
        """A table of queries has the values of dcmqrscp in each answer; another table has the differences."""
        ours, theirs = await self.both()
        self.assertGreaterEqual(len(SAME), 40)
        some = 0
        async with (
            await self.associate(ours, "TWIST", STUDY_FIND, PATIENT_FIND) as one,
            await self.associate(theirs, "DCMQRSCP", STUDY_FIND, PATIENT_FIND) as other,
        ):
            for asked in SAME:
                mine, status = await self.answers(one, asked)
                self.assertEqual((mine, status), await self.answers(other, asked), asked)
                some += bool(mine)
            # Most of the queries have matches.
            self.assertGreater(some, len(SAME) * 3 // 4)
            for asked, more in MORE:
                await self.check_more(one, other, asked, more)
            for asked, expected, others in DIFFERENT:
                for assoc, number in ((one, expected), (other, others)):
                    found, status = await self.answers(assoc, asked)
                    self.assertEqual(status or len(found), number, f"{assoc.acceptor.ae_title}: {asked}")

    async def check_more(
        self, one: Association, other: Association, asked: Asked, more: dict[str, tuple[str, ...]]
    ) -> None:
        """
        Check that the entities are equal, theirs without the keys that *asked* leaves empty; some of our values are *more*.
        """
        (mine, status), (others, their_status) = await self.answers(one, asked), await self.answers(other, asked)
        self.assertEqual((status, their_status), (0, 0))
        optional = [keyword for keyword, value in asked.keys.items() if value == ""]
        unique = LEVELS[asked.level]
        values = {answer[unique]: tuple(answer.pop(keyword) for keyword in optional) for answer in mine}
        self.assertEqual({answer.pop(keyword) for answer in others for keyword in optional}, {""})
        self.assertEqual(sorted(mine, key=str), sorted(others, key=str), asked)
        self.assertEqual({name: values[name] for name in more}, more)

    async def test_findscu(self) -> None:
        """DCMTK's client gets equal answers to some queries of the table."""
        ours, theirs = await self.both()
        some = [asked for asked in SAME if "SpecificCharacterSet" not in asked.keys][::6]
        self.assertGreater(len(some), 8)
        folder = Path(self.mktemp()).absolute()
        for asked in some:
            identifier = self.identifier(asked)
            flags = ["-P" if asked.model == PATIENT_FIND else "-S"]
            for element in identifier:
                value = element.value
                text = "\\".join(value) if isinstance(value, (list, tuple)) or element.VM > 1 else str(value or "")
                flags += ["-k", f"{element.keyword}={text}"]
            found = []
            for title, port in (("TWIST", ours), ("DCMQRSCP", theirs)):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                result = await peers.run(
                    peers.dcmtk("findscu"), "-X", "-od", folder, *flags, "-aec", title, "127.0.0.1", port
                )
                self.assertEqual(result.code, 0, result.text)
                written = [told(dcmread(path, force=True), identifier) for path in folder.glob("rsp*.dcm")]
                found.append(sorted(written, key=str))
            self.assertEqual(found[0], found[1], asked)

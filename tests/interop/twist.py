"""
``twist dicom`` as a process, and instances for it: some of pydicom's, and some that were made for queries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests import peers
from tests.interop.archives import ArchiveTestCase, header
from tests.peers import DicomFile, dicom_files

CT: Final = "1.2.840.10008.5.1.4.1.1.2"
MR: Final = "1.2.840.10008.5.1.4.1.1.4"
ROOT: Final = "1.2.826.0.1.3680043.10.1"

#: Patients of the made instances: Specific Character Set, name, Patient ID, sex, date of birth.
PATIENTS: Final = (
    ("ISO_IR 100", "Müller^Käthe", "G1", "F", "19500101"),
    ("ISO_IR 100", "MÜLLER^HANS^^DR", "G2", "M", "19631224"),
    (["", "ISO 2022 IR 87"], "Yamada^Hanako=山田^花子=やまだ^はなこ", "G3", "F", "19800229"),
    ("ISO_IR 144", "Чехов^Антон", "G4", "M", "18600129"),
    ("ISO_IR 192", "Wang^Li=王^丽", "G5", "F", ""),
    (None, "Smith^Anna", "G6", "F", "19700707"),
    (None, "Smith^Anna Maria", "G7", "F", "19700708"),
    (None, "Smithson^John", "G8", "O", "19991231"),
    (None, "O'Brien_100%^Pat", "G9", "M", "20000101"),
    (None, "Doe^Jane^Q^Dr^III", "G_10", "F", "19450508"),
)

#: Their studies: the patient's number, date, time, Accession Number, Study ID, description, referring physician, and for
#: each series the modality, its number and the number of its instances.
STUDIES: Final = (
    (0, "20240101", "080000", "A100", "1", "Thorax", "House^Gregory", (("CT", 1, 2), ("CT", 2, 1))),
    (0, "20240102", "120000.5", "A101", "2", "Thorax post", "House^Gregory", (("CT", 1, 1), ("MR", 2, 1))),
    (1, "20231231", "235959.999999", "A102", "1", "Abdomen", "Wilson^James", (("MR", 1, 2),)),
    (2, "20240229", "000000", "A103", "1", "Head", "Cuddy^Lisa", (("MR", 1, 1), ("MR", 2, 2), ("MR", 3, 1))),
    (3, "19991231", "1530", "A104", "1", "Knee", "", (("MR", 1, 1),)),
    (4, "20240601", "093000", "A105", "1", "Hand", "Cuddy^Lisa", (("CT", 1, 1),)),
    (5, "20240601", "0945", "B100", "7", "Hand left", "House^Gregory", (("CT", 1, 1),)),
    (6, "20240602", "10", "B101", "8", "Hand_right 50%", "House^G", (("MR", 1, 1),)),
    (7, "20240603", "110000", "B1?1", "9", "", "Wilson^James", (("CT", 1, 1), ("CT", 10, 1), ("CT", 2, 1))),
    (8, "20240604", "", "C*1", "10", "A*B", "", (("MR", 1, 1),)),
    (9, "", "", "", "", "No date", "", (("CT", 1, 1),)),
)


def made(folder: Path) -> Iterator[DicomFile]:
    """Write the instances of :data:`STUDIES` into *folder*, and yield them."""
    for number, (patient, date, time, accession, study_id, words, physician, series) in enumerate(STUDIES, 1):
        character_set, name, patient_id, sex, birth = PATIENTS[patient]
        for modality, series_number, count in series:
            for instance_number in range(1, count + 1):
                one = Dataset()
                if character_set is not None:
                    one.SpecificCharacterSet = character_set
                one.SOPClassUID = CT if modality == "CT" else MR
                one.PatientName, one.PatientID, one.PatientSex, one.PatientBirthDate = name, patient_id, sex, birth
                one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = date, time, study_id, accession
                one.StudyDescription, one.ReferringPhysicianName = words, physician
                one.Modality, one.SeriesNumber, one.InstanceNumber = modality, series_number, instance_number
                one.SeriesDescription = f"Series {series_number}"
                one.StudyInstanceUID = f"{ROOT}.{number}"
                one.SeriesInstanceUID = f"{one.StudyInstanceUID}.{series_number}"
                one.SOPInstanceUID = f"{one.SeriesInstanceUID}.{instance_number}"
                one.file_meta = FileMetaDataset()
                one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                path = folder / f"{one.SOPInstanceUID}.dcm"
                one.save_as(path, enforce_file_format=True)
                uids = (one.SOPClassUID, one.SOPInstanceUID, one.StudyInstanceUID, one.SeriesInstanceUID)
                yield DicomFile(str(path), ExplicitVRLittleEndian, *map(str, uids))


@cache
def shipped() -> tuple[DicomFile, ...]:
    """Return those of pydicom's files that every archive accepts and that have a Patient ID."""
    found: dict[str, DicomFile] = {}
    for file in dicom_files():
        if file.transfer_syntax == ExplicitVRLittleEndian and header(file).get("PatientID"):
            found.setdefault(file.sop_instance, file)
    return tuple(found.values())


class TwistTestCase(ArchiveTestCase):
    """
    A test with ``twist dicom`` in a process of its own.

    :ivar port: its port without TLS; its AE title is TWIST.
    :ivar root: the folder that contains its storage.
    """

    timeout = 240

    async def twist(self, *options: object) -> None:
        """Start ``twist dicom``."""
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir(parents=True)
        self.port = peers.free_port()
        self.process = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--ae-title", "TWIST", "--durability", "none"),
            *("--port", f"tcp:{self.port}:interface=127.0.0.1", "--storage", self.root / "storage", *options),
            ready=self.port,
        )

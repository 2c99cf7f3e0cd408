"""A worklist for tests: complete items, and queries for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomtwist.datasets import encode_dataset
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta

STEP_KEYWORDS: Final = frozenset((
    "Modality", "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime",
    "ScheduledPerformingPhysicianName", "ScheduledProcedureStepDescription", "ScheduledProcedureStepID",
    "ScheduledStationName", "ScheduledProcedureStepLocation", "ScheduledProtocolCodeSequence",
))  # fmt: skip

#: The attributes in which the items differ, in the order of their files.
ITEMS: Final[tuple[dict[str, Any], ...]] = (
    {"PatientName": "VIVALDI^ANTONIO", "PatientID": "V1", "AccessionNumber": "1001", "PatientSex": "M",
     "Modality": "MR", "ScheduledStationAETitle": ["AA32", "AA33"], "ScheduledProcedureStepStartDate": "20240105",
     "ScheduledProcedureStepStartTime": "085600", "ScheduledPerformingPhysicianName": "JOHNSON"},
    {"PatientName": "VIVALDI^ANTONIO", "PatientID": "V1", "AccessionNumber": "1002", "PatientSex": "M",
     "Modality": "CT", "ScheduledStationAETitle": "AB45", "ScheduledProcedureStepStartDate": "20240106",
     "ScheduledProcedureStepStartTime": "160700", "ScheduledPerformingPhysicianName": "ROSS"},
    {"PatientName": "HAYDN^FRANZ JOSEPH", "PatientID": "H1", "AccessionNumber": "1003", "PatientSex": "M",
     "Modality": "US", "ScheduledStationAETitle": "AA32", "ScheduledProcedureStepStartDate": "20240107",
     "ScheduledProcedureStepStartTime": "165700", "ScheduledPerformingPhysicianName": "MEYER^ANNA"},
    {"PatientName": "Müller^Käthe", "PatientID": "M1", "AccessionNumber": "1004", "PatientSex": "F",
     "Modality": "CT", "ScheduledStationAETitle": "FG56", "ScheduledProcedureStepStartDate": "20240107",
     "ScheduledProcedureStepStartTime": "094500", "ScheduledPerformingPhysicianName": "ROSS",
     "SpecificCharacterSet": "ISO_IR 100"},
    {"PatientName": "Люксембург^Роза", "PatientID": "L1", "AccessionNumber": "1005", "PatientSex": "F",
     "Modality": "NM", "ScheduledStationAETitle": "AZ01", "ScheduledProcedureStepStartDate": "20231231",
     "ScheduledProcedureStepStartTime": "235959", "ScheduledPerformingPhysicianName": "JOHNSON",
     "SpecificCharacterSet": "ISO_IR 192"},
    {"PatientName": "BEETHOVEN^LUDWIG^VAN", "PatientID": "B1", "AccessionNumber": "1006", "PatientSex": "M",
     "Modality": "CT", "ScheduledStationAETitle": "DS45", "ScheduledProcedureStepStartDate": "20240108",
     "ScheduledProcedureStepStartTime": "110856", "ScheduledPerformingPhysicianName": "ROSS"},
    {"PatientName": "MOZART^WOLFGANG^AMADEUS", "PatientID": "B2", "AccessionNumber": "1007", "PatientSex": "",
     "Modality": "MR", "ScheduledStationAETitle": "TT67", "ScheduledProcedureStepStartDate": "20240805",
     "ScheduledProcedureStepStartTime": "175609", "ScheduledPerformingPhysicianName": "BROWN"},
)  # fmt: skip


def code(value: str, meaning: str = "") -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "99TEST", meaning
    return item


def item(number: int, **elements: Any) -> Dataset:
    """An item of a worklist (PS3.4 K.6.1.2), complete; *elements* are added or replaced, at the level where they belong."""
    made, step = Dataset(), Dataset()
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "StudyInstanceUID": f"1.2.7.{number}",
        "RequestedProcedureID": f"RP{number}",
        "RequestedProcedureDescription": f"Procedure {number % 3}",
        "RequestedProcedurePriority": "LOW" if number % 2 else "HIGH",
        "PatientBirthDate": f"19{50 + number % 50}0101",
        "RequestingPhysician": "SMITH",
        "ReferringPhysicianName": "",
        "RequestedProcedureCodeSequence": [code(f"C{number % 2}", "Something")],
        "ScheduledProcedureStepID": f"SPS{number}",
        "ScheduledProcedureStepDescription": f"Step {number}",
        "ScheduledStationName": f"STN{number}",
        "ScheduledProcedureStepLocation": "HERE",
        "PatientWeight": "70",
        **elements,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(step if keyword in STEP_KEYWORDS else made, keyword, value)
    made.ScheduledProcedureStepSequence = [step]
    return made


def items() -> list[Dataset]:
    return [item(number, **elements) for number, elements in enumerate(ITEMS, 1)]


def write(path: Path, made: Dataset, transfer_syntax: str = ExplicitVRLittleEndian, *, meta: bool = True) -> None:
    """Write an item, as a file of PS3.10 or as a bare data set."""
    head = encode_preamble_and_meta(FileMeta("1.2.276.0.7230010.3.1.0.1", "1.2.3", str(transfer_syntax), "1.2.4"))
    path.write_bytes((head if meta else b"") + encode_dataset(made, transfer_syntax))


def query(**keys: Any) -> Dataset:
    """
    An identifier with the keys that modalities use, all universal except *keys*.

    :param keys: ``None`` leaves a key out.
    """
    asked, step = Dataset(), Dataset()
    values: dict[str, Any] = {
        **dict.fromkeys(("PatientName", "PatientID", "PatientSex", "PatientBirthDate", "AccessionNumber"), ""),
        **dict.fromkeys(("StudyInstanceUID", "RequestedProcedureID", "RequestedProcedureDescription"), ""),
        **dict.fromkeys(("Modality", "ScheduledStationAETitle", "ScheduledProcedureStepStartDate"), ""),
        **dict.fromkeys(("ScheduledProcedureStepStartTime", "ScheduledPerformingPhysicianName"), ""),
        **dict.fromkeys(("ScheduledProcedureStepID", "ScheduledStationName"), ""),
        **keys,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(step if keyword in STEP_KEYWORDS else asked, keyword, value)
    asked.ScheduledProcedureStepSequence = [step]
    return asked

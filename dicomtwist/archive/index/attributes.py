"""
The attributes that the index holds of patients, studies, series and instances, in one table.

The columns of the database, the tags that are extracted while an instance is received, and the keys that a query may contain
all follow from it. It has all unique and required keys of PS3.4 C.6.1.1 and C.6.2.1, and the optional keys that archives
commonly support.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

__all__ = ["ATTRIBUTES", "BY_TAG", "COMPUTED", "Attribute", "Level", "at_level"]


class Level(enum.IntEnum):
    """A level of the information models (PS3.4 C.6), the uppermost first."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    IMAGE = 3

    @property
    def unique(self) -> Attribute:
        """The unique key of the level: the attribute that identifies an entity."""
        return _UNIQUE[self]


@dataclass(frozen=True, slots=True)
class Attribute:
    """
    An attribute of the index.

    :ivar level: the level that it belongs to.
    :ivar keyword: its name in PS3.6.
    :ivar tag: ``group << 16 | element``.
    :ivar vr: its Value Representation.
    :ivar is_multiple: whether it may have more than one value.
    :ivar is_computed: whether a query counts or collects it from the levels below.
    :ivar column: the name of its column.
    """

    level: Level
    keyword: str
    tag: int
    vr: str
    is_multiple: bool
    is_computed: bool
    column: str

    @property
    def key_column(self) -> str | None:
        """The column with the normal form that is compared, if that differs from the value in a response."""
        return f"{self.column}_key" if self.vr in ("PN", "TM", "DT") else None


_KEYWORDS: Final = {
    Level.PATIENT: """
        PatientID PatientName IssuerOfPatientID PatientBirthDate PatientBirthTime PatientSex OtherPatientIDs
        OtherPatientNames EthnicGroup PatientComments
    """,
    Level.STUDY: """
        StudyInstanceUID StudyDate StudyTime AccessionNumber StudyID ReferringPhysicianName StudyDescription
        ProcedureCodeSequence PhysiciansOfRecord NameOfPhysiciansReadingStudy AdmittingDiagnosesDescription PatientAge
        PatientSize PatientWeight Occupation AdditionalPatientHistory OtherStudyNumbers RequestedProcedureDescription
        RequestingPhysician InstitutionName TimezoneOffsetFromUTC
    """,
    Level.SERIES: """
        SeriesInstanceUID Modality SeriesNumber SeriesDate SeriesTime SeriesDescription BodyPartExamined Laterality
        ProtocolName OperatorsName PerformingPhysicianName InstitutionalDepartmentName StationName Manufacturer
        ManufacturerModelName SequenceName ContrastBolusAgent PerformedProcedureStepID
        PerformedProcedureStepStartDate PerformedProcedureStepStartTime PerformedProcedureStepDescription
        RequestAttributesSequence FrameOfReferenceUID
    """,
    Level.IMAGE: """
        SOPInstanceUID SOPClassUID InstanceNumber ContentDate ContentTime AcquisitionDate AcquisitionTime
        AcquisitionDateTime AcquisitionNumber InstanceCreationDate InstanceCreationTime ImageType NumberOfFrames Rows
        Columns BitsAllocated PhotometricInterpretation ImagePositionPatient ImageOrientationPatient ImageComments
        TemporalPositionIdentifier ContainerIdentifier ConceptNameCodeSequence CompletionFlag VerificationFlag
        ContentLabel ContentDescription
    """,
}
_COMPUTED: Final = {
    Level.PATIENT: "NumberOfPatientRelatedStudies NumberOfPatientRelatedSeries NumberOfPatientRelatedInstances",
    Level.STUDY: "ModalitiesInStudy SOPClassesInStudy NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances",
    Level.SERIES: "NumberOfSeriesRelatedInstances",
    Level.IMAGE: "AvailableTransferSyntaxUID",
}


def _column(keyword: str) -> str:
    words = keyword.replace("IDs", "Ids").replace("UTC", "Utc")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", words).lower()


def _attribute(level: Level, keyword: str, is_computed: bool) -> Attribute:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    multiple = dictionary_VM(tag) != "1" and dictionary_VR(tag) != "SQ"
    return Attribute(level, keyword, tag, dictionary_VR(tag), multiple, is_computed, _column(keyword))


#: All attributes that have a column, by level; within a level the unique key is the first.
ATTRIBUTES: Final[tuple[Attribute, ...]] = tuple(
    _attribute(level, keyword, False) for level, keywords in _KEYWORDS.items() for keyword in keywords.split()
)
#: The attributes that a query computes.
COMPUTED: Final[tuple[Attribute, ...]] = tuple(
    _attribute(level, keyword, True) for level, keywords in _COMPUTED.items() for keyword in keywords.split()
)
BY_TAG: Final[dict[int, Attribute]] = {attribute.tag: attribute for attribute in (*ATTRIBUTES, *COMPUTED)}

_BY_LEVEL: Final = {level: tuple(attribute for attribute in ATTRIBUTES if attribute.level is level) for level in Level}
_UNIQUE: Final = {level: attributes[0] for level, attributes in _BY_LEVEL.items()}


def at_level(level: Level) -> tuple[Attribute, ...]:
    """Return the attributes of *level* that have a column."""
    return _BY_LEVEL[level]

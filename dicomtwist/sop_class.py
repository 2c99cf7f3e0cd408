"""SOP Classes by name, and the Service Class of each.

Every SOP Class of PS3.6 Annex A that pydicom's UID dictionary knows is an attribute of this module, under the
dictionary's keyword::

    from dicomtwist.sop_class import CTImageStorage, Verification

Other accepted names are the keywords that pynetdicom gives to some of them, the older names that end in ``SOPClass``
(``VerificationSOPClass``), and those added by :func:`register_uid`. A name is looked up on access, so the module is quick
to import.

Importing this module adds to pydicom's UID dictionary the few UIDs of PS3.6 that pydicom may lack.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeVar, cast

from pydicom import config
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from dicomtwist.dimse.messages import RESPONSES
from dicomtwist.dimse.status import use_service_classes


class ServiceClass(enum.StrEnum):
    """The Service Classes of PS3.4 (and PS3.22), which define the messages that a SOP Class is used with."""

    VERIFICATION = "Verification"
    STORAGE = "Storage"
    NON_PATIENT_OBJECT = "Non-Patient Object Storage"
    MEDIA_STORAGE = "Media Storage"
    QUERY_RETRIEVE = "Query/Retrieve"
    COLOR_PALETTE = "Color Palette Query/Retrieve"
    DEFINED_PROCEDURE_PROTOCOL = "Defined Procedure Protocol Query/Retrieve"
    HANGING_PROTOCOL = "Hanging Protocol Query/Retrieve"
    IMPLANT_TEMPLATE = "Implant Template Query/Retrieve"
    PROTOCOL_APPROVAL = "Protocol Approval Query/Retrieve"
    INVENTORY = "Inventory Query/Retrieve"
    BASIC_WORKLIST = "Basic Worklist Management"
    RELEVANT_PATIENT = "Relevant Patient Information Query"
    SUBSTANCE_ADMINISTRATION = "Substance Administration Query"
    PROCEDURE_STEP = "Modality Performed Procedure Step"
    PRINT_MANAGEMENT = "Print Management"
    STORAGE_COMMITMENT = "Storage Commitment"
    STORAGE_MANAGEMENT = "Storage Management"
    APPLICATION_EVENT = "Application Event Logging"
    INSTANCE_AVAILABILITY = "Instance Availability Notification"
    MEDIA_CREATION = "Media Creation Management"
    DISPLAY_SYSTEM = "Display System Management"
    UNIFIED_PROCEDURE_STEP = "Unified Procedure Step"
    RT_MACHINE_VERIFICATION = "RT Machine Verification"
    REAL_TIME_COMMUNICATION = "Real-Time Communication"
    UNKNOWN = "Unknown"


# The Service Class of a SOP Class by its keyword. The first pattern that matches the whole keyword wins, so the few storage
# classes outside the Storage Service Class come before the rule for storage.
_RULES: Final[dict[ServiceClass, str]] = {
    ServiceClass.VERIFICATION: "Verification",
    ServiceClass.MEDIA_STORAGE: "MediaStorageDirectoryStorage",
    ServiceClass.NON_PATIENT_OBJECT: (
        "(?:HangingProtocol|ColorPalette|GenericImplantTemplate|ImplantAssemblyTemplate|ImplantTemplateGroup"
        "|(?:CT|XA)DefinedProcedureProtocol|ProtocolApproval|Inventory)Storage"
    ),
    ServiceClass.STORAGE: ".+Storage(?:ForPresentation|ForProcessing|Trial|Retired)?",
    ServiceClass.QUERY_RETRIEVE: (
        "(?:PatientRoot|StudyRoot|PatientStudyOnly)QueryRetrieveInformationModel(?:Find|Move|Get)"
        "|CompositeInstance.*(?:Move|Get)|RepositoryQuery"
    ),
    ServiceClass.COLOR_PALETTE: "ColorPalette.+",
    ServiceClass.DEFINED_PROCEDURE_PROTOCOL: "DefinedProcedureProtocol.+",
    ServiceClass.HANGING_PROTOCOL: "HangingProtocol.+",
    ServiceClass.IMPLANT_TEMPLATE: "(?:GenericImplant|ImplantAssembly|ImplantTemplate).+",
    ServiceClass.PROTOCOL_APPROVAL: "ProtocolApproval.+",
    ServiceClass.INVENTORY: "Inventory(?:Find|Move|Get)",
    ServiceClass.BASIC_WORKLIST: "ModalityWorklist.+",
    ServiceClass.RELEVANT_PATIENT: ".+RelevantPatientInformationQuery",
    ServiceClass.SUBSTANCE_ADMINISTRATION: "ProductCharacteristicsQuery|SubstanceApprovalQuery",
    ServiceClass.PROCEDURE_STEP: "ModalityPerformedProcedureStep.*",
    ServiceClass.PRINT_MANAGEMENT: (
        "Basic(?:Film|Grayscale|Color|Annotation).+|PrintJob|Printer.*|PresentationLUT|VOILUTBox"
    ),
    ServiceClass.STORAGE_COMMITMENT: "StorageCommitment.+",
    ServiceClass.STORAGE_MANAGEMENT: "InventoryCreation",
    ServiceClass.APPLICATION_EVENT: "ProceduralEventLogging|SubstanceAdministrationLogging",
    ServiceClass.INSTANCE_AVAILABILITY: "InstanceAvailabilityNotification",
    ServiceClass.MEDIA_CREATION: "MediaCreationManagement",
    ServiceClass.DISPLAY_SYSTEM: "DisplaySystem",
    ServiceClass.UNIFIED_PROCEDURE_STEP: "UnifiedProcedureStep.+",
    ServiceClass.RT_MACHINE_VERIFICATION: "RT(?:Conventional|Ion)MachineVerification",
    ServiceClass.REAL_TIME_COMMUNICATION: ".+RealTimeCommunication",
}

# The UIDs of PS3.6 Table A-1 that the oldest supported pydicom lacks: UID, name and keyword.
_NEWER_SOP_CLASSES: Final = (
    (
        "1.2.840.10008.5.1.4.1.1.9.100.1",
        "Waveform Presentation State Storage",
        "WaveformPresentationStateStorage",
    ),
    (
        "1.2.840.10008.5.1.4.1.1.9.100.2",
        "Waveform Acquisition Presentation State Storage",
        "WaveformAcquisitionPresentationStateStorage",
    ),
    ("1.2.840.10008.5.1.4.1.1.66.7", "Label Map Segmentation Storage", "LabelMapSegmentationStorage"),
    ("1.2.840.10008.5.1.4.1.1.66.8", "Height Map Segmentation Storage", "HeightMapSegmentationStorage"),
)
_NEWER_TRANSFER_SYNTAXES: Final = (
    ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless", "JPEGXLLossless"),
    ("1.2.840.10008.1.2.4.111", "JPEG XL JPEG Recompression", "JPEGXLJPEGRecompression"),
    ("1.2.840.10008.1.2.4.112", "JPEG XL", "JPEGXL"),
    ("1.2.840.10008.1.2.8.1", "Deflated Image Frame Compression", "DeflatedImageFrameCompression"),
)

# Other keywords in use, with the dictionary's keyword for the SOP Class.
_ALIASES: Final[dict[str, str]] = {
    "ModalityWorklistInformationFind": "ModalityWorklistInformationModelFind",
    "ColorPaletteInformationModelFind": "ColorPaletteQueryRetrieveInformationModelFind",
    "ColorPaletteInformationModelMove": "ColorPaletteQueryRetrieveInformationModelMove",
    "ColorPaletteInformationModelGet": "ColorPaletteQueryRetrieveInformationModelGet",
    "PseudoColorSoftcopyPresentationStageStorage": "PseudoColorSoftcopyPresentationStateStorage",
    "VariableModalityLUTSoftcopyPresentationStageStorage": ("VariableModalityLUTSoftcopyPresentationStateStorage"),
    "OphthlamicOpticalCoherenceTomographyBscanVolumeAnalysisStorage": (
        "OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage"
    ),
    "RoboticArmRadiationRecordStorage": "RoboticRadiationRecordStorage",
    "RTBrachyApplicationSetupDeliveryInstructionsStorage": ("RTBrachyApplicationSetupDeliveryInstructionStorage"),
}

# Retired SOP Classes that are served all the same: this information model is still in use.
_RETIRED_BUT_SERVED: Final = re.compile("PatientStudyOnlyQueryRetrieveInformationModel.+")

# No longer in Print Management (PS3.4 H.3.2, H.3.3.2), although the UID dictionary does not say so.
_RETIRED_BY_TEXT: Final = frozenset({"VOILUTBox"})

# UIDs of whole Service Classes; the second one also occurs as an affected SOP Class.
_SERVICE_CLASS_UIDS: Final[dict[str, ServiceClass]] = {
    "1.2.840.10008.4.2": ServiceClass.STORAGE,
    "1.2.840.10008.5.1.4.34.6": ServiceClass.UNIFIED_PROCEDURE_STEP,
}

_OLD_SUFFIX: Final = "SOPClass"
# Lenient on purpose: an empty or zero-padded component violates PS3.5 9.1, but devices send such UIDs.
_UID_FORM: Final = re.compile(r"[0-9.]{1,64}")

# The storage SOP Classes most in use, including retired ones of older devices: as many as leave room for 8 others in a
# request of 128 contexts. First the suffixes of the storage root, then complete UIDs.
_STORAGE_ROOT: Final = "1.2.840.10008.5.1.4.1.1."
_COMMON_STORAGE: Final = """
    1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 10 104.1 104.2 11 11.1 11.2 11.3 11.4 11.5 12.1 12.1.1 12.2 12.2.1
    12.3 128 128.1 129 13.1.1 13.1.2 13.1.3 130 131 14.1 14.2 2 2.1 2.2 20 3 3.1 4 4.1 4.2 4.3 4.4 481.1
    481.2 481.3 481.4 481.5 481.6 481.7 481.8 481.9 5 6 6.1 6.2 66 66.1 66.2 66.3 66.4 66.5 67 68.1 68.2
    7 7.1 7.2 7.3 7.4 77.1 77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.3 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2
    77.1.5.3 77.1.5.4 77.1.6 77.2 78.1 78.2 78.3 78.4 78.5 78.6 78.7 78.8 79.1 8 80.1 81.1 88.11 88.22
    88.33 88.34 88.40 88.50 88.59 88.65 88.67 88.69 88.70 9 9.1.1 9.1.2 9.1.3 9.2.1 9.3.1 9.4.1 9.4.2
    9.5.1 9.6.1
"""
_COMMON_STORAGE_ELSEWHERE: Final = (
    "1.2.840.10008.5.1.1.27",
    "1.2.840.10008.5.1.1.29",
    "1.2.840.10008.5.1.1.30",
    "1.2.840.10008.5.1.4.34.7",
)

# Well-known SOP Instances of these Service Classes (PS3.6 Table A-1).
DisplaySystemInstance: Final = UID("1.2.840.10008.5.1.1.40.1")
PrinterConfigurationRetrievalInstance: Final = UID("1.2.840.10008.5.1.1.17.376")
PrinterInstance: Final = UID("1.2.840.10008.5.1.1.17")
ProceduralEventLoggingInstance: Final = UID("1.2.840.10008.1.40.1")
StorageCommitmentPushModelInstance: Final = UID("1.2.840.10008.1.20.1.1")
StorageManagementInstance: Final = UID("1.2.840.10008.5.1.4.1.1.201.1.1")
SubstanceAdministrationLoggingInstance: Final = UID("1.2.840.10008.1.42.1")
UPSFilteredGlobalSubscriptionInstance: Final = UID("1.2.840.10008.5.1.4.34.5.1")
UPSGlobalSubscriptionInstance: Final = UID("1.2.840.10008.5.1.4.34.5")


#: A UID in any form that users may pass: ``UID`` and ``SOPClass`` are subclasses of ``str``.
UIDLike = str | bytes


class _Entry(NamedTuple):
    """The properties of a SOP Class."""

    name: str
    keyword: str
    service_class: ServiceClass | None  # None: to be derived from the keyword
    current: bool  # in force in DICOM: not retired, not of another standard, not private
    dimse: tuple[str, ...] = ()  # the DIMSE services passed to register_uid
    members: tuple[str, ...] = ()  # the SOP Classes of a Meta SOP Class


def _complete_dictionary() -> None:
    """Add the missing UIDs to pydicom's UID dictionary.

    pydicom does not know the encoding of a transfer syntax that is not in its dictionary, so names in this module alone
    would not be enough: a data set received in JPEG XL could be neither decoded nor written.
    """
    for kind, newer in (("SOP Class", _NEWER_SOP_CLASSES), ("Transfer Syntax", _NEWER_TRANSFER_SYNTAXES)):
        for uid, name, keyword in newer:
            UID_dictionary.setdefault(uid, (name, kind, "", "", keyword))


def _collect_entries() -> dict[str, _Entry]:
    """Collect the SOP Classes of pydicom's dictionary.

    :returns: the entry of every SOP Class and Meta SOP Class that has a keyword, by UID
    """
    return {
        uid: _Entry(name, keyword, None, not retired and not info and keyword not in _RETIRED_BY_TEXT)
        for uid, (name, kind, info, retired, keyword) in UID_dictionary.items()
        if kind in ("SOP Class", "Meta SOP Class") and keyword
    }


_complete_dictionary()
_entries: dict[str, _Entry] = _collect_entries()
_uids: dict[str, str] = {entry.keyword: uid for uid, entry in _entries.items()}


@functools.cache
def _joined_rules() -> re.Pattern[str]:
    """Join the rules into one pattern whose group names are the names of the Service Classes."""
    return re.compile("|".join(f"(?P<{service.name}>{rule})" for service, rule in _RULES.items()))


@functools.lru_cache(maxsize=1024)
def _derive(keyword: str, current: bool) -> ServiceClass:
    """Apply the rules to a keyword.

    :param keyword: the keyword of a SOP Class
    :param current: whether the SOP Class is in force
    :returns: the Service Class; of retired SOP Classes only those for storage have one, because old images are still sent
    """
    match = _joined_rules().fullmatch(keyword)
    if match is None or match.lastgroup is None:
        return ServiceClass.UNKNOWN
    service = ServiceClass[match.lastgroup]
    if current or service is ServiceClass.STORAGE or _RETIRED_BUT_SERVED.fullmatch(keyword):
        return service
    return ServiceClass.UNKNOWN


def check_uid(value: object, what: str) -> str:
    """Check a UID that a user passes.

    :param value: a ``str`` (also ``UID`` or ``SOPClass``) or ASCII ``bytes``, padding allowed
    :param what: the name of the value in the error
    :returns: the UID without padding; the object itself if it has none
    :raises TypeError: if it is neither ``str`` nor ``bytes``
    :raises ValueError: if it is empty, too long, or has a character other than digits and dots
    """
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, bytes, UID or SOPClass, not {type(value).__name__}")
    text = value.strip(" \0")
    if not _UID_FORM.fullmatch(text):
        raise ValueError(f"{what} {value!r} is not a UID: 1 to 64 digits and dots (PS3.5 9.1)")
    # A UID can carry the encoding of a private transfer syntax, so return the object itself if possible.
    return value if text == value else text


class SOPClass(UID):
    """A UID that names a SOP Class, with its name, keyword and Service Class.

    Any string is accepted, even one that is not a well-formed UID: a peer may propose anything, and the acceptor must be
    able to answer. It equals the plain ``str`` with its text.

    :raises TypeError: if the value is not a ``str``
    """

    def __new__(cls, val: str, validation_mode: int | None = config.IGNORE) -> SOPClass:
        # pydicom would warn about each malformed UID from the network.
        return cast("SOPClass", super().__new__(cls, val, validation_mode))

    @property
    def name(self) -> str:
        """The name in PS3.6, or the UID itself if it is not known."""
        entry = _entries.get(self)
        return entry.name if entry else super().name

    @property
    def keyword(self) -> str:
        """The keyword in PS3.6 or from :func:`register_uid`; empty if the UID is not known."""
        entry = _entries.get(self)
        return entry.keyword if entry else super().keyword

    @property
    def service_class(self) -> ServiceClass:
        """The Service Class, :attr:`ServiceClass.UNKNOWN` if this UID has none."""
        return uid_to_service_class(self)


_U = TypeVar("_U", UID, SOPClass)


@functools.lru_cache(maxsize=4096)
def _known_uid(kind: type[_U], text: str) -> _U:
    return kind(text, config.IGNORE)


def shared_uid(kind: type[_U], text: str) -> _U:
    """Return a UID without pydicom's warnings.

    A UID in the dictionary is always the same object, because every association has a hundred of them.

    :param kind: ``UID`` or ``SOPClass``
    :param text: the UID
    :returns: the UID, which must not be changed
    """
    return _known_uid(kind, text) if text in UID_dictionary else kind(text, config.IGNORE)


def uid_to_sop_class(uid: str) -> SOPClass:
    """Return the SOP Class of a UID.

    :param uid: any UID
    :returns: the SOP Class, without a name and with an unknown Service Class if the UID is not known
    :raises TypeError: if `uid` is not a ``str``
    """
    return uid if isinstance(uid, SOPClass) else SOPClass(uid)


def uid_to_service_class(uid: str) -> ServiceClass:
    """Return the Service Class of a SOP Class.

    :param uid: the UID of a SOP Class or of a whole Service Class
    :returns: the Service Class (PS3.4), :attr:`ServiceClass.UNKNOWN` if this UID has none
    """
    entry = _entries.get(uid)
    if entry is None:
        return _SERVICE_CLASS_UIDS.get(uid, ServiceClass.UNKNOWN)
    if entry.service_class is not None:
        return entry.service_class
    return _derive(entry.keyword, entry.current)


def _service_class_name(uid: str) -> str:
    """Return the name of the Service Class of a SOP Class; empty if this UID has none."""
    service_class = uid_to_service_class(uid)
    return "" if service_class is ServiceClass.UNKNOWN else service_class.value


use_service_classes(_service_class_name)  # so that statuses have the meaning of their Service Class


def sop_classes(service_class: ServiceClass) -> list[SOPClass]:
    """List the SOP Classes of a Service Class that are in force.

    :param service_class: the Service Class
    :returns: its SOP Classes in the order of their UIDs as text, without retired ones, private ones, and those of DICOS
        and DICONDE (other standards that use DICOM); the retired Patient/Study Only information model is included,
        because it is still in use
    """
    return [
        SOPClass(uid)
        for uid, entry in sorted(_entries.items())
        if (entry.current or _RETIRED_BUT_SERVED.fullmatch(entry.keyword))
        and uid_to_service_class(uid) is service_class
    ]


def common_storage_classes() -> list[SOPClass]:
    """List the 120 storage SOP Classes that are most in use.

    :returns: the SOP Classes in the order of their UIDs as text, including some retired ones
    """
    uids = [_STORAGE_ROOT + suffix for suffix in _COMMON_STORAGE.split()]
    return [SOPClass(uid) for uid in sorted([*uids, *_COMMON_STORAGE_ELSEWHERE])]


def register_uid(
    uid: UIDLike,
    keyword: str,
    service_class: ServiceClass | str,
    name: str = "",
    *,
    dimse: str | Iterable[str] = (),
    members: Iterable[UIDLike] = (),
    dimse_msg_type: str | Iterable[str] = (),
) -> SOPClass:
    """Register a private SOP Class, so that it is named and served like one of DICOM.

    Repeating a registration has no effect.

    :param uid: the UID of the SOP Class
    :param keyword: the name under which this module offers it: a Python identifier that is not in use
    :param service_class: the Service Class that serves it
    :param name: the full name; the keyword by default
    :param dimse: the DIMSE service that it is used with, such as ``"C-FIND"``, or several; by default that of the
        Service Class, or for an information model the one that its keyword ends with (``Find``, ``Move``, ``Get``)
    :param members: for a Meta SOP Class, the UIDs of its SOP Classes
    :param dimse_msg_type: another name for `dimse`, as pynetdicom has it
    :returns: the SOP Class
    :raises TypeError: if `uid` or one of `members` is neither ``str`` nor ``bytes``, or `keyword` is not a ``str``
    :raises ValueError: if a UID is malformed or `uid` is already known, if the keyword is not an identifier or is already
        in use, or if there is no such Service Class or DIMSE service
    """
    sop_class = SOPClass(check_uid(uid, "the SOP Class"))
    if not isinstance(keyword, str):
        raise TypeError(f"a keyword must be a str, not {type(keyword).__name__}")
    dimse = dimse or dimse_msg_type
    entry = _Entry(
        name or keyword,
        keyword,
        ServiceClass(service_class),
        current=False,
        dimse=_check_services((dimse,) if isinstance(dimse, str) else tuple(dimse)),
        members=tuple(str(check_uid(member, "a SOP Class of the Meta SOP Class")) for member in members),
    )
    if _entries.get(sop_class) == entry:
        return sop_class
    if sop_class in _entries:
        raise ValueError(f"{sop_class} cannot be registered: it is already known as {sop_class.keyword}")
    if not keyword.isidentifier() or keyword.startswith("_"):
        raise ValueError(f"the keyword {keyword!r} must be a Python identifier without a leading underscore")
    if keyword in globals() or _find_uid(keyword) is not None:
        raise ValueError(f"the keyword {keyword!r} is already in use; choose another one for {sop_class}")
    _entries[sop_class] = entry
    _uids[keyword] = sop_class
    return sop_class


def _check_services(services: tuple[str, ...]) -> tuple[str, ...]:
    """Check the names of DIMSE services.

    :raises ValueError: if one of them is not a DIMSE service
    """
    known = {request.SERVICE for request in RESPONSES}
    for service in services:
        if service not in known:
            raise ValueError(f"there is no DIMSE service {service!r}: it is one of {', '.join(sorted(known))}")
    return services


def registered_services(uid: str) -> tuple[str, ...]:
    """Return the DIMSE services of a private SOP Class as passed to :func:`register_uid`; none for any other."""
    entry = _entries.get(uid)
    return entry.dimse if entry else ()


def registered_members() -> dict[str, tuple[str, ...]]:
    """Return the registered private Meta SOP Classes, with the UIDs of their SOP Classes."""
    return {uid: entry.members for uid, entry in _entries.items() if entry.members}


def _find_uid(keyword: str) -> str | None:
    """Return the UID for a keyword, an alias of one, or an older name that ends in ``SOPClass``."""
    uid = _uids.get(_ALIASES.get(keyword, keyword))
    if uid is None and keyword.endswith(_OLD_SUFFIX):
        keyword = keyword.removesuffix(_OLD_SUFFIX)
        uid = _uids.get(_ALIASES.get(keyword, keyword))
    return uid


def __getattr__(name: str) -> SOPClass:
    """Return the SOP Class with this keyword, or the names for ``from dicomtwist.sop_class import *`` (PEP 562).

    :raises AttributeError: if no SOP Class has this keyword
    """
    if name == "__all__":
        # A type checker sees the SOP Classes alone.
        return cast("SOPClass", _public_names())
    uid = _find_uid(name)
    if uid is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: no SOP Class has this keyword")
    return SOPClass(uid)


def _public_names() -> list[str]:
    """List the functions and classes of this module, and each keyword, those that end in ``SOPClass`` too."""
    own = {
        name
        for name, value in globals().items()
        if not name.startswith("_") and (isinstance(value, UID) or getattr(value, "__module__", "") == __name__)
    }
    keywords = {*_uids, *_ALIASES}
    return sorted({*own, *keywords, *(f"{keyword}{_OLD_SUFFIX}" for keyword in keywords)})


def __dir__() -> list[str]:
    """List the names of this module, with the keyword of every SOP Class."""
    return sorted({*globals(), *_uids, *_ALIASES})

"""The relations of SOP Classes to one another and to the DIMSE services (PS3.4).

They are: the DIMSE services of a SOP Class, the SOP Classes of a Meta SOP Class, the other SOP Classes on whose
presentation contexts an operation may be sent, and the SOP Instances with a well-known UID.

UIDs are passed and returned as ``str`` (:class:`~dicomtwist.sop_class.SOPClass` is one). Private SOP Classes that
:func:`~dicomtwist.sop_class.register_uid` has registered are included.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from dicomtwist import sop_class
from dicomtwist.sop_class import (
    ServiceClass,
    SOPClass,
    registered_members,
    registered_services,
    uid_to_service_class,
    uid_to_sop_class,
)

#: The annex of PS3.4 for each Service Class; Real-Time Communication is in PS3.22.
ANNEXES: Final[dict[ServiceClass, str]] = {
    ServiceClass.VERIFICATION: "A",
    ServiceClass.STORAGE: "B",
    ServiceClass.NON_PATIENT_OBJECT: "GG",
    ServiceClass.MEDIA_STORAGE: "I",
    ServiceClass.QUERY_RETRIEVE: "C, Y, Z",
    ServiceClass.COLOR_PALETTE: "X",
    ServiceClass.DEFINED_PROCEDURE_PROTOCOL: "HH",
    ServiceClass.HANGING_PROTOCOL: "U",
    ServiceClass.IMPLANT_TEMPLATE: "BB",
    ServiceClass.PROTOCOL_APPROVAL: "II",
    ServiceClass.INVENTORY: "JJ",
    ServiceClass.BASIC_WORKLIST: "K",
    ServiceClass.RELEVANT_PATIENT: "Q",
    ServiceClass.SUBSTANCE_ADMINISTRATION: "V",
    ServiceClass.PROCEDURE_STEP: "F",
    ServiceClass.PRINT_MANAGEMENT: "H",
    ServiceClass.STORAGE_COMMITMENT: "J",
    ServiceClass.STORAGE_MANAGEMENT: "KK",
    ServiceClass.APPLICATION_EVENT: "P",
    ServiceClass.INSTANCE_AVAILABILITY: "R",
    ServiceClass.MEDIA_CREATION: "S",
    ServiceClass.DISPLAY_SYSTEM: "EE",
    ServiceClass.UNIFIED_PROCEDURE_STEP: "CC",
    ServiceClass.RT_MACHINE_VERIFICATION: "DD",
}

# The DIMSE services of the Service Classes whose SOP Classes all have the same ones (tables DIMSE Service Group).
_SERVICES_BY_SERVICE_CLASS: Final[dict[ServiceClass, tuple[str, ...]]] = {
    ServiceClass.VERIFICATION: ("C-ECHO",),
    ServiceClass.STORAGE: ("C-STORE",),
    ServiceClass.NON_PATIENT_OBJECT: ("C-STORE",),
    ServiceClass.BASIC_WORKLIST: ("C-FIND",),
    ServiceClass.RELEVANT_PATIENT: ("C-FIND",),
    ServiceClass.SUBSTANCE_ADMINISTRATION: ("C-FIND",),
    ServiceClass.STORAGE_COMMITMENT: ("N-ACTION", "N-EVENT-REPORT"),
    ServiceClass.STORAGE_MANAGEMENT: ("N-ACTION", "N-EVENT-REPORT"),
    ServiceClass.APPLICATION_EVENT: ("N-ACTION",),
    ServiceClass.INSTANCE_AVAILABILITY: ("N-CREATE",),
    ServiceClass.MEDIA_CREATION: ("N-CREATE", "N-ACTION", "N-GET"),
    ServiceClass.DISPLAY_SYSTEM: ("N-GET",),
    ServiceClass.RT_MACHINE_VERIFICATION: ("N-CREATE", "N-SET", "N-GET", "N-ACTION", "N-DELETE", "N-EVENT-REPORT"),
}

# The other SOP Classes by keyword: PS3.4 F.7.1, F.8.1, F.9.1, H.4, CC.2.
_SERVICES_BY_KEYWORD: Final[dict[str, tuple[str, ...]]] = {
    "RepositoryQuery": ("C-FIND",),
    "ModalityPerformedProcedureStep": ("N-CREATE", "N-SET"),
    "ModalityPerformedProcedureStepRetrieve": ("N-GET",),
    "ModalityPerformedProcedureStepNotification": ("N-EVENT-REPORT",),
    "BasicFilmSession": ("N-CREATE", "N-SET", "N-DELETE", "N-ACTION"),
    "BasicFilmBox": ("N-CREATE", "N-SET", "N-DELETE", "N-ACTION"),
    "BasicGrayscaleImageBox": ("N-SET",),
    "BasicColorImageBox": ("N-SET",),
    "BasicAnnotationBox": ("N-SET",),
    "PresentationLUT": ("N-CREATE", "N-DELETE"),
    "PrintJob": ("N-EVENT-REPORT", "N-GET"),
    "Printer": ("N-EVENT-REPORT", "N-GET"),
    "PrinterConfigurationRetrieval": ("N-GET",),
    "UnifiedProcedureStepPush": ("N-CREATE", "N-ACTION", "N-GET"),
    "UnifiedProcedureStepPull": ("C-FIND", "N-GET", "N-SET", "N-ACTION"),
    "UnifiedProcedureStepWatch": ("N-ACTION", "N-GET", "C-FIND"),
    "UnifiedProcedureStepEvent": ("N-EVENT-REPORT",),
    "UnifiedProcedureStepQuery": ("C-FIND",),
}

# Information models have one SOP Class for each service, whose keyword ends with the service.
_QUERY_SERVICES: Final = {"Find": "C-FIND", "Move": "C-MOVE", "Get": "C-GET"}
_MODEL: Final = re.compile(f".+({'|'.join(_QUERY_SERVICES)})")

# The Action Types that only some SOP Classes with N-ACTION have (PS3.4 CC.2.1, CC.2.2, CC.2.3): Change UPS State, Request
# UPS Cancel, Subscribe, Unsubscribe, Suspend Global Subscription.
_UPS_ACTIONS: Final[dict[int, tuple[str, ...]]] = {
    1: ("UnifiedProcedureStepPull",),
    2: ("UnifiedProcedureStepPush", "UnifiedProcedureStepWatch"),
    3: ("UnifiedProcedureStepWatch",),
    4: ("UnifiedProcedureStepWatch",),
    5: ("UnifiedProcedureStepWatch",),
}
_UPS: Final = tuple(keyword for keyword in _SERVICES_BY_KEYWORD if keyword.startswith("UnifiedProcedureStep"))

# PS3.4 H.3.2.2, and the retired ones whose definition is certain.
_META_MEMBERS: Final[dict[str, tuple[str, ...]]] = {
    "BasicGrayscalePrintManagementMeta": ("BasicFilmSession", "BasicFilmBox", "BasicGrayscaleImageBox", "Printer"),
    "BasicColorPrintManagementMeta": ("BasicFilmSession", "BasicFilmBox", "BasicColorImageBox", "Printer"),
    "ReferencedGrayscalePrintManagementMeta": ("BasicFilmSession", "BasicFilmBox", "ReferencedImageBox", "Printer"),
    "ReferencedColorPrintManagementMeta": ("BasicFilmSession", "BasicFilmBox", "ReferencedImageBox", "Printer"),
    "DetachedPatientManagementMeta": ("DetachedPatientManagement", "DetachedVisitManagement"),
    "DetachedResultsManagementMeta": ("DetachedResultsManagement", "DetachedInterpretationManagement"),
    "GeneralPurposeWorklistManagementMeta": (
        "GeneralPurposeWorklistInformationModelFind",
        "GeneralPurposeScheduledProcedureStep",
        "GeneralPurposePerformedProcedureStep",
    ),
}

# PS3.6 Table A-1: keywords of SOP Classes with the keywords of their well-known SOP Instances.
_INSTANCES: Final[dict[str, tuple[str, ...]]] = {
    "StorageCommitmentPushModel": ("StorageCommitmentPushModelInstance",),
    "StorageCommitmentPullModel": ("StorageCommitmentPullModelInstance",),
    "ProceduralEventLogging": ("ProceduralEventLoggingInstance",),
    "SubstanceAdministrationLogging": ("SubstanceAdministrationLoggingInstance",),
    "Printer": ("PrinterInstance",),
    "PrinterConfigurationRetrieval": ("PrinterConfigurationRetrievalInstance",),
    "PrintQueueManagement": ("PrintQueueInstance",),
    "DisplaySystem": ("DisplaySystemInstance",),
    "InventoryCreation": ("StorageManagementInstance",),
    "UnifiedProcedureStepPush": ("UPSGlobalSubscriptionInstance", "UPSFilteredGlobalSubscriptionInstance"),
    "ColorPaletteStorage": (
        "HotIronPalette",
        "PETPalette",
        "HotMetalBluePalette",
        "PET20StepPalette",
        "SpringPalette",
        "SummerPalette",
        "FallPalette",
        "WinterPalette",
    ),
}


def _sop_class_of_keyword(keyword: str) -> SOPClass:
    found: SOPClass = getattr(sop_class, keyword)
    return found


@functools.cache
def _meta_members() -> dict[str, tuple[SOPClass, ...]]:
    return {
        _sop_class_of_keyword(meta): tuple(map(_sop_class_of_keyword, members))
        for meta, members in _META_MEMBERS.items()
    }


@functools.cache
def _instances() -> dict[str, tuple[UID, ...]]:
    by_keyword = {entry[4]: uid for uid, entry in UID_dictionary.items() if entry[1] == "Well-known SOP Instance"}
    return {
        _sop_class_of_keyword(of): tuple(UID(by_keyword[name]) for name in names) for of, names in _INSTANCES.items()
    }


def dimse_services(uid: str) -> tuple[str, ...]:
    """Return the DIMSE services that a SOP Class is used with.

    :param uid: the UID of a SOP Class or Meta SOP Class; a Meta SOP Class has the services of all its SOP Classes
    :returns: the services, such as ``("N-CREATE", "N-SET")``; none if the SOP Class is not known, not served, or used on
        media or in PS3.22 only. For private ones see `dimse` of :func:`~dicomtwist.sop_class.register_uid`.
    """
    registered = registered_services(uid)
    if registered:
        return registered
    service_class = uid_to_service_class(uid)
    if service_class is ServiceClass.UNKNOWN:
        return ()
    members = meta_members(uid)
    if members:
        return tuple(dict.fromkeys(service for member in members for service in dimse_services(member)))
    keyword = uid_to_sop_class(uid).keyword
    services = _SERVICES_BY_KEYWORD.get(keyword) or _SERVICES_BY_SERVICE_CLASS.get(service_class)
    if services:
        return services
    model = _MODEL.fullmatch(keyword)
    return (_QUERY_SERVICES[model[1]],) if model else ()


def query_service(uid: str) -> str | None:
    """Return the query service of a SOP Class.

    :param uid: the UID of a SOP Class, such as one of the Query/Retrieve information models
    :returns: ``"C-FIND"``, ``"C-GET"`` or ``"C-MOVE"``; ``None`` if the SOP Class has none of them
    """
    return next((service for service in dimse_services(uid) if service in _QUERY_SERVICES.values()), None)


def meta_members(uid: str) -> tuple[SOPClass, ...]:
    """Return the SOP Classes of a Meta SOP Class (PS3.4 H.3.2.2).

    :param uid: the UID of a Meta SOP Class
    :returns: the SOP Classes in the order of the standard; none if it is not a Meta SOP Class, or a retired one whose
        SOP Classes are not known (Pull Stored Print, Detached Study Management)
    """
    known = _meta_members().get(uid)
    return known if known is not None else tuple(map(SOPClass, registered_members().get(uid, ())))


def metas_of(uid: str) -> tuple[SOPClass, ...]:
    """Return the Meta SOP Classes that a SOP Class belongs to.

    :param uid: the UID of a SOP Class
    :returns: the Meta SOP Classes, those in force first
    """
    known = [SOPClass(meta) for meta, members in _meta_members().items() if uid in members]
    return (*known, *(SOPClass(meta) for meta, members in registered_members().items() if uid in members))


def carriers(uid: str, service: str, action_type_id: int | None = None) -> tuple[SOPClass, ...]:
    """Return the abstract syntaxes on whose presentation contexts an operation may be sent.

    They are the SOP Class of the instance and its Meta SOP Classes. A Unified Procedure Step, however, is always an
    instance of UPS Push, on any UPS context (PS3.4 CC.2, CC.3.1).

    :param uid: the UID of the SOP Class in the request
    :param service: the DIMSE service, such as ``"N-ACTION"``
    :param action_type_id: for N-ACTION the Action Type ID, if it is known; it selects among the contexts of UPS
    :returns: the abstract syntaxes, the closest one first; the association knows which of them were negotiated. None if UPS
        has no such operation. For other SOP Classes the service is not checked.
    """
    asked = uid_to_sop_class(uid)
    if asked.keyword != "UnifiedProcedureStepPush":
        return (asked, *metas_of(uid))
    keywords = _UPS
    if service == "N-ACTION" and action_type_id is not None:
        keywords = _UPS_ACTIONS.get(action_type_id, ())
    return tuple(_sop_class_of_keyword(keyword) for keyword in keywords if service in _SERVICES_BY_KEYWORD[keyword])


def well_known_instances(uid: str) -> tuple[UID, ...]:
    """Return the SOP Instances of a SOP Class that have a well-known UID (PS3.6 Table A-1).

    :param uid: the UID of a SOP Class, such as Printer
    :returns: the UIDs of the instances
    """
    return _instances().get(uid, ())


def sop_class_of_instance(uid: str) -> SOPClass | None:
    """Return the SOP Class of a well-known SOP Instance.

    :param uid: the UID of a SOP Instance
    :returns: the SOP Class to name in a request; ``None`` if it is not a well-known SOP Instance
    """
    return next((SOPClass(of) for of, instances in _instances().items() if uid in instances), None)

"""What SOP Classes have to do with one another and with the DIMSE services (PS3.4).

Which DIMSE services a SOP Class is used with, which SOP Classes a Meta SOP Class stands for, on the presentation
contexts of which other SOP Classes an operation may go, and which SOP Instances have a UID that is known beforehand.

UIDs are taken and given as ``str`` (:class:`~dicomtwist.sop_class.SOPClass` is one). What
:func:`~dicomtwist.sop_class.register_uid` was told of private SOP Classes counts as well.
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

# The DIMSE services of a Service Class all of whose SOP Classes have the same (tables DIMSE Service Group).
_OF_SERVICE_CLASS: Final[dict[ServiceClass, tuple[str, ...]]] = {
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
_OF_SOP_CLASS: Final[dict[str, tuple[str, ...]]] = {
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

# Information models have one SOP Class for each service, which ends their keywords.
_QUERY_SERVICES: Final = {"Find": "C-FIND", "Move": "C-MOVE", "Get": "C-GET"}
_MODEL: Final = re.compile(f".+({'|'.join(_QUERY_SERVICES)})")

# The Action Types that not all SOP Classes with N-ACTION have (PS3.4 CC.2.1, CC.2.2, CC.2.3): Change UPS State, Request
# UPS Cancel, Subscribe, Unsubscribe, Suspend Global Subscription.
_UPS_ACTIONS: Final[dict[int, tuple[str, ...]]] = {
    1: ("UnifiedProcedureStepPull",),
    2: ("UnifiedProcedureStepPush", "UnifiedProcedureStepWatch"),
    3: ("UnifiedProcedureStepWatch",),
    4: ("UnifiedProcedureStepWatch",),
    5: ("UnifiedProcedureStepWatch",),
}
_UPS: Final = tuple(keyword for keyword in _OF_SOP_CLASS if keyword.startswith("UnifiedProcedureStep"))

# PS3.4 H.3.2.2, and the retired ones whose definition is certain.
_META: Final[dict[str, tuple[str, ...]]] = {
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

# PS3.6 Table A-1, keywords of SOP Classes with the keywords of their well-known SOP Instances.
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


def _of_keyword(keyword: str) -> SOPClass:
    found: SOPClass = getattr(sop_class, keyword)
    return found


@functools.cache
def _meta_members() -> dict[str, tuple[SOPClass, ...]]:
    return {_of_keyword(meta): tuple(map(_of_keyword, members)) for meta, members in _META.items()}


@functools.cache
def _instances() -> dict[str, tuple[UID, ...]]:
    by_keyword = {entry[4]: uid for uid, entry in UID_dictionary.items() if entry[1] == "Well-known SOP Instance"}
    return {_of_keyword(of): tuple(UID(by_keyword[name]) for name in names) for of, names in _INSTANCES.items()}


def dimse_services(uid: str) -> tuple[str, ...]:
    """Tell which DIMSE services a SOP Class is used with.

    :param uid: the UID of a SOP Class or Meta SOP Class; one of the latter has those of all that it stands for
    :returns: the services, such as ``("N-CREATE", "N-SET")``; none where the SOP Class is not known, not served, or
        of media or PS3.22 alone. For private ones see `dimse` of :func:`~dicomtwist.sop_class.register_uid`.
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
    services = _OF_SOP_CLASS.get(keyword) or _OF_SERVICE_CLASS.get(service_class)
    if services:
        return services
    model = _MODEL.fullmatch(keyword)
    return (_QUERY_SERVICES[model[1]],) if model else ()


def query_service(uid: str) -> str | None:
    """Tell which of the three query services a SOP Class is used with.

    :param uid: the UID of a SOP Class, such as one of the Query/Retrieve information models
    :returns: ``"C-FIND"``, ``"C-GET"`` or ``"C-MOVE"``; ``None`` when the SOP Class is not one to query with
    """
    return next((service for service in dimse_services(uid) if service in _QUERY_SERVICES.values()), None)


def meta_members(uid: str) -> tuple[SOPClass, ...]:
    """Tell which SOP Classes a Meta SOP Class stands for (PS3.4 H.3.2.2).

    :param uid: the UID of a Meta SOP Class
    :returns: the SOP Classes, in the order of the standard; none when it is no Meta SOP Class, or a retired one of
        which this is not known (Pull Stored Print, Detached Study Management)
    """
    known = _meta_members().get(uid)
    return known if known is not None else tuple(map(SOPClass, registered_members().get(uid, ())))


def metas_of(uid: str) -> tuple[SOPClass, ...]:
    """Tell which Meta SOP Classes a SOP Class belongs to.

    :param uid: the UID of a SOP Class
    :returns: the Meta SOP Classes, those in force first
    """
    known = [SOPClass(meta) for meta, members in _meta_members().items() if uid in members]
    return (*known, *(SOPClass(meta) for meta, members in registered_members().items() if uid in members))


def carriers(uid: str, service: str, action_type_id: int | None = None) -> tuple[SOPClass, ...]:
    """Tell on the presentation contexts of which abstract syntaxes an operation may go.

    That is the SOP Class of the instance, and its Meta SOP Classes. But a Unified Procedure Step is always an
    instance of UPS Push, whatever context it is operated on in (PS3.4 CC.2, CC.3.1).

    :param uid: the UID of the SOP Class that is named in the request
    :param service: the DIMSE service, such as ``"N-ACTION"``
    :param action_type_id: of an N-ACTION the Action Type ID, where it is known; it tells between the contexts of UPS
    :returns: the abstract syntaxes, the closest first: what was negotiated of them is for the association to say.
        None when UPS has no such operation. Of other SOP Classes the service is not checked.
    """
    asked = uid_to_sop_class(uid)
    if asked.keyword != "UnifiedProcedureStepPush":
        return (asked, *metas_of(uid))
    keywords = _UPS
    if service == "N-ACTION" and action_type_id is not None:
        keywords = _UPS_ACTIONS.get(action_type_id, ())
    return tuple(_of_keyword(keyword) for keyword in keywords if service in _OF_SOP_CLASS[keyword])


def well_known_instances(uid: str) -> tuple[UID, ...]:
    """Tell which SOP Instances of a SOP Class have a UID that is known beforehand (PS3.6 Table A-1).

    :param uid: the UID of a SOP Class, such as Printer
    :returns: the UIDs of the instances
    """
    return _instances().get(uid, ())


def sop_class_of_instance(uid: str) -> SOPClass | None:
    """Tell of which SOP Class a well-known SOP Instance is.

    :param uid: the UID of a SOP Instance
    :returns: the SOP Class to name in a request; ``None`` when it is no well-known SOP Instance
    """
    return next((SOPClass(of) for of, instances in _instances().items() if uid in instances), None)

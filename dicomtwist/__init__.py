"""
dicomtwist sends, receives, queries and archives DICOM images from Python. It is built on Twisted.

A name of this package, or a module of it, is imported on first use: ``import dicomtwist`` alone takes no longer than Python
itself needs to start, and a program pays only for the parts that it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomtwist import evt, sop_class
    from dicomtwist.ae.ae import AE
    from dicomtwist.ae.server import Server
    from dicomtwist.association.association import Association
    from dicomtwist.dimse.status import Status
    from dicomtwist.errors import (
        AssociationAborted,
        AssociationError,
        AssociationLost,
        AssociationRejected,
        AssociationReleased,
        AssociationTimeout,
        DataSetError,
        DICOMError,
        NoAcceptedContexts,
        NoPresentationContext,
        NotEstablished,
        OperationFailed,
        PoolError,
        PoolFull,
        PoolStopped,
        PoolTimeout,
        ReactorConflict,
        RetriesExhausted,
        TooManyAnswers,
        WouldDeadlock,
    )
    from dicomtwist.pool.pool import AssociationPool
    from dicomtwist.presentation import (
        ALL_TRANSFER_SYNTAXES,
        DEFAULT_TRANSFER_SYNTAXES,
        STORAGE_TRANSFER_SYNTAXES,
        PresentationContext,
        build_context,
        build_contexts,
        build_role,
    )
    from dicomtwist.scu.responses import Answers, Retrieval, RetrievalResult, SubOperations
    from dicomtwist.sop_class import register_uid
    from dicomtwist.trace import debug_logger
    from dicomtwist.ul.ae_title import check_ae_title
    from dicomtwist.ul.items import (
        AsyncOperationsWindow,
        SOPClassCommonExtended,
        SOPClassExtended,
        UserIdentity,
    )

    AllStoragePresentationContexts: list[PresentationContext]
    ApplicationEventLoggingPresentationContexts: list[PresentationContext]
    BasicWorklistManagementPresentationContexts: list[PresentationContext]
    ColorPalettePresentationContexts: list[PresentationContext]
    DefinedProcedureProtocolPresentationContexts: list[PresentationContext]
    DisplaySystemPresentationContexts: list[PresentationContext]
    HangingProtocolPresentationContexts: list[PresentationContext]
    ImplantTemplatePresentationContexts: list[PresentationContext]
    InstanceAvailabilityPresentationContexts: list[PresentationContext]
    InventoryPresentationContexts: list[PresentationContext]
    MediaCreationManagementPresentationContexts: list[PresentationContext]
    MediaStoragePresentationContexts: list[PresentationContext]
    ModalityPerformedPresentationContexts: list[PresentationContext]
    NonPatientObjectPresentationContexts: list[PresentationContext]
    PrintManagementPresentationContexts: list[PresentationContext]
    ProcedureStepPresentationContexts: list[PresentationContext]
    ProtocolApprovalPresentationContexts: list[PresentationContext]
    QueryRetrievePresentationContexts: list[PresentationContext]
    RTMachineVerificationPresentationContexts: list[PresentationContext]
    RelevantPatientInformationPresentationContexts: list[PresentationContext]
    StorageCommitmentPresentationContexts: list[PresentationContext]
    StorageManagementPresentationContexts: list[PresentationContext]
    StoragePresentationContexts: list[PresentationContext]
    SubstanceAdministrationPresentationContexts: list[PresentationContext]
    UnifiedProcedurePresentationContexts: list[PresentationContext]
    VerificationPresentationContexts: list[PresentationContext]

__version__ = "0.1.0"

__all__ = [
    "AE",
    "ALL_TRANSFER_SYNTAXES",
    "Answers",
    "Association",
    "AssociationAborted",
    "AssociationError",
    "AssociationLost",
    "AssociationPool",
    "AssociationRejected",
    "AssociationReleased",
    "AssociationTimeout",
    "AsyncOperationsWindow",
    "build_context",
    "build_contexts",
    "build_role",
    "check_ae_title",
    "DataSetError",
    "debug_logger",
    "DEFAULT_TRANSFER_SYNTAXES",
    "DICOMError",
    "evt",
    "NoAcceptedContexts",
    "NoPresentationContext",
    "NotEstablished",
    "OperationFailed",
    "PoolError",
    "PoolFull",
    "PoolStopped",
    "PoolTimeout",
    "PresentationContext",
    "register_uid",
    "ReactorConflict",
    "RetriesExhausted",
    "Retrieval",
    "RetrievalResult",
    "Server",
    "sop_class",
    "SOPClassCommonExtended",
    "SOPClassExtended",
    "Status",
    "STORAGE_TRANSFER_SYNTAXES",
    "SubOperations",
    "TooManyAnswers",
    "WouldDeadlock",
    "UserIdentity",
    # Prebuilt lists of presentation contexts.
    "AllStoragePresentationContexts",
    "ApplicationEventLoggingPresentationContexts",
    "BasicWorklistManagementPresentationContexts",
    "ColorPalettePresentationContexts",
    "DefinedProcedureProtocolPresentationContexts",
    "DisplaySystemPresentationContexts",
    "HangingProtocolPresentationContexts",
    "ImplantTemplatePresentationContexts",
    "InstanceAvailabilityPresentationContexts",
    "InventoryPresentationContexts",
    "MediaCreationManagementPresentationContexts",
    "MediaStoragePresentationContexts",
    "ModalityPerformedPresentationContexts",
    "NonPatientObjectPresentationContexts",
    "PrintManagementPresentationContexts",
    "ProcedureStepPresentationContexts",
    "ProtocolApprovalPresentationContexts",
    "QueryRetrievePresentationContexts",
    "RTMachineVerificationPresentationContexts",
    "RelevantPatientInformationPresentationContexts",
    "StorageCommitmentPresentationContexts",
    "StorageManagementPresentationContexts",
    "StoragePresentationContexts",
    "SubstanceAdministrationPresentationContexts",
    "UnifiedProcedurePresentationContexts",
    "VerificationPresentationContexts",
]

#: The public names by the modules that define them.
_NAMES = {
    "ae.ae": ("AE",),
    "ae.server": ("Server",),
    "association.association": ("Association",),
    "dimse.status": ("Status",),
    "errors": (
        "AssociationAborted",
        "AssociationError",
        "AssociationLost",
        "AssociationRejected",
        "AssociationReleased",
        "AssociationTimeout",
        "DataSetError",
        "DICOMError",
        "NoAcceptedContexts",
        "NoPresentationContext",
        "NotEstablished",
        "OperationFailed",
        "PoolError",
        "PoolFull",
        "PoolStopped",
        "PoolTimeout",
        "ReactorConflict",
        "RetriesExhausted",
        "TooManyAnswers",
        "WouldDeadlock",
    ),
    "pool.pool": ("AssociationPool",),
    "presentation": (
        "ALL_TRANSFER_SYNTAXES",
        "DEFAULT_TRANSFER_SYNTAXES",
        "STORAGE_TRANSFER_SYNTAXES",
        "PresentationContext",
        "build_context",
        "build_contexts",
        "build_role",
    ),
    "scu.responses": ("Answers", "Retrieval", "RetrievalResult", "SubOperations"),
    "sop_class": ("register_uid",),
    "trace": ("debug_logger",),
    "ul.ae_title": ("check_ae_title",),
    "ul.items": ("AsyncOperationsWindow", "SOPClassCommonExtended", "SOPClassExtended", "UserIdentity"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

#: The modules and subpackages that ``import dicomtwist`` makes available as attributes.
_SUBMODULES = (
    "ae",
    "association",
    "asyncio",
    "datasets",
    "dimse",
    "endpoints",
    "errors",
    "evt",
    "exchange",
    "logs",
    "part10",
    "pool",
    "presentation",
    "retrieval",
    "runtime",
    "scp",
    "scu",
    "settings",
    "sop_class",
    "sop_relations",
    "sync",
    "tls",
    "trace",
    "transport",
    "ul",
)

# Hidden from type checkers, since otherwise they would accept any misspelled name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """
        Import a public name on its first use (PEP 562).

        :raises AttributeError: the package has no such name.
        """
        if name in _SUBMODULES:
            return import_module(f"dicomtwist.{name}")
        if name in _MODULE_OF:
            value = globals()[name] = getattr(import_module(f"dicomtwist.{_MODULE_OF[name]}"), name)
            return value
        if name == "PREBUILT_CONTEXTS" or name in __all__:
            # Not stored: each access to a prebuilt list returns a new copy.
            return getattr(import_module("dicomtwist.presentation"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    special = (name for name in globals() if name.startswith("__"))
    return sorted({*special, *__all__, *_SUBMODULES, "PREBUILT_CONTEXTS"})

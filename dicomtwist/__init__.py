"""
DICOM networking on Twisted: the upper layer as a Protocol, Deferreds for DIMSE answers, endpoints for everything.
"""

from dicomtwist import evt, presentation, sop_class
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
    RetriesExhausted,
    TooManyAnswers,
)
from dicomtwist.pool.pool import AssociationPool
from dicomtwist.presentation import (
    ALL_TRANSFER_SYNTAXES,
    DEFAULT_TRANSFER_SYNTAXES,
    PREBUILT_CONTEXTS,
    PresentationContext,
    build_context,
    build_role,
)
from dicomtwist.scu.responses import Answers, Retrieval, RetrievalResult, SubOperations
from dicomtwist.ul.ae_title import check_ae_title
from dicomtwist.ul.items import (
    AsyncOperationsWindow,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserIdentity,
)

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
    "build_role",
    "check_ae_title",
    "DataSetError",
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
    "RetriesExhausted",
    "Retrieval",
    "RetrievalResult",
    "Server",
    "sop_class",
    "SOPClassCommonExtended",
    "SOPClassExtended",
    "Status",
    "SubOperations",
    "TooManyAnswers",
    "UserIdentity",
]
__all__ += PREBUILT_CONTEXTS


def __getattr__(name: str) -> list[PresentationContext]:
    """Give a new copy of a prebuilt list of presentation contexts (PEP 562)."""
    if name not in PREBUILT_CONTEXTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    contexts: list[PresentationContext] = getattr(presentation, name)
    return contexts


def __dir__() -> list[str]:
    return sorted({*globals(), *PREBUILT_CONTEXTS})

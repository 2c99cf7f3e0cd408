"""
DICOM networking on Twisted: the upper layer as a Protocol, Deferreds for DIMSE answers, endpoints for everything.
"""

from dicomtwist import evt, sop_class
from dicomtwist.ae import AE
from dicomtwist.association import Association
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
)
from dicomtwist.negotiation import check_ae_title
from dicomtwist.presentation import (
    DEFAULT_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    PresentationContext,
    StoragePresentationContexts,
    VerificationPresentationContexts,
    build_context,
    build_role,
)
from dicomtwist.server import Server
from dicomtwist.ul.items import (
    AsyncOperationsWindow,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserIdentity,
)

__version__ = "0.1.0"

__all__ = [
    "AE",
    "AllStoragePresentationContexts",
    "Association",
    "AssociationAborted",
    "AssociationError",
    "AssociationLost",
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
    "PresentationContext",
    "Server",
    "sop_class",
    "SOPClassCommonExtended",
    "SOPClassExtended",
    "Status",
    "StoragePresentationContexts",
    "UserIdentity",
    "VerificationPresentationContexts",
]

"""The association as its users hold it, from the request for it to its record."""

from dicomtwist.association.association import Association
from dicomtwist.association.negotiation import ServiceUser, check_ae_title, is_ae_title
from dicomtwist.association.record import (
    AssociationRecord,
    ContextRecord,
    Ending,
    OperationCount,
    OperationRecord,
    RecordKeeper,
)

__all__ = [
    "Association",
    "AssociationRecord",
    "check_ae_title",
    "ContextRecord",
    "Ending",
    "is_ae_title",
    "OperationCount",
    "OperationRecord",
    "RecordKeeper",
    "ServiceUser",
]

"""The association as its users hold it, from the request for it to its record."""

from dicomtwist.association.association import Association
from dicomtwist.association.record import (
    AssociationRecord,
    ContextRecord,
    Ending,
    OperationCount,
    OperationRecord,
    RecordKeeper,
)
from dicomtwist.association.service_user import ServiceUser

__all__ = [
    "Association",
    "AssociationRecord",
    "ContextRecord",
    "Ending",
    "OperationCount",
    "OperationRecord",
    "RecordKeeper",
    "ServiceUser",
]

"""Operations that a peer is asked to perform, and their responses."""

from dicomtwist.datasets.identifier import failed_instances
from dicomtwist.scu.dimse_c import ServiceClassUser
from dicomtwist.scu.dimse_n import NormalisedUser, Reply
from dicomtwist.scu.responses import (
    MAX_COLLECTED,
    Answer,
    Answers,
    OnProgress,
    Retrieval,
    RetrievalResult,
    SubOperations,
)

__all__ = [
    "Answer",
    "Answers",
    "failed_instances",
    "MAX_COLLECTED",
    "NormalisedUser",
    "OnProgress",
    "Reply",
    "Retrieval",
    "RetrievalResult",
    "ServiceClassUser",
    "SubOperations",
]

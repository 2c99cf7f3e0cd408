"""Operations that a peer is asked to perform, and their responses."""

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
    failed_instances,
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

"""
Retrieval of studies into a folder: presentation contexts and roles, file names, what is there already, and what failed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomtwist.archive.storage.types import Durability, StoreUnusable
    from dicomtwist.retrieval.folder import ReceivingFolder
    from dicomtwist.retrieval.function import retrieve, retrieve_from_web
    from dicomtwist.retrieval.journal import JournalError, RetrievalJournal
    from dicomtwist.retrieval.layout import UID_LAYOUT, InvalidLayout, Layout
    from dicomtwist.retrieval.results import Outcome, Progress, Request, RequestResult, Totals
    from dicomtwist.retrieval.retriever import Associate, Retriever
    from dicomtwist.retrieval.web_retriever import WebRetriever

__all__ = [
    "UID_LAYOUT",
    "Associate",
    "Durability",
    "InvalidLayout",
    "JournalError",
    "Layout",
    "Outcome",
    "Progress",
    "ReceivingFolder",
    "Request",
    "RequestResult",
    "RetrievalJournal",
    "Retriever",
    "StoreUnusable",
    "Totals",
    "WebRetriever",
    "retrieve",
    "retrieve_from_web",
]

#: The modules of the public names, which are imported on first use: contexts alone need no storage.
_MODULE_OF = {
    **dict.fromkeys(("Durability", "StoreUnusable"), "archive.storage.types"),
    "ReceivingFolder": "retrieval.folder",
    **dict.fromkeys(("JournalError", "RetrievalJournal"), "retrieval.journal"),
    **dict.fromkeys(("UID_LAYOUT", "InvalidLayout", "Layout"), "retrieval.layout"),
    **dict.fromkeys(("Outcome", "Progress", "Request", "RequestResult", "Totals"), "retrieval.results"),
    **dict.fromkeys(("Associate", "Retriever"), "retrieval.retriever"),
    "WebRetriever": "retrieval.web_retriever",
    **dict.fromkeys(("retrieve", "retrieve_from_web"), "retrieval.function"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """
        Import a public name on its first use (PEP 562).

        :raises AttributeError: the package has no such name.
        """
        if name in _MODULE_OF:
            value = globals()[name] = getattr(import_module(f"dicomtwist.{_MODULE_OF[name]}"), name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

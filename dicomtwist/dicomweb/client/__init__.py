"""The client of DICOMweb: requests over HTTP, with streamed bodies in both directions."""

from __future__ import annotations

from dicomtwist.dicomweb.client.batches import StoreResult
from dicomtwist.dicomweb.client.errors import (
    AccessDenied,
    DICOMwebError,
    InvalidResponse,
    NoConnection,
    RequestFailed,
    RequestTimeout,
    ResourceNotFound,
    ServerUnavailable,
)
from dicomtwist.dicomweb.client.http import Timeouts
from dicomtwist.dicomweb.client.parts import Part
from dicomtwist.dicomweb.client.storing import Source, StoredInstance, StoreOutcome
from dicomtwist.dicomweb.client.web_client import DICOMwebClient
from dicomtwist.dicomweb.urls import BaseURL

__all__ = [
    "AccessDenied",
    "BaseURL",
    "DICOMwebClient",
    "DICOMwebError",
    "InvalidResponse",
    "NoConnection",
    "Part",
    "RequestFailed",
    "RequestTimeout",
    "ResourceNotFound",
    "ServerUnavailable",
    "Source",
    "StoreOutcome",
    "StoreResult",
    "StoredInstance",
    "Timeouts",
]

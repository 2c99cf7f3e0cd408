"""
DICOMweb (PS3.18): media types, multipart bodies, DICOM JSON and query parameters without I/O; and a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomtwist.dicomweb.client import (
        AccessDenied,
        BaseURL,
        DICOMwebClient,
        DICOMwebError,
        InvalidResponse,
        NoConnection,
        Part,
        RequestFailed,
        RequestTimeout,
        ResourceNotFound,
        ServerUnavailable,
        StoredInstance,
        StoreOutcome,
        StoreResult,
        Timeouts,
    )

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
    "StoreOutcome",
    "StoreResult",
    "StoredInstance",
    "Timeouts",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """
        Import a name of the client on its first use (PEP 562): the other modules need neither Twisted nor a reactor.

        :raises AttributeError: the package has no such name.
        """
        if name in __all__:
            from dicomtwist.dicomweb import client

            value = globals()[name] = getattr(client, name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

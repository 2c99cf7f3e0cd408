"""TLS contexts for both sides, and descriptions of TLS errors."""

from dicomtwist.tls.contexts import (
    PROFILES,
    ClientCertificate,
    PrivateKey,
    TLSProfile,
    VerifyCallback,
    client_tls,
    client_tls_options,
    server_tls,
    server_tls_options,
)
from dicomtwist.tls.errors import EndpointError, PeerCertificateError, describe_tls_error, last_reason

__all__ = [
    "client_tls",
    "client_tls_options",
    "ClientCertificate",
    "describe_tls_error",
    "EndpointError",
    "last_reason",
    "PeerCertificateError",
    "PrivateKey",
    "PROFILES",
    "server_tls",
    "server_tls_options",
    "TLSProfile",
    "VerifyCallback",
]

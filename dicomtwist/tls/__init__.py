"""TLS contexts for both sides, and descriptions of TLS errors."""

from dicomtwist.tls.contexts import (
    PROFILES,
    ClientCertificate,
    TLSProfile,
    VerifyCallback,
    client_tls,
    client_tls_options,
    server_tls,
    server_tls_options,
)
from dicomtwist.tls.errors import EndpointError, PeerCertificateError, TLSError, describe_tls_error, last_reason
from dicomtwist.tls.files import PrivateKey

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
    "TLSError",
    "TLSProfile",
    "VerifyCallback",
]

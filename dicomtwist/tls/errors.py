"""The errors of endpoints and TLS, and their descriptions for an operator.

Import the public names from :mod:`dicomtwist.endpoints`, which has all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from twisted.internet.error import ConnectionClosed
from twisted.python.failure import Failure

__all__ = ["EndpointError", "PeerCertificateError", "TLSError", "describe_tls_error", "in_words", "last_reason"]


class EndpointError(ValueError):
    """An endpoint description that cannot work; the text names the option that is wrong and says what to do.

    :ivar option: the wrong option as endpoint strings spell it (``privateKey``), ``None`` if no single option is wrong.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(f"{option}: {message}" if option else message)
        self.option = option


class TLSError(SSL.Error):
    """TLS failed, on this side or at the peer; its text says why in words, as :func:`describe_tls_error` does."""

    def __str__(self) -> str:
        return _describe_openssl(self)


class PeerCertificateError(TLSError):
    """This side refused the certificate of the peer.

    It is an OpenSSL error, in the shape that pyOpenSSL gives to all of them, so that Twisted's TLS layer ends the handshake
    as for any other error: with an alert to the peer, and with this error as the reason on this side only.

    :ivar reason: a description of the error; text that the peer chose is escaped in it.
    :ivar code: OpenSSL's verification error (``X509_V_ERR_...``), 0 if the host name does not match.
    """

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__([("dicomtwist", "verify", reason)])
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        return self.reason


def in_words(error: SSL.Error) -> SSL.Error:
    """Return *error* of OpenSSL as one whose text is a description. Errors of system calls below it have one already."""
    return TLSError(*error.args) if type(error) is SSL.Error else error


# Descriptions for an operator

# The errors that the peer reports in an alert (RFC 8446 6.2), by the name in OpenSSL's reason string.
_ALERTS: Mapping[str, str] = {
    "unknown ca": "the peer refused our certificate: it is not signed by a CA that the peer trusts",
    "bad certificate": "the peer refused our certificate",
    "certificate unknown": "the peer refused our certificate",
    "unsupported certificate": "the peer refused our certificate: it is of a kind, or for a use, that the peer does not accept",
    "certificate expired": "the peer refused our certificate: it has expired",
    "certificate revoked": "the peer refused our certificate: it has been revoked",
    "certificate required": "the peer requires a client certificate, and we sent none",
    "access denied": "the peer refused our certificate: access denied",
    "handshake failure": "the peer refused the handshake: there is no common cipher suite, or it requires a client "
    "certificate",
    "insufficient security": "the peer refused the handshake: it wants stronger cipher suites",
    "protocol version": "the peer does not speak a version of TLS that we speak (1.2 or higher)",
    "internal error": "the peer refused the handshake (internal error): perhaps our certificate is not valid for "
    "the host name that it asked for",
    "unrecognized name": "the peer does not know the host name that we asked for",
}

# The errors that OpenSSL finds on this side.
_REASONS: Mapping[str, str] = {
    "peer did not return a certificate": "the peer sent no certificate, and one is required",
    "certificate verify failed": "the peer's certificate was refused: untrusted, expired or revoked",
    "no shared cipher": "the peer offers no cipher suite that our TLS profile allows",
    "unsupported protocol": "the peer does not speak a version of TLS that we speak (1.2 or higher)",
    "version too low": "the peer does not speak a version of TLS that we speak (1.2 or higher)",
    "wrong version number": "the peer does not speak TLS",
    "http request": "the peer does not speak TLS but HTTP",
    "unexpected eof": "the peer closed the connection in the middle of TLS",
}


def last_reason(error: SSL.Error) -> str:
    """Return the last reason in OpenSSL's error queue; with OpenSSL 4 an empty queue means an unexpected end of file."""
    if isinstance(error, SSL.SysCallError):
        return str(error.args[-1])
    queue = error.args[0] if error.args else []
    return str(queue[-1][-1]) if queue else "unexpected eof"


def _describe_openssl(error: SSL.Error) -> str:
    reason = last_reason(error).casefold()
    alert = re.search(r"\balert (.+)", reason)
    if alert is not None:
        return _ALERTS.get(alert[1], f"the peer ended TLS with the alert: {alert[1]}")
    for key, words in _REASONS.items():
        if key in reason:
            return words
    return f"TLS failed: {reason}"


def _causes(error: object) -> Iterator[BaseException]:
    """Yield an error and the errors that it wraps: its causes, or the reasons that some of Twisted's errors have."""
    pending: list[object] = [error]
    for _ in range(16):
        if not pending:
            return
        current = pending.pop(0)
        if isinstance(current, Failure):
            current = current.value
        if isinstance(current, BaseException):
            yield current
            pending.append(current.__cause__)
            reasons = getattr(current, "reasons", None)
            pending.extend(reasons if isinstance(reasons, list | tuple) else ())


def _expected_name(mismatch: Any) -> str:
    """Return the name or the address that a certificate does not match, from an error of service_identity."""
    service_id = mismatch.mismatched_id
    name = getattr(service_id, "hostname", None) or getattr(service_id, "ip", service_id)
    return name.decode("ascii") if isinstance(name, bytes) else str(name)


def describe_tls_error(failure: Failure | BaseException, *, handshaking: bool = False) -> str | None:
    """Describe a TLS error for an operator; return ``None`` if TLS is not the cause.

    :param failure: the reason of ``connectionLost``, or the failure of a Deferred; the errors that it wraps are examined
        too.
    :param handshaking: whether the connection uses TLS and ``handshakeCompleted`` was not called yet. Only then does a
        plain close of the connection count as a TLS failure.
    """
    error = failure.value if isinstance(failure, Failure) else failure
    for cause in _causes(error):
        if isinstance(cause, PeerCertificateError):
            return cause.reason
        if isinstance(cause, VerificationError):
            expected = ", ".join(_expected_name(each) for each in cause.errors)
            return f"host name mismatch: the peer's certificate is not for {expected}"
        if isinstance(cause, CertificateError):
            return "host name mismatch: the peer's certificate has no subjectAltName"
        if isinstance(cause, SSL.Error):
            return _describe_openssl(cause)
    if handshaking and isinstance(error, ConnectionClosed):
        return (
            "the peer closed the connection during the TLS handshake: it does not speak TLS, or it "
            "refuses our certificate without saying so"
        )
    return None

"""
The cause of a failed association: what is wrong and what to do, in one line each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from OpenSSL import SSL
from twisted.internet import error as errors
from twisted.python.failure import Failure

from dicomtwist import (
    AssociationAborted,
    AssociationError,
    AssociationLost,
    AssociationRejected,
    AssociationTimeout,
    NoAcceptedContexts,
)
from dicomtwist.dicomweb import (
    AccessDenied,
    DICOMwebError,
    InvalidResponse,
    NoConnection,
    RequestTimeout,
    ResourceNotFound,
)
from dicomtwist.endpoints import PeerCertificateError, describe_tls_error
from dicomtwist.tls.errors import last_reason
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.web_connection import WebConnection

#: A connection by DIMSE or DICOMweb.
AnyConnection = Connection | WebConnection


@dataclass(frozen=True, slots=True)
class Cause:
    """
    The cause of a failure.

    :ivar code: a fixed word for scripts.
    :ivar what: a description of the problem, for people.
    :ivar advice: the action that may solve it.
    """

    code: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"

    def document(self) -> dict[str, str]:
        """Return the cause as a part of the JSON document."""
        return asdict(self)


def cause_of(error: BaseException, connection: AnyConnection) -> Cause:
    """
    Return the cause of *error*.

    :param error: the exception of a failed :meth:`dicomtwist.AE.associate`, or of a request of DICOMweb.
    :param connection: the connection that failed.
    """
    if isinstance(error, NoConnection) and isinstance(error.__cause__, _NOT_CONNECTED):
        error = error.__cause__
    if isinstance(error, AssociationRejected):
        return _rejected(error, connection)
    if connection.secure and not isinstance(error, NoAcceptedContexts | errors.ConnectError):
        secure = _tls_cause(error, connection)
        if secure is not None:
            return secure
    for kinds, make in _BY_TYPE:
        if isinstance(error, kinds):
            return make(error, connection)
    return Cause("other", f"{type(error).__name__}: {error}", "run the command again with -vv to see each step")


# --- A-ASSOCIATE-RJ


def _rejected(error: AssociationRejected, connection: AnyConnection) -> Cause:
    peer = connection.peer
    code = f"{error.source_text}, {error.reason_text} ({error.result}, {error.source}, {error.reason})"
    match (error.source, error.reason):
        case (1, 7):
            return Cause(
                "called-title",
                f"the peer does not answer to the AE title {peer.title}, and rejected the association ({code})",
                f"give the AE title of the peer, as in TITLE@{peer.address}",
            )
        case (1, 3):
            return Cause(
                "calling-title",
                f"the peer does not accept our AE title {connection.calling}, and rejected the association ({code})",
                "add our title to the configuration of the peer, or give one that it knows with --calling",
            )
        case (2, 1) if connection.identity is not None:
            return Cause(
                "user",
                f"the peer rejected the association, most likely because of our user identity ({code})",
                "check the user name and the password, and that the peer knows the user",
            )
        case (3, 1 | 2):
            return Cause(
                "limit",
                f"the peer has reached its limit of associations, and rejected this one ({code})",
                "try again later, close other associations, or raise the limit of the peer",
            )
    return Cause(
        "rejected",
        f"the peer rejected the association: {code}",
        "see the log of the peer; peers check both AE titles, our address, certificate and user",
    )


# --- TLS

_EXPIRED = (SSL.X509VerificationCodes.ERR_CERT_HAS_EXPIRED, SSL.X509VerificationCodes.ERR_CERT_NOT_YET_VALID)
_REVOKED = SSL.X509VerificationCodes.ERR_CERT_REVOKED
_UNKNOWN_CA = (
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT,
    SSL.X509VerificationCodes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    SSL.X509VerificationCodes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
    SSL.X509VerificationCodes.ERR_SELF_SIGNED_CERT_IN_CHAIN,
    SSL.X509VerificationCodes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT,
    SSL.X509VerificationCodes.ERR_CERT_UNTRUSTED,
)


def _refused_certificate(error: PeerCertificateError) -> Cause:
    """Return why we refused the peer's certificate."""
    if error.code in _UNKNOWN_CA:
        return Cause("unknown-ca", error.reason, "if that CA can be trusted, give its certificate with --tls-roots")
    if error.code in _EXPIRED:
        return Cause("expired", error.reason, "renew the peer's certificate, or correct the clocks")
    if error.code == _REVOKED:
        return Cause("revoked", error.reason, "install another certificate at the peer")
    if error.code == 0:
        advice = "connect to a name in the certificate, or give that name with --tls-hostname if this is the right peer"
        return Cause("host-name", error.reason, advice)
    return Cause("certificate", error.reason, "install another certificate at the peer")


#: The TLS alerts of a peer (RFC 8446 6.2), by a part of OpenSSL's reason: the code and the advice.
_ALERTS = {
    "certificate required": ("client-certificate", "give one with --tls-certificate and --tls-key"),
    "handshake failure": (
        "client-certificate",
        "give our certificate with --tls-certificate and --tls-key, or other cipher suites with --tls-profile",
    ),
    "unknown ca": (
        "our-certificate",
        "add our CA to the configuration of the peer, or use a certificate of a CA that it trusts",
    ),
    "certificate expired": ("our-certificate", "renew our certificate"),
    "bad certificate": ("our-certificate", "use a certificate that the peer accepts; see the log of the peer"),
    "certificate unknown": ("our-certificate", "use a certificate that the peer accepts; see the log of the peer"),
    "protocol version": ("tls-version", "update the peer: it needs TLS 1.2 or later"),
}


def _tls_cause(error: BaseException, connection: AnyConnection) -> Cause | None:
    current: BaseException | None = error
    while current is not None and not isinstance(current, SSL.Error):
        current = current.__cause__
    words = describe_tls_error(Failure(error), handshaking=isinstance(error, errors.ConnectionClosed))
    if isinstance(current, PeerCertificateError):
        return _refused_certificate(current)
    if isinstance(current, SSL.Error):
        reason = last_reason(current).casefold()
        for alert, (code, advice) in _ALERTS.items():
            if f"alert {alert}" in reason:
                return Cause(code, words or reason, advice)
        if "wrong version number" in reason or "http request" in reason or "packet length" in reason:
            return Cause("peer-is-plain", words or reason, _no_tls(connection))
    if isinstance(error, AssociationTimeout | AssociationLost | AssociationAborted) and not isinstance(
        current, SSL.Error
    ):
        return None
    if words is None:
        return None
    return Cause("tls", words, "check that this is the port of the peer for TLS, and see its log")


def _no_tls(connection: AnyConnection) -> str:
    instead = f"connect to {connection.peer.address} without TLS" if connection.peer.secure else "leave out --tls"
    return f"{instead}, or connect to the port of the peer for TLS (often 2762)"


def peer_is_plain(connection: AnyConnection) -> Cause:
    """Return the cause if the peer answers without TLS and we connected with TLS."""
    return Cause("peer-is-plain", "the peer speaks DICOM without TLS, and we connected with TLS", _no_tls(connection))


def peer_is_secure() -> Cause:
    """Return the cause if the peer answers with TLS and we connected without TLS."""
    return Cause(
        "peer-is-secure",
        "the peer speaks TLS, and we connected without TLS",
        "give --tls, and the CA of the peer's certificate with --tls-roots",
    )


def not_dicom(protocol: str) -> Cause:
    """Return the cause if the peer speaks *protocol*."""
    return Cause(
        "not-dicom", f"the peer speaks {protocol} and not DICOM", "check the port: another service listens there"
    )


# --- the rest


def _refused(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause(
        "refused",
        f"nothing listens at {connection.peer.address} (connection refused)",
        "check the port, and that the server runs"
        if isinstance(connection, WebConnection)
        else "check the port (104, 11112 and, for TLS, 2762 are usual), and that the peer runs",
    )


def _unknown_host(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause("unknown-host", f"there is no host {connection.peer.host}", "check the name, or give the IP address")


def _no_route(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause(
        "no-route", f"there is no route to {connection.peer.address}: {error}", "check the network and the address"
    )


def _no_answer(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause(
        "no-answer",
        f"no connection to {connection.peer.address} was made in time",
        "check that the host is up, and that no firewall drops our packets",
    )


def _timed_out(error: BaseException, connection: AnyConnection) -> Cause:
    assert isinstance(error, AssociationTimeout)
    if error.timer == "connection":
        return _no_answer(error, connection)
    return Cause(
        "silent",
        f"the peer accepted the connection and then sent nothing for {error.seconds:g} seconds",
        "check that it is a DICOM server; it may hang, or handle one association at a time and be busy",
    )


def _connect_error(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause("connect", f"no connection to {connection.peer.address}: {error}", "check the address and the network")


def _nothing_accepted(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause(
        "no-common-context",
        f"the peer accepted the association, but none of its presentation contexts: {error}",
        "propose what the conformance statement of the peer lists, or configure it at the peer",
    )


def _aborted(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause("aborted", f"the association failed before it was answered: {error}", "see the log of the peer")


def _lost(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause(
        "closed",
        "the peer closed the connection without an answer",
        "see the log of the peer; it may refuse our address, expect TLS, or be no DICOM server",
    )


def _denied(error: BaseException, connection: AnyConnection) -> Cause:
    has_user = isinstance(connection, WebConnection) and connection.has_user
    advice = (
        "check the user, and the rules of the server"
        if has_user
        else "give a user with --user, or a token with --jwt-file"
    )
    return Cause("access", str(error), advice)


def _slow(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause("silent", str(error), "see the log of the server; --dimse-timeout is the limit for a response")


def _no_response(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause("closed", str(error), "see the log of the server")


def _not_dicomweb(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause("not-dicomweb", str(error), "check the URL: it is that in front of /studies")


def _failed(error: BaseException, connection: AnyConnection) -> Cause:
    return Cause("request-failed", str(error), "see the log of the server")


_BY_TYPE: tuple[tuple[tuple[type[BaseException], ...], Callable[[BaseException, AnyConnection], Cause]], ...] = (
    ((AccessDenied,), _denied),
    ((ResourceNotFound, InvalidResponse), _not_dicomweb),
    ((RequestTimeout,), _slow),
    ((NoConnection,), _no_response),
    ((DICOMwebError,), _failed),
    ((errors.ConnectionRefusedError,), _refused),
    ((errors.DNSLookupError, errors.UnknownHostError), _unknown_host),
    ((errors.NoRouteError,), _no_route),
    ((errors.TimeoutError, errors.TCPTimedOutError), _no_answer),
    ((errors.ConnectError,), _connect_error),
    ((AssociationTimeout,), _timed_out),
    ((NoAcceptedContexts,), _nothing_accepted),
    ((AssociationLost, errors.ConnectionClosed), _lost),
    ((AssociationAborted,), _aborted),
    ((AssociationError,), _aborted),
)

#: The reasons for which there is no connection at all.
_NOT_CONNECTED = (errors.ConnectError, errors.DNSLookupError, SSL.Error)

#: The exceptions of :meth:`dicomtwist.AE.associate` that come from the network or the peer, not from a bug.
NO_ASSOCIATION_ERRORS: tuple[type[Exception], ...] = (
    AssociationError,
    errors.ConnectError,
    errors.ConnectionClosed,
    errors.DNSLookupError,
    SSL.Error,
    OSError,
)

"""
Why there is no association, in one line that says what is wrong and one that says what to do.
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
from dicomtwist.endpoints import PeerCertificateError, describe_tls_error
from dicomtwist.tls.errors import last_reason
from dicomtwist.tools.connection import Connection


@dataclass(frozen=True, slots=True)
class Cause:
    """
    What is wrong.

    :ivar code: for scripts.
    :ivar what: what is wrong, in words.
    :ivar advice: what to do.
    """

    code: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"

    def document(self) -> dict[str, str]:
        """Return it for JSON."""
        return asdict(self)


def cause_of(error: BaseException, connection: Connection) -> Cause:
    """
    Return why *error* came of asking for an association.

    :param error: what :meth:`dicomtwist.AE.associate` failed with.
    """
    if isinstance(error, AssociationRejected):
        return _rejected(error, connection)
    if connection.secure and not isinstance(error, NoAcceptedContexts | errors.ConnectError):
        secure = _tls_cause(error, connection)
        if secure is not None:
            return secure
    for kinds, make in _BY_TYPE:
        if isinstance(error, kinds):
            return make(error, connection)
    return Cause("other", f"{type(error).__name__}: {error}", "run with -vv to see more")


# --- A-ASSOCIATE-RJ


def _rejected(error: AssociationRejected, connection: Connection) -> Cause:
    peer = connection.peer
    code = f"{error.source_text}, {error.reason_text} ({error.result}, {error.source}, {error.reason})"
    match (error.source, error.reason):
        case (1, 7):
            return Cause(
                "called-title",
                f"the peer does not answer to the AE title {peer.title}, and rejected the association ({code})",
                f"write its own title, as in TITLE@{peer.address}",
            )
        case (1, 3):
            return Cause(
                "calling-title",
                f"the peer does not let in our AE title {connection.calling}, and rejected the association ({code})",
                "have it added at the peer, or give one that it knows with --calling",
            )
        case (3, 1 | 2):
            return Cause(
                "limit",
                f"the peer has as many associations as it takes, and rejected this one ({code})",
                "try again later, close others, or raise its limit",
            )
    user = " and the user" if connection.identity is not None else ""
    return Cause(
        "rejected",
        f"the peer rejected the association: {code}",
        f"its log says why; what peers look at are both AE titles, our address{user}",
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
    """The peer's certificate, which we refused."""
    if error.code in _UNKNOWN_CA:
        return Cause(
            "unknown-ca", error.reason, "give the certificate of that CA with --tls-roots, if it is to be trusted"
        )
    if error.code in _EXPIRED:
        return Cause("expired", error.reason, "have the peer's certificate renewed, or set the clocks right")
    if error.code == _REVOKED:
        return Cause("revoked", error.reason, "the peer needs another certificate")
    if error.code == 0:
        advice = "connect to a name that is in it, or give that name with --tls-hostname if it is the right peer"
        return Cause("host-name", error.reason, advice)
    return Cause("certificate", error.reason, "the peer needs another certificate")


#: Alerts of the peer (RFC 8446 6.2), by a part of OpenSSL's reason: the code, and what to do.
_ALERTS = {
    "certificate required": ("client-certificate", "give it with --tls-certificate and --tls-key"),
    "handshake failure": (
        "client-certificate",
        "give a certificate with --tls-certificate and --tls-key, or --tls-profile",
    ),
    "unknown ca": ("our-certificate", "have our CA added at the peer, or use a certificate of one that it trusts"),
    "certificate expired": ("our-certificate", "renew our certificate"),
    "bad certificate": ("our-certificate", "use a certificate that the peer accepts; its log says more"),
    "certificate unknown": ("our-certificate", "use a certificate that the peer accepts; its log says more"),
    "protocol version": ("tls-version", "update the peer"),
}


def _tls_cause(error: BaseException, connection: Connection) -> Cause | None:
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
    return Cause("tls", words, "the log of the peer may say more; is it the port for TLS?")


def _no_tls(connection: Connection) -> str:
    instead = f"connect to {connection.peer.address} without TLS" if connection.peer.secure else "leave --tls out"
    return f"{instead}, or ask for the peer's port for TLS (often 2762)"


def peer_is_plain(connection: Connection) -> Cause:
    """The peer answers without TLS, and we asked with it."""
    return Cause("peer-is-plain", "the peer speaks DICOM without TLS, and we asked with TLS", _no_tls(connection))


def peer_is_secure() -> Cause:
    """The peer answers to TLS, and we asked without."""
    return Cause(
        "peer-is-secure",
        "the peer speaks TLS, and we asked without",
        "give --tls, with the CA of its certificate in --tls-roots",
    )


def not_dicom(protocol: str) -> Cause:
    """The peer speaks something else."""
    return Cause("not-dicom", f"the peer speaks {protocol} and not DICOM", "this is another service: check the port")


# --- the rest


def _refused(error: BaseException, connection: Connection) -> Cause:
    return Cause(
        "refused",
        f"nothing listens at {connection.peer.address} (connection refused)",
        "check the port (104, 11112, and 2762 for TLS, are usual) and that the peer runs",
    )


def _unknown_host(error: BaseException, connection: Connection) -> Cause:
    return Cause("unknown-host", f"there is no host {connection.peer.host}", "check its name, or give its IP address")


def _no_route(error: BaseException, connection: Connection) -> Cause:
    return Cause(
        "no-route", f"there is no way to {connection.peer.address}: {error}", "check the network and the address"
    )


def _no_answer(error: BaseException, connection: Connection) -> Cause:
    return Cause(
        "no-answer",
        f"no connection to {connection.peer.address} was made in time",
        "the host is down, or a firewall on the way drops what we send",
    )


def _timed_out(error: BaseException, connection: Connection) -> Cause:
    assert isinstance(error, AssociationTimeout)
    if error.timer == "connection":
        return _no_answer(error, connection)
    return Cause(
        "silent",
        f"the peer took the connection and then said nothing for {error.seconds:g} seconds",
        "it hangs, it is busy with another association and takes one at a time, or it is no DICOM server",
    )


def _connect_error(error: BaseException, connection: Connection) -> Cause:
    return Cause("connect", f"no connection to {connection.peer.address}: {error}", "check the address and the network")


def _nothing_accepted(error: BaseException, connection: Connection) -> Cause:
    return Cause(
        "no-common-context",
        f"there is an association, but nothing that could be done over it: {error}",
        "ask for what the peer supports (its conformance statement says), or have it configured there",
    )


def _aborted(error: BaseException, connection: Connection) -> Cause:
    return Cause("aborted", f"instead of an answer: {error}", "the log of the peer says why")


def _lost(error: BaseException, connection: Connection) -> Cause:
    return Cause(
        "closed",
        "the peer closed the connection without an answer",
        "its log says why; it may not let in our address, speak TLS, or be no DICOM server",
    )


_BY_TYPE: tuple[tuple[tuple[type[BaseException], ...], Callable[[BaseException, Connection], Cause]], ...] = (
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

#: What :meth:`dicomtwist.AE.associate` may fail with that is no mistake of ours.
NO_ASSOCIATION_ERRORS: tuple[type[Exception], ...] = (
    AssociationError,
    errors.ConnectError,
    errors.ConnectionClosed,
    errors.DNSLookupError,
    SSL.Error,
    OSError,
)

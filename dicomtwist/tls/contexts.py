"""TLS for DICOM: the trusted CAs, the cipher suites, and the certificate that a peer has to present.

Import the public names from :mod:`dicomtwist.endpoints`, which has all of them.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLContextFactory,
    IOpenSSLServerConnectionCreator,
)
from zope.interface import implementer

from dicomtwist.tls.errors import EndpointError, PeerCertificateError, last_reason
from dicomtwist.tls.files import FilePath, Identity, read_identity, read_revocation_lists, read_trust_roots

if TYPE_CHECKING:
    from twisted.protocols.tls import TLSMemoryBIOProtocol

__all__ = [
    "PROFILES",
    "ClientCertificate",
    "TLSProfile",
    "client_tls",
    "client_tls_options",
    "server_tls",
    "server_tls_options",
]

ClientCertificate: TypeAlias = Literal["required", "optional", "none"]
VerifyCallback: TypeAlias = Callable[[SSL.Connection, crypto.X509, int, int, int], bool]

#: ``SSL_MODE_ENABLE_PARTIAL_WRITE`` of OpenSSL's ``ssl.h``.
_MODE_ENABLE_PARTIAL_WRITE = 1


# TLS profiles


@dataclass(frozen=True, slots=True)
class TLSProfile:
    """The cipher suites of a Secure Transport Connection Profile, in order of preference, with OpenSSL's names."""

    name: str
    clause: str
    tls12: tuple[str, ...]
    tls13: tuple[str, ...] = (
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    )


# RFC 9325 4.2 recommends these four. The suites with finite-field Diffie-Hellman of RFC 7525 4.2 are no longer among them.
_RFC9325 = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)

#: The profiles by name. Both require TLS 1.2 and prefer TLS 1.3. The first BCP 195 profile (PS3.15 B.9), which lets a peer
#: downgrade to TLS 1.0, is retired, and so is the non-downgrading one (B.10). The latter is here for old peers that offer
#: only DHE suites: a client then accepts them; a server never selects one.
PROFILES: Mapping[str, TLSProfile] = {
    profile.name: profile
    for profile in (
        TLSProfile("bcp195", "PS3.15 B.12 BCP 195 RFC 8996, 9325 TLS", _RFC9325),
        TLSProfile(
            "bcp195-nd",
            "PS3.15 B.10 Non-Downgrading BCP 195 TLS (retired)",
            (*_RFC9325, "DHE-RSA-AES128-GCM-SHA256", "DHE-RSA-AES256-GCM-SHA384"),
        ),
    )
}


# Checking the peer

_Codes = SSL.X509VerificationCodes
_NOT_TRUSTED = "is not signed by a trusted CA"
_REVOCATION_UNKNOWN = "cannot be checked for revocation"
_VERIFICATION: Mapping[int, str] = {
    _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT: _NOT_TRUSTED,
    _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: _NOT_TRUSTED,
    _Codes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: _NOT_TRUSTED,
    _Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN: _NOT_TRUSTED,
    _Codes.ERR_CERT_UNTRUSTED: _NOT_TRUSTED,
    _Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "is self-signed and is not itself among the trusted certificates",
    _Codes.ERR_CERT_SIGNATURE_FAILURE: "has a signature that its issuer did not make",
    _Codes.ERR_CERT_NOT_YET_VALID: "is not valid yet (compare the clocks)",
    _Codes.ERR_CERT_HAS_EXPIRED: "has expired",
    _Codes.ERR_CERT_REVOKED: "has been revoked",
    _Codes.ERR_UNABLE_TO_GET_CRL: f"{_REVOCATION_UNKNOWN}: the crl file has no list of its issuer",
    _Codes.ERR_CRL_HAS_EXPIRED: f"{_REVOCATION_UNKNOWN}: the list of its issuer in the crl file has expired",
    _Codes.ERR_CRL_NOT_YET_VALID: f"{_REVOCATION_UNKNOWN}: the list of its issuer is not valid yet",
    _Codes.ERR_INVALID_PURPOSE: "is not meant for this use: its extended key usage needs serverAuth "
    "(server) or clientAuth (client)",
    _Codes.ERR_INVALID_CA: "is not the certificate of a CA, but another certificate is signed with it",
    66: "has a key that is too short",
    67: "has a key that is too short",
    68: "is signed with a digest that is too weak",
}


def _name(certificate: x509.Certificate, which: Literal["subject", "issuer"]) -> str:
    """Return a name in a peer's certificate for the log: the peer chose it, so it is escaped and shortened."""
    try:
        name: x509.Name = getattr(certificate, which)
        text = name.rfc4514_string()
    except ValueError:
        return "an unreadable name"
    return ascii(text[:200])[1:-1] if text else "no name"


def _names(certificate: x509.Certificate) -> str:
    """Return the host names and addresses that a certificate is valid for, escaped and shortened."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return ""
    names = [
        *extension.get_values_for_type(x509.DNSName),
        *map(str, extension.get_values_for_type(x509.IPAddress)),
    ]
    return ", ".join(ascii(name[:100])[1:-1] for name in names[:10])


def _service_id(hostname: str) -> ServiceID:
    """Return the ID that the server's certificate must contain: an IP address, or a DNS name in its ASCII form."""
    if isIPAddress(hostname) or isIPv6Address(hostname):
        return IPAddress_ID(str(ipaddress.ip_address(hostname.partition("%")[0])))
    try:
        return DNS_ID(hostname.removesuffix(".").encode("idna").decode("ascii"))
    except ValueError as error:
        raise EndpointError(f"{hostname!r} is neither a host name nor an IP address", "hostname") from error


def _check_hostname(certificate: crypto.X509, hostname: str, wanted: ServiceID) -> None:
    try:
        verify_service_identity(extract_patterns(certificate), [wanted], [])
    except Exception as error:
        # Any exception here means that the name was not confirmed. Twisted's own client options catch only
        # VerificationError and then accept a certificate without any subjectAltName for every host.
        names = _names(certificate.to_cryptography())
        whose = f"is for {names}" if names else "has no host name or address in it (subjectAltName)"
        raise PeerCertificateError(
            f"host name mismatch: we asked for {hostname}, the peer's certificate {whose}"
        ) from error


def _describe_refusal(certificate: x509.Certificate, code: int, depth: int) -> str:
    """Describe the error in a certificate of the peer's chain; the peer's own certificate is at depth 0."""
    wrong = _VERIFICATION.get(code, f"was refused (OpenSSL verification error {code})")
    if wrong is _NOT_TRUSTED:
        return f"the peer's certificate {wrong} (it leads to {_name(certificate, 'issuer')})"
    what = "a CA certificate in the peer's chain" if depth else "the peer's certificate"
    return f"{what} ({_name(certificate, 'subject')}) {wrong}"


def _verifier(hostname: str | None) -> VerifyCallback:
    """Return a verify callback for OpenSSL that raises at the first error, so that the reason is preserved.

    pyOpenSSL raises it again from ``do_handshake``, after OpenSSL has prepared the alert for the peer. If the callback
    returned False, the only reason would be "certificate verify failed".
    """
    wanted = None if hostname is None else _service_id(hostname)

    def verify(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
        if not ok:
            raise PeerCertificateError(_describe_refusal(certificate.to_cryptography(), code, depth), code)
        if depth == 0 and hostname is not None and wanted is not None:
            _check_hostname(certificate, hostname, wanted)
        return True

    return verify


# TLS options


def _context(
    profile: str,
    identity: Identity | None,
    trust: Sequence[x509.Certificate] | None,
    revoked: Sequence[x509.CertificateRevocationList],
    mode: int,
    hostname: str | None = None,
) -> SSL.Context:
    if profile not in PROFILES:
        raise EndpointError(f"{profile!r} is not a TLS profile: use one of {', '.join(PROFILES)}", "profile")
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_RENEGOTIATION)
    # No session resumption: a resumed session does not verify the peer's certificate again.
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"dicomtls")
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    # pyOpenSSL encrypts one record for each call unless this mode is cleared, but has no name for it.
    context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)
    # Level 2: RSA and DH from 2048 bits, elliptic curves from 224 bits, no SHA-1 (RFC 9325 4.4 and 4.5).
    context.set_cipher_list(":".join((*PROFILES[profile].tls12, "@SECLEVEL=2")).encode("ascii"))
    context.set_tls13_ciphersuites(":".join(PROFILES[profile].tls13).encode("ascii"))
    if identity is not None:
        try:
            context.use_certificate(identity.certificate)
            context.use_privatekey(identity.key)
            for certificate in identity.chain:
                context.add_extra_chain_cert(certificate)
        except SSL.Error as error:
            raise EndpointError(f"OpenSSL does not accept it: {last_reason(error)}", "certKey") from error
    store = context.get_cert_store()
    assert store is not None
    if mode != SSL.VERIFY_NONE:
        if trust is None:
            context.set_default_verify_paths()
        else:
            for certificate in trust:
                store.add_cert(crypto.X509.from_cryptography(certificate))
            # Each named certificate is trusted as it is, also that of an intermediate CA or of the peer itself.
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for each in revoked:
            store.add_crl(each)
        if revoked:
            store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
        context.set_verify(mode, _verifier(hostname))
    return context


@implementer(IOpenSSLServerConnectionCreator)
@dataclass(frozen=True, slots=True)
class _ServerConnectionCreator:
    context: SSL.Context

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self.context)


@implementer(IOpenSSLClientConnectionCreator)
@dataclass(frozen=True, slots=True)
class _ClientConnectionCreator:
    context: SSL.Context
    server_name: bytes | None

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self.context)
        if self.server_name is not None:
            connection.set_tlsext_host_name(self.server_name)
        return connection


def _reject_stdlib_context(value: object, options: str) -> None:
    if isinstance(value, ssl.SSLContext):
        raise TypeError(
            "a context of the module ssl cannot be used under Twisted, whose TLS is pyOpenSSL: pass an"
            f" OpenSSL.SSL.Context, dicomtwist.tls.contexts.{options}(...), or an endpoint string that begins with dicomtls:"
        )


def _openssl_context(value: object) -> SSL.Context | None:
    if isinstance(value, SSL.Context):
        return value
    if IOpenSSLContextFactory.providedBy(value):
        context: SSL.Context = value.getContext()
        return context
    return None


class _VerifyingConnection(SSL.Connection):
    """
    A connection that verifies without changing its context: pyOpenSSL preserves the reason of a refusal for the callback of
    the context only.
    """

    _refused: PeerCertificateError | None = None

    def verify_for(self, hostname: str) -> None:
        verifier = _verifier(hostname)

        def verify(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
            try:
                return verifier(connection, certificate, code, depth, ok)
            except PeerCertificateError as error:
                self._refused = error
                return False

        self.set_verify(self.get_context().get_verify_mode(), verify)

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except SSL.Error:
            if self._refused is not None:
                raise self._refused from None
            raise


@implementer(IOpenSSLClientConnectionCreator)
@dataclass(frozen=True, slots=True)
class _GivenClientContext:
    """
    Connects with a context that the caller built; if a host name is given and certificates are verified, the name is
    checked.
    """

    context: SSL.Context
    hostname: str
    service: ServiceID

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = _VerifyingConnection(self.context)
        if isinstance(self.service, DNS_ID):
            connection.set_tlsext_host_name(self.service.hostname)
        if self.context.get_verify_mode() & SSL.VERIFY_PEER:
            connection.verify_for(self.hostname)
        return connection


def client_tls(tls_args: object) -> IOpenSSLClientConnectionCreator:
    """
    Return the TLS of a client for ``associate(tls_args=...)``.

    :param tls_args: an ``OpenSSL.SSL.Context``, ``twisted.internet.ssl.CertificateOptions`` or an
        ``IOpenSSLClientConnectionCreator`` such as the result of :func:`client_tls_options`; or a tuple of it and a host
        name or ``None``. The host name is sent to the server (server name indication). If the context verifies
        certificates, the certificate must be valid for that name: dicomtwist then checks the chain and the name, and the
        verify callback of the context is not called. With ``None`` no name is checked. A connection creator has its own
        host name.
    :raises TypeError: *tls_args* is something else, such as a context of the module ``ssl``.
    :raises ValueError: a host name is combined with a connection creator, or is not a host name.
    """
    given, hostname = tls_args if isinstance(tls_args, tuple) and len(tls_args) == 2 else (tls_args, None)
    _reject_stdlib_context(given, "client_tls_options")
    if hostname is not None and not isinstance(hostname, str):
        raise TypeError(f"a host name must be a str or None, not {type(hostname).__name__}")
    if hostname is None and IOpenSSLClientConnectionCreator.providedBy(given):
        creator: IOpenSSLClientConnectionCreator = given
        return creator
    context = _openssl_context(given)
    if context is None:
        if IOpenSSLClientConnectionCreator.providedBy(given):
            raise ValueError("a connection creator has its own host name: pass None together with it")
        raise TypeError(
            "tls_args must be (context, host name or None), the context an OpenSSL.SSL.Context, CertificateOptions or"
            f" dicomtwist.tls.client_tls_options(...), not {type(given).__name__}"
        )
    if hostname is None:
        return _ClientConnectionCreator(context, None)
    return _GivenClientContext(context, hostname, _service_id(hostname))


def server_tls(ssl_context: object) -> IOpenSSLServerConnectionCreator:
    """
    Return the TLS of a server for ``start_server(ssl_context=...)``.

    :param ssl_context: an ``OpenSSL.SSL.Context``, ``twisted.internet.ssl.CertificateOptions``, or an
        ``IOpenSSLServerConnectionCreator`` such as the result of :func:`server_tls_options`.
    :raises TypeError: *ssl_context* is something else, such as a context of the module ``ssl``.
    """
    _reject_stdlib_context(ssl_context, "server_tls_options")
    if IOpenSSLServerConnectionCreator.providedBy(ssl_context):
        creator: IOpenSSLServerConnectionCreator = ssl_context
        return creator
    context = _openssl_context(ssl_context)
    if context is None:
        raise TypeError(
            "ssl_context must be an OpenSSL.SSL.Context, CertificateOptions or dicomtwist.tls.server_tls_options(...), not"
            f" {type(ssl_context).__name__}"
        )
    return _ServerConnectionCreator(context)


def server_tls_options(
    private_key: FilePath,
    certificate: FilePath,
    trust_roots: FilePath | None = None,
    *,
    client_certificate: ClientCertificate | None = None,
    crl: FilePath | None = None,
    extra_chain: FilePath | None = None,
    profile: str = "bcp195",
) -> IOpenSSLServerConnectionCreator:
    """Return TLS for a server, for :func:`twisted.internet.endpoints.wrapServerTLS`. It reads files, which blocks.

    :param private_key: PEM file with the private key, without a passphrase.
    :param certificate: PEM file with the server's certificate first, optionally followed by the rest of its chain.
    :param trust_roots: bundle file, or directory of ``*.pem`` files, with the CAs that sign the certificates of clients.
    :param client_certificate: ``"required"`` (the default with ``trust_roots``), ``"optional"`` (checked if the client
        sends one), or ``"none"``, which must be given explicitly if there are no ``trust_roots``.
    :param crl: PEM file with a revocation list of each CA that signs certificates of clients; a client is refused if the
        file has no list of its CA.
    :param extra_chain: PEM file with more certificates between the server's and the root.
    :param profile: a name from :data:`PROFILES`.
    :raises EndpointError: a file or a combination cannot work; the error names options as endpoint strings do.
    """
    identity = read_identity(private_key, certificate, extra_chain)
    if client_certificate is None and trust_roots is not None:
        client_certificate = "required"
    modes = {
        "required": SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT,
        "optional": SSL.VERIFY_PEER,
        "none": SSL.VERIFY_NONE,
    }
    if client_certificate is None:
        raise EndpointError(
            "is missing: name the file of the CA that signs the certificates of clients, or write "
            "clientCertificate=none to accept every client",
            "trustRoots",
        )
    if client_certificate not in modes:
        raise EndpointError(f"{client_certificate!r} is not one of {', '.join(modes)}", "clientCertificate")
    if (client_certificate == "none") != (trust_roots is None):
        raise EndpointError(
            "'none' and trustRoots contradict each other: drop one of them"
            if trust_roots is not None
            else f"{client_certificate!r} needs trustRoots, the CA that signs client certificates",
            "clientCertificate",
        )
    if crl is not None and trust_roots is None:
        raise EndpointError("has no effect without trustRoots: no client certificate is checked", "crl")
    return _ServerConnectionCreator(
        _context(
            profile,
            identity,
            None if trust_roots is None else read_trust_roots(trust_roots),
            [] if crl is None else read_revocation_lists(crl),
            modes[client_certificate],
        )
    )


def client_tls_options(
    hostname: str,
    trust_roots: FilePath | None = None,
    private_key: FilePath | None = None,
    certificate: FilePath | None = None,
    *,
    crl: FilePath | None = None,
    extra_chain: FilePath | None = None,
    profile: str = "bcp195",
) -> IOpenSSLClientConnectionCreator:
    """Return TLS for a client, for :func:`twisted.internet.endpoints.wrapClientTLS`. It reads files, which blocks.

    :param hostname: the DNS name or IP address that the server's certificate must be valid for. It is always checked.
    :param trust_roots: bundle file, or directory of ``*.pem`` files, with the CAs that sign the certificate of the server;
        by default the roots that the platform trusts.
    :param private_key: PEM file with the client's private key, for a server that requests a certificate.
    :param certificate: PEM file with the client's certificate, optionally followed by the rest of its chain.
    :param crl: PEM file with a revocation list of the CA that signs the certificate of the server.
    :param extra_chain: PEM file with more certificates between the client's and the root.
    :param profile: a name from :data:`PROFILES`.
    :raises EndpointError: a file or a combination cannot work; the error names options as endpoint strings do.
    """
    wanted = _service_id(hostname)
    context = _context(
        profile,
        read_identity(private_key, certificate, extra_chain),
        None if trust_roots is None else read_trust_roots(trust_roots),
        [] if crl is None else read_revocation_lists(crl),
        SSL.VERIFY_PEER,
        hostname,
    )
    # RFC 6066 3: a server name indication is a DNS name, never an address.
    return _ClientConnectionCreator(context, wanted.hostname if isinstance(wanted, DNS_ID) else None)

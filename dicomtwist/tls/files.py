"""
The files of TLS: certificates, private keys, trust roots and revocation lists in PEM form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from os import PathLike, fspath
from pathlib import Path
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from twisted.logger import Logger

from dicomtwist.tls.errors import EndpointError

__all__ = [
    "FilePath",
    "Identity",
    "PrivateKey",
    "describe_validity",
    "read_certificates",
    "read_identity",
    "read_revocation_lists",
    "read_trust_roots",
    "read_validity",
]

PrivateKey: TypeAlias = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey
FilePath: TypeAlias = str | PathLike[str]

#: Our certificate is worth a warning when it expires within this time: a new one may take a CA some days.
EXPIRES_SOON: Final = timedelta(days=30)

_log = Logger()


def describe_validity(certificate: x509.Certificate) -> str | None:
    """Return in words why peers refuse our *certificate* for its dates, or will do so soon; ``None`` if they do not."""
    now, begin, end = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return f"expired on {end:%Y-%m-%d}: peers refuse it; renew it"
    if now < begin:
        return f"is not valid before {begin:%Y-%m-%d %H:%M} UTC: peers refuse it until then; is the clock right?"
    if end - now < EXPIRES_SOON:
        days = (end - now).days
        return f"expires on {end:%Y-%m-%d}, in {days} day{'s' * (days != 1)}: renew it"
    return None


@dataclass(frozen=True, slots=True)
class Identity:
    """The certificate of this side with its key and the certificates that lead from it towards the root."""

    key: PrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]


def _read(option: str, path: FilePath) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EndpointError(f"cannot read the file {fspath(path)!r} ({reason})", option) from error


def read_certificates(option: str, path: FilePath) -> list[x509.Certificate]:
    data = _read(option, path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        hint = "it must hold certificates in PEM form (-----BEGIN CERTIFICATE-----)"
        raise EndpointError(f"no usable certificate in the file {fspath(path)!r}: {hint}", option) from error


def read_trust_roots(path: FilePath) -> list[x509.Certificate]:
    """Return every certificate of a bundle file, or of every ``*.pem`` file in a directory."""
    if not Path(path).is_dir():
        return read_certificates("trustRoots", path)
    found = [
        certificate
        for file in sorted(Path(path).glob("*.pem"))
        for certificate in read_certificates("trustRoots", file)
    ]
    if not found:
        raise EndpointError(f"the directory {fspath(path)!r} has no *.pem files in it", "trustRoots")
    return found


def read_revocation_lists(path: FilePath) -> list[x509.CertificateRevocationList]:
    """Return every revocation list of a file. An expired list is refused now: with it every peer would be refused later."""
    blocks = re.findall(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", _read("crl", path), flags=re.DOTALL)
    try:
        lists = [x509.load_pem_x509_crl(block) for block in blocks]
    except ValueError as error:
        raise EndpointError(f"a revocation list in the file {fspath(path)!r} is broken ({error})", "crl") from error
    if not lists:
        raise EndpointError(f"no revocation list in PEM form in the file {fspath(path)!r}", "crl")
    for each in lists:
        if each.next_update_utc is not None and each.next_update_utc < datetime.now(UTC):
            raise EndpointError(
                f"the revocation list of {each.issuer.rfc4514_string()} in the file {fspath(path)!r} expired on "
                f"{each.next_update_utc:%Y-%m-%d}: fetch a new one from the CA",
                "crl",
            )
    return lists


def _private_key(path: FilePath) -> PrivateKey:
    data = _read("privateKey", path)
    try:
        key = load_pem_private_key(data, None)
    except TypeError as error:
        raise EndpointError(
            f"the key in the file {fspath(path)!r} is protected by a passphrase: remove it with "
            "'openssl pkey' and restrict the permissions of the file",
            "privateKey",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EndpointError(f"no usable PEM private key in the file {fspath(path)!r}", "privateKey") from error
    if not isinstance(key, PrivateKey):
        raise EndpointError(
            f"the key in the file {fspath(path)!r} is of a kind that TLS cannot use: use RSA or EC", "privateKey"
        )
    return key


def read_validity(path: FilePath) -> tuple[datetime, str | None]:
    """
    Return until when our certificate in *path* is valid, and the words of :func:`describe_validity`.

    :raises EndpointError: the file cannot be read, or has no certificate.
    """
    certificate = read_certificates("certKey", path)[0]
    return certificate.not_valid_after_utc, describe_validity(certificate)


def read_identity(
    private_key: FilePath | None, certificate: FilePath | None, extra_chain: FilePath | None
) -> Identity | None:
    """Load the certificate of this side. Key and certificate may share a file, named by either option."""
    key_path, certificate_path = private_key or certificate, certificate or private_key
    if key_path is None or certificate_path is None:
        if extra_chain is not None:
            raise EndpointError(
                "is given without certKey: name the certificate that the chain belongs to", "extraCertChain"
            )
        return None
    leaf, *chain = read_certificates("certKey", certificate_path)
    key = _private_key(key_path)
    if key.public_key() != leaf.public_key():
        raise EndpointError(
            f"the key in {fspath(key_path)!r} does not belong to the first certificate in {fspath(certificate_path)!r}",
            "privateKey",
        )
    doubt = describe_validity(leaf)
    if doubt is not None:
        # Only a warning: perhaps the clock is wrong, and the peers decide. The log line saves the operator a long search.
        _log.warn("the certificate in {path} {doubt}", path=fspath(certificate_path), doubt=doubt)
    if extra_chain is not None:
        chain += read_certificates("extraCertChain", extra_chain)
    return Identity(key, leaf, tuple(chain))

"""Certificates on disk for the tests of TLS."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def write(directory: str, name: str, *blobs: bytes) -> str:
    path = os.path.join(directory, name)
    with open(path, "wb") as file:
        file.write(b"".join(blobs))
    return path


class Authority:
    """A certificate authority that can also do what trustme does not: revoke certificates, and leave out names."""

    def __init__(self, directory: str, name: str) -> None:
        self.ca = trustme.CA()
        self.directory = directory
        self.certificate = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        key = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.key = key
        self.path = write(directory, f"{name}-ca.pem", self.ca.cert_pem.bytes())

    def issue(self, name: str, *hosts: str, **kwargs: Any) -> str:
        """Write a file with a private key, its certificate and the chain, and return its path."""
        leaf = self.ca.issue_cert(*(hosts or (name,)), **kwargs)
        return write(self.directory, f"{name}.pem", leaf.private_key_and_cert_chain_pem.bytes())

    def issue_without_names(self, name: str) -> str:
        """Write such a file without a subjectAltName, as many devices have it from the factory."""
        return self._sign(name, ec.generate_private_key(ec.SECP256R1()))

    def issue_short(self, name: str) -> str:
        """Write such a file with an RSA key of 1024 bits."""
        return self._sign(name, rsa.generate_private_key(65537, 1024))

    def issue_for_servers(self, name: str) -> str:
        """Write such a file for servers only."""
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        return self._sign("only", ec.generate_private_key(ec.SECP256R1()), usage, common_name=name)

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
        *extensions: x509.ExtensionType,
        common_name: str = "",
    ) -> str:
        builder = (
            x509.CertificateBuilder(self.certificate.subject)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name or name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + DAY)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        pem = builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)
        clear = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return write(self.directory, f"{name}.pem", clear, pem)

    def revocation_list(self, name: str, *revoked: str, expires: datetime = NOW + DAY) -> str:
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject)
        builder = builder.last_update(NOW - 9 * DAY).next_update(expires)
        for path in revoked:
            with open(path, "rb") as file:
                serial = x509.load_pem_x509_certificates(file.read())[0].serial_number
            entry = x509.RevokedCertificateBuilder(serial, NOW - DAY)
            builder = builder.add_revoked_certificate(entry.build())
        pem = builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return write(self.directory, f"{name}.pem", pem)

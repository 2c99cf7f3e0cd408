"""
What a peer's certificate says of it: its subject, and its fingerprint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

__all__ = ["Certificate", "CertificatePattern", "parse_pattern"]

#: The attributes of a name, each as the dotted number of its type and its value.
Attributes = frozenset[tuple[str, str]]

_FINGERPRINT: Final = re.compile(r"sha256:((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Certificate:
    """
    A certificate that was checked.

    :ivar subject: what its subject is made of.
    :ivar fingerprint: SHA-256 of the whole, in hexadecimal.
    """

    subject: Attributes
    fingerprint: str

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Certificate:
        """Return what *certificate* says; of a subject that cannot be read, nothing."""
        try:
            subject = _attributes(certificate.subject)
        except ValueError:
            subject = frozenset()
        return cls(subject, certificate.fingerprint(SHA256()).hex())


@dataclass(frozen=True, slots=True)
class CertificatePattern:
    """
    Which certificates are meant: those with a fingerprint, or those whose subject has all of some attributes.

    :ivar subject: the attributes; empty where it is a fingerprint.
    :ivar fingerprint: the fingerprint in hexadecimal, ``""`` where it is a subject.
    """

    subject: Attributes = frozenset()
    fingerprint: str = ""

    def matches(self, certificate: Certificate | None) -> bool:
        """Whether *certificate* is one of them; no certificate is none."""
        if certificate is None:
            return False
        if self.fingerprint:
            return certificate.fingerprint == self.fingerprint
        return bool(self.subject) and self.subject <= certificate.subject


def parse_pattern(text: str) -> CertificatePattern:
    """
    Return which certificates *text* means.

    :param text: ``sha256:`` and the fingerprint in hexadecimal, with colons between the bytes or without; or attributes of
        the subject as RFC 4514 writes them, ``CN=ct1,O=Hospital``, in any order. Values are compared as they are.
    :raises ValueError: it is neither.
    """
    found = _FINGERPRINT.fullmatch(text.strip())
    if found is not None:
        return CertificatePattern(fingerprint=found[1].replace(":", "").lower())
    if text.strip().lower().startswith("sha256"):
        raise ValueError(f"{text!r} is no fingerprint: sha256: and 64 hexadecimal digits")
    try:
        subject = _attributes(x509.Name.from_rfc4514_string(text))
    except ValueError:
        subject = frozenset()
    if not subject or not all(value for _, value in subject):
        raise ValueError(f"{text!r} is no certificate: write attributes of its subject, CN=ct1, or sha256:FINGERPRINT")
    return CertificatePattern(subject)


def _attributes(name: x509.Name) -> Attributes:
    return frozenset(
        (attribute.oid.dotted_string, value) for attribute in name if isinstance(value := attribute.value, str)
    )

"""
Certificates of peers, by their subject and their fingerprint, and patterns that match them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

__all__ = ["Certificate", "CertificatePattern", "parse_pattern"]

#: The attributes of a name: for each the object identifier of its type, as dotted numbers, and its value.
Attributes = frozenset[tuple[str, str]]

#: The most characters of a subject in a text about it.
MAX_DESCRIBED: Final = 200

_FINGERPRINT: Final = re.compile(r"sha256:((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Certificate:
    """
    A certificate that TLS has verified.

    :ivar subject: the attributes of its subject.
    :ivar fingerprint: SHA-256 of the whole certificate, in hexadecimal.
    """

    subject: Attributes
    fingerprint: str

    def __str__(self) -> str:
        return _describe(self.subject, self.fingerprint)

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Certificate:
        """Return the facts about *certificate*; a subject that cannot be read has no attributes."""
        try:
            subject = _attributes(certificate.subject)
        except ValueError:
            subject = frozenset()
        return cls(subject, certificate.fingerprint(SHA256()).hex())


@dataclass(frozen=True, slots=True)
class CertificatePattern:
    """
    A pattern that matches certificates by their fingerprint, or by attributes that must all be in their subject.

    :ivar subject: the attributes; empty for a fingerprint.
    :ivar fingerprint: the fingerprint in hexadecimal, ``""`` for a subject.
    """

    subject: Attributes = frozenset()
    fingerprint: str = ""

    def __str__(self) -> str:
        return _describe(self.subject, self.fingerprint)

    def matches(self, certificate: Certificate | None) -> bool:
        """Whether *certificate* matches; ``None`` never does."""
        if certificate is None:
            return False
        if self.fingerprint:
            return certificate.fingerprint == self.fingerprint
        return bool(self.subject) and self.subject <= certificate.subject


def parse_pattern(text: str) -> CertificatePattern:
    """
    Return the pattern that *text* describes.

    :param text: ``sha256:`` and the fingerprint in hexadecimal, with or without colons between the bytes; or attributes of
        the subject in the notation of RFC 4514, ``CN=ct1,O=Hospital``, in any order. Values are compared exactly.
    :raises ValueError: *text* is neither.
    """
    found = _FINGERPRINT.fullmatch(text.strip())
    if found is not None:
        return CertificatePattern(fingerprint=found[1].replace(":", "").lower())
    if text.strip().lower().startswith("sha256"):
        raise ValueError(f"{text!r} is not a fingerprint: write sha256: and 64 hexadecimal digits")
    try:
        subject = _attributes(x509.Name.from_rfc4514_string(text))
    except ValueError:
        subject = frozenset()
    if not subject or not all(value for _, value in subject):
        raise ValueError(
            f"{text!r} describes no certificate: write attributes of its subject, CN=ct1, or sha256:FINGERPRINT"
        )
    return CertificatePattern(subject)


def _describe(subject: Attributes, fingerprint: str) -> str:
    """Return a subject in the notation of RFC 4514 if there is one, else a fingerprint; without control characters."""
    if not subject:
        return f"sha256:{fingerprint}"
    # The common name says most, and has the lowest of the usual numbers.
    attributes = sorted(subject, key=lambda attribute: (len(attribute[0]), attribute))
    text = ",".join(_describe_attribute(*attribute) for attribute in attributes)
    return repr(text[:MAX_DESCRIBED])[1:-1][:MAX_DESCRIBED]


def _describe_attribute(oid: str, value: str) -> str:
    try:
        return x509.NameAttribute(x509.ObjectIdentifier(oid), value).rfc4514_string()
    except ValueError:
        return f"{oid}={value}"  # a value that X.520 does not allow


def _attributes(name: x509.Name) -> Attributes:
    return frozenset(
        (attribute.oid.dotted_string, value) for attribute in name if isinstance(value := attribute.value, str)
    )

"""Certificates that nobody should serve."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: str
    key: str


def expired(domain: str) -> Pair:
    """One for the whole domain that ended yesterday."""
    return _signed(domain, -10 * DAY, -DAY)


def stranger(domain: str) -> Pair:
    """One for the whole domain, valid now, of an issuer whom nobody knows."""
    return _signed(domain, -DAY, 30 * DAY)


def _signed(domain: str, begin: datetime.timedelta, end: datetime.timedelta) -> Pair:
    key, issuer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.datetime.now(datetime.UTC)
    subject, signer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("lab", "Somebody"))
    builder = x509.CertificateBuilder(
        signer, subject, key.public_key(), x509.random_serial_number(), now + begin, now + end
    )
    names = x509.SubjectAlternativeName([x509.DNSName(f"*.{domain}")])
    certificate = builder.add_extension(names, critical=False).sign(issuer, hashes.SHA256())
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(certificate.public_bytes(pem[0]).decode(), key.private_bytes(*pem).decode())

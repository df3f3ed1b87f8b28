"""The proxy's certificate, where the operator brings it: what makes it unusable."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import serialization

PUBLIC = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def problem(certificate: str | None, key: str | None, names: Iterable[str], now: datetime.datetime) -> str:
    """Say why a certificate cannot be used; empty where it can.

    certificate, key
        PEM, or None where the file is missing; of a chain the first one counts.
    names
        The public names that it must be valid for; ``*.example.com`` in it covers one label.
    now
        The time to compare with, with its zone.
    """
    if not certificate or not key:
        return "the certificate's file is missing" if not certificate else "the key's file is missing"
    try:
        present = x509.load_pem_x509_certificate(certificate.encode())
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError) as err:
        return f"it cannot be read: {err}"
    if present.public_key().public_bytes(*PUBLIC) != private.public_key().public_bytes(*PUBLIC):
        return "the key is another certificate's"
    if not present.not_valid_before_utc <= now:
        return f"it is valid from {present.not_valid_before_utc:%Y-%m-%d} only"
    if present.not_valid_after_utc <= now:
        return f"it has ended on {present.not_valid_after_utc:%Y-%m-%d}"
    missing = [name for name in names if not _covers(_names(present), name)]
    return f"it is not valid for {', '.join(missing)}" if missing else ""


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in found.value.get_values_for_type(x509.DNSName)]


def _covers(given: Iterable[str], name: str) -> bool:
    return bool({name.lower(), f"*.{name.lower().partition('.')[2]}"} & set(given))

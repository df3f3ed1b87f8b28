"""The proxy's certificate, where the operator brings it: what makes it unusable."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

# More than a handshake has.
TURNS = 8
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


def untrusted(certificate: Path, key: Path, authority: str) -> str:
    """Say why a client of this site would not trust a certificate; empty where it would. Names are not looked at.

    certificate, key
        The files; intermediate authorities follow in the certificate's.
    authority
        A certificate (PEM) that clients trust besides those that this host trusts; may be empty.

    A server and a client shake hands in memory, so that what counts is what a client does.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    client.check_hostname = False
    try:
        server.load_cert_chain(certificate, key)
        if authority.strip():
            client.load_verify_locations(cadata=authority)
    except (ssl.SSLError, OSError) as err:
        return f"it cannot be loaded: {err}"
    asked, answered = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(answered, asked), server.wrap_bio(asked, answered, server_side=True)
    for end in ends * TURNS:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as err:
            return f"its issuer is not trusted: {err.verify_message}"
    return ""


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in found.value.get_values_for_type(x509.DNSName)]


def _covers(given: Iterable[str], name: str) -> bool:
    return bool({name.lower(), f"*.{name.lower().partition('.')[2]}"} & set(given))

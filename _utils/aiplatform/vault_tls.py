"""Vault's certificate: the platform's own authority on the master signs what the host asks for.

The host makes its key and never gives it away; the master decides on the names in the certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Callable, Iterable
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aiplatform.errors import PlatformError

AUTHORITY_DAYS = 3650
# A host whose clock runs a little behind the master's must accept the certificate too.
CLOCK_SKEW = datetime.timedelta(minutes=10)
AUTHORITY = "the certificate of the platform's authority"
Loaded = TypeVar("Loaded")


def new_key() -> str:
    """Return a new private key as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def authority(key: str, common_name: str) -> str:
    """Return the certificate (PEM) of an authority that signs with ``key``."""
    private = _private(key)
    subject = _name(common_name)
    builder = (
        _builder(subject, subject, private.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
    )
    return _pem(builder.sign(private, hashes.SHA256()))


def request(key: str, common_name: str) -> str:
    """Return a signing request (PEM) that proves possession of ``key``."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name))
    return builder.sign(_private(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def self_signed(key: str, common_name: str, names: Iterable[str]) -> str:
    """Return a certificate (PEM) with which a server can start before the authority has signed one."""
    private = _private(key)
    subject = _name(common_name)
    builder = _builder(subject, subject, private.public_key(), 30).add_extension(_alternatives(names), critical=False)
    return _pem(builder.sign(private, hashes.SHA256()))


def sign(csr: str, authority_key: str, authority_certificate: str, names: list[str], days: int) -> str:
    """Return the server's certificate (PEM) followed by the authority's.

    csr
        The host's request; only its public key is used.
    names
        Host names and addresses that the certificate is valid for. The first is its common name.
    days
        How long it is valid.

    Raises ``PlatformError`` where the request is not signed with its own key, or one of the three is damaged.
    """
    asked = _request(csr)
    issuer = _certificate(authority_certificate, AUTHORITY)
    private = _private(authority_key)
    builder = (
        _builder(_name(names[0]), issuer.subject, asked.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_alternatives(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(private.public_key()), critical=False)
    )
    return _pem(builder.sign(private, hashes.SHA256())) + authority_certificate


def renewal_reason(
    certificate: str | None,
    csr: str,
    authority_certificate: str,
    names: list[str],
    renew_days: int,
) -> str:
    """Say why the host needs a new certificate; empty where the present one serves.

    certificate
        What the host has in place (PEM, its own certificate first), or None.
    renew_days
        A certificate that ends within so many days is renewed.

    Raises ``PlatformError`` where the authority's certificate or the request is damaged.
    """
    if not certificate:
        return "no certificate is in place"
    issuer = _certificate(authority_certificate, AUTHORITY)
    try:
        present = _certificate(certificate, "the certificate in place")
    except PlatformError:
        return "what is in place is no certificate"
    if not _issued_by(present, issuer):
        return "it is not signed by the platform's authority"
    if present.public_key() != _request(csr).public_key():
        return "the host has another key"
    if _names_of(present) != sorted(names):
        return f"its names are {', '.join(_names_of(present))}"
    if present.not_valid_after_utc - _now() < datetime.timedelta(days=renew_days):
        return f"it ends on {present.not_valid_after_utc:%Y-%m-%d}"
    return ""


def matches(certificate: str, key: str) -> bool:
    """Whether ``certificate`` (PEM) is for the private ``key`` (PEM).

    Raises ``PlatformError`` where one of them is damaged.
    """
    return bool(_certificate(certificate).public_key() == _private(key).public_key())


def ends(certificate: str) -> str:
    """Return the last day of ``certificate`` (PEM) as YYYY-MM-DD."""
    return f"{_certificate(certificate).not_valid_after_utc:%Y-%m-%d}"


def days_left(certificate: str) -> float:
    """Return for how many days from now ``certificate`` (PEM) is still valid; less than 0 where it has ended."""
    left = _certificate(certificate).not_valid_after_utc - _now()
    return left / datetime.timedelta(days=1)


def presented(address: str, port: int, timeout: float = 10) -> str:
    """Return the certificate (PEM) that a listener presents, whoever signed it and even where it has ended.

    timeout
        Seconds without an answer after which it is given up.

    Raises ``PlatformError`` where no TLS server answers there.
    """
    try:
        return ssl.get_server_certificate((address, port), timeout=timeout)
    except OSError as err:
        raise PlatformError(
            "The certificate cannot be read from its listener",
            where=f"{address}, port {port}",
            expected="a TLS handshake",
            actual=err,
            hint="systemctl status vault",
        ) from err


def _issued_by(present: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        present.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _names_of(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return sorted(str(name.value) for name in extension.value)


def _alternatives(names: Iterable[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general_name(name) for name in names])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _loaded(load: Callable[[bytes], Loaded], pem: str, what: str) -> Loaded:
    """Return what a PEM text holds; the text itself is in no error, for it may be a key."""
    try:
        return load(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise PlatformError(
            f"Damaged: {what} cannot be read",
            expected="one block of PEM, -----BEGIN ...----- to -----END ...-----",
            actual=f"{len(pem)} characters that are none",
            hint="restore its file from a backup: on the master it is below vault.key_store; on Vault's host, in "
            "/etc/vault.d/tls, removing it is enough, and the next deploy makes a new one",
        ) from err


def _certificate(pem: str, what: str = "a certificate") -> x509.Certificate:
    return _loaded(x509.load_pem_x509_certificate, pem, what)


def _private(pem: str) -> ec.EllipticCurvePrivateKey:
    key = _loaded(lambda data: serialization.load_pem_private_key(data, password=None), pem, "a private key")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PlatformError("A private key is of a kind that the platform does not make", expected="an EC key")
    return key


def _request(csr: str) -> x509.CertificateSigningRequest:
    asked = _loaded(x509.load_pem_x509_csr, csr, "a certificate request")
    if not asked.is_signature_valid:
        raise PlatformError("A certificate request is not signed with its own key")
    return asked


def _name(common_name: str) -> x509.Name:
    # A common name holds 64 characters at most; clients look at the alternative names anyway.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: CertificatePublicKeyTypes, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

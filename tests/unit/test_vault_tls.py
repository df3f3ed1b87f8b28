"""Vault's certificate."""

import datetime
import ssl

import pytest
from cryptography import x509
from pytest_httpserver import HTTPServer

from aiplatform import vault_tls
from aiplatform.errors import PlatformError

NAMES = ["vault.acme.test", "ai_server", "192.0.2.29", "127.0.0.1"]


@pytest.fixture(scope="module")
def authority():
    key = vault_tls.new_key()
    return key, vault_tls.authority(key, "Test authority")


@pytest.fixture(scope="module")
def host():
    key = vault_tls.new_key()
    return key, vault_tls.request(key, "ai_server")


def reason(certificate, host, authority, names=NAMES, renew_days=30):
    return vault_tls.renewal_reason(certificate, host[1], authority[1], names, renew_days)


def test_a_signed_certificate_serves(authority, host):
    signed = vault_tls.sign(host[1], *authority, NAMES, 365)
    assert reason(signed, host, authority) == ""
    assert vault_tls.matches(signed, host[0])
    assert signed.count("BEGIN CERTIFICATE") == 2  # the chain


def test_the_names_are_the_masters_choice(authority, host):
    signed = x509.load_pem_x509_certificate(vault_tls.sign(host[1], *authority, NAMES, 365).encode())
    found = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == ["vault.acme.test", "ai_server"]
    assert [str(a) for a in found.get_values_for_type(x509.IPAddress)] == ["192.0.2.29", "127.0.0.1"]
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("none", "no certificate"),
        ("self-signed", "not signed by"),
        ("other authority", "not signed by"),
        ("other key", "another key"),
        ("other names", "its names are"),
        ("ends soon", "it ends on"),
    ],
)
def test_reasons_for_a_new_one(change, said, authority, host):
    other = vault_tls.new_key()
    certificate = {
        "none": lambda: None,
        "self-signed": lambda: vault_tls.self_signed(host[0], "x", NAMES),
        "other authority": lambda: vault_tls.sign(host[1], other, vault_tls.authority(other, "Other"), NAMES, 365),
        "other key": lambda: vault_tls.sign(vault_tls.request(other, "x"), *authority, NAMES, 365),
        "other names": lambda: vault_tls.sign(host[1], *authority, NAMES[:2], 365),
        "ends soon": lambda: vault_tls.sign(host[1], *authority, NAMES, 29),
    }[change]()
    assert said in reason(certificate, host, authority)


DAMAGED = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("damaged", ["", "no PEM", DAMAGED])
@pytest.mark.parametrize(
    ("what", "use"),
    [
        ("the platform's authority", lambda pem, host, key, ca: vault_tls.sign(host[1], key, pem, NAMES, 365)),
        ("the platform's authority", lambda pem, host, key, ca: vault_tls.renewal_reason(ca, host[1], pem, NAMES, 30)),
        ("a private key", lambda pem, host, key, ca: vault_tls.sign(host[1], pem, ca, NAMES, 365)),
        ("a private key", lambda pem, host, key, ca: vault_tls.matches(ca, pem)),
        ("a certificate request", lambda pem, host, key, ca: vault_tls.sign(pem, key, ca, NAMES, 365)),
        ("a certificate", lambda pem, host, key, ca: vault_tls.matches(pem, key)),
        ("a certificate", lambda pem, host, key, ca: vault_tls.days_left(pem)),
    ],
)
def test_what_is_damaged_is_named_and_what_to_do(what, use, damaged, authority, host):
    with pytest.raises(PlatformError, match=f"Damaged: .*{what} cannot be read.*restore") as caught:
        use(damaged, host, *authority)
    assert "bm90aGluZw" not in str(caught.value)


@pytest.mark.parametrize("damaged", ["no PEM", DAMAGED])
def test_a_damaged_certificate_is_made_anew(damaged, authority, host):
    assert reason(damaged, host, authority) == "what is in place is no certificate"


def test_a_request_signed_with_a_foreign_key_is_refused(authority, host):
    lines = host[1].splitlines()
    # One bit of the signature, which stands last.
    body = "".join(lines[1:-1])
    flipped = body[:-8] + ("A" if body[-8] != "A" else "B") + body[-7:]
    forged = "\n".join([lines[0], *[flipped[i : i + 64] for i in range(0, len(flipped), 64)], lines[-1], ""])
    with pytest.raises((PlatformError, ValueError)):
        vault_tls.sign(forged, *authority, NAMES, 365)


@pytest.mark.parametrize("days", [20, -1])
def test_what_a_listener_presents_says_how_long_it_serves(days, authority, host, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        # Nothing signs what has ended already: it is signed ten days ago.
        now = vault_tls._now()
        patch.setattr(vault_tls, "_now", lambda: now - datetime.timedelta(days=10))
        signed = vault_tls.sign(host[1], *authority, NAMES, days + 10)
    (tmp_path / "pem").write_text(signed + host[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    with HTTPServer(host="127.0.0.1", ssl_context=context) as server:
        shown = vault_tls.presented("127.0.0.1", server.port, 5)
    assert vault_tls.days_left(shown) == pytest.approx(days, abs=0.01)


def test_a_listener_that_speaks_no_tls_is_named(httpserver):
    with pytest.raises(PlatformError, match=f"127.0.0.1, port {httpserver.port}"):
        vault_tls.presented("127.0.0.1", httpserver.port, 1)

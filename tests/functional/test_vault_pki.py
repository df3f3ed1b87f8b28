"""The authority for the public names in a real Vault: made once, signing for the proxy's names and for nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509
from hvac.exceptions import Forbidden, InvalidRequest

from aiplatform import vault_pki, vault_policy, vault_tls
from tests.functional.local_vault import running

NAMES = ("ollama-api.acme.test", "vault.acme.test")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("vault")) as found:
        found.first = run(found)
        yield found


def run(server, names=NAMES, test=False):
    wanted = vault_pki.Authority("Acme authority", names, 30)
    bootstrap = server.bootstrap(test=test)
    return replace(bootstrap, wanted=vault_policy.wanted(server.platform, server.vault, wanted)).run()


def sign(client, names, key=None, path="pki/sign/proxy"):
    request = vault_tls.request(key or vault_tls.new_key(), names[0])
    asked = {"csr": request, "common_name": names[0], "alt_names": ",".join(names)}
    return client.write_data(path, data=asked)["data"]


def test_it_is_made_once(server):
    assert {"mount pki", "authority pki", "role pki/proxy"} <= server.first.keys()
    assert run(server) == {}
    assert run(server, test=True) == {}


def test_the_proxy_gets_a_certificate_for_its_names_and_keeps_its_key(server):
    client, key = server.minion("nginx_proxy"), vault_tls.new_key()
    reply = sign(client, NAMES, key)
    authority = vault_pki.certificate(client)
    assert "private_key" not in reply
    assert vault_tls.matches(reply["certificate"], key)
    request = vault_tls.request(key, NAMES[0])
    assert vault_tls.renewal_reason(reply["certificate"], request, authority, list(NAMES), 29) == ""
    assert "it ends on" in vault_tls.renewal_reason(reply["certificate"], request, authority, list(NAMES), 31)
    assert (
        x509.load_pem_x509_certificate(authority.encode())
        .extensions.get_extension_for_class(x509.BasicConstraints)
        .value.ca
    )


@pytest.mark.parametrize("name", ["other.acme.test", "a.vault.acme.test", "*.acme.test", "acme.test", "localhost"])
def test_no_other_name_is_signed(server, name):
    with pytest.raises(InvalidRequest):
        sign(server.minion("nginx_proxy"), [name])
    with pytest.raises(InvalidRequest):
        sign(server.minion("nginx_proxy"), [NAMES[0], name])


def test_nobody_else_has_anything_signed(server):
    with pytest.raises(Forbidden):
        sign(server.minion("ai_server"), NAMES)
    proxy = server.minion("nginx_proxy")
    for path in ("pki/sign-verbatim/proxy", "pki/root/sign-intermediate", "pki/issue/proxy"):
        with pytest.raises(Forbidden):
            sign(proxy, NAMES, path=path)
    with pytest.raises(Forbidden):
        proxy.write_data("pki/roles/proxy", data={"allow_any_name": True})


def test_a_new_name_is_predicted_and_then_signed(server):
    more = (*NAMES, "wiki.acme.test")
    before = vault_pki.certificate(server.minion("nginx_proxy"))
    predicted = run(server, more, test=True)
    assert set(predicted) == {"role pki/proxy"}
    assert run(server, more) == predicted
    assert sign(server.minion("nginx_proxy"), list(more))["certificate"]
    assert vault_pki.certificate(server.minion("nginx_proxy")) == before

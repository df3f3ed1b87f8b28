"""Sign-on set up in a real Vault. What stands in for Keycloak here serves what Vault reads of a realm, no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hvac.exceptions import Forbidden

from aiplatform import services, settings, vault_bootstrap, vault_content, vault_oidc
from aiplatform.errors import PlatformError
from tests.conftest import CHECKOUT
from tests.functional.local_vault import running

PATH = "acme/vault-oidc"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("vault")) as found:
        found.bootstrap().run()
        yield found


@pytest.fixture
def realm(httpserver):
    """A realm's address, with the two documents that Vault asks for."""
    issuer = httpserver.url_for("/realms/acme")
    found = {"issuer": issuer, "id_token_signing_alg_values_supported": ["RS256"]}
    found |= {f"{name}_endpoint": f"{issuer}/{name}" for name in ("authorization", "token", "userinfo")}
    found["jwks_uri"] = f"{issuer}/certs"
    httpserver.expect_request("/realms/acme/.well-known/openid-configuration").respond_with_json(found)
    httpserver.expect_request("/realms/acme/certs").respond_with_json({"keys": []})
    return issuer


def sign_on(server, realm, **role):
    own = {"platform": server.platform | {"name": "Acme"}}
    merged = settings.effective(own, CHECKOUT / "salt")
    found = vault_oidc.wanted(merged | {"services": services.expand(merged)}, "")
    return replace(found, config={**found.config, "oidc_discovery_url": realm}, role={**found.role, **role})


def write(server, wanted):
    trust = str(server.store.path / "ca.pem")
    with vault_bootstrap.root_rights(server.url, trust, server.store) as root:
        vault_oidc.write(root, server.master(), wanted)


def test_it_is_set_up_once(server, realm):
    wanted = sign_on(server, realm)
    everything = {"login method oidc", "configuration", "role default"}
    assert vault_oidc.differences(server.master(), wanted).keys() == everything
    write(server, wanted)
    assert vault_oidc.differences(server.master(), wanted) == {}


def test_a_changed_role_and_a_changed_secret_are_seen_and_the_secret_is_not_shown(server, realm):
    wanted = sign_on(server, realm)
    write(server, wanted)
    found = vault_oidc.differences(server.master(), sign_on(server, realm, token_ttl=60))
    assert found == {"role default": {"token_ttl": {"old": 14400, "new": 60}}}
    vault_content.put(server.master(), "secret", PATH, {"client_secret": "another-secret"})
    found = vault_oidc.differences(server.master(), wanted)
    assert found["configuration"].keys() == {"oidc_client_secret"}
    assert "another-secret" not in str(found)
    write(server, wanted)
    assert vault_oidc.differences(server.master(), wanted) == {}


def test_a_realm_that_does_not_answer_is_told_and_what_was_there_stays(server, realm, httpserver):
    wanted = sign_on(server, realm)
    write(server, wanted)
    with pytest.raises(PlatformError, match=r"does not take Keycloak's realm.*gone.*journalctl -u vault"):
        write(server, sign_on(server, httpserver.url_for("/realms/gone")))
    assert vault_oidc.differences(server.master(), wanted) == {}


def test_the_masters_own_login_cannot_change_it(server, realm):
    wanted = sign_on(server, realm)
    write(server, wanted)
    for path in ("auth/oidc/config", "auth/oidc/role/default"):
        with pytest.raises(Forbidden):
            server.master().write_data(path, data={"default_role": "other"})

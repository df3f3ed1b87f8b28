"""What Vault should hold, computed from pillar."""

import re

import pytest

from aiplatform import vault_policy
from aiplatform.errors import PlatformError

PLATFORM = {
    "slug": "acme",
    "domain": "acme.test",
    "data_root": "/data",
    "hosts": {
        "proxy": {"address": "192.0.2.30", "roles": ["nginx_proxy"]},
        "Big": {"address": "192.0.2.29", "roles": ["ai_server"]},
        "second": {"address": "192.0.2.28", "roles": ["ai_server"]},
        "dns": {"address": "192.0.2.31", "roles": ["coredns_host"]},
    },
}
VAULT = {
    "host": None,
    "mount": "secret",
    "log_dir": "/var/log/vault",
    "approle_name": "ai-services",
    "secrets": {
        "ollama": {"readers": ["ai_server", "nginx_proxy", "ai_services"], "keys": {"api_key": "hex32"}},
        "keycloak": {"readers": ["ai_server"], "keys": {"admin_password": "base64_16", "oidc_url": "none"}},
    },
}


def rules(text):
    """Return {path: [capabilities]} of a policy."""
    found = re.findall(r'path "([^"]+)" \{\s+capabilities = \[([^\]]*)\]', text)
    return {path: re.findall(r'"(\w+)"', listed) for path, listed in found}


@pytest.mark.parametrize(
    ("minion", "paths"),
    [
        ("big", {"secret/data/acme/ollama", "secret/data/acme/keycloak"}),
        ("second", {"secret/data/acme/ollama", "secret/data/acme/keycloak"}),
        ("proxy", {"secret/data/acme/ollama"}),
        ("dns", set()),
    ],
)
def test_a_minion_reads_what_its_roles_need_and_nothing_else(minion, paths):
    found = rules(vault_policy.policies(PLATFORM, VAULT)[f"ai-platform/{minion}"])
    assert set(found) == paths
    assert all(capabilities == ["read"] for capabilities in found.values())


def test_the_services_login_only_reads_what_names_it():
    assert rules(vault_policy.policies(PLATFORM, VAULT)["ai-services"]) == {"secret/data/acme/ollama": ["read"]}


def test_the_automation_writes_below_the_prefix_only():
    found = rules(vault_policy.policies(PLATFORM, VAULT)["salt-automation"])
    assert found == {
        "secret/data/acme/*": ["create", "read", "update", "delete", "list"],
        "secret/metadata/acme/*": ["list", "read", "delete"],
        "secret/metadata/acme": ["list"],
        "secret/metadata/": ["list"],
    }


def test_the_masters_policy_reads_no_secret_and_changes_no_policy():
    found = rules(vault_policy.policies(PLATFORM, VAULT)["salt-master"])
    assert not [path for path in found if path.startswith("secret/")]
    for path in ("sys/policies/acl/*", "sys/auth", "sys/mounts", "sys/audit"):
        assert set(found[path]) <= {"read", "list", "sudo"}


def test_the_admins_policy():
    assert rules(vault_policy.policies(PLATFORM, VAULT)["vault-admin"]) == {
        "secret/*": ["create", "read", "update", "delete", "list"]
    }


def test_the_services_login_lives_an_hour_and_at_most_four():
    role = vault_policy.approles(VAULT)["ai-services"]
    assert (role["token_ttl"], role["token_max_ttl"], role["secret_id_ttl"]) == (3600, 14400, 0)


def test_wanted_secrets_lie_below_the_slug():
    wanted = vault_policy.wanted(PLATFORM, VAULT)
    assert set(wanted.secrets) == {"acme/ollama", "acme/keycloak"}
    assert wanted.minions == {"proxy", "Big", "second", "dns"}
    assert len(set(wanted.audit.values())) == 2


def test_vault_runs_on_the_named_host_or_else_on_the_first_ai_server():
    assert vault_policy.vault_host(PLATFORM, VAULT) == "Big"
    assert vault_policy.vault_host(PLATFORM, VAULT | {"host": "second"}) == "second"


def test_without_an_ai_server_the_error_names_the_hosts():
    hosts = {"dns": {"address": "192.0.2.31", "roles": ["coredns_host"]}}
    with pytest.raises(PlatformError, match=r"role ai_server.*actual: dns"):
        vault_policy.vault_host({"hosts": hosts}, VAULT)


@pytest.mark.parametrize(
    ("label", "public"), [("vault", ["vault.acme.test"]), ("secrets", ["secrets.acme.test"]), (None, [])]
)
def test_the_certificate_has_the_public_name_of_the_table_of_services(label, public):
    settings = {"platform": PLATFORM, "services": {"vault": {"name": label}}}
    assert vault_policy.certificate_names(settings, "Big") == [*public, "Big", "192.0.2.29", "127.0.0.1"]


@pytest.mark.parametrize(
    ("present", "absent"),
    [
        (None, ["api_key", "other"]),
        ({}, ["api_key", "other"]),
        ({"api_key": "kept"}, ["other"]),
        ({"api_key": "", "other": "x"}, []),
        ({"api_key": None, "other": "x"}, ["api_key"]),
    ],
)
def test_only_absent_keys_are_generated(present, absent):
    keys = {"api_key": "hex32", "other": "base64_16", "typed": "none"}
    assert vault_policy.missing_keys(present, keys) == absent


def test_generated_values_have_the_promised_form_and_differ():
    keys = {"a": "hex32", "b": "base64_16", "c": "hex32"}
    values = vault_policy.generate(keys, keys)
    assert re.fullmatch("[0-9a-f]{64}", values["a"])
    assert re.fullmatch(r"[A-Za-z0-9+/]{22}==", values["b"])
    assert values["a"] != values["c"]

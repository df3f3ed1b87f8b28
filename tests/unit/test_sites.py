"""What the proxy serves, from pillar alone."""

from __future__ import annotations

import datetime
import re

import jinja2
import pytest

from aiplatform import proxy_tls, services, settings, sites, vault_pki, vault_policy, vault_tls
from tests.conftest import CHECKOUT

HOSTS = {
    "ai_server": {"address": "192.0.2.29", "roles": ["ai_server"]},
    "second": {"address": "2001:db8::2", "roles": ["ai_server"]},
    "nginx_proxy": {"address": "192.0.2.30", "roles": ["nginx_proxy"]},
}
NOW = datetime.datetime.now(datetime.UTC)


def pillar(**own):
    merged = settings.effective({"platform": {"domain": "acme.test", "hosts": HOSTS}} | own, CHECKOUT / "salt")
    return merged | {"services": services.expand(merged), "address": HOSTS["nginx_proxy"]["address"]}


def test_every_row_with_a_name_has_a_site_or_is_the_api():
    found = pillar()
    named = {f"{row['name']}.acme.test" for row in found["services"].values() if row.get("name")}
    served = {site["public"] for site in sites.sites(found)} | {sites.context(found, "Debian")["api"]["public"]}
    assert named == served == set(sites.names(found))
    assert "vault.acme.test" in served


def test_a_new_row_is_a_new_site_with_settings_of_its_own():
    row = {
        "role": "ai_server",
        "port": 9000,
        "scheme": "http",
        "health": None,
        "reach": ["nginx_proxy"],
        "name": "wiki",
    }
    found = pillar(services={"wiki": row | {"process": "wiki"}}, nginx={"sites": {"wiki": {"body": "1g"}}})
    site = next(site for site in sites.sites(found) if site["public"] == "wiki.acme.test")
    assert site["servers"] == ["192.0.2.29:9000", "[2001:db8::2]:9000"]
    assert (site["body"], site["timeout"]) == ("1g", found["nginx"]["site"]["timeout"])


def test_the_api_reaches_every_instance_on_every_host():
    assert sites.instances(pillar()) == {
        "node1": ["192.0.2.29:11434", "[2001:db8::2]:11434"],
        "node0": ["192.0.2.29:11435", "[2001:db8::2]:11435"],
    }


def test_each_name_of_a_slot_leads_to_its_instance_and_no_model_does():
    found = sites.routes(pillar(aliases={"embedding": {"model": "all-minilm:l6", "instance": "node0"}}))["models"]
    assert found["slot-1"] == found["llama-family"] == {"instance": "node1", "slot": 1}
    assert found["slot-3"] == found["coder-128k"] == {"instance": "node0", "slot": 3}
    assert found["embedding"] == {"instance": "node0"}
    assert not [name for name in found if ":" in name]


def test_a_slot_that_moves_takes_its_names_along():
    found = sites.routes(pillar(slots={3: {"instance": "node1", "kind": "coding"}}))["models"]
    assert found["slot-3"]["instance"] == found["coder-128k"]["instance"] == "node1"


def configuration(own=None):
    template = (CHECKOUT / "salt/nginx/files/nginx.conf").read_text()
    made = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)  # noqa: S701 (no HTML)
    return made.render(sites.context(own or pillar(), "Debian"))


@pytest.mark.parametrize(
    ("name", "body", "timeout"), [("idm", "10m", 300), ("vault", "10m", 300), ("ollama-ui", "100m", 600)]
)
def test_sites_take_and_wait_as_much_as_their_services_need(name, body, timeout):
    own = configuration().partition(f"server_name {name}.acme.test;")[2].partition("    server {")[0]
    assert f"client_max_body_size {body};" in own
    assert f"proxy_read_timeout {timeout}s;" in own
    # Keycloak's cookies make its headers long.
    assert ("proxy_buffer_size 128k;" in own) is (name == "idm")


def test_nginx_notes_every_authority_that_it_has_loaded():
    own = pillar(nginx={"sites": {"openwebui": {"authority": "/etc/ssl/wiki.pem"}}})
    found = sites.context(own, "Debian")
    assert found["authorities"] == [f"{sites.FOLDER}/upstream-authority.pem", "/etc/ssl/wiki.pem"]
    noted = configuration(own).partition("edge.note(")[2].partition("    }")[0]
    assert f'"{found["certificate"]}", "{sites.FOLDER}/upstream-authority.pem", "/etc/ssl/wiki.pem")' in noted


def test_no_log_has_a_query_or_where_somebody_comes_from():
    """A sign-on's ``code`` and ``id_token_hint`` come in the query, and so in the next page's referer."""
    text = configuration()
    formats = dict(re.findall(r"^ +log_format (\w+) ([^;]+);", text, re.MULTILINE))
    logs = re.findall(r"^ +access_log (\S+) ?(\w*);", text, re.MULTILINE)
    assert {name for path, name in logs if path != "off"} == formats.keys()
    for shown in formats.values():
        assert "$uri" in shown
        assert not re.search(r"\$(request|request_uri|args|arg_\w+|query_string|http_referer)\b", shown)


def test_a_service_that_hangs_is_told_in_words_as_one_that_is_down_is():
    text = configuration()
    for site in sites.sites(pillar()):
        own = text.partition(f"server_name {site['public']};")[2].partition("    server {")[0]
        assert "error_page 502 504 @down;" in own
    # For the API, too.
    assert re.findall(r"^( *)proxy_connect_timeout 5s;", text, re.MULTILINE) == ["    "]


@pytest.mark.parametrize(
    ("own", "paths"),
    [
        ({}, ("/etc/nginx/ai-platform/tls/proxy.crt", "/etc/nginx/ai-platform/tls/proxy.key")),
        ({"mode": "files"}, ("/etc/nginx/ssl/acme.test.crt", "/etc/nginx/ssl/acme.test.key")),
        ({"mode": "files", "certificate": "/le/fullchain.pem", "key": "/le/k.pem"}, ("/le/fullchain.pem", "/le/k.pem")),
    ],
)
def test_where_the_certificate_is(own, paths):
    assert sites.certificate_paths(pillar(nginx={"certificate": own})) == paths


# -- the authority ------------------------------------------------------------------------------------------------


def test_the_authority_signs_the_public_names_and_no_other():
    wanted = vault_pki.authority(pillar())
    role = wanted.role()
    assert role["allowed_domains"] == sites.names(pillar())
    assert not any(role[key] for key in ("allow_any_name", "allow_subdomains", "allow_ip_sans", "allow_localhost"))
    assert vault_pki.authority(pillar(nginx={"certificate": {"mode": "files"}})) is None


def test_only_the_proxy_may_have_certificates_signed():
    found = pillar()
    texts = vault_policy.policies(found["platform"], found["vault"], vault_pki.authority(found))
    may = {name for name, text in texts.items() if "pki/sign" in text}
    assert may == {"ai-platform/nginx_proxy"}
    assert "pki/roles/proxy" in texts["salt-master"]
    assert not [text for text in vault_policy.policies(found["platform"], found["vault"]).values() if "pki" in text]


# -- certificates of the operator's own ----------------------------------------------------------------------------


def signed(names, days=5):
    key, authority_key = vault_tls.new_key(), vault_tls.new_key()
    authority = vault_tls.authority(authority_key, "test")
    return vault_tls.sign(vault_tls.request(key, names[0]), authority_key, authority, names, days), key


@pytest.mark.parametrize(
    ("names", "after_days", "expected"),
    [
        (["a.acme.test", "b.acme.test"], 0, ""),
        (["*.acme.test"], 0, ""),
        (["a.acme.test"], 0, "it is not valid for b.acme.test"),
        (["*.test"], 0, "it is not valid for a.acme.test, b.acme.test"),
        (["*.acme.test"], 6, "it has ended on"),
        (["*.acme.test"], -2, "it is valid from"),
    ],
)
def test_a_certificate_that_serves_and_those_that_do_not(names, after_days, expected):
    certificate, key = signed(names)
    then = NOW + datetime.timedelta(days=after_days)
    found = proxy_tls.problem(certificate, key, ["a.acme.test", "b.acme.test"], then)
    assert found.startswith(expected)
    assert bool(found) is bool(expected)


def test_files_that_are_missing_or_no_pair():
    certificate, key = signed(["a.test"])
    other = signed(["a.test"])[1]
    assert "missing" in proxy_tls.problem("", key, [], NOW)
    assert "missing" in proxy_tls.problem(certificate, None, [], NOW)
    assert "another" in proxy_tls.problem(certificate, other, ["a.test"], NOW)
    assert "cannot be read" in proxy_tls.problem("x", key, [], NOW)

"""The verification of the proxy and of the names: each check fails on the fault that it is for."""

from __future__ import annotations

import json

import pytest

from aiplatform import checks, plain_http, verify_edge, verify_names
from tests.unit.test_sites import pillar, signed

API = "ollama-api.acme.test"


MODELS = json.dumps({"models": [{"name": "slot-1:latest"}]})
SAID = json.dumps({"choices": [{"message": {"content": "Hello."}}]})


@pytest.fixture
def host(monkeypatch):
    """A proxy where all is well; its answers can be changed: by method, path, and whether a key is shown."""
    selection = {"slot1_general": "a:1", "slot3_coding": "b:2"}
    own = pillar() | {"roles": ["nginx_proxy"], "address": "192.0.2.30", "selection": selection}
    answers = {
        ("GET", "/api/tags", False): (401, "{}"),
        ("POST", "/api/pull", True): (403, "{}"),
        ("GET", "/api/tags", True): (200, MODELS),
        ("POST", "llama-family", True): (200, SAID),
        ("POST", "coder-128k", True): (200, SAID),
        ("GET", "/a/path", False): (301, ""),
    }

    def ask(url, *, method="GET", headers, body=None, at, trust, **_more):
        assert at == "192.0.2.30"
        assert trust.check_hostname
        scheme, _, rest = url.partition("://")
        public, _, path = rest.partition("/")
        with_key = headers.get("Authorization") == "Bearer right"
        what = json.loads(body)["model"] if body else f"/{path}"
        status, text = answers.get((method, what, with_key), (200, ""))
        place = {"Location": f"https://{public}/{path}"} if scheme == "http" else {}
        return plain_http.Reply(status, place, text)

    monkeypatch.setattr(plain_http, "ask", ask)
    salt = {
        "nginx.check": lambda: True,
        "nginx.loaded": lambda: "aa",
        "nginx.wanted": lambda: "aa",
        "nginx.presented": lambda _name: signed(["a.test"], days=60)[0],
        "nginx.certificate_reason": lambda: "",
        "platform_ca.certificate": lambda: "",
        "platform_secret.read": lambda path, key: {"ollama:api_key": "right"}[f"{path}:{key}"],
        "pillar.items": lambda unmask: own if unmask else {},
        "coredns.wrong": dict,
        "coredns.records": lambda: {"vault": ["192.0.2.30"]},
        "coredns.query": lambda _name: {"code": "NXDOMAIN"},
    }
    made = checks.Host("nginx_proxy", own, {"os_family": "Debian"}, salt, {})
    return made, answers, salt


def refused():
    raise OSError("unknown directive")


def failed(made) -> list[str]:
    suite = checks.Suite(verify_edge.checks, verify_names.checks)
    return [name for name in suite.names(made) if not suite.check(made, name)["ok"]]


def test_a_proxy_where_all_is_well(host):
    assert failed(host[0]) == []
    names = checks.Suite(verify_edge.checks).names(host[0])
    assert {"proxy_configuration", "proxy_certificate", "site_vault", "api_without_key", "api_models"} <= set(names)
    assert {"api_answer_general", "api_answer_coding", "redirect"} <= set(names)


def test_an_api_without_a_public_name_is_not_asked(host):
    made, answers, _ = host
    made.pillar["services"]["ollama-node1"]["name"] = made.pillar["services"]["ollama-node0"]["name"] = None
    answers["GET", "/api/tags", False] = (200, "")
    assert failed(made) == []


@pytest.mark.parametrize(
    ("request_", "answer", "check"),
    [
        (("GET", "/api/tags", False), (200, "{}"), "api_without_key"),
        (("POST", "/api/pull", True), (200, "{}"), "api_closed_path"),
        (("GET", "/api/tags", True), (200, '{"models": []}'), "api_models"),
        (("GET", "/api/tags", True), (502, ""), "api_models"),
        (("GET", "/api/tags", True), (200, '{"models": [{"name": "gemma3:270m"}]}'), "api_models"),
        (("GET", "/v1/sys/health", False), (502, ""), "site_vault"),
        (("GET", "/realms/master", False), (404, ""), "site_keycloak"),
        (("GET", "/admin/master/console/", False), (403, ""), "keycloak_console"),
        (("GET", "/ready", False), (500, ""), "site_openwebui"),
        (("POST", "llama-family", True), (502, '{"error": "down"}'), "api_answer_general"),
        (("POST", "coder-128k", True), (200, SAID.replace("Hello.", " ")), "api_answer_coding"),
        (("POST", "coder-128k", True), (200, "[]"), "api_answer_coding"),
        (("GET", "/a/path", False), (200, "in the clear"), "redirect"),
    ],
)
def test_a_wrong_answer_is_found(host, request_, answer, check):
    made, answers, _ = host
    answers[request_] = answer
    assert failed(made) == [check]


def test_a_site_is_told_by_its_health(host):
    made, answers, _ = host
    answers["GET", "/ready", False] = (503, "")
    found = checks.Suite(verify_edge.checks).check(made, "site_openwebui")
    assert (found["check"], found["expected"], found["actual"]) == (
        "https://ollama-ui.acme.test/ready",
        "HTTP 200",
        "HTTP 503",
    )


@pytest.mark.parametrize(("status", "ok"), [(404, True), (500, False)])
def test_a_site_without_a_path_for_its_health_has_to_answer(host, status, ok):
    made, answers, _ = host
    made.pillar["services"]["openwebui"]["health"] = None
    answers["GET", "/", False] = (status, "")
    assert checks.Suite(verify_edge.checks).check(made, "site_openwebui")["ok"] is ok


def test_a_model_that_thinks_first_has_answered_too(host):
    made, answers, _ = host
    answers["POST", "llama-family", True] = (200, '{"choices": [{"message": {"content": "", "reasoning": "Hm"}}]}')
    assert failed(made) == []


def test_who_is_asked_is_the_first_filled_slot_of_the_kind(host):
    made, answers, _ = host
    made.pillar["selection"]["slot1_general"] = None
    assert failed(made) == ["api_answer_general"]
    made.memory.clear()
    made.pillar["slots"][5]["model"] = "c:3"
    answers["POST", "slot-5", True] = (200, SAID)
    found = checks.Suite(verify_edge.checks).check(made, "api_answer_general")
    assert found["ok"], found
    assert found["check"].startswith("question to slot-5 (general)")


def test_no_key_is_ever_shown(host):
    made, answers, _ = host
    answers["POST", "coder-128k", True] = (401, "{}")
    assert "right" not in str(checks.Suite(verify_edge.checks).run(made))


@pytest.mark.parametrize(
    ("function", "answer", "check"),
    [
        ("nginx.loaded", lambda: "bb", "proxy_configuration"),
        ("nginx.check", refused, "proxy_configuration"),
        ("nginx.presented", lambda _name: signed(["a.test"], days=3)[0], "proxy_certificate"),
        ("nginx.certificate_reason", lambda: "the key is another certificate's", "proxy_certificate"),
    ],
)
def test_a_proxy_that_is_not_as_it_should_be_is_found(host, function, answer, check):
    made, _, salt = host
    salt[function] = answer
    assert failed(made) == [check]


@pytest.mark.parametrize(
    ("function", "answer", "check"),
    [
        ("coredns.wrong", lambda: {"vault.acme.test by tcp": {"old": [], "new": ["192.0.2.30"]}}, "dns_names"),
        ("coredns.query", lambda _name: {"code": None}, "dns_unknown"),
    ],
)
def test_a_name_server_that_answers_otherwise_is_found(host, function, answer, check):
    made, _, salt = host
    salt[function] = answer
    names = checks.Host("names", made.pillar | {"roles": ["coredns_host"]}, made.grains, salt, {})
    assert failed(names) == [check]

"""The verification of the proxy and of the names: each check fails on the fault that it is for."""

from __future__ import annotations

import json

import pytest

from aiplatform import checks, verify_edge, verify_names
from tests.unit.test_sites import pillar, signed

API = "ollama-api.acme.test"


@pytest.fixture
def host():
    """A proxy where all is well; its answers can be changed."""
    own = pillar() | {"roles": ["nginx_proxy"], "address": "192.0.2.30"}
    answers = {
        ("GET", "/api/tags", False): (401, "{}"),
        ("POST", "/api/pull", True): (403, "{}"),
        ("GET", "/api/tags", True): (200, json.dumps({"models": [{"name": "slot-1:latest"}]})),
    }

    def ask(_public, path, method="GET", with_key=False):
        status, body = answers.get((method, path, with_key), (200, ""))
        return {"status": status, "body": body}

    salt = {
        "nginx.check": lambda: True,
        "nginx.loaded": lambda: "aa",
        "nginx.wanted": lambda: "aa",
        "nginx.presented": lambda _name: signed(["a.test"], days=60)[0],
        "nginx.certificate_reason": lambda: "",
        "nginx.ask": ask,
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


@pytest.mark.parametrize(
    ("request_", "answer", "check"),
    [
        (("GET", "/api/tags", False), (200, "{}"), "api_without_key"),
        (("POST", "/api/pull", True), (200, "{}"), "api_closed_path"),
        (("GET", "/api/tags", True), (200, '{"models": []}'), "api_models"),
        (("GET", "/api/tags", True), (502, ""), "api_models"),
        (("GET", "/api/tags", True), (200, '{"models": [{"name": "gemma3:270m"}]}'), "api_models"),
        (("GET", "/v1/sys/health", False), (502, ""), "site_vault"),
    ],
)
def test_a_wrong_answer_is_found(host, request_, answer, check):
    made, answers, _ = host
    answers[request_] = answer
    assert failed(made) == [check]


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

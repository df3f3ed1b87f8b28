"""Whether a host does what the platform needs of it."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from salt.loader.context import LoaderContext, loader_context

from _modules import model_slots, verify
from _states import verify as state
from aiplatform import asking, checks, health, reach, vault_tls, verification, verify_chat
from aiplatform.services import Endpoint

SECRETS = {
    "ollama": {"readers": ["ai_server", "nginx_proxy"], "keys": {"api_key": "hex32"}},
    "keycloak": {"readers": ["ai_server"], "keys": {}},
}
KEY = vault_tls.new_key()
AUTHORITY = vault_tls.authority(KEY, "Test authority")
SLOT = {
    "name": "slot-1",
    "slot": 1,
    "instance": "node1",
    "model": "a:1",
    "options": {"num_ctx": 8192},
    "aliases": ["family"],
    "loaded": True,
    "context": 8192,
    "node": 1,
    "local_share": 0.9,
}


@pytest.fixture
def pillar():
    return {
        "verify": {
            "connect_timeout": 1,
            "answer_tokens": 4,
            "min_tokens_per_second": 2,
            "min_roofline_share": 0.1,
            "certificate_days": 14,
        },
        "platform": {"slug": "ai-platform", "hosts": {"ai_server": {"address": "192.0.2.1", "roles": ["ai_server"]}}},
        "vault": {"mount": "secret", "secrets": SECRETS},
        "ollama": {
            "version": "0.17.4",
            "api_host": "0.0.0.0",
            "instances": {"node1": {"port": 1, "unit": "ollama.service"}},
            "local_share": 0.9,
        },
        "slots": {1: {"instance": "node1", "kind": "general"}, 5: {"instance": "node1", "kind": "general"}},
        "selection": {"slot1_general": "a:1"},
        "services": {"vault": {"role": "ai_server", "port": 8202, "scheme": "https", "health": "/", "reach": ["any"]}},
        "roles": ["ai_server"],
    }


@pytest.fixture
def answers(monkeypatch, pillar):
    """What the host's services answer, all well; secrets by path, None where refused."""
    found = {
        "seal": {"initialized": True, "sealed": False},
        "secrets": {"secret/ai-platform/ollama": {"api_key": "s3cret"}},
        "version": "0.17.4",
        "unit": {"ActiveState": "active", "SubState": "exited"},
        "slots": [dict(SLOT)],
        "roofline": {"tokens_per_second": 40.0, "gigabytes_per_second": 20.0},
        "certificate_days": 15,
        "foreign": [],
    }

    def presented(address, port):
        assert (address, port) == ("192.0.2.1", 8202)
        return vault_tls.sign(vault_tls.request(KEY, "x"), KEY, AUTHORITY, ["x"], found["certificate_days"])

    monkeypatch.setattr(vault_tls, "presented", presented)
    # The chat's checks have tests of their own.
    families = [family for family in verification.SUITE._families if family is not verify_chat.checks]
    monkeypatch.setattr(verification, "SUITE", checks.Suite(*families))

    def read(path):
        if path not in found["secrets"]:
            raise CommandExecutionError("VaultPermissionDeniedError: permission denied")
        return found["secrets"][path]

    salt = {
        "vault.query": lambda *_: found["seal"],
        "vault.read_secret": read,
        "ollama.version": lambda _: found["version"],
        "service.show": lambda _: found["unit"],
        "model_slots.status": lambda: found["slots"],
        "model_slots.foreign": lambda _: found["foreign"],
        "benchmark.roofline": lambda model, instance: found["roofline"],
        "pillar.items": lambda unmask: pillar if unmask else {},
    }
    for name, value in (
        ("__grains__", {"id": "ai_server"}),
        ("__pillar__", pillar),
        ("__salt__", salt),
        ("__context__", {}),
    ):
        monkeypatch.setattr(verify, name, value, raising=False)
    return found


@pytest.fixture
def server(pillar, httpserver):
    pillar["ollama"]["instances"]["node1"]["port"] = httpserver.port
    done = {"done": True, "eval_count": 4, "eval_duration": 10**9, "response": "", "model": "family"}
    httpserver.expect_request("/api/generate").respond_with_data(json.dumps(done) + "\n")
    return httpserver


def test_only_those_are_made_whose_names_begin_so(answers, server):
    assert {found["check"] for found in verify.run(["vault_h", "filled"])} == {
        "Vault's health",
        "slots of Ollama instance node1",
    }


def failed():
    return {found["check"]: found["actual"] for found in verify.run() if not found["ok"]}


def test_a_healthy_host_passes(answers, server):
    assert failed() == {}
    assert set(verify.names()) == {
        "vault_health",
        "vault_own_secret",
        "vault_other_secret",
        "vault_certificate",
        "ollama_node1",
        "warmup_node1",
        "foreign_node1",
        "filled_node1",
        "slot_slot-1",
        "memory_slot-1",
        "speed_slot-1",
        "alias_family",
    }


def test_where_no_node_is_meant_there_is_no_memory_of_ones_own(answers, server):
    answers["slots"] = [SLOT | {"node": None, "local_share": None}]
    assert "memory_slot-1" not in verify.names()
    assert failed() == {}


def test_a_host_without_roles_has_nothing_to_prove(answers, pillar):
    pillar["roles"] = []
    assert verify.run() == []


FAULTS = [
    ({"seal": {"initialized": True, "sealed": True}}, "Vault's health", "initialized true, sealed true"),
    ({"certificate_days": 13}, "Vault's certificate on 192.0.2.1:8202", "13.0 days, until "),
    ({"secrets": {}}, "vault_own_secret", "permission denied"),
    ({"version": "0.0.0"}, "version of Ollama instance node1", "0.0.0"),
    ({"unit": {"ActiveState": "failed", "SubState": "failed"}}, "unit ollama-warmup.service", "failed (failed)"),
    ({"foreign": ["b:2", "c:3"]}, "what Ollama instance node1 has loaded", "foreign: b:2, c:3"),
    ({"slots": [SLOT | {"local_share": 0.899}]}, "memory of slot-1 on node1", "89.9%"),
    ({"slots": [SLOT | {"local_share": None}]}, "memory of slot-1 on node1", "cannot be told"),
    ({"slots": [SLOT | {"loaded": False}]}, "slot-1 on node1", "not loaded"),
    ({"slots": [SLOT | {"context": 4096}]}, "slot-1 on node1", "a:1 with context 4096"),
    (
        {"roofline": {"tokens_per_second": 40.1, "gigabytes_per_second": 20}},
        "speed of slot-1 on node1",
        "4.0 tokens per second, 10.0% of 40.1 (20 GB/s)",
    ),
]


@pytest.mark.parametrize(("fault", "check", "actual"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_a_fault_is_found(answers, server, fault, check, actual):
    answers |= fault
    found = failed()
    assert list(found) == [check]
    assert actual in found[check]


def test_a_slot_that_is_slow_for_its_memory_has_its_binding_suspected(answers, server):
    answers["roofline"]["tokens_per_second"] = 400.0
    found = verify.check("speed_slot-1")
    assert not found["ok"]
    assert found["hint"].startswith("suspect the binding of node1 to its CPUs and memory")


def test_without_a_roofline_the_check_says_so(answers, server):
    answers["roofline"] = {}
    found = verify.check("speed_slot-1")
    assert found["ok"]
    assert "not been measured: salt ai_server benchmark.memory node1" in found["actual"]


def test_a_slot_without_an_alias_is_asked_by_its_own_name(answers, server):
    answers["slots"] = [SLOT | {"aliases": []}]
    assert verify.check("speed_slot-1")["ok"]
    assert json.loads(server.log[-1][0].data)["model"] == "slot-1"


def test_an_instance_whose_slots_are_all_empty_is_a_fault(answers, server, pillar):
    answers["slots"] = []
    pillar["selection"] = {"slot1_general": None}
    assert failed() == {"slots of Ollama instance node1": "all empty"}
    assert "benchmark.report" in verify.check("filled_node1")["hint"]
    # One that an operator's edit fills is enough.
    pillar["slots"][5]["model"] = "b:2"
    verify.__context__.clear()
    assert verify.check("filled_node1")["actual"] == "slot-5: b:2"


def test_each_instance_with_slots_must_have_a_model(answers, pillar):
    pillar["slots"][3] = {"instance": "node0", "kind": "coding"}
    assert [verify.check(f"filled_{name}")["ok"] for name in ("node1", "node0")] == [True, False]


def test_slots_are_looked_up_in_todays_selection(answers, pillar, monkeypatch):
    monkeypatch.setattr(verify, "__pillar__", pillar | {"selection": {}})
    assert verify.check("filled_node1")["ok"]


def test_what_is_foreign_follows_todays_selection(answers, pillar, monkeypatch):
    tables = []
    instance = type("Instance", (), {"foreign": lambda _: ["b:2"]})()
    today = pillar | {"models": {"num_ctx": 2048}, "aliases": {}}
    monkeypatch.setattr(
        model_slots, "__salt__", {"pillar.items": lambda unmask: today, "numa.plan": dict}, raising=False
    )
    monkeypatch.setattr(model_slots, "_store", lambda: None)
    monkeypatch.setattr(model_slots, "_serving", lambda name, table: tables.append(table) or instance)
    assert model_slots.foreign("node1") == ["b:2"]
    assert [one.model for one in tables[0].residents] == ["a:1"]


def test_a_dead_instance_hides_no_other_check(answers, server, monkeypatch):
    def dead():
        raise CommandExecutionError("Nothing answers")

    monkeypatch.setitem(verify.__salt__, "model_slots.status", dead)
    monkeypatch.setitem(verify.__salt__, "model_slots.foreign", lambda _: dead())
    answers["seal"] = {"initialized": True, "sealed": True}
    assert failed() == {
        "slots": "Nothing answers",
        "foreign_node1": "Nothing answers",
        "Vault's health": "initialized true, sealed true",
    }


def test_a_check_that_is_gone_since_it_was_named_has_failed(answers):
    assert verify.check("slots")["ok"] is False


def test_vaults_certificate_is_looked_at_on_its_own_host(answers, pillar):
    pillar["vault"]["host"] = "other"
    assert "vault_certificate" not in verify.names()


def test_who_renews_the_certificate_is_named(answers):
    assert "vault_server.bootstrap" in verify.check("vault_certificate")["hint"]


def test_a_foreign_secret_that_can_be_read_is_a_fault(answers, server, pillar):
    pillar["roles"] = ["guest"]
    assert failed() == {"foreign secret secret/ai-platform/ollama": "it can be read"}


def test_an_unreachable_vault_is_no_refusal(answers, server, monkeypatch):
    def unreachable(path):
        raise CommandExecutionError("connection refused")

    monkeypatch.setitem(verify.__salt__, "vault.read_secret", unreachable)
    assert any(check.startswith("foreign secret") for check in failed())


def test_no_secret_is_ever_shown(answers, server):
    assert "s3cret" not in json.dumps(verify.run())


def test_an_alias_that_crawls_is_a_fault(answers, server, pillar):
    pillar["verify"]["min_tokens_per_second"] = 5
    assert failed() == {"answer of family on node1": "4 tokens, 4.0 per second"}


def test_an_alias_is_asked_where_its_instance_listens(answers, pillar, monkeypatch):
    asked = {}
    pillar["ollama"]["api_host"] = "192.0.2.7"
    monkeypatch.setattr(asking, "ask_all", lambda names, _: asked.update(names) or {})
    verify.check("alias_family")
    assert asked == {"family": "http://192.0.2.7:1"}


def test_an_alias_that_gives_nothing_is_a_fault(answers, server):
    server.clear()
    server.expect_request("/api/generate").respond_with_json({"error": "gone"}, status=404)
    assert "gone" in failed()["answer of family on node1"]


def test_silent_ports_hold_up_no_other_check(answers, pillar, monkeypatch):
    """Where nothing answers is known after a timeout only; the other checks are made meanwhile."""
    asked = threading.Event()
    pillar["platform"]["hosts"]["other"] = {"address": "192.0.2.2", "roles": ["coredns_host"]}
    pillar["services"]["dns"] = {"role": "coredns_host", "port": 53, "scheme": "tcp", "health": None, "reach": []}

    def try_all(settings, host, ends, timeout):
        assert asked.wait(20), "the others wait for the ports"
        return {end.url: reach.REFUSED for end in ends}

    monkeypatch.setattr(reach, "try_all", try_all)
    monkeypatch.setitem(verify.__salt__, "vault.query", lambda *_: asked.set() or answers["seal"])
    rows = verify.run(["vault_health", "reach"])
    assert [(row["check"], row["ok"]) for row in rows] == [
        ("Vault's health", True),
        ("dns on other from here (192.0.2.2:53)", True),
    ]


def test_only_what_is_asked_for_begins(answers, pillar, monkeypatch):
    """To list the checks, or to make another one, tries no port and signs nobody on."""
    pillar["platform"]["hosts"]["other"] = {"address": "192.0.2.2", "roles": ["coredns_host"]}
    pillar["services"]["dns"] = {"role": "coredns_host", "port": 53, "scheme": "tcp", "health": None, "reach": []}
    tried = []
    monkeypatch.setattr(reach, "try_all", lambda *_: tried.append(1) or {})
    assert "reach_dns_other" in verify.names()
    assert verify.run(["vault_health"])
    assert tried == []


def test_what_cannot_begin_hides_no_other_check():
    def sealed():
        raise CommandExecutionError("Vault is sealed")

    fine = checks.Finding("b", ok=True, expected="", actual="")
    suite = checks.Suite(lambda _: {"a": checks.Aside(sealed, sealed), "b": lambda: fine})
    found = suite.run(checks.Host("h", {}, {}, {}, {}))
    assert [(row["ok"], row["actual"]) for row in found] == [(False, "Vault is sealed"), (True, "")]


@pytest.mark.parametrize(("test", "result"), [(False, False), (True, None)])
def test_a_dry_run_reports_what_is_still_missing(monkeypatch, test, result):
    finding = {"host": "h", "check": "c", "ok": False, "expected": "e", "actual": "a", "hint": ""}
    monkeypatch.setattr(state, "__salt__", {"verify.check": lambda _: finding}, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    assert state.passed("x")["result"] is result


@pytest.mark.parametrize(("status", "ok"), [(200, True), (503, False)])
def test_the_master_probes_the_health_path(httpserver, status, ok):
    httpserver.expect_request("/health").respond_with_data("", status=status)
    end = Endpoint("x", "h", "127.0.0.1", httpserver.port, "http", "/health")
    assert health.probe(end, "") | {"url": ""} == {
        "service": "x",
        "host": "h",
        "url": "",
        "ok": ok,
        "answer": f"HTTP {status}",
    }


def test_a_host_that_does_not_answer_has_failed():
    found = health.absent(["a", "b", "c"], {"a": [], "b": "'verify.run' is not available."})
    assert [(row["host"], row["ok"]) for row in found] == [("b", False), ("c", False)]
    assert "not available" in found[0]["actual"]


def test_the_latest_report_is_named(tmp_path):
    assert not health.latest_report(tmp_path / "none").ok
    (tmp_path / "report.md").write_text("# Report")
    assert health.latest_report(tmp_path).actual == "report.md"


def test_a_server_that_cannot_tell_its_slots_is_no_good_server():
    slot = {"name": "slot-1", "instance": "node1", "model": "a:1", "loaded": True, "context": 8192}
    answers = {"a": [slot], "b": "Traceback:\n  ...\nOllama refused"}
    found = health.slot_rows(["a", "b", "c"], answers)
    assert [(row["host"], row["loaded"]) for row in found] == [("a", True), ("b", False), ("c", False)]
    assert found[1]["model"] == "Ollama refused"
    text = health.status_text({"hosts": {}, "services": [], "slots": found})
    assert text.count("NOT LOADED") == 2


def test_work_beside_the_checks_sees_the_pillar(monkeypatch):
    """Salt's own is bound to the context of its call, which a thread has not got."""
    context = LoaderContext()
    for name in ("__pillar__", "__grains__"):
        monkeypatch.setattr(verify, name, context.named_context(name), raising=False)
    for name in ("__salt__", "__context__"):
        monkeypatch.setattr(verify, name, {}, raising=False)
    loader = SimpleNamespace(pack={"__pillar__": {"verify": 7}, "__grains__": {"id": "one"}}, pack_self="")
    with loader_context(loader):
        host = verify._host()
        assert checks.aside(lambda: host.pillar["verify"]).result() == 7

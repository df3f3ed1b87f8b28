"""The dry run that a deploy begins with: which phases may be left out after it."""

from __future__ import annotations

import pytest

from _modules import dry_run as module
from aiplatform import look, phases
from aiplatform.outcome import Row
from tests.conftest import CHECKOUT

HOSTS = {
    "ai_server": {"roles": ["ai_server"]},
    "nginx_proxy": {"roles": ["nginx_proxy"]},
    "coredns_host": {"roles": ["coredns_host"]},
}


@pytest.fixture
def graph():
    return phases.load(CHECKOUT / "salt/orch/phases.yaml")


@pytest.fixture
def steps(graph):
    return phases.plan(graph, HOSTS)


def state(sls, result=True, changes=None, **more):
    return {"__sls__": sls, "__id__": f"{sls}-id", "result": result, "changes": changes or {}, "duration": 250} | more


def answer(*states):
    return {str(number): row for number, row in enumerate(states)}


@pytest.fixture
def answers(steps, graph):
    """Hosts on which nothing is to be done."""
    seen = {"states": 2, "to_do": [], "seconds": 0.25, "notices": []}
    asked = look.wanted(steps, graph)
    return {host: {"phases": {name: dict(seen) for name in names}} for host, names in asked.items()}


@pytest.fixture
def runners(steps):
    return {step.name: True for step in steps if step.kind == "runner"}


# -- what a host is asked, and answers ----------------------------------------------------------------------------


def test_every_phase_but_the_verification_is_looked_at_in_its_order(steps, graph):
    asked = look.wanted(steps, graph)
    assert asked["nginx_proxy"] == ["preflight", "nginx"]
    assert asked["coredns_host"] == ["preflight", "docker", "coredns"]
    assert asked["ai_server"].index("docker") < asked["ai_server"].index("ollama") < asked["ai_server"].index("models")


def test_states_are_told_by_phase():
    found = look.sort(
        ["vault", "ollama"],
        answer(
            state("vault"),
            state("ollama.native", result=None, changes={"a": "b"}),
            state("ollama", warnings=["mind this"]),
        ),
    )["phases"]
    assert found["vault"] == {"states": 1, "to_do": [], "seconds": 0.25, "notices": []}
    assert found["ollama"] == {"states": 2, "to_do": ["ollama.native-id"], "seconds": 0.5, "notices": ["mind this"]}


@pytest.mark.parametrize(("result", "changes"), [(False, {}), (None, {}), (True, {"old": "new"})])
def test_only_a_state_that_is_as_wanted_and_changes_nothing_is_nothing_to_do(result, changes):
    found = look.sort(["vault"], answer(state("vault", result, changes)))["phases"]
    assert found["vault"]["to_do"] == ["vault-id"]


def test_what_several_phases_may_include_is_to_be_done_in_each():
    found = look.sort(["vault", "ollama"], answer(state("firewall", None, {"rules": "new"})))["phases"]
    assert [row["to_do"] for row in found.values()] == [["firewall-id"], ["firewall-id"]]
    # One name that begins as another is another state.
    found = look.sort(["vault", "vaults"], answer(state("vaults", None)))["phases"]
    assert [row["to_do"] for row in found.values()] == [[], ["vaults-id"]]


@pytest.mark.parametrize("told", [["Rendering SLS 'vault' failed"], "Rendering SLS 'vault' failed"])
def test_what_does_not_compile_is_told(told):
    assert look.sort(["vault"], told) == {"reason": "Rendering SLS 'vault' failed"}


# -- which phases are left out ------------------------------------------------------------------------------------


def test_where_nothing_is_to_be_done_only_the_verification_is_left(steps, graph, answers, runners):
    rows = look.idle(steps, graph, answers, runners)
    assert {row.phase for row in rows} == set(graph) - {"verify"}
    assert Row("docker", "docker", "coredns_host", "ok", [], 0.2) in rows
    assert Row("benchmark", "benchmark benchmark.choose", "master", "ok") in rows


def test_a_phase_with_something_to_do_runs_with_all_that_need_it(steps, graph, answers, runners):
    answers["ai_server"]["phases"]["models"]["to_do"] = ["models-node1"]
    left = {row.phase for row in look.idle(steps, graph, answers, runners)}
    assert set(graph) - left == {"models", "openwebui", "openclaw", "verify"}


def test_a_phase_runs_on_all_its_hosts_where_one_has_something_to_do(steps, graph, answers, runners):
    answers["coredns_host"]["phases"]["docker"]["to_do"] = ["docker-service"]
    rows = look.idle(steps, graph, answers, runners)
    assert {row.phase for row in rows} == {"preflight", "vault", "nginx"}


def test_a_runner_with_something_to_do_runs_its_phase(steps, graph, answers, runners):
    runners["keycloak.publish"] = False
    left = {row.phase for row in look.idle(steps, graph, answers, runners)}
    assert set(graph) - left == {"keycloak", "openwebui", "vault_oidc", "verify"}


@pytest.mark.parametrize("said", [None, "The minion function caused an exception", {"reason": "other modules"}, {}])
def test_of_a_host_that_cannot_say_everything_runs(steps, graph, answers, runners, said):
    answers["ai_server"] = said
    assert look.idle(steps, graph, answers, runners) == []


def test_what_is_needed_by_way_of_a_phase_left_out_of_the_run_counts(graph, answers, runners):
    steps = phases.plan(graph, HOSTS, ["docker", "models"])
    answers["coredns_host"]["phases"]["docker"]["to_do"] = ["docker-service"]
    assert look.idle(steps, graph, answers, runners) == []


def test_one_line_tells_how_a_host_is(answers):
    assert look.line(answers["nginx_proxy"]) == "4 states, nothing to do"
    answers["nginx_proxy"]["phases"]["nginx"] |= {"to_do": ["a"], "notices": ["mind this"]}
    assert look.line(answers["nginx_proxy"]) == "4 states, to do in nginx\n    NOTE: mind this"
    assert look.line({"reason": "other states run there"}) == "every phase is run: other states run there"
    assert look.line(None) == "every phase is run: no answer"


# -- on the minion ------------------------------------------------------------------------------------------------


@pytest.fixture
def minion(monkeypatch):
    """A minion with modules of digest ``d``; returns the dry runs that it made, and what else runs on it."""
    made, running = [], []

    def sls(mods, **given):
        assert given == {"test": True, "concurrent": True}
        made.append(mods)
        return answer(state("vault"))

    functions = {
        "data.get": {"ai_platform_modules": "d"}.get,
        "saltutil.is_running": lambda _: running,
        "state.sls": sls,
    }
    monkeypatch.setattr(module, "__salt__", functions, raising=False)
    monkeypatch.setattr(module, "__grains__", {"id": "ai_server"}, raising=False)
    return made, running


def test_a_minion_makes_one_dry_run_of_its_own_phases(minion):
    made, _ = minion
    found = module.phases({"ai_server": ["vault", "docker"], "nginx_proxy": ["nginx"]}, "d")
    assert made == ["vault,docker"]
    assert found["phases"]["vault"]["to_do"] == []
    module.phases(["vault"])
    assert made[1:] == ["vault"]


def test_no_dry_run_is_made_by_other_modules_or_beside_other_states(minion):
    made, running = minion
    assert module.phases({"ai_server": ["vault"]}, "e") == {"reason": "it has other modules than this tree"}
    running.append({"fun": "state.apply"})
    assert module.phases({"ai_server": ["vault"]}, "d") == {"reason": "other states run there"}
    assert made == []

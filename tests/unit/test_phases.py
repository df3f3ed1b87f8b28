"""The graph of a deploy and the steps of a run."""

from __future__ import annotations

import pytest
import yaml

from aiplatform import phases
from aiplatform.errors import PlatformError
from tests.conftest import CHECKOUT

HOSTS = {
    "ai_server": {"roles": ["ai_server"]},
    "nginx_proxy": {"roles": ["nginx_proxy"]},
    "coredns_host": {"roles": ["coredns_host"]},
}
# What has to be there before each phase, by the design's table. One line is otherwise on purpose: Ollama itself asks
# for no key, the proxy does; so it needs no Vault, but the engine for its container.
DESIGN = {
    "preflight": set(),
    "vault": {"preflight"},
    "docker": {"preflight"},
    "ollama": {"docker"},
    "benchmark": {"ollama"},
    "models": {"benchmark"},
    "postgres": {"vault", "docker"},
    "keycloak": {"vault", "docker", "postgres"},
    "qdrant": {"vault", "docker"},
    "openwebui": {"models", "keycloak", "qdrant"},
    "openclaw": {"models", "vault"},
    "coredns": {"docker"},
    "nginx": {"vault"},
    "vault_oidc": {"vault", "keycloak", "nginx", "coredns"},
}
DESIGN["verify"] = set(DESIGN)


@pytest.fixture
def graph():
    return phases.load(CHECKOUT / "salt/orch/phases.yaml")


def test_the_page_names_every_phase_of_a_deploy_without_benchmark(graph):
    row = next(
        line for line in (CHECKOUT / "docs/deploy.md").read_text().splitlines() if "all but the benchmark" in line
    )
    named = row.partition("phases=")[2].partition("`")[0].split(",")
    assert sorted(named) == sorted(graph.keys() - {"benchmark"})


def write(path, rows):
    complete = {
        name: {"about": name, "roles": ["ai_server"], "steps": [{"state": name}]} | row for name, row in rows.items()
    }
    path.write_text(yaml.safe_dump(complete))
    return path


def by_id(steps):
    return {step.id: step for step in steps}


def test_every_phase_of_this_checkout_has_its_state(graph):
    for phase in graph.values():
        for kind, name in phase.steps:
            assert kind in ("state", "runner")
            assert kind == "runner" or (CHECKOUT / "salt" / name / "init.sls").is_file(), name


def test_each_step_comes_after_what_it_requires(graph):
    seen = set()
    for step in phases.plan(graph, HOSTS):
        assert set(step.require) <= seen
        seen.add(step.id)


def test_each_phase_waits_for_what_the_design_says(graph):
    def before(name):
        direct = graph[name].needs
        return {*direct}.union(*(before(need) for need in direct))

    assert graph.keys() == DESIGN.keys()
    missing = {name: needs - before(name) for name, needs in DESIGN.items()}
    assert {name: needs for name, needs in missing.items() if needs} == {}


def test_vault_and_docker_run_side_by_side(graph):
    steps = by_id(phases.plan(graph, HOSTS))
    assert steps["vault"].require == steps["docker"].require == ("preflight",)


def test_what_needs_a_phase_waits_for_its_last_step(graph):
    steps = by_id(phases.plan(graph, HOSTS))
    assert steps["vault vault_server.bootstrap"].require == ("vault",)
    assert steps["models"].require == ("benchmark benchmark.choose",)


def test_at_first_nothing_heavy_is_at_work_beside_the_benchmark():
    steps = by_id(phases.plan(phases.load(CHECKOUT / "salt/orch/phases.yaml", first=True), HOSTS))
    before = _all_required("benchmark", steps)
    after = {name for name in steps if "benchmark" in _all_required(name, steps)}
    beside = {name for name in steps if "ai_server" in steps[name].hosts} - before - after - {"benchmark"}
    assert beside == {"vault", "vault vault_server.bootstrap"}


def test_later_nothing_waits_for_the_benchmark_that_does_not_need_it(graph):
    steps = by_id(phases.plan(graph, HOSTS))
    assert "benchmark" not in _all_required("keycloak", steps) | _all_required("qdrant", steps)


def _all_required(name, steps):
    direct = steps[name].require
    return {*direct}.union(*(_all_required(need, steps) for need in direct))


def test_a_phase_left_out_is_looked_through(graph):
    steps = by_id(phases.plan(graph, HOSTS, only=["preflight", "models"]))
    assert steps["models"].require == ("preflight",)


def test_limited_to_a_host_the_others_phases_are_left_out(graph):
    steps = phases.plan(graph, HOSTS, limit=["coredns_host"])
    assert [step.phase for step in steps] == ["minions", "preflight", "docker", "coredns", "verify"]
    assert {step.hosts for step in steps} == {("coredns_host",)}


def test_two_hosts_of_one_role_are_both_targets(graph):
    more = HOSTS | {"second": {"roles": ["ai_server"]}}
    assert by_id(phases.plan(graph, more))["ollama"].hosts == ("ai_server", "second")


def test_before_anything_the_minions_answer_and_have_the_modules(graph):
    steps = by_id(phases.plan(graph, HOSTS, only=["vault", "docker"]))
    assert steps["minions"].hosts == ("ai_server", "coredns_host")
    assert steps["vault"].require == steps["docker"].require == ("minions",)


def test_nothing_to_run_is_no_step(graph):
    assert phases.plan(graph, HOSTS, only=["vault"], limit=["nginx_proxy"]) == []


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"only": ["prefligt"]}, r"where: phases; expected: one of .*\(did you mean preflight\?\); actual: prefligt"),
        ({"limit": ["ai_serve"]}, r"where: limit; expected: one of .*\(did you mean ai_server\?\); actual: ai_serve"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(graph, kwargs, text):
    with pytest.raises(PlatformError, match=text):
        phases.plan(graph, HOSTS, **kwargs)


def test_a_need_that_does_not_exist_is_named(tmp_path):
    path = write(tmp_path / "phases.yaml", {"a": {"needs": []}, "b": {"needs": ["aa"]}})
    with pytest.raises(PlatformError, match=r"b\.needs.*did you mean a\?"):
        phases.load(path)


def test_a_cycle_is_named(tmp_path):
    path = write(tmp_path / "phases.yaml", {"a": {"needs": ["b"]}, "b": {"needs": ["a"]}})
    with pytest.raises(PlatformError, match=r"cycle.*(a -> b -> a|b -> a -> b)"):
        phases.load(path)


def test_the_graph_must_be_there(tmp_path):
    with pytest.raises(PlatformError, match=r"phases\.yaml"):
        phases.find([str(tmp_path)])


def test_the_top_file_gives_each_role_its_phases(graph):
    top = yaml.safe_load((CHECKOUT / "salt/top.sls").read_text())["base"]
    checks = {"preflight", "verify"}
    for role in ("ai_server", "nginx_proxy", "coredns_host"):
        wanted = {
            name
            for phase in graph.values()
            if role in phase.roles and phase.name not in checks
            for kind, name in phase.steps
            if kind == phases.STATE
        }
        assert {line for line in top.get(f"roles:{role}", []) if isinstance(line, str)} == wanted


def test_what_needs_a_phase_is_found_by_whatever_detour(graph):
    assert phases.with_dependents(graph, ["models"]) == {"models", "openwebui", "openclaw", "verify"}
    assert phases.with_dependents(graph, ["preflight"]) == set(graph)
    assert phases.with_dependents(graph, []) == set()


def test_only_the_verification_runs_where_nothing_is_to_be_done(graph):
    assert [phase.name for phase in graph.values() if phase.always] == ["verify"]

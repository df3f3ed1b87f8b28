"""The runner ai_platform: what is refused, what is asked, what comes back; the minions' answers are given."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import salt.exceptions
import salt.key

from _runners import ai_platform as runner
from aiplatform import deploy, health, phases, progress, settings
from aiplatform.errors import PlatformError
from tests.conftest import CHECKOUT

HOSTS = {
    "ai_server": {"address": "192.0.2.29", "roles": ["ai_server"]},
    "coredns_host": {"address": "192.0.2.53", "roles": ["coredns_host"]},
}
SLOT = {"name": "slot-1", "instance": "node1", "model": "a:1", "loaded": True, "context": 8192}
GOOD = {"host": "ai_server", "check": "c", "ok": True, "expected": "e", "actual": "a", "hint": ""}
STATES = {"unit": {"result": True, "changes": {}, "__id__": "unit"}}


def probed(end):
    return {"service": end.service, "host": end.host, "url": end.url, "ok": True, "answer": "a connection"}


@pytest.fixture
def pillar(monkeypatch, tmp_path):
    """The settings that every function of the runner loads; what stands under ``_errors`` refuses them."""
    found = {
        "platform": {"hosts": HOSTS},
        "services": {"dns": {"role": "coredns_host", "port": 53, "scheme": "tcp", "health": None, "reach": ["any"]}},
        "vault": {"key_store": str(tmp_path)},
        "benchmark": {"report_dir": str(tmp_path / "reports")},
        "slots": {1: {"instance": "node1", "kind": "general"}},
        "selection": {"slot1_general": "a:1"},
    }

    def load(_opts):
        if "_errors" in found:
            raise settings.PillarError(found["_errors"])
        return found

    monkeypatch.setattr(settings, "load", load)
    return found


@pytest.fixture
def answers():
    """What the minions answer, by function and host; hosts that are down are left out."""
    return {
        "test.ping": {"ai_server": True, "coredns_host": True},
        "model_slots.status": {"ai_server": [dict(SLOT)]},
        "verify.run": {"ai_server": [dict(GOOD)], "coredns_host": []},
    }


@pytest.fixture
def orchestrated():
    """The orchestrations that were asked for, the phases that fail in them, and those that a dry run finds to do."""
    return {"asked": [], "failing": set(), "to_do": set()}


class Client:
    """Salt's client of the minions, which make the dry runs of a deploy and find these phases to do."""

    def __init__(self, to_do):
        self.to_do = to_do

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run_job(self, hosts, function, arg, **_):
        assert function == "dry_run.phases"
        self.asked = arg[0]
        return {"jid": "1", "minions": hosts}

    def get_iter_returns(self, jid, minions, **_):
        seen = {"states": 1, "seconds": 0.1, "notices": []}
        for host in minions:
            found = {name: {**seen, "to_do": ["x"] * (name in self.to_do)} for name in self.asked[host]}
            yield {host: {"ret": {"phases": found}}}


def as_wanted(test):
    """The dry run of a runner function that has nothing to do."""
    assert test is True
    return {"changes": {}, "comment": "as wanted"}


@pytest.fixture(autouse=True)
def _master(monkeypatch, tmp_path, pillar, answers, orchestrated):
    """A master with accepted keys, minions that answer, and an orchestration that runs nothing."""

    def execute(hosts, function, tgt_type, **_):
        assert tgt_type == "list"
        return {host: answer for host, answer in answers[function].items() if host in hosts}

    def orchestrate(name, test, pillar):
        assert name == "orch.deploy"
        orchestrated["asked"].append({"test": test, **pillar})
        graph = phases.load(phases.find([str(CHECKOUT / "salt")]))
        steps = phases.plan(graph, HOSTS, pillar["phases"], pillar["limit"])
        return {"data": {"master": {f"salt_|-{step.id}_|-x_|-y": _state(step) for step in steps}}}

    def _state(step):
        good = step.phase not in orchestrated["failing"]
        answer = {host: STATES if good else {"bad": {"result": False, "comment": "broken"}} for host in step.hosts}
        return {"__id__": step.id, "result": good, "changes": {"ret": answer} if step.kind == "state" else {}}

    def sign_on(test):
        assert test is True
        return answers["vault_oidc.configure"]

    class Keys:
        def __init__(self, opts):
            pass

        def finger(self, _match):
            return {"minions": dict.fromkeys(HOSTS, "aa:bb")}

    opts = {
        "conf_file": "master",
        "cachedir": str(tmp_path),
        "file_roots": {"base": [str(CHECKOUT / "salt")]},
        "pillar_roots": {"base": [str(tmp_path)]},
        "output": "json",
    }
    monkeypatch.setattr(runner.salt.client, "get_local_client", lambda _: Client(orchestrated["to_do"]))
    dry_runs = dict.fromkeys(("vault_server.bootstrap", "benchmark.choose", "keycloak.publish"), as_wanted)
    salt_functions = {
        **dry_runs,
        "salt.execute": execute,
        "state.orchestrate": orchestrate,
        "vault_oidc.configure": sign_on,
    }
    for name, value in (("__opts__", opts), ("__salt__", salt_functions), ("__context__", {})):
        monkeypatch.setattr(runner, name, value, raising=False)
    monkeypatch.setattr(salt.key, "Key", Keys)
    monkeypatch.setattr(progress, "shown", lambda *_: nullcontext())
    monkeypatch.setattr(health, "probe", lambda end, _: probed(end))


def test_a_deploy_to_hosts_that_are_no_minions_yet_says_what_to_do(orchestrated, monkeypatch):
    monkeypatch.setattr(salt.key.Key, "finger", lambda *_: {"minions": {"ai_server": "aa:bb"}})
    answer = runner.deploy()
    assert answer["retcode"] == 1
    assert "none for coredns_host; next: salt-run ai_platform.bootstrap" in answer["error"]
    assert orchestrated["asked"] == []


# --- questions


def test_a_platform_that_is_well(pillar, tmp_path):
    status = runner.status()
    assert status["retcode"] == 0
    assert status["hosts"] == {"ai_server": True, "coredns_host": True}
    assert [row["service"] for row in status["services"]] == ["dns"]
    assert [row["model"] for row in status["slots"]] == ["a:1"]
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/report.md").write_text("# Report")
    verified = runner.verify()
    assert verified["retcode"] == 0
    assert [row["host"] for row in verified["checks"]] == ["ai_server", "master"]


@pytest.mark.parametrize("fault", ["host", "slot", "service"])
def test_the_status_of_what_is_not_well(answers, monkeypatch, fault):
    if fault == "host":
        del answers["test.ping"]["coredns_host"]
    elif fault == "slot":
        answers["model_slots.status"]["ai_server"][0]["loaded"] = False
    else:
        monkeypatch.setattr(health, "probe", lambda end, _: probed(end) | {"ok": False})
    assert runner.status()["retcode"] == 1


def test_a_server_that_is_down_is_not_asked_for_its_slots(answers):
    del answers["test.ping"]["ai_server"]
    del answers["model_slots.status"]
    assert runner.status()["slots"] == []


def test_a_failed_check_a_silent_host_and_a_missing_report_fail_the_verification(answers):
    answers["verify.run"] = {"ai_server": [GOOD | {"ok": False}]}
    verified = runner.verify()
    assert verified["retcode"] == 1
    assert [row["host"] for row in verified["checks"] if not row["ok"]] == ["ai_server", "coredns_host", "master"]


@pytest.mark.parametrize(
    ("answer", "actual"),
    [
        ({"result": True, "changes": {}}, "ai-admin of the realm gets policy vault-admin, as pillar wants it"),
        ({"result": None, "changes": {"role default": {"bound_claims": {}}}}, "otherwise: role default"),
        ({"result": False, "changes": {}, "comment": "Another login method"}, "Another login method"),
    ],
)
def test_a_vault_that_lets_no_administrator_in_fails_the_verification(pillar, answers, answer, actual):
    """One who is refused proves nothing about those who are not to be."""
    pillar["services"]["keycloak"] = pillar["services"]["dns"]
    answers["vault_oidc.configure"] = answer
    row = next(row for row in runner.verify()["checks"] if row["check"] == "administrators' sign-on to Vault")
    assert (row["host"], row["ok"], row["actual"]) == ("master", answer["result"] is True, actual)


@pytest.mark.parametrize("function", [runner.status, runner.verify, runner.deploy])
def test_a_refused_pillar_asks_nobody(pillar, answers, orchestrated, function):
    pillar["_errors"] = ["ollama.version: is 3, expected text"]
    answers.clear()
    answer = function()
    assert (answer["retcode"], answer["problems"]) == (1, pillar["_errors"])
    assert runner.__context__["retcode"] == 1
    assert orchestrated["asked"] == []


# --- the deploy


def test_a_deploy_runs_every_phase(orchestrated, pillar, tmp_path):
    pillar["selection"] = {}
    # What the benchmark of this very deploy chooses is told.
    (tmp_path / settings.SELECTION_FILE).write_text('{"slot1_general": "a:1"}')
    answer = runner.deploy()
    assert (answer["retcode"], answer["resumed"], answer["failures"]) == (0, [], [])
    graph = phases.load(phases.find([str(CHECKOUT / "salt")]), first=True)
    assert orchestrated["asked"] == [{"test": None, "phases": list(graph), "limit": []}]
    assert {row["phase"] for row in answer["phases"]} >= {"preflight", "models", "verify"}
    assert answer["slots"] == [{"slot": 1, "instance": "node1", "kind": "general", "model": "a:1"}]


@pytest.mark.parametrize("given", ["docker, ollama", ["docker", "ollama"]])
def test_phases_are_names_in_a_list_or_with_commas(orchestrated, given):
    runner.deploy(phases=given, limit="ai_server", test=True)
    assert orchestrated["asked"] == [{"test": True, "phases": ["docker", "ollama"], "limit": ["ai_server"]}]


def test_an_unknown_phase_is_refused_with_the_nearest_name(orchestrated):
    answer = runner.deploy(phases="olama")
    assert answer["retcode"] == 1
    assert "did you mean ollama?" in answer["error"]
    assert orchestrated["asked"] == []


def test_a_failed_deploy_is_carried_on(orchestrated):
    orchestrated["failing"] = {"ollama"}
    failed = runner.deploy()
    assert failed["retcode"] == 1
    assert ("ollama", "ai_server", "broken") in {
        (row["phase"], row["host"], row["reason"]) for row in failed["failures"]
    }
    orchestrated["failing"] = set()
    again = runner.deploy()
    assert set(again["resumed"]) >= {"preflight", "vault", "docker"}
    assert "ollama" in orchestrated["asked"][-1]["phases"]
    assert "vault" not in orchestrated["asked"][-1]["phases"]
    # All is well now: the next one is whole again.
    assert runner.deploy()["resumed"] == []


def test_after_a_deploy_that_went_well_only_what_is_to_be_done_runs(orchestrated, answers):
    answers["vault_oidc.configure"] = as_wanted(test=True)
    runner.deploy()
    answer = runner.deploy()
    ran = phases.load(phases.find([str(CHECKOUT / "salt")])).keys() - {"nginx"}  # there is no host for it
    assert ran.intersection(orchestrated["asked"][-1]["phases"]) == {"verify"}
    assert {row["phase"] for row in answer["phases"]} >= {"preflight", "vault", "models", "verify"}
    assert {row["result"] for row in answer["phases"]} == {"ok"}
    orchestrated["to_do"].add("models")
    runner.deploy()
    assert ran.intersection(orchestrated["asked"][-1]["phases"]) == {"models", "openwebui", "openclaw", "verify"}
    runner.deploy(fresh=True)
    assert "preflight" in orchestrated["asked"][-1]["phases"]
    # Who names phases wants them run.
    runner.deploy(phases="docker")
    assert orchestrated["asked"][-1]["phases"] == ["docker"]
    orchestrated["failing"] = {"verify"}
    assert runner.deploy()["retcode"] == 1
    # The verification alone has failed: the hosts are looked at again.
    orchestrated["failing"], orchestrated["to_do"] = set(), set()
    assert runner.deploy()["resumed"] == []
    assert ran.intersection(orchestrated["asked"][-1]["phases"]) == {"verify"}


@pytest.mark.parametrize("narrowed", [{}, {"phases": "models"}])
def test_after_a_deploy_that_failed_every_phase_is_run(orchestrated, narrowed):
    runner.deploy()
    orchestrated["failing"] = orchestrated["to_do"] = {"models"}
    assert runner.deploy(**narrowed)["retcode"] == 1
    orchestrated["failing"], orchestrated["to_do"] = set(), set()
    runner.deploy()
    assert {"vault", "models"} <= set(orchestrated["asked"][-1]["phases"])


def test_after_a_deploy_that_was_killed_every_phase_is_run(orchestrated, monkeypatch):
    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    runner.deploy()
    orchestrated["to_do"].add("models")
    with monkeypatch.context() as patch:
        patch.setitem(runner.__salt__, "state.orchestrate", killed)
        with pytest.raises(KeyboardInterrupt):
            runner.deploy()
    runner.deploy()
    assert "vault" in orchestrated["asked"][-1]["phases"]


@pytest.mark.parametrize("job", [{}, {"jid": "0", "minions": []}, salt.exceptions.SaltClientError("no master")])
def test_where_no_dry_run_can_be_made_every_phase_is_run(orchestrated, monkeypatch, job, capsys):
    def run_job(*_args, **_kwargs):
        if isinstance(job, Exception):
            raise job
        return job

    runner.deploy()
    monkeypatch.setattr(Client, "run_job", run_job)
    monkeypatch.setattr(Client, "asked", {}, raising=False)
    assert runner.deploy()["retcode"] == 0
    assert "vault" in orchestrated["asked"][-1]["phases"]
    assert "is run" in capsys.readouterr().err


def test_a_runner_that_cannot_make_its_dry_run_is_run(orchestrated, monkeypatch):
    def broken(test):
        runner.__context__["retcode"] = 1
        raise PlatformError("Vault is away")

    runner.deploy()
    monkeypatch.setitem(runner.__salt__, "keycloak.publish", broken)
    assert runner.deploy()["retcode"] == 0
    assert {"keycloak", "openwebui", "verify"} < set(orchestrated["asked"][-1]["phases"])
    assert "postgres" not in orchestrated["asked"][-1]["phases"]
    assert runner.__context__ == {}


@pytest.mark.parametrize("narrowed", [{"test": True}, {"phases": "ollama"}, {"fresh": True}])
def test_what_is_narrowed_carries_nothing_on(orchestrated, narrowed):
    orchestrated["failing"] = {"ollama"}
    runner.deploy()
    assert runner.deploy(**narrowed)["resumed"] == []


@pytest.mark.parametrize("narrowed", [{"test": True}, {"phases": "preflight"}])
def test_what_is_narrowed_is_not_remembered(orchestrated, narrowed, tmp_path):
    orchestrated["failing"] = {"preflight"}
    runner.deploy(**narrowed)
    assert not deploy.Record(tmp_path).path.exists()


def test_the_lock_is_given_back_however_the_deploy_ends(monkeypatch, tmp_path):
    def broken(*_args, **_kwargs):
        raise PlatformError("No orchestration")

    monkeypatch.setitem(runner.__salt__, "state.orchestrate", broken)
    assert runner.deploy()["error"] == "No orchestration"
    assert deploy.Lock(tmp_path).path not in deploy._held


def test_people_get_a_text_and_programs_data(monkeypatch, capsys):
    data = runner.status()
    assert json.loads(json.dumps(data)) == data
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(runner, "__opts__", {**runner.__opts__, "output": None, "fun": "ai_platform.status"})
    shown = runner.status()
    assert (shown["outputter"], shown["data"]) == ("quiet", data)
    assert "slot-1" in capsys.readouterr().out

"""Steps of a deploy that run on the master, and how the orchestration gets its steps."""

from __future__ import annotations

import contextlib
import types
from unittest.mock import MagicMock

import pytest
import salt.key
from salt.exceptions import CommandExecutionError

from _modules import orchestration as module
from _states import orchestration as state
from aiplatform import deploy
from tests.conftest import CHECKOUT


def ran(monkeypatch, answer, test=False):
    """The state's return where the runner returned ``answer``; what it was called with."""
    called = {}

    def runner(name, **kwargs):
        called.update(kwargs, name=name)
        return {"return": answer}

    monkeypatch.setattr(state, "__salt__", {"saltutil.runner": runner}, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    return state.runner("x.y"), called


ANSWERS = [
    ({}, True, {}),
    ({"changes": {"a": 1}, "comment": "c"}, True, {"a": 1}),
    ({"result": False}, False, {}),
    ({"retcode": 1}, False, {}),
    ({"outputter": "quiet", "data": {"retcode": 0, "changes": {"a": 1}}}, True, {"a": 1}),
    ({"outputter": "quiet", "data": {"retcode": 2}}, False, {}),
]


@pytest.mark.parametrize(("answer", "result", "changes"), ANSWERS)
def test_the_runners_changes_are_the_states(monkeypatch, answer, result, changes):
    ret, called = ran(monkeypatch, answer)
    assert (ret["result"], ret["changes"]) == (result, changes)
    assert (called["name"], called["test"]) == ("x.y", False)


def test_a_dry_run_reaches_the_runner(monkeypatch):
    ret, called = ran(monkeypatch, {"changes": {"a": 1}}, test=True)
    assert called["test"] is True
    assert ret["result"] is None
    assert ran(monkeypatch, {}, test=True)[0]["result"] is True


def test_a_runner_that_raised_fails_with_its_last_line(monkeypatch):
    trace = (
        "Exception occurred in runner x.y: Traceback (most recent call last):\n  File\nPlatformError: Vault is sealed\n"
    )
    ret, _ = ran(monkeypatch, trace)
    assert (ret["result"], ret["comment"]) == (False, "PlatformError: Vault is sealed")


@pytest.fixture
def master(monkeypatch, tmp_path):
    """The module on a master; returns the list of accepted keys."""
    accepted = ["ai_server", "nginx_proxy", "coredns_host"]
    hosts = {name: {"roles": [name]} for name in accepted}

    class Keys:
        def __init__(self, opts):
            pass

        def list_keys(self):
            return {"minions": accepted}

    monkeypatch.setattr(salt.key, "Key", Keys)
    opts = {"cachedir": str(tmp_path), "file_roots": {"base": [str(CHECKOUT / "salt")]}}
    monkeypatch.setattr(module, "__opts__", opts, raising=False)
    monkeypatch.setattr(module, "__pillar__", {"platform": {"hosts": hosts}}, raising=False)
    yield accepted
    deploy.Lock(tmp_path).release()


def test_the_steps_of_a_whole_deploy(master):
    ids = [step["id"] for step in module.steps()]
    assert ids[:2] == ["minions", "preflight"]
    assert ids[-1] == "verify"


def test_narrowed_to_phases_and_hosts(master):
    assert [step["id"] for step in module.steps(["docker"], ["coredns_host"])] == ["minions", "docker"]


def test_a_host_without_a_key_is_named(master):
    master.remove("nginx_proxy")
    with pytest.raises(CommandExecutionError, match=r"none for nginx_proxy; next: salt-run ai_platform\.bootstrap"):
        module.steps()
    assert module.steps(limit=["ai_server"])


class Minions:
    """Minions by id with the digest of the modules they have; None where one is down."""

    def __init__(self, have, running):
        self.have = have
        self.running = running
        self.synced = []
        self.restarted = []
        self.no_service = ["tried out"]

    @contextlib.contextmanager
    def events(self, *_, **__):
        """The master's events: those that were restarted say that they have started; ``dead`` ones never do."""
        told = iter([{"tag": "salt/job/1/new", "data": {}}, None])

        def get_event(**_):
            if event := next(told, None):
                return event
            alive = [host for host in self.restarted if host != "dead"]
            return {"tag": f"salt/minion/{alive[0]}/start", "data": {"id": alive.pop(0)}} if alive else None

        yield types.SimpleNamespace(get_event=get_event)

    def cmd(self, hosts, function, arg, **kwargs):
        answers = {host: self.have[host] for host in hosts if self.have[host] is not None}
        if function == ["data.get", "saltutil.running"]:
            assert arg == [["ai_platform_modules"], []]
            answers = {
                host: {"data.get": digest, "saltutil.running": [{"fun": "test.ping"}, *self.running.get(host, [])]}
                for host, digest in answers.items()
            }
        if function == "saltutil.sync_all":
            self.synced += hosts
        if function == "service.available":
            answers = {host: host not in self.no_service for host in hosts}
        if function == "cmd.run":
            assert "restart salt-minion" in arg[0]
            self.restarted += hosts
        if function == "data.update":
            self.have |= dict.fromkeys(hosts, arg[1])
        down = {host: {"failed": True} for host in hosts if host not in answers}
        return {host: {"ret": answer} for host, answer in answers.items()} | down


@pytest.fixture
def ask(monkeypatch):
    """Call the state against minions; returns its result and the minions."""

    def call(have, test=False, running=None):
        found = Minions(have, running or {})
        salt_functions = {"saltutil.cmd": found.cmd, "saltutil.runner": lambda name: None}
        opts = {"test": test, "timeout": 5, "file_roots": {"base": [str(CHECKOUT / "salt")]}}
        monkeypatch.setattr(state, "__salt__", salt_functions, raising=False)
        monkeypatch.setattr(state.salt.utils.event, "get_event", found.events)
        monkeypatch.setattr(state, "RESTART_SECONDS", 0.1)
        monkeypatch.setattr(state, "__opts__", opts, raising=False)
        return state.minions("minions", list(have)), found

    return call


DIGEST = deploy.modules_digest([str(CHECKOUT / "salt")])


def test_minions_that_have_the_modules_get_nothing(ask):
    ret, minions = ask({"a": DIGEST, "b": DIGEST})
    assert (ret["result"], ret["changes"], minions.synced) == (True, {}, [])


@pytest.mark.parametrize("test", [False, True])
def test_minions_without_modules_get_them_in_a_dry_run_too(ask, test):
    ret, minions = ask({"a": DIGEST, "b": ""}, test)
    assert ret["result"] is True
    assert minions.synced == ["b"]
    assert minions.have["b"] == DIGEST
    assert ret["changes"] == ({} if test else {"b": "modules synced"})


def test_a_minion_with_other_modules_starts_anew(ask):
    """What its beacons have imported stays in its process, and every job would inherit it."""
    ret, minions = ask({"a": DIGEST, "b": "older", "c": ""})
    assert ret["result"] is True
    assert (minions.synced, minions.restarted) == (["b", "c"], ["b"])
    assert ret["changes"] == {"b": "modules synced", "c": "modules synced"}


def test_a_dry_run_restarts_no_minion_and_says_which_it_would(ask):
    ret, minions = ask({"a": DIGEST, "b": "older", "c": ""}, test=True)
    assert (minions.synced, minions.restarted) == (["b", "c"], [])
    assert (ret["result"], list(ret["changes"])) == (None, ["b"])
    assert ret["comment"].endswith("modules brought to b, c; salt-minion would be restarted on b")
    # The next run must find that it is still to be done.
    after, minions = ask(minions.have)
    assert (list(after["changes"]), minions.restarted) == (["b"], ["b"])


def test_a_minion_that_is_no_service_is_left_alone(ask):
    for test in (True, False):
        ret, minions = ask({"tried out": "older"}, test)
        assert ret["result"] is True
        assert (minions.synced, minions.restarted) == (["tried out"], [])


def test_a_minion_that_does_not_come_back_is_named(ask):
    ret, _ = ask({"a": DIGEST, "dead": "older"})
    assert ret["result"] is False
    assert ret["comment"].startswith("host: dead; check: the minion answers")


def test_a_minion_that_was_not_restarted_is_by_the_next_run(ask):
    _, minions = ask({"a": "older", "dead": "older"})
    assert minions.have == {"a": DIGEST, "dead": "older"}
    assert ask(minions.have)[1].restarted == ["dead"]


def test_a_deploy_that_is_killed_before_the_restart_leaves_it_to_the_next(ask, monkeypatch):
    have = {"a": "older"}
    with monkeypatch.context() as patch:
        patch.setattr(state, "_restart", MagicMock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ask(have)
    assert ask(have)[1].restarted == ["a"]


def test_a_minion_that_is_down_is_named_with_the_four_fields(ask):
    ret, _ = ask({"a": DIGEST, "b": None})
    assert ret["result"] is False
    line = "host: b; check: the minion answers; expected: an answer within 5 s; actual: none; next: "
    assert ret["comment"].startswith(line)


def test_states_that_still_run_are_named_and_nothing_is_done(ask):
    job = {"fun": "state.sls", "arg": ["docker"], "pid": 7, "jid": "2026"}
    ret, minions = ask({"a": DIGEST, "b": "", "c": ""}, running={"b": [job]})
    assert (ret["result"], ret["changes"], minions.synced) == (False, {}, [])
    line = "host: b; check: other state runs; expected: none; actual: state.sls ['docker'] in pid 7, job 2026"
    assert ret["comment"].startswith(line)

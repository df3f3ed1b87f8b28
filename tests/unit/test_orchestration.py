"""Steps of a deploy that run on the master, and how the orchestration gets its steps."""

from __future__ import annotations

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
    assert ids[0] == "preflight"
    assert ids[-1] == "verify"


def test_narrowed_to_phases_and_hosts(master):
    assert [step["id"] for step in module.steps(["docker"], ["coredns_host"])] == ["docker"]


def test_a_host_without_a_key_is_named(master):
    master.remove("nginx_proxy")
    with pytest.raises(CommandExecutionError, match=r"none for nginx_proxy; next: salt-run ai_platform\.bootstrap"):
        module.steps()
    assert module.steps(limit=["ai_server"])

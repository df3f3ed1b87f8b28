"""One deploy at a time, and a failed one taken up again."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os

import pytest

from aiplatform import deploy
from aiplatform.errors import PlatformError
from aiplatform.phases import Step


@pytest.fixture
def lock(tmp_path):
    taken = deploy.Lock(tmp_path)
    yield taken
    taken.release()


def hold(cachedir, taken, done):
    deploy.Lock(cachedir).take("ai_platform.deploy")
    taken.set()
    done.wait(20)


def holder_of(tmp_path):
    """Start a process that holds the lock; returns it and the event that ends it."""
    context = multiprocessing.get_context("spawn")
    taken, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, taken, done))
    process.start()
    assert taken.wait(20)
    return process, done


def test_a_second_deploy_is_refused_with_the_holder(lock, tmp_path):
    process, done = holder_of(tmp_path)
    try:
        with pytest.raises(PlatformError, match=rf"ai_platform\.deploy of user .*, pid {process.pid}, since 20"):
            lock.take("other")
    finally:
        done.set()
        process.join(20)
    lock.take("other")


def test_a_killed_deploy_leaves_no_lock(lock, tmp_path):
    process, _ = holder_of(tmp_path)
    process.kill()
    process.join(20)
    lock.take("after")
    assert lock.holder()["pid"] == os.getpid()


def test_one_process_may_take_it_twice(lock):
    lock.take("ai_platform.deploy")
    lock.take("state.orchestrate orch.deploy")
    assert lock.holder()["command"] == "ai_platform.deploy"


@pytest.fixture
def record(tmp_path):
    return deploy.Record(tmp_path)


SCOPE = deploy.Scope("inputs", [], {"ai_server": "aa:bb", "nginx_proxy": "cc:dd"})
DAY = 24 * 3600


@pytest.fixture
def clock(monkeypatch):
    """The time that the record sees, in seconds."""
    now = [1_000_000.0]
    monkeypatch.setattr(deploy.time, "time", lambda: now[0])
    return now


def test_a_failed_deploy_is_carried_on(record, clock):
    record.failed(SCOPE, {"vault": clock[0] - 5, "preflight": clock[0] - 60})
    assert record.done(SCOPE) == {"preflight": clock[0] - 60, "vault": clock[0] - 5}
    assert list(record.done(SCOPE)) == ["preflight", "vault"]


@pytest.mark.parametrize(
    "difference",
    [
        {"inputs": "others"},
        {"limit": ["ai_server"]},
        {"keys": {"ai_server": "ee:ff", "nginx_proxy": "cc:dd"}},
        {"keys": {"ai_server": "aa:bb"}},
    ],
    ids=["inputs", "limit", "a host installed anew", "a host gone"],
)
def test_another_deploy_starts_at_the_beginning(record, clock, difference):
    record.failed(SCOPE, {"preflight": clock[0]})
    assert record.done(dataclasses.replace(SCOPE, **difference)) == {}


@pytest.mark.parametrize(("seconds", "carried"), [(DAY - 1, True), (DAY + 1, False), (-60, False)])
def test_an_old_record_counts_as_none_and_so_does_one_of_the_future(record, clock, seconds, carried):
    record.failed(SCOPE, {"preflight": clock[0]})
    clock[0] += seconds
    assert bool(record.done(SCOPE)) is carried


def test_its_oldest_phase_is_the_age_of_a_record(record, clock):
    """Else a deploy that fails again each day would never look at its first phases any more."""
    record.failed(SCOPE, {"preflight": clock[0] - DAY - 1, "vault": clock[0]})
    assert record.done(SCOPE) == {}


def test_a_complete_deploy_is_forgotten(record, clock):
    record.failed(SCOPE, {"preflight": clock[0]})
    record.clear()
    record.clear()
    assert record.done(SCOPE) == {}


@pytest.mark.parametrize("content", ["{", "[]", '{"inputs": "inputs", "limit": [], "done": ["preflight"]}'])
def test_a_torn_or_foreign_record_counts_as_none(record, clock, content):
    record.failed(SCOPE, {"preflight": clock[0]})
    record.path.write_text(content)
    assert record.done(SCOPE) == {}


def test_settings_and_files_are_inputs_and_the_selection_is_not(tmp_path):
    (tmp_path / "init.sls").write_text("a")
    (tmp_path / "__pycache__").mkdir()
    first = deploy.fingerprint({"ollama": {"version": 1}, "selection": {}}, [str(tmp_path)])
    (tmp_path / "__pycache__/x.pyc").write_text("x")
    assert (
        deploy.fingerprint({"ollama": {"version": 1}, "selection": {"slot1_general": "a:1"}}, [str(tmp_path)]) == first
    )
    assert deploy.fingerprint({"ollama": {"version": 2}}, [str(tmp_path)]) != first
    (tmp_path / "init.sls").write_text("b")
    assert deploy.fingerprint({"ollama": {"version": 1}}, [str(tmp_path)]) != first


def test_a_step_becomes_a_state_that_runs_beside_others():
    state = deploy.salt_state(Step("ollama", "ollama", "state", "ollama", ("ai_server",), ("vault",)))
    assert (state["id"], state["function"]) == ("ollama", "salt.state")
    for argument in ({"parallel": True}, {"sls": "ollama"}, {"tgt": ["ai_server"]}, {"require": ["vault"]}):
        assert argument in state["arguments"]


def test_a_runner_becomes_a_state_of_the_master():
    state = deploy.salt_state(Step("vault x.y", "vault", "runner", "x.y", ("ai_server",), ("vault",)))
    assert state["function"] == "orchestration.runner"
    assert {"name": "x.y"} in state["arguments"]


def test_hosts_without_an_accepted_key_are_found():
    assert deploy.without_key(["a", "b"], ["b"]) == ["a"]

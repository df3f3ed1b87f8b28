"""One deploy at a time, and a failed one taken up again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import time
import types
from pathlib import Path

import pytest
import salt.utils.event

from aiplatform import deploy, measure_progress, progress, wait
from aiplatform.errors import PlatformError
from aiplatform.phases import Step


@pytest.fixture
def lock(tmp_path):
    taken = deploy.Lock(tmp_path)
    yield taken
    taken.release()


@contextlib.contextmanager
def no_events(*_, **__):
    """The events of a master on which nothing happens."""
    # As the real one, which waits as long as it may where no event comes.
    yield types.SimpleNamespace(get_event=lambda wait, **_: time.sleep(wait))


SHOWN = {
    "nothing": contextlib.nullcontext,
    "the deploy": lambda: progress.shown({}, []),
    "the measuring": lambda: measure_progress.shown({}),
}


def hold(cachedir, taken, done, what):
    salt.utils.event.get_event = no_events
    deploy.Lock(cachedir).take("ai_platform.deploy")
    with SHOWN[what]():
        pids = [str(child.pid) for child in multiprocessing.active_children()]
        (cachedir / "watchers").write_text(" ".join(pids))
        taken.set()
        done.wait(20)


def holder_of(tmp_path, what="nothing"):
    """Start a process that holds the lock and shows how something goes on; returns it and the event that ends it."""
    context = multiprocessing.get_context("spawn")
    taken, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, taken, done, what))
    process.start()
    assert taken.wait(20)
    return process, done


def ended(pid):
    """Whether a process is gone; one that nobody waits for stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True


def test_a_second_deploy_is_refused_with_the_holder(lock, tmp_path):
    process, done = holder_of(tmp_path)
    try:
        with pytest.raises(PlatformError, match=rf"ai_platform\.deploy of user .*, pid {process.pid}, since 20"):
            lock.take("other")
    finally:
        done.set()
        process.join(20)
    lock.take("other")


@pytest.mark.parametrize("what", SHOWN)
def test_a_killed_deploy_leaves_neither_lock_nor_process(lock, tmp_path, what):
    process, _ = holder_of(tmp_path, what)
    left = [int(pid) for pid in (tmp_path / "watchers").read_text().split()]
    process.kill()
    process.join(20)
    try:
        assert len(left) == (what != "nothing")
        lock.take("after")
        assert lock.holder()["pid"] == os.getpid()
        wait.until(lambda: all(map(ended, left)), 10, what="what shows the progress to end")
    finally:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_steps_of_a_killed_deploy_that_still_run_are_told_as_such(lock, tmp_path):
    """The orchestration makes a process of each step, which goes on alone; a second deploy must not run beside it."""
    gone = multiprocessing.get_context("spawn").Process()
    gone.start()
    gone.join(20)
    process, done = holder_of(tmp_path)
    try:
        lock.path.write_text(json.dumps(lock.holder() | {"pid": gone.pid}))
        with pytest.raises(PlatformError, match=rf"pid {gone.pid}, which has ended before its last steps, since 20"):
            lock.take("after")
    finally:
        done.set()
        process.join(20)


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


def test_a_failed_deploy_is_forgotten_when_one_went_well(record, clock):
    record.failed(SCOPE, {"preflight": clock[0]})
    assert not record.begun()
    assert record.done(SCOPE) == {"preflight": clock[0]}
    record.succeeded()
    assert record.done(SCOPE) == {}
    assert record.complete()


def test_that_a_deploy_went_well_is_forgotten_while_the_next_is_under_way(record):
    record.succeeded()
    assert record.begun()
    assert not record.complete()
    assert not record.begun()
    record.forget()


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


def test_hosts_without_an_accepted_key_are_refused_by_name():
    steps = [Step("x", "x", "state", "x", ("a", "b"), ()), Step("y", "y", "state", "y", ("c",), ())]
    with pytest.raises(PlatformError, match=r"none for a, c; next: salt-run ai_platform\.bootstrap"):
        deploy.demand_keys(steps, ["b"])
    deploy.demand_keys(steps, ["a", "b", "c", "d"])

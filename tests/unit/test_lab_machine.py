"""The machine: what is told without root or engine, and which engine the lab stops."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab import machine
from lab.settings import LabError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_without_engine_and_root_the_two_ways_out_are_named(monkeypatch):
    monkeypatch.setattr(machine, "is_root", lambda: False)
    monkeypatch.setattr(machine, "engine_answers", lambda: False)
    for refuse in (machine.check_engine, machine.start_engine):
        with pytest.raises(LabError, match=r"as root.*group docker"):
            refuse()


def test_an_engine_that_answers_needs_no_root(monkeypatch):
    monkeypatch.setattr(machine, "is_root", lambda: False)
    monkeypatch.setattr(machine, "engine_answers", lambda: True)
    machine.check_engine()


def test_without_root_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(machine, "is_root", lambda: False)
    monkeypatch.setattr(machine, "missing_packages", lambda names: names[1:])
    monkeypatch.setattr(machine.shutil, "which", lambda _name: "/usr/bin/apt-get")
    with pytest.raises(LabError, match="Building it needs two, three"):
        machine.ensure_packages(["one", "two", "three"], "Building it")


def test_on_another_system_the_packages_are_named(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda _name: None)
    with pytest.raises(LabError, match="no apt-get"):
        machine.ensure_packages(["one"], "Building it")


def test_commands_that_are_there_need_no_package(monkeypatch):
    asked = []
    monkeypatch.setattr(machine.shutil, "which", {"git": "/usr/bin/git"}.get)
    monkeypatch.setattr(machine, "ensure_packages", lambda names, why: asked.append((names, why)))
    machine.ensure_commands({"git": "git", "ip": "iproute2"}, "The lab")
    machine.ensure_commands({"git": "git"}, "The lab")
    assert asked == [(["iproute2"], "The lab")]


def test_an_installation_that_was_interrupted_is_carried_on_first(monkeypatch):
    """As `make lab` killed while it installs leaves it: apt-get then refuses everything."""
    done = []
    monkeypatch.setattr(machine, "is_root", lambda: True)
    monkeypatch.setattr(machine, "missing_packages", lambda names: names)
    monkeypatch.setattr(machine.shutil, "which", lambda _name: "/usr/bin/apt-get")
    monkeypatch.setattr(machine, "run", lambda argv, **_how: done.append(argv))
    machine.ensure_packages(["one"], "Building it")
    assert done[0] == ["dpkg", "--configure", "-a"]
    assert [argv[0] for argv in done[1:]] == ["apt-get", "apt-get"]
    assert "one" in done[-1]


@pytest.fixture
def engine():
    """A process that looks like an engine."""
    process = subprocess.Popen(["bash", "-c", "exec -a /usr/sbin/dockerd sleep 60"])
    machine.wait.until(
        lambda: machine.Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"/usr/sbin"), 10, 0.05
    )
    yield process
    process.kill()
    process.wait()


def test_the_engine_that_the_lab_started_is_stopped(monkeypatch, engine):
    monkeypatch.setattr(machine, "docker", lambda *_argv: "")
    machine.pid_file().write_text(str(engine.pid))
    assert "stopped" in machine.stop_engine()
    engine.wait(10)  # it has ended, or this raises
    assert not machine.pid_file().exists()


def test_an_engine_that_does_not_stop_is_said_and_stays_the_labs(monkeypatch, engine):
    monkeypatch.setattr(machine, "docker", lambda *_argv: "")
    monkeypatch.setattr(machine, "ENGINE_WAIT", 0)
    machine.pid_file().write_text(str(engine.pid))
    with monkeypatch.context() as patch:
        patch.setattr(machine.os, "kill", lambda *_args: None)
        with pytest.raises(LabError, match=f"process {engine.pid}.*still runs"):
            machine.stop_engine()
    assert machine.own_engine() == engine.pid


def test_an_engine_of_somebody_else_is_left_running(engine):
    assert "left running" in machine.stop_engine()
    assert engine.poll() is None


def test_an_engine_with_other_containers_is_left_running(monkeypatch, engine):
    monkeypatch.setattr(machine, "docker", lambda *_argv: "abc\n")
    machine.pid_file().write_text(str(engine.pid))
    assert "1 containers that are not the lab's" in machine.stop_engine()
    assert engine.poll() is None


def test_a_process_that_is_no_engine_is_never_taken_for_one(monkeypatch):
    sent: list[int] = []
    monkeypatch.setattr(machine.os, "kill", lambda _pid, number: sent.append(number))
    machine.pid_file().write_text(str(os.getpid()))
    assert machine.own_engine() is None
    machine.stop_engine()
    assert signal.SIGTERM not in sent


@pytest.mark.parametrize(
    ("own", "behind", "expected"),
    [
        ("nameserver 192.0.2.53\nsearch a.test\n", "", ["192.0.2.53"]),
        ("nameserver 127.0.0.53\n", "nameserver 192.0.2.1\nnameserver 192.0.2.2\n", ["192.0.2.1", "192.0.2.2"]),
        ("nameserver ::1\n", "", []),
    ],
)
def test_the_machines_resolvers_are_those_that_others_reach(monkeypatch, own, behind, expected):
    texts = {"/etc/resolv.conf": own, "/run/systemd/resolve/resolv.conf": behind}
    monkeypatch.setattr(Path, "exists", lambda path: bool(texts[str(path)]))
    monkeypatch.setattr(Path, "read_text", lambda path: texts[str(path)])
    assert machine.resolvers() == expected

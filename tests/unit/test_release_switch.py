"""A version edit: one step, a gate, and the way back."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from _modules import ollama_release as module
from _states import ollama as state
from aiplatform import gate, instances, release
from aiplatform.errors import PlatformError
from aiplatform.release_switch import Switch

HASH = hashlib.sha256(b"").hexdigest()
DOORS = {
    "node1": {"unit": "ollama.service", "url": "http://127.0.0.1:1"},
    "node0": {"unit": "ollama-node0.service", "url": "http://127.0.0.1:2"},
}


class Host:
    """A host with two releases and two services; ``broken`` are the versions that do not answer."""

    def __init__(self, folder, monkeypatch):
        self.root, self.units, self.proc = folder / "opt", folder / "units", folder / "proc"
        self.broken: set[str] = set()
        self.restarted: list[tuple[str, str]] = []
        self.running: dict[str, str] = {}
        self.ends = 0
        for version in ("1.0.0", "1.1.0"):
            program = self.root / version / release.PROGRAM
            program.parent.mkdir(parents=True)
            program.touch()
            (self.root / version / release.STAMP).write_text(HASH)
        self.units.mkdir()
        for number, row in enumerate(DOORS.values(), 1):
            (self.units / row["unit"]).touch()
            (self.proc / str(number)).mkdir(parents=True)
        self.pids = {row["unit"]: str(number) for number, row in enumerate(DOORS.values(), 1)}
        self.pillar = {"version": "1.0.0", "root": str(self.root), "source": "x", "checksums": None}
        self.pillar |= {"hashes": {version: {"amd64": HASH} for version in ("1.0.0", "1.1.0", "1.2.0")}}
        functions = {
            "service.show": lambda unit: {"MainPID": self.pids[unit], "NRestarts": str(self.ends)},
            "service.restart": self.restart,
            "ollama_release.differences": module.differences,
            "ollama_release.use": module.use,
        }
        for loaded in (module, state):
            monkeypatch.setattr(loaded, "__salt__", functions, raising=False)
            monkeypatch.setattr(loaded, "__opts__", {"test": False}, raising=False)
        monkeypatch.setattr(module, "__pillar__", {"ollama": self.pillar}, raising=False)
        monkeypatch.setattr(module, "__grains__", {"cpuarch": "x86_64"}, raising=False)
        monkeypatch.setattr(instances, "UNITS", self.units)
        monkeypatch.setattr("aiplatform.release_switch.PROC", self.proc)
        monkeypatch.setattr(gate, "passed", self.passed)
        self.begin("1.0.0")

    def begin(self, version):
        Switch(self.root).to(version)
        for unit in self.pids:
            self.restart(unit)
        self.restarted.clear()

    def restart(self, unit):
        version = Switch(self.root).current()
        exe = self.proc / self.pids[unit] / "exe"
        exe.unlink(missing_ok=True)
        exe.symlink_to(self.root / version / release.PROGRAM)
        self.restarted.append((unit, version))
        return True

    def passed(self, name, url, version, timeout, restarts, unit):
        assert unit == DOORS[name]["unit"]
        if module.running(unit) != version or version in self.broken or (version, name) in self.broken:
            raise PlatformError("The instance does not answer", where=url)
        assert restarts() == 0


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def use(version):
    return state.in_use(version, DOORS, timeout=1)


def test_a_version_edit_switches_and_restarts_one_after_the_other(host):
    ret = use("1.1.0")
    assert ret["result"] is True
    assert ret["changes"] == {
        "current": {"old": "1.0.0", "new": "1.1.0"},
        "ollama.service": {"old": "1.0.0", "new": "1.1.0"},
        "ollama-node0.service": {"old": "1.0.0", "new": "1.1.0"},
    }
    assert host.restarted == [("ollama.service", "1.1.0"), ("ollama-node0.service", "1.1.0")]
    assert module.in_use() == {"current": "1.1.0", "previous": None}
    assert use("1.1.0")["changes"] == {}


def test_a_downgrade_is_the_same_edit(host):
    use("1.1.0")
    assert use("1.0.0")["result"] is True
    assert module.in_use() == {"current": "1.0.0", "previous": None}


@pytest.mark.parametrize("broken", ["1.1.0", ("1.1.0", "node0")])
def test_a_version_that_does_not_answer_is_taken_back_and_the_old_one_serves(host, broken):
    host.broken = {broken}
    ret = use("1.1.0")
    assert ret["result"] is False
    assert "1.1.0 does not serve; the host is back on 1.0.0, which answers" in ret["comment"]
    assert "does not answer" in ret["comment"]
    assert module.in_use() == {"current": "1.0.0", "previous": None}
    assert {module.running(row["unit"]) for row in DOORS.values()} == {"1.0.0"}
    # An instance that the new version never reached is not disturbed.
    assert (("ollama-node0.service", "1.1.0") in host.restarted) is (broken != "1.1.0")


def test_the_ends_of_a_broken_version_are_not_counted_against_the_old_one(host, monkeypatch):
    host.broken, host.ends = {"1.1.0"}, 3
    back = Switch.back

    def started_by_systemd_meanwhile(switch):
        before = back(switch)
        for unit in host.pids:
            host.restart(unit)
        return before

    monkeypatch.setattr(Switch, "back", started_by_systemd_meanwhile)
    assert "1.1.0 does not serve; the host is back on 1.0.0, which answers" in use("1.1.0")["comment"]


def test_where_the_old_one_does_not_come_back_either_both_are_named(host):
    host.broken = {"1.0.0", "1.1.0"}
    ret = use("1.1.0")
    assert ret["result"] is False
    assert "after the return 1.0.0 does not either" in ret["comment"]
    assert module.in_use()["current"] == "1.0.0"


def test_a_run_that_ended_in_the_middle_is_gone_on_with_and_the_way_back_is_known(host):
    Switch(host.root).to("1.1.0")
    assert use("1.1.0")["changes"]["current"] == {"old": "1.0.0", "new": "1.1.0"}
    assert module.in_use() == {"current": "1.1.0", "previous": None}
    host.begin("1.0.0")
    Switch(host.root).keep()
    Switch(host.root).to("1.1.0")
    host.broken = {"1.1.0"}
    assert "back on 1.0.0" in use("1.1.0")["comment"]


def test_an_edit_back_after_an_interruption_is_no_return(host):
    Switch(host.root).to("1.1.0")
    assert use("1.0.0")["result"] is True
    assert module.in_use() == {"current": "1.0.0", "previous": None}


def test_a_dry_run_predicts_and_touches_nothing(host, monkeypatch):
    monkeypatch.setattr(state, "__opts__", {"test": True}, raising=False)
    predicted = use("1.1.0")
    assert (predicted["result"], host.restarted, module.in_use()["current"]) == (None, [], "1.0.0")
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    assert use("1.1.0")["changes"] == predicted["changes"]


def test_files_of_the_version_in_use_that_were_exchanged_restart_it(host):
    exe = host.proc / "1" / "exe"
    exe.unlink()
    exe.symlink_to(f"{host.root}/1.0.0/bin/ollama (deleted)")
    assert use("1.0.0")["changes"] == {"ollama.service": {"old": "1.0.0, replaced", "new": "1.0.0"}}
    assert host.restarted == [("ollama.service", "1.0.0")]


def test_another_program_in_a_unit_is_restarted(host):
    exe = host.proc / "1" / "exe"
    exe.unlink()
    exe.symlink_to("/usr/bin/sleep")
    assert use("1.0.0")["changes"] == {"ollama.service": {"old": "/usr/bin/sleep", "new": "1.0.0"}}


def test_an_instance_that_is_not_installed_is_left_to_its_states(host):
    (host.units / "ollama-node0.service").unlink()
    (host.proc / "2" / "exe").unlink()
    assert use("1.1.0")["result"] is True
    assert host.restarted == [("ollama.service", "1.1.0")]


def test_a_version_that_is_not_there_is_not_switched_to(host):
    ret = use("1.2.0")
    assert ret["result"] is False
    assert "not unpacked" in ret["comment"]
    assert module.in_use() == {"current": "1.0.0", "previous": None}
    assert host.restarted == []


def test_the_first_version_has_no_way_back(host):
    (host.root / "current").unlink()
    host.broken = {"1.0.0"}
    host.pillar["version"] = "1.0.0"
    Switch(host.root).to("1.0.0")
    (host.proc / "1" / "exe").unlink()
    (host.proc / "1" / "exe").symlink_to("/usr/bin/sleep")
    assert "none to go back to" in use("1.0.0")["comment"]


@pytest.mark.parametrize("machine", ["riscv64", "ppc64le", "i686"])
def test_another_processor_is_refused_by_its_name(host, monkeypatch, machine):
    monkeypatch.setattr(module, "__grains__", {"cpuarch": machine})
    with pytest.raises(release.ReleaseError, match=f"x86_64 or aarch64; actual: {machine}"):
        module.is_installed()


def test_a_unit_that_becomes_ollama_is_awaited(monkeypatch):
    """Its process is systemd and then numactl for a moment after each start."""
    seen = iter(["/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd-executor", "/usr/bin/numactl", "0.17.4"])
    monkeypatch.setattr(module, "__salt__", {"service.show": lambda _: {"MainPID": "7"}}, raising=False)
    monkeypatch.setattr(module, "_switch", lambda: SimpleNamespace(running=lambda _: next(seen)))
    assert module.running("ollama.service") == "0.17.4"


@pytest.mark.parametrize("runs", [None, "/usr/local/bin/ollama", "0.17.4", "0.17.4, replaced"])
def test_whatever_else_a_unit_runs_is_told_at_once(monkeypatch, runs):
    monkeypatch.setattr(module, "__salt__", {"service.show": lambda _: {"MainPID": "7"}}, raising=False)
    monkeypatch.setattr(module, "_switch", lambda: SimpleNamespace(running=lambda _: runs))
    monkeypatch.setattr(module, "START_SECONDS", 0)
    assert module.running("ollama.service") == runs

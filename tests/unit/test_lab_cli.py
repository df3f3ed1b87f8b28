"""The lab's commands: what each of them does, with the parts below them replaced."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lab import cli, images, machine, topology
from lab.settings import LabError, standing


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_what_a_killed_lab_was_building_goes_before_the_engine_is_stopped(monkeypatch):
    """A builder has no label; left there, it would count as somebody else's, and the engine would stay."""
    calls: list[str] = []

    def docker(*argv, **_kwargs):
        calls.append(" ".join(argv))
        return "builder\n" if argv[0] == "ps" else ""

    monkeypatch.setattr(images, "docker", docker)
    monkeypatch.setattr(machine, "engine_answers", lambda: True)
    monkeypatch.setattr(topology, "down", lambda: "hosts removed")
    monkeypatch.setattr(machine, "stop_engine", lambda: calls.append("engine stopped"))
    assert cli.down() == 0
    assert calls == ["ps -aq --filter name=^ai-lab-build-", "rm -fv builder", "engine stopped"]


def test_what_only_tests_use_is_an_artifact_and_no_part_of_the_lab(monkeypatch):
    taken: list[str] = []
    monkeypatch.setattr(cli, "run_steps", lambda steps: taken.extend(step.title for step in steps) or 0.0)
    cli.get_artifacts()
    raised = [step.title for step in cli.steps(no_deploy=False)]
    for_tests = {"nginx for tests", "keycloak for tests"}
    assert for_tests <= set(taken)
    assert set(taken) - for_tests <= set(raised)
    assert not for_tests & set(raised)


@pytest.mark.parametrize("typed", [["--", "grep", "-r", "--", "-x", "/srv"], ["grep", "-r", "--", "-x", "/srv"]])
def test_a_command_keeps_its_own_two_dashes(monkeypatch, typed):
    ran: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda argv, **_: ran.append(argv) or subprocess.CompletedProcess(argv, 0))
    monkeypatch.setattr(topology, "demand", lambda _host: None)
    monkeypatch.setattr(cli.signal, "signal", lambda *_args: None)
    monkeypatch.setattr(sys, "argv", ["lab", "exec", "salt_master", *typed])
    assert cli.main() == 0
    assert ran[0][-6:] == ["ai-lab-salt_master", "grep", "-r", "--", "-x", "/srv"]


@pytest.mark.parametrize("stands", [True, False])
def test_a_lab_that_was_raised_is_removed_after_a_start_of_the_machine_too(monkeypatch, capsys, stands):
    told = []
    monkeypatch.setattr(machine, "engine_answers", lambda: False)
    for place, name in ((machine, "start_engine"), (topology, "down"), (machine, "stop_engine")):
        monkeypatch.setattr(place, name, lambda name=name: told.append(name) or name)
    monkeypatch.setattr(images, "remove_builders", lambda: None)
    if stands:
        standing().write_text("10.89.77.0/24")
    assert cli.down() == 0
    assert told == (["start_engine", "down", "stop_engine"] if stands else [])
    assert ("nothing to remove" in capsys.readouterr().out) is not stands


def test_without_engine_and_root_nothing_is_begun(monkeypatch):
    monkeypatch.setattr(machine, "is_root", lambda: False)
    monkeypatch.setattr(machine, "engine_answers", lambda: False)
    monkeypatch.setattr(cli, "run_steps", lambda _steps: pytest.fail("a step was begun"))
    with pytest.raises(LabError, match="only root can install and start one"):
        cli.up(no_deploy=False)

"""What the lab copies to its master, and how it compares keys."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import requests
import yaml

from aiplatform import wait
from lab import artifacts, deploy
from lab.settings import LAB, LabError
from lab.topology import MINIONS

KEY = "-----BEGIN PUBLIC KEY-----\nQUJD\nREVG\n-----END PUBLIC KEY-----\n"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LAB_SUBNET", raising=False)


def test_a_deploy_waits_for_those_whose_terminals_are_gone(tmp_path):
    (tmp_path / "salt-run").write_text(
        # Two at once are refused, as by the platform's own lock.
        f"#!/bin/sh\ncd {tmp_path}; mkdir busy || exit 1; echo begin >> log\n"
        "until [ -e go ]; do sleep 0.02; done; sleep 0.1; rmdir busy; echo end >> log\n"
    )
    (tmp_path / "salt-run").chmod(0o755)
    script = deploy.DEPLOY.replace("/run/", f"{tmp_path}/")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    log, runs = tmp_path / "log", []
    for _ in range(3):
        runs.append(subprocess.Popen(["sh", "-c", script], env=env, stdout=subprocess.PIPE, text=True))
        wait.until(log.exists, 10, 0.02)
    # The two that wait have said so.
    for run in runs[1:]:
        assert "interrupted run is still at work" in run.stdout.readline()
    assert log.read_text() == "begin\n"
    (tmp_path / "go").touch()
    assert [run.wait(10) for run in runs] == [0, 0, 0]
    assert log.read_text() == "begin\nend\n" * 3
    for run in runs:
        run.stdout.close()


def test_the_fingerprint_is_the_one_that_salt_shows(tmp_path):
    salt_crypt = pytest.importorskip("salt.utils.crypt")
    path = tmp_path / "key.pub"
    path.write_text(KEY)
    assert deploy.fingerprint(KEY) == salt_crypt.pem_finger(str(path), sum_type="sha256")


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_has_no_fingerprint(text):
    assert deploy.fingerprint(text) == ""


@pytest.fixture
def master(monkeypatch):
    """A master that has received what the dict says; the commands it ran."""
    received: dict[str, str] = {}
    commands: list[tuple[str, ...]] = []

    def execute(_host, *argv, **_kwargs):
        commands.append(argv)
        return received.get(argv[1], "") if argv[0] == "cat" else ""

    monkeypatch.setattr(deploy, "execute", execute)
    return received, commands


def test_the_sites_servers_are_started_when_they_answer_and_fresh_only_while_they_do(master, monkeypatch):
    """systemd calls both started before they listen; who pushed an image then was refused."""
    asked = []

    def get(url, **_):
        asked.append(url)
        if len(asked) < 3:
            raise requests.ConnectionError("refused")
        return SimpleNamespace(ok=True)

    monkeypatch.setattr(deploy, "put", lambda *_: None)
    monkeypatch.setattr(deploy, "stamped", lambda *_: deploy.digest(deploy.site_files()))
    monkeypatch.setattr(deploy.requests, "get", get)
    assert deploy.site_fresh() is None
    assert deploy.start_site() == deploy.urls()
    assert asked[-2:] == ["http://10.89.77.10:8000/", "http://10.89.77.10:5000/v2/"]
    assert len(asked) == 4
    assert deploy.site_fresh() == deploy.urls()


def accepted(commands) -> bool:
    return any(word.startswith("--accept") for argv in commands for word in argv)


def test_exactly_the_minions_own_key_is_accepted(master):
    received, commands = master
    host = MINIONS[0]
    received[f"{deploy.PKI}/minions_pre/{host.name}"] = KEY
    deploy.accept(host, deploy.fingerprint(KEY))
    assert ("salt-key", "--yes", f"--accept={host.name}") in commands


def test_another_key_is_not_accepted(master):
    received, commands = master
    host = MINIONS[0]
    received[f"{deploy.PKI}/minions_pre/{host.name}"] = KEY
    with pytest.raises(LabError, match=f"{host.name}: the master received a key with fingerprint"):
        deploy.accept(host, "00:11")
    assert not accepted(commands)


def test_an_accepted_key_stays(master):
    received, commands = master
    host = MINIONS[0]
    received[f"{deploy.PKI}/minions/{host.name}"] = KEY
    deploy.accept(host, deploy.fingerprint(KEY))
    assert not accepted(commands)


def test_a_host_that_takes_no_files_is_named(monkeypatch, tmp_path):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexec sleep 60\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(deploy, "PIPE_SECONDS", 0.05)
    with pytest.raises(LabError, match=f"{MINIONS[0].name}: files were not written to / in"):
        deploy.pipe(MINIONS[0], b"", "/")


def sums_of(files: dict[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in files.items())


@pytest.mark.parametrize(
    ("here", "last", "copied"),
    [
        ({}, {}, True),  # a fresh master
        ({"platform.sls": b"old"}, {"platform.sls": b"old"}, True),  # as the lab copied it: follows the lab
        ({"platform.sls": b"edited"}, {"platform.sls": b"old"}, False),  # edited by a person: stays
        ({"platform.sls": b"made"}, {}, False),  # made by a person: stays
    ],
)
def test_pillar_edits_on_the_master_survive(monkeypatch, here, last, copied):
    monkeypatch.setattr(deploy, "execute", lambda *_a, **_k: f"{sums_of(here)}\n{sums_of(last)}")
    assert ("platform.sls" in deploy.pillar_changes()) is copied


def test_what_is_there_already_is_not_copied_again(monkeypatch):
    wanted = deploy.lab_pillar()
    monkeypatch.setattr(deploy, "execute", lambda *_a, **_k: f"{sums_of(wanted)}\n{sums_of(wanted)}")
    assert deploy.pillar_changes() == {}


def test_the_pillar_follows_the_network(monkeypatch):
    monkeypatch.setenv("LAB_SUBNET", "10.1.2.0/24")
    text = b"".join(deploy.lab_pillar().values()).decode()
    assert "10.1.2.100" in text
    assert "10.89.77." not in text


def test_every_file_that_the_top_file_names_is_there():
    names = yaml.safe_load((LAB / "pillar/top.sls").read_text())["base"]["*"]
    assert {f"{name}.sls" for name in names} <= set(deploy.lab_pillar())


def test_the_artifacts_pillar_names_what_is_published():
    data = yaml.safe_load(deploy.artifacts_pillar())
    source = data["ollama"]["source"].format(version=data["ollama"]["version"], arch="amd64")
    assert source == artifacts.OLLAMA.url
    assert data["vault"]["source"].format(version=data["vault"]["version"]) == artifacts.VAULT.url
    assert json.dumps(data)


def test_the_copied_checkout_has_no_generated_files():
    names = deploy.tree()
    assert "Makefile" in names
    assert not [name for name in names if name.startswith((".venv/", ".run/")) or "__pycache__" in name]


def test_minions_are_asked_only_when_all_of_them_listen(monkeypatch):
    """The master waits long for the answer of one that is not there yet: up to 15 s of a ``make lab``."""
    there: list[str] = []
    seen = []

    def execute(_host, *argv, **_kwargs):
        if argv[:2] == ("ss", "-Htn"):
            there.append(MINIONS[len(there)].address)
            return "".join(f"0      0      10.89.77.10:4505  {address}:53240\n" for address in there)
        return ""

    def answering():
        seen.append(len(there))
        return {host.name for host in MINIONS}

    monkeypatch.setattr(deploy, "execute", execute)
    monkeypatch.setattr(deploy, "answering", answering)
    monkeypatch.setattr(deploy, "silent", lambda: list(MINIONS))
    monkeypatch.setattr(deploy, "master_listens", lambda: True)
    monkeypatch.setattr(deploy, "master_fingerprint", lambda: "aa:bb")
    monkeypatch.setattr(deploy, "start_minion", lambda *_: "cc:dd")
    monkeypatch.setattr(deploy, "accept", lambda *_: None)
    monkeypatch.setattr(deploy, "stamp", lambda *_: None)
    assert deploy.enrol() == f"{len(MINIONS)} keys compared and accepted"
    assert seen == [len(MINIONS)]


def test_a_minion_that_does_not_come_is_started_anew(monkeypatch):
    late, told = MINIONS[1], []

    def execute(host, *argv, **_kwargs):
        if argv[:2] == ("ss", "-Htn"):
            there = [one for one in MINIONS if one != late or told]
            return "".join(f"0      0      10.89.77.10:4505  {one.address}:53240\n" for one in there)
        told.append((host.name, *argv))
        return ""

    monkeypatch.setattr(deploy, "execute", execute)
    monkeypatch.setattr(deploy, "LISTEN_SECONDS", 0.1)
    deploy.await_listening(list(MINIONS))
    assert told == [(late.name, "systemctl", "restart", "salt-minion")]
    deploy.await_listening(list(MINIONS))
    assert len(told) == 1

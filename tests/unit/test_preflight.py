"""What a host must be before the platform is put on it."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from _modules import preflight
from _states import preflight as state
from aiplatform import checks, hostcheck
from aiplatform import preflight as checked

GRAINS = {"id": "ai_server", "os": "Debian", "os_family": "Debian", "osmajorrelease": "12", "cpuarch": "x86_64"}
HOSTS = {
    "ai_server": {"address": "192.0.2.100", "roles": ["ai_server", "coredns_host"]},
    "second": {"address": "192.0.2.101", "roles": ["ai_server"]},
}
LIMITS = {
    "data_root_free_gb": 0,
    "data_root_mounted": False,
    "root_free_gb": 0,
    "clock_skew": 30,
    "ollama_timeout": 0,
    "systems": {"Debian": [12], "RedHat": [9]},
    "architectures": ["x86_64", "aarch64"],
}


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def pillar(tmp_path):
    port = free_port()
    return {
        "preflight": dict(LIMITS),
        "platform": {"hosts": HOSTS, "data_root": str(tmp_path)},
        "compiled": time.time(),
        "roles": ["ai_server", "coredns_host"],
        "ollama": {
            "api_host": "0.0.0.0",
            "models_dir": None,
            "instances": {"node1": {"port": port, "unit": "ollama.service"}},
        },
        "services": {
            "ollama-node1": {"role": "ai_server", "port": port, "scheme": "http", "process": "ollama"},
            "dns": {"role": "coredns_host", "port": 53, "scheme": "udp", "process": "coredns"},
            "other": {"role": "nginx_proxy", "port": 443, "scheme": "https", "process": "nginx"},
        },
    }


@pytest.fixture
def host(monkeypatch, pillar):
    """The module on a host where nothing is installed; returns what its unit queries answer."""
    answers = {"service.available": False, "service.enabled": False, "saltutil.is_running": []}
    answers |= {"platform_container.answers": False, "platform_container.inspect": None}
    salt = {name: (lambda *_, name=name: answers[name]) for name in answers}
    for name, value in (
        ("__grains__", dict(GRAINS)),
        ("__pillar__", pillar),
        ("__salt__", salt),
        ("__context__", {}),
    ):
        monkeypatch.setattr(preflight, name, value, raising=False)
    return answers


def failed():
    return {found["check"]: found for found in preflight.run() if not found["ok"]}


def test_a_bare_host_passes(host, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert failed() == {}


def test_the_roles_decide_what_is_checked(host, pillar):
    assert {"data_root_free", "ollama_node1", "root_free"} < set(preflight.names())
    assert "port_443" not in preflight.names()
    pillar["roles"] = []
    pillar["platform"]["hosts"] = {}
    assert set(preflight.names()) == {"root", "system", "architecture", "clock", "other_states"}


def test_the_room_is_wanted_where_the_models_are(host, pillar, tmp_path):
    pillar["preflight"]["data_root_free_gb"] = 10**6
    pillar["ollama"]["models_dir"] = str(tmp_path / "inside")
    assert preflight.check("data_root_free")["check"] == f"free space on {tmp_path}"
    pillar["ollama"]["models_dir"] = "/srv/models"
    assert "data_root_free" not in preflight.names()
    finding = preflight.check("models_dir_free")
    assert (finding["check"], finding["ok"]) == ("free space on /srv/models", False)
    assert finding["expected"] == "at least 1e+06 GB"


def test_a_check_that_the_host_has_not_got_has_failed(host):
    assert not preflight.check("none")["ok"]


def test_all_failures_are_shown_with_their_four_fields(host, pillar, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    pillar["preflight"] |= {"data_root_free_gb": 10**6, "root_free_gb": 10**6}
    pillar["compiled"] -= 100
    found = failed()
    assert len(found) == 4
    for finding in found.values():
        assert finding["host"] == "ai_server"
        assert all(finding[field] for field in ("check", "expected", "actual"))
    free = found[f"free space on {pillar['platform']['data_root']}"]
    assert free["expected"] == "at least 1e+06 GB"
    assert re.fullmatch(r"\d+\.\d GB free.*", free["actual"])


@pytest.mark.parametrize(("only", "one"), [("vault.host", True), (None, False)])
def test_a_further_server_keeps_no_port_free_for_what_runs_once(host, pillar, monkeypatch, only, one):
    pillar |= {"vault": {"host": None}, "roles": ["ai_server"]}
    pillar["services"]["chat"] = {"role": "ai_server", "port": 8080, "scheme": "http", "process": "chat", "only": only}
    ports = checks.Suite(checked.ports)
    assert "port_8080" in ports.names(preflight._host())
    monkeypatch.setitem(preflight.__grains__, "id", "second")
    assert ("port_8080" in ports.names(preflight._host())) is not one


def test_ollama_not_installed_yet_passes(host):
    assert preflight.check("ollama_node1")["actual"] == "ollama.service is not installed"


def test_ollama_that_no_deploy_has_enabled_yet_passes_and_is_said(host):
    host["service.available"] = True
    finding = preflight.check("ollama_node1")
    assert (finding["ok"], finding["actual"].startswith("ollama.service is not enabled yet")) == (True, True)


def test_room_on_the_system_disk_is_wanted_until_the_container_is_there(host, pillar):
    pillar["preflight"]["root_free_gb"] = 1e6
    pillar["roles"] = ["coredns_host"]
    wanted = ["at least 1e+06 GB"]
    assert [row["expected"] for row in preflight.run() if not row["ok"]] == wanted
    host["platform_container.answers"] = True
    assert [row["expected"] for row in preflight.run() if not row["ok"]] == wanted
    host["platform_container.inspect"] = {"Id": "a"}
    assert failed() == {}


def test_ollama_installed_and_dead_fails(host):
    host |= {"service.available": True, "service.enabled": True}
    finding = preflight.check("ollama_node1")
    assert not finding["ok"]
    assert "installed and silent" in finding["actual"]
    assert "phases=ollama" in finding["hint"]


def test_ollama_that_answers_passes(host, pillar, httpserver):
    host |= {"service.available": True, "service.enabled": True}
    httpserver.expect_request("/api/version").respond_with_json({"version": "0.17.4"})
    pillar["ollama"]["instances"]["node1"]["port"] = httpserver.port
    assert preflight.check("ollama_node1")["actual"] == "HTTP 200"


def test_ollama_is_asked_where_it_listens(host, pillar):
    pillar["ollama"]["api_host"] = "192.0.2.7"
    assert preflight.check("ollama_node1")["check"].startswith("Ollama at http://192.0.2.7:")


def test_another_state_run_is_named(host):
    mine = {"fun": "state.sls", "pid": os.getpid(), "jid": "1"}
    host["saltutil.is_running"] = [mine]
    assert preflight.check("other_states")["ok"]
    host["saltutil.is_running"] = [mine, {"fun": "state.sls", "pid": 1, "jid": "2", "arg": ["vault"]}]
    assert "pid 1, job 2" in preflight.check("other_states")["actual"]


def test_a_check_that_cannot_be_made_has_failed(host, pillar):
    del pillar["compiled"]
    assert preflight.check("clock")["actual"] == "'compiled'"


@pytest.mark.parametrize(
    ("family", "major", "ok"), [("Debian", 12, True), ("Debian", 11, False), ("RedHat", 9, True), ("Suse", 15, False)]
)
def test_systems(family, major, ok):
    grains = GRAINS | {"os_family": family, "osmajorrelease": major}
    finding = hostcheck.system(grains, LIMITS["systems"])
    assert finding.ok is ok
    assert finding.expected == "Debian 12, RedHat 9"


@pytest.mark.parametrize(("now", "ok"), [(100, True), (130, True), (70, True), (131, False), (69, False)])
def test_clock(now, ok):
    assert hostcheck.clock(now, 100, 30).ok is ok


def test_a_folder_of_the_system_disk_is_no_mount():
    assert not hostcheck.mounted("/srv/nowhere", wanted=True).ok
    assert hostcheck.mounted("/srv/nowhere", wanted=False).ok
    assert hostcheck.mounted("/proc/sys", wanted=True).ok


def test_what_is_stored_already_counts_as_free(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 0, 0, 0, 0, 0, 0, 0, 0)))
    (tmp_path / "blob").write_bytes(b"x" * 3_000_000)
    assert not hostcheck.free_space(str(tmp_path), 0.003).ok
    finding = hostcheck.free_space(str(tmp_path), 0.003, counted=str(tmp_path))
    assert finding.ok, finding
    assert "stored already" in finding.actual


def test_a_file_that_goes_while_it_is_counted_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 0, 0, 0, 0, 0, 0, 0, 0)))
    (tmp_path / "blob").write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(os, "walk", lambda _: [(str(tmp_path), [], ["gone-partial", "blob"])])
    assert hostcheck.free_space(str(tmp_path), 0.003, counted=str(tmp_path)).ok


def test_space_is_measured_where_a_folder_will_be(tmp_path):
    assert hostcheck.free_space(str(tmp_path / "a/b"), 0).ok


def test_a_foreign_process_on_a_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        me = Path("/proc/self/comm").read_text().strip()
        assert hostcheck.port(number, me).ok
        finding = hostcheck.port(number, "vault")
        assert not finding.ok
        assert finding.actual == f"held by {me}"
    assert hostcheck.port(number, "vault").actual == "free"


def test_a_holder_that_is_not_visible_is_foreign(tmp_path):
    (tmp_path / "net").mkdir()
    row = "   0: 00000000:200A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1"
    (tmp_path / "net/tcp").write_text(f"header\n{row}\n")
    assert hostcheck.port(0x200A, "vault", tmp_path).actual == "held by an unknown process"
    assert hostcheck.port(0x200B, "vault", tmp_path).ok


@pytest.mark.parametrize(("address", "free"), [("3500007F", True), ("0100007F", False), ("00000000", False)])
def test_the_stub_of_the_systems_resolver_leaves_the_port_free(tmp_path, address, free):
    (tmp_path / "net").mkdir()
    row = f"   0: {address}:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1"
    (tmp_path / "net/tcp").write_text(f"header\n{row}\n")
    assert hostcheck.port(53, "docker-proxy", tmp_path).ok is free


@pytest.mark.parametrize("ok", [True, False])
def test_the_state_fails_with_the_four_fields(monkeypatch, ok):
    finding = checks.Finding("port 1", ok, "free", "held by nc", "stop it").on("ai_server")
    check = create_autospec(preflight.check, return_value=finding)
    monkeypatch.setattr(state, "__salt__", {"preflight.check": check}, raising=False)
    ret = state.passed("port_1")
    assert (ret["result"], ret["changes"]) == (ok, {})
    line = "host: ai_server; check: port 1; expected: free; actual: held by nc"
    assert ret["comment"] == (line if ok else f"{line}; next: stop it")

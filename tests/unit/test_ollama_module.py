"""The Ollama module and its states: fetching a release, and what a dry run says."""

from __future__ import annotations

import hashlib
import os
import subprocess
from unittest.mock import Mock, create_autospec

import pytest
from salt.exceptions import MinionError

from _modules import numa as numa_module
from _modules import ollama
from _modules import ollama_release as module
from _states import ollama as state
from aiplatform import cgroups, instances, numa, release
from aiplatform.errors import NotFoundError
from tests.unit.sysfs_trees import Server, write


@pytest.fixture
def archive(tmp_path):
    """A release as a file server has it."""
    write(tmp_path / "tree/bin/ollama", "#!/bin/sh")
    path = tmp_path / "site/ollama-linux-amd64.tar.zst"
    path.parent.mkdir()
    subprocess.run(["tar", "--zstd", "-cf", path, "-C", tmp_path / "tree", "bin"], check=True)
    return path


@pytest.fixture
def host(tmp_path, archive, monkeypatch):
    """The module on a host that fetches from that server into its cache."""
    cache = tmp_path / "cache"
    cache.mkdir()

    def cache_file(url, source_hash=None):
        name = url.rpartition("/")[2]
        copy = cache / name
        copy.write_bytes((archive.parent / name).read_bytes())
        return str(copy)

    ollama = {
        "version": "1.0.0",
        "source": "http://site/ollama-linux-{arch}.tar.zst",
        "hashes": {"1.0.0": {"amd64": hashlib.sha256(archive.read_bytes()).hexdigest()}},
        "checksums": "http://site/sha256sum.txt",
        "root": str(tmp_path / "opt"),
    }
    monkeypatch.setattr(module, "__pillar__", {"ollama": ollama}, raising=False)
    monkeypatch.setattr(module, "__grains__", {"cpuarch": "x86_64"}, raising=False)
    monkeypatch.setattr(module, "__opts__", {"cachedir": str(cache)}, raising=False)
    monkeypatch.setattr(module, "__salt__", {"cp.cache_file": Mock(side_effect=cache_file)}, raising=False)
    return ollama


def test_the_pinned_release_is_installed_and_its_copy_removed(host, tmp_path):
    assert not module.is_installed()
    assert module.install() == f"{tmp_path}/opt/1.0.0"
    assert module.is_installed()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_pin_the_releases_own_list_is_asked(host, archive):
    sums = f"{host['hashes']['1.0.0']['amd64']}  ./{archive.name}\n"
    host["hashes"] = {}
    (archive.parent / "sha256sum.txt").write_text(sums)
    module.install()
    assert module.is_installed()
    (archive.parent / "sha256sum.txt").write_text(f"{'0' * 64}  ./{archive.name}\n")
    with pytest.raises(release.ReleaseError, match="wrong hash"):
        module.install()


def test_a_file_that_was_read_where_it_lies_stays(host, archive, monkeypatch):
    monkeypatch.setitem(module.__salt__, "cp.cache_file", lambda url, source_hash=None: str(archive))
    module.install()
    assert archive.exists()


def test_a_wrong_hash_installs_nothing(host, tmp_path):
    host["hashes"]["1.0.0"]["amd64"] = "ab" * 32
    with pytest.raises(release.ReleaseError, match="nothing was installed"):
        module.install()
    assert not (tmp_path / "opt").exists()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("outcome", [False, "", "/nowhere/at/all", MinionError("404")])
def test_a_source_that_does_not_answer_is_named(host, monkeypatch, outcome):
    fetch = Mock(side_effect=[outcome]) if isinstance(outcome, Exception) else Mock(return_value=outcome)
    monkeypatch.setitem(module.__salt__, "cp.cache_file", fetch)
    with pytest.raises(
        release.ReleaseError, match=r"cannot be fetched; where: http://site/ollama-linux-amd64\.tar\.zst"
    ):
        module.install()


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_installed_predicts_what_it_does(monkeypatch, test, there):
    install = create_autospec(module.install)
    functions = {"ollama_release.is_installed": lambda: there, "ollama_release.install": install}
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    ret = state.installed("1.0.0")
    assert ret["changes"] == ({} if there else {"1.0.0": {"old": "absent", "new": "installed"}})
    assert install.called is (not there and not test)
    assert ret["result"] is (None if test and not there else True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_dry_run_waits_for_an_instance_that_it_would_not_change(monkeypatch, foreseen):
    """Else a deploy would take one that is silent for one that is as wanted."""
    monkeypatch.setattr(state, "__opts__", {"test": True}, raising=False)
    rows = {"service_|-x_|-ollama_|-running": {"result": None if foreseen else True}}
    monkeypatch.setattr(state, "__running__", rows, raising=False)
    ret = state.ready("node1", "http://127.0.0.1:9", "1.0.0", timeout=0.1)
    assert (ret["result"], ret["changes"]) == (foreseen, {})


@pytest.mark.parametrize("test", [True, False])
def test_a_service_that_missed_its_restart_is_told_to_what_watches(monkeypatch, test):
    monkeypatch.setattr(state, "__salt__", {"service.show": lambda _: {"MainPID": str(os.getpid())}}, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    ret = state.up_to_date("ollama.service", {"OLLAMA_HOST": "not this"})
    assert ret["result"] is (None if test else True)
    assert ret["changes"]["environment"]["old"] == "other values of OLLAMA_HOST"


@pytest.mark.parametrize("test", [True, False])
def test_an_instance_that_is_gone_is_stopped_and_removed(monkeypatch, tmp_path, test):
    gone, kept = tmp_path / "ollama-gone.service", tmp_path / "ollama.service"
    for path in (gone, kept):
        path.write_text(f"{instances.MARK} x\n")
    write(tmp_path / "ollama-gone.service.d/override.conf", "")
    write(tmp_path / "ollama-warmup-gone.service", "[Unit]")
    calls = Mock()
    functions = {f"service.{name}": getattr(calls, name) for name in ("stop", "disable", "systemctl_reload")}
    monkeypatch.setattr(ollama, "__salt__", functions, raising=False)
    monkeypatch.setattr(state, "__salt__", {"ollama.retire": ollama.retire}, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    monkeypatch.setattr(instances, "UNITS", tmp_path)
    ret = state.no_other_instances("instances", ["ollama.service"])
    assert ret["changes"] == {"ollama-gone.service": {"old": "present", "new": "absent"}}
    assert gone.exists() is test
    assert kept.exists()
    order = [(what, unit) for unit in ("ollama-warmup-gone.service", gone.name) for what in ("stop", "disable")]
    assert [(call[0], *call.args) for call in calls.mock_calls] == ([] if test else [*order, ("systemctl_reload",)])
    assert (tmp_path / "ollama-gone.service.d").exists() is test
    assert (tmp_path / "ollama-warmup-gone.service").exists() is test


# -- numa ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """The numa module on a server of two nodes with 64 GiB each."""
    root = Server(sockets=2).build(tmp_path / "sys")
    instances = {
        "node1": {"port": 11434, "numa_node": 1, "cpus": "physical", "unit": "ollama.service"},
        "node0": {"port": 11435, "numa_node": 0, "cpus": "physical", "unit": "ollama-node0.service"},
    }
    pillar = {"ollama": {"instances": instances, "memory_reserve_mib": 2048, "local_share": 0.9}}
    monkeypatch.setattr(numa_module, "__pillar__", pillar, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    real = numa.topology
    monkeypatch.setattr(numa, "topology", lambda allowed: real(root, allowed))
    monkeypatch.setattr(cgroups, "limits", lambda pid: cgroups.Limits())
    return pillar


def test_plan_reads_the_pillar(two_nodes):
    plans = numa_module.plan()
    assert plans["node1"]["cpus"] == (4, 5, 6, 7)
    assert plans["node1"]["numactl"] == ("--cpunodebind=1",)
    assert numa_module.topology()["nodes"][0]["memory_total"] == 64 * 2**30


def test_plan_refuses_slots_that_the_node_cannot_hold(two_nodes):
    assert numa_module.plan(sizes={"node1": 62 * 2**30})
    with pytest.raises(numa.NumaError, match="node 1 cannot hold its slots"):
        numa_module.plan(sizes={"node1": 63 * 2**30})


def test_a_control_group_limits_the_plan(two_nodes, monkeypatch):
    monkeypatch.setattr(cgroups, "limits", lambda pid: cgroups.Limits(cpus=7.5))
    assert numa_module.topology()["limits"] == {"cpus": 7.5, "memory": None}
    with pytest.raises(numa.NumaError, match=r"8 threads, and the control group lets 7\.5 CPUs run"):
        numa_module.plan()


def test_models_with_too_little_on_their_own_node_are_remote(two_nodes, monkeypatch):
    rows = [{"pid": 1, "local_share": 0.89}, {"pid": 2, "local_share": 0.9}, {"pid": 3, "local_share": None}]
    monkeypatch.setattr(numa_module, "residency", lambda instance: rows)
    assert [row["pid"] for row in numa_module.remote("node1")] == [1]


def test_residency_finds_the_runners_of_an_instance(two_nodes, tmp_path, monkeypatch):
    show = Mock(return_value={"MainPID": "10"})
    monkeypatch.setattr(numa_module, "__salt__", {"service.show": show}, raising=False)
    monkeypatch.setattr(numa, "runners", lambda pid: {12: "/b", 11: "/a"} if pid == 10 else {})
    monkeypatch.setattr(numa, "residency", lambda pid, node: {"pid": pid, "node": node})
    assert numa_module.residency("node1") == [
        {"pid": 11, "node": 1, "weights": "/a"},
        {"pid": 12, "node": 1, "weights": "/b"},
    ]
    show.assert_called_once_with("ollama.service")
    show.return_value = {"MainPID": "0"}
    assert numa_module.residency("node1") == []
    with pytest.raises(NotFoundError, match="node7"):
        numa_module.residency("node7")

"""The hosts' addresses and arguments, and the check of the address range."""

from __future__ import annotations

import json

import pytest

from lab import settings, topology
from lab.settings import LabError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LAB_SUBNET", raising=False)


def option(argv: list[str], name: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == name]


def test_the_five_hosts_have_the_addresses_that_the_pillar_names():
    wanted = {"salt_master": 10, "coredns_host": 29, "nginx_proxy": 30, "workstation": 50, "ai_server": 100}
    assert {host.name: host.address for host in topology.HOSTS} == {
        name: f"10.89.77.{number}" for name, number in wanted.items()
    }


def test_another_network_moves_all_hosts(monkeypatch):
    monkeypatch.setenv("LAB_SUBNET", "10.1.0.0/16")
    assert topology.MASTER.address == "10.1.0.10"


@pytest.mark.parametrize("text", ["nonsense", "10.89.77.1/24", "10.89.77.0/25"])
def test_a_bad_network_is_refused_with_the_setting(monkeypatch, text):
    monkeypatch.setenv("LAB_SUBNET", text)
    with pytest.raises(LabError, match=f"LAB_SUBNET={text}"):
        settings.subnet()


def test_the_hosts_stay_within_twelve_gib():
    assert sum(host.memory for host in topology.HOSTS) <= 12 * 1024


def test_everything_of_a_host_is_labelled_and_limited():
    for host in topology.HOSTS:
        argv = topology.run_arguments(host)
        assert option(argv, "--label") == [settings.LABEL]
        assert option(argv, "--memory") == [f"{host.memory}m"]
        assert "--privileged" not in argv
        assert option(argv, "--dns")[0] == topology.host("coredns_host").address


def test_the_cache_is_mounted_on_the_master_only_and_the_files_read_only():
    volumes = {host.name: option(topology.run_arguments(host), "-v") for host in topology.HOSTS}
    assert any(entry.endswith(":/srv/files:ro") for entry in volumes["salt_master"])
    assert not any("/srv/files" in entry for name, all_ in volumes.items() if name != "salt_master" for entry in all_)


def routes(*networks: str) -> str:
    return json.dumps([{"dst": network, "dev": "eth0"} for network in networks])


@pytest.mark.parametrize(
    ("listed", "taken"),
    [
        (routes("default", "192.168.1.0/24"), None),
        (routes("10.89.77.0/24"), "10.89.77.0/24 on eth0"),
        (routes("10.89.0.0/16"), "10.89.0.0/16 on eth0"),
        (routes("10.89.77.40"), "10.89.77.40/32 on eth0"),
        (routes("0.0.0.0/0"), None),
    ],
)
def test_a_taken_range_is_found(monkeypatch, listed, taken):
    monkeypatch.delenv("LAB_SUBNET", raising=False)
    assert topology.overlapping(listed) == taken


@pytest.mark.parametrize("name", ["ai_server", "ai-server", "ai-lab-ai_server"])
def test_a_host_is_known_by_each_of_its_names(name):
    assert topology.host(name).name == "ai_server"


def test_an_unknown_host_is_refused_with_the_known_ones():
    with pytest.raises(LabError, match=r"No host 'gpu'.*salt_master.*workstation"):
        topology.host("gpu")


@pytest.fixture
def engine(monkeypatch):
    """An engine with these containers; the commands that it got."""
    containers: list[dict] = []
    commands: list[tuple[str, ...]] = []

    def docker(*argv: str, **_kwargs) -> str:
        commands.append(argv)
        return ""

    monkeypatch.setattr(topology, "listed", lambda: containers)
    monkeypatch.setattr(topology, "docker", docker)
    monkeypatch.setattr(topology, "await_systemd", lambda _host: None)
    return containers, commands


def container(host, image: str | None = None, running: bool = True) -> dict:
    return {
        "Name": f"/{host.container}",
        "State": {"Running": running},
        "Config": {"Image": image or host.image.tag()},
    }


def made(commands) -> list[str]:
    return [option(list(argv), "--name")[0] for argv in commands if argv[0] == "run"]


def removed(commands) -> list[str]:
    return [argv[-1] for argv in commands if argv[:2] == ("rm", "-f")]


def test_only_the_missing_host_is_made(engine):
    containers, commands = engine
    containers += [container(host) for host in topology.HOSTS if host is not topology.NAMES]
    topology.make_hosts()
    assert made(commands) == [topology.NAMES.container]
    assert removed(commands) == []


@pytest.mark.parametrize("missing", [topology.MASTER, topology.VAULT])
def test_vault_and_its_keys_are_made_together(engine, missing):
    containers, commands = engine
    containers += [container(host) for host in topology.HOSTS if host is not missing]
    assert topology.make_hosts().endswith("all made anew: Vault and its keys belong together")
    assert made(commands) == removed(commands) == [host.container for host in topology.HOSTS]


def test_the_network_of_a_lab_that_stands_is_remembered_until_it_is_removed(engine, monkeypatch):
    _, commands = engine
    monkeypatch.setattr(topology, "run", lambda *_args: "[]")
    monkeypatch.setenv("LAB_SUBNET", "10.1.2.0/24")
    topology.make_network()
    monkeypatch.delenv("LAB_SUBNET")
    assert (topology.MASTER.address, commands[0][:2] == ("network", "create")) == ("10.1.2.10", True)
    topology.down()
    assert str(settings.subnet()) == settings.DEFAULT_SUBNET


def test_a_range_that_is_taken_is_refused_with_what_takes_it_and_nothing_is_made(engine, monkeypatch):
    monkeypatch.setattr(topology, "run", lambda *_args: routes("10.89.0.0/16"))
    with pytest.raises(LabError, match=r"10\.89\.77\.0/24 is taken.*10\.89\.0\.0/16 on eth0\.\n.*LAB_SUBNET="):
        topology.make_network()
    assert engine[1] == []
    assert not settings.standing().exists()


def test_a_lab_that_stands_in_another_range_is_said_and_left(monkeypatch):
    monkeypatch.setattr(topology, "docker", lambda *argv: "id" if argv[1] == "ls" else "10.1.2.0/24\n")
    with pytest.raises(LabError, match=r"stands in 10\.1\.2\.0/24, not in 10\.89\.77\.0/24.*make lab-down"):
        topology.network_fresh()


def test_hosts_that_run_are_awaited_too(engine, monkeypatch):
    containers, _ = engine
    awaited: list = []
    monkeypatch.setattr(topology, "await_systemd", awaited.append)
    containers += [container(host) for host in topology.HOSTS]
    assert topology.hosts_fresh() == "5 hosts run"
    assert awaited == list(topology.HOSTS)


def test_a_stopped_host_is_started_with_what_it_had(engine):
    containers, commands = engine
    containers += [container(host, running=host.name != "ai_server") for host in topology.HOSTS]
    topology.make_hosts()
    assert ("start", "ai-lab-ai_server") in commands
    assert made(commands) == removed(commands) == []


def test_hosts_of_another_image_are_all_made_anew(engine):
    containers, commands = engine
    containers += [container(host) for host in topology.HOSTS[1:]]
    containers.append(container(topology.HOSTS[0], image="ai-lab/site:old"))
    topology.make_hosts()
    assert made(commands) == removed(commands) == [host.container for host in topology.HOSTS]

"""The converged hosts of the lab, as a test sees them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from lab import topology

HOSTS = ("salt_master", "nginx_proxy", "ai_server", "coredns_host", "workstation")


# These make a host of their own and leave the lab's alone.
APART = {"test_ollama_container", "test_prediction", "test_single", "test_single_platform"}
SPARE = topology.Host("spare", 61, topology.BARE.image, topology.BARE.memory, minion=False)


class Lanes(LoadScopeScheduling):
    """Two lanes, for two workers: in each, one test after the other, in their order.

    One is the lab's own hosts'. What leaves those alone, here and in other folders, runs beside it.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = Path(nodeid.partition("::")[0])
        return "together" if path.parent.name == "lab" and path.stem not in APART else "apart"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Called by xdist; its own groups by a mark get lost in this version of pytest."""
    return Lanes(config, log)


@dataclass(frozen=True)
class Host:
    """One host of the lab; commands run on it as root."""

    name: str

    @property
    def container(self) -> str:
        return f"ai-lab-{self.name}"

    def run(self, command: str | list[str], timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess:
        """Run a command; a string is a shell's. With ``check``, a failure shows its output."""
        argv = ["bash", "-c", command] if isinstance(command, str) else command
        done = subprocess.run(
            ["docker", "exec", self.container, *argv], capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            text = shlex.join(argv)
            pytest.fail(f"{self.name}: {text}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    def json(self, command: str | list[str], timeout: float = 300, check: bool = True):
        """Run a command whose standard output is JSON."""
        return json.loads(self.run(command, timeout=timeout, check=check).stdout)


class Master(Host):
    """The Salt master, with the commands an operator types there."""

    def salt(self, target: str, function: str, *args: str, timeout: float = 300, check: bool = True):
        """``salt target function args``; returns ``{minion: data}``."""
        argv = ["salt", "--out=json", "--static", target, function, *args]
        return self.json(argv, timeout=timeout, check=check)

    def runner(self, function: str, *args: str, timeout: float = 600, check: bool = True):
        """``salt-run function args``; returns its data."""
        return self.json(["salt-run", "--out=json", function, *args], timeout=timeout, check=check)


def changed_or_failed(states: dict) -> dict:
    """The states of one minion's ``state.apply`` that changed something or failed, by id."""
    return {key: row for key, row in states.items() if row["changes"] or row["result"] is not True}


@pytest.fixture(scope="session", autouse=True)
def _lab_is_up() -> None:
    """These tests speak to running hosts and to nothing else."""
    listed = subprocess.run(["docker", "ps", "--format", "{{.Names}}"], capture_output=True, text=True, check=False)
    missing = [name for name in HOSTS if f"ai-lab-{name}" not in listed.stdout.split()]
    if missing:
        pytest.fail(f"the lab is not up (no {', '.join(missing)}): run make lab first")


@pytest.fixture(scope="session")
def master() -> Master:
    return Master("salt_master")


@pytest.fixture(scope="session")
def ai_server() -> Host:
    return Host("ai_server")


@pytest.fixture(scope="session")
def nginx_proxy() -> Host:
    return Host("nginx_proxy")


@pytest.fixture(scope="session")
def coredns_host() -> Host:
    return Host("coredns_host")


@pytest.fixture(scope="session")
def workstation() -> Host:
    return Host("workstation")


@contextmanager
def raised(spare: topology.Host) -> Iterator[Host]:
    """A host of a test's own, beside those of the lab: made anew, and removed at the end."""
    topology.remove(spare)
    topology.make(spare)
    try:
        topology.await_systemd(spare)
        yield Host(spare.name)
    finally:
        topology.remove(spare)


@pytest.fixture(scope="module")
def bare() -> Iterator[Host]:
    """A server as ``workstation`` is when the lab makes it: an unconfigured system."""
    with raised(SPARE) as host:
        yield host

"""``test=True`` predicts exactly the states that a real run then changes.

From an empty host, from half-built ones, from a converged one, and over random edits of the pillar. The host is a
sixth one, configured by ``salt-call --local``: its states are the platform's own, its files come from the lab's site.
"""

from __future__ import annotations

import json
import random

import pytest

from lab import deploy, topology
from lab.process import docker

FORMULAS = ("docker", "ollama", "vault")
SCRATCH = topology.Host("scratch", 60, topology.host("ai_server").image, 3072, minion=False)
SITE = {"platform": {"hosts": {"ai_server": {"address": SCRATCH.address}}}}
# What an edit, a mishap or an interruption leaves; each is undone or completed by the next run.
DAMAGES = {
    "a unit is gone": "rm /etc/systemd/system/ollama-node0.service",
    "a setting was edited by hand": "sed -i s/KEEP_ALIVE=-1/KEEP_ALIVE=5m/ /etc/systemd/system/ollama.service.d/*.conf",
    "a service was stopped": "systemctl stop ollama-node0",
    "the release is half unpacked": "rm -r /opt/ollama/0*/bin",
    "a folder has the wrong mode": "chmod 0777 /mnt/ai_data/ollama_models",
    "the firewall was taken away": "nft delete table inet ai_platform",
    "a link points elsewhere": "ln -sfn /nowhere /usr/local/bin/ollama",
}
EDITS = {
    "ollama.num_parallel": {"ollama": {"num_parallel": 2}},
    "ollama.keep_alive": {"ollama": {"keep_alive": 600}},
    "ollama.load_timeout": {"ollama": {"load_timeout": "9m"}},
    "ollama.instances.node0.port": {"ollama": {"instances": {"node0": {"port": 11999}}}},
    "ollama.environment": {"ollama": {"environment": {"OLLAMA_DEBUG": "1"}}},
    "docker.daemon": {"docker": {"daemon": {"debug": True}}},
    "services.vault.reach": {"services": {"vault": {"reach": ["master"]}}},
    "ollama.ready_timeout": {"ollama": {"ready_timeout": 90}},
}


class Scratch:
    """A host with this checkout and the lab's pillar, and no master."""

    def run(self, command: str) -> str:
        return docker("exec", SCRATCH.container, "bash", "-c", command, timeout=300)

    def apply(self, pillar: dict | None = None, test: bool = False) -> dict:
        """Apply the formulas; returns the states by id."""
        argv = ["salt-call", "--local", "--out=json", "--id=ai_server", "state.apply", ",".join(FORMULAS)]
        argv += [f"pillar={json.dumps(SITE | (pillar or {}))}"]
        argv += ["test=True"] if test else []
        command = ["exec", "-w", deploy.TARGET, SCRATCH.container, *argv]
        rows = json.loads(docker(*command, check=False, timeout=300))["local"]
        assert isinstance(rows, dict), rows
        return rows


def differing(rows: dict) -> set[str]:
    return {key for key, row in rows.items() if row["changes"] or row["result"] is None}


def assert_predicted(host: Scratch, pillar: dict | None = None) -> set[str]:
    """Run dry, then for real, then again: the same states each time, then none. Returns them."""
    predicted = host.apply(pillar, test=True)
    assert [key for key, row in predicted.items() if row["result"] is False] == []
    real = host.apply(pillar)
    assert {key: row["comment"] for key, row in real.items() if row["result"] is False} == {}
    assert differing(predicted) == {key for key, row in real.items() if row["changes"]}
    assert differing(host.apply(pillar)) == set()
    return differing(predicted)


@pytest.fixture(scope="module")
def scratch():
    topology.remove(SCRATCH)
    docker("volume", "create", "--label", topology.LABEL, SCRATCH.volume)
    docker(*topology.run_arguments(SCRATCH), SCRATCH.image.tag(), "/sbin/init")
    try:
        topology.await_systemd(SCRATCH)
        deploy.copy_tree(SCRATCH, deploy.tree())
        deploy.put(SCRATCH, {f"{deploy.PILLAR}/{name}": text for name, text in deploy.lab_pillar().items()})
        topology.execute(
            SCRATCH, "/opt/salt/bin/python", f"{deploy.TARGET}/etc/configure.py", "--pillar", deploy.PILLAR
        )
        yield Scratch()
    finally:
        topology.remove(SCRATCH)


@pytest.fixture(scope="module")
def built(scratch):
    """The host, built from nothing: the first proof."""
    everything = assert_predicted(scratch)
    assert len(everything) > 20
    return scratch


def test_a_dry_run_of_an_empty_host_writes_nothing(scratch):
    snapshot = "find /etc /opt /usr/local /mnt /var/lib -xdev -type f -newer /tmp/before ! -path '*/salt/*'"
    scratch.run("touch /tmp/before")
    scratch.apply(test=True)
    assert scratch.run(snapshot) == ""


def test_an_empty_host(built):
    assert differing(built.apply(test=True)) == set()


@pytest.mark.parametrize("seed", range(3))
def test_a_half_built_host(built, seed):
    """Two or three damages at once."""
    for name in random.Random(seed).sample(sorted(DAMAGES), k=2 + seed % 2):
        built.run(DAMAGES[name])
    assert assert_predicted(built) != set()


@pytest.mark.parametrize("seed", range(2))
def test_random_edits_of_the_pillar(built, seed):
    """Three edits at once; then back, which is an edit as well."""
    pillar: dict = {}
    for name in random.Random(seed).sample(sorted(EDITS), k=3):
        pillar |= {key: pillar.get(key, {}) | value for key, value in EDITS[name].items()}
    assert_predicted(built, pillar)
    assert_predicted(built)

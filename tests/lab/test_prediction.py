"""``test=True`` predicts exactly the states that a real run then changes.

From an empty host, from half-built ones, from a converged one, and over random edits of the pillar. The host is a
sixth one, configured by ``salt-call --local``: its states are the platform's own, its files come from the lab's site.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence

import pytest

from lab import deploy, topology
from lab.process import docker
from tests.lab.conftest import raised

SEED = int(os.environ.get("PREDICTION_SEED", "0"))
FORMULAS = ("docker", "ollama", "vault", "benchmark", "models")
SCRATCH = topology.Host("scratch", 60, topology.host("ai_server").image, 3072, minion=False)
REGISTRY = f"{topology.address(10)}:5000/library"
CODER = f"{REGISTRY}/gemma3-coder-270m:q5_0"
# Two small models and short answers: what is measured is no matter here, that it is measured is.
BENCHMARK = {
    "baseline_models": [f"{REGISTRY}/gemma3-270m:q4_k_m"],
    "candidate_models": [{"name": CODER}],
    "category_overrides": {},
    "num_predict": 4,
    "thresholds": {"min_tokens_per_sec": 0, "min_quality_score": 0},
}
SITE = {"platform": {"hosts": {"ai_server": {"address": SCRATCH.address}}}, "benchmark": BENCHMARK}
# What an edit, a mishap or an interruption leaves; each is undone or completed by the next run.
DAMAGES = {
    "a unit is gone": "rm /etc/systemd/system/ollama-node0.service",
    "a setting was edited by hand": "sed -i s/KEEP_ALIVE=-1/KEEP_ALIVE=5m/ /etc/systemd/system/ollama.service.d/*.conf",
    "a service was stopped": "systemctl stop ollama-node0",
    "the release is half unpacked": "rm -r /opt/ollama/0*/bin",
    "a folder has the wrong mode": "chmod 0777 /mnt/ai_data/ollama_models",
    "the firewall was taken away": "nft delete table inet ai_platform",
    "a link points elsewhere": "ln -sfn /nowhere /usr/local/bin/ollama",
    "an alias is gone": """curl -sf -X DELETE http://127.0.0.1:11434/api/delete -d '{"model": "llama-family"}'""",
    "a slot is cold": """curl -sf http://127.0.0.1:11435/api/generate -d '{"model": "slot-3", "keep_alive": 0}'""",
    "a warm-up loads something else": "echo '{}' > /etc/ai-platform/warmup-node1.json",
    "a warm-up was disabled": "systemctl disable --quiet ollama-warmup-node0",
    "the figures are gone, the selection is kept": "rm -f /var/lib/ai-platform/benchmark/results.json",
}
# As an interruption of the first benchmark leaves a host: one model pulled, nothing chosen, no slots.
INTERRUPTED = f"""
    systemctl disable --quiet --now ollama-warmup ollama-warmup-node0
    rm -r /etc/systemd/system/ollama-warmup*.service /etc/ai-platform/warmup-*.json /usr/local/bin/ollama-warmup
    systemctl daemon-reload
    rm -r {deploy.PILLAR}/model_selection.json /var/lib/ai-platform/benchmark/results.json
    ollama list | awk 'NR > 1 {{print $1}}' | grep -v ^{REGISTRY} | xargs ollama rm
    ollama rm {CODER}
"""
EDITS = {
    "ollama.num_parallel": {"ollama": {"num_parallel": 2}},
    "ollama.keep_alive": {"ollama": {"keep_alive": 600}},
    "ollama.load_timeout": {"ollama": {"load_timeout": "9m"}},
    "ollama.instances.node0.port": {"ollama": {"instances": {"node0": {"port": 11999}}}},
    "ollama.environment": {"ollama": {"environment": {"OLLAMA_DEBUG": "1"}}},
    "docker.daemon": {"docker": {"daemon": {"debug": True}}},
    "services.vault.reach": {"services": {"vault": {"reach": ["master"]}}},
    "ollama.ready_timeout": {"ollama": {"ready_timeout": 90}},
    "models.warmup_wait": {"models": {"warmup_wait": 170}},
    "aliases.llama-family.num_ctx": {"aliases": {"llama-family": {"num_ctx": 1024}}},
}


def dealt(names: Iterable[str], hands: int) -> list[list[str]]:
    """All names, in a random order that ``PREDICTION_SEED`` chooses, dealt out over so many hands."""
    order = sorted(names)
    random.Random(SEED).shuffle(order)
    return [order[number::hands] for number in range(hands)]


class Scratch:
    """A host with this checkout and the lab's pillar, and no master."""

    def run(self, command: str) -> str:
        return docker("exec", SCRATCH.container, "bash", "-c", command, timeout=300)

    def apply(self, pillar: dict | None = None, test: bool = False, formulas: Sequence[str] = FORMULAS) -> dict:
        """Apply formulas; returns the states by id."""
        argv = ["salt-call", "--local", "--out=json", "--id=ai_server", "state.apply", ",".join(formulas)]
        argv += [f"pillar={json.dumps(SITE | (pillar or {}))}"]
        argv += ["test=True"] if test else []
        command = ["exec", "-w", deploy.TARGET, SCRATCH.container, *argv]
        rows = json.loads(docker(*command, check=False, timeout=300))["local"]
        assert isinstance(rows, dict), rows
        return rows


def differing(rows: dict) -> set[str]:
    return {key for key, row in rows.items() if row["changes"] or row["result"] is None}


def assert_predicted(host: Scratch, pillar: dict | None = None, chosen: bool = True) -> set[str]:
    """Run dry, then for real, then again: the same states each time, then none. Returns them.

    Without ``chosen``, the models for the slots are chosen in this run: as in a deploy, the slots then come in a run of
    their own, which sees them.
    """
    predicted = host.apply(pillar, test=True)
    assert [key for key, row in predicted.items() if row["result"] is False] == []
    parts = [FORMULAS] if chosen else [FORMULAS[:-1], FORMULAS[-1:]]
    real = {key: row for part in parts for key, row in host.apply(pillar, formulas=part).items()}
    assert {key: row["comment"] for key, row in real.items() if row["result"] is False} == {}
    assert differing(predicted) == {key for key, row in real.items() if row["changes"]}
    again = host.apply(pillar)
    assert {key: again[key]["changes"] for key in differing(again)} == {}
    return differing(predicted)


@pytest.fixture(scope="module")
def scratch():
    with raised(SCRATCH):
        deploy.copy_tree(SCRATCH, deploy.tree())
        deploy.put(SCRATCH, {f"{deploy.PILLAR}/{name}": text for name, text in deploy.lab_pillar().items()})
        topology.execute(
            SCRATCH, "/opt/salt/bin/python", f"{deploy.TARGET}/etc/configure.py", "--pillar", deploy.PILLAR
        )
        yield Scratch()


@pytest.fixture(scope="module")
def built(scratch):
    """The host, built from nothing: the first proof."""
    everything = assert_predicted(scratch, chosen=False)
    assert len(everything) > 30
    return scratch


def test_a_dry_run_of_an_empty_host_writes_nothing(scratch):
    snapshot = "find /etc /opt /usr/local /mnt /var/lib -xdev -type f -newer /tmp/before ! -path '*/salt/*'"
    scratch.run("touch /tmp/before")
    scratch.apply(test=True)
    assert scratch.run(snapshot) == ""


def test_an_empty_host(built):
    assert differing(built.apply(test=True)) == set()


@pytest.mark.parametrize("names", dealt(DAMAGES, 4), ids=" + ".join)
def test_a_half_built_host(built, names):
    """Three damages at once."""
    for name in names:
        built.run(DAMAGES[name])
    assert assert_predicted(built) != set()


def test_an_interrupted_first_run(built):
    built.run(INTERRUPTED)
    found = {key.split("_|-")[1] for key in assert_predicted(built, chosen=False)}
    assert {"benchmark-models", "benchmark-measured", "benchmark-chosen", "models-node0", "models-node1"} <= found


@pytest.mark.parametrize("names", dealt(EDITS, 3), ids=" + ".join)
def test_random_edits_of_the_pillar(built, names):
    """Three or four edits at once; then back, which is an edit as well."""
    pillar: dict = {}
    for name in names:
        pillar |= {key: pillar.get(key, {}) | value for key, value in EDITS[name].items()}
    assert_predicted(built, pillar)
    assert_predicted(built)

"""One bare server with every role and the memory for it: the whole platform, deployed to the end by its own master."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from aiplatform.settings import merge
from lab import deploy, topology
from lab.status import PROBE
from tests.lab import test_single_platform as small
from tests.lab.conftest import SPARE, raised

# The first deploy alone takes some seven minutes.
pytestmark = pytest.mark.timeout(2400)
RESULTS = os.environ.get("SINGLE_RESULTS")
MEMORY = 6144  # MiB: Vault, one Ollama with two small models, and every application beside them
GENERAL, CODING = ("10.89.77.10:5000/library/gemma3-270m:q4_k_m", "10.89.77.10:5000/library/gemma3-coder-270m:q5_0")
# The lab's floors and answers, two models, and each of them asked once.
MODELS = {
    "benchmark": {
        "baseline_models": [GENERAL],
        "candidate_models": [{"name": CODING, "category": "coding"}],
        "category_overrides": {GENERAL: "general"},
        "repeats": 1,
    },
    "models": {"insecure_registries": ["10.89.77.10:5000"]},
    "aliases": {
        "embedding": {"model": "10.89.77.10:5000/library/all-minilm:l6-v2", "num_ctx": 512},
        **{name: {"num_ctx": 2048} for name in ("coder-128k", "llama-family")},
    },
}


@pytest.fixture(scope="module")
def server():
    """The server with this checkout, Salt, a pillar that gives it every role, and itself as its name server."""
    with raised(replace(SPARE, memory=MEMORY)) as host:
        pillar = small.pillar(["ai_server", "nginx_proxy", "coredns_host"])
        for name in ("benchmark", "preflight", "edge"):
            pillar = merge(pillar, yaml.safe_load(deploy.lab_pillar()[f"{name}.sls"]))
        host.run(f"printf 'nameserver {SPARE.address}\\n' | cat - /etc/resolv.conf > /tmp/names")
        host.run("cat /tmp/names > /etc/resolv.conf")
        small.install(host, merge(pillar, MODELS))
        rows = small.apply(host)
        assert not [row["comment"] for row in rows.values() if row["result"] is not True]
        yield host


def deployed(server):
    """Deploy; returns the answer and how many seconds it took."""
    begin = time.monotonic()
    done = server.run("salt-run --out=json ai_platform.deploy", timeout=1500, check=False)
    answer = json.loads(done.stdout)
    assert answer["retcode"] == 0, answer["failures"]
    return answer, round(time.monotonic() - begin, 1)


def test_one_command_deploys_all_of_it_and_a_second_changes_nothing(server):
    first, took = deployed(server)
    assert {"vault_oidc", "openwebui", "verify"} <= {row["phase"] for row in first["phases"]}
    again, second = deployed(server)
    changed = {row["phase"]: row["changed"] for row in again["phases"] if row["changed"]}
    memory = json.loads(topology.execute(SPARE, "python3", "-", stdin=PROBE.read_text()))["memory"] >> 20
    result = {"first_seconds": took, "second_seconds": second, "memory_limit_mib": MEMORY, "memory_mib": memory}
    if RESULTS:
        Path(RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    assert changed == {}


def test_every_check_of_the_verification_passes(server):
    answer = server.json("salt-run --out=json ai_platform.verify", check=False)
    assert [row for row in answer["checks"] if not row["ok"]] == []
    assert answer["retcode"] == 0
    checked = {row["check"] for row in answer["checks"]}
    assert any("in the chat" in each for each in checked), sorted(checked)

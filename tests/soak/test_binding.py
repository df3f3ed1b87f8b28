"""What binding is worth: measured in pairs within one run, so that what else the machine does meets both alike."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("decode_rates.py")
PORTS = {"node1": 21434, "node0": 21435}
# Pairs of windows and seconds of each: with the loads, less than a minute on a machine with nothing else to do.
PAIRS, SECONDS = 5, 2
FASTER, HOG_COST = 2.5, 0.10
PREDICT = {"num_predict": 400, "temperature": 0, "seed": 1}


@pytest.fixture(scope="module")
def plan(master):
    """The plan of each instance, as its host sees it."""
    return master.salt("ai_server", "numa.plan")["ai_server"]


@pytest.fixture(scope="module")
def slot(master):
    """Of each instance the smallest model in a slot; its row of `model_slots.status`."""
    rows = [row for row in master.salt("ai_server", "model_slots.status")["ai_server"] if row["slot"] and row["loaded"]]
    found = {name: [row for row in rows if row["instance"] == name] for name in PORTS}
    assert all(found.values()), f"loaded slots: {found}; expected one on each instance: run make lab first"
    return {name: min(here, key=lambda row: row["size"]) for name, here in found.items()}


def rates(ai_server, groups, windows, servers=None):
    """The tokens per second of each window; see the script."""
    program = "/opt/ollama/current/bin/ollama"
    wanted = {"groups": groups, "windows": windows, "seconds": SECONDS, "servers": servers or {}, "program": program}
    script = f"python3 - '{json.dumps(wanted)}' <<'SCRIPT'\n{SCRIPT.read_text()}\nSCRIPT"
    return ai_server.json(script, timeout=240)


def bound(slot, ports, name):
    """A client of a slot, which sends no option that would load it anew."""
    return [f"http://127.0.0.1:{ports[name]}", slot[name]["name"], PREDICT]


def unbound(slot, name):
    """A client of the same model where Ollama is as it comes: on all CPUs, with as many threads as there are cores."""
    # 0 is Ollama's own choice, in place of what the alias says.
    return [f"http://127.0.0.1:{PORTS[name]}", slot[name]["name"], PREDICT | {"num_thread": 0}]


@pytest.fixture(scope="module")
def ports(master):
    """Where the instances listen."""
    instances = master.salt("ai_server", "pillar.get", "ollama:instances", "unmask=True")["ai_server"]
    return {name: instances[name]["port"] for name in PORTS}


@pytest.fixture(scope="module")
def environment(master):
    """What instances that are bound to nothing are started with."""
    return {
        "OLLAMA_MODELS": master.salt("ai_server", "ollama.models_dir")["ai_server"],
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_NUM_PARALLEL": "1",
    }


def test_two_bound_instances_decode_faster_than_two_unbound(ai_server, slot, ports, environment):
    groups = {
        "bound": [bound(slot, ports, name) for name in PORTS],
        "unbound": [unbound(slot, name) for name in PORTS],
    }
    servers = {str(port): environment for port in PORTS.values()}
    found = rates(ai_server, groups, [["bound", 0], ["unbound", 0]] * PAIRS, servers)
    ratios = [fast / max(slow, 1 / SECONDS) for fast, slow in zip(found[::2], found[1::2], strict=True)]
    print(f"tokens per second, bound {found[::2]}, unbound {found[1::2]}, ratios {ratios}")
    assert statistics.median(ratios) >= FASTER, ratios


def test_a_hog_costs_a_bound_instance_next_to_nothing_and_an_unbound_one_more(
    ai_server, plan, slot, ports, environment
):
    """A hog takes one node's worth of CPUs and is bound to nothing, as another program of the host would be.

    A bound instance leaves it the other node: the scheduler, which may move the hog and not the instance, keeps them
    apart. One that uses all CPUs cannot get out of its way, and all its threads wait for the one that is held up.
    """
    hogs = len(plan["node0"]["cpus"])
    groups = {"bound": [bound(slot, ports, "node1")], "unbound": [unbound(slot, "node1")]}
    windows = [["bound", 0], ["bound", hogs], ["unbound", 0], ["unbound", hogs]]
    found = rates(ai_server, groups, windows * PAIRS, {str(PORTS["node1"]): environment})
    cost = {
        name: [
            1 - hogged / max(quiet, 1 / SECONDS) for quiet, hogged in zip(found[at::4], found[at + 1 :: 4], strict=True)
        ]
        for name, at in (("bound", 0), ("unbound", 2))
    }
    print(f"tokens per second of {windows}: {found}, cost {cost}")
    assert statistics.median(cost["bound"]) <= HOG_COST, cost
    assert statistics.median(cost["bound"]) < statistics.median(cost["unbound"]), cost

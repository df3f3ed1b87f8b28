"""Both instances on a real kernel with two NUMA nodes: bound as planned, and each model's memory where it belongs."""

from __future__ import annotations

import pytest

from tests.numa.conftest import MODEL

# The first of them may have to make the image: three minutes on a quiet machine.
pytestmark = pytest.mark.timeout(1500)
CPUS = {"node0": [0, 1], "node1": [2, 3]}
NODE = {"node0": 0, "node1": 1}
# Of the model's weights alone.
WEIGHTS = 32 << 20


def load(host, instance, **options):
    """Load the model on an instance, and return its runner's row of `numa.residency`."""
    answer = host.ask(instance, "/api/generate", model=MODEL, prompt="a", options=options, stream=False)
    assert answer["done"], answer
    (row,) = host.numa("residency", instance=instance)
    assert sum(row["bytes"].values()) > WEIGHTS
    return row


def unload(host):
    """Unload the model everywhere, and wait until no runner is left."""
    for instance in CPUS:
        host.ask(instance, "/api/generate", model=MODEL, keep_alive=0)
    gone = "! pgrep -f 'runner.*--model' >/dev/null"
    host.run(f"for i in $(seq 200); do {gone} && exit 0; sleep 0.1; done; exit 1")


def read_on(host, node, path):
    """Read a file into a node's page cache."""
    host.run(f"numactl --cpunodebind={node} cat {path} >/dev/null")


@pytest.fixture
def cold(host):
    """No model is loaded, and no file is in the page cache."""
    unload(host)
    host.run("sync; echo 3 > /proc/sys/vm/drop_caches")


def test_the_rendered_units_start_as_they_are(host):
    state = host.run("timeout 100 systemctl is-system-running --wait; systemctl --failed --no-legend --plain")
    assert state.split() == ["running"]
    assert set(host.run(f"systemctl is-active {' '.join(host.tree.units)}").split()) == {"active"}
    assert host.run("numactl --hardware").startswith("available: 2 nodes (0-1)")


def test_the_plan_for_this_kernel_is_the_one_that_was_rendered(host):
    for name, binding in host.numa("plan").items():
        unit = host.tree.pillar["ollama"]["instances"][name]["unit"]
        settings, _ = host.tree.files[f"/etc/systemd/system/{unit}.d/override.conf"]
        assert binding["cpus"] == CPUS[name]
        assert binding["num_thread"] == 2
        assert f"ExecStart=/usr/bin/numactl {' '.join(binding['numactl'])} /opt/ollama/current/" in settings


def test_kernel_settings_are_in_force(host):
    for key, value in host.tree.pillar["ollama"]["tuning"]["sysctl"].items():
        assert host.run(f"cat /proc/sys/{key.replace('.', '/')}").strip() == str(value), key


def test_each_model_runs_and_lies_on_its_own_node(host, cold):
    """Both at once, of one file of weights that one node has in its page cache: as clients' aliases load them, without
    `use_mmap`, Ollama copies them to memory of its own.
    """
    read_on(host, 0, host.blob)
    rows = {name: load(host, name) for name in CPUS}
    for name, row in rows.items():
        assert row["cpus"] == f"{CPUS[name][0]}-{CPUS[name][-1]}"
        assert row["local_share"] > 0.9, row
        assert host.numa("remote", instance=name) == []
        # The kernel's own tool counts the same: numastat is of the package numactl.
        total = host.run(f"numastat -p {row['pid']} | tail -1").split()
        assert float(total[1 + NODE[name]]) * 2**20 > WEIGHTS


def test_mapped_weights_stay_where_they_were_first_read_until_evicted(host, cold):
    """The trap: weights that the other node pulled or hashed are remote for whoever maps them."""
    read_on(host, 0, host.blob)
    trapped = load(host, "node1", use_mmap=True)
    assert trapped["bytes"]["0"] > WEIGHTS
    assert [row["pid"] for row in host.numa("remote", instance="node1")] == [trapped["pid"]]
    unload(host)
    assert host.numa("evict", path=trapped["weights"])["bytes"] > WEIGHTS
    assert load(host, "node1", use_mmap=True)["local_share"] > 0.9
    assert host.numa("remote", instance="node1") == []


@pytest.mark.parametrize(("reclaim", "local"), [(0, False), (1, True)])
def test_a_page_cache_that_fills_the_node_drives_no_model_away(host, cold, reclaim, local):
    """The other trap: without the platform's kernel setting, memory of a node full of read files is taken elsewhere."""
    host.run(f"echo {reclaim} > /proc/sys/vm/zone_reclaim_mode")
    host.run("truncate -s 1100M /var/tmp/large")
    read_on(host, 1, "/var/tmp/large")
    row = load(host, "node1")
    host.run("rm /var/tmp/large; echo 1 > /proc/sys/vm/zone_reclaim_mode")
    assert (row["local_share"] > 0.9) == local, row


@pytest.mark.parametrize(
    ("instances", "says"),
    [
        ({"a": {"numa_node": 0, "cpus": [1, 2]}}, "a:cpus: 2 not on node 0, which has 0-1"),
        ({"a": {"numa_node": 1, "cpus": [0, 1, 2, 3]}}, "a:cpus: 0-1 not on node 1, which has 2-3"),
        ({"a": {"numa_node": 2}}, "a:numa_node: 2 does not exist, this host has 0, 1"),
        ({"a": {"numa_node": 1}, "b": {"numa_node": 1, "cpus": [3]}}, "a and b overlap on CPUs 3"),
    ],
)
def test_lists_that_cross_nodes_or_instances_are_refused(host, instances, says):
    assert says in host.numa("plan", instances=instances)


def test_an_offline_cpu_is_not_planned(host):
    host.run("echo 0 > /sys/devices/system/cpu/cpu3/online")
    try:
        assert host.numa("plan", instances={"a": {"numa_node": 1}})["a"]["cpus"] == [2]
        refused = host.numa("plan", instances={"a": {"numa_node": 1, "cpus": [2, 3]}})
        assert "a:cpus: 3 offline; node 1 has 2" in refused
    finally:
        host.run("echo 1 > /sys/devices/system/cpu/cpu3/online")


def test_slots_that_the_node_cannot_hold_are_refused(host):
    """The machine's nodes have a GiB each, all of which the default reserve keeps."""
    assert "node 1 cannot hold its slots" in host.numa("plan", sizes={"node1": 1 << 20})

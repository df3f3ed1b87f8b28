"""NUMA planning over generated servers: each instance's CPUs, threads and memory, and every refusal."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from pathlib import Path

import pytest

from aiplatform import cgroups, numa
from tests.unit.sysfs_trees import GIB, MACHINES, Server, write

SHAPES = [
    Server(sockets=sockets, threads=threads, interleaved=interleaved, cores_per_node=cores)
    for sockets, threads, interleaved, cores in itertools.product((1, 2, 4, 8), (1, 2), (False, True), (2, 7))
]
# Some cores lose their first thread, some the second, some both.
HOLED = [
    Server(s.sockets, s.cores_per_node, s.threads, s.interleaved, offline=frozenset({1, s.sockets * s.cores_per_node}))
    for s in SHAPES
    if s.threads == 2
]
SERVERS = SHAPES + HOLED


def name_of(server: Server) -> str:
    order = "interleaved" if server.interleaved else "split"
    holes = "-holes" if server.offline else ""
    return f"{server.sockets}x{server.cores_per_node}x{server.threads}-{order}{holes}"


def one_each(server: Server) -> dict[str, dict]:
    return {f"i{node}": {"numa_node": node, "cpus": "physical"} for node in range(server.sockets)}


@pytest.fixture
def host(tmp_path):
    """Build a server and read it."""
    return lambda server, allowed=None: numa.topology(server.build(tmp_path / "sys"), allowed)


def test_there_are_enough_servers():
    assert len({name_of(server) for server in SERVERS}) + len(MACHINES) >= 40


@pytest.mark.parametrize("server", SERVERS, ids=name_of)
def test_every_instance_gets_its_node(host, server):
    plans = numa.plan(host(server), one_each(server))
    for node in range(server.sockets):
        binding = plans[f"i{node}"]
        assert set(binding.cpus) == server.cpus(node)
        assert list(binding.physical) == server.physical(node)
        assert binding.num_thread == len(server.physical(node))
        assert binding.numactl == (f"--cpunodebind={node}",)
        assert binding.memory == 64 * GIB
        assert binding.warnings == ()


@pytest.mark.parametrize("server", SERVERS, ids=name_of)
def test_no_cpu_is_in_two_instances_and_no_core_has_two_threads(host, server):
    topology = host(server)
    plans = numa.plan(topology, one_each(server))
    cpus = [cpu for binding in plans.values() for cpu in binding.cpus]
    threads = [topology.cores[cpu] for binding in plans.values() for cpu in binding.physical]
    assert len(cpus) == len(set(cpus))
    assert len(threads) == len(set(threads))
    assert not set(cpus) & server.offline


@pytest.mark.parametrize("server", [s for s in SERVERS if s.cores_per_node > 2], ids=name_of)
def test_only_allowed_cpus_are_planned(host, server):
    allowed = {cpu for node in range(server.sockets) for cpu in sorted(server.cpus(node))[:3]}
    plans = numa.plan(host(server, allowed), one_each(server))
    assert {cpu for binding in plans.values() for cpu in binding.cpus} == allowed
    assert list(plans["i0"].physical) == server.physical(0, allowed)


def some_instances(chance: random.Random, nodes: list[int], cpus: list[int]) -> dict[str, dict]:
    """Instances as somebody may write them: mostly sensible, some on a node that is not there or on strange CPUs."""
    return {
        f"i{number}": {
            "numa_node": chance.choice([*nodes, *nodes, *nodes, None, 99]),
            "cpus": chance.choice(["physical", "all", chance.sample(cpus, min(len(cpus), chance.randint(1, 3)))]),
            "membind": chance.random() < 0.2,
        }
        for number in range(chance.randint(1, 4))
    }


@pytest.mark.parametrize("name", MACHINES)
def test_whatever_is_asked_no_cpu_is_in_two_instances_or_off_its_node(tmp_path, name):
    """Of 200 requests a tree, each is refused or kept to the letter."""
    machine, chance = MACHINES[name], random.Random(name)
    topology = numa.topology(machine.build(tmp_path), set(numa.parse_list(machine.allowed)) or None)
    everywhere = set().union(*(machine.usable(node) for node in machine.nodes))
    outcomes = []
    for _ in range(200):
        wanted = some_instances(chance, list(machine.nodes), sorted(everywhere))
        try:
            plans = numa.plan(topology, wanted)
        except numa.NumaError:
            outcomes.append("refused")
            continue
        outcomes.append("planned")
        given = [cpu for binding in plans.values() for cpu in binding.cpus]
        assert len(given) == len(set(given)), wanted
        for key, binding in plans.items():
            node = wanted[key]["numa_node"]
            assert set(binding.cpus) <= (everywhere if node is None else machine.usable(node)), wanted
            assert 1 <= binding.num_thread <= len(binding.cpus)
            assert wanted[key]["cpus"] in ("physical", "all") or set(binding.cpus) == set(wanted[key]["cpus"])
    assert set(outcomes) == {"planned", "refused"}


@pytest.mark.parametrize("name", MACHINES)
def test_each_node_with_processors_can_have_an_instance(tmp_path, name):
    machine = MACHINES[name]
    topology = numa.topology(machine.build(tmp_path), set(numa.parse_list(machine.allowed)) or None)
    for node in machine.nodes:
        if machine.usable(node):
            plan = numa.plan(topology, {"a": {"numa_node": node}})["a"]
            assert set(plan.cpus) == machine.usable(node)
            assert bool(plan.warnings) == (machine.nodes[node][1] == 0)
        else:
            with pytest.raises(numa.NumaError, match=f"node {node} has no CPU that may be used"):
                numa.plan(topology, {"a": {"numa_node": node}})


def test_the_reference_server(host):
    """Two sockets of 14 cores, odd CPUs on node 1, siblings from 28 on."""
    plans = numa.plan(
        host(Server(sockets=2, cores_per_node=14, threads=2, interleaved=True)),
        {"node1": {"numa_node": 1, "cpus": "physical"}, "node0": {"numa_node": 0, "cpus": "physical"}},
    )
    assert plans["node1"].physical == tuple(range(1, 28, 2))
    assert plans["node0"].physical == tuple(range(0, 27, 2))
    assert set(plans["node1"].cpus) == set(range(1, 56, 2))
    assert plans["node1"].num_thread == plans["node0"].num_thread == 14


def test_all_gives_a_thread_to_each_hardware_thread(host):
    server = Server(sockets=1, threads=2)
    assert numa.plan(host(server), {"a": {"numa_node": 0, "cpus": "all"}})["a"].num_thread == 8


def test_a_list_binds_those_cpus_only(host):
    instances = {"a": {"numa_node": 0, "cpus": [0]}, "b": {"numa_node": 0, "cpus": [1, 3]}}
    plans = numa.plan(host(Server(sockets=1)), instances)
    assert plans["a"].numactl == ("--physcpubind=0",)
    assert plans["b"].numactl == ("--physcpubind=1,3",)
    assert [plans["a"].num_thread, plans["b"].num_thread] == [1, 2]


def test_siblings_in_a_list_are_one_thread(host):
    binding = numa.plan(host(Server(sockets=1, threads=2)), {"a": {"numa_node": 0, "cpus": [0, 4]}})["a"]
    assert (binding.num_thread, binding.physical) == (1, (0,))


def test_instances_on_one_core_are_warned_of(host):
    instances = {"a": {"numa_node": 0, "cpus": [0]}, "b": {"numa_node": 0, "cpus": [4]}}
    plans = numa.plan(host(Server(sockets=1, threads=2)), instances)
    assert plans["a"].warnings == ("a: shares physical cores with b",)
    assert plans["b"].warnings == ("b: shares physical cores with a",)


def test_an_instance_without_node_has_the_whole_host(host):
    binding = numa.plan(host(Server(sockets=2)), {"a": {"numa_node": None}})["a"]
    assert (binding.numactl, binding.num_thread, binding.memory) == ((), 8, 128 * GIB)


def test_membind_is_an_option_with_a_warning(host):
    binding = numa.plan(host(Server(sockets=2)), {"a": {"numa_node": 1, "membind": True}})["a"]
    assert binding.numactl == ("--cpunodebind=1", "--membind=1")
    assert "OOM" in binding.warnings[0]


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instances", "says"),
    [
        ({"a": {"numa_node": 2}}, r"a:numa_node: 2 does not exist, this host has 0, 1"),
        ({"a": {"numa_node": 0, "cpus": [4, 5]}}, r"a:cpus: 4-5 not on node 0, which has 0-3"),
        ({"a": {"numa_node": 0, "cpus": [99]}}, r"a:cpus: 99 not on node 0"),
        ({"a": {"numa_node": 0, "cpus": []}}, r"a:cpus: node 0 has no CPU"),
        ({"a": {"numa_node": 0, "cpus": "some"}}, r"a:cpus: expected physical or all or a list"),
        ({"a": {"numa_node": 0}, "b": {"numa_node": 0}}, r"a and b overlap on CPUs 0-3"),
        ({"a": {"numa_node": 0}, "b": {"numa_node": 0, "cpus": [2]}}, r"a and b overlap on CPUs 2"),
        ({"a": {"numa_node": None}, "b": {"numa_node": 1}}, r"a and b overlap on CPUs 4-7"),
    ],
)
def test_what_does_not_fit_is_refused(host, instances, says):
    with pytest.raises(numa.NumaError, match=says):
        numa.plan(host(Server(sockets=2)), instances)


def test_every_misfit_is_named_at_once(host):
    instances = {"a": {"numa_node": 7}, "b": {"numa_node": 0}, "c": {"numa_node": 0}}
    with pytest.raises(numa.NumaError, match=r"a:numa_node: 7 .*; b and c overlap"):
        numa.plan(host(Server(sockets=2)), instances)


def test_offline_cpus_are_named_as_such(host):
    with pytest.raises(numa.NumaError, match=r"a:cpus: 1 offline; node 0 has 0,2-3"):
        numa.plan(host(Server(sockets=1, offline=frozenset({1}))), {"a": {"numa_node": 0, "cpus": [0, 1]}})


def test_a_node_without_cpus_is_refused(host):
    server = Server(sockets=2, offline=frozenset(range(4, 8)))
    with pytest.raises(numa.NumaError, match="node 1 has no CPU that may be used"):
        numa.plan(host(server), {"a": {"numa_node": 1}})


def test_a_node_out_of_the_cpuset_is_refused(host):
    with pytest.raises(numa.NumaError, match="node 1 has no CPU that may be used"):
        numa.plan(host(Server(sockets=2), allowed={0, 1, 2, 3}), {"a": {"numa_node": 1}})


def test_a_node_without_memory_is_warned_of_and_holds_nothing(host):
    topology = host(Server(sockets=2, memory={1: 0}))
    assert "no memory" in numa.plan(topology, {"a": {"numa_node": 1}})["a"].warnings[0]
    with pytest.raises(numa.NumaError, match="node 1 cannot hold its slots"):
        numa.plan(topology, {"a": {"numa_node": 1}}, sizes={"a": 1})


@pytest.mark.parametrize(("size", "reserve", "fits"), [(64, 0, True), (65, 0, False), (63, 2, False), (62, 2, True)])
def test_memory_must_hold_the_slots(host, size, reserve, fits):
    topology, instances = host(Server(sockets=2)), {"a": {"numa_node": 0}, "b": {"numa_node": 1}}
    sizes = {"a": size * GIB}
    if fits:
        assert numa.plan(topology, instances, sizes, reserve * GIB)
        return
    with pytest.raises(numa.NumaError, match=r"node 0 cannot hold its slots: .* GiB needed"):
        numa.plan(topology, instances, sizes, reserve * GIB)


def test_instances_of_one_node_share_its_memory(host):
    instances = {"a": {"numa_node": 0, "cpus": [0]}, "b": {"numa_node": 0, "cpus": [1]}}
    with pytest.raises(numa.NumaError, match=r"70\.0 GiB needed"):
        numa.plan(host(Server(sockets=1)), instances, {"a": 35 * GIB, "b": 35 * GIB})


# -- control groups -----------------------------------------------------------------------------------------------

LIMITED = {
    "none at all": ("0::/init.scope", {}, (None, None)),
    "version 2, none": ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, (None, None)),
    "version 2, of a container": ("0::/", {"cpu.max": "250000 100000", "memory.max": str(8 * GIB)}, (2.5, 8 * GIB)),
    "version 2, the least on the way up": (
        "0::/a/b",
        {"a/cpu.max": "200000 100000", "a/b/cpu.max": "300000 100000", "a/memory.max": "max", "a/b/memory.max": "4096"},
        (2.0, 4096),
    ),
    "version 2, of others": ("0::/a", {"b/cpu.max": "100000 100000"}, (None, None)),
    "version 1": (
        "4:cpu,cpuacct:/a\n3:memory:/a\n1:name=systemd:/a",
        {
            "cpu,cpuacct/a/cpu.cfs_quota_us": "150000",
            "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            "memory/a/memory.limit_in_bytes": str(4 * GIB),
            "memory/memory.limit_in_bytes": "9223372036854771712",
        },
        (1.5, 4 * GIB),
    ),
    "version 1, none": ("4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1"}, (None, None)),
}


@pytest.mark.parametrize("name", LIMITED)
def test_limits_of_control_groups_are_read(tmp_path, name):
    listing, files, expected = LIMITED[name]
    write(tmp_path / "proc/1/cgroup", listing)
    for path, text in files.items():
        write(tmp_path / "cgroup" / path, text)
    assert cgroups.limits(1, tmp_path / "proc", tmp_path / "cgroup") == cgroups.Limits(*expected)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (cgroups.Limits(cpus=7.9), r"8 threads, and the control group lets 7\.9 CPUs run: give lists of fewer"),
        (cgroups.Limits(memory=9 * GIB), r"control group cannot hold the slots: 10\.0 GiB needed, 9\.0 GiB allowed"),
        (cgroups.Limits(cpus=8, memory=10 * GIB), ""),
    ],
)
def test_what_a_control_group_does_not_allow_is_refused(host, limits, says):
    topology = host(Server(sockets=2))
    limited = numa.Topology(**{**vars(topology), "limits": limits})
    instances, sizes = one_each(Server(sockets=2)), {"i0": 4 * GIB, "i1": 6 * GIB}
    if not says:
        assert numa.plan(limited, instances, sizes)
        return
    with pytest.raises(numa.NumaError, match=says):
        numa.plan(limited, instances, sizes)


# -- odd kernels --------------------------------------------------------------------------------------------------


def test_a_kernel_without_numa_is_one_unbound_node(tmp_path):
    write(tmp_path / "sys/cpu/online", "0-3")
    write(tmp_path / "proc/meminfo", "MemTotal:  1024 kB\nMemFree:  512 kB")
    host = numa.topology(tmp_path / "sys", proc=tmp_path / "proc")
    binding = numa.plan(host, {"a": {"numa_node": 0}})["a"]
    assert (binding.numactl, binding.num_thread, binding.memory) == ((), 4, 1024 * 1024)
    assert "no NUMA" in binding.warnings[0]
    with pytest.raises(numa.NumaError, match="no list of CPUs can be bound"):
        numa.plan(host, {"a": {"numa_node": 0, "cpus": [0]}})


def test_no_sysfs_at_all_is_said(tmp_path):
    with pytest.raises(numa.NumaError, match="cpu/online"):
        numa.topology(tmp_path)


def test_older_kernels_name_siblings_otherwise(tmp_path):
    root = Server(sockets=1, threads=2).build(tmp_path)
    for path in root.glob("cpu/cpu*/topology/core_cpus_list"):
        path.rename(path.with_name("thread_siblings_list"))
    assert numa.topology(root).nodes[0].physical == (0, 1, 2, 3)


def test_this_machine_has_a_plan():
    if not Path("/sys/devices/system/node/node0").exists():
        pytest.skip("this kernel has no NUMA: /sys/devices/system/node is missing")
    host = numa.topology(allowed=os.sched_getaffinity(0))
    number = next(iter(host.nodes))
    assert numa.plan(host, {"a": {"numa_node": number}})["a"].num_thread >= 1


@pytest.mark.parametrize("text", ["", "0", "0-3", "0,2,4", "0-1,4-7,9"])
def test_lists_are_read_and_written_alike(text):
    assert numa.format_list(numa.parse_list(text + "\n")) == text


# -- where the pages are ------------------------------------------------------------------------------------------

MAPS = """\
55d0 default file=/opt/ollama/bin/ollama mapped=10 N0=10 kernelpagesize_kB=4
7f00 bind:1 anon=100 dirty=100 N0=25 N1=75 kernelpagesize_kB=4
7f10 default anon=2 dirty=2 N1=2 kernelpagesize_kB=2048
7f20 default stack=1
"""


def process(proc: Path, pid: int, parent: int, *words: str) -> None:
    write(proc / f"{pid}/status", f"Name:\tollama\nPPid:\t{parent}\nCpus_allowed_list:\t1,3")
    (proc / f"{pid}/cmdline").write_bytes("\0".join(words).encode() + b"\0")


def test_pages_are_counted_in_their_own_size():
    """Those of the program are not: whoever ran it first has them."""
    assert numa.pages_by_node(MAPS) == {0: 25 * 4096, 1: 75 * 4096 + 2 * 2048 * 1024}


def test_mapped_weights_are_counted():
    line = "7f00 default file=/mnt/models/blobs/sha256-aa mapped=9 N1=9 kernelpagesize_kB=4"
    assert numa.pages_by_node(line) == {1: 9 * 4096}


def test_weights_that_were_read_are_dropped_from_the_page_cache(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(8 << 20))
    assert cached_pages(path) == 2048
    assert numa.evict(path) == 8 << 20
    assert cached_pages(path) == 0
    with pytest.raises(numa.NumaError, match="gone"):
        numa.evict(tmp_path / "gone")


def cached_pages(path: Path) -> int:
    """How many pages of a file are in memory, by the kernel's own list (util-linux)."""
    argv = ["fincore", "--bytes", "--noheadings", "--output", "PAGES", str(path)]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def test_runners_are_children_with_a_model(tmp_path):
    process(tmp_path, 10, 1, "ollama", "serve")
    process(tmp_path, 11, 10, "ollama", "runner", "--ollama-engine", "--model", "/blobs/sha256-aa", "--port", "1")
    process(tmp_path, 12, 99, "ollama", "runner", "--model", "/blobs/sha256-bb", "--port", "2")
    process(tmp_path, 13, 10, "ollama", "runner", "--port", "3")
    assert numa.runners(10, tmp_path) == {11: "/blobs/sha256-aa"}


def test_runners_are_counted_by_the_port_of_their_server(tmp_path):
    for server, port in ((10, 11434), (20, 11435)):
        process(tmp_path, server, 1, "ollama", "serve")
        write(tmp_path / f"{server}/environ", f"HOME=/\0OLLAMA_HOST=0.0.0.0:{port}\0A=b\0")
    for pid, server in ((11, 10), (12, 10), (21, 20)):
        process(tmp_path, pid, server, "ollama", "runner", "--model", "/blobs/sha256-aa")
    assert [numa.living_runners(port, tmp_path) for port in (11434, 11435, 1143)] == [2, 1, 0]


def test_residency_tells_the_local_share(tmp_path):
    process(tmp_path, 11, 10, "ollama")
    write(tmp_path / "11/numa_maps", MAPS)
    found = numa.residency(11, 1, tmp_path)
    assert found["cpus"] == "1,3"
    assert found["local_share"] == pytest.approx(1099 / 1124)
    assert numa.residency(11, None, tmp_path)["local_share"] is None


def test_residency_of_no_process_is_an_error(tmp_path):
    with pytest.raises(numa.NumaError, match="numa_maps"):
        numa.residency(4711, 0, tmp_path)

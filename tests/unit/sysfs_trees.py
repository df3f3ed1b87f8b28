"""Generated ``/sys/devices/system`` trees of servers that the tests have not got."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

GIB = 2**30


@dataclass
class Server:
    """A server to be; ``cores[node]`` lists the cores of a node, each a tuple of its hardware threads."""

    sockets: int
    cores_per_node: int = 4
    threads: int = 1
    interleaved: bool = False
    offline: frozenset[int] = frozenset()
    memory: dict[int, int] = field(default_factory=dict)

    @property
    def cores(self) -> dict[int, list[tuple[int, ...]]]:
        """Number the CPUs as firmware does: all first threads, then all second ones."""
        count = self.sockets * self.cores_per_node
        found: dict[int, list[tuple[int, ...]]] = {node: [] for node in range(self.sockets)}
        for core in range(count):
            node = core % self.sockets if self.interleaved else core // self.cores_per_node
            found[node].append(tuple(core + thread * count for thread in range(self.threads)))
        return found

    def cpus(self, node: int) -> set[int]:
        """The online CPUs of a node."""
        return {cpu for core in self.cores[node] for cpu in core} - self.offline

    def physical(self, node: int, allowed: set[int] | None = None) -> list[int]:
        """The first usable hardware thread of each core of a node."""
        usable = self.cpus(node) & (self.cpus(node) if allowed is None else allowed)
        firsts = [min(set(core) & usable, default=None) for core in self.cores[node]]
        return sorted(cpu for cpu in firsts if cpu is not None)

    def build(self, root: Path) -> Path:
        """Write the tree and return its root."""
        everything = {cpu for node in self.cores for core in self.cores[node] for cpu in core}
        write(root / "cpu/present", f"0-{max(everything)}")
        write(root / "cpu/online", listed(everything - self.offline))
        for node, cores in self.cores.items():
            folder = root / f"node/node{node}"
            write(folder / "cpulist", listed(self.cpus(node)))
            kib = self.memory.get(node, 64 * GIB) // 1024
            write(folder / "meminfo", f"Node {node} MemTotal:  {kib} kB\nNode {node} MemFree:  {kib // 2} kB")
            for core in cores:
                for cpu in set(core) - self.offline:
                    write(root / f"cpu/cpu{cpu}/topology/core_cpus_list", listed(set(core) - self.offline))
        return root


def listed(cpus: set[int]) -> str:
    """A list as the kernel may write it, without ranges."""
    return ",".join(str(cpu) for cpu in sorted(cpus))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@dataclass(frozen=True)
class Machine:
    """A machine as its kernel lists it, where no rule gives its numbers.

    ``nodes``: {number: (CPUs in the kernel's notation, GiB)}. ``threads``: CPUs that share a core. ``allowed``: those
    of the cpuset that services are in; empty for all.
    """

    nodes: dict[int, tuple[str, float]]
    threads: tuple[str, ...] = ()
    offline: str = ""
    allowed: str = ""

    def build(self, root: Path) -> Path:
        """Write the tree and return its root."""
        offline = set(numbers(self.offline))
        everything = {cpu for cpus, _ in self.nodes.values() for cpu in numbers(cpus)} | offline
        write(root / "cpu/present", listed(everything))
        write(root / "cpu/online", listed(everything - offline))
        for node, (cpus, gib) in self.nodes.items():
            kib = int(gib * GIB) // 1024
            write(root / f"node/node{node}/cpulist", listed(set(numbers(cpus)) - offline))
            write(root / f"node/node{node}/meminfo", f"Node {node} MemTotal:  {kib} kB\nNode {node} MemFree:  {kib} kB")
        siblings = {cpu: set(numbers(core)) for core in self.threads for cpu in numbers(core)}
        for cpu in everything - offline:
            write(root / f"cpu/cpu{cpu}/topology/core_cpus_list", listed(siblings.get(cpu, {cpu}) - offline))
        return root

    def usable(self, node: int) -> set[int]:
        """The CPUs of a node that a service may use."""
        cpus = set(numbers(self.nodes[node][0])) - set(numbers(self.offline))
        return cpus & set(numbers(self.allowed)) if self.allowed else cpus


def numbers(text: str) -> list[int]:
    """The numbers of a list in the kernel's notation."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def pairs(count: int) -> tuple[str, ...]:
    """Cores of two threads, all first ones before all second ones."""
    return tuple(f"{cpu},{cpu + count}" for cpu in range(count))


# Trees whose numbers no rule of `Server` gives, by what is odd about them.
MACHINES = {
    "one CPU": Machine({0: ("0", 2)}),
    "two halves of a Xeon's clusters (SNC2)": Machine(
        {0: ("0-2,5-6,10-12,15-16", 48), 1: ("3-4,7-9,13-14,17-19", 48)},
    ),
    "two sockets of two clusters each, two threads (SNC2)": Machine(
        {0: ("0-3,16-19", 64), 1: ("4-7,20-23", 64), 2: ("8-11,24-27", 64), 3: ("12-15,28-31", 64)}, pairs(16)
    ),
    "two sockets of four clusters each (SNC4)": Machine({n: (f"{4 * n}-{4 * n + 3}", 32) for n in range(8)}),
    "an EPYC in four (NPS4)": Machine(
        {n: (f"{8 * n}-{8 * n + 7},{32 + 8 * n}-{39 + 8 * n}", 64) for n in range(4)}, pairs(32)
    ),
    "an old Opteron: six CPUs a node, nodes apart": Machine({n: (f"{6 * n}-{6 * n + 5}", 16) for n in range(8)}),
    "POWER: nodes 0 and 8, threads beside each other": Machine(
        {0: ("0-15", 128), 8: ("16-31", 128)}, tuple(f"{cpu}-{cpu + 3}" for cpu in range(0, 32, 4))
    ),
    "POWER with GPU memory: nodes without CPUs": Machine(
        {0: ("0-15", 128), 8: ("16-31", 128), 252: ("", 16), 253: ("", 16), 254: ("", 16), 255: ("", 16)}
    ),
    "a Xeon with fast memory of its own (HBM)": Machine(
        {0: ("0-7", 128), 1: ("8-15", 128), 2: ("", 64), 3: ("", 64)},
    ),
    "a CXL expander": Machine({0: ("0-7,16-23", 128), 1: ("8-15,24-31", 128), 2: ("", 512)}, pairs(16)),
    "a socket without memory modules": Machine({0: ("0-3", 64), 1: ("4-7", 0)}),
    "all memory on the second socket": Machine({0: ("0-3", 0), 1: ("4-7", 64)}),
    "no memory at all that is told of": Machine({0: ("0-3", 0), 1: ("4-7", 0)}),
    "half a socket off": Machine({0: ("0-3", 64), 1: ("4-7", 64)}, offline="6-7"),
    "a whole socket off": Machine({0: ("0-3", 64), 1: ("4-7", 64)}, offline="4-7"),
    "threads turned off": Machine({0: ("0-3,8-11", 64), 1: ("4-7,12-15", 64)}, pairs(8), offline="8-15"),
    "first threads turned off": Machine({0: ("0-3,8-11", 64), 1: ("4-7,12-15", 64)}, pairs(8), offline="1-3,5-7"),
    "only the first CPU left": Machine({0: ("0-3", 64), 1: ("4-7", 64)}, offline="1-7"),
    "a cpuset across the nodes": Machine({0: ("0-3", 64), 1: ("4-7", 64)}, allowed="2-5"),
    "a cpuset of one node": Machine({0: ("0-3", 64), 1: ("4-7", 64)}, allowed="4-7"),
    "a cpuset of second threads": Machine({0: ("0-3,8-11", 64), 1: ("4-7,12-15", 64)}, pairs(8), allowed="8-15"),
    "a cpuset of one CPU": Machine({0: ("0-3", 64), 1: ("4-7", 64)}, allowed="7"),
    "a cpuset whose CPUs are partly off": Machine({0: ("0-3", 64), 1: ("4-7", 64)}, offline="2", allowed="2-5"),
    "two clusters, a cpuset, threads, one off": Machine(
        {0: ("0-3,8-11", 32), 1: ("4-7,12-15", 32)}, pairs(8), offline="9", allowed="0-2,4-6,8-9,12"
    ),
    "eight nodes, two of them empty": Machine(
        {**{n: (f"{2 * n}-{2 * n + 1}", 16) for n in range(6)}, 6: ("", 0), 7: ("", 0)}
    ),
    "nodes of unlike sizes": Machine({0: ("0", 8), 1: ("1-6", 192), 2: ("7-8", 32)}),
    "some cores with threads and some without": Machine({0: ("0-7", 32)}, ("0-1", "2-3")),
}

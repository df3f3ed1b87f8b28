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

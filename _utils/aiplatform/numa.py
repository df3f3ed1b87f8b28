"""Which CPUs and which memory each Ollama instance gets, computed from what the kernel says about the host.

A topology is read from sysfs, a plan is computed from it and from the pillar's instances, the pages of a running
process are counted, and weights that lie in the wrong memory are dropped from the page cache. Why the plans look as
they do: ``docs/numa.md``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiplatform.cgroups import Limits
from aiplatform.errors import PlatformError
from aiplatform.files import kernel_text

SYSFS = Path("/sys/devices/system")
PROC = Path("/proc")
CPU_CHOICES = ("physical", "all")
_MEMORY = re.compile(r"(MemTotal|MemFree):\s+(\d+) kB")
_PAGES = re.compile(r"\bN(\d+)=(\d+)")
_PAGE_SIZE = re.compile(r"\bkernelpagesize_kB=(\d+)")
# A file that is mapped and is no weights.
_OTHER_FILE = re.compile(r"\bfile=(?!\S*/blobs/)")


class NumaError(PlatformError):
    """The host has no such CPUs, nodes or memory."""


@dataclass(frozen=True)
class Node:
    """One NUMA node; sizes in bytes.

    ``cpus`` are those that a service may use now: online, and allowed to it. ``physical`` is the first such CPU of each
    core: as many threads as these run at once without sharing a core.
    """

    number: int
    cpus: tuple[int, ...]
    physical: tuple[int, ...]
    memory_total: int
    memory_free: int


@dataclass(frozen=True)
class Topology:
    """The nodes of a host, by number; ``numa`` is False where the kernel knows of none (then all is node 0).

    ``limits`` are those of the control groups that all services are in.
    """

    nodes: Mapping[int, Node]
    cores: Mapping[int, int]
    offline: tuple[int, ...]
    numa: bool = True
    limits: Limits = field(default_factory=Limits)

    def physical(self, cpus: Iterable[int]) -> tuple[int, ...]:
        """Return the first CPU of each core among these CPUs."""
        first: dict[int, int] = {}
        for cpu in sorted(cpus):
            first.setdefault(self.cores[cpu], cpu)
        return tuple(sorted(first.values()))


@dataclass(frozen=True)
class Binding:
    """What one instance gets.

    ``numactl`` are the arguments for numactl, empty where the instance is not bound. ``num_thread`` is the greatest
    number of threads that a model may use on it. ``memory`` is the node's, in bytes.
    """

    instance: str
    node: int | None
    cpus: tuple[int, ...]
    physical: tuple[int, ...]
    num_thread: int
    numactl: tuple[str, ...]
    memory: int
    warnings: tuple[str, ...] = ()


def parse_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a list in the kernel's notation: ``0-2,8`` is ``(0, 1, 2, 8)``."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def format_list(numbers: Iterable[int]) -> str:
    """Return numbers in the kernel's notation: ``(0, 1, 2, 8)`` is ``0-2,8``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def topology(sysfs: Path = SYSFS, allowed: Collection[int] | None = None, proc: Path = PROC) -> Topology:
    """Read the host's nodes.

    :param sysfs: the folder that holds ``node`` and ``cpu``.
    :param allowed: the CPUs that services may use (cpuset, affinity); None: all.
    :param proc: where ``meminfo`` is, for a kernel without NUMA.
    :raises NumaError: no CPU at all can be read there.
    """
    online = set(parse_list(kernel_text(sysfs / "cpu/online")))
    if not online:
        raise NumaError("No CPUs can be read", where=str(sysfs / "cpu/online"), expected="a list such as 0-7")
    present = set(parse_list(kernel_text(sysfs / "cpu/present"))) or online
    usable = online if allowed is None else online & set(allowed)
    cores = {cpu: _core(sysfs, cpu) for cpu in online}
    found = Topology({}, cores, tuple(sorted(present - online)))
    folders = {int(path.name[4:]): path for path in (sysfs / "node").glob("node[0-9]*")}
    if not folders:
        node = _node(found, 0, usable, kernel_text(proc / "meminfo"))
        return Topology({0: node}, cores, found.offline, numa=False)
    nodes = {
        number: _node(
            found, number, usable & set(parse_list(kernel_text(path / "cpulist"))), kernel_text(path / "meminfo")
        )
        for number, path in sorted(folders.items())
    }
    return Topology(nodes, cores, found.offline)


def _core(sysfs: Path, cpu: int) -> int:
    """Return the lowest CPU of this CPU's core; itself where the kernel does not tell."""
    folder = sysfs / f"cpu/cpu{cpu}/topology"
    siblings = parse_list(kernel_text(folder / "core_cpus_list") or kernel_text(folder / "thread_siblings_list"))
    return min(siblings, default=cpu)


def _node(found: Topology, number: int, cpus: set[int], meminfo: str) -> Node:
    memory = {key: int(kib) * 1024 for key, kib in _MEMORY.findall(meminfo)}
    total, free = memory.get("MemTotal", 0), memory.get("MemFree", 0)
    return Node(number, tuple(sorted(cpus)), found.physical(cpus), total, free)


def plan(
    host: Topology,
    instances: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int] | None = None,
    reserve: int = 0,
) -> dict[str, Binding]:
    """Give each instance its CPUs and node.

    :param instances: pillar ``ollama:instances``; of each are read ``numa_node`` (None: not bound), ``cpus``
        (``physical``, ``all`` or a list) and ``membind``.
    :param sizes: bytes that the slots of an instance need in memory; what is not named is not checked.
    :param reserve: bytes of each node that are not for models.
    :raises NumaError: naming every misfit: unknown node, CPUs that are offline, elsewhere or none at all, one CPU in
        two instances, a node or control group that cannot hold its slots, more threads than a control group lets run.
    """
    problems: list[str] = []
    bindings: dict[str, Binding] = {}
    for name, spec in instances.items():
        try:
            bindings[name] = _bind(host, name, spec)
        except NumaError as err:
            problems.append(err.what)
    problems += _overlaps(bindings) + _shortages(host, bindings, sizes or {}, reserve)
    problems += _beyond_limits(host.limits, bindings, sizes or {})
    if problems:
        raise NumaError(
            "Ollama's instances do not fit this host: " + "; ".join(problems),
            where="ollama:instances",
            hint="numa.topology shows what there is; on a host of one node give each instance a list of its CPUs",
        )
    return _note_shared_cores(host, bindings)


def _bind(host: Topology, name: str, spec: Mapping[str, Any]) -> Binding:
    number, wanted = spec.get("numa_node"), spec.get("cpus", "physical")
    nodes = list(host.nodes.values())
    if isinstance(wanted, str) and wanted not in CPU_CHOICES:
        raise NumaError(f"{name}:cpus: expected {' or '.join(CPU_CHOICES)} or a list of numbers, got {wanted!r}")
    if number is not None:
        if number not in host.nodes:
            known = ", ".join(str(node) for node in host.nodes)
            raise NumaError(f"{name}:numa_node: {number} does not exist, this host has {known}")
        nodes = [host.nodes[number]]
    available = tuple(sorted(cpu for node in nodes for cpu in node.cpus))
    where = "this host" if number is None else f"node {number}"
    cpus = available if isinstance(wanted, str) else tuple(sorted(set(wanted)))
    _check_cpus(host, name, cpus, available, where)
    if not host.numa and not isinstance(wanted, str):
        raise NumaError(f"{name}:cpus: this kernel has no NUMA, so no list of CPUs can be bound; expected 'physical'")
    physical = host.physical(cpus)
    return Binding(
        instance=name,
        node=number,
        cpus=cpus,
        physical=physical,
        num_thread=len(cpus) if wanted == "all" else len(physical),
        numactl=_numactl(host, spec, cpus),
        memory=sum(node.memory_total for node in nodes),
        warnings=_warnings(host, name, spec, nodes),
    )


def _check_cpus(host: Topology, name: str, cpus: tuple[int, ...], available: tuple[int, ...], where: str) -> None:
    if not cpus:
        raise NumaError(f"{name}:cpus: {where} has no CPU that may be used")
    stray = set(cpus) - set(available)
    offline = stray & set(host.offline)
    if offline:
        raise NumaError(f"{name}:cpus: {format_list(offline)} offline; {where} has {format_list(available) or 'none'}")
    if stray:
        raise NumaError(
            f"{name}:cpus: {format_list(stray)} not on {where}, which has {format_list(available) or 'none'}"
        )


def _numactl(host: Topology, spec: Mapping[str, Any], cpus: tuple[int, ...]) -> tuple[str, ...]:
    number = spec.get("numa_node")
    if not host.numa:
        return ()
    arguments = []
    if not isinstance(spec.get("cpus", "physical"), str):
        arguments.append(f"--physcpubind={format_list(cpus)}")
    elif number is not None:
        # The whole node, siblings included: the scheduler needs room beside the model's threads. The default memory
        # policy is local first and then elsewhere, where a strict one ends in reclaim and the OOM killer.
        arguments.append(f"--cpunodebind={number}")
    if spec.get("membind") and number is not None:
        arguments.append(f"--membind={number}")
    return tuple(arguments)


def _warnings(host: Topology, name: str, spec: Mapping[str, Any], nodes: list[Node]) -> tuple[str, ...]:
    found = []
    if not host.numa:
        found.append(f"{name}: this kernel has no NUMA; the instance is not bound")
    if spec.get("membind"):
        found.append(
            f"{name}: membind is strict: a full node ends in the OOM killer although others have room; "
            "with a list of CPUs it has cost a factor of 100 in speed"
        )
    if host.numa and not sum(node.memory_total for node in nodes):
        found.append(f"{name}: node {nodes[0].number} has no memory; all of it will be remote")
    return tuple(found)


def _overlaps(bindings: Mapping[str, Binding]) -> list[str]:
    problems = []
    names = sorted(bindings)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = set(bindings[first].cpus) & set(bindings[second].cpus)
            if shared:
                problems.append(f"{first} and {second} overlap on CPUs {format_list(shared)}")
    return problems


def _shortages(host: Topology, bindings: Mapping[str, Binding], sizes: Mapping[str, int], reserve: int) -> list[str]:
    needs: dict[int, int] = {}
    for name, binding in bindings.items():
        if binding.node is not None:
            needs[binding.node] = needs.get(binding.node, 0) + sizes.get(name, 0)
    problems = []
    for number, need in needs.items():
        # What is free now would count the models that are loaded already against themselves: the total decides.
        room = max(0, host.nodes[number].memory_total - reserve)
        if need > room:
            problems.append(f"node {number} cannot hold its slots: {_gib(need)} needed, {_gib(room)} there")
    return problems


def _beyond_limits(limits: Limits, bindings: Mapping[str, Binding], sizes: Mapping[str, int]) -> list[str]:
    """Threads that wait for a quota stall those that run, like one thread too many does."""
    problems = []
    threads, need = sum(one.num_thread for one in bindings.values()), sum(sizes.get(name, 0) for name in bindings)
    if limits.cpus is not None and threads > limits.cpus:
        problems.append(f"{threads} threads, and the control group lets {limits.cpus:g} CPUs run: give lists of fewer")
    if limits.memory is not None and need > limits.memory:
        problems.append(f"the control group cannot hold the slots: {_gib(need)} needed, {_gib(limits.memory)} allowed")
    return problems


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _note_shared_cores(host: Topology, bindings: dict[str, Binding]) -> dict[str, Binding]:
    """Add a warning to each instance that runs on the other hardware threads of another's cores."""
    users: dict[int, set[str]] = {}
    for name, binding in bindings.items():
        for cpu in binding.cpus:
            users.setdefault(host.cores[cpu], set()).add(name)
    noted = {}
    for name, binding in bindings.items():
        others = {other for names in users.values() if name in names for other in names} - {name}
        extra = tuple(f"{name}: shares physical cores with {other}" for other in sorted(others))
        noted[name] = Binding(**{**vars(binding), "warnings": binding.warnings + extra})
    return noted


def pages_by_node(numa_maps: str) -> dict[int, int]:
    """Return the bytes of its own memory and of weights that a process has on each node, out of its ``numa_maps``.

    The pages of programs and libraries are not counted: all processes share them, where the first of them ran.
    """
    held: dict[int, int] = {}
    for line in numa_maps.splitlines():
        if _OTHER_FILE.search(line):
            continue
        size = _PAGE_SIZE.search(line)
        for node, pages in _PAGES.findall(line):
            held[int(node)] = held.get(int(node), 0) + int(pages) * 1024 * (int(size.group(1)) if size else 4)
    return held


def runners(server: int, proc: Path = PROC) -> dict[int, str]:
    """Return the model runners of an Ollama server: {pid: path of the weights blob}."""
    return {pid: model for pid, model, parent in _runners(proc) if parent == server}


def weights_of(pid: int, proc: Path = PROC) -> str:
    """Return the path of the weights blob of a model runner; empty for any other process."""
    words = kernel_text(proc / str(pid) / "cmdline").split("\0")
    return words[words.index("--model") + 1] if "runner" in words[1:] and "--model" in words[:-1] else ""


def living_runners(port: int, proc: Path = PROC) -> int:
    """Return how many model runners the Ollama server on a port has; for root, who may read its environment."""
    serves = re.compile(rf"\0OLLAMA_HOST=[^\0]*:{port}\0")
    parents = [parent for _, _, parent in _runners(proc)]
    mine = {pid for pid in parents if serves.search(f"\0{kernel_text(proc / str(pid) / 'environ')}\0")}
    return sum(parent in mine for parent in parents)


def _runners(proc: Path) -> Iterator[tuple[int, str, int]]:
    """Yield process id, weights blob and parent of each model runner on this machine."""
    for folder in proc.glob("[0-9]*"):
        if model := weights_of(int(folder.name), proc):
            yield int(folder.name), model, _parent(folder)


def residency(pid: int, node: int | None, proc: Path = PROC) -> dict[str, Any]:
    """Return where the memory of a process is.

    :param node: the node that it should be on, for ``local_share`` (None there without one).
    :returns: ``{"pid", "cpus" (allowed, kernel notation), "bytes": {node: bytes}, "local_share": 0..1 or None}``
    :raises NumaError: there is no such process, or its pages may not be read.
    """
    try:
        held = pages_by_node((proc / str(pid) / "numa_maps").read_text(encoding="utf-8", errors="replace"))
    except OSError as err:
        raise NumaError(
            "The memory of a process cannot be read", where=f"{proc}/{pid}/numa_maps", actual=err.strerror
        ) from err
    total = sum(held.values())
    status = kernel_text(proc / str(pid) / "status")
    cpus = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
    share = held.get(node, 0) / total if node is not None and total else None
    return {"pid": pid, "cpus": cpus.group(1) if cpus else "", "bytes": held, "local_share": share}


def evict(path: Path) -> int:
    """Drop a file from the page cache, so that its next reader gets it into its own node's memory; returns its bytes.

    Its pages stay where they are as long as a process has them mapped: unload the model first.

    :raises NumaError: the file cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as err:
        raise NumaError("The weights cannot be read", where=str(path), actual=err.strerror) from err
    try:
        os.fdatasync(handle)  # pages that are not written yet would stay
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.fstat(handle).st_size
    finally:
        os.close(handle)


def _parent(folder: Path) -> int:
    found = re.search(r"^PPid:\s*(\d+)", kernel_text(folder / "status"), re.MULTILINE)
    return int(found.group(1)) if found else 0

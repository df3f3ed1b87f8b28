"""The five hosts: names, addresses, images, and the containers that they are."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from lab.images import SALT, SITE, SYSTEM, Image
from lab.machine import resolvers
from lab.process import docker, run
from lab.settings import DOMAIN, LABEL, NETWORK, PREFIX, LabError, address, cache, folder, standing, subnet

# What systemd and an engine of its own inside a container need. `--privileged` asks for more than some machines give.
CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_NICE", "IPC_LOCK")
STOP_SECONDS = "60"
UP_SECONDS = 90


@dataclass(frozen=True)
class Host:
    """One host; its minion id is its name, its memory is in MiB."""

    name: str
    number: int
    image: Image
    memory: int
    services: tuple[str, ...] = ()
    minion: bool = True

    @property
    def container(self) -> str:
        """The container's name."""
        return f"{PREFIX}-{self.name}"

    @property
    def hostname(self) -> str:
        """The name that the host calls itself; host names have no underscore."""
        return self.name.replace("_", "-")

    @property
    def address(self) -> str:
        """The host's address."""
        return address(self.number)

    @property
    def volume(self) -> str:
        """The volume of the engine inside: overlay2 does not lie on itself."""
        return f"{self.container}-docker"


HOSTS = (
    Host("salt_master", 10, SITE, 1536, ("salt-master", "lab-files", "docker-registry"), minion=False),
    Host("nginx_proxy", 30, SALT, 768, ("salt-minion", "nginx")),
    Host("ai_server", 100, SALT, 7168, ("salt-minion", "vault", "docker", "ollama", "ollama-node0")),
    Host("coredns_host", 29, SALT, 768, ("salt-minion", "docker")),
    Host("workstation", 50, SYSTEM, 2048, ("ssh",), minion=False),
)
MASTER = HOSTS[0]
BARE = HOSTS[-1]
VAULT = next(host for host in HOSTS if host.name == "ai_server")
NAMES = next(host for host in HOSTS if host.name == "coredns_host")
MINIONS = tuple(host for host in HOSTS if host.minion)


def host(name: str) -> Host:
    """The host with this name.

    Raises:
        LabError: there is none.
    """
    for each in HOSTS:
        if name in (each.name, each.hostname, each.container):
            return each
    raise LabError(f"No host {name!r} in the lab; there are {', '.join(each.name for each in HOSTS)}")


def mounts(each: Host) -> list[str]:
    """The arguments that mount folders into a host."""
    argv = ["-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "-v", f"{each.volume}:/var/lib/docker"]
    if each is MASTER:
        argv += ["-v", f"{folder('publish')}:/srv/files:ro", "-v", f"{folder('registry')}:/var/lib/docker-registry"]
    return argv


def run_arguments(each: Host) -> list[str]:
    """The whole ``docker run`` of a host, without the image's id and the command."""
    argv = ["run", "-d", "--name", each.container, "--hostname", each.hostname, "--domainname", DOMAIN]
    argv += ["--net", NETWORK, "--ip", each.address, "--label", LABEL, "--memory", f"{each.memory}m"]
    for capability in CAPABILITIES:
        argv += ["--cap-add", capability]
    argv += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--cgroupns=host"]
    # The platform's own name server first; until it is there, and for all other names, the machine's.
    for server in (NAMES.address, *resolvers()):
        argv += ["--dns", server]
    for other in HOSTS:
        argv += ["--add-host", f"{other.hostname}.{DOMAIN}:{other.address}"]
    argv += mounts(each)
    argv += ["--tmpfs", "/run", "--tmpfs", "/run/lock", "-e", "container=docker"]
    return [*argv, "--stop-signal", "SIGRTMIN+3", "--stop-timeout", STOP_SECONDS]


def listed(*filters: str) -> list[dict[str, Any]]:
    """The lab's containers as ``docker inspect`` shows them."""
    ids = docker("ps", "-aq", "--filter", f"label={LABEL}", *filters).split()
    return list(json.loads(docker("inspect", *ids))) if ids else []


def hosts_fresh() -> str | None:
    """Why no host has to be made or started."""
    state = {item["Name"].lstrip("/"): item for item in listed()}
    for each in HOSTS:
        item = state.get(each.container)
        if not item or not item["State"]["Running"] or item["Config"]["Image"] != each.image.tag():
            return None
    # One that was started when a run was interrupted may not be up yet.
    for each in HOSTS:
        await_systemd(each)
    return f"{len(HOSTS)} hosts run"


def make_hosts() -> str:
    """Make each host that is missing or stopped; wait until systemd is up in all of them.

    Where an image has changed, or just one of the master and Vault's host is there, all are made anew: the keys of a
    Vault are on the master, and fit no other.
    """
    state = {item["Name"].lstrip("/"): item for item in listed()}
    changed = any(state[h.container]["Config"]["Image"] != h.image.tag() for h in HOSTS if h.container in state)
    told = ""
    if changed or (MASTER.container in state) != (VAULT.container in state):
        for each in HOSTS:
            remove(each)
        state = {}
        why = "images have changed" if changed else "Vault and its keys belong together"
        told = f", all made anew: {why}"
    for each in HOSTS:
        if each.container not in state:
            make(each)
        elif not state[each.container]["State"]["Running"]:
            docker("start", each.container)
    for each in HOSTS:
        await_systemd(each)
    return f"{len(HOSTS)} in {subnet()}{told}"


def make(each: Host) -> None:
    """Make one host; it is not awaited."""
    docker("volume", "create", "--label", LABEL, each.volume)
    docker(*run_arguments(each), each.image.tag(), "/sbin/init")


def remove(each: Host) -> None:
    """Remove a host and its volume."""
    docker("rm", "-f", each.container, check=False)
    docker("volume", "rm", "-f", each.volume, check=False)


def network_fresh() -> str | None:
    """Why the network need not be made.

    Raises:
        LabError: the lab stands in another address range.
    """
    if not docker("network", "ls", "-q", "--filter", f"label={LABEL}", "--filter", f"name=^{NETWORK}$").strip():
        return None
    there = docker("network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}}{{end}}", NETWORK).strip()
    if there != str(subnet()):
        raise LabError(f"The lab stands in {there}, not in {subnet()}. To move it: make lab-down, then make lab.")
    standing().write_text(there)
    return there


def make_network() -> str:
    """Make the lab's network.

    Raises:
        LabError: the address range is taken.
    """
    taken = overlapping(run(["ip", "-j", "route"]))
    if taken:
        raise LabError(
            f"The lab's address range {subnet()} is taken on this machine: {taken}.\n"
            "Choose another one for it, as in: LAB_SUBNET=10.123.45.0/24 make lab"
        )
    docker("network", "create", "--label", LABEL, "--subnet", str(subnet()), NETWORK)
    standing().write_text(str(subnet()))
    return str(subnet())


def overlapping(routes: str) -> str | None:
    """The first of the machine's routes (as ``ip -j route`` prints them) that overlaps the lab's network."""
    for route in json.loads(routes):
        try:
            network = ipaddress.IPv4Network(route.get("dst", ""))
        except ValueError:
            continue
        if network.prefixlen and network.overlaps(subnet()):
            return f"{network} on {route.get('dev', '?')}"
    return None


def await_systemd(each: Host) -> None:
    """Wait until a host's services are started.

    Raises:
        LabError: its systemd did not come up.
    """
    script = f"timeout {UP_SECONDS} sh -c 'until [ -S /run/systemd/private ]; do sleep 0.1; done'; "
    script += f"timeout {UP_SECONDS} systemctl is-system-running --wait"
    state = docker("exec", each.container, "sh", "-c", script, check=False, timeout=2 * UP_SECONDS + 10).strip()
    if state not in ("running", "degraded"):
        logs = docker("logs", "--tail", "5", each.container, check=False)
        raise LabError(f"{each.name}: systemd is {state or 'not there'} after {UP_SECONDS} s\n{logs}")


def down() -> str:
    """Remove every container, volume and network of the lab, and nothing else."""
    ids = docker("ps", "-aq", "--filter", f"label={LABEL}").split()
    if ids:
        docker("rm", "-fv", *ids, timeout=300)
    volumes = docker("volume", "ls", "-q", "--filter", f"label={LABEL}").split()
    if volumes:
        docker("volume", "rm", "-f", *volumes, timeout=300)
    networks = docker("network", "ls", "-q", "--filter", f"label={LABEL}").split()
    if networks:
        docker("network", "rm", *networks)
    standing().unlink(missing_ok=True)
    return f"{len(ids)} containers, {len(volumes)} volumes, {len(networks)} networks removed; cache kept in {cache()}"


def demand(each: Host) -> None:
    """Refuse to go on where a host does not run.

    Raises:
        LabError: it does not.
    """
    if not docker("ps", "-q", "--filter", f"label={LABEL}", "--filter", f"name=^{each.container}$").strip():
        raise LabError(f"{each.name} does not run. Raise the lab with: make lab")


def execute(each: Host, *argv: str, stdin: str | None = None, check: bool = True, timeout: float | None = 300) -> str:
    """Run a command on a host as root and return its output."""
    flags = ["-i"] if stdin is not None else []
    return docker("exec", *flags, each.container, *argv, stdin=stdin, check=check, timeout=timeout)


def restart(each: Host) -> None:
    """Reboot a host, and wait until its systemd is up again."""
    docker("restart", each.container, timeout=180)
    await_systemd(each)

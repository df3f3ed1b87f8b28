"""From running hosts to a platform: the site's servers, this checkout, Salt's keys, the deploy."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import requests

from aiplatform import wait
from aiplatform.errors import WaitTimeoutError
from aiplatform.settings import merge
from lab import artifacts, containers
from lab.process import run, stream
from lab.settings import CHECKOUT, DEFAULT_SUBNET, FILE_PORT, LAB, REGISTRY_PORT, LabError, address
from lab.topology import BARE, MASTER, MINIONS, Host, execute

Answer = TypeVar("Answer")

TARGET = "/srv/ai-platform"
PILLAR = "/srv/pillar"
STAMP = "/var/lib/lab"
KEY_SECONDS = 60
LISTEN_SECONDS = 25
PIPE_SECONDS = 120
PORTS = 2
PKI = "/etc/salt/pki/master"
AUTHORIZED = "/home/admin/.ssh/authorized_keys"


def put(host: Host, files: dict[str, bytes], mode: int = 0o644) -> None:
    """Write files on a host, folders included."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.lstrip("/"))
            info.size, info.mode, info.mtime = len(content), mode, int(time.time())
            tar.addfile(info, io.BytesIO(content))
    pipe(host, stream.getvalue(), "/")


def pipe(host: Host, archive: bytes, target: str) -> None:
    """Unpack an archive on a host.

    Raises:
        LabError: it was refused, or took longer than ``PIPE_SECONDS``.
    """
    argv = ["docker", "exec", "-i", host.container, "tar", "--no-same-owner", "-xf", "-", "-C", target]
    try:
        done = subprocess.run(argv, input=archive, capture_output=True, check=False, timeout=PIPE_SECONDS)
    except subprocess.TimeoutExpired as err:
        raise LabError(
            f"{host.name}: files were not written to {target} in {PIPE_SECONDS} s. "
            "Look at it with make lab-status, then run this again."
        ) from err
    if done.returncode:
        raise LabError(f"{host.name}: files were not written to {target}: {done.stderr.decode().strip()}")


def stamped(host: Host, name: str) -> str:
    """The value that the lab noted on a host; empty where there is none."""
    return execute(host, "cat", f"{STAMP}/{name}", check=False).strip()


def stamp(host: Host, name: str, value: str) -> None:
    """Note a value on a host."""
    put(host, {f"{STAMP}/{name}": value.encode()})


# --- the site's servers


def site_files() -> dict[str, bytes]:
    """What makes the site's file server and registry."""
    return {
        "/etc/lab/files.conf": (LAB / "site/files.conf").read_bytes(),
        "/etc/lab/registry.yml": (LAB / "site/registry.yml").read_bytes(),
        "/etc/systemd/system/lab-files.service": (LAB / "site/lab-files.service").read_bytes(),
        "/etc/systemd/system/docker-registry.service": (LAB / "site/docker-registry.service").read_bytes(),
    }


def digest(files: dict[str, bytes]) -> str:
    """One hash over names and contents."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def site_fresh() -> str | None:
    """Why the site's servers are left as they are."""
    if stamped(MASTER, "site") != digest(site_files()):
        return None
    return urls() if site_answers() else None


def start_site() -> str:
    """Configure and start the site's servers."""
    put(MASTER, site_files())
    execute(MASTER, "systemctl", "daemon-reload")
    execute(MASTER, "systemctl", "enable", "--quiet", "lab-files", "docker-registry")
    execute(MASTER, "systemctl", "restart", "lab-files", "docker-registry")
    stamp(MASTER, "site", digest(site_files()))
    # systemd calls a simple service started before it listens.
    until(site_answers, "The site's servers do not answer")
    return urls()


def site_answers() -> bool:
    """Whether the site's file server and registry answer."""
    servers = (f"http://{address(10)}:{FILE_PORT}/", f"http://{containers.registry()}/v2/")
    try:
        return all(requests.get(url, timeout=2).ok for url in servers)
    except requests.RequestException:
        return False


def urls() -> str:
    """Where the site's servers are."""
    return f"http://{address(10)}:{FILE_PORT}/ and registry {address(10)}:{REGISTRY_PORT}"


# --- this checkout and the lab's pillar


def tree() -> list[str]:
    """The files of this checkout that git knows or would take."""
    out = run(
        ["git", "-C", CHECKOUT, "-c", f"safe.directory={CHECKOUT}", "ls-files", "-co", "--exclude-standard", "-z"]
    )
    return sorted(name for name in set(out.split("\0")) if name and os.path.lexists(CHECKOUT / name))


def content(name: str) -> bytes:
    """What a file holds; of a link, where it points."""
    path = CHECKOUT / name
    return str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()


def tree_digest(names: list[str]) -> str:
    """One hash over files of this checkout."""
    return digest({name: content(name) for name in names})


def project_fresh() -> str | None:
    """Why the checkout on the master is this one."""
    names = tree()
    if stamped(MASTER, "project") != tree_digest(names) or pillar_changes():
        return None
    return f"{len(names)} files"


def copy_tree(host: Host, names: list[str]) -> None:
    """Copy files of this checkout to a host."""
    execute(host, "mkdir", "-p", TARGET)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            tar.add(CHECKOUT / name, name, recursive=False)
    pipe(host, stream.getvalue(), TARGET)


def sync_project() -> str:
    """Copy this checkout to the master, take away what is no longer in it, and configure Salt there."""
    names = tree()
    before = set(stamped(MASTER, "project.files").splitlines())
    gone = sorted(before - set(names))
    if gone:
        execute(MASTER, "sh", "-c", f"cd {TARGET} && xargs -r -d '\\n' rm -f --", stdin="\n".join(gone))
    copy_tree(MASTER, names)
    copied = copy_pillar()
    configure_master()
    stamp(MASTER, "project.files", "\n".join(names) + "\n")
    stamp(MASTER, "project", tree_digest(names))
    return f"{len(names)} files at {TARGET}" + (f"; pillar: {', '.join(copied)}" if copied else "")


def configure_master() -> None:
    """Let the checkout on the master configure Salt there, as an operator's `make master` does."""
    execute(MASTER, f"{TARGET}/etc/configure-master.sh", PILLAR)
    until(master_listens, "salt_master: Salt's master does not listen")


def lab_pillar() -> dict[str, bytes]:
    """The lab's pillar files, with this lab's addresses and the published artifacts."""
    prefix, default = (text.rsplit(".", 1)[0] + "." for text in (address(0), DEFAULT_SUBNET))
    files = {path.name: path.read_text().replace(default, prefix) for path in sorted((LAB / "pillar").glob("*.sls"))}
    files["artifacts.sls"] = artifacts_pillar()
    return {name: text.encode() for name, text in files.items()}


def artifacts_pillar() -> str:
    """Where the hosts get each artifact, with its hash."""
    ollama, vault = artifacts.OLLAMA, artifacts.VAULT
    data = {
        "ollama": {
            "version": ollama.version,
            "source": ollama.url.replace(ollama.version, "{version}").replace("amd64", "{arch}"),
            "hashes": {ollama.version: {"amd64": ollama.manifest().get("sha256", "")}},
            "checksums": None,
        },
        "vault": {
            "version": vault.version,
            "source": vault.url.replace(vault.version, "{version}"),
            "source_hash": f"sha256={vault.manifest().get('sha256', '')}",
        },
        "salt_minion": {"wheelhouse": f"http://{address(10)}:{FILE_PORT}/wheels/"},
    }
    head = "# Written by the lab: where the hosts get what this site's file server and registry have.\n"
    return head + json.dumps(merge(data, containers.pillar()), indent=2) + "\n"


def pillar_changes() -> dict[str, bytes]:
    """The lab's pillar files that the master lacks, or has as the lab last copied them and now differ.

    What an operator edited there stays.
    """
    script = f"mkdir -p {PILLAR} {STAMP}/pillar; cd {PILLAR}; sha256sum * 2>/dev/null; echo; cat {STAMP}/pillar.sums"
    now, _, copied = execute(MASTER, "sh", "-c", script, check=False).partition("\n\n")
    here, last = sums(now), sums(copied)
    wanted = lab_pillar()
    return {
        name: text
        for name, text in wanted.items()
        if here.get(name) != hashlib.sha256(text).hexdigest() and here.get(name) == last.get(name)
    }


def sums(text: str) -> dict[str, str]:
    """What ``sha256sum`` printed, by name.

    >>> sums("aa  x.sls")
    {'x.sls': 'aa'}
    """
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) == 2]
    return {name: value for value, name in pairs}


def copy_pillar() -> list[str]:
    """Copy those pillar files; returns their names."""
    changes = pillar_changes()
    if changes:
        put(MASTER, {f"{PILLAR}/{name}": text for name, text in changes.items()})
        noted = sums(stamped(MASTER, "pillar.sums")) | {n: hashlib.sha256(t).hexdigest() for n, t in changes.items()}
        stamp(MASTER, "pillar.sums", "".join(f"{value}  {name}\n" for name, value in noted.items()))
    return sorted(changes)


# --- the operator's way into a bare server


def ssh_fresh() -> str | None:
    """Why the master's ssh key need not be brought to the bare server."""
    return "the master's key is there" if master_key() and master_key() in authorized() else None


def master_key() -> str:
    """The public half of the master's ssh key; empty where it has none."""
    return execute(MASTER, "cat", "/root/.ssh/id_ed25519.pub", check=False).strip()


def authorized() -> str:
    """The keys that may log in to the bare server."""
    return execute(BARE, "cat", AUTHORIZED, check=False)


def authorise() -> str:
    """Make the master an ssh key and let it log in to the bare server, as an operator does with ssh-copy-id."""
    if not master_key():
        execute(
            MASTER, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "salt_master", "-f", "/root/.ssh/id_ed25519"
        )
    put(BARE, {AUTHORIZED: f"{master_key()}\n".encode()}, mode=0o600)
    execute(BARE, "chown", "-R", "admin:admin", "/home/admin/.ssh")
    execute(BARE, "chmod", "0700", "/home/admin/.ssh")
    return f"admin@{BARE.address}"


# --- Salt's keys


def salt_fresh() -> str | None:
    """Why the minions need nothing: all of them answer, with the configuration of this checkout."""
    return None if silent() else "all minions answer"


def master_listens() -> bool:
    """Whether the master takes requests; systemd calls it started a little before that."""
    return execute(MASTER, "ss", "-Hltn", "sport = 4505 or sport = 4506").count("LISTEN") == PORTS


def silent() -> list[Host]:
    """The minions that do not answer, or not with the configuration of this checkout."""
    there = answering()
    return [host for host in MINIONS if host.name not in there or stamped(host, "minion") != minion_digest()]


def listening() -> set[str]:
    """The addresses from which minions listen to what the master publishes."""
    lines = execute(MASTER, "ss", "-Htn", "state", "established", "sport = 4505").splitlines()
    return {line.split()[3].rpartition(":")[0] for line in lines}


def answering() -> set[str]:
    """The minions that answer the master."""
    out = execute(
        MASTER, *["timeout", "15", "salt", "--out=json", "--static", "-t", "5", "*", "test.ping"], check=False
    )
    try:
        return {name for name, reply in json.loads(out).items() if reply is True}
    except ValueError:
        return set()


def minion_files() -> dict[str, bytes]:
    """A minion's files of this checkout."""
    return {
        "/etc/salt/minion": (CHECKOUT / "etc/minion/minion").read_bytes(),
        "/etc/systemd/system/salt-minion.service": (CHECKOUT / "etc/systemd/salt-minion.service").read_bytes(),
    }


def minion_digest() -> str:
    """Changes whenever a minion has to be configured anew."""
    return digest(minion_files())


def enrol() -> str:
    """Start the master and those minions that need it, and accept exactly the keys that the minions themselves show."""
    execute(MASTER, "systemctl", "start", "salt-master")
    until(master_listens, "salt_master: Salt's master does not listen")
    master_finger = until(master_fingerprint, "salt_master: Salt's master has made no key")
    hosts = silent()
    with ThreadPoolExecutor(len(MINIONS)) as pool:
        fingers = dict(zip(hosts, pool.map(lambda host: start_minion(host, master_finger), hosts), strict=True))
        list(pool.map(lambda host: accept(host, fingers[host]), hosts))
    names = {host.name for host in hosts}
    # Asked only then: the master waits long for the answer of a minion that is not there yet.
    await_listening(hosts)
    until(lambda: answering() >= names, f"salt_master: not all of {', '.join(sorted(names))} answer")
    for host in hosts:
        stamp(host, "minion", minion_digest())
    return f"{len(fingers)} keys compared and accepted"


def await_listening(hosts: list[Host]) -> None:
    """Wait until minions listen to the master; those that do not come are started anew.

    Seen once: a minion whose key was accepted had not connected a minute later.

    Raises:
        LabError: one of them does not listen then either.
    """

    def missing() -> list[Host]:
        there = listening()
        return [host for host in hosts if host.address not in there]

    try:
        wait.until(lambda: not missing(), LISTEN_SECONDS, 0.3)
    except WaitTimeoutError:
        for host in missing():
            execute(host, "systemctl", "restart", "salt-minion")
        names = ", ".join(host.name for host in hosts)
        until(lambda: not missing(), f"salt_master: not all of {names} listen to it")


def fingerprint(pem: str) -> str:
    r"""The fingerprint of a public key, as ``key.finger`` and ``master_finger`` have it.

    ``salt-key --finger`` of Salt 3008 hashes the key's first and last line too, and so shows another one.

    >>> fingerprint("-----BEGIN PUBLIC KEY-----\\nQQ==\\n-----END PUBLIC KEY-----\\n")[:8]
    'ad:f2:ad'
    """
    lines = [line for line in pem.splitlines() if line.strip()]
    value = hashlib.sha256("".join(f"{line}\n" for line in lines[1:-1]).encode()).hexdigest()
    return ":".join(value[at : at + 2] for at in range(0, len(value), 2)) if len(lines) > 2 else ""


def master_fingerprint() -> str:
    """The fingerprint of the master's public key; empty until it is made."""
    return fingerprint(execute(MASTER, "cat", f"{PKI}/master.pub", check=False))


def start_minion(host: Host, master_finger: str) -> str:
    """Configure and start a minion; returns the fingerprint of its key, read on the minion itself."""
    own = {"id": host.name, "master": MASTER.address, "master_finger": master_finger, "acceptance_wait_time": 1}
    put(host, minion_files() | {"/etc/salt/minion.d/host.conf": (json.dumps(own) + "\n").encode()})
    # A master that was made anew has another key; the one that a minion kept would stop it.
    execute(host, "rm", "-f", "/etc/salt/pki/minion/minion_master.pub")
    execute(host, "systemctl", "daemon-reload")
    execute(host, "systemctl", "enable", "--quiet", "salt-minion")
    # Waited for: one that is still stopping answers the master, and is gone a moment later.
    execute(host, "systemctl", "restart", "salt-minion")
    until(lambda: execute(host, "ls", "/etc/salt/pki/minion/minion.pub", check=False), f"{host.name}: no key was made")
    out = execute(host, "salt-call", "--local", "key.finger", "--out=json")
    return str(json.loads(out)["local"])


def accept(host: Host, finger: str) -> None:
    """Accept a minion's key if the master has received exactly the one with this fingerprint.

    Raises:
        LabError: the master has received another key under that name, or none.
    """

    def received() -> tuple[str, ...]:
        return received_key(host)

    state, value = until(received, f"{host.name}: its key has not reached the master")
    if state == "minions" and value != finger:
        # The host was made anew. Its old key is of no use, and the new one comes when the minion asks again.
        execute(MASTER, "salt-key", "--yes", f"--delete={host.name}")
        execute(host, "systemctl", "restart", "salt-minion")
        state, value = until(received, f"{host.name}: its new key has not reached the master")
    if value != finger:
        raise LabError(f"{host.name}: the master received a key with fingerprint {value}, the minion has {finger}")
    if state != "minions":
        execute(MASTER, "salt-key", "--yes", f"--accept={host.name}")


def received_key(host: Host) -> tuple[str, ...]:
    """Where the master keeps the key of this minion, and its fingerprint; nothing if it has received none."""
    for state in ("minions", "minions_pre", "minions_denied", "minions_rejected"):
        finger = fingerprint(execute(MASTER, "cat", f"{PKI}/{state}/{host.name}", check=False))
        if finger:
            return state, finger
    return ()


def until(read: Callable[[], Answer], failure: str) -> Answer:
    """Read until there is something.

    Raises:
        LabError: there is nothing after ``KEY_SECONDS``.
    """
    try:
        return wait.until(read, KEY_SECONDS, 0.3)
    except WaitTimeoutError as err:
        hint = "Run make lab again, or look with: make lab-shell"
        raise LabError(f"{failure} after {KEY_SECONDS} s. {hint}") from err


# --- the deploy


# A deploy outlives the terminal that it was started from; the next one waits for it instead of being refused.
DEPLOY = """\
exec 9> /run/lab-deploy.lock
if ! flock -n 9; then
  echo "The deploy of an interrupted run is still at work on the master: waiting for it to end."
  flock 9
fi
exec salt-run ai_platform.deploy
"""


def deploy() -> str:
    """Run the platform's own deploy on the master, its lines as they come."""
    code = stream(["docker", "exec", MASTER.container, "sh", "-c", DEPLOY])
    if code:
        raise LabError(
            f"The deploy ended with {code}; what failed is named above. The hosts stay up: look with make lab-status\n"
            "and make lab-shell HOST=ai_server, then run make lab again: it carries on from there."
        )
    trust_authority()
    return "the platform is deployed"


def trust_authority() -> None:
    """Let the workstation trust the authority of the platform's names, as an operator does with a site's clients."""
    pem = execute(MASTER, "salt", "--out=newline_values_only", "nginx_proxy", "platform_ca.certificate")
    put(BARE, {"/usr/local/share/ca-certificates/ai-platform.crt": f"{pem.strip()}\n".encode()})
    execute(BARE, "update-ca-certificates")

"""Containers of the platform: what Docker's Engine API is told, hardened by default. Pure: talks to no engine.

A container carries a hash of each part of its specification in a label, so that a change is told from what is there
without comparing what the engine made of it. Settings that are secret are in no part: they reach the container by
files, of which only the hash is kept.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiplatform.errors import PlatformError
from aiplatform.schema import Problem

# Stands for the image in the name of a volume that belongs to it.
IMAGE = "{image}"
PARTS_LABEL = "ai-platform.parts"
NAME_LABEL = "ai-platform.container"
HUB = "docker.io"
READ_ONLY = ":ro"
SECOND = 10**9
MIB = 1 << 20
# Where a container finds the files of its formula, and in them the settings that are secret.
FILES = "/run/platform"
SECRETS = f"{FILES}/secrets.env"
TMP = "/tmp"  # noqa: S108 (a tmpfs of each container's own)
_SOURCE = 'set -eu; set -a; . "$0"; set +a; exec "$@"'
_REDACTED_LENGTH = 8

Parts = dict[str, Any]
Settings = Mapping[str, Any]


def reference(registry: str | None, image: str, version: str, digest: str | None) -> str:
    """Return the full name of an image, pinned by its digest where there is one.

    registry
        ``host:port`` of a mirror that takes the place of the image's own registry; None: upstream's.
    image
        The image as upstream names it, such as ``quay.io/keycloak/keycloak``.
    version
        Its tag.
    digest
        ``sha256:…``, or None.
    """
    first, _, rest = image.partition("/")
    own = bool(rest) and ("." in first or ":" in first or first == "localhost")
    host, path = (first, rest) if own else (HUB, image if rest else f"library/{image}")
    name = f"{registry or host}/{path}"
    return f"{name}@{digest}" if digest else f"{name}:{version}"


def problems(written: Settings, defaults: Settings) -> list[Problem]:
    """Return the images whose name or version pillar says and whose digest is still that of the default's.

    The digest counts, so the edit of the version would be without effect.

    written
        What the operator's pillar says.
    defaults
        The defaults of all formulas.
    """
    found = []
    for formula, default in defaults.items():
        own = written.get(formula)
        # Not every formula is an image, and a wrong type is told by the schema.
        if not (isinstance(default, Mapping) and default.get("digest") and isinstance(own, Mapping)):
            continue
        if "digest" not in own and (expected := other_digest({**default, **own}, default)):
            found.append(Problem(f"{formula}.digest", default["digest"], expected))
    return found


def other_digest(row: Settings, default: Settings) -> str:
    """Return what is expected in place of the digest of another image; empty where it is this one.

    row
        What is wanted: its ``image`` and ``version``.
    default
        Whose digest stands there.
    """
    wanted, pinned = (f"{each['image']}:{each['version']}" for each in (row, default))
    return (
        "" if wanted == pinned else f"that of {wanted}, or null for that of its first pull: this is the one of {pinned}"
    )


def specification(settings: Settings, name: str, image: str, **wanted: Any) -> Parts:
    """Return a container's specification by parts, with what the platform gives every container.

    settings
        Pillar ``containers``.
    name, image
        The container's name; the image's full name.
    wanted
        The arguments of the state ``platform_container.running``.

    Raises ``PlatformError`` where the arguments do not fit each other.
    """
    _refuse(name, wanted)
    secrets = bool(wanted.get("secrets"))
    parts = {
        "image": image,
        "user": str(wanted["user"]),
        "entrypoint": ["/bin/sh", "-c", _SOURCE, SECRETS] if secrets else wanted.get("entrypoint"),
        "command": [*(wanted.get("entrypoint") or []), *wanted["command"]] if secrets else wanted.get("command"),
        "environment": [f"{key}={value}" for key, value in sorted((wanted.get("environment") or {}).items())],
        "ports": [_port(entry) for entry in wanted.get("publish") or []],
        "mounts": _mounts(wanted),
        "tmpfs": {path: _tmpfs(options) for path, options in (wanted.get("tmpfs") or {TMP: ""}).items()},
        "root": "writable" if wanted.get("writable_root") else "read-only",
        "capabilities": sorted(wanted.get("cap_add") or []),
        "limits": _limits(settings, wanted),
        "health": _health(wanted.get("health")),
        "log": wanted.get("log_options") or settings["log_options"],
        "restart": wanted.get("restart") or settings["restart"],
        "labels": {key: str(value) for key, value in (wanted.get("labels") or {}).items()},
        "gpus": wanted.get("gpus"),
        "network": wanted.get("network") or settings["network"],
        "hosts": [f"{host}:{address}" for host, address in sorted(_hosts(wanted).items())],
        "stop": int(wanted.get("stop_timeout") or settings["stop_timeout"]),
    }
    return {part: value for part, value in parts.items() if value not in (None, [], {})}


def _refuse(name: str, wanted: Settings) -> None:
    if str(wanted["user"]).split(":")[0] in ("", "0", "root"):
        raise PlatformError(
            "No container of the platform runs as root", where=name, expected="user: uid:gid", actual=wanted["user"]
        )
    if wanted.get("secrets") and not (wanted.get("command") and wanted.get("files")):
        raise PlatformError(
            "A container with secrets needs the folder they lie in and the program to start",
            where=name,
            expected="files: <folder with secrets.env>, and command",
        )


def _port(entry: str) -> dict[str, Any]:
    """Return a published port out of ``address:port:container port[/udp]``."""
    ends, _, protocol = str(entry).partition("/")
    address, port, inside = ends.rsplit(":", 2) if ends.count(":") >= 2 else ("", "", "")
    if not (address and port.isdigit() and inside.isdigit()):
        raise PlatformError(
            "A port is published on an explicit address", where=str(entry), expected="address:port:container port"
        )
    return {"address": address.strip("[]"), "port": port, "inside": f"{inside}/{protocol or 'tcp'}"}


def _mounts(wanted: Settings) -> list[dict[str, Any]]:
    """Return the mounts; a source that is no path is a volume of the engine, which starts with the image's content."""
    found = [
        {
            "Type": "bind" if source.startswith("/") else "volume",
            "Source": source,
            "Target": target.removesuffix(READ_ONLY),
            "ReadOnly": target.endswith(READ_ONLY),
        }
        for source, target in (wanted.get("volumes") or {}).items()
    ]
    if wanted.get("files"):
        found.append({"Type": "bind", "Source": wanted["files"], "Target": FILES, "ReadOnly": True})
    return found


def _of_image(source: str, image: str) -> str:
    return source.replace(IMAGE, hashlib.sha256(image.encode()).hexdigest()[:12])


def _tmpfs(options: str) -> str:
    return f"rw,nosuid,nodev,{options or 'noexec,size=64m'}"


def _limits(settings: Settings, wanted: Settings) -> dict[str, Any]:
    # Only where they are given: a container that was made without them stays as it is.
    more = {key: wanted[key] for key in ("memory_reservation_mib", "cpus") if wanted.get(key)}
    return more | {
        "memory_mib": int(wanted["memory_mib"]),
        "pids": int(wanted.get("pids") or settings["pids"]),
        "shm_mib": int(wanted.get("shm_mib") or 64),
        "nofile": int(wanted.get("nofile") or settings["nofile"]),
    }


def _health(health: Settings | None) -> dict[str, Any] | None:
    if not health:
        return None
    test = health["test"]
    # Engines before version 25 leave it unread, and first ask after a whole interval.
    soon = {"StartInterval": int(health["start_interval"] * SECOND)} if "start_interval" in health else {}
    return soon | {
        "Test": ["CMD-SHELL", test] if isinstance(test, str) else ["CMD", *test],
        "Interval": int(health.get("interval", 10) * SECOND),
        "Timeout": int(health.get("timeout", 5) * SECOND),
        "StartPeriod": int(health.get("start_period", 60) * SECOND),
        "Retries": int(health.get("retries", 3)),
    }


def _hosts(wanted: Settings) -> dict[str, str]:
    return {"host.docker.internal": "host-gateway"} | dict(wanted.get("hosts") or {})


def engine_config(name: str, parts: Parts, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return the body of the Engine API's ``POST /containers/create``.

    parts
        As ``specification`` returns them.
    digests
        As ``part_digests`` returns them; they become a label.
    """
    config = {
        "Image": parts["image"],
        "Hostname": name,
        "User": parts["user"],
        "Env": parts.get("environment", []),
        "ExposedPorts": {port["inside"]: {} for port in parts.get("ports", [])},
        "Labels": parts.get("labels", {}) | {NAME_LABEL: name, PARTS_LABEL: json.dumps(digests, sort_keys=True)},
        "StopTimeout": parts["stop"],
        "HostConfig": _host_config(parts),
        "NetworkingConfig": {"EndpointsConfig": {parts["network"]: {"Aliases": [name]}}},
    }
    given = {"Entrypoint": parts.get("entrypoint"), "Cmd": parts.get("command"), "Healthcheck": parts.get("health")}
    return config | {key: value for key, value in given.items() if value is not None}


def _host_config(parts: Parts) -> dict[str, Any]:
    limits, memory = parts["limits"], parts["limits"]["memory_mib"] * MIB
    return _shares(parts) | {
        "Mounts": [mount | {"Source": _of_image(mount["Source"], parts["image"])} for mount in parts.get("mounts", [])],
        "Tmpfs": parts.get("tmpfs", {}),
        "ReadonlyRootfs": parts["root"] == "read-only",
        "CapDrop": ["ALL"],
        "CapAdd": parts.get("capabilities", []),
        "SecurityOpt": ["no-new-privileges"],
        "Memory": memory,
        "MemorySwap": memory,
        "PidsLimit": limits["pids"],
        "ShmSize": limits["shm_mib"] * MIB,
        "Ulimits": [{"Name": "nofile", "Soft": limits["nofile"], "Hard": limits["nofile"]}],
        "LogConfig": {"Type": "json-file", "Config": dict(parts["log"])},
        "RestartPolicy": {"Name": parts["restart"]},
        "PortBindings": _bindings(parts.get("ports", [])),
        "ExtraHosts": parts.get("hosts", []),
        "NetworkMode": parts["network"],
        "Init": True,
    }


def _shares(parts: Parts) -> dict[str, Any]:
    """Return what a container gets of the host beyond the limits that every one has."""
    limits, found = parts["limits"], dict[str, Any]()
    if "memory_reservation_mib" in limits:
        found["MemoryReservation"] = int(limits["memory_reservation_mib"]) * MIB
    if "cpus" in limits:
        found["NanoCpus"] = int(limits["cpus"] * SECOND)
    if "gpus" in parts:
        count = -1 if parts["gpus"] == "all" else int(parts["gpus"])
        found["DeviceRequests"] = [{"Driver": "nvidia", "Count": count, "Capabilities": [["gpu"]]}]
    return found


def _bindings(ports: Sequence[Settings]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        found.setdefault(port["inside"], []).append({"HostIp": port["address"], "HostPort": port["port"]})
    return found


def part_digests(parts: Parts, files: Mapping[str, bytes]) -> dict[str, str]:
    """Return a short hash of each part, of the files' contents too.

    files
        Name and content of every file that the container is given.
    """
    found = {part: _digest(json.dumps(value, sort_keys=True).encode()) for part, value in parts.items()}
    if files:
        found["files"] = _digest(*(piece for name in sorted(files) for piece in (name.encode(), files[name])))
    return found


def _digest(*pieces: bytes) -> str:
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(len(piece).to_bytes(8, "big") + piece)
    return whole.hexdigest()[:24]


def differences(inspected: Settings | None, parts: Parts, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return what has to change; images are named, of every other part it is only said that it differs.

    inspected
        The container as the engine shows it, or None where there is none.
    """
    if inspected is None:
        return {"container": {"old": None, "new": parts["image"]}}
    try:
        have = json.loads(inspected["Config"]["Labels"][PARTS_LABEL])
    except (KeyError, TypeError, ValueError):
        return {"container": {"old": "not made by this state", "new": parts["image"]}}
    changed = [part for part in sorted({*have, *digests}) if have.get(part) != digests.get(part)]
    found: dict[str, Any] = {part: {"old": "as before", "new": "changed"} for part in changed}
    if "image" in found:
        found["image"] = {"old": inspected["Config"]["Image"], "new": parts["image"]}
    return found


def repair(inspected: Settings) -> dict[str, Any]:
    """Return what is wrong with how a container runs: it has stopped, or is not well."""
    state = inspected["State"]
    if state["Status"] != "running":
        return {"status": {"old": state["Status"], "new": "running"}}
    if health(inspected) == "unhealthy":
        return {"health": {"old": "unhealthy", "new": "healthy"}}
    return {}


def health(inspected: Settings) -> str:
    """Return ``healthy``, ``starting``, ``unhealthy``, or ``none`` where the container has no check of its own."""
    return str((inspected["State"].get("Health") or {}).get("Status", "none"))


def restarts(inspected: Settings | None) -> int:
    """Return how often the engine has started a container again by itself, since somebody last did."""
    return int((inspected or {}).get("RestartCount", 0))


def failed(inspected: Settings | None, before: int) -> str:
    """Return why a container that is waited for will not become well by waiting; empty where it still may.

    before
        Its ``restarts`` when the wait began: those of another day tell nothing of this one.
    """
    if inspected is None:
        return "it is gone"
    state = inspected["State"]
    if state["Status"] in ("exited", "dead"):
        return f"it has ended with exit code {state['ExitCode']}"
    if state.get("OOMKilled"):
        return "it ran out of its memory"
    if (count := restarts(inspected) - before) >= 3:
        return f"it was restarted {count} times, last exit code {state['ExitCode']}"
    return "its health check fails" if health(inspected) == "unhealthy" else ""


def well(inspected: Settings | None) -> bool:
    """Whether a container runs, and its own check (where it has one) is content."""
    if inspected is None or inspected["State"]["Status"] != "running":
        return False
    return health(inspected) in ("healthy", "none")


def secrets_text(values: Mapping[str, Any]) -> str:
    """Return settings as a file that a shell reads, each value quoted."""
    for key, value in values.items():
        if value in (None, ""):
            raise PlatformError(
                "A secret setting is empty", where=key, hint="salt-run vault_server.bootstrap fills Vault"
            )
    return "".join(f"{key}={shlex.quote(str(value))}\n" for key, value in sorted(values.items()))


def redact(text: str, files: Iterable[bytes]) -> str:
    """Return text in which no value of a file that a shell reads (``KEY=value`` lines) can be seen."""
    lines = [line for content in files for line in content.decode(errors="replace").splitlines() if "=" in line]
    values = {_unquoted(line.partition("=")[2]) for line in lines}
    for value in sorted((value for value in values if len(value) >= _REDACTED_LENGTH), key=len, reverse=True):
        text = text.replace(value, "********")
    return text


def _unquoted(text: str) -> str:
    try:
        return "".join(shlex.split(text))
    except ValueError:
        return text.strip()


def read_files(folder: str | None) -> dict[str, bytes]:
    """Return name and content of every file of a folder; empty where there is none."""
    root = Path(folder) if folder else None
    if root is None or not root.is_dir():
        return {}
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def network_difference(inspected: Settings | None, bridge: str, subnet: str | None) -> dict[str, Any]:
    """Return what differs between a network of the engine and the one that is wanted."""
    if inspected is None:
        return {"network": {"old": None, "new": f"bridge {bridge}" + (f", {subnet}" if subnet else "")}}
    have = {
        "bridge": (inspected.get("Options") or {}).get("com.docker.network.bridge.name"),
        "subnet": next(iter(row.get("Subnet") for row in inspected["IPAM"]["Config"] or [{}]), None),
    }
    wanted = {"bridge": bridge} | ({"subnet": subnet} if subnet else {})
    return {key: {"old": have[key], "new": value} for key, value in wanted.items() if have[key] != value}


def volume_difference(
    inspected: Settings | None, owner: tuple[int, int] | None, uid: int, gid: int, device: str | None = None
) -> dict[str, Any]:
    """Return what differs between a volume and the one that is wanted.

    inspected
        The volume as the engine shows it, or None where there is none.
    owner
        Who owns its folder on the host: user and group.
    device
        The folder of the host that it is to be kept in; None: among Docker's own, or where somebody else's is.
    """
    wanted = f"{uid}:{gid}"
    if inspected is None:
        return {"volume": {"old": None, "new": f"owned by {wanted}"}}
    found: dict[str, Any] = {}
    have, own = (inspected.get("Options") or {}).get("device"), NAME_LABEL in (inspected.get("Labels") or {})
    if (device or own) and (have or "").rstrip("/") != (device or "").rstrip("/"):
        found["place"] = {"old": have or inspected["Mountpoint"], "new": device or "among Docker's own"}
    if owner != (uid, gid):
        found["owner"] = {"old": ":".join(map(str, owner or ())), "new": wanted}
    return found


def network_arguments(name: str, bridge: str, subnet: str | None) -> dict[str, Any]:
    """Return the arguments with which Docker's library makes a network."""
    found: dict[str, Any] = {
        "driver": "bridge",
        "check_duplicate": True,
        "options": {"com.docker.network.bridge.name": bridge},
        "labels": {NAME_LABEL: name},
    }
    return found | ({"ipam": {"Driver": "default", "Config": [{"Subnet": subnet}]}} if subnet else {})

"""One deploy at a time, that can be taken up again where it failed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import Any

from aiplatform.errors import PlatformError
from aiplatform.phases import MINIONS, RUNNER, STATE, Step

FOLDER = "ai_platform"
# Under this name a minion keeps which modules it has, next to them in its cache.
DIGEST = "ai_platform_modules"
# What a failed deploy had done counts for a day.
KEPT_SECONDS = 24 * 3600
# What differs between two runs of one deploy and must not make it another one: the benchmark writes the selection, and
# a comment moves the lines of pillar.
_NOT_INPUTS = frozenset({"selection", "compiled", "origins", "phases", "limit"})
_held: dict[Path, int] = {}


class Lock:
    """The lock of deploys on one master; the process that takes it keeps it until ``release`` or its end.

    So do the processes of the deploy's steps, until they end too.
    """

    def __init__(self, cachedir: Path) -> None:
        self.path = cachedir / FOLDER / "deploy.lock"

    def take(self, command: str) -> None:
        """Take the lock, or do nothing where this process has it already.

        command
            What it is taken for; a second deploy is told.

        Raises ``PlatformError`` naming the holder.
        """
        if self.path in _held:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            os.close(handle)
            raise self._refused() from err
        holder = {
            "pid": os.getpid(),
            "user": os.environ.get("SUDO_USER") or getuser(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "command": command,
        }
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(holder).encode())
        _held[self.path] = handle

    def release(self) -> None:
        """Give the lock back; nothing where this process does not hold it."""
        handle = _held.pop(self.path, None)
        if handle is not None:
            os.close(handle)

    def holder(self) -> dict[str, Any]:
        """Return ``pid``, ``user``, ``started`` and ``command`` of the latest holder; ``{}`` where there was none."""
        return _stored(self.path)

    def _refused(self) -> PlatformError:
        held = dict.fromkeys(("command", "user", "pid", "started"), "unknown") | self.holder()
        gone = isinstance(held["pid"], int) and not Path(f"/proc/{held['pid']}").exists()
        told = ", which has ended before its last steps," if gone else ","
        return PlatformError(
            "Another deploy is running",
            where=str(self.path),
            expected="one deploy at a time",
            actual="{command} of user {user}, pid {pid}{told} since {started}".format(told=told, **held),
            hint="wait for it to end, or end it",
        )


def _stored(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; ``{}`` where there is none, or another thing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def forget_locks() -> None:
    """Close what a forked process has inherited of the locks; they stay with the process that took them.

    For one that only watches. A step of a deploy keeps its own: it may go on where the deploy is killed.
    """
    while _held:
        os.close(_held.popitem()[1])


@dataclass(frozen=True)
class Scope:
    """What a deploy works on; only one of the same scope is carried on.

    inputs
        The fingerprint of what is deployed.
    limit
        The hosts it is limited to.
    keys
        The fingerprint of each host's accepted key, by host: a host that was installed anew has another one.
    """

    inputs: str
    limit: Sequence[str]
    keys: Mapping[str, str]

    def as_data(self) -> dict[str, Any]:
        """Return it as the record keeps it."""
        return {"inputs": self.inputs, "limit": sorted(self.limit), "keys": dict(self.keys)}


class Record:
    """Which phases of the latest deploy went well, so that a new run carries on from the others."""

    def __init__(self, cachedir: Path) -> None:
        self.path = cachedir / FOLDER / "deploy.json"

    def done(self, scope: Scope) -> dict[str, float]:
        """Return the phases that went well in the failed deploy of this scope, each with its time (epoch seconds).

        A record with a phase older than ``KEPT_SECONDS`` counts as none: who knows what was done to the hosts since.
        """
        content = _stored(self.path)
        if content.get("scope") != scope.as_data():
            return {}
        done: dict[str, float] = content["done"]
        now = time.time()
        return done if all(0 <= now - at <= KEPT_SECONDS for at in done.values()) else {}

    def failed(self, scope: Scope, done: Mapping[str, float]) -> None:
        """Keep the phases that went well before the deploy failed, with the time of each as ``done`` returns it."""
        self._write({"scope": scope.as_data(), "done": dict(sorted(done.items()))})

    def begun(self) -> bool:
        """Forget that the latest deploy went well, until this one has; returns whether it had.

        One that is killed leaves who knows what.
        """
        complete = self.complete()
        if complete:
            self.forget()
        return complete

    def succeeded(self) -> None:
        """Keep that all phases of all hosts went well."""
        self._write({"complete": True})

    def forget(self) -> None:
        """Forget the deploy before."""
        self.path.unlink(missing_ok=True)

    def complete(self) -> bool:
        """Return whether the latest deploy of all hosts went well: little will be left to do for the next."""
        return bool(_stored(self.path).get("complete"))

    def _write(self, content: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(content), encoding="utf-8")
        fresh.replace(self.path)


def fingerprint(settings: Mapping[str, Any], folders: Iterable[str]) -> str:
    """Return one hash over the settings and every file below the folders (names and content).

    settings
        The effective pillar; the benchmark's selection does not count.
    folders
        The state trees and the folders of the Python modules.
    """
    inputs = {str(key): value for key, value in settings.items() if key not in _NOT_INPUTS}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode())
    for folder in folders:
        for path in sorted(_files(Path(folder))):
            digest.update(f"\0{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(parent) / name for name in names)


def salt_state(step: Step) -> dict[str, Any]:
    """Return a step as the state that the orchestration renders: ``id``, ``function`` and ``arguments``."""
    # Two phases may work on one host at the same time: the graph says that they do not need each other.
    salted = {"tgt": list(step.hosts), "tgt_type": "list", "sls": step.name, "concurrent": True}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        STATE: ("salt.state", salted),
        RUNNER: ("orchestration.runner", {"name": step.name}),
        MINIONS: ("orchestration.minions", {"hosts": list(step.hosts)}),
    }
    function, values = kinds[step.kind]
    values = {"parallel": True, **values} | ({"require": list(step.require)} if step.require else {})
    return {"id": step.id, "function": function, "arguments": [{key: value} for key, value in values.items()]}


def modules_digest(file_roots: Iterable[str]) -> str:
    """Return one hash over the Python folders that minions get from the state trees."""
    return fingerprint({}, [str(folder) for root in file_roots for folder in sorted(Path(root).glob("_*"))])


def demand_keys(steps: Iterable[Step], accepted: Iterable[str]) -> None:
    """Raise ``PlatformError`` where the master has not accepted the key of a step's host: Salt would leave it out."""
    missing = sorted({host for step in steps for host in step.hosts} - set(accepted))
    if missing:
        raise PlatformError(
            "Hosts of the platform are no minions of this master",
            where="platform.hosts",
            expected="an accepted key for each host",
            actual=f"none for {', '.join(missing)}",
            hint="salt-run ai_platform.bootstrap host=<id> user=<login>, or limit the deploy to the other hosts",
        )

"""The machine the lab runs on: Debian packages, and the container engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from aiplatform import wait
from aiplatform.errors import WaitTimeoutError
from lab.process import docker, run
from lab.settings import LabError, folder

ENGINE_WAIT = 60
_apt = threading.Lock()


def is_root() -> bool:
    """Whether this process may install packages and start an engine."""
    return os.geteuid() == 0


def missing_packages(names: list[str]) -> list[str]:
    """Those Debian packages that are not installed."""
    out = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names], check=False)
    present = {line.split()[0] for line in out.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in present]


def ensure_packages(names: list[str], why: str) -> None:
    """Install Debian packages where they are missing.

    Raises:
        LabError: they are missing and this is no Debian, or not root.
    """
    if not shutil.which("apt-get"):
        raise LabError(f"{why} needs Debian's packages {', '.join(names)}, and this machine has no apt-get")
    with _apt:
        absent = missing_packages(names)
        if not absent:
            return
        if not is_root():
            raise LabError(f"{why} needs {', '.join(absent)}. Install them (apt-get install ...) or run this as root.")
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        lock = ["-o", "DPkg::Lock::Timeout=300"]
        # An installation that was interrupted is carried on: nothing can be installed before. While another one is at
        # work this is refused; apt-get then waits.
        run(["dpkg", "--configure", "-a"], log="apt", env=env, check=False)
        run(["apt-get", "-qq", "update"], log="apt", env=env)
        run(["apt-get", "-qq", *lock, "install", "--no-install-recommends", *absent], log="apt", env=env)


def ensure_commands(packages: dict[str, str], why: str) -> None:
    """Install the Debian packages of those commands that are not there.

    Raises:
        LabError: one is missing and this is no Debian, or not root.
    """
    if absent := [package for command, package in packages.items() if not shutil.which(command)]:
        ensure_packages(absent, why)


def resolvers() -> list[str]:
    """The name servers that this machine asks, as far as others can reach them too."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        lines = path.read_text().splitlines() if path.exists() else []
        found = [line.split()[1] for line in lines if line.startswith("nameserver ")]
        if usable := [address for address in found if not address.startswith(("127.", "::1"))]:
            return usable
    return []


def engine_answers() -> bool:
    """Whether a container engine answers; the command alone says nothing."""
    if not shutil.which("docker"):
        return False
    return bool(run(["docker", "info", "--format", "{{.ServerVersion}}"], check=False, timeout=30).strip())


def engine_fresh() -> str | None:
    """Why no engine has to be started."""
    return "an engine answers" if engine_answers() else None


def check_engine() -> None:
    """Refuse, before anything is built, a user who has no engine and cannot start one.

    Raises:
        LabError: no engine answers, and this is not root.
    """
    if not is_root() and not engine_answers():
        raise LabError(
            "No container engine answers here, and only root can install and start one.\n"
            "Run this as root, or start Docker and give this user access to it (group docker)."
        )


def start_engine() -> str:
    """Install Docker where it is missing, and start it where nothing answers.

    Raises:
        LabError: not root, or the engine did not come up.
    """
    check_engine()
    if not shutil.which("dockerd"):
        ensure_packages(["docker.io", "iptables"], "The container engine")
    if await_engine(3):  # the package has started it, where systemd runs
        return "Docker, started by the system"
    end = time.monotonic() + ENGINE_WAIT
    while (left := end - time.monotonic()) > 0:
        process = spawn_engine()
        # One that ends at once found another one that is just stopping: try again.
        if await_engine(left, process):
            return f"Docker, started by the lab (process {process.pid})"
    pid_file().unlink(missing_ok=True)
    raise LabError(f"dockerd did not answer in {ENGINE_WAIT} s; its log: {folder('logs') / 'dockerd.log'}")


def spawn_engine() -> subprocess.Popen[bytes]:
    """Start dockerd by itself, and note its process."""
    with (folder("logs") / "dockerd.log").open("a") as log:
        process = subprocess.Popen(
            ["dockerd", "--log-level=warn"],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    pid_file().write_text(str(process.pid))
    return process


def await_engine(seconds: float, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait until the engine answers, at most this long and no longer than its process lives."""
    try:
        wait.until(lambda: engine_answers() or (process and process.poll() is not None), seconds)
    except WaitTimeoutError:
        return False
    return engine_answers()


def pid_file() -> Path:
    """Where the lab notes the engine that it started."""
    return folder("lab") / "dockerd.pid"


def own_engine() -> int | None:
    """The process of the engine that the lab started, while it lives."""
    try:
        pid = int(pid_file().read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ValueError):
        return None
    return pid if command.split(b"\0")[0].endswith(b"dockerd") else None


def reaped(pid: int) -> bool:
    """Whether this process's own child has ended; of another's child nothing is known here."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def stop_engine() -> str:
    """Stop the engine if the lab started it and nobody else's containers run on it.

    Raises:
        LabError: it does not stop.
    """
    pid = own_engine()
    if pid is None:
        return "the engine is not the lab's: left running"
    others = docker("ps", "-q").split()
    if others:
        return f"left running: {len(others)} containers that are not the lab's run on it"
    os.kill(pid, signal.SIGTERM)
    try:
        wait.until(lambda: reaped(pid) or own_engine() is None, ENGINE_WAIT, 0.2)
    except WaitTimeoutError as err:
        raise LabError(
            f"The engine that the lab started (process {pid}) still runs {ENGINE_WAIT} s after it was told to stop; "
            f"its log: {folder('logs') / 'dockerd.log'}\nRun make lab-down again; if it stays, end it: kill -9 {pid}"
        ) from err
    pid_file().unlink(missing_ok=True)
    return "the engine that the lab started is stopped"


def debian_mirror() -> str | None:
    """The mirror that this machine's apt uses for Debian itself, if it says so."""
    out = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)"], check=False)
    found = [line.split()[0] for line in out.splitlines() if line.endswith(" bookworm main")]
    return found[0] if found else None

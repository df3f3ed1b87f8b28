"""A virtual machine of two NUMA nodes: Debian's kernel and systemd on an emulated processor, from one disk image.

The processor is emulated in software (QEMU's TCG): the same everywhere, and KVM is not. Images are kept in the cache,
named after all that they are made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lab import images, machine
from lab.process import command, end, run
from lab.settings import LabError, folder

PACKAGES = ["qemu-system-x86", "debootstrap", "e2fsprogs"]
KERNEL = "linux-image-cloud-amd64"
INSIDE = ["systemd-sysv", "kmod", "numactl", "nftables", "python3", "libstdc++6"]
# Nothing of a package that a test machine reads.
USELESS = ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"]
GUEST = Path(__file__).parent / "guest"
# Consoles wait for devices that only udev reports; the agent's port needs none.
MASKED = ["serial-getty@ttyS0.service", "getty.target", "apt-daily.timer", "apt-daily-upgrade.timer"]
NODE_MIB = 1024
DISK_MIB = 2048
START_SECONDS = 10
# Ten seconds and less on a machine with nothing else to do.
BOOT_SECONDS = 360
COMMAND_SECONDS = 300


def base_recipe() -> str:
    """Changes whenever the plain system has to be made anew."""
    text = json.dumps([KERNEL, INSIDE, USELESS])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def base() -> Path:
    """The tree of a plain Debian with its kernel; made where the cache has none.

    Raises:
        LabError: a package is missing and this is not root.
    """
    tree = folder("numa") / f"base-{base_recipe()}"
    if tree.exists():
        return tree
    machine.ensure_packages(PACKAGES, "The virtual machine of two NUMA nodes")
    if not machine.is_root():
        raise LabError(
            "The image of the virtual machine is made by debootstrap, which needs root: run this as root once."
        )
    fresh = tree.with_name(tree.name + ".new")
    images.clear(folder("numa", fresh.name))
    mirror = machine.debian_mirror()
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(INSIDE)}", "bookworm", str(fresh)]
    run([*argv, *([mirror] if mirror else [])], log="numa")
    add_kernel(fresh)
    for name in USELESS:
        shutil.rmtree(fresh / name, ignore_errors=True)
    fresh.rename(tree)
    return tree


def add_kernel(tree: Path) -> None:
    """Put Debian's kernel and its modules into a tree; it boots without an initial RAM disk."""
    run(["apt-get", "-qq", "update"], log="numa")
    found = re.search(r"Depends: (linux-image-\S+)", run(["apt-cache", "depends", KERNEL]))
    if not found:
        raise LabError(f"apt-cache does not know which kernel {KERNEL} is: look at `apt-cache depends {KERNEL}`")
    with tempfile.TemporaryDirectory() as scratch:
        run(["apt-get", "-qq", "download", found.group(1)], cwd=Path(scratch), log="numa")
        package = shlex.quote(str(next(Path(scratch).glob("*.deb"))))
        # /lib is a link to /usr/lib, and has to stay one.
        unpack = f"dpkg-deb --fsys-tarfile {package} | tar -x --keep-directory-symlink -C {shlex.quote(str(tree))}"
        run(["sh", "-c", unpack], log="numa")
    run(["chroot", tree, "depmod", found.group(1).removeprefix("linux-image-")], log="numa")


def image(recipe: str, fill: Callable[[Path], None]) -> Path:
    """The disk image of the system with what a test adds; made where the cache has none.

    Args:
        recipe: changes whenever ``fill`` would yield something else.
        fill: adds to the tree of a plain system, as root.
    """
    agent = "".join(path.read_text() for path in sorted(GUEST.iterdir()))
    digest = hashlib.sha256(f"{base_recipe()} {recipe} {agent}".encode()).hexdigest()[:12]
    target = folder("numa") / f"disk-{digest}.img"
    if target.exists():
        return target
    for old in target.parent.glob("disk-*"):
        old.unlink()
    below = base()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        tree = Path(scratch) / "tree"
        run(["cp", "-a", below, tree])
        shutil.copytree(GUEST, tree / "opt/tests")
        shutil.copy(GUEST / "agent.service", tree / "etc/systemd/system/agent.service")
        fill(tree)
        run(["chroot", tree, "systemctl", "--quiet", "enable", "agent.service"])
        disk = Path(scratch) / "disk"
        with disk.open("wb") as stream:
            stream.truncate(DISK_MIB << 20)
        run(["mkfs.ext4", "-q", "-d", tree, disk])
        disk.rename(target)
    return target


def kernel() -> Path:
    """The kernel of the plain system."""
    return next((base() / "boot").glob("vmlinuz-*"))


@dataclass
class Guest:
    """The running machine; commands run in it as root."""

    stream: BinaryIO

    def run(self, line: str, check: bool = True) -> str:
        """Run a shell's command line and return its output.

        Raises:
            LabError: it failed, and ``check``.
        """
        done = self.ask(shell=line)
        if check and done["code"]:
            raise LabError(f"{line}: exit {done['code']}\n{done['out']}\n{done['err']}")
        return str(done["out"])

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request to the agent (see ``guest/agent.py``) and return its answer."""
        self.stream.write(json.dumps(request).encode() + b"\n")
        self.stream.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of the agent."""
        return dict(json.loads(self.stream.readline()))


@contextlib.contextmanager
def booted(disk: Path) -> Iterator[Guest]:
    """Boot a machine from an image, which stays as it is, and yield it once its agent answers.

    Raises:
        LabError: it did not come up; the text has the end of its console.
    """
    machine.ensure_packages(PACKAGES[:1], "The virtual machine of two NUMA nodes")
    console = folder("logs") / "numa-console.log"
    with tempfile.TemporaryDirectory() as scratch, socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{scratch}/agent")
        door.listen()
        door.settimeout(START_SECONDS)
        argv = arguments(disk, console, f"{scratch}/agent")
        with (folder("logs") / "numa.log").open("a") as log, command(argv, stdout=log, stderr=log) as process:
            try:
                line, _ = door.accept()
                with line, line.makefile("rwb") as stream:
                    guest = Guest(stream)
                    line.settimeout(BOOT_SECONDS)
                    guest.answer()
                    line.settimeout(COMMAND_SECONDS)
                    yield guest
            except (OSError, ValueError) as err:
                tail = console.read_text(errors="replace")[-2000:] if console.exists() else ""
                raise LabError(f"The virtual machine does not answer: {err}; its console:\n{tail}") from err
            finally:
                end(process)


def arguments(disk: Path, console: Path, agent: str) -> list[str]:
    """The command line of QEMU: two nodes with two processors and a GiB each."""
    boot = ["root=/dev/nvme0n1", "rw", "console=ttyS0", "panic=-1", "mitigations=off"]
    nodes = []
    for node, cpus in enumerate(("0-1", "2-3")):
        nodes += ["-object", f"memory-backend-ram,id=memory{node},size={NODE_MIB}M"]
        nodes += ["-numa", f"node,memdev=memory{node},cpus={cpus}"]
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", "4,sockets=2", "-m", f"{2 * NODE_MIB}M", *nodes),
        *("-kernel", str(kernel()), "-append", " ".join([*boot, *(f"systemd.mask={unit}" for unit in MASKED)])),
        # The kernel has this disk's driver built in. What is written goes to a file of its own, and is gone afterwards.
        *("-drive", f"file={disk},format=raw,if=none,id=disk,snapshot=on", "-device", "nvme,drive=disk,serial=disk"),
        *("-serial", f"file:{console}", "-chardev", f"socket,id=agent,path={agent}"),
        *("-serial", "chardev:agent", "-nic", "none", "-display", "none", "-monitor", "none", "-no-reboot"),
    ]

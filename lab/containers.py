"""Images of the platform's containers in the site's registry: upstream's where it can be pulled, else built here.

The registry's store is in the cache, so an image is copied or built once. Its digest goes into the lab's pillar.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from lab import artifacts, builds, images, machine
from lab.process import docker, last_line, run
from lab.settings import (
    COREDNS_VERSION,
    KEYCLOAK_VERSION,
    LAB,
    OLLAMA_VERSION,
    OPENWEBUI_VERSION,
    POSTGRES_VERSION,
    PREFIX,
    QDRANT_VERSION,
    REGISTRY_PORT,
    LabError,
    address,
    folder,
)
from lab.steps import Step

TRY_SECONDS = 8
COPY_SECONDS = 900
BUILD_SECONDS = 1800
FOLDERS = LAB / "images" / "containers"
MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
)
# What Python leaves beside a file that a test imports: no part of an image.
COMPILED = "__pycache__"
_guard = threading.Lock()
_building = threading.Lock()


@dataclass(frozen=True)
class Container:
    """An image that a formula runs.

    Attributes:
        name: the formula's pillar key, and the folder below ``lab/images/containers`` that builds it.
        version: upstream's tag.
        upstream: the image as upstream names it, registry included.
        prepare: puts further files into the build's context.
        lock: changes whenever those files would be others.
        needs: titles of the steps whose results those files are.
        stand_in: whether what is built is not the same server, which is then said.
        within: the pillar key that holds the formula's image, where it is not the formula itself.
    """

    name: str
    version: str
    upstream: str
    prepare: Callable[[Path], object] | None = None
    lock: str = ""
    needs: tuple[str, ...] = ()
    stand_in: bool = False
    within: str = ""

    @property
    def path(self) -> str:
        """Its name in the site's registry, where ``containers.registry`` in pillar makes hosts look for it."""
        return self.upstream.partition("/")[2]

    @property
    def source(self) -> Path:
        """The folder with its Dockerfile."""
        return FOLDERS / self.name

    def recipe(self) -> str:
        """A hash of all that a build is made of."""
        digest = hashlib.sha256(f"{self.version} {self.lock} {images.certificates_hash()}".encode())
        files = (path for path in [*self.source.rglob("*"), *(FOLDERS / "base").iterdir()] if path.is_file())
        for path in sorted(path for path in files if path.parent.name != COMPILED):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
        return digest.hexdigest()[:12]


ALL = (
    Container("postgres", POSTGRES_VERSION, "docker.io/library/postgres"),
    Container(
        "keycloak",
        KEYCLOAK_VERSION,
        "quay.io/keycloak/keycloak",
        prepare=lambda context: builds.keycloak(KEYCLOAK_VERSION, context / "keycloak.zip"),
        lock=builds.KEYCLOAK_SHA256,
    ),
    Container(
        "coredns",
        COREDNS_VERSION,
        "docker.io/coredns/coredns",
        prepare=lambda context: shutil.copy(artifacts.COREDNS.unpacked / "coredns", context),
        lock=builds.coredns_recipe(),
        needs=(artifacts.step(artifacts.COREDNS).title,),
    ),
    Container("qdrant", QDRANT_VERSION, "docker.io/qdrant/qdrant", stand_in=True),
    Container("openwebui", OPENWEBUI_VERSION, "ghcr.io/open-webui/open-webui"),
    Container(
        "ollama",
        OLLAMA_VERSION,
        "docker.io/ollama/ollama",
        prepare=lambda context: shutil.copytree(artifacts.OLLAMA.unpacked, context, dirs_exist_ok=True),
        lock=builds.ollama_recipe(),
        needs=(artifacts.step(artifacts.OLLAMA).title,),
        within="container",
    ),
)


def registry() -> str:
    """The site's registry, as images are named for it."""
    return f"{address(10)}:{REGISTRY_PORT}"


def noted() -> dict[str, dict[str, str]]:
    """What is known of the images in the registry, by name."""
    try:
        return dict(json.loads((folder("lab") / "containers.json").read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def note(name: str, values: dict[str, str]) -> None:
    """Note what was made of an image."""
    with _guard:
        (folder("lab") / "containers.json").write_text(json.dumps(noted() | {name: values}, indent=2) + "\n")


def step(image: Container) -> Step:
    """The step that brings an image into the registry."""
    return Step(f"container {image.name} {image.version}", do=lambda: obtain(image), fresh=lambda: fresh(image))


def fresh(image: Container) -> str | None:
    """Why the image need not be brought again."""
    known = noted().get(image.name, {})
    if known.get("version") != image.version or (known["origin"] == "built" and known["recipe"] != image.recipe()):
        return None
    return f"{known['origin']}, {known['digest'][:19]}" if in_registry(image, known["digest"]) else None


def in_registry(image: Container, digest: str) -> bool:
    """Whether the registry has an image of this digest.

    Raises:
        LabError: the registry does not answer.
    """
    url = f"http://{registry()}/v2/{image.path}/manifests/{digest}"
    try:
        return bool(requests.head(url, headers={"Accept": MANIFESTS}, timeout=10).ok)
    except requests.RequestException as err:
        raise LabError(f"The site's registry does not answer: {err}") from err


def obtain(image: Container) -> str:
    """Copy upstream's image into the registry, or build one and push it; say which of the two was done."""
    machine.ensure_packages(["skopeo"], "Copying images")
    upstream = f"docker://{image.upstream}:{image.version}"
    try:
        run(["skopeo", "inspect", "--raw", upstream], timeout=TRY_SECONDS)
        reason = ""
    except LabError as err:
        reason = last_line(err)
    if not reason:
        digest, origin, told = copy(image, upstream), "upstream", "upstream's image"
    else:
        digest, origin = build(image), "built"
        told = f"{'a STAND-IN, ' if image.stand_in else ''}built from packages (upstream: {reason})"
    note(image.name, {"version": image.version, "digest": digest, "origin": origin, "recipe": image.recipe()})
    return told


def copy(image: Container, source: str) -> str:
    """Copy an image into the registry; returns its digest there."""
    target = folder("work") / f"{image.name}.digest"
    argv: list[str | Path] = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--digestfile", target]
    run([*argv, source, f"docker://{registry()}/{image.path}:{image.version}"], timeout=COPY_SECONDS)
    digest = target.read_text().strip()
    target.unlink()
    return digest


def build(image: Container) -> str:
    """Build an image from its folder and push it; returns its digest."""
    tag = f"{PREFIX}/container-{image.name}:{image.recipe()}"
    context = folder("work", f"container-{image.name}")
    shutil.rmtree(context)
    shutil.copytree(image.source, context, ignore=shutil.ignore_patterns(COMPILED))
    if image.prepare:
        image.prepare(context)
    docker_build(tag, context, base())
    digest = copy(image, f"docker-daemon:{tag}")
    # The registry has it; the engine of the machine need not keep a second copy.
    docker("rmi", tag, check=False)
    shutil.rmtree(context)
    return digest


def base() -> str:
    """The image that builds start from, made where it is missing."""
    recipe = hashlib.sha256((FOLDERS / "base/Dockerfile").read_bytes() + images.certificates_hash().encode())
    tag = f"{PREFIX}/container-base:{recipe.hexdigest()[:12]}"
    with _building:
        if docker("images", "-q", tag).strip():
            return tag
        if not docker("images", "-q", images.BASE_TAG).strip():
            images.base()
        context = folder("work", "container-base")
        shutil.rmtree(context)
        shutil.copytree(FOLDERS / "base", context)
        (context / "certificates").mkdir()
        for path in images.CERTIFICATES.glob("**/*.crt"):
            shutil.copy(path, context / "certificates")
        docker_build(tag, context, images.BASE_TAG)
        shutil.rmtree(context)
    return tag


def docker_build(tag: str, context: Path, below: str) -> None:
    """Build an image."""
    argv = ["docker", "build", "--quiet", "--build-arg", f"BASE={below}", "--tag", tag, str(context)]
    run(argv, log="containers", timeout=BUILD_SECONDS, env={"DOCKER_BUILDKIT": "0"})


def pillar() -> dict[str, Any]:
    """What the lab's pillar says about the images: the registry, plain HTTP, and each formula's version and digest."""
    known = noted()
    rows: dict[str, Any] = {}
    for image in ALL:
        if image.name in known:
            named = {"version": image.version, "digest": known[image.name]["digest"]}
            rows[image.name] = {image.within: named} if image.within else named
    plain = {"insecure-registries": [registry()]}
    return {"containers": {"registry": registry()}, "docker": {"daemon": plain}, **rows}

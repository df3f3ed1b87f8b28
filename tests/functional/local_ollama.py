"""A real Ollama on loopback with a store of its own, and real weights for it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiplatform import numa
from aiplatform.ollama import Client
from aiplatform.wait import until
from lab import models
from lab.artifacts import OLLAMA
from tests.functional.local_server import free_port, launch, program

START_SECONDS = 60
# CPU time in a second that a runner with nothing to do may take: two of the kernel's ticks.
IDLE = 0.025
TEMPLATE = "<start_of_turn>user\n{{ .Prompt }}<end_of_turn>\n<start_of_turn>model\n"
# One thread, and short: the machine may be busy with other tests.
PARAMETERS = {"num_ctx": 512, "num_thread": 1, "num_predict": 24, "temperature": 0, "seed": 1}


def weights() -> Path:
    """A real model's weights; skips where there are none."""
    path = models.path(models.BASE)
    if not path.exists():
        pytest.skip(f"no weights at {path}: run `python -m lab artifacts`")
    return path


@contextlib.contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Client]:
    """Run an instance whose home and store are below a folder, and yield a client of it."""
    port = free_port()
    settings = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(folder / "models"),
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
    }
    ollama = program("Ollama", "AI_PLATFORM_OLLAMA", OLLAMA.unpacked / "bin/ollama")
    process = launch([ollama, "serve"], folder / "ollama.log", settings | environment)
    client = Client(f"http://127.0.0.1:{port}")
    client.process = process.pid
    try:
        until(client.health, START_SECONDS, what=f"Ollama, see {folder}/ollama.log")
        yield client
    finally:
        client.close()
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def make_model(client: Client, name: str) -> None:
    """Make a model of the real weights."""
    if not client.has_blob(models.BASE_SHA256):
        client.upload_blob(str(weights()), models.BASE_SHA256)
    files = {models.BASE: f"sha256:{models.BASE_SHA256}"}
    list(client.create(name, files=files, template=TEMPLATE, parameters=PARAMETERS))


def spent(client: Client) -> float:
    """The CPU time that the instance's model runners have taken, in seconds."""
    stats = [(numa.PROC / str(pid) / "stat").read_text() for pid in numa.runners(client.process)]
    # After the name, which may hold anything, field 14 and 15 of proc(5): user and system time.
    ticks = [sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def generates(client: Client, seconds: float, patience: float = 60) -> None:
    """Await that the runners have worked for so many further seconds of CPU time, though nobody reads what they say."""
    begun = spent(client)
    until(lambda: spent(client) >= begun + seconds, patience, 0.1, f"{seconds} s of the runner's work")


def rests(client: Client, patience: float = 10) -> None:
    """Await a second in which the runners do nothing."""
    seen = [float("-inf")]

    def still() -> bool:
        seen.append(spent(client))
        return seen[-1] - seen[-2] <= IDLE

    until(still, patience, 1.0, "a runner that does nothing")

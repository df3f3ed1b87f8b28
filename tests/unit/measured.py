"""An instance that answers from a table, and the job of measuring a model on it."""

from __future__ import annotations

from pathlib import Path

import yaml

from aiplatform.measure import Task
from aiplatform.measure_model import Job
from aiplatform.ollama import Chunk, OllamaError

CONDITIONS = {"suite": "s", "ollama_version": "0", "hardware": "h", "num_ctx": 1024, "num_thread": 2}


class Fake:
    """An instance that answers from a table; counts what it is asked."""

    def __init__(self, answers=None, broken=(), load_error=None):
        self.answers = answers or {}
        self.broken = broken
        self.load_error = load_error
        self.asked: list[str] = []
        self.calls: list[str] = []
        self.options: list[dict] = []

    def health(self):
        return True

    def load(self, model, *, options, keep_alive, limits):
        self.calls.append(f"load {model}")
        self.keep_alive = keep_alive
        self.options.append(dict(options))
        if self.load_error:
            raise OllamaError(self.load_error)

    def unload(self, model, *, limits):
        self.calls.append(f"unload {model}")
        self.patience = limits.total

    def generate(self, model, prompt, *, limits, **fields):
        self.asked.append(prompt)
        self.options.append(fields["options"])
        if any(word in prompt for word in self.broken):
            raise OllamaError("no")
        yield Chunk(0.2, {"response": self.answers.get(prompt, "text")})
        yield Chunk(0.3, {"response": "", "done": True, "eval_count": 10, "eval_duration": 1_000_000_000})


def one_pass(checkout: Path) -> dict:
    """The default settings, with one pass over the suite."""
    found = yaml.safe_load((checkout / "salt/benchmark/defaults.yaml").read_text())["benchmark"]
    return found | {"repeats": 1}


def the_suite(checkout: Path) -> dict:
    return yaml.safe_load((checkout / "benchmarks/models/suite.yaml").read_text())


def one_job(suite: dict, settings: dict) -> Job:
    task = Task("m:1", "node1", 10**9, "a" * 64)
    return Job(task, suite, settings, CONDITIONS, {"num_ctx": 1024, "num_thread": 2})

"""Answers that are kept: only of requests that would be answered alike again; the least recently used goes first."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

Value = TypeVar("Value")

SIZE = 50
AGE_SECONDS = 3600.0


def is_deterministic(options: Mapping[str, Any] | None) -> bool:
    """Whether the same request gives the same answer: chance is switched off, or starts at a given seed."""
    given = options or {}
    # -1 is Ollama's own word for another seed each time.
    return given.get("temperature") == 0 or given.get("seed") not in (None, -1)


def key(model: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """Return the name that an answer is kept under: 64 hex digits.

    model
        The reply of ``Client.show``: weights, template, system prompt and parameters are in it, so an alias that moves
        to another model has other answers.
    request
        All that is sent but how it is delivered: prompt or messages, system, options, format ...
    """
    told = {name: value for name, value in request.items() if name not in ("model", "stream", "keep_alive")}
    identity = [model.get(part) for part in ("modelfile", "parameters", "template", "system")]
    # The name in the modelfile's comments is not what answers; Ollama lists parameters in a new order each time.
    lines = str(identity[0]).splitlines()
    identity[0] = "\n".join(line for line in lines if not line.startswith(("#", "PARAMETER ")))
    identity[1] = sorted(str(identity[1] or "").split("\n"))
    return hashlib.sha256(json.dumps([identity, told], sort_keys=True).encode()).hexdigest()


class AnswerCache(Generic[Value]):
    """At most ``size`` answers, each for at most ``seconds``. Safe for several threads."""

    def __init__(self, size: int = SIZE, seconds: float = AGE_SECONDS) -> None:
        self._kept: TTLCache[str, Value] = TTLCache(size, seconds)
        self._guard = threading.Lock()

    def get(self, name: str) -> Value | None:
        """Return what is kept under a name; None where nothing is."""
        with self._guard:
            return self._kept.get(name)

    def put(self, name: str, value: Value) -> None:
        """Keep an answer."""
        with self._guard:
            self._kept[name] = value

    def __len__(self) -> int:
        with self._guard:
            return len(self._kept)

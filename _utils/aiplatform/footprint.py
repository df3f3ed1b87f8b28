"""The memory that a loaded model needs beside its weights, by what its file says of itself, and what there is of it.

Follows ``GraphSize`` of Ollama 0.17.4 (``fs/ggml/ggml.go``): a key and a value for each token of the context, layer and
head, and the buffers of one batch. It is an estimate to refuse what cannot fit; Ollama's own figure of a model that is
loaded (``/api/ps``, size) is what counts afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiplatform.ollama import OutOfMemory

BATCH = 512
# Words that a model knows, where its file does not say how many: as many as any in use has.
MANY_WORDS = 262_144
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
# Bytes of one element of the cache, by OLLAMA_KV_CACHE_TYPE.
_ELEMENT = {"f16": 2.0, "q8_0": 1.0, "q4_0": 0.5}
# Architectures whose layers mostly look back a window only: every n-th looks at the whole context.
_GLOBAL_EVERY = {"gemma3": 6, "gptoss": 2, "gpt-oss": 2}


@dataclass(frozen=True)
class Shape:
    """A model's dimensions; ``context`` is the length that it was trained with, ``window`` 0 where it has none."""

    architecture: str
    layers: int
    heads: tuple[int, ...]
    per_head: int
    embedding: int
    vocabulary: int
    context: int
    window: int

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Shape:
        """Make one of what ``as_data`` returned."""
        return cls(**{**data, "heads": tuple(data["heads"])})


def shape(info: Mapping[str, Any]) -> Shape | None:
    """Return a model's dimensions out of ``model_info`` of ``/api/show``; None where they are not all there."""
    architecture = str(info.get("general.architecture", ""))

    def number(name: str) -> int:
        value = info.get(f"{architecture}.{name}")
        return int(value) if isinstance(value, int | float) else 0

    layers, embedding, heads = number("block_count"), number("embedding_length"), number("attention.head_count")
    per_layer = info.get(f"{architecture}.attention.head_count_kv")
    grouped = tuple(per_layer) if isinstance(per_layer, list) else (int(per_layer or heads),) * layers
    usual = embedding // heads if heads else 0
    per_head = (number("attention.key_length") or usual) + (number("attention.value_length") or usual)
    if not (layers and per_head and any(grouped)):
        return None
    tokens = info.get("tokenizer.ggml.tokens")
    vocabulary = number("vocab_size") or (len(tokens) if isinstance(tokens, list) else MANY_WORDS)
    context, window = number("context_length"), number("attention.sliding_window")
    return Shape(architecture, layers, grouped, per_head, embedding, vocabulary, context, window)


def working(model: Shape, num_ctx: int, ollama: Mapping[str, Any]) -> int:
    """Return the bytes of a model's cache and buffers.

    num_ctx
        Its context, in tokens.
    ollama
        Pillar ``ollama``: how many requests it answers at once, and how the cache is kept.
    """
    parallel = int(ollama["num_parallel"])
    # Without flash attention Ollama keeps the cache as f16, whatever is asked for.
    kind = ollama.get("environment", {}).get("OLLAMA_KV_CACHE_TYPE", "f16") if ollama["flash_attention"] else "f16"
    every = _GLOBAL_EVERY.get(model.architecture) if model.window else None
    whole, local = num_ctx * parallel, min(num_ctx * parallel, model.window * parallel + BATCH)
    tokens = [local if every and (layer + 1) % every else whole for layer in range(model.layers)]
    cache = sum(count * heads for count, heads in zip(tokens, model.heads, strict=False)) * model.per_head
    return int(cache * _ELEMENT.get(str(kind), 2.0)) + 4 * BATCH * (model.embedding + model.vocabulary)


def available(proc: Path | None = None, cgroup: Path | None = None) -> int:
    """Return the bytes of memory that are free, as Ollama counts them (``discover/cpu_linux.go``)."""
    text = ((proc or PROC) / "meminfo").read_text(encoding="ascii", errors="replace")
    free = next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:")), 0)
    try:
        limit, used = (int(((cgroup or CGROUP) / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free
    return limit - used


def refuse_without_room(model: str, need: int, free: int) -> None:
    """Refuse a load for which memory is short: Ollama would unload other models to make room, locked slots first.

    need, free
        Bytes.

    Raises ``OutOfMemory``.
    """
    if need > free:
        raise OutOfMemory(
            f"There is no memory to load {model} beside what is loaded",
            expected=f"{need / 2**30:.1f} GiB free",
            actual=f"{free / 2**30:.1f} GiB",
            hint="end what else uses this host's memory, or take a smaller model",
        )

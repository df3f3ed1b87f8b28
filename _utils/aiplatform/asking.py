"""One short question to every name that clients call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aiplatform import completions, ollama
from aiplatform.errors import PlatformError


@dataclass(frozen=True)
class Reply:
    """How many tokens came, how many a second, and what went wrong where none did."""

    tokens: int = 0
    speed: float = 0.0
    error: str = ""


def ask(url: str, model: str, tokens: int) -> Reply:
    """Ask a model for a few tokens, with no load options of the client's own.

    url
        The base URL of its instance.
    """
    try:
        options = {"num_predict": tokens, **completions.GREEDY}
        chunks = list(ollama.Client(url).generate(model, completions.QUESTION, think=False, options=options))
    except PlatformError as err:
        return embed(url, model) if "does not support generate" in str(err) else Reply(error=str(err))
    counts = chunks[-1].data
    seconds = counts.get("eval_duration", 0) / 1e9
    count = int(counts.get("eval_count", 0))
    return Reply(count, count / seconds if seconds else 0.0)


def embed(url: str, model: str) -> Reply:
    """Ask an embedding model for one vector, which counts as a token.

    url
        The base URL of its instance.
    """
    begin = time.monotonic()
    try:
        vectors = ollama.Client(url).embed(model, [completions.QUESTION])
    except PlatformError as err:
        return Reply(error=str(err))
    return Reply(len(vectors), len(vectors) / max(time.monotonic() - begin, 1e-6))


def ask_all(names: Mapping[str, str], tokens: int) -> dict[str, Reply]:
    """Ask every name, the instances side by side and each instance's names one after the other.

    names
        The base URL of its instance, by name.
    """
    instances = {url: [name for name in names if names[name] == url] for url in names.values()}
    if not instances:
        return {}
    with ThreadPoolExecutor(max_workers=len(instances)) as pool:
        parts = pool.map(lambda url: {name: ask(url, name, tokens) for name in instances[url]}, instances)
        return {name: reply for part in parts for name, reply in part.items()}

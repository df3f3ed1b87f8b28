"""One short question in the form that OpenAI's clients send, which the API's edge and the chat both take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# The likeliest words, the same each time: drawn by chance, an answer of a small model may end before its first word.
GREEDY = {"temperature": 0, "seed": 0}
QUESTION = "What is the capital of France?"

# Models that think first say nothing else in a few tokens.
_WORDS = ("content", "reasoning", "reasoning_content")


def question(model: str, tokens: int) -> dict[str, Any]:
    """Return the body of a question to a model, for an answer of at most ``tokens``."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": False,
        "max_tokens": tokens,
        **GREEDY,
    }


def words(status: int, body: str) -> str:
    """Return what the model said; empty where it said nothing, or where the answer is none of a model."""
    try:
        answer: Mapping[str, Any] = json.loads(body) if status == 200 else {}
        message = answer["choices"][0]["message"]
        return next((str(message[key]) for key in _WORDS if (message.get(key) or "").strip()), "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""


def told(status: int, body: str) -> str:
    """Return how an answer is told in a finding: how long it is, or what came instead."""
    said = words(status, body)
    if said:
        return f"an answer of {len(said)} characters"
    if status == 200 and '"choices"' in body:
        return f"HTTP {status}, an empty answer"
    return f"HTTP {status}: {' '.join(body.split())[:200]}"

"""The official clients of Ollama and OpenAI, as a tool at the workstation uses them; runs there, with their packages.

Usage: api_clients.py ADDRESS NAME... < key. Prints what each of the named calls came to, as JSON: what the client
returned, or ``{"error": its class, "status", "says"}``. TLS is trusted as ``SSL_CERT_FILE`` says.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ollama
import openai

MODEL, CODER, EMBEDDING, UNKNOWN = "llama-family", "coder-32k", "embedding", "gpt-4o"
MESSAGES = [{"role": "user", "content": "Name three colours."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "red": {"type": "boolean"}},
    "required": ["name", "red"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "colour", "schema": SCHEMA, "strict": True}}
ASKED = [{"role": "user", "content": "A colour as JSON: its name, and whether it is red."}]
# The likeliest words: drawn by chance, an answer of a small model may end before its first word.
GREEDY = {"temperature": 0, "seed": 0}


def timed(pieces: Any) -> dict[str, Any]:
    """Pieces of a stream, and how many seconds lie between the first and the last of them."""
    texts, times = [], []
    for text in pieces:
        texts.append(text)
        times.append(time.monotonic())
    return {"pieces": len(texts), "text": "".join(texts), "seconds": times[-1] - times[0] if times else 0}


def native(address: str, key: str) -> dict[str, Callable[[], Any]]:
    """Calls of the client that Ollama publishes."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    api = ollama.Client(address, headers=headers, timeout=120)
    options, longer = GREEDY | {"num_predict": 12}, GREEDY | {"num_predict": 80}

    def stream() -> dict[str, Any]:
        parts = api.chat(MODEL, MESSAGES, stream=True, options=options)
        return timed(part.message.content or "" for part in parts)

    return {
        "list": lambda: [row.model for row in api.list().models],
        "chat": lambda: api.chat(MODEL, MESSAGES, options=options).message.content,
        "coder": lambda: api.chat(CODER, MESSAGES, options=options).message.content,
        "stream": stream,
        "embeddings": lambda: [len(row) for row in api.embed(EMBEDDING, ["a", "b"]).embeddings],
        "structured": lambda: json.loads(api.chat(MODEL, ASKED, format=SCHEMA, options=longer).message.content),
        "unknown": lambda: api.chat(UNKNOWN, MESSAGES).message.content,
        "pull": lambda: api.pull("tinyllama:latest").status,
        "delete": lambda: api.delete(MODEL).status,
    }


def foreign(address: str, key: str) -> dict[str, Callable[[], Any]]:
    """Calls of the client that OpenAI publishes."""
    # The client insists on a key; without one it is told to leave the header out, call by call.
    more = {} if key else {"extra_headers": {"Authorization": openai.Omit()}}
    api = openai.OpenAI(base_url=f"{address}/v1", api_key=key or "none", timeout=120)
    chat = partial(api.chat.completions.create, **more, **GREEDY)

    def stream() -> dict[str, Any]:
        parts = chat(model=MODEL, messages=MESSAGES, max_tokens=12, stream=True)
        return timed(part.choices[0].delta.content or "" for part in parts if part.choices)

    def said(**more: Any) -> str:
        return chat(**({"model": MODEL, "messages": MESSAGES, "max_tokens": 12} | more)).choices[0].message.content

    return {
        "list": lambda: [row.id for row in api.models.list(**more).data],
        "chat": said,
        "coder": lambda: said(model=CODER),
        "stream": stream,
        "embeddings": lambda: [len(row.embedding) for row in api.embeddings.create(model=EMBEDDING, input="ab").data],
        "structured": lambda: json.loads(said(messages=ASKED, response_format=FORMAT, max_tokens=80)),
        "unknown": lambda: said(model=UNKNOWN),
        "delete": lambda: api.models.delete(MODEL).id,
    }


def outcome(call: Callable[[], Any]) -> Any:
    """What a call came to."""
    try:
        return call()
    except ollama.ResponseError as err:
        return {"error": type(err).__name__, "status": err.status_code, "says": err.error}
    except openai.APIStatusError as err:
        return {"error": type(err).__name__, "status": err.status_code, "says": err.body}


def main() -> None:
    """Make the named calls with both clients."""
    address, names, key = sys.argv[1], sys.argv[2:], sys.stdin.read().strip()
    clients = {"ollama": native(address, key), "openai": foreign(address, key)}
    print(json.dumps({kind: {n: outcome(calls[n]) for n in names if n in calls} for kind, calls in clients.items()}))


if __name__ == "__main__":
    main()

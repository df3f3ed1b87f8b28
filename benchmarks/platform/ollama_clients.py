"""This platform's client against the official one: the same requests, in turns, in one run.

    python benchmarks/platform/ollama_clients.py    # a stub on loopback: the clients' own cost
    python benchmarks/platform/ollama_clients.py --url URL --model NAME --embedding NAME    # a real one, its features

The model's name begins with a registry that takes a push, as 10.89.77.10:5000/library/gemma3-270m:q4_k_m in the lab.

Prints tables in Markdown; docs/client-comparison.md holds those of a real instance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "_utils"))

import ollama as official
from ollama_client_faults import faults, faulty, remedies
from ollama_client_features import features

from aiplatform import ollama as ours

ROUNDS = 10


class Stub(BaseHTTPRequestHandler):
    """Streams an answer of 64 tokens as fast as it is read."""

    protocol_version = "HTTP/1.1"
    wbufsize = 0
    pieces = tuple(json.dumps({"model": "m", "response": f" word{n}"}).encode() + b"\n" for n in range(64))
    last = b'{"model": "m", "response": "", "done": true, "done_reason": "stop", "eval_count": 64}\n'

    def do_POST(self) -> None:
        """Answer any request alike."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (*self.pieces, self.last):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def with_official(url: str, model: str, tokens: int) -> Callable[[], str]:
    """A request by the official client."""
    client = official.Client(host=url)
    options = {"num_predict": tokens, "temperature": 0, "seed": 1}
    return lambda: "".join(
        part.response or "" for part in client.generate(model, "Say hello.", stream=True, options=options)
    )


def with_ours(url: str, model: str, tokens: int) -> Callable[[], str]:
    """The same request by this platform's client."""
    client = ours.Client(url)
    options = {"num_predict": tokens, "temperature": 0, "seed": 1}
    return lambda: "".join(
        chunk.data.get("response", "") for chunk in client.generate(model, "Say hello.", options=options)
    )


def measure(url: str, model: str, tokens: int, requests: int) -> dict[str, list[float]]:
    """Requests a second of each client and round; they take turns, and who begins changes."""
    clients = {"official": with_official(url, model, tokens), "ours": with_ours(url, model, tokens)}
    if len({ask() for ask in clients.values()}) != 1:
        sys.exit("The two clients read different answers: their speed cannot be compared.")
    found: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(ROUNDS):
        for name in sorted(clients, reverse=number % 2 == 0):
            begin = time.perf_counter()
            for _ in range(requests // ROUNDS):
                clients[name]()
            found[name].append(requests / ROUNDS / (time.perf_counter() - begin))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--model", default="m")
    parser.add_argument("--embedding", default="")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    args = parser.parse_args()
    server = None
    if not args.url:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        args.url = f"http://127.0.0.1:{server.server_port}"
    found = measure(args.url, args.model, args.tokens, args.requests)
    if server:
        server.shutdown()
    ratios = [mine / other for mine, other in zip(found["ours"], found["official"], strict=True)]
    print("# This client and the official one\n")
    print("Made by `benchmarks/platform/ollama_clients.py`, which runs both: `ours` is `aiplatform.ollama`, with")
    print("`aiplatform.calling` in the last table; `official` is")
    print(f"`ollama` {version('ollama')} from PyPI. Python {platform.python_version()}, {os.cpu_count()} CPUs.\n")
    print("## Speed\n\n| client | requests/s, median | lowest | highest |\n| --- | ---: | ---: | ---: |")
    for name, rates in found.items():
        print(f"| {name} | {statistics.median(rates):.1f} | {min(rates):.1f} | {max(rates):.1f} |")
    print(f"\n{args.requests} streamed requests of {args.tokens} tokens each, in {ROUNDS} rounds that take turns.")
    print(f"ours / official, median of the rounds: **{statistics.median(ratios):.3f}**")
    if args.model != "m":
        table("Features", "feature", features(args.url, args.model, args.embedding))
    with faulty() as url:
        table("Errors", "what the server does", faults(url))
        table("What each does about it", "what happens", remedies(url))


def table(title: str, first: str, rows: list[tuple[str, str, str]]) -> None:
    """Print rows of three columns."""
    print(f"\n## {title}\n\n| {first} | official | ours |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
